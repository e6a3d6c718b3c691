//! Connections: candidates, attempts, silence, tokens, and moving on.

use super::*;
use crate::wire::v1::error::Retry;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn tried(d: &mut Device) -> Vec<(String, Transport)> {
    std::mem::take(&mut d.connects).into_iter().map(|(_, c, t, _)| (c.edge, t)).collect()
}

fn started() -> Device {
    let mut d = Device::new(setup("alice"));
    d.act(Machine::connect);
    d.act(|m, now| m.token(now, Some("t".into())));
    d
}

fn lost() -> Failure {
    Failure::Network("gone".into())
}

#[test]
fn the_best_edge_has_a_head_start_and_no_more_than_three_race() {
    let mut d = started();
    assert_eq!(tried(&mut d), [("eu-1".into(), Transport::Quic)]);
    d.pass(ms(250));
    assert_eq!(tried(&mut d), [("us-1".into(), Transport::Quic)]);
    d.pass(ms(50));
    assert_eq!(tried(&mut d), [("eu-1".into(), Transport::Tcp)], "in case UDP is lost here");
    d.pass(ms(690));
    assert_eq!(tried(&mut d), [], "three are under way");
    d.pass(ms(20));
    assert_eq!(tried(&mut d), [("us-1".into(), Transport::Tcp)], "the first is late");
    d.act(Machine::tick);
    assert!(matches!(d.machine.connection(), ConnectionState::Connecting { .. }));
}

/// Lets every attempt fail, and says what was tried until the pause.
fn failed_round(d: &mut Device) -> Vec<(String, Transport)> {
    let mut all = Vec::new();
    loop {
        let open: Vec<_> = d.connects.iter().map(|c| c.0).collect();
        all.extend(tried(d));
        open.into_iter().for_each(|conn| d.act(|m, now| m.ended(now, conn, &lost())));
        if matches!(d.machine.connection(), ConnectionState::Connecting { retry_at: Some(_), .. }) {
            return all;
        }
    }
}

fn pause(d: &mut Device) {
    let ConnectionState::Connecting { retry_at: Some(at), .. } = d.machine.connection() else { panic!("no pause") };
    d.pass(at - d.now);
}

#[test]
fn a_round_ends_with_what_looks_like_the_web_at_another_edge_each_time() {
    use Transport::{Http3, Poll, Quic, Tcp, WebSocket};
    let mut d = started();
    for (round, web) in ["eu-1", "us-1", "eu-1"].into_iter().enumerate() {
        let plain = [("eu-1", Quic), ("us-1", Quic), ("eu-1", Tcp), ("us-1", Tcp)];
        let expected = plain.into_iter().chain([(web, WebSocket), (web, Poll)]);
        // By UDP only after all else has failed once.
        let expected = expected.chain((round > 0).then_some((web, Http3)));
        let tried = failed_round(&mut d);
        assert_eq!(tried, expected.map(|(edge, transport)| (edge.to_owned(), transport)).collect::<Vec<_>>());
        // Of both edges something failed: neither is better than the other.
        pause(&mut d);
    }
}

#[test]
fn polls_are_left_for_what_is_better() {
    let mut d = started();
    let mut polls = None;
    while polls.is_none() {
        let open: Vec<_> = std::mem::take(&mut d.connects);
        for (conn, _, transport, _) in open {
            if transport == Transport::Poll {
                polls = Some(conn);
            } else {
                d.act(|m, now| m.ended(now, conn, &lost()));
            }
        }
    }
    d.welcome_on(polls.unwrap(), 2, 0);
    let conn = polls.unwrap();
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[], None, Some(cursor(2, 0)), true)));
    d.connects.clear();
    for _ in 0..600 {
        d.pass(ms(100));
        d.alive(conn);
        if d.connects.len() == 2 {
            break;
        }
    }
    let tried: Vec<_> = tried(&mut d).into_iter().map(|(_, transport)| transport).collect();
    assert_eq!(tried, [Transport::Quic, Transport::Tcp]);
}

#[test]
fn a_web_socket_keeps_its_head_start_over_polls_where_everything_else_fails_at_once() {
    let mut d = started();
    let mut begun = Vec::new();
    while begun.len() < 2 {
        d.pass(ms(10));
        for (_, _, transport, _) in std::mem::take(&mut d.connects) {
            if transport.is_web() {
                begun.push((transport, d.now));
            }
        }
    }
    let [(Transport::WebSocket, socket), (Transport::Poll, polls)] = begun[..] else { panic!("{begun:?}") };
    assert!(polls - socket >= ms(1500), "{:?}", polls - socket);
}

