use std::sync::atomic::Ordering;

use super::*;
use crate::config::{EdgeConfig, EdgeLimits};
use crate::listen::drive_stream;
use crate::testing::{FakeCore, Peer, edge, hello, ping, send, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// A client on a stream that holds `bytes` on the way.
fn join(edge: &Arc<Edge>, bytes: usize) -> Peer<DuplexStream> {
    let (near, far) = duplex(bytes);
    let edge = edge.clone();
    let conn = edge.enter("tcp").unwrap();
    edge.env.tasks.clone().spawn(async move {
        drive_stream(&edge, &conn, far, "192.0.2.1:7".parse().unwrap(), None).await;
        edge.leave(&conn, "tcp");
    });
    Peer::new(near)
}

fn start(limits: EdgeLimits) -> (Arc<Edge>, Arc<FakeCore>) {
    let (edge, core) = edge(EdgeConfig { limits, ..EdgeConfig::default() });
    edge.run_without_sockets(core.clone());
    (edge, core)
}

#[tokio::test(start_paused = true)]
async fn a_session_from_hello_to_the_end() {
    let (edge, core) = start(EdgeLimits::default());
    let mut peer = join(&edge, 100_000);
    let welcome = peer.enter("alice").await;
    assert_eq!(welcome.edge, "e1");
    peer.say(2, ping(9)).await;
    assert!(matches!(peer.body().await, Body::Pong(p) if p.echo == 9 && p.rev == 5));
    peer.say(3, send(1)).await;
    // The ack's origin is defined first.
    assert!(matches!(peer.body().await, Body::Define(_)));
    assert!(matches!(peer.next().await.unwrap(), v1::Frame { req: 3, body: Some(Body::Ack(a)) } if a.seq == 1));
    core.push(core.opened()[0], 1..=1, 10);
    let push = loop {
        match peer.body().await {
            Body::Define(_) => {}
            other => break other,
        }
    };
    assert!(matches!(push, Body::Push(p) if p.rev == 1 && p.entries.len() == 1));
    drop(peer);
    until("the close", || core.count(|up| matches!(up, Up::Close { .. })) == 1).await;
    until("the leave", || edge.connections() == 0).await;
    assert_eq!((edge.metrics.queue_bytes.get(), edge.metrics.frames_in.get()), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_never_comes_garbage_and_frames_too_large_are_told_and_closed() {
    let (edge, core) = start(EdgeLimits::default());
    assert_eq!(join(&edge, 1000).refused().await, Code::HelloTimeout);
    for (bytes, code) in [
        (&[5u8, 0xff, 0xff, 0xff, 0xff, 0xff][..], Code::BadFrame),
        (&[0], Code::BadFrame),
        (&[0xff; 5], Code::BadFrame),
        (&[0x81, 0x80, 0x08], Code::FrameTooLarge),
    ] {
        let mut peer = join(&edge, 1000);
        peer.write.write_all(bytes).await.unwrap();
        assert_eq!(peer.refused().await, code, "{bytes:?}");
    }
    let mut truncated = join(&edge, 1000);
    truncated.write.write_all(&[100, 1, 2]).await.unwrap();
    truncated.write.shutdown().await.unwrap();
    assert_eq!(truncated.next().await, None);
    assert_eq!(core.count(|_| true), 0, "the core heard of none of them");
}

#[tokio::test(start_paused = true)]
async fn failed_handshakes_block_their_address_for_a_while() {
    let limits = EdgeLimits { failed_handshakes_per_second: 1, failed_handshakes_burst: 3, ..EdgeLimits::default() };
    let (edge, _core) = start(limits);
    let from = "192.0.2.99".parse().unwrap();
    for _ in 0..3 {
        assert!(edge.blocked(from).is_none());
        let mut peer = join(&edge, 1000);
        let bad = v1::Hello { versions: vec![1], token: "x".into(), install: "i".into(), ..v1::Hello::default() };
        peer.say(1, Body::Hello(bad)).await;
        assert_eq!(peer.refused().await, Code::TokenInvalid);
    }
    assert!(edge.blocked(from).is_some());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(edge.blocked(from).is_none());
    for _ in 0..10 {
        join(&edge, 1000).enter("alice").await;
    }
    assert!(edge.blocked(from).is_none(), "valid tokens do not count");
}

#[tokio::test(start_paused = true)]
async fn pushes_to_a_slow_client_give_way_to_one_advance() {
    let (edge, core) = start(EdgeLimits::default());
    let mut peer = join(&edge, 4096);
    peer.enter("alice").await;
    let conn = core.opened()[0];
    for rev in (1..=2000).step_by(50) {
        core.push(conn, rev..=rev + 49, 100);
        tokio::task::yield_now().await;
    }
    assert!(edge.metrics.queue_bytes.get() <= 256 * 1024);
    let (mut pushes, mut last) = (0, 0);
    loop {
        match peer.body().await {
            Body::Push(push) => {
                assert_eq!(push.rev, last + 1, "what comes before the gap has none");
                pushes += 1;
                last = push.rev;
            }
            Body::Advance(advance) => {
                assert_eq!(advance.rev, 2000);
                break;
            }
            Body::Define(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(pushes > 0 && pushes + edge.metrics.pushes_given_up.get() == 2000);
    core.push(conn, 2001..=2001, 10);
    assert!(matches!(peer.body().await, Body::Push(p) if p.rev == 2001));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_closed_after_two_minutes_and_not_before() {
    let (edge, core) = start(EdgeLimits::default());
    let mut peer = join(&edge, 4096);
    peer.enter("alice").await;
    core.push(core.opened()[0], 1..=100, 1000);
    tokio::time::sleep(Duration::from_secs(119)).await;
    assert_eq!(edge.connections(), 1);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(edge.connections(), 0);
    assert_eq!(edge.metrics.queue_bytes.get(), 0);
    assert_eq!(core.count(|up| matches!(up, Up::Close { .. })), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_slowly_but_reads_is_not_closed() {
    let (edge, core) = start(EdgeLimits::default());
    let (near, far) = duplex(1024);
    let conn = edge.enter("tcp").unwrap();
    let driving = edge.clone();
    edge.env.tasks.spawn(async move {
        drive_stream(&driving, &conn, far, "192.0.2.1:7".parse().unwrap(), None).await;
        driving.leave(&conn, "tcp");
    });
    let (mut read, write) = tokio::io::split(near);
    let mut bytes = bytes::BytesMut::new();
    codec::put(&v1::Frame::new(1, hello("alice")), &mut bytes);
    let mut write = write;
    write.write_all(&bytes).await.unwrap();
    until("the open", || core.opened().len() == 1).await;
    core.push(core.opened()[0], 1..=100, 1000);
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(20)).await;
        read.read_exact(&mut [0; 1024]).await.unwrap();
    }
    assert_eq!(edge.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_more_is_read_while_too_many_requests_are_open() {
    let (edge, core) = start(EdgeLimits { in_flight: 10, ..EdgeLimits::default() });
    let mut peer = join(&edge, 100_000);
    assert_eq!(peer.enter("alice").await.edge, "e1");
    core.silent.store(true, Ordering::Relaxed);
    for n in 1..=30 {
        peer.say(n, send(u64::from(n))).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let sends = |core: &FakeCore| core.count(|up| matches!(up, Up::Send { .. }));
    assert_eq!(sends(&core), 10);
    core.silent.store(false, Ordering::Relaxed);
    let waiting: Vec<_> = {
        let ups = core.ups.lock().unwrap();
        ups.iter()
            .filter(|up| matches!(up, Up::Send { .. }))
            .filter_map(|up| core.answer(up).map(|body| tern_core::edge_api::Down { conn: up.conn(), body }))
            .collect()
    };
    core.deliver(waiting);
    until("the rest", || sends(&core) == 30).await;
}

#[tokio::test(start_paused = true)]
async fn when_the_core_is_lost_clients_are_told_and_sent_elsewhere() {
    let (edge, core) = start(EdgeLimits::default());
    let mut peer = join(&edge, 100_000);
    peer.enter("alice").await;
    core.reachable.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    peer.say(2, ping(1)).await;
    assert!(matches!(peer.body().await, Body::Pong(p) if p.rev_unknown));
    peer.say(3, send(1)).await;
    assert_eq!(peer.refused().await, Code::CoreUnreachable);
    let mut newcomer = join(&edge, 1000);
    newcomer.say(1, hello("bob")).await;
    assert_eq!(newcomer.refused().await, Code::CoreUnreachable);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(edge.connections(), 1, "a core that is back within 5 s would cost a reconnect only then");
    assert_eq!(peer.refused().await, Code::CoreUnreachable);
}

#[tokio::test(start_paused = true)]
async fn a_core_that_is_back_knows_none_of_the_old_sessions_so_they_are_closed_and_new_ones_served() {
    let (edge, core) = start(EdgeLimits::default());
    let mut peer = join(&edge, 100_000);
    peer.enter("alice").await;
    core.reachable.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    core.reachable.store(true, Ordering::Relaxed);
    assert_eq!(peer.refused().await, Code::CoreUnreachable);
    let mut again = join(&edge, 100_000);
    again.enter("alice").await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    again.say(2, ping(1)).await;
    assert!(matches!(again.body().await, Body::Pong(p) if !p.rev_unknown));
}

#[tokio::test(start_paused = true)]
async fn a_drain_tells_everyone_where_to_go_refuses_newcomers_and_closes_who_stays() {
    let (edge, core) = start(EdgeLimits::default());
    let mut stays = join(&edge, 100_000);
    stays.enter("alice").await;
    let mut leaves = join(&edge, 100_000);
    leaves.enter("bob").await;
    edge.set_alternates(vec!["192.0.2.8:7400".into()]);
    let (draining, began) = (edge.clone(), tokio::time::Instant::now());
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = done.clone();
    edge.env.tasks.spawn(async move {
        draining.drain(Duration::from_secs(10)).await;
        told.store(true, Ordering::Relaxed);
    });
    for peer in [&mut stays, &mut leaves] {
        match peer.body().await {
            Body::GoAway(go) => {
                assert_eq!(go.alternates, ["192.0.2.8:7400"]);
                assert!((8_000..=9_000).contains(&go.window_ms), "{}", go.window_ms);
            }
            other => panic!("{other:?}"),
        }
    }
    drop(leaves);
    assert!(core.loads.lock().unwrap().last().unwrap().draining);
    let mut newcomer = join(&edge, 1000);
    newcomer.say(1, hello("carol")).await;
    assert_eq!(newcomer.refused().await, Code::Draining);
    stays.say(5, ping(1)).await;
    assert!(matches!(stays.body().await, Body::Pong(_)), "served until the end");
    assert_eq!(stays.refused().await, Code::Draining);
    assert!(began.elapsed() >= Duration::from_secs(10));
    until("the end of the drain", || done.load(Ordering::Relaxed)).await;
    assert_eq!(edge.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_as_soon_as_all_have_left_and_can_be_taken_back() {
    let (edge, _core) = start(EdgeLimits::default());
    let began = tokio::time::Instant::now();
    edge.drain(Duration::from_secs(600)).await;
    assert!(began.elapsed() < Duration::from_secs(1));
    edge.undrain();
    join(&edge, 1000).enter("alice").await;
}

#[tokio::test(start_paused = true)]
async fn a_paced_drain_tells_one_after_the_other_and_who_was_not_told_stays_when_it_is_taken_back() {
    let (edge, _core) = start(EdgeLimits::default());
    let mut peers = Vec::new();
    for user in ["alice", "bob", "carol", "dave"] {
        let mut peer = join(&edge, 100_000);
        peer.enter(user).await;
        peers.push(peer);
    }
    let (telling, window) = (Duration::from_secs(40), Duration::from_secs(2));
    let half = tokio::time::timeout(telling / 2 + window / 2, edge.drain_paced(telling, window, "for a test")).await;
    assert!(half.is_err());
    edge.undrain();
    let mut told = 0;
    for peer in &mut peers {
        if let Ok(body) = tokio::time::timeout(Duration::from_secs(1), peer.body()).await {
            assert!(
                matches!(&body, Body::GoAway(go) if go.window_ms <= 1_800 && go.reason == "for a test"),
                "{body:?}"
            );
            told += 1;
        }
    }
    assert_eq!((told, edge.connections()), (2, 4), "nobody is closed who was told to leave a drain that is over");
    join(&edge, 1000).enter("erin").await;
    // In earnest: who stays is closed when the last one's time is over.
    let began = tokio::time::Instant::now();
    edge.drain_paced(telling, window, "for a test").await;
    assert!(began.elapsed() >= telling + window && began.elapsed() < telling + window * 2, "{:?}", began.elapsed());
    assert_eq!(edge.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_expires_is_announced_and_then_closes() {
    let (edge, _core) = start(EdgeLimits::default());
    let mut peer = join(&edge, 100_000);
    peer.enter("alice").await;
    let began = tokio::time::Instant::now();
    for echo in 1..=10 {
        tokio::time::sleep(Duration::from_secs(350)).await;
        peer.say(2, ping(echo)).await;
        assert!(matches!(peer.body().await, Body::Pong(_)));
    }
    assert!(matches!(peer.body().await, Body::Error(e) if e.code == Code::TokenExpired as u32));
    assert!((3540..3545).contains(&began.elapsed().as_secs()));
    assert_eq!(peer.refused().await, Code::TokenExpired);
    assert!((3600..3605).contains(&began.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn the_load_is_reported_every_second() {
    let (edge, core) = start(EdgeLimits::default());
    let mut peer = join(&edge, 100_000);
    peer.enter("alice").await;
    core.loads.lock().unwrap().clear();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let loads = core.loads.lock().unwrap();
    assert!((9..=11).contains(&loads.len()), "{}", loads.len());
    assert!(loads.iter().all(|l| l.connections == 1 && l.edge == "e1" && l.generation == edge.generation()));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_was_not_heard_for_over_two_heartbeats_is_gone() {
    let (edge, _core) = start(EdgeLimits::default());
    let mut peer = join(&edge, 100_000);
    peer.enter("alice").await;
    for echo in 1..=3 {
        tokio::time::sleep(Duration::from_secs(5 * 60)).await;
        peer.say(2, ping(echo)).await;
        assert!(matches!(peer.body().await, Body::Pong(_)));
    }
    tokio::time::sleep(Duration::from_secs(12 * 60)).await;
    assert_eq!(edge.connections(), 1);
    tokio::time::sleep(Duration::from_secs(2 * 60)).await;
    assert_eq!(edge.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_client_that_reads_nothing() {
    let (edge, core) = start(EdgeLimits::default());
    let mut peer = join(&edge, 1024);
    peer.enter("alice").await;
    core.push(core.opened()[0], 1..=100, 1000);
    let began = tokio::time::Instant::now();
    edge.drain(Duration::from_secs(5)).await;
    assert!(began.elapsed() < Duration::from_secs(7));
}
