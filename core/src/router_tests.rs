use super::*;
use crate::edge_api::SendRequest;
use crate::owners::Owners;
use crate::wire::v1::error::Retry;
use bytes::Bytes;

const SALT: &[u8] = b"salt";
const SEC: Duration = Duration::from_secs(1);
const CONV: ConvId = ConvId([9; 16]);

fn alice() -> UserId {
    UserId::new("alice").unwrap()
}

fn home() -> Slot {
    Slot::of_user(SALT, &alice())
}

fn open(conn: ConnId) -> Up {
    Up::Open {
        conn,
        req: 1,
        user: alice(),
        install: InstallId::new("phone").unwrap(),
        hello: Box::new(v1::Hello::default()),
        address: "192.0.2.1:5".into(),
        transport: "quic",
        token_expires_ms: 0,
        token_issued_ms: 0,
    }
}

fn post(conn: ConnId, req: u32, bytes: usize) -> Up {
    let send = SendRequest {
        conversation: CONV,
        peer: None,
        n: 1,
        floor: 1,
        seen_hlc: 0,
        kind: 0,
        body: Bytes::from(vec![0; bytes]),
        wall_ms: 0,
        offer: None,
        membership: None,
        named: None,
    };
    Up::Send { conn, req, send }
}

fn say(conn: ConnId, req: u32, body: Body) -> Up {
    Up::Frame { conn, frame: v1::Frame::new(req, body) }
}

fn ping(conn: ConnId, req: u32) -> Up {
    say(conn, req, Body::Ping(v1::Ping { echo: 77, ..v1::Ping::default() }))
}

