//! Servers that answer and are of no use: how often they are asked, what is told of them, and what becomes of messages.

use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn started(setup: Setup) -> Device {
    let mut d = Device::new(setup);
    d.send("kept");
    d.act(Machine::connect);
    d.act(|m, now| m.token(now, Some("t".into())));
    d.tokens.clear();
    d
}

fn trouble(d: &Device) -> Option<Trouble> {
    match d.machine.connection() {
        ConnectionState::Connecting { trouble, .. } => trouble,
        _ => None,
    }
}

/// For so long, what `edge` does with every new attempt. How many there were.
fn play(d: &mut Device, time: Duration, mut edge: impl FnMut(&mut Device, ConnNo, &Candidate)) -> usize {
    let end = d.now + time;
    let mut attempts = 0;
    while d.now < end {
        for (conn, candidate, ..) in std::mem::take(&mut d.connects) {
            attempts += 1;
            if !d.closed.contains(&conn) {
                edge(d, conn, &candidate);
            }
        }
        if !std::mem::take(&mut d.tokens).is_empty() {
            d.act(|m, now| m.token(now, Some("another".into())));
        }
        if d.connects.is_empty() {
            d.pass(ms(20));
        }
    }
    attempts
}

/// A good edge is there: what was sent before goes out, once.
fn delivers(d: &mut Device) {
    d.sends();
    let mut taken = None;
    play(d, Duration::from_secs(90), |d, conn, _| {
        if taken.is_none() {
            d.welcome_on(conn, 2, 0);
            taken = Some(conn);
        }
    });
    let conn = taken.expect("an attempt within a minute and a half");
    let sends = d.sends();
    assert!(!sends.is_empty() && sends.iter().all(|(_, send)| send.body == "kept" && send.n == 1), "{sends:?}");
    d.ack(conn, sends[0].0, place(10, 2, 1), None);
    assert_eq!((d.machine.waiting(), d.shown()), ((0, 1), vec!["kept".to_owned()]));
}

#[test]
fn a_token_that_every_edge_refuses_is_asked_for_less_and_less_often_and_the_state_says_why() {
    let mut d = started(setup("alice"));
    let mut asked = Vec::new();
    let mut attempts = 0;
    for _ in 0..2 {
        let mut tokens = 0;
        let end = d.now + Duration::from_secs(300);
        while d.now < end {
            for (conn, ..) in std::mem::take(&mut d.connects) {
                attempts += 1;
                let refusal = crate::codes::Refusal::new(Code::TokenExpired, "the token expired 7200 s ago");
                d.body(conn, 1, Body::Error(refusal.to_wire()));
            }
            if !d.tokens.is_empty() {
                assert!(d.tokens.iter().all(|refused| *refused), "a kept one is of no use");
                tokens += std::mem::take(&mut d.tokens).len();
                d.act(|m, now| m.token(now, Some("another".into())));
            }
            d.pass(ms(20));
        }
        asked.push(tokens);
    }
    assert!((5..30).contains(&asked[0]) && (5..25).contains(&asked[1]), "{asked:?} tokens in five minutes each");
    assert!(attempts < 60, "{attempts} attempts in ten minutes");
    let message = "the token expired 7200 s ago".to_owned();
    assert_eq!(trouble(&d), Some(Trouble::TokenRefused { code: Code::TokenExpired as u32, message }));
    let diagnostics = d.machine.diagnostics(d.now, 5);
    assert!(diagnostics.contains("the token is refused (token_expired): the token expired"), "{diagnostics}");
    let told = |e: &Event| matches!(e, Event::Connection(ConnectionState::Connecting { trouble: Some(_), .. }));
    assert!(d.events.iter().any(told));
    delivers(&mut d);
    assert_eq!(trouble(&d), None);
}

