//! Histories of the writer: tables that are away, lost or full, and two core nodes with clocks that differ.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tern_core::clock::Clock;
use tern_core::node::{ConnKey, DeviceMoved};
use tern_net::env::Env;
use tern_net::system::system_env;
use tokio::time::{Instant, sleep, timeout};

use super::limits::{CHANGES_WAITING, GENERATION_TTL, PAGE_USERS, REFRESH_EVERY};
use super::writer::*;
use super::*;

/// Nothing takes so long unless it hangs; by the paused clock.
const LONG: Duration = Duration::from_secs(60);

/// Tokio's time, and a wall clock that may be off.
#[derive(Debug)]
struct Clocks(Instant, u64);

impl Clock for Clocks {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        1_700_000_000_000 + self.1 + u64::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

fn user(n: u64) -> UserId {
    UserId::new(&format!("user-{n:06}")).unwrap()
}

fn phone() -> InstallId {
    InstallId::new("phone").unwrap()
}

/// A core node that has some users, each with a phone on a connection of edge 1.
struct Node {
    table: Arc<Table>,
    routes: MemoryRoutes,
    users: Mutex<BTreeMap<UserId, u64>>,
    /// It has no answer.
    is_mute: AtomicBool,
    asked: AtomicU64,
    /// Users that are another's.
    others: Mutex<Vec<UserId>>,
}

impl Node {
    fn start(routes: &MemoryRoutes, name: &str, ahead_ms: u64) -> Arc<Self> {
        let env = Env { clock: Arc::new(Clocks(Instant::now(), ahead_ms)), ..system_env().unwrap() };
        let routes = routes.of_another_node();
        let table = Table::new(Arc::new(routes.clone()), name, env.clock.clone());
        table.edge_up(1, "eu-e1");
        let node = Arc::new(Self {
            table: table.clone(),
            routes,
            users: Mutex::default(),
            is_mute: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            others: Mutex::default(),
        });
        env.tasks.spawn(run(table, node.clone()));
        node
    }

    fn says(&self, n: u64, connection: u64, is_here: bool) {
        let mut users = self.users.lock().unwrap();
        if is_here {
            users.insert(user(n), connection);
        } else {
            users.remove(&user(n));
        }
        let key = ConnKey { edge: 1, conn: connection };
        self.table.moved(vec![DeviceMoved { user: user(n), install: phone(), key, is_here }]);
    }

    fn told(&self, users: impl Iterator<Item = (UserId, u64)>) -> Told {
        let device = |(user, conn)| (user, vec![(phone(), ConnKey { edge: 1, conn })]);
        Told { stamp: self.table.stamp(), users: users.map(device).collect() }
    }

