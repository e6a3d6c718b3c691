//! What the TCP messenger's client and relay say to each other: frames of a length, a kind and a few fields.
//!
//! The length is of all that follows it, two bytes, big-endian; then a byte for the kind; names have a byte of length
//! before them, numbers eight bytes, a text goes to the frame's end. A message costs some twenty bytes more than its text,
//! so that nothing is lost on overhead.

/// Longest frame after its length.
pub const FRAME_BYTES: usize = u16::MAX as usize;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A client says who it is: the first frame of a connection.
    Hello {
        /// `alice`.
        user: String,
    },
    /// The relay knows him now.
    Welcome,
    /// A client writes to somebody.
    Send {
        /// The same when it is sent again.
        id: u64,
        /// To whom.
        to: String,
        /// What.
        text: String,
    },
    /// The relay has it.
    Ack {
        /// Which.
        id: u64,
    },
    /// The relay hands over what somebody wrote.
    Deliver {
        /// Who.
        from: String,
        /// His number for it.
        id: u64,
        /// What.
        text: String,
    },
    /// The client has it.
    Got {
        /// Whose.
        from: String,
        /// Which.
        id: u64,
    },
    /// Is anybody there?
    Ping,
    /// Yes.
    Pong,
}

/// Bytes that are no frame. The connection is worth nothing any more.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no frame of this protocol: {0}")]
pub struct FrameError(&'static str);

impl Frame {
    /// As it goes over the wire. Names are cut after 255 bytes, texts where the frame is full.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![0, 0];
        match self {
            Self::Hello { user } => {
                out.push(1);
                name(&mut out, user);
            }
            Self::Welcome => out.push(2),
            Self::Send { id, to, text } => {
                out.push(3);
                out.extend(id.to_be_bytes());
                name(&mut out, to);
                out.extend(text.as_bytes());
            }
            Self::Ack { id } => {
                out.push(4);
                out.extend(id.to_be_bytes());
            }
            Self::Deliver { from, id, text } => {
                out.push(5);
                out.extend(id.to_be_bytes());
                name(&mut out, from);
                out.extend(text.as_bytes());
            }
            Self::Got { from, id } => {
                out.push(6);
                out.extend(id.to_be_bytes());
                name(&mut out, from);
            }
            Self::Ping => out.push(7),
            Self::Pong => out.push(8),
        }
        out.truncate(2 + FRAME_BYTES);
        let length = u16::try_from(out.len() - 2).unwrap_or(u16::MAX);
        out[..2].copy_from_slice(&length.to_be_bytes());
        out
    }

    /// A frame without its length.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let (kind, mut rest) = bytes.split_first().ok_or(FrameError("it is empty"))?;
        let frame = match kind {
            1 => Self::Hello { user: take_name(&mut rest)? },
            2 => Self::Welcome,
            3 => Self::Send { id: take_number(&mut rest)?, to: take_name(&mut rest)?, text: take_text(&mut rest)? },
            4 => Self::Ack { id: take_number(&mut rest)? },
            5 => {
                let (id, from) = (take_number(&mut rest)?, take_name(&mut rest)?);
                Self::Deliver { from, id, text: take_text(&mut rest)? }
            }
            6 => {
                let id = take_number(&mut rest)?;
                Self::Got { from: take_name(&mut rest)?, id }
            }
            7 => Self::Ping,
            8 => Self::Pong,
            _ => return Err(FrameError("there is no such kind")),
        };
        if rest.is_empty() { Ok(frame) } else { Err(FrameError("something follows it")) }
    }
}

/// Bytes of a stream that are not yet whole frames.
#[derive(Debug, Default)]
pub struct Inbox(Vec<u8>);

impl Inbox {
    /// Further bytes came.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub fn next_frame(&mut self) -> Option<Result<Frame, FrameError>> {
        let [high, low, rest @ ..] = self.0.as_slice() else { return None };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let frame = Frame::parse(rest.get(..length)?);
        self.0.drain(..2 + length);
        Some(frame)
    }
}

fn name(out: &mut Vec<u8>, name: &str) {
    let bytes = &name.as_bytes()[..name.len().min(255)];
    out.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    out.extend(bytes);
}

fn take<'b>(rest: &mut &'b [u8], count: usize) -> Result<&'b [u8], FrameError> {
    let (taken, left) = rest.split_at_checked(count).ok_or(FrameError("it is cut short"))?;
    *rest = left;
    Ok(taken)
}

fn take_number(rest: &mut &[u8]) -> Result<u64, FrameError> {
    let bytes = take(rest, 8)?.try_into().map_err(|_| FrameError("it is cut short"))?;
    Ok(u64::from_be_bytes(bytes))
}

fn take_name(rest: &mut &[u8]) -> Result<String, FrameError> {
    let length = take(rest, 1)?.iter().copied().map(usize::from).sum();
    text(take(rest, length)?)
}

fn take_text(rest: &mut &[u8]) -> Result<String, FrameError> {
    let all = std::mem::take(rest);
    text(all)
}

fn text(bytes: &[u8]) -> Result<String, FrameError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| FrameError("its text is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Frame> {
        vec![
            Frame::Hello { user: "alice".into() },
            Frame::Welcome,
            Frame::Send { id: 7, to: "bob".into(), text: "alice-phone/7 ...".into() },
            Frame::Ack { id: u64::MAX },
            Frame::Deliver { from: "alice".into(), id: 7, text: String::new() },
            Frame::Got { from: "alice".into(), id: 7 },
            Frame::Ping,
            Frame::Pong,
        ]
    }

    #[test]
    fn frames_are_read_as_they_are_written_however_the_stream_is_cut() {
        let bytes: Vec<u8> = all().iter().flat_map(Frame::to_bytes).collect();
        for step in [1, 3, bytes.len()] {
            let (mut inbox, mut read) = (Inbox::default(), Vec::new());
            for part in bytes.chunks(step) {
                inbox.extend(part);
                read.extend(std::iter::from_fn(|| inbox.next_frame()));
            }
            assert_eq!(read.into_iter().collect::<Result<Vec<_>, _>>(), Ok(all()));
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [&[][..], &[9], &[4, 1], &[7, 0], &[1, 3, b'a'], &[1, 1, 0xff]] {
            assert!(Frame::parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
