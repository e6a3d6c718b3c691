//! Links that have a spec: rate, queue and faults instead of a latency.
//!
//! Datagrams between the ends of such a link go through its machine ([`tern_netsim_link::Direction`]), whose own delay
//! holds instead of the latency set for these ends. Two ends that are groups share one link: whoever sends
//! between them waits in one queue. Streams are no packets here, so they take the link's delay without jitter,
//! rate or loss; an outage loses their packets, which they send again. Blocks and filters come first.

use std::collections::BTreeMap;

use crate::links::{NameId, Names, pairs};
use crate::node::HostId;
use crate::udp::Datagram;
use tern_netsim_link::{Direction, LinkSpec, SpecError, Way};

/// Why a link is not changed. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Its spec can't be run.
    #[error("the link {from} - {to} can't be run: {source}")]
    Spec {
        /// The first end.
        from: String,
        /// The second end.
        to: String,
        /// Why.
        source: SpecError,
    },
    /// These two ends have no link of their own.
    #[error("no link was set between {from} and {to}; set one first")]
    None {
        /// The first end.
        from: String,
        /// The second end.
        to: String,
    },
}

/// A datagram and where it goes.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    pub(crate) host: HostId,
    pub(crate) port: u16,
    pub(crate) datagram: Datagram,
}

/// One direction of a link with a spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PipeId {
    index: usize,
    way: Way,
}

struct Pipe {
    direction: Direction<Parcel>,
    armed_ns: Option<u64>,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Pipes {
    /// Up and down, two by two.
    all: Vec<[Pipe; 2]>,
    by_names: BTreeMap<(NameId, NameId), PipeId>,
}

impl Pipes {
    /// Makes or changes the link of two ends; `name` keys its randomness.
    pub(crate) fn set(
        &mut self,
        seed: u64,
        name: &str,
        ends: (NameId, NameId),
        spec: LinkSpec,
        now_ns: u64,
    ) -> Result<(), SpecError> {
        spec.check()?;
        if let Some(&PipeId { index, way }) = self.by_names.get(&ends) {
            let [up, down] = &mut self.all[index];
            let (up, down) = if way == Way::Up { (up, down) } else { (down, up) };
            up.direction.set_spec(now_ns, spec.up)?;
            return down.direction.set_spec(now_ns, spec.down);
        }
        let pipe = |way, spec| Ok(Pipe { direction: Direction::new(seed, name, way, spec)?, armed_ns: None });
        let index = self.all.len();
        self.all.push([pipe(Way::Up, spec.up)?, pipe(Way::Down, spec.down)?]);
        self.by_names.insert((ends.1, ends.0), PipeId { index, way: Way::Down });
        self.by_names.insert(ends, PipeId { index, way: Way::Up });
        Ok(())
    }

    /// The link that packets between two hosts take: that of the most specific names.
    pub(crate) fn between(&self, from: Names, to: Names) -> Option<PipeId> {
        if self.all.is_empty() {
            return None;
        }
        pairs(from, to).iter().find_map(|ends| self.by_names.get(ends)).copied()
    }

    /// The link that was set for exactly these names.
    pub(crate) fn of(&self, ends: (NameId, NameId)) -> Option<PipeId> {
        self.by_names.get(&ends).copied()
    }

    pub(crate) fn direction(&mut self, id: PipeId) -> &mut Direction<Parcel> {
        &mut self.pipe(id).direction
    }

    /// When its machine wants to be asked, if no one asks it by then. Called when it may have changed.
    pub(crate) fn arm(&mut self, id: PipeId) -> Option<u64> {
        let pipe = self.pipe(id);
        let next_ns = pipe.direction.next_ns()?;
        if pipe.armed_ns.is_some_and(|armed_ns| armed_ns <= next_ns) {
            return None;
        }
        pipe.armed_ns = Some(next_ns);
        Some(next_ns)
    }

    /// It is asked at this moment, so it may be armed anew.
    pub(crate) fn fired(&mut self, id: PipeId, at_ns: u64) {
        let pipe = self.pipe(id);
        pipe.armed_ns = pipe.armed_ns.filter(|armed_ns| *armed_ns > at_ns);
    }

    fn pipe(&mut self, id: PipeId) -> &mut Pipe {
        &mut self.all[id.index][usize::from(id.way == Way::Down)]
    }
}
