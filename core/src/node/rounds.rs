//! From a Send or a shipment to acks, rows, pushes and shipments.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::codes::{Code, Refusal};
use crate::edge_api::{Ack, DownBody, HeldAck, Push, RowState, SendRequest};
use crate::entry::{Entry, Stamp, proof};
use crate::eras::EraTable;
use crate::fold::Reader;
use crate::hlc;
use crate::ids::{ConvId, Heads, Identity, Origin, Region, Rev, UserId, body_hash};
use crate::limits::{BATCH_ENTRIES, CLOCK_AHEAD_MS, CLOCK_STOP_MS, PUSH_ACK_TIMEOUT, SENDS_WAITING};
use crate::mutants::{Mutant, on};
use crate::pressure::Level;
use crate::receipt::{RECEIPT_BYTES, ReceiptKey};
use crate::sequencer::{Court, LogState, Sender, Verdict};
use crate::slots::Slot;
use crate::store::{Append, Appended, Range, Target, Todo};
use crate::wire::v1;
use crate::{mutant, mutated};

use super::conversation::{Job, PendingAck, Round};
use super::user::{Merged, RowChange, Unfolded};
use super::{ConnKey, Node, Notice, Now, Ticket, Want};

/// Appends of one conversation that may fail in a row before its senders are told.
const APPEND_TRIES: u32 = 5;

/// Groups of so many members wait for merged windows under load: one of their messages costs as much as all
/// others of a second.
const MERGED_MEMBERS: usize = 50;
/// How long, then: a message is late by less than a person notices.
const MERGE_WINDOW: Duration = Duration::from_millis(100);

/// A shipment is applied as a whole, so a round may hold this much more than a batch.
const _: () = assert!(crate::limits::SHIP_ENTRIES <= BATCH_ENTRIES);

impl Node {
    /// A client's message.
    pub(super) fn send(&mut self, now: Now, key: ConnKey, req: u32, send: SendRequest) {
        let Some(session) = self.sessions.get(&key) else { return };
        // Whoever offers a membership entry of another has its receipt, which names the author.
        let (user, install) = match &send.membership {
            Some(offer) => offer.author.clone(),
            None => (session.user.clone(), session.install.clone()),
        };
        if let Some(ms) = self.clocks.own_error_ms().filter(|ms| *ms > CLOCK_STOP_MS && !on(Mutant::FastClockServes)) {
            let text = format!("this region's clock is {ms} ms off the median of all; nothing was stored");
            return self.refuse_send(key, req, &Refusal::new(Code::ClockOff, text));
        }
        if self.draining {
            return self.refuse_send(key, req, &Refusal::new(Code::Draining, "this region is about to stop"));
        }
        let hash = body_hash(&send.body);
        let id = send.conversation;
        let group = self.conversations.get(&id).is_some_and(|c| c.state.fold.group().is_some());
        let waiting = Arc::strong_count(&self.waiting) > SENDS_WAITING;
        if let Some(ms) = self.pressure.refuses(now.mono, now.wall_ms, id, group).or(waiting.then_some(1_000)) {
            self.counters.shed += 1;
            let text = "this region has more to do than it can; nothing was stored";
            return self.refuse_send(key, req, &Refusal::new(Code::Overloaded, text).after_ms(ms));
        }
        let (at, waits) = (now.mono.saturating_sub(self.waited), self.waiting.clone());
        let conversation = self.conversation(id, now);
        if conversation.is_full() {
            let refusal = Refusal::new(Code::Overloaded, "too many messages wait in this conversation").after_ms(500);
            return self.refuse_send(key, req, &refusal);
        }
        conversation.active_at = now.mono;
        conversation.queue.push_back(Job::Send {
            key,
            req,
            user,
            install,
            send: Box::new(send),
            hash,
            at,
            _counted: waits,
        });
        self.touched.insert(id);
    }

    fn refuse_send(&mut self, key: ConnKey, req: u32, refusal: &Refusal) {
        self.counters.refused += 1;
        self.out.refuse(key, req, refusal);
    }

