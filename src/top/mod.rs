//! `tern top`: regions, nodes, links and orders of a running deployment, in a terminal or for a program.
//!
//! It begins with the node on this machine and asks whomever that names: nodes that it gossips with, and regions that it
//! is linked to. [`view`] makes one picture of what they say, and [`table`] shows it. A node that does not answer is
//! shown with what others say of it.

pub mod table;
pub mod view;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use rustix::termios::isatty;
use tern_core::clock::Clock;
use tern_net::system::SystemClock;
use tokio::time::sleep;

use crate::admin;
use crate::cli::Global;
use crate::config::value::parse_duration;
use crate::exit::Failure;
use crate::status::Status;
use view::{Answer, View};

/// A node that does not answer within this time is shown as one that does not.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Nodes that are asked, at most: others are shown by what these say.
const NODES: usize = 256;
/// Between the two looks of `--once`: rates are differences.
const ONCE_AFTER: Duration = Duration::from_secs(1);

/// Options of `top`.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// Look once and end. With the global --json: for programs
    #[arg(long)]
    pub once: bool,
    /// How often to look
    #[arg(long, default_value = "2s", value_parser = every, value_name = "TIME")]
    pub every: Duration,
    /// Admin addresses of further nodes; those that the first node names are found without. May be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub node: Vec<SocketAddr>,
}

fn every(text: &str) -> Result<Duration, String> {
    let every = parse_duration(text).filter(|every| *every >= Duration::from_millis(200));
    every.ok_or_else(|| "expected a time from 200ms on, such as 2s".to_owned())
}

/// Runs the command, until it is interrupted.
pub fn run(global: &Global, args: &TopArgs) -> Result<(), Failure> {
    let first = crate::settings(global, &[])?.admin_listen();
    let begin: Vec<SocketAddr> = std::iter::once(first).chain(args.node.iter().copied()).collect();
    let clears = !args.once && !global.json && isatty(io::stdout());
    crate::block_on(async {
        let mut before = look(&begin);
        if before.iter().all(|answer| answer.said.is_err()) {
            let why = before.first().and_then(|answer| answer.said.as_ref().err().cloned()).unwrap_or_default();
            return Err(Failure::Start(anyhow::anyhow!(
                "the node at {first} does not answer ({why}); if its admin listener is elsewhere, give its configuration, \
                 --set listen.admin=ADDRESS, or --node ADDRESS"
            )));
        }
        loop {
            sleep(if args.once { ONCE_AFTER } else { args.every }).await;
            let now = tokio::task::block_in_place(|| look(&begin));
            let view = View::of(&now, &before);
            let text = if global.json { format!("{}\n", serde_json::json!(view)) } else { table::show(&view) };
            let clear = if clears { "\x1b[H\x1b[J" } else { "" };
            let mut out = io::stdout().lock();
            write!(out, "{clear}{text}").and_then(|()| out.flush()).context("nobody reads this any more")?;
            drop(out);
            if args.once {
                return Ok(());
            }
            before = now;
        }
    })
}

/// Asks these, whomever they name, and so on.
pub(crate) fn look(begin: &[SocketAddr]) -> Vec<Answer> {
    let mut asked = BTreeSet::new();
    let mut next: Vec<SocketAddr> = begin.to_vec();
    let mut answers: Vec<Answer> = Vec::new();
    while !next.is_empty() {
        next.retain(|at| asked.insert(*at));
        next.truncate(NODES.saturating_sub(answers.len()));
        let found: Vec<Answer> = thread::scope(|threads| {
            let asking: Vec<_> = next.iter().map(|at| threads.spawn(|| ask(*at))).collect();
            asking.into_iter().filter_map(|answer| answer.join().ok()).collect()
        });
        next = found.iter().filter_map(|answer| answer.said.as_ref().ok()).flat_map(named).collect();
        answers.extend(found);
    }
    // A node may be reached in two ways.
    let mut known = BTreeSet::new();
    answers.retain(|answer| {
        answer.said.as_ref().map_or(true, |s| known.insert((s.region, s.role.clone(), s.node.clone())))
    });
    answers
}

fn ask(at: SocketAddr) -> Answer {
    let said = admin::get_within(at, "/status", ANSWER_WITHIN).map_err(|error| format!("{error:#}"));
    let said = said.and_then(|text| serde_json::from_str::<Status>(&text).map_err(|error| error.to_string()));
    Answer { at, said, when: SystemClock.now() }
}

/// Where the nodes that it names have their admin listeners, unless they are configured otherwise.
fn named(status: &Status) -> Vec<SocketAddr> {
    let members = status.members.iter().filter(|member| member.state != "down").map(|member| member.at);
    let beside = status.links.iter().filter_map(|link| {
        // One port above that for nodes.
        let node = link.at.to_socket_addrs().ok()?.next()?;
        Some(SocketAddr::new(node.ip(), node.port().checked_add(1)?))
    });
    members.chain(beside).collect()
}
