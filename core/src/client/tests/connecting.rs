//! Connections: candidates, attempts, silence, tokens, and moving on.

use super::*;

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
fn quic_first_then_tcp_on_the_same_edge_then_the_next_edge() {
    let mut d = started();
    assert_eq!(tried(&mut d), [("eu-1".into(), Transport::Quic)]);
    d.pass(ms(400));
    assert_eq!(tried(&mut d), [("eu-1".into(), Transport::Tcp)]);
    d.pass(ms(600));
    assert_eq!(tried(&mut d), [("us-1".into(), Transport::Quic)], "a captive portal that accepts TCP and is silent");
    d.pass(ms(100));
    assert_eq!(tried(&mut d), [("us-1".into(), Transport::Tcp)]);
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
        if matches!(d.machine.connection(), ConnectionState::Connecting { retry_at: Some(_) }) {
            return all;
        }
    }
}

fn pause(d: &mut Device) {
    let ConnectionState::Connecting { retry_at: Some(at) } = d.machine.connection() else { panic!("no pause") };
    d.pass(at - d.now);
}

#[test]
fn rounds_after_a_failed_one_try_the_web_too_in_turn_and_after_the_others() {
    use Transport::{Poll, Quic, Tcp, WebSocket};
    let mut d = started();
    let plain: Vec<_> =
        ["eu-1", "us-1"].into_iter().flat_map(|e| [(e.to_owned(), Quic), (e.to_owned(), Tcp)]).collect();
    assert_eq!(failed_round(&mut d), plain, "the first round knows nothing of it");
    for (edge, transport) in
        [("eu-1", WebSocket), ("eu-1", Poll), ("us-1", WebSocket), ("us-1", Poll), ("eu-1", WebSocket)]
    {
        pause(&mut d);
        assert_eq!(failed_round(&mut d), [&plain[..], &[(edge.to_owned(), transport)]].concat());
    }
    // Where nothing answers it waits for the others a moment, and takes no turn from them.
    pause(&mut d);
    assert_eq!(tried(&mut d), [("eu-1".into(), Quic)]);
    d.pass(ms(400));
    assert_eq!(tried(&mut d), [("eu-1".into(), Tcp)]);
    d.pass(ms(199));
    assert_eq!(tried(&mut d), []);
    d.pass(ms(1));
    let web = d.connects[0].0;
    assert_eq!(tried(&mut d), [("eu-1".into(), Poll)]);
    d.act(|m, now| m.ended(now, web, &lost()));
    assert_eq!(tried(&mut d), [], "it is no reason to go on");
    d.pass(Duration::from_secs(20));
    assert!(tried(&mut d).iter().any(|(edge, transport)| edge == "us-1" && *transport == Quic));
}

#[test]
fn a_refused_tcp_connection_and_a_failed_quic_one_go_on_at_once() {
    let mut d = started();
    let quic = d.connects[0].0;
    d.act(|m, now| m.ended(now, quic, &lost()));
    let tcp = d.connects[1].0;
    d.act(|m, now| m.ended(now, tcp, &lost()));
    assert_eq!(tried(&mut d).last().unwrap().0, "us-1");
}

#[test]
fn a_welcome_wins_and_its_rivals_are_closed() {
    let mut d = started();
    d.pass(ms(400));
    let (quic, tcp) = (d.connects[0].0, d.connects[1].0);
    d.welcome(1, 0);
    assert_eq!(d.closed, [quic]);
    let commit = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::Commit(_)))).unwrap();
    assert!(matches!(commit.body, Some(Body::Commit(v1::Commit { attempt: 2, .. }))));
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
            if matches!(d.machine.connection(), ConnectionState::Connecting { retry_at: Some(_) }) {
                break;
            }
        }
        let ConnectionState::Connecting { retry_at: Some(at) } = d.machine.connection() else { panic!("no pause") };
        waits.push(at - d.now);
        d.pass(at - d.now);
    }
    assert!(waits.iter().all(|w| *w <= Duration::from_secs(30)));
    assert!(waits[0] <= ms(100) && waits.iter().max().unwrap() > &Duration::from_secs(3), "{waits:?}");
    d.connects.clear();
    let open: Vec<_> = d.connects.iter().map(|c| c.0).collect();
    open.into_iter().for_each(|conn| d.act(|m, now| m.ended(now, conn, &lost())));
    d.act(Machine::network_changed);
    assert!(!d.connects.is_empty(), "a new network: at once");
}

#[test]
fn a_silent_connection_is_probed_and_left_for_another_edge_after_a_second() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
    d.pass(Duration::from_secs(8));
    d.connects.clear();
    d.send("x");
    d.pass(ms(990));
    let pings = d.frames().iter().filter(|f| matches!(f.body, Some(Body::Ping(_)))).count();
    assert_eq!(pings, 3, "every 250 ms");
    assert!(d.connects.is_empty());
    d.pass(ms(20));
    assert_eq!(tried(&mut d), [("us-1".into(), Transport::Quic)], "another edge first");
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
    d.connects.clear();
    d.pass(Duration::from_secs(20));
    d.send("x");
    d.pass(ms(500));
    assert!(d.connects.is_empty(), "20 s of quiet, and half a second of waiting");
}

#[test]
fn the_heartbeat_is_jittered_and_any_traffic_puts_it_off() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
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
    let quic = d.connects[0].0;
    d.act(|m, now| m.ended(now, quic, &lost()));
    let tcp = d.connects[1].0;
    d.act(|m, now| m.ended(now, tcp, &lost()));
    assert_eq!(d.dispatches.last().unwrap().1, ["eu-1"]);
}

#[test]
fn dispatch_is_given_more_time_on_a_network_where_it_never_answers_in_time() {
    // On 2G a request takes four round trips of 1.3 s and more; with two seconds each time it would never be heard.
    let mut d = Device::new(Setup { fallback: Vec::new(), dispatch_targets: 2, ..setup("alice") });
    d.act(Machine::connect);
    d.act(|m, now| m.token(now, Some("t".into())));
    while d.patience.len() < 12 {
        // It fails when its time is up, as the driver sees to.
        let asked = d.patience.len();
        d.pass(d.patience[asked - 1]);
        d.act(Machine::dispatch_failed);
        for _ in 0..200 {
            if d.patience.len() > asked {
                break;
            }
            d.pass(ms(200));
        }
        assert_eq!(d.patience.len(), asked + 1, "one request at a time, and always another one");
    }
    let seconds: Vec<u64> = d.patience.iter().map(Duration::as_secs).collect();
    assert_eq!(seconds, [2, 2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16]);
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
