//! Links that have a spec: rate, queue and faults instead of a latency.
//!
//! There are two kinds: those between two hosts or groups, where the link's own delay holds instead of the latency
//! that was set for these ends, and the access links of devices. Two ends that are groups share one link: whoever
//! sends between them waits in one queue. Each direction is a machine ([`tern_netsim_link::Direction`]); it is
//! asked when it says so, and what comes out goes on from its place.

use std::collections::BTreeMap;

use crate::links::{NameId, Names, pairs};
use crate::node::HostId;
use crate::path::IpPacket;
use tern_netsim_link::{Cause, Direction, LinkSpec, SpecError, Way};

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

/// One direction of a link with a spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PipeId {
    index: usize,
    way: Way,
}

impl PipeId {
    /// A direction of the same link.
    pub(crate) fn way(self, way: Way) -> Self {
        Self { way, ..self }
    }
}

/// Where what comes out of a link has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// To its receiver's place.
    Between,
    /// To the access network behind this access link of a device.
    Up(HostId, usize),
    /// To a device.
    Down(HostId),
}

struct Pipe {
    direction: Direction<IpPacket>,
    armed_ns: Option<u64>,
    place: Place,
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
        if let Some(&id) = self.by_names.get(&ends) {
            self.direction(id).set_spec(now_ns, spec.up)?;
            let back = if id.way == Way::Up { Way::Down } else { Way::Up };
            return self.direction(id.way(back)).set_spec(now_ns, spec.down);
        }
        let id = self.add(seed, name, spec, [Place::Between; 2])?;
        self.by_names.insert((ends.1, ends.0), id.way(Way::Down));
        self.by_names.insert(ends, id);
        Ok(())
    }

    /// Adds a link, and returns its way up. `places`: where up and down lead.
    pub(crate) fn add(
        &mut self,
        seed: u64,
        name: &str,
        spec: LinkSpec,
        places: [Place; 2],
    ) -> Result<PipeId, SpecError> {
        let pipe =
            |way, spec, place| Ok(Pipe { direction: Direction::new(seed, name, way, spec)?, armed_ns: None, place });
        let index = self.all.len();
        self.all.push([pipe(Way::Up, spec.up, places[0])?, pipe(Way::Down, spec.down, places[1])?]);
        Ok(PipeId { index, way: Way::Up })
    }

    /// The link that packets between two hosts take: that of the most specific names.
    pub(crate) fn between(&self, from: Names, to: Names) -> Option<PipeId> {
        if self.by_names.is_empty() {
            return None;
        }
        pairs(from, to).iter().find_map(|ends| self.by_names.get(ends)).copied()
    }

    /// The link that was set for exactly these names.
    pub(crate) fn of(&self, ends: (NameId, NameId)) -> Option<PipeId> {
        self.by_names.get(&ends).copied()
    }

    pub(crate) fn direction(&mut self, id: PipeId) -> &mut Direction<IpPacket> {
        &mut self.pipe(id).direction
    }

    pub(crate) fn place(&self, id: PipeId) -> Place {
        self.all[id.index][usize::from(id.way == Way::Down)].place
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

    /// Packets inside of all links.
    pub(crate) fn in_flight(&self) -> u64 {
        self.all.iter().flatten().map(|pipe| pipe.direction.in_flight()).sum()
    }

    /// Over all links: second copies that arrived, and what was dropped by cause.
    pub(crate) fn totals(&self) -> (u64, BTreeMap<Cause, u64>) {
        let (mut copied, mut dropped) = (0, BTreeMap::new());
        for pipe in self.all.iter().flatten() {
            let counts = pipe.direction.counts();
            copied += counts.copied;
            for (cause, count) in &counts.dropped {
                *dropped.entry(*cause).or_default() += count;
            }
        }
        (copied, dropped)
    }

    fn pipe(&mut self, id: PipeId) -> &mut Pipe {
        &mut self.all[id.index][usize::from(id.way == Way::Down)]
    }
}
