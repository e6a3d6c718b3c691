//! One region: acks, rows, revisions, devices, pulls.

use super::*;
use crate::codes::Code;
use crate::ids::{Cursor, Rev};
use crate::kinds::ERASE;
use prost::Message as _;

fn origin(world: &mut World, region: Region) -> Origin {
    world.core(region).node.origin()
}

#[test]
fn nothing_undecided_is_acked_pushed_shipped_or_readable() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let bob = w.connect(EU, 2, "bob", "phone");
    w.core(EU).stalled = true;
    w.post(alice, message(1));
    w.settle();
    assert!(w.told(alice).acks.is_empty() && w.told(bob).pushes.is_empty());
    assert!(w.links.values().all(VecDeque::is_empty));
    let eu = origin(&mut w, EU);
    let pull = v1::PullEntries {
        conversation: alice_and_bob().0.to_vec().into(),
        origin: Some(eu.into()),
        from: 1,
        to: 1,
        limit: 0,
        backwards: false,
    };
    w.frame(alice, 9, v1::frame::Body::Pull(pull));
    let page = w.told(alice).pages.pop().unwrap();
    assert!(page.entries.is_empty() && page.gaps == [(1, 1, v1::gap::Reason::NotHere)]);
    w.core(EU).stalled = false;
    w.settle();
    assert_eq!(w.told(alice).acks.len(), 1);
    assert_eq!(w.told(bob).pushes[0].entries[0].body, "m1");
}

#[test]
fn one_batch_per_conversation_is_in_flight_and_takes_what_waited() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.post(alice, message(1));
    for n in 2..=20 {
        w.post(alice, SendRequest { floor: 1, ..message(n) });
    }
    assert_eq!(w.core(EU).appends.len(), 1);
    w.commit(EU);
    assert_eq!(w.core(EU).appends.len(), 1);
    assert_eq!(w.core(EU).appends[0].entries.len(), 19);
    w.settle();
    assert_eq!(w.told(alice).acks.len(), 20);
}

#[test]
fn todo_is_written_when_a_conversation_turns_active_and_not_once_a_message() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.post(alice, message(1));
    assert_eq!(w.core(EU).appends[0].todo.len(), 3, "fan-out and two peers");
    w.settle();
    w.post(alice, message(2));
    assert!(w.core(EU).appends[0].todo.is_empty());
    w.settle();
    assert_eq!(w.core(EU).disk.todo.len(), 3);
    w.pass(Duration::from_secs(4));
    w.core(EU).disk.sync();
    assert!(w.core(EU).disk.todo.is_empty(), "{:?}", w.core(EU).disk.todo);
    assert_eq!(w.row(EU, "bob").values().sum::<u64>(), 2, "rows are on disk before their todo goes");
}

#[test]
fn a_crash_after_the_ack_before_fan_out_hides_no_message() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    assert!(w.row(EU, "bob").is_empty(), "the row is in memory only");
    w.kill(EU);
    w.start(EU);
    w.settle();
    let bob = w.connect(EU, 2, "bob", "phone");
    let rows = &w.told(bob).welcome().rows.clone().unwrap();
    assert_eq!(rows.rows.len(), 1);
    assert_eq!(rows.rows[0].heads[0].seq, 1);
}

#[test]
fn a_crash_with_rows_in_memory_slips_nothing_under_a_cursor() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let bob = w.connect(EU, 2, "bob", "phone");
    w.send(alice, 1);
    w.pass(Duration::from_secs(1));
    w.send(alice, 2);
    let told = w.told(bob).pushes.last().unwrap().rev;
    w.kill(EU);
    w.start(EU);
    w.settle();
    assert!(w.core(EU).node.rev_of(&user("bob")).unwrap() > told);
}

#[test]
fn a_push_carries_the_chain_of_revs_and_the_whole_row() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let bob = w.connect(EU, 2, "bob", "phone");
    w.send(alice, 1);
    w.send(alice, 2);
    let pushes = &w.told(bob).pushes.clone();
    assert_eq!(pushes.len(), 2);
    assert_eq!(pushes[1].prev_rev, pushes[0].rev);
    assert_eq!(pushes[1].heads.values().copied().collect::<Vec<_>>(), [2]);
    assert_eq!(pushes[0].peer, Some(user("alice")), "as the receiver names him");
    let own = &w.told(alice).pushes.clone();
    assert_eq!((own.len(), own.iter().map(|p| p.entries.len()).sum::<usize>()), (2, 0), "the sender has it already");
    assert_eq!(own[0].peer, Some(user("bob")));
}

