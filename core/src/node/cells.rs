//! What users' own logs decide at the server: who is blocked, which devices and tokens are not let in (R11).
//!
//! A user's own cells are entries of a log whose only member he is, so they are durable, ordered and in every
//! region as messages are. The node folds them; before it judges what could be blocked, or lets a device in, it
//! has the log in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::codes::{Code, Refusal};
use crate::edge_api::DownBody;
use crate::entry::Entry;
use crate::fold::{DEVICE_PREFIX, Fold, REVOKE_KEY, block_key, device_key, kick_key};
use crate::ids::{ConvId, InstallId, UserId};
use crate::kinds::CELL;
use crate::limits::DEVICES_PER_USER;
use crate::membership::{Membership, Role};
use crate::wire::compact::origin_heads_to_wire;
use crate::wire::v1;

use super::conversation::Job;
use super::user::Open;
use super::{ConnKey, Node, Now};

/// Own logs that are known to be empty, at most: 32 bytes each.
const EMPTY_LOGS: usize = 1_000_000;

impl Node {
    /// Which senders of a round are blocked by the other user of their direct conversation. `None`: there is no
    /// round to start yet; it starts once what is needed for it is in memory.
    pub(super) fn senders_blocked(&mut self, now: Now, id: ConvId) -> Option<BTreeSet<UserId>> {
        let conversation = self.conversations.get_mut(&id).filter(|c| c.is_ready())?;
        if conversation.state.fold.group().is_none() {
            for job in &conversation.queue {
                let Job::Send { user, send, .. } = job else { continue };
                let peer = conversation.state.fold.peer_of(user).or(send.peer.as_ref());
                let Some(peer) = peer.filter(|peer| *peer != user) else { continue };
                if !conversation.gates.contains_key(user) && conversation.gates.len() < 2 {
                    conversation.gates.insert(user.clone(), ConvId::own(&self.settings.direct_salt, peer));
                }
            }
        }
        let gates = conversation.gates.clone();
        let mut blocked = BTreeSet::new();
        let mut waits = false;
        for (user, own_log) in gates {
            if self.empty_logs.contains(&own_log) {
                continue;
            }
            let gate = self.conversation(own_log, now);
            if let Some(waiting) = gate.waiting() {
                waiting.gates.insert(id);
                waits = true;
            } else if is_blocked(&gate.state.fold, &user) {
                blocked.insert(user);
            } else {
                self.drop_if_empty(own_log);
            }
        }
        (!waits).then_some(blocked)
    }

    /// Whether a user's own log, as far as it is in memory, blocks another.
    pub(super) fn has_blocked(&self, user: &UserId, other: &UserId) -> bool {
        let own_log = ConvId::own(&self.settings.direct_salt, user);
        if self.empty_logs.contains(&own_log) {
            return false;
        }
        let log = self.conversations.get(&own_log);
        log.is_none_or(|log| log.is_loading() || is_blocked(&log.state.fold, other))
    }

    /// A connection whose token the edge has accepted: its user's own log may forbid it.
    pub(super) fn admit(&mut self, now: Now, open: Open) {
        let own_log = ConvId::own(&self.settings.direct_salt, &open.user);
        if !self.empty_logs.contains(&own_log) {
            if let Some(waiting) = self.conversation(own_log, now).waiting() {
                waiting.opens.push(open);
                return;
            }
            let key = open.key;
            let (Some(session), Some(log)) = (self.sessions.get(&key), self.conversations.get(&own_log)) else {
                return;
            };
            if let Err(refusal) =
                may_connect(&log.state.fold, &session.install, session.token_issued_ms, !open.is_operator())
            {
                self.sessions.remove(&key);
                return self.out.down(key, DownBody::Last(refusal));
            }
            self.drop_if_empty(own_log);
        }
        let user = open.user.clone();
        if let Some(waiting) = self.user(&user).waiting() {
            waiting.opens.push(open);
        } else {
            self.welcome(now, open);
        }
    }

    /// Of most users' own logs there is nothing to know; that takes less room than a conversation.
    pub(super) fn drop_if_empty(&mut self, own_log: ConvId) {
        let unused = |c: &super::Conversation| {
            c.state.heads.is_empty() && c.is_idle() && c.todo.is_empty() && c.watchers.is_empty()
        };
        if self.conversations.get(&own_log).is_some_and(unused) {
            self.conversations.remove(&own_log);
            if self.empty_logs.len() >= EMPTY_LOGS {
                self.empty_logs.clear(); // they are read again when they are needed
            }
            self.empty_logs.insert(own_log);
        }
    }

    /// Cells of a user's own log changed: connections that are not allowed any more end.
    pub(super) fn cells_changed(&mut self, now: Now, id: ConvId, entries: &[(Arc<Entry>, bool)]) {
        if !entries.iter().any(|(e, _)| e.kind == CELL) {
            return;
        }
        self.presence_log(now, id);
        let Some(log) = self.conversations.get(&id) else { return };
        let Some(owner) = log.state.fold.owner(&self.settings.direct_salt, id) else { return };
        let Some(user) = self.users.get(owner) else { return };
        let mut ended = Vec::new();
        for (key, device) in &user.devices {
            let issued = self.sessions.get(key).map_or(0, |s| s.token_issued_ms);
            if let Err(refusal) = may_connect(&log.state.fold, &device.install, issued, false) {
                ended.push((*key, refusal));
            }
        }
        for (key, refusal) in ended {
            self.out.down(key, DownBody::Last(refusal));
            self.close(now, key);
        }
    }