/// What connections are told, in short.
fn told(router: &mut Router) -> Vec<String> {
    let downs = router.take().downs;
    let text = |down: Down| match down.body {
        DownBody::Last(refusal) => format!("{} last {}", down.conn, refusal.code.name()),
        DownBody::Frame(frame) => match frame.body {
            Some(Body::Error(error)) => {
                assert_eq!(error.retry, Retry::Here as i32, "a client stays where it is");
                format!("{} {} {}", down.conn, frame.req, Code::from_u32(error.code).unwrap().name())
            }
            Some(Body::Pong(pong)) => format!("{} {} pong {} {}", down.conn, frame.req, pong.echo, pong.rev_unknown),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    downs.into_iter().map(text).collect()
}

/// Node 1 has all but the conversation, which is node 2's; alice has a connection.
fn two() -> Router {
    assert_ne!(home(), Slot::of(CONV));
    let mut router = Router::new(SALT.to_vec());
    router.core_up(1);
    router.core_up(2);
    router.owners(Slot::all().map(|slot| (slot, if slot == Slot::of(CONV) { 2 } else { 1 })));
    router.tick(SEC);
    assert!(router.is_whole() && router.next_deadline().is_none());
    router.submit(vec![open(1)]);
    let welcome = v1::Frame::new(1, Body::Welcome(v1::Welcome::default()));
    router.told(&Down { conn: 1, body: DownBody::Frame(Box::new(welcome)) });
    router.submit(vec![say(1, 0, Body::Commit(v1::Commit { order: 3, ..v1::Commit::default() }))]);
    router.take();
    router
}

#[test]
fn a_lost_request_is_to_be_asked_again_here_and_a_lost_ping_is_answered() {
    let mut router = two();
    router.submit(vec![post(1, 5, 1), ping(1, 6)]);
    router.take();
    router.core_down(2);
    assert_eq!(told(&mut router), ["1 5 owner_lost"]);
    router.core_down(1);
    assert_eq!(told(&mut router), ["1 6 pong 77 true"]);
    // A Ping asks whether anyone is there, so it does not wait until somebody is.
    router.submit(vec![ping(1, 7)]);
    assert_eq!(told(&mut router), ["1 7 pong 77 true"]);
}

#[test]
fn a_hello_whose_node_died_is_said_to_the_new_owner_and_those_after_it_do_not_wait_behind_it() {
    let mut router = two();
    router.submit(vec![open(2)]);
    router.take();
    // The others have seen sooner than this edge that node 1 is dead.
    router.owners([(home(), 2)]);
    router.tick(SEC);
    router.core_down(1);
    router.submit(vec![open(3)]);
    let ups = router.take().ups.remove(&2).unwrap_or_default();
    let opened: Vec<ConnId> = ups.iter().filter(|up| matches!(up, Up::Open { .. })).map(Up::conn).collect();
    assert_eq!((opened, router.held()), (vec![2, 3], 0));
}

#[test]
fn what_a_former_owner_does_not_answer_is_asked_again_long_before_its_link_is_given_up() {
    let mut router = two();
    router.submit(vec![open(2), post(1, 5, 1), ping(1, 6)]);
    router.take();
    router.owners([(home(), 2), (Slot::of(CONV), 1)]);
    assert_eq!(router.next_deadline(), Some(Duration::ZERO), "since when is to be noted");
    router.tick(SEC);
    assert_eq!(told(&mut router), Vec::<String>::new(), "it may have answered");
    assert_eq!(router.next_deadline(), Some(SEC + LEFT_WITHIN));
    // Of two questions one is answered.
    router.submit(vec![post(1, 7, 1)]);
    router.tick(SEC + LEFT_WITHIN);
    let routed = router.take();
    assert!(routed.ups[&2].iter().any(|up| matches!(up, Up::Open { conn: 2, .. })));
    router.out.downs = routed.downs;
    assert_eq!(told(&mut router), ["1 5 owner_lost", "1 6 pong 77 true"], "7 was asked of the new owner");
    router.core_down(1);
    assert_eq!(told(&mut router), ["1 7 owner_lost"], "and nothing else twice");
}

#[test]
fn what_a_connection_that_is_gone_said_is_not_kept() {
    let mut router = two();
    router.core_down(2);
    router.submit(vec![
        post(1, 5, 1),
        Up::Close { conn: 1 },
        post(1, 6, 1),
        say(1, 0, Body::Watch(v1::Watch::default())),
    ]);
    assert_eq!((router.held(), router.held_bytes()), (0, 0));
}

#[test]
fn a_slot_that_nobody_takes_up_is_given_up_and_taken_up_late_all_the_same() {
    let mut router = two();
    router.core_down(1);
    assert_eq!(router.next_deadline(), Some(Duration::ZERO), "when it began is to be noted");
    router.tick(2 * SEC);
    assert_eq!(router.next_deadline(), Some(7 * SEC));
    router.submit(vec![open(2), say(1, 8, Body::Mark(v1::Mark::default()))]);
    router.tick(7 * SEC - Duration::from_millis(1));
    assert_eq!(told(&mut router), Vec::<String>::new());
    assert_eq!(router.held(), 2);
    router.tick(7 * SEC);
    assert_eq!(
        told(&mut router),
        ["2 last core_unreachable", "1 8 owner_lost", "1 last core_unreachable", "2 last core_unreachable"]
    );
    assert_eq!((router.held(), router.held_bytes(), router.next_deadline()), (0, 0, None));
    // Whoever comes now is not kept waiting.
    router.submit(vec![open(3), say(1, 9, Body::Mark(v1::Mark::default())), post(1, 10, 1)]);
    assert_eq!(told(&mut router), ["3 last core_unreachable", "1 9 owner_lost"], "the conversation has an owner");
    router.owners(Slot::all().map(|slot| (slot, 2)));
    assert!(matches!(router.take().ups[&2][0], Up::Resume { conn: 1, order: 3, .. }));
    router.tick(8 * SEC);
    assert!(router.is_whole() && router.next_deadline().is_none());
    // It begins anew.
    router.nobody([home()]);
    router.tick(9 * SEC);
    assert_eq!(router.next_deadline(), Some(14 * SEC));
    router.owners([(home(), 2)]);
    router.tick(14 * SEC);
    assert_eq!((told(&mut router), router.next_deadline()), (Vec::new(), None));
}

#[test]
fn an_owner_that_is_named_before_it_can_be_reached_is_none_until_it_can() {
    let mut router = two();
    router.owners([(Slot::of(CONV), 3)]);
    router.submit(vec![post(1, 5, 1)]);
    router.tick(2 * SEC);
    assert_eq!((router.is_whole(), router.held(), router.next_deadline()), (false, 1, Some(7 * SEC)));
    router.core_up(3);
    router.tick(3 * SEC);
    assert!(router.is_whole());
    let ups = &router.take().ups[&3];
    assert!(matches!(ups[..], [Up::Attach { .. }, Up::Send { .. }]), "{ups:?}");
}

/// Alice's connection is welcomed; node 1 owns all.
fn one() -> Router {
    let mut router = two();
    router.owners(Slot::all().map(|slot| (slot, 1)));
    router.tick(SEC);
    router.take();
    router
}

#[test]
fn a_node_that_is_stopped_and_comes_back_answers_what_it_has_and_is_told_the_rest_later() {
    let mut router = one();
    router.submit(vec![post(1, 5, 1), ping(1, 6)]);
    assert_eq!(router.take().ups[&1].len(), 2);
    router.stopping(SEC, 1, 10 * SEC);
    router.submit(vec![post(1, 7, 1), open(2), say(1, 0, Body::Watch(v1::Watch::default()))]);
    assert!(router.take().ups.is_empty());
    // One of the two is answered, the other handed back.
    let pong = v1::Frame::new(6, Body::Pong(v1::Pong::default()));
    router.told(&Down { conn: 1, body: DownBody::Frame(Box::new(pong)) });
    router.bounced(SEC, 1, vec![post(1, 5, 1)]);
    router.submit(vec![ping(1, 8)]);
    assert_eq!(told(&mut router), ["1 8 pong 77 true"]);
    router.core_down(1);
    router.tick(10 * SEC);
    assert_eq!(told(&mut router), Vec::<String>::new(), "all is answered or waits, and the time is not over");
    router.core_up(2);
    router.owners(Slot::all().map(|slot| (slot, 2)));
    let ups = router.take().ups.remove(&2).unwrap();
    assert!(matches!(ups[0], Up::Resume { conn: 1, .. }), "{ups:?}");
    assert_eq!(ups.iter().filter(|up| matches!(up, Up::Open { .. })).count(), 1);
    let posts: Vec<u32> =
        ups.iter().filter_map(|up| if let Up::Send { req, .. } = up { Some(*req) } else { None }).collect();
    assert_eq!(posts, [7, 5], "in the order in which they came to wait");
    router.tick(30 * SEC);
    assert!(told(&mut router).is_empty() && router.is_whole());
}

#[test]
fn a_node_that_does_not_come_back_is_given_up_when_it_said() {
    let mut router = one();
    router.stopping(SEC, 1, 10 * SEC);
    router.core_down(1);
    router.tick(SEC);
    assert_eq!(router.next_deadline(), Some(11 * SEC));
    router.tick(11 * SEC - Duration::from_millis(1));
    assert!(!router.is_given_up() && told(&mut router).is_empty());
    router.tick(11 * SEC);
    assert_eq!(told(&mut router), ["1 last core_unreachable"]);
    assert!(router.is_given_up());
    // Not for ever.
    router.core_up(2);
    router.owners(Slot::all().map(|slot| (slot, 2)));
    assert!(router.is_whole() && !router.is_given_up());
}

#[test]
fn a_hello_that_was_handed_back_is_said_once_to_the_next_node() {
    let mut router = one();
    router.submit(vec![open(2)]);
    assert_eq!(router.take().ups[&1].len(), 1);
    router.stopping(SEC, 1, 10 * SEC);
    router.bounced(SEC, 1, vec![open(2)]);
    router.core_down(1);
    router.core_up(2);
    router.owners(Slot::all().map(|slot| (slot, 2)));
    let ups = router.take().ups.remove(&2).unwrap();
    assert_eq!(ups.iter().filter(|up| matches!(up, Up::Open { .. })).count(), 1, "{ups:?}");
}

#[test]
fn what_waits_for_owners_is_bounded() {
    let mut router = two();
    router.core_down(2);
    for req in 1..=100 {
        router.submit(vec![post(1, req, 60_000)]);
    }
    assert!(router.held_bytes() <= HELD_BYTES && router.held() < 100 && router.held() > 60);
    let lost = told(&mut router);
    assert_eq!(lost.len(), 100 - router.held());
    assert!(lost.iter().all(|told| told.ends_with("owner_lost")));
    // Neither is anything kept for ever.
    router.submit(vec![Up::Close { conn: 1 }]);
    assert_eq!((router.held(), router.held_bytes()), (0, 0));
}

#[test]
fn a_connection_whose_commit_can_not_be_kept_is_sent_elsewhere() {
    let mut router = two();
    router.core_down(2);
    while router.held_bytes() + 70_000 < HELD_BYTES {
        router.submit(vec![post(1, 5, 60_000)]);
    }
    // Its home is about to be handed over, and gives it back.
    let commit = || vec![say(1, 0, Body::Commit(v1::Commit { order: 4, ..v1::Commit::default() }))];
    let before = router.held();
    router.bounced(SEC, 1, commit());
    assert_eq!((router.held(), told(&mut router)), (before + 1, Vec::new()));
    while router.held_bytes() + 1_000 < HELD_BYTES {
        router.submit(vec![post(1, 5, 500)]);
    }
    for _ in 0..10 {
        router.bounced(SEC, 1, commit());
    }
    assert!(told(&mut router).contains(&"1 last core_unreachable".to_owned()));
}

#[test]
fn words_of_the_store_find_their_way_into_slots() {
    let mut owners = Owners::default();
    let share = home().share();
    owners.set(share, Some("a".into()), 1);
    assert_eq!(owners.owned_by("a").collect::<Vec<_>>(), [share]);
    assert_eq!(owners.owned_by("b").count(), 0);
}
