//! The client against servers that are broken, hostile, or somebody else's, in paused time over a network on paper.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod bad_disk;
mod bad_dispatch;
mod bad_edges;
#[path = "../fake_edge/mod.rs"]
mod fake_edge;
mod names;
mod paper_net;
mod servers;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake_edge::{FakeEdge, chat, user};
use paper_net::PaperNet;
use tern_client::store::memory::MemoryStore;
use tern_client::{Client, ClientConfig, ConnectionState, Draft, InstallId, TokenError, TokenProvider, Trouble};
use tern_core::store::BoxFut;
use tern_net::env::Env;

/// Hands out a new token each time, and counts.
#[derive(Debug, Default)]
struct Tokens {
    asked: AtomicUsize,
    refused: AtomicUsize,
}

impl TokenProvider for Tokens {
    fn token(&self, refused: bool) -> BoxFut<'_, Result<String, TokenError>> {
        let n = self.asked.fetch_add(1, Ordering::SeqCst);
        self.refused.fetch_add(usize::from(refused), Ordering::SeqCst);
        Box::pin(async move { Ok(format!("token {n}")) })
    }
}

/// A client in a network on paper, and the good edge that it is to find in the end.
struct Scene {
    net: PaperNet,
    env: Env,
    edge: FakeEdge,
    tokens: Arc<Tokens>,
    troubles: Arc<Mutex<Vec<Trouble>>>,
}

impl Scene {
    fn new() -> Self {
        let (net, env) = PaperNet::new();
        let edge = FakeEdge::new(&env);
        Self { net, edge, env, tokens: Arc::default(), troubles: Arc::default() }
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new(user("alice"));
        config.roots_pem = self.edge.ca_pem.clone().into_bytes();
        config.edge_name = Some("localhost".into());
        config
    }

    /// Begins with a message in the outbox.
    fn client(&self, config: ClientConfig) -> Client {
        let store = MemoryStore::new(user("alice"), InstallId::new("phone").unwrap());
        let builder = Client::builder(config).local_store(Box::new(store)).token_provider(self.tokens.clone());
        let client = builder.env(self.env.clone()).build().unwrap();
        let (mut events, troubles) = (client.events(), self.troubles.clone());
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                if let tern_client::Event::Connection(ConnectionState::Connecting { trouble: Some(t), .. }) = event {
                    troubles.lock().unwrap().push(t);
                }
            }
        });
        client.direct(&user("bob")).unwrap().send(Draft::text("kept")).unwrap();
        client
    }

    /// What was told of why there is no connection.
    fn troubles(&self) -> String {
        self.troubles.lock().unwrap().iter().map(|t| format!("{t}\n")).collect()
    }
}

fn texts(client: &Client) -> Vec<String> {
    let shown = client.conversation(chat()).timeline(1000).unwrap().messages;
    shown.iter().map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect()
}

async fn minutes(n: u64) {
    tokio::time::sleep(Duration::from_secs(60 * n)).await;
}

/// What was kept is delivered, once, and answered: how long it takes.
async fn delivered(scene: &Scene, client: &Client) -> Duration {
    let start = tokio::time::Instant::now();
    let done = async {
        while texts(client) != ["kept", "re: kept"] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let within = tokio::time::timeout(Duration::from_secs(90), done).await;
    assert!(within.is_ok(), "{:?}\n{}", texts(client), client.diagnostics());
    assert_eq!(scene.edge.core.lock().unwrap().log.len(), 2, "once");
    start.elapsed()
}
