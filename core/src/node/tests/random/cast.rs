//! Devices, their connections, and what is on the way.

use super::*;
use crate::client::{Effect, Failure, Op, Outbound, Transport};
use crate::codes::Code;
use crate::wire::Lane;
use crate::wire::codec::FrameReader;
use crate::wire::compact::{Read, Table};
use bytes::BytesMut;

/// A connection between a device and a region: bytes on lanes, both ways.
pub(super) struct Wire {
    pub(super) region: Region,
    pub(super) conn: u64,
    up: [VecDeque<v1::Frame>; 3],
    down: [VecDeque<v1::Frame>; 3],
    up_tables: (Writer, Reader),
    down_tables: (Writer, Reader),
    /// Told to the client when it happens.
    pub(super) broken: bool,
}

pub(super) struct Device {
    pub(super) user: &'static str,
    pub(super) setup: Setup,
    pub(super) book: Book,
    pub(super) machine: Machine,
    pub(super) wires: BTreeMap<ConnNo, Wire>,
    pub(super) refused: Vec<ConnNo>,
    /// It finds no way to this region.
    pub(super) avoids: Option<Region>,
    /// Removed by its user.
    pub(super) kicked: bool,
}

fn frames(bytes: &BytesMut) -> Vec<v1::Frame> {
    let mut reader = FrameReader::new(1 << 20);
    reader.extend(bytes);
    std::iter::from_fn(|| reader.next::<v1::Frame>().unwrap()).collect()
}

fn lane(frame: &v1::Frame) -> usize {
    frame.lane().unwrap_or(Lane::Message).index()
}

impl Device {
    /// `first`: where in the list of regions it begins to look for one.
    pub(super) fn new(user_name: &'static str, device: &str, first: usize, seed: u64) -> Self {
        let candidate = |(_, region): &(Region, &str)| Candidate {
            edge: format!("{region}-e1"),
            region: (*region).into(),
            address: format!("{region}:1"),
            server_name: "x".into(),
            quic: true,
            tcp: false,
            quic_timeout: Duration::from_secs(1),
            tcp_timeout: Duration::from_secs(2),
        };
        let mut fallback: Vec<_> = REGIONS.iter().map(candidate).collect();
        fallback.rotate_left(first % REGIONS.len());
        let setup = Setup {
            user: user(user_name),
            agent: "test".into(),
            fallback,
            dispatch_targets: 0,
            device: String::new(),
            seed,
        };
        let book = Book::new(user(user_name), install(&format!("{user_name}-{device}")));
        let machine = Machine::new(setup.clone(), book.image());
        Self {
            user: user_name,
            setup,
            book,
            machine,
            wires: BTreeMap::new(),
            refused: Vec::new(),
            avoids: None,
            kicked: false,
        }
    }
}

impl Run {
    pub(super) fn note(&mut self, what: String) {
        self.log.push(format!("{:>9.1} {what}", self.world.now.as_secs_f64()));
    }

    /// Applies what a machine says; it may die after the ops of any step.
    pub(super) fn steps(&mut self, i: usize, may_crash: bool) {
        loop {
            let now = self.world.now;
            let step = self.devices[i].machine.take_step();
            if step.ops.is_empty() && step.effects.is_empty() {
                return;
            }
            self.note_acks(i, &step.ops);
            self.devices[i].book.apply(&step.ops);
            if may_crash && self.rng.random_bool(0.004) {
                self.note(format!("{i} crashes"));
                self.crash_client(i);
                return;
            }
            for effect in step.effects {
                match effect {
                    Effect::Connect { conn, candidate, transport, hello, .. } => {
                        assert_eq!(transport, Transport::Quic);
                        self.dial(i, conn, &candidate.region, *hello.0);
                    }
                    Effect::Close { conn, .. } => self.hang_up(i, conn),
                    Effect::Write { conn, out } => {
                        if let Some(wire) = self.devices[i].wires.get_mut(&conn) {
                            let mut bytes = BytesMut::new();
                            match out {
                                Outbound::Send(req, send) => wire.up_tables.0.send(req, &send, &mut bytes),
                                Outbound::Frame(frame) => wire.up_tables.0.plain(&frame, &mut bytes),
                            }
                            for frame in frames(&bytes) {
                                wire.up[lane(&frame)].push_back(frame);
                            }
                        }
                    }
                    Effect::Dispatch(..) => self.devices[i].machine.dispatch_failed(now),
                    Effect::Token { .. } => self.devices[i].machine.token(now, Some("token".into())),
                    Effect::Event(event) => self.hear(i, event),
                }
            }
        }
    }

