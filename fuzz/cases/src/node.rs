//! A region's core: clients, peer regions and a store that say anything in any order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tern_core::edge_api::{DownBody, SendRequest, Up};
use tern_core::entry::Entry;
use tern_core::eras::{Era, EraTable};
use tern_core::ids::{ConvId, Heads, InstallId, Origin, Place, Region, UserId};
use tern_core::limits::{CONVERSATION_QUEUE, MESSAGE_NUMBERS, ROWS_PER_PAGE};
use tern_core::node::refill::PeerHello;
use tern_core::node::{Counters, Node, Notice, Now, Outputs, Settings, Want};
use tern_core::receipt::ReceiptKey;
use tern_core::sequencer::LogState;
use tern_core::store::{Append, Appended, Put, Range, RowRecord};
use tern_core::wire::node_v1::node_frame::Body as PeerBody;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{node, node_v1, v1};

use crate::Came;
use crate::disk::an_entry;
use crate::script::{Script, put_blob};

const SALT: &[u8] = b"salt";
const OWN: Origin = Origin { region: 1, era: 1_001 };
const PEERS: [Region; 2] = [2, 3];
const USERS: [&str; 3] = ["alice", "bob", "carol"];

fn user(n: u8) -> UserId {
    UserId::new(USERS[usize::from(n) % USERS.len()]).unwrap()
}

/// What the store has: all of it durable.
#[derive(Default)]
struct Disk {
    logs: BTreeMap<(ConvId, Origin), Vec<Arc<Entry>>>,
    rows: BTreeMap<(UserId, ConvId), RowRecord>,
}

impl Disk {
    fn append(&mut self, batch: Append) {
        let log = self.logs.entry((batch.conversation, batch.origin)).or_default();
        assert!(!batch.entries.is_empty(), "an append of nothing");
        for entry in batch.entries {
            assert_eq!(entry.place.seq, log.len() as u64 + 1, "appends are contiguous");
            assert_eq!(entry.place.origin, batch.origin);
            log.push(entry);
        }
    }

    fn put(&mut self, put: Put) {
        match put {
            Put::Row { user, conversation, row } => {
                self.rows.insert((user, conversation), row);
            }
            Put::Erase { conversation, origin, seq, .. } => {
                let at = usize::try_from(seq).unwrap_or(usize::MAX).wrapping_sub(1);
                if let Some(entry) = self.logs.get_mut(&(conversation, origin)).and_then(|log| log.get_mut(at)) {
                    *entry = Arc::new(entry.to_erased());
                }
            }
            _ => {}
        }
    }

    fn state(&self, id: ConvId) -> LogState {
        let mut state = LogState::new(id);
        for ((_, _), log) in self.logs.iter().filter(|((conversation, _), _)| *conversation == id) {
            log.iter().for_each(|entry| {
                state.apply(entry.clone());
            });
        }
        state
    }

    fn range(&self, range: Range) -> Vec<Arc<Entry>> {
        let log = self.logs.get(&(range.conversation, range.origin)).into_iter().flatten();
        let mut inside: Vec<_> = log.filter(|e| (range.from..=range.to).contains(&e.place.seq)).cloned().collect();
        if range.backwards {
            inside.reverse();
        }
        inside.truncate(range.max_entries);
        inside
    }

    fn holds(&self, conversation: ConvId, place: Place) -> bool {
        let at = usize::try_from(place.seq).unwrap_or(usize::MAX).wrapping_sub(1);
        let log = self.logs.get(&(conversation, place.origin));
        log.and_then(|log| log.get(at)).is_some_and(|entry| entry.place == place)
    }
}

struct World {
    node: Node,
    disk: Disk,
    now: Duration,
    appends: VecDeque<Append>,
    /// Conversations that were sent to under a request number, which hostile clients use more than once.
    sends: BTreeMap<(u64, u64, u32), BTreeSet<ConvId>>,
    counters: Counters,
    opened: usize,
    fenced: bool,
    came: Came,
}

