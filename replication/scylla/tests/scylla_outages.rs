//! Nodes of the database that are paused and killed in the middle of appends. In a datacenter of three nodes, which
//! `replication/tests/cql-cluster/check` starts and names by `TERN_CQL_CLUSTER`, the script that commands them.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "processes of the database need real time")]

mod cluster;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cluster::Place;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Identity, InstallId, Origin, Place as Seat, UserId};
use tern_core::store::{Append, Appended, Range, Store, Target, Todo};
use tern_scylla::{ScyllaStore, inspect};
use tokio::process::Command;

const HERE: Origin = Origin { region: 1, era: 7 };
const CONVERSATIONS: u8 = 12;

fn entry(conversation: ConvId, seq: u64) -> Arc<Entry> {
    Arc::new(Entry::text(
        Seat { hlc: seq << 16, origin: HERE, seq },
        Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
        format!("message {seq} of {conversation}"),
    ))
}

async fn command(arguments: &str) {
    let script = std::env::var("TERN_CQL_CLUSTER").unwrap();
    let status = Command::new(script).args(arguments.split(' ')).status().await.unwrap();
    assert!(status.success(), "cql-cluster {arguments}: {status}");
}

/// Nodes that a test stopped go on when it ends, however it does.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        let Ok(script) = std::env::var("TERN_CQL_CLUSTER") else { return };
        let _the_script_says_why = std::process::Command::new(script).args(["up", "3"]).status();
    }
}

struct Load {
    store: Arc<ScyllaStore>,
    decided: AtomicU64,
    unknown: AtomicU64,
    stop: AtomicBool,
}

impl Load {
    /// Appends to a conversation until it is told to stop, as the core does: what is not known is read. Returns the
    /// highest seq that is decided.
    async fn run(self: Arc<Self>, n: u8) -> u64 {
        let conversation = ConvId([n; 16]);
        let mut head = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let count = 1 + head % 3;
            let todo = Todo { target: Target::Fanout, conversation, prefix: [(HERE, head)].into(), user: None };
            let entries = (head + 1..=head + count).map(|seq| entry(conversation, seq)).collect();
            let append = Append { conversation, origin: HERE, epoch: 1, entries, todo: vec![todo] };
            match self.store.append(vec![append]).await.remove(0) {
                Appended::Decided => {
                    head += count;
                    self.decided.fetch_add(1, Ordering::Relaxed);
                }
                Appended::Unknown(_) => {
                    self.unknown.fetch_add(1, Ordering::Relaxed);
                    let found = loop {
                        match self.store.conversation(conversation).await {
                            Ok(image) => break image.heads.get(&HERE).copied().unwrap_or(0),
                            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                        }
                    };
                    assert!(found == head || found == head + count, "{found} after {head} and {count}");
                    head = found;
                }
                other => panic!("{other:?}"),
            }
        }
        head
    }

    /// Waits until so many more appends were decided.
    async fn goes_on(&self, appends: u64) {
        let enough = self.decided.load(Ordering::Relaxed) + appends;
        let on = async {
            while self.decided.load(Ordering::Relaxed) < enough {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let limit = std::time::Duration::from_secs(60);
        tokio::time::timeout(limit, on).await.expect("appends go on within a minute");
    }
}

async fn check(place: &Place, heads: &BTreeMap<u8, u64>) {
    let store = place.store();
    for (n, head) in heads {
        let conversation = ConvId([*n; 16]);
        let image = store.conversation(conversation).await.unwrap();
        assert_eq!(image.heads.get(&HERE), Some(head));
        let (max_entries, max_bytes) = (usize::MAX, usize::MAX);
        let range = Range { conversation, origin: HERE, from: 1, to: *head, max_entries, max_bytes, backwards: false };
        let found = store.range(range).await.unwrap();
        let expected: Vec<_> = (1..=*head).map(|seq| entry(conversation, seq)).collect();
        assert!(found == expected, "{n}: {} of {head}", found.len());
    }
    assert_eq!(store.todo().await.unwrap().len(), usize::from(CONVERSATIONS));
    let found = inspect::inspect(&store, true).await.unwrap();
    assert_eq!((found.conversations, found.damaged.len()), (u64::from(CONVERSATIONS), 0), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_go_on_while_one_of_three_nodes_is_paused_or_killed_and_nothing_is_lost_with_all() {
    if std::env::var_os("TERN_CQL_CLUSTER").is_none() {
        eprintln!("skipped: no cluster that may be killed; replication/tests/cql-cluster/check starts one");
        return;
    }
    let place = Place::new().await.unwrap();
    let _restore = Restore;
    let load = Arc::new(Load {
        store: place.store(),
        decided: AtomicU64::new(0),
        unknown: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let tasks: Vec<_> = (1..=CONVERSATIONS).map(|n| tokio::spawn(load.clone().run(n))).collect();
    load.goes_on(200).await;
    command("pause 2").await;
    load.goes_on(200).await;
    // A process that starts now finds its way, too.
    let late = tern_scylla::Cluster::connect(place.cluster.options().clone()).await.unwrap();
    assert!(late.nodes().0 >= 2);
    command("cont 2").await;
    load.goes_on(100).await;
    command("kill 3").await;
    load.goes_on(200).await;
    command("start 3").await;
    load.goes_on(100).await;
    // Two of three: nothing can be decided, and nothing may be believed to be.
    command("pause 1").await;
    command("pause 2").await;
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    command("cont 1").await;
    command("cont 2").await;
    load.goes_on(200).await;
    load.stop.store(true, Ordering::Relaxed);
    let mut heads = BTreeMap::new();
    for (n, task) in (1..).zip(tasks) {
        heads.insert(n, task.await.unwrap());
    }
    println!(
        "{} appends decided, {} looked up, {} conditional writes without an answer",
        load.decided.load(Ordering::Relaxed),
        load.unknown.load(Ordering::Relaxed),
        load.store.metrics().unclear()
    );
    check(&place, &heads).await;
    for node in 1..=3 {
        command(&format!("kill {node}")).await;
    }
    command("up 3").await;
    let place_after = {
        // The session finds the nodes again by itself; reads until then fail.
        let store = place.store();
        let back = async {
            while store.conversation(ConvId([1; 16])).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), back).await.expect("the database is back");
        place
    };
    check(&place_after, &heads).await;
}
