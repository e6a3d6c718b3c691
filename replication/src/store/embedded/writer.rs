//! The writer: one thread that commits whatever waits, as one group, and then answers.
//!
//! A commit costs a forced write, some hundred microseconds that no batch size makes longer; so the next group is
//! what arrived while the previous one was being written, and there is no timer to tune. All of a group (entries,
//! todo, rows) is one atomic batch of fjall. It is a thread and not a task because it blocks in `fdatasync`.
//!
//! Groups without an append or a synced put are handed to the operating system without forcing them; the next
//! forced write takes them along, or one made for them within [`LAZY_SYNC`].
//!
//! **A commit that fails ends the process** (through [`FailedSync`], which by default aborts). After a failed
//! `fdatasync` nobody knows what is durable: the kernel may have dropped the pages and report success for the
//! next one. Only reading the disk again, which is a restart, can tell.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fjall::{OwnedWriteBatch, Readable};
use tern_core::ids::{Identity, Rev};
use tern_core::limits::LAZY_SYNC;
use tern_core::store::{Append, Appended, Put, StoreError, Todo};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::super::conditions::{self, EPOCH_KEY, parse_epoch};
use super::super::format::{
    self, ArchiveMark, CLEAN_KEY, ENTRY_KEY_BYTES, LogId, PURGE_KEY, checkpoint_key, encode_entry, encode_erased,
    encode_opaque, encode_row, encode_todo, entry_key, erased_value, meta_key, parse_entry_key, row_key, row_rev,
    todo_key,
};
use super::super::limits::{DISK_CHECK_MS, DISK_FLOOR_BYTES, HEAD_CACHE};
use super::chores::Chores;
use super::heads::Heads;
use super::metrics::StoreMetrics;
use super::tables::{Head, HeadError, Tables, describe, read_entry};

/// Called with what failed when a commit failed or the writer panicked. The default logs and aborts the process.
/// If it returns, the store refuses all further writes.
pub type FailedSync = Arc<dyn Fn(&str) + Send + Sync>;

/// What the writer is asked for.
pub(super) enum Command {
    Append {
        batches: Vec<Append>,
        answer: oneshot::Sender<Vec<Appended>>,
        room: OwnedSemaphorePermit,
    },
    Put {
        puts: Vec<Put>,
        synced: bool,
        answer: oneshot::Sender<Result<(), StoreError>>,
        room: OwnedSemaphorePermit,
    },
    /// Runs are in the archive.
    Mark {
        log: LogId,
        marks: Marks,
        answer: oneshot::Sender<Result<bool, StoreError>>,
    },
    /// Entries that are in the archive go, these and no others.
    Trim {
        log: LogId,
        from: u64,
        to: u64,
        answer: oneshot::Sender<Result<bool, StoreError>>,
    },
    /// All erasures up to this number are out of the files.
    Purged {
        covered: u64,
    },
    Close {
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// Marks to be written.
pub(super) enum Marks {
    /// A run that follows those that are in the archive.
    New(u64, ArchiveMark),
    /// The run that begins there is in another object.
    Other { first: u64, old: ArchiveMark, new: ArchiveMark },
}

impl Command {
    fn erases(&self) -> bool {
        matches!(self, Self::Put { puts, .. } if puts.iter().any(|put| matches!(put, Put::Erase { .. })))
    }

    /// Reads what the commands before it may have written.
    fn reads(&self) -> bool {
        matches!(self, Self::Mark { .. } | Self::Trim { .. })
    }
}

/// What waits for the writer. Its size is bounded by permits that the commands carry.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    wake: Condvar,
}

#[derive(Default)]
struct QueueState {
    commands: Vec<Command>,
    /// The writer waits; waking it costs a system call, which is saved while it is busy.
    idle: bool,
    /// No more commands are taken.
    closed: bool,
    /// The writer ends at once and drops what waits.
    stopped: bool,
}

enum Taken {
    Group,
    SyncDue,
    Stopped,
}

impl Queue {
    /// Puts a command at the end. Dropped, and with it the sender of its answer, if the store was closed.
    pub(super) fn push(&self, command: Command) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return;
        }
        state.closed = matches!(command, Command::Close { .. });
        state.commands.push(command);
        let idle = state.idle;
        drop(state);
        if idle {
            self.wake.notify_one();
        }
    }

    /// Takes no more, drops what waits, and ends the writer after the commit that runs.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        state.stopped = true;
        state.commands.clear();
        drop(state);
        self.wake.notify_one();
    }

    /// Swaps all that waits into `group`, which is empty.
    fn take(&self, group: &mut Vec<Command>, sync_at: Option<Instant>) -> Taken {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.stopped {
                return Taken::Stopped;
            }
            if !state.commands.is_empty() {
                std::mem::swap(&mut state.commands, group);
                return Taken::Group;
            }
            state.idle = true;
            state = match sync_at.map(|at| at.saturating_duration_since(monotonic())) {
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => {
                    state.idle = false;
                    return Taken::SyncDue;
                }
                Some(left) => self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
            state.idle = false;
        }
    }
}

