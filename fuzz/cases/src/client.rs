//! A client's machine: a server that says anything, at any time, and an application that wants everything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tern_core::client::{Book, Candidate, ConnNo, Effect, Event, Failure, Machine, MessageId, Outbound, Setup};
use tern_core::ids::{ConvId, Cursor, InstallId, Origin, Region, UserId};
use tern_core::wire::compact::{Read, Reader};
use tern_core::wire::v1;
use tern_core::wire::v1::error::Retry;
use tern_core::wire::v1::frame::Body;

use crate::Came;
use crate::script::{Script, put_blob};

const SALT: &[u8] = b"salt";
const ORIGIN: Origin = Origin { region: 1, era: 7 };

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn candidate(edge: &str, region: &str) -> Candidate {
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

struct World {
    machine: Machine,
    book: Book,
    now: Duration,
    /// Attempts and connections, the newest last, each with what it was told by references.
    conns: Vec<(ConnNo, Reader)>,
    reqs: Vec<u32>,
    cursors: BTreeMap<Region, Cursor>,
    /// A server said that a cursor was not its own: then it may move back.
    was_reset: bool,
    came: Came,
}

impl World {
    fn settle(&mut self) {
        let step = self.machine.take_step();
        self.book.apply(&step.ops);
        for effect in step.effects {
            match effect {
                Effect::Connect { conn, .. } => {
                    self.conns.push((conn, Reader::default()));
                    if self.conns.len() > 8 {
                        self.conns.remove(0);
                    }
                }
                Effect::Close { conn, .. } => self.conns.retain(|(c, _)| *c != conn),
                Effect::Write { out, .. } => {
                    let req = match out {
                        Outbound::Send(req, _) => req,
                        Outbound::Frame(frame) => frame.req,
                    };
                    self.reqs.push(req);
                    self.came.accepted = true;
                }
                Effect::Event(Event::Failed { .. } | Event::Kicked { .. }) => self.came.refused = true,
                _ => {}
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let cursors = self.book.image().cursors;
        for (region, old) in &self.cursors {
            let Some(new) = cursors.get(region) else { continue };
            let back = new.store == old.store && new.rev < old.rev;
            assert!(!back || self.was_reset, "the cursor of {region} went from {old:?} back to {new:?}");
        }
        self.cursors = cursors;
        for conversation in self.machine.conversations() {
            let shown = self.book.timeline(conversation.id, 0, 2_000);
            let mut seen = BTreeSet::new();
            // Of those that have a place. A server that makes up a message of this install under a number that the
            // install has not reached gets that number used again: known, and told to nobody else by this case.
            for message in shown.iter().filter(|m| m.by.n > 0 && m.key.is_some()) {
                // Copies have one body; what differs in that is another message, and both are shown (R3).
                assert!(seen.insert((&message.by, &message.body)), "{:?} is shown twice", message.by);
            }
            let keys: Vec<_> = shown.iter().filter_map(|m| m.key).collect();
            assert!(keys.is_sorted(), "a timeline out of order");
        }
    }

    fn frame(&mut self, which: u8, frame: v1::Frame) {
        if self.conns.is_empty() {
            return;
        }
        if let Some(Body::Rows(rows)) = &frame.body {
            self.was_reset |= rows.reset != 0;
        }
        if let Some(Body::Welcome(v1::Welcome { rows: Some(rows), .. })) = &frame.body {
            self.was_reset |= rows.reset != 0;
        }
        let at = usize::from(which) % self.conns.len();
        let (conn, req) = (self.conns[at].0, frame.req);
        match self.conns[at].1.read(frame) {
            Ok(read) => {
                if !matches!(read, Read::Noted) {
                    self.machine.frame(self.now, conn, req, read);
                    self.machine.frames_done(self.now);
                }
            }
            Err(refusal) => {
                self.came.refused = true;
                let failure = Failure::Network(refusal.to_string());
                self.machine.ended(self.now, conn, &failure);
                self.conns.remove(at);
            }
        }
        self.settle();
    }
}

fn entry(script: &mut Script<'_>) -> v1::Entry {
    v1::Entry {
        origin: u32::from(script.pick(3)),
        seq: u64::from(script.pick(12)),
        hlc: (1 << 40) + u64::from(script.pick(50)),
        sender: u32::from(script.pick(3)),
        n: u64::from(script.pick(12)),
        body: Bytes::copy_from_slice({
            let count = usize::from(script.pick(4));
            script.bytes(count)
        }),
        peer: if script.pick(4) == 0 { "bob".into() } else { String::new() },
        ..v1::Entry::default()
    }
}

fn server_frame(script: &mut Script<'_>) -> Body {
    let id = Bytes::copy_from_slice(&ConvId::direct(SALT, &user("alice"), &user("bob")).0);
    let id = if script.pick(8) == 0 { Bytes::from(vec![9; 16]) } else { id };
    let origins: Vec<v1::Origin> = [ORIGIN, Origin { region: 2, era: 7 }].map(Into::into).to_vec();
    let log = Some(origins[usize::from(script.pick(2))]);
    let senders = ["bob", "alice"].map(|u| v1::Sender { user: u.into(), install: "phone".into() }).to_vec();
    let cursor = v1::Cursor { region: u32::from(script.pick(3)), era: 7, rev: script.number() };
    let head = v1::Head { origin: u32::from(script.pick(3)), seq: script.number() % 200 };
    let rows = |script: &mut Script<'_>| v1::Rows {
        origins: origins.clone(),
        senders: senders.clone(),
        rows: (0..script.pick(3))
            .map(|_| v1::Row {
                conversation: id.clone(),
                rev: script.number(),
                heads: vec![head],
                peer: "bob".into(),
                inline: vec![entry(script)],
                ..v1::Row::default()
            })
            .collect(),
        upto: (script.pick(4) > 0).then_some(cursor),
        preview: script.pick(4) == 0,
        last: script.pick(2) == 0,
        reset: 0,
        base: (script.pick(2) == 0).then_some(cursor),
        ..v1::Rows::default()
    };
    match script.u8() % 20 {
        0..=2 => Body::Welcome(v1::Welcome {
            version: 1,
            cursor: Some(cursor),
            direct_salt: Bytes::from_static(SALT),
            rows: (script.pick(2) == 0).then(|| rows(script)),
            region: "r".into(),
            edge: "e".into(),
            wall_ms: 1_700_000_000_000,
            limits: Some(v1::Limits { in_flight: script.number32(), ..v1::Limits::default() }),
            ..v1::Welcome::default()
        }),
        3 => Body::Ack(v1::Ack {
            origin: 1,
            seq: script.number(),
            hlc: script.number(),
            receipt: vec![7; usize::from(script.pick(18))].into(),
            ..v1::Ack::default()
        }),
        4 => Body::Ack(v1::Ack {
            origin: 1,
            seq: u64::from(script.pick(9)) + 1,
            hlc: (1 << 40) + script.number() % 1_000,
            receipt: vec![7; 16].into(),
            ..v1::Ack::default()
        }),
        5..=7 => {
            let rev = script.number();
            Body::Push(v1::Push {
                conversation: 1,
                entries: (0..script.pick(3)).map(|_| entry(script)).collect(),
                heads: vec![head],
                rev,
                rev_back: script.number(),
                peer: "bob".into(),
                ..v1::Push::default()
            })
        }
        8 => Body::Pong(v1::Pong { echo: script.number32(), rev: script.number(), ..v1::Pong::default() }),
        9 => Body::Advance(v1::Advance { rev: script.number() }),
        10 => {
            let (upto, regions) = (script.number(), u32::from(script.pick(4)));
            Body::Stable(v1::Stable { conversation: id, origin: log, upto, regions, offer: script.pick(2) == 0 })
        }
        11 | 12 => Body::Rows(rows(script)),
        13 | 14 => Body::Page(v1::Page {
            conversation: id,
            origin: log,
            entries: (0..script.pick(4)).map(|_| entry(script)).collect(),
            gaps: (0..script.pick(2))
                .map(|_| v1::Gap { from: script.number(), to: script.number(), reason: i32::from(script.pick(7)) })
                .collect(),
            origins,
            senders,
            last: script.pick(2) == 0,
        }),
        15 => Body::Error(v1::Error {
            code: u32::from(script.pick(40)),
            retry: i32::from(script.pick(6)),
            retry_after_ms: script.number32(),
            message: "x".into(),
        }),
        16 => Body::GoAway(v1::GoAway {
            window_ms: script.number32(),
            alternates: vec!["192.0.2.1:1".into()],
            ..v1::GoAway::default()
        }),
        17 => Body::Kick(v1::Kick { code: u32::from(script.pick(40)), message: "x".into() }),
        18 => Body::Define(v1::Define {
            r#ref: u32::from(script.pick(3)),
            what: Some(match script.pick(3) {
                0 => v1::define::What::Conversation(id),
                1 => v1::define::What::Origin(origins[usize::from(script.pick(2))]),
                _ => v1::define::What::Sender(senders[usize::from(script.pick(2))].clone()),
            }),
        }),
        _ => Body::Hello(v1::Hello::default()),
    }
}

/// See the module.
pub fn run(bytes: &[u8]) -> Came {
    let mut script = Script::new(bytes);
    let setup = Setup {
        user: user("alice"),
        agent: "fuzz".into(),
        fallback: vec![candidate("eu-1", "eu"), candidate("us-1", "us")],
        dispatch_targets: usize::from(script.pick(2)),
        device: String::new(),
        seed: 1,
    };
    let book = Book::new(setup.user.clone(), InstallId::new("phone").unwrap());
    let mut world = World {
        machine: Machine::new(setup.clone(), book.image()),
        book,
        now: Duration::from_secs(1_000),
        conns: Vec::new(),
        reqs: Vec::new(),
        cursors: BTreeMap::new(),
        was_reset: false,
        came: Came::default(),
    };
    world.machine.token(world.now, Some("t".into()));
    world.machine.connect(world.now);
    let chat = world.machine.direct(&user("bob"));
    world.settle();
    while let Some(op) = script.more() {
        let now = world.now;
        match op % 16 {
            0..=6 => {
                let which = script.u8();
                // Mostly an answer to something that was asked.
                let req = match script.pick(4) {
                    0 => script.number32(),
                    n => *world.reqs.iter().rev().nth(usize::from(n) - 1).unwrap_or(&1),
                };
                let body = server_frame(&mut script);
                let req = if matches!(body, Body::Welcome(_)) { 1 } else { req };
                world.frame(which, v1::Frame::new(req, body));
            }
            7 => match v1::Frame::decode(script.blob()) {
                Ok(frame) => world.frame(0, frame),
                Err(_) => world.came.refused = true,
            },
            8 | 9 => {
                let id = if script.pick(8) == 0 { ConvId([9; 16]) } else { world.machine.direct_id(&user("bob")) };
                let body = Bytes::copy_from_slice(script.blob());
                world.came.refused |= world.machine.send(now, id, 0, body, 1).is_err();
            }
            10 => {
                if let Some((conn, _)) = world.conns.pop() {
                    let failure = match script.pick(3) {
                        0 => Failure::TimedOut,
                        1 => Failure::Network("gone".into()),
                        _ => {
                            let retry = Retry::try_from(i32::from(script.pick(5))).unwrap();
                            let after = Duration::from_millis(script.number() % 100_000);
                            Failure::Refused { code: u32::from(script.pick(40)), retry, after, message: String::new() }
                        }
                    };
                    world.machine.ended(now, conn, &failure);
                }
            }
            11 | 12 => {
                world.now += Duration::from_millis(script.number() % 60_000);
                let mut turns = 0;
                while world.machine.next_deadline().is_some_and(|at| at <= world.now) {
                    world.machine.tick(world.now);
                    world.settle();
                    turns += 1;
                    assert!(turns < 1_000, "the machine spins");
                }
            }
            13 => match script.pick(5) {
                0 => world.machine.connect(now),
                1 => world.machine.network_changed(now, None),
                2 => world.machine.token(now, (script.pick(2) == 0).then(|| "t".into())),
                3 => world.machine.dispatch_failed(now),
                _ => world.machine.stop(now),
            },
            14 => {
                let id = script.number();
                match script.pick(4) {
                    // Whether there is such a message is the question.
                    0 => world.came.refused |= world.machine.retry(now, message_id(id)).is_err(),
                    1 => world.came.refused |= world.machine.discard(now, message_id(id)).is_err(),
                    2 => world.machine.mark_read(now, chat, None),
                    _ => world.came.accepted |= world.machine.page_back(now, chat, id),
                }
            }
            // The process dies; what is stored is what there is.
            _ if script.pick(4) == 0 => {
                world.machine = Machine::new(setup.clone(), world.book.image());
                world.conns.clear();
                world.reqs.clear();
                world.machine.token(now, Some("t".into()));
                world.machine.connect(now);
            }
            _ => {}
        }
        world.settle();
    }
    world.came
}

fn message_id(n: u64) -> MessageId {
    MessageId(n % 20)
}

/// A client that connects, hears, sends, is acked; one that is refused; raw frames.
pub fn seeds() -> Vec<Vec<u8>> {
    // Operation, connection, req, conversation, log, cursor's region, rev, head's origin, seq, kind, ...
    let frame = |kind: u8, more: &[u8]| [&[0, 0, 1, 1, 0, 1, 5, 1, 3, kind][..], more].concat();
    let welcome = frame(0, &[1, 200]);
    let send = vec![8, 1, 2, b'h', b'i'];
    let time = vec![11, 210, 1, 1];
    let mut talk = vec![0];
    for part in [
        welcome.clone(),
        frame(18, &[1, 0]),
        frame(18, &[1, 1, 0]),
        frame(18, &[1, 2, 0]),
        send.clone(),
        frame(4, &[1, 9]),
        frame(5, &[1, 1, 1, 1, 1, 1, 1, b'x', 1, 6, 1]),
        frame(8, &[1, 9]),
        frame(9, &[12]),
        time.clone(),
        frame(11, &[1, 6, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0]),
        frame(13, &[2, 1, 1, 1, 1, 1, 0, 1, 1, 2, 2, 1, 2, 0, 1, 0, 0]),
        frame(10, &[3, 2, 1]),
        time.clone(),
        send.clone(),
    ] {
        talk.extend(part);
    }
    let refused = [vec![0], welcome.clone(), send.clone(), frame(15, &[13, 4, 0]), vec![15, 0], time, welcome].concat();
    let mut raw = vec![0];
    raw.push(7);
    put_blob(
        &mut raw,
        &v1::Frame::new(1, Body::Welcome(v1::Welcome { version: 1, ..v1::Welcome::default() })).encode_to_vec(),
    );
    vec![talk.clone(), refused, raw, [&talk[..], &talk[1..]].concat()]
}
