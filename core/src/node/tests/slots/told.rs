//! What one of several nodes says of itself: who is connected, and whether clients must wait.

use super::*;

#[test]
fn who_is_connected_is_told_by_the_owner_of_a_user_and_by_nobody_without_a_lease() {
    let mut fleet = three();
    fleet.settle();
    let now = fleet.now();
    let (alice, from) = (user("alice"), fleet.owners[&home("alice")]);
    let tells = |fleet: &mut Fleet, core: CoreId| {
        let node = &fleet.member(core).node;
        let (all, _) = node.present_after(now, None, 1_000).unwrap();
        let one = node.present_of(now, std::slice::from_ref(&alice)).unwrap();
        (all.iter().any(|(user, _)| *user == alice), one.first().map(|(_, devices)| devices.len()))
    };
    let to = from % 3 + 1;
    assert_eq!((tells(&mut fleet, from), tells(&mut fleet, to)), ((true, Some(1)), (false, None)));
    fleet.hand_over(from, to, [home("alice")].into());
    fleet.settle();
    assert_eq!((tells(&mut fleet, from), tells(&mut fleet, to)), ((false, None), (true, Some(1))));
    fleet.member(to).node.lease(now.mono);
    let node = &fleet.member(to).node;
    assert!(node.present_after(now, None, 1_000).is_none() && node.present_of(now, &[alice]).is_none());
}

#[test]
fn a_node_that_was_told_of_a_connection_before_it_had_its_user_answers_what_else_it_says() {
    let mut fleet = three();
    let (conversation, home) = (fleet.owner_of(alice_and_bob()), home("alice"));
    let owner = fleet.owners[&home];
    assert_ne!(conversation, owner);
    // The edge hears of a hand-over that the node itself does not know of, and then that it was none.
    fleet.router.owners([(home, conversation)]);
    fleet.routed();
    fleet.router.owners([(home, owner)]);
    fleet.routed();
    fleet.pass(Duration::from_secs(1));
    fleet.post(1, message(1));
    fleet.settle();
    assert!(fleet.acked(1, 1).is_some(), "{:?}", fleet.told[&1].frames);
}

#[test]
fn a_node_that_lost_a_user_while_he_was_let_in_answers_what_else_he_says() {
    let mut fleet = three();
    let id = alice_and_bob();
    let core = fleet.owner_of(id);
    let slot = home("alice");
    let owner = fleet.owners[&slot];
    fleet.hand_over(owner, core, [slot].into());
    let (now, conn) = (fleet.now(), 9);
    let open = Up::Open {
        conn,
        req: 1,
        user: user("alice"),
        install: install("pc"),
        hello: Box::new(v1::Hello::default()),
        address: "192.0.2.1:5".into(),
        transport: "quic",
        token_expires_ms: 0,
        token_issued_ms: 0,
    };
    let node = &mut fleet.member(core).node;
    node.lose(now, &[slot].into());
    node.gain(now, &[(slot, 9)].into(), Vec::new());
    node.take_outputs();
    // Her rows are being read when her slot goes to another.
    node.ups(now, EDGE, vec![open]);
    node.lose(now, &[slot].into());
    assert!(node.take_outputs().bounced[&EDGE].iter().any(|up| matches!(up, Up::Open { .. })));
    node.ups(now, EDGE, vec![Up::Send { conn, req: 101, send: message(1) }]);
    fleet.carry_out(core);
    fleet.settle();
    assert!(fleet.acked(conn, 1).is_some());
}

#[test]
fn of_a_restored_region_a_node_lets_clients_in_where_nothing_is_left_to_be_compared() {
    let at = Now { mono: Duration::from_secs(1_000), wall_ms: 1_700_000_000_000 };
    let mut node = Node::new(settings(EU, Some(US), true), Vec::new(), at);
    assert_eq!(node.refilling(), (0, false), "it owns nothing");
    let share = |number| Share::new(number).unwrap();
    for number in [3, 4] {
        let slots: BTreeMap<Slot, u64> = share(number).slots().map(|slot| (slot, 5)).collect();
        node.gain(at, &slots, Vec::new());
        node.to_compare(at, BTreeMap::from([(US, BTreeSet::from([share(number)]))]));
        assert_eq!(node.refilling(), (1, true));
    }
    // Both are given away before the other region has been asked: what is left, nothing, is not to be waited for.
    for (number, refilling) in [(3, (1, true)), (4, (0, false))] {
        node.lose(at, &share(number).slots().collect());
        node.tick(at);
        assert_eq!(node.refilling(), refilling);
    }
}
