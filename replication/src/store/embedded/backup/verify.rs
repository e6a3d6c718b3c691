//! Checking a backup from its first to its last byte.
//!
//! Two questions: is the file what was written ([`super::format`] answers it, and an error is the answer), and
//! was the store that it was made of whole? The second is told as findings: a backup of a store with a damaged
//! log is the best there is of it.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::super::format::{
    ArchiveMark, Chain, LogId, decode_erased, decode_opaque, decode_row, decode_todo, link_of, parse_entry_key,
    parse_row_key, parse_todo_key,
};
use super::super::super::limits::FINDINGS_LISTED;
use super::super::tables::read_entry;
use super::super::tiering::mark_of;
use super::super::verify::{DamagedLog, Findings, Walk};
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
    if !reader.header().archived && !contents.archived.is_empty() {
        contents.unreadable.push("marks of archived entries, in a file that says that there are none".to_owned());
    }
    let (logs, unreadable) = contents.end();
    Ok(Verified { header: reader.header(), counts: reader.counts(), bytes: reader.bytes(), logs, unreadable })
}

#[derive(Default)]
struct Contents {
    logs: Findings,
    walk: Option<Walk>,
    /// Logs that begin above entry 1, with where they begin and the header of that entry: what is below must be in the
    /// archive, as the marks say that come later in the file.
    begun: BTreeMap<LogId, (u64, Chain, Vec<u8>)>,
    /// Up to where each of those is in the archive.
    archived: BTreeMap<LogId, (u64, Chain)>,
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
            Table::State if record.key.first() == Some(&b'a') => match mark_of(record.key, record.value) {
                Ok((log, (first, mark))) => {
                    self.mark(log, first, &mark);
                    return;
                }
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
                self.begin(log, seq, value)
            }
        };
        walk.take(&mut self.scratch, seq, value);
        self.walk = Some(walk);
    }

    /// Of a log whose first entries are in the archive the first one that is here is taken as it is, until its mark comes.
    fn begin(&mut self, log: LogId, seq: u64, value: &[u8]) -> Walk {
        let Some((chain, entry)) = (seq > 1).then(|| read_entry(log, seq, value).ok()).flatten() else {
            return Walk::new(log);
        };
        let header = value[17..].len().saturating_sub(4 + entry.body.len());
        self.begun.insert(log, (seq, chain, value[17..17 + header].to_vec()));
        Walk::behind(log, seq, chain)
    }

    fn mark(&mut self, log: LogId, first: u64, mark: &ArchiveMark) {
        let last = self.archived.insert(log, (mark.last, mark.chain));
        if first != last.map_or(0, |(last, _)| last) + 1 {
            let what = format!("entries before {first} are missing in the archive");
            self.damaged(log, first, what);
        }
    }

    fn damaged(&mut self, log: LogId, seq: u64, what: String) {
        let LogId { conversation, origin } = log;
        self.logs.damaged.push(DamagedLog { conversation, origin, seq, what });
    }

    fn end(mut self) -> (Findings, Vec<String>) {
        if let Some(walk) = self.walk.take() {
            walk.end(&mut self.logs);
        }
        for (log, (seq, chain, header)) in std::mem::take(&mut self.begun) {
            let follows = self.archived.get(&log).is_some_and(|(last, before)| {
                // As if it had no body: none of it is in the link.
                let stored = [&header[..], &[0; 4]].concat();
                last + 1 == seq && link_of(&mut self.scratch, before, &stored, 0) == Some(chain)
            });
            if !follows {
                self.damaged(log, seq, format!("entry {} is missing", seq - 1));
            }
        }
        (self.logs, self.unreadable)
    }
}
