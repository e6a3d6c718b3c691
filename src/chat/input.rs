//! What a person types: a message, or a command that begins with a slash.

use tern_core::ids::{InstallId, UserId};

/// Messages shown by `/history` without a number: a screen.
const HISTORY: usize = 20;
/// Most that `/history` shows.
const HISTORY_MAX: usize = 1000;

/// Longest `/mute` in hours: a month; without a number it has no end.
const MUTE_HOURS_MAX: u64 = 744;

/// A line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Send this.
    Say(String),
    /// Talk to this user from now on.
    To(UserId),
    /// Talk in this group from now on: the first digits of its id.
    ToGroup(String),
    /// Make a group.
    Group(String, Vec<UserId>),
    /// Add to the group; with what was written before, or without.
    Add(Vec<UserId>, bool),
    /// Remove from the group.
    Remove(Vec<UserId>),
    /// Make an admin, or a plain member.
    Admin(UserId, bool),
    /// Leave the group.
    Leave,
    /// List the group's members.
    Members,
    /// Name the group.
    Title(String),
    /// Mute for so many hours; 0 = not any more, `None` = until further notice.
    Mute(Option<u64>),
    /// Block a user, or lift that.
    Block(UserId, bool),
    /// Let nobody know when one is here, or let all know.
    Hide(bool),
    /// List one's devices.
    Devices,
    /// Remove a device, with a reason.
    Kick(InstallId, String),
    /// Mark everything here as read.
    Read,
    /// Erase messages.
    Erase(Which),
    /// Tell that one is typing, where keys can't be seen.
    Typing,
    /// Show the newest messages.
    History(usize),
    /// List the conversations.
    List,
    /// Say how one is connected.
    Status,
    /// Show how the connection came to be as it is.
    Diagnostics,
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

/// What is to be erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// One's own message that is so many from the end; 1 = the last.
    Last(usize),
    /// All own messages here.
    Here,
    /// All own messages anywhere, and one's settings.
    Everywhere,
}

/// What `/help` shows.
pub const HELP: &str = "/to USER   talk to USER\n\
                        /to #ID    talk in a group; /list shows the ids\n\
                        /list      conversations\n\
                        /read      mark all here as read\n\
                        /typing    tell that you are typing; a terminal does so by itself\n\
                        /mute H    be quiet for H hours; alone: for ever; 0: not any more\n\
                        /erase N   erase your Nth message from the end; `here`: all of yours; `everywhere`\n\
                        /group TITLE USER ..  make a group; a title with spaces stands in \"\"\n\
                        /members   who is in this group\n\
                        /add USER ..  add to this group; with `+history` they may read what was before\n\
                        /remove USER ..  remove from this group\n\
                        /promote USER, /demote USER  make an admin, or a plain member\n\
                        /title TEXT  name this group\n\
                        /leave     leave this group\n\
                        /block USER, /unblock USER\n\
                        /hide, /unhide  let nobody know when you are here, or all\n\
                        /devices   your devices; /kick DEVICE REASON removes one\n\
                        /history N the newest N messages\n\
                        /status    how you are connected\n\
                        /diagnostics  how that came to be, for whoever helps you\n\
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
            "to" if argument.starts_with('#') => match &argument[1..] {
                id if (4..=32).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_hexdigit()) => {
                    Ok(Input::ToGroup(id.to_ascii_lowercase()))
                }
                _ => Err("/to #ID: at least 4 digits of a group's id; /list shows them".into()),
            },
            "group" => group(argument),
            "add" => {
                let history = argument.split_whitespace().any(|w| w == "+history");
                let users = argument.split_whitespace().filter(|w| *w != "+history");
                Ok(Input::Add(users_of(name, users)?, history))
            }
            "remove" => Ok(Input::Remove(users_of(name, argument.split_whitespace())?)),
            "promote" | "demote" => user(name, argument).map(|u| Input::Admin(u, name == "promote")),
            "block" | "unblock" => user(name, argument).map(|u| Input::Block(u, name == "block")),
            "leave" => alone(Input::Leave),
            "members" => alone(Input::Members),
            "devices" => alone(Input::Devices),
            "read" => alone(Input::Read),
            "title" => Ok(Input::Title(argument.to_owned())),
            "mute" if argument.is_empty() => Ok(Input::Mute(None)),
            "mute" => match argument.parse() {
                Ok(hours) if hours <= MUTE_HOURS_MAX => Ok(Input::Mute(Some(hours))),
                _ => Err(format!("/mute H: hours, 0 to {MUTE_HOURS_MAX}; without a number until further notice")),
            },
            "kick" => {
                let (device, reason) = argument.split_once(' ').unwrap_or((argument, ""));
                let device = InstallId::new(device).map_err(|e| format!("/kick DEVICE REASON: {e}"))?;
                Ok(Input::Kick(device, reason.trim().to_owned()))
            }
            "erase" => match argument {
                "" => Ok(Input::Erase(Which::Last(1))),
                "here" => Ok(Input::Erase(Which::Here)),
                "everywhere" => Ok(Input::Erase(Which::Everywhere)),
                number => match number.parse() {
                    Ok(nth) if (1..=HISTORY_MAX).contains(&nth) => Ok(Input::Erase(Which::Last(nth))),
                    _ => Err(format!("/erase N: a number from 1 to {HISTORY_MAX}, `here` or `everywhere`")),
                },
            },
            "to" => UserId::new(argument).map(Input::To).map_err(|e| format!("/to USER: {e}")),
            "history" if argument.is_empty() => Ok(Input::History(HISTORY)),
            "history" => match argument.parse() {
                Ok(count) if (1..=HISTORY_MAX).contains(&count) => Ok(Input::History(count)),
                _ => Err(format!("/history N: a number from 1 to {HISTORY_MAX}")),
            },
            "typing" => alone(Input::Typing),
            "hide" => alone(Input::Hide(true)),
            "unhide" => alone(Input::Hide(false)),
            "diagnostics" => alone(Input::Diagnostics),
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

