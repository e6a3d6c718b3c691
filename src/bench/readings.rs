//! What the kernel says about a server, what the server says about itself, and what the disk takes.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use tern_net::env::Env;
use tern_net::http::HttpClient;

use super::Server;
use super::latency::Latencies;

/// Clock ticks a second in `/proc`: fixed at 100 on every Linux that programs see.
const TICKS_PER_SECOND: u64 = 100;
/// Forced writes by which the disk is measured.
const FORCED_WRITES: usize = 200;
/// Bytes of each.
const FORCED_BYTES: usize = 4096;
/// `/metrics` is a few tens of KiB and answered within milliseconds.
const METRICS_BYTES: usize = 1 << 20;
const METRICS_WITHIN: Duration = Duration::from_secs(5);

/// Processor time that a process has used, all its threads, user and system.
pub fn cpu_of(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("can't read {path}: has the process ended?"))?;
    cpu_in(&stat).with_context(|| format!("{path} is not what Linux writes"))
}

fn cpu_in(stat: &str) -> Option<Duration> {
    // The second field is the name, in parentheses, and may hold anything; user and system time are the 14th
    // and 15th.
    let after_name = stat.get(stat.rfind(')')? + 1..)?;
    let mut fields = after_name.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Bytes of memory that a process holds, counted page by page.
pub fn resident_of(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("can't read {path}: has the process ended?"))?;
    resident_in(&text).with_context(|| format!("{path} is not what Linux writes"))
}

fn resident_in(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Threads that ran or waited for a processor, over the last minute, in the whole machine.
pub fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// The server's own counters.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Vec<(String, f64)>);

impl Metrics {
    /// Asks the server; empty where it has no admin listener.
    pub async fn read(env: &Env, server: &Server) -> Result<Self> {
        let Some(admin) = server.ready.admin else { return Ok(Self::default()) };
        let request = Request::get("/metrics").body(Full::<Bytes>::default())?;
        let client = HttpClient::new(env.clone(), None);
        let answer = client.request(admin, "localhost", request, METRICS_BYTES, METRICS_WITHIN).await?;
        Ok(Self::parse(&String::from_utf8_lossy(answer.body())))
    }

    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            samples
                .filter_map(|l| l.rsplit_once(' '))
                .filter_map(|(n, v)| Some((n.to_owned(), v.parse().ok()?)))
                .collect(),
        )
    }

    /// A sample by its whole name; 0 where there is none.
    pub fn get(&self, name: &str) -> f64 {
        self.0.iter().find(|(n, _)| n == name).map_or(0.0, |(_, value)| *value)
    }

    /// By how much a counter has grown since.
    pub fn since(&self, before: &Self, name: &str) -> f64 {
        self.get(name) - before.get(name)
    }
}

/// How long this disk takes to force 4 KiB.
pub fn forced_writes(dir: &Path) -> Result<Latencies> {
    let path = dir.join("forced");
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    let mut took = Latencies::default();
    for _ in 0..FORCED_WRITES {
        #[expect(clippy::disallowed_methods, reason = "a disk is timed, and nothing is simulated")]
        let began = Instant::now();
        file.write_all(&[0x5a; FORCED_BYTES])?;
        file.sync_data()?;
        took.add(began.elapsed());
    }
    fs::remove_file(&path)?;
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_understood() {
        let stat = "12 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 4 0 99";
        assert_eq!(cpu_in(stat), Some(Duration::from_secs(3)));
        assert_eq!(cpu_in("12 (a"), None);
        assert_eq!(resident_in("5-6 ---p 0 [rollup]\nRss:      2048 kB\nPss: 1 kB\n"), Some(2 << 20));
        assert_eq!(resident_in(""), None);
        assert!(load_average().is_some());
        let own = std::process::id();
        assert!(cpu_of(own).is_ok() && resident_of(own).unwrap() > 1 << 20);
    }

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let before = Metrics::parse("# HELP x_total y\nx_total 5\nx_sum 0.25\n");
        let after = Metrics::parse("x_total 9\nx_sum 1.75\n# EOF\n");
        assert_eq!(after.since(&before, "x_total"), 4.0);
        assert_eq!(after.since(&before, "x_sum"), 1.5);
        assert_eq!(after.since(&before, "x"), 0.0);
    }

    #[test]
    fn a_disk_is_measured_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let took = forced_writes(dir.path()).unwrap();
        assert_eq!(took.count(), u64::try_from(FORCED_WRITES).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