impl World {
    fn now(&self) -> Now {
        let wall = u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX);
        Now { mono: self.now, wall_ms: 1_700_000_000_000 + wall }
    }

    /// Does what the node says; appends wait.
    fn carry_out(&mut self) {
        for turn in 0.. {
            assert!(turn < 10_000, "the node asks without end");
            let out: Outputs = self.node.take_outputs();
            let now = self.now();
            let again = !out.wants.is_empty() || out.flush.is_some();
            self.appends.extend(out.appends);
            out.puts.into_iter().for_each(|put| self.disk.put(put));
            if let Some(rows) = out.flush {
                rows.into_iter().for_each(|put| self.disk.put(put));
                self.node.flushed(now);
            }
            for want in out.wants {
                match want {
                    Want::Conversation(id) => {
                        self.node.conversation_loaded(now, self.disk.state(id), BTreeMap::new());
                    }
                    Want::User(id) => {
                        let rows = self.disk.rows.iter().filter(|((u, _), _)| *u == id);
                        let rows = rows.map(|((_, c), r)| (*c, r.clone())).collect();
                        self.node.user_loaded(now, &id, rows);
                    }
                    Want::Range { ticket, range, .. } => {
                        self.node.range_read(now, ticket, Ok(self.disk.range(range)));
                    }
                    Want::Heads { ticket, after, limit } => {
                        let mut heads = BTreeMap::<ConvId, Heads>::new();
                        for ((id, origin), log) in &self.disk.logs {
                            if after.is_none_or(|after| *id > after) {
                                heads.entry(*id).or_default().insert(*origin, log.len() as u64);
                            }
                        }
                        let page: Vec<_> = heads.into_iter().take(limit).collect();
                        self.node.heads_read(now, ticket, &page);
                    }
                    Want::Marks { ticket, after, limit } => {
                        let mut marks = BTreeMap::<UserId, Vec<(ConvId, Heads)>>::new();
                        for ((user, id), row) in &self.disk.rows {
                            if after.as_ref().is_none_or(|after| user > after) {
                                let marks = marks.entry(user.clone()).or_default();
                                marks.extend((!row.read.is_empty()).then(|| (*id, row.read.clone())));
                            }
                        }
                        let page: Vec<_> = marks.into_iter().take(limit).collect();
                        self.node.marks_read(now, ticket, &page);
                    }
                    #[allow(unreachable_patterns, reason = "what a store may be asked grows")]
                    _ => {}
                }
            }
            for (edge, downs) in out.downs {
                for down in downs {
                    self.told(edge, down.conn, down.body);
                }
            }
            for notice in out.notices {
                self.came.refused |= matches!(notice, Notice::BadPeer { .. });
                self.fenced |= matches!(notice, Notice::Fenced);
            }
            if !again {
                break;
            }
        }
        let counters = self.node.counters();
        let ascending = |a: Counters, b: Counters| a.sequenced <= b.sequenced && a.resends <= b.resends;
        assert!(ascending(self.counters, counters), "{:?} then {counters:?}", self.counters);
        self.counters = counters;
        let (conversations, users, sessions, active) = self.node.sizes();
        assert!(conversations <= 64 && users <= 64 && active <= conversations, "{:?}", self.node.sizes());
        assert!(sessions <= self.opened);
        assert!(self.appends.iter().map(|a| a.entries.len()).sum::<usize>() <= CONVERSATION_QUEUE * 64);
    }

    fn told(&mut self, edge: u64, conn: u64, body: DownBody) {
        match body {
            DownBody::Ack { req, ack } => {
                if let Some(sent_to) = self.sends.get(&(edge, conn, req)) {
                    let held = sent_to.iter().any(|conversation| self.disk.holds(*conversation, ack.place));
                    assert!(held, "an ack of what is not on disk: {ack:?}");
                }
                self.came.accepted = true;
            }
            DownBody::Push(push) => {
                assert!(push.prev_rev < push.rev, "a push that changes nothing: {push:?}");
                for entry in &push.entries {
                    assert!(self.disk.holds(push.conversation, entry.place), "a push of what is not on disk");
                }
            }
            DownBody::Page { page, .. } => {
                for entry in &page.entries {
                    assert!(self.disk.holds(page.conversation, entry.place), "a page of what is not on disk");
                }
            }
            DownBody::Frame(frame) => match frame.body {
                Some(Body::Error(e)) => {
                    assert!(tern_core::codes::Code::from_u32(e.code).is_some());
                    self.came.refused = true;
                }
                Some(Body::Rows(rows)) => assert!(rows.rows.len() <= ROWS_PER_PAGE),
                _ => {}
            },
            DownBody::Last(_) => self.came.refused = true,
        }
    }
}

