//! What is held by more than one region (R14).
//!
//! `Stable` is a prefix per (conversation, origin). For the region's own current log it is what the best peer
//! has acked; for another region's current log it is what is held here; for a log whose era is over, its
//! author's copy no longer counts: two living holders are needed, this region and one that has acked it.

use crate::ids::{ConvId, Origin, Region, Seq};
use crate::mutants::{Mutant, on};
use crate::store::{Put, Target, Todo};
use crate::wire::v1;

use super::{ConnKey, Link, Node, Now};

/// Conversations whose stability one connection may wait for.
const WATCHES_PER_CONVERSATION: usize = 64;

impl Node {
    /// Whether the author of a log has begun another.
    pub(super) fn is_over(&self, origin: Origin) -> bool {
        if origin.region == self.settings.region {
            return origin != self.settings.origin;
        }
        self.eras.get(&origin.region).is_some_and(|(_, era)| *era != origin.era)
    }

    /// Whether clients should no longer wait for the author of a log.
    fn is_silent(&self, now: Now, origin: Origin) -> bool {
        if self.is_over(origin) {
            return true;
        }
        match self.links.get(&origin.region) {
            Some(link) => link.silence(now.mono) > self.settings.reoffer_after,
            // Not a region of this deployment any more; its own current log is never silent.
            None => origin.region != self.settings.region,
        }
    }

    /// Up to where a log is stable, and how many regions hold it that far.
    fn stable_upto(&self, id: ConvId, origin: Origin) -> (Seq, u32) {
        let head = self.conversations.get(&id).map_or(0, |c| c.head(origin));
        if self.links.is_empty() {
            return (head, 1);
        }
        let over = self.is_over(origin) && !on(Mutant::DeadAuthorCounts);
        // A peer without todo for a log holds what is held here: its todo went when it had acked. Not so the
        // author of a log that is over, and a peer that may have lost what it acked; and where this store may have
        // lost todo, that there is none says nothing either.
        let acked = |(region, link): (&Region, &Link)| {
            let in_doubt = link.is_incomplete_in(id) || self.refill.is_marked(*region, id);
            let in_doubt = in_doubt && !on(Mutant::DoubtfulPeerCounts);
            let unknown = if in_doubt || over && *region == origin.region { 0 } else { head };
            link.acked_upto(id, origin).map_or(unknown, |a| a.min(head))
        };
        let own = origin == self.settings.origin;
        let upto = if (own || over) && !on(Mutant::StableTooEarly) {
            self.links.iter().map(acked).max().unwrap_or(0)
        } else {
            head
        };
        let author = u32::from(!own && !over);
        let holders = self
            .links
            .iter()
            .filter(|(r, _)| over || **r != origin.region)
            .filter(|l| acked(*l) >= upto.max(1))
            .count();
        (upto, 1 + author + u32::try_from(holders).unwrap_or(0))
    }

    /// The author of a log that is over may have come back with it, or without: it is offered what is held
    /// here, and its answer tells.
    fn ask_author(&mut self, now: Now, id: ConvId, origin: Origin) {
        if !self.is_over(origin) || origin.region == self.settings.region {
            return;
        }
        let reachable = self.ways.of(origin.region, id).is_some();
        let (Some(link), Some(conversation)) = (self.links.get_mut(&origin.region), self.conversations.get_mut(&id))
        else {
            return;
        };
        if conversation.head(origin) == 0 || link.acked_upto(id, origin).is_some() {
            return;
        }
        link.note(id, origin, 0, true, reachable, now.mono);
        let target = Target::Peer(origin.region);
        let noted = conversation.todo.entry(target).or_default();
        noted.insert(origin, 0);
        self.out.puts.push(Put::Todo(Todo { target, conversation: id, prefix: noted.clone(), user: None }));
        conversation.active_at = now.mono;
        self.active.insert(id);
        self.schedule_flush(now);
    }

    /// A connection waits for the stability of some logs of a conversation: it is told as that changes.
    pub(super) fn watch(&mut self, key: ConnKey, id: ConvId, origins: &[Origin]) {
        for origin in origins {
            let (upto, _) = self.stable_upto(id, *origin);
            let Some(conversation) = self.conversations.get_mut(&id) else { return };
            let room =
                conversation.watchers.len() < WATCHES_PER_CONVERSATION || conversation.watchers.contains_key(&key);
            if upto < conversation.head(*origin)
                && room
                && let Some(session) = self.sessions.get_mut(&key)
            {
                session.watching.insert(id);
                conversation.watchers.entry(key).or_default().entry(*origin).or_insert(upto);
            }
        }
    }

    /// A message was acked: its sender waits for its stability, or has it at once.
    pub(super) fn watch_acked(&mut self, key: ConnKey, id: ConvId, origin: Origin, seq: Seq) {
        let (upto, regions) = self.stable_upto(id, origin);
        if upto >= seq {
            self.out.frame(key, 0, frame(id, origin, upto, regions, false));
        } else {
            self.watch(key, id, &[origin]);
        }
    }

    /// A client asks how far the logs stand in which its messages were acked.
    pub(super) fn unstable(&mut self, now: Now, key: ConnKey, logs: Vec<v1::UnstableLog>) {
        for log in logs.into_iter().take(crate::limits::UNSTABLE_PER_FRAME) {
            let Some(id) = ConvId::from_slice(&log.conversation) else { continue };
            let origins: Vec<Origin> =
                log.origins.into_iter().take(16).filter_map(|o| Origin::try_from(o).ok()).collect();
            if let Some(waiting) = self.conversation(id, now).waiting() {
                waiting.unstable.push((key, origins));
            } else {
                self.answer_unstable(now, key, id, &origins);
            }
        }
    }

    pub(super) fn answer_unstable(&mut self, now: Now, key: ConnKey, id: ConvId, origins: &[Origin]) {
        for origin in origins {
            self.ask_author(now, id, *origin);
            let (upto, regions) = self.stable_upto(id, *origin);
            let offer = self.is_silent(now, *origin);
            self.out.frame(key, 0, frame(id, *origin, upto, regions, offer));
        }
        self.watch(key, id, origins);
    }

    /// Something of these logs became stable, perhaps.
    pub(super) fn tell_watchers(&mut self, _now: Now, id: ConvId, origins: impl IntoIterator<Item = Origin>) {
        if self.conversations.get(&id).is_none_or(|c| c.watchers.is_empty()) {
            return;
        }
        for origin in origins {
            let (upto, regions) = self.stable_upto(id, origin);
            let Some(conversation) = self.conversations.get_mut(&id) else { return };
            let head = conversation.head(origin);
            for (key, told) in &mut conversation.watchers {
                let Some(last) = told.get_mut(&origin) else { continue };
                if upto > *last {
                    *last = upto;
                    self.out.frame(*key, 0, frame(id, origin, upto, regions, false));
                }
                if upto >= head {
                    told.remove(&origin);
                }
            }
            conversation.watchers.retain(|_, told| !told.is_empty());
        }
    }
}

fn frame(id: ConvId, origin: Origin, upto: Seq, regions: u32, offer: bool) -> v1::frame::Body {
    v1::frame::Body::Stable(v1::Stable {
        conversation: bytes::Bytes::copy_from_slice(&id.0),
        origin: Some(origin.into()),
        upto,
        regions,
        offer,
    })
}
