//! The keyspaces of an embedded store, and everything that reads them.
//!
//! Reads take a snapshot: a commit inserts its rows one by one, and a reader without one could miss entry 4 of
//! a group and see entry 5.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use fjall::config::FilterPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable, Snapshot};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, Origin, UserId};
use tern_core::store::{ConversationHeads, ConversationImage, Range, RowRecord, StoreError, Todo, UserMarks};

use super::super::format::{
    Chain, FormatError, LogId, checkpoint_key, decode_opaque, decode_row, decode_todo, entry_key, log_prefix, meta_key,
    parse_entry_key, parse_row_key, parse_row_user, parse_todo_key, rows_prefix, split_entry,
};
use super::super::limits::{
    BACKGROUND_THREADS, ENTRIES_MEMTABLE_BYTES, JOURNAL_BYTES, RARE_MEMTABLE_BYTES, ROWS_MEMTABLE_BYTES,
    STATE_MEMTABLE_BYTES, TODO_MEMTABLE_BYTES,
};
use super::backup::Table;
use super::verify::Damage;

/// The newest entry of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub seq: u64,
    pub chain: Chain,
    /// Highest erased place of the log. Above `seq` only where a log was cut, or restored with erasures.
    pub erased_to: u64,
}

/// Why a log's head can't be told.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeadError {
    #[error("entry {seq}: {what}")]
    Damaged { seq: u64, what: String },
    #[error(transparent)]
    Backend(#[from] fjall::Error),
}

/// What its trees are called.
pub(super) const TREES: [&str; 6] = ["entries", "rows", "todo", "state", "erased", "quarantine"];

pub(super) struct Tables {
    pub entries: Keyspace,
    pub rows: Keyspace,
    pub todo: Keyspace,
    pub state: Keyspace,
    /// Places whose bodies were erased, and whose they were: small, read by exports, and where a log was cut.
    pub erased: Keyspace,
    /// What repairs took out of logs.
    pub quarantine: Keyspace,
    pub db: Database,
    /// Logs that are refused. Grows only when something is verified.
    pub damage: RwLock<Damage>,
    /// Something is in the archive: without it nobody looks for marks.
    pub has_marks: AtomicBool,
    #[cfg(test)]
    pub fail_commits: std::sync::atomic::AtomicBool,
}

