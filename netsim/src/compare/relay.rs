//! The server of the TCP messenger, as a machine.
//!
//! It acknowledges a message once it has it, takes none twice, keeps it for its recipient until he confirms it, and hands
//! over all that is left whenever he comes. The newest connection of a user counts. Everything is in memory: it writes to
//! no disk, which is to its advantage.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::frame::Frame;

/// What is to be done with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Write this.
    Write(u64, Frame),
    /// Let go of it.
    Close(u64),
}

/// What waits for a user.
#[derive(Debug, Default)]
struct Mailbox {
    connection: Option<u64>,
    /// From whom, his number, what; in the order in which it came.
    waiting: VecDeque<(String, u64, String)>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Relay {
    mailboxes: BTreeMap<String, Mailbox>,
    /// Whose a connection is.
    users: BTreeMap<u64, String>,
    taken: BTreeSet<(String, u64)>,
    outputs: VecDeque<Output>,
}

impl Relay {
    /// A frame came on a connection.
    pub fn heard(&mut self, connection: u64, frame: Frame) {
        if let Frame::Hello { user } = frame {
            return self.hello(connection, user);
        }
        let Some(user) = self.users.get(&connection).cloned() else {
            // Who says nothing of himself is nobody.
            self.outputs.push_back(Output::Close(connection));
            return;
        };
        match frame {
            Frame::Send { id, to, text } => {
                if self.taken.insert((user.clone(), id)) {
                    let mailbox = self.mailboxes.entry(to).or_default();
                    mailbox.waiting.push_back((user.clone(), id, text.clone()));
                    if let Some(connection) = mailbox.connection {
                        self.outputs.push_back(Output::Write(connection, Frame::Deliver { from: user, id, text }));
                    }
                }
                self.outputs.push_back(Output::Write(connection, Frame::Ack { id }));
            }
            Frame::Got { from, id } => {
                if let Some(mailbox) = self.mailboxes.get_mut(&user) {
                    mailbox.waiting.retain(|(of, number, _)| (of, *number) != (&from, id));
                }
            }
            Frame::Ping => self.outputs.push_back(Output::Write(connection, Frame::Pong)),
            Frame::Hello { .. } | Frame::Welcome | Frame::Ack { .. } | Frame::Deliver { .. } | Frame::Pong => {}
        }
    }

    /// A connection has ended.
    pub fn gone(&mut self, connection: u64) {
        let Some(user) = self.users.remove(&connection) else { return };
        if let Some(mailbox) = self.mailboxes.get_mut(&user)
            && mailbox.connection == Some(connection)
        {
            mailbox.connection = None;
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn hello(&mut self, connection: u64, user: String) {
        let mailbox = self.mailboxes.entry(user.clone()).or_default();
        if let Some(older) = mailbox.connection.replace(connection).filter(|older| *older != connection) {
            self.outputs.push_back(Output::Close(older));
        }
        self.users.insert(connection, user);
        self.outputs.push_back(Output::Write(connection, Frame::Welcome));
        for (from, id, text) in mailbox.waiting.clone() {
            self.outputs.push_back(Output::Write(connection, Frame::Deliver { from, id, text }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(user: &str) -> Frame {
        Frame::Hello { user: user.into() }
    }

    fn send(id: u64) -> Frame {
        Frame::Send { id, to: "bob".into(), text: format!("text {id}") }
    }

    fn deliver(id: u64) -> Frame {
        Frame::Deliver { from: "alice".into(), id, text: format!("text {id}") }
    }

    fn all(relay: &mut Relay) -> Vec<Output> {
        std::iter::from_fn(|| relay.poll_output()).collect()
    }

    /// Alice is there, by connection 1.
    fn with_alice() -> Relay {
        let mut relay = Relay::default();
        relay.heard(1, hello("alice"));
        assert_eq!(all(&mut relay), [Output::Write(1, Frame::Welcome)]);
        relay
    }

    #[test]
    fn what_comes_for_somebody_absent_waits_until_he_confirms_it() {
        let mut relay = with_alice();
        relay.heard(1, send(1));
        relay.heard(1, send(2));
        assert_eq!(all(&mut relay), [1, 2].map(|id| Output::Write(1, Frame::Ack { id })));
        relay.heard(2, hello("bob"));
        let writes = |connection, frames: Vec<Frame>| -> Vec<Output> {
            frames.into_iter().map(|frame| Output::Write(connection, frame)).collect()
        };
        assert_eq!(all(&mut relay), writes(2, vec![Frame::Welcome, deliver(1), deliver(2)]));
        relay.heard(2, Frame::Got { from: "alice".into(), id: 1 });
        relay.gone(2);
        relay.heard(1, send(3));
        relay.heard(3, hello("bob"));
        let expected =
            [vec![Output::Write(1, Frame::Ack { id: 3 })], writes(3, vec![Frame::Welcome, deliver(2), deliver(3)])];
        assert_eq!(all(&mut relay), expected.concat());
    }

    #[test]
    fn what_is_sent_again_is_acked_again_and_delivered_once() {
        let mut relay = with_alice();
        relay.heard(2, hello("bob"));
        all(&mut relay);
        relay.heard(1, send(1));
        assert_eq!(all(&mut relay), [Output::Write(2, deliver(1)), Output::Write(1, Frame::Ack { id: 1 })]);
        relay.heard(2, Frame::Got { from: "alice".into(), id: 1 });
        relay.gone(1);
        relay.heard(4, hello("alice"));
        relay.heard(4, send(1));
        assert_eq!(all(&mut relay), [Frame::Welcome, Frame::Ack { id: 1 }].map(|frame| Output::Write(4, frame)));
    }

    #[test]
    fn the_newest_connection_of_a_user_counts_and_the_end_of_an_older_one_changes_nothing() {
        let mut relay = with_alice();
        relay.heard(2, hello("bob"));
        relay.heard(3, hello("bob"));
        let welcome = |connection| Output::Write(connection, Frame::Welcome);
        assert_eq!(all(&mut relay), [welcome(2), Output::Close(2), welcome(3)]);
        relay.gone(2);
        relay.heard(1, send(1));
        assert_eq!(all(&mut relay)[0], Output::Write(3, deliver(1)));
    }

    #[test]
    fn who_does_not_say_who_he_is_gets_nothing_and_a_ping_is_answered() {
        let mut relay = with_alice();
        relay.heard(9, send(1));
        relay.heard(1, Frame::Ping);
        assert_eq!(all(&mut relay), [Output::Close(9), Output::Write(1, Frame::Pong)]);
    }
}