/// Lets all attempts fail until one that looks like the web, welcomes that, and says what it was.
fn live_by_the_web(d: &mut Device) -> (ConnNo, Transport) {
    let tried = loop {
        let open: Vec<_> = std::mem::take(&mut d.connects);
        if let Some((conn, _, transport, _)) = open.iter().find(|(_, _, transport, _)| transport.is_web()) {
            break (*conn, *transport);
        }
        open.iter().for_each(|(conn, ..)| d.act(|m, now| m.ended(now, *conn, &lost())));
    };
    d.welcome_on(tried.0, 2, 0);
    if let Some(pull) = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))) {
        d.body(tried.0, pull.req, Body::Rows(rows(&[], None, Some(cursor(2, 0)), true)));
    }
    d.connects.clear();
    tried
}

#[test]
fn where_web_sockets_are_cut_again_and_again_polls_are_tried_first() {
    let mut d = started();
    let mut lived = Vec::new();
    for seconds in [8, 8, 8, 90] {
        let (conn, transport) = live_by_the_web(&mut d);
        lived.push(transport);
        for _ in 0..seconds {
            d.pass(ms(1000));
            d.alive(conn);
        }
        d.connects.clear();
        d.act(|m, now| m.ended(now, conn, &lost()));
    }
    assert_eq!(lived, [Transport::WebSocket, Transport::WebSocket, Transport::Poll, Transport::Poll]);
    // Another network knows nothing of it.
    d.connects.clear();
    d.act(|m, now| m.network_changed(now, None));
    assert_eq!(live_by_the_web(&mut d).1, Transport::WebSocket);
}

#[test]
fn what_answers_quic_and_does_not_know_the_protocol_is_asked_by_http3_at_once_and_nothing_is_held_against_its_edge() {
    let mut d = started();
    let quic = d.connects[0].0;
    d.act(|m, now| m.ended(now, quic, &Failure::Protocol("no_application_protocol".into())));
    let expected = [("eu-1".to_owned(), Transport::Quic), ("eu-1".to_owned(), Transport::Http3)];
    let http3 = d.connects[1].0;
    assert_eq!(tried(&mut d), expected);
    d.pass(ms(250));
    assert_eq!(tried(&mut d), [("us-1".into(), Transport::Quic)], "the race goes on as it would");
    d.welcome_on(http3, 2, 0);
    assert!(d.machine.diagnostics(d.now, 0).contains("eu-1:1 by h3"), "{}", d.machine.diagnostics(d.now, 0));
}

#[test]
fn where_only_http3_got_through_it_starts_nearly_at_once_the_next_time_and_is_left_for_what_is_better() {
    let mut d = started();
    let mut http3 = None;
    while http3.is_none() {
        let open: Vec<_> = std::mem::take(&mut d.connects);
        for (conn, _, transport, _) in open {
            if transport == Transport::Http3 {
                http3 = Some(conn);
            } else {
                d.act(|m, now| m.ended(now, conn, &lost()));
            }
        }
        if http3.is_none() && matches!(d.machine.connection(), ConnectionState::Connecting { retry_at: Some(_), .. }) {
            pause(&mut d);
        }
    }
    let conn = http3.unwrap();
    d.welcome_on(conn, 2, 0);
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[], None, Some(cursor(2, 0)), true)));
    d.connects.clear();
    for _ in 0..600 {
        d.pass(ms(100));
        d.alive(conn);
        if d.connects.len() == 2 {
            break;
        }
    }
    let climbs: Vec<_> = d.connects.iter().map(|c| (c.0, c.2)).collect();
    assert_eq!(climbs.iter().map(|c| c.1).collect::<Vec<_>>(), [Transport::Quic, Transport::Tcp]);
    climbs.into_iter().for_each(|(conn, _)| d.act(|m, now| m.ended(now, conn, &lost())));
    d.connects.clear();
    d.act(|m, now| m.ended(now, conn, &lost()));
    d.pass(ms(120));
    let by: Vec<_> = tried(&mut d).into_iter().map(|(_, transport)| transport).collect();
    assert!(by.starts_with(&[Transport::Tcp]) && by.contains(&Transport::Http3), "QUIC has lost here as well: {by:?}");
}