/// The embedded store is not for simulated time: its thread waits for a real disk.
pub(super) fn monotonic() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "drives nothing that is simulated")]
    Instant::now()
}

/// The wall clock in milliseconds, for what people read and what outlives a process.
pub(super) fn wall_ms() -> u64 {
    #[allow(clippy::disallowed_methods, reason = "drives nothing that is simulated")]
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What a group's commands are told once it is durable.
enum Answer {
    Append(oneshot::Sender<Vec<Appended>>, Vec<Appended>, OwnedSemaphorePermit),
    Put(oneshot::Sender<Result<(), StoreError>>, Result<(), StoreError>, OwnedSemaphorePermit),
    Archived(oneshot::Sender<Result<bool, StoreError>>, Result<bool, StoreError>),
}

/// A body that goes: of an entry, of what a repair put aside at its place, or both.
struct Erasure {
    key: [u8; ENTRY_KEY_BYTES],
    quarantined: bool,
    entry: Option<(Vec<u8>, Identity)>,
    /// The entry is in the archive, and this is who wrote it: the place is noted, and the object is written anew later.
    archived: Option<Identity>,
}

/// What a group has become, beside the batch itself.
#[derive(Default)]
struct Group {
    answers: Vec<Answer>,
    /// Revisions of the rows that this group touches: as stored, then as in the batch.
    revs: BTreeMap<Vec<u8>, Option<Rev>>,
    sync: bool,
    entries: u64,
    entry_bytes: u64,
    puts: u64,
    erasures: u64,
}

pub(super) struct Writer {
    queue: Arc<Queue>,
    pub(super) tables: Arc<Tables>,
    metrics: StoreMetrics,
    failed: FailedSync,
    pub(super) dir: PathBuf,
    reserve: u64,
    heads: Heads,
    /// Highest epoch seen.
    epoch: u64,
    chores: Arc<Chores>,
    /// The mark of erased bodies in old files is there.
    purge_noted: bool,
    /// The one that is stored.
    stored_epoch: u64,
    pub(super) value: Vec<u8>,
    free: u64,
    free_at: Option<Instant>,
    sync_at: Option<Instant>,
    pub(super) broken: Option<String>,
}

/// Reports a panic of the writer, and sees to it that nobody waits for a writer that has ended.
struct Watch(FailedSync, Arc<Queue>);

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)("the store's writer panicked");
        }
        self.1.stop();
    }
}

impl Writer {
    pub(super) fn new(
        queue: Arc<Queue>,
        chores: Arc<Chores>,
        tables: Arc<Tables>,
        metrics: StoreMetrics,
        failed: FailedSync,
        dir: PathBuf,
        reserve: u64,
    ) -> Result<Self, StoreError> {
        let epoch = tables.meta(EPOCH_KEY)?.and_then(|value| parse_epoch(&value)).unwrap_or(0);
        let purge = tables.opaque(PURGE_KEY)?;
        if let Some(since) = &purge {
            chores.erased_before(<[u8; 8]>::try_from(&since[..]).map_or(0, u64::from_be_bytes));
        }
        Ok(Self {
            queue,
            chores,
            purge_noted: purge.is_some(),
            tables,
            metrics,
            failed,
            dir,
            reserve,
            heads: Heads::new(HEAD_CACHE),
            epoch,
            stored_epoch: epoch,
            value: Vec::new(),
            free: u64::MAX,
            free_at: None,
            sync_at: None,
            broken: None,
        })
    }

