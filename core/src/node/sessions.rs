//! What clients ask, through their edges.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::buckets;
use crate::codes::{Code, Refusal};
use crate::edge_api::{DownBody, Page, Up};
use crate::entry::Entry;
use crate::ids::{ConvId, Cursor, Origin, Rev, Seq, UserId};
use crate::limits::{
    BODY_BYTES, CURSORS, DEVICES_PER_USER, FRAME_BYTES, IN_FLIGHT, PAGE_BYTES, PREVIEW_ROWS, PULL_BYTES, PULL_ENTRIES,
    ROWS_PER_PAGE,
};
use crate::mutants::{Mutant, on};
use crate::mutated;
use crate::router::conversation_of;
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
/// When to ask again for entries that lie in an archive that can't be read.
const ARCHIVE_RETRY_MS: u32 = 5_000;

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
    /// What is not held here or not for this user, told with the last page.
    gaps: Vec<(Seq, Seq, v1::gap::Reason)>,
}

/// Whether it is for a node that stays: what has an answer, and what is remembered. A Ping is answered, for it must not
/// wait.
fn begins(up: &Up) -> bool {
    use v1::frame::Body;
    match up {
        Up::Open { .. } | Up::Resume { .. } | Up::Send { .. } => true,
        Up::Frame { frame, .. } => match &frame.body {
            Some(Body::Ping(_)) => false,
            Some(Body::Commit(_) | Body::Unstable(_) | Body::Watch(_)) => true,
            _ => frame.req != 0,
        },
        Up::Attach { .. } | Up::Close { .. } => false,
    }
}