fn settings() -> Settings {
    Settings {
        region: OWN.region,
        region_name: "eu".into(),
        origin: OWN,
        epoch: 1,
        shared: false,
        start: 1,
        peers: PEERS.into(),
        known: BTreeMap::new(),
        eras: eras(),
        commit: 0,
        refill: PEERS.into(),
        restored: false,
        direct_salt: SALT.to_vec(),
        receipt_key: ReceiptKey::new(&[7; 32]),
        reoffer_after: Duration::from_secs(30),
        heartbeat: v1::Heartbeat::default(),
    }
}

/// Eras that began in the order of their names, with few origins in a row.
fn eras() -> EraTable {
    let mut eras = EraTable::folding(2, 6);
    for (region, era) in [(1, 1_000), (2, 2_000), (3, 2_000)] {
        eras.note(Origin { region, era }, Era { start: 1, sealed: true }, true);
        eras.note(Origin { region, era: era + 1 }, Era { start: 2, sealed: region == 2 }, true);
    }
    eras
}

fn conversation(script: &mut Script<'_>) -> ConvId {
    match script.pick(8) {
        0 => ConvId([9; 16]),
        n => ConvId::direct(SALT, &user(n), &user(n / 2 + 1)),
    }
}

fn origin(script: &mut Script<'_>) -> Origin {
    match script.pick(8) {
        0 => OWN,
        1 => Origin { region: 1, era: 1_000 },
        n => Origin { region: n % 2 + 2, era: 2_000 + u64::from(n / 4) },
    }
}

fn client_frame(script: &mut Script<'_>) -> Body {
    let id: Bytes = Bytes::copy_from_slice(&conversation(script).0);
    let log: v1::Origin = origin(script).into();
    match script.pick(9) {
        0 => Body::Ping(v1::Ping { echo: 1, foreground: true, ..v1::Ping::default() }),
        1 => {
            let above = v1::Cursor { region: 1, era: OWN.era, rev: script.number() };
            Body::PullRows(v1::PullRows { above: (script.pick(2) == 0).then_some(above), limit: script.number32() })
        }
        2 => Body::Pull(v1::PullEntries {
            conversation: id,
            origin: Some(log),
            from: script.number().max(1),
            to: script.number(),
            limit: script.number32(),
            backwards: script.pick(2) == 0,
        }),
        3 => Body::Unstable(v1::Unstable { logs: vec![v1::UnstableLog { conversation: id, origins: vec![log] }] }),
        4 => Body::Commit(v1::Commit { race: 1, attempt: 1, order: script.number() }),
        5 => Body::PushAck(v1::PushAck { rev: script.number() }),
        6 => Body::Mark(v1::Mark {
            conversation: id,
            read: vec![v1::OriginHead { origin: Some(log), seq: script.number() }],
        }),
        7 => Body::PullEras(v1::PullEras { conversation: id, origins: vec![log] }),
        _ => Body::Network(v1::Network::default()),
    }
}

fn peer_frame(script: &mut Script<'_>) -> PeerBody {
    let id = Bytes::copy_from_slice(&conversation(script).0);
    let log = origin(script);
    let heads = vec![node_v1::Head { origin: Some(log.into()), seq: script.number() }];
    match script.pick(8) {
        0 | 1 => {
            let first_seq = u64::from(script.pick(6));
            let entries = (first_seq..first_seq + u64::from(script.pick(4))).map(|seq| {
                let entry = an_entry(seq.max(1), &[b'p'; 20]);
                let place = Place { hlc: entry.place.hlc, origin: log, seq };
                let by = tern_core::ids::Identity { n: seq.max(1), ..entry.by.clone() };
                Entry { place, by, ..entry }.to_bytes()
            });
            let entries = entries.collect();
            PeerBody::Ship(node_v1::Ship { conversation: id, origin: Some(log.into()), first_seq, entries })
        }
        2 => {
            let (want, answer) = (script.pick(2) == 0, script.pick(2) == 0);
            PeerBody::ShipAck(node_v1::ShipAck { conversation: id, heads, want, answer })
        }
        3 => PeerBody::Offer(node_v1::Offer { conversation: id, heads }),
        4 => PeerBody::Beat(node_v1::Beat { wall_ms: script.number(), ..node_v1::Beat::default() }),
        5 => route_frame(script),
        6 => PeerBody::Eras(node_v1::Eras {
            eras: vec![node_v1::Era { origin: Some(log.into()), start: script.number(), sealed: script.pick(2) == 0 }],
        }),
        _ => PeerBody::Marks(node_v1::Marks {
            user: USERS[usize::from(script.pick(3))].into(),
            upto: script.number(),
            marks: vec![node_v1::Mark { conversation: id, read: heads }],
        }),
    }
}

