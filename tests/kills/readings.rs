//! Memory and file descriptors of the servers, from a warm-up under load to the end.
//!
//! What a process holds under load says little: it depends on how many clients happen to be with it. What it
//! holds at the end, when all clients have left, must not be more than it held under load before the first blow,
//! but for a constant. A descriptor that leaks with each reconnect, or a buffer kept for each dead peer, adds up
//! over a hundred blows and is seen; a process that was started a moment ago shows nothing, so what any life grew
//! by is looked at as well.

use std::collections::BTreeMap;
use std::fmt::Write;

use tern::process::{open_files_of, resident_bytes_of};

/// Descriptors more than in the warm-up, at the end and without clients. A process without traffic has fewer.
const FILES_MORE: i64 = 8;
/// Memory more than in the warm-up: what the run has made grow for good (the heads of its logs, identities,
/// allocator slack after bursts), measured at a third of it. A leak of 10 KB a message or 1 MB a blow is more.
const BYTES_MORE: i64 = 48 << 20;

/// What one process held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub bytes: i64,
    pub files: i64,
}

impl Reading {
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { bytes: resident_bytes_of(pid)?, files: open_files_of(pid)? })
    }

    fn max(self, other: Self) -> Self {
        Self { bytes: self.bytes.max(other.bytes), files: self.files.max(other.files) }
    }
}

/// One server, through all its lives.
#[derive(Clone, Copy, Debug, Default)]
struct Column {
    warm: Reading,
    most: Reading,
    end: Reading,
    lives: u32,
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
    }

    /// After everything.
    pub fn end(&mut self, name: &str, lives: u32, reading: Reading) {
        let column = self.columns.entry(name.to_owned()).or_default();
        (column.end, column.lives) = (reading, lives);
    }

    /// What has grown.
    pub fn growth(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, Column { warm, end, .. }) in &self.columns {
            if end.files > warm.files + FILES_MORE {
                found.push(format!("{name} has {} file descriptors, {} in the warm-up", end.files, warm.files));
            }
            if end.bytes > warm.bytes + BYTES_MORE {
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
        let mut out = String::from("process   lives   memory warm/most/end MiB   files warm/most/end\n");
        for (name, Column { warm, most, end, lives }) in &self.columns {
            let memory = [warm, most, end].map(|r| (r.bytes >> 20).to_string()).join("/");
            let files = [warm, most, end].map(|r| r.files.to_string()).join("/");
            writeln!(out, "{name:<9} {lives:>5}   {memory:<25}  {files}").unwrap();
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