#[test]
fn an_attempt_that_fails_makes_the_next_one_start_at_once() {
    let mut d = started();
    let quic = d.connects[0].0;
    d.act(|m, now| m.ended(now, quic, &lost()));
    let other = d.connects[1].0;
    d.act(|m, now| m.ended(now, other, &lost()));
    let expected = [("eu-1", Transport::Quic), ("us-1", Transport::Quic), ("eu-1", Transport::Tcp)];
    assert_eq!(tried(&mut d), expected.map(|(edge, transport)| (edge.to_owned(), transport)));
}

#[test]
fn a_refusal_spares_the_other_transport_of_its_edge() {
    let mut d = started();
    let quic = d.connects[0].0;
    let (code, retry) = (Code::Draining as u32, Retry::Elsewhere);
    let refused = Failure::Refused { code, retry, after: Duration::ZERO, message: String::new() };
    d.act(|m, now| m.ended(now, quic, &refused));
    d.pass(ms(900));
    let edges: Vec<_> = tried(&mut d).into_iter().skip(1).map(|(edge, _)| edge).collect();
    assert_eq!(edges, ["us-1", "us-1"]);
}

#[test]
fn a_captive_portal_that_accepts_tcp_and_is_silent_holds_nobody_up_for_a_second() {
    let mut d = started();
    let mut last = d.now;
    let mut longest = Duration::ZERO;
    let deadline = d.now + Duration::from_secs(3);
    while d.now < deadline && d.connects.len() < 4 {
        let before = d.connects.len();
        d.pass(ms(10));
        if d.connects.len() > before {
            longest = longest.max(d.now - last);
            last = d.now;
        }
    }
    assert!(d.connects.len() >= 4 && longest <= Duration::from_secs(1), "{longest:?}");
}

#[test]
fn where_udp_was_lost_tcp_has_the_head_start_and_quic_is_climbed_back_to() {
    let mut d = started();
    d.pass(ms(400));
    let conn = d.welcome(2, 0);
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[], None, Some(cursor(2, 0)), true)));
    assert!(matches!(d.machine.connection(), ConnectionState::Live { transport: Transport::Tcp, .. }));
    d.connects.clear();
    // Tried again beside it, later each time.
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let since = d.now;
        while d.connects.is_empty() && d.now < since + Duration::from_secs(600) {
            d.pass(ms(500));
            d.alive(conn);
        }
        pauses.push(d.now - since);
        assert_eq!(tried(&mut d), [("eu-1".into(), Transport::Quic)]);
        d.pass(ms(1100));
    }
    assert!(pauses[0] >= Duration::from_secs(30) && pauses.windows(2).all(|two| two[1] > two[0]), "{pauses:?}");
    assert!(matches!(d.machine.connection(), ConnectionState::Live { transport: Transport::Tcp, .. }), "kept");
    // The next start knows it, and so does the next process.
    d.crash(setup("alice"));
    d.act(Machine::connect);
    d.act(|m, now| m.token(now, Some("t".into())));
    assert_eq!(tried(&mut d), [("eu-1".into(), Transport::Tcp)]);
    d.pass(ms(310));
    let then = tried(&mut d);
    assert!(then.contains(&("eu-1".into(), Transport::Quic)), "{then:?}");
}

#[test]
fn diagnostics_tell_what_happened_and_no_secret() {
    let mut d = started();
    d.pass(ms(400));
    let quic = d.connects[0].0;
    d.act(|m, now| m.ended(now, quic, &lost()));
    d.welcome(2, 0);
    d.send("a letter");
    for _ in 0..200 {
        d.act(|m, now| m.network_changed(now, None));
        d.pass(ms(100));
    }
    d.pass(Duration::from_secs(3));
    let text = d.machine.diagnostics(d.now, 5);
    for expected in ["over tcp", "trying", "heartbeat", "round trip", "1 not acked", "leaving"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains("letter") && !text.contains("alice"), "{text}");
    assert!(text.len() < 16_000, "{}", text.len());
}

