//! Frames of RFC 6455, without I/O.
//!
//! A general library hands out whole messages: it holds each of them a second time, with a buffer for every
//! idle connection, and draws its masks from a generator of its own. Here what a message carries goes to the
//! reader of tern's frames as it comes, and between frames a connection holds nothing.

use bytes::{Buf, BytesMut};

use super::{MESSAGE_BYTES, WebSocketError};

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
const PING: u8 = 9;
pub(super) const PONG: u8 = 10;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
/// What a control frame may carry (5.5).
pub(super) const CONTROL_BYTES: usize = 125;
/// Two bytes, a length of eight, a mask of four.
const HEAD_BYTES: usize = 14;

/// Which side of a connection this is: clients mask what they send, servers do not (5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Server,
    Client,
}

/// Reads what the other side sends.
#[derive(Debug)]
pub(super) struct Decoder {
    side: Side,
    head: [u8; HEAD_BYTES],
    have: usize,
    /// The frame whose payload comes now.
    frame: Option<Frame>,
    /// A message has begun and not ended.
    in_message: bool,
    /// Bytes of it so far.
    message_bytes: usize,
    /// Where tern's frames end.
    ends: Ends,
    /// Of the control frame that comes now.
    control: Vec<u8>,
    /// The newest ping that was not answered (5.5.3 allows to answer that one only).
    pub(super) ping: Option<Vec<u8>>,
    /// The other side said Close, with this code; 1005 where it gave none. Nothing is read after it.
    pub(super) closed: Option<u16>,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: u8,
    fin: bool,
    left: usize,
    mask: [u8; 4],
    /// Bytes that were unmasked.
    at: usize,
}

impl Decoder {
    pub(super) fn new(side: Side) -> Self {
        Self {
            side,
            head: [0; HEAD_BYTES],
            have: 0,
            frame: None,
            in_message: false,
            message_bytes: 0,
            ends: Ends::default(),
            control: Vec::new(),
            ping: None,
            closed: None,
        }
    }

    /// Takes what was read; what messages carry is appended to `out`. After an error nothing more can be read.
    pub(super) fn decode(&mut self, mut input: &[u8], out: &mut BytesMut) -> Result<(), WebSocketError> {
        while self.closed.is_none() {
            let Some(frame) = &mut self.frame else {
                if input.is_empty() {
                    break;
                }
                self.head(&mut input)?;
                continue;
            };
            let now = frame.left.min(input.len());
            let (payload, rest) = input.split_at(now);
            input = rest;
            frame.left -= now;
            if frame.opcode >= CLOSE {
                let start = self.control.len();
                self.control.extend_from_slice(payload);
                unmask(&mut self.control[start..], frame.mask, frame.at);
            } else {
                let start = out.len();
                out.extend_from_slice(payload);
                unmask(&mut out[start..], frame.mask, frame.at);
                self.ends.pass(&out[start..]);
            }
            frame.at += now;
            if frame.left > 0 {
                break;
            }
            let Frame { opcode, fin, .. } = *frame;
            self.frame = None;
            self.ended(opcode, fin)?;
        }
        Ok(())
    }

