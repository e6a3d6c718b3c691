//! The contract of [`Routes`]: what the writer and the tools rely on, as tests that every table runs.
//!
//! Included by path into the tests of each table (it asserts, so it is not part of the library). A table implements
//! [`World`]. Write `contract!(make)` in a module to get one test per function here, each on a world of its own.
//!
//! The functions are histories with a name; [`random_histories`] compares a table with a model under random changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tern_core::hlc;
use tern_core::ids::{InstallId, UserId};
use tern_core::store::BoxFut;
use tern_replication::routes::limits::{INSTALLS_PER_USER, REMOVED_TTL};
use tern_replication::routes::{Change, Counts, Link, Outcome, Route, Routes, RoutesError};

/// A table that is empty at first.
pub trait World {
    /// The table as one node has it.
    fn routes(&self) -> Arc<dyn Routes>;
    /// The same table as another node has it.
    fn another(&self) -> Arc<dyn Routes>;
    /// All that is in the table is lost.
    fn lose(&mut self) -> BoxFut<'_, ()>;
}

/// One test per function of the contract. `$make` makes a world, or returns.
macro_rules! contract {
    ($make:expr) => {
        $crate::contract::contract!(@ $make;
            a_route_counts_while_its_generation_is_the_live_one,
            a_later_put_wins_and_an_earlier_one_is_told_of_it,
            the_same_change_twice_is_done_twice,
            a_removal_takes_away_its_very_route_and_no_other,
            an_earlier_put_does_not_come_after_a_removal,
            an_announcement_names_all_devices_and_spares_later_ones,
            generations_of_a_link_follow_each_other,
            a_generation_that_is_not_renewed_runs_out,
            only_the_live_generation_of_a_link_can_be_ended,
            names_of_every_kind_keep_apart,
            many_changes_are_answered_in_order,
            a_user_keeps_the_installs_that_were_written_last,
            what_a_removal_left_goes_with_time,
            everything_is_counted,
            a_table_that_was_lost_is_noticed_once_by_each_node,
        );
    };
    (@ $make:expr; $($name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let mut world = $make;
                $crate::contract::$name(&mut world).await;
            }
        )*
    };
}
pub(crate) use contract;

/// Long enough for any test.
const LONG: Duration = Duration::from_secs(600);
/// A generation of [`link`] that the tests begin with.
const GENERATION: u64 = 0xffee_ddcc_0000_0001;

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn install(name: &str) -> InstallId {
    InstallId::new(name).unwrap()
}

fn link(number: u64) -> Arc<Link> {
    Arc::new(Link { node: "eu-n1".into(), number, edge: "eu-e1".into() })
}

fn route(connection: u64) -> Route {
    Route { link: link(1), generation: GENERATION, connection }
}

/// A stamp so many milliseconds after some moment.
fn at(ms: u64) -> u64 {
    hlc::from_ms(1_700_000_000_000 + ms)
}

fn put(name: &str, device: &str, ms: u64, connection: u64) -> Change {
    Change::Put { user: user(name), stamp: at(ms), install: install(device), route: route(connection) }
}

fn remove(name: &str, device: &str, ms: u64, connection: u64) -> Change {
    Change::Remove { user: user(name), stamp: at(ms), install: install(device), route: route(connection) }
}

fn announce(name: &str, ms: u64, devices: &[(&str, u64)]) -> Change {
    let routes = devices.iter().map(|(device, connection)| (install(device), route(*connection))).collect();
    Change::Announce { user: user(name), stamp: at(ms), routes }
}

async fn write(routes: &Arc<dyn Routes>, change: Change) -> Outcome {
    routes.write(vec![change]).await.remove(0).unwrap()
}

async fn live(routes: &Arc<dyn Routes>) {
    routes.renew(vec![(link(1), GENERATION)], LONG).await.unwrap();
}

/// (device, connection) of a user's routes.
async fn there(routes: &Arc<dyn Routes>, name: &str) -> Vec<(String, u64)> {
    let listed = routes.look_up(user(name)).await.unwrap();
    let live = listed.into_iter().filter(|l| l.is_live);
    live.map(|l| (l.install.as_str().to_owned(), l.route.connection)).collect()
}

