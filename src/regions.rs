//! `tern region add` and `tern region remove`: a region joins a running deployment, or leaves it, in checked steps.
//!
//! Each step is a look at what nodes say of themselves, so that a command that was interrupted goes on where it was when
//! it is given again. What only the operator can do, edit a configuration and start or stop a process, it says and waits
//! for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use tern_core::clock::Clock;
use tern_core::ids::Region;
use tern_net::system::SystemClock;
use tokio::time::sleep;

use crate::admin;
use crate::cli::Global;
use crate::config::Settings;
use crate::config::value::parse_duration;
use crate::exit::Failure;
use crate::orders::desk::Ordered;
use crate::status::{LinkStatus, Status};
use crate::top::look;

/// How often the nodes are asked.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Options of both.
#[derive(Clone, Debug, Args)]
pub struct StepsArgs {
    /// The region's name
    #[arg(value_name = "REGION")]
    pub region: String,
    /// Admin addresses of nodes that are not found from the one on this machine: each region's core must answer. May be
    /// repeated
    #[arg(long, value_name = "ADDRESS")]
    pub node: Vec<SocketAddr>,
    /// How long to wait for what is missing before giving up; given again, it goes on
    #[arg(long, default_value = "10m", value_parser = duration, value_name = "TIME")]
    pub wait: Duration,
}

/// Options of `region remove`.
#[derive(Clone, Debug, Args)]
pub struct RemoveArgs {
    /// For both.
    #[command(flatten)]
    pub steps: StepsArgs,
    /// The region is lost: do not wait until others hold all that it has. What only it had is offered again by the devices
    /// that wrote it
    #[arg(long)]
    pub lost: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration, such as 90s, 10m or 24h".to_owned())
}

/// What is to be done next, or what is waited for.
enum Step {
    Done(String),
    Waits(String),
}

/// Prints each word once, as it changes.
struct Teller {
    json: bool,
    last: String,
}

impl Teller {
    fn tell(&mut self, state: &str, what: &str) {
        let line = format!("{state}{what}");
        if line != self.last {
            match self.json {
                true => println!("{}", serde_json::json!({ "state": state, "what": what })),
                false => println!("{state:8} {what}"),
            }
            self.last = line;
        }
    }
}

/// What the cores of all regions that answer say, by region.
fn cores(begin: &[SocketAddr]) -> BTreeMap<Region, Status> {
    let said = look(begin).into_iter().filter_map(|answer| answer.said.ok());
    said.filter(|status| status.role == "region").map(|status| (status.region, status)).collect()
}

/// Runs `tern region add`.
pub fn add(global: &Global, args: &StepsArgs) -> Result<(), Failure> {
    let settings = crate::settings(global, &[])?;
    let Some(peer) = settings.peers.iter().find(|peer| peer.name == args.region) else {
        return Err(Failure::Usage(format!(
            "{}: peers does not list {}: add \"NUMBER:{}@HOST:PORT\" there and in the configuration of every other region, \
             and list those in its own; then give this command again",
            settings.source("peers"),
            args.region,
            args.region
        )));
    };
    let (region, name) = (peer.region, peer.name.clone());
    let begin: Vec<SocketAddr> = std::iter::once(settings.admin_listen()).chain(args.node.iter().copied()).collect();
    let mut teller = Teller { json: global.json, last: String::new() };
    let now = cores(&begin);
    // What is on its way to it at the moment is no reason to send its clients away.
    let compared = now.get(&region).is_some_and(|new| new.refilling == 0);
    let here = settings.region_id.and_then(|own| now.get(&own));
    if let Step::Done(what) = linked(&now, region, &name)
        && compared
        && here.is_some_and(|status| !is_cordoned(status, region))
    {
        teller.tell("done", &format!("{what}, and it takes clients"));
        return Ok(());
    }
    // Before anybody lists its edges: it lacks nearly everything yet.
    order(&begin[0..1], "leave", region, true)?;
    teller.tell("ok", &format!("region {name} is cordoned until it holds what the others hold"));
    reload(begin[0])?;
    teller.tell("ok", &format!("this region has {name} among its peers"));
    crate::block_on(async {
        wait(&args.wait, &begin, &mut teller, |now| linked(now, region, &name)).await?;
        wait(&args.wait, &begin, &mut teller, |now| filled(now, region, &name)).await?;
        order(&begin[0..1], "return", region, false)?;
        teller.tell("done", &format!("region {name} takes clients"));
        Ok(())
    })
}