    /// Where a user is, by the table.
    async fn route(&self, n: u64) -> Option<(String, u64)> {
        let listed = self.routes.look_up(user(n)).await.unwrap();
        let route = listed.into_iter().find(|listed| listed.is_live)?.route;
        Some((route.link.node.clone(), route.connection))
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let so = async {
            while !is_so().await {
                sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(LONG, so).await.is_err() {
            panic!("{what}: {:?}", self.table.standing());
        }
    }

    async fn complete(&self, what: &str) {
        let is_so = async || {
            let (standing, counts) = (self.table.standing(), self.routes.count().await);
            let all = self.users.lock().unwrap().len() as u64;
            standing.is_complete && counts.is_ok_and(|counts| counts.routes == all)
        };
        self.until(what, is_so).await;
    }
}

impl Core for Node {
    fn after(&self, after: Option<UserId>) -> BoxFut<'_, Option<(Told, Option<UserId>)>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let users = self.users.lock().unwrap();
        let mut rest = users.range((after.map_or(Unbounded, Excluded), Unbounded));
        let page: Vec<(UserId, u64)> =
            rest.by_ref().take(PAGE_USERS).map(|(user, conn)| (user.clone(), *conn)).collect();
        let next = page.last().map(|(user, _)| user.clone()).filter(|_| rest.next().is_some());
        let told = self.told(page.into_iter());
        let is_mute = self.is_mute.load(Ordering::Relaxed);
        Box::pin(async move { (!is_mute).then_some((told, next)) })
    }

    fn of(&self, users: Vec<UserId>) -> BoxFut<'_, Option<Told>> {
        let (known, others) = (self.users.lock().unwrap().clone(), self.others.lock().unwrap().clone());
        let own = users.into_iter().filter(|user| !others.contains(user));
        let devices = |user: &UserId| known.get(user).map(|conn| (phone(), ConnKey { edge: 1, conn: *conn }));
        let users = own.map(|user| (user.clone(), devices(&user).into_iter().collect())).collect();
        let told = Told { stamp: self.table.stamp(), users };
        let is_mute = self.is_mute.load(Ordering::Relaxed);
        Box::pin(async move { (!is_mute).then_some(told) })
    }
}

fn table() -> MemoryRoutes {
    MemoryRoutes::new(Arc::new(Clocks(Instant::now(), 0)))
}

fn away() -> Option<RoutesError> {
    Some(RoutesError::Unreachable("it is away".to_owned()))
}

#[tokio::test(start_paused = true)]
async fn what_devices_do_is_in_the_table_and_stays_there() {
    let node = Node::start(&table(), "eu-n1", 0);
    (0..5).for_each(|n| node.says(n, 10 + n, true));
    node.complete("all are there").await;
    assert_eq!(node.route(3).await, Some(("eu-n1".to_owned(), 13)));
    node.says(3, 20, true);
    node.says(3, 13, false);
    node.users.lock().unwrap().insert(user(3), 20);
    node.says(4, 14, false);
    node.complete("one has moved, one has gone").await;
    assert_eq!(node.route(3).await, Some(("eu-n1".to_owned(), 20)), "the end of the old connection is none of the new");
    assert_eq!(node.route(4).await, None);
    sleep(GENERATION_TTL * 4).await;
    assert_eq!(node.route(3).await, Some(("eu-n1".to_owned(), 20)), "its generation is renewed");
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_away_costs_bounded_memory_and_has_everything_afterwards() {
    let node = Node::start(&table(), "eu-n1", 0);
    (0..10).for_each(|n| node.says(n, n, true));
    node.complete("a few are there").await;
    node.routes.fail(away());
    node.until("it is noticed", async || node.table.standing().problem.is_some()).await;
    let all = CHANGES_WAITING as u64 + 100;
    (10..all).for_each(|n| node.says(n, n, true));
    (0..5).for_each(|n| node.says(n, n, false));
    let standing = node.table.standing();
    assert!(
        standing.waiting == CHANGES_WAITING as u64 && standing.dropped > 0 && !standing.is_complete,
        "{standing:?}"
    );
    node.routes.fail(None);
    node.complete("all are there").await;
    assert_eq!((node.route(2).await, node.table.standing().rebuilds), (None, 2), "what was dropped was written anew");
}

#[tokio::test(start_paused = true)]
async fn a_lost_table_is_written_anew_and_what_is_left_in_it_does_not_count() {
    let node = Node::start(&table(), "eu-n1", 0);
    let all = 3 * PAGE_USERS as u64 + 7;
    (0..all).for_each(|n| node.says(n, n, true));
    node.complete("all are there").await;
    let left = node.routes.look_up(user(1)).await.unwrap().remove(0);
    node.routes.lose();
    // A server that comes back with an old copy brings back who has gone meanwhile.
    node.says(1, 1, false);
    let old = Change::Put { user: user(1), stamp: left.stamp, install: phone(), route: left.route };
    node.routes.write(vec![old]).await;
    node.complete("all but one are there again").await;
    assert_eq!(node.route(1).await, None);
    let standing = node.table.standing();
    assert!(standing.rebuilds == 2 && standing.rebuild_took < Duration::from_secs(5), "{standing:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_dead_leaves_no_routes_after_a_while_and_one_that_stops_leaves_none_at_once() {
    let shared = table();
    let dead = Node::start(&shared, "eu-n1", 0);
    let stopped = Node::start(&shared, "eu-n2", 0);
    dead.says(1, 1, true);
    stopped.says(2, 2, true);
    dead.until("both are there", async || dead.route(1).await.is_some() && dead.route(2).await.is_some()).await;
    stopped.table.stop().await;
    assert_eq!(dead.route(2).await, None);
    // Its task ends, and nothing is said.
    dead.table.die();
    sleep(GENERATION_TTL / 2).await;
    assert!(dead.route(1).await.is_some(), "it may be slow");
    sleep(GENERATION_TTL).await;
    assert_eq!(dead.route(1).await, None);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_link_ends_its_routes_at_once() {
    let node = Node::start(&table(), "eu-n1", 0);
    node.says(1, 1, true);
    node.complete("he is there").await;
    node.table.edge_down(1);
    node.users.lock().unwrap().clear();
    node.until("he is not", async || node.route(1).await.is_none()).await;
    node.says(1, 1, false);
    node.complete("of a link that has ended nothing waits").await;
}

#[tokio::test(start_paused = true)]
async fn a_user_who_goes_to_a_node_whose_clock_is_behind_is_where_that_node_says() {
    let shared = table();
    let (fast, slow) = (Node::start(&shared, "fast", 10_000), Node::start(&shared, "slow", 0));
    fast.says(1, 1, true);
    fast.until("he is with the first", async || fast.route(1).await.is_some()).await;
    // The slot goes: the one forgets him, and the other resumes his connection.
    fast.others.lock().unwrap().push(user(1));
    slow.says(1, 7, true);
    slow.until("he is with the second", async || slow.route(1).await == Some(("slow".to_owned(), 7))).await;
    // What the first one says last is of its own route only.
    fast.says(1, 1, false);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(slow.route(1).await, Some(("slow".to_owned(), 7)));
    assert!(slow.table.standing().refused >= 1);
    let stamp = slow.table.stamp();
    slow.says(1, 7, false);
    slow.until("he has gone", async || slow.route(1).await.is_none()).await;
    assert!(slow.table.stamp() > stamp);
}

#[tokio::test(start_paused = true)]
async fn everything_is_announced_again_before_it_runs_out() {
    let node = Node::start(&table(), "eu-n1", 0);
    (0..3).for_each(|n| node.says(n, n, true));
    node.complete("all are there").await;
    let (asked, written) = (node.asked.load(Ordering::Relaxed), node.table.standing().written);
    sleep(REFRESH_EVERY * 2 + Duration::from_secs(60)).await;
    assert_eq!(node.asked.load(Ordering::Relaxed) - asked, 2);
    assert_eq!((node.table.standing().written - written, node.table.standing().rebuilds), (6, 1));
}

#[tokio::test(start_paused = true)]
async fn a_core_that_can_not_say_now_is_asked_again() {
    let shared = table();
    let node = Node::start(&shared, "eu-n1", 0);
    node.is_mute.store(true, Ordering::Relaxed);
    (0..3).for_each(|n| node.says(n, n, true));
    sleep(Duration::from_secs(3)).await;
    assert!(!node.table.standing().is_complete, "it has not heard of everything");
    node.is_mute.store(false, Ordering::Relaxed);
    node.complete("all are there").await;
    // Another node's route is in the way, and the core is asked what is so.
    node.is_mute.store(true, Ordering::Relaxed);
    let stamp = node.table.stamp() + (60_000 << 16);
    let link = Arc::new(Link { node: "x".into(), number: 1, edge: "e".into() });
    let route = Route { link, generation: 1, connection: 1 };
    shared.write(vec![Change::Put { user: user(1), stamp, install: phone(), route }]).await;
    node.says(1, 9, true);
    sleep(Duration::from_secs(3)).await;
    assert!(node.table.standing().waiting == 1 && node.route(1).await.is_none());
    node.is_mute.store(false, Ordering::Relaxed);
    node.until("he is here", async || node.route(1).await == Some(("eu-n1".to_owned(), 9))).await;
}