    /// Where the user's devices are connected.
    pub(super) fn devices(&mut self, now: Now, key: ConnKey, req: u32) {
        let Some(session) = self.sessions.get(&key) else { return };
        let device = |install: &InstallId, region: u8, name: &str| v1::Device {
            install: install.as_str().to_owned(),
            region: u32::from(region),
            region_name: name.to_owned(),
        };
        let known = self.users.get(&session.user);
        let own = known.into_iter().flat_map(|user| user.devices.values()).filter(|device| device.bound.is_some());
        let own: BTreeSet<&InstallId> = own.map(|device| &device.install).collect();
        let mut devices: Vec<v1::Device> =
            own.iter().map(|i| device(i, self.settings.region, &self.settings.region_name)).collect();
        // Routes of other nodes have but hashes of installs; each install has a cell that names it in the user's own log.
        let log = self.conversations.get(&ConvId::own(&self.settings.direct_salt, &session.user));
        let cells = log.into_iter().flat_map(|log| log.state.fold.cells(DEVICE_PREFIX));
        let named = cells.filter_map(|(key, ..)| InstallId::new(key.strip_prefix(DEVICE_PREFIX)?).ok());
        let installs = named.chain(own.into_iter().cloned());
        let names: BTreeMap<u64, InstallId> = installs.map(|i| (self.routes.key().install(&i), i)).collect();
        for elsewhere in self.routes.elsewhere(now.mono, &session.user) {
            let installs = elsewhere.binds.iter().filter_map(|bind| names.get(&bind.install));
            devices.extend(installs.map(|i| device(i, elsewhere.holder.region, "")));
        }
        self.out.frame(key, req, v1::frame::Body::Devices(v1::Devices { devices }));
    }

    /// What follows from all entries of a conversation, for a member.
    pub(super) fn pull_cells(&mut self, now: Now, key: ConnKey, req: u32, conversation: &Bytes) {
        let Some(id) = ConvId::from_slice(conversation) else { return };
        if let Some(waiting) = self.conversation(id, now).waiting() {
            waiting.cells.push((key, req));
        } else {
            self.answer_cells(key, req, id);
        }
    }

    pub(super) fn answer_cells(&mut self, key: ConnKey, req: u32, id: ConvId) {
        let (Some(session), Some(conversation)) = (self.sessions.get(&key), self.conversations.get(&id)) else {
            return;
        };
        let fold = &conversation.state.fold;
        if fold.reader(&session.user).is_none_or(|reader| reader.state() == crate::buckets::LEFT) {
            let refusal =
                Refusal::new(Code::NotMember, "not in this conversation, or this region does not know it yet");
            return self.out.refuse(key, req, &refusal);
        }
        let members = fold.group().into_iter().flat_map(Membership::users).filter(|(_, m)| m.is_present());
        let cells = v1::Cells {
            conversation: Bytes::copy_from_slice(&id.0),
            members: members
                .map(|(user, m)| v1::MemberState {
                    user: user.as_str().to_owned(),
                    role: u32::from(m.role() == Role::Admin),
                    generation: m.generation,
                })
                .collect(),
            members_add: fold.group().is_some_and(Membership::members_add),
            cells: fold
                .cells("")
                .map(|(key, at, value)| v1::FoldedCell {
                    key: key.to_owned(),
                    value: value.clone(),
                    at: Some(at.into()),
                })
                .collect(),
            upto: origin_heads_to_wire(&conversation.published),
        };
        self.out.frame(key, req, v1::frame::Body::Cells(cells));
    }
}

fn is_blocked(receivers: &Fold, sender: &UserId) -> bool {
    let cell = receivers.cell(&block_key(sender));
    cell.and_then(|value| v1::BlockCell::decode(value.clone()).ok()).is_some_and(|cell| cell.blocked)
}

/// Whether the cells of a user's own log let an install in.
fn may_connect(cells: &Fold, install: &InstallId, token_issued_ms: u64, connecting: bool) -> Result<(), Refusal> {
    if let Some(value) = cells.cell(&kick_key(install)) {
        let reason = v1::KickCell::decode(value.clone()).map(|cell| cell.reason).unwrap_or_default();
        return Err(Refusal::new(Code::Kicked, format!("this device was removed by its user: {reason}")));
    }
    let revoke = cells.cell(REVOKE_KEY).and_then(|value| v1::RevokeCell::decode(value.clone()).ok());
    if revoke.is_some_and(|revoke| token_issued_ms < revoke.before_ms) {
        return Err(Refusal::new(Code::TokenRevoked, "the user's older tokens were revoked: get a new one"));
    }
    if connecting && cells.cell(&device_key(install)).is_none() {
        let names = cells.cells("device/").map(|(key, _, _)| key.trim_start_matches("device/"));
        let others: Vec<&str> = names
            .filter(|name| cells.cells("kick/").all(|(key, _, _)| key.trim_start_matches("kick/") != *name))
            .collect();
        if others.len() >= DEVICES_PER_USER {
            let text = format!("this user has {DEVICES_PER_USER} devices, which is all that are allowed; remove one");
            return Err(Refusal::new(Code::TooManyDevices, text));
        }
    }
    Ok(())
}
