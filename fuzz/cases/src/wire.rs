//! Both wires: cutting a stream into frames, decoding them, resolving references, turning them into values.

use bytes::{Bytes, BytesMut};
use prost::Message;
use tern_core::edge_api::SendRequest;
use tern_core::ids::{ConvId, Cursor, Origin, Place, UserId};
use tern_core::limits::{FRAME_BYTES, NODE_FRAME_BYTES, REFERENCES};
use tern_core::wire::codec::{self, FrameReader};
use tern_core::wire::compact::{self, Read, Reader, Writer};
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{convert, node, node_v1, v1};

use crate::Came;
use crate::script::Script;

/// Hands the bytes over in pieces whose sizes the input itself decides, and calls `each` for every frame.
fn cut(bytes: &[u8], limit: usize, mut each: impl FnMut(Bytes) -> Came) -> Came {
    let (mut reader, mut came, mut rest) = (FrameReader::new(limit), Came::default(), bytes);
    while !rest.is_empty() {
        let count = usize::from(rest[0] % 61 + 1).min(rest.len());
        let (piece, more) = rest.split_at(count);
        rest = more;
        reader.extend(piece);
        loop {
            match reader.next_bytes() {
                Ok(Some(frame)) => {
                    assert!(!frame.is_empty() && frame.len() <= limit);
                    came = came.and(each(frame));
                }
                Ok(None) => break,
                Err(_) => return Came { refused: true, ..came },
            }
        }
        assert!(reader.buffer().len() <= bytes.len());
    }
    came
}

/// The length prefix, then `Frame`; what is decoded can be encoded and is the same again.
pub fn client_frames(bytes: &[u8]) -> Came {
    cut(bytes, FRAME_BYTES, |frame| {
        let decoded = v1::Frame::decode(frame);
        if let Ok(frame) = &decoded {
            let again = frame.encode_to_vec();
            assert_eq!(v1::Frame::decode(&again[..]).unwrap().encode_to_vec(), again);
            frame.lane();
        }
        Came::of(&decoded)
    })
}

