//! A captive portal: an access network that takes every stream itself and never answers.
//!
//! It needs no state but which streams it took: a SYN is granted, and whatever comes is acknowledged up to where it
//! ends. So its connections are perfect, and say nothing. Streams that were open before it stood there are not its own;
//! their packets are lost.

use std::collections::VecDeque;
use std::net::SocketAddrV4;

use crate::connection::asks;
use crate::limits::PORTAL_STREAMS;
use crate::segment::{ACK, Head, RST, SYN};

/// Number of its SYN.
const FIRST: u32 = 0;
/// A window that is always open.
const WINDOW: u16 = u16::MAX;

/// The portal of one access network.
#[derive(Debug, Default)]
pub(crate) struct Portal {
    taken: VecDeque<(SocketAddrV4, SocketAddrV4)>,
}

/// What a portal does with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// It answers.
    Answer(Head),
    /// It took it.
    Nothing,
    /// The stream is not its own.
    NotMine,
}

impl Portal {
    /// A segment of a device comes.
    pub(crate) fn takes(&mut self, from: SocketAddrV4, to: SocketAddrV4, head: Head) -> Says {
        let place = self.taken.iter().position(|stream| *stream == (from, to));
        if asks(head) {
            if place.is_none() {
                self.taken.push_back((from, to));
                if self.taken.len() > PORTAL_STREAMS {
                    self.taken.pop_front();
                }
            }
            let ack = head.seq.wrapping_add(1);
            return Says::Answer(Head { flags: SYN | ACK, seq: FIRST, ack, window: WINDOW, payload: 0 });
        }
        let Some(place) = place else { return Says::NotMine };
        if head.has(RST) {
            self.taken.remove(place);
        }
        if head.has(RST) || head.length() == 0 {
            return Says::Nothing;
        }
        let ack = head.seq.wrapping_add(head.length());
        Says::Answer(Head { flags: ACK, seq: FIRST + 1, ack, window: WINDOW, payload: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::FIN;

    #[test]
    fn it_takes_new_streams_and_acknowledges_what_they_say_but_leaves_older_ones_alone() {
        let mut portal = Portal::default();
        let (from, to) = ("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:443".parse().unwrap());
        let head = |flags, seq, payload| Head { flags, seq, ack: 1, window: 100, payload };
        assert_eq!(portal.takes(from, to, head(ACK, 50, 10)), Says::NotMine);
        let Says::Answer(granted) = portal.takes(from, to, head(SYN, 7, 0)) else { panic!() };
        assert_eq!((granted.flags, granted.ack), (SYN | ACK, 8));
        assert_eq!(portal.takes(from, to, head(ACK, 8, 0)), Says::Nothing);
        let Says::Answer(told) = portal.takes(from, to, head(ACK | FIN, 8, 10)) else { panic!() };
        assert_eq!((told.flags, told.seq, told.ack), (ACK, 1, 19));
        assert_eq!(portal.takes(from, to, head(RST, 19, 0)), Says::Nothing);
        assert_eq!(portal.takes(from, to, head(ACK, 19, 1)), Says::NotMine);
    }
}