#[test]
fn the_senders_other_device_gets_the_message() {
    let mut w = World::new();
    let phone = w.connect(EU, 1, "alice", "phone");
    let tablet = w.connect(EU, 2, "alice", "tablet");
    w.send(phone, 1);
    assert_eq!(w.told(tablet).pushes[0].entries.len(), 1);
}

#[test]
fn a_resend_after_a_lost_ack_is_acked_once_more_and_stored_once() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let first = w.send(alice, 1);
    let again = w.connect(EU, 7, "alice", "phone");
    assert_eq!(w.send(again, 1), first);
    let eu = origin(&mut w, EU);
    assert_eq!(w.log(EU, eu), ["m1"]);
    assert_eq!(w.told(alice).last, Some(Code::Replaced), "the newer connection of an install wins");
}

#[test]
fn acks_tell_of_lost_acks_below_and_repeat_nothing_on_one_connection() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    for n in 1..=3 {
        w.post(alice, SendRequest { floor: 1, ..message(n) });
    }
    w.settle();
    assert!(w.ack(alice, 3).also.is_empty(), "they were acked on this very connection");
    let again = w.connect(EU, 7, "alice", "phone");
    w.post(again, SendRequest { floor: 1, ..message(4) });
    w.settle();
    assert_eq!(w.ack(again, 4).also.iter().map(|h| h.n).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_resend_of_long_ago_is_found_in_the_store() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let first = w.send(alice, 1);
    for n in 2..=600 {
        w.send(alice, n);
    }
    assert_eq!(w.send(alice, 1), first);
}

#[test]
fn an_append_of_unknown_outcome_is_resolved_by_reading_and_acked_once() {
    for written in ["written", "not written"] {
        let mut w = World::new();
        let alice = w.connect(EU, 1, "alice", "phone");
        w.core(EU).failures.push_back(Appended::Unknown(written.into()));
        let ack = w.send(alice, 1);
        assert_eq!(ack.place.seq, 1);
        let eu = origin(&mut w, EU);
        assert_eq!(w.log(EU, eu), ["m1"], "{written}");
        assert_eq!(w.send(alice, 2).place.seq, 2);
    }
}

#[test]
fn a_full_disk_refuses_and_the_same_message_is_taken_later() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.core(EU).failures.push_back(Appended::Full);
    w.post(alice, message(1));
    w.settle();
    assert_eq!(w.told(alice).errors(), [Code::StoreFull as u32]);
    assert!(w.told(alice).acks.is_empty());
    assert_eq!(w.send(alice, 1).place.seq, 1);
}

#[test]
fn a_damaged_log_refuses_and_sends_the_client_elsewhere() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.core(EU).failures.push_back(Appended::Damaged);
    w.post(alice, message(1));
    w.settle();
    let told = w.told(alice).frames.iter().find_map(|f| match &f.body {
        Some(v1::frame::Body::Error(e)) => Some((e.code, e.retry(), e.message.clone())),
        _ => None,
    });
    let text = "the log is damaged here; nothing was stored".to_owned();
    assert_eq!(told, Some((Code::Damaged as u32, v1::error::Retry::Elsewhere, text)));
    assert!(w.told(alice).acks.is_empty());
}

#[test]
fn cursors_of_another_era_or_from_the_future_are_taken_as_absent() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    let eu = origin(&mut w, EU);
    let rev = w.core(EU).node.rev_of(&user("bob")).unwrap();
    let mut ask = |conn, store, rev| {
        let cursor = Cursor { store, rev };
        let hello = v1::Hello { cursors: vec![cursor.into()], ..Default::default() };
        let bob = w.hello(EU, conn, "bob", "phone", hello);
        w.told(bob).welcome().rows.clone().unwrap()
    };
    let current = ask(2, eu, rev);
    assert!(!current.preview && current.rows.is_empty() && current.last);
    let future = ask(3, eu, Rev(rev.0 + 5));
    assert!(future.preview && future.reset() == v1::CursorReset::FromTheFuture && future.rows.len() == 1);
    let other = ask(4, Origin { region: EU, era: 77 }, rev);
    assert!(other.preview && other.reset() == v1::CursorReset::OtherEra);
    let elsewhere = ask(5, Origin { region: US, era: 77 }, rev);
    assert!(elsewhere.preview && elsewhere.reset() == v1::CursorReset::None);
}

