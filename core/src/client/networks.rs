//! What is remembered of the networks that a device was in.
//!
//! *Problem.* A hotel that blocks UDP costs half a second with each connection, a gateway that forgets after a minute
//! must be learned again in each session, and the edge that was good yesterday is the second in today's list.
//!
//! *Rule.* For each network (as the application names it) is kept: whether QUIC was welcomed or lost to another
//! transport last, whether polls over HTTP/3 were what got through, the edge that was welcomed last, the round trip,
//! and how long a connection may be silent, for each transport and family of addresses ([`super::heartbeat`]). It
//! orders the next race and is never more than advice: a transport that lost is tried again, after a pause that doubles
//! while it goes on losing. The networks used last are kept; one without a name counts as one.
//!
//! *Why the simpler ways fail.* One memory for all networks: the office that blocks UDP takes QUIC from the train. A
//! verdict for ever: firewalls change, and one bad minute would cost QUIC for good.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::candidates::Transport;
use super::heartbeat::Learned;
use super::limits::{NETWORK_ID_BYTES, NETWORKS, PLAIN_HOLDS, QUIC_AGAIN, QUIC_AGAIN_MAX, WEB_ROUNDS};
use crate::wire::v1;

/// What kind of network a device is in, as far as its system tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetKind {
    /// Not told.
    #[default]
    Unknown,
    /// Wireless LAN.
    Wifi,
    /// Of a mobile operator.
    Cellular,
    /// A cable.
    Wired,
}

/// The network that a device is in, as its system tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetInfo {
    /// Tells networks apart and means nothing else: a hash of the name of a WLAN, of an operator. At most 64 bytes
    /// count. Empty: not known.
    pub id: String,
    /// What kind it is.
    pub kind: NetKind,
    /// Data costs money: in the background less of it is used, see [`super::Saving`].
    pub metered: bool,
}

impl NetInfo {
    /// As it is told to servers: names of networks are nobody's business.
    pub fn to_wire(&self) -> v1::NetInfo {
        let kind = match self.kind {
            NetKind::Unknown => v1::net_info::Kind::Unknown,
            NetKind::Wifi => v1::net_info::Kind::Wifi,
            NetKind::Cellular => v1::net_info::Kind::Cellular,
            NetKind::Wired => v1::net_info::Kind::Wired,
        };
        let digest = ring::digest::digest(&ring::digest::SHA256, self.id.as_bytes());
        let mut hash = [0; 4];
        hash.copy_from_slice(&digest.as_ref()[..4]);
        let id_hash = if self.id.is_empty() { 0 } else { u32::from_be_bytes(hash) };
        v1::NetInfo { kind: kind.into(), metered: self.metered, id_hash }
    }
}

/// What is known of one network; see the module. Times are milliseconds since 1970.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Network {
    /// QUIC was welcomed last.
    #[prost(uint64, tag = "1")]
    pub quic_ok_ms: u64,
    /// QUIC lost last, where another transport was welcomed.
    #[prost(uint64, tag = "2")]
    pub quic_lost_ms: u64,
    /// How often in a row.
    #[prost(uint32, tag = "3")]
    pub quic_losses: u32,
    /// The edge that was welcomed last.
    #[prost(string, tag = "4")]
    pub edge: String,
    /// Smoothed round trip to it in microseconds; 0 = not known.
    #[prost(uint32, tag = "5")]
    pub rtt_us: u32,
    /// Used last.
    #[prost(uint64, tag = "6")]
    pub used_ms: u64,
    /// QUIC or TCP+TLS was welcomed last.
    #[prost(uint64, tag = "8")]
    pub plain_ok_ms: u64,
    /// A WebSocket or polls over TCP were welcomed last.
    #[prost(uint64, tag = "10")]
    pub web_ok_ms: u64,
    /// Polls over HTTP/3 were welcomed last.
    #[prost(uint64, tag = "9")]
    pub http3_ok_ms: u64,
    /// How long connections may be silent.
    #[prost(message, repeated, tag = "7")]
    pub silences: Vec<Learned>,
}

impl Network {
    /// Whether QUIC is worth no more than a try here.
    pub fn loses_quic(&self, wall_ms: u64) -> bool {
        self.quic_lost_ms > self.quic_ok_ms && wall_ms < self.quic_lost_ms.saturating_add(millis(QUIC_AGAIN_MAX))
    }