    /// Runs until the store is closed or dropped.
    pub(super) fn run(mut self) {
        let queue = Arc::clone(&self.queue);
        let _watch = Watch(Arc::clone(&self.failed), Arc::clone(&queue));
        let mut commands = Vec::new();
        loop {
            match queue.take(&mut commands, self.sync_at) {
                Taken::Stopped => return,
                Taken::SyncDue => self.force(),
                Taken::Group => {
                    if let Some(closing) = self.commit(&mut commands) {
                        let result = self.close();
                        // Whoever asked for it may be gone; the store is closed all the same.
                        let _gone = closing.send(result);
                        return;
                    }
                }
            }
        }
    }

    /// Commits a group and answers it. Returns who asked to close, if it was the group's last command.
    fn commit(&mut self, commands: &mut Vec<Command>) -> Option<oneshot::Sender<Result<(), StoreError>>> {
        let mut closing = None;
        self.metrics.group_commands.observe(commands.len() as f64);
        let mut commands = commands.drain(..).peekable();
        while commands.peek().is_some() {
            closing = self.commit_some(&mut commands);
        }
        closing
    }

    /// Commits up to the next command that must read what the ones before it have written.
    fn commit_some(
        &mut self,
        commands: &mut Peekable<std::vec::Drain<'_, Command>>,
    ) -> Option<oneshot::Sender<Result<(), StoreError>>> {
        let started = monotonic();
        let mut group = Group::default();
        let mut closing = None;
        let mut batch = OwnedWriteBatch::with_capacity(self.tables.db.clone(), commands.len() * 2);
        self.check_disk(started);
        // An erasure reads the entry, which a batch that is not committed does not show.
        while let Some(command) =
            commands.next_if(|c| (group.entries == 0 || !c.erases()) && (batch.is_empty() || !c.reads()))
        {
            match command {
                Command::Append { batches, answer, room } => {
                    let results = batches.iter().map(|append| self.append(&mut batch, &mut group, append)).collect();
                    group.answers.push(Answer::Append(answer, results, room));
                }
                Command::Put { puts, synced, answer, room } => {
                    let result = self.put(&mut batch, &mut group, puts);
                    group.sync |= synced && result.is_ok();
                    group.answers.push(Answer::Put(answer, result, room));
                }
                Command::Mark { log, marks, answer } => {
                    let result = self.mark(&mut batch, log, &marks);
                    group.sync |= result == Ok(true);
                    group.answers.push(Answer::Archived(answer, result));
                }
                Command::Trim { log, from, to, answer } => {
                    let result = self.trim(&mut batch, log, from, to);
                    group.puts += 1;
                    group.answers.push(Answer::Archived(answer, result));
                }
                Command::Purged { covered } => self.purged(&mut batch, group.erasures, covered),
                Command::Close { answer } => closing = Some(answer),
            }
        }
        // A synced put that changed nothing still promises that what it repeats is durable.
        let forced = group.sync && (!batch.is_empty() || self.sync_at.is_some());
        let outcome = match (&self.broken, batch.is_empty()) {
            (Some(_), _) => Ok(()),
            (None, true) if forced => self.tables.sync(),
            (None, true) => Ok(()),
            (None, false) => self.tables.commit(batch, group.sync),
        };
        match outcome {
            Ok(()) => self.committed(&group, started, forced),
            Err(error) => self.fail(&format!("a commit of {} entries failed: {}", group.entries, describe(&error))),
        }
        let broken = self.broken.as_deref();
        for answer in group.answers {
            match answer {
                Answer::Append(answer, mut results, room) => {
                    // Before the answer: who is answered finds room for the next.
                    drop(room);
                    if let Some(what) = broken {
                        results.fill(Appended::Unknown(what.to_owned()));
                    }
                    // Whoever asked may be gone. What was decided stays decided.
                    let _gone = answer.send(results);
                }
                Answer::Archived(answer, result) => {
                    let result = broken.map_or(result, |what| Err(StoreError::Backend(what.to_owned())));
                    let _gone = answer.send(result);
                }
                Answer::Put(answer, result, room) => {
                    drop(room);
                    let result = broken.map_or(result, |what| Err(StoreError::Backend(what.to_owned())));
                    let _gone = answer.send(result);
                }
            }
        }
        closing
    }

