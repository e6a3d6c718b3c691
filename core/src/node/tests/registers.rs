//! Read marks, cells of users' own logs, comparison of rows, erasure.

use super::*;
use crate::buckets;
use crate::codes::Code;
use crate::kinds::{CELL, ERASE, ERASE_MINE};
use prost::Message;

fn cell(name: &str, n: u64, key: &str, value: &impl Message) -> SendRequest {
    let cell = v1::Cell { key: key.to_owned(), value: value.encode_to_vec().into() };
    SendRequest {
        conversation: ConvId::own(SALT, &user(name)),
        peer: Some(user(name)),
        floor: n,
        kind: CELL,
        body: cell.encode_to_vec().into(),
        ..message(n)
    }
}

fn mark(ack: &Ack) -> v1::frame::Body {
    let read = vec![v1::OriginHead { origin: Some(ack.place.origin.into()), seq: ack.place.seq }];
    v1::frame::Body::Mark(v1::Mark { conversation: Bytes::copy_from_slice(&alice_and_bob().0), read })
}

impl World {
    fn row_of(&mut self, region: Region, name: &str) -> crate::store::RowRecord {
        self.core(region).disk.rows.get(&(user(name), alice_and_bob())).cloned().unwrap_or_default()
    }

    fn marked(&mut self, c: Conn) -> usize {
        self.told(c).frames.iter().filter(|f| matches!(f.body, Some(v1::frame::Body::Marked(_)))).count()
    }

    pub(super) fn bodies(&mut self, region: Region) -> Vec<(bool, String)> {
        let logs = self.core(region).disk.logs.iter().filter(|((c, _), _)| *c == alice_and_bob());
        let entries = logs.flat_map(|(_, log)| log.clone());
        entries.map(|e| (e.erased, String::from_utf8_lossy(&e.body).into_owned())).collect()
    }
}

#[test]
fn a_read_mark_is_acked_when_durable_and_reaches_devices_regions_and_the_other_user() {
    let mut w = World::new();
    let (alice, bob) = (w.connect(EU, 1, "alice", "phone"), w.connect(US, 2, "bob", "pc"));
    let tablet = w.connect(AP, 3, "bob", "tab");
    let sent = w.send(alice, 1);
    w.frame(bob, 8, mark(&sent));
    assert_eq!(w.marked(bob), 0, "not durable yet");
    w.pass(Duration::from_secs(2));
    assert_eq!(w.marked(bob), 1);
    let read: Heads = [(sent.place.origin, sent.place.seq)].into();
    for region in [EU, US, AP] {
        assert_eq!((w.row_of(region, "bob").read, w.row_of(region, "alice").peer_read), (read.clone(), read.clone()));
    }
    let told = w.told(tablet).pushes.iter().rev().find_map(|p| p.row.clone()).expect("a push of the row");
    assert_eq!(told.read, read);
    let told = w.told(alice).pushes.iter().rev().find_map(|p| p.row.clone()).expect("a push of the row");
    assert_eq!(told.peer_read, read);
    // Told again, nothing changes, and it is acked all the same.
    let rev = w.row_of(US, "bob").rev;
    w.frame(bob, 9, mark(&sent));
    w.pass(Duration::from_secs(2));
    assert_eq!((w.marked(bob), w.row_of(US, "bob").rev), (2, rev));
}

#[test]
fn a_mark_that_was_acked_survives_a_crash_and_reaches_a_region_that_was_away() {
    let mut w = World::new();
    let (alice, bob) = (w.connect(EU, 1, "alice", "phone"), w.connect(US, 2, "bob", "pc"));
    let sent = w.send(alice, 1);
    w.pass(Duration::from_secs(3));
    w.unlink(US, AP);
    w.frame(bob, 8, mark(&sent));
    w.pass(Duration::from_secs(2));
    assert_eq!(w.marked(bob), 1);
    assert!(w.row_of(AP, "bob").read.is_empty());
    w.kill(US);
    w.start(US);
    w.link(EU, US);
    w.link(US, AP);
    w.pass(Duration::from_secs(3));
    assert_eq!(w.row_of(AP, "bob").read, [(sent.place.origin, 1)].into());
    let left: Vec<_> = w.core(US).disk.todo.keys().filter(|(_, c)| *c == ConvId::marks(SALT, &user("bob"))).collect();
    assert!(left.is_empty(), "nothing is left to tell: {left:?}");
}

