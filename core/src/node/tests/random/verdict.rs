//! What must hold in the end, judged by a recount of the logs that the surviving regions hold.

use super::recount::{Recount, Told};
use super::*;
use crate::client::Message;

type Verdict = Result<(), String>;

macro_rules! holds {
    ($cond:expr, $($text:tt)*) => {
        if !$cond {
            return Err(format!($($text)*));
        }
    };
}

/// Whether an application counts it as unread.
fn counts(told: &Told) -> bool {
    told.kind == 0 && !told.only_sender
}

impl Run {
    fn disk(&self, region: Region) -> &Disk {
        &self.world.cores[&region].as_ref().expect("the region is up").disk
    }

    /// Everything is settled: all regions that are left hold the same, and all devices show it.
    pub(super) fn check(&mut self) -> Verdict {
        let up = self.up();
        for region in &up {
            self.world.core(*region).disk.sync();
        }
        holds!(self.world.leaks.is_empty(), "{}", self.world.leaks.join("\n"));
        self.check_regions(&up)?;
        let ids: BTreeSet<ConvId> = self.disk(up[0]).logs.keys().map(|(id, _)| *id).collect();
        let recounts: BTreeMap<ConvId, Recount> =
            ids.iter().map(|id| (*id, Recount::of(self.disk(up[0]), *id))).collect();
        for recount in recounts.values() {
            for region in &up {
                self.check_erased(&Recount::of(self.disk(*region), recount.id))?;
                self.check_members_in(*region, recount)?;
            }
        }
        for i in 0..self.devices.len() {
            if self.is_removed(i, &recounts) {
                holds!(!self.is_live(i), "{i} was removed and is connected");
                continue;
            }
            self.check_outbox(i)?;
            for recount in recounts.values().filter(|r| r.users().contains(&user(self.devices[i].user))) {
                let at = |what| format!("{i} ({}) in {:?}: {what}", self.devices[i].user, recount.id);
                self.check_timeline(i, recount).map_err(at)?;
                self.check_standing(i, recount).map_err(at)?;
                self.check_unread(i, recount, &recounts).map_err(at)?;
                self.check_marks(i, &up, recount).map_err(at)?;
            }
        }
        self.check_same_user(&recounts)?;
        self.check_lost(&recounts)
    }

    /// An install that a cell of its user's own log ends; also one that took another install id in the moment in which it
    /// was removed under its old one: nobody is to come back because a backup of his phone had numbers given twice.
    fn is_removed(&self, i: usize, recounts: &BTreeMap<ConvId, Recount>) -> bool {
        let machine = &self.devices[i].machine;
        let own = recounts.get(&ConvId::own(SALT, machine.user()));
        let kicked = self.devices[i].kicked;
        kicked || own.is_some_and(|log| log.cell(&format!("kick/{}", machine.install())).is_some())
    }

    fn is_live(&self, i: usize) -> bool {
        matches!(self.devices[i].machine.connection(), ConnectionState::Live { .. })
    }

    fn check_regions(&self, up: &[Region]) -> Verdict {
        let logs = |r: Region| self.disk(r).logs.iter().filter(|(_, l)| !l.is_empty());
        let lengths = |r: Region| logs(r).map(|(k, l)| (*k, l.len())).collect::<BTreeMap<_, _>>();
        for region in &up[1..] {
            holds!(
                lengths(*region) == lengths(up[0]),
                "logs differ: {} {:?}\n{region} {:?}",
                up[0],
                lengths(up[0]),
                lengths(*region)
            );
            for ((key, mine), (_, theirs)) in logs(up[0]).zip(logs(*region)) {
                let differs = mine.iter().zip(theirs).find(|(a, b)| a.to_erased() != b.to_erased());
                holds!(
                    differs.is_none(),
                    "{} and {region} hold another entry in {key:?}: {differs:?}\n{}",
                    up[0],
                    self.states()
                );
            }
        }
        for region in up {
            let disk = self.disk(*region);
            let standing: Vec<_> =
                disk.meta.iter().filter(|(k, v)| k.starts_with(MARK_KEY) && !v.is_empty()).map(|(k, _)| k).collect();
            // A region that never comes back is never compared with.
            holds!(standing.len() <= self.gone.len(), "{region} is not compared: {standing:?}");
            holds!(disk.number("restored").is_none(), "{region} still says that it was restored");
        }
        Ok(())
    }