    /// Whether QUIC was welcomed here lately, and has not lost since.
    pub fn has_quic(&self, wall_ms: u64) -> bool {
        let until = self.quic_ok_ms.saturating_add(millis(PLAIN_HOLDS));
        self.quic_ok_ms > self.quic_lost_ms && wall_ms < until
    }

    /// Whether what looks like the web is worth a try, after so many rounds without an answer.
    pub fn tries_web(&self, wall_ms: u64, rounds_failed: u32) -> bool {
        let holds = self.plain_ok_ms > 0 && wall_ms < self.plain_ok_ms.saturating_add(millis(PLAIN_HOLDS));
        !holds || rounds_failed >= WEB_ROUNDS
    }

    /// Whether nothing but polls over HTTP/3 got through here lately.
    pub fn has_only_http3(&self, wall_ms: u64) -> bool {
        let others = self.plain_ok_ms.max(self.web_ok_ms);
        self.http3_ok_ms > others && wall_ms < self.http3_ok_ms.saturating_add(millis(PLAIN_HOLDS))
    }

    /// How long after QUIC has lost it is tried again while another transport is in use.
    pub fn quic_again(&self) -> Duration {
        QUIC_AGAIN.saturating_mul(1 << self.quic_losses.saturating_sub(1).min(8)).min(QUIC_AGAIN_MAX)
    }

    /// The round trip, where it is known.
    pub fn rtt(&self) -> Option<Duration> {
        (self.rtt_us > 0).then(|| Duration::from_micros(self.rtt_us.into()))
    }

    /// A transport was welcomed at an edge. `lost_quic`: QUIC was tried at the same time and was not.
    pub fn welcomed(&mut self, wall_ms: u64, edge: &str, transport: Transport, lost_quic: bool) {
        self.used_ms = wall_ms;
        if !edge.is_empty() {
            edge.clone_into(&mut self.edge);
        }
        if !transport.is_web() {
            self.plain_ok_ms = wall_ms;
        }
        match transport {
            Transport::Http3 => self.http3_ok_ms = wall_ms.max(self.plain_ok_ms.max(self.web_ok_ms).saturating_add(1)),
            Transport::WebSocket | Transport::Poll => self.web_ok_ms = wall_ms,
            Transport::Quic | Transport::Tcp => {}
        }
        if transport == Transport::Quic {
            (self.quic_ok_ms, self.quic_losses) = (wall_ms, 0);
        } else if lost_quic {
            self.quic_lost();
            self.quic_lost_ms = wall_ms.max(self.quic_ok_ms.saturating_add(1));
        }
    }

    fn quic_lost(&mut self) {
        self.quic_losses = self.quic_losses.saturating_add(1);
    }

    /// QUIC was tried again beside another transport, and lost again.
    pub fn quic_lost_again(&mut self, wall_ms: u64) {
        self.quic_lost();
        self.quic_lost_ms = wall_ms.max(self.quic_ok_ms.saturating_add(1));
    }

    /// How long silences may be was learned.
    pub fn learn(&mut self, learned: Learned) {
        self.silences.retain(|old| (old.transport, old.ipv6) != (learned.transport, learned.ipv6));
        self.silences.push(learned);
    }

    /// A round trip was measured. A shorter one counts for more: the first is how long an attempt took, losses included.
    pub fn measured(&mut self, rtt: Duration) {
        let us = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX).max(1);
        let weight = if us < self.rtt_us { 2 } else { 8 };
        let kept = self.rtt_us / weight * (weight - 1);
        self.rtt_us = if self.rtt_us == 0 { us } else { kept.saturating_add(us / weight).max(1) };
    }
}

/// The stored form.
#[derive(Clone, PartialEq, Eq, Message)]
struct Stored {
    #[prost(btree_map = "string, message", tag = "1")]
    networks: BTreeMap<String, Network>,
}

/// All that is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    all: BTreeMap<String, Network>,
    here: String,
    changed: bool,
}

impl Networks {
    /// From the stored form; what can't be read counts as nothing, since it is only advice.
    pub fn load(bytes: &[u8]) -> Self {
        let stored = Stored::decode(bytes).unwrap_or_default();
        Self { all: stored.networks, here: String::new(), changed: false }
    }