#[test]
fn where_only_the_nearest_edge_refuses_a_new_token_the_next_one_is_tried() {
    let mut d = started(setup("alice"));
    let mut tokens = 0;
    let mut welcomed = false;
    let end = d.now + Duration::from_secs(5);
    while d.now < end && !welcomed {
        for (conn, candidate, ..) in std::mem::take(&mut d.connects) {
            if candidate.edge == "eu-1" {
                // Its clock is two hours ahead.
                d.error(conn, 1, Code::TokenExpired, 0);
            } else if !d.closed.contains(&conn) {
                d.welcome_on(conn, 2, 0);
                welcomed = true;
            }
        }
        if !std::mem::take(&mut d.tokens).is_empty() {
            tokens += 1;
            d.act(|m, now| m.token(now, Some("another".into())));
        }
        d.pass(ms(10));
    }
    assert!(welcomed && tokens <= 2, "{tokens} tokens asked for");
}

#[test]
fn one_token_that_has_expired_is_nothing_against_the_edge_that_says_so() {
    let mut d = started(setup("alice"));
    let conn = d.connects[0].0;
    d.connects.clear();
    d.error(conn, 1, Code::TokenExpired, 0);
    d.pass(ms(200));
    d.act(|m, now| m.token(now, Some("another".into())));
    assert_eq!(d.connects[0].1.edge, "eu-1");
}

#[test]
fn an_application_without_a_token_is_asked_again_and_its_words_are_told() {
    let mut d = Device::new(setup("alice"));
    d.act(Machine::connect);
    let mut asked = 0;
    let end = d.now + Duration::from_secs(300);
    while d.now < end {
        if !std::mem::take(&mut d.tokens).is_empty() {
            asked += 1;
            d.act(|m, now| m.no_token(now, "not logged in"));
        }
        d.pass(ms(20));
    }
    assert!((5..40).contains(&asked), "{asked} in five minutes");
    assert_eq!(trouble(&d), Some(Trouble::NoToken { message: "not logged in".into() }));
}

#[test]
fn edges_that_say_welcome_and_nothing_more_are_tried_less_and_less_often() {
    let mut d = started(setup("alice"));
    let mut welcomes = 0;
    play(&mut d, Duration::from_secs(600), |d, conn, _| {
        d.welcome_on(conn, 1, 0);
        welcomes += 1;
    });
    assert!((10..80).contains(&welcomes), "{welcomes} in ten minutes");
    let silent = |e: &Event| match e {
        Event::Connection(ConnectionState::Connecting { trouble: Some(trouble), .. }) => {
            matches!(trouble, Trouble::NoConnection { failure: Failure::Silent, .. })
        }
        _ => false,
    };
    assert!(d.events.iter().any(silent), "{:?}", d.events.last());
    delivers(&mut d);
}

#[test]
fn edges_that_end_each_connection_at_once_are_tried_less_and_less_often() {
    let gone = |d: &mut Device, conn| d.act(|m, now| m.ended(now, conn, &Failure::Network("it crashed".into())));
    let elsewhere = |d: &mut Device, conn| d.error(conn, 0, Code::Internal, 0);
    for by_word in [false, true] {
        let mut d = started(setup("alice"));
        let mut welcomes = 0;
        play(&mut d, Duration::from_secs(600), |d, conn, _| {
            d.welcome_on(conn, 1, 0);
            welcomes += 1;
            if by_word { elsewhere(d, conn) } else { gone(d, conn) }
        });
        assert!((10..80).contains(&welcomes), "{welcomes} in ten minutes, {by_word}");
        if !by_word {
            assert!(trouble(&d).unwrap().to_string().contains("it crashed"), "{:?}", trouble(&d));
        }
        delivers(&mut d);
    }
}

#[test]
fn two_edges_that_send_each_other_their_clients_lose_none_of_what_waits() {
    let mut d = started(setup("alice"));
    let mut welcomes = 0;
    play(&mut d, Duration::from_secs(120), |d, conn, _| {
        d.welcome_on(conn, 1, 0);
        d.body(conn, 0, Body::GoAway(v1::GoAway::default()));
        welcomes += 1;
    });
    assert!((5..40).contains(&welcomes), "{welcomes} in two minutes");
    delivers(&mut d);
}

