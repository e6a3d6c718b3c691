//! The part of the routes that this node is the only writer of, and what other nodes are told of it.
//!
//! Changes are numbered (an *LSN* each) as they are told: what changed within a window is packed once, in order of the
//! users, and kept in a ring for those who are behind. Per node is known up to where it was told and up to where it has
//! heard; both ways of telling, at once and again, are one: go on after what was told, while not too much is unheard.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::ids::UserId;
use crate::wire::node_v1::{self as wire, node_frame::Body};

use super::keyed::Key;
use super::limits::{
    CHUNK_BYTES, DELTA_BYTES, DIGEST_AGAIN, DIGEST_EVERY, FLUSH_EVERY, PULLS, RING_BYTES, UNHEARD_BYTES,
};
use super::packed::{base_of, put_op};
use super::table::{Hash, SHARDS, Table};
use super::{Bind, Holder, Lsn, Outputs};

/// About what the head of a change costs on the wire: for the size of a window before it is packed.
const OP_BYTES: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Writer {
    pub epoch: u64,
    pub table: Table,
    /// Who changed since the last window.
    changed: BTreeSet<UserId>,
    changed_bytes: usize,
    pub flush_at: Option<Duration>,
    /// The number of the last change that was packed.
    pub head: Lsn,
    ring: VecDeque<Window>,
    ring_bytes: usize,
    /// Bytes packed so far.
    end: u64,
    nodes: BTreeMap<Holder, Told>,
    /// Digests that were told because somebody had another epoch or was too far behind.
    pub resyncs: u64,
}

/// What was packed at once.
#[derive(Debug)]
struct Window {
    delta: wire::RouteDelta,
    last: Lsn,
    /// Bytes packed up to its end.
    end: u64,
}

/// Where another node is.
#[derive(Debug, Default)]
struct Told {
    up: bool,
    /// `None`: it has not said yet what it has.
    upto: Option<Lsn>,
    /// What it has heard, and the bytes up to there.
    heard: Lsn,
    heard_end: u64,
    digest_at: Option<Duration>,
}

impl Writer {
    pub fn new(key: Key, epoch: u64) -> Self {
        Self {
            epoch,
            table: Table::new(key),
            changed: BTreeSet::new(),
            changed_bytes: 0,
            flush_at: None,
            head: 0,
            ring: VecDeque::new(),
            ring_bytes: 0,
            end: 0,
            nodes: BTreeMap::new(),
            resyncs: 0,
        }
    }

    pub fn set(&mut self, now: Duration, user: &UserId, binds: &[Bind]) {
        if !self.table.set(user.as_str(), binds) || self.nodes.is_empty() {
            return;
        }
        if self.changed.insert(user.clone()) {
            self.changed_bytes += user.as_str().len() + OP_BYTES * binds.len().max(1);
        }
        let at = if self.changed_bytes >= DELTA_BYTES { now } else { now + FLUSH_EVERY };
        self.flush_at = Some(self.flush_at.map_or(at, |old| old.min(at)));
    }

    pub fn up(&mut self, node: Holder) {
        self.nodes.insert(node, Told { up: true, ..Told::default() });
    }

    pub fn down(&mut self, node: Holder) {
        if let Some(told) = self.nodes.get_mut(&node) {
            *told = Told::default();
        }
    }

    pub fn forget(&mut self, node: Holder) {
        self.nodes.remove(&node);
        if self.nodes.is_empty() {
            // Nobody is there to be told, and whoever comes compares sums.
            self.changed.clear();
            self.changed_bytes = 0;
            self.flush_at = None;
            self.ring.clear();
            self.ring_bytes = 0;
            self.head += 1;
        }
    }

    /// Up to where a node was told.
    pub fn told(&self, node: Holder) -> Lsn {
        self.nodes.get(&node).and_then(|told| told.upto).unwrap_or(0)
    }

