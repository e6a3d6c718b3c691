//! The engine alone: where it connects after a loss, one of it and ten thousand.

use std::time::Duration;

use crate::client::candidates::{Candidate, EngineOut, Failure, Transport};
use crate::client::engine::Engine;

const CLIENTS: u64 = 10_000;
const RTT: Duration = Duration::from_millis(50);
/// As an edge with a tenth of them says: it takes 250 a second.
const SPREAD: Duration = Duration::from_secs(4);

fn edge(name: &str) -> Candidate {
    Candidate {
        edge: name.to_owned(),
        region: "eu".to_owned(),
        address: format!("{name}:7410"),
        server_name: name.to_owned(),
        quic: true,
        tcp: true,
        quic_timeout: Duration::from_secs(3),
        tcp_timeout: Duration::from_secs(5),
    }
}

/// From the loss until the client is live again. `down`: no edge answers for so long; attempts are refused meanwhile.
fn back_after(seed: u64, down: Duration) -> Duration {
    let mut engine = Engine::new(vec![edge("eu-1"), edge("eu-2")], 0, seed);
    let mut now = Duration::from_secs(100);
    let lost_at = now + Duration::from_secs(60);
    engine.token_ready(now);
    engine.connect(now);
    // What becomes of attempts, in order.
    let mut answers: Vec<(Duration, u64, bool)> = Vec::new();
    let mut lost = false;
    loop {
        while let Some(out) = engine.poll_output() {
            if let EngineOut::Start { conn, .. } = out {
                let up = !lost || now >= lost_at + down;
                answers.push((now + RTT, conn, up));
            }
        }
        let answer = answers.iter().map(|(at, ..)| *at).min();
        let loss = (!lost).then_some(lost_at);
        let next = [engine.next_deadline(), answer, loss].into_iter().flatten().min().expect("it goes on");
        now = now.max(next);
        if let Some(place) = answers.iter().position(|(at, ..)| *at <= now) {
            let (_, conn, up) = answers.remove(place);
            if !up {
                engine.ended(now, conn, &Failure::Network("refused".into()));
            } else if engine.welcomed(now, conn) {
                if lost {
                    return now - lost_at;
                }
                engine.set_spread(SPREAD);
            }
        } else if !lost && now >= lost_at {
            lost = true;
            let (live, ..) = engine.live().expect("live for a minute");
            engine.ended(now, live, &Failure::Network("the edge is gone".into()));
        }
        engine.tick(now);
    }
}

/// Most in one second over the mean until all are back, and when that is.
fn herd(down: Duration) -> (f64, Duration) {
    let mut back: Vec<Duration> = (0..CLIENTS).map(|seed| back_after(seed, down)).collect();
    back.sort();
    let (first, last) = (back[0], back[back.len() - 1]);
    let within = |from: usize| back.partition_point(|at| *at < back[from] + Duration::from_secs(1)) - from;
    let most = (0..back.len()).map(within).max().unwrap_or_default();
    let span = (last - first).as_secs_f64().max(1.0);
    (most as f64 * span / back.len() as f64, last)
}

#[test]
fn clients_of_a_lost_edge_come_to_others_one_after_the_other() {
    let (peak, last) = herd(Duration::ZERO);
    assert!(peak <= 3.0, "{peak:.2} times the mean");
    assert!(last <= SPREAD + Duration::from_secs(1), "{last:?}");
}

#[test]
fn a_single_edge_is_tried_again_by_quic_as_soon_as_an_answer_could_have_come_where_quic_gets_through() {
    let ms = Duration::from_millis;
    let mut engine = Engine::new(vec![edge("eu-1")], 0, 1);
    let mut now = Duration::from_secs(100);
    engine.set_wall(now, 1_800_000_000_000);
    engine.token_ready(now);
    engine.connect(now);
    let mut closed = 0;
    let mut starts = |engine: &mut Engine, transport: &mut Vec<Transport>| {
        let mut last = 0;
        while let Some(out) = engine.poll_output() {
            match out {
                EngineOut::Start { conn, transport: by, .. } => {
                    transport.push(by);
                    last = conn;
                }
                EngineOut::Close(_) => closed += 1,
                _ => {}
            }
        }
        last
    };
    let first = starts(&mut engine, &mut Vec::new());
    engine.path_measured(first, ms(120));
    let rtt = engine.attempt_rtt(now, first);
    assert_eq!(rtt, Some((ms(120), true)));
    assert!(engine.welcomed(now, first));
    engine.measured(ms(120));
    now += Duration::from_secs(60);
    engine.ended(now, first, &Failure::Network("gone".into()));
    let lost_at = now;
    let mut tried = Vec::new();
    while now < lost_at + ms(900) {
        let mut by = Vec::new();
        starts(&mut engine, &mut by);
        tried.extend(by.into_iter().map(|transport| (now - lost_at, transport)));
        now += ms(10);
        engine.tick(now);
    }
    use Transport::{Quic, Tcp};
    assert_eq!(tried, [(ms(0), Quic), (ms(150), Quic), (ms(300), Quic), (ms(480), Tcp), (ms(800), Quic)]);
    assert_eq!(closed, 2, "three at a time: the first gives way to TCP, the second later to a fresh one");
}
