//! Signals, and what a node gives up under load.

use super::*;
use crate::codes::Code;
use crate::kinds::CREATE;
use crate::node::signals::SIGNAL_WINDOW;
use crate::pressure::Level;
use prost::Message;

fn typing(n: u8) -> v1::frame::Body {
    v1::frame::Body::Signal(v1::Signal {
        conversation: Bytes::copy_from_slice(&alice_and_bob().0),
        kind: 0,
        body: vec![n].into(),
        ttl_ms: 5_000,
        from: None,
    })
}

impl World {
    fn signals(&mut self, c: Conn) -> Vec<(String, u8)> {
        let signal = |f: &v1::Frame| match &f.body {
            Some(v1::frame::Body::Signal(s)) => Some((s.from.clone().unwrap().user, s.body[0])),
            _ => None,
        };
        self.told(c).frames.iter().filter_map(signal).collect()
    }

    /// Sends that all waited so long reach a region, window after window.
    fn stand(&mut self, c: Conn, waited: Duration, windows: u32, n: &mut u64) {
        for _ in 0..windows {
            self.core(c.region).node.waited(waited);
            // As many as make a queue.
            for _ in 0..4 {
                let conversation = ConvId::direct(SALT, &user("load"), &user(&format!("u{n}")));
                let send = SendRequest { conversation, peer: Some(user(&format!("u{n}"))), ..message(1) };
                self.post(c, send);
                *n += 1;
            }
            self.settle();
            self.pass(Duration::from_millis(110));
        }
        self.core(c.region).node.waited(Duration::ZERO);
    }
}

#[test]
fn typing_is_merged_per_window_and_told_where_the_other_user_is() {
    let mut w = World::new();
    let (alice, bob) = (w.connect(EU, 1, "alice", "phone"), w.connect(US, 2, "bob", "pc"));
    w.send(alice, 1);
    w.pass(Duration::from_millis(200));
    for n in 1..=5 {
        w.frame(alice, 0, typing(n));
    }
    assert_eq!(w.signals(bob), []);
    w.pass(SIGNAL_WINDOW * 4);
    assert_eq!(w.signals(bob), [("alice".to_owned(), 5)], "one of the window, the newest");
    assert_eq!(w.signals(alice), []);
    let mallory = w.connect(US, 3, "mallory", "pc");
    w.frame(mallory, 0, typing(9));
    w.pass(SIGNAL_WINDOW * 4);
    assert_eq!(w.signals(bob).len(), 1, "who is not in the conversation says nothing there");
}

#[test]
fn typing_is_told_before_anything_else_happened_since_both_regions_started() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    w.pass(Duration::from_secs(5));
    for region in [EU, US] {
        w.stop(region);
        w.start(region);
    }
    w.link(EU, US);
    let (alice, bob) = (w.connect(EU, 2, "alice", "phone"), w.connect(US, 2, "bob", "pc"));
    w.pass(Duration::from_millis(200));
    let mut loaded = |region| w.core(region).node.conversations.contains_key(&alice_and_bob());
    assert!(!loaded(EU) && !loaded(US), "else this shows nothing");
    w.frame(alice, 0, typing(7));
    w.pass(Duration::from_secs(1));
    assert_eq!(w.signals(bob), [("alice".to_owned(), 7)]);
    let mallory = w.connect(US, 3, "mallory", "pc");
    let other = ConvId::direct(SALT, &user("carol"), &user("dan"));
    let signal = v1::Signal { conversation: other.0.to_vec().into(), ..v1::Signal::default() };
    w.frame(mallory, 0, v1::frame::Body::Signal(signal));
    w.pass(SIGNAL_WINDOW * 6);
    assert!(!w.core(US).node.conversations.contains_key(&other), "a stranger makes no region read");
}

#[test]
fn under_load_signals_go_first_then_large_fan_outs_are_merged_then_sends_are_told_when_to_come_back() {
    let mut w = World::new();
    let load = w.connect(EU, 1, "load", "gen");
    let (alice, bob) = (w.connect(EU, 2, "alice", "phone"), w.connect(EU, 3, "bob", "pc"));
    w.send(alice, 1);
    let nonce = [1; 16];
    let group = ConvId::group(&user("alice"), &nonce);
    let mut members: Vec<_> = (0..60).map(|i| format!("m{i}")).chain(["alice".into(), "bob".into()]).collect();
    members.sort();
    let create = v1::GroupCreate {
        members: members.into_iter().map(|user| v1::GroupMember { user, role: 0, generation: 1 }).collect(),
        nonce: nonce.to_vec().into(),
        ..v1::GroupCreate::default()
    };
    let in_group = |n| SendRequest { conversation: group, peer: None, floor: 1, ..message(n) };
    w.post(alice, SendRequest { kind: CREATE, body: create.encode_to_vec().into(), ..in_group(1) });
    w.settle();
    let mut n = 0;
    w.stand(load, Duration::from_millis(25), 3, &mut n);
    assert_eq!(w.core(EU).node.pressure().0, Level::NoSignals);
    w.frame(alice, 0, typing(1));
    w.pass(SIGNAL_WINDOW * 2);
    assert_eq!((w.signals(bob).len(), w.core(EU).node.counters().signals_dropped), (0, 1));

    w.stand(load, Duration::from_millis(45), 3, &mut n);
    assert_eq!(w.core(EU).node.pressure().0, Level::Merge);
    let before = w.told(bob).pushes.len();
    for n in 2..=6 {
        w.post(alice, in_group(n));
        w.settle();
        w.ack(alice, n);
    }
    assert_eq!(w.told(bob).pushes.len(), before, "acked at once, pushed with the window");
    w.pass(Duration::from_millis(200));
    let pushes = w.told(bob).pushes[before..].to_vec();
    assert_eq!(pushes.iter().map(|p| p.entries.len()).collect::<Vec<_>>(), [5]);

    w.stand(load, Duration::from_millis(400), 12, &mut n);
    let (level, permille) = w.core(EU).node.pressure();
    assert_eq!(level, Level::Shed);
    assert!(permille > 500, "{permille}");
    assert!(w.told(load).errors().contains(&(Code::Overloaded as u32)));
    let advice = w.told(load).frames.iter().filter_map(|f| match &f.body {
        Some(v1::frame::Body::Error(e)) => Some(e.retry_after_ms),
        _ => None,
    });
    assert!(advice.clone().all(|ms| (100..=4_000).contains(&ms)), "{:?}", advice.collect::<Vec<_>>());
    w.pass(Duration::from_secs(3));
    w.stand(load, Duration::from_millis(1), 2, &mut n);
    assert_eq!(w.core(EU).node.pressure(), (Level::Normal, 0), "three seconds without load");
    w.send(alice, 2);
}

#[test]
fn what_the_edge_of_the_same_machine_gives_up_the_core_gives_up_too_and_not_for_longer() {
    let mut w = World::new();
    let (alice, bob) = (w.connect(EU, 1, "alice", "phone"), w.connect(EU, 2, "bob", "pc"));
    w.send(alice, 1);
    let now = w.now(0);
    w.core(EU).node.told_pressure(now, Level::NoSignals);
    w.frame(alice, 0, typing(1));
    w.pass(SIGNAL_WINDOW * 2);
    assert_eq!((w.signals(bob).len(), w.core(EU).node.counters().signals_dropped), (0, 1));
    w.send(alice, 2);
    w.pass(Duration::from_secs(1));
    w.frame(alice, 0, typing(2));
    w.pass(SIGNAL_WINDOW * 2);
    assert_eq!(w.signals(bob), [("alice".to_owned(), 2)]);
}
