//! The client over real sockets, against an edge that is written here.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fake_edge;

use std::sync::Arc;
use std::time::Duration;

use fake_edge::{FakeEdge, chat, eventually, user};
use tern_client::store::memory::MemoryStore;
use tern_client::{
    Client, ClientConfig, ConnectionState, DispatchServer, Draft, Event, Failure, FallbackEdge, InstallId, MessageId,
    MessageState, StaticToken, Transport, Trouble,
};
use tern_net::env::Env;
use tern_net::proxy::HttpProxy;
use tern_net::system::system_env;

fn config(edge: &FakeEdge) -> ClientConfig {
    let mut config = ClientConfig::new(user("alice"));
    config.roots_pem = edge.ca_pem.clone().into_bytes();
    config
}

fn texts(client: &Client) -> Vec<String> {
    let shown = client.conversation(chat()).timeline(1000).unwrap().messages;
    shown.iter().map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect()
}

fn live_by(client: &Client) -> Option<Transport> {
    match client.connection() {
        ConnectionState::Live { transport, .. } => Some(transport),
        _ => None,
    }
}

fn env() -> Env {
    system_env().unwrap()
}

#[tokio::test]
async fn from_dispatch_over_quic_to_a_stable_message_and_its_answer() {
    let env = env();
    let edge = FakeEdge::new(&env);
    let at = edge.listen_quic();
    let dispatch = edge.listen_dispatch(at, r#"["quic", "tcp"]"#).await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&edge);
    config.dispatch.push(DispatchServer { address: dispatch.to_string(), server_name: "localhost".into() });
    let token = Arc::new(StaticToken("a token".into()));
    // On its own thread, as an application would have it.
    let client = Client::builder(config.clone()).store(dir.path()).token_provider(token.clone()).build().unwrap();
    let mut events = client.events();
    let conversation = client.direct(&user("bob")).unwrap();
    let ids: Vec<_> = (0..5).map(|i| conversation.send(Draft::text(format!("m{i}"))).unwrap()).collect();
    eventually("all are stable", || {
        ids.iter().all(|id| client.message(*id).unwrap().unwrap().state == MessageState::Stable)
    })
    .await;
    eventually("all answers are here", || texts(&client).len() == 10).await;
    assert_eq!(live_by(&client), Some(Transport::Quic));
    assert_eq!(conversation.id(), chat());
    let mut expected: Vec<_> = (0..5).flat_map(|i| [format!("m{i}"), format!("re: m{i}")]).collect();
    assert_eq!(texts(&client), expected);
    assert_eq!(conversation.unread().unwrap().count, 5);
    conversation.mark_read().unwrap();
    assert_eq!(conversation.unread().unwrap(), tern_client::Unread { count: 0, exact: true });
    edge.bob_writes("are you there?").await;
    expected.push("are you there?".into());
    eventually("a push comes", || texts(&client) == expected).await;
    let (mut sent, mut stable) = (0, 0);
    while let Some(event) = events.try_next() {
        sent += u32::from(matches!(event, Event::Sent { .. }));
        stable += u32::from(matches!(event, Event::Stable { regions: 2, .. }));
    }
    assert_eq!((sent, stable), (5, 5));
    assert_eq!(edge.core.lock().unwrap().hellos[0].token, "a token");
    assert!(edge.core.lock().unwrap().commits >= 1);
    client.close().await;
    // Open again: everything is there, nothing twice, and the list of dispatch is remembered.
    config.dispatch[0].address = "127.0.0.1:1".into();
    let client = Client::builder(config).store(dir.path()).token_provider(token).build().unwrap();
    assert_eq!(texts(&client), expected);
    eventually("live again from the kept list", || live_by(&client).is_some()).await;
    assert_eq!(texts(&client), expected);
    assert_eq!(edge.core.lock().unwrap().hellos.last().unwrap().cursors.len(), 1);
    client.close().await;
}

#[tokio::test]
async fn where_udp_is_swallowed_it_is_tcp() {
    let env = env();
    let edge = FakeEdge::new(&env);
    let at = edge.listen_tcp().await;
    let mut config = config(&edge);
    config.fallback_edges.push(FallbackEdge::new(at.to_string(), "localhost"));
    let store = MemoryStore::new(user("alice"), InstallId::new("phone").unwrap());
    let token = Arc::new(StaticToken("t".into()));
    let client = Client::builder(config).local_store(Box::new(store)).token_provider(token).env(env).build().unwrap();
    let conversation = client.direct(&user("bob")).unwrap();
    conversation.send(Draft::text("hi")).unwrap();
    eventually("the answer", || texts(&client) == ["hi", "re: hi"]).await;
    assert_eq!(live_by(&client), Some(Transport::Tcp));
    client.close().await;
}

#[tokio::test]
async fn a_subscriber_who_does_not_look_is_told_how_many_events_he_missed() {
    const WAITING: usize = 4;
    let env = env();
    let edge = FakeEdge::new(&env);
    let at = edge.listen_tcp().await;
    let mut config = config(&edge);
    config.events = WAITING;
    config.fallback_edges.push(FallbackEdge::new(at.to_string(), "localhost"));
    let store = MemoryStore::new(user("alice"), InstallId::new("phone").unwrap());
    let token = Arc::new(StaticToken("t".into()));
    let client = Client::builder(config).local_store(Box::new(store)).token_provider(token).env(env).build().unwrap();
    let mut slow = client.events();
    let conversation = client.direct(&user("bob")).unwrap();
    let ids: Vec<_> = (0..3 * WAITING).map(|n| conversation.send(Draft::text(format!("m{n}"))).unwrap()).collect();
    let is_stable = |id: &MessageId| client.message(*id).unwrap().unwrap().state == MessageState::Stable;
    eventually("all are stable", || ids.iter().all(is_stable)).await;
    // Each of them was sent and is stable: two events.
    let Some(Event::Lagged { missed }) = slow.try_next() else { panic!("nothing was missed") };
    assert!(missed >= 5 * WAITING as u64, "{missed}");
    let rest = std::iter::from_fn(|| slow.try_next()).count();
    assert_eq!(rest, WAITING);
    client.close().await;
}

#[tokio::test]
async fn where_nothing_listens_the_client_is_told_so() {
    let env = env();
    let edge = FakeEdge::new(&env);
    // It listens, and is gone.
    let listener = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let at = listener.local_addr();
    drop(listener);
    let mut config = config(&edge);
    config.fallback_edges.push(FallbackEdge::new(at.to_string(), "localhost"));
    let store = MemoryStore::new(user("alice"), InstallId::new("phone").unwrap());
    let token = Arc::new(StaticToken("t".into()));
    let client = Client::builder(config).local_store(Box::new(store)).token_provider(token).env(env).build().unwrap();
    let told = || match client.connection() {
        ConnectionState::Connecting { trouble: Some(Trouble::NoConnection { failure, .. }), .. } => Some(failure),
        _ => None,
    };
    eventually("it is told", || matches!(told(), Some(Failure::NothingThere(_)))).await;
    client.close().await;
}

#[tokio::test]
async fn where_only_the_web_gets_through_it_is_a_websocket_or_polls_over_tcp_or_quic() {
    for expected in [Transport::WebSocket, Transport::Poll, Transport::Http3] {
        let env = env();
        let edge = FakeEdge::new(&env);
        let at = match expected {
            Transport::Poll => edge.listen_polls().await,
            Transport::Http3 => edge.listen_http3(),
            _ => edge.listen_websocket().await,
        };
        let mut config = config(&edge);
        config.fallback_edges.push(FallbackEdge::new(at.to_string(), "localhost"));
        let store = MemoryStore::new(user("alice"), InstallId::new("phone").unwrap());
        let token = Arc::new(StaticToken("t".into()));
        let builder = Client::builder(config).local_store(Box::new(store)).token_provider(token).env(env);
        let client = builder.build().unwrap();
        let conversation = client.direct(&user("bob")).unwrap();
        let mut texts_expected = Vec::new();
        for i in 0..10 {
            conversation.send(Draft::text(format!("m{i}"))).unwrap();
            texts_expected.extend([format!("m{i}"), format!("re: m{i}")]);
            eventually("the answer", || texts(&client) == texts_expected).await;
        }
        assert_eq!(live_by(&client), Some(expected));
        edge.bob_writes("there?").await;
        texts_expected.push("there?".into());
        eventually("a push comes", || texts(&client) == texts_expected).await;
        assert_eq!(edge.core.lock().unwrap().hellos.len(), 1, "one session was enough: {}", client.diagnostics());
        let diagnostics = client.diagnostics();
        assert!(diagnostics.contains(&format!("by {}\n", expected.name())), "{diagnostics}");
        client.close().await;
        let polled = u32::from(expected != Transport::WebSocket);
        assert_eq!(edge.core.lock().unwrap().http3 > 2, expected == Transport::Http3, "and several connections");
        eventually("the end is told", || edge.core.lock().unwrap().deleted == polled).await;
    }
}

#[tokio::test]
async fn where_a_proxy_is_the_only_way_out_dispatch_and_tcp_go_through_it() {
    let env = env();
    let edge = FakeEdge::new(&env);
    let at = edge.listen_tcp().await;
    let dispatch = edge.listen_dispatch(at, r#"["tcp"]"#).await;
    let mut config = config(&edge);
    config.edge_name = Some("localhost".into());
    config.dispatch.push(DispatchServer { address: dispatch.to_string(), server_name: "localhost".into() });
    config.proxy = Some(edge.listen_proxy().await.to_string().parse::<HttpProxy>().unwrap());
    let store = MemoryStore::new(user("alice"), InstallId::new("phone").unwrap());
    let token = Arc::new(StaticToken("t".into()));
    let client = Client::builder(config).local_store(Box::new(store)).token_provider(token).env(env).build().unwrap();
    client.direct(&user("bob")).unwrap().send(Draft::text("hi")).unwrap();
    eventually("the answer", || texts(&client) == ["hi", "re: hi"]).await;
    assert_eq!(live_by(&client), Some(Transport::Tcp));
    assert_eq!(edge.core.lock().unwrap().tunnels, 2);
    client.close().await;
}

#[tokio::test]
async fn an_ack_that_is_lost_with_its_connection_shows_nothing_twice() {
    let env = env();
    let edge = FakeEdge::new(&env);
    edge.core.lock().unwrap().swallow = 2;
    let at = edge.listen_quic();
    let mut config = config(&edge);
    config.fallback_edges.push(FallbackEdge::new(at.to_string(), "localhost"));
    let store = MemoryStore::new(user("alice"), InstallId::new("phone").unwrap());
    let token = Arc::new(StaticToken("t".into()));
    let client = Client::builder(config).local_store(Box::new(store)).token_provider(token).env(env).build().unwrap();
    let conversation = client.direct(&user("bob")).unwrap();
    for i in 0..3 {
        conversation.send(Draft::text(format!("m{i}"))).unwrap();
    }
    eventually("all of it, once", || texts(&client).len() == 6).await;
    eventually("nothing waits", || client.waiting() == (0, 0)).await;
    assert_eq!(edge.core.lock().unwrap().log.len(), 6);
    assert!(edge.core.lock().unwrap().hellos.len() >= 2);
    client.close().await;
}

#[tokio::test]
async fn a_suspended_client_is_at_rest_and_a_push_fetches_what_came_meanwhile() {
    let env = env();
    let edge = FakeEdge::new(&env);
    let at = edge.listen_quic();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&edge);
    config.fallback_edges.push(FallbackEdge::new(at.to_string(), "localhost"));
    let token = Arc::new(StaticToken("t".into()));
    let client = Client::builder(config).store(dir.path()).token_provider(token).build().unwrap();
    let conversation = client.direct(&user("bob")).unwrap();
    conversation.send(Draft::text("before")).unwrap();
    let all_sent = client.suspend(Duration::from_secs(60)).await.unwrap();
    assert!(all_sent, "what waits is sent before");
    assert_eq!(client.connection(), ConnectionState::Offline);
    let logs = || std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let wal = logs().find(|path| path.to_string_lossy().ends_with("-wal"));
    assert!(wal.is_none_or(|path| path.metadata().unwrap().len() == 0), "the store's log is written back");
    // Stays possible, and waits.
    conversation.send(Draft::text("while suspended")).unwrap();
    assert_eq!(client.waiting().0, 1);
    edge.bob_writes("where are you?").await;
    let pushed = client.handle_push(b"", Duration::from_secs(60)).await.unwrap();
    assert!(pushed.caught_up);
    let texts_of = |ids: &[MessageId]| -> Vec<String> {
        let body = |id: &MessageId| client.message(*id).unwrap().unwrap().body;
        ids.iter().map(|id| String::from_utf8_lossy(&body(id)).into_owned()).collect()
    };
    assert!(texts_of(&pushed.messages).contains(&"where are you?".to_owned()), "{pushed:?}");
    assert_eq!(client.connection(), ConnectionState::Offline, "as it was");
    client.resume().unwrap();
    eventually("live again", || live_by(&client).is_some()).await;
    eventually("all answers", || texts(&client).contains(&"re: while suspended".to_owned())).await;
    assert!(client.diagnostics().contains("welcomed by"), "{}", client.diagnostics());
    client.close().await;
}

#[tokio::test]
async fn a_full_disk_is_told_loses_nothing_and_heals() {
    let env = env();
    let edge = FakeEdge::new(&env);
    let at = edge.listen_quic();
    let mut config = config(&edge);
    config.fallback_edges.push(FallbackEdge::new(at.to_string(), "localhost"));
    let store = MemoryStore::new(user("alice"), InstallId::new("phone").unwrap());
    let token = Arc::new(StaticToken("t".into()));
    let disk = store.clone();
    let client = Client::builder(config).local_store(Box::new(store)).token_provider(token).env(env).build().unwrap();
    let conversation = client.direct(&user("bob")).unwrap();
    conversation.send(Draft::text("before")).unwrap();
    eventually("it works", || texts(&client).len() == 2).await;
    client.set_foreground(false).unwrap();
    disk.fill_after(0);
    let error = conversation.send(Draft::text("refused")).unwrap_err();
    assert!(error.to_string().contains("disk is full"), "{error}");
    edge.bob_writes("while it was full").await;
    disk.heal();
    conversation.send(Draft::text("after")).unwrap();
    eventually("all but the refused one", || {
        texts(&client) == ["before", "re: before", "while it was full", "after", "re: after"]
    })
    .await;
    assert!(client.diagnostics().contains("background"), "what the application told is not forgotten");
    client.close().await;
}

#[tokio::test]
async fn a_server_that_is_not_trusted_gets_no_token() {
    let env = env();
    let (edge, other) = (FakeEdge::new(&env), FakeEdge::new(&env));
    let (quic, tcp) = (edge.listen_quic(), edge.listen_tcp().await);
    let mut config = config(&other);
    config.fallback_edges.push(FallbackEdge::new(quic.to_string(), "localhost"));
    config.fallback_edges.push(FallbackEdge::new(tcp.to_string(), "localhost"));
    let store = MemoryStore::new(user("alice"), InstallId::new("phone").unwrap());
    let client = Client::builder(config)
        .local_store(Box::new(store))
        .token_provider(Arc::new(StaticToken("t".into())))
        .env(env)
        .build()
        .unwrap();
    eventually("a round has failed", || {
        matches!(client.connection(), ConnectionState::Connecting { retry_at: Some(_), .. })
    })
    .await;
    assert!(edge.core.lock().unwrap().hellos.is_empty());
    client.close().await;
}