fn route_frame(script: &mut Script<'_>) -> PeerBody {
    // Few numbers, so that they fit each other now and then.
    let (epoch, lsn, base_ms) = (u64::from(script.pick(3)), u64::from(script.pick(6)), script.number());
    let small = |script: &mut Script<'_>| u32::from(script.pick(4));
    match script.pick(5) {
        0 => PeerBody::RouteState(node_v1::RouteState {
            epoch,
            lsn,
            heard_epoch: script.number(),
            heard_lsn: script.number(),
            lost: script.pick(2) == 0,
        }),
        1 => {
            let ops = Bytes::copy_from_slice(script.blob());
            PeerBody::RouteDelta(node_v1::RouteDelta { epoch, first_lsn: lsn, base_ms, ops })
        }
        2 => {
            let (sums, counts) = (vec![script.number(); 256], vec![small(script); 256]);
            PeerBody::RouteDigest(node_v1::RouteDigest { epoch, lsn, sums, counts })
        }
        3 => PeerBody::RoutePull(node_v1::RoutePull { epoch: script.number(), shards: vec![small(script), 255, 999] }),
        _ => {
            let (shard, part, parts) = (small(script), small(script), small(script));
            let from = u64::from(shard) << 56;
            let to = from | u64::MAX >> 8;
            let ops = Bytes::copy_from_slice(script.blob());
            PeerBody::RouteChunk(node_v1::RouteChunk { epoch, lsn, shard, part, parts, from, to, base_ms, ops })
        }
    }
}

/// See the module.
pub fn run(bytes: &[u8]) -> Came {
    let mut script = Script::new(bytes);
    let start = Now { mono: Duration::from_secs(1_000), wall_ms: 1_700_000_001_000 };
    let mut world = World {
        node: Node::new(settings(), Vec::new(), start),
        disk: Disk::default(),
        now: start.mono,
        appends: VecDeque::new(),
        sends: BTreeMap::new(),
        counters: Counters::default(),
        opened: 0,
        fenced: false,
        came: Came::default(),
    };
    world.carry_out();
    while let Some(op) = script.more() {
        let now = world.now();
        let (edge, conn) = (u64::from(script.pick(2)), u64::from(script.pick(4)));
        let region = PEERS[usize::from(script.pick(2))];
        match op % 16 {
            0 | 1 => {
                world.opened += 1;
                let install = InstallId::new(["phone", "tab"][usize::from(script.pick(2))]).unwrap();
                let hello = Box::new(v1::Hello {
                    cursors: vec![v1::Cursor { region: 1, era: OWN.era, rev: script.number() }],
                    ..v1::Hello::default()
                });
                let up = Up::Open {
                    conn,
                    req: 1,
                    user: user(script.u8()),
                    install,
                    hello,
                    address: "192.0.2.1:5".into(),
                    transport: "quic",
                    token_expires_ms: now.wall_ms + 3_600_000,
                    token_issued_ms: now.wall_ms,
                };
                world.node.ups(now, edge, vec![up]);
            }
            2..=4 => {
                // As far as an edge lets them through.
                let (req, n) = (u32::from(script.u8()) + 1, script.number().clamp(1, MESSAGE_NUMBERS - 1));
                let id = conversation(&mut script);
                let send = SendRequest {
                    conversation: id,
                    peer: (script.pick(4) > 0).then(|| user(script.u8())),
                    n,
                    floor: n - script.number() % n,
                    seen_hlc: script.number(),
                    kind: u32::from(script.pick(80)),
                    body: Bytes::copy_from_slice(script.blob()),
                    wall_ms: 1,
                    offer: (script.pick(4) == 0).then(|| {
                        let place = Place { hlc: script.number(), origin: origin(&mut script), seq: script.number() };
                        (place, Bytes::copy_from_slice(script.blob()))
                    }),
                    membership: None,
                    named: None,
                };
                world.sends.entry((edge, conn, req)).or_default().insert(id);
                world.node.ups(now, edge, vec![Up::Send { conn, req, send }]);
            }
            5 | 6 => {
                let frame = v1::Frame::new(300 + u32::from(script.u8()), client_frame(&mut script));
                world.node.ups(now, edge, vec![Up::Frame { conn, frame }]);
            }
            7 => world.node.ups(now, edge, vec![Up::Close { conn }]),
            8 | 9 => {
                let body = peer_frame(&mut script);
                world.node.peer_frame(now, region, body);
            }
            10 => {
                let frame = node_v1::NodeFrame::decode(script.blob());
                world.came.refused |= frame.is_err();
                if let Some(body) = frame.ok().and_then(|f| f.body) {
                    match body {
                        // An edge's, as its link would hand it over.
                        PeerBody::Up(up) => match node::up_from_wire(up) {
                            Ok(up) => world.node.ups(now, edge, vec![up]),
                            Err(_) => world.came.refused = true,
                        },
                        body => world.node.peer_frame(now, region, body),
                    }
                    world.opened += 1;
                }
            }
            11 => {
                let start = u64::from(script.pick(4));
                let hello = PeerHello { start, era: u64::from(region) * 1_000, commit: start, incomplete: start == 1 };
                world.node.peer_up(now, region, &hello);
            }
            12 => world.node.peer_down(now, region),
            13 => {
                world.now += Duration::from_millis(script.number() % 120_000);
                let now = world.now();
                world.node.tick(now);
            }
            14 if edge == 1 && conn == 3 => world.node.edge_down(now, u64::from(script.pick(2))),
            _ => {
                if let Some(batch) = world.appends.pop_front() {
                    let id = batch.conversation;
                    let answer = match script.u8() {
                        0..=15 => Appended::Full,
                        16..=31 => Appended::Unknown("not written".into()),
                        32..=47 => {
                            world.disk.append(batch);
                            Appended::Unknown("written".into())
                        }
                        _ => {
                            world.disk.append(batch);
                            Appended::Decided
                        }
                    };
                    world.node.appended(now, vec![(id, answer)]);
                }
            }
        }
        world.carry_out();
        if world.fenced {
            break;
        }
    }
    world.came
}

