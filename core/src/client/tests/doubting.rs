//! Another edge is asked while the one in use may only be slow.

use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Live at eu-1 by QUIC over a round trip of 40 ms, all asked and answered.
fn live() -> (Device, ConnNo) {
    let mut d = Device::new(setup("alice"));
    d.act(Machine::connect);
    d.act(|m, now| m.token(now, Some("t".into())));
    let conn = d.connects.last().unwrap().0;
    d.act(|m, _| m.path_measured(conn, ms(40)));
    d.welcome(1, 0);
    d.pass(ms(10));
    for request in d.frames() {
        if let Some(Body::PullRows(_)) = request.body {
            d.body(conn, request.req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
        }
    }
    d.alive(conn);
    d.pass(ms(40));
    d.act(|m, now| m.felt(now, conn, 10, ms(20)));
    d.connects.clear();
    d.closed.clear();
    (d, conn)
}

fn tried(d: &Device) -> Vec<(&str, Transport)> {
    d.connects.iter().map(|(_, c, t, _)| (c.edge.as_str(), *t)).collect()
}

#[test]
fn where_not_one_packet_answers_a_message_another_edge_is_asked_and_keeps_what_it_wins() {
    let (mut d, old) = live();
    d.send("hello");
    d.pass(ms(160));
    assert_eq!(tried(&d), [], "an answer may come yet");
    d.pass(ms(20));
    assert_eq!(tried(&d), [("us-1", Transport::Quic)]);
    assert!(!matches!(d.machine.connection(), ConnectionState::Connecting { .. }), "nobody is told of a doubt");
    let conn = d.connects[0].0;
    d.sends();
    d.welcome_on(conn, 2, 0);
    assert!(d.closed.contains(&old));
    assert!(matches!(d.machine.connection(), ConnectionState::Live { .. } | ConnectionState::Recovering { .. }));
    assert_eq!(d.sends().len(), 1, "what was not acked is said again at once");
}

#[test]
fn a_packet_without_an_answer_says_that_somebody_is_there() {
    let (mut d, conn) = live();
    d.send("hello");
    for packets in 11..17 {
        d.pass(ms(100));
        d.act(|m, now| m.felt(now, conn, packets, ms(20)));
    }
    assert_eq!(tried(&d), [], "the region is slow, and its edge is there");
    d.pass(ms(260));
    assert_eq!(tried(&d), [("us-1", Transport::Quic)]);
    d.act(|m, now| m.felt(now, conn, 20, ms(20)));
    assert_eq!(d.closed, [d.connects[0].0], "there again: nobody else is needed");
}

#[test]
fn an_answer_ends_the_doubt_and_the_next_silence_is_another_one() {
    let (mut d, conn) = live();
    d.send("hello");
    d.pass(ms(260));
    let first = d.connects[0].0;
    d.alive(conn);
    assert_eq!(d.closed, [first]);
    d.act(|m, now| m.felt(now, conn, 11, ms(20)));
    d.pass(ms(330));
    assert_eq!(tried(&d), [("us-1", Transport::Quic), ("us-1", Transport::Quic)]);
}

#[test]
fn who_doubts_in_vain_waits_twice_as_long() {
    let (mut d, conn) = live();
    for (n, after) in [150, 300, 590].into_iter().enumerate() {
        d.connects.clear();
        d.send("hello");
        d.pass(ms(after));
        assert_eq!(tried(&d), [], "{n}");
        d.pass(ms(25));
        assert_eq!(tried(&d), [("us-1", Transport::Quic)], "{n}");
        d.alive(conn);
        d.act(|m, now| m.felt(now, conn, 20 + n as u64, ms(20)));
    }
}

#[test]
fn a_connection_that_a_doubt_has_brought_about_is_not_doubted_as_soon() {
    let (mut d, _) = live();
    d.send("hello");
    d.pass(ms(180));
    let conn = d.connects[0].0;
    d.act(|m, _| m.path_measured(conn, ms(40)));
    d.welcome_on(conn, 2, 0);
    d.act(|m, now| m.felt(now, conn, 1, ms(20)));
    d.connects.clear();
    d.pass(ms(550));
    assert_eq!(tried(&d), [], "an edge that stalls sends nobody to and fro");
    d.pass(ms(150));
    assert_eq!(tried(&d), [("eu-1", Transport::Quic)]);
}

#[test]
fn a_process_that_gets_no_processor_looks_again_at_what_came_meanwhile() {
    let (mut d, conn) = live();
    d.send("hello");
    // Its timer runs late, and what lies in the socket is not counted yet.
    d.now += ms(300);
    d.act(Machine::tick);
    assert_eq!(tried(&d), []);
    d.pass(ms(10));
    d.act(|m, now| m.felt(now, conn, 11, ms(20)));
    d.pass(ms(60));
    assert_eq!(tried(&d), []);
}

#[test]
fn what_a_doubt_has_begun_is_a_part_of_the_round_that_follows() {
    let (mut d, _) = live();
    d.send("hello");
    d.pass(ms(260));
    assert_eq!(tried(&d), [("us-1", Transport::Quic)]);
    d.pass(ms(760));
    assert!(matches!(d.machine.connection(), ConnectionState::Connecting { .. }));
    d.pass(ms(140));
    let tried = tried(&d);
    let first = d.connects[0].0;
    assert!(!d.closed.contains(&first), "not given up for a round that would begin with the same");
    assert!(tried.contains(&("eu-1", Transport::Quic)) || tried.contains(&("eu-1", Transport::Tcp)), "{tried:?}");
    assert_eq!(tried.iter().filter(|one| **one == ("us-1", Transport::Quic)).count(), 1, "{tried:?}");
}

#[test]
fn a_connection_that_ends_leaves_what_the_doubt_has_begun() {
    let (mut d, conn) = live();
    d.pass(Duration::from_secs(60));
    d.alive(conn);
    d.act(|m, now| m.felt(now, conn, 11, ms(20)));
    d.connects.clear();
    d.send("hello");
    d.pass(ms(800));
    let first = d.connects[0].0;
    d.act(|m, now| m.ended(now, conn, &Failure::Network("reset".into())));
    assert!(!d.closed.contains(&first));
    d.welcome_on(first, 2, 0);
    assert!(!matches!(d.machine.connection(), ConnectionState::Connecting { .. }));
}

#[test]
fn a_connection_that_ends_for_its_token_has_another_one_asked_for_first() {
    let (mut d, conn) = live();
    d.pass(Duration::from_secs(60));
    d.alive(conn);
    d.act(|m, now| m.felt(now, conn, 11, ms(20)));
    d.connects.clear();
    d.tokens.clear();
    d.send("hello");
    d.pass(ms(800));
    let asked = d.connects.len();
    assert!(asked > 0);
    let refusal = crate::codes::Refusal::new(Code::TokenExpired, "old");
    let (code, retry) = (refusal.code as u32, v1::error::Retry::NewToken);
    let failure = Failure::Refused { code, retry, after: Duration::ZERO, message: "old".into() };
    d.act(|m, now| m.ended(now, conn, &failure));
    assert_eq!((d.connects.len(), d.tokens.len()), (asked, 1), "nothing is tried without a token");
    d.act(|m, now| m.token(now, Some("new".into())));
    assert!(d.connects.len() > asked && d.connects.last().unwrap().3.token == "new");
}

#[test]
fn what_was_written_is_to_be_acknowledged_even_where_no_answer_is_due() {
    let (mut d, conn) = live();
    d.frame(conn, 0, push(vec![bob(1, place(1 << 16, 1, 1), "hi")], &[(origin(1), 1)], 0, 1));
    d.act(|m, now| m.felt(now, conn, 11, ms(20)));
    d.pass(ms(90));
    assert_eq!(tried(&d), [], "nothing was written yet");
    d.pass(ms(260));
    assert_eq!(tried(&d), [("us-1", Transport::Quic)], "the push was acked, and nobody has heard it");
    assert!(d.frames().iter().any(|f| matches!(f.body, Some(Body::Ping(_)))), "whoever is there is asked to say so");

    let (mut d, conn) = live();
    d.frame(conn, 0, push(vec![bob(1, place(1 << 16, 1, 1), "hi")], &[(origin(1), 1)], 0, 1));
    d.pass(ms(150));
    d.act(|m, now| m.felt(now, conn, 11, ms(20)));
    d.pass(ms(3000));
    assert_eq!(tried(&d), [], "that was its acknowledgement, and nothing else is awaited");
}

#[test]
fn a_radio_that_slept_is_given_time_to_wake() {
    let (mut d, conn) = live();
    d.first_beat(conn);
    d.alive(conn);
    d.act(|m, now| m.felt(now, conn, 11, ms(20)));
    d.pass(Duration::from_secs(8));
    d.connects.clear();
    d.send("hello");
    d.pass(ms(390));
    assert_eq!(tried(&d), []);
    d.pass(ms(20));
    assert_eq!(tried(&d), [("us-1", Transport::Quic)]);
}

#[test]
fn nobody_is_asked_where_nothing_is_awaited_or_the_way_is_long_or_data_counts() {
    let (mut d, conn) = live();
    d.pass(ms(100));
    d.act(|m, now| m.felt(now, conn, 11, ms(20)));
    d.pass(ms(5000));
    assert_eq!(tried(&d), [], "nothing has to come");

    let (mut d, conn) = live();
    d.act(|m, now| m.set_foreground(now, false));
    d.send("hello");
    d.pass(ms(900));
    assert_eq!(tried(&d), [], "nobody waits");
    d.alive(conn);

    let mut d = Device::new(setup("alice"));
    d.act(Machine::connect);
    d.act(|m, now| m.token(now, Some("t".into())));
    let conn = d.connects.last().unwrap().0;
    d.act(|m, _| m.path_measured(conn, ms(250)));
    d.welcome(1, 0);
    d.act(|m, now| m.felt(now, conn, 10, ms(20)));
    d.connects.clear();
    d.send("hello");
    d.pass(ms(1400));
    assert_eq!(tried(&d), [], "on so long a way the question would be waited behind");
}

#[test]
fn without_a_transport_that_counts_a_second_of_silence_decides() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.alive(conn);
    d.connects.clear();
    d.send("hello");
    d.pass(ms(900));
    assert_eq!(tried(&d), []);
    d.pass(ms(400));
    assert!(!tried(&d).is_empty());
}

