//! The `tern` binary: one subcommand per role, and what they share. It wires the other crates together and
//! holds no logic of messaging.
//!
//! Reading order:
//!
//! 1. [`cli`], [`config`], [`exit`]: what a process is asked to be, and how it ends.
//! 2. [`node`]: what every role builds first: environment, certificates, keys.
//! 3. [`region`], [`edge`], [`ipconf`]: the roles. Each `run` reads as a story: build, serve, wait, drain.
//! 4. [`operations`]: what operators have of every role: [`admin`], [`health`], [`reload`], [`certs`],
//!    [`systemd`]; and [`logging`], [`stop`];
//!    [`routes`]: where a user is connected; [`orders`]: whom operators tell clients to leave; [`policies`]: where
//!    clients are to go; [`status`] and [`top`]:
//!    what is going on.
//! 5. [`pki`], [`token`]: keys for development and for small deployments.
//! 6. [`cluster`], [`fleet`]: several roles as processes on one machine; [`dev`] and [`demo`] use them.
//!    [`checker`] judges what devices show at the end of a run.
//! 7. [`chat`]: a client in a terminal.
//! 8. [`bench`](mod@bench): what a region costs on this machine.
//!
//! Invariants: a role reads its configuration at its start and when it is told to, and touches the outside through its
//! `Env`; standard output belongs to the command, standard error to the log; no child process outlives its parent;
//! nothing here prints a secret.
//!
//! It is a library with a thin `main`, so that tests in `tests/` can run a fleet of real processes with the
//! same code that `demo` uses.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod admin;
pub mod archive;
pub mod backend;
pub mod bench;
pub mod certs;
pub mod chat;
pub mod checker;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod database;
pub mod demo;
pub mod dev;
pub mod doctor;
pub mod edge;
pub mod exit;
pub mod fleet;
pub mod gossip;
pub mod health;
pub mod ipconf;
pub mod logging;
pub mod node;
pub mod operations;
pub mod orders;
pub mod pki;
pub mod policies;
pub mod ports;
pub mod process;
pub mod region;
pub mod regions;
pub mod reload;
pub mod routes;
pub mod status;
pub mod stop;
pub mod store;
pub mod systemd;
pub mod token;
pub mod top;
pub mod users;

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use cli::{Cli, Command, Global};
use config::{Settings, Sources};
use exit::Failure;

/// Parses the command line, runs the command, and returns the exit code: 0 fine, 1 a property failed,
/// 2 usage or configuration, 3 can't start.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let global = &cli.global;
    match &cli.command {
        Command::Token(args) => token::run(global, args),
        Command::Pki(args) => pki::run(global, args),
        Command::Config { action } => config::show::run(global, *action),
        Command::Dev(args) => dev::run(global, args),
        Command::Ipconf(args) => ipconf::run(global, args),
        Command::Region(cli::RegionArgs { action: Some(action), .. }) => orders::command::run_region(global, action),
        Command::Region(args) => region::run(global, args),
        Command::Top(args) => top::run(global, args),
        Command::Drain(args) => orders::command::run_drain(global, args),
        Command::Edge(args) => edge::run(global, args),
        Command::Store(args) => store::run(global, args),
        Command::User(args) => users::run(global, args),
        Command::Routes(args) => routes::run(global, args),
        Command::Doctor(args) => doctor::run(global, args),
        Command::Demo(args) => demo::run(global, args),
        Command::Chat(args) => chat::run(global, args),
        Command::Bench(args) => bench::run(global, args),
        Command::BenchFloor(args) => bench::floor::run(global, args),
    }
}

/// Reads the configuration of a command: its file, the environment, its flags.
pub fn settings(global: &Global, own: &[(&str, &str, String)]) -> Result<Settings, Failure> {
    Ok(sources(global, own)?.load()?)
}

/// Where the configuration of a command is read from.
pub fn sources(global: &Global, own: &[(&str, &str, String)]) -> Result<Sources, Failure> {
    let mut flags: Vec<(String, String, String)> = Vec::new();
    if let Some(data) = &global.data {
        flags.push(("--data".into(), "data".into(), data.display().to_string()));
    }
    if let Some(log) = &global.log {
        flags.push(("--log".into(), "log.level".into(), log.clone()));
    }
    if global.json {
        flags.push(("--json".into(), "log.json".into(), "true".into()));
    }
    flags.extend(own.iter().map(|(flag, key, value)| ((*flag).to_owned(), (*key).to_owned(), value.clone())));
    for setting in &global.set {
        let (key, value) = setting
            .split_once('=')
            .ok_or_else(|| Failure::Usage(format!("--set {setting}: expected KEY=VALUE, such as region.name=eu")))?;
        flags.push((format!("--set {key}"), key.to_owned(), value.to_owned()));
    }
    Ok(Sources { file: global.config.clone(), flags, environment: std::env::vars().collect() })
}

/// The flag of an own GeoIP file as a setting.
pub fn geoip_flag(file: Option<&Path>) -> Vec<(&'static str, &'static str, String)> {
    file.map(|file| ("--geoip", "dispatch.geoip", file.display().to_string())).into_iter().collect()
}

/// A configured duration as the wire has it; what does not fit is the longest there is.
pub fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Runs a command's future on a runtime of its own, and ends what the future left behind.
pub fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("tern")
        .build()
        .context("can't start the runtime")?;
    let result = runtime.block_on(future);
    runtime.shutdown_background();
    result
}