fn on(device: &str, connection: u64) -> (String, u64) {
    (device.to_owned(), connection)
}

pub async fn a_route_counts_while_its_generation_is_the_live_one(world: &mut impl World) {
    let routes = world.routes();
    assert_eq!(write(&routes, put("alice", "phone", 1, 7)).await, Outcome::Done);
    let listed = routes.look_up(user("alice")).await.unwrap();
    assert!(listed.len() == 1 && !listed[0].is_live, "its link's generation is not known: {listed:?}");
    live(&routes).await;
    let listed = routes.look_up(user("alice")).await.unwrap();
    assert!(listed[0].is_live && listed[0].install == install("phone") && listed[0].stamp == at(1));
    assert_eq!(listed[0].route, route(7));
    assert_eq!(world.another().look_up(user("alice")).await.unwrap(), listed, "as any node sees it");
    assert_eq!(routes.look_up(user("bob")).await.unwrap(), []);
}

pub async fn a_later_put_wins_and_an_earlier_one_is_told_of_it(world: &mut impl World) {
    let routes = world.routes();
    live(&routes).await;
    assert_eq!(write(&routes, put("alice", "phone", 5, 1)).await, Outcome::Done);
    assert_eq!(write(&routes, put("alice", "phone", 4, 2)).await, Outcome::Newer(at(5)));
    assert_eq!(write(&routes, put("alice", "phone", 5, 2)).await, Outcome::Newer(at(5)), "of two, the first");
    assert_eq!(there(&routes, "alice").await, [on("phone", 1)]);
    let other = world.another();
    assert_eq!(write(&other, put("alice", "phone", 6, 3)).await, Outcome::Done);
    assert_eq!(write(&routes, remove("alice", "phone", 5, 3)).await, Outcome::Newer(at(6)));
    assert_eq!(there(&routes, "alice").await, [on("phone", 3)]);
}

pub async fn the_same_change_twice_is_done_twice(world: &mut impl World) {
    let routes = world.routes();
    live(&routes).await;
    let all = [put("alice", "phone", 1, 1), remove("alice", "phone", 2, 1), announce("alice", 3, &[("pc", 2)])];
    for change in all {
        assert_eq!(write(&routes, change.clone()).await, Outcome::Done);
        let before = routes.look_up(user("alice")).await.unwrap();
        assert_eq!(write(&routes, change).await, Outcome::Done);
        assert_eq!(routes.look_up(user("alice")).await.unwrap(), before);
    }
}

pub async fn a_removal_takes_away_its_very_route_and_no_other(world: &mut impl World) {
    let routes = world.routes();
    live(&routes).await;
    write(&routes, put("alice", "phone", 1, 1)).await;
    write(&routes, put("alice", "pc", 1, 2)).await;
    assert_eq!(write(&routes, remove("alice", "phone", 5, 9)).await, Outcome::Other);
    let elsewhere = Route { generation: GENERATION + 1, ..route(1) };
    let change = Change::Remove { user: user("alice"), stamp: at(5), install: install("phone"), route: elsewhere };
    assert_eq!(write(&routes, change).await, Outcome::Other, "of another generation it is another route");
    assert_eq!(there(&routes, "alice").await, [on("pc", 2), on("phone", 1)]);
    assert_eq!(write(&routes, remove("alice", "phone", 5, 1)).await, Outcome::Done);
    assert_eq!(there(&routes, "alice").await, [on("pc", 2)]);
}

pub async fn an_earlier_put_does_not_come_after_a_removal(world: &mut impl World) {
    let routes = world.routes();
    live(&routes).await;
    assert_eq!(write(&routes, remove("alice", "phone", 5, 1)).await, Outcome::Done, "before what it removes");
    assert_eq!(write(&routes, put("alice", "phone", 4, 1)).await, Outcome::Newer(at(5)));
    assert_eq!(there(&routes, "alice").await, []);
    assert_eq!(write(&routes, put("alice", "phone", 6, 2)).await, Outcome::Done);
    assert_eq!(there(&routes, "alice").await, [on("phone", 2)]);
}

