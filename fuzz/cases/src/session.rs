//! An edge's session: frames in any order on any lane, answers of the core in any order, any weather.

use bytes::Bytes;
use prost::Message;
use tern_core::codes::{Code, Refusal};
use tern_core::edge_api::{Ack, DownBody, Page, Up};
use tern_core::ids::{ConvId, Heads, Origin, Place};
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{Lane, v1};
use tern_edge::fuzzing::{Came as FromSession, SessionUnderTest, Weather};

use crate::Came;
use crate::documents::{WALL_MS, keys, token};
use crate::script::{Script, put_blob};

const ORIGIN: Origin = Origin { region: 1, era: 9 };
const CONVERSATION: ConvId = ConvId([1; 16]);

/// What the core owes.
#[derive(Default)]
struct Owed {
    opened: bool,
    sends: Vec<u32>,
    frames: Vec<v1::Frame>,
}

impl Owed {
    fn take(&mut self, (ups, answers): FromSession, came: &mut Came) {
        for up in ups {
            came.accepted = true;
            match up {
                Up::Open { hello, .. } => {
                    assert!(!self.opened, "a connection opens once");
                    assert!(hello.token.is_empty(), "the core is not told tokens");
                    self.opened = true;
                }
                Up::Send { req, send, .. } => {
                    assert!(self.opened && req != 0 && send.n > 0);
                    self.sends.push(req);
                }
                Up::Frame { frame, .. } => {
                    assert!(self.opened, "the core hears of nobody whom it has not welcomed");
                    self.frames.push(frame);
                }
                Up::Attach { .. } | Up::Resume { .. } => panic!("only a router says those"),
                Up::Close { .. } => panic!("a session does not close itself"),
            }
        }
        for frame in answers {
            if let Some(Body::Error(e)) = &frame.body {
                came.refused = true;
                assert!(Code::from_u32(e.code).is_some());
                // Nobody is told to come again at once where that would be a loop.
                assert!(e.code != Code::Overloaded as u32 || e.retry_after_ms > 0);
            }
        }
    }

    fn answer(&mut self, which: u8, last: bool) -> Option<DownBody> {
        if !self.sends.is_empty() && which.is_multiple_of(2) {
            let req = self.sends.remove(usize::from(which) % self.sends.len());
            let place = Place { hlc: 1 << 40, origin: ORIGIN, seq: 1 };
            let (first, also, cut) = (None, vec![], Heads::new());
            let ack = Ack { place, first, receipt: [7; 16], also, receipt_refused: false, cut };
            return Some(DownBody::Ack { req, ack });
        }
        if self.frames.is_empty() {
            return None;
        }
        let at = usize::from(which) % self.frames.len();
        let req = self.frames[at].req;
        let frame = |body| Some(DownBody::Frame(Box::new(v1::Frame::new(req, body))));
        match self.frames[at].body {
            Some(Body::Pull(_)) => {
                if last {
                    self.frames.remove(at);
                }
                let page = Page { conversation: CONVERSATION, origin: ORIGIN, entries: vec![], gaps: vec![], last };
                Some(DownBody::Page { req, page })
            }
            Some(Body::PullRows(_) | Body::RowHashes(_)) => {
                self.frames.remove(at);
                frame(Body::Rows(v1::Rows { last, ..v1::Rows::default() }))
            }
            Some(Body::Ping(_)) => {
                self.frames.remove(at);
                frame(Body::Pong(v1::Pong::default()))
            }
            Some(Body::Mark(_) | Body::PullDevices(_)) => {
                self.frames.remove(at);
                frame(Body::Error(Refusal::new(Code::Internal, "x").to_wire()))
            }
            _ => {
                self.frames.remove(at);
                None
            }
        }
    }
}

fn body(script: &mut Script<'_>) -> Body {
    let conversation = Bytes::from(vec![1; if script.pick(16) == 0 { 15 } else { 16 }]);
    let origin = Some(v1::Origin { region: u32::from(script.pick(4)), era: 9 });
    let cursor = v1::Cursor { region: u32::from(script.pick(4)), era: 9, rev: script.number() };
    let logs = || vec![v1::UnstableLog { conversation: conversation.clone(), origins: origin.into_iter().collect() }];
    match script.u8() % 24 {
        0 | 1 => Body::Hello(v1::Hello {
            versions: vec![if script.pick(8) == 0 { 9 } else { 1 }],
            token: match script.pick(4) {
                0 => String::from_utf8_lossy(script.blob()).into_owned(),
                _ => token("alice"),
            },
            install: "phone".into(),
            cursors: vec![cursor; usize::from(script.pick(70))],
            unstable: logs(),
            ..v1::Hello::default()
        }),
        2 | 3 => Body::Send(v1::Send {
            conversation_id: conversation,
            n: script.number(),
            floor_back: script.number(),
            seen_hlc: script.number(),
            kind: script.number32(),
            body: script.blob().to_vec().into(),
            ..v1::Send::default()
        }),
        4 => Body::Send(v1::Send { conversation: script.number32(), n: 1, ..v1::Send::default() }),
        5 => Body::Define(v1::Define {
            r#ref: script.number32(),
            what: Some(v1::define::What::Conversation(conversation)),
        }),
        6 | 7 => Body::Ping(v1::Ping { echo: script.number32(), foreground: true, ..v1::Ping::default() }),
        8 => Body::PushAck(v1::PushAck { rev: script.number() }),
        9 => Body::Commit(v1::Commit { race: 1, attempt: 1, order: script.number() }),
        10 => Body::Network(v1::Network::default()),
        11 => Body::Unstable(v1::Unstable { logs: logs() }),
        12 | 13 => Body::Pull(v1::PullEntries {
            conversation,
            origin,
            from: script.number(),
            to: script.number(),
            limit: script.number32(),
            backwards: false,
        }),
        14 => Body::PullRows(v1::PullRows { above: Some(cursor), limit: script.number32() }),
        15 => Body::RowHashes(v1::RowHashes {
            total: script.number32(),
            buckets: vec![7; usize::from(script.pick(100))],
            ..v1::RowHashes::default()
        }),
        16 => Body::Token(v1::Token { token: if script.pick(2) == 0 { token("alice") } else { token("bob") } }),
        17 => Body::Mark(v1::Mark { conversation, ..v1::Mark::default() }),
        18 => Body::PullDevices(v1::PullDevices::default()),
        19 => Body::Signal(v1::Signal::default()),
        20 => Body::PullCells(v1::PullCells::default()),
        23 => Body::PullEras(v1::PullEras { conversation, ..v1::PullEras::default() }),
        24 => Body::Eras(v1::Eras::default()),
        21 => Body::Welcome(v1::Welcome::default()),
        22 => Body::Push(v1::Push::default()),
        _ => Body::Error(v1::Error::default()),
    }
}