/// References of one lane, in both directions.
pub fn compact(bytes: &[u8]) -> Came {
    let mut reader = Reader::default();
    let mut came = cut(bytes, FRAME_BYTES, |frame| {
        let Ok(frame) = v1::Frame::decode(frame) else { return Came { refused: true, accepted: false } };
        let read = reader.read(frame);
        if let Ok(Read::Send(send)) = &read {
            assert!(send.n > 0 && (1..=send.n).contains(&send.floor));
            written_is_read_again(send);
        }
        Came::of(&read)
    });
    // A definition above all numbers is never taken, however many came before.
    let what = v1::define::What::Conversation(vec![1; 16].into());
    let beyond = v1::Frame::new(0, Body::Define(v1::Define { r#ref: REFERENCES + 1, what: Some(what) }));
    came.refused |= reader.read(beyond).is_err();
    assert!(came.refused);
    came
}

fn written_is_read_again(send: &SendRequest) {
    let mut out = BytesMut::new();
    Writer::default().send(7, send, &mut out);
    let (mut frames, mut reader) = (FrameReader::new(2 * FRAME_BYTES), Reader::default());
    frames.extend(&out);
    loop {
        let frame = frames.next::<v1::Frame>().unwrap().expect("what was written");
        match reader.read(frame).unwrap() {
            Read::Noted => {}
            Read::Send(again) => {
                assert_eq!(&again, send);
                return;
            }
            other => panic!("a Send became {other:?}"),
        }
    }
}

/// One frame of many kinds, with their lengths.
pub fn client_frame_seeds() -> Vec<Vec<u8>> {
    let conversation = Bytes::from(vec![1; 16]);
    let origin = v1::Origin { region: 1, era: 9 };
    let define = |r, what| Body::Define(v1::Define { r#ref: r, what: Some(what) });
    let sender = v1::Sender { user: "alice".into(), install: "phone".into() };
    let entry =
        v1::Entry { origin: 1, seq: 1, hlc: 1 << 40, sender: 1, n: 1, body: "hi".into(), ..v1::Entry::default() };
    let head = v1::Head { origin: 1, seq: 1 };
    let place = v1::Place { hlc: 1 << 40, origin: Some(origin), seq: 3 };
    let cursor = v1::Cursor { region: 1, era: 9, rev: 5 << 30 };
    let row = v1::Row { conversation: conversation.clone(), rev: 4, heads: vec![head], ..v1::Row::default() };
    let hello = v1::Hello {
        versions: vec![1],
        token: "a.b.c".into(),
        install: "phone".into(),
        cursors: vec![cursor],
        unstable: vec![v1::UnstableLog { conversation: conversation.clone(), origins: vec![origin] }],
        ..v1::Hello::default()
    };
    let send = v1::Send { conversation: 1, n: 3, floor_back: 2, body: "hello".into(), ..v1::Send::default() };
    let offer = v1::Send {
        conversation_id: conversation.clone(),
        n: 1,
        body: "hello".into(),
        was: Some(place),
        receipt: vec![7; 16].into(),
        peer: "bob".into(),
        ..v1::Send::default()
    };
    let ack = v1::Ack { origin: 1, seq: 1, hlc: 1 << 40, receipt: vec![7; 16].into(), ..v1::Ack::default() };
    let push = v1::Push {
        conversation: 1,
        entries: vec![entry.clone()],
        heads: vec![head],
        rev: 9,
        rev_back: 1,
        ..v1::Push::default()
    };
    let rows = v1::Rows {
        origins: vec![origin],
        senders: vec![sender.clone()],
        rows: vec![row],
        upto: Some(cursor),
        last: true,
        ..v1::Rows::default()
    };
    let page = v1::Page {
        conversation: conversation.clone(),
        origin: Some(origin),
        origins: vec![origin],
        senders: vec![sender.clone()],
        entries: vec![entry],
        gaps: vec![v1::Gap { from: 2, to: 4, reason: 1 }],
        last: true,
    };
    let stable =
        v1::Stable { conversation: conversation.clone(), origin: Some(origin), upto: 3, regions: 2, offer: false };
    let pull = v1::PullEntries {
        conversation: conversation.clone(),
        origin: Some(origin),
        from: 1,
        to: 9,
        ..v1::PullEntries::default()
    };
    let all = |bodies: Vec<Body>| {
        let mut out = BytesMut::new();
        for (req, body) in (1..).zip(bodies) {
            codec::put(&v1::Frame::new(req, body), &mut out);
        }
        out.to_vec()
    };
    let definitions = || {
        vec![
            define(1, v1::define::What::Conversation(conversation.clone())),
            define(1, v1::define::What::Origin(origin)),
            define(1, v1::define::What::Sender(sender.clone())),
        ]
    };
    let with = |body: Body| all(definitions().into_iter().chain([body]).collect());
    vec![
        all(vec![Body::Hello(hello)]),
        with(Body::Send(send)),
        all(vec![Body::Send(offer)]),
        with(Body::Ack(ack)),
        with(Body::Push(push)),
        all(vec![Body::Rows(rows)]),
        all(vec![Body::Page(page)]),
        all(vec![Body::Stable(stable), Body::Advance(v1::Advance { rev: 3 })]),
        all(vec![Body::Pull(pull), Body::PullRows(v1::PullRows { above: Some(cursor), limit: 0 })]),
        all(vec![
            Body::Ping(v1::Ping { echo: 1, foreground: true, ..v1::Ping::default() }),
            Body::PushAck(v1::PushAck { rev: 4 }),
        ]),
    ]
}

/// Edge links and region links.
pub fn node_frames(bytes: &[u8]) -> Came {
    use node_v1::node_frame::Body as NodeBody;
    cut(bytes, NODE_FRAME_BYTES, |frame| {
        let Ok(frame) = node_v1::NodeFrame::decode(frame) else { return Came { refused: true, accepted: false } };
        match frame.body {
            Some(NodeBody::Up(up)) => {
                let up = node::up_from_wire(up);
                let came = Came::of(&up);
                if let Ok(up) = up {
                    let wire = node::up_to_wire(up);
                    assert_eq!(node::up_to_wire(node::up_from_wire(wire.clone()).unwrap()), wire);
                }
                came
            }
            Some(NodeBody::Down(down)) => {
                let down = node::down_from_wire(down);
                let came = Came::of(&down);
                if let Ok(down) = down {
                    let wire = node::down_to_wire(down);
                    assert_eq!(node::down_to_wire(node::down_from_wire(wire.clone()).unwrap()), wire);
                }
                came
            }
            Some(NodeBody::Ship(ship)) => Came::of(&node::entries_from_wire(ship.entries)),
            Some(NodeBody::Offer(offer)) => Came::of(&node::heads_from_wire(offer.heads)),
            Some(_) => Came { accepted: true, refused: false },
            None => Came { refused: true, accepted: false },
        }
    })
}

/// What an edge and a region say.
pub fn node_frame_seeds() -> Vec<Vec<u8>> {
    use node_v1::node_frame::Body as NodeBody;
    let mut reader = Reader::default();
    let mut seeds = Vec::new();
    let mut put = |body: NodeBody| {
        let mut out = BytesMut::new();
        codec::put(&node_v1::NodeFrame { body: Some(body) }, &mut out);
        seeds.push(out.to_vec());
    };
    for seed in client_frame_seeds() {
        let mut frames = FrameReader::new(FRAME_BYTES);
        frames.extend(&seed);
        while let Ok(Some(frame)) = frames.next::<v1::Frame>() {
            if let Ok(Read::Send(send)) = reader.read(frame.clone()) {
                put(NodeBody::Up(node::up_to_wire(tern_core::edge_api::Up::Send { conn: 1, req: 2, send })));
            }
            put(NodeBody::Up(node::up_to_wire(tern_core::edge_api::Up::Frame { conn: 1, frame })));
        }
    }
    put(NodeBody::Beat(node_v1::Beat { wall_ms: 1, ..node_v1::Beat::default() }));
    let entries = vec![crate::disk::an_entry(1, b"hi").to_bytes()];
    put(NodeBody::Ship(node_v1::Ship { entries, ..node_v1::Ship::default() }));
    put(NodeBody::Offer(node_v1::Offer::default()));
    put(NodeBody::RouteState(node_v1::RouteState::default()));
    put(NodeBody::RouteDelta(node_v1::RouteDelta { ops: vec![0, 1, b'a'].into(), ..Default::default() }));
    seeds
}

/// Single values: ids, origins, places, cursors, vectors.
pub fn values(bytes: &[u8]) -> Came {
    let mut script = Script::new(bytes);
    let mut came = Came::default();
    while let Some(kind) = script.more() {
        came = came.and(match kind % 7 {
            0 => Came::of(&convert::conversation(script.blob())),
            1 => {
                let id = UserId::from_bytes(script.blob());
                if let Ok(id) = &id {
                    assert!((1..=64).contains(&id.as_str().len()));
                    assert_eq!(UserId::new(id.as_str()).as_ref(), Ok(id));
                }
                Came::of(&id)
            }
            2 => {
                let wire = v1::Origin { region: script.number32(), era: script.number() };
                let origin = Origin::try_from(wire);
                assert_eq!(origin.as_ref().map(|o| v1::Origin::from(*o)).ok(), origin.is_ok().then_some(wire));
                Came::of(&origin)
            }
            3 => {
                let origin = (script.pick(4) > 0).then(|| v1::Origin { region: script.number32(), era: 1 });
                let wire = v1::Place { hlc: script.number(), origin, seq: script.number() };
                let place = Place::try_from(wire);
                assert_eq!(place.as_ref().map(|p| v1::Place::from(*p)).ok(), place.is_ok().then_some(wire));
                Came::of(&place)
            }
            4 => {
                let wire = v1::Cursor { region: script.number32(), era: script.number(), rev: script.number() };
                let cursor = Cursor::try_from(wire);
                assert_eq!(cursor.as_ref().map(|c| v1::Cursor::from(*c)).ok(), cursor.is_ok().then_some(wire));
                Came::of(&cursor)
            }
            5 => {
                let count = script.number() % 600;
                let heads = (0..count).map(|i| v1::OriginHead {
                    origin: Some(v1::Origin { region: script.number32() % 300, era: i }),
                    seq: i,
                });
                let heads = compact::origin_heads_from_wire(heads.collect());
                if let Ok(heads) = &heads {
                    assert_eq!(
                        compact::origin_heads_from_wire(compact::origin_heads_to_wire(heads)).as_ref(),
                        Ok(heads)
                    );
                }
                Came::of(&heads)
            }
            _ => {
                let (a, b) = (script.blob(), script.blob());
                match (UserId::from_bytes(a), UserId::from_bytes(b)) {
                    (Ok(a), Ok(b)) => {
                        assert_eq!(ConvId::direct(b"s", &a, &b), ConvId::direct(b"s", &b, &a));
                        Came { accepted: true, refused: false }
                    }
                    _ => Came { accepted: false, refused: true },
                }
            }
        });
    }
    came
}

/// One value of each kind, and some that are none.
pub fn value_seeds() -> Vec<Vec<u8>> {
    let id = [&[0, 16][..], &[1; 16]].concat();
    let names = [&[1, 5][..], b"alice", &[6, 5], b"alice", &[3], b"bob"].concat();
    vec![
        id,
        names,
        vec![2, 1, 9, 2, 0, 9, 3, 1, 1, 7, 3, 4, 1, 9, 5],
        vec![5, 3, 1, 2, 3, 5, 250, 0, 0, 0, 0, 0, 0, 2, 88],
    ]
}
