//! A middlebox of an access network that lets only the web through, and perhaps no stream for long.
//!
//! It does what such boxes do: it reads the first words of a stream, which TLS says in the clear, and lets it go on if they
//! offer HTTP (or name no protocol at all); any other stream is swallowed from there on, without a word. A stream that is too
//! old is cut: its device is told so by a reset with the next packet of either side, and the server is told nothing. Streams
//! that were open before the box stood there are not its own; their packets are lost.

use std::collections::VecDeque;
use std::net::SocketAddrV4;

use crate::connection::asks;
use crate::limits::MIDDLEBOX_STREAMS;
use crate::segment::{ACK, Head, RST};

/// What of a stream is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// It has said nothing yet.
    Open,
    Web,
    Other,
    Cut,
}

#[derive(Debug)]
struct Stream {
    /// The device's end.
    inside: SocketAddrV4,
    outside: SocketAddrV4,
    since_ns: u64,
    look: Look,
}

/// The middlebox of one access network.
#[derive(Debug, Default)]
pub(crate) struct Middlebox {
    streams: VecDeque<Stream>,
}

/// What becomes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passes,
    Lost,
    /// Lost, and this goes to the device.
    Cut(Head),
}

impl Middlebox {
    /// A segment of the device comes; `longest_ns`: streams are cut at this age.
    pub(crate) fn leaves(
        &mut self,
        now_ns: u64,
        (inside, outside): (SocketAddrV4, SocketAddrV4),
        (head, payload): (Head, &[u8]),
        longest_ns: Option<u64>,
    ) -> Verdict {
        let known = self.streams.iter().position(|one| (one.inside, one.outside) == (inside, outside));
        let place = match known {
            Some(place) => place,
            None if asks(head) => {
                if self.streams.len() >= MIDDLEBOX_STREAMS {
                    self.streams.pop_front();
                }
                self.streams.push_back(Stream { inside, outside, since_ns: now_ns, look: Look::Open });
                self.streams.len() - 1
            }
            None => return Verdict::Lost,
        };
        let Some(stream) = self.streams.get_mut(place) else { return Verdict::Lost };
        if stream.look == Look::Open && !payload.is_empty() {
            stream.look = if offers_web(payload) { Look::Web } else { Look::Other };
        }
        if stream.is_cut(now_ns, longest_ns) {
            return head.reset().map_or(Verdict::Lost, Verdict::Cut);
        }
        if stream.look == Look::Other { Verdict::Lost } else { Verdict::Passes }
    }

    /// A segment for the device comes.
    pub(crate) fn enters(
        &mut self,
        now_ns: u64,
        (inside, outside): (SocketAddrV4, SocketAddrV4),
        head: Head,
        longest_ns: Option<u64>,
    ) -> Verdict {
        let known = self.streams.iter_mut().find(|one| (one.inside, one.outside) == (inside, outside));
        let Some(stream) = known else { return Verdict::Lost };
        if stream.is_cut(now_ns, longest_ns) {
            // In the place of this segment, so that the device takes it.
            return Verdict::Cut(Head { flags: RST | ACK, seq: head.seq, ack: head.ack, window: 0, payload: 0 });
        }
        if stream.look == Look::Other { Verdict::Lost } else { Verdict::Passes }
    }
}

impl Stream {
    fn is_cut(&mut self, now_ns: u64, longest_ns: Option<u64>) -> bool {
        if longest_ns.is_some_and(|longest_ns| now_ns.saturating_sub(self.since_ns) >= longest_ns) {
            self.look = Look::Cut;
        }
        self.look == Look::Cut
    }
}

/// Whether the beginning of a stream is TLS that offers HTTP, or names no protocol (RFC 8446, 4.1.2; RFC 7301, 3.1). What
/// goes on in another segment is not awaited.
fn offers_web(bytes: &[u8]) -> bool {
    protocols(bytes)
        .is_some_and(|all| all.is_none_or(|all| all.contains(&&b"h2"[..]) || all.contains(&&b"http/1.1"[..])))
}

