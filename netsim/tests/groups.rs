//! Groups, marks, blocks, devices and erasure over everything: SDK clients in three regions (R10, R11, R16).

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[allow(dead_code, reason = "only its regions are used here: devices there know direct conversations only")]
#[path = "support/devices.rs"]
mod devices;
mod support;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use devices::{ms, three_regions};
use tern_client::store::memory::MemoryStore;
use tern_client::{
    Client, ConnectionState, ConvId, Conversation, Draft, Erased, Event, Events, GroupOptions, InstallId, Message,
    MessageId, MessageState, SendError, SendRefused, UserId,
};
use tern_core::codes::Code;
use tern_netsim::cluster::Cluster;
use tern_netsim::node::SimNode;
use tern_netsim::packets::{Packet, Shape};
use tern_netsim::run::run;
use tern_netsim::world::World;
use tokio::time::{sleep, timeout};

const REGIONS: [&str; 3] = ["eu", "us", "ap"];
/// A client that does not get there by then never will.
const PATIENCE: Duration = Duration::from_secs(120);
/// What was to be pushed is pushed, and what was missed is told by a heartbeat.
const A_HEARTBEAT: Duration = Duration::from_secs(30);

/// Where a phone is; dispatch sends it to the region near by.
#[derive(Clone, Copy)]
enum At {
    Eu,
    Us,
    Ap,
}

impl At {
    fn place(self) -> &'static str {
        match self {
            Self::Eu => "germany",
            Self::Us => "america",
            Self::Ap => "japan",
        }
    }

    /// Addresses that the shipped GeoIP file places there.
    fn ip(self, number: u8) -> Ipv4Addr {
        match self {
            Self::Eu => Ipv4Addr::new(91, 0, 0, number),
            Self::Us => Ipv4Addr::new(8, 8, 8, number),
            Self::Ap => Ipv4Addr::new(126, 0, 0, number),
        }
    }
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// A device that tells all that it was told.
struct Phone {
    name: String,
    host: SimNode,
    client: Client,
    events: Events,
    told: Vec<Event>,
}

impl Phone {
    /// `name`: `<user>-<device>`.
    fn new(world: &World, cluster: &Cluster, name: &str, at: At, number: u8) -> Self {
        let user = user(name.split('-').next().unwrap());
        let host = world.add_host(name, at.place(), at.ip(number)).unwrap();
        let env = host.env();
        let store = MemoryStore::new(user.clone(), InstallId::new(&format!("install-of-{name}")).unwrap());
        let mut config = cluster.client_config(&user, "us");
        config.device = name.to_owned();
        let client = Client::builder(config)
            .local_store(Box::new(store))
            .token_provider(cluster.tokens(&user, Arc::clone(&env.clock)))
            .env(env)
            .build()
            .unwrap();
        let events = client.events();
        Self { name: name.to_owned(), host, client, events, told: Vec::new() }
    }

    fn look(&mut self) {
        while let Some(event) = self.events.try_next() {
            self.told.push(event);
        }
    }

    fn is_live_at(&self, region: &str) -> bool {
        matches!(self.client.connection(), ConnectionState::Live { region: at, .. } if at == region)
    }

    /// All its messages are stable, and nothing is coming.
    fn is_calm(&self) -> bool {
        self.client.waiting() == (0, 0) && matches!(self.client.connection(), ConnectionState::Live { .. })
    }

    fn of(&self, id: ConvId) -> Conversation {
        self.client.conversation(id)
    }

    fn say(&self, id: ConvId, text: &str) -> MessageId {
        self.of(id).send(Draft::text(text)).unwrap()
    }

    fn messages(&self, id: ConvId) -> Vec<Message> {
        self.of(id).timeline(usize::MAX).unwrap().messages
    }

    /// What people wrote, in order.
    fn texts(&self, id: ConvId) -> Vec<String> {
        let messages = self.messages(id).into_iter().filter(|m| m.kind == 0);
        messages.map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect()
    }

    /// All that is shown, changes of the group included: who, his n, kind, body.
    fn shows(&self, id: ConvId) -> Vec<(String, u64, u32, Vec<u8>)> {
        let row = |m: Message| (format!("{} {}", m.by.user, m.by.install), m.by.n, m.kind, m.body.to_vec());
        self.messages(id).into_iter().map(row).collect()
    }

