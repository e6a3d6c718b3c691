//! Sealing the eras that are over (R13), and telling clients which logs a conversation has.
//!
//! Problem: whoever holds entries of a region's former life must know whether more of it can still turn up, or
//! this is all there ever will be.
//!
//! Rule: a region seals its own former eras once it has been compared with every peer and every peer has acked all
//! of them that is held here. Then it holds what any region holds, and so does each of them: what one peer alone
//! had came with its comparison, and went to the others by todo. It tells so on every link, and regions pass it on.
//!
//! Why simpler ways fail: sealing when the store is open again loses what a peer alone holds; sealing after a time
//! seals what a peer that is down for maintenance holds.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use crate::codes::{Code, Refusal};
use crate::eras::Era;
use crate::ids::{ConvId, Origin, Region, Seq};
use crate::limits::{ERAS_PER_FRAME, VECTOR_ORIGINS};
use crate::mutant;
use crate::mutants::{Mutant, on};
use crate::store::{Put, Target};
use crate::wire::{convert, node, node_v1 as wire, v1};

use super::routes::Holder;
use super::{ConnKey, Node, Notice, Now};

/// How often a region looks whether it can seal: a scan of what is active.
const SEAL_EVERY: Duration = Duration::from_secs(2);
/// Meta keys of what is known of a region's eras begin so.
pub const ERAS_KEY: &str = "eras/";

impl Node {
    /// The own former eras that are not sealed.
    fn unsealed(&self) -> BTreeSet<Origin> {
        let own = self.era_table.of(self.settings.region);
        own.filter(|(origin, era)| !era.sealed && *origin != self.settings.origin).map(|(origin, _)| origin).collect()
    }

    /// Whether something is to be sealed: when to look next.
    pub(super) fn plan_seal(&mut self, now: Now) {
        self.seal_at = if self.unsealed().is_empty() { None } else { Some(now.mono + SEAL_EVERY) };
    }

    /// Seals what all regions hold; called as time passes.
    pub(super) fn seal_next(&mut self, now: Now) {
        if self.seal_at.is_none_or(|at| now.mono < at) {
            return;
        }
        self.seal_at = Some(now.mono + SEAL_EVERY);
        if self.refilling() != (0, false) && !on(Mutant::SealTooEarly) {
            return;
        }
        let mut whole = self.unsealed();
        for conversation in self.active.iter().filter_map(|id| self.conversations.get(id)) {
            let peers = conversation.todo.iter().filter(|(target, _)| matches!(target, Target::Peer(_)));
            peers.flat_map(|(_, prefix)| prefix.keys()).for_each(|origin| {
                whole.remove(origin);
            });
        }
        mutant!(SealTooEarly => whole = self.unsealed());
        for origin in &whole {
            let start = self.era_table.get(*origin).map_or(0, |e| e.start);
            self.era_table.note(*origin, Era { start, sealed: true }, false);
            self.out.notices.push(Notice::Sealed { origin: *origin });
        }
        if !whole.is_empty() {
            self.keep_eras(self.settings.region);
            let peers: Vec<Holder> = self.links.keys().flat_map(|region| self.ways.cores(*region)).collect();
            for peer in peers {
                self.tell_eras(peer);
            }
        }
        self.plan_seal(now);
    }

    fn keep_eras(&mut self, region: Region) {
        let value = self.era_table.to_bytes(region);
        self.out.puts.push(Put::Meta { key: format!("{ERAS_KEY}{region}"), value });
    }

    /// A peer is linked in this era: the region itself says when its earlier ones began.
    pub(super) fn note_era(&mut self, origin: Origin, start: u64) {
        if self.era_table.note(origin, Era { start, sealed: false }, false) {
            self.keep_eras(origin.region);
        }
    }

    /// This life counts as a later start: its peers had heard of as late a one.
    pub fn start_raised(&mut self, start: u64) {
        self.settings.start = self.settings.start.max(start);
        let known = self.era_table.get(self.settings.origin).unwrap_or_default();
        if self.era_table.note(self.settings.origin, Era { start: self.settings.start, ..known }, true) {
            self.keep_eras(self.settings.region);
        }
    }