/// The protocols that a ClientHello offers, if it names any; `None`: it is none.
fn protocols(bytes: &[u8]) -> Option<Option<Vec<&[u8]>>> {
    // Of the record: handshake, version, length; of the message: ClientHello, length; version and random.
    let [22, 3, _, _, _, 1, ..] = bytes else { return None };
    let rest = bytes.get(5 + 4 + 2 + 32..)?;
    let (_, rest) = vector(rest, 1)?;
    let (_, rest) = vector(rest, 2)?;
    let (_, rest) = vector(rest, 1)?;
    let Some((mut extensions, _)) = vector(rest, 2) else { return Some(None) };
    while let [high, low, after @ ..] = extensions {
        let (data, after) = vector(after, 2)?;
        extensions = after;
        if [*high, *low] == [0, 16] {
            let (mut list, _) = vector(data, 2)?;
            let mut all = Vec::new();
            while let Some((name, after)) = vector(list, 1) {
                all.push(name);
                list = after;
            }
            return Some(Some(all));
        }
    }
    Some(None)
}

/// A vector whose length is written in so many bytes, and what follows.
fn vector(bytes: &[u8], length_bytes: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(length_bytes)?;
    rest.split_at_checked(length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::segment::{FIN, SYN};

    const MS: u64 = 1_000_000;

    fn ends() -> (SocketAddrV4, SocketAddrV4) {
        ("192.168.1.5:1000".parse().unwrap(), "10.0.0.2:443".parse().unwrap())
    }

    fn head(flags: u8, seq: u32, payload: usize) -> Head {
        Head { flags, seq, ack: 77, window: 100, payload }
    }

    /// What rustls says first.
    fn hello(alpn: &[&[u8]]) -> Vec<u8> {
        let roots = rustls::RootCertStore::empty();
        let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = "eu-e1.eu.tern.internal".try_into().unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn only_streams_that_offer_the_web_go_on() {
        for (first, passes) in [
            (hello(&[b"h2", b"http/1.1"]), true),
            (hello(&[b"http/1.1"]), true),
            (hello(&[]), true),
            (hello(&[b"tern/1"]), false),
            (b"SSH-2.0-".to_vec(), false),
            (hello(&[b"h2"])[..60].to_vec(), false),
        ] {
            let mut middlebox = Middlebox::default();
            let mut says = |head, payload: &[u8]| middlebox.leaves(0, ends(), (head, payload), None);
            assert_eq!(says(head(SYN, 7, 0), b""), Verdict::Passes);
            assert_eq!(says(head(ACK, 8, 0), b""), Verdict::Passes);
            let expected = if passes { Verdict::Passes } else { Verdict::Lost };
            assert_eq!(says(head(ACK, 8, first.len()), &first), expected);
            // What it says later is cipher.
            assert_eq!(says(head(ACK, 300, 3), b"abc"), expected);
            assert_eq!(middlebox.enters(1, ends(), head(ACK, 1, 9), None), expected);
        }
        assert_eq!(
            Middlebox::default().leaves(0, ends(), (head(ACK, 9, 1), b"x"), None),
            Verdict::Lost,
            "none of its own"
        );
        assert_eq!(Middlebox::default().enters(0, ends(), head(ACK, 9, 1), None), Verdict::Lost);
    }

    #[test]
    fn a_stream_that_is_too_old_is_reset_towards_its_device_whoever_speaks_next() {
        let longest_ns = Some(100 * MS);
        for from_inside in [true, false] {
            let mut middlebox = Middlebox::default();
            assert_eq!(middlebox.leaves(5, ends(), (head(SYN, 7, 0), b""), longest_ns), Verdict::Passes);
            // Said again, it is no younger.
            assert_eq!(middlebox.leaves(50 * MS, ends(), (head(SYN, 7, 0), b""), longest_ns), Verdict::Passes);
            let late_ns = 100 * MS + 5;
            let verdict = if from_inside {
                middlebox.leaves(late_ns, ends(), (head(ACK, 8, 1), b"x"), longest_ns)
            } else {
                middlebox.enters(late_ns, ends(), head(ACK, 77, 3), longest_ns)
            };
            let Verdict::Cut(reset) = verdict else { panic!("{verdict:?}") };
            assert!(reset.has(RST) && reset.seq == 77, "where the device awaits the next byte");
            let fin = (head(ACK | FIN, 8, 0), &b""[..]);
            assert!(matches!(middlebox.leaves(late_ns + 1, ends(), fin, None), Verdict::Cut(_)), "it stays cut");
        }
    }

    #[test]
    fn it_remembers_so_many_streams_and_no_more() {
        let mut middlebox = Middlebox::default();
        for port in 0..2048 {
            let inside = SocketAddrV4::new([192, 168, 1, 5].into(), port);
            middlebox.leaves(0, (inside, ends().1), (head(SYN, 7, 0), b""), None);
        }
        assert_eq!(middlebox.streams.len(), MIDDLEBOX_STREAMS);
    }
}
