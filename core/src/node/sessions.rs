//! What clients ask, through their edges.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::codes::{Code, Refusal};
use crate::edge_api::{DownBody, Page, Up};
use crate::entry::Entry;
use crate::ids::{ConvId, Cursor, Origin, Rev, Seq, UserId};
use crate::limits::{
    BODY_BYTES, CURSORS, DEVICES_PER_USER, FRAME_BYTES, IN_FLIGHT, PAGE_BYTES, PREVIEW_ROWS, PULL_BYTES, PULL_ENTRIES,
    ROWS_PER_PAGE,
};
use crate::store::{Range, RowRecord};
use crate::wire::compact::Table;
use crate::wire::{VERSION, convert, v1};

use super::routes::Bind;
use super::user::{Device, Open, User};
use super::{ConnKey, EdgeId, Node, Now, Session, Ticket};

/// Newest entries of a row that ride with it, where they are in memory.
const INLINE_ENTRIES: usize = 3;
/// Bytes of bodies that may ride with rows in one frame.
const INLINE_BYTES: usize = 16 * 1024;

/// A pull under way.
#[derive(Clone, Debug)]
pub(super) struct Pull {
    key: ConnKey,
    req: u32,
    conversation: ConvId,
    origin: Origin,
    from: Seq,
    to: Seq,
    left: usize,
    left_bytes: usize,
    backwards: bool,
    /// Beyond what is held here, told with the last page.
    gap: Option<(Seq, Seq, v1::gap::Reason)>,
}

impl Node {
    /// What connections of an edge said, in order.
    pub fn ups(&mut self, now: Now, edge: EdgeId, ups: Vec<Up>) {
        for up in ups {
            let key = ConnKey { edge, conn: up.conn() };
            match up {
                Up::Open { req, user, install, hello, address, token_expires_ms, .. } => {
                    self.open(now, Open { key, req, user, hello, address, token_expires_ms }, install);
                }
                Up::Send { req, send, .. } => self.send(now, key, req, send),
                Up::Frame { frame, .. } => self.frame(now, key, frame),
                Up::Close { .. } => self.close(now, key),
            }
        }
        self.start_rounds(now);
    }

    /// An edge is gone, and with it all its connections.
    pub fn edge_down(&mut self, now: Now, edge: EdgeId) {
        let first = ConnKey { edge, conn: 0 };
        let last = ConnKey { edge, conn: u64::MAX };
        let keys: Vec<ConnKey> = self.sessions.range(first..=last).map(|(key, _)| *key).collect();
        for key in keys {
            self.close(now, key);
        }
        self.out.downs.remove(&edge);
    }

    fn open(&mut self, now: Now, open: Open, install: crate::ids::InstallId) {
        let key = open.key;
        let refuse = |code, text: &str| DownBody::Last(Refusal::new(code, text));
        if self.draining {
            return self.out.down(key, refuse(Code::Draining, "this region is about to stop"));
        }
        if open.hello.cursors.len() > CURSORS {
            return self.out.down(key, refuse(Code::BadFrame, "more cursors than regions"));
        }
        let user = open.user.clone();
        let session = Session { user, install, acked: BTreeMap::new(), watching: BTreeSet::new() };
        self.sessions.insert(key, session);
        let user_id = open.user.clone();
        if let Some(waiting) = self.user(&user_id).waiting() {
            waiting.opens.push(open);
        } else {
            self.welcome(now, open);
        }
    }

