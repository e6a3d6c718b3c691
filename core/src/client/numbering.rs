//! Identities of own messages (R3): install ids, numbers, and ids of direct conversations.

use bytes::Bytes;
use rand::Rng;

use super::data::Op;
use super::effects::Event;
use super::machine::Machine;
use crate::ids::{ConvId, InstallId};

impl Machine {
    /// Whether a new message gets its number at once, as it must where it can: a device brought back from a
    /// backup would otherwise give a second identity to a message that was sent since. It can, unless a
    /// conflict before it is still open: what is renumbered then stands before it.
    pub(super) fn may_number(&self, id: ConvId) -> bool {
        let Some(conv) = self.convs.get(&id) else { return false };
        conv.outbox.queue.values().all(|o| o.is_failed() || (o.out.record.n > 0 && !o.conflicted))
    }

    /// The next number of the current install in a conversation.
    pub(super) fn next_n(&mut self, id: ConvId) -> u64 {
        let conv = self.conv(id);
        let n = conv.record.next_n;
        conv.record.next_n += 1;
        self.dirty_convs.insert(id);
        n
    }

    /// Gives new identities to what conflicted and numbers to what waited for that, in order, once nothing that
    /// was transmitted is open.
    pub(super) fn number(&mut self, id: ConvId) {
        let Some(conv) = self.convs.get(&id) else { return };
        let anew = conv.outbox.to_identify_anew();
        let queue = &conv.outbox.queue;
        let open = anew.is_empty() && queue.values().any(|o| o.conflicted);
        if open || (anew.is_empty() && queue.values().all(|o| o.out.record.n > 0)) {
            return;
        }
        let all: Vec<_> =
            queue.iter().filter(|(id, o)| o.out.record.n == 0 || anew.contains(id)).map(|(id, _)| *id).collect();
        for message in all {
            let n = self.next_n(id);
            let install = self.install.clone();
            if let Some(own) = self.conv(id).outbox.queue.get_mut(&message) {
                own.out.record.install = install;
                own.out.record.n = n;
                own.out.record.tried.clear();
                own.transmitted = false;
                own.conflicted = false;
                let record = own.out.record.clone();
                self.ops.push(Op::Outgoing(record));
            }
        }
    }

    /// The deployment's salt came with a Welcome: conversations get their ids, and messages their numbers.
    pub(super) fn learn_salt(&mut self, salt: Bytes) {
        if salt.is_empty() || self.salt.as_ref() == Some(&salt) {
            return;
        }
        if self.salt.is_some() {
            tracing::warn!("the deployment's salt has changed: direct conversations of before keep their old ids");
        }
        let without = self.salt.is_none();
        self.ops.push(Op::Salt(salt.clone()));
        self.salt = Some(salt);
        if !without {
            return;
        }
        let provisional: Vec<_> =
            self.convs.values().filter_map(|c| c.record.peer.clone().map(|p| (c.record.id, p))).collect();
        for (from, peer) in provisional {
            let own = from == ConvId::own(&[], &self.setup.user);
            let to = if own { self.own_log() } else { self.direct_id(&peer) };
            if from == to {
                continue;
            }
            let Some(mut conv) = self.convs.remove(&from) else { continue };
            conv.record.id = to;
            for own in conv.outbox.queue.values_mut() {
                own.out.record.conversation = to;
            }
            self.convs.insert(to, conv);
            self.dirty_convs.remove(&from);
            self.dirty_convs.insert(to);
            if self.sending.remove(&from) {
                self.sending.insert(to);
            }
            self.ops.push(Op::Rename { from, to });
            self.event(Event::Renamed { from, to });
        }
    }

    /// The install id that the next connection says Hello with: messages can be sent only under the id of
    /// their connection, so those of an earlier id go first.
    pub(super) fn wanted_install(&self) -> InstallId {
        let older = |id: &InstallId| *id != self.install;
        let un_acked = self.sending.iter().filter_map(|c| self.convs.get(c)).flat_map(|c| c.outbox.queue.values());
        let un_acked =
            un_acked.filter(|o| !o.is_failed() && !o.conflicted && o.out.record.n > 0).map(|o| &o.out.record.install);
        let offers = self.unstable.iter().filter_map(|c| self.convs.get(c)).flat_map(|c| {
            c.outbox.offers.iter().filter_map(|id| c.outbox.unstable.get(id)).map(|o| &o.out.record.install)
        });
        un_acked.chain(offers).find(|i| older(i)).unwrap_or(&self.install).clone()
    }

    /// New messages are counted under a new id from here on.
    pub(super) fn draw_install(&mut self) {
        let text = format!("{:016x}{:016x}", self.rng.random::<u64>(), self.rng.random::<u64>());
        // 32 hexadecimal digits are an id; keep the old one rather than fail if that ever changed.
        let Ok(install) = InstallId::new(&text) else { return };
        self.install = install.clone();
        for (id, conv) in &mut self.convs {
            if conv.record.next_n != 1 {
                conv.record.next_n = 1;
                self.dirty_convs.insert(*id);
            }
        }
        self.ops.push(Op::Install { install, fresh: true });
    }
}
