//! Data that is saved in the background, where it costs money.

use super::*;

/// A metered network.
fn train() -> NetInfo {
    NetInfo { id: "train".into(), kind: NetKind::Cellular, metered: true }
}

/// The region has no rows.
fn told_nothing(d: &mut Device, conn: ConnNo) {
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
}

/// Of a conversation of which all up to 10 is held, on this network and in the background; then 500 are told.
fn behind(network: NetInfo, saving: Saving) -> (Device, ConnNo) {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    told_nothing(&mut d, conn);
    let first: Vec<_> = (1..=10).map(|n| bob(n, place(n * 10, 1, n), &n.to_string())).collect();
    d.frame(conn, 0, push(first, &[(origin(1), 10)], 0, 1));
    d.act(|m, now| m.set_saving(now, saving));
    d.act(|m, now| m.set_foreground(now, false));
    d.act(|m, now| m.network_changed(now, Some(network)));
    d.frames();
    d.frame(conn, 0, push(Vec::new(), &[(origin(1), 500)], 1, 2));
    (d, conn)
}

/// Answers all pulls until there are none, and says what they asked for.
fn serve(d: &mut Device, conn: ConnNo) -> Vec<(u64, u64)> {
    let mut asked = Vec::new();
    loop {
        let pulls = d.frames().into_iter().filter_map(|f| match f.body {
            Some(Body::Pull(p)) => Some((f.req, p.from, p.to)),
            _ => None,
        });
        let pulls: Vec<_> = pulls.collect();
        if pulls.is_empty() {
            return asked;
        }
        for (req, from, to) in pulls {
            let entries: Vec<_> = (from..=to).map(|n| bob(n, place(n * 10, 1, n), &n.to_string())).collect();
            d.body(conn, req, Body::Page(page(origin(1), &entries, vec![], true)));
            asked.push((from, to));
        }
    }
}

fn sum(asked: &[(u64, u64)]) -> u64 {
    asked.iter().map(|(from, to)| to - from + 1).sum()
}

#[test]
fn in_the_background_on_a_metered_network_the_newest_of_what_was_missed_is_pulled_and_the_rest_later() {
    let (mut d, conn) = behind(train(), Saving::default());
    assert!(d.machine.is_saving());
    assert_eq!(serve(&mut d, conn), [(481, 500)]);
    assert!(matches!(d.machine.connection(), ConnectionState::Live { .. }), "nothing is awaited");
    // What is written now comes as ever, and moves nothing of what was left.
    d.frame(conn, 0, push(vec![bob(501, place(5010, 1, 501), "501")], &[(origin(1), 501)], 2, 3));
    assert_eq!(serve(&mut d, conn), []);
    d.act(|m, now| m.set_foreground(now, true));
    assert!(!d.machine.is_saving());
    assert_eq!(sum(&serve(&mut d, conn)), 470);
    assert_eq!(d.shown().len(), 501);
}

#[test]
fn another_network_or_the_applications_word_ends_the_saving() {
    for free in [
        (|m: &mut Machine, now| m.network_changed(now, Some(NetInfo { id: "home".into(), ..NetInfo::default() })))
            as fn(&mut Machine, Duration),
        |m: &mut Machine, now| m.set_saving(now, Saving::Never),
    ] {
        let (mut d, conn) = behind(train(), Saving::Metered);
        assert_eq!(serve(&mut d, conn), [(481, 500)]);
        d.act(free);
        assert_eq!(sum(&serve(&mut d, conn)), 470);
    }
    let (mut d, conn) = behind(train(), Saving::Never);
    assert_eq!(sum(&serve(&mut d, conn)), 490);
    let (mut d, conn) = behind(NetInfo { metered: false, ..train() }, Saving::Metered);
    assert_eq!(sum(&serve(&mut d, conn)), 490);
    let (mut d, conn) = behind(NetInfo { metered: false, ..train() }, Saving::Always);
    assert_eq!(serve(&mut d, conn), [(481, 500)]);
}

#[test]
fn what_the_application_asks_for_comes_all_the_same() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 1);
    d.act(|m, now| m.set_foreground(now, false));
    d.act(|m, now| m.network_changed(now, Some(train())));
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[(origin(1), 130)], None, Some(cursor(1, 1)), true)));
    assert_eq!(serve(&mut d, conn), [(111, 130)], "of what is seen for the first time as well");
    assert!(!d.act(|m, now| m.page_back(now, chat(), 60)));
    assert_eq!(serve(&mut d, conn), [(21, 110)]);
    assert_eq!((d.shown().len(), d.shown()[0].as_str()), (110, "21"));
}

#[test]
fn fewer_attempts_run_beside_each_other() {
    let attempts = |saving| {
        let mut d = Device::new(setup("alice"));
        d.act(|m, now| m.set_saving(now, saving));
        d.act(|m, now| m.set_foreground(now, false));
        d.act(Machine::connect);
        d.act(|m, now| m.token(now, Some("t".into())));
        d.pass(Duration::from_millis(290));
        d.connects.len()
    };
    assert_eq!((attempts(Saving::Never), attempts(Saving::Always)), (2, 1));
}

#[test]
fn a_better_transport_is_looked_for_less_often() {
    let first_climb = |saving| {
        let mut d = Device::new(setup("alice"));
        d.act(|m, now| m.set_saving(now, saving));
        d.act(|m, now| m.set_foreground(now, false));
        d.act(Machine::connect);
        d.act(|m, now| m.token(now, Some("t".into())));
        while !d.connects.iter().any(|(_, _, transport, _)| *transport == Transport::Tcp) {
            d.pass(Duration::from_millis(50));
        }
        let tcp = d.connects.iter().find(|(_, _, transport, _)| *transport == Transport::Tcp).unwrap().0;
        let since = d.now;
        d.welcome_on(tcp, 1, 0);
        told_nothing(&mut d, tcp);
        d.connects.clear();
        while d.connects.is_empty() && d.now < since + Duration::from_secs(600) {
            d.pass(Duration::from_millis(500));
            d.alive(tcp);
        }
        d.now - since
    };
    let (usual, saved) = (first_climb(Saving::Never), first_climb(Saving::Always));
    assert!(usual < Duration::from_secs(60) && saved >= Duration::from_secs(120), "{usual:?}, {saved:?}");
}