#[test]
fn rows_come_in_pages_of_ascending_rev_up_to_the_newest() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    for i in 0..5 {
        let peer = user(&format!("friend{i}"));
        let conversation = ConvId::direct(SALT, &user("alice"), &peer);
        w.post(alice, SendRequest { conversation, peer: Some(peer), ..message(1) });
        w.settle();
    }
    let mut above = None;
    let mut revs = Vec::new();
    loop {
        w.frame(alice, 5, v1::frame::Body::PullRows(v1::PullRows { above, limit: 2 }));
        let page = w.told(alice).rows().last().unwrap().clone();
        revs.extend(page.rows.iter().map(|r| r.rev));
        above = page.upto;
        if page.last {
            break;
        }
    }
    assert!(revs.len() == 5 && revs.windows(2).all(|r| r[0] < r[1]));
    assert_eq!(above.unwrap().rev, w.core(EU).node.rev_of(&user("alice")).unwrap().0);
}

#[test]
fn pulls_give_pages_both_ways_and_name_what_is_not_here() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    for n in 1..=30 {
        w.post(alice, SendRequest { body: vec![b'x'; 4000].into(), floor: 1, ..message(n) });
    }
    w.settle();
    let eu = origin(&mut w, EU);
    let mut pull = |from, to, backwards| {
        let conversation = alice_and_bob().0.to_vec().into();
        let body = v1::PullEntries { conversation, origin: Some(eu.into()), from, to, limit: 0, backwards };
        w.frame(alice, 9, v1::frame::Body::Pull(body));
        std::mem::take(&mut w.told(alice).pages)
    };
    let pages = pull(1, 40, false);
    assert!(pages.len() > 3 && pages.iter().rev().skip(1).all(|p| !p.last) && pages.last().unwrap().last);
    let seqs: Vec<u64> = pages.iter().flat_map(|p| p.entries.iter().map(|e| e.place.seq)).collect();
    assert_eq!(seqs, (1..=30).collect::<Vec<_>>());
    assert_eq!(pages.last().unwrap().gaps, [(31, 40, v1::gap::Reason::NotHere)]);
    let seqs: Vec<u64> = pull(11, 20, true).iter().flat_map(|p| p.entries.iter().map(|e| e.place.seq)).collect();
    assert_eq!(seqs, (11..=20).rev().collect::<Vec<_>>());
    let mallory = w.connect(EU, 5, "mallory", "pc");
    let conversation = alice_and_bob().0.to_vec().into();
    let body = v1::PullEntries { conversation, origin: Some(eu.into()), from: 1, to: 2, limit: 0, backwards: false };
    w.frame(mallory, 9, v1::frame::Body::Pull(body));
    assert_eq!(w.told(mallory).errors(), [Code::NotMember as u32]);
}

/// Old entries lie in an archive that does not answer.
#[test]
fn what_can_not_be_read_at_the_moment_is_refused_to_clients_and_waited_for_by_peers_and_erasures() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let pad = w.connect(EU, 3, "alice", "pad");
    w.unlink(EU, AP);
    w.unlink(US, AP);
    for n in 1..=3 {
        w.send(alice, n);
    }
    w.settle();
    let eu = origin(&mut w, EU);
    w.core(EU).away = true;
    let pull = |w: &mut World| {
        let conversation = alice_and_bob().0.to_vec().into();
        let body =
            v1::PullEntries { conversation, origin: Some(eu.into()), from: 1, to: 9, ..v1::PullEntries::default() };
        w.frame(alice, 9, v1::frame::Body::Pull(body));
        std::mem::take(&mut w.told(alice).pages)
    };
    assert!(pull(&mut w).is_empty(), "no page says that they are a gap");
    assert_eq!(w.told(alice).errors(), [Code::ArchiveUnavailable as u32]);
    let author = Some(v1::Author { user: "alice".to_owned(), install: "phone".to_owned() });
    let erase = v1::Erase { author, n: 1 }.encode_to_vec();
    w.post(pad, SendRequest { kind: ERASE, body: erase.into(), ..message(1) });
    w.settle();
    w.link(EU, AP);
    w.pass(Duration::from_secs(5));
    w.send(alice, 4);
    w.settle();
    assert!(w.bodies(EU).iter().any(|(_, body)| body == "m4"), "new messages are not held up");
    assert!(w.bodies(EU).iter().any(|(_, body)| body == "m1"), "what is to be erased was not read yet");
    assert!(!w.core(EU).waiting.is_empty());
    w.core(EU).away = false;
    let now = w.now(0);
    for (ticket, range) in std::mem::take(&mut w.core(EU).waiting) {
        let entries = w.core(EU).disk.range(range);
        w.core(EU).node.range_read(now, ticket, Ok(entries));
    }
    w.pass(Duration::from_secs(10));
    for region in [EU, AP] {
        let bodies = w.bodies(region);
        assert!(bodies.iter().all(|(_, body)| body != "m1"), "region {region}: {bodies:?}");
        assert!(bodies.iter().any(|(_, body)| body == "m2") && bodies.iter().any(|(_, body)| body == "m4"));
    }
    let seqs: Vec<u64> = pull(&mut w).iter().flat_map(|p| p.entries.iter().map(|e| e.place.seq)).collect();
    assert_eq!(seqs, (1..=5).collect::<Vec<_>>());
}