/// Two users who talk, a peer that ships, a resend, an append that fails.
pub fn seeds() -> Vec<Vec<u8>> {
    let open = |conn: u8, user: u8| vec![0, 0, conn, 0, 0, 1, user];
    // edge, conn, region, req, n, conversation, peer, whose, floor, seen, kind, body, offer
    let send = |conn: u8, n: u8, peer: u8| vec![2, 0, conn, 0, n, n, 4, 1, peer, 0, 0, 0, 2, b'h', b'i', 1];
    let append = |answer: u8| vec![15, 0, 0, 0, answer];
    let peer_up = |region: u8| vec![11, 0, 0, region, 1];
    let time = || vec![13, 0, 0, 0, 210, 9, 9];
    let ship = |first: u8| vec![8, 0, 0, 0, 4, 2, 0, 0, first, 2];
    let frame = |kind: u8| vec![5, 0, 0, 0, 7, 4, 2, kind, 0, 1, 1, 1];
    let mut talk = [open(0, 0), open(1, 1), frame(4), peer_up(0), peer_up(1)].concat();
    for n in 1..=3 {
        talk.extend(send(0, n, 1));
        talk.extend(append(99));
    }
    for part in [frame(0), frame(1), frame(2), frame(3), frame(6), ship(1), append(99), ship(3), append(99), time()] {
        talk.extend(part);
    }
    let resent = [open(0, 0), send(0, 1, 1), append(99), send(0, 1, 1), append(99)].concat();
    let failed = [open(0, 0), send(0, 1, 1), append(20), append(99), send(0, 2, 1), append(40), append(3)].concat();
    let mut raw = open(0, 0);
    raw.extend([10, 0, 0, 0]);
    let beat = node_v1::Beat { wall_ms: 5, ..node_v1::Beat::default() };
    put_blob(&mut raw, &node_v1::NodeFrame { body: Some(PeerBody::Beat(beat)) }.encode_to_vec());
    vec![talk.clone(), resent, failed, raw, talk.repeat(2)]
}