    /// Tells a peer what is known of all regions' eras.
    pub(super) fn tell_eras(&mut self, peer: Holder) {
        let all: Vec<wire::Era> = self
            .era_table
            .all()
            .map(|(origin, era)| wire::Era { origin: Some(origin.into()), start: era.start, sealed: era.sealed })
            .collect();
        for part in all.chunks(ERAS_PER_FRAME) {
            self.out.peer(peer, wire::node_frame::Body::Eras(wire::Eras { eras: part.to_vec() }));
        }
    }

    /// A peer tells what it knows of eras.
    pub(super) fn eras_told(&mut self, now: Now, region: Region, eras: wire::Eras) -> Result<(), Refusal> {
        let mut changed = BTreeSet::new();
        for told in eras.eras {
            let origin = node::origin(told.origin)?;
            // Nobody else knows which of this region's own eras are sealed, or when they began; but of those that a
            // loss has made it forget.
            let own = origin.region == self.settings.region;
            if own && self.era_table.get(origin).is_some() {
                continue;
            }
            let era = Era { start: told.start, sealed: told.sealed && !own };
            if self.era_table.note(origin, era, origin.region == region) {
                changed.insert(origin.region);
            }
        }
        if changed.contains(&self.settings.region) && self.seal_at.is_none() {
            self.plan_seal(now);
        }
        changed.into_iter().for_each(|region| self.keep_eras(region));
        Ok(())
    }

    /// Eras that are over and not sealed yet, of this region; and those that are known of all regions.
    pub fn era_counts(&self) -> (usize, usize) {
        (self.unsealed().len(), self.era_table.all().count())
    }

    /// A client asks which logs a conversation has.
    pub(super) fn pull_eras(&mut self, now: Now, key: ConnKey, req: u32, pull: &v1::PullEras) {
        let Some(id) = ConvId::from_slice(&pull.conversation) else { return };
        let named = pull.origins.iter().take(VECTOR_ORIGINS).map(|o| convert::origin(Some(*o)));
        let named = match named.collect::<Result<BTreeSet<Origin>, Refusal>>() {
            Ok(named) => named,
            Err(refusal) => return self.out.refuse(key, req, &refusal),
        };
        if let Some(waiting) = self.conversation(id, now).waiting() {
            waiting.eras.push((key, req, named));
        } else {
            self.answer_eras(key, req, id, &named);
        }
    }

    pub(super) fn answer_eras(&mut self, key: ConnKey, req: u32, id: ConvId, named: &BTreeSet<Origin>) {
        let (Some(session), Some(conversation)) = (self.sessions.get(&key), self.conversations.get(&id)) else {
            return;
        };
        let Some(reader) = conversation.state.fold.reader(&session.user) else {
            let refusal =
                Refusal::new(Code::NotMember, "not in this conversation, or this region does not know it yet");
            return self.out.refuse(key, req, &refusal);
        };
        let readable = reader.clip(&conversation.published);
        let mut logs: Vec<(u64, Origin, Seq)> = Vec::new();
        for origin in readable.keys().chain(named.iter().filter(|o| !readable.contains_key(o))) {
            let start = self.era_table.get(*origin).map_or(0, |era| era.start);
            logs.push((start, *origin, readable.get(origin).copied().unwrap_or(0)));
        }
        // Those that are not known to be old are the newest.
        logs.sort_unstable_by_key(|(start, origin, _)| (start.wrapping_sub(1), *origin));
        let older = logs.len().saturating_sub(ERAS_PER_FRAME);
        let logs = logs.split_off(older).into_iter().map(|(start, origin, head)| v1::EraLog {
            origin: Some(origin.into()),
            head,
            start,
            sealed: self.is_final(id, origin) && head >= conversation.head(origin),
        });
        let eras = v1::Eras { conversation: Bytes::copy_from_slice(&id.0), logs: logs.collect() };
        self.out.frame(key, req, v1::frame::Body::Eras(eras));
    }

    /// Whether no region holds more of a log than this one does: it is sealed, and nothing is missing here.
    pub(super) fn is_final(&self, id: ConvId, origin: Origin) -> bool {
        self.era_table.is_sealed(origin) && self.refill.is_whole_in(id) || on(Mutant::GapToldTooEarly)
    }
}