    /// Answers a Hello: one round trip connects and tells what changed.
    pub(super) fn welcome(&mut self, now: Now, open: Open) {
        let Open { key, req, user: id, hello, address, token_expires_ms } = open;
        let Some(install) = self.sessions.get(&key).map(|s| s.install.clone()) else { return };
        let Some(user) = self.users.get(&id) else { return };
        let others = user.devices.values().filter(|d| d.bound.is_some() && d.install != install);
        if others.map(|d| &d.install).collect::<BTreeSet<_>>().len() >= DEVICES_PER_USER {
            let text = format!("this user has {DEVICES_PER_USER} devices connected, which is all that are allowed");
            self.sessions.remove(&key);
            return self.out.down(key, DownBody::Last(Refusal::new(Code::TooManyDevices, text)));
        }
        let given = hello
            .cursors
            .iter()
            .filter_map(|c| Cursor::try_from(*c).ok())
            .filter(|c| c.store.region == self.settings.region)
            .max_by_key(|c| (c.store == self.settings.origin, c.rev));
        let (base, reset) = self.check_cursor(user, given);
        let rows = match base {
            Some(base) => self.rows_above(user, Some(base), ROWS_PER_PAGE),
            None => self.rows_preview(user),
        };
        let rows = v1::Rows { reset: reset as i32, ..rows };
        let rev = user.rev();
        let welcome = v1::Welcome {
            version: VERSION,
            cursor: Some(Cursor { store: self.settings.origin, rev }.into()),
            session: key.edge << 32 | key.conn & 0xffff_ffff,
            heartbeat: Some(self.settings.heartbeat),
            limits: Some(wire_limits()),
            seen_address: address,
            wall_ms: now.wall_ms,
            direct_salt: Bytes::copy_from_slice(&self.settings.direct_salt),
            rows: Some(rows),
            region: self.settings.region_name.clone(),
            edge: String::new(),
            token_expires_ms,
        };
        if let Some(user) = self.users.get_mut(&id) {
            let device = Device {
                install,
                bound: None,
                welcomed: rev,
                pushed: Rev::default(),
                acked: Rev::default(),
                remind_at: None,
            };
            user.devices.insert(key, Box::new(device));
        }
        self.out.frame(key, req, v1::frame::Body::Welcome(welcome));
        self.unstable(now, key, hello.unstable);
    }

    /// Whether a cursor is one that this store's owner can have issued (R7).
    fn check_cursor(&self, user: &User, given: Option<Cursor>) -> (Option<Rev>, v1::CursorReset) {
        match given {
            None => (None, v1::CursorReset::None),
            Some(c) if c.store != self.settings.origin => (None, v1::CursorReset::OtherEra),
            Some(c) if !user.may_have_issued(c.rev) => (None, v1::CursorReset::FromTheFuture),
            Some(c) => (Some(c.rev), v1::CursorReset::None),
        }
    }

    fn rows_above(&self, user: &User, base: Option<Rev>, limit: usize) -> v1::Rows {
        let (page, last) = user.above(base.unwrap_or_default(), limit);
        let upto = match page.last() {
            Some((_, row)) if !last => row.rev,
            _ => user.rev().max(base.unwrap_or_default()),
        };
        let cursor = |rev| Cursor { store: self.settings.origin, rev }.into();
        v1::Rows { base: base.map(cursor), upto: Some(cursor(upto)), last, ..self.rows(&page) }
    }

    fn rows_preview(&self, user: &User) -> v1::Rows {
        let page = user.preview(PREVIEW_ROWS);
        let upto = Cursor { store: self.settings.origin, rev: user.rev() };
        v1::Rows { preview: true, upto: Some(upto.into()), ..self.rows(&page) }
    }

    fn rows(&self, page: &[(ConvId, &RowRecord)]) -> v1::Rows {
        let mut table = Table::default();
        let mut inline_bytes = 0;
        let rows = page
            .iter()
            .map(|(id, row)| {
                let conversation = self.conversations.get(id).filter(|c| !c.is_loading());
                let newest = conversation.into_iter().flat_map(|c| c.state.newest());
                let inline = newest
                    .filter(|e| row.heads.get(&e.place.origin).is_some_and(|head| e.place.seq <= *head))
                    .take(INLINE_ENTRIES)
                    .take_while(|e| {
                        inline_bytes += e.body.len() + 64;
                        inline_bytes <= INLINE_BYTES
                    })
                    .map(|e| table.entry(e))
                    .collect();
                v1::Row {
                    conversation: Bytes::copy_from_slice(&id.0),
                    rev: row.rev.0,
                    heads: table.heads(&row.heads),
                    read: table.heads(&row.read),
                    state: row.state,
                    generation: row.generation,
                    peer: row.peer.as_ref().map_or_else(String::new, |p| p.as_str().to_owned()),
                    unread: u32::try_from(row.counted).unwrap_or(u32::MAX),
                    unread_exact: false,
                    inline,
                    last_hlc: row.last_hlc,
                    from: table.heads(&row.from),
                    peer_read: table.heads(&row.peer_read),
                }
            })
            .collect();
        v1::Rows { rows, origins: table.wire_origins, senders: table.wire_senders, ..v1::Rows::default() }
    }