    fn hear(&mut self, i: usize, event: Event) {
        let now = self.world.now;
        match event {
            Event::Kicked { code, .. } if code == Code::Kicked as u32 => {
                self.note(format!("{i} was removed by its user"));
                self.devices[i].kicked = true;
            }
            // A bind that was on its way when the client had moved on: the application's user sees that another
            // connection took over, and connects again.
            Event::Kicked { .. } => self.devices[i].machine.connect(now),
            Event::Failed { .. } if !self.mix.people => panic!("{}\n{i}: {event:?}", self.log.join("\n")),
            Event::Failed { .. } => self.drop_failed(i),
            Event::ChangeRefused { kind, code, .. } => self.note(format!("{i}: kind {kind} is refused with {code}")),
            _ => {}
        }
    }

    /// What a client has stored as acked must never be lost.
    fn note_acks(&mut self, i: usize, ops: &[Op]) {
        for op in ops {
            if let Op::Outgoing(record) = op
                && record.state == MessageState::Sent
            {
                let by = Identity { user: user(self.devices[i].user), install: record.install.clone(), n: record.n };
                self.acked.insert((i, record.conversation, by));
            }
        }
    }

    pub(super) fn crash_client(&mut self, i: usize) {
        let now = self.world.now;
        let conns: Vec<ConnNo> = self.devices[i].wires.keys().copied().collect();
        for conn in conns {
            self.hang_up(i, conn);
        }
        let seed = self.rng.random();
        let device = &mut self.devices[i];
        device.machine = Machine::new(Setup { seed, ..device.setup.clone() }, device.book.image());
        device.machine.connect(now);
        self.steps(i, false);
    }

    fn dial(&mut self, i: usize, conn: ConnNo, region: &str, hello: v1::Frame) {
        let region = REGIONS.iter().find(|(_, name)| *name == region).unwrap().0;
        let avoided = self.devices[i].avoids == Some(region);
        if avoided || !self.world.cores.get(&region).is_some_and(Option::is_some) {
            self.devices[i].refused.push(conn);
            return;
        }
        let Some(Body::Hello(hello_body)) = hello.body else { panic!("a connection begins with Hello") };
        let number = self.next_conn;
        self.next_conn += 1;
        self.note(format!("{i} dials {region}: attempt {conn}, connection {number}"));
        let wire = Wire {
            region,
            conn: number,
            up: Default::default(),
            down: Default::default(),
            up_tables: Default::default(),
            down_tables: Default::default(),
            broken: false,
        };
        let open = Up::Open {
            conn: number,
            req: hello.req,
            user: user(self.devices[i].user),
            install: InstallId::new(&hello_body.install).unwrap(),
            hello: Box::new(hello_body),
            address: String::new(),
            transport: "quic",
            token_expires_ms: 0,
            token_issued_ms: 0,
        };
        self.devices[i].wires.insert(conn, wire);
        self.world.readers.insert((region, number), user(self.devices[i].user));
        self.world.ups(region, 1, vec![open]);
    }

    /// The client's end of a connection is gone; the region hears of it, now or never.
    pub(super) fn hang_up(&mut self, i: usize, conn: ConnNo) {
        let Some(wire) = self.devices[i].wires.remove(&conn) else { return };
        self.note(format!("{i} hangs up {}", wire.conn));
        let heard = self.rng.random_bool(0.7);
        if heard && self.world.cores[&wire.region].is_some() {
            self.world.ups(wire.region, 1, vec![Up::Close { conn: wire.conn }]);
        }
    }