    /// Starts rounds of all conversations that got something to do. Called once per input, so that whatever
    /// arrived together is committed together.
    pub(super) fn start_rounds(&mut self, now: Now) {
        while let Some(id) = self.touched.pop_first() {
            self.start_round(now, id);
        }
    }

    pub(super) fn start_round(&mut self, now: Now, id: ConvId) {
        let Some(blocked) = self.senders_blocked(now, id) else { return };
        let epoch = self.epoch_of_log(id);
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        let mut round = Round::default();
        let Some(epoch) = epoch else { return };
        while let Some(job) = conversation.next_job(&round) {
            match job {
                Job::Copies { .. } => {
                    Self::judge_copies(conversation, &mut round, job, self.settings.origin, &mut self.out);
                }
                Job::Send { key, req, ref user, ref install, ref send, hash, at, .. } => {
                    self.pressure.sample(now.mono, now.mono.saturating_sub(at));
                    if let Some(what) = conversation.damaged.get(&self.settings.origin) {
                        let refusal = Refusal::new(Code::Damaged, format!("the log is damaged here: {what}"));
                        self.counters.refused += 1;
                        self.out.refuse(key, req, &refusal);
                        continue;
                    }
                    let by = Identity { user: user.clone(), install: install.clone(), n: send.n };
                    let none = Heads::new();
                    let cut = send.membership.as_ref().map_or(&none, |m| &m.cut);
                    let receipt_valid = send.offer.as_ref().is_some_and(|(place, receipt)| {
                        self.settings.receipt_key.verify(id, *place, &by, &proof(send.kind, &hash, cut), receipt)
                            || on(Mutant::ReceiptNotVerified)
                    });
                    let session = self.sessions.get(&key);
                    if !receipt_valid && session.is_some_and(|s| s.user != *user) {
                        let text = "the receipt does not prove the membership entry of another";
                        self.counters.refused += 1;
                        self.out.refuse(key, req, &Refusal::new(Code::NotAllowed, text));
                        continue;
                    }
                    let court = Court {
                        now_ms: now.wall_ms,
                        origin: self.settings.origin,
                        direct_salt: &self.settings.direct_salt,
                        receipt_valid,
                        blocked: blocked.contains(user) && !on(Mutant::BlockNotChecked),
                    };
                    let from = Sender { user, install };
                    // What is acked before on this connection is known to the client: a lane keeps its order.
                    let own_install = session.filter(|s| s.install == *install && s.user == *user);
                    let acked = own_install.and_then(|s| s.acked.get(&id)).copied();
                    let also = match acked {
                        Some((first, last)) if last + 1 >= send.n => send.floor..first.min(send.n),
                        _ => send.floor..send.n,
                    };
                    let verdict = conversation.state.judge(court, from, send, &hash, &also);
                    if matches!(verdict, Verdict::Append(_) | Verdict::Held(_))
                        && let Some(session) =
                            self.sessions.get_mut(&key).filter(|s| s.install == *install && s.user == *user)
                    {
                        session.will_ack(id, send.n);
                    }
                    match verdict {
                        Verdict::Append(mut entry) => {
                            stamp(&self.settings.receipt_key, id, &mut entry);
                            let entry = Arc::new(entry);
                            let copy = conversation.state.apply(entry.clone());
                            let also = conversation.state.also_held(from, &also);
                            let receipt_refused = send.offer.is_some() && !receipt_valid;
                            round.entries.push((entry.clone(), copy));
                            round.acks.push(PendingAck { key, req, entry, also, receipt_refused });
                            round.jobs.push(job);
                        }
                        Verdict::Held(entry) => {
                            self.counters.resends += 1;
                            let also = conversation.state.also_held(from, &also);
                            let receipt_refused = send.offer.is_some() && !receipt_valid;
                            round.acks.push(PendingAck { key, req, entry, also, receipt_refused });
                            round.jobs.push(job);
                        }
                        Verdict::Recall(runs) => {
                            conversation.parked.push(job);
                            for (run, n) in runs {
                                let (low, high) = run.range_of(n);
                                let range = Range {
                                    conversation: id,
                                    origin: run.origin,
                                    from: low,
                                    to: high,
                                    max_entries: usize::MAX,
                                    max_bytes: usize::MAX,
                                    backwards: false,
                                };
                                conversation.recalls += 1;
                                self.next_ticket += 1;
                                self.tickets.insert(self.next_ticket, Ticket::Recall { conversation: id });
                                self.out.wants.push(Want::Range { ticket: self.next_ticket, range, patient: false });
                            }
                        }
                        Verdict::Refuse(refusal) => {
                            self.counters.refused += 1;
                            self.out.refuse(key, req, &refusal);
                        }
                    }
                }
            }
        }
        if round.entries.is_empty() {
            self.finish_round(now, id, round);
        } else {
            self.append(now, id, epoch, round);
        }
    }

