//! Servers that die, are emptied, stand still, come back with something else, or can't hold a table: on real ones.
//!
//! These tests strike servers that others use, so `check` runs them one after the other.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "tasks that end with their test")]

mod place;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use place::{Place, cli, servers};
use tern_core::ids::{InstallId, UserId};
use tern_core::node::{ConnKey, DeviceMoved};
use tern_core::store::BoxFut;
use tern_net::system::system_env;
use tern_redis::{Options, RedisRoutes};
use tern_replication::routes::limits::PAGE_USERS;
use tern_replication::routes::writer::{self, Core, Table, Told};
use tern_replication::routes::{Change, Counts, Link, Outcome, Route, Routes, RoutesError};

/// Nothing takes so long unless it hangs.
const LONG: Duration = Duration::from_secs(30);
const USERS: u64 = 5_000;

fn user(n: u64) -> UserId {
    UserId::new(&format!("user-{n:05}")).unwrap()
}

fn phone() -> InstallId {
    InstallId::new("phone").unwrap()
}

/// A core node whose users are those whose numbers are here, each with one device on edge 1.
struct Crowd {
    table: Arc<Table>,
    users: Mutex<Vec<u64>>,
}

impl Crowd {
    /// Users 0.. are connected, and a writer keeps the table.
    async fn start(place: &Place, count: u64) -> Arc<Self> {
        let env = system_env().unwrap();
        let routes = Arc::new(place.routes("eu-n1"));
        let table = Table::new(routes, "eu-n1", env.clock.clone());
        table.edge_up(1, "eu-e1");
        let crowd = Arc::new(Self { table: table.clone(), users: Mutex::new((0..count).collect()) });
        env.tasks.spawn(writer::run(table, crowd.clone()));
        crowd
    }

    fn moves(&self, n: u64, is_here: bool) {
        let mut users = self.users.lock().unwrap();
        users.retain(|known| *known != n);
        if is_here {
            users.push(n);
            users.sort_unstable();
        }
        let key = ConnKey { edge: 1, conn: n };
        self.table.moved(vec![DeviceMoved { user: user(n), install: phone(), key, is_here }]);
    }

    fn told(&self, users: impl Iterator<Item = u64>) -> Told {
        let users = users.map(|n| (user(n), vec![(phone(), ConnKey { edge: 1, conn: n })])).collect();
        Told { stamp: self.table.stamp(), users }
    }

    async fn count(&self) -> Counts {
        self.table.routes().count().await.unwrap_or_default()
    }