/// See the module.
pub fn run(bytes: &[u8]) -> Came {
    let mut script = Script::new(bytes);
    let mut session = SessionUnderTest::new(keys(), WALL_MS);
    let (mut owed, mut came) = (Owed::default(), Came::default());
    while let Some(op) = script.more() {
        let lane = [None, Some(Lane::Control), Some(Lane::Message), Some(Lane::Bulk)][usize::from(script.pick(4))];
        let told = match op % 16 {
            0..=7 => {
                let req = u32::from(script.pick(12));
                let frame = v1::Frame::new(req, body(&mut script));
                // Mostly where it belongs.
                let lane = if script.pick(8) == 0 { lane } else { frame.lane() };
                session.frame(lane, frame.encode_to_vec().into())
            }
            8 => session.frame(lane, script.blob().to_vec().into()),
            9 => Some(session.pass(script.number() % 4_000_000)),
            10 => {
                let weather = script.u8();
                session.weather = Weather {
                    core_reachable: weather & 1 == 0,
                    draining: weather & 6 == 6,
                    pressed: weather & 24 == 24,
                    crowded: weather & 96 == 96,
                };
                None
            }
            11 => {
                session.roam(u16::from(script.u8()));
                None
            }
            12 if owed.opened && !session.is_live() => {
                let welcome = Body::Welcome(v1::Welcome::default());
                session.down(DownBody::Frame(Box::new(v1::Frame::new(1, welcome))));
                assert!(session.is_live());
                None
            }
            _ => {
                let (which, last) = (script.u8(), script.pick(4) > 0);
                if let Some(down) = owed.answer(which, last) {
                    session.down(down);
                }
                None
            }
        };
        match told {
            Some(Ok(outcome)) => owed.take(outcome, &mut came),
            Some(Err(refusal)) => {
                assert!(!refusal.message.is_empty());
                return Came { refused: true, ..came };
            }
            None => {}
        }
        session.check();
    }
    came
}

/// A session as it should be, with some of everything; a raw frame; bad weather.
pub fn seeds() -> Vec<Vec<u8>> {
    // Operation, lane, req, conversation, region, region of the cursor, its rev, kind, ...: see `run` and `body`.
    let frame = |kind: u8, more: &[u8]| [&[0, 0, 5, 1, 1, 1, 3, kind][..], more, &[1]].concat();
    let hello = frame(0, &[1, 1, 2]);
    let welcome = vec![12, 0];
    let answer = vec![13, 0, 0, 1];
    let mut whole = [hello.clone(), welcome.clone()].concat();
    for part in [
        frame(2, &[1, 0, 3, 0, 2, b'h', b'i']),
        answer.clone(),
        frame(6, &[7]),
        vec![13, 0, 1, 1],
        frame(12, &[1, 9, 0]),
        vec![13, 0, 1, 0],
        vec![13, 0, 1, 1],
        frame(14, &[0]),
        vec![13, 0, 1, 1],
        frame(16, &[0]),
        frame(8, &[4]),
        frame(11, &[]),
        vec![9, 0, 100],
        vec![11, 0, 9],
    ] {
        whole.extend(part);
    }
    let mut raw = [hello.clone(), welcome].concat();
    raw.extend([8, 1]);
    put_blob(
        &mut raw,
        &v1::Frame::new(4, Body::Ping(v1::Ping { echo: 1, foreground: true, ..v1::Ping::default() })).encode_to_vec(),
    );
    let storm = [&hello[..], &[10, 0, 1], &frame(2, &[1, 0, 3, 0, 1, b'x']), &[10, 0, 24]].concat();
    vec![whole.clone(), raw, storm, whole.repeat(3), vec![10, 0, 6, 0, 0, 5, 1, 1, 1, 3, 0, 1, 1, 2, 1]]
}