#[test]
fn a_mark_of_a_conversation_that_is_not_known_here_is_kept_by_the_client() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let bob = w.connect(US, 2, "bob", "pc");
    w.unlink(EU, US);
    w.unlink(AP, US);
    let sent = w.send(alice, 1);
    w.frame(bob, 8, mark(&sent));
    assert_eq!(w.told(bob).errors(), [Code::UnknownConversation as u32]);
}

#[test]
fn what_a_blocked_user_writes_stays_with_his_own_devices() {
    let mut w = World::new();
    let (alice, bob) = (w.connect(EU, 1, "alice", "phone"), w.connect(US, 2, "bob", "pc"));
    let pad = w.connect(AP, 3, "alice", "pad");
    w.post(bob, cell("bob", 1, "block/alice", &v1::BlockCell { blocked: true }));
    w.settle();
    w.told(bob).pushes.clear();
    let first = w.send(alice, 1);
    assert_eq!(w.told(bob).pushes.len(), 0, "no row, no push");
    assert_eq!(w.told(pad).pushes.iter().map(|p| p.entries.len()).sum::<usize>(), 1);
    w.post(bob, cell("bob", 2, "block/alice", &v1::BlockCell { blocked: false }));
    w.settle();
    w.send(alice, 2);
    let bodies = |w: &mut World, c| {
        let pushes = w.told(c).pushes.clone();
        pushes.iter().flat_map(|p| p.entries.clone()).map(|e| e.body.clone()).collect::<Vec<_>>()
    };
    assert!(bodies(&mut w, bob).ends_with(&[Bytes::from_static(b"m2")]));
    let pull = v1::PullEntries {
        conversation: Bytes::copy_from_slice(&alice_and_bob().0),
        origin: Some(first.place.origin.into()),
        from: 1,
        to: 2,
        limit: 0,
        backwards: false,
    };
    w.frame(bob, 7, v1::frame::Body::Pull(pull));
    let page = w.told(bob).pages.last().unwrap().clone();
    assert_eq!(page.entries.iter().map(|e| e.body.clone()).collect::<Vec<_>>(), [Bytes::from_static(b"m2")]);
    assert_eq!(page.gaps, [(1, 1, v1::gap::Reason::NoAccess)]);
}

#[test]
fn a_device_that_its_user_removed_is_refused_in_every_region_at_once() {
    let mut w = World::new();
    let phone = w.connect(EU, 1, "alice", "phone");
    let lost = w.connect(AP, 2, "alice", "lost");
    w.post(phone, cell("alice", 1, "kick/lost", &v1::KickCell { reason: "stolen".to_owned() }));
    w.settle();
    assert_eq!(w.told(lost).last, Some(Code::Kicked));
    for (region, conn) in [(EU, 11), (US, 12), (AP, 13)] {
        let again = w.hello(region, conn, "alice", "lost", v1::Hello::default());
        assert_eq!(w.told(again).last, Some(Code::Kicked));
    }
    w.send(phone, 1);
}

#[test]
fn tokens_issued_before_a_revocation_end_and_are_refused() {
    let mut w = World::new();
    let phone = w.connect(EU, 1, "alice", "phone"); // the test's tokens say 0
    let pad = w.connect(US, 2, "alice", "pad");
    w.post(phone, cell("alice", 1, "revoke", &v1::RevokeCell { before_ms: 5 }));
    w.settle();
    assert_eq!((w.told(phone).last, w.told(pad).last), (Some(Code::TokenRevoked), Some(Code::TokenRevoked)));
    let again = w.hello(AP, 3, "alice", "pad", v1::Hello::default());
    assert_eq!(w.told(again).last, Some(Code::TokenRevoked));
    let bob = w.connect(AP, 4, "bob", "pc");
    w.post(bob, cell("alice", 1, "revoke", &v1::RevokeCell { before_ms: 9 }));
    w.settle();
    assert_eq!(w.told(bob).errors().len(), 1, "nobody writes into another's own log");
}

#[test]
fn an_eleventh_device_is_refused_until_one_is_removed() {
    let mut w = World::new();
    let phone = w.connect(EU, 1, "alice", "d0");
    for i in 0..10u64 {
        let named = v1::DeviceCell { name: format!("device {i}"), since_ms: i };
        w.post(phone, cell("alice", i + 1, &format!("device/d{i}"), &named));
        w.settle();
    }
    let more = w.hello(US, 2, "alice", "d10", v1::Hello::default());
    assert_eq!(w.told(more).last, Some(Code::TooManyDevices));
    w.post(phone, cell("alice", 11, "kick/d9", &v1::KickCell::default()));
    w.settle();
    let more = w.hello(US, 3, "alice", "d10", v1::Hello::default());
    assert_eq!(w.told(more).last, Some(Code::TooManyDevices), "an empty value is no kick");
    w.post(phone, cell("alice", 12, "kick/d9", &v1::KickCell { reason: "sold".to_owned() }));
    w.settle();
    let more = w.hello(US, 4, "alice", "d10", v1::Hello::default());
    assert_eq!(w.told(more).last, None);
    w.frame(phone, 9, v1::frame::Body::PullDevices(v1::PullDevices {}));
    let devices = w.told(phone).frames.iter().find_map(|f| match &f.body {
        Some(v1::frame::Body::Devices(devices)) => Some(devices.devices.clone()),
        _ => None,
    });
    assert_eq!(devices.unwrap().iter().map(|d| (d.install.as_str(), d.region)).collect::<Vec<_>>(), [("d0", 1)]);
}