    fn members(&self, id: ConvId) -> Vec<String> {
        let group = self.of(id).group().unwrap();
        group.map(|g| g.members.iter().map(|m| m.user.as_str().to_owned()).collect()).unwrap_or_default()
    }

    /// Unread messages, once they are counted exactly.
    fn unread(&self, id: ConvId) -> Option<u64> {
        let unread = self.of(id).unread().unwrap();
        unread.exact.then_some(unread.count)
    }

    fn has_left(&self, id: ConvId) -> bool {
        self.client.conversations().unwrap().iter().any(|c| c.id == id && c.left)
    }
}

/// Waits until the phones say so, looking every 10 ms.
async fn until<const N: usize>(what: &str, mut phones: [&mut Phone; N], done: impl Fn(&[&mut Phone; N]) -> bool) {
    let waiting = timeout(PATIENCE, async {
        loop {
            phones.iter_mut().for_each(|phone| phone.look());
            if done(&phones) {
                return;
            }
            sleep(ms(10)).await;
        }
    });
    if waiting.await.is_err() {
        let states = phones.iter().map(|p| {
            let last: Vec<_> = p.told.iter().rev().take(8).rev().collect();
            let all = p.client.conversations().unwrap();
            let lines =
                all.iter().map(|c| format!("  {} members {:?}, shows {:?}", c.id, p.members(c.id), p.texts(c.id)));
            let lines = lines.collect::<Vec<_>>().join("\n");
            format!("{}: {:?}, waiting {:?}\n  {last:?}\n{lines}", p.name, p.client.connection(), p.client.waiting())
        });
        panic!("waited {PATIENCE:?} for {what}\n{}", states.collect::<Vec<_>>().join("\n"));
    }
}

/// Everybody shows the same, in the same order, with the same members.
fn assert_alike(id: ConvId, phones: &[&Phone]) {
    for other in &phones[1..] {
        assert_eq!(phones[0].shows(id), other.shows(id), "{} and {} disagree", phones[0].name, other.name);
        assert_eq!(phones[0].members(id), other.members(id), "{} and {} disagree", phones[0].name, other.name);
    }
}