pub async fn an_announcement_names_all_devices_and_spares_later_ones(world: &mut impl World) {
    let routes = world.routes();
    live(&routes).await;
    for (device, ms, connection) in [("old", 1, 1), ("kept", 2, 2), ("later", 9, 3)] {
        write(&routes, put("alice", device, ms, connection)).await;
    }
    let all = [("kept", 4), ("new", 5)];
    assert_eq!(write(&routes, announce("alice", 6, &all)).await, Outcome::Newer(at(9)));
    assert_eq!(there(&routes, "alice").await, [on("kept", 4), on("later", 3), on("new", 5)]);
    assert_eq!(write(&routes, put("alice", "old", 5, 1)).await, Outcome::Newer(at(6)));
    assert_eq!(write(&routes, announce("alice", 10, &[])).await, Outcome::Done);
    assert_eq!(there(&routes, "alice").await, []);
    assert_eq!(write(&routes, announce("alice", 8, &[("new", 5)])).await, Outcome::Newer(at(10)));
    assert_eq!(there(&routes, "alice").await, []);
}

pub async fn generations_of_a_link_follow_each_other(world: &mut impl World) {
    let routes = world.routes();
    live(&routes).await;
    write(&routes, put("alice", "phone", 1, 1)).await;
    routes.renew(vec![(link(1), GENERATION + 1), (link(2), GENERATION)], LONG).await.unwrap();
    assert_eq!(there(&routes, "alice").await, []);
    let there_now = Route { generation: GENERATION + 1, ..route(1) };
    let routes_now = vec![(install("phone"), there_now)];
    write(&routes, Change::Announce { user: user("alice"), stamp: at(2), routes: routes_now }).await;
    assert_eq!(there(&routes, "alice").await, [on("phone", 1)]);
}

pub async fn a_generation_that_is_not_renewed_runs_out(world: &mut impl World) {
    let routes = world.routes();
    write(&routes, put("alice", "phone", 1, 1)).await;
    routes.renew(vec![(link(1), GENERATION)], LONG).await.unwrap();
    assert_eq!(there(&routes, "alice").await.len(), 1);
    // The last word on how long it has counts.
    routes.renew(vec![(link(1), GENERATION)], Duration::from_millis(50)).await.unwrap();
    let runs_out = async {
        while !there(&routes, "alice").await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), runs_out).await.expect("it does not run out");
    assert!(!routes.end(link(1), GENERATION).await.unwrap());
    routes.renew(vec![(link(1), GENERATION)], LONG).await.unwrap();
    assert_eq!(there(&routes, "alice").await, [on("phone", 1)], "a node that was only slow has its routes again");
}

pub async fn only_the_live_generation_of_a_link_can_be_ended(world: &mut impl World) {
    let routes = world.routes();
    live(&routes).await;
    write(&routes, put("alice", "phone", 1, 1)).await;
    assert!(!routes.end(link(1), GENERATION - 1).await.unwrap());
    assert!(!routes.end(link(2), GENERATION).await.unwrap());
    assert_eq!(there(&routes, "alice").await, [on("phone", 1)]);
    assert!(routes.end(link(1), GENERATION).await.unwrap());
    assert!(!routes.end(link(1), GENERATION).await.unwrap());
    assert_eq!(there(&routes, "alice").await, []);
}

pub async fn names_of_every_kind_keep_apart(world: &mut impl World) {
    let routes = world.routes();
    live(&routes).await;
    let long = "x".repeat(64);
    let names = ["a", "a:b", "{a}", "{a}b", "a b", "{}", "}{", "\r\n$1", "Ünï", "*", "[a]", "\0", long.as_str()];
    for (n, name) in names.iter().enumerate() {
        assert_eq!(write(&routes, put(name, name, 1, n as u64)).await, Outcome::Done);
    }
    for (n, name) in names.iter().enumerate() {
        assert_eq!(there(&routes, name).await, [on(name, n as u64)]);
    }
    let odd = Arc::new(Link { node: "n".into(), number: u64::MAX, edge: "e/{1} \n".into() });
    let route = Route { link: odd.clone(), generation: u64::MAX, connection: u64::MAX };
    routes.renew(vec![(odd, u64::MAX)], LONG).await.unwrap();
    let change = Change::Put { user: user("odd"), stamp: u64::MAX, install: install("-"), route: route.clone() };
    assert_eq!(write(&routes, change).await, Outcome::Done);
    let listed = routes.look_up(user("odd")).await.unwrap();
    assert!(listed.len() == 1 && listed[0].route == route && listed[0].is_live && listed[0].stamp == u64::MAX);
}