    /// The stored form, if anything has changed since it was asked for last.
    pub fn take_changed(&mut self) -> Option<Bytes> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        while self.all.len() > NETWORKS {
            let oldest = self.all.iter().filter(|(id, _)| **id != self.here).min_by_key(|(_, n)| n.used_ms);
            let Some(oldest) = oldest.map(|(id, _)| id.clone()) else { break };
            self.all.remove(&oldest);
        }
        Some(Stored { networks: self.all.clone() }.encode_to_vec().into())
    }

    /// The device is in this network now. True: it was in another one before.
    pub fn enter(&mut self, id: &str) -> bool {
        let end = id.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|end| *end <= NETWORK_ID_BYTES).last();
        let id = &id[..end.unwrap_or(0)];
        let other = self.here != id;
        id.clone_into(&mut self.here);
        other
    }

    /// What is known of the network that the device is in.
    pub fn here(&self) -> Network {
        self.all.get(&self.here).cloned().unwrap_or_default()
    }

    /// A round trip was measured: worth keeping with the next thing that is.
    pub fn measured(&mut self, rtt: Duration) {
        if let Some(network) = self.all.get_mut(&self.here) {
            network.measured(rtt);
        }
    }

    /// Remembers something of it.
    pub fn note<T>(&mut self, change: impl FnOnce(&mut Network) -> T) -> T {
        let network = self.all.entry(self.here.clone()).or_default();
        let before = network.clone();
        let told = change(network);
        self.changed |= *network != before;
        told
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_has_a_memory_of_its_own_that_outlives_the_process() {
        let mut networks = Networks::default();
        assert!(networks.enter("hotel"));
        networks.note(|n| n.welcomed(1000, "eu-e1", Transport::Tcp, true));
        networks.note(|n| n.measured(Duration::from_millis(80)));
        assert!(networks.enter("train"));
        networks.note(|n| n.welcomed(2000, "us-e1", Transport::Quic, false));
        let mut again = Networks::load(&networks.take_changed().unwrap());
        assert_eq!(networks.take_changed(), None, "nothing new");
        again.enter("hotel");
        assert!(again.here().loses_quic(2000) && again.here().edge == "eu-e1");
        assert_eq!(again.here().rtt(), Some(Duration::from_millis(80)));
        again.enter("train");
        assert!(!again.here().loses_quic(2000));
        assert_eq!(Networks::load(b"\xff\xff"), Networks::default());
    }

    #[test]
    fn quic_is_tried_again_later_each_time_and_never_given_up() {
        let mut network = Network::default();
        network.welcomed(1_000_000, "e", Transport::Tcp, true);
        let first = network.quic_again();
        let pauses: Vec<_> = (0..12)
            .map(|_| {
                network.quic_lost_again(2_000_000);
                network.quic_again()
            })
            .collect();
        assert!(pauses[0] == 2 * first && pauses.windows(2).all(|two| two[0] <= two[1]), "{pauses:?}");
        assert_eq!(pauses[11], QUIC_AGAIN_MAX);
        assert!(!network.loses_quic(2_000_000 + millis(QUIC_AGAIN_MAX)), "a verdict does not last");
        network.welcomed(3_000_000, "e", Transport::Quic, false);
        assert!(!network.loses_quic(3_000_001) && network.quic_again() == first);
    }

    #[test]
    fn http3_counts_as_the_only_way_until_something_else_gets_through_and_for_an_hour() {
        for other in [Transport::Quic, Transport::Tcp, Transport::WebSocket, Transport::Poll] {
            let mut network = Network::default();
            assert!(!network.has_only_http3(1));
            network.welcomed(1_000, "e", other, false);
            network.welcomed(1_000, "e", Transport::Http3, true);
            assert!(network.has_only_http3(1_001) && !network.has_only_http3(1_001 + millis(PLAIN_HOLDS)));
            network.welcomed(1_002, "e", other, false);
            assert!(!network.has_only_http3(1_003), "{other:?}");
        }
    }

    #[test]
    fn the_networks_used_last_are_kept() {
        let mut networks = Networks::default();
        for at_ms in 1..=(NETWORKS as u64 + 10) {
            networks.enter(&format!("n{at_ms}"));
            networks.note(|n| n.welcomed(at_ms, "e", Transport::Quic, false));
        }
        let kept = Networks::load(&networks.take_changed().unwrap());
        assert_eq!(kept.all.len(), NETWORKS);
        assert!(!kept.all.contains_key("n1") && kept.all.contains_key("n20"));
        networks.enter(&"x".repeat(1000));
        assert_eq!(networks.here.len(), NETWORK_ID_BYTES);
    }
}