/// The sums of the rows that a client was told by another region.
fn hashes(told: &[(ConvId, Heads)], total: usize) -> Vec<u64> {
    let none = Heads::new();
    let view = |(id, heads)| buckets::RowView {
        conversation: id,
        heads,
        read: &none,
        peer_read: &none,
        from: &none,
        state: 0,
        generation: 1,
    };
    buckets::sums(told.iter().map(|(id, heads)| view((*id, heads))), total)
}

#[test]
fn a_region_never_visited_tells_exactly_the_rows_that_differ() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let mut told = Vec::new();
    for i in 0..150u64 {
        let peer = user(&format!("friend{i}"));
        let conversation = ConvId::direct(SALT, &user("alice"), &peer);
        w.post(alice, SendRequest { conversation, peer: Some(peer), ..message(1) });
        w.settle();
        let heads = [(w.ack(alice, 1).place.origin, 1)].into();
        told.push((conversation, heads));
    }
    let compare = |w: &mut World, conn: u64, told: &[(ConvId, Heads)]| {
        let hello = v1::Hello { compare: true, ..v1::Hello::default() };
        let c = w.hello(US, conn, "alice", &format!("i{conn}"), hello);
        assert!(w.told(c).welcome().rows.as_ref().is_some_and(|r| r.rows.is_empty() && r.upto.is_none()));
        let (mut first, mut at, mut found) = (0u32, None, Vec::new());
        loop {
            let all = hashes(told, buckets::FEW);
            let ask = v1::RowHashes { buckets: all[first as usize..].to_vec(), total: 64, first_bucket: first, at };
            let before = w.told(c).rows().len();
            w.frame(c, 5 + first, v1::frame::Body::RowHashes(ask));
            let rows = w.told(c).rows()[before..].to_vec();
            assert_eq!(rows.len(), 1);
            found.extend(rows[0].rows.iter().map(|r| ConvId::from_slice(&r.conversation).unwrap()));
            (first, at) = (rows[0].next_bucket, rows[0].upto);
            if first == 0 {
                return (found, at.unwrap());
            }
        }
    };
    assert_eq!(compare(&mut w, 2, &told).0, [], "nothing differs");
    let (all, cursor) = compare(&mut w, 3, &[]);
    assert_eq!(all.len(), 150, "in parts, each once");
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 150);
    assert_eq!(cursor.rev, w.core(US).node.rev_of(&user("alice")).unwrap().0);
    told[7].1 = [(told[7].1.keys().next().copied().unwrap(), 0)].into();
    let (found, _) = compare(&mut w, 4, &told);
    assert!(found.contains(&told[7].0) && found.len() <= 12, "the rows of one bucket: {}", found.len());
}

#[test]
fn an_erased_body_is_gone_in_every_region_and_does_not_come_back() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let pad = w.connect(AP, 2, "alice", "pad");
    w.unlink(EU, AP);
    w.unlink(US, AP);
    w.send(alice, 1);
    w.send(alice, 2);
    let author = Some(v1::Author { user: "alice".to_owned(), install: "phone".to_owned() });
    let erase = v1::Erase { author, n: 1 }.encode_to_vec();
    w.post(pad, SendRequest { kind: ERASE, body: erase.clone().into(), ..message(1) });
    w.settle();
    w.pass(Duration::from_secs(1));
    assert_eq!(w.bodies(EU), [(false, "m1".to_owned()), (false, "m2".to_owned())]);
    w.link(EU, AP);
    w.link(US, AP);
    w.pass(Duration::from_secs(10));
    for region in [EU, US, AP] {
        let messages: Vec<_> = w.bodies(region).into_iter().filter(|(_, b)| b.as_bytes() != erase).collect();
        assert_eq!(messages, [(true, String::new()), (false, "m2".to_owned())], "region {region}");
    }
    // A resend of the erased message is acked, and brings nothing back.
    w.send(alice, 1);
    w.pass(Duration::from_secs(1));
    assert!(w.bodies(EU).iter().all(|(_, b)| b != "m1"));
    let bob = w.connect(EU, 5, "bob", "pc");
    let others = v1::Erase { author: Some(v1::Author { user: "alice".to_owned(), install: "phone".to_owned() }), n: 2 };
    let request =
        SendRequest { kind: ERASE, body: others.encode_to_vec().into(), peer: Some(user("alice")), ..message(1) };
    w.post(bob, request);
    w.settle();
    assert_eq!(w.told(bob).errors(), [Code::NotAllowed as u32]);
}