#[test]
fn another_network_has_a_memory_of_its_own() {
    let mut d = started();
    d.pass(ms(400));
    d.welcome(2, 0);
    d.act(Machine::stop);
    d.connects.clear();
    let train = NetInfo { id: "train".into(), kind: NetKind::Cellular, metered: true };
    d.act(|m, now| m.network_changed(now, Some(train)));
    assert_eq!(tried(&mut d), [("eu-1".into(), Transport::Quic)]);
}

#[test]
fn a_welcome_wins_and_its_rivals_are_closed() {
    let mut d = started();
    d.pass(ms(400));
    let (quic, other, tcp) = (d.connects[0].0, d.connects[1].0, d.connects[2].0);
    d.welcome(2, 0);
    assert_eq!(d.closed, [quic, other]);
    let commit = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::Commit(_)))).unwrap();
    assert!(matches!(commit.body, Some(Body::Commit(v1::Commit { attempt: 3, .. }))));
    assert!(matches!(d.machine.connection(), ConnectionState::Recovering { transport: Transport::Tcp, .. }));
    // What the loser says later counts for nothing.
    d.act(|m, now| m.ended(now, quic, &lost()));
    assert!(!d.closed.contains(&tcp));
}

#[test]
fn failed_rounds_back_off_below_a_growing_bound_and_end_with_a_new_network() {
    let mut d = started();
    let mut waits = Vec::new();
    for _ in 0..12 {
        for _ in 0..40 {
            let open: Vec<_> = std::mem::take(&mut d.connects).into_iter().map(|c| c.0).collect();
            open.into_iter().for_each(|conn| d.act(|m, now| m.ended(now, conn, &lost())));
            if matches!(d.machine.connection(), ConnectionState::Connecting { retry_at: Some(_), .. }) {
                break;
            }
        }
        let ConnectionState::Connecting { retry_at: Some(at), .. } = d.machine.connection() else { panic!("no pause") };
        waits.push(at - d.now);
        d.pass(at - d.now);
    }
    assert!(waits.iter().all(|w| *w <= Duration::from_secs(30)));
    assert!(waits[0] <= ms(100) && waits.iter().max().unwrap() > &Duration::from_secs(3), "{waits:?}");
    d.connects.clear();
    let open: Vec<_> = d.connects.iter().map(|c| c.0).collect();
    open.into_iter().for_each(|conn| d.act(|m, now| m.ended(now, conn, &lost())));
    d.act(|m, now| m.network_changed(now, None));
    assert!(!d.connects.is_empty(), "a new network: at once");
}

#[test]
fn a_silent_connection_is_probed_and_left_for_another_edge_after_a_second() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
    d.first_beat(conn);
    d.pass(Duration::from_secs(8));
    d.connects.clear();
    d.send("x");
    d.pass(ms(990));
    let pings = d.frames().iter().filter(|f| matches!(f.body, Some(Body::Ping(_)))).count();
    assert_eq!(pings, 3, "every 250 ms");
    assert!(d.connects.is_empty());
    d.pass(ms(50));
    let both = [("us-1".into(), Transport::Quic), ("us-1".into(), Transport::Tcp)];
    assert_eq!(tried(&mut d), both, "another edge first, and maybe it is UDP that is lost");
    assert!(!d.closed.contains(&conn), "made before broken");
    d.sends();
}

#[test]
fn a_silent_connection_that_speaks_again_is_kept() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.send("x");
    let req = d.sends()[0].0;
    d.pass(ms(1100));
    let attempt = d.connects.last().unwrap().0;
    assert_ne!(attempt, conn);
    d.ack(conn, req, place(10, 1, 1), None);
    assert!(d.closed.contains(&attempt));
    assert_eq!(d.machine.waiting(), (0, 1));
}

#[test]
fn an_idle_client_does_not_take_its_own_quiet_for_a_dead_connection() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
    assert!(matches!(d.machine.connection(), ConnectionState::Live { .. }));
    d.first_beat(conn);
    d.connects.clear();
    d.pass(Duration::from_secs(20));
    d.send("x");
    d.pass(ms(500));
    assert!(d.connects.is_empty(), "20 s of quiet, and half a second of waiting");
}

