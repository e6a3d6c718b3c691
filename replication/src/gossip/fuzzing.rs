//! The formats of gossip and a holder of its key that says what it likes, for fuzz cases. No part of the crate's API.

#![expect(clippy::expect_used, reason = "only fuzz cases run this, and a panic is what they look for")]

use tern_core::clock::Entropy;
use tern_core::ids::Region;
use tern_core::wire::node_v1::EdgeLoad;

use super::identity::NodeId;
use super::load::Record;
use super::seal::{GossipKeys, Sealer};
use super::wire::{self, Said};

/// Reads what is inside a datagram, and a packet in it as far as the machine looks: what is read is written the same
/// again. Whether it was taken.
///
/// # Panics
/// If it is not.
pub fn read_said(region: Region, bytes: &[u8]) -> bool {
    let Ok(said) = Said::decode(region, bytes) else { return false };
    assert_eq!(said.encode(), bytes, "one form for one meaning");
    let Said::Packet(packet) = said else { return true };
    let Ok((header, members)) = wire::peek(region, packet) else { return false };
    assert!(members.len() <= packet.len(), "a member takes at least a byte");
    header.dst.addr.port() != 0
}

/// Reads a load record: what is read is written and read the same again. Whether it was taken.
///
/// # Panics
/// If it is not.
pub fn read_record(region: Region, bytes: &[u8]) -> bool {
    let Ok(record) = Record::decode(region, bytes) else { return false };
    // A position of 0, 0 is that of no position, and degrees outside the globe are left out when written.
    let again = Record::decode(region, &record.encode()).expect("its own form");
    let place = |of: &Record| (of.name.clone(), of.start, of.counter, of.load.generation, of.load.addresses.clone());
    assert_eq!(place(&again), place(&record));
    true
}

/// A record as an edge says it.
pub fn record(name: &str, start: u64, counter: u32, load: EdgeLoad) -> Vec<u8> {
    Record { name: name.into(), start, counter, load }.encode()
}

/// "Let me in", with a cookie or without one.
pub fn join(from: &NodeId, cookie: Option<[u8; 8]>) -> Vec<u8> {
    Said::Join { from: from.clone(), cookie }.encode()
}

/// "Then show me this".
pub fn cookie(to: &NodeId, cookie: [u8; 8]) -> Vec<u8> {
    Said::Cookie { to: to.clone(), cookie }.encode()
}

/// "You are not you any more".
pub fn replaced(to: &NodeId, by: &NodeId, alive: bool) -> Vec<u8> {
    Said::Replaced { to: to.clone(), by: by.clone(), alive }.encode()
}

/// "Do you live?"
pub fn suspected(to: &NodeId, incarnation: u16) -> Vec<u8> {
    Said::Suspected { to: to.clone(), incarnation }.encode()
}

/// A packet of foca's: `message` of a header as `wire` numbers them, with `third` where one has a node; behind it
/// whatever is said to be news.
pub fn packet(from: (&NodeId, u16), to: &NodeId, message: u8, third: &NodeId, behind: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    wire::put_node(from.0, &mut out);
    out.extend_from_slice(&from.1.to_be_bytes());
    wire::put_node(to, &mut out);
    out.push(message);
    match message {
        1 | 2 => out.push(1),
        3..=6 => {
            wire::put_node(third, &mut out);
            out.push(1);
        }
        _ => {}
    }
    out.extend_from_slice(behind);
    out
}

/// News of one member: `state` as `wire` numbers them.
pub fn news(of: &NodeId, incarnation: u16, state: u8) -> Vec<u8> {
    let mut out = Vec::new();
    wire::put_node(of, &mut out);
    out.extend_from_slice(&incarnation.to_be_bytes());
    out.push(state);
    out
}

/// Whoever holds the key.
#[derive(Debug)]
pub struct Insider(Sealer);

impl Insider {
    /// A session of its own.
    ///
    /// # Panics
    /// If ring refuses the keys, which it does for none.
    pub fn new(keys: &GossipKeys, deployment: &str, region: Region, seed: u64) -> Self {
        Self(Sealer::new(keys, deployment, region, &Entropy::seeded(seed)).expect("keys of 32 bytes"))
    }

    /// Seals what it likes; `None` for what is too large.
    pub fn seal(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        self.0.seal(payload)
    }

    /// Opens as a node does. The counter and the payload, or nothing.
    pub fn open(&self, datagram: &mut [u8]) -> Option<(u64, Vec<u8>)> {
        self.0.open(datagram).ok().map(|opened| (opened.counter, opened.payload.to_vec()))
    }
}