    /// Takes those entries of a shipment that follow what is held.
    fn judge_copies(
        conversation: &mut super::Conversation,
        round: &mut Round,
        job: Job,
        own: Origin,
        out: &mut super::Outputs,
    ) {
        let Job::Copies { from, origin, ref entries, first_seq } = job else { return };
        let id = conversation.id();
        if origin == own && entries.last().is_some_and(|e| e.place.seq > conversation.state.head(own)) {
            out.notices.push(Notice::OwnTailLost { conversation: id });
        } else if !conversation.damaged.contains_key(&origin) && first_seq <= conversation.state.head(origin) + 1 {
            for entry in entries {
                if entry.place.seq == conversation.state.head(origin) + 1 {
                    // A body whose erasure is known here is not written any more (R16).
                    let erased = !entry.erased && conversation.state.fold.is_erased(entry);
                    let erased = erased && !on(Mutant::ErasedCopyWritten);
                    let entry = if erased { Arc::new(entry.to_erased()) } else { entry.clone() };
                    let copy = conversation.state.apply(entry.clone());
                    round.entries.push((entry, copy));
                }
            }
        }
        let upto = entries.last().map_or(0, |e| e.place.seq);
        round.shipments.push((from, origin, upto));
        round.jobs.push(job);
    }

    /// Hands a round's batches to the store, with the todo that they need and that is not noted yet.
    fn append(&mut self, now: Now, id: ConvId, epoch: u64, mut round: Round) {
        mutant!(AckBeforeCommit => std::mem::take(&mut round.acks).into_iter().for_each(|ack| self.ack(id, ack)));
        mutant!(LinkAckFromMemory => self.ack_shipments(id, &round.shipments));
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        let mut batches = BTreeMap::<Origin, Vec<Arc<Entry>>>::new();
        for (entry, _) in &round.entries {
            batches.entry(entry.place.origin).or_default().push(entry.clone());
        }
        round.undecided = batches.len();
        let own = self.settings.origin;
        for (origin, entries) in batches {
            let prefix = conversation.head(origin);
            let mut targets = vec![Target::Fanout];
            mutant!(FanoutMarkEarly => targets.clear());
            let shippers: Vec<Region> =
                round.shipments.iter().filter(|(_, o, _)| *o == origin).map(|(from, _, _)| from.region).collect();
            for (region, link) in &mut self.links {
                // Its own current log needs no way back, and whoever shipped an entry holds it.
                let is_author =
                    origin.region == *region && self.eras.get(region).is_none_or(|(_, era)| *era == origin.era);
                if origin != own && (is_author || shippers.contains(region) || on(Mutant::CopiesNotRelayed)) {
                    continue;
                }
                let reachable = self.ways.of(*region, id).is_some();
                link.note(id, origin, prefix, origin != own, reachable, now.mono);
                targets.push(Target::Peer(*region));
            }
            let mut todo = Vec::new();
            for target in targets {
                let noted = conversation.todo.entry(target).or_default();
                if let std::collections::btree_map::Entry::Vacant(slot) = noted.entry(origin) {
                    slot.insert(prefix);
                    todo.push(Todo { target, conversation: id, prefix: noted.clone(), user: None });
                }
            }
            self.out.appends.push(Append { conversation: id, origin, epoch, entries, todo });
        }
        conversation.active_at = now.mono;
        conversation.round = Some(round);
        self.active.insert(id);
        self.schedule_flush(now);
    }

