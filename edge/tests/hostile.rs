//! Clients that mean harm, over real sockets of loopback: what they say gets its exact code, what they hold is
//! bounded, and others are served meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use bytes::BytesMut;
use support::{HONEST, HOSTILE, Lane, Scene, host, patient, ping, pull, send, until};
use tern_core::codes::Code;
use tern_core::edge_api::Up;
use tern_core::limits::{FRAME_BYTES, REFERENCES};
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{codec, v1};
use tern_edge::EdgeLimits;
use tokio::io::AsyncReadExt;

/// One frame of every kind, with content that passes every check; `Send` and `Define` name what is known.
fn every_frame(scene: &Scene) -> Vec<(&'static str, Body, Sender)> {
    use Sender::{Client, Ignored, Server};
    let conversation = bytes::Bytes::from(vec![1; 16]);
    let define = v1::Define { r#ref: 1, what: Some(v1::define::What::Conversation(conversation.clone())) };
    let mark = v1::Mark { conversation, ..v1::Mark::default() };
    let hashes = v1::RowHashes { total: 64, buckets: vec![0; 64], ..v1::RowHashes::default() };
    vec![
        ("send", send(1), Client),
        ("ack", Body::Ack(v1::Ack::default()), Server),
        ("push", Body::Push(v1::Push::default()), Server),
        ("push_ack", Body::PushAck(v1::PushAck { rev: 1 }), Client),
        ("ping", ping(), Client),
        ("pong", Body::Pong(v1::Pong::default()), Server),
        ("advance", Body::Advance(v1::Advance::default()), Server),
        ("stable", Body::Stable(v1::Stable::default()), Server),
        ("signal", Body::Signal(v1::Signal::default()), Ignored),
        ("define", Body::Define(define), Client),
        ("hello", Body::Hello(scene.hello("alice")), Sender::First),
        ("welcome", Body::Welcome(v1::Welcome::default()), Server),
        ("commit", Body::Commit(v1::Commit::default()), Client),
        ("go_away", Body::GoAway(v1::GoAway::default()), Server),
        ("kick", Body::Kick(v1::Kick::default()), Server),
        ("error", Body::Error(v1::Error::default()), Server),
        ("token", Body::Token(v1::Token { token: scene.token("alice") }), Client),
        ("network", Body::Network(v1::Network::default()), Client),
        ("pull_rows", Body::PullRows(v1::PullRows::default()), Client),
        ("rows", Body::Rows(v1::Rows::default()), Server),
        ("row_hashes", Body::RowHashes(hashes), Client),
        ("pull", pull(), Client),
        ("page", Body::Page(v1::Page::default()), Server),
        ("pull_cells", Body::PullCells(v1::PullCells::default()), Ignored),
        ("mark", Body::Mark(mark), Client),
        ("unstable", Body::Unstable(v1::Unstable::default()), Client),
        ("marked", Body::Marked(v1::Marked::default()), Server),
        ("token_taken", Body::TokenTaken(v1::TokenTaken::default()), Server),
        ("pull_devices", Body::PullDevices(v1::PullDevices::default()), Client),
        ("devices", Body::Devices(v1::Devices::default()), Server),
        ("cells", Body::Cells(v1::Cells::default()), Server),
        ("pull_eras", Body::PullEras(v1::PullEras::default()), Ignored),
        ("eras", Body::Eras(v1::Eras::default()), Server),
        ("watch", Body::Watch(v1::Watch { users: vec!["bob".to_owned()] }), Client),
        ("presence", Body::Presence(v1::Presence::default()), Server),
        ("spread", Body::Spread(v1::Spread::default()), Server),
        ("packed", Body::Packed(v1::Packed::default()), Server),
    ]
}

/// A kind that is added to the protocol belongs into the list above.
#[tokio::test]
async fn every_kind_of_the_protocol_is_tried() {
    let scene = Scene::start(patient()).await;
    let proto = include_str!("../../core/proto/tern/v1/client.proto");
    let (_, body) = proto.split_once("oneof body {").unwrap();
    let (body, _) = body.split_once('}').unwrap();
    let fields = body.lines().filter_map(|line| line.split_once('=')?.0.split_whitespace().nth(1));
    let known: Vec<&str> = fields.collect();
    let mut tried: Vec<&str> = every_frame(&scene).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(known.len(), tried.len(), "{known:?} and {tried:?}");
    tried.retain(|name| !known.contains(name));
    assert!(tried.is_empty(), "the protocol has no {tried:?}");
}

/// Who may send a kind of frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    /// The client, once.
    First,
    /// The client, once it is welcome.
    Client,
    /// Kinds of other versions: not an error.
    Ignored,
    Server,
}