#[test]
fn a_silence_soon_after_a_connection_that_spoke_is_the_networks_and_costs_no_pause() {
    let mut d = started(setup("alice"));
    for _ in 0..4 {
        let conn = d.connects.last().unwrap().0;
        d.welcome_on(conn, 1, 0);
        d.alive(conn);
        d.connects.clear();
        d.pass(ms(1500));
        assert!(!d.connects.is_empty(), "another one at once: {}", d.machine.diagnostics(d.now, 0));
    }
}

#[test]
fn dispatch_that_has_nothing_or_nonsense_to_say_is_asked_less_and_less_often() {
    let mut d = started(Setup { fallback: Vec::new(), dispatch_targets: 2, ..setup("alice") });
    let end = d.now + Duration::from_secs(600);
    let mut asked = [0, 0];
    while d.now < end {
        for (target, _) in std::mem::take(&mut d.dispatches) {
            asked[target] += 1;
            if target == 0 {
                d.act(|m, now| m.dispatched(now, 5, Vec::new(), Duration::ZERO, Bytes::from_static(b"{}")));
            } else {
                d.act(|m, now| m.dispatch_refused(now, "dispatch.example:443: the answer can't be understood"));
            }
        }
        d.pass(ms(20));
    }
    assert!(asked.iter().all(|n| (10..80).contains(n)), "{asked:?} in ten minutes");
    assert!(d.connects.is_empty());
    assert!(trouble(&d).unwrap().to_string().contains("can't be understood"), "{:?}", trouble(&d));
    d.dispatches.clear();
    let end = d.now + Duration::from_secs(60);
    while d.now < end && d.connects.is_empty() {
        if d.dispatches.pop().is_some() {
            let list = vec![candidate("eu-1", "eu")];
            d.act(|m, now| m.dispatched(now, 5, list, Duration::from_secs(300), Bytes::from_static(b"{}")));
        }
        d.pass(ms(20));
    }
    delivers(&mut d);
}

#[test]
fn a_list_of_dead_edges_is_left_for_a_built_in_one_and_asked_for_anew() {
    let mut d = started(Setup { fallback: vec![candidate("eu-1", "eu")], dispatch_targets: 1, ..setup("alice") });
    let list: Vec<_> = (0..16).map(|i| candidate(&format!("dead-{i}"), "eu")).collect();
    d.act(|m, now| m.dispatched(now, 5, list, Duration::from_secs(3600), Bytes::from_static(b"{}")));
    // They swallow everything: the worst that can be.
    let (start, mut found) = (d.now, None);
    play(&mut d, Duration::from_secs(60), |d, conn, candidate| {
        if candidate.edge == "eu-1" && found.is_none() {
            d.welcome_on(conn, 2, 0);
            found = Some(d.now - start);
        }
    });
    assert!(found.is_some_and(|after| after < Duration::from_secs(5)), "{found:?}");
    assert_eq!(d.machine.waiting().0, 1);
}

#[test]
fn what_a_stranger_says_at_length_is_cut() {
    let mut d = started(setup("alice"));
    let conn = d.connects[0].0;
    let long = crate::codes::Refusal::new(Code::TokenInvalid, "ü".repeat(60_000));
    for _ in 0..5 {
        d.body(conn, 1, Body::Error(long.to_wire()));
    }
    let Some(Trouble::TokenRefused { message, .. }) = trouble(&d) else { panic!("{:?}", trouble(&d)) };
    assert!((100..=240).contains(&message.len()));
    d.act(|m, now| m.dispatch_refused(now, &"x".repeat(100_000)));
    assert!(d.machine.diagnostics(d.now, 0).len() < 10_000);
}