    /// Bodies that are erased are in no store and on no device.
    fn check_erased(&self, recount: &Recount) -> Verdict {
        for told in &recount.messages() {
            for (origin, seq) in &told.copies {
                let entry = recount.entry(*origin, *seq).unwrap();
                holds!(told.may_be_erased || !entry.erased, "{entry:?} is erased, and nobody wanted it");
                let gone = !told.erased || entry.erased && entry.body.is_empty();
                holds!(gone, "the body of {entry:?} was to be erased by {:?}\n{}", told.erasures, self.states());
            }
        }
        Ok(())
    }

    fn check_members_in(&self, region: Region, recount: &Recount) -> Verdict {
        if !recount.is_group() {
            return Ok(());
        }
        let state = self.disk(region).state(recount.id);
        let members = state.fold.group().into_iter().flat_map(crate::membership::Membership::users);
        let present = members.filter(|(_, m)| m.is_present());
        let present: Vec<_> = present.map(|(u, m)| (u.clone(), m.generation, m.role() == Role::Admin)).collect();
        holds!(
            present == recount.present(),
            "{region} has {present:?} in {:?}, not {:?}",
            recount.id,
            recount.present()
        );
        Ok(())
    }

    fn check_outbox(&self, i: usize) -> Verdict {
        let device = &self.devices[i];
        // What one region refused and another may have taken waits for that one, for ever if that is gone.
        let waits = |s: MessageState| !matches!(s, MessageState::Unknown(_));
        let kept: Vec<_> = device.book.image().outgoing;
        let kept: Vec<_> = kept.iter().filter(|o| waits(o.record.state)).map(|o| (&o.record, o.kind)).collect();
        holds!(
            kept.is_empty(),
            "{i} {:?} waits for ever with {kept:#?}\n{}",
            device.machine.connection(),
            self.states()
        );
        holds!(self.is_live(i), "{i} is {:?}", device.machine.connection());
        Ok(())
    }

    fn states(&self) -> String {
        let mut text = String::new();
        for (region, core) in &self.world.cores {
            let Some(core) = core else { continue };
            text.push_str(&format!("{region} {:?} todo {:?}\n", core.node.origin(), core.disk.todo));
            for ((id, origin), log) in &core.disk.logs {
                let entries = log.iter().map(|e| {
                    format!(
                        "{:?} {}/{}:{}{}",
                        e.display_key(),
                        e.by.install,
                        e.by.n,
                        e.kind,
                        if e.erased { "e" } else { "" }
                    )
                });
                let entries = entries.collect::<Vec<_>>().join(" ");
                text.push_str(&format!("  {id:?} {origin}/{} {entries}\n", origin.era));
            }
            for (id, conversation) in &core.node.conversations {
                text.push_str(&format!("  {id:?} {:?}\n", conversation.state.fold.erasing));
            }
        }
        text
    }

    /// The messages of a timeline; without those of which a copy that is held here was lost with a region.
    fn shown(&self, i: usize, recount: &Recount) -> (Vec<Message>, BTreeSet<Identity>) {
        let device = &self.devices[i];
        let all = device.book.timeline(recount.id, device.machine.horizon(recount.id), usize::MAX);
        let adrift = |m: &&Message| device.book.copies_of(m.id).iter().any(|(o, s)| recount.entry(*o, *s).is_none());
        let adrift = all.iter().filter(adrift).map(|m| m.by.clone()).collect();
        (all, adrift)
    }

