//! With core nodes of this process, in time that passes when everybody waits.

use super::*;
use tern_core::edge_api::SendRequest;

/// A send to [`CONV`].
pub(super) fn request() -> SendRequest {
    SendRequest {
        conversation: CONV,
        peer: None,
        n: 1,
        floor: 1,
        seen_hlc: 0,
        kind: 0,
        body: Bytes::from_static(b"hi"),
        wall_ms: 0,
        offer: None,
        membership: None,
        named: None,
    }
}

/// A region whose core nodes answer within the call.
struct Region {
    edge: Arc<Edge>,
    cores: Arc<Cores>,
    near: BTreeMap<&'static str, (Arc<FakeCore>, Arc<dyn EdgePort>)>,
}

fn region(nodes: &[&'static str]) -> Region {
    let pki = Pki::new();
    let (edge, _) = edge(EdgeConfig::default());
    let env = edge.env.clone();
    let tls = node_client_tls(&pki.certificate, pki.ca.as_bytes(), env.clock.clone()).unwrap();
    let cores = Cores::start(env, Vec::new(), "localhost".into(), tls, edge.clone());
    let mut region = Region { edge, cores, near: BTreeMap::new() };
    for name in nodes {
        region.add(name);
    }
    region.edge.run_without_sockets(region.cores.clone());
    region
}

impl Region {
    fn add(&mut self, name: &'static str) {
        let core = Arc::new(FakeCore::default());
        core.reachable.store(true, Ordering::Relaxed);
        self.cores.add_local(welcome(name), |port| {
            assert!(core.port.set(port.clone()).is_ok());
            self.near.insert(name, (core.clone(), port));
            core
        });
    }

    fn core(&self, name: &str) -> &FakeCore {
        &self.near[name].0
    }

    fn says(&self, name: &str, owners: node_v1::Owners) {
        self.near[name].1.owners(owners);
    }
}

fn is_send(up: &Up) -> bool {
    matches!(up, Up::Send { .. })
}

#[tokio::test(start_paused = true)]
async fn core_nodes_of_this_process_may_answer_within_the_call() {
    let region = region(&["a", "b"]);
    assert!(region.cores.reachable() && !region.cores.whole());
    region.says("a", word(1, "a", &[(conversation(), "b")], &[]));
    assert!(region.cores.whole());
    let mut peer = join(&region.edge);
    peer.enter("alice").await;
    peer.say(2, send(1)).await;
    acked(&mut peer).await;
    peer.say(3, ping(4)).await;
    assert!(matches!(peer.body().await, Body::Pong(p) if p.echo == 4 && !p.rev_unknown));
    assert_eq!((region.core("a").count(is_send), region.core("b").count(is_send)), (0, 1));
    let ups = region.core("b").ups.lock().unwrap().clone();
    assert!(matches!(ups[..], [Up::Attach { .. }, Up::Send { .. }]), "{ups:?}");
    // Loads are told to each.
    until("loads", || ["a", "b"].iter().all(|name| !region.core(name).loads.lock().unwrap().is_empty())).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_user_has_no_owner_for_five_seconds_is_sent_elsewhere() {
    let region = region(&["a", "b"]);
    assert_ne!(home("alice"), home("bob"));
    region.says("a", word(1, "a", &[(home("bob"), "b")], &[]));
    let (mut alice, mut bob) = (join(&region.edge), join(&region.edge));
    alice.enter("alice").await;
    bob.enter("bob").await;
    region.core("b").reachable.store(false, Ordering::Relaxed);
    let began = tokio::time::Instant::now();
    // He is told that nobody knows of his rows, until it has lasted too long.
    tokio::time::sleep(Duration::from_secs(4)).await;
    bob.say(2, ping(4)).await;
    assert!(matches!(bob.body().await, Body::Pong(p) if p.rev_unknown));
    assert!(region.cores.whole(), "that may end soon");
    assert_eq!(bob.refused().await, Code::CoreUnreachable);
    let waited = began.elapsed();
    assert!(waited >= Duration::from_secs(5) && waited < Duration::from_secs(6), "{waited:?}");
    assert!(region.cores.reachable() && !region.cores.whole());
    // Nobody new is let in, for a part of the region can't serve him. Who is here stays.
    let mut carol = join(&region.edge);
    carol.say(1, crate::testing::hello("carol")).await;
    assert_eq!(carol.refused().await, Code::CoreUnreachable);
    tokio::time::sleep(Duration::from_secs(20)).await;
    alice.say(2, ping(4)).await;
    assert!(matches!(alice.body().await, Body::Pong(p) if !p.rev_unknown));
    // Somebody takes the rest up.
    region.says("a", word(2, "a", &[], &[]));
    assert!(region.cores.whole());
    let mut carol = join(&region.edge);
    carol.enter("carol").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_said_of_a_conversation_without_an_owner_is_answered_in_the_end() {
    let region = region(&["a"]);
    region.says("a", word(1, "a", &[], &[]));
    let mut alice = join(&region.edge);
    alice.enter("alice").await;
    region.says("a", word(2, "a", &[(conversation(), "")], &[]));
    alice.say(2, send(1)).await;
    assert_eq!(alice.refused().await, Code::OwnerLost);
    // From then on at once.
    let began = tokio::time::Instant::now();
    alice.say(3, send(1)).await;
    assert_eq!(alice.refused().await, Code::OwnerLost);
    assert!(began.elapsed() < Duration::from_secs(1));
    region.says("a", word(3, "a", &[], &[]));
    alice.say(4, send(1)).await;
    acked(&mut alice).await;
}

#[tokio::test(start_paused = true)]
async fn the_word_of_the_higher_epoch_holds_in_whatever_order_they_come() {
    for turned in [false, true] {
        let region = region(&["a", "b"]);
        region.says("a", word(1, "a", &[], &[]));
        let words = [word(2, "a", &[(conversation(), "b")], &[]), word(3, "a", &[], &[])];
        let [first, second] = if turned { [1, 0] } else { [0, 1] };
        region.says("b", words[first].clone());
        region.says("a", words[second].clone());
        let mut alice = join(&region.edge);
        alice.enter("alice").await;
        alice.say(2, send(1)).await;
        acked(&mut alice).await;
        assert_eq!((region.core("a").count(is_send), region.core("b").count(is_send)), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn words_that_can_not_be_change_nothing_and_what_they_name_is_bounded() {
    let region = region(&["a"]);
    region.says("a", word(1, "a", &[], &[]));
    let odd = |share| node_v1::Owners {
        shares: vec![node_v1::Share { share, node: "z".into(), epoch: 9 }],
        nodes: Vec::new(),
    };
    region.says("a", odd(256));
    region.says("a", odd(u32::MAX));
    let long = "n".repeat(100_000);
    region.says(
        "a",
        node_v1::Owners { shares: vec![node_v1::Share { share: 0, node: long, epoch: 9 }], nodes: Vec::new() },
    );
    let addr = |i: usize| SocketAddr::from(([127, 0, 0, 1], u16::try_from(i % 60_000 + 1).unwrap()));
    let name = |i: usize| format!("n{i}");
    let node = |i: usize| node_v1::CoreNode { name: name(i), addr: addr(i).to_string(), generation: 1 };
    region.says("a", node_v1::Owners { shares: Vec::new(), nodes: (0..10_000).map(node).collect() });
    assert!(region.cores.whole());
    assert_eq!(region.cores.state().kept.len(), 0, "too many at once are no core nodes");
    // A few at a time: those that are not named any more make room.
    for i in 0..100 {
        let nodes = (i * 60..(i + 1) * 60).map(node).collect();
        region.says("a", node_v1::Owners { shares: Vec::new(), nodes });
        let state = region.cores.state();
        assert_eq!(state.owners.nodes().len(), 60);
    }
    until("the keepers' end", || region.cores.state().kept.len() == 60).await;
    // A share of a node that nobody knows has no owner; all else goes on.
    region.says("a", odd(u32::from(conversation().number())));
    assert!(region.cores.reachable());
    let mut alice = join(&region.edge);
    alice.enter("alice").await;
    alice.say(2, send(1)).await;
    assert_eq!(alice.refused().await, Code::OwnerLost);
    let a = region.near["a"].1.clone();
    a.bounced(vec![Up::Send { conn: 99, req: 1, send: request() }, Up::Close { conn: 1 }]);
}

#[tokio::test(start_paused = true)]
async fn a_core_of_this_process_that_owns_all_is_called_as_it_is() {
    let region = region(&[]);
    let core = Arc::new(FakeCore::default());
    core.reachable.store(true, Ordering::Relaxed);
    region.cores.add_local(node_v1::EdgeWelcome { shared: false, ..welcome("a") }, |port| {
        assert!(core.port.set(port).is_ok());
        core.clone()
    });
    assert!(region.cores.reachable() && region.cores.whole());
    let mut alice = join(&region.edge);
    alice.enter("alice").await;
    alice.say(2, send(1)).await;
    acked(&mut alice).await;
    core.reachable.store(false, Ordering::Relaxed);
    assert_eq!(alice.refused().await, Code::CoreUnreachable);
    core.reachable.store(true, Ordering::Relaxed);
    until("its return", || region.cores.whole()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_core_node_knows_whose_a_connection_is_before_it_hears_of_it_whatever_threads_speak() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 500;
    let region = region(&["a", "b"]);
    region.says("a", word(1, "a", &[], &[]));
    let open = |conn: ConnId| Up::Open {
        conn,
        req: 1,
        user: UserId::new(&format!("user {conn}")).unwrap(),
        install: tern_core::ids::InstallId::new("phone").unwrap(),
        hello: Box::new(v1::Hello::default()),
        address: "192.0.2.1:5".into(),
        transport: "quic",
        token_expires_ms: 0,
        token_issued_ms: 0,
    };
    let post = |conn: ConnId, n: u64| {
        let conversation = tern_core::ids::ConvId([u8::try_from(n % 251).unwrap(); 16]);
        let req = u32::try_from(n).unwrap() + 2;
        Up::Send { conn, req, send: SendRequest { conversation, ..request() } }
    };
    std::thread::scope(|scope| {
        for conn in 1..=THREADS {
            let (region, open, post) = (&region, &open, &post);
            scope.spawn(move || {
                region.cores.submit(vec![open(conn)]);
                let commit = Body::Commit(v1::Commit { order: conn, ..v1::Commit::default() });
                region.cores.submit(vec![Up::Frame { conn, frame: v1::Frame::new(0, commit) }]);
                for n in 0..ROUNDS {
                    region.cores.submit(vec![post(conn, n)]);
                }
            });
        }
        // Meanwhile all of it moves to and fro, and something is handed back.
        for epoch in 2..=50 {
            let (from, to) = if epoch % 2 == 0 { ("a", "b") } else { ("b", "a") };
            region.says(from, word(epoch, to, &[], &[]));
            region.near[from].1.bounced((1..=THREADS).map(|conn| post(conn, ROUNDS + epoch)).collect());
        }
    });
    let mut sends = 0;
    for name in ["a", "b"] {
        let mut known = BTreeSet::new();
        for up in region.core(name).ups.lock().unwrap().iter() {
            match up {
                Up::Open { conn, .. } | Up::Attach { conn, .. } | Up::Resume { conn, .. } => {
                    known.insert(*conn);
                }
                up => assert!(known.contains(&up.conn()), "{name} does not know whose {up:?} is"),
            }
            sends += u64::from(is_send(up));
        }
    }
    assert!(sends >= THREADS * ROUNDS, "{sends}");
    // What was handed back before its connection was there is dropped; nothing waits.
    let state = region.cores.state();
    let super::super::Region::Known(known) = &state.region else { panic!("the region is known") };
    assert_eq!(known.router.held_bytes(), 0);
}