/// The erasure of alice's message `of`, as her message `n`.
fn erasure(n: u64, of: u64) -> SendRequest {
    let author = Some(v1::Author { user: "alice".to_owned(), install: "phone".to_owned() });
    SendRequest { kind: ERASE, body: v1::Erase { author, n: of }.encode_to_vec().into(), ..message(n) }
}

#[test]
fn an_erasure_that_is_sequenced_while_an_earlier_one_is_carried_out_finds_its_message() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    // The second round, message and erasure, begins with the end of the first: before it is decided, the first
    // erasure is carried out.
    for send in [erasure(2, 1), message(3), erasure(4, 3)] {
        w.post(alice, send);
    }
    w.settle();
    w.pass(Duration::from_secs(10));
    for region in [EU, US, AP] {
        let erased: Vec<bool> = w.bodies(region).into_iter().map(|(erased, _)| erased).collect();
        assert_eq!(erased, [true, false, true, false], "region {region}");
    }
}

#[test]
fn all_that_a_user_wrote_is_erased_in_copies_too_that_were_sequenced_after_it() {
    let mut w = World::new();
    let (phone, pad) = (w.connect(EU, 1, "alice", "phone"), w.connect(EU, 2, "alice", "pad"));
    w.unlink(EU, US);
    w.unlink(EU, AP);
    w.send(phone, 1);
    w.pass(Duration::from_secs(1));
    w.post(pad, SendRequest { kind: ERASE_MINE, body: Bytes::new(), ..message(1) });
    w.settle();
    w.pass(Duration::from_secs(1));
    // The ack was lost; sent again where neither is known, it gets a place above the erasure.
    let again = w.connect(US, 3, "alice", "phone");
    w.send(again, 1);
    w.send(again, 2);
    w.link(EU, US);
    w.link(EU, AP);
    w.pass(Duration::from_secs(10));
    for region in [EU, US, AP] {
        let left: Vec<_> = w.bodies(region).into_iter().filter(|(_, b)| !b.is_empty()).collect();
        assert_eq!(left, [(false, "m2".to_owned())], "region {region}");
    }
}

#[test]
fn what_a_user_writes_after_he_erased_all_stays_where_the_erasure_is_sequenced_again() {
    let mut w = World::new();
    let phone = w.connect(EU, 1, "alice", "phone");
    w.send(phone, 1);
    w.pass(Duration::from_secs(3));
    w.unlink(EU, US);
    w.unlink(EU, AP);
    let all = SendRequest { kind: ERASE_MINE, body: Bytes::new(), ..message(2) };
    w.post(phone, all.clone());
    w.settle();
    w.send(phone, 3);
    w.pass(Duration::from_secs(1));
    // The ack of the erasure was lost.
    let again = w.connect(US, 3, "alice", "phone");
    w.post(again, all);
    w.settle();
    w.link(EU, US);
    w.link(EU, AP);
    w.pass(Duration::from_secs(10));
    for region in [EU, US, AP] {
        let left: Vec<_> = w.bodies(region).into_iter().filter(|(_, b)| !b.is_empty()).collect();
        assert_eq!(left, [(false, "m3".to_owned())], "region {region}");
    }
}

#[test]
fn all_that_a_user_wrote_is_erased_also_after_a_crash_in_the_middle() {
    let mut w = World::new();
    let (alice, bob) = (w.connect(EU, 1, "alice", "phone"), w.connect(EU, 2, "bob", "pc"));
    for n in 1..=600 {
        w.post(alice, SendRequest { floor: 1, ..message(n) });
        w.settle();
    }
    w.post(bob, SendRequest { peer: Some(user("alice")), body: Bytes::from_static(b"hers"), ..message(1) });
    w.settle();
    w.pass(Duration::from_secs(3));
    w.post(alice, SendRequest { floor: 1, kind: ERASE_MINE, body: Bytes::new(), ..message(601) });
    w.commit(EU);
    w.kill(EU); // nothing that was not synced is left
    w.start(EU);
    w.link(EU, US);
    w.link(EU, AP);
    w.pass(Duration::from_secs(10));
    for region in [EU, US, AP] {
        let left: Vec<_> = w.bodies(region).into_iter().filter(|(_, b)| !b.is_empty()).collect();
        assert_eq!(left, [(false, "hers".to_owned())], "region {region}");
    }
}