impl Node {
    /// What connections of an edge said, in order.
    pub fn ups(&mut self, now: Now, edge: EdgeId, ups: Vec<Up>) {
        for up in ups {
            let key = ConnKey { edge, conn: up.conn() };
            let Some(up) = self.is_for_us(key, up) else { continue };
            if self.draining && self.keeping.contains(&edge) && begins(&up) {
                self.out.bounced.entry(edge).or_default().push(up);
                continue;
            }
            match up {
                Up::Open {
                    req, user, install, hello, address, transport, token_expires_ms, token_issued_ms, ..
                } => {
                    let open = Open { key, req, user, hello, address, token_expires_ms, transport };
                    self.open(now, open, install, token_issued_ms);
                }
                Up::Attach { user, install, token_issued_ms, .. } => {
                    self.sessions.entry(key).or_insert_with(|| Session::new(user, install, token_issued_ms));
                }
                Up::Resume { user, install, token_issued_ms, order, .. } => {
                    self.resume(now, key, Session::new(user, install, token_issued_ms), order);
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

    fn open(&mut self, now: Now, open: Open, install: crate::ids::InstallId, token_issued_ms: u64) {
        let key = open.key;
        let refuse = |code, text: &str| DownBody::Last(Refusal::new(code, text));
        if self.draining {
            return self.out.down(key, refuse(Code::Draining, "this region is about to stop"));
        }
        if self.refill.is_closed() {
            let text = "this region was restored from a backup and is taking over what it missed";
            return self.out.down(key, refuse(Code::Refilling, text));
        }
        if open.hello.cursors.len() > CURSORS {
            return self.out.down(key, refuse(Code::BadFrame, "more cursors than regions"));
        }
        let user = open.user.clone();
        self.sessions.insert(key, Session::new(user, install, token_issued_ms));
        self.admit(now, open);
    }

    /// A connection that is in use comes with its user's slot: what this node can't know of it, its row tells.
    fn resume(&mut self, now: Now, key: ConnKey, session: Session, order: u64) {
        let user = session.user.clone();
        self.sessions.insert(key, session);
        if let Some(waiting) = self.user(&user).waiting() {
            waiting.resumed.push((key, order));
        } else {
            self.resumed(now, key, order);
        }
    }

    pub(super) fn resumed(&mut self, now: Now, key: ConnKey, order: u64) {
        let Some(session) = self.sessions.get(&key) else { return };
        let (id, install) = (session.user.clone(), session.install.clone());
        let Some(user) = self.users.get_mut(&id) else { return };
        // Older than any revision: it is told where the user stands, and pulls if that is above what it has.
        user.devices.insert(key, Box::new(Device::new(install, Rev::default())));
        self.bind(now, key, order);
    }

    /// Answers a Hello: one round trip connects and tells what changed.
    pub(super) fn welcome(&mut self, now: Now, open: Open) {
        let operator = open.is_operator();
        let Open { key, req, user: id, hello, address, token_expires_ms, transport: _ } = open;
        let Some(install) = self.sessions.get(&key).map(|s| s.install.clone()) else { return };
        let Some(user) = self.users.get(&id) else { return };
        let others = user.devices.values().filter(|d| d.bound.is_some() && d.install != install);
        if !operator && others.map(|d| &d.install).collect::<BTreeSet<_>>().len() >= DEVICES_PER_USER {
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
            Some(base) => self.rows_above(&id, user, Some(base), ROWS_PER_PAGE),
            // The client will compare what it knows from other regions.
            None if hello.compare => v1::Rows::default(),
            None => self.rows_preview(&id, user),
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
            // The edge's to say.
            spread_ms: 0,
        };
        if let Some(user) = self.users.get_mut(&id) {
            user.devices.insert(key, Box::new(Device::new(install, rev)));
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

    fn rows_above(&self, id: &UserId, user: &User, base: Option<Rev>, limit: usize) -> v1::Rows {
        let (page, last) = user.above(base.unwrap_or_default(), limit);
        let upto = match page.last() {
            Some((_, row)) if !last => row.rev,
            _ => user.rev().max(base.unwrap_or_default()),
        };
        let cursor = |rev| Cursor { store: self.settings.origin, rev }.into();
        v1::Rows { base: base.map(cursor), upto: Some(cursor(upto)), last, ..self.rows(id, &page) }
    }

    fn rows_preview(&self, id: &UserId, user: &User) -> v1::Rows {
        let page = user.preview(PREVIEW_ROWS);
        let upto = Cursor { store: self.settings.origin, rev: user.rev() };
        v1::Rows { preview: true, upto: Some(upto.into()), ..self.rows(id, &page) }
    }

    fn rows(&self, user: &UserId, page: &[(ConvId, &RowRecord)]) -> v1::Rows {
        let mut table = Table::default();
        let mut inline_bytes = 0;
        let rows = page
            .iter()
            .map(|(id, row)| {
                let conversation = self.conversations.get(id).filter(|c| !c.is_loading());
                let reader = conversation.and_then(|c| c.state.fold.reader(user));
                let may_read = |e: &Entry| {
                    reader.is_some_and(|r| r.may_read(e.place.origin, e.place.seq))
                        && (!e.only_sender || e.by.user == *user)
                };
                let newest = conversation.into_iter().flat_map(|c| c.state.newest());
                let unread = unread_at_most(row);
                let inline = newest
                    .filter(|e| may_read(e))
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
                    unread: u32::try_from(unread).unwrap_or(u32::MAX),
                    unread_exact: unread == 0,
                    inline,
                    last_hlc: row.last_hlc,
                    from: table.heads(&row.from),
                    peer_read: table.heads(&row.peer_read),
                }
            })
            .collect();
        v1::Rows { rows, origins: table.wire_origins, senders: table.wire_senders, ..v1::Rows::default() }
    }

    pub(super) fn frame(&mut self, now: Now, key: ConnKey, frame: v1::Frame) {
        use v1::frame::Body;
        let Some(session) = self.sessions.get(&key) else { return };
        let req = frame.req;
        // Where slots move, a connection may be here before its user's rows are.
        if frame.body.as_ref().is_some_and(|body| conversation_of(body).is_none()) {
            let user = session.user.clone();
            if let Some(waiting) = self.user(&user).waiting() {
                return waiting.frames.push((key, frame));
            }
        }
        let Some(session) = self.sessions.get(&key) else { return };
        match frame.body {
            Some(Body::Commit(commit)) => self.bind(now, key, commit.order),
            Some(Body::Ping(ping)) => self.ping(now, key, req, &ping),
            Some(Body::PushAck(ack)) => self.push_acked(key, Rev(ack.rev)),
            Some(Body::PullRows(pull)) => {
                let Some(user) = self.users.get(&session.user) else { return };
                let given = pull.above.and_then(|c| Cursor::try_from(c).ok());
                let (base, reset) = self.check_cursor(user, given);
                let limit = match pull.limit as usize {
                    0 => ROWS_PER_PAGE,
                    limit => limit.min(ROWS_PER_PAGE),
                };
                let rows = self.rows_above(&session.user, user, base, limit);
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
            Some(Body::RowHashes(hashes)) => self.compare_rows(key, req, &hashes),
            Some(Body::PullCells(pull)) => self.pull_cells(now, key, req, &pull.conversation),
            Some(Body::PullEras(pull)) => self.pull_eras(now, key, req, &pull),
            Some(Body::Mark(mark)) => self.mark(now, key, req, mark),
            Some(Body::PullDevices(_)) => self.devices(now, key, req),
            Some(Body::Unstable(unstable)) => self.unstable(now, key, unstable.logs),
            Some(Body::Signal(signal)) => self.signal(now, key, signal),
            Some(Body::Watch(watch)) => self.watch_users(now, key, &watch),
            Some(Body::Network(_)) => {}
            _ if req != 0 => {
                let refusal = Refusal::new(Code::WrongMoment, "this region does not answer such a frame");
                self.out.refuse(key, req, &refusal);
            }
            _ => {}
        }
    }

    /// Rows of all buckets that differ from the client's (R8), as many as fit one part.
    fn compare_rows(&mut self, key: ConnKey, req: u32, hashes: &v1::RowHashes) {
        let Some(session) = self.sessions.get(&key) else { return };
        let Some(user) = self.users.get(&session.user) else { return };
        let (total, first) = (hashes.total as usize, hashes.first_bucket as usize);
        // Parts of one comparison have one cursor: what changed since the first part is above it.
        let at = match hashes.at.and_then(|at| Cursor::try_from(at).ok()).filter(|_| first > 0) {
            Some(at) if at.store == self.settings.origin && user.may_have_issued(at.rev) => at,
            Some(_) => {
                let refusal = Refusal::new(Code::BadFrame, "a comparison that began at another store: begin anew");
                return self.out.refuse(key, req, &refusal);
            }
            None => Cursor { store: self.settings.origin, rev: user.rev() },
        };
        let own = buckets::sums(user.all().map(|(id, row)| view(id, row)), total);
        let differs = |bucket: usize| hashes.buckets.get(bucket.wrapping_sub(first)) != own.get(bucket);
        let differs = |bucket: usize| differs(bucket) && !on(Mutant::BucketsNotCompared);
        let mut page: Vec<(usize, ConvId, &RowRecord)> = user
            .all()
            .map(|(id, row)| (buckets::bucket_of(id, total), id, row))
            .filter(|(bucket, _, _)| *bucket >= first && differs(*bucket))
            .collect();
        page.sort_unstable_by_key(|(bucket, id, _)| (*bucket, *id));
        // A part ends with a bucket: the next one names where to go on.
        let next = page.get(ROWS_PER_PAGE).map(|(bucket, _, _)| (*bucket).max(page[0].0 + 1));
        if let Some(next) = next {
            page.retain(|(bucket, _, _)| *bucket < next);
        }
        let page: Vec<(ConvId, &RowRecord)> = page.into_iter().map(|(_, id, row)| (id, row)).collect();
        let rows = v1::Rows {
            upto: Some(at.into()),
            next_bucket: next.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            last: next.is_none() && at.rev == user.rev(),
            ..self.rows(&session.user, &page)
        };
        self.out.frame(key, req, v1::frame::Body::Rows(rows));
    }

    /// The client uses this connection: older ones of its install end, and it is pushed to.
    fn bind(&mut self, now: Now, key: ConnKey, order: u64) {
        let Some(session) = self.sessions.get(&key) else { return };
        let (id, install) = (session.user.clone(), session.install.clone());
        let Some(user) = self.users.get_mut(&id) else { return };
        let rev = user.rev();
        let bind = Bind { install: self.routes.key().install(&install), at_ms: now.wall_ms, order };
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
        self.device_moved(&id, &install, key, true);
        self.route_changed(now, &id);
        self.presence_changed(now, &id);
    }

    pub(super) fn close(&mut self, now: Now, key: ConnKey) {
        let Some(session) = self.sessions.remove(&key) else { return };
        self.agains.forget(key);
        self.presence.unwatch(key);
        for conversation in &session.watching {
            if let Some(c) = self.conversations.get_mut(conversation) {
                c.watchers.remove(&key);
            }
        }
        let id: UserId = session.user;
        let Some(device) = self.users.get_mut(&id).and_then(|u| u.devices.remove(&key)) else { return };
        if let Some(at) = device.remind_at {
            self.owing.remove(&(at, id.clone(), key));
        }
        if device.bound.is_some() {
            self.device_moved(&id, &device.install, key, false);
            self.route_changed(now, &id);
            self.presence_changed(now, &id);
        }
    }

    pub(super) fn pull(&mut self, now: Now, key: ConnKey, req: u32, pull: v1::PullEntries) {
        let Some(session) = self.sessions.get(&key) else { return };
        let Some(id) = ConvId::from_slice(&pull.conversation) else { return };
        let Some(conversation) = self.conversations.get(&id) else { return };
        let Some(reader) = conversation.state.fold.reader(&session.user) else {
            let refusal =
                Refusal::new(Code::NotMember, "not in this conversation, or this region does not know it yet");
            return self.out.refuse(key, req, &refusal);
        };
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
        let told = reader.clip(&conversation.published).get(&origin).copied().unwrap_or(0);
        let readable = mutated!(CutNotCheckedAtPull => head; told);
        let before = reader.from().and_then(|from| from.get(&origin)).copied().unwrap_or(0);
        let mut gaps = Vec::new();
        let mut gap = |from: Seq, to: Seq, reason| {
            if from <= to {
                gaps.push((from, to, reason));
            }
        };
        gap(pull.from, before.min(pull.to), v1::gap::Reason::NoAccess);
        gap(pull.from.max(readable + 1), head.min(pull.to), v1::gap::Reason::NoAccess);
        let above = if self.is_final(id, origin) { v1::gap::Reason::Lost } else { v1::gap::Reason::NotHere };
        gap(pull.from.max(head + 1), pull.to, above);
        let mut from = pull.from.max(before + 1);
        let mut to = pull.to.min(readable);
        if conversation.damaged.contains_key(&origin) {
            gaps = vec![(pull.from, pull.to, v1::gap::Reason::Damaged)];
            (from, to) = (1, 0);
        }
        let pull = Pull {
            key,
            req,
            conversation: id,
            origin,
            from,
            to,
            left: limit,
            left_bytes: PULL_BYTES,
            backwards: pull.backwards,
            gaps,
        };
        self.next_page(now, pull);
    }

    fn next_page(&mut self, _now: Now, pull: Pull) {
        if pull.from > pull.to || pull.left == 0 {
            let gaps = if pull.from > pull.to { pull.gaps } else { Vec::new() };
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

    /// The client keeps what it lacks as missing, and asks again.
    pub(super) fn pull_later(&mut self, pull: &Pull, what: &str) {
        let refusal = Refusal::new(Code::ArchiveUnavailable, format!("{what}; these messages are not lost"));
        self.out.refuse(pull.key, pull.req, &refusal.after_ms(ARCHIVE_RETRY_MS));
    }

    pub(super) fn pull_read(&mut self, now: Now, mut pull: Pull, entries: Result<Vec<Arc<Entry>>, String>) {
        let Some(user) = self.sessions.get(&pull.key).map(|s| s.user.clone()) else { return };
        let user = Some(user);
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(what) => {
                let refusal = Refusal::new(Code::Internal, format!("the log could not be read: {what}"));
                return self.out.refuse(pull.key, pull.req, &refusal);
            }
        };
        let Some((first, last)) = entries.first().zip(entries.last()).map(|(f, l)| (f.place.seq, l.place.seq)) else {
            // Decided entries that the store does not return: damage that was found while reading.
            pull.gaps = vec![(pull.from, pull.to, v1::gap::Reason::Damaged)];
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
        let mut gaps = if pull.from > pull.to { std::mem::take(&mut pull.gaps) } else { Vec::new() };
        // What a blocked sender wrote is for his own devices alone.
        let hidden = |e: &Arc<Entry>| e.only_sender && Some(&e.by.user) != user.as_ref();
        gaps.extend(
            entries.iter().filter(|e| hidden(e)).map(|e| (e.place.seq, e.place.seq, v1::gap::Reason::NoAccess)),
        );
        entries.retain(|e| !hidden(e));
        let page = Page { conversation: pull.conversation, origin: pull.origin, entries, gaps, last: done };
        self.out.down(pull.key, DownBody::Page { req: pull.req, page });
        if !done {
            self.next_page(now, pull);
        }
    }
}

/// How many messages the user can't have read, at most: never too low (R9).
fn unread_at_most(row: &RowRecord) -> u64 {
    let above = |(origin, head): (&Origin, &Seq)| {
        let bound = |heads: &crate::ids::Heads| heads.get(origin).copied().unwrap_or(0);
        head.saturating_sub(bound(&row.read).max(bound(&row.from)))
    };
    row.heads.iter().map(above).sum::<u64>().min(row.counted)
}

fn view(conversation: ConvId, row: &RowRecord) -> buckets::RowView<'_> {
    buckets::RowView {
        conversation,
        heads: &row.heads,
        read: &row.read,
        peer_read: &row.peer_read,
        from: &row.from,
        state: row.state,
        generation: row.generation,
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
