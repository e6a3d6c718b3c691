//! Logs: their chains, the cuts of a repair, and whether what was erased is.

use fjall::Readable;
use tern_core::store::StoreError;

use super::super::super::format::{LogId, decode_erased, encode_erased, entry_key, erased_value, parse_entry_key};
use super::super::tables::{backend, describe, read_entry};
use super::super::verify::{self, Findings};
use super::{Check, Kind};

impl Check<'_> {
    /// Verifies every chain, and cuts what does not verify.
    pub(super) fn logs(&mut self) -> Result<(), StoreError> {
        let found = verify::verify(self.tables, || false).unwrap_or_default();
        (self.report.logs, self.report.entries) = (found.logs, found.entries);
        let mut refused = Findings { unreadable: found.unreadable.clone(), ..Findings::default() };
        for span in &found.unreadable {
            let place = format!("conversations {} to {}", span.from, span.to);
            let what = format!("{}: restore a backup, or start anew with --init", span.what);
            self.not_repairable(Kind::Unreadable, place, what);
        }
        for tail in &found.torn {
            let log = LogId { conversation: tail.conversation, origin: tail.origin };
            let what = format!("entries {} to {} do not verify: {}", tail.from, tail.to, tail.what);
            self.found(Kind::Log, place(log), what);
            self.cut(log, tail.from)?;
        }
        for damaged in found.damaged {
            let log = LogId { conversation: damaged.conversation, origin: damaged.origin };
            let what = format!("entry {}: {}", damaged.seq, damaged.what);
            if !self.can_be_read(log) {
                self.not_repairable(Kind::Unreadable, place(log), format!("{what}: restore a backup"));
                refused.damaged.push(damaged);
                continue;
            }
            self.found(Kind::Log, place(log), what);
            if self.repair {
                self.cut(log, damaged.seq)?;
            } else {
                refused.damaged.push(damaged);
            }
        }
        self.commit()?;
        // From here on as a start would see it.
        self.tables.damage.write().unwrap_or_else(std::sync::PoisonError::into_inner).add(&refused);
        self.report.quarantined = self.tables.quarantine.len().map_err(backend)? as u64;
        Ok(())
    }

    fn can_be_read(&self, log: LogId) -> bool {
        let all = entry_key(log, 0)..=entry_key(log, u64::MAX);
        self.tables.db.snapshot().range(&self.tables.entries, all).all(|row| row.into_inner().is_ok())
    }

    /// Moves a log's entries from `from` on to quarantine.
    fn cut(&mut self, log: LogId, from: u64) -> Result<(), StoreError> {
        if !self.repair {
            return Ok(());
        }
        self.mark()?;
        let (entries, quarantine) = (self.tables.entries.clone(), self.tables.quarantine.clone());
        let behind = entry_key(log, from)..=entry_key(log, u64::MAX);
        // From the end: a repair that dies in the middle leaves the same damage, with less behind it.
        for row in self.tables.db.snapshot().range(&self.tables.entries, behind).rev() {
            let (key, value) = row.into_inner().map_err(backend)?;
            let batch = self.batch()?;
            batch.insert(&quarantine, key.clone(), value);
            batch.remove(&entries, key);
        }
        Ok(())
    }

    /// Every place in the index of erasures that is held must be erased, and every erased entry in the index.
    pub(super) fn erasures(&mut self) -> Result<(), StoreError> {
        for row in self.tables.db.snapshot().iter(&self.tables.erased) {
            let (key, value) = match row.into_inner() {
                Ok(row) => row,
                Err(error) => {
                    self.not_repairable(Kind::Unreadable, "the index of erasures", describe(&error));
                    break;
                }
            };
            let Some((log, seq)) = parse_entry_key(&key) else {
                self.not_repairable(Kind::Erasure, "the index of erasures", "a key that is none");
                continue;
            };
            let held = self.tables.entries.get(&key).map_err(backend)?;
            let held = held.as_ref().and_then(|value| read_entry(log, seq, value).ok());
            let place = || format!("{} entry {seq}", place(log));
            match (held, decode_erased(&value)) {
                (Some((link, entry)), _) if !entry.erased => {
                    self.found(Kind::Erasure, place(), "it is listed as erased, and its body is there");
                    if self.repair {
                        let entries = self.tables.entries.clone();
                        self.batch()?.insert(&entries, key.clone(), erased_value(&link, &entry));
                    }
                }
                (Some((_, entry)), Err(error)) => {
                    self.found(Kind::Erasure, place(), error);
                    if self.repair {
                        let mut value = Vec::new();
                        encode_erased(&mut value, &entry.by);
                        let erased = self.tables.erased.clone();
                        self.batch()?.insert(&erased, key.clone(), &value[..]);
                    }
                }
                (None, Err(error)) => self.not_repairable(Kind::Erasure, place(), error),
                _ => {}
            }
        }
        self.commit()
    }
}

pub(super) fn place(log: LogId) -> String {
    format!("conversation {}, log of {}", log.conversation, log.origin)
}