    /// Moves what regions said onto the wires.
    fn collect(&mut self) {
        for device in &mut self.devices {
            for wire in device.wires.values_mut() {
                let key = (wire.region, ConnKey { edge: 1, conn: wire.conn });
                let Some(told) = self.world.told.get_mut(&key) else { continue };
                for body in std::mem::take(&mut told.all) {
                    let mut bytes = BytesMut::new();
                    match body {
                        DownBody::Ack { req, ack } => wire.down_tables.0.ack(req, &ack, &mut bytes),
                        DownBody::Push(push) => wire.down_tables.0.push(&push, &mut bytes),
                        DownBody::Frame(frame) => wire.down_tables.0.plain(&frame, &mut bytes),
                        DownBody::Page { req, page } => wire.down_tables.0.plain(&page_frame(req, &page), &mut bytes),
                        DownBody::Last(refusal) => {
                            let error = v1::Frame::new(0, Body::Error(refusal.to_wire()));
                            wire.down_tables.0.plain(&error, &mut bytes);
                        }
                    }
                    for frame in frames(&bytes) {
                        wire.down[lane(&frame)].push_back(frame);
                    }
                }
            }
        }
    }

    /// Delivers one frame of a random lane, either way. Whether there was one.
    pub(super) fn deliver(&mut self, may_crash: bool) -> bool {
        self.collect();
        let mut ways = Vec::new();
        for (i, device) in self.devices.iter().enumerate() {
            for (conn, wire) in &device.wires {
                for l in 0..3 {
                    if !wire.up[l].is_empty() && !wire.broken {
                        ways.push((i, *conn, l, true));
                    }
                    if !wire.down[l].is_empty() && !wire.broken {
                        ways.push((i, *conn, l, false));
                    }
                }
            }
        }
        if ways.is_empty() {
            return false;
        }
        let (i, conn, l, up) = ways[self.rng.random_range(0..ways.len())];
        let now = self.world.now;
        let device = &mut self.devices[i];
        let wire = device.wires.get_mut(&conn).unwrap();
        if up {
            let frame = wire.up[l].pop_front().unwrap();
            let req = frame.req;
            let up = match wire.up_tables.1.read(frame).unwrap() {
                Read::Noted => return true,
                Read::Send(send) => Up::Send { conn: wire.conn, req, send },
                Read::Other(frame) => Up::Frame { conn: wire.conn, frame },
                other => panic!("{other:?}"),
            };
            let region = wire.region;
            self.world.ups(region, 1, vec![up]);
        } else {
            let frame = wire.down[l].pop_front().unwrap();
            let req = frame.req;
            if let Some(Body::Error(e)) = &frame.body {
                let what = format!("{i} connection {} is told {} {}", wire.conn, e.code, e.message);
                self.log.push(format!("{:>9.1} {what}", now.as_secs_f64()));
            }
            match wire.down_tables.1.read(frame).unwrap() {
                Read::Noted => return true,
                read => {
                    device.machine.frame(now, conn, req, read);
                    device.machine.frames_done(now);
                }
            }
            self.steps(i, may_crash);
        }
        true
    }

    pub(super) fn let_pass(&mut self, time: Duration) {
        self.world.pass(time);
        let now = self.world.now;
        for i in 0..self.devices.len() {
            for conn in std::mem::take(&mut self.devices[i].refused) {
                self.devices[i].machine.ended(now, conn, &Failure::Network("refused".into()));
            }
            self.devices[i].machine.tick(now);
            self.steps(i, false);
        }
    }
}

fn page_frame(req: u32, page: &Page) -> v1::Frame {
    let mut table = Table::default();
    let entries = page.entries.iter().map(|e| table.entry(e)).collect();
    let gaps = page.gaps.iter().map(|(from, to, r)| v1::Gap { from: *from, to: *to, reason: *r as i32 }).collect();
    let body = v1::Page {
        conversation: page.conversation.0.to_vec().into(),
        origin: Some(page.origin.into()),
        origins: table.wire_origins,
        senders: table.wire_senders,
        entries,
        gaps,
        last: page.last,
    };
    v1::Frame::new(req, Body::Page(body))
}