#[test]
fn devices_that_came_together_do_not_beat_together() {
    let first = |seed| {
        let mut d = Device::new(Setup { seed, ..setup("alice") });
        let conn = d.connect(1, 0);
        let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
        d.body(conn, req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
        d.first_beat(conn)
    };
    let mut beats: Vec<Duration> = (0..40).map(first).collect();
    beats.sort_unstable();
    let within = |from, to| beats.iter().filter(|at| (from..to).contains(&at.as_secs())).count();
    assert!(beats[0] >= ms(2500) && beats[39] <= ms(25_100), "{beats:?}");
    assert!((2..26).step_by(8).all(|from| within(from, from + 8) >= 6), "everywhere in the interval: {beats:?}");
}

#[test]
fn the_heartbeat_is_jittered_and_any_traffic_puts_it_off() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
    d.first_beat(conn);
    d.pass(Duration::from_secs(20));
    d.body(conn, 0, Body::Advance(v1::Advance { rev: 0 }));
    d.pass(Duration::from_secs(22));
    assert!(d.frames().is_empty());
    d.pass(Duration::from_secs(4));
    assert!(d.frames().iter().any(|f| matches!(f.body, Some(Body::Ping(_)))));
}

#[test]
fn a_pong_that_is_ahead_pulls_and_one_that_does_not_know_leaves_after_five_seconds() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[], None, Some(cursor(1, 3)), true)));
    d.body(conn, 0, Body::Pong(v1::Pong { rev: 4, ..v1::Pong::default() }));
    d.pass(ms(200));
    let pull = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_))));
    let req = pull.expect("after a grace for its push").req;
    d.body(conn, req, Body::Rows(rows(&[], Some(cursor(1, 3)), Some(cursor(1, 4)), true)));
    d.pass(ms(150));
    d.frames();
    d.connects.clear();
    let unknown = || Body::Pong(v1::Pong { rev_unknown: true, ..v1::Pong::default() });
    d.body(conn, 0, unknown());
    for _ in 0..5 {
        d.pass(ms(1000));
        let asked = d.frames().into_iter().filter(|f| matches!(f.body, Some(Body::Ping(_)))).count();
        assert!(asked >= 1, "asked again every second");
        assert!(d.connects.is_empty());
        d.body(conn, 0, Body::Pong(v1::Pong { rev_unknown: true, echo: u32::MAX / 2, ..v1::Pong::default() }));
    }
    assert_eq!(tried(&mut d)[0].0, "us-1", "the region that failed goes last");
}

#[test]
fn an_expired_token_is_renewed_and_the_queue_goes_on() {
    let mut d = Device::new(setup("alice"));
    d.send("x");
    d.act(Machine::connect);
    assert_eq!(d.tokens, [false]);
    d.act(|m, now| m.token(now, Some("old".into())));
    let conn = d.connects.last().unwrap().0;
    d.error(conn, 1, Code::TokenExpired, 0);
    d.pass(ms(500));
    assert_eq!(d.tokens.last(), Some(&true), "the kept one is of no use");
    d.act(|m, now| m.token(now, None));
    d.pass(Duration::from_secs(1));
    assert!(d.tokens.len() >= 3, "asked again: {:?}", d.tokens);
    d.act(|m, now| m.token(now, Some("new".into())));
    assert_eq!(d.connects.last().unwrap().3.token, "new");
    d.welcome(1, 0);
    assert_eq!(d.sends().len(), 1);
}

#[test]
fn a_token_about_to_expire_is_replaced_on_the_living_connection() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.error(conn, 0, Code::TokenExpired, 0);
    assert_eq!(d.tokens, [true]);
    d.act(|m, now| m.token(now, Some("next".into())));
    assert!(d.frames().iter().any(|f| matches!(&f.body, Some(Body::Token(t)) if t.token == "next")));
    assert!(!d.closed.contains(&conn));
}

#[test]
fn a_goaway_is_followed_within_its_window_by_a_connection_made_before_the_old_one_ends() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
    d.connects.clear();
    let go = v1::GoAway { alternates: vec!["us-1:1".into()], window_ms: 3000, reason: "drain".into() };
    d.body(conn, 0, Body::GoAway(go));
    d.pass(ms(3000));
    assert_eq!(d.connects[0].1.edge, "us-1");
    assert!(d.closed.is_empty());
    d.welcome(2, 0);
    assert!(d.closed.contains(&conn));
}

