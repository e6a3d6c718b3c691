//! What is inside a sealed datagram: one byte that says what follows, then that. All numbers are big-endian.
//!
//! ```text
//! 0 packet    what foca says: header, news of members, loads
//! 1 join      "let me in": node, 0 | 1, cookie 8 (if 1)
//! 2 cookie    "then show me this": node (that asked), cookie 8
//! 3 replaced  "you are not you any more": node (that asked), node (that is), 0 | 1 (is alive)
//! 4 suspected "do you live?": node (that is suspected), incarnation 2
//!
//! node        role 1, region 1, start 8, turn 4, address, length 1, name
//! address     4 | 6, IP 4 | 16, port 2
//! member      node, incarnation 2, state 1
//! header      node (from), incarnation 2, node (to), message 1, what belongs to that
//! ```
//!
//! An own format: it is checked while it is read, its bytes are pinned by tests, and nodes of two versions that talk
//! to each other during an upgrade do not depend on what a serializer thinks of an enum.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, State};
use tern_core::ids::Region;

use super::identity::{NodeId, Role};
use super::limits::NAME_BYTES;

/// Bytes of a cookie: it need only not be guessed by those who hold the deployment's key.
pub(crate) const COOKIE_BYTES: usize = 8;
pub(crate) type Cookie = [u8; COOKIE_BYTES];

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the datagram ends too early")]
    Short,
    #[error("the datagram goes on after its end")]
    Long,
    #[error("{0} has a value that does not exist")]
    Value(&'static str),
    #[error("there is no room for it")]
    NoRoom,
}

/// What a datagram says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    Packet(&'a [u8]),
    Join { from: NodeId, cookie: Option<Cookie> },
    Cookie { to: NodeId, cookie: Cookie },
    Replaced { to: NodeId, by: NodeId, alive: bool },
    Suspected { to: NodeId, incarnation: u16 },
}

impl<'a> Said<'a> {
    /// For the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Said::Packet(bytes) => {
                out.push(0);
                out.extend_from_slice(bytes);
            }
            Said::Join { from, cookie } => {
                out.push(1);
                put_node(from, &mut out);
                out.push(u8::from(cookie.is_some()));
                out.extend_from_slice(cookie.as_ref().map_or(&[][..], |cookie| cookie));
            }
            Said::Cookie { to, cookie } => {
                out.push(2);
                put_node(to, &mut out);
                out.extend_from_slice(cookie);
            }
            Said::Replaced { to, by, alive } => {
                out.push(3);
                put_node(to, &mut out);
                put_node(by, &mut out);
                out.push(u8::from(*alive));
            }
            Said::Suspected { to, incarnation } => {
                out.push(4);
                put_node(to, &mut out);
                out.extend_from_slice(&incarnation.to_be_bytes());
            }
        }
        out
    }

    /// From the wire of a region's cluster.
    pub fn decode(region: Region, bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut from = Reader { region, rest: bytes };
        let said = match from.u8()? {
            0 => return Ok(Said::Packet(from.rest)),
            1 => {
                let node = from.node()?;
                let cookie = if from.flag("cookie")? { Some(from.array()?) } else { None };
                Said::Join { from: node, cookie }
            }
            2 => Said::Cookie { to: from.node()?, cookie: from.array()? },
            3 => Said::Replaced { to: from.node()?, by: from.node()?, alive: from.flag("alive")? },
            4 => Said::Suspected { to: from.node()?, incarnation: from.u16()? },
            _ => return Err(WireError::Value("kind")),
        };
        if from.rest.is_empty() { Ok(said) } else { Err(WireError::Long) }
    }
}

/// Reads what was written, and checks it.
pub(crate) struct Reader<'a> {
    /// Whose cluster it is: only an ipconf may be of another region.
    pub region: Region,
    pub rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(WireError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError::Short)
    }

    pub fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub fn flag(&mut self, what: &'static str) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Value(what)),
        }
    }

    /// Text with its length before it.
    pub fn text(&mut self, least: usize, most: usize, what: &'static str) -> Result<Arc<str>, WireError> {
        let length = usize::from(self.u8()?);
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| WireError::Value(what))?;
        if !(least..=most).contains(&length) || text.chars().any(char::is_control) {
            return Err(WireError::Value(what));
        }
        Ok(text.into())
    }

    pub fn address(&mut self) -> Result<SocketAddr, WireError> {
        let ip: IpAddr = match self.u8()? {
            4 => self.array::<4>()?.into(),
            6 => self.array::<16>()?.into(),
            _ => return Err(WireError::Value("address")),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    fn node(&mut self) -> Result<NodeId, WireError> {
        let role = match self.u8()? {
            1 => Role::Region,
            2 => Role::Edge,
            3 => Role::Ipconf,
            _ => return Err(WireError::Value("role")),
        };
        let region = self.u8()?;
        if region == 0 || (role != Role::Ipconf && region != self.region) {
            return Err(WireError::Value("region"));
        }
        let (start, turn, addr) = (self.u64()?, self.u32()?, self.address()?);
        if addr.port() == 0 || addr.ip().is_unspecified() || addr.ip().is_multicast() {
            return Err(WireError::Value("address"));
        }
        Ok(NodeId { region, role, name: self.text(1, NAME_BYTES, "name")?, start, turn, addr })
    }

    fn member(&mut self) -> Result<Member<NodeId>, WireError> {
        let (id, incarnation) = (self.node()?, self.u16()?);
        let state = match self.u8()? {
            1 => State::Alive,
            2 => State::Suspect,
            3 => State::Down,
            _ => return Err(WireError::Value("state")),
        };
        Ok(Member::new(id, incarnation, state))
    }

    fn header(&mut self) -> Result<Header<NodeId>, WireError> {
        let (src, src_incarnation, dst) = (self.node()?, self.u16()?, self.node()?);
        let message = match self.u8()? {
            1 => Message::Ping(self.u8()?),
            2 => Message::Ack(self.u8()?),
            3 => Message::PingReq { target: self.node()?, probe_number: self.u8()? },
            4 => Message::IndirectPing { origin: self.node()?, probe_number: self.u8()? },
            5 => Message::IndirectAck { target: self.node()?, probe_number: self.u8()? },
            6 => Message::ForwardedAck { origin: self.node()?, probe_number: self.u8()? },
            7 => Message::Announce,
            8 => Message::Feed,
            9 => Message::Gossip,
            10 => Message::Broadcast,
            11 => Message::TurnUndead,
            _ => return Err(WireError::Value("message")),
        };
        Ok(Header { src, src_incarnation, dst, message })
    }
}

/// A packet's header and the members that it has news of.
pub(crate) fn peek(region: Region, packet: &[u8]) -> Result<(Header<NodeId>, Vec<Member<NodeId>>), WireError> {
    let mut from = Reader { region, rest: packet };
    let header = from.header()?;
    let mut members = Vec::new();
    if !matches!(header.message, Message::Broadcast | Message::Announce) && from.rest.len() >= 2 {
        for _ in 0..from.u16()? {
            members.push(from.member()?);
        }
    }
    Ok((header, members))
}

pub(crate) fn put_address(addr: SocketAddr, out: &mut Vec<u8>) {
    match addr.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&addr.port().to_be_bytes());
}