    /// Waits until all who are connected are in the table, and nobody else counts.
    async fn complete(&self, rebuilds: u64) {
        let complete = async {
            loop {
                let (standing, expected) = (self.table.standing(), self.users.lock().unwrap().len() as u64);
                if standing.is_complete && standing.rebuilds >= rebuilds && self.count().await.routes == expected {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(LONG, complete).await.is_err() {
            panic!("not complete: {:?}, {:?}", self.table.standing(), self.count().await);
        }
    }

    async fn waits_for(&self, what: &str, is_so: impl Fn(&writer::Standing) -> bool) {
        let so = async {
            while !is_so(&self.table.standing()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(LONG, so).await.is_err() {
            panic!("{what}: {:?}", self.table.standing());
        }
    }

    async fn stop(&self) {
        self.table.stop().await;
    }
}

impl Core for Crowd {
    fn after(&self, after: Option<UserId>) -> BoxFut<'_, Option<(Told, Option<UserId>)>> {
        let users = self.users.lock().unwrap().clone();
        let mut rest = users.into_iter().filter(|n| after.as_ref().is_none_or(|after| user(*n) > *after));
        let page: Vec<u64> = rest.by_ref().take(PAGE_USERS).collect();
        let next = page.last().map(|n| user(*n)).filter(|_| rest.next().is_some());
        let told = self.told(page.into_iter());
        Box::pin(async move { Some((told, next)) })
    }

    fn of(&self, users: Vec<UserId>) -> BoxFut<'_, Option<Told>> {
        let known = self.users.lock().unwrap().clone();
        let mut told = self.told(known.into_iter().filter(|n| users.contains(&user(*n))));
        let gone = users.into_iter().filter(|user| told.users.iter().all(|(known, _)| known != user));
        let gone: Vec<_> = gone.map(|user| (user, Vec::new())).collect();
        told.users.extend(gone);
        Box::pin(async move { Some(told) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_emptied_is_complete_again() {
    let Some(place) = Place::new() else { return };
    let crowd = Crowd::start(&place, USERS).await;
    crowd.complete(1).await;
    for server in place.numbers() {
        cli(server, &["FLUSHALL"]);
    }
    crowd.moves(USERS + 1, true);
    crowd.moves(3, false);
    crowd.complete(2).await;
    assert!(crowd.table.standing().rebuild_took < Duration::from_secs(5), "{:?}", crowd.table.standing());
    crowd.stop().await;
    assert_eq!(crowd.count().await.routes, 0, "a node that stops leaves no routes");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_emptied_server_of_several_is_noticed() {
    let Some(place) = Place::new() else { return };
    let crowd = Crowd::start(&place, 300).await;
    crowd.complete(1).await;
    for (rebuilds, server) in place.numbers().enumerate() {
        cli(server, &["FLUSHALL"]);
        crowd.complete(2 + rebuilds as u64).await;
    }
    crowd.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_comes_back_empty_gets_its_routes_again() {
    let Some(place) = Place::new() else { return };
    let crowd = Crowd::start(&place, USERS).await;
    crowd.complete(1).await;
    servers(&["kill", "1"]);
    crowd.waits_for("it is noticed", |standing| standing.problem.is_some()).await;
    // What changes meanwhile costs bounded memory, and is there in the end.
    for n in 0..100 {
        crowd.moves(n, false);
        crowd.moves(USERS + n, true);
    }
    assert!(!crowd.table.standing().is_complete && crowd.table.standing().waiting <= 400);
    servers(&["start", "1"]);
    crowd.complete(2).await;
    assert_eq!(crowd.table.standing().problem, None);
    crowd.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_with_an_old_copy_does_not_bring_back_who_has_gone() {
    let Some(place) = Place::new() else { return };
    let crowd = Crowd::start(&place, 500).await;
    crowd.complete(1).await;
    for server in place.numbers() {
        cli(server, &["SAVE"]);
    }
    for n in 0..100 {
        crowd.moves(n, false);
    }
    crowd.complete(1).await;
    servers(&["kill", "1"]);
    servers(&["start", "1"]);
    crowd.complete(2).await;
    let listed = crowd.table.routes().look_up(user(5)).await.unwrap();
    assert!(listed.iter().all(|l| !l.is_live), "{listed:?}");
    crowd.stop().await;
    for server in place.numbers() {
        cli(server, &["FLUSHALL"]);
        cli(server, &["SAVE"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_is_waited_for_and_nothing_is_lost() {
    let Some(place) = Place::new() else { return };
    let crowd = Crowd::start(&place, 500).await;
    crowd.complete(1).await;
    servers(&["pause", "1"]);
    for n in 0..50 {
        crowd.moves(n, false);
        crowd.moves(1_000 + n, true);
    }
    crowd.waits_for("it is noticed", |standing| standing.problem.is_some()).await;
    servers(&["cont", "1"]);
    crowd.waits_for("it goes on", |standing| standing.problem.is_none() && standing.is_complete).await;
    crowd.complete(1).await;
    crowd.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_that_an_operator_has_removed_are_loaded_again_and_others_stay() {
    let Some(place) = Place::new() else { return };
    let other = "#!lua name=tern_routes_0\nredis.register_function('tern_routes_0_put', function() return 'older' end)";
    let holders: Vec<usize> = place.numbers().collect();
    for server in &holders {
        cli(*server, &["FUNCTION", "LOAD", "REPLACE", other]);
    }
    let crowd = Crowd::start(&place, 50).await;
    crowd.complete(1).await;
    for server in &holders {
        assert!(cli(*server, &["FUNCTION", "LIST"]).contains("tern_routes_0_put"), "another version's stay");
        cli(*server, &["FUNCTION", "FLUSH"]);
    }
    for n in 100..120 {
        crowd.moves(n, true);
    }
    crowd.complete(1).await;
    crowd.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_between_servers_take_their_routes_along() {
    let Some(place) = Place::new().filter(Place::is_cluster) else { return };
    let crowd = Crowd::start(&place, 1_000).await;
    crowd.complete(1).await;
    let (from, to) = (cli(1, &["CLUSTER", "MYID"]), cli(2, &["CLUSTER", "MYID"]));
    let at = format!("{}:{}", place.nodes[0].0, place.nodes[0].1);
    tokio::task::block_in_place(|| {
        let arguments = ["cli", "1", "--cluster", "reshard", &at, "--cluster-from", &from, "--cluster-to", &to];
        let how_many = ["--cluster-slots", "500", "--cluster-yes", "--cluster-pipeline", "10"];
        servers(&[&arguments[..], &how_many].concat())
    });
    for n in 0..200 {
        crowd.moves(n, false);
        crowd.moves(2_000 + n, true);
    }
    crowd.complete(1).await;
    assert_eq!(crowd.table.standing().dropped, 0);
    crowd.stop().await;
}

/// The number of the server that is the replica of another one.
fn replica_of(master: usize) -> usize {
    let id = cli(master, &["CLUSTER", "MYID"]);
    let nodes = cli(master, &["CLUSTER", "NODES"]);
    // ID IP:PORT@BUS FLAGS MASTER ...
    let line = nodes.lines().find(|line| line.split(' ').nth(3) == Some(&id)).unwrap();
    let ip = line.split(' ').nth(1).unwrap().split(':').next().unwrap();
    ip.rsplit('.').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_takes_over_with_an_old_copy_is_made_complete_and_brings_nobody_back() {
    let Some(place) = Place::new().filter(Place::has_replicas) else { return };
    let crowd = Crowd::start(&place, 2_000).await;
    crowd.complete(1).await;
    let replica = replica_of(1);
    // What is written from here on does not reach the replica, so that it takes over with what was true before.
    servers(&["pause", &replica.to_string()]);
    for n in 0..200 {
        crowd.moves(n, false);
        crowd.moves(3_000 + n, true);
    }
    crowd.complete(1).await;
    servers(&["kill", "1"]);
    servers(&["cont", &replica.to_string()]);
    for n in 200..400 {
        crowd.moves(n, false);
        crowd.moves(3_000 + n, true);
    }
    crowd.waits_for("it is noticed", |standing| standing.problem.is_some()).await;
    crowd.complete(2).await;
    assert!(cli(replica, &["ROLE"]).starts_with("master"), "it has taken over");
    let routes = crowd.table.routes();
    let live = async |n: u64| routes.look_up(user(n)).await.unwrap().iter().any(|listed| listed.is_live);
    for n in 0..400 {
        assert!(!live(n).await && live(3_000 + n).await, "user {n} has gone, and user {} is here", 3_000 + n);
    }
    // The former master comes back with nothing, as the replica of its successor, and changes nothing.
    let rebuilds = crowd.table.standing().rebuilds;
    servers(&["start", "1"]);
    let end = std::time::Instant::now() + LONG;
    while !cli(1, &["ROLE"]).starts_with("slave") {
        assert!(std::time::Instant::now() < end, "{}", cli(1, &["ROLE"]));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    crowd.moves(1, true);
    crowd.complete(rebuilds).await;
    assert_eq!(crowd.table.standing().rebuilds, rebuilds);
    crowd.stop().await;
}

/// What a node that starts is told of a server.
async fn check(options: Options) -> RoutesError {
    RedisRoutes::new(options, system_env().unwrap()).check().await.unwrap_err()
}

fn unfit(error: &RoutesError, says: &[&str]) {
    let RoutesError::Unfit(what) = error else { panic!("{error:?}") };
    assert!(says.iter().all(|part| what.contains(part)), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_can_not_hold_the_table_are_refused_with_what_to_change() {
    let Some(place) = Place::new().filter(|place| !place.is_cluster()) else { return };
    assert_eq!(place.routes("n").check().await, Ok(1));
    let of = |nodes| Options { nodes, prefix: "tern:x".to_owned(), ..place.options("n") };
    let options = |server: usize| of(vec![place.at(server)]);

    servers(&["extra", "5", "--requirepass", "secret-word"]);
    unfit(&check(options(5)).await, &["routes.password"]);
    let wrong = Options { password: Some("wrong-word".into()), ..options(5) };
    assert!(!format!("{wrong:?}").contains("wrong-word"));
    let refused = check(wrong).await;
    unfit(&refused, &["refuses the login", "routes.user"]);
    assert!(!refused.to_string().contains("wrong-word"), "{refused}");
    let right = Options { password: Some("secret-word".into()), ..options(5) };
    assert_eq!(RedisRoutes::new(right, system_env().unwrap()).check().await, Ok(1));

    cli(1, &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    unfit(&check(options(1)).await, &["allkeys-lru", "CONFIG SET maxmemory-policy noeviction"]);
    cli(1, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);

    servers(&["extra", "6", "--replicaof", &place.at(1).0, "6379"]);
    unfit(&check(options(6)).await, &["is a replica", "routes.nodes"]);
    servers(&["extra", "7", "--rename-command", "FUNCTION", ""]);
    unfit(&check(options(7)).await, &["has no functions"]);
    unfit(&check(of(vec![place.at(1), place.at(7)])).await, &["names 2 servers", "not of a cluster"]);
    servers(&["extra", "8", "--cluster-enabled", "yes"]);
    unfit(&check(options(8)).await, &["no server for slot 0", "--cluster fix"]);

    servers(&["extra", "9"]);
    cli(9, &["ACL", "SETUSER", "tern", "on", ">word", "~*", "+@read", "+hello", "+info", "+cluster"]);
    let may_read = Options { user: Some("tern".into()), password: Some("word".into()), ..options(9) };
    unfit(&check(may_read.clone()).await, &["does not allow", "docs/OPERATIONS.md"]);
    // Those that docs/OPERATIONS.md names are enough.
    let commands = ["+@read", "+@write", "+hello", "+info", "+function|load", "+fcall", "+cluster|slots", "+asking"];
    cli(9, &[&["ACL", "SETUSER", "tern", "reset", "on", ">word", "~tern:*"][..], &commands].concat());
    let routes = RedisRoutes::new(may_read, system_env().unwrap());
    assert_eq!(routes.check().await, Ok(1));
    let link = Arc::new(Link { node: "n".into(), number: 1, edge: "e".into() });
    let route = Route { link: link.clone(), generation: 1, connection: 1 };
    let change = Change::Put { user: user(1), stamp: 1 << 40, install: phone(), route };
    assert_eq!(routes.write(vec![change]).await, [Ok(Outcome::Done)]);
    routes.renew(vec![(link.clone(), 1)], LONG).await.unwrap();
    assert!(!routes.is_kept().await.unwrap() && routes.look_up(user(1)).await.unwrap()[0].is_live);
    assert_eq!(routes.count().await.unwrap().routes, 1);
    assert!(routes.end(link, 1).await.unwrap());
    assert!(matches!(check(options(4)).await, RoutesError::Unreachable(what) if what.contains("routes.nodes")));
    for server in 5..=9 {
        servers(&["kill", &server.to_string()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_full_or_made_to_forget_is_an_operator_s_problem_and_no_end() {
    let Some(place) = Place::new().filter(|place| !place.is_cluster()) else { return };
    let crowd = Crowd::start(&place, 20).await;
    crowd.complete(1).await;
    cli(1, &["CONFIG", "SET", "maxmemory", "1mb"]);
    crowd.moves(100, true);
    let said = |standing: &writer::Standing| standing.problem.as_ref().is_some_and(|what| what.contains("maxmemory"));
    crowd.waits_for("it is said", said).await;
    cli(1, &["CONFIG", "SET", "maxmemory", "0"]);
    crowd.complete(1).await;
    crowd.stop().await;
}