    /// The store's answers to appends, in any order of conversations.
    pub fn appended(&mut self, now: Now, answers: Vec<(ConvId, Appended)>) {
        for (id, answer) in answers {
            let Some(conversation) = self.conversations.get_mut(&id) else { continue };
            let Some(round) = conversation.round.as_mut() else { continue };
            round.undecided -= 1;
            if answer != Appended::Decided && round.failure.is_none() {
                round.failure = Some(answer);
            }
            if round.undecided == 0
                && let Some(round) = conversation.round.take()
            {
                match &round.failure {
                    _ if conversation.replica => self.finish_lost(id, round),
                    None => self.finish_round(now, id, round),
                    Some(_) => self.failed_round(now, id, round),
                }
            }
        }
        self.start_rounds(now);
        self.pump_all(now);
    }

    /// Nothing of a failed batch may be acked; what the store really holds decides, so it is read again.
    fn failed_round(&mut self, now: Now, id: ConvId, round: Round) {
        mutant!(TimeoutTakenForDone => return self.finish_round(now, id, round));
        let Some(failure) = round.failure else { return };
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        conversation.failures += 1;
        let give_up = conversation.failures >= APPEND_TRIES;
        let mut again = Vec::new();
        for job in round.jobs {
            let refusal = match (&failure, &job) {
                (Appended::Full, Job::Send { .. }) => {
                    Refusal::new(Code::StoreFull, "the disk of this region is nearly full; nothing was stored")
                        .after_ms(5_000)
                }
                (Appended::Fenced, Job::Send { .. }) if !self.is_shared() => {
                    Refusal::new(Code::Internal, "this node no longer owns the conversation; nothing was stored")
                }
                (Appended::Damaged, Job::Send { .. }) => {
                    Refusal::new(Code::Damaged, "the log is damaged here; nothing was stored")
                }
                (Appended::Unknown(why), Job::Send { .. }) if give_up => {
                    tracing::error!(conversation = %id, why, "appends keep failing");
                    let text = "the store keeps failing; whether the message was stored is not known";
                    Refusal::new(Code::Internal, text).after_ms(5_000)
                }
                // The peer is told where this log stands once that is known; it then ships again.
                (Appended::Full | Appended::Fenced | Appended::Damaged, Job::Copies { .. }) => continue,
                (_, Job::Copies { .. }) if give_up => continue,
                _ => {
                    again.push(job);
                    continue;
                }
            };
            if let Job::Send { key, req, .. } = job {
                self.refuse_send(key, req, &refusal);
            }
        }
        let fenced = failure == Appended::Fenced;
        if fenced && !self.is_shared() {
            self.out.notices.push(Notice::Fenced);
        }
        for (from, origin, upto) in round.shipments {
            if let Some(link) = self.links.get_mut(&from.region) {
                link.owe_ack(from.core, id, origin, upto, now.mono);
            }
        }
        if let Some(conversation) = self.conversations.get_mut(&id) {
            conversation.reload(again);
            conversation.active_at = now.mono;
            self.out.wants.push(Want::Conversation(id));
        }
        if fenced && self.is_shared() {
            // Another node has raised the epoch: it owns the slot, and this one never will under its own.
            self.out.notices.push(Notice::SlotLost(Slot::of(id)));
            self.lose(now, &[Slot::of(id)].into());
        }
    }