/// Runs `tern region remove`.
pub fn remove(global: &Global, args: &RemoveArgs) -> Result<(), Failure> {
    let settings = crate::settings(global, &[])?;
    let name = args.steps.region.clone();
    let begin: Vec<SocketAddr> =
        std::iter::once(settings.admin_listen()).chain(args.steps.node.iter().copied()).collect();
    let mut teller = Teller { json: global.json, last: String::new() };
    let now = cores(&begin);
    let known = now.values().flat_map(|status| status.links.iter().map(|link| (link.name.clone(), link.region)));
    let known: BTreeMap<String, Region> = known.collect();
    let configured = settings.peers.iter().find(|peer| peer.name == name).map(|peer| peer.region);
    let Some(region) = known.get(&name).copied().or(configured) else {
        let known: Vec<String> = known.into_keys().collect();
        return Err(Failure::Usage(format!(
            "no region has {name} among its peers any more; there are {}",
            known.join(", ")
        )));
    };
    if settings.region_id.is_some_and(|own| own == region) {
        return Err(Failure::Usage(format!(
            "{name} is the region on this machine: give the command at one that stays"
        )));
    }
    order(&begin[0..1], "leave", region, false)?;
    teller.tell("ok", &format!("region {name} is cordoned"));
    crate::block_on(async {
        if args.lost {
            teller.tell("ok", &format!("region {name} is taken for lost: nobody waits for what it holds"));
        } else {
            wait(&args.steps.wait, &begin, &mut teller, |now| emptied(now, region, &name)).await?;
        }
        let forgot = |now: &BTreeMap<Region, Status>| {
            // As soon as this region's file says so.
            let lists =
                crate::settings(global, &[]).map(|s: Settings| s.peers.iter().any(|peer| peer.region == region));
            let here = settings.region_id.and_then(|own| now.get(&own));
            if matches!(lists, Ok(false))
                && here.is_some_and(|status| status.links.iter().any(|link| link.region == region))
                && let Err(why) = reload(begin[0])
            {
                let Failure::Start(why) = why else {
                    return Step::Waits("the configuration can't be reloaded".to_owned());
                };
                return Step::Waits(format!("{why:#}"));
            }
            forgotten(now, region, &name)
        };
        wait(&args.steps.wait, &begin, &mut teller, forgot).await?;
        teller.tell(
            "done",
            &format!("no region has {name} among its peers: stop its nodes. Its number, {region}, is never used again"),
        );
        Ok(())
    })
}