    fn check_timeline(&self, i: usize, recount: &Recount) -> Verdict {
        let device = &self.devices[i];
        let me = user(device.user);
        let (shown, adrift) = self.shown(i, recount);
        holds!(adrift.is_empty() || self.lost, "no region holds {adrift:?}");
        let once: BTreeSet<_> = shown.iter().map(|m| &m.by).collect();
        holds!(once.len() == shown.len(), "something is shown twice: {shown:#?}");
        let bodies: Vec<_> = shown.iter().filter(|m| m.kind == 0 && !m.erased).map(|m| &m.body).collect();
        let different: BTreeSet<_> = bodies.iter().collect();
        holds!(different.len() == bodies.len(), "a body is shown twice: {bodies:?}");

        let own = Recount::of(self.disk(self.up()[0]), ConvId::own(SALT, &me));
        let told: BTreeMap<Identity, Told> = recount.messages().into_iter().map(|t| (t.by.clone(), t)).collect();
        for m in shown.iter().filter(|m| !adrift.contains(&m.by) && m.key.is_some()) {
            let told = &told[&m.by];
            let held = device.book.copies_of(m.id);
            let lowest = held.iter().filter_map(|(o, s)| recount.entry(*o, *s)).map(Entry::display_key).min();
            holds!(m.key == lowest, "{:?} stands at {:?}, its copies say {lowest:?}", m.by, m.key);
            // Who has left a group is told of no erasure after that, who has blocked its author of none of his while that
            // lasts: they keep what they had.
            let told_so = told.erasures.iter().any(|(o, s)| {
                let erasure = recount.entry(*o, *s).unwrap();
                recount.may_read(&me, *o, *s) && !own.keys().contains(&format!("block/{}", erasure.by.user))
            });
            holds!(m.erased || !told_so, "{:?} is to be erased and is not", m.by);
            holds!(!m.erased || told.may_be_erased, "{:?} is erased, and nobody wanted it", m.by);
            holds!(!m.erased || m.body.is_empty(), "{:?} is erased and has a body", m.by);
        }
        let keys: Vec<_> = shown.iter().filter_map(|m| m.key).collect();
        holds!(keys.windows(2).all(|k| k[0] < k[1]), "the order is not that of the keys: {keys:?}");
        let mut last = BTreeMap::new();
        for m in shown.iter().filter(|m| !adrift.contains(&m.by) && m.key.is_some()) {
            let before = last.insert((&m.by.user, &m.by.install), m.by.n);
            holds!(before.is_none_or(|n| n < m.by.n), "{:?} is shown after n = {before:?}", m.by);
        }

        let horizon = device.machine.horizon(recount.id);
        let known = device.book.image().conversations;
        let origins = known.get(&recount.id).map(|c| c.origins.clone()).unwrap_or_default();
        let by: BTreeMap<&Identity, &Message> = shown.iter().map(|m| (&m.by, m)).collect();
        for told in told.values().filter(|t| t.key.hlc >= horizon && (!t.only_sender || t.by.user == me)) {
            let readable = |(o, s): &&(Origin, Seq)| {
                recount.may_read(&me, *o, *s) && *s > origins.get(o).map_or(0, |state| state.floor)
            };
            let readable: Vec<_> = told.copies.iter().filter(readable).collect();
            let Some(m) = by.get(&told.by) else {
                holds!(readable.is_empty(), "{told:?} is not shown\n{}", self.vectors(i, recount.id));
                continue;
            };
            let held = device.book.copies_of(m.id);
            let lacks: Vec<_> = readable.iter().filter(|c| !held.contains(c)).collect();
            holds!(lacks.is_empty(), "copies of {told:?} are not held: {lacks:?}\n{}", self.vectors(i, recount.id));
        }
        Ok(())
    }

    fn vectors(&self, i: usize, id: ConvId) -> String {
        let known = self.devices[i].book.image().conversations;
        let Some(conversation) = known.get(&id) else { return format!("not known\n{}", self.states()) };
        format!("{:#?}\n{:?}\n{}", conversation.record, conversation.origins, self.states())
    }

