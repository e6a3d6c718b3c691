//! `tern dev`: several regions on this machine, until stopped.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::cli::{DevArgs, Global};
use crate::cluster::{Cluster, Process};
use crate::exit::Failure;
use crate::fleet::{Fleet, Ready};
use crate::stop::Stop;

/// How long children may take to drain before they are killed: more than `edge.drain_window`.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// How often it looks whether a child has ended by itself.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Starts the regions and stays.
pub fn run(global: &Global, args: &DevArgs) -> Result<(), Failure> {
    let settings = crate::settings(&Global { json: false, ..global.clone() }, &[])?;
    let data = absolute(settings.data)?;
    let mut cluster = Cluster::plan(data, &args.regions, args.base_port).map_err(|e| Failure::Usage(e.to_string()))?;
    cluster.geoip.clone_from(&args.geoip);
    if let Some(first) = args.regions.first() {
        cluster.add_edges(first, usize::from(args.edges));
    }
    if let Some(used) = cluster.port_in_use() {
        return Err(anyhow!("{used} is in use: give other ports with --base-port, or stop what uses them").into());
    }
    let processes = cluster.write()?;
    crate::block_on(async {
        let mut stop = Stop::watch(false)?;
        let mut fleet = Fleet::new(binary()?, &cluster.data)?;
        let ran = tokio::select! {
            biased;
            reason = stop.requested() => Ok(reason),
            ran = serve(&mut fleet, &cluster, &processes, global) => ran,
        };
        say(global.json, "stopping", &format!("{} processes", fleet.names().len()));
        fleet.stop(STOP_GRACE).await;
        ran.map(|_| ()).map_err(Failure::from)
    })
}

async fn serve(fleet: &mut Fleet, cluster: &Cluster, processes: &[Process], global: &Global) -> Result<&'static str> {
    for process in processes {
        let ready = start(fleet, process, global).await?;
        print_ready(global.json, process, &ready);
    }
    let data = cluster.data.display();
    if global.json {
        let endpoints = serde_json::to_value(cluster.endpoints())?;
        println!("{}", serde_json::json!({ "up": true, "data": cluster.data, "endpoints": endpoints }));
    } else {
        println!("data      {data} (logs in {data}/logs)");
        println!("join      tern chat --user alice --data {data}");
        println!("stop      Ctrl-C");
    }
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        while let Some((name, status)) = fleet.ended() {
            fleet.kill(&name).await;
            let again = processes.iter().find(|p| p.name == name).map_or_else(String::new, |p| p.arguments.join(" "));
            say(global.json, "ended", &format!("{name}: {status}; to start it again: tern {again}"));
        }
        if fleet.names().is_empty() {
            return Ok("all processes have ended");
        }
    }
}

/// Starts one process of a plan with the caller's logging.
pub async fn start(fleet: &mut Fleet, process: &Process, global: &Global) -> Result<Ready> {
    let mut arguments = process.arguments.clone();
    if let Some(log) = &global.log {
        arguments.extend(["--log".to_owned(), log.clone()]);
    }
    Ok(fleet.start(&process.name, &arguments).await?)
}

fn print_ready(json: bool, process: &Process, ready: &Ready) {
    if json {
        println!("{}", serde_json::json!({ "region": process.region, "node": ready }));
    } else {
        ready.print(false);
    }
}

fn say(json: bool, what: &str, text: &str) {
    if json {
        println!("{}", serde_json::json!({ "event": what, "text": text }));
    } else {
        println!("{what:<10}{text}");
    }
}

/// This program, to be started again as a child.
pub fn binary() -> Result<PathBuf> {
    std::env::current_exe().context("can't find this program's own file, which it starts again")
}

/// Children may have another working directory one day, and people copy paths.
pub fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("{} is no path", path.display()))
}