/// Runs a scenario with a seed; `TERN_STORMS=100` with as many more.
fn sim<Fut, T>(seed: u64, scenario: impl Fn(World) -> Fut + Copy + Send + 'static) -> T
where
    Fut: Future<Output = T>,
    T: Send + 'static,
{
    let more: u64 = std::env::var("TERN_STORMS").map_or(0, |text| text.parse().expect("a number"));
    for seed in 1000..1000 + more {
        sim_once(seed, scenario);
    }
    sim_once(seed, scenario)
}

fn sim_once<Fut, T>(seed: u64, scenario: impl Fn(World) -> Fut + Copy + Send + 'static) -> T
where
    Fut: Future<Output = T>,
    T: Send + 'static,
{
    run(seed, move |world| async move { timeout(Duration::from_secs(3600), scenario(world)).await.expect("too late") })
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"))
}

/// Alice in eu, bob in us, carol in ap, live near by.
async fn three(world: &World, cluster: &Cluster) -> [Phone; 3] {
    let mut alice = Phone::new(world, cluster, "alice-phone", At::Eu, 1);
    let mut bob = Phone::new(world, cluster, "bob-phone", At::Us, 8);
    let mut carol = Phone::new(world, cluster, "carol-phone", At::Ap, 1);
    until("all to be live near by", [&mut alice, &mut bob, &mut carol], |[a, b, c]| {
        a.is_live_at("eu") && b.is_live_at("us") && c.is_live_at("ap")
    })
    .await;
    [alice, bob, carol]
}

/// A group of the three that all of them know.
async fn group_of_three(alice: &mut Phone, bob: &mut Phone, carol: &mut Phone) -> ConvId {
    let id = alice.client.create_group("trip", &[user("bob"), user("carol")], GroupOptions::default()).unwrap().id();
    alice.say(id, "hello");
    until("the group", [alice, bob, carol], |all| {
        all.iter().all(|p| p.members(id).len() == 3 && p.texts(id) == ["hello"] && p.is_calm())
    })
    .await;
    id
}

// ---- creation, sends, order ------------------------------------------------------------------------------

async fn made_offline(world: World) -> (Shape, Vec<Packet>) {
    let cluster = three_regions(&world).await;
    for region in REGIONS {
        world.cut("germany", region);
    }
    let mut alice = Phone::new(&world, &cluster, "alice-phone", At::Eu, 1);
    let mut bob = Phone::new(&world, &cluster, "bob-phone", At::Us, 8);
    let mut carol = Phone::new(&world, &cluster, "carol-phone", At::Ap, 1);
    let id = alice.client.create_group("trip", &[user("bob"), user("carol")], GroupOptions::default()).unwrap().id();
    alice.say(id, "one");
    alice.say(id, "two");
    sleep(Duration::from_secs(5)).await;
    assert_eq!((alice.texts(id), alice.members(id).len()), (vec!["one".into(), "two".into()], 3), "shown offline");
    assert!(alice.messages(id).iter().all(|m| m.key.is_none() && m.state == MessageState::Queued));
    for region in REGIONS {
        world.heal("germany", region);
    }
    until("both messages everywhere", [&mut alice, &mut bob, &mut carol], |all| {
        all.iter().all(|p| p.texts(id) == ["one", "two"] && p.members(id).len() == 3)
    })
    .await;
    for i in 0..10 {
        bob.say(id, &format!("bob {i}"));
        carol.say(id, &format!("carol {i}"));
        if i % 3 == 0 {
            alice.say(id, &format!("alice {i}"));
        }
        sleep(ms(70)).await;
    }
    until("26 messages everywhere", [&mut alice, &mut bob, &mut carol], |all| {
        all.iter().all(|p| p.texts(id).len() == 26 && p.is_calm())
    })
    .await;
    assert_alike(id, &[&alice, &bob, &carol]);
    for (name, texts) in [("bob", 10), ("carol", 10), ("alice", 4)] {
        let all = alice.texts(id);
        let own: Vec<_> = all.iter().filter(|text| text.starts_with(name)).cloned().collect();
        let mut sorted = own.clone();
        sorted.sort();
        assert_eq!((own.len(), &own), (texts, &sorted), "in the order in which {name} wrote");
    }
    assert_eq!([&alice, &bob, &carol].map(|p| p.unread(id)), [Some(20), Some(16), Some(16)]);
    (world.shape(), world.packets())
}

#[test]
fn made_offline_of_a_child() {
    let Some(seed) = support::child_seed() else { return };
    let (shape, packets) = sim_once(seed, made_offline);
    support::report(shape, &packets);
}

#[test]
fn a_group_made_offline_shows_everybody_the_same_in_one_order_twice_alike() {
    support::run_twice("made_offline_of_a_child", 1, Duration::from_secs(300));
}

#[test]
fn a_group_made_offline_comes_up_with_other_seeds_too() {
    for seed in 2..5 {
        sim(seed, made_offline);
    }
}

// ---- a region that lacks a change, and one that is lost --------------------------------------------------

#[test]
fn whoever_was_added_behind_a_cut_writes_through_a_region_that_lacks_it() {
    sim(11, |world| async move {
        let cluster = three_regions(&world).await;
        let [mut alice, mut bob, mut carol] = three(&world, &cluster).await;
        let id = group_of_three(&mut alice, &mut bob, &mut carol).await;
        let mut dave = Phone::new(&world, &cluster, "dave-phone", At::Eu, 4);
        until("dave to be live", [&mut dave], |[d]| d.is_live_at("eu")).await;
        world.cut("eu", "us");
        world.cut("eu", "ap");
        alice.of(id).add(&[user("dave")], true).unwrap();
        until("dave to be in", [&mut alice, &mut dave], |[_, d]| d.members(id).len() == 4 && d.texts(id) == ["hello"])
            .await;
        sleep(ms(500)).await;
        assert_eq!((bob.members(id).len(), carol.members(id).len()), (3, 3), "the other regions can't know it");

        world.cut("dave-phone", "eu");
        world.cut("dave-phone", "ap");
        let said = dave.say(id, "let me in");
        until("dave's message in us", [&mut dave, &mut bob], |[d, b]| {
            let acked = d.told.iter().any(|e| matches!(e, Event::Sent { id, .. } if *id == said));
            acked && d.is_live_at("us") && b.texts(id) == ["hello", "let me in"] && b.members(id).len() == 4
        })
        .await;
        assert_eq!(alice.texts(id), ["hello"], "eu is still cut off");
        for (a, b) in [("eu", "us"), ("eu", "ap"), ("dave-phone", "eu"), ("dave-phone", "ap")] {
            world.heal(a, b);
        }
        until("the same everywhere", [&mut alice, &mut bob, &mut carol, &mut dave], |all| {
            all.iter().all(|p| p.members(id).len() == 4 && p.texts(id).len() == 2 && p.is_calm())
        })
        .await;
        assert_alike(id, &[&alice, &bob, &carol, &dave]);
    });
}

#[test]
fn a_group_outlives_the_only_region_that_acked_its_creation() {
    sim(12, |world| async move {
        let mut cluster = three_regions(&world).await;
        let [mut alice, mut bob, mut carol] = three(&world, &cluster).await;
        world.cut("eu", "us");
        world.cut("eu", "ap");
        let made = alice.client.create_group("trip", &[user("bob"), user("carol")], GroupOptions::default());
        let id = made.unwrap().id();
        let said = alice.say(id, "one");
        until("eu to ack", [&mut alice], |[a]| a.client.waiting().0 == 0).await;
        assert_eq!(alice.client.waiting().1, 2, "creation and message are acked, and nowhere else");
        cluster.kill("eu").await.unwrap();
        cluster.destroy_disk("eu").unwrap();
        world.heal("eu", "us");
        world.heal("eu", "ap");
        until("the group from alice's phone", [&mut alice, &mut bob, &mut carol], |all| {
            all.iter().all(|p| p.members(id).len() == 3 && p.texts(id) == ["one"]) && all[0].is_calm()
        })
        .await;
        assert!(alice.told.iter().any(|e| matches!(e, Event::ReOffered { conversation, .. } if *conversation == id)));
        assert!(alice.told.iter().any(|e| matches!(e, Event::Stable { id, .. } if *id == said)));
        bob.say(id, "two");
        until("an answer", [&mut alice, &mut bob, &mut carol], |all| all.iter().all(|p| p.texts(id).len() == 2)).await;
        assert_alike(id, &[&alice, &bob, &carol]);

        // The region comes back with an empty disk, and serves the group as the others do.
        cluster.restart("eu").await.unwrap();
        sleep(Duration::from_secs(20)).await;
        let mut erin = Phone::new(&world, &cluster, "erin-phone", At::Eu, 5);
        alice.of(id).add(&[user("erin")], true).unwrap();
        until("erin to be in, in eu", [&mut alice, &mut bob, &mut carol, &mut erin], |all| {
            all[3].is_live_at("eu") && all.iter().all(|p| p.members(id).len() == 4 && p.texts(id).len() == 2)
        })
        .await;
        erin.say(id, "three");
        until("erin's message", [&mut alice, &mut bob, &mut carol, &mut erin], |all| {
            all.iter().all(|p| p.texts(id).len() == 3 && p.is_calm())
        })
        .await;
        assert_alike(id, &[&alice, &bob, &carol, &erin]);
    });
}

// ---- removal, blocks -------------------------------------------------------------------------------------

#[test]
fn whoever_is_removed_reads_nothing_written_after_and_can_not_write() {
    sim(13, |world| async move {
        let cluster = three_regions(&world).await;
        let [mut alice, mut bob, mut carol] = three(&world, &cluster).await;
        let id = group_of_three(&mut alice, &mut bob, &mut carol).await;
        alice.of(id).remove(&[user("carol")]).unwrap();
        until("carol to know", [&mut alice, &mut bob, &mut carol], |[a, b, c]| {
            c.has_left(id) && b.members(id).len() == 2 && a.is_calm()
        })
        .await;
        alice.say(id, "without carol");
        bob.say(id, "indeed");
        until("two messages more", [&mut alice, &mut bob], |all| all.iter().all(|p| p.texts(id).len() == 3)).await;
        sleep(A_HEARTBEAT).await;
        assert_eq!((carol.texts(id), carol.unread(id)), (vec!["hello".to_owned()], Some(1)));
        assert_eq!([alice.unread(id), bob.unread(id)], [Some(1), Some(2)]);
        let refused = carol.of(id).send(Draft::text("and me?"));
        assert!(matches!(refused, Err(SendError::Refused(SendRefused::Left(of))) if of == id), "{refused:?}");
        assert_alike(id, &[&alice, &bob]);
    });
}

#[test]
fn whoever_was_removed_while_away_is_told_that_what_he_wrote_was_refused() {
    sim(14, |world| async move {
        let cluster = three_regions(&world).await;
        let [mut alice, mut bob, mut carol] = three(&world, &cluster).await;
        let id = group_of_three(&mut alice, &mut bob, &mut carol).await;
        for region in REGIONS {
            world.cut("japan", region);
        }
        alice.of(id).remove(&[user("carol")]).unwrap();
        alice.say(id, "without carol");
        until("the removal", [&mut alice, &mut bob], |all| all.iter().all(|p| p.members(id).len() == 2 && p.is_calm()))
            .await;
        let said = carol.say(id, "who is coming?");
        for region in REGIONS {
            world.heal("japan", region);
        }
        let refused = |p: &Phone| p.client.message(said).unwrap().map(|m| m.state);
        until("a refusal", [&mut carol], |[c]| {
            c.has_left(id) && refused(c) == Some(MessageState::Failed(Code::NotMember as u32))
        })
        .await;
        let told =
            |e: &Event| matches!(e, Event::Failed { id, code, .. } if *id == said && *code == Code::NotMember as u32);
        assert_eq!(carol.told.iter().filter(|e| told(e)).count(), 1);
        sleep(A_HEARTBEAT).await;
        assert!(!carol.texts(id).contains(&"without carol".to_owned()));
        assert!([&alice, &bob].iter().all(|p| p.texts(id) == ["hello", "without carol"]));
    });
}

#[test]
fn what_is_written_while_the_removal_is_on_its_way_stays_and_the_writer_reads_nothing_after_it() {
    sim(20, |world| async move {
        let cluster = three_regions(&world).await;
        let [mut alice, mut bob, mut carol] = three(&world, &cluster).await;
        let id = group_of_three(&mut alice, &mut bob, &mut carol).await;
        world.cut("eu", "ap");
        world.cut("eu", "us");
        alice.of(id).remove(&[user("carol")]).unwrap();
        alice.say(id, "without carol");
        let said = carol.say(id, "with me");
        until("bob to have what carol wrote in ap", [&mut alice, &mut bob, &mut carol], |[a, b, c]| {
            b.texts(id).contains(&"with me".to_owned()) && a.client.waiting().0 == 0 && c.client.waiting().0 == 0
        })
        .await;
        world.heal("eu", "ap");
        world.heal("eu", "us");
        until("the same for alice and bob", [&mut alice, &mut bob, &mut carol], |[a, b, c]| {
            let all = [&a, &b].iter().all(|p| p.texts(id).len() == 3 && p.members(id).len() == 2);
            all && c.has_left(id) && a.is_calm() && c.is_calm()
        })
        .await;
        sleep(A_HEARTBEAT).await;
        assert_alike(id, &[&alice, &bob]);
        assert_eq!(carol.texts(id), ["hello", "with me"], "what she wrote stays hers; nothing of alice's after");
        assert_eq!(carol.client.message(said).unwrap().unwrap().state, MessageState::Stable);
        // A new device of hers is given no more.
        let mut tablet = Phone::new(&world, &cluster, "carol-tablet", At::Us, 9);
        until("the tablet to know the group", [&mut tablet], |[t]| t.has_left(id) && t.is_calm()).await;
        sleep(A_HEARTBEAT).await;
        assert_eq!(tablet.texts(id), ["hello"], "all that lies under the cut: see ARCHITECTURE.md, Groups");
    });
}

#[test]
fn what_a_blocked_user_writes_is_not_shown_to_the_blocker_alone() {
    sim(15, |world| async move {
        let cluster = three_regions(&world).await;
        let [mut alice, mut bob, mut carol] = three(&world, &cluster).await;
        let mut tablet = Phone::new(&world, &cluster, "bob-tablet", At::Ap, 2);
        let id = group_of_three(&mut alice, &mut bob, &mut carol).await;
        bob.client.block(&user("carol"), true).unwrap();
        until("the block on both devices", [&mut bob, &mut tablet], |all| {
            all.iter().all(|p| p.client.blocked().unwrap().contains(&user("carol")) && p.is_calm())
        })
        .await;
        carol.say(id, "bob can't see this");
        alice.say(id, "he can't");
        until("both for alice, one for bob", [&mut alice, &mut bob, &mut carol, &mut tablet], |[a, b, c, t]| {
            let mine = |p: &Phone| p.texts(id).contains(&"he can't".to_owned());
            a.texts(id).len() == 3 && c.texts(id).len() == 3 && mine(b) && mine(t)
        })
        .await;
        sleep(A_HEARTBEAT).await;
        for phone in [&bob, &tablet] {
            assert_eq!(phone.texts(id), ["hello", "he can't"]);
            assert_eq!(phone.unread(id), Some(2), "{}: what is not shown is not counted", phone.name);
        }
        bob.client.block(&user("carol"), false).unwrap();
        until("all of it, once the block is lifted", [&mut bob, &mut tablet], |all| {
            all.iter().all(|p| p.client.blocked().unwrap().is_empty() && p.texts(id).len() == 3)
        })
        .await;
    });
}

// ---- marks, devices, erasure -----------------------------------------------------------------------------

#[test]
fn what_is_read_on_one_device_is_read_on_the_other_in_another_region_and_the_sender_knows() {
    sim(16, |world| async move {
        let cluster = three_regions(&world).await;
        let [mut alice, mut bob, mut carol] = three(&world, &cluster).await;
        let mut tablet = Phone::new(&world, &cluster, "bob-tablet", At::Ap, 2);
        let group = group_of_three(&mut alice, &mut bob, &mut carol).await;
        let direct = alice.client.direct(&user("bob")).unwrap();
        let said = ["one", "two", "three"].map(|text| direct.send(Draft::text(text)).unwrap());
        let id = direct.id();
        until("the tablet to be live", [&mut tablet], |[t]| t.is_live_at("ap")).await;
        until("three unread on both devices", [&mut alice, &mut bob, &mut tablet], |[a, b, t]| {
            [b, t].iter().all(|p| p.unread(id) == Some(3) && p.unread(group) == Some(1)) && a.is_calm()
        })
        .await;
        assert!(said.iter().all(|m| !direct.peer_has_read(*m).unwrap()));
        let second = bob.messages(id)[1].id;
        bob.of(id).mark_read_upto(second).unwrap();
        until("one unread", [&mut alice, &mut bob, &mut tablet], |[_, b, t]| {
            [b, t].iter().all(|p| p.unread(id) == Some(1))
        })
        .await;
        until("alice to know", [&mut alice], |_| direct.peer_has_read(said[1]).unwrap()).await;
        assert!(!direct.peer_has_read(said[2]).unwrap(), "the third is not read");
        bob.of(id).mark_read().unwrap();
        bob.of(group).mark_read().unwrap();
        until("none unread", [&mut bob, &mut tablet], |all| {
            all.iter().all(|p| p.unread(id) == Some(0) && p.unread(group) == Some(0))
        })
        .await;
        until("alice to know of all", [&mut alice], |_| said.iter().all(|m| direct.peer_has_read(*m).unwrap())).await;
        assert!(alice.told.iter().any(|e| matches!(e, Event::PeerRead { conversation } if *conversation == id)));
        assert_eq!(carol.unread(group), Some(1), "another's marks are his own");
    });
}

#[test]
fn whoever_types_is_seen_in_every_region_while_he_does_and_offline_typing_is_never_told() {
    sim(22, |world| async move {
        let cluster = three_regions(&world).await;
        let [mut alice, mut bob, mut carol] = three(&world, &cluster).await;
        let id = group_of_three(&mut alice, &mut bob, &mut carol).await;
        let seen = |p: &Phone| p.of(id).who_is_typing().unwrap();
        alice.of(id).typing(true).unwrap();
        until("both to see alice type", [&mut bob, &mut carol], |all| all.iter().all(|p| seen(p) == [user("alice")]))
            .await;
        assert!(seen(&alice).is_empty(), "she herself is not told");
        alice.of(id).typing(false).unwrap();
        until("both to see that she stopped", [&mut bob, &mut carol], |all| all.iter().all(|p| seen(p).is_empty()))
            .await;
        // Whoever goes away in the middle of it stops by himself.
        bob.of(id).typing(true).unwrap();
        until("alice to see bob type", [&mut alice], |[a]| seen(a) == [user("bob")]).await;
        REGIONS.iter().for_each(|region| world.cut("america", region));
        until("alice to see him no more", [&mut alice], |[a]| seen(a).is_empty()).await;
        until("bob to notice", [&mut bob], |[b]| !matches!(b.client.connection(), ConnectionState::Live { .. })).await;
        bob.of(id).typing(true).unwrap();
        assert_eq!(bob.client.waiting(), (0, 0), "nothing waits");
        REGIONS.iter().for_each(|region| world.heal("america", region));
        until("bob to be back", [&mut bob], |[b]| b.is_calm()).await;
        sleep(ms(2_000)).await;
        alice.look();
        assert!(seen(&alice).is_empty(), "what he typed offline is past");
        // A message ends it.
        bob.of(id).typing(true).unwrap();
        until("alice to see bob type again", [&mut alice], |[a]| seen(a) == [user("bob")]).await;
        bob.say(id, "back");
        until("his message", [&mut alice], |[a]| a.texts(id) == ["hello", "back"]).await;
        assert!(seen(&alice).is_empty());
        let told = alice.told.iter().filter_map(|e| match e {
            Event::Typing { user, typing, .. } => Some((user.as_str(), *typing)),
            _ => None,
        });
        let told = told.collect::<Vec<_>>();
        assert_eq!(told, [("bob", true), ("bob", false), ("bob", true), ("bob", false)]);
    });
}

#[test]
fn a_device_that_is_removed_in_another_region_stops_and_stays_out() {
    sim(17, |world| async move {
        let cluster = three_regions(&world).await;
        let mut phone = Phone::new(&world, &cluster, "bob-phone", At::Us, 8);
        let mut tablet = Phone::new(&world, &cluster, "bob-tablet", At::Ap, 2);
        until("both to be live, and known to each other", [&mut phone, &mut tablet], |[p, t]| {
            let known = p.client.known_devices().unwrap().len() == 2 && t.client.known_devices().unwrap().len() == 2;
            known && p.is_live_at("us") && t.is_live_at("ap")
        })
        .await;
        let kicks = |p: &Phone| {
            let kick = |e: &Event| {
                matches!(e, Event::Kicked { code, message }
                    if *code == Code::Kicked as u32 && message.contains("left in a train"))
            };
            p.told.iter().filter(|e| kick(e)).count()
        };
        let asked = world.elapsed();
        phone.client.kick(&tablet.client.install(), "left in a train").unwrap();
        until("the tablet to be told why", [&mut phone, &mut tablet], |[_, t]| {
            kicks(t) == 1 && t.client.connection() == ConnectionState::Offline
        })
        .await;
        let took = world.elapsed().saturating_sub(asked);
        assert!(took < Duration::from_secs(5), "in force in the other region after {took:?}");
        sleep(A_HEARTBEAT).await;
        tablet.look();
        assert_eq!((kicks(&tablet), tablet.client.connection()), (1, ConnectionState::Offline), "it tries no more");
        // Nor does it get in again, in any region.
        for away in ["ap", "us"] {
            tablet.client.reconnect().unwrap();
            let before = kicks(&tablet);
            until("the tablet to be refused", [&mut tablet], |[t]| kicks(t) > before).await;
            world.cut("bob-tablet", away);
        }
        assert!(phone.is_live_at("us"), "the phone goes on");
    });
}

#[test]
fn what_is_erased_is_gone_on_every_device_and_on_those_that_were_away() {
    sim(18, |world| async move {
        let cluster = three_regions(&world).await;
        let [mut alice, mut bob, mut carol] = three(&world, &cluster).await;
        let mut tablet = Phone::new(&world, &cluster, "alice-tablet", At::Us, 9);
        let id = group_of_three(&mut alice, &mut bob, &mut carol).await;
        let said = alice.say(id, "a secret");
        bob.say(id, "noted");
        until("three messages", [&mut alice, &mut bob, &mut carol, &mut tablet], |all| {
            all.iter().all(|p| p.texts(id).len() == 3 && p.is_calm())
        })
        .await;
        for region in REGIONS {
            world.cut("japan", region);
        }
        assert!(matches!(alice.of(id).erase(said), Ok(Erased::Asked(_))));
        let of_bob = alice.messages(id).into_iter().find(|m| m.by.user == user("bob")).unwrap().id;
        let secrets = |p: &Phone| p.messages(id).iter().filter(|m| m.kind == 0 && !m.erased).count();
        until("the secret gone", [&mut alice, &mut bob, &mut tablet], |all| all.iter().all(|p| secrets(p) == 2)).await;
        assert!(bob.of(id).erase(bob.messages(id)[1].id).is_err(), "a plain member erases his own only");
        assert!(matches!(alice.of(id).erase(of_bob), Ok(Erased::Asked(_))), "an admin erases any");
        for region in REGIONS {
            world.heal("japan", region);
        }
        until("both gone", [&mut alice, &mut bob, &mut carol, &mut tablet], |all| {
            all.iter().all(|p| secrets(p) == 1 && p.texts(id) == ["hello", "", ""] && p.is_calm())
        })
        .await;
        assert_alike(id, &[&alice, &bob, &carol, &tablet]);
        // Whoever comes later never gets them.
        let mut late = Phone::new(&world, &cluster, "bob-laptop", At::Ap, 7);
        until("a new device", [&mut late], |[l]| l.texts(id).len() == 3 && l.is_calm()).await;
        assert_eq!(late.texts(id), ["hello", "", ""]);
    });
}

// ---- a region never visited ------------------------------------------------------------------------------

#[test]
fn a_device_that_goes_to_a_region_it_never_visited_is_sent_what_it_lacks_alone() {
    const GROUPS: usize = 120;
    sim(19, |world| async move {
        let cluster = three_regions(&world).await;
        let [mut alice, mut bob, _carol] = three(&world, &cluster).await;
        let mut all = Vec::new();
        for i in 0..GROUPS {
            let made = alice.client.create_group(&format!("group {i}"), &[user("bob")], GroupOptions::default());
            let id = made.unwrap().id();
            alice.say(id, &format!("hello {i}"));
            all.push(id);
        }
        until("all groups", [&mut alice, &mut bob], |[a, b]| {
            a.is_calm() && b.is_calm() && all.iter().all(|id| b.texts(*id).len() == 1)
        })
        .await;
        sleep(A_HEARTBEAT).await;
        let down = |world: &World, phone: &Phone, since: Duration| -> u64 {
            let since = u64::try_from(since.as_nanos()).unwrap();
            let packets = world.packets();
            let mine = packets.iter().filter(|p| p.to.ip() == phone.host.ip() && p.at_ns >= since && !p.lost);
            mine.map(|p| p.bytes as u64).sum()
        };
        // Us is out of reach; while bob is nowhere, two groups change.
        for region in REGIONS {
            world.cut("bob-phone", region);
        }
        alice.say(all[3], "new in 3");
        alice.say(all[77], "new in 77");
        until("what is new to be sent", [&mut alice], |[a]| a.is_calm()).await;
        let moved_at = world.elapsed();
        world.heal("bob-phone", "ap");
        until("what is new", [&mut bob], |[b]| {
            b.is_live_at("ap") && b.texts(all[3]).len() == 2 && b.texts(all[77]).len() == 2
        })
        .await;
        let moved = down(&world, &bob, moved_at);
        let fresh_at = world.elapsed();
        let mut fresh = Phone::new(&world, &cluster, "bob-tablet", At::Ap, 2);
        until("all of it on a new device", [&mut fresh], |[f]| {
            f.is_calm() && all.iter().all(|id| !f.texts(*id).is_empty())
        })
        .await;
        let fresh = down(&world, &fresh, fresh_at);
        println!("{GROUPS} groups, 2 changed: {moved} bytes to the moved device, {fresh} to a new one");
        assert!(moved * 3 < fresh, "{moved} bytes to the moved device, {fresh} to a new one");
        assert!(all.iter().enumerate().all(|(i, id)| bob.texts(*id)[0] == format!("hello {i}")));
    });
}
