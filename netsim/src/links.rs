//! Who reaches whom, and how late, where no link was given a spec (see [`crate::pipes`]).
//!
//! A rule names its two ends, each a host or a group of hosts (a region's data centre, say). Of several
//! latencies the most specific one holds: host to host, host to group, group to host, group to group, then
//! [`LATENCY_DEFAULT`]. A block or a filter at any of these levels is enough to lose a packet. What becomes
//! of a packet is decided when it is sent: one that is on its way when a link is cut still arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::limits::LATENCY_DEFAULT;
use crate::packets::Packet;

/// A host's or group's name, numbered in the order of first mention.
pub type NameId = u32;

/// Says of each packet on a link, in the order of sending, whether it is lost. Must not call the world.
pub type Filter = Box<dyn FnMut(&Packet) -> bool + Send>;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives after so long.
    Arrives(Duration),
    /// It is lost, silently: the way is blocked.
    Cut,
    /// It is lost, silently: a filter said so.
    Filtered,
}

/// The rules of all links.
#[derive(Default)]
pub struct Links {
    names: BTreeMap<String, NameId>,
    latency: BTreeMap<(NameId, NameId), Duration>,
    blocked: BTreeSet<(NameId, NameId)>,
    /// Packets that were lost by each block, also by those that were lifted.
    block_hits: BTreeMap<(NameId, NameId), u64>,
    filters: BTreeMap<(NameId, NameId), Filter>,
}

/// The names under which rules may mean a host.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Its own.
    pub host: NameId,
    /// Its group's.
    pub group: NameId,
}

impl Links {
    /// The number of a name.
    pub fn name(&mut self, name: &str) -> NameId {
        if let Some(id) = self.names.get(name) {
            return *id;
        }
        let id = NameId::try_from(self.names.len()).unwrap_or(NameId::MAX);
        self.names.insert(name.to_owned(), id);
        id
    }

    /// Sets the latency of one direction.
    pub fn set_latency(&mut self, from: &str, to: &str, latency: Duration) {
        let pair = (self.name(from), self.name(to));
        self.latency.insert(pair, latency);
    }

    /// Loses every packet of one direction from now on.
    pub fn block(&mut self, from: &str, to: &str) {
        let pair = (self.name(from), self.name(to));
        self.blocked.insert(pair);
    }

    /// Undoes [`Links::block`].
    pub fn unblock(&mut self, from: &str, to: &str) {
        let pair = (self.name(from), self.name(to));
        self.blocked.remove(&pair);
    }

    /// How many packets blocks of exactly these two names have lost so far, in this direction.
    pub fn blocked_packets(&self, from: &str, to: &str) -> u64 {
        let number = |name| self.names.get(name).copied();
        let pair = number(from).zip(number(to));
        pair.and_then(|pair| self.block_hits.get(&pair)).copied().unwrap_or(0)
    }

    /// Sets or removes the filter of one direction, and returns the one before.
    #[must_use]
    pub fn set_filter(&mut self, from: &str, to: &str, filter: Option<Filter>) -> Option<Filter> {
        let pair = (self.name(from), self.name(to));
        match filter {
            Some(filter) => self.filters.insert(pair, filter),
            None => self.filters.remove(&pair),
        }
    }

    /// What becomes of a packet that is sent now.
    pub fn fate(&mut self, packet: &Packet, from: Names, to: Names) -> Fate {
        let pairs = pairs(from, to);
        if !self.blocked.is_empty() {
            let mut cut = false;
            for pair in pairs.iter().filter(|pair| self.blocked.contains(pair)) {
                *self.block_hits.entry(*pair).or_default() += 1;
                cut = true;
            }
            if cut {
                return Fate::Cut;
            }
        }
        if !self.filters.is_empty() {
            for pair in pairs {
                if let Some(filter) = self.filters.get_mut(&pair)
                    && filter(packet)
                {
                    return Fate::Filtered;
                }
            }
        }
        let latency = pairs.iter().find_map(|pair| self.latency.get(pair)).copied();
        Fate::Arrives(latency.unwrap_or(LATENCY_DEFAULT))
    }
}

pub(crate) fn pairs(from: Names, to: Names) -> [(NameId, NameId); 4] {
    [(from.host, to.host), (from.host, to.group), (from.group, to.host), (from.group, to.group)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::Protocol;

    fn packet() -> Packet {
        Packet {
            at_ns: 0,
            from: "10.0.0.1:1".parse().unwrap(),
            to: "10.0.0.2:2".parse().unwrap(),
            protocol: Protocol::Udp,
            bytes: 10,
            lost: false,
        }
    }

    fn ends(links: &mut Links) -> (Names, Names) {
        let a = Names { host: links.name("a"), group: links.name("eu") };
        let b = Names { host: links.name("b"), group: links.name("us") };
        (a, b)
    }

    #[test]
    fn the_most_specific_latency_holds_and_directions_are_apart() {
        let mut links = Links::default();
        let (a, b) = ends(&mut links);
        let ms = Duration::from_millis;
        assert_eq!(links.fate(&packet(), a, b), Fate::Arrives(LATENCY_DEFAULT));
        links.set_latency("eu", "us", ms(47));
        assert_eq!(links.fate(&packet(), a, b), Fate::Arrives(ms(47)));
        assert_eq!(links.fate(&packet(), b, a), Fate::Arrives(LATENCY_DEFAULT));
        links.set_latency("a", "us", ms(50));
        assert_eq!(links.fate(&packet(), a, b), Fate::Arrives(ms(50)));
        links.set_latency("a", "b", ms(60));
        assert_eq!(links.fate(&packet(), a, b), Fate::Arrives(ms(60)));
    }

    #[test]
    fn a_block_or_a_filter_at_any_level_loses_packets_until_it_is_lifted() {
        let mut links = Links::default();
        let (a, b) = ends(&mut links);
        links.block("eu", "b");
        assert_eq!(links.fate(&packet(), a, b), Fate::Cut);
        assert_ne!(links.fate(&packet(), b, a), Fate::Cut);
        links.unblock("eu", "b");
        assert_ne!(links.fate(&packet(), a, b), Fate::Cut);
        let counted = [("eu", "b"), ("b", "eu"), ("a", "b"), ("eu", "nowhere")];
        assert_eq!(counted.map(|(from, to)| links.blocked_packets(from, to)), [1, 0, 0, 0]);
        let mut count = 0;
        let every_second: Filter = Box::new(move |_| {
            count += 1;
            count % 2 == 0
        });
        assert!(links.set_filter("eu", "us", Some(every_second)).is_none());
        let lost: Vec<bool> = (0..4).map(|_| links.fate(&packet(), a, b) == Fate::Filtered).collect();
        assert_eq!(lost, [false, true, false, true]);
        assert!(links.set_filter("eu", "us", None).is_some());
        assert!((0..4).all(|_| links.fate(&packet(), a, b) != Fate::Filtered));
    }
}