    fn frame(&mut self, now: Now, key: ConnKey, frame: v1::Frame) {
        use v1::frame::Body;
        let Some(session) = self.sessions.get(&key) else { return };
        let req = frame.req;
        match frame.body {
            Some(Body::Commit(commit)) => self.bind(now, key, commit.order),
            Some(Body::Ping(ping)) => {
                let rev = self.users.get(&session.user).map(User::rev);
                let pong = v1::Pong {
                    echo: ping.echo,
                    rev: rev.unwrap_or_default().0,
                    rev_unknown: rev.is_none(),
                    seen_address: String::new(),
                };
                self.out.frame(key, req, Body::Pong(pong));
            }
            Some(Body::PushAck(ack)) => self.push_acked(key, Rev(ack.rev)),
            Some(Body::PullRows(pull)) => {
                let Some(user) = self.users.get(&session.user) else { return };
                let given = pull.above.and_then(|c| Cursor::try_from(c).ok());
                let (base, reset) = self.check_cursor(user, given);
                let limit = match pull.limit as usize {
                    0 => ROWS_PER_PAGE,
                    limit => limit.min(ROWS_PER_PAGE),
                };
                let rows = self.rows_above(user, base, limit);
                self.out.frame(key, req, Body::Rows(v1::Rows { reset: reset as i32, ..rows }));
            }
            Some(Body::Pull(pull)) => {
                let Some(id) = ConvId::from_slice(&pull.conversation) else {
                    let refusal = Refusal::new(Code::BadId, "a conversation id has 16 bytes");
                    return self.out.refuse(key, req, &refusal);
                };
                if let Some(waiting) = self.conversation(id, now).waiting() {
                    waiting.pulls.push((key, req, pull));
                } else {
                    self.pull(now, key, req, pull);
                }
            }
            Some(Body::Unstable(unstable)) => self.unstable(now, key, unstable.logs),
            Some(Body::Network(_) | Body::Signal(_)) => {}
            _ if req != 0 => {
                let refusal = Refusal::new(Code::WrongMoment, "this region does not answer such a frame");
                self.out.refuse(key, req, &refusal);
            }
            _ => {}
        }
    }

    /// The client uses this connection: older ones of its install end, and it is pushed to.
    fn bind(&mut self, now: Now, key: ConnKey, order: u64) {
        let Some(session) = self.sessions.get(&key) else { return };
        let (id, install) = (session.user.clone(), session.install.clone());
        let Some(user) = self.users.get_mut(&id) else { return };
        let rev = user.rev();
        let bind = Bind { hlc: Self::bind_stamp(now), order, ..Bind::default() };
        let others = user.devices.iter().filter(|(k, d)| **k != key && d.install == install);
        let others: Vec<(ConnKey, Bind)> = others.filter_map(|(k, d)| Some((*k, d.bound?))).collect();
        let Some(device) = user.devices.get_mut(&key).filter(|d| d.bound.is_none()) else { return };
        // A Commit that was long on its way must not end the connection that the client uses since.
        let late = |other: &Bind| order != 0 && other.order > order;
        if others.iter().any(|(_, other)| late(other)) {
            let refusal = Refusal::new(Code::Replaced, "a newer connection of this install is in use");
            self.out.down(key, DownBody::Last(refusal));
            return self.close(now, key);
        }
        device.bound = Some(bind);
        if rev > device.welcomed {
            self.out.frame(key, 0, v1::frame::Body::Advance(v1::Advance { rev: rev.0 }));
        }
        for (old, _) in others {
            let refusal = Refusal::new(Code::Replaced, "a newer connection of this install took over");
            self.out.down(old, DownBody::Last(refusal));
            self.close(now, old);
        }
        self.routes.bind(&id, &install, bind.hlc, order);
        self.route_changed(now);
    }

    fn close(&mut self, now: Now, key: ConnKey) {
        let Some(session) = self.sessions.remove(&key) else { return };
        let id: UserId = session.user;
        let Some(device) = self.users.get_mut(&id).and_then(|u| u.devices.remove(&key)) else { return };
        if let Some(at) = device.remind_at {
            self.owing.remove(&(at, id.clone(), key));
        }
        if device.bound.is_some() {
            self.routes.unbind(&id, &session.install);
            self.route_changed(now);
        }
        for conversation in &session.watching {
            if let Some(c) = self.conversations.get_mut(conversation) {
                c.watchers.remove(&key);
            }
        }
    }