    /// Everything of a round is decided.
    fn finish_round(&mut self, now: Now, id: ConvId, round: Round) {
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        let mut grown = Heads::new();
        for (entry, _) in &round.entries {
            conversation.published.insert(entry.place.origin, entry.place.seq);
            grown.insert(entry.place.origin, entry.place.seq);
        }
        conversation.failures = 0;
        conversation.since_checkpoint += round.entries.len();
        self.commit += round.entries.len() as u64;
        for ack in round.acks {
            self.ack(id, ack);
        }
        for (entry, copy) in &round.entries {
            if entry.place.origin == self.settings.origin {
                self.counters.sequenced += 1;
            } else {
                self.counters.copies += 1;
                let ahead = hlc::to_ms(entry.place.hlc).saturating_sub(now.wall_ms);
                if ahead > CLOCK_AHEAD_MS {
                    self.out.notices.push(Notice::ClockAhead { region: entry.place.origin.region, ms: ahead });
                }
            }
            self.counters.duplicates += u64::from(*copy);
        }
        if !round.entries.is_empty() {
            self.ship_decided(now, id, &round.entries);
            self.cells_changed(now, id, &round.entries);
            self.log_changed(id);
            self.erase_next(id);
            self.fan_out_or_merge(now, id, round.entries);
        }
        self.ack_shipments(id, &round.shipments);
        if !grown.is_empty() {
            self.tell_watchers(now, id, grown.keys().copied());
        }
        if self.conversations.get(&id).is_some_and(super::Conversation::is_ready) {
            self.touched.insert(id);
        }
    }

    fn ack(&mut self, id: ConvId, ack: PendingAck) {
        let (key, place) = (ack.key, ack.entry.place);
        self.ack_lost(id, ack);
        self.watch_acked(key, id, place.origin, place.seq);
    }

    /// Of a conversation that is another node's by now its owner tells how far it is stable.
    pub(super) fn ack_lost(&mut self, id: ConvId, ack: PendingAck) {
        let sign = |e: &Entry| self.settings.receipt_key.sign(id, e.display_key(), &e.by, &e.proof());
        let cut = |e: &Entry| e.stamp.as_ref().map(|s| s.cut.clone()).unwrap_or_default();
        let entry = &ack.entry;
        let also = ack
            .also
            .iter()
            .map(|e| HeldAck { n: e.by.n, place: e.place, first: e.first, receipt: sign(e), cut: cut(e) })
            .collect();
        let body = Ack {
            place: entry.place,
            first: entry.first,
            receipt: sign(entry),
            also,
            receipt_refused: ack.receipt_refused,
            cut: cut(entry),
        };
        self.out.down(ack.key, DownBody::Ack { req: ack.req, ack: body });
    }

    /// Merges the rows of all members and pushes to their devices. Under load large groups wait for a window, so
    /// that a row and a push carry what came in it.
    fn fan_out_or_merge(&mut self, now: Now, id: ConvId, entries: Vec<(Arc<Entry>, bool)>) {
        let merge = self.pressure.level_of_all(now.mono) >= Level::Merge;
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        let large = conversation.state.fold.group().is_some_and(|g| g.present() >= MERGED_MEMBERS);
        if conversation.fan_at.is_some() || merge && large {
            self.counters.merged += 1;
            conversation.unfanned.extend(entries);
            if conversation.fan_at.is_none() {
                let at = now.mono + MERGE_WINDOW;
                conversation.fan_at = Some(at);
                self.fans.insert((at, id));
            }
            return;
        }
        self.fan_out(now, id, &entries);
    }

    /// Windows that have ended.
    pub(super) fn fan_out_due(&mut self, now: Now) {
        while let Some((at, id)) = self.fans.first().copied().filter(|(at, _)| *at <= now.mono) {
            self.fans.remove(&(at, id));
            let Some(conversation) = self.conversations.get_mut(&id) else { continue };
            conversation.fan_at = None;
            let entries = std::mem::take(&mut conversation.unfanned);
            self.fan_out(now, id, &entries);
        }
    }

    /// See [`Node::fan_out_or_merge`].
    pub(super) fn fan_out(&mut self, now: Now, id: ConvId, entries: &[(Arc<Entry>, bool)]) {
        let Some(conversation) = self.conversations.get(&id) else { return };
        for member in conversation.state.fold.users() {
            // What a blocked sender wrote is no news for anybody else.
            let hidden = |(e, _): &(Arc<Entry>, bool)| e.only_sender && e.by.user != member;
            if entries.is_empty() || !entries.iter().all(hidden) {
                self.merge_row(now, &member, id, entries);
            }
        }
    }

