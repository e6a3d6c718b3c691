//! Regions on a real database: two regions with a datacenter each, messages between them, a crash, a second process on
//! the same keyspace. Without a database, which `replication/tests/cql-cluster/check` starts, they end at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_methods, reason = "processes run in real time, and so do their tests")]

#[path = "support/database.rs"]
mod database;
#[path = "support/program.rs"]
mod program;

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tern::cluster::{Cluster, Endpoints, Process};
use tern::demo::person::{client_config, tokens};
use tern::fleet::Fleet;
use tern_client::{Client, ConnectionState, ConvId, Draft, UserId};

/// Far above what anything here takes on a busy machine; only failures wait this long.
const DEADLINE: Duration = Duration::from_secs(60);

/// Settings of the database, by region; `None` where there is none.
fn database(region: &str) -> Option<Vec<String>> {
    database::settings("regions", usize::from(region == "us")).map(database::flags)
}

fn tern(process: &Process, settings: &[String], action: &[&str]) -> Output {
    program::tern().args(["--config", &process.arguments[2]]).args(settings).arg("store").args(action).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn device(data: &Path, user: &str, region: &str) -> Client {
    let endpoints = Endpoints::read(data).unwrap();
    let user = UserId::new(user).unwrap();
    let mut config = client_config(&endpoints, &user, Some(region)).unwrap();
    config.device = format!("{user}-phone");
    let tokens = tokens(&endpoints, data, &user).unwrap();
    Client::builder(config).store(data.join(format!("{user}-phone"))).token_provider(tokens).build().unwrap()
}

fn texts(client: &Client, id: ConvId) -> Vec<String> {
    let all = client.conversation(id).timeline(usize::MAX >> 1).unwrap().messages;
    all.iter().map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect()
}

async fn until(what: &str, fleet: &Fleet, done: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        if Instant::now() > end {
            let logs: Vec<String> = fleet.names().iter().map(|name| fleet.log_tail(name)).collect();
            panic!("not in time: {what}\n{}", logs.join("\n"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn two_regions_on_a_database_exchange_messages_and_go_on_after_a_crash_and_one_process_serves_each() {
    let (Some(eu), Some(us)) = (database("eu"), database("us")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::plan(dir.path().join("cluster"), &["eu".to_owned(), "us".to_owned()], 28_400).unwrap();
    cluster.find_ports().unwrap();
    let processes = cluster.write().unwrap();
    let mut fleet = Fleet::new(env!("CARGO_BIN_EXE_tern").into(), &cluster.data).unwrap();

    // A database that knows nothing of tern, and one that does.
    let checked = tern(&processes[0], &eu, &["check"]);
    assert_eq!(checked.status.code(), Some(3));
    assert!(text(&checked.stderr).contains("tern store init"), "{}", text(&checked.stderr));
    for (process, settings) in processes.iter().zip([&eu, &us]) {
        let made = tern(process, settings, &["init"]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        assert!(text(&made.stdout).contains("schema version"), "{}", text(&made.stdout));
    }
    let again = tern(&processes[0], &eu, &["init"]);
    assert!(text(&again.stdout).contains("nothing to do"), "{}", text(&again.stdout));
    let migrated = tern(&processes[0], &eu, &["migrate"]);
    assert!(migrated.status.success() && text(&migrated.stdout).contains("nothing to do"));
    let wrong = [&eu[..], &["--set".to_owned(), "store.datacenter=dc9".to_owned()]].concat();
    let wrong = text(&tern(&processes[0], &wrong, &["check"]).stderr);
    assert!(wrong.contains("no datacenter \"dc9\"") && wrong.contains("dc1"), "{wrong}");

    let with = |process: &Process, settings: &[String]| [&process.arguments[..], settings].concat();
    for (process, settings) in processes.iter().zip([&eu, &us]) {
        fleet.start(&process.name, &with(process, settings)).await.unwrap();
    }
    let alice = device(&cluster.data, "alice", "eu");
    let bob = device(&cluster.data, "bob", "us");
    // The id of a direct conversation changes with the first connection of a device.
    let is_live = || matches!(alice.connection(), ConnectionState::Live { .. });
    until("alice is connected for the first time", &fleet, is_live).await;
    let conversation = alice.direct(&UserId::new("bob").unwrap()).unwrap();
    let id = conversation.id();
    conversation.send(Draft::text("one")).unwrap();
    until("the first message in the other region, and held by both", &fleet, || {
        texts(&bob, id) == ["one"] && alice.waiting() == (0, 0)
    })
    .await;
    bob.direct(&UserId::new("alice").unwrap()).unwrap().send(Draft::text("two")).unwrap();
    until("the answer", &fleet, || texts(&alice, id) == ["one", "two"] && bob.waiting() == (0, 0)).await;

    // A crash: the region goes on in its era, with all that it had.
    let first = processes[0].name.clone();
    assert!(fleet.kill(&first).await);
    conversation.send(Draft::text("three")).unwrap();
    fleet.start(&first, &with(&processes[0], &eu)).await.unwrap();
    until("the third message", &fleet, || texts(&bob, id) == ["one", "two", "three"] && alice.waiting() == (0, 0))
        .await;
    let log = std::fs::read_to_string(fleet.log_path(&first)).unwrap();
    let eras: Vec<&str> = log.lines().filter(|line| line.contains("store is open")).collect();
    assert_eq!(eras.len(), 2, "{log}");
    let era = |line: &str| line.split("era=").nth(1).map(|rest| rest.split(' ').next().unwrap_or_default().to_owned());
    assert!(era(eras[0]).is_some() && era(eras[0]) == era(eras[1]), "{eras:?}");

    // While it runs it can't be given a new era; it can be checked.
    let refused = tern(&processes[0], &eu, &["new-era"]);
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stdout));
    assert!(text(&refused.stderr).contains("stop it first"), "{}", text(&refused.stderr));
    let checked = tern(&processes[0], &eu, &["check", "--json"]);
    assert!(checked.status.success(), "{}{}", text(&checked.stdout), text(&checked.stderr));
    let said: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert!(said["entries"].as_u64() >= Some(3), "{said}");

    // A second process of the region is refused, however little the first one does.
    until("alice is connected", &fleet, is_live).await;
    let mut other = with(&processes[0], &eu);
    for setting in ["listen.client=0", "listen.dispatch=0", "listen.node=0", "listen.admin=127.0.0.1:0"] {
        other.extend(["--set".to_owned(), setting.to_owned()]);
    }
    other.extend(["--set".to_owned(), "listen.gossip=127.0.0.1:0".to_owned()]);
    let refused = fleet.start("second", &other).await.unwrap_err().to_string();
    assert!(refused.contains("is in use by a running region"), "{refused}");
    // It takes over from one that is paused, which is fenced when it goes on, serves nothing more, and ends.
    assert!(fleet.signal(&first, Signal::STOP));
    fleet.start("third", &other).await.unwrap();
    assert!(fleet.signal(&first, Signal::CONT));
    conversation.send(Draft::text("four")).unwrap();
    let told = fleet.log_path(&first);
    let ended = Instant::now() + DEADLINE;
    let status = loop {
        match fleet.ended() {
            Some((name, status)) if name == first => break status,
            other => assert!(other.is_none() && Instant::now() < ended, "{other:?} {}", fleet.log_tail(&first)),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(status.code(), Some(3));
    assert!(std::fs::read_to_string(&told).unwrap().contains("another process has taken over"));
    assert!(texts(&bob, id).len() >= 3 && !texts(&bob, id)[..3].contains(&"four".to_owned()));
    // Which of them serves is for who runs them to say: the first again.
    fleet.kill("third").await;
    fleet.start(&first, &with(&processes[0], &eu)).await.unwrap();
    until("the fourth message", &fleet, || texts(&bob, id).len() == 4 && alice.waiting() == (0, 0)).await;
    fleet.stop(Duration::from_secs(20)).await;

    // Stopped in order, it is nobody's; after a restore the region takes a new era.
    let marked = tern(&processes[0], &eu, &["new-era"]);
    assert!(marked.status.success(), "{}", text(&marked.stderr));
    for (process, settings) in processes.iter().zip([&eu, &us]) {
        fleet.start(&process.name, &with(process, settings)).await.unwrap();
    }
    let log = std::fs::read_to_string(fleet.log_path(&first)).unwrap();
    let last = log.lines().rfind(|line| line.contains("store is open")).unwrap();
    assert!(last.contains("new_era=true") && era(last) != era(eras[0]), "{last}");
    fleet.stop(Duration::from_secs(20)).await;
}