#[tokio::test]
async fn every_frame_at_every_wrong_moment_gets_its_code() {
    let scene = Scene::start(EdgeLimits { connections_per_user: 1_000, ..patient() }).await;
    let frames = every_frame(&scene);
    for (name, body, from) in &frames {
        // Before the Hello.
        let mut first = scene.tcp(host(HOSTILE, 1)).await.unwrap();
        first.say(5, body.clone()).await;
        if *from == Sender::First {
            assert!(matches!(first.next().await.unwrap().body, Some(Body::Welcome(_))), "{name}");
        } else {
            assert_eq!(first.refused().await, Code::WrongMoment, "{name} before the Hello");
        }
        // After it.
        let mut live = scene.tcp(host(HOSTILE, 2)).await.unwrap();
        live.enter(scene.hello("alice")).await.unwrap();
        live.say(5, body.clone()).await;
        match from {
            Sender::Client | Sender::Ignored => assert!(live.alive().await, "{name} from a client"),
            Sender::First | Sender::Server => assert_eq!(live.refused().await, Code::WrongMoment, "{name} when live"),
        }
    }
    until("the end of those that were refused", || scene.edge.connections() < 2 * frames.len()).await;
    let mut good = scene.tcp(host(HONEST, 1)).await.unwrap();
    good.enter(scene.hello("bob")).await.unwrap();
    assert!(good.alive().await);
}

/// Between Hello and Welcome nothing is read: whatever comes waits in the sender's buffers, costs nothing here, and
/// is judged as if it had come afterwards.
#[tokio::test]
async fn what_comes_before_the_welcome_is_judged_after_it() {
    let scene = Scene::start(EdgeLimits { connections_per_user: 1_000, ..patient() }).await;
    scene.core.slow.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut early = Vec::new();
    for (name, body, from) in every_frame(&scene) {
        let mut client = scene.tcp(host(HOSTILE, 1)).await.unwrap();
        client.say(1, Body::Hello(scene.hello("alice"))).await;
        client.say(5, body).await;
        client.raw(&with_length(&nested_fields(2_000))).await;
        early.push((name, from, client));
    }
    let count = early.len();
    until("all Hellos to be at the core", || scene.core.opened().len() == count).await;
    assert_eq!(scene.core.count(|up| !matches!(up, Up::Open { .. })), 0, "something went past the Hello");
    assert!(scene.memory_bytes() <= 4_096 * count as u64, "{} bytes are held", scene.memory_bytes());
    scene.core.slow.store(false, std::sync::atomic::Ordering::Relaxed);
    scene.core.welcome();
    for (name, from, mut client) in early {
        assert!(matches!(client.next().await.unwrap().body, Some(Body::Welcome(_))), "{name}");
        match from {
            Sender::Client | Sender::Ignored => assert!(client.alive().await, "{name} from a client"),
            Sender::First | Sender::Server => assert_eq!(client.refused().await, Code::WrongMoment, "{name}"),
        }
    }
}