    fn committed(&mut self, group: &Group, started: Instant, forced: bool) {
        let now = monotonic();
        if forced {
            self.sync_at = None;
            self.metrics.syncs.inc();
        } else if group.puts > 0 && self.sync_at.is_none() {
            // Counted from before the commit, so that nothing in it waits longer than promised.
            self.sync_at = Some(started + LAZY_SYNC - LAZY_MARGIN);
        }
        self.metrics.commits.inc();
        self.metrics.commit_seconds.observe((now - started).as_secs_f64());
        self.metrics.entries.inc_by(group.entries);
        self.metrics.entry_bytes.inc_by(group.entry_bytes);
        self.metrics.puts.inc_by(group.puts);
        if group.erasures > 0 {
            self.chores.erased(group.erasures);
        }
    }

    /// Takes away the mark of erased bodies in old files, or sets it anew for those that came during the purge.
    fn purged(&mut self, batch: &mut OwnedWriteBatch, in_group: u64, covered: u64) {
        let all = in_group == 0 && self.chores.erasures() == covered;
        batch.remove(&self.tables.state, PURGE_KEY);
        self.purge_noted = false;
        if !all {
            self.note_purge(batch);
        }
        self.chores.purged(all);
    }

    /// In the commit of an erasure: whatever happens next, its body will be purged.
    fn note_purge(&mut self, batch: &mut OwnedWriteBatch) {
        if !self.purge_noted {
            self.purge_noted = true;
            encode_opaque(&mut self.value, &wall_ms().to_be_bytes());
            batch.insert(&self.tables.state, PURGE_KEY, &self.value[..]);
        }
    }

    fn append(&mut self, batch: &mut OwnedWriteBatch, group: &mut Group, append: &Append) -> Appended {
        let log = LogId { conversation: append.conversation, origin: append.origin };
        let head = match self.check_append(append, log) {
            Ok(head) => head,
            Err(refused) => {
                self.metrics.refused.inc();
                return refused;
            }
        };
        let erased = match self.erased_above(log, head) {
            Ok(erased) => erased,
            Err(error) => {
                return Appended::Unknown(format!("erased places can't be read ({error}); nothing was written"));
            }
        };
        for todo in &append.todo {
            self.put_todo(batch, todo);
            group.puts += 1;
        }
        let mut chain = head.chain;
        let mut seq = head.seq;
        for entry in &append.entries {
            seq = entry.place.seq;
            let key = entry_key(log, seq);
            // A log that was cut fills again from peers: what was erased here stays erased, whatever they hold.
            let erase = !entry.erased && seq <= head.erased_to && erased.contains(&seq);
            if erase {
                chain = encode_entry(&mut self.value, &chain, &entry.to_erased());
            } else {
                chain = encode_entry(&mut self.value, &chain, entry);
            }
            batch.insert(&self.tables.entries, key, &self.value[..]);
            if entry.erased {
                encode_erased(&mut self.value, &entry.by);
                batch.insert(&self.tables.erased, key, &self.value[..]);
            }
            group.entry_bytes += self.value.len() as u64;
        }
        group.entries += append.entries.len() as u64;
        group.sync = true;
        // From here on the batch will be committed, or the process ends: later batches of the group build on it.
        self.heads.put(log, Head { seq, chain, erased_to: head.erased_to });
        Appended::Decided
    }

    /// Erased places that the log has not come to yet; none, and nothing is read, in a log that was never cut.
    fn erased_above(&self, log: LogId, head: Head) -> Result<BTreeSet<u64>, StoreError> {
        let mut erased = BTreeSet::new();
        if head.erased_to <= head.seq {
            return Ok(erased);
        }
        let places = entry_key(log, head.seq + 1)..=entry_key(log, head.erased_to);
        for row in self.tables.db.snapshot().range(&self.tables.erased, places) {
            erased.extend(parse_entry_key(&row.key().map_err(super::tables::backend)?).map(|(_, seq)| seq));
        }
        Ok(erased)
    }