/// Looks until a step is done.
async fn wait(
    within: &Duration,
    begin: &[SocketAddr],
    teller: &mut Teller,
    step: impl Fn(&BTreeMap<Region, Status>) -> Step,
) -> Result<(), Failure> {
    let end = SystemClock.now() + *within;
    loop {
        let now = tokio::task::block_in_place(|| cores(begin));
        let waits = match tokio::task::block_in_place(|| step(&now)) {
            Step::Done(what) => {
                teller.tell("ok", &what);
                return Ok(());
            }
            Step::Waits(why) => why,
        };
        teller.tell("waiting", &waits);
        if SystemClock.now() >= end {
            return Err(Failure::Start(anyhow!("it is not so yet: {waits}. Give the command again to go on")));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Whether the region and all others are linked to each other.
fn linked(now: &BTreeMap<Region, Status>, region: Region, name: &str) -> Step {
    let Some(new) = now.get(&region) else {
        return Step::Waits(format!(
            "no core node of {name} answers: start it (`tern region --init`, with all other regions among its peers), or \
             give its admin address by --node"
        ));
    };
    for (other, status) in now.iter().filter(|(other, _)| **other != region) {
        let theirs = status.links.iter().find(|link| link.region == region);
        let ours = new.links.iter().find(|link| link.region == *other);
        let what = match (theirs, ours) {
            (None, _) => {
                format!("region {} lacks {name} among its peers: add it there, and reload", status.region_name)
            }
            (_, None) => {
                format!("region {name} lacks {} among its peers: add it there, and reload", status.region_name)
            }
            (Some(a), Some(b)) if !a.connected || !b.connected => {
                format!("regions {} and {name} are not linked yet", status.region_name)
            }
            _ => continue,
        };
        return Step::Waits(what);
    }
    // Regions that others are linked to and that do not answer can't be checked.
    let known = now.values().flat_map(|status| &status.links).find(|link| !now.contains_key(&link.region));
    match known {
        Some(link) => Step::Waits(format!("no core node of {} answers: give its admin address by --node", link.name)),
        None => Step::Done(format!("region {name} is linked to {} others", now.len() - 1)),
    }
}

/// Whether the region holds what the others hold.
fn filled(now: &BTreeMap<Region, Status>, region: Region, name: &str) -> Step {
    let Some(new) = now.get(&region) else { return Step::Waits(format!("no core node of {name} answers")) };
    if new.refilling > 0 {
        return Step::Waits(format!("region {name} must still be compared with {} others", new.refilling));
    }
    let links = now.values().flat_map(|status| status.links.iter().map(move |link| (status, link)));
    for (status, link) in links.filter(|(_, link)| link.region == region) {
        if link.unacked > 0 || link.or_more {
            return Step::Waits(format!(
                "region {} has {} entries that {name} lacks",
                status.region_name, link.unacked
            ));
        }
    }
    Step::Done(format!("region {name} holds what the others hold"))
}

/// Whether a node has heard that a region is cordoned.
fn is_cordoned(status: &Status, region: Region) -> bool {
    status.orders.iter().any(|order| order.leave && order.node.is_none() && order.region == region)
}

/// Whether all clients have left the region, and the others hold what it holds.
fn emptied(now: &BTreeMap<Region, Status>, region: Region, name: &str) -> Step {
    let Some(old) = now.get(&region) else {
        return Step::Waits(format!(
            "no core node of {name} answers: start it, give its admin address by --node, or --lost if it is lost"
        ));
    };
    let clients: u64 = old.edges.iter().filter(|edge| edge.region == region).map(|edge| u64::from(edge.clients)).sum();
    if clients > 0 {
        return Step::Waits(format!("region {name} has {clients} clients left"));
    }
    if !is_cordoned(old, region) {
        return Step::Waits(format!("region {name} has not heard yet that it is cordoned"));
    }
    // A region that has it among its peers no more is told by those that have.
    let lists = |link: &&LinkStatus| now.get(&link.region).is_none_or(|s| s.links.iter().any(|l| l.region == region));
    let heirs: Vec<&LinkStatus> = old.links.iter().filter(lists).collect();
    if heirs.is_empty() {
        return Step::Waits(format!(
            "no region has {name} among its peers any more, so that nobody takes what it alone may hold: put it back \
             into those of one, or say --lost"
        ));
    }
    let lacking = heirs.into_iter().find(|link| !link.connected || link.unacked > 0 || link.or_more);
    match lacking {
        Some(link) if !link.connected => Step::Waits(format!("regions {name} and {} are not linked", link.name)),
        Some(link) => Step::Waits(format!("{} lacks {} entries of {name}", link.name, link.unacked)),
        None if old.refilling > 0 => {
            Step::Waits(format!("region {name} must still be compared with {} others", old.refilling))
        }
        None => Step::Done(format!("region {name} has no clients, and all that it holds is held elsewhere")),
    }
}

/// Whether no other region has it among its peers.
fn forgotten(now: &BTreeMap<Region, Status>, region: Region, name: &str) -> Step {
    let still = now.iter().filter(|(other, _)| **other != region);
    let still: Vec<&str> = still
        .filter(|(_, status)| status.links.iter().any(|link| link.region == region))
        .map(|(_, status)| status.region_name.as_str())
        .collect();
    if still.is_empty() {
        return Step::Done(format!("no region has {name} among its peers"));
    }
    Step::Waits(format!("take {name} out of `peers` and reload, at: {}", still.join(", ")))
}

fn order(at: &[SocketAddr], what: &str, region: Region, force: bool) -> Result<(), Failure> {
    for at in at {
        let said = admin::post(*at, &format!("/orders/{what}?region={region}&force={force}"))
            .with_context(|| format!("asked the node at {at}"))?;
        let _read: Ordered = serde_json::from_str(&said).context("the node answers what this version does not know")?;
    }
    Ok(())
}

fn reload(at: SocketAddr) -> Result<(), Failure> {
    let said =
        admin::post(at, "/reload").with_context(|| format!("the region at {at} does not take its configuration"))?;
    let report: serde_json::Value = serde_json::from_str(&said).context("the answer to a reload can't be read")?;
    let changes = report["changes"].as_array().cloned().unwrap_or_default();
    if let Some(change) = changes.iter().find(|change| change["what"] == "peers" && change["outcome"] != "applied") {
        return Err(Failure::Start(anyhow!("peers: {change}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(region: Region, name: &str, links: &[(Region, &str, bool, u64)]) -> (Region, Status) {
        let link = |(region, name, connected, unacked): &(Region, &str, bool, u64)| LinkStatus {
            region: *region,
            name: (*name).to_owned(),
            connected: *connected,
            unacked: *unacked,
            ..LinkStatus::default()
        };
        let links = links.iter().map(link).collect();
        let (region_name, role) = (name.to_owned(), "region".to_owned());
        (region, Status { region, region_name, role, links, ..Status::default() })
    }

    fn waits(step: Step) -> String {
        match step {
            Step::Waits(why) => why,
            Step::Done(what) => panic!("done: {what}"),
        }
    }

    #[test]
    fn a_region_is_added_when_all_are_linked_to_it_and_it_lacks_nothing() {
        let eu = |unacked| core(1, "eu", &[(2, "us", true, 0), (3, "ap", true, unacked)]);
        let us = core(2, "us", &[(1, "eu", true, 0), (3, "ap", true, 0)]);
        let ap = core(3, "ap", &[(1, "eu", true, 0), (2, "us", true, 0)]);
        let of = |all: &[(Region, Status)]| -> BTreeMap<Region, Status> { all.iter().cloned().collect() };
        assert!(waits(linked(&of(&[eu(0), us.clone()]), 3, "ap")).contains("start it"));
        let lacks = core(2, "us", &[(1, "eu", true, 0)]);
        assert!(waits(linked(&of(&[eu(0), lacks, ap.clone()]), 3, "ap")).contains("region us lacks ap"));
        assert!(waits(linked(&of(&[eu(0), ap.clone()]), 3, "ap")).contains("no core node of us answers"));
        let all = of(&[eu(0), us.clone(), ap.clone()]);
        assert!(matches!(linked(&all, 3, "ap"), Step::Done(_)) && matches!(filled(&all, 3, "ap"), Step::Done(_)));
        assert!(
            waits(filled(&of(&[eu(4), us.clone(), ap.clone()]), 3, "ap")).contains("eu has 4 entries that ap lacks")
        );
        let compares = (3, Status { refilling: 1, ..ap.1.clone() });
        assert!(waits(filled(&of(&[eu(0), us, compares]), 3, "ap")).contains("compared with 1"));
    }

    #[test]
    fn a_region_is_removed_when_nothing_is_left_there_and_nobody_lists_it() {
        let of = |all: &[(Region, Status)]| -> BTreeMap<Region, Status> { all.iter().cloned().collect() };
        let eu = core(1, "eu", &[(3, "ap", true, 0)]);
        let ap = core(3, "ap", &[(1, "eu", true, 2)]);
        assert!(waits(emptied(&of(std::slice::from_ref(&eu)), 3, "ap")).contains("--lost"));
        assert!(waits(emptied(&of(&[eu.clone(), ap.clone()]), 3, "ap")).contains("not heard yet"));
        assert!(waits(forgotten(&of(&[eu, ap.clone()]), 3, "ap")).ends_with("at: eu"));
        assert!(matches!(forgotten(&of(&[core(1, "eu", &[]), ap]), 3, "ap"), Step::Done(_)));
    }
}
