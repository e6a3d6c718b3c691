//! Checking a backup from its first to its last byte.
//!
//! Two questions: is the file what was written ([`super::format`] answers it, and an error is the answer), and
//! was the store that it was made of whole? The second is told as findings: a backup of a store with a damaged
//! log is the best there is of it.

use std::path::Path;

use super::super::super::format::{
    LogId, decode_erased, decode_opaque, decode_row, decode_todo, parse_entry_key, parse_row_key, parse_todo_key,
};
use super::super::super::limits::FINDINGS_LISTED;
use super::super::verify::{Findings, Walk};
use super::format::{Counts, Header, Kind, Record, Table};
use super::{BackupError, open_file, read_error, table_name};

/// A file that is whole.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Where it came from.
    pub header: Header,
    /// Records of each table.
    pub counts: Counts,
    /// Its length.
    pub bytes: u64,
    /// What was wrong with the logs of the store it was made of.
    pub logs: Findings,
    /// Values in it that can't be read, at most [`FINDINGS_LISTED`] of them.
    pub unreadable: Vec<String>,
}

impl Verified {
    /// Whether the store that it was made of was whole.
    pub fn is_sound(&self) -> bool {
        self.logs.damaged.is_empty() && self.logs.torn.is_empty() && self.unreadable.is_empty()
    }
}

/// Reads a backup to its end. Needs no store, and memory for one record.
pub fn verify(path: &Path) -> Result<Verified, BackupError> {
    verify_kind(path, Kind::Backup)
}

pub(super) fn verify_kind(path: &Path, kind: Kind) -> Result<Verified, BackupError> {
    let mut reader = open_file(path, kind)?;
    let mut contents = Contents::default();
    while let Some(record) = reader.read().map_err(|e| read_error(path, e))? {
        contents.take(&record);
    }
    let (logs, unreadable) = contents.end();
    Ok(Verified { header: reader.header(), counts: reader.counts(), bytes: reader.bytes(), logs, unreadable })
}

#[derive(Default)]
struct Contents {
    logs: Findings,
    walk: Option<Walk>,
    scratch: Vec<u8>,
    unreadable: Vec<String>,
}

impl Contents {
    fn take(&mut self, record: &Record<'_>) {
        let what = match record.table {
            Table::Entries => match parse_entry_key(record.key) {
                Some((log, seq)) => {
                    self.entry(log, seq, record.value);
                    return;
                }
                None => "its key is none".to_owned(),
            },
            Table::Rows if parse_row_key(record.key).is_none() => "its key is none".to_owned(),
            Table::Todo if parse_todo_key(record.key).is_none() => "its key is none".to_owned(),
            Table::Erased if parse_entry_key(record.key).is_none() => "its key is none".to_owned(),
            // Whatever a repair found.
            Table::Quarantine => return,
            Table::Rows => match decode_row(record.value) {
                Ok(_) => return,
                Err(error) => error.to_string(),
            },
            Table::Todo => match decode_todo(record.value) {
                Ok(_) => return,
                Err(error) => error.to_string(),
            },
            Table::State => match decode_opaque(record.value) {
                Ok(_) => return,
                Err(error) => error.to_string(),
            },
            Table::Erased => match decode_erased(record.value) {
                Ok(_) => return,
                Err(error) => error.to_string(),
            },
        };
        if self.unreadable.len() < FINDINGS_LISTED {
            let key: String = record.key.iter().map(|byte| format!("{byte:02x}")).collect();
            self.unreadable.push(format!("{} {key}: {what}", table_name(record.table)));
        }
    }

    fn entry(&mut self, log: LogId, seq: u64, value: &[u8]) {
        let mut walk = match self.walk.take() {
            Some(walk) if walk.log == log => walk,
            other => {
                if let Some(finished) = other {
                    finished.end(&mut self.logs);
                }
                Walk::new(log)
            }
        };
        walk.take(&mut self.scratch, seq, value);
        self.walk = Some(walk);
    }

    fn end(mut self) -> (Findings, Vec<String>) {
        if let Some(walk) = self.walk.take() {
            walk.end(&mut self.logs);
        }
        (self.logs, self.unreadable)
    }
}
