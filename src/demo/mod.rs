//! `tern demo`: three regions and two clients on this machine, an edge and then a region killed in the middle
//! of a conversation, and an account of what was lost.
//!
//! Everything is real but the distances: processes of this binary, their stores on disk, their links, dispatch
//! over HTTPS, clients over QUIC. [`lookup`] asks dispatch, [`person`] is a user with a device,
//! [`crate::checker`] judges, [`narrator`] prints.

pub mod lookup;
pub mod narrator;
pub mod person;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;
use tern_net::env::Env;
use tern_net::system::system_env;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::checker::{Conversation, Totals};
use crate::cli::{DemoArgs, Global};
use crate::cluster::{BASE_PORT, Cluster, Endpoints};
use crate::dev::{STOP_GRACE, absolute, binary, start};
use crate::exit::Failure;
use crate::fleet::Fleet;
use crate::stop::Stop;
use lookup::Lookup;
use narrator::Narrator;
use person::{Person, Place};

/// The regions; the first one is killed.
const REGIONS: [&str; 3] = ["eu", "us", "ap"];
/// Edges of the first region besides its own.
const EXTRA_EDGES: usize = 2;
/// Messages in all. Every fourth is bob's.
const MESSAGES: u64 = 400;
/// Alice's edge is killed before this message.
const KILL_EDGE_AT: u64 = 120;
/// Her region is killed before this one.
const KILL_REGION_AT: u64 = 240;
/// Between two messages: both users together stay below the limit of sends of one.
const PACE: Duration = Duration::from_millis(50);
/// The last messages before a kill are sent at once, so that some are on their way when it comes.
const BURST: u64 = 5;
/// A region that was silent for this long: its clients' unconfirmed messages are offered elsewhere. Shorter
/// than the default, so that the demo is short too.
const REOFFER_AFTER: Duration = Duration::from_secs(3);
/// Clients connect within this time on a machine that is not overloaded.
const LIVE_WITHIN: Duration = Duration::from_secs(15);
/// Everything acked is stable and shown by then, or the demo fails.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);
/// How often it looks whether that is so.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Alice joins again where dispatch gave her the edge that is part of the region's process: killing an edge is
/// to be shown apart from killing a region.
const JOINS: usize = 30;

/// Runs the demo.
pub fn run(global: &Global, args: &DemoArgs) -> Result<(), Failure> {
    let scratch = Scratch::new(global, args)?;
    let mut cluster = Cluster::plan(scratch.path.clone(), &REGIONS.map(str::to_owned), BASE_PORT)?;
    cluster.add_edges(REGIONS[0], EXTRA_EDGES);
    cluster.reoffer_after = REOFFER_AFTER;
    cluster.geoip.clone_from(&args.geoip);
    cluster.find_ports()?;
    let narrator = Narrator::new(global.json);
    crate::block_on(async {
        let mut stop = Stop::watch(false)?;
        let mut fleet = Fleet::new(binary()?, &cluster.data)?;
        let outcome = tokio::select! {
            biased;
            reason = stop.requested() => Err(anyhow!("stopped by {reason}")),
            outcome = story(&mut fleet, &cluster, global, narrator) => outcome,
        };
        if args.keep && outcome.is_ok() {
            keep(&mut stop, &cluster, narrator).await;
        }
        fleet.stop(STOP_GRACE).await;
        match outcome {
            Ok(totals) if totals.pass() => {
                scratch.remove();
                Ok(())
            }
            Ok(_) => {
                narrator.say("logs", &fleet.logs().display().to_string(), json!({ "path": fleet.logs() }));
                Err(Failure::Property)
            }
            Err(error) => {
                Err(error.context(format!("the demo broke off; logs are in {}", fleet.logs().display())).into())
            }
        }
    })
}

async fn story(fleet: &mut Fleet, cluster: &Cluster, global: &Global, narrator: Narrator) -> Result<Totals> {
    let env = system_env()?;
    start_all(fleet, cluster, global, narrator).await?;
    ask_dispatch(&env, cluster, narrator).await?;
    let mut alice = join_apart_from_core(&env, cluster).await?;
    let mut bob = join(&env, cluster, "bob", "ap", "alice", 0)?;
    let (at_alice, at_bob) = (alice.live(LIVE_WITHIN).await?, bob.live(LIVE_WITHIN).await?);
    narrator.say(
        "live",
        &format!("alice at {at_alice} | bob at {at_bob}"),
        json!({ "alice": shown(&at_alice), "bob": shown(&at_bob) }),
    );

    talk(fleet, &mut alice, &mut bob, narrator).await?;
    settle(&alice, &bob, narrator).await?;
    let record = account(&alice, &bob)?;
    let totals = record.totals();
    narrator.say("total", &totals.to_string(), json!({ "totals": totals }));
    for person in [&alice, &bob] {
        for complaint in person.complaints() {
            narrator.say(
                "note",
                &format!("{}: {complaint}", person.name),
                json!({ "user": person.name, "note": complaint }),
            );
        }
    }
    for finding in record.findings() {
        let (user, n) = &finding.message;
        let detail = json!({ "fault": finding.fault.to_string(), "device": finding.device, "user": user, "n": n });
        narrator.say("fault", &finding.to_string(), detail);
    }
    narrator.say(if totals.pass() { "PASS" } else { "FAIL" }, "", json!({ "pass": totals.pass() }));
    alice.leave().await;
    bob.leave().await;
    Ok(totals)
}

