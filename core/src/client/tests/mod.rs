//! Histories of the client's side of the rules, written as what happens on the wire, and a random one against
//! a model of three regions.

mod connecting;
mod doubting;
mod engine;
mod eras;
mod groups;
mod heartbeat;
mod histories;
mod presence;
mod random;
mod registers;
mod saving;
mod troubles;
mod typing;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::codes::Code;
use crate::edge_api::{Ack, HeldAck, Push, SendRequest};
use crate::entry::Entry;
use crate::ids::{ConvId, Cursor, Heads, Identity, InstallId, Origin, Place, Rev, Seq, UserId, body_hash};
use crate::wire::compact::{Read, Table};
use crate::wire::v1::{self, frame::Body};

pub(super) fn user(text: &str) -> UserId {
    UserId::new(text).unwrap()
}

pub(super) fn origin(region: u8) -> Origin {
    Origin { region, era: 7 }
}

pub(super) const SALT: &[u8] = b"salt";

/// The direct conversation of alice and bob.
pub(super) fn chat() -> ConvId {
    ConvId::direct(SALT, &user("alice"), &user("bob"))
}

pub(super) fn candidate(edge: &str, region: &str) -> Candidate {
    Candidate {
        edge: edge.to_owned(),
        region: region.to_owned(),
        address: format!("{edge}:1"),
        server_name: edge.to_owned(),
        quic: true,
        tcp: true,
        quic_timeout: Duration::from_secs(1),
        tcp_timeout: Duration::from_secs(2),
    }
}

/// A machine, its store, and what it wrote.
pub(super) struct Device {
    pub(super) machine: Machine,
    pub(super) book: Book,
    pub(super) now: Duration,
    pub(super) connects: Vec<(ConnNo, Candidate, Transport, v1::Hello)>,
    pub(super) closed: Vec<ConnNo>,
    pub(super) written: Vec<(ConnNo, Outbound)>,
    pub(super) dispatches: Vec<(usize, Vec<String>)>,
    /// How long each dispatch request may take.
    pub(super) patience: Vec<Duration>,
    pub(super) tokens: Vec<bool>,
    pub(super) events: Vec<Event>,
    pub(super) changes: Vec<Change>,
}

pub(super) fn setup(user_id: &str) -> Setup {
    Setup {
        user: user(user_id),
        agent: "test".to_owned(),
        fallback: vec![candidate("eu-1", "eu"), candidate("us-1", "us")],
        dispatch_targets: 0,
        device: String::new(),
        seed: 1,
    }
}

impl Device {
    pub(super) fn new(setup: Setup) -> Self {
        let book = Book::new(setup.user.clone(), InstallId::new("phone").unwrap());
        Self::over(setup, book)
    }