    /// Members, roles, title; and whether this user has left.
    fn check_standing(&self, i: usize, recount: &Recount) -> Verdict {
        let machine = &self.devices[i].machine;
        let me = user(self.devices[i].user);
        let own = recount.id == ConvId::own(SALT, &me);
        if own {
            let blocked: BTreeSet<_> = machine.blocked().into_iter().map(|u| format!("block/{u}")).collect();
            let set = |k: &String| recount.cell(k).is_some_and(|v| !v.is_empty());
            let expected: BTreeSet<_> =
                recount.keys().into_iter().filter(|k| k.starts_with("block/") && set(k)).collect();
            holds!(blocked == expected, "blocks {blocked:?}, not {expected:?}");
            for c in machine.conversations() {
                let muted = recount.cell(&format!("mute/{}", c.id)).is_some_and(|v| !v.is_empty());
                holds!((machine.muted_until(c.id) > 0) == muted, "{:?} is muted: {muted}", c.id);
            }
        }
        if !recount.is_group() {
            return Ok(());
        }
        let record = machine.conversations().find(|c| c.id == recount.id).ok_or("the group is not known")?;
        holds!(
            record.has_left() != recount.is_present(&me),
            "has left: {}\n{}",
            record.has_left(),
            self.vectors(i, recount.id)
        );
        if !recount.is_present(&me) {
            return Ok(());
        }
        let group = machine.group(recount.id).ok_or("the group is none")?;
        let members: Vec<_> =
            group.members.iter().map(|m| (m.user.clone(), m.generation, m.role == Role::Admin)).collect();
        holds!(members == recount.present(), "members {members:?}, not {:?}", recount.present());
        holds!(group.title == recount.title(), "title {:?}, not {:?}", group.title, recount.title());
        Ok(())
    }

    /// Unread messages are those above the mark of whoever was never blocked; counted one by one.
    fn check_unread(&self, i: usize, recount: &Recount, recounts: &BTreeMap<ConvId, Recount>) -> Verdict {
        let device = &self.devices[i];
        let me = user(device.user);
        let (shown, adrift) = self.shown(i, recount);
        let flags = shown.iter().filter(|m| m.unread).count() as u64;
        let (number, exact) = device.machine.unread(recount.id, device.book.unread(recount.id));
        let known = device.book.image().conversations;
        let Some(record) = known.get(&recount.id) else { return Ok(()) };
        let whole = record.origins.values().all(|s| s.floor == 0);
        holds!(exact || !whole || adrift.len() + self.gone.len() > 0, "{number} unread, and that is not exact");
        let below = device.book.timeline(recount.id, 0, usize::MAX).len() - shown.len();
        holds!(!exact || below > 0 || number == flags, "{number} are unread, {flags} are shown so");
        let own = recounts.get(&ConvId::own(SALT, &me));
        let told: BTreeMap<Identity, Told> = recount.messages().into_iter().map(|t| (t.by.clone(), t)).collect();
        // A mark that names a fold says nothing of single logs.
        let folds = record.record.mark.keys().any(|of| recount.entries().iter().all(|e| e.place.origin != *of));
        for m in shown.iter().filter(|m| !folds && !adrift.contains(&m.by) && m.key.is_some()) {
            // What came while its sender was blocked is read, on the devices where it came then.
            if own.is_some_and(|log| log.keys().contains(&format!("block/{}", m.by.user))) {
                continue;
            }
            let read = |(o, s): &(Origin, Seq)| record.record.mark.get(o).is_some_and(|mark| s <= mark);
            let unread =
                counts(&told[&m.by]) && !m.erased && m.by.user != me && !device.book.copies_of(m.id).iter().any(read);
            holds!(m.unread == unread, "{:?} is unread: {}; mark {:?}", m.by, m.unread, record.record.mark);
        }
        Ok(())
    }