impl Tables {
    /// Opens the database in `dir`, and makes the trees that it lacks.
    pub(super) fn open(dir: &std::path::Path, cache_bytes: u64) -> fjall::Result<Self> {
        let db = Database::builder(dir)
            .cache_size(cache_bytes)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(BACKGROUND_THREADS)
            .open()?;
        let keyspace = |name: &str, memtable: u64| {
            db.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(memtable))
        };
        // Entries are found by ranges only, which no filter helps.
        let entries = db.keyspace("entries", || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(ENTRIES_MEMTABLE_BYTES)
                .filter_policy(FilterPolicy::disabled())
        })?;
        let tables = Self {
            entries,
            rows: keyspace("rows", ROWS_MEMTABLE_BYTES)?,
            todo: keyspace("todo", TODO_MEMTABLE_BYTES)?,
            state: keyspace("state", STATE_MEMTABLE_BYTES)?,
            erased: keyspace("erased", RARE_MEMTABLE_BYTES)?,
            quarantine: keyspace("quarantine", RARE_MEMTABLE_BYTES)?,
            db,
            damage: RwLock::default(),
            has_marks: AtomicBool::new(false),
            #[cfg(test)]
            fail_commits: std::sync::atomic::AtomicBool::new(false),
        };
        tables.has_marks.store(tables.state.prefix(b"a").next().is_some(), Ordering::Release);
        Ok(tables)
    }

    /// The keyspace of a table.
    pub(super) fn of(&self, table: Table) -> &Keyspace {
        match table {
            Table::Entries => &self.entries,
            Table::Rows => &self.rows,
            Table::Todo => &self.todo,
            Table::State => &self.state,
            Table::Erased => &self.erased,
            Table::Quarantine => &self.quarantine,
        }
    }

    /// Commits, and with `sync` returns only when the journal is on the disk. An error leaves it open what is
    /// durable, and fjall takes no more writes.
    pub(super) fn commit(&self, batch: OwnedWriteBatch, sync: bool) -> fjall::Result<()> {
        #[cfg(test)]
        if self.fail_commits.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(fjall::Error::Poisoned);
        }
        batch.durability(Some(if sync { PersistMode::SyncData } else { PersistMode::Buffer })).commit()
    }

    /// Forces what was committed lazily.
    pub(super) fn sync(&self) -> fjall::Result<()> {
        self.db.persist(PersistMode::SyncData)
    }

    /// The place and kind of a log's damage, if it is refused.
    pub(super) fn refused(&self, log: LogId) -> Option<String> {
        self.damage.read().unwrap_or_else(PoisonError::into_inner).of(log)
    }

    /// The head of a log; its seq is 0 where there are no entries.
    pub(super) fn head(&self, log: LogId) -> Result<Head, HeadError> {
        let snapshot = self.db.snapshot();
        let all = entry_key(log, 0)..=entry_key(log, u64::MAX);
        let erased_to = match snapshot.range(&self.erased, all.clone()).next_back() {
            Some(last) => parse_entry_key(&last.key()?).map_or(0, |(_, seq)| seq),
            None => 0,
        };
        let archived = || {
            let head = self.archived_head(&snapshot, log);
            head.map_err(|error| HeadError::Damaged { seq: 0, what: error.to_string() })
        };
        let Some(newest) = snapshot.range(&self.entries, all).next_back() else {
            return Ok(Head { erased_to, ..archived()?.unwrap_or_default() });
        };
        let (key, value) = newest.into_inner()?;
        let seq = parse_entry_key(&key).map_or(0, |(_, seq)| seq);
        if let Some(head) = archived()?.filter(|head| head.seq >= seq) {
            // What still stands here is what waits to be removed.
            return Ok(Head { erased_to, ..head });
        }
        let (chain, _) = read_entry(log, seq, &value).map_err(|what| HeadError::Damaged { seq, what })?;
        Ok(Head { seq, chain, erased_to })
    }

    pub(super) fn conversation(&self, conversation: ConvId) -> Result<ConversationImage, StoreError> {
        let snapshot = self.db.snapshot();
        let mut image = ConversationImage::default();
        {
            let damage = self.damage.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(what) = damage.span_over(conversation) {
                return Err(StoreError::Damaged { conversation, origin: Origin { region: 0, era: 0 }, what });
            }
            image.damaged = damage.of_conversation(conversation);
        }
        // From the last log to the first: one seek each, however long they are.
        let mut end = entry_key(LogId { conversation, origin: Origin { region: u8::MAX, era: u64::MAX } }, u64::MAX);
        let start = log_prefix(LogId { conversation, origin: Origin { region: 0, era: 0 } });
        while let Some(newest) = snapshot.range(&self.entries, &start[..]..=&end[..]).next_back() {
            let log = match newest.into_inner() {
                Ok((key, value)) => {
                    let (log, seq) =
                        parse_entry_key(&key).ok_or(FormatError::Malformed("entry's key")).map_err(malformed)?;
                    match read_entry(log, seq, &value) {
                        Ok((_, entry)) => {
                            image.highest_hlc = image.highest_hlc.max(entry.place.hlc);
                            if !image.damaged.contains_key(&log.origin) {
                                image.heads.insert(log.origin, seq);
                            }
                        }
                        // In the archive it is whole.
                        Err(_) if seq <= self.archived_to(&snapshot, log)? => {}
                        Err(what) => {
                            image.damaged.entry(log.origin).or_insert_with(|| format!("entry {seq}: {what}"));
                        }
                    }
                    log
                }
                // Expected within a log that is refused for it; the other logs are still told.
                Err(error) => {
                    let refused = image.damaged.keys().rev().map(|origin| LogId { conversation, origin: *origin });
                    let Some(log) = refused.into_iter().find(|log| entry_key(*log, 0) < end) else {
                        return Err(backend(error));
                    };
                    log
                }
            };
            end = entry_key(log, 0);
        }
        let is_refused = |origin: &Origin| image.damaged.contains_key(origin);
        let highest = self.add_archived(&snapshot, conversation, &mut image.heads, is_refused)?;
        image.highest_hlc = image.highest_hlc.max(highest);
        image.checkpoint = self.opaque(&checkpoint_key(conversation))?;
        Ok(image)
    }

    /// What the table has of a range, all of which is above what is in the archive.
    pub(super) fn range(&self, snapshot: &Snapshot, range: &Range) -> Result<Vec<std::sync::Arc<Entry>>, StoreError> {
        let log = LogId { conversation: range.conversation, origin: range.origin };
        let damaged = |what: String| StoreError::Damaged { conversation: log.conversation, origin: log.origin, what };
        if let Some(what) = self.refused(log) {
            return Err(damaged(what));
        }
        let from = range.from.max(1);
        if from > range.to || range.max_entries == 0 {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut expected = if range.backwards { None } else { Some(from) };
        let mut rows = snapshot.range(&self.entries, entry_key(log, from)..=entry_key(log, range.to));
        while let Some(row) = if range.backwards { rows.next_back() } else { rows.next() } {
            let (key, value) = row.into_inner().map_err(backend)?;
            let Some((_, seq)) = parse_entry_key(&key) else { return Err(damaged("a key that is none".to_owned())) };
            if let Some(expected) = expected.filter(|expected| *expected != seq) {
                return Err(damaged(format!("entry {expected} is missing")));
            }
            let (_, entry) = read_entry(log, seq, &value).map_err(|what| damaged(format!("entry {seq}: {what}")))?;
            bytes += entry.encoded_len();
            found.push(std::sync::Arc::new(entry));
            if found.len() >= range.max_entries || bytes >= range.max_bytes {
                break;
            }
            expected = Some(if range.backwards { seq.saturating_sub(1) } else { seq + 1 });
        }
        Ok(found)
    }

    pub(super) fn rows(&self, user: &UserId) -> Result<Vec<(ConvId, RowRecord)>, StoreError> {
        let mut found = Vec::new();
        for row in self.db.snapshot().prefix(&self.rows, rows_prefix(user)) {
            let (key, value) = row.into_inner().map_err(backend)?;
            let conversation = parse_row_key(&key).ok_or(FormatError::Malformed("row's key")).map_err(malformed)?;
            found.push((conversation, decode_row(&value).map_err(malformed)?));
        }
        Ok(found)
    }

    pub(super) fn marks(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserMarks>, StoreError> {
        let mut start = Vec::new();
        if let Some(after) = after {
            // Above all keys of this user, below those of the next.
            start = rows_prefix(after);
            start.extend([0xff; 17]);
        }
        let mut found: Vec<UserMarks> = Vec::new();
        for row in self.db.snapshot().range(&self.rows, start..) {
            let (key, value) = row.into_inner().map_err(backend)?;
            let (Some(user), Some(conversation)) = (parse_row_user(&key), parse_row_key(&key)) else { continue };
            if found.last().is_none_or(|(last, _)| *last != user) {
                if found.len() >= limit {
                    break;
                }
                found.push((user, Vec::new()));
            }
            let read = decode_row(&value).map(|row| row.read).unwrap_or_default();
            if let Some((_, marks)) = found.last_mut().filter(|_| !read.is_empty()) {
                marks.push((conversation, read));
            }
        }
        Ok(found)
    }

    pub(super) fn todo(&self) -> Result<Vec<Todo>, StoreError> {
        let mut found = Vec::new();
        for row in self.db.snapshot().iter(&self.todo) {
            let (key, value) = row.into_inner().map_err(backend)?;
            let (target, conversation) =
                parse_todo_key(&key).ok_or(FormatError::Malformed("todo row's key")).map_err(malformed)?;
            let (prefix, user) = decode_todo(&value).map_err(malformed)?;
            found.push(Todo { target, conversation, prefix, user });
        }
        Ok(found)
    }

    pub(super) fn conversations(
        &self,
        after: Option<ConvId>,
        limit: usize,
    ) -> Result<Vec<ConversationHeads>, StoreError> {
        let snapshot = self.db.snapshot();
        let mut found: Vec<ConversationHeads> = Vec::new();
        let mut start = match after {
            Some(after) => match following(after) {
                Some(start) => start,
                None => return Ok(found),
            },
            None => ConvId([0; 16]),
        };
        while found.len() < limit {
            let archived = self.archived_conversation(&snapshot, start)?;
            let first = snapshot.range(&self.entries, &start.0[..]..).next().map(fjall::Guard::key);
            let held = match first {
                None => None,
                Some(Ok(key)) => Some(
                    parse_entry_key(&key)
                        .map(|(log, _)| log.conversation)
                        .ok_or(FormatError::Malformed("entry's key"))
                        .map_err(malformed)?,
                ),
                // A stretch that can't be read was noted when the store was opened; the rest is listed.
                Some(Err(error)) => {
                    let damage = self.damage.read().unwrap_or_else(PoisonError::into_inner);
                    Some(damage.end_of_span(start).ok_or_else(|| backend(error))?)
                }
            };
            let Some(conversation) = held.into_iter().chain(archived).min() else { break };
            if found.last().is_none_or(|(last, _)| *last != conversation) {
                found.push((conversation, self.heads(&snapshot, conversation)?));
            }
            match following(conversation) {
                Some(next) => start = next,
                None => break,
            }
        }
        Ok(found)
    }

    /// Whether a log of the conversation is refused, or all of it.
    pub(super) fn is_refused(&self, conversation: ConvId) -> bool {
        let damage = self.damage.read().unwrap_or_else(PoisonError::into_inner);
        damage.span_over(conversation).is_some() || !damage.of_conversation(conversation).is_empty()
    }

    /// The head of each log that is not refused: keys only, one seek a log.
    pub(super) fn heads(&self, snapshot: &Snapshot, conversation: ConvId) -> Result<Heads, StoreError> {
        let (refused, unreadable) = {
            let damage = self.damage.read().unwrap_or_else(PoisonError::into_inner);
            (damage.of_conversation(conversation), damage.span_over(conversation).is_some())
        };
        let mut heads = Heads::new();
        if unreadable {
            return Ok(heads);
        }
        let mut end = entry_key(LogId { conversation, origin: Origin { region: u8::MAX, era: u64::MAX } }, u64::MAX);
        let start = log_prefix(LogId { conversation, origin: Origin { region: 0, era: 0 } });
        while let Some(newest) = snapshot.range(&self.entries, &start[..]..=&end[..]).next_back() {
            let log = match newest.key() {
                Ok(key) => {
                    let (log, seq) =
                        parse_entry_key(&key).ok_or(FormatError::Malformed("entry's key")).map_err(malformed)?;
                    if !refused.contains_key(&log.origin) {
                        heads.insert(log.origin, seq);
                    }
                    log
                }
                // Expected within a log that is refused for it; the other logs are still told.
                Err(error) => {
                    let logs = refused.keys().rev().map(|origin| LogId { conversation, origin: *origin });
                    let Some(log) = logs.into_iter().find(|log| entry_key(*log, 0) < end) else {
                        return Err(backend(error));
                    };
                    log
                }
            };
            end = entry_key(log, 0);
        }
        self.add_archived(snapshot, conversation, &mut heads, |origin| refused.contains_key(origin))?;
        Ok(heads)
    }

    pub(super) fn meta(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.opaque(&meta_key(name))
    }

    pub(super) fn opaque(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.state.get(key).map_err(backend)?.map(|value| decode_opaque(&value)).transpose().map_err(malformed)
    }
}

/// Reads a row of `entries`: it must be the entry that its key names, with the body that its header names.
pub(super) fn read_entry(log: LogId, seq: u64, value: &[u8]) -> Result<(Chain, Entry), String> {
    let (chain, stored) = split_entry(value).map_err(|e| e.to_string())?;
    let entry = Entry::decode(Bytes::copy_from_slice(stored)).map_err(|e| e.to_string())?;
    if entry.place.origin == log.origin && entry.place.seq == seq {
        Ok((chain, entry))
    } else {
        Err(format!("it says that it is entry {} of {}", entry.place.seq, entry.place.origin))
    }
}

/// The next id in order.
fn following(conversation: ConvId) -> Option<ConvId> {
    u128::from_be_bytes(conversation.0).checked_add(1).map(|next| ConvId(next.to_be_bytes()))
}

pub(super) fn backend(error: fjall::Error) -> StoreError {
    StoreError::Backend(describe(&error))
}

/// fjall's errors show as their debug form; this is the part that says something.
pub(super) fn describe(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error.to_string(),
        fjall::Error::Storage(fjall::LsmError::ChecksumMismatch { .. }) => {
            "a block on the disk does not match its checksum".to_owned()
        }
        fjall::Error::Poisoned => "an earlier write failed; only a restart can tell what is durable".to_owned(),
        other => format!("{other:?}"),
    }
}

pub(super) fn malformed(error: FormatError) -> StoreError {
    StoreError::Backend(error.to_string())
}