    pub(super) fn over(setup: Setup, book: Book) -> Self {
        Self {
            machine: Machine::new(setup, book.image()),
            book,
            now: Duration::from_secs(1000),
            connects: Vec::new(),
            closed: Vec::new(),
            written: Vec::new(),
            dispatches: Vec::new(),
            patience: Vec::new(),
            tokens: Vec::new(),
            events: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// The process dies and starts again: what is stored is what there is.
    pub(super) fn crash(&mut self, setup: Setup) {
        let now = self.now;
        *self = Self::over(setup, self.book.clone());
        self.now = now;
    }

    pub(super) fn settle(&mut self) {
        let step = self.machine.take_step();
        self.changes.extend(self.book.apply(&step.ops));
        for effect in step.effects {
            match effect {
                Effect::Connect { conn, candidate, transport, hello, .. } => {
                    let Some(Body::Hello(hello)) = hello.0.body else { panic!("no Hello") };
                    self.connects.push((conn, candidate, transport, hello));
                }
                Effect::Close { conn, .. } => self.closed.push(conn),
                Effect::Write { conn, out } => self.written.push((conn, out)),
                Effect::Dispatch(Asking { target, exclude, timeout, .. }, _) => {
                    self.dispatches.push((target, exclude));
                    self.patience.push(timeout);
                }
                Effect::Token { refused } => self.tokens.push(refused),
                Effect::Event(event) => self.events.push(event),
            }
        }
    }

    pub(super) fn act<T>(&mut self, act: impl FnOnce(&mut Machine, Duration) -> T) -> T {
        let result = act(&mut self.machine, self.now);
        self.settle();
        result
    }

    /// Lets time pass, ticking whenever something is due.
    /// The edge answers all pings so far.
    pub(super) fn alive(&mut self, conn: ConnNo) {
        self.body(conn, 0, Body::Pong(v1::Pong { echo: u32::MAX / 2, ..v1::Pong::default() }));
    }

    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..100_000 {
            match self.machine.next_deadline().filter(|at| *at <= end) {
                Some(at) => {
                    self.now = self.now.max(at);
                    self.act(Machine::tick);
                }
                None => break,
            }
            assert!(self.machine.next_deadline().is_none_or(|at| at > self.now), "the machine spins at {:?}", self.now);
        }
        self.now = end;
    }

    /// Starts, gets a token, and the newest attempt is welcomed by the store `region` with the user's `rev`.
    pub(super) fn connect(&mut self, region: u8, rev: u64) -> ConnNo {
        self.act(Machine::connect);
        if !self.tokens.is_empty() {
            self.tokens.clear();
            self.act(|m, now| m.token(now, Some("token".to_owned())));
        }
        self.welcome(region, rev)
    }

    pub(super) fn welcome(&mut self, region: u8, rev: u64) -> ConnNo {
        let conn = self.connects.last().expect("an attempt").0;
        self.welcome_on(conn, region, rev)
    }

    pub(super) fn welcome_on(&mut self, conn: ConnNo, region: u8, rev: u64) -> ConnNo {
        let welcome = v1::Welcome {
            version: 1,
            cursor: Some(Cursor { store: origin(region), rev: Rev(rev) }.into()),
            direct_salt: Bytes::from_static(SALT),
            region: format!("r{region}"),
            edge: format!("e{region}"),
            ..v1::Welcome::default()
        };
        self.frame(conn, 1, Read::Other(v1::Frame::new(1, Body::Welcome(welcome))));
        conn
    }

    pub(super) fn frame(&mut self, conn: ConnNo, req: u32, read: Read) {
        self.machine.frame(self.now, conn, req, read);
        self.machine.frames_done(self.now);
        self.settle();
    }

    pub(super) fn body(&mut self, conn: ConnNo, req: u32, body: Body) {
        self.frame(conn, req, Read::Other(v1::Frame::new(req, body)));
    }

    /// Waits for the first beat of a connection, which may come at any time, and answers it. How long that took.
    pub(super) fn first_beat(&mut self, conn: ConnNo) -> Duration {
        let begun = self.now;
        self.frames();
        loop {
            self.pass(Duration::from_millis(100));
            let ping = self.frames().into_iter().find_map(|frame| match frame.body {
                Some(Body::Ping(ping)) => Some((frame.req, ping)),
                _ => None,
            });
            if let Some((req, ping)) = ping {
                self.body(conn, req, Body::Pong(v1::Pong { echo: ping.echo, ..v1::Pong::default() }));
                return self.now - begun;
            }
            assert!(self.now - begun < Duration::from_secs(26), "no beat");
        }
    }

    pub(super) fn send(&mut self, text: &str) -> MessageId {
        let text = Bytes::copy_from_slice(text.as_bytes());
        self.act(|m, now| {
            let id = m.direct(&UserId::new("bob").unwrap());
            m.send(now, id, 0, text, 1).unwrap()
        })
    }

    /// Sends written since the last call.
    pub(super) fn sends(&mut self) -> Vec<(u32, SendRequest)> {
        let mut sends = Vec::new();
        for (conn, out) in std::mem::take(&mut self.written) {
            match out {
                Outbound::Send(req, send) => sends.push((req, send)),
                frame @ Outbound::Frame(_) => self.written.push((conn, frame)),
            }
        }
        sends
    }

    /// Other frames written since the last call.
    pub(super) fn frames(&mut self) -> Vec<v1::Frame> {
        let mut frames = Vec::new();
        for (conn, out) in std::mem::take(&mut self.written) {
            match out {
                Outbound::Frame(frame) => frames.push(frame),
                send @ Outbound::Send(..) => self.written.push((conn, send)),
            }
        }
        frames
    }

    pub(super) fn ack(&mut self, conn: ConnNo, req: u32, place: Place, first: Option<Place>) {
        self.frame(conn, req, Read::Ack(ack_of(place, first)));
    }

    pub(super) fn error(&mut self, conn: ConnNo, req: u32, code: Code, after_ms: u32) {
        let error = crate::codes::Refusal::new(code, "no").after_ms(after_ms).to_wire();
        self.body(conn, req, Body::Error(error));
    }

    pub(super) fn stable(&mut self, conn: ConnNo, o: Origin, upto: Seq, offer: bool) {
        let conversation = Bytes::copy_from_slice(&chat().0);
        let stable = v1::Stable { conversation, origin: Some(o.into()), upto, regions: 2, offer };
        self.body(conn, 0, Body::Stable(stable));
    }

    /// Texts in order of display.
    pub(super) fn shown(&self) -> Vec<String> {
        let id = self.machine.direct_id(&user("bob"));
        let all = self.book.timeline(id, self.machine.horizon(id), usize::MAX);
        all.iter().map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect()
    }

    pub(super) fn state(&self, id: MessageId) -> MessageState {
        self.book.message(id).unwrap().state
    }
}

pub(super) fn ack_of(place: Place, first: Option<Place>) -> Ack {
    Ack { place, first, receipt: [9; 16], also: Vec::<HeldAck>::new(), receipt_refused: false, cut: Heads::new() }
}

pub(super) fn place(hlc: u64, region: u8, seq: u64) -> Place {
    Place { hlc, origin: origin(region), seq }
}

/// An entry of bob, or of another device of alice.
pub(super) fn entry(who: &str, install: &str, n: u64, at: Place, text: &str) -> Entry {
    let by = Identity { user: user(who), install: InstallId::new(install).unwrap(), n };
    Entry { peer: Some(user("alice")), wall_ms: 1, ..Entry::text(at, by, text.to_owned()) }
}

pub(super) fn bob(n: u64, at: Place, text: &str) -> Entry {
    entry("bob", "b", n, at, text)
}

pub(super) fn push(entries: Vec<Entry>, heads: &[(Origin, Seq)], prev: u64, rev: u64) -> Read {
    Read::Push(push_of(entries, heads, prev, rev))
}

/// The push itself, for those who change it.
pub(super) fn push_of(entries: Vec<Entry>, heads: &[(Origin, Seq)], prev: u64, rev: u64) -> Push {
    Push {
        conversation: chat(),
        peer: Some(user("bob")),
        entries: entries.into_iter().map(Arc::new).collect(),
        heads: heads.iter().copied().collect(),
        prev_rev: Rev(prev),
        rev: Rev(rev),
        row: None,
    }
}

pub(super) fn rows(heads: &[(Origin, Seq)], base: Option<Cursor>, upto: Option<Cursor>, last: bool) -> v1::Rows {
    let mut table = Table::default();
    let heads: Heads = heads.iter().copied().collect();
    let row = v1::Row {
        conversation: Bytes::copy_from_slice(&chat().0),
        heads: table.heads(&heads),
        peer: "bob".to_owned(),
        ..v1::Row::default()
    };
    v1::Rows {
        origins: table.wire_origins,
        senders: Vec::new(),
        rows: if heads.is_empty() { Vec::new() } else { vec![row] },
        upto: upto.map(Into::into),
        base: base.map(Into::into),
        last,
        ..v1::Rows::default()
    }
}

pub(super) fn page(o: Origin, entries: &[Entry], gaps: Vec<v1::Gap>, last: bool) -> v1::Page {
    let mut table = Table::default();
    let entries = entries.iter().map(|e| table.entry(e)).collect();
    v1::Page {
        conversation: Bytes::copy_from_slice(&chat().0),
        origin: Some(o.into()),
        entries,
        gaps,
        last,
        origins: table.wire_origins,
        senders: table.wire_senders,
    }
}

pub(super) fn cursor(region: u8, rev: u64) -> Cursor {
    Cursor { store: origin(region), rev: Rev(rev) }
}
