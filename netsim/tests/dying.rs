//! A client's process that dies at any point: after each await of its tasks, and before and after each transaction of its
//! store.
//!
//! One history is played over and over, each time by two new users: the first of them opens the app, sends (also before it
//! is connected), receives, marks what it has read, and sends again, until all of it is stable. In the n-th round its
//! process dies at the n-th point of its life; what its store held is opened again, and the history goes on. So the rounds
//! end with the first one that comes to its end before its point.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, missing_docs)]

#[path = "support/devices.rs"]
#[allow(dead_code, reason = "the regions are all that is needed of it")]
mod devices;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use devices::{ms, three_regions};
use tern_client::store::memory::MemoryStore;
use tern_client::store::{LocalStore, StoreError};
use tern_client::{Client, ConnectionState, Conversation, Draft, Event, Events, InstallId, MessageId, Placed, UserId};
use tern_core::client::{Book, Change, Image, Message, Op};
use tern_core::ids::{ConvId, Heads, Origin, Place, Seq};
use tern_core::store::Store;
use tern_netsim::cluster::Cluster;
use tern_netsim::node::{HostState, SimNode};
use tern_netsim::run::run;
use tern_netsim::world::World;

/// Of the order in which things happen within a moment.
const SEEDS: u64 = 3;
/// Virtual time after which a round will not come to its end.
const PATIENCE: Duration = Duration::from_secs(120);
/// After a death the app is opened again this much later.
const REOPENED_AFTER: Duration = Duration::from_millis(300);

/// Counts the points of a life, and ends it at one of them.
#[derive(Debug)]
struct Fuse {
    left: AtomicI64,
    host: SimNode,
}

impl Fuse {
    /// A point of its life is reached.
    fn burn(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.host.strike_down(HostState::Killed);
        }
    }

    fn is_burnt(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }
}

/// A store whose transactions are points: a process that dies before one has not stored anything of it, one that dies
/// after it has stored all.
#[derive(Debug)]
struct Doomed {
    store: MemoryStore,
    fuse: Option<Arc<Fuse>>,
}

impl Doomed {
    fn burn(&self) {
        if let Some(fuse) = &self.fuse {
            fuse.burn();
        }
    }
}

impl LocalStore for Doomed {
    fn load(&mut self) -> Result<Image, StoreError> {
        self.store.load()
    }

    fn apply(&mut self, ops: &[Op]) -> Result<Vec<Change>, StoreError> {
        self.burn();
        if self.fuse.as_ref().is_some_and(|fuse| fuse.is_burnt()) {
            return Err(StoreError::Failed("the process is dead".into()));
        }
        let changes = self.store.apply(ops)?;
        self.burn();
        Ok(changes)
    }

    fn timeline(&self, conversation: ConvId, horizon: u64, limit: usize) -> Result<Vec<Message>, StoreError> {
        self.store.timeline(conversation, horizon, limit)
    }

    fn message(&self, id: MessageId) -> Result<Option<Message>, StoreError> {
        self.store.message(id)
    }

    fn copies(&self, id: MessageId) -> Result<Vec<(Origin, Seq)>, StoreError> {
        self.store.copies(id)
    }

    fn upto(&self, conversation: ConvId, key: Place) -> Result<Heads, StoreError> {
        self.store.upto(conversation, key)
    }

    fn unread(&self, conversation: ConvId) -> Result<u64, StoreError> {
        self.store.unread(conversation)
    }
}

/// An app and its user.
struct App {
    user: UserId,
    peer: UserId,
    host: SimNode,
    store: MemoryStore,
    client: Option<(Client, Events)>,
    /// Texts for which `send` returned, and those of which the process died meanwhile.
    sent: Vec<String>,
    unsure: Vec<String>,
    /// How often each message was put into the timeline.
    shown: BTreeMap<MessageId, u32>,
    stable: usize,
    read: bool,
    bad: Vec<Event>,
}

impl App {
    fn new(world: &World, (user, peer): (&str, &str), ip: Ipv4Addr) -> Self {
        let host = world.add_host(&format!("{user}-phone"), "germany", ip).unwrap();
        let store = MemoryStore::new(UserId::new(user).unwrap(), InstallId::new(&format!("{user}-i")).unwrap());
        Self {
            user: UserId::new(user).unwrap(),
            peer: UserId::new(peer).unwrap(),
            host,
            store,
            client: None,
            sent: Vec::new(),
            unsure: Vec::new(),
            shown: BTreeMap::new(),
            stable: 0,
            read: false,
            bad: Vec::new(),
        }
    }

