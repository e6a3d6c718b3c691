//! `tern region cordon|uncordon` and `tern drain`: an order, given to the node on this machine, and what becomes of it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use tern_core::orders::Pace;
use tokio::time::sleep;

use super::desk::{Ordered, Progress, parse_pace};
use crate::admin;
use crate::cli::Global;
use crate::exit::Failure;
use crate::regions;
use crate::store::encode;

/// How often progress is asked for.
const ASK_EVERY: Duration = Duration::from_millis(300);

/// What to do with a region.
#[derive(Clone, Debug, Subcommand)]
pub enum RegionAction {
    /// Cut a region off for clients: no dispatch lists it, its edges send their clients elsewhere, and it goes on
    /// replicating. It may be dead, or another region than the node that is asked
    Cordon(CordonArgs),
    /// Let clients come back to a region
    Uncordon(UncordonArgs),
    /// Let a region that `peers` has newly listed join the running deployment: checks each step, and waits until it holds
    /// what the others hold before it takes clients
    Add(crate::regions::StepsArgs),
    /// Take a region out of the running deployment: waits until all that it holds is held elsewhere and nobody lists it
    Remove(crate::regions::RemoveArgs),
}

/// Options of `region cordon`.
#[derive(Clone, Debug, Args)]
pub struct CordonArgs {
    /// Its name, or its number
    #[arg(value_name = "REGION")]
    pub region: String,
    /// How fast clients leave each edge: "50/s", or a time for all of them, such as "10m" [default: edge.drain_window]
    #[arg(long, value_parser = parse_pace, value_name = "PACE")]
    pub pace: Option<Pace>,
    /// Wait until its clients are gone
    #[arg(long)]
    pub wait: bool,
    /// Also where no other region could take the clients
    #[arg(long)]
    pub force: bool,
}

/// Options of `region uncordon`.
#[derive(Clone, Debug, Args)]
pub struct UncordonArgs {
    /// Its name, or its number
    #[arg(value_name = "REGION")]
    pub region: String,
}

/// Options of `drain`.
#[derive(Clone, Debug, Args)]
pub struct DrainArgs {
    /// The node, such as eu-e2: an edge, or a core node of a region that several share
    #[arg(value_name = "NODE", required_unless_present = "region")]
    pub node: Option<String>,
    /// Instead: all of a region. Or, with NODE: which region's, where two have a node of that name
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    /// How fast clients leave each edge: "50/s", or a time for all of them, such as "10m" [default: edge.drain_window]
    #[arg(long, value_parser = parse_pace, value_name = "PACE")]
    pub pace: Option<Pace>,
    /// Take it back, also in the middle
    #[arg(long, conflicts_with_all = ["pace", "force", "no_wait"])]
    pub undo: bool,
    /// Do not wait until it is done
    #[arg(long)]
    pub no_wait: bool,
    /// Also where nobody could take the clients
    #[arg(long)]
    pub force: bool,
}

/// An order to be given.
struct Wish<'a> {
    leave: bool,
    node: Option<&'a str>,
    region: Option<&'a str>,
    pace: Option<Pace>,
    force: bool,
    wait: bool,
    /// Only until the clients are gone.
    for_clients: bool,
}

/// Runs `tern region cordon` or `uncordon`.
pub fn run_region(global: &Global, action: &RegionAction) -> Result<(), Failure> {
    let wish = match action {
        RegionAction::Add(args) => return regions::add(global, args),
        RegionAction::Remove(args) => return regions::remove(global, args),
        RegionAction::Cordon(args) => Wish {
            leave: true,
            node: None,
            region: Some(&args.region),
            pace: args.pace,
            force: args.force,
            wait: args.wait,
            for_clients: true,
        },
        RegionAction::Uncordon(args) => Wish {
            leave: false,
            node: None,
            region: Some(&args.region),
            pace: None,
            force: false,
            wait: false,
            for_clients: true,
        },
    };
    run(global, &wish)
}

/// Runs `tern drain`.
pub fn run_drain(global: &Global, args: &DrainArgs) -> Result<(), Failure> {
    let wish = Wish {
        leave: !args.undo,
        node: args.node.as_deref(),
        region: args.region.as_deref(),
        pace: args.pace,
        force: args.force,
        wait: !args.undo && !args.no_wait,
        for_clients: false,
    };
    run(global, &wish)
}

