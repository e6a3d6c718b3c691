//! What the command and a client of another system say to each other: JSON, one object a line, as with tern's devices.
//!
//! It is so little that a client in another language is a page of text. Times are of the monotonic clock that all
//! processes of a machine share, counted from the run's beginning, and noted by the client itself: when it takes a
//! message from its user, and when it would show one.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The first line to a client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetUp {
    /// `alice-phone`.
    pub device: String,
    /// `alice`.
    pub user: String,
    /// Where its server is.
    pub server: SocketAddr,
    /// Whom the server's certificate names.
    pub server_name: String,
    /// What is pinned.
    pub roots: PathBuf,
    /// The run's moment 0, in nanoseconds of the monotonic clock.
    pub zero_ns: u64,
}

/// Every further line to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Its user writes.
    Send {
        /// To whom.
        to: String,
        /// Its name and dots.
        text: String,
    },
    /// The system says that the device is in another network.
    Network(Option<String>),
}

/// A line of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// When, in nanoseconds since the run began.
    pub at_ns: u64,
    /// What.
    pub what: What,
    /// With which message: the first word of its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// See [`Told`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// It took a message from its user.
    Sent,
    /// Its server has it.
    Acked,
    /// It would show one.
    Shown,
    /// It has a connection, and its server knows it.
    Live,
    /// It has none any more.
    Lost,
}

/// The text of a message: its name, then dots until it is so long.
pub fn text(message: &str, bytes: u32) -> String {
    let mut text = format!("{message} ");
    let wanted = usize::try_from(bytes).unwrap_or(usize::MAX);
    text.extend(std::iter::repeat_n('.', wanted.saturating_sub(text.len())));
    text
}

/// The name of a message.
pub fn name_of(text: &str) -> String {
    text.split(' ').next().unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_the_clients_in_python_read_and_write() {
        let order = Order::Send { to: "bob".into(), text: text("alice-phone/1", 20) };
        let line = r#"{"send":{"to":"bob","text":"alice-phone/1 ......"}}"#;
        assert_eq!(serde_json::to_string(&order).unwrap(), line);
        assert_eq!(serde_json::to_string(&Order::Network(None)).unwrap(), r#"{"network":null}"#);
        let told: Told = serde_json::from_str(r#"{"at_ns":7,"what":"shown","message":"alice-phone/1"}"#).unwrap();
        assert_eq!(told, Told { at_ns: 7, what: What::Shown, message: Some("alice-phone/1".into()) });
        assert_eq!(serde_json::from_str::<Told>(r#"{"at_ns":7,"what":"live"}"#).unwrap().message, None);
        assert!(serde_json::from_str::<Told>(r#"{"at_ns":7,"what":"seen"}"#).is_err());
    }

    #[test]
    fn a_text_has_its_length_and_its_name() {
        let text = text("bob-laptop/12", 120);
        assert_eq!((text.len(), name_of(&text).as_str()), (120, "bob-laptop/12"));
        assert_eq!(super::text("bob-laptop/12", 3).len(), 14);
    }
}