    /// Opens the app; it may die before it is open.
    fn open(&mut self, cluster: &Cluster, fuse: Option<Arc<Fuse>>) {
        let env = self.host.env();
        if let Some(fuse) = &fuse {
            let fuse = Arc::clone(fuse);
            self.host.after_each_poll(move || fuse.burn());
        }
        let doomed = fuse.is_some();
        let tokens = cluster.tokens(&self.user, Arc::clone(&env.clock));
        let built = Client::builder(cluster.client_config(&self.user, "eu"))
            .local_store(Box::new(Doomed { store: self.store.clone(), fuse }))
            .token_provider(tokens)
            .env(env)
            .build();
        self.client = match built {
            Ok(client) => {
                let events = client.events();
                Some((client, events))
            }
            Err(error) => {
                assert!(doomed && self.is_dead(), "{error}");
                None
            }
        };
    }

    fn is_dead(&self) -> bool {
        self.host.state() != HostState::Up
    }

    fn conversation(&self) -> Option<Conversation> {
        self.client.as_ref()?.0.direct(&self.peer).ok()
    }

    fn is_live(&self) -> bool {
        self.client.as_ref().is_some_and(|(c, _)| matches!(c.connection(), ConnectionState::Live { .. }))
    }

    fn send(&mut self, text: &str) {
        let sent = self.conversation().is_some_and(|with| with.send(Draft::text(text)).is_ok());
        if sent && !self.is_dead() {
            self.sent.push(text.to_owned());
        } else {
            assert!(self.is_dead(), "{} can't send", self.user);
            self.unsure.push(text.to_owned());
        }
    }

    fn mark_read(&mut self) {
        let marked = self.conversation().is_some_and(|with| with.mark_read().is_ok());
        self.read = marked && !self.is_dead();
    }

    /// What the user sees happen; of a dead process nothing.
    fn look(&mut self) {
        if self.is_dead() {
            return;
        }
        let Some((_, events)) = &mut self.client else { return };
        while let Some(event) = events.try_next() {
            match event {
                Event::Message(change) if !matches!(change.what, Placed::Moved { .. } | Placed::Erased) => {
                    *self.shown.entry(change.id).or_default() += 1;
                }
                Event::Stable { .. } => self.stable += 1,
                Event::Failed { .. }
                | Event::Unknown { .. }
                | Event::AtRisk { .. }
                | Event::Gap { .. }
                | Event::StoreFailed { .. } => self.bad.push(event),
                _ => {}
            }
        }
    }

    /// All texts, in order; own ones that are not acked at the end.
    fn texts(&self, of: &UserId) -> Vec<String> {
        let book = self.store.book();
        let (user, peer) = (self.user.as_str().min(self.peer.as_str()), self.user.as_str().max(self.peer.as_str()));
        let all = self.conversation_in(&book).map(|id| book.timeline(id, 0, usize::MAX)).unwrap_or_default();
        assert!(all.iter().all(|m| [user, peer].contains(&m.by.user.as_str())));
        let texts = all.iter().filter(|m| m.by.user == *of && m.kind == 0);
        texts.map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect()
    }

    fn conversation_in(&self, book: &Book) -> Option<ConvId> {
        let conversations = book.image().conversations;
        let of = conversations.into_iter().find(|(_, c)| c.record.peer.as_ref() == Some(&self.peer));
        of.map(|(id, _)| id)
    }

    fn has_all_of(&self, other: &App) -> bool {
        let texts = self.texts(&other.user);
        other.sent.iter().all(|text| texts.contains(text))
    }
}

/// Where a cursor of the store says that all is known, it is.
async fn cursors_are_true(cluster: &Cluster, app: &App, what: &str) {
    let image = app.store.book().image();
    for (name, region) in [("eu", 1), ("us", 2), ("ap", 3)] {
        let Some(cursor) = image.cursors.get(&region) else { continue };
        let rows = cluster.store(name).unwrap().rows(app.user.clone()).await.unwrap();
        for (id, row) in rows.iter().filter(|(_, row)| row.rev <= cursor.rev) {
            for (origin, head) in &row.heads {
                let known = image.conversations.get(id).and_then(|c| c.origins.get(origin)).map_or(0, |o| o.head);
                assert!(known >= *head, "{what}: the cursor of {name} is ahead: {head} of {origin}, {known} known");
            }
        }
    }
}