#[test]
fn an_answer_that_is_quicker_than_usual_leaves_nothing_open() {
    let (mut d, conn) = live();
    d.frames();
    let ping = loop {
        d.pass(ms(1));
        let ping = d.frames().into_iter().find_map(|frame| match frame.body {
            Some(Body::Ping(ping)) => Some((frame.req, ping.echo)),
            _ => None,
        });
        if let Some(ping) = ping {
            break ping;
        }
    };
    d.pass(ms(15));
    d.act(|m, now| m.felt(now, conn, 11, ms(20)));
    d.body(conn, ping.0, Body::Pong(v1::Pong { echo: ping.1, ..v1::Pong::default() }));
    d.pass(ms(3000));
    assert_eq!(tried(&d), [], "the answer has shown that somebody was there");
}

#[test]
fn an_acknowledgement_that_is_quicker_than_usual_leaves_nothing_open() {
    let (mut d, conn) = live();
    d.frame(conn, 0, push(vec![bob(1, place(1 << 16, 1, 1), "hi")], &[(origin(1), 1)], 0, 1));
    d.pass(ms(112));
    d.act(|m, now| m.felt(now, conn, 11, ms(20)));
    d.pass(ms(3000));
    assert_eq!(tried(&d), [], "nothing else is awaited");
}
