//! Memory of the server per connection that does nothing, and the cost of connecting.
//!
//! Each transport gets a server of its own: memory that one left free would hide what the other needs. A few
//! connections come first, so that code and tables that exist once are not counted as theirs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use super::load::each;
use super::readings::{cpu_of, resident_of};
use super::report::Goal;
use super::session::{Dialer, QuicSession, TcpSession};
use super::{Bench, Server};

/// Connections before the first measured one.
const WARM: usize = 50;
/// Handshakes under way at once: what a reconnecting city looks like to an edge that paces itself.
const AT_ONCE: usize = 32;
/// Files of the generator and of the server that are not connections.
const OTHER_FILES: u64 = 200;
/// The server's memory has settled when it changed by less than a thousandth in this time.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// It is taken as it is after this time.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);
/// What the issue asks for.
const QUIC_KB_GOAL: f64 = 34.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Quic,
    Tcp,
}

/// A connection that is kept.
enum Held {
    Quic { _session: Box<QuicSession> },
    Tcp { _session: TcpSession },
}

/// See the module.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    for transport in [Transport::Quic, Transport::Tcp] {
        let server = bench.start_region().await?;
        let held = steps(bench, &server, transport).await;
        // The server first: its sockets then end without waiting for ours.
        bench.stop_region().await;
        held?;
    }
    Ok(())
}

/// All connections it made, still open.
async fn steps(bench: &mut Bench, server: &Server, transport: Transport) -> Result<Vec<Held>> {
    let name = match transport {
        Transport::Quic => "quic",
        Transport::Tcp => "tcp",
    };
    let mut wanted: Vec<usize> = bench.args.connections.iter().map(|n| *n as usize).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let most = usize::try_from(bench.files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX).saturating_sub(WARM);
    if transport == Transport::Tcp && wanted.iter().any(|n| *n > most) {
        let files = bench.files;
        bench.report.note(format!("only {files} files may be open: steps above {most} TCP connections were left out"));
        wanted.retain(|n| *n <= most);
    }
    let Some(last) = wanted.last().copied() else { return Ok(Vec::new()) };

    bench.report.progress(&format!("idle: {} connections over {name}", WARM + last));
    let tokens = Arc::new(bench.tokens("idle", WARM + last)?);
    let dialer = Dialer::new(bench, server)?;
    let env = bench.env.clone();
    let open = |from: usize, count: usize| {
        let (dialer, tokens) = (dialer.clone(), tokens.clone());
        each(&env, count, AT_ONCE, move |i| {
            let (dialer, tokens) = (dialer.clone(), tokens.clone());
            async move {
                let index = from + i;
                let (user, token) = &tokens[index];
                Ok(match transport {
                    Transport::Quic => Held::Quic { _session: Box::new(dialer.quic(index, user, token).await?) },
                    Transport::Tcp => Held::Tcp { _session: dialer.tcp(index, user, token).await? },
                })
            }
        })
    };
    let mut held = open(0, WARM).await?;
    let base = settled(server).await?;
    let (mut took, mut cpu) = (Duration::ZERO, Duration::ZERO);
    for step in wanted {
        let more = step + WARM - held.len();
        let (began, used) = (Instant::now(), cpu_of(server.pid)?);
        held.extend(open(held.len(), more).await?);
        took += began.elapsed();
        cpu += cpu_of(server.pid)?.saturating_sub(used);
        let grown = settled(server).await?.saturating_sub(base);
        let kb = grown as f64 / 1024.0 / step as f64;
        let key = format!("idle.{name}.{step}.memory");
        let meaning = format!("server memory (RSS) per idle connection, {step} open, three lanes each");
        match transport {
            Transport::Quic => bench.report.held(key, kb, "KB", Goal::AtMost(QUIC_KB_GOAL), meaning),
            Transport::Tcp => bench.report.add(key, kb, "KB", meaning),
        }
    }
    let opened = (held.len() - WARM) as f64;
    let report = &mut bench.report;
    let connect = |what: &str| format!("idle.{name}.connect.{what}");
    report.add(
        connect("rate"),
        opened / took.as_secs_f64(),
        "/s",
        format!("connections a second, {AT_ONCE} at once, both sides on this machine"),
    );
    report.add(
        connect("cpu"),
        cpu.as_secs_f64() * 1e6 / opened,
        "us",
        "server processor time per connect: handshake, token, welcome, lanes",
    );
    Ok(held)
}

/// The server's memory once it stops changing.
async fn settled(server: &Server) -> Result<u64> {
    let until = Instant::now() + SETTLED_WITHIN;
    let mut before = resident_of(server.pid)?;
    loop {
        sleep(LOOK_EVERY).await;
        let now = resident_of(server.pid)?;
        if now.abs_diff(before) < now / 1000 || Instant::now() >= until {
            return Ok(now);
        }
        before = now;
    }
}