/// The history, with a death at the n-th point. False: it came to its end before.
async fn round(world: &World, cluster: &Cluster, number: u64) -> bool {
    let what = format!("point {number}");
    let (a, b) = (format!("a{number}"), format!("b{number}"));
    let ip = |part: u8| Ipv4Addr::new(91, part, (number >> 8) as u8, number as u8);
    let mut alice = App::new(world, (&a, &b), ip(1));
    let mut bob = App::new(world, (&b, &a), ip(2));
    bob.open(cluster, None);
    let fuse = Arc::new(Fuse { left: AtomicI64::new(i64::try_from(number).unwrap()), host: alice.host.clone() });
    alice.open(cluster, Some(Arc::clone(&fuse)));
    let (mut stage, mut died) = (0, false);
    let begun = world.elapsed();
    loop {
        if alice.is_dead() {
            assert!(!std::mem::replace(&mut died, true), "{what}: it died twice");
            alice.host.kill().await;
            alice.client = None;
            alice.host.restart();
            cursors_are_true(cluster, &alice, &what).await;
            tokio::time::sleep(REOPENED_AFTER).await;
            alice.open(cluster, None);
        }
        let next = match stage {
            // Before there is a connection.
            0 => Some(&["a1"][..]),
            1 => (alice.is_live() && bob.is_live()).then_some(&["a2", "a3"][..]),
            2 if bob.has_all_of(&alice) => {
                ["b1", "b2"].iter().for_each(|text| bob.send(text));
                Some(&[][..])
            }
            3 if alice.has_all_of(&bob) => {
                alice.mark_read();
                Some(&["a4"][..])
            }
            4 if bob.has_all_of(&alice) => {
                bob.send("b3");
                Some(&[][..])
            }
            5 if alice.has_all_of(&bob) => Some(&["a5"][..]),
            6 => {
                let waits = |app: &App| app.client.as_ref().is_none_or(|(c, _)| c.waiting() != (0, 0));
                (!waits(&alice) && !waits(&bob) && alice.is_live() && bob.has_all_of(&alice)).then_some(&[][..])
            }
            _ => None,
        };
        if let Some(texts) = next {
            stage += 1;
            for text in texts {
                if !alice.is_dead() {
                    alice.send(text);
                }
            }
        }
        alice.look();
        bob.look();
        if stage == 7 && !alice.is_dead() {
            break;
        }
        let left =
            || format!("{what}: stage {stage}, alice {:?}, bob {:?}", alice.texts(&bob.user), bob.texts(&alice.user));
        assert!(world.elapsed() < begun + PATIENCE, "{}", left());
        tokio::time::sleep(ms(20)).await;
    }
    // Whatever comes a second time comes soon.
    tokio::time::sleep(ms(500)).await;
    alice.look();
    bob.look();
    check(&alice, &bob, died, &what);
    cursors_are_true(cluster, &alice, &what).await;
    for app in [&alice, &bob] {
        app.host.kill().await;
    }
    died
}

fn check(alice: &App, bob: &App, died: bool, what: &str) {
    for (app, of) in [(alice, alice), (alice, bob), (bob, alice), (bob, bob)] {
        let texts = app.texts(&of.user);
        let mut wanted: Vec<&String> = of.sent.iter().chain(of.unsure.iter().filter(|t| texts.contains(t))).collect();
        // They were sent in the order of their numbers.
        wanted.sort();
        let texts: Vec<&String> = texts.iter().collect();
        assert_eq!(texts, wanted, "{what}: what {} shows of {}", app.user, of.user);
    }
    for app in [alice, bob] {
        let twice: Vec<_> = app.shown.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{what}: shown to {} more than once: {twice:?}", app.user);
        assert!(app.bad.is_empty(), "{what}: {}: {:?}", app.user, app.bad);
    }
    assert!(died || alice.unsure.is_empty(), "{what}");
    assert_eq!(bob.stable, bob.sent.len(), "{what}: bob's process did not die, and each of his is stable once");
    let unread = alice.store.book().unread(alice.conversation_in(&alice.store.book()).unwrap());
    if alice.read {
        assert_eq!(unread, 1, "{what}: b1 and b2 were marked as read");
    }
}

#[test]
fn nothing_is_lost_or_doubled_when_the_process_dies_at_any_point() {
    for seed in 0..SEEDS {
        let points = run(seed, |world| async move {
            let cluster = three_regions(&world).await;
            let mut number = 0;
            while round(&world, &cluster, number).await {
                number += 1;
            }
            number
        });
        let points = points.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(points > 100, "seed {seed}: a life has few points: {points}");
    }
}