    fn check_append(&mut self, append: &Append, log: LogId) -> Result<Head, Appended> {
        if append.epoch < self.epoch {
            return Err(Appended::Fenced);
        }
        self.epoch = append.epoch;
        if let Some(what) = &self.broken {
            return Err(Appended::Unknown(what.clone()));
        }
        if self.tables.refused(log).is_some() {
            return Err(Appended::Damaged);
        }
        if self.free < self.reserve {
            return Err(Appended::Full);
        }
        let head = match self.heads.get(log) {
            Some(head) => head,
            None => match self.tables.head(log) {
                Ok(head) => head,
                Err(HeadError::Damaged { .. }) => return Err(Appended::Damaged),
                Err(HeadError::Backend(error)) => {
                    return Err(Appended::Unknown(format!(
                        "the head of log {} of {} can't be read ({}); nothing was written",
                        append.conversation,
                        append.origin,
                        describe(&error)
                    )));
                }
            },
        };
        conditions::follows(append, head.seq).map_err(Appended::Unknown)?;
        Ok(head)
    }

    fn put(&mut self, batch: &mut OwnedWriteBatch, group: &mut Group, puts: Vec<Put>) -> Result<(), StoreError> {
        if let Some(what) = &self.broken {
            return Err(StoreError::Backend(what.clone()));
        }
        if self.free < DISK_FLOOR_BYTES.min(self.reserve) {
            return Err(StoreError::Backend(format!(
                "{} bytes are free on the store's disk, and below {DISK_FLOOR_BYTES} nothing is written",
                self.free
            )));
        }
        // Read before anything is added to the batch: an error must leave nothing of the put in it.
        let mut erasures = Vec::new();
        for put in &puts {
            match put {
                Put::Row { user, conversation, .. } => self.read_rev(group, row_key(user, *conversation))?,
                Put::Erase { conversation, origin, seq, by } => {
                    let log = LogId { conversation: *conversation, origin: *origin };
                    erasures.extend(self.erasure(log, *seq, by)?);
                }
                _ => {}
            }
        }
        for erasure in erasures {
            self.erase(batch, &erasure);
            group.erasures += 1;
        }
        for put in puts {
            match put {
                Put::Row { user, conversation, row } => {
                    let key = row_key(&user, conversation);
                    let known = group.revs.entry(key.clone()).or_default();
                    if known.is_some_and(|known| known >= row.rev) {
                        continue;
                    }
                    *known = Some(row.rev);
                    encode_row(&mut self.value, &row);
                    batch.insert(&self.tables.rows, key, &self.value[..]);
                }
                // Done above.
                Put::Erase { .. } => {}
                Put::Todo(todo) => self.put_todo(batch, &todo),
                Put::Checkpoint { conversation, value } => {
                    encode_opaque(&mut self.value, &value);
                    batch.insert(&self.tables.state, checkpoint_key(conversation), &self.value[..]);
                }
                Put::Meta { key, value } => {
                    if key == EPOCH_KEY {
                        let epoch = parse_epoch(&value).unwrap_or(0);
                        if epoch < self.stored_epoch {
                            continue;
                        }
                        self.stored_epoch = epoch;
                        self.epoch = self.epoch.max(epoch);
                    }
                    encode_opaque(&mut self.value, &value);
                    batch.insert(&self.tables.state, meta_key(&key), &self.value[..]);
                }
            }
            group.puts += 1;
        }
        Ok(())
    }

    /// Notes the stored revision of a row, unless the group knows a newer one.
    fn read_rev(&self, group: &mut Group, key: Vec<u8>) -> Result<(), StoreError> {
        if group.revs.contains_key(&key) {
            return Ok(());
        }
        let stored = self.tables.rows.get(&key).map_err(super::tables::backend)?;
        // A row that can't be read is replaced: rows can be made again, and keeping it helps nobody.
        group.revs.insert(key, stored.and_then(|value| row_rev(&value).ok()));
        Ok(())
    }

    fn put_todo(&mut self, batch: &mut OwnedWriteBatch, todo: &Todo) {
        let key = todo_key(todo.target, todo.conversation);
        if todo.prefix.is_empty() {
            batch.remove(&self.tables.todo, key);
        } else {
            encode_todo(&mut self.value, &todo.prefix, todo.user.as_ref());
            batch.insert(&self.tables.todo, key, &self.value[..]);
        }
    }