    pub fn next_deadline(&self) -> Option<Duration> {
        let digests = self.nodes.values().filter(|told| told.up && told.upto.is_some());
        let digest = digests.filter_map(|told| told.digest_at).min().map(|at| at + DIGEST_EVERY);
        self.flush_at.into_iter().chain(digest).min()
    }

    pub fn tick(&mut self, now: Duration, out: &mut Outputs) {
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush(out);
        }
        let due = |told: &Told| told.upto.is_some() && told.digest_at.is_some_and(|at| at + DIGEST_EVERY <= now);
        for node in self.nodes.iter().filter(|(_, told)| told.up && due(told)).map(|(n, _)| *n).collect::<Vec<_>>() {
            // Who has not been told all yet would find differences that are none.
            if self.told(node) == self.head {
                self.digest(now, node, out);
            } else if let Some(told) = self.nodes.get_mut(&node) {
                told.digest_at = Some(now);
            }
        }
    }

    /// Packs what has changed, and tells it.
    pub fn flush(&mut self, out: &mut Outputs) {
        self.flush_at = None;
        self.changed_bytes = 0;
        let mut part = Vec::new();
        let mut bytes = 0;
        for user in std::mem::take(&mut self.changed) {
            let binds = self.table.get(user.as_str()).unwrap_or_default();
            bytes += user.as_str().len() + OP_BYTES * binds.len().max(1);
            part.push((user, binds));
            if bytes >= DELTA_BYTES {
                self.pack(std::mem::take(&mut part));
                bytes = 0;
            }
        }
        self.pack(part);
        while self.ring_bytes > RING_BYTES
            && let Some(window) = self.ring.pop_front()
        {
            self.ring_bytes -= window.delta.ops.len();
        }
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.pump(node, out);
        }
    }

    fn pack(&mut self, part: Vec<(UserId, Vec<Bind>)>) {
        if part.is_empty() {
            return;
        }
        let base_ms = base_of(part.iter().flat_map(|(_, binds)| binds));
        let mut ops = Vec::new();
        for (user, binds) in &part {
            put_op(&mut ops, base_ms, user.as_str(), binds);
        }
        let first_lsn = self.head + 1;
        self.head += part.len() as u64;
        self.end += ops.len() as u64;
        self.ring_bytes += ops.len();
        let delta = wire::RouteDelta { epoch: self.epoch, first_lsn, base_ms, ops: ops.into() };
        self.ring.push_back(Window { delta, last: self.head, end: self.end });
    }

    /// Tells a node what it was not told yet, while not too much is on the way to it.
    fn pump(&mut self, node: Holder, out: &mut Outputs) {
        let Some(told) = self.nodes.get_mut(&node).filter(|told| told.up) else { return };
        let Some(mut upto) = told.upto else { return };
        let from = self.ring.partition_point(|window| window.last <= upto);
        for window in self.ring.range(from..) {
            if window.delta.first_lsn > upto + 1 {
                break; // what comes before it is not in the ring any more
            }
            if window.end.saturating_sub(told.heard_end) > UNHEARD_BYTES as u64 {
                return;
            }
            out.push((node, Body::RouteDelta(window.delta.clone())));
            upto = window.last;
            told.upto = Some(upto);
        }
    }

    /// Whether what comes next for a node is not in the ring.
    fn is_behind(&self, node: Holder) -> bool {
        let upto = self.told(node);
        let next = self.ring.front().map_or(self.head + 1, |window| window.delta.first_lsn);
        upto < self.head && upto + 1 < next
    }

    /// A node says what it has of this part.
    pub fn heard(&mut self, now: Duration, node: Holder, epoch: u64, lsn: Lsn, lost: bool, out: &mut Outputs) {
        let Some(told) = self.nodes.get_mut(&node).filter(|told| told.up) else { return };
        if epoch != self.epoch {
            return self.compare(now, node, out);
        }
        let lsn = lsn.min(self.head);
        let again = lost || told.upto.is_none();
        if lsn >= told.heard || again {
            (told.heard, told.heard_end) = (lsn, end_at(&self.ring, lsn, self.end));
        }
        if again {
            told.upto = Some(lsn);
            told.digest_at.get_or_insert(now);
        }
        if self.is_behind(node) {
            return self.compare(now, node, out);
        }
        self.pump(node, out);
    }

    /// A node can't be told changes alone: it compares.
    fn compare(&mut self, now: Duration, node: Holder, out: &mut Outputs) {
        let Some(told) = self.nodes.get_mut(&node) else { return };
        // Its answer may be on the way.
        if told.upto.is_none() || told.digest_at.is_none_or(|at| at + DIGEST_AGAIN <= now) {
            self.resyncs += 1;
            self.digest(now, node, out);
        }
    }

    fn digest(&mut self, now: Duration, node: Holder, out: &mut Outputs) {
        self.flush(out);
        let Some(told) = self.nodes.get_mut(&node) else { return };
        let (head, end) = (self.head, self.end);
        *told = Told { up: true, upto: Some(head), heard: head, heard_end: end, digest_at: Some(now) };
        let (sums, counts) = (0..SHARDS).map(|shard| self.table.sum(shard)).unzip();
        out.push((node, Body::RouteDigest(wire::RouteDigest { epoch: self.epoch, lsn: self.head, sums, counts })));
    }

    /// A node wants shards whole.
    pub fn pulled(&mut self, now: Duration, node: Holder, pull: &wire::RoutePull, out: &mut Outputs) {
        if !self.nodes.get(&node).is_some_and(|told| told.up) {
            return;
        }
        if pull.epoch != self.epoch {
            return self.compare(now, node, out);
        }
        self.flush(out);
        let shards = pull.shards.iter().filter_map(|shard| usize::try_from(*shard).ok()).filter(|s| *s < SHARDS);
        for shard in shards.take(PULLS) {
            self.chunks(shard, |chunk| out.push((node, Body::RouteChunk(chunk))));
        }
    }

    /// A whole shard as it is now, in parts.
    fn chunks(&self, shard: usize, mut put: impl FnMut(wire::RouteChunk)) {
        let mut records: Vec<(Hash, _)> = self.table.records(shard).map(|r| (self.table.hash(r.user), r)).collect();
        records.sort_unstable_by_key(|(hash, record)| (*hash, record.user));
        let mut parts = Vec::new();
        let mut begin = 0;
        let mut bytes = 0;
        for (i, (hash, record)) in records.iter().enumerate() {
            bytes += record.bytes.len();
            // Users of one hash stay together: a part is a range of hashes.
            if bytes >= CHUNK_BYTES && records.get(i + 1).is_some_and(|(next, _)| next != hash) {
                parts.push(begin..i + 1);
                (begin, bytes) = (i + 1, 0);
            }
        }
        parts.push(begin..records.len());
        let first = (shard as u64) << 56;
        let mut from = first;
        for (part, range) in parts.iter().enumerate() {
            let to = records.get(range.end).map_or(first | u64::MAX >> 8, |(next, _)| next - 1);
            let routes: Vec<_> = records[range.clone()].iter().map(|(_, r)| (r.user, r.binds())).collect();
            let base_ms = base_of(routes.iter().flat_map(|(_, binds)| binds));
            let mut ops = Vec::with_capacity(CHUNK_BYTES);
            for (user, binds) in &routes {
                put_op(&mut ops, base_ms, user, binds);
            }
            put(wire::RouteChunk {
                epoch: self.epoch,
                lsn: self.head,
                shard: number(shard),
                part: number(part),
                parts: number(parts.len()),
                from,
                to,
                base_ms,
                ops: Bytes::from(ops),
            });
            from = to.wrapping_add(1);
        }
    }
}

/// Bytes packed up to the window of a change; all of them, if it is none of the ring's.
fn end_at(ring: &VecDeque<Window>, lsn: Lsn, end: u64) -> u64 {
    let at = ring.partition_point(|window| window.last < lsn);
    match ring.get(at) {
        Some(window) if window.delta.first_lsn <= lsn => window.end,
        Some(window) => window.end - window.delta.ops.len() as u64,
        None => end,
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
