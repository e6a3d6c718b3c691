//! Groups, revoked tokens and removed devices with real processes: three regions of the real binary on loopback,
//! and clients of the SDK. Their failures in virtual time are in `netsim/tests/groups.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_methods, reason = "processes run in real time, and so do their tests")]

#[path = "support/program.rs"]
mod program;

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tern::cluster::{Cluster, Endpoints, Process};
use tern::demo::person::{client_config, tokens};
use tern::fleet::Fleet;
use tern::token::Signer;
use tern_client::{
    Client, ConnectionState, ConvId, Draft, Event, Events, GroupOptions, SendError, SendRefused, StaticToken,
    TokenProvider, UserId,
};
use tern_core::codes::Code;

/// Far above what anything here takes on a busy machine; only failures wait this long.
const DEADLINE: Duration = Duration::from_secs(60);
/// A token that a client keeps is good for longer than the test.
const KEPT_TOKEN: Duration = Duration::from_secs(3600);

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// Three regions as processes. They end with it.
struct Regions {
    fleet: Fleet,
    cluster: Cluster,
    processes: Vec<Process>,
    /// Dropped last: the processes write into it.
    _data: tempfile::TempDir,
}

impl Regions {
    async fn start(base_port: u16) -> Self {
        let data = tempfile::tempdir().unwrap();
        let names = ["eu", "us", "ap"].map(str::to_owned);
        let mut cluster = Cluster::plan(data.path().to_owned(), &names, base_port).unwrap();
        cluster.find_ports().unwrap();
        let processes = cluster.write().unwrap();
        let mut fleet = Fleet::new(env!("CARGO_BIN_EXE_tern").into(), &cluster.data).unwrap();
        for process in &processes {
            fleet.start(&process.name, &process.arguments).await.unwrap();
        }
        Self { fleet, cluster, processes, _data: data }
    }

    /// `tern user ACTION` on the machine of a region.
    fn user(&self, region: &str, action: &[&str]) {
        let process = self.processes.iter().find(|p| p.region == region).unwrap();
        let mut command = program::tern();
        let config = ["--config", process.arguments[2].as_str()];
        let done = command.arg("user").args(action).args(config).stdin(Stdio::null()).output().unwrap();
        assert!(done.status.success(), "user {action:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn provider(&self, name: &str) -> Arc<dyn TokenProvider> {
        tokens(&Endpoints::read(&self.cluster.data).unwrap(), &self.cluster.data, &user(name)).unwrap()
    }

    /// One token, signed now, for ever.
    fn kept_token(&self, name: &str) -> Arc<dyn TokenProvider> {
        let endpoints = Endpoints::read(&self.cluster.data).unwrap();
        let signer = Signer::open(&self.cluster.data.join("tokens.jwk")).unwrap();
        Arc::new(StaticToken(signer.sign(&user(name), &endpoints.deployment, KEPT_TOKEN).unwrap()))
    }

    /// `name`: `<user>-<device>`. `near`: the region whose dispatch it asks first.
    fn device(&self, name: &str, near: &str, tokens: Option<Arc<dyn TokenProvider>>) -> Device {
        let of = name.split('-').next().unwrap();
        let endpoints = Endpoints::read(&self.cluster.data).unwrap();
        let mut config = client_config(&endpoints, &user(of), Some(near)).unwrap();
        config.device = name.to_owned();
        let tokens = tokens.unwrap_or_else(|| self.provider(of));
        let store = self.cluster.data.join(name);
        let client = Client::builder(config).store(store).token_provider(tokens).build().unwrap();
        let events = client.events();
        Device { name: name.to_owned(), client, events, told: Vec::new() }
    }
}

struct Device {
    name: String,
    client: Client,
    events: Events,
    told: Vec<Event>,
}

impl Device {
    fn is_live(&self) -> bool {
        matches!(self.client.connection(), ConnectionState::Live { .. })
    }

    fn is_live_at(&self, region: &str) -> bool {
        matches!(self.client.connection(), ConnectionState::Live { region: at, .. } if at == region)
    }

    fn texts(&self, id: ConvId) -> Vec<String> {
        let all = self.client.conversation(id).timeline(usize::MAX >> 1).unwrap().messages;
        all.iter().filter(|m| m.kind == 0).map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect()
    }

    fn say(&self, id: ConvId, text: &str) {
        self.client.conversation(id).send(Draft::text(text)).unwrap();
    }

    fn say_to(&self, peer: &str, text: &str) -> ConvId {
        let conversation = self.client.direct(&user(peer)).unwrap();
        conversation.send(Draft::text(text)).unwrap();
        conversation.id()
    }

    fn members(&self, id: ConvId) -> usize {
        self.client.conversation(id).group().unwrap().map_or(0, |g| g.members.len())
    }

    fn has_left(&self, id: ConvId) -> bool {
        self.client.conversations().unwrap().iter().any(|c| c.id == id && c.left)
    }

    /// Times that it was told to be removed, with these words.
    fn removed(&self, why: &str) -> usize {
        let removed = |e: &&Event| matches!(e, Event::Kicked { code, message } if *code == Code::Kicked as u32 && message.contains(why));
        self.told.iter().filter(removed).count()
    }