    /// What is to be written for an erasure; `None` where there is nothing to erase.
    fn erasure(&self, log: LogId, seq: u64, by: &Identity) -> Result<Option<Erasure>, StoreError> {
        let key = entry_key(log, seq);
        let quarantined = self.tables.quarantine.contains_key(key).map_err(super::tables::backend)?;
        let Some(value) = self.tables.entries.get(key).map_err(super::tables::backend)? else {
            let archived = self.is_whole_in_archive(log, seq)?.then(|| by.clone());
            let anything = quarantined || archived.is_some();
            return Ok(anything.then_some(Erasure { key, quarantined, entry: None, archived }));
        };
        let (chain, entry) = read_entry(log, seq, &value).map_err(|what| StoreError::Damaged {
            conversation: log.conversation,
            origin: log.origin,
            what: format!("entry {seq} can't be erased: {what}"),
        })?;
        if entry.erased && !quarantined {
            return Ok(None);
        }
        let entry = Some((erased_value(&chain, &entry), entry.by));
        Ok(Some(Erasure { key, quarantined, entry, archived: None }))
    }

    fn erase(&mut self, batch: &mut OwnedWriteBatch, erasure: &Erasure) {
        if let Some((value, by)) = &erasure.entry {
            batch.insert(&self.tables.entries, erasure.key, &value[..]);
            encode_erased(&mut self.value, by);
            batch.insert(&self.tables.erased, erasure.key, &self.value[..]);
            self.metrics.erased_entries.inc();
        }
        if let Some(by) = &erasure.archived {
            encode_erased(&mut self.value, by);
            batch.insert(&self.tables.erased, erasure.key, &self.value[..]);
            self.metrics.erased_entries.inc();
        }
        self.note_purge(batch);
        if erasure.quarantined {
            batch.remove(&self.tables.quarantine, erasure.key);
        }
    }

    /// Forces what was committed lazily.
    fn force(&mut self) {
        self.sync_at = None;
        if self.broken.is_some() {
            return;
        }
        match self.tables.sync() {
            Ok(()) => {
                self.metrics.syncs.inc();
            }
            Err(error) => self.fail(&format!("forcing the journal failed: {}", describe(&error))),
        }
    }

    /// Leaves the mark of a clean stop as the last thing in the journal.
    fn close(&mut self) -> Result<(), StoreError> {
        if let Some(what) = &self.broken {
            return Err(StoreError::Backend(what.clone()));
        }
        let mut batch = self.tables.db.batch();
        format::encode_opaque(&mut self.value, &[]);
        batch.insert(&self.tables.state, CLEAN_KEY, &self.value[..]);
        if let Err(error) = self.tables.commit(batch, true) {
            self.fail(&format!("the last commit failed: {}", describe(&error)));
            return Err(super::tables::backend(error));
        }
        Ok(())
    }

    fn fail(&mut self, what: &str) {
        (self.failed)(what);
        self.broken = Some(format!("{what}; what is durable is known only after a restart"));
    }

    fn check_disk(&mut self, now: Instant) {
        let due = self.free_at.is_none_or(|at| now.saturating_duration_since(at) >= DISK_CHECK);
        if !due {
            return;
        }
        self.free_at = Some(now);
        match super::open::free_bytes(&self.dir) {
            Ok(free) => {
                if (free < self.reserve) != (self.free < self.reserve) {
                    if free < self.reserve {
                        tracing::error!(
                            free_bytes = free,
                            reserve_bytes = self.reserve,
                            "the store's disk is nearly full: sends are refused until there is room"
                        );
                    } else if self.free != u64::MAX {
                        tracing::info!(free_bytes = free, "the store's disk has room again");
                    }
                }
                self.free = free;
                self.metrics.disk_free_bytes.set(free);
            }
            // What can't be told is not taken for full: a write would say so.
            Err(error) => tracing::warn!(%error, "free disk space can't be told"),
        }
        if let Ok(used) = self.tables.db.disk_space() {
            self.metrics.disk_used_bytes.set(used);
        }
    }
}

const DISK_CHECK: Duration = Duration::from_millis(DISK_CHECK_MS);
/// A forced write starts this much before [`LAZY_SYNC`] is over, because it takes time.
const LAZY_MARGIN: Duration = Duration::from_millis(100);
