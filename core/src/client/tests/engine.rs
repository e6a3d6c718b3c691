//! The engine alone: where it connects after a loss, one of it and ten thousand.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::client::candidates::{Candidate, EngineOut, Failure, Transport};
use crate::client::engine::Engine;

const CLIENTS: u64 = 10_000;
const RTT: Duration = Duration::from_millis(50);
/// As an edge with a tenth of them says: it takes 200 a second.
const SPREAD: Duration = Duration::from_secs(5);
/// After so long each of them speaks, whatever there is to say.
const BEAT: Duration = Duration::from_secs(25);
/// A connection that does not answer for so long is left; it is asked so often.
const SILENCE: Duration = Duration::from_secs(1);
const PROBE: Duration = Duration::from_millis(250);
/// A first packet of QUIC is sent again within this time, in the second or two that such attempts live.
const QUIC_AGAIN_WITHIN: Duration = Duration::from_millis(600);

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

/// What becomes of a phone whose region is killed and comes back after `down`: when it is live again. It finds out by its
/// beat, or by what it writes. `typed`: it is told what a refused connection means. `resets`: the new process says that it
/// knows nothing of old connections.
fn back_after_kill(seed: u64, down: Duration, typed: bool, resets: bool) -> Duration {
    let mut dice = StdRng::seed_from_u64(seed ^ 0x7e12);
    let beat = dice.random_range(Duration::ZERO..BEAT);
    // One message in 40 s, at any moment.
    let writes = Duration::from_secs_f64(-40.0 * dice.random::<f64>().max(1e-9).ln());
    let mut engine = Engine::new(vec![edge("eu-1")], 0, seed);
    let mut now = Duration::from_secs(100);
    let killed_at = now + Duration::from_secs(60);
    let up_at = killed_at + down;
    engine.token_ready(now);
    engine.connect(now);
    let speaks_at = killed_at + beat.min(writes);
    let told_at = if speaks_at < up_at { up_at + PROBE / 2 } else { speaks_at + RTT };
    let mut reset_at = resets.then_some(told_at);
    let mut silent_at = Some(speaks_at + SILENCE);
    let mut answers: Vec<(Duration, u64, bool)> = Vec::new();
    loop {
        while let Some(out) = engine.poll_output() {
            match out {
                EngineOut::Start { conn, .. } if now < killed_at => answers.push((now + RTT, conn, true)),
                EngineOut::Start { conn, transport: Transport::Quic, .. } => {
                    // Nobody tells it of the kernel's word; its packets are sent again meanwhile.
                    let again = up_at + dice.random_range(Duration::ZERO..QUIC_AGAIN_WITHIN);
                    answers.push(((now + 2 * RTT).max(if now < up_at { again } else { now }), conn, true));
                }
                EngineOut::Start { conn, .. } => answers.push((now + RTT, conn, now + RTT / 2 >= up_at)),
                EngineOut::Close(conn) => answers.retain(|(_, one, _)| *one != conn),
                _ => {}
            }
        }
        let answer = answers.iter().map(|(at, ..)| *at).min();
        let next =
            [engine.next_deadline(), answer, silent_at, reset_at].into_iter().flatten().min().expect("it goes on");
        now = now.max(next);
        if let Some(place) = answers.iter().position(|(at, ..)| *at <= now) {
            let (_, conn, up) = answers.remove(place);
            let refused = if typed { Failure::NothingThere } else { Failure::Network };
            if !up {
                engine.ended(now, conn, &refused("refused".into()));
            } else if engine.welcomed(now, conn) {
                if now > killed_at {
                    return now - killed_at;
                }
                engine.set_spread(SPREAD);
            }
        } else if silent_at.take_if(|at| now >= *at).is_some() {
            if engine.live().is_none() {
                continue;
            }
            engine.set_waited_for(now, writes < beat);
            engine.leave(now, &Failure::Silent);
        } else if reset_at.take_if(|at| now >= *at).is_some() {
            let (live, ..) = engine.live().expect("kept");
            engine.ended(now, live, &Failure::Network("reset".into()));
        }
        engine.tick(now);
    }
}

#[test]
fn phones_that_find_a_killed_region_out_one_after_the_other_do_not_come_back_in_one_second() {
    let peak = |down: u64, typed: bool, resets: bool| {
        let down = Duration::from_secs(down);
        let mut back: Vec<Duration> = (0..CLIENTS).map(|seed| back_after_kill(seed, down, typed, resets)).collect();
        back.sort();
        // As the figure counts: without the last twentieth.
        back.truncate(back.len() * 19 / 20);
        let (first, last) = (back[0], back[back.len() - 1]);
        let within = |from: usize| back.partition_point(|at| *at < back[from] + Duration::from_secs(1)) - from;
        let most = (0..back.len()).map(within).max().unwrap_or_default();
        most as f64 * (last - first).as_secs_f64() / back.len() as f64
    };
    for resets in [true, false] {
        let peak = peak(3, true, resets);
        assert!(peak <= 3.0, "{peak:.2} times the mean");
    }
    let untold = peak(3, false, false);
    assert!(untold > 3.5, "{untold:.2} times the mean: it is no herd that this shows");
    // After a longer time more have something to send, and they are not held up.
    let (told, untold) = (peak(10, true, false), peak(10, false, false));
    assert!(told < untold * 0.7, "{told:.2} instead of {untold:.2} times the mean");
}
