//! Devices, addresses and routes, by rtnetlink(7).
//!
//! Why not the `ip` program: it is not everywhere, costs a process per change, and a hand-over should take
//! microseconds. Four kinds of message are all that is needed. A socket belongs to the namespace that it was opened
//! in, so one of them per host reaches into it from any thread.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::error::LabError;

const NEWLINK: u16 = 16;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
/// Answer of the kernel; with number 0 it says that all is well.
const ERROR: u16 = 2;
const REQUEST_ACK: u16 = 0x0001 | 0x0004;
const CREATE: u16 = 0x0400;
const REPLACE: u16 = 0x0100;
const FAMILY_INET: u8 = 2;
const LINK_UP: u32 = 1;

/// A message being written: header, fixed part, attributes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST_ACK | flags).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Number of a device within its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceIndex(u32);

impl DeviceIndex {
    /// The loopback device has it in each namespace.
    pub const LOOPBACK: Self = Self(1);

    /// Of a device of the calling thread's namespace.
    pub fn find(socket: &Netlink, name: &str) -> Result<Self, LabError> {
        let index = rustix::net::netdevice::name_to_index(&socket.0, name);
        index.map(Self).map_err(|errno| LabError::Io { what: "looking a device up", source: errno.into() })
    }
}

/// Reaches into one namespace.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Into that of the calling thread.
    pub fn open() -> Result<Self, LabError> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None);
        socket.map(Self).map_err(|errno| LabError::Io { what: "opening a netlink socket", source: errno.into() })
    }

    /// Switches a device on, with this MTU and queue where they are given.
    pub fn up(&self, device: DeviceIndex, mtu: Option<u32>, queue_packets: Option<u32>) -> Result<(), LabError> {
        let mut fixed = vec![0; 4];
        fixed.extend_from_slice(&device.0.to_ne_bytes());
        fixed.extend_from_slice(&LINK_UP.to_ne_bytes());
        fixed.extend_from_slice(&LINK_UP.to_ne_bytes());
        let mut message = Message::new(NEWLINK, 0, &fixed);
        if let Some(mtu) = mtu {
            message = message.attribute(4, &mtu.to_ne_bytes());
        }
        if let Some(packets) = queue_packets {
            message = message.attribute(13, &packets.to_ne_bytes());
        }
        self.ask("switching a device on", message)
    }

    /// Gives a device an address.
    pub fn add_address(&self, device: DeviceIndex, address: Ipv4Addr) -> Result<(), LabError> {
        self.ask("adding an address", Self::address(NEWADDR, CREATE | REPLACE, device, address))
    }

    /// Takes an address away.
    pub fn remove_address(&self, device: DeviceIndex, address: Ipv4Addr) -> Result<(), LabError> {
        self.ask("removing an address", Self::address(DELADDR, 0, device, address))
    }

    /// Sends everything out through this device, under this address; whatever was so before is so no longer.
    pub fn set_default_route(&self, device: DeviceIndex, from: Ipv4Addr) -> Result<(), LabError> {
        self.ask("setting the default route", Self::route(NEWROUTE, CREATE | REPLACE, device, Some(from)))
    }

    /// Nothing leaves through this device any longer. Nothing happens where nothing does.
    pub fn remove_default_route(&self, device: DeviceIndex) -> Result<(), LabError> {
        match self.ask("removing the default route", Self::route(DELROUTE, 0, device, None)) {
            Err(LabError::Io { source, .. }) if source.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(()),
            other => other,
        }
    }

    fn address(kind: u16, flags: u16, device: DeviceIndex, address: Ipv4Addr) -> Message {
        let mut fixed = vec![FAMILY_INET, 32, 0, 0];
        fixed.extend_from_slice(&device.0.to_ne_bytes());
        Message::new(kind, flags, &fixed).attribute(1, &address.octets()).attribute(2, &address.octets())
    }

    fn route(kind: u16, flags: u16, device: DeviceIndex, from: Option<Ipv4Addr>) -> Message {
        const MAIN_TABLE: u8 = 254;
        const STATIC: u8 = 4;
        const ON_LINK: u8 = 253;
        const UNICAST: u8 = 1;
        let adds = kind == NEWROUTE;
        let (protocol, scope) = if adds { (STATIC, ON_LINK) } else { (0, 255) };
        let fixed = [FAMILY_INET, 0, 0, 0, MAIN_TABLE, protocol, scope, UNICAST, 0, 0, 0, 0];
        let message = Message::new(kind, flags, &fixed).attribute(4, &device.0.to_ne_bytes());
        match from {
            Some(from) => message.attribute(7, &from.octets()),
            None => message,
        }
    }

    /// Sends a request and reads the kernel's answer, which it gives at once.
    fn ask(&self, what: &'static str, message: Message) -> Result<(), LabError> {
        let failed = |source: std::io::Error| LabError::Io { what, source };
        send(&self.0, &message.finish(), SendFlags::empty()).map_err(|errno| failed(errno.into()))?;
        let mut answer = [0; 4096];
        let (_, length) = recv(&self.0, &mut answer[..], RecvFlags::empty()).map_err(|errno| failed(errno.into()))?;
        let word = |at: usize| answer[..length].get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        let kind = answer[..length].get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
        match (kind, word(16).map(i32::from_ne_bytes)) {
            (Some(ERROR), Some(0)) => Ok(()),
            (Some(ERROR), Some(number)) if number == -Errno::PERM.raw_os_error() => {
                Err(LabError::NoPermission { what })
            }
            (Some(ERROR), Some(number)) => Err(failed(std::io::Error::from_raw_os_error(-number))),
            _ => Err(failed(std::io::Error::other("the kernel's answer makes no sense"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_length_in_front_and_its_attributes_padded() {
        let message = Message::new(NEWLINK, 0, &[1, 2, 3, 4]).attribute(3, &[9, 9, 9, 9, 9]).attribute(4, &[7; 4]);
        let bytes = message.finish();
        assert_eq!(bytes.len(), 16 + 4 + 12 + 8);
        assert_eq!(u32::from_ne_bytes(bytes[0..4].try_into().unwrap()), 40);
        assert_eq!(&bytes[20..24], [9u16.to_ne_bytes(), 3u16.to_ne_bytes()].concat());
        assert_eq!(&bytes[29..32], [0, 0, 0]);
    }
}
