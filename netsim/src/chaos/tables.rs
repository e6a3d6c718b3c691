//! How many routes are in the tables of regions, as their core nodes count them: an independent look, from outside. And how a
//! region's core nodes share it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tern_net::env::Env;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::limits::{COUNT_EVERY, COUNT_WITHIN};

/// Longest answer that is read, in bytes.
const ANSWER_BYTES: u64 = 1024 * 1024;

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

/// How many shares of its region each core node has, by what one of them says; `None`: it does not.
pub async fn shares(env: &Env, node: SocketAddr) -> Option<BTreeMap<String, u64>> {
    shares_of(&timeout(COUNT_WITHIN, get(env, node, "/status")).await.ok()??)
}

fn shares_of(status: &Value) -> Option<BTreeMap<String, u64>> {
    let shares = status.get("shares")?.as_object()?;
    shares.iter().map(|(node, count)| Some((node.clone(), count.as_u64()?))).collect()
}

async fn ask(env: &Env, node: SocketAddr) -> Option<u64> {
    get(env, node, "/routes/count").await?.get("routes")?.as_u64()
}

async fn get(env: &Env, node: SocketAddr, path: &str) -> Option<Value> {
    let mut stream = env.net.connect(node).await.ok()?;
    let question = format!("GET {path} HTTP/1.1\r\nhost: {node}\r\nconnection: close\r\n\r\n");
    stream.write_all(question.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES).read_to_string(&mut answer).await.ok()?;
    body_of(&answer)
}

fn body_of(answer: &str) -> Option<Value> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    if head.split(' ').nth(1) != Some("200") {
        return None;
    }
    serde_json::from_str(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_counts_is_one() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n";
        let of = |answer: &str| body_of(answer).and_then(|body| body.get("routes")?.as_u64());
        assert_eq!(of(&format!("{ok}{{\"users\": 2, \"routes\": 3, \"over\": 0}}\n")), Some(3));
        assert_eq!(of(&format!("{ok}{{}}")), None);
        assert_eq!(of("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"routes\": 3}"), None);
        assert_eq!(of("no HTTP"), None);
    }

    #[test]
    fn shares_are_known_where_a_region_has_several_nodes() {
        let of = |status: &str| shares_of(&serde_json::from_str(status).unwrap());
        let both: BTreeMap<String, u64> = [("a".to_owned(), 128), ("b".to_owned(), 128)].into();
        assert_eq!(of("{\"shares\": {\"a\": 128, \"b\": 128}}"), Some(both));
        assert_eq!(of("{\"shares\": null}"), None);
        assert_eq!(of("{\"shares\": {\"a\": \"many\"}}"), None);
    }
}