#[tokio::test]
async fn frames_on_a_wrong_lane_close_with_wrong_moment() {
    let scene = Scene::start(patient()).await;
    for (name, body, from) in every_frame(&scene) {
        let Some(own) = v1::Frame::new(5, body.clone()).lane() else { continue };
        for lane in tern_core::wire::Lane::ALL.into_iter().filter(|lane| *lane != own) {
            if from != Sender::Client {
                continue;
            }
            let mut client = scene.quic(host(HOSTILE, 1)).await.unwrap();
            client.enter(scene.hello("alice")).await;
            let mut message = Lane::open(&client.connection).await;
            let mut bulk = Lane::open(&client.connection).await;
            let on = match lane {
                tern_core::wire::Lane::Control => &mut client.control,
                tern_core::wire::Lane::Message => &mut message,
                tern_core::wire::Lane::Bulk => &mut bulk,
            };
            on.say(5, body.clone()).await;
            assert_eq!(client.refused().await, Code::WrongMoment, "{name} on {lane:?}");
        }
    }
    // Hello on a lane that is not control.
    let client = scene.quic(host(HOSTILE, 1)).await.unwrap();
    let mut message = Lane::open(&client.connection).await;
    message.say(1, Body::Hello(scene.hello("alice"))).await;
    let mut client = client;
    client.control.say(1, ping()).await;
    assert_eq!(client.refused().await, Code::WrongMoment);
}

#[tokio::test]
async fn bytes_that_are_no_frames_close_with_their_code() {
    let scene = Scene::start(patient()).await;
    let too_large = {
        let mut out = BytesMut::new();
        prost::encoding::encode_varint(FRAME_BYTES as u64 + 1, &mut out);
        out.to_vec()
    };
    let cases: [(&str, Vec<u8>, Code); 7] = [
        ("a length of 4 GiB", vec![0xff, 0xff, 0xff, 0xff, 0x0f], Code::FrameTooLarge),
        ("a length one above the limit", too_large, Code::FrameTooLarge),
        ("a length of 10 bytes", vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Code::BadFrame),
        ("a length of 0", vec![0], Code::BadFrame),
        ("a field number of 0", vec![2, 0, 0], Code::BadFrame),
        ("a field that is cut", vec![3, 0x32, 0x7f, 0], Code::BadFrame),
        ("a varint of 11 bytes", [&[12, 0x08][..], &[0xff; 11]].concat(), Code::BadFrame),
    ];
    for (what, bytes, code) in &cases {
        for live in [false, true] {
            let mut client = scene.tcp(host(HOSTILE, 1)).await.unwrap();
            if live {
                client.enter(scene.hello("alice")).await.unwrap();
            }
            client.raw(bytes).await;
            assert_eq!(client.refused().await, *code, "{what} over TCP, live: {live}");
        }
        let mut client = scene.quic(host(HOSTILE, 1)).await.unwrap();
        client.enter(scene.hello("alice")).await;
        client.control.send.write_all(bytes).await.ok();
        assert_eq!(client.refused().await, *code, "{what} over QUIC");
    }
    assert!(scene.memory_bytes() < 1024, "{} bytes are held for nobody", scene.memory_bytes());
}

/// `depth` messages in one another, each in field 1000 of the one around it: what no version knows.
fn nested_fields(bytes: usize) -> Vec<u8> {
    let mut inner = Vec::new();
    loop {
        let mut outer = Vec::new();
        prost::encoding::encode_varint(1000 << 3 | 2, &mut outer);
        prost::encoding::encode_varint(inner.len() as u64, &mut outer);
        // Quadratic in the making; large steps keep the test quick and the depth in the thousands.
        if outer.len() + inner.len() > bytes {
            return inner;
        }
        outer.extend_from_slice(&inner);
        inner = outer;
    }
}

/// Groups in one another: the one thing that a reader of unknown fields must follow into the depth.
fn nested_groups(depth: usize) -> Vec<u8> {
    let mut out = Vec::new();
    (0..depth).for_each(|_| prost::encoding::encode_varint(1000 << 3 | 3, &mut out));
    (0..depth).for_each(|_| prost::encoding::encode_varint(1000 << 3 | 4, &mut out));
    out
}

fn with_length(frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_varint(frame.len() as u64, &mut out);
    out.extend_from_slice(frame);
    out
}