pub async fn many_changes_are_answered_in_order(world: &mut impl World) {
    let routes = world.routes();
    live(&routes).await;
    let name = |n: u64| format!("user-{n}");
    let later: Vec<Change> = (0..1_000).filter(|n| n % 3 == 0).map(|n| put(&name(n), "phone", 9, n)).collect();
    assert!(routes.write(later).await.into_iter().all(|outcome| outcome == Ok(Outcome::Done)));
    let answers = routes.write((0..1_000).map(|n| put(&name(n), "phone", 5, n)).collect()).await;
    assert_eq!(answers.len(), 1_000);
    for (n, answer) in answers.into_iter().enumerate() {
        let expected = if n % 3 == 0 { Outcome::Newer(at(9)) } else { Outcome::Done };
        assert_eq!(answer, Ok(expected), "change {n}");
    }
    assert_eq!(routes.write(Vec::new()).await, []);
}

pub async fn a_user_keeps_the_installs_that_were_written_last(world: &mut impl World) {
    let routes = world.routes();
    live(&routes).await;
    let all = INSTALLS_PER_USER as u64 + 5;
    for n in 0..all {
        assert_eq!(write(&routes, put("alice", &format!("install-{n:03}"), n, n)).await, Outcome::Done);
    }
    let kept: Vec<u64> = there(&routes, "alice").await.into_iter().map(|(_, connection)| connection).collect();
    assert_eq!(kept, (5..all).collect::<Vec<u64>>());
}

pub async fn what_a_removal_left_goes_with_time(world: &mut impl World) {
    let routes = world.routes();
    live(&routes).await;
    let later = u64::try_from(REMOVED_TTL.as_millis()).unwrap();
    write(&routes, remove("alice", "phone", 100, 1)).await;
    write(&routes, put("alice", "pc", 100 + later, 2)).await;
    assert_eq!(write(&routes, put("alice", "phone", 50, 1)).await, Outcome::Newer(at(100)), "it is there yet");
    write(&routes, put("alice", "pc", 101 + later, 2)).await;
    assert_eq!(write(&routes, put("alice", "phone", 50, 1)).await, Outcome::Done, "nothing is so long on its way");
}

pub async fn everything_is_counted(world: &mut impl World) {
    let routes = world.routes();
    assert_eq!(routes.count().await.unwrap(), Counts::default());
    live(&routes).await;
    let over = Route { generation: 1, ..route(3) };
    let over = Change::Put { user: user("carol"), stamp: at(1), install: install("phone"), route: over };
    let mut changes = vec![over, remove("dan", "phone", 1, 1), put("alice", "phone", 1, 1), put("alice", "pc", 1, 2)];
    changes.extend((0..700).map(|n| put(&format!("user-{n}"), "phone", 1, n)));
    for outcome in routes.write(changes).await {
        assert_eq!(outcome, Ok(Outcome::Done));
    }
    assert_eq!(routes.count().await.unwrap(), Counts { users: 701, routes: 702, over: 1 });
}

pub async fn a_table_that_was_lost_is_noticed_once_by_each_node(world: &mut impl World) {
    let (one, other) = (world.routes(), world.another());
    assert!(!kept(&one).await && kept(&one).await && kept(&one).await);
    assert!(!kept(&other).await && kept(&other).await, "each for itself");
    live(&one).await;
    write(&one, put("alice", "phone", 1, 1)).await;
    world.lose().await;
    assert!(!kept(&one).await && kept(&one).await);
    assert_eq!(one.look_up(user("alice")).await.unwrap(), []);
    assert!(!kept(&other).await && kept(&other).await);
    live(&one).await;
    assert_eq!(write(&one, put("alice", "phone", 1, 1)).await, Outcome::Done, "what was lost does not refuse anything");
    assert_eq!(there(&one, "alice").await, [on("phone", 1)]);
}

