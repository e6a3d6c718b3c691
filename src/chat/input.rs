//! What a person types: a message, or a command that begins with a slash.

use tern_core::ids::UserId;

/// Messages shown by `/history` without a number: a screen.
const HISTORY: usize = 20;
/// Most that `/history` shows.
const HISTORY_MAX: usize = 1000;

/// A line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Send this.
    Say(String),
    /// Talk to this user from now on.
    To(UserId),
    /// Show the newest messages.
    History(usize),
    /// List the conversations.
    List,
    /// Say how one is connected.
    Status,
    /// Send what was refused again.
    Retry,
    /// Take what was refused out of the outbox.
    Discard,
    /// Say what can be typed.
    Help,
    /// Leave.
    Quit,
    /// Nothing.
    Empty,
}

/// What `/help` shows.
pub const HELP: &str = "/to USER   talk to USER\n\
                        /list      conversations\n\
                        /history N the newest N messages\n\
                        /status    how you are connected\n\
                        /retry     send what was refused again\n\
                        /discard   give up what was refused\n\
                        /quit      leave; what is unsent is sent next time\n\
                        //text     a message that begins with a slash";

impl Input {
    /// Understands a line; the error says what is wrong with it.
    pub fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim_end_matches(['\n', '\r']);
        if let Some(text) = line.strip_prefix("//") {
            return Ok(Input::Say(format!("/{text}")));
        }
        let Some(command) = line.strip_prefix('/') else {
            return Ok(if line.trim().is_empty() { Input::Empty } else { Input::Say(line.to_owned()) });
        };
        let (name, argument) = command.split_once(' ').unwrap_or((command, ""));
        let argument = argument.trim();
        let alone = |input: Self| match argument {
            "" => Ok(input),
            _ => Err(format!("/{name} takes nothing more; a message that begins with a slash is written //")),
        };
        match name {
            "to" => UserId::new(argument).map(Input::To).map_err(|e| format!("/to USER: {e}")),
            "history" if argument.is_empty() => Ok(Input::History(HISTORY)),
            "history" => match argument.parse() {
                Ok(count) if (1..=HISTORY_MAX).contains(&count) => Ok(Input::History(count)),
                _ => Err(format!("/history N: a number from 1 to {HISTORY_MAX}")),
            },
            "list" => alone(Input::List),
            "status" => alone(Input::Status),
            "retry" => alone(Input::Retry),
            "discard" => alone(Input::Discard),
            "help" => alone(Input::Help),
            "quit" => alone(Input::Quit),
            _ => Err(format!("/{name} is not known; /help lists what is")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_unless_they_begin_with_one_slash() {
        assert_eq!(Input::parse("hello /there\n"), Ok(Input::Say("hello /there".into())));
        assert_eq!(Input::parse("//etc"), Ok(Input::Say("/etc".into())));
        assert_eq!(Input::parse("  \n"), Ok(Input::Empty));
        assert_eq!(Input::parse("/quit"), Ok(Input::Quit));
        assert_eq!(Input::parse("/to bob"), Ok(Input::To(UserId::new("bob").unwrap())));
        assert_eq!(Input::parse("/history"), Ok(Input::History(20)));
        assert_eq!(Input::parse("/history 3"), Ok(Input::History(3)));
    }

    #[test]
    fn what_is_not_understood_is_not_sent() {
        for line in ["/fly", "/to", "/history many", "/history 0", "/quit now"] {
            assert!(Input::parse(line).is_err(), "{line}");
        }
    }
}