    pub(super) fn merge_row(&mut self, now: Now, member: &UserId, id: ConvId, entries: &[(Arc<Entry>, bool)]) {
        if !self.owns_user(member) {
            return self.tell_row(now, member, id, entries);
        }
        if let Some(waiting) = self.user(member).waiting() {
            if waiting.merges.insert(id)
                && let Some(conversation) = self.conversations.get_mut(&id)
            {
                conversation.fan_pending += 1;
            }
            return;
        }
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        let Some(reader) = conversation.state.fold.reader(member) else { return };
        let change = row_change(&conversation.state, &conversation.published, &self.era_table, member, reader);
        let Some(user) = self.users.get_mut(member) else { return };
        conversation.away.remove(member);
        // A mark may have come from another region before anything of the conversation did.
        let marked = user.row(id).filter(|row| row.peer.is_none() && !row.read.is_empty());
        let told = marked.map(|row| row.read.clone()).zip(change.peer.clone());
        let merged = user.merge(id, &change);
        conversation.fan_flush = self.flush.begun + 1;
        let Some(merged) = merged else { return };
        // Of somebody who is watched something may be told from now on.
        if let Some(peer) = &change.peer {
            self.presence.touch(now.mono, peer);
        }
        let may_read = |e: &Entry| mutated!(RemovedStillPushed => true; reader.may_read(e.place.origin, e.place.seq));
        let readable = |e: &Entry| may_read(e) && (!e.only_sender || e.by.user == *member);
        let fresh: Vec<Arc<Entry>> =
            entries.iter().filter(|(e, copy)| !copy && readable(e)).map(|(e, _)| e.clone()).collect();
        self.dirty.insert(member.clone());
        self.flush.at.get_or_insert(now.mono + super::FLUSH_EVERY);
        self.push_row(now, member, id, merged, fresh);
        if let Some((read, peer)) = told.filter(|(_, peer)| peer != member) {
            self.peer_marked(now, member, &peer, id, &read);
        }
    }

    /// Pushes a changed row, and what is new in it, to the user's devices.
    pub(super) fn push_row(&mut self, now: Now, member: &UserId, id: ConvId, merged: Merged, fresh: Vec<Arc<Entry>>) {
        let Some(user) = self.users.get_mut(member) else { return };
        if user.devices.values().all(|d| d.bound.is_none()) {
            return;
        }
        let Some(row) = user.row(id) else { return };
        let state = merged.state.then(|| {
            Box::new(RowState {
                state: row.state,
                generation: row.generation,
                from: row.from.clone(),
                read: row.read.clone(),
                peer_read: row.peer_read.clone(),
            })
        });
        let (prev_rev, rev) = (merged.before, merged.after);
        let base = Push {
            conversation: id,
            peer: row.peer.clone(),
            entries: Vec::new(),
            heads: row.heads.clone(),
            prev_rev,
            rev,
            row: state,
        };
        let whole = Arc::new(Push { entries: fresh.clone(), ..base.clone() });
        for (key, device) in &mut user.devices {
            if device.bound.is_none() {
                continue;
            }
            // A device has what it sent itself: its own message comes back as an ack.
            let own = |e: &Arc<Entry>| e.by.user == *member && e.by.install == device.install;
            let push = if fresh.iter().any(own) {
                let others = fresh.iter().filter(|e| !own(e)).cloned().collect();
                Arc::new(Push { entries: others, ..base.clone() })
            } else {
                whole.clone()
            };
            device.pushed = rev;
            if device.remind_at.is_none() {
                let at = now.mono + PUSH_ACK_TIMEOUT;
                device.remind_at = Some(at);
                self.owing.insert((at, member.clone(), *key));
            }
            self.counters.pushes += 1;
            self.out.down(*key, DownBody::Push(push));
        }
    }

    /// Rows of a member that were waiting for him to be loaded are merged now.
    pub(super) fn merged_late(&mut self, id: ConvId) {
        if let Some(conversation) = self.conversations.get_mut(&id) {
            conversation.fan_pending = conversation.fan_pending.saturating_sub(1);
        }
    }