/// Asks until the table answers: it may just have been started.
async fn kept(routes: &Arc<dyn Routes>) -> bool {
    let answers = async {
        loop {
            match routes.is_kept().await {
                Ok(kept) => return kept,
                Err(RoutesError::Unreachable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), answers).await.expect("it does not answer")
}

#[derive(Clone, Debug)]
enum Op {
    Put(u8, u64, u64),
    Remove(u8, u64, u64),
    Announce(u64, Vec<(u8, u64)>),
}

fn op() -> impl Strategy<Value = Op> {
    let device = 0..4_u8;
    prop_oneof![
        (device.clone(), 0..12_u64, 0..4_u64).prop_map(|(d, ms, c)| Op::Put(d, ms, c)),
        (device.clone(), 0..12_u64, 0..4_u64).prop_map(|(d, ms, c)| Op::Remove(d, ms, c)),
        (0..12_u64, proptest::collection::btree_map(device, 0..4_u64, 0..3))
            .prop_map(|(ms, devices)| Op::Announce(ms, devices.into_iter().collect())),
    ]
}

/// What a table has to do: for each device, its stamp and its connection, if it has one.
#[derive(Debug, Default)]
struct Model(BTreeMap<u8, (u64, Option<u64>)>);

impl Model {
    fn set(&mut self, device: u8, ms: u64, connection: Option<u64>) -> Option<u64> {
        match self.0.get(&device) {
            Some(there) if *there == (ms, connection) => None,
            Some((later, _)) if *later >= ms => Some(*later),
            _ => {
                self.0.insert(device, (ms, connection));
                None
            }
        }
    }

    fn apply(&mut self, op: &Op) -> Outcome {
        let told = |newer: Option<u64>| newer.map_or(Outcome::Done, |ms| Outcome::Newer(at(ms)));
        match op {
            Op::Put(device, ms, connection) => told(self.set(*device, *ms, Some(*connection))),
            Op::Remove(device, ms, connection) => match self.0.get(device) {
                Some((earlier, Some(other))) if earlier < ms && other != connection => Outcome::Other,
                _ => told(self.set(*device, *ms, None)),
            },
            Op::Announce(ms, devices) => {
                let mut newer = None;
                for (device, connection) in devices {
                    newer = newer.max(self.set(*device, *ms, Some(*connection)));
                }
                let named: Vec<u8> = devices.iter().map(|(device, _)| *device).collect();
                let connected =
                    self.0.iter().filter(|(device, (_, connection))| connection.is_some() && !named.contains(device));
                for device in connected.map(|(device, _)| *device).collect::<Vec<u8>>() {
                    newer = newer.max(self.set(device, *ms, None));
                }
                told(newer)
            }
        }
    }
}

/// Compares tables with the model, each history with a user of its own.
pub fn random_histories<W: World>(cases: u32, world: &W, runtime: &tokio::runtime::Runtime) {
    let routes = world.routes();
    runtime.block_on(live(&routes));
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let number = std::sync::atomic::AtomicU64::new(0);
    let histories = proptest::collection::vec(op(), 1..24);
    let result = runner.run(&histories, |history| {
        let name = format!("user-{}", number.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let device = |d: &u8| format!("device-{d}");
        runtime.block_on(async {
            let mut model = Model::default();
            for op in &history {
                let change = match op {
                    Op::Put(d, ms, connection) => put(&name, &device(d), *ms, *connection),
                    Op::Remove(d, ms, connection) => remove(&name, &device(d), *ms, *connection),
                    Op::Announce(ms, devices) => {
                        let devices: Vec<(String, u64)> = devices.iter().map(|(d, c)| (device(d), *c)).collect();
                        let devices: Vec<(&str, u64)> = devices.iter().map(|(d, c)| (d.as_str(), *c)).collect();
                        announce(&name, *ms, &devices)
                    }
                };
                prop_assert_eq!(write(&routes, change).await, model.apply(op), "{:?}", op);
            }
            let expected = model.0.iter().filter_map(|(d, (_, connection))| Some((device(d), (*connection)?)));
            prop_assert_eq!(there(&routes, &name).await, expected.collect::<Vec<_>>());
            Ok::<(), TestCaseError>(())
        })
    });
    if let Err(failed) = result {
        panic!("{failed}");
    }
}
