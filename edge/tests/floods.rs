//! Floods of handshakes from one address block, while others connect as fast as before.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use support::{HONEST, HOSTILE, Scene, host, patient, until};
use tern_edge::EdgeLimits;

/// Handshakes under way at once, and so what one block may hold of them: a fifth, and one for rounding.
const HANDSHAKES: u32 = 200;
const SHARE: usize = 41;
/// Clients that mean well.
const CLIENTS: u8 = 40;

fn limits() -> EdgeLimits {
    EdgeLimits {
        handshakes: HANDSHAKES,
        unproven_handshakes: 60,
        unproven_handshakes_per_block: 20,
        // What the flood holds it holds to the end of the test.
        hello_timeout: Duration::from_secs(600),
        ..patient()
    }
}

/// All of them connect, one after the other, over both transports: the time it took. For print only.
#[expect(clippy::disallowed_methods, reason = "a figure to be printed, of the real machine")]
async fn connect_all(scene: &Scene, block: [u8; 3]) -> Duration {
    let began = Instant::now();
    for i in 1..=CLIENTS {
        if i % 2 == 0 {
            let mut client = scene.tcp(host(block, i)).await.unwrap();
            client.enter(scene.hello(&format!("u{i}"))).await.unwrap();
        } else {
            let mut client = scene.quic(host(block, i)).await.unwrap();
            client.enter(scene.hello(&format!("u{i}"))).await;
        }
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_floods_over_tcp_and_quic_is_refused_above_its_share_and_all_others_connect() {
    let scene = Scene::start(limits()).await;
    let calm = connect_all(&scene, HONEST).await;
    until("the calm ones to leave", || scene.edge.connections() == 0).await;

    // Connections that say nothing, before and after TLS, and QUIC ones without a Hello. They come again as
    // fast as they are refused, for as long as the test runs.
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let scene = std::sync::Arc::new(scene);
    let mut attackers = Vec::new();
    for i in 0..30u8 {
        let (scene, mut stopped) = (scene.clone(), stopped.clone());
        #[expect(clippy::disallowed_methods, reason = "attackers are no part of a node")]
        attackers.push(tokio::spawn(async move {
            let mut held_tcp = Vec::new();
            let mut held_quic = Vec::new();
            let mut refused = 0usize;
            let attack = async {
                loop {
                    if i % 2 == 0 {
                        match scene.plain(host(HOSTILE, i + 1)).await {
                            Ok(stream) => {
                                // A refused connection is closed at once; the others say nothing.
                                let mut byte = [0];
                                let wait = Duration::from_millis(20);
                                match tokio::time::timeout(wait, stream.readable()).await {
                                    Ok(_) if matches!(stream.try_read(&mut byte), Ok(0) | Err(_)) => refused += 1,
                                    _ => held_tcp.push(stream),
                                }
                            }
                            Err(_) => refused += 1,
                        }
                    } else {
                        match scene.quic_from(host(HOSTILE, i + 1), scene.at).await {
                            Ok(connection) => held_quic.push(connection),
                            Err(_) => refused += 1,
                        }
                    }
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                _ = stopped.changed() => {}
                () = attack => {}
            }
            // Some were told after their handshake.
            let open = held_quic.iter().filter(|c: &&quinn::Connection| c.close_reason().is_none()).count();
            (held_tcp.len() + open, refused)
        }));
    }
    until("the flood to be refused", || scene.failed("overloaded") > 200).await;
    let flooded = connect_all(&scene, HONEST).await;
    let refused_meanwhile = scene.failed("overloaded");
    stop.send(true).unwrap();
    let (mut held, mut refused) = (0, 0);
    for attacker in attackers {
        let (h, r) = attacker.await.unwrap();
        (held, refused) = (held + h, refused + r);
    }
    assert!(held <= SHARE + 20, "the block held {held} handshakes at once");
    assert!(refused > 200 && refused_meanwhile > 200, "{refused} refused");
    let ratio = flooded.as_secs_f64() / calm.as_secs_f64();
    println!("flood: {held} held, {refused} refused; {CLIENTS} others took {ratio:.2} times as long as in the calm");
}

#[tokio::test]
async fn first_packets_from_forged_addresses_are_told_to_prove_themselves_and_their_block_is_not_refused() {
    let scene = Scene::start(limits()).await;
    // First packets, each of a connection of its own, that are sent on from addresses which never answer.
    let trap = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let to = trap.local_addr().unwrap();
    let forged = UdpSocket::bind((host(HOSTILE, 66), 0)).unwrap();
    let (mut packets, mut sources) = (Vec::new(), std::collections::BTreeSet::new());
    trap.set_nonblocking(true).unwrap();
    for _ in 0..200 {
        let connecting = scene.quic_from(host([127, 0, 0], 1), to);
        let mut packet = [0; 2048];
        let length = loop {
            tokio::task::yield_now().await;
            match trap.recv_from(&mut packet) {
                // Its first; what it says when it gives up is another.
                Ok((length, from)) if sources.insert(from) => break length,
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        packets.push(packet[..length].to_vec());
        drop(connecting);
    }
    for packet in &packets {
        assert!(packet.len() >= 1200, "a first packet");
        forged.send_to(packet, scene.at).unwrap();
        // The socket's buffer is no part of this test.
        tokio::task::yield_now().await;
    }
    until("the retries", || scene.metric("tern_edge_sent_retries_total") >= 160).await;
    assert!(scene.edge.connections() <= 20, "{} handshakes are held for nobody", scene.edge.connections());
    // A neighbour of the forged address pays a round trip, and is served.
    let mut neighbour = scene.quic(host(HOSTILE, 7)).await.unwrap();
    neighbour.enter(scene.hello("alice")).await;
    assert!(neighbour.alive().await);
    let mut other = scene.quic(host(HONEST, 7)).await.unwrap();
    other.enter(scene.hello("bob")).await;
    assert!(other.alive().await);
}

#[tokio::test]
async fn a_block_that_keeps_breaking_off_is_refused_for_a_while_unless_someone_there_means_well() {
    let limits = EdgeLimits { abandoned_handshakes_per_second: 1, abandoned_handshakes_burst: 30, ..patient() };
    let scene = Scene::start(limits).await;
    for round in 0..2 {
        for i in 0..29 {
            drop(scene.plain(host(HOSTILE, i + 1)).await.unwrap());
        }
        let seen = 29 * (round + 1);
        until("the edge to have seen them go", || scene.failed("gone") == seen).await;
        let mut good = scene.tcp(host(HOSTILE, 200)).await.unwrap();
        good.enter(scene.hello("alice")).await.unwrap();
    }
    for i in 0..31 {
        drop(scene.plain(host(HOSTILE, i + 1)).await.unwrap());
    }
    until("the block to be refused", || scene.failed("gone") + scene.failed("too_many_failures") >= 58 + 31).await;
    assert!(scene.tcp(host(HOSTILE, 200)).await.is_err());
    assert!(scene.quic(host(HOSTILE, 200)).await.is_err());
    scene.tcp(host(HONEST, 1)).await.unwrap().enter(scene.hello("bob")).await.unwrap();
}

#[tokio::test]
async fn tcp_connections_above_what_the_process_may_open_are_closed_and_quic_ones_served() {
    let scene = Scene::start(EdgeLimits { tcp_connections: 3, ..patient() }).await;
    let mut held = Vec::new();
    for i in 0..3 {
        let mut client = scene.tcp(host(HONEST, i)).await.unwrap();
        client.enter(scene.hello(&format!("u{i}"))).await.unwrap();
        held.push(client);
    }
    assert!(scene.tcp(host(HONEST, 9)).await.is_err());
    let mut quic = scene.quic(host(HONEST, 9)).await.unwrap();
    quic.enter(scene.hello("alice")).await;
    held.pop();
    until("the end of one", || scene.edge.connections() == 3).await;
    scene.tcp(host(HONEST, 9)).await.unwrap().enter(scene.hello("bob")).await.unwrap();
}