    pub(super) fn pull(&mut self, now: Now, key: ConnKey, req: u32, pull: v1::PullEntries) {
        let Some(session) = self.sessions.get(&key) else { return };
        let Some(id) = ConvId::from_slice(&pull.conversation) else { return };
        let Some(conversation) = self.conversations.get(&id) else { return };
        if !conversation.state.is_member(&session.user) {
            let refusal =
                Refusal::new(Code::NotMember, "not in this conversation, or this region does not know it yet");
            return self.out.refuse(key, req, &refusal);
        }
        let origin = match convert::origin(pull.origin) {
            Ok(origin) if pull.from >= 1 && pull.to >= pull.from => origin,
            Ok(_) => {
                return self.out.refuse(
                    key,
                    req,
                    &Refusal::new(Code::BadFrame, "a range that is none: 1 <= from <= to"),
                );
            }
            Err(refusal) => return self.out.refuse(key, req, &refusal),
        };
        let limit = match pull.limit as usize {
            0 => PULL_ENTRIES,
            limit => limit.min(PULL_ENTRIES),
        };
        let head = conversation.head(origin);
        let mut gap = (pull.to > head).then_some((pull.from.max(head + 1), pull.to, v1::gap::Reason::NotHere));
        let mut to = pull.to.min(head);
        if conversation.damaged.contains_key(&origin) {
            gap = Some((pull.from, pull.to, v1::gap::Reason::Damaged));
            to = 0;
        }
        let pull = Pull {
            key,
            req,
            conversation: id,
            origin,
            from: pull.from,
            to,
            left: limit,
            left_bytes: PULL_BYTES,
            backwards: pull.backwards,
            gap,
        };
        self.next_page(now, pull);
    }

    fn next_page(&mut self, _now: Now, pull: Pull) {
        if pull.from > pull.to || pull.left == 0 {
            let gaps = pull.gap.filter(|_| pull.from > pull.to).into_iter().collect();
            let page =
                Page { conversation: pull.conversation, origin: pull.origin, entries: Vec::new(), gaps, last: true };
            return self.out.down(pull.key, DownBody::Page { req: pull.req, page });
        }
        let range = Range {
            conversation: pull.conversation,
            origin: pull.origin,
            from: pull.from,
            to: pull.to,
            max_entries: pull.left,
            max_bytes: PAGE_BYTES,
            backwards: pull.backwards,
        };
        self.want_range(Ticket::Pull(pull), range);
    }

    pub(super) fn pull_read(&mut self, now: Now, mut pull: Pull, entries: Result<Vec<Arc<Entry>>, String>) {
        if !self.sessions.contains_key(&pull.key) {
            return;
        }
        let entries = match entries {
            Ok(entries) => entries,
            Err(what) => {
                let refusal = Refusal::new(Code::Internal, format!("the log could not be read: {what}"));
                return self.out.refuse(pull.key, pull.req, &refusal);
            }
        };
        let Some((first, last)) = entries.first().zip(entries.last()).map(|(f, l)| (f.place.seq, l.place.seq)) else {
            // Decided entries that the store does not return: damage that was found while reading.
            pull.gap = Some((pull.from, pull.to, v1::gap::Reason::Damaged));
            pull.to = 0;
            return self.next_page(now, pull);
        };
        pull.left = pull.left.saturating_sub(entries.len());
        pull.left_bytes = pull.left_bytes.saturating_sub(entries.iter().map(|e| e.body.len()).sum());
        if pull.left_bytes == 0 {
            pull.left = 0;
        }
        if pull.backwards {
            pull.to = first.min(last) - 1;
        } else {
            pull.from = first.max(last) + 1;
        }
        let done = pull.from > pull.to || pull.left == 0;
        let gaps = pull.gap.filter(|_| pull.from > pull.to).into_iter().collect();
        let page = Page { conversation: pull.conversation, origin: pull.origin, entries, gaps, last: done };
        self.out.down(pull.key, DownBody::Page { req: pull.req, page });
        if !done {
            self.next_page(now, pull);
        }
    }
}

fn wire_limits() -> v1::Limits {
    let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    v1::Limits {
        body_bytes: clamp(BODY_BYTES),
        frame_bytes: clamp(FRAME_BYTES),
        pull_entries: clamp(PULL_ENTRIES),
        in_flight: clamp(IN_FLIGHT),
    }
}
