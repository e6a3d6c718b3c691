//! `tern bench`: what a region costs on this machine, in figures that mean the same on every machine.
//!
//! The server is a child process, `tern region` with one region, its own edge and its embedded store on a real
//! disk; this process is the load generator. So the kernel says which of the two used the processor, and the
//! figure that counts, processor time of the server per message, does not depend on how clever the generator
//! is. Both share this machine: rates are what both reach together.
//!
//! Six parts, each with the goal it is held against:
//!
//! - [`idle`]: memory of the server per connection that does nothing, and the cost of connecting;
//! - [`messages`]: direct messages, durable before the ack, closed loop and at half load;
//! - [`group`]: a group of 200 who are all online, and a device that comes back to 1,000 messages;
//! - [`overload`]: three times the load that the server carries, and a burst of ten times;
//! - [`dispatch`]: rankings on a core, and dispatch over HTTPS;
//! - [`routes`]: memory, wire and a full copy of the routes of another region with a million users.
//!
//! A figure alone says as much about the machine as about the program. So the same run measures a floor beside
//! it ([`floor`], a child process too): a bare quinn echo under the same load, an HTTPS server that answers
//! nothing, the time of one forced write. The ratios travel from machine to machine.
//!
//! [`session`] is a client reduced to the wire: no outbox, no local store, because the generator shares the
//! processors with what it measures. [`load`] runs clients in phases: warm up, measure, drain.
//! [`readings`] asks the kernel and `/metrics`; [`report`] prints.
//!
//! Nothing here asserts speed: a busy machine is not a failure. The exit code tells only whether it ran.

pub mod dispatch;
pub mod floor;
pub mod group;
pub mod idle;
pub mod latency;
pub mod load;
pub mod messages;
pub mod offering;
pub mod overload;
pub mod readings;
pub mod report;
pub mod routes;
pub mod session;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tern_core::ids::UserId;
use tern_net::env::Env;
use tern_net::system::system_env;
use tern_net::tls::client_tls;

use crate::cli::{BenchArgs, BenchPart, Global};
use crate::cluster::{Cluster, Process};
use crate::dev::{absolute, binary};
use crate::exit::Failure;
use crate::fleet::{Fleet, Ready};
use crate::stop::Stop;
use crate::token::Signer;

use report::Report;

/// First port tried; far from those of `dev`, which may be running.
const BASE_PORT: u16 = 17_400;
/// The region's place among those that [`crate::cluster`] knows.
const REGION: &str = "eu";
/// Tokens outlive any run.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// With more than this waiting for processors at the start, others are at work here.
const LOAD_TO_TELL: f64 = 0.5;
/// Sends per second and user that the server allows: the limit is not what is measured.
const SENDS_PER_SECOND: u32 = 1_000_000;

/// Runs the parts asked for, prints what they measured, and leaves nothing behind.
pub fn run(global: &Global, args: &BenchArgs) -> Result<(), Failure> {
    let files = raise_file_limit();
    let scratch = Scratch::make(global.data.as_deref())?;
    let report = crate::block_on(async {
        let mut stop = Stop::watch(false)?;
        let mut bench = Bench::plan(global, args, &scratch.0, files)?;
        let ran = tokio::select! {
            biased;
            reason = stop.requested() => Err(anyhow!("stopped by {reason} before the end")),
            ran = bench.measure() => ran,
        };
        let names = bench.fleet.names();
        bench.fleet.kill_all(&names).await;
        ran?;
        Ok(bench.report)
    })?;
    report.print(global.json);
    Ok(())
}

/// A run.
#[derive(Debug)]
pub struct Bench {
    args: BenchArgs,
    env: Env,
    cluster: Cluster,
    region: Process,
    fleet: Fleet,
    report: Report,
    /// Open files that this process, and each child, may have.
    files: u64,
}

/// A server at work.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its process id.
    pub pid: u32,
    /// Where it listens.
    pub ready: Ready,
}