#[tokio::test]
async fn unknown_fields_however_deep_are_skipped_and_groups_without_end_refused() {
    let scene = Scene::start(patient()).await;
    let mut client = scene.tcp(host(HOSTILE, 1)).await.unwrap();
    client.enter(scene.hello("alice")).await.unwrap();
    let nested = nested_fields(64 * 1024);
    assert!(nested.len() > 60 * 1024);
    for _ in 0..100 {
        client.raw(&with_length(&nested)).await;
    }
    assert!(client.alive().await);
    // 64 KiB of empty unknown fields in a row.
    let flat: Vec<u8> = [0xc2, 0x3e, 0x00].into_iter().cycle().take(3 * 21_800).collect();
    client.raw(&with_length(&flat)).await;
    assert!(client.alive().await);
    client.raw(&with_length(&nested_groups(50))).await;
    assert!(client.alive().await, "fifty groups are deep, not hostile");
    for depth in [101, 16_000] {
        let mut client = scene.tcp(host(HOSTILE, 1)).await.unwrap();
        client.enter(scene.hello("alice")).await.unwrap();
        client.raw(&with_length(&nested_groups(depth))).await;
        assert_eq!(client.refused().await, Code::BadFrame, "{depth} groups");
    }
}

#[tokio::test]
async fn references_that_were_never_given_close_and_ten_thousand_definitions_take_no_more_room_than_a_thousand() {
    let scene = Scene::start(patient()).await;
    let conversation = |i: u32| v1::define::What::Conversation([&[9; 12][..], &i.to_be_bytes()].concat().into());
    let define = |r: u32| Body::Define(v1::Define { r#ref: r, what: Some(conversation(r)) });
    let by = |r: u32| Body::Send(v1::Send { conversation: r, n: 1, body: "hi".into(), ..v1::Send::default() });
    let cases = [
        ("a Send by a reference that was not defined", by(7)),
        ("a Send by the largest number", by(u32::MAX)),
        ("a definition of 0", define(0)),
        ("a definition that leaves a gap", define(2)),
        ("a definition above all", define(REFERENCES + 1)),
        ("a definition of the largest number", define(u32::MAX)),
    ];
    for (what, body) in cases {
        let mut client = scene.tcp(host(HOSTILE, 1)).await.unwrap();
        client.enter(scene.hello("alice")).await.unwrap();
        client.say(5, body).await;
        assert_eq!(client.refused().await, Code::BadReference, "{what}");
    }
    let mut client = scene.tcp(host(HOSTILE, 1)).await.unwrap();
    client.enter(scene.hello("alice")).await.unwrap();
    let mut out = BytesMut::new();
    for i in 0..10_000 {
        let define = v1::Define { r#ref: i % REFERENCES + 1, what: Some(conversation(i)) };
        codec::put(&v1::Frame::new(0, Body::Define(define)), &mut out);
    }
    client.raw(&out).await;
    client.say(5, by(REFERENCES)).await;
    assert!(matches!(client.next().await.unwrap().body, Some(Body::Ack(_))));
}

#[tokio::test]
async fn hellos_are_large_within_reason_and_refused_beyond() {
    let scene = Scene::start(patient()).await;
    let cursor = |i: u32| v1::Cursor { region: i + 1, era: 1, rev: 1 };
    let log = |i: u32| v1::UnstableLog {
        conversation: [&[9; 12][..], &i.to_be_bytes()].concat().into(),
        origins: vec![support::ORIGIN.into(); 16],
    };
    let hello = |cursors: u32, logs: u32| v1::Hello {
        cursors: (0..cursors).map(cursor).collect(),
        unstable: (0..logs).map(log).collect(),
        ..scene.hello("alice")
    };
    for transport in ["tcp", "quic"] {
        if transport == "tcp" {
            scene.tcp(host(HOSTILE, 1)).await.unwrap().enter(hello(64, 200)).await.unwrap();
        } else {
            // More than the window that counts before the Hello would take at once.
            scene.quic(host(HOSTILE, 1)).await.unwrap().enter(hello(64, 200)).await;
        }
    }
    let many_origins = v1::UnstableLog { origins: vec![support::ORIGIN.into(); 17], ..log(1) };
    let bad = [
        ("65 cursors", hello(65, 0)),
        ("5,000 cursors", v1::Hello { cursors: vec![cursor(0); 5_000], ..hello(0, 0) }),
        ("201 logs", hello(0, 201)),
        ("17 origins of one log", v1::Hello { unstable: vec![many_origins], ..hello(0, 0) }),
        ("60,000 empty logs", v1::Hello { unstable: vec![v1::UnstableLog::default(); 60_000], ..hello(0, 0) }),
        ("an agent of 100 KiB", v1::Hello { agent: "x".repeat(100 * 1024), ..hello(0, 0) }),
    ];
    for (what, hello) in bad {
        let mut client = scene.tcp(host(HOSTILE, 1)).await.unwrap();
        assert_eq!(client.enter(hello).await.unwrap_err().code, Code::BadFrame as u32, "{what}");
    }
    let mut client = scene.tcp(host(HOSTILE, 1)).await.unwrap();
    let token = v1::Hello { token: "x".repeat(100 * 1024), ..hello(0, 0) };
    assert_eq!(client.enter(token).await.unwrap_err().code, Code::TokenInvalid as u32);
    assert_eq!(scene.core.opened().len(), 2);
}

#[tokio::test]
async fn whoever_is_slow_before_his_hello_is_closed_in_time_and_others_are_served() {
    let limits = EdgeLimits { hello_timeout: Duration::from_millis(300), ..patient() };
    let scene = Scene::start(limits).await;
    // Silent; in the middle of a TLS record; after TLS; in the middle of a Hello.
    let mut silent = scene.plain(host(HOSTILE, 1)).await.unwrap();
    let mut in_tls = scene.plain(host(HOSTILE, 2)).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut in_tls, &[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    let mut after_tls = scene.tcp(host(HOSTILE, 3)).await.unwrap();
    let mut in_hello = scene.tcp(host(HOSTILE, 4)).await.unwrap();
    in_hello.raw(&[200, 1, 0x82, 0x01]).await;
    let quic = scene.quic(host(HOSTILE, 5)).await.unwrap();
    let mut quic_in_hello = scene.quic(host(HOSTILE, 6)).await.unwrap();
    quic_in_hello.control.send.write_all(&[200, 1, 0x82]).await.unwrap();
    // Someone who means well comes in between.
    let mut good = scene.tcp(host(HONEST, 1)).await.unwrap();
    good.enter(scene.hello("bob")).await.unwrap();
    assert_eq!(after_tls.refused().await, Code::HelloTimeout);
    assert_eq!(in_hello.refused().await, Code::HelloTimeout);
    assert_eq!(quic.refused().await, Code::HelloTimeout);
    assert_eq!(quic_in_hello.refused().await, Code::HelloTimeout);
    let mut rest = Vec::new();
    for slow in [&mut silent, &mut in_tls] {
        slow.read_to_end(&mut rest).await.ok();
    }
    assert_eq!(scene.failed("hello_timeout"), 6);
    until("the end", || scene.edge.connections() == 1).await;
    assert!(good.alive().await);
}

#[tokio::test]
async fn a_frame_that_never_ends_closes_and_one_that_goes_on_does_not() {
    let limits = EdgeLimits { frame_timeout: Duration::from_millis(400), ..patient() };
    let scene = Scene::start(limits).await;
    let mut tcp = scene.tcp(host(HOSTILE, 1)).await.unwrap();
    tcp.enter(scene.hello("alice")).await.unwrap();
    let mut quic = scene.quic(host(HOSTILE, 2)).await.unwrap();
    quic.enter(scene.hello("alice")).await;
    let mut lane = Lane::open(&quic.connection).await;
    // A frame of 100,000 bytes, a byte at a time: the connection is never idle.
    tcp.raw(&[0xa0, 0x8d, 0x06]).await;
    lane.send.write_all(&[0xa0, 0x8d, 0x06]).await.unwrap();
    let mut good = scene.tcp(host(HONEST, 1)).await.unwrap();
    good.enter(scene.hello("bob")).await.unwrap();
    let trickle = async {
        while tokio::io::AsyncWriteExt::write_all(&mut tcp.write, &[0]).await.is_ok()
            && lane.send.write_all(&[0]).await.is_ok()
            && scene.closed(Code::TooSlow) < 2
        {
            // Whole frames come all the time, with others cut: no frame takes long.
            good.raw(&with_length(&[0x08, 1, 0xc2, 0x3e, 0])[..3]).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            good.raw(&with_length(&[0x08, 1, 0xc2, 0x3e, 0])[3..]).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(support::LONG, trickle).await.unwrap();
    until("both to be closed", || scene.closed(Code::TooSlow) == 2).await;
    assert_eq!(quic.refused().await, Code::TooSlow);
    assert!(good.alive().await);
}

#[tokio::test]
async fn a_client_that_never_reads_costs_a_bounded_number_of_bytes_and_is_closed() {
    let limits = EdgeLimits { too_slow: Duration::from_millis(700), ..patient() };
    let scene = Scene::start(limits).await;
    let mut tcp = scene.tcp(host(HOSTILE, 1)).await.unwrap();
    tcp.enter(scene.hello("alice")).await.unwrap();
    let mut quic = scene.quic(host(HOSTILE, 2)).await.unwrap();
    quic.enter(scene.hello("alice")).await;
    // Nobody reads from here on. Both are pushed to until the edge closes them.
    let most = 2 * u64::try_from(limits.queue_bytes + 64 * 1024).unwrap();
    let (mut rev, mut pushed) = (1, 0u64);
    let pushing = async {
        while scene.closed(Code::TooSlow) < 2 {
            for conn in scene.core.opened() {
                scene.core.push(conn, rev..=rev, 10_000);
            }
            (rev, pushed) = (rev + 1, pushed + 20_000);
            let held = scene.memory_bytes();
            assert!(held <= most, "{held} bytes after {pushed} that were pushed");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(support::LONG, pushing).await.expect("too slow, both of them");
    assert!(pushed > 2 * most, "{pushed} bytes are too few to show anything");
    assert!(scene.metric("tern_edge_given_up_pushes_total") > 0);
    until("the end", || scene.edge.connections() == 0).await;
    assert_eq!(scene.memory_bytes(), 0);
}

#[tokio::test]
async fn above_the_memory_limit_newcomers_wait_the_slow_are_closed_sooner_and_then_all_is_well() {
    let limits = EdgeLimits {
        memory_bytes: 600 * 1024,
        queue_bytes: 400 * 1024,
        too_slow: Duration::from_secs(3600),
        // Long enough for a newcomer to be refused before the first of them is closed, on a busy machine too.
        pressed_timeout: Duration::from_secs(5),
        ..patient()
    };
    let scene = Scene::start(limits).await;
    scene.core.page_bytes.store(60_000, std::sync::atomic::Ordering::Relaxed);
    // Each asks for far more than it reads; four answers at a time, and no more before those are read.
    let mut slow = Vec::new();
    for i in 0..8 {
        let mut client = scene.tcp(host(HOSTILE, i)).await.unwrap();
        client.enter(scene.hello(&format!("u{i}"))).await.unwrap();
        slow.push(client);
    }
    let refused = async {
        let mut req = 1;
        loop {
            for client in &mut slow {
                req += 1;
                let asked = client.say(req, pull());
                // It may not even be able to ask.
                tokio::time::timeout(Duration::from_millis(1), asked).await.ok();
            }
            for conn in scene.core.opened() {
                scene.core.push(conn, 1..=20, 8_000);
            }
            if scene.memory_bytes() > 600 * 1024 {
                let mut newcomer = scene.tcp(host(HONEST, 1)).await.unwrap();
                if let Err(e) = newcomer.enter(scene.hello("bob")).await {
                    return e;
                }
            }
        }
    };
    let e = tokio::time::timeout(support::LONG, refused).await.expect("the limit is reached");
    assert_eq!((e.code, e.retry()), (Code::Overloaded as u32, v1::error::Retry::Here));
    assert!(e.retry_after_ms >= 2_000);
    // Nobody pushes any more; those who never read go long before the hour that they would have otherwise.
    until("the slow to be closed", || scene.closed(Code::TooSlow) > 0).await;
    until("room", || scene.memory_bytes() <= 600 * 1024).await;
    let mut newcomer = scene.tcp(host(HONEST, 1)).await.unwrap();
    newcomer.enter(scene.hello("bob")).await.unwrap();
    assert!(newcomer.alive().await);
}

#[tokio::test]
async fn a_core_that_is_behind_gets_no_more_messages_and_their_senders_are_told_to_wait() {
    let scene = Scene::start(patient()).await;
    let mut client = scene.tcp(host(HONEST, 1)).await.unwrap();
    client.enter(scene.hello("alice")).await.unwrap();
    scene.core.crowded.store(true, std::sync::atomic::Ordering::Relaxed);
    client.say(5, send(1)).await;
    let Some(Body::Error(e)) = client.next().await.unwrap().body else { panic!("an error") };
    assert_eq!((e.code, e.retry()), (Code::Overloaded as u32, v1::error::Retry::Here));
    assert!(e.retry_after_ms >= 2_000 && client.alive().await);
    scene.core.crowded.store(false, std::sync::atomic::Ordering::Relaxed);
    client.say(6, send(1)).await;
    assert!(matches!(client.next().await.unwrap().body, Some(Body::Ack(_))));
}

#[tokio::test]
async fn one_user_has_so_many_connections_and_others_are_not_touched_by_it() {
    let scene = Scene::start(EdgeLimits { connections_per_user: 4, ..patient() }).await;
    let mut held = Vec::new();
    for i in 0..4 {
        let mut client = scene.tcp(host(HOSTILE, i)).await.unwrap();
        client.enter(scene.hello("alice")).await.unwrap();
        held.push(client);
    }
    let mut more = scene.tcp(host(HOSTILE, 9)).await.unwrap();
    let e = more.enter(scene.hello("alice")).await.unwrap_err();
    assert_eq!((e.code, e.retry()), (Code::Overloaded as u32, v1::error::Retry::Here));
    scene.tcp(host(HOSTILE, 9)).await.unwrap().enter(scene.hello("bob")).await.unwrap();
    held.pop();
    until("the end of one", || scene.edge.connections() == 3).await;
    scene.tcp(host(HOSTILE, 9)).await.unwrap().enter(scene.hello("alice")).await.unwrap();
}

#[tokio::test]
async fn tokens_that_are_garbage_close_at_the_fifth_and_notes_without_end_at_their_limit() {
    let scene = Scene::start(EdgeLimits { notes_burst: 50, notes_per_second: 1, ..patient() }).await;
    let mut client = scene.tcp(host(HOSTILE, 1)).await.unwrap();
    client.enter(scene.hello("alice")).await.unwrap();
    for req in 2..=6 {
        client.say(req, Body::Token(v1::Token { token: "x".repeat(usize::try_from(req).unwrap() * 1_000) })).await;
    }
    assert_eq!(client.refused().await, Code::TokenInvalid);
    let mut client = scene.tcp(host(HOSTILE, 1)).await.unwrap();
    client.enter(scene.hello("alice")).await.unwrap();
    for _ in 0..60 {
        client.say(0, Body::PushAck(v1::PushAck { rev: 1 })).await;
    }
    assert_eq!(client.refused().await, Code::RateLimited);
    let acks = |up: &Up| matches!(up, Up::Frame { frame, .. } if matches!(frame.body, Some(Body::PushAck(_))));
    assert!((50..55).contains(&scene.core.count(acks)));
}

#[tokio::test]
async fn streams_and_datagrams_beyond_the_three_lanes_are_not_to_be_had_and_those_of_http3_are_not_read() {
    let scene = Scene::start(patient()).await;
    let mut client = scene.quic(host(HOSTILE, 1)).await.unwrap();
    client.enter(scene.hello("alice")).await;
    let _message = Lane::open(&client.connection).await;
    let _bulk = Lane::open(&client.connection).await;
    assert!(client.connection.max_datagram_size().is_none());
    let connection = client.connection.clone();
    // The handshake gives room for what HTTP/3 has beside requests (RFC 9114, 6.2), before it is known what is spoken.
    for _ in 0..3 {
        let mut aside = connection.open_uni().await.unwrap();
        aside.write_all(&[0; 10_000]).await.unwrap();
        aside.finish().unwrap();
    }
    tokio::select! {
        biased;
        _ = connection.open_bi() => panic!("a fourth lane"),
        _ = connection.open_uni() => panic!("a fourth stream in one direction"),
        // Fifty round trips are more than a new limit would take to come.
        () = async { for _ in 0..50 { assert!(client.alive().await) } } => {}
    }
}

#[tokio::test]
async fn lanes_that_are_reset_stopped_or_ended_in_the_middle_end_the_connection_and_the_core_is_told() {
    let scene = Scene::start(patient()).await;
    for how in ["reset", "stop", "finish"] {
        let before = scene.core.count(|up| matches!(up, Up::Close { .. }));
        let mut client = scene.quic(host(HOSTILE, 1)).await.unwrap();
        client.enter(scene.hello("alice")).await;
        let mut message = Lane::open(&client.connection).await;
        message.say(5, send(1)).await;
        assert!(matches!(message.body().await, Some(Body::Ack(_))));
        message.send.write_all(&[100, 1, 2, 3]).await.unwrap();
        match how {
            "reset" => message.send.reset(0u32.into()).unwrap(),
            "finish" => message.send.finish().unwrap(),
            _ => {
                message.frames.stream().stop(0u32.into()).unwrap();
                // The edge finds out when it next writes there.
                let (conn, mut rev) = (*scene.core.opened().last().unwrap(), 0);
                while client.connection.close_reason().is_none() {
                    rev += 1;
                    scene.core.push(conn, rev..=rev, 10);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        assert_eq!(client.refused().await, Code::Closed, "{how}");
        until("the core to be told", || scene.core.count(|up| matches!(up, Up::Close { .. })) == before + 1).await;
    }
    assert_eq!(scene.edge.connections(), 0);
    assert_eq!(scene.memory_bytes(), 0);
}

#[tokio::test]
async fn after_a_go_away_frames_count_as_before() {
    let scene = Scene::start(EdgeLimits { connections_per_user: 1_000, ..patient() }).await;
    let mut good = scene.tcp(host(HONEST, 1)).await.unwrap();
    good.enter(scene.hello("bob")).await.unwrap();
    let mut bad = scene.tcp(host(HOSTILE, 1)).await.unwrap();
    bad.enter(scene.hello("alice")).await.unwrap();
    let mut leaving = Vec::new();
    for (name, body, from) in every_frame(&scene) {
        let mut client = scene.tcp(host(HOSTILE, 2)).await.unwrap();
        client.enter(scene.hello("alice")).await.unwrap();
        leaving.push((name, client, body, from));
    }
    let edge = scene.edge.clone();
    scene.env.tasks.spawn(async move { edge.drain(Duration::from_secs(30)).await });
    for client in [&mut good, &mut bad] {
        assert!(matches!(client.next().await.unwrap().body, Some(Body::GoAway(_))));
    }
    bad.raw(&[3, 0xff, 0xff, 0xff]).await;
    assert_eq!(bad.refused().await, Code::BadFrame);
    assert!(good.alive().await);
    for (name, mut client, body, from) in leaving {
        assert!(matches!(client.next().await.unwrap().body, Some(Body::GoAway(_))), "{name}");
        client.say(5, body).await;
        match from {
            Sender::Client | Sender::Ignored => assert!(client.alive().await, "{name} from a client"),
            Sender::First | Sender::Server => assert_eq!(client.refused().await, Code::WrongMoment, "{name}"),
        }
    }
    let mut late = scene.tcp(host(HONEST, 2)).await.unwrap();
    assert_eq!(late.enter(scene.hello("carol")).await.unwrap_err().code, Code::Draining as u32);
}
