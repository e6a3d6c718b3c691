//! Facts as lines of text, so that a device can be a process of its own that may die after any of them.

use std::fmt;
use std::str::FromStr;

use super::Message;

/// Something that a device did or was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What happened.
    pub what: What,
    /// In which conversation; a name without spaces.
    pub conversation: String,
    /// To which message; the user's name is without spaces.
    pub message: Message,
}

/// Kinds of facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The next line of code hands it to the SDK: told before, since the process may die right after.
    Sending,
    /// It is durable in a region.
    Acked,
    /// It is durable in a second region.
    Stable,
    /// It was refused.
    Refused,
    /// It was given up before it was stable.
    AtRisk,
    /// It is new on this device.
    Shown,
}

/// The words of lines.
const WORDS: [(What, &str); 6] = [
    (What::Sending, "sending"),
    (What::Acked, "acked"),
    (What::Stable, "stable"),
    (What::Refused, "refused"),
    (What::AtRisk, "at-risk"),
    (What::Shown, "shown"),
];

/// A line that is something else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a fact: {0:?}; expected \"acked CONVERSATION USER NUMBER\" or the like")]
pub struct NotAFact(pub String);

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = WORDS.iter().find(|(what, _)| *what == self.what).map_or("", |(_, word)| *word);
        write!(f, "{word} {} {} {}", self.conversation, self.message.0, self.message.1)
    }
}

impl FromStr for Fact {
    type Err = NotAFact;

    fn from_str(line: &str) -> Result<Self, NotAFact> {
        let parse = || {
            let mut parts = line.split(' ');
            let word = parts.next()?;
            let what = WORDS.iter().find(|(_, known)| *known == word)?.0;
            let conversation = parts.next().filter(|name| !name.is_empty())?.to_owned();
            let user = parts.next().filter(|name| !name.is_empty())?.to_owned();
            let message = (user, parts.next()?.parse().ok()?);
            parts.next().is_none().then_some(Self { what, conversation, message })
        };
        parse().ok_or_else(|| NotAFact(line.to_owned()))
    }
}