    /// Takes bytes of a frame's head, and judges it once it is whole.
    fn head(&mut self, input: &mut &[u8]) -> Result<(), WebSocketError> {
        while let Some((&byte, rest)) = input.split_first() {
            self.head[self.have] = byte;
            self.have += 1;
            *input = rest;
            let long = match self.head[1] & !MASKED {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            let masked = self.head[1] & MASKED != 0;
            if self.have < 2 || self.have < 2 + long + if masked { 4 } else { 0 } {
                continue;
            }
            let mut frame = self.judge(long, masked)?;
            if masked {
                frame.mask.copy_from_slice(&self.head[2 + long..6 + long]);
            }
            self.frame = Some(frame);
            (self.head, self.have) = ([0; HEAD_BYTES], 0);
            break;
        }
        Ok(())
    }

    fn judge(&mut self, long: usize, masked: bool) -> Result<Frame, WebSocketError> {
        let (fin, opcode) = (self.head[0] & FIN != 0, self.head[0] & 0x0f);
        if self.head[0] & 0x70 != 0 {
            return Err(WebSocketError::Protocol("a bit is set that belongs to an extension, and none was agreed on"));
        }
        if masked != (self.side == Side::Server) {
            return Err(WebSocketError::Protocol("clients mask their frames, and servers do not"));
        }
        let announced = self.head[2..2 + long].iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        let length = match long {
            0 => u64::from(self.head[1] & !MASKED),
            2 if announced < 126 => {
                return Err(WebSocketError::Protocol("a length that takes more bytes than it needs"));
            }
            8 if announced < 1 << 16 => {
                return Err(WebSocketError::Protocol("a length that takes more bytes than it needs"));
            }
            _ => announced,
        };
        match opcode {
            CLOSE | PING | PONG => {
                if !fin || length > CONTROL_BYTES as u64 {
                    return Err(WebSocketError::Protocol("a control frame that is cut in parts, or above 125 bytes"));
                }
                self.control = Vec::new();
            }
            BINARY if self.in_message => {
                return Err(WebSocketError::Protocol("a message began before the last one ended"));
            }
            CONTINUATION if !self.in_message => {
                return Err(WebSocketError::Protocol("a continuation of nothing"));
            }
            BINARY | CONTINUATION => {
                if opcode == BINARY {
                    self.message_bytes = 0;
                }
                self.in_message = true;
                let room = MESSAGE_BYTES - self.message_bytes;
                let Some(length) = usize::try_from(length).ok().filter(|length| *length <= room) else {
                    return Err(WebSocketError::TooLarge);
                };
                self.message_bytes += length;
            }
            TEXT => return Err(WebSocketError::Text),
            _ => return Err(WebSocketError::Protocol("a frame of a kind that there is not")),
        }
        // At most MESSAGE_BYTES here.
        let left = usize::try_from(length).map_err(|_| WebSocketError::TooLarge)?;
        Ok(Frame { opcode, fin, left, mask: [0; 4], at: 0 })
    }

    fn ended(&mut self, opcode: u8, fin: bool) -> Result<(), WebSocketError> {
        match opcode {
            PING => self.ping = Some(std::mem::take(&mut self.control)),
            PONG => self.control = Vec::new(),
            CLOSE => {
                let payload = std::mem::take(&mut self.control);
                self.closed = Some(match payload[..] {
                    [] => 1005,
                    [high, low, ..] => u16::from_be_bytes([high, low]),
                    [_] => return Err(WebSocketError::Protocol("a Close with half a code")),
                });
            }
            _ if fin => {
                self.in_message = false;
                if !self.ends.between() {
                    return Err(WebSocketError::Cut);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn unmask(bytes: &mut [u8], mask: [u8; 4], at: usize) {
    if mask == [0; 4] {
        return;
    }
    // In steps of four the compiler makes of it what the processor has.
    let mut mask = mask;
    mask.rotate_left(at % 4);
    let mut fours = bytes.chunks_exact_mut(4);
    for four in &mut fours {
        four.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
    fours.into_remainder().iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

/// Appends a frame. `mask`: from a client.
pub(super) fn put(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>, out: &mut BytesMut) {
    out.reserve(HEAD_BYTES + payload.len());
    let masked = if mask.is_some() { MASKED } else { 0 };
    out.extend_from_slice(&[FIN | opcode]);
    if payload.len() < 126 {
        out.extend_from_slice(&[masked | u8::try_from(payload.len()).unwrap_or(0)]);
    } else if let Ok(length) = u16::try_from(payload.len()) {
        out.extend_from_slice(&[masked | 126]);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.extend_from_slice(&[masked | 127]);
        out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    }
    out.extend_from_slice(&mask.unwrap_or_default()[..if mask.is_some() { 4 } else { 0 }]);
    let start = out.len();
    out.extend_from_slice(payload);
    unmask(&mut out[start..], mask.unwrap_or_default(), 0);
}

/// Moves as many whole frames of `from` as fit into one message, at least one, into a binary message.
pub(super) fn put_message(from: &mut BytesMut, mask: Option<[u8; 4]>, out: &mut BytesMut) {
    let mut ends = Ends::default();
    let mut take = 0;
    while take < from.len() {
        let next = take + ends.frame(&from[take..]);
        if next > MESSAGE_BYTES && take > 0 {
            break;
        }
        take = next;
    }
    put(BINARY, &from[..take], mask, out);
    from.advance(take);
}

/// Follows a stream of frames with their lengths, to know where they end. What is wrong with a length is left
/// to whoever reads the frames.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ends {
    left: u64,
    length: u64,
    shift: u32,
}

impl Ends {
    /// No frame has begun that has not ended.
    pub(super) fn between(self) -> bool {
        self.left == 0 && self.shift == 0
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.frame(bytes)..];
        }
    }

    /// Passes up to the end of the frame that `bytes` are in, and says how many that were.
    fn frame(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while self.left == 0 {
            let Some(byte) = bytes.get(used) else { return used };
            used += 1;
            self.length |= u64::from(byte & 0x7f) << self.shift.min(57);
            self.shift += 7;
            if byte & 0x80 == 0 {
                (self.left, self.length, self.shift) = (self.length, 0, 0);
                if self.left == 0 {
                    return used;
                }
            }
        }
        let rest = (bytes.len() - used).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= rest as u64;
        used + rest
    }
}

/// Whether `bytes` are frames with their lengths, each of them whole.
pub(super) fn are_whole(bytes: &[u8]) -> bool {
    let mut ends = Ends::default();
    ends.pass(bytes);
    ends.between()
}

/// Bytes of the first frame, its length included.
pub(super) fn first_frame(bytes: &[u8]) -> usize {
    Ends::default().frame(bytes)
}