async fn start_all(fleet: &mut Fleet, cluster: &Cluster, global: &Global, narrator: Narrator) -> Result<()> {
    for process in cluster.write()? {
        start(fleet, &process, global).await?;
    }
    let regions: Vec<String> = cluster.regions.iter().map(|r| format!("{} {}", r.site.name, r.site.city)).collect();
    let processes = fleet.names();
    narrator.say(
        "regions",
        &format!("{}; {} processes; data {}", regions.join(", "), processes.len(), cluster.data.display()),
        json!({ "regions": regions, "processes": processes, "data": cluster.data }),
    );
    Ok(())
}

async fn ask_dispatch(env: &Env, cluster: &Cluster, narrator: Narrator) -> Result<()> {
    let Endpoints { dispatch, public_ca, .. } = cluster.endpoints();
    let (_, at) = dispatch.first().context("no region serves dispatch")?;
    let mut lookup = Lookup::connect(env, *at, &public_ca).await?;
    lookup.wait_for_edges(cluster.regions.iter().map(|r| r.edges.len()).sum()).await?;
    lookup.narrate(narrator).await
}

/// `device`: each has a store of its own.
fn join(env: &Env, cluster: &Cluster, name: &str, near: &str, peer: &str, device: usize) -> Result<Person> {
    let store = cluster.data.join("clients").join(device.to_string());
    Person::join(env, &cluster.data, &store, name, near, peer)
}

async fn join_apart_from_core(env: &Env, cluster: &Cluster) -> Result<Person> {
    let core = &cluster.regions[0].edges[0];
    for device in 0..JOINS {
        // A new device: a known one has kept its list of edges.
        let alice = join(env, cluster, "alice", REGIONS[0], "bob", device)?;
        if alice.live(LIVE_WITHIN).await?.edge != *core {
            return Ok(alice);
        }
        alice.leave().await;
    }
    bail!("dispatch gave alice the edge {core} {JOINS} times in a row")
}

/// A kill that clients are still recovering from.
struct Outage {
    what: String,
    since: Instant,
    was: Place,
    /// Alice's messages up to here had been sent before.
    sent_before: u64,
    re_offered_before: usize,
    is_region: bool,
}

impl Outage {
    /// Says how it went once all of that is known; `last`: now, whatever is known.
    fn report(&self, alice: &Person, bob: &Person, narrator: Narrator, last: bool) -> bool {
        let after = |when: Instant| when.saturating_duration_since(self.since).as_secs_f64();
        let live = alice.moved(&self.was, self.since);
        let delivery = bob.first_arrival(&alice.name, self.sent_before).map(after);
        // What is to be offered again is known only once the region was silent for long enough.
        let offers_known = !self.is_region || self.since.elapsed() > 2 * REOFFER_AFTER;
        if !last && (live.is_none() || delivery.is_none() || !offers_known) {
            return false;
        }
        let seconds = |s: Option<f64>| s.map_or_else(|| "?".to_owned(), |s| format!("{s:.1} s"));
        let place = live.as_ref().map_or_else(|| "no edge".to_owned(), |(_, place)| place.to_string());
        let live_after = live.as_ref().map(|(when, _)| after(*when));
        let re_offered = alice.re_offered() - self.re_offered_before;
        let offers = if self.is_region { format!("re-offered {re_offered}, ") } else { String::new() };
        narrator.say(
            "kill",
            &format!(
                "{}: alice live at {place} after {}, {offers}first delivery after {}",
                self.what,
                seconds(live_after),
                seconds(delivery)
            ),
            json!({
                "killed": self.what, "live_at": place, "live_after_s": live_after,
                "first_delivery_after_s": delivery, "re_offered": re_offered,
            }),
        );
        true
    }
}