/// Longer text is cut: lengths are checked where text comes in.
pub(crate) fn put_text(text: &str, out: &mut Vec<u8>) {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    out.push(length);
    out.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
}

pub(crate) fn put_node(node: &NodeId, out: &mut Vec<u8>) {
    out.push(match node.role {
        Role::Region => 1,
        Role::Edge => 2,
        Role::Ipconf => 3,
    });
    out.push(node.region);
    out.extend_from_slice(&node.start.to_be_bytes());
    out.extend_from_slice(&node.turn.to_be_bytes());
    put_address(node.addr, out);
    put_text(&node.name, out);
}

fn put_member(member: &Member<NodeId>, out: &mut Vec<u8>) {
    put_node(member.id(), out);
    out.extend_from_slice(&member.incarnation().to_be_bytes());
    out.push(match member.state() {
        State::Alive => 1,
        State::Suspect => 2,
        State::Down => 3,
    });
}

fn put_header(header: &Header<NodeId>, out: &mut Vec<u8>) {
    put_node(&header.src, out);
    out.extend_from_slice(&header.src_incarnation.to_be_bytes());
    put_node(&header.dst, out);
    let mut with_node = |tag: u8, node: &NodeId, number: u8| {
        out.push(tag);
        put_node(node, out);
        out.push(number);
    };
    match &header.message {
        Message::Ping(number) => out.extend_from_slice(&[1, *number]),
        Message::Ack(number) => out.extend_from_slice(&[2, *number]),
        Message::PingReq { target, probe_number } => with_node(3, target, *probe_number),
        Message::IndirectPing { origin, probe_number } => with_node(4, origin, *probe_number),
        Message::IndirectAck { target, probe_number } => with_node(5, target, *probe_number),
        Message::ForwardedAck { origin, probe_number } => with_node(6, origin, *probe_number),
        Message::Announce => out.push(7),
        Message::Feed => out.push(8),
        Message::Gossip => out.push(9),
        Message::Broadcast => out.push(10),
        Message::TurnUndead => out.push(11),
    }
}

/// A packet that lets a node in, as if it had announced itself to this one.
pub(crate) fn announcement(src: NodeId, dst: NodeId) -> Vec<u8> {
    let mut out = Vec::new();
    put_header(&Header { src, src_incarnation: 0, dst, message: Message::Announce }, &mut out);
    out
}

/// The format, for foca.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codec {
    pub region: Region,
}

/// Reads one item from a buffer. foca hands over a slice, so the first chunk is all there is.
macro_rules! read_one {
    ($codec:expr, $buf:expr, $read:ident) => {{
        let mut from = Reader { region: $codec.region, rest: $buf.chunk() };
        let value = from.$read()?;
        let used = $buf.chunk().len() - from.rest.len();
        $buf.advance(used);
        Ok(value)
    }};
}

fn put_whole(bytes: &[u8], mut buf: impl BufMut) -> Result<(), WireError> {
    if buf.remaining_mut() < bytes.len() {
        return Err(WireError::NoRoom);
    }
    buf.put_slice(bytes);
    Ok(())
}

impl foca::Codec<NodeId> for Codec {
    type Error = WireError;

    fn encode_header(&mut self, header: &Header<NodeId>, buf: impl BufMut) -> Result<(), WireError> {
        let mut out = Vec::new();
        put_header(header, &mut out);
        put_whole(&out, buf)
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<NodeId>, WireError> {
        read_one!(self, buf, header)
    }

    fn encode_member(&mut self, member: &Member<NodeId>, buf: impl BufMut) -> Result<(), WireError> {
        let mut out = Vec::new();
        put_member(member, &mut out);
        put_whole(&out, buf)
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<NodeId>, WireError> {
        read_one!(self, buf, member)
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