#[test]
fn two_edges_that_send_each_other_their_clients_wear_nobody_out() {
    let mut d = Device::new(setup("alice"));
    let mut conn = d.connect(1, 0);
    let deadline = d.now + Duration::from_secs(120);
    let (mut connected, mut at) = (0, d.now);
    while d.now < deadline {
        d.connects.clear();
        d.body(conn, 0, Body::GoAway(v1::GoAway::default()));
        while d.connects.is_empty() && d.now < deadline {
            d.pass(ms(10));
            d.alive(conn);
        }
        if !d.connects.is_empty() {
            conn = d.welcome(1, 0);
            connected += 1;
            at = d.now;
        }
    }
    assert!((5..40).contains(&connected), "{connected} connections in two minutes");
    // Once one of them keeps him, all is as before.
    d.connects.clear();
    while d.now < at + Duration::from_secs(10) {
        d.pass(ms(100));
        d.alive(conn);
    }
    d.body(conn, 0, Body::GoAway(v1::GoAway::default()));
    d.pass(ms(10));
    assert!(!d.connects.is_empty());
}

#[test]
fn a_replaced_client_stays_away_until_it_is_told_to_connect() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.body(conn, 0, Body::Kick(v1::Kick { code: Code::Replaced as u32, message: "elsewhere".into() }));
    d.connects.clear();
    d.pass(Duration::from_secs(60));
    assert!(d.connects.is_empty(), "no ping-pong");
    assert_eq!(d.machine.connection(), ConnectionState::Offline);
    assert!(d.events.iter().any(|e| matches!(e, Event::Kicked { .. })));
    d.act(Machine::connect);
    assert_eq!(d.connects.len(), 1);
}

#[test]
fn a_client_replaced_by_its_own_next_connection_is_not_kicked() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.body(conn, 0, Body::GoAway(v1::GoAway::default()));
    let next = d.connects.last().unwrap().0;
    assert_ne!(next, conn);
    d.body(conn, 0, Body::Kick(v1::Kick { code: Code::Replaced as u32, message: String::new() }));
    d.welcome(2, 0);
    assert!(!d.events.iter().any(|e| matches!(e, Event::Kicked { .. })));
}

#[test]
fn dispatch_is_asked_first_and_its_list_is_kept_with_what_failed_excluded() {
    let mut d = Device::new(Setup { fallback: Vec::new(), dispatch_targets: 2, ..setup("alice") });
    d.act(Machine::connect);
    d.act(|m, now| m.token(now, Some("t".into())));
    assert_eq!(d.dispatches, [(0, vec![])]);
    d.act(Machine::dispatch_failed);
    assert_eq!(d.dispatches.len(), 2, "the other address at once");
    let list = vec![candidate("eu-1", "eu")];
    let answer = Bytes::from_static(b"{}");
    d.act(|m, now| m.dispatched(now, 5, list, Duration::from_secs(300), answer.clone()));
    assert_eq!(d.book.image().dispatch, Some((answer, 5)));
    let mut nth = 0;
    while let Some((conn, ..)) = d.connects.get(nth) {
        let conn = *conn;
        d.act(|m, now| m.ended(now, conn, &lost()));
        nth += 1;
    }
    assert_eq!(d.dispatches.last().unwrap().1, ["eu-1"]);
}

#[test]
fn dispatch_is_given_more_time_on_a_network_where_it_never_answers_in_time() {
    // On 2G a request takes four round trips of 1.3 s and more; with two seconds each time it would never be heard.
    let mut d = Device::new(Setup { fallback: Vec::new(), dispatch_targets: 2, ..setup("alice") });
    d.act(Machine::connect);
    d.act(|m, now| m.token(now, Some("t".into())));
    for _ in 0..200 {
        // Nobody says anything: each is given up when its time is more than up.
        d.pass(ms(1000));
    }
    let seconds: Vec<u64> = d.patience.iter().map(Duration::as_secs).take(12).collect();
    assert_eq!(seconds, [2, 2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16], "both addresses, and more patience each time");
}