    /// Read marks are the same in all regions, and on this device. Not so where regions go down or links are cut: marks
    /// are told before they are durable, and before a region knows whose conversation they are of.
    fn check_marks(&self, i: usize, up: &[Region], recount: &Recount) -> Verdict {
        if !self.mix.calm {
            return Ok(());
        }
        let device = &self.devices[i];
        let me = user(device.user);
        let Some(record) = device.machine.conversations().find(|c| c.id == recount.id) else { return Ok(()) };
        for region in up {
            let row = self.disk(*region).rows.get(&(me.clone(), recount.id)).ok_or(format!("{region} has no row"))?;
            holds!(row.read == record.mark, "{region} has the mark {:?}, the device {:?}", row.read, record.mark);
            holds!(
                row.peer_read == record.peer_read,
                "{region} says that the other has read {:?}, the device {:?}",
                row.peer_read,
                record.peer_read
            );
            if let Some(peer) = record.peer.as_ref().filter(|p| **p != me) {
                let theirs = self.disk(*region).rows.get(&(peer.clone(), recount.id)).map(|r| r.read.clone());
                holds!(
                    theirs.clone().unwrap_or_default() == record.peer_read,
                    "{peer} has read {theirs:?} in {region}, the device says {:?}",
                    record.peer_read
                );
            }
        }
        Ok(())
    }

    /// All devices of a user show the same, as far as his present membership goes.
    fn check_same_user(&self, recounts: &BTreeMap<ConvId, Recount>) -> Verdict {
        for recount in recounts.values() {
            let mut first: BTreeMap<&str, (usize, Vec<Identity>)> = BTreeMap::new();
            for i in (0..self.devices.len()).filter(|i| !self.is_removed(*i, recounts)) {
                let me = user(self.devices[i].user);
                let (shown, _) = self.shown(i, recount);
                let plain: BTreeSet<Identity> = recount
                    .messages()
                    .into_iter()
                    .filter(|t| t.copies.iter().all(|(o, s)| recount.may_read(&me, *o, *s)))
                    .map(|t| t.by)
                    .collect();
                let adrift = |m: &Message| (0..self.devices.len()).any(|d| self.shown(d, recount).1.contains(&m.by));
                let mine = shown.iter().filter(|m| plain.contains(&m.by) && m.key.is_some());
                let mine: Vec<_> = mine.filter(|m| !self.lost || !adrift(m)).map(|m| m.by.clone()).collect();
                if !recount.users().contains(&me) {
                    holds!(shown.is_empty(), "{i} shows {shown:?} of a conversation that is not his");
                    continue;
                }
                match first.get(self.devices[i].user) {
                    None => {
                        first.insert(self.devices[i].user, (i, mine));
                    }
                    Some((other, theirs)) => {
                        holds!(*theirs == mine, "{other} shows {theirs:?}\nand {i} shows {mine:?} in {:?}", recount.id);
                    }
                }
            }
        }
        Ok(())
    }

    /// What was acked is there; what was refused for good is nowhere.
    fn check_lost(&self, recounts: &BTreeMap<ConvId, Recount>) -> Verdict {
        let held: BTreeSet<(ConvId, Identity)> =
            recounts.values().flat_map(|r| r.entries().iter().map(|e| (r.id, e.by.clone()))).collect();
        for (i, id, by) in &self.acked {
            // The outbox of a removed device is lost with it; an erased message is offered no more.
            let excused = self.lost && (self.is_removed(*i, recounts) || self.erasures(recounts.get(id)));
            holds!(excused || held.contains(&(*id, by.clone())), "{by:?} of {id:?} was acked to {i} and is lost");
        }
        for (id, by, kind) in &self.refused {
            holds!(
                !held.contains(&(*id, by.clone())),
                "{by:?} (kind {kind}) of {id:?} was refused, and others have it"
            );
        }
        if !self.mix.people {
            let texts: BTreeSet<_> =
                recounts.values().flat_map(|r| r.entries().iter().filter(|e| e.kind == 0).map(|e| &e.by)).collect();
            holds!(texts.len() as u64 == self.written, "{} were written, {} are held", self.written, texts.len());
        }
        Ok(())
    }

    fn erasures(&self, recount: Option<&Recount>) -> bool {
        recount.is_some_and(|r| r.entries().iter().any(|e| matches!(e.kind, 21 | 22)))
    }
}