#[test]
fn a_device_that_does_not_ack_is_told_to_pull_until_it_does() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let bob = w.connect(EU, 2, "bob", "phone");
    w.send(alice, 1);
    w.pass(Duration::from_millis(2_500));
    assert_eq!(w.told(bob).advances(), 0);
    w.pass(Duration::from_secs(4));
    assert_eq!(w.told(bob).advances(), 2);
    let rev = w.told(bob).pushes[0].rev.0;
    w.frame(bob, 0, v1::frame::Body::PushAck(v1::PushAck { rev }));
    w.pass(Duration::from_secs(10));
    assert_eq!(w.told(bob).advances(), 2);
}

#[test]
fn what_arrives_between_welcome_and_commit_is_told_at_the_commit() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let bob = w.hello(EU, 2, "bob", "phone", v1::Hello::default());
    w.send(alice, 1);
    assert!(w.told(bob).pushes.is_empty());
    w.frame(bob, 0, v1::frame::Body::Commit(v1::Commit::default()));
    assert_eq!(w.told(bob).advances(), 1);
}

#[test]
fn an_eleventh_device_is_refused() {
    let mut w = World::new();
    for i in 0..10 {
        w.connect(EU, i, "alice", &format!("device{i}"));
    }
    let eleventh = w.connect(EU, 10, "alice", "device10");
    assert_eq!(w.told(eleventh).last, Some(Code::TooManyDevices));
    let again = w.connect(EU, 11, "alice", "device3");
    assert_eq!(w.told(again).last, None);
}

#[test]
fn a_stop_takes_no_more_sends_and_settles() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    w.core(EU).node.drain([]);
    w.post(alice, message(2));
    w.settle();
    assert_eq!(w.told(alice).errors(), [Code::Draining as u32]);
    assert!(!w.core(EU).node.is_settled(), "rows are not on disk yet");
    w.pass(Duration::from_secs(1));
    assert!(w.core(EU).node.is_settled());
    assert_eq!(w.core(EU).node.last_puts().len(), 1, "the conversation's checkpoint");
}

#[test]
fn a_clock_that_jumps_back_gives_no_earlier_place() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let before = w.send(alice, 1);
    w.core(EU).skew_ms = -3_600_000;
    assert!(w.send(alice, 2).place > before.place);
}

#[test]
fn a_store_that_keeps_failing_tells_the_sender_and_spins_not() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.core(EU).failures.extend((0..5).map(|_| Appended::Unknown("not written".into())));
    w.post(alice, message(1));
    w.settle();
    assert_eq!(w.told(alice).errors(), [Code::Internal as u32]);
    assert_eq!(w.send(alice, 1).place.seq, 1);
}

#[test]
fn an_answer_to_one_pull_is_bounded_in_bytes() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    for n in 1..=20 {
        w.post(alice, SendRequest { body: vec![b'x'; 60_000].into(), floor: 1, ..message(n) });
    }
    w.settle();
    let eu = origin(&mut w, EU);
    let conversation = alice_and_bob().0.to_vec().into();
    let body = v1::PullEntries { conversation, origin: Some(eu.into()), from: 1, to: 20, limit: 0, backwards: false };
    w.frame(alice, 9, v1::frame::Body::Pull(body));
    let pages = &w.told(alice).pages;
    let bytes: usize = pages.iter().flat_map(|p| &p.entries).map(|e| e.body.len()).sum();
    assert!((256 * 1024..400 * 1024).contains(&bytes) && pages.last().unwrap().last);
}

#[test]
fn work_that_was_done_before_a_crash_is_forgotten_after_it_though_nobody_writes() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    w.pass(Duration::from_secs(1)); // everybody has it; the todo lingers
    w.kill(EU);
    w.start(EU);
    assert!(!w.core(EU).disk.todo.is_empty());
    w.link(EU, US);
    w.link(EU, AP);
    w.pass(Duration::from_secs(10));
    w.core(EU).disk.sync();
    assert!(w.core(EU).disk.todo.is_empty(), "{:?}", w.core(EU).disk.todo);
}