fn run(global: &Global, wish: &Wish<'_>) -> Result<(), Failure> {
    let at = crate::settings(global, &[])?.admin_listen();
    let mut query = vec![format!("force={}", wish.force)];
    query.extend(wish.node.map(|node| format!("node={}", encode(node))));
    query.extend(wish.region.map(|region| format!("region={}", encode(region))));
    query.extend(wish.pace.map(|pace| {
        let pace = match pace {
            Pace::PerSecond(n) => format!("{n}/s"),
            Pace::Within(window) => format!("{}ms", window.as_millis()),
            Pace::Configured => String::new(),
        };
        format!("pace={}", encode(&pace))
    }));
    let path = format!("/orders/{}?{}", if wish.leave { "leave" } else { "return" }, query.join("&"));
    let said = admin::post(at, &path).map_err(|error| match error.downcast_ref::<io::Error>() {
        Some(_) => error.context(format!(
            "the node at {at} can't be asked; if its admin listener is elsewhere, give its configuration, or --set \
             listen.admin=ADDRESS"
        )),
        None => error,
    })?;
    let ordered: Ordered = serde_json::from_str(&said).context("the node answers what this version does not know")?;
    if global.json {
        println!("{}", serde_json::json!(ordered));
    } else {
        println!("{}", in_words(&ordered));
        ordered.notes.iter().for_each(|note| println!("note: {note}"));
    }
    if wish.wait { crate::block_on(follow(at, ordered.progress, wish.for_clients, global.json)) } else { Ok(()) }
}

fn name_of(progress: &Progress) -> String {
    let region = progress.region_name.clone().unwrap_or_else(|| progress.region.to_string());
    match &progress.node {
        Some(node) => format!("{node} of region {region}"),
        None => format!("region {region}"),
    }
}

fn in_words(ordered: &Ordered) -> String {
    let progress = &ordered.progress;
    let name = name_of(progress);
    let already = if ordered.news { "" } else { " already" };
    match (progress.leave, &progress.node) {
        (true, None) => format!(
            "{name} is{already} cordoned: dispatch lists none of its edges, and its {} clients are sent elsewhere",
            progress.clients
        ),
        (true, Some(_)) => {
            format!("{name} is{already} being drained: its {} clients are sent elsewhere", progress.clients)
        }
        (false, None) => format!("{name} is{already} open to clients"),
        (false, Some(_)) => format!("{name}{already} takes clients"),
    }
}

/// Prints how far it has got, until it is done, or all clients have left, or it is taken back.
async fn follow(at: SocketAddr, mut last: Progress, for_clients: bool, json: bool) -> Result<(), Failure> {
    let mut told = None;
    loop {
        if told.as_ref() != Some(&last) {
            if json {
                println!("{}", serde_json::json!(last));
            } else {
                println!("{}", line(&last));
            }
            told = Some(last.clone());
        }
        let left = last.clients == 0 && last.leaving == last.edges;
        if last.done || (for_clients && left) {
            return Ok(());
        }
        sleep(ASK_EVERY).await;
        let said = tokio::task::block_in_place(|| admin::get(at, "/orders"))
            .context("the node that was asked is gone; the order stays in force")?;
        let all: Vec<Progress> =
            serde_json::from_str(&said).context("the node answers what this version does not know")?;
        let now = all.into_iter().find(|p| p.region == last.region && p.node == last.node);
        match now {
            Some(now) if now.leave => last = now,
            _ => return Err(Failure::Start(anyhow!("{} was taken back meanwhile", name_of(&last)))),
        }
    }
}

fn line(progress: &Progress) -> String {
    let mut left = vec![format!("{} clients left, edges: {}", progress.clients, progress.edges)];
    left.extend(progress.shares.map(|shares| format!("{shares} shares to hand over")));
    left.extend(progress.backlog.map(|n| format!("{n} conversations to be acked by other regions")));
    let state = if progress.done { "done" } else { "leaving" };
    format!("{:8} {}: {}", state, name_of(progress), left.join(", "))
}