fn user(command: &str, name: &str) -> Result<UserId, String> {
    UserId::new(name).map_err(|e| format!("/{command} USER: {e}"))
}

fn users_of<'a>(command: &str, names: impl Iterator<Item = &'a str>) -> Result<Vec<UserId>, String> {
    let users = names.map(|name| user(command, name)).collect::<Result<Vec<_>, _>>()?;
    if users.is_empty() { Err(format!("/{command} USER ..: name at least one user")) } else { Ok(users) }
}

/// `TITLE USER ..`, the title in quotes where it has spaces.
fn group(argument: &str) -> Result<Input, String> {
    let (title, rest) = match argument.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').ok_or("/group \"TITLE\" USER ..: the title's second \" is missing")?,
        None => argument.split_once(' ').unwrap_or((argument, "")),
    };
    if title.trim().is_empty() {
        return Err("/group TITLE USER ..: a title, and who else is in it".into());
    }
    Ok(Input::Group(title.to_owned(), users_of("group TITLE", rest.split_whitespace())?))
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
        assert_eq!(Input::parse("/typing"), Ok(Input::Typing));
        assert_eq!(Input::parse("/unhide"), Ok(Input::Hide(false)));
        assert_eq!(Input::parse("/diagnostics"), Ok(Input::Diagnostics));
        assert_eq!(Input::parse("/history 3"), Ok(Input::History(3)));
    }

    #[test]
    fn groups_devices_and_erasure_are_commands_like_the_others() {
        let u = |name| UserId::new(name).unwrap();
        assert_eq!(Input::parse("/to #AB12"), Ok(Input::ToGroup("ab12".into())));
        assert_eq!(Input::parse("/group team bob carol"), Ok(Input::Group("team".into(), vec![u("bob"), u("carol")])));
        assert_eq!(Input::parse("/group \"our team\" bob"), Ok(Input::Group("our team".into(), vec![u("bob")])));
        assert_eq!(Input::parse("/add dan +history"), Ok(Input::Add(vec![u("dan")], true)));
        assert_eq!(Input::parse("/add dan eve"), Ok(Input::Add(vec![u("dan"), u("eve")], false)));
        assert_eq!(Input::parse("/demote dan"), Ok(Input::Admin(u("dan"), false)));
        assert_eq!(Input::parse("/mute"), Ok(Input::Mute(None)));
        assert_eq!(Input::parse("/mute 8"), Ok(Input::Mute(Some(8))));
        assert_eq!(Input::parse("/unblock bob"), Ok(Input::Block(u("bob"), false)));
        let device = InstallId::new("ab").unwrap();
        assert_eq!(Input::parse("/kick ab was stolen"), Ok(Input::Kick(device, "was stolen".into())));
        assert_eq!(Input::parse("/erase"), Ok(Input::Erase(Which::Last(1))));
        assert_eq!(Input::parse("/erase here"), Ok(Input::Erase(Which::Here)));
        assert_eq!(Input::parse("/title a new one"), Ok(Input::Title("a new one".into())));
    }

    #[test]
    fn what_is_not_understood_is_not_sent() {
        let groups = [
            "/to #xyz1",
            "/to #ab",
            "/group",
            "/group x",
            "/group \"a b c",
            "/group \"\" bob",
            "/add",
            "/add +history",
        ];
        let others =
            ["/remove", "/promote", "/mute long", "/mute 99999", "/kick", "/erase 0", "/erase it", "/leave now"];
        let old = ["/fly", "/to", "/history many", "/history 0", "/quit now", "/block", "/read 3"];
        for line in groups.into_iter().chain(others).chain(old) {
            assert!(Input::parse(line).is_err(), "{line}");
        }
    }
}
