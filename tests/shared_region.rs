//! One region that three processes serve together on a real database, linked to a region of one process with a store of
//! its own: one of the three is killed under load, one is paused and goes on, one stops in order. Without a database,
//! which `replication/tests/cql-cluster/check` starts, it ends at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_methods, reason = "processes run in real time, and so do their tests")]

#[path = "support/database.rs"]
mod database;
#[path = "support/program.rs"]
mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tern::cluster::{Cluster, Endpoints, Process};
use tern::demo::person::{client_config, tokens};
use tern::fleet::Fleet;
use tern_client::{Client, ConnectionState, Draft, UserId};

/// Far above what anything here takes on a busy machine; only failures wait this long.
const DEADLINE: Duration = Duration::from_secs(120);
/// The last one is in the other region.
const USERS: [&str; 7] = ["ada", "ben", "cleo", "dora", "emil", "fay", "gus"];

fn device(data: &Path, user: &str) -> Client {
    let endpoints = Endpoints::read(data).unwrap();
    let user = UserId::new(user).unwrap();
    let region = if user.as_str() == "gus" { "us" } else { "eu" };
    let mut config = client_config(&endpoints, &user, Some(region)).unwrap();
    config.device = format!("{user}-phone");
    let tokens = tokens(&endpoints, data, &user).unwrap();
    Client::builder(config).store(data.join(format!("{user}-phone"))).token_provider(tokens).build().unwrap()
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

fn log_has(fleet: &Fleet, name: &str, words: &str) -> bool {
    std::fs::read_to_string(fleet.log_path(name)).unwrap().contains(words)
}

struct Scene {
    fleet: Fleet,
    devices: BTreeMap<&'static str, Client>,
    said: BTreeMap<(&'static str, &'static str), u32>,
}

impl Scene {
    /// Everybody writes to everybody.
    fn say(&mut self) {
        for from in USERS {
            for to in USERS.into_iter().filter(|to| *to != from) {
                let n = self.said.entry((from, to)).or_default();
                *n += 1;
                let conversation = self.devices[from].direct(&UserId::new(to).unwrap()).unwrap();
                conversation.send(Draft::text(format!("{from} {n}"))).unwrap();
            }
        }
    }

    async fn say_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.say();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// What is missing or wrong: each message is shown to its reader once, in the order of its sender.
    fn wrong(&self) -> Option<String> {
        for ((from, to), n) in &self.said {
            let id = self.devices[from].direct(&UserId::new(to).unwrap()).unwrap().id();
            let all = self.devices[to].conversation(id).timeline(usize::MAX >> 1).unwrap().messages;
            let mine = all.iter().map(|m| String::from_utf8_lossy(&m.body).into_owned());
            let mine: Vec<String> = mine.filter(|text| text.starts_with(&format!("{from} "))).collect();
            let expected: Vec<String> = (1..=*n).map(|n| format!("{from} {n}")).collect();
            if mine.iter().collect::<BTreeSet<_>>().len() != mine.len() || !expected.starts_with(&mine) {
                panic!("{to} sees of {from}: {mine:?}");
            }
            if mine != expected {
                return Some(format!("{to} sees {} of {n} of {from}", mine.len()));
            }
            if self.devices[from].waiting().0 != 0 {
                return Some(format!("{from} waits for {} acks", self.devices[from].waiting().0));
            }
        }
        None
    }

    async fn settle(&self, what: &str) {
        until(what, &self.fleet, || self.wrong().is_none()).await;
    }
}

#[tokio::test]
async fn three_processes_share_a_region_and_lose_nothing_when_one_is_killed_or_paused_or_stopped() {
    let Some(mut database) = database::settings("shared", 0) else { return };
    database.push("region.shared=true".to_owned());
    let database = database::flags(database);
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::plan(dir.path().join("cluster"), &["eu".to_owned(), "us".to_owned()], 29_400).unwrap();
    cluster.add_edges("eu", 2);
    cluster.find_ports().unwrap();
    let mut processes = cluster.write().unwrap();
    let alone = processes.remove(processes.iter().position(|process| process.name.starts_with("us")).unwrap());
    let config = std::fs::read_to_string(&processes[0].arguments[2]).unwrap();
    let peers = config.lines().find_map(|line| line.strip_prefix("peers = ")).unwrap();
    let peers = peers.trim_matches(['[', ']', '"']).to_owned();
    let data = cluster.data.clone();
    let fleet = Fleet::new(env!("CARGO_BIN_EXE_tern").into(), &data).unwrap();

    let made = program::tern()
        .args(["--config", &processes[0].arguments[2]])
        .args(&database)
        .args(["store", "init"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    // Each is a whole region process: what the plan has as a further edge takes its ports and certificates for one.
    let with = |process: &Process| {
        let mut arguments = vec!["region".to_owned(), "--config".to_owned(), process.arguments[2].clone()];
        arguments.extend(database.clone());
        if process.arguments[0] == "edge" {
            let shared = |file: &str| data.join(file).display().to_string();
            for setting in [
                "listen.dispatch=0".to_owned(),
                "listen.node=0".to_owned(),
                "core=".to_owned(),
                format!("peers={peers}"),
                format!("receipt.key_file={}", shared("receipt.key")),
                format!("direct.salt_file={}", shared("direct.salt")),
            ] {
                arguments.extend(["--set".to_owned(), setting]);
            }
        }
        arguments
    };
    let mut scene = Scene { fleet, devices: BTreeMap::new(), said: BTreeMap::new() };
    scene.fleet.start(&alone.name, &alone.arguments).await.unwrap();
    for process in &processes {
        scene.fleet.start(&process.name, &with(process)).await.unwrap();
    }
    let gained = |fleet: &Fleet, name: &str| log_has(fleet, name, "shares of this region are this node's now");
    until("all have a part", &scene.fleet, || processes.iter().all(|p| gained(&scene.fleet, &p.name))).await;

    for user in USERS {
        scene.devices.insert(user, device(&data, user));
    }
    scene.say_for(Duration::from_secs(3)).await;
    scene.settle("the first messages are shown").await;

    // The second process dies under load.
    scene.say();
    let victim = processes[1].name.clone();
    assert!(scene.fleet.kill(&victim).await);
    scene.say_for(Duration::from_secs(6)).await;
    scene.settle("what was said around the death of a process is shown").await;

    // It comes back and gets its part; the third is paused for longer than any lease, and goes on under load.
    scene.fleet.start(&victim, &with(&processes[1])).await.unwrap();
    until("it has a part again", &scene.fleet, || {
        let log = std::fs::read_to_string(scene.fleet.log_path(&victim)).unwrap();
        log.matches("shares of this region are this node's now").count() >= 2
    })
    .await;
    let sleeper = processes[2].name.clone();
    assert!(scene.fleet.signal(&sleeper, Signal::STOP));
    scene.say_for(Duration::from_secs(15)).await;
    assert!(scene.fleet.signal(&sleeper, Signal::CONT));
    scene.say_for(Duration::from_secs(4)).await;
    scene.settle("what was said while a process stood still, and after, is shown").await;
    until("it knows that it was taken for dead", &scene.fleet, || {
        log_has(&scene.fleet, &sleeper, "it begins anew with nothing")
    })
    .await;

    // The third is drained: it gives its part away and is left by its clients, and takes a part again.
    let drain = |more: &'static [&'static str]| {
        let mut command = tokio::process::Command::from(program::tern());
        command.args(["--config", &processes[0].arguments[2], "--json", "drain", &sleeper]).args(more);
        async move {
            let output = command.output().await.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        }
    };
    scene.say();
    let said = drain(&[]).await;
    let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert!(last["done"] == true && last["clients"] == 0 && last["shares"] == 0, "{said}");
    scene.say_for(Duration::from_secs(2)).await;
    scene.settle("what was said around a drain is shown").await;
    let log = || std::fs::read_to_string(scene.fleet.log_path(&sleeper)).unwrap();
    let gained = log().matches("shares of this region are this node's now").count();
    drain(&["--undo"]).await;
    until("it has a part again", &scene.fleet, || {
        log().matches("shares of this region are this node's now").count() > gained
    })
    .await;

    // The first stops in order, and its clients go to the others.
    scene.say();
    let first = processes[0].name.clone();
    assert!(scene.fleet.signal(&first, Signal::TERM));
    let end = Instant::now() + DEADLINE;
    let status = loop {
        if let Some((name, status)) = scene.fleet.ended() {
            assert_eq!(name, first);
            break status;
        }
        assert!(Instant::now() < end, "{}", scene.fleet.log_tail(&first));
        scene.say();
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    assert!(status.success(), "{status}: {}", scene.fleet.log_tail(&first));
    scene.say_for(Duration::from_secs(3)).await;
    scene.settle("what was said around a stop in order is shown").await;
    assert!(scene.devices.values().all(|d| matches!(d.connection(), ConnectionState::Live { .. })));
    scene.fleet.stop(Duration::from_secs(30)).await;
}