#[test]
fn a_slow_dispatch_address_holds_up_the_next_for_no_more_than_a_moment() {
    let mut d = Device::new(Setup { fallback: Vec::new(), dispatch_targets: 4, ..setup("alice") });
    d.act(Machine::connect);
    d.act(|m, now| m.token(now, Some("t".into())));
    let asked = |d: &Device| d.dispatches.iter().map(|(target, _)| *target).collect::<Vec<_>>();
    assert_eq!(asked(&d), [0]);
    d.pass(ms(1500));
    assert_eq!(asked(&d), [0, 1, 2], "three at a time");
    d.act(|m, now| m.dispatched(now, 5, vec![candidate("eu-1", "eu")], Duration::from_secs(300), Bytes::new()));
    assert_eq!(d.connects[0].1.edge, "eu-1");
    // The others are late, and change nothing.
    d.act(Machine::dispatch_failed);
    d.act(Machine::dispatch_failed);
    d.pass(ms(500));
    assert_eq!(asked(&d), [0, 1, 2]);
}

#[test]
fn an_empty_list_and_a_dispatch_that_never_answers_do_not_stop_a_client_with_fallbacks() {
    let mut d = Device::new(Setup { dispatch_targets: 1, ..setup("alice") });
    d.act(Machine::connect);
    d.act(|m, now| m.token(now, Some("t".into())));
    assert!(d.connects.is_empty());
    d.pass(Duration::from_secs(1));
    assert_eq!(d.connects[0].1.edge, "eu-1");
    d.act(|m, now| m.dispatched(now, 5, Vec::new(), Duration::ZERO, Bytes::new()));
    assert!(d.book.image().dispatch.is_none());
}

#[test]
fn an_edge_that_sends_nonsense_is_closed_and_the_next_is_tried() {
    let mut d = started();
    let conn = d.connects[0].0;
    let welcome = v1::Welcome { version: 99, ..v1::Welcome::default() };
    d.body(conn, 1, Body::Welcome(welcome));
    assert!(d.closed.contains(&conn));
    d.pass(ms(150));
    assert!(d.connects.len() > 1);
}

#[test]
fn a_request_that_stays_unanswered_on_a_living_connection_is_taken_elsewhere() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.connects.clear();
    d.send("x");
    for _ in 0..60 {
        d.pass(ms(200));
        let pings: Vec<_> = d
            .frames()
            .into_iter()
            .filter_map(|f| if let Some(Body::Ping(p)) = f.body { Some(p.echo) } else { None })
            .collect();
        pings.into_iter().for_each(|echo| d.body(conn, 0, Body::Pong(v1::Pong { echo, ..v1::Pong::default() })));
        if !d.connects.is_empty() {
            break;
        }
    }
    assert_eq!(d.connects.first().expect("it left").1.edge, "us-1");
}

#[test]
fn connections_are_ordered_over_crashes_of_the_process() {
    let mut d = Device::new(setup("alice"));
    let mut orders = Vec::new();
    for _ in 0..3 {
        d.connect(1, 0);
        let commits =
            d.frames().into_iter().filter_map(|f| if let Some(Body::Commit(c)) = f.body { Some(c) } else { None });
        orders.extend(commits.map(|c| c.order));
        d.crash(setup("alice"));
    }
    assert_eq!(orders, [1, 2, 3]);
}

#[test]
fn in_the_background_what_is_written_within_a_moment_goes_out_together() {
    let mut d = Device::new(setup("alice"));
    d.connect(1, 0);
    d.send("one");
    assert_eq!(d.sends().len(), 1, "in the foreground at once");
    d.act(|m, now| m.set_foreground(now, false));
    d.send("two");
    d.pass(ms(15));
    d.send("three");
    assert_eq!(d.sends().len(), 0);
    d.pass(ms(5));
    assert_eq!(d.sends().len(), 2, "20 ms after the first of them, not after the last");
    d.send("four");
    d.act(|m, now| m.set_foreground(now, true));
    assert_eq!(d.sends().len(), 1, "somebody waits now");
}

#[test]
fn an_edge_that_fills_says_how_long_its_clients_are_to_spread_their_return() {
    let back_at_once = |told: Option<u32>| {
        let mut d = started();
        let conn = d.welcome(1, 0);
        for _ in 0..60 {
            d.pass(ms(1000));
            d.alive(conn);
        }
        if let Some(spread_ms) = told {
            d.body(conn, 0, Body::Spread(v1::Spread { spread_ms }));
        }
        d.act(|m, now| m.ended(now, conn, &lost()));
        matches!(d.machine.connection(), ConnectionState::Connecting { retry_at: None, .. })
    };
    assert!(back_at_once(None));
    assert!(!back_at_once(Some(20_000)));
}