async fn talk(fleet: &mut Fleet, alice: &mut Person, bob: &mut Person, narrator: Narrator) -> Result<()> {
    let mut outages: Vec<Outage> = Vec::new();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 1..=MESSAGES {
        let in_burst = |kill_at| (kill_at - BURST..kill_at).contains(&number) || number == kill_at;
        if !in_burst(KILL_EDGE_AT) && !in_burst(KILL_REGION_AT) {
            pace.tick().await;
        }
        if number == KILL_EDGE_AT {
            outages.push(kill_edge(fleet, alice, number).await?);
        }
        if number == KILL_REGION_AT {
            outages.push(kill_region(fleet, alice, number).await?);
        }
        if number % 4 == 0 {
            bob.send()?
        } else {
            alice.send()?
        };
        outages.retain(|outage| !outage.report(alice, bob, narrator, false));
    }
    let until = Instant::now() + 2 * REOFFER_AFTER + LIVE_WITHIN;
    while !outages.is_empty() {
        sleep(LOOK_EVERY).await;
        let last = Instant::now() > until;
        outages.retain(|outage| !outage.report(alice, bob, narrator, last));
    }
    Ok(())
}

fn outage(alice: &Person, what: String, was: Place, is_region: bool) -> Outage {
    Outage {
        what,
        since: Instant::now(),
        was,
        sent_before: alice.sent(),
        re_offered_before: alice.re_offered(),
        is_region,
    }
}

async fn kill_edge(fleet: &mut Fleet, alice: &Person, number: u64) -> Result<Outage> {
    let was = alice.live(LIVE_WITHIN).await?;
    let outage = outage(alice, format!("edge {} at message {number}", was.edge), was.clone(), false);
    if !fleet.kill(&was.edge).await {
        bail!("there is no process {} to kill", was.edge);
    }
    Ok(outage)
}

async fn kill_region(fleet: &mut Fleet, alice: &Person, number: u64) -> Result<Outage> {
    let was = alice.live(LIVE_WITHIN).await?;
    let region = REGIONS[0];
    let outage = outage(alice, format!("region {region} at message {number}"), was, true);
    let of_region: Vec<String> =
        fleet.names().into_iter().filter(|name| name.starts_with(&format!("{region}-"))).collect();
    fleet.kill_all(&of_region).await;
    Ok(outage)
}

/// Waits until everything that was sent is stable and shown on both devices.
async fn settle(alice: &Person, bob: &Person, narrator: Narrator) -> Result<()> {
    let settled = async {
        loop {
            let all = usize::try_from(alice.sent() + bob.sent())?;
            let shown = [alice.timeline()?.len(), bob.timeline()?.len()];
            if alice.is_settled() && bob.is_settled() && shown.iter().all(|n| *n >= all) {
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(SETTLED_WITHIN, settled).await.unwrap_or_else(|_| {
        let within = SETTLED_WITHIN.as_secs();
        narrator.say("late", &format!("not everything is stable after {within} s"), json!({ "within_s": within }));
        Ok(())
    })
}

fn account(alice: &Person, bob: &Person) -> Result<Conversation> {
    let mut record = Conversation::default();
    for person in [alice, bob] {
        let (acked, stable) = person.confirmed()?;
        record.sent.extend((1..=person.sent()).map(|n| (person.name.clone(), n)));
        record.acked.extend(acked);
        record.stable.extend(stable);
        record.refused.extend(person.refused());
        record.at_risk.extend(person.at_risk());
        record.told.insert(person.name.clone(), person.told());
        record.timelines.insert(person.name.clone(), person.timeline()?);
    }
    Ok(record)
}

async fn keep(stop: &mut Stop, cluster: &Cluster, narrator: Narrator) {
    let data = cluster.data.display();
    narrator.say("join", &format!("tern chat --user carol --to bob --data {data}"), json!({ "data": cluster.data }));
    narrator.say("stop", "Ctrl-C; region eu stays dead", json!({}));
    stop.requested().await;
}

fn shown(place: &Place) -> serde_json::Value {
    json!({ "edge": place.edge, "region": place.region, "transport": place.transport })
}

/// The directory of a run: removed after it unless someone wants it.
struct Scratch {
    path: PathBuf,
    is_own: bool,
}

impl Scratch {
    fn new(global: &Global, args: &DemoArgs) -> Result<Self> {
        if let Some(data) = &global.data {
            if data.join("endpoints.json").exists() {
                bail!("{} is in use by another deployment: give the demo a directory of its own", data.display());
            }
            return Ok(Self { path: absolute(data.clone())?, is_own: false });
        }
        let path = std::env::temp_dir().join(format!("tern-demo-{}", std::process::id()));
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        // Not `create_dir_all`: what is there already belongs to somebody else.
        std::fs::create_dir(&path).with_context(|| format!("can't make {}", path.display()))?;
        Ok(Self { path, is_own: !args.keep })
    }

    fn remove(&self) {
        if self.is_own
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "the demo's directory could not be removed");
        }
    }
}