/// What a move to a region never visited costs on the wire, both ways together: a device that knows `count`
/// conversations, of which `changed` differ in the region.
fn bytes_of_a_move(count: usize, changed: usize) -> (usize, usize, usize) {
    let mut w = World::new();
    let rng = |i: usize| ConvId::direct(SALT, &user("alice"), &user(&format!("friend{i}")));
    let origins = [Origin { region: EU, era: 77 }, Origin { region: US, era: 78 }, Origin { region: AP, era: 79 }];
    let heads = |seq: u64| -> Heads { origins.iter().map(|o| (*o, seq)).collect() };
    let mut told = Vec::new();
    for i in 0..count {
        let record = RowRecord {
            rev: crate::ids::Rev(i as u64 + 1),
            heads: heads(if i < changed { 41 } else { 40 }),
            generation: 1,
            peer: Some(user(&format!("friend{i}"))),
            last_hlc: i as u64,
            counted: 120,
            ..RowRecord::default()
        };
        w.core(US).disk.rows.insert((user("alice"), rng(i)), record);
        told.push((rng(i), heads(40)));
    }
    let c = w.hello(US, 2, "alice", "phone", v1::Hello { compare: true, ..v1::Hello::default() });
    let total = buckets::count(count);
    let all = hashes(&told, total);
    let (mut up, mut down, mut rows, mut first, mut at) = (0, 0, 0, 0u32, None);
    loop {
        let ask = v1::RowHashes {
            buckets: all[first as usize..].to_vec(),
            total: u32::try_from(total).unwrap(),
            first_bucket: first,
            at,
        };
        let ask = v1::Frame::new(9 + first, v1::frame::Body::RowHashes(ask));
        up += ask.encode_to_vec().len() + 2;
        let before = w.told(c).frames.len();
        w.frame(c, ask.req, ask.body.unwrap());
        let answer = w.told(c).frames[before].clone();
        down += answer.encode_to_vec().len() + 2;
        let Some(v1::frame::Body::Rows(part)) = answer.body else { panic!("no rows") };
        rows += part.rows.len();
        (first, at) = (part.next_bucket, part.upto);
        if first == 0 {
            return (up, down, rows);
        }
    }
}

#[test]
fn what_a_move_costs_follows_what_changed_and_not_what_is_there() {
    println!("conversations  changed  bytes up  bytes down  rows");
    let mut measured = BTreeMap::new();
    for count in [100, 500, 2_000] {
        for changed in [0, 30, count] {
            let (up, down, rows) = bytes_of_a_move(count, changed);
            println!("{count:13}  {changed:7}  {up:8}  {down:10}  {rows:4}");
            measured.insert((count, changed), (up + down, rows));
            assert!(rows >= changed, "nothing that changed is left out");
        }
    }
    for count in [100, 500, 2_000] {
        assert_eq!(measured[&(count, 0)].1, 0);
        // Where nothing changed, the hashes are all there is.
        assert!(measured[&(count, 0)].0 <= 8 * buckets::count(count) + 100);
    }
    let (all, few) = (measured[&(2_000, 2_000)].0, measured[&(2_000, 30)].0);
    assert!(few * 5 < all, "30 changed of 2,000 cost {few} bytes, all of them {all}");
}

#[test]
fn a_mark_that_comes_before_its_conversation_is_told_to_the_other_user_when_that_comes() {
    let mut w = World::new();
    w.unlink(EU, AP);
    let (alice, bob) = (w.connect(EU, 1, "alice", "phone"), w.connect(US, 2, "bob", "pc"));
    let sent = w.send(alice, 1);
    w.frame(bob, 8, mark(&sent));
    w.pass(Duration::from_millis(800));
    let read: Heads = [(sent.place.origin, sent.place.seq)].into();
    let row = w.row_of(AP, "bob");
    assert_eq!((row.read, row.peer), (read.clone(), None), "the mark alone: us passes copies on after a pause");
    w.pass(Duration::from_secs(8));
    assert_eq!(w.row_of(AP, "bob").peer, Some(user("alice")));
    assert_eq!(w.row_of(AP, "alice").peer_read, read);
}