    /// Reminds devices that owe an ack: their pushes may be lost.
    pub(super) fn remind(&mut self, now: Now) {
        while let Some((at, user, key)) = self.owing.first().cloned() {
            if at > now.mono {
                break;
            }
            self.owing.pop_first();
            let Some(device) = self.users.get_mut(&user).and_then(|u| u.devices.get_mut(&key)) else { continue };
            device.remind_at = None;
            if device.acked < device.pushed {
                let next = now.mono + PUSH_ACK_TIMEOUT;
                device.remind_at = Some(next);
                self.owing.insert((next, user, key));
                self.out.frame(key, 0, v1::frame::Body::Advance(v1::Advance { rev: device.pushed.0 }));
            }
        }
    }

    /// A device has stored everything up to `rev`.
    pub(super) fn push_acked(&mut self, key: ConnKey, rev: Rev) {
        let Some(session) = self.sessions.get(&key) else { return };
        let user = session.user.clone();
        let Some(device) = self.users.get_mut(&user).and_then(|u| u.devices.get_mut(&key)) else { return };
        device.acked = device.acked.max(rev);
        if device.acked >= device.pushed
            && let Some(at) = device.remind_at.take()
        {
            self.owing.remove(&(at, user, key));
        }
    }

    /// Entries that were read again for a resend.
    pub(super) fn recalled(&mut self, now: Now, id: ConvId, entries: Result<Vec<Arc<Entry>>, String>) {
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        conversation.recalls = conversation.recalls.saturating_sub(1);
        let failed = entries.is_err();
        // Only those that are asked for: a range of a long run holds others' messages as well.
        let wanted = |e: &Arc<Entry>| {
            conversation.parked.iter().any(|job| match job {
                Job::Send { user, install, send, .. } => {
                    e.by.user == *user && e.by.install == *install && (send.floor..=send.n).contains(&e.by.n)
                }
                Job::Copies { .. } => false,
            })
        };
        let found: Vec<_> = entries.unwrap_or_default().into_iter().filter(wanted).collect();
        conversation.state.recall(found);
        let parked = if conversation.recalls == 0 { std::mem::take(&mut conversation.parked) } else { Vec::new() };
        if failed {
            for job in parked {
                if let Job::Send { key, req, .. } = job {
                    let refusal = Refusal::new(Code::Internal, "an earlier copy could not be read; nothing was stored");
                    self.refuse_send(key, req, &refusal.after_ms(1_000));
                }
            }
        } else {
            for job in parked.into_iter().rev() {
                conversation.queue.push_front(job);
            }
        }
        self.start_round(now, id);
    }
}

/// Signs a new membership entry, so that any member can prove it elsewhere. An offered one has its receipt.
fn stamp(key: &ReceiptKey, id: ConvId, entry: &mut Entry) {
    let Some(stamp) = &entry.stamp else { return };
    if stamp.receipt == <[u8; RECEIPT_BYTES]>::default() {
        let receipt = key.sign(id, entry.display_key(), &entry.by, &entry.proof());
        entry.stamp = Some(Arc::new(Stamp { receipt, cut: stamp.cut.clone() }));
    }
}

fn row_change<'a>(
    state: &LogState,
    published: &'a Heads,
    eras: &'a EraTable,
    member: &UserId,
    reader: Reader<'a>,
) -> RowChange<'a> {
    let heads = mutated!(RemovedStillPushed => Cow::Borrowed(published); reader.clip(published));
    let (heads, unfolded) = folded(heads, eras);
    RowChange {
        heads,
        last_hlc: state.highest_hlc,
        counted: state.counted,
        peer: state.fold.peer_of(member).cloned(),
        generation: reader.generation(),
        state: reader.state(),
        from: reader.from(),
        unfolded,
    }
}

/// Heads as a row has them, and what they were if eras are folded in them.
pub(super) fn folded<'a>(heads: Cow<'a, Heads>, eras: &'a EraTable) -> (Cow<'a, Heads>, Option<Unfolded<'a>>) {
    let folded = match eras.fold(&heads) {
        Cow::Borrowed(_) => return (heads, None),
        Cow::Owned(folded) => folded,
    };
    (Cow::Owned(folded), Some(Unfolded { heads, eras }))
}
