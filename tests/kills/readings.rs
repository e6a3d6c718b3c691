//! Memory and file descriptors of the servers, from a warm-up under load to the end.
//!
//! What a process holds under load says little: it depends on how many clients happen to be with it. Two
//! comparisons say something:
//!
//! - At the end, when all clients have left, no process may hold more than it did under load before the first
//!   blow, but for a constant. (One that lived through everything may hold more memory: see the next.)
//! - A process that lived through the whole run must not have grown: what it held in the last quarter of its life
//!   against the second quarter, when caches and pools were filled. Medians, so that a burst is no growth.
//!
//! Memory is what a process allocated. All that is resident would be the wrong measure: pages of the program itself
//! come as code is run for the first time, and make each process grow for minutes.
//!
//! A descriptor that leaks with each reconnect, or a buffer kept for each dead peer, adds up over a hundred blows
//! and is seen by either.

use std::collections::BTreeMap;
use std::fmt::Write;

use tern::process::{allocated_bytes_of, open_files_of};

/// Descriptors more than in the warm-up, at the end and without clients. A process without traffic has fewer.
const FILES_MORE: i64 = 8;
/// Memory more than in the warm-up, at the end: what the run has made grow for good (memtables, heads of logs,
/// identities, slack of the allocator). Runs of a hundred blows showed at most a quarter of it.
const BYTES_MORE: i64 = 32 << 20;
/// Memory more in the last quarter of a life than in the second one. A region adds about 400 bytes a message until
/// its memtables are flushed, so much that hours of messages need them flushed to stay below this.
const LIFE_BYTES_MORE: i64 = 24 << 20;
/// Descriptors likewise: a region that goes on alone has links and clients of others.
const LIFE_FILES_MORE: i64 = 8;
/// Lives with fewer readings are too short to show growth.
const LIFE_READINGS: usize = 40;

/// What one process held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub bytes: i64,
    pub files: i64,
}

impl Reading {
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { bytes: allocated_bytes_of(pid)?, files: open_files_of(pid)? })
    }

    fn max(self, other: Self) -> Self {
        Self { bytes: self.bytes.max(other.bytes), files: self.files.max(other.files) }
    }
}

/// One server, through all its lives.
#[derive(Clone, Debug, Default)]
struct Column {
    warm: Reading,
    most: Reading,
    end: Reading,
    lives: u32,
    /// Of its life: it has one, or this says nothing.
    life: Vec<Reading>,
}

impl Column {
    /// Medians of the second and of the last quarter.
    fn quarters(&self) -> Option<(Reading, Reading)> {
        if self.lives > 1 || self.life.len() < LIFE_READINGS {
            return None;
        }
        let quarter = self.life.len() / 4;
        Some((median(&self.life[quarter..2 * quarter]), median(&self.life[3 * quarter..])))
    }
}

fn median(readings: &[Reading]) -> Reading {
    let middle = |of: fn(&Reading) -> i64| {
        let mut all: Vec<i64> = readings.iter().map(of).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    Reading { bytes: middle(|r| r.bytes), files: middle(|r| r.files) }
}

/// All servers.
#[derive(Debug, Default)]
pub struct Readings {
    columns: BTreeMap<String, Column>,
}

impl Readings {
    /// Before the first blow: what it may come back to.
    pub fn warm(&mut self, name: &str, reading: Reading) {
        let column = self.columns.entry(name.to_owned()).or_default();
        column.warm = column.warm.max(reading);
    }

    /// While blows fall.
    pub fn under_load(&mut self, name: &str, reading: Reading) {
        let column = self.columns.entry(name.to_owned()).or_default();
        column.most = column.most.max(reading);
        column.life.push(reading);
    }

    /// After everything.
    pub fn end(&mut self, name: &str, lives: u32, reading: Reading) {
        let column = self.columns.entry(name.to_owned()).or_default();
        (column.end, column.lives) = (reading, lives);
    }

    /// What has grown.
    pub fn growth(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, column) in &self.columns {
            let Column { warm, end, .. } = column;
            if let Some((early, late)) = column.quarters() {
                if late.files > early.files + LIFE_FILES_MORE {
                    found.push(format!("{name} went from {} to {} file descriptors", early.files, late.files));
                }
                if late.bytes > early.bytes + LIFE_BYTES_MORE {
                    let (early, late) = (early.bytes >> 20, late.bytes >> 20);
                    found.push(format!("{name} went from {early} to {late} MiB of memory in its life"));
                }
            }
            if end.files > warm.files + FILES_MORE {
                found.push(format!("{name} has {} file descriptors, {} in the warm-up", end.files, warm.files));
            }
            // One that lives through hours has filled its memtables, which no warm-up does.
            if column.quarters().is_none() && end.bytes > warm.bytes + BYTES_MORE {
                found.push(format!(
                    "{name} has {} MiB of memory, {} in the warm-up",
                    end.bytes >> 20,
                    warm.bytes >> 20
                ));
            }
        }
        found
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut out =
            String::from("process   lives   memory warm/most/end MiB   files warm/most/end   life, MiB and files\n");
        for (name, column) in &self.columns {
            let Column { warm, most, end, lives, .. } = column;
            let life = column.quarters().map_or_else(String::new, |(early, late)| {
                let mib = |r: Reading| r.bytes as f64 / f64::from(1 << 20);
                format!("{:.1} -> {:.1}  {} -> {}", mib(early), mib(late), early.files, late.files)
            });
            let memory = [warm, most, end].map(|r| (r.bytes >> 20).to_string()).join("/");
            let files = [warm, most, end].map(|r| r.files.to_string()).join("/");
            writeln!(out, "{name:<9} {lives:>5}   {memory:<24} {files:<21} {life}").unwrap();
        }
        out
    }
}

#[test]
fn growth_is_found_and_a_constant_is_none() {
    let reading = |mib: i64, files| Reading { bytes: mib << 20, files };
    let mut readings = Readings::default();
    for (name, end) in
        [("steady", reading(60, 30)), ("leaks-files", reading(60, 200)), ("leaks-memory", reading(300, 30))]
    {
        readings.warm(name, reading(50, 25));
        readings.under_load(name, reading(400, 300));
        readings.end(name, 1, end);
    }
    let growth = readings.growth();
    assert_eq!(growth.len(), 2, "{growth:?}");
    assert!(growth[0].starts_with("leaks-files") && growth[1].starts_with("leaks-memory"), "{growth:?}");
}

#[test]
fn a_life_that_grows_is_found_and_a_burst_is_none() {
    let life = |reading: &dyn Fn(i64) -> Reading| {
        let mut readings = Readings::default();
        readings.warm("x", Reading { bytes: 50 << 20, files: 30 });
        (0..200).for_each(|i| readings.under_load("x", reading(i)));
        readings.end("x", 1, Reading { bytes: 50 << 20, files: 30 });
        readings.growth()
    };
    let steady = life(&|i| Reading { bytes: (50 + 300 * i64::from(i % 20 == 0)) << 20, files: 30 + i % 7 });
    assert!(steady.is_empty(), "{steady:?}");
    assert_eq!(life(&|i| Reading { bytes: 50 << 20, files: 30 + i / 5 }).len(), 1);
    assert_eq!(life(&|i| Reading { bytes: (50 + i / 4) << 20, files: 30 }).len(), 1);
}