    /// Connections lost since `from`, counted in what it was told.
    fn was_cut_off(&self, from: usize) -> bool {
        let lost = |e: &Event| matches!(e, Event::Connection(state) if !matches!(state, ConnectionState::Live { .. }));
        self.told[from..].iter().any(lost)
    }
}

async fn until<const N: usize>(what: &str, mut devices: [&mut Device; N], done: impl Fn(&[&mut Device; N]) -> bool) {
    let end = Instant::now() + DEADLINE;
    loop {
        for device in &mut devices {
            while let Some(event) = device.events.try_next() {
                device.told.push(event);
            }
        }
        if done(&devices) {
            return;
        }
        if Instant::now() > end {
            let states = devices.iter().map(|d| format!("{}: {:?}\n  {:?}", d.name, d.client.connection(), d.told));
            panic!("not in time: {what}\n{}", states.collect::<Vec<_>>().join("\n"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn run(story: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story);
}

#[test]
fn a_group_made_before_it_is_connected_is_the_same_for_all_and_who_is_removed_reads_no_more() {
    run(async {
        let mut regions = Regions::start(24_000).await;
        let mut alice = regions.device("alice-phone", "eu", None);
        let members = [user("bob"), user("carol")];
        let group = alice.client.create_group("trip", &members, GroupOptions::default()).unwrap().id();
        alice.say(group, "one");
        assert_eq!(alice.texts(group), ["one"], "shown at once");
        let mut bob = regions.device("bob-phone", "us", None);
        let mut carol = regions.device("carol-phone", "ap", None);
        until("the group everywhere", [&mut alice, &mut bob, &mut carol], |all| {
            all.iter().all(|d| d.members(group) == 3 && d.texts(group) == ["one"])
        })
        .await;
        for i in 0..10 {
            for device in [&alice, &bob, &carol] {
                device.say(group, &format!("{} {i}", device.name));
            }
        }
        until("31 messages everywhere", [&mut alice, &mut bob, &mut carol], |all| {
            all.iter().all(|d| d.texts(group).len() == 31 && d.client.waiting() == (0, 0))
        })
        .await;
        let shown = alice.texts(group);
        assert_eq!((&shown, &shown), (&bob.texts(group), &carol.texts(group)), "in one order");

        alice.client.conversation(group).remove(&[user("carol")]).unwrap();
        until("carol to know", [&mut bob, &mut carol], |[b, c]| c.has_left(group) && b.members(group) == 2).await;
        alice.say(group, "without carol");
        until("a message more", [&mut alice, &mut bob], |all| all.iter().all(|d| d.texts(group).len() == 32)).await;
        let direct = alice.say_to("carol", "goodbye");
        until("what was written after that", [&mut carol], |[c]| c.texts(direct) == ["goodbye"]).await;
        assert_eq!(carol.texts(group), shown, "nothing that was written after");
        let refused = carol.client.conversation(group).send(Draft::text("and me?"));
        assert!(matches!(refused, Err(SendError::Refused(SendRefused::Left(of))) if of == group), "{refused:?}");
        regions.fleet.stop(DEADLINE).await;
    });
}

#[test]
fn revoked_tokens_and_removed_devices_are_out_in_every_region_and_a_new_token_is_in_again() {
    run(async {
        let mut regions = Regions::start(25_000).await;
        let kept = regions.kept_token("alice");
        let mut phone = regions.device("alice-phone", "eu", None);
        let mut tablet = regions.device("alice-tablet", "ap", Some(kept));
        let mut bob = regions.device("bob-phone", "us", None);
        until("all to be live near by", [&mut phone, &mut tablet, &mut bob], |[p, t, b]| {
            p.is_live_at("eu") && t.is_live_at("ap") && b.is_live_at("us")
        })
        .await;

        let (of_phone, of_tablet, of_bob) = (phone.told.len(), tablet.told.len(), bob.told.len());
        regions.user("us", &["revoke", "--user", "alice"]);
        until("the phone to come back with a new token", [&mut phone, &mut tablet, &mut bob], |[p, t, _]| {
            p.was_cut_off(of_phone) && p.is_live() && t.was_cut_off(of_tablet) && !t.is_live()
        })
        .await;
        let direct = phone.say_to("bob", "still me");
        until("its message", [&mut phone, &mut tablet, &mut bob], |[p, _, b]| {
            b.texts(direct) == ["still me"] && p.client.waiting() == (0, 0)
        })
        .await;
        assert!(!tablet.is_live() && tablet.texts(direct).is_empty(), "its token was signed before");
        assert!(!bob.was_cut_off(of_bob), "another's tokens are his own");

        // The same device with a token of its own.
        tablet.client.close().await;
        let mut tablet = regions.device("alice-tablet", "ap", None);
        until("the tablet with a new token", [&mut tablet], |[t]| t.is_live() && t.texts(direct).len() == 1).await;

        let install = tablet.client.install();
        let kick = ["kick", "--user", "alice", "--install", install.as_str(), "--reason", "left in a train"];
        regions.user("eu", &kick);
        until("the tablet to be told why", [&mut phone, &mut tablet], |[_, t]| {
            t.removed("left in a train") == 1 && t.client.connection() == ConnectionState::Offline
        })
        .await;
        tablet.client.reconnect().unwrap();
        until("the tablet to be refused", [&mut phone, &mut tablet], |[_, t]| t.removed("left in a train") == 2).await;
        assert!(phone.is_live(), "the phone goes on");
        regions.fleet.stop(DEADLINE).await;
    });
}
