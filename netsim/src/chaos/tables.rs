//! How many routes are in the tables of regions, as their core nodes count them: an independent look, from outside.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tern_net::env::Env;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::limits::{COUNT_EVERY, COUNT_WITHIN};

/// Longest answer that is read, in bytes: it is three numbers.
const ANSWER_BYTES: u64 = 4096;

/// When, and how many; `None`: nobody of some region could say.
pub type Counted = Vec<(u64, Option<u64>)>;

/// What was seen, while it goes on.
#[derive(Clone, Debug, Default)]
pub struct Tables(Arc<Mutex<Counted>>);

impl Tables {
    /// Begins to look. `regions`: the admin listeners of each one's core nodes, one of which is enough. `now_ns`: the clock
    /// of the run.
    pub fn watch(env: &Env, regions: Vec<Vec<SocketAddr>>, now_ns: impl Fn() -> u64 + Send + 'static) -> Self {
        let tables = Self::default();
        let (seen, env) = (tables.0.clone(), env.clone());
        env.clone().tasks.spawn(async move {
            loop {
                let mut all = Some(0);
                for region in &regions {
                    let counted = count(&env, region).await;
                    all = all.zip(counted).map(|(sum, more): (u64, u64)| sum + more);
                }
                seen.lock().unwrap_or_else(PoisonError::into_inner).push((now_ns(), all));
                sleep(COUNT_EVERY).await;
            }
        });
        tables
    }

    /// What was seen until now.
    pub fn seen(&self) -> Counted {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn count(env: &Env, nodes: &[SocketAddr]) -> Option<u64> {
    for node in nodes {
        if let Ok(Some(routes)) = timeout(COUNT_WITHIN, ask(env, *node)).await {
            return Some(routes);
        }
    }
    None
}

async fn ask(env: &Env, node: SocketAddr) -> Option<u64> {
    let mut stream = env.net.connect(node).await.ok()?;
    let question = format!("GET /routes/count HTTP/1.1\r\nhost: {node}\r\nconnection: close\r\n\r\n");
    stream.write_all(question.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES).read_to_string(&mut answer).await.ok()?;
    routes_of(&answer)
}

fn routes_of(answer: &str) -> Option<u64> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    if head.split(' ').nth(1) != Some("200") {
        return None;
    }
    serde_json::from_str::<serde_json::Value>(body).ok()?.get("routes")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_counts_is_one() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n";
        assert_eq!(routes_of(&format!("{ok}{{\"users\": 2, \"routes\": 3, \"over\": 0}}\n")), Some(3));
        assert_eq!(routes_of(&format!("{ok}{{}}")), None);
        assert_eq!(routes_of("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"routes\": 3}"), None);
        assert_eq!(routes_of("no HTTP"), None);
    }
}