impl Bench {
    fn plan(global: &Global, args: &BenchArgs, scratch: &Path, files: u64) -> Result<Self> {
        let env = system_env().context("the system gives no randomness or clock")?;
        let mut cluster = Cluster::plan(scratch.to_owned(), &[REGION.to_owned()], BASE_PORT)?;
        cluster.find_ports()?;
        let mut processes = cluster.write()?;
        let mut region = processes.pop().context("the plan has no region")?;
        let set = |key: &str, value: u32| ["--set".to_owned(), format!("{key}={value}")];
        region.arguments.extend(set("limits.sends_per_second", SENDS_PER_SECOND));
        region.arguments.extend(set("limits.sends_burst", SENDS_PER_SECOND));
        if let Some(log) = &global.log {
            region.arguments.extend(["--log".to_owned(), log.clone()]);
        }
        let fleet = Fleet::new(binary()?, scratch)?;
        let report = Report::new(global.json);
        Ok(Self { args: args.clone(), env, cluster, region, fleet, report, files })
    }

    async fn measure(&mut self) -> Result<()> {
        if cfg!(debug_assertions) {
            self.report.note("this is a debug build: times and rates say little; build with --release");
        }
        if let Some(load) = readings::load_average().filter(|load| *load > LOAD_TO_TELL) {
            self.report
                .note(format!("others were at work here (load average {load}): rates and latencies suffer most"));
        }
        let part = self.args.part;
        let wants = |one: BenchPart| part == BenchPart::All || part == one;
        if wants(BenchPart::Idle) {
            idle::measure(self).await?;
        }
        if wants(BenchPart::Messages) {
            messages::measure(self).await?;
        }
        if wants(BenchPart::Group) {
            group::measure(self).await?;
        }
        if wants(BenchPart::Overload) {
            overload::measure(self).await?;
        }
        if wants(BenchPart::Dispatch) {
            dispatch::measure(self).await?;
        }
        if wants(BenchPart::Routes) {
            routes::measure(self).await?;
        }
        Ok(())
    }

    /// Starts the region on an empty store.
    async fn start_region(&mut self) -> Result<Server> {
        self.stop_region().await;
        let store = self.cluster.data.join(&self.region.name).join("store");
        match std::fs::remove_dir_all(&store) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("can't empty {}", store.display()));
            }
            _ => {}
        }
        let (name, arguments) = (self.region.name.clone(), self.region.arguments.clone());
        self.start(&name, &arguments).await
    }

    async fn stop_region(&mut self) {
        let name = self.region.name.clone();
        self.fleet.kill(&name).await;
    }

    /// Starts the floor beside which the region is measured.
    async fn start_floor(&mut self) -> Result<Server> {
        let config = self.cluster.data.join(&self.region.name).join("tern.toml");
        let arguments = ["bench-floor".to_owned(), "--config".to_owned(), config.display().to_string()];
        self.start(floor::NAME, &arguments).await
    }

    async fn start(&mut self, name: &str, arguments: &[String]) -> Result<Server> {
        let ready = self.fleet.start(name, arguments).await?;
        let pid = self.fleet.pid(name).with_context(|| format!("process {name} has ended"))?;
        Ok(Server { pid, ready })
    }

    /// What this deployment's servers are trusted by.
    fn client_tls(&self, alpn: &[u8]) -> Result<Arc<rustls::ClientConfig>> {
        let path = self.cluster.endpoints().public_ca;
        let ca = std::fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
        Ok(client_tls(&ca, &[alpn], self.env.clock.clone())?)
    }

    /// Tokens for users `prefix-0` and so on; signed before anything is timed.
    fn tokens(&self, prefix: &str, count: usize) -> Result<Vec<(UserId, String)>> {
        let signer = Signer::open(&self.cluster.data.join("tokens.jwk"))?;
        let token = |i| {
            let user = UserId::new(&format!("{prefix}-{i}"))?;
            let token = signer.sign(&user, &self.cluster.deployment, TOKEN_TTL)?;
            Ok((user, token))
        };
        (0..count).map(token).collect()
    }
}

/// A directory of this run's own, removed at its end.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn make(below: Option<&Path>) -> Result<Self> {
        let below = absolute(below.map_or_else(std::env::temp_dir, Path::to_owned))?;
        let path = below.join(format!("tern-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("can't make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("tern: {} could not be removed ({error}); remove it by hand", self.0.display());
        }
    }
}

/// Allows as many open files as the system lets this process have, and says how many.
fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // A refusal leaves what there was; large steps are then left out and say so.
    let _refused = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
