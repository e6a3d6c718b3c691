//! Checking a store that nobody serves from, and repairing what can be derived.
//!
//! Problem: entries are the truth, and all else follows from them, some of it later. A store that lost something
//! can be wrong in ways that no read shows: a row that names entries which are not there, a row that will never
//! be brought up because its todo is gone, a checkpoint of another past.
//!
//! Rule: each table is compared with the logs, in one walk and bounded memory. A finding says what is wrong,
//! where, and what follows. A repair deletes no entry: what stands behind damage in a log is moved to quarantine,
//! and the store is marked, before the first cut, so that the next start takes a new era and compares all heads
//! with every peer. Rows that must change take revisions of an epoch that the repair claims for itself, so that
//! no client's cursor is above them (R7). Where fan-out has to run again, its todo is written: it may repeat.
//!
//! A repair may be killed anywhere and run again: it writes what a walk finds, and nothing twice.
//!
//! Reading order: `logs` (chains, cuts, erasures), `conversations` (checkpoints, members' rows), `derived` (rows,
//! todo and named values, each table by itself).

mod archived;
mod conversations;
mod derived;
mod logs;

use std::collections::{BTreeMap, BTreeSet};

use fjall::OwnedWriteBatch;
use tern_core::eras::EraTable;
use tern_core::ids::{ConvId, Heads, Region, Rev, UserId};
use tern_core::node::seal::ERAS_KEY;
use tern_core::store::{RowRecord, StoreError, Target};

use super::super::conditions::{EPOCH_KEY, parse_epoch};
use super::super::format::{encode_opaque, encode_row, encode_todo, meta_key, row_key, todo_key};
use super::super::limits::FINDINGS_LISTED;
use super::backup::REFILL_ALL_KEY;
use super::offline::Offline;
use super::tables::{Tables, backend};

/// Of what kind a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A part of the journal was damaged.
    Journal,
    /// A log does not verify.
    Log,
    /// Files can't be read.
    Unreadable,
    /// A body that was erased is there.
    Erasure,
    /// A checkpoint is not what its logs say.
    Checkpoint,
    /// A row is not what the logs say, or can't be read.
    Row,
    /// A row lacks entries, and no todo will bring it up.
    Lag,
    /// A todo row makes no sense.
    Todo,
    /// A named value makes no sense.
    Meta,
    /// An object of the archive is missing, or not what was written.
    Archive,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::Log => "log",
            Self::Unreadable => "unreadable",
            Self::Erasure => "erasure",
            Self::Checkpoint => "checkpoint",
            Self::Row => "row",
            Self::Lag => "lag",
            Self::Todo => "todo",
            Self::Meta => "meta",
            Self::Archive => "archive",
        }
    }

    /// What follows from it while it stays.
    pub fn consequence(self) -> &'static str {
        match self {
            Self::Journal => "acked writes are gone from this store; the next start takes a new era",
            Self::Log => "the log is refused: nothing of it is served, and nothing can be added",
            Self::Unreadable => "every conversation in it is refused",
            Self::Erasure => "an erased body can be read",
            Self::Checkpoint => "a conversation may be served with wrong members, or be slow to load",
            Self::Row => "a client is told of entries that are not there, or misses a change",
            Self::Lag => "a member is not told of entries that are there, until another one comes",
            Self::Todo => "work that was to be done may be left out, or asked for again and again",
            Self::Meta => "the region may not start",
            Self::Archive => {
                "old messages can't be read here; another region, or the object store's own copies, may have them"
            }
        }
    }

    /// What a repair does about it, if anything.
    pub fn repair(self) -> Option<&'static str> {
        match self {
            Self::Journal => Some("peers are asked for what they hold"),
            Self::Log => Some("the log is cut there, what was cut is kept in quarantine, and peers are asked"),
            Self::Unreadable => None,
            Self::Erasure => Some("the body is erased again"),
            Self::Checkpoint => Some("it is made anew from the logs"),
            Self::Row => Some("it is made to say what the logs say"),
            Self::Lag => Some("fan-out runs again"),
            Self::Todo => Some("it is removed, or lowered to what is there"),
            Self::Meta | Self::Archive => None,
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Of what kind.
    pub kind: Kind,
    /// Where.
    pub place: String,
    /// What.
    pub what: String,
    /// Whether a repair can do something about it.
    pub repairable: bool,
    /// Whether it has.
    pub repaired: bool,
}

/// What was read and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Logs read.
    pub logs: u64,
    /// Entries that verified.
    pub entries: u64,
    /// Conversations folded again.
    pub conversations: u64,
    /// Checkpoints compared.
    pub checkpoints: u64,
    /// Rows read.
    pub rows: u64,
    /// Todo rows read.
    pub todo: u64,
    /// Runs of entries in the archive.
    pub archived_runs: u64,
    /// Entries in them.
    pub archived_entries: u64,
    /// Entries that repairs have put aside, now and earlier.
    pub quarantined: u64,
    /// The first findings of all, in the order of the walk.
    pub findings: Vec<Finding>,
    /// How many there are of each kind, and how many of them were repaired.
    pub counts: BTreeMap<Kind, (u64, u64)>,
}

impl CheckReport {
    /// Findings that remain.
    pub fn remaining(&self) -> u64 {
        self.counts.values().map(|(found, repaired)| found - repaired).sum()
    }

    fn note(&mut self, kind: Kind, place: impl ToString, what: impl ToString, repairable: bool, repaired: bool) {
        let count = self.counts.entry(kind).or_default();
        count.0 += 1;
        count.1 += u64::from(repaired);
        if self.findings.len() < FINDINGS_LISTED {
            let (place, what) = (place.to_string(), what.to_string());
            self.findings.push(Finding { kind, place, what, repairable, repaired });
        }
    }
}

/// Writes that one commit takes.
const BATCH: usize = 1_000;

/// The walk.
struct Check<'a> {
    store: &'a Offline,
    tables: &'a Tables,
    repair: bool,
    report: CheckReport,
    batch: Option<OwnedWriteBatch>,
    value: Vec<u8>,
    /// Marked so that the next start asks peers.
    marked: bool,
    /// By which rows are folded.
    eras: EraTable,
    /// The highest epoch that any row may be of.
    epoch: u64,
    /// The revision that the next repaired row takes, once the repair has an epoch.
    rev: Option<Rev>,
    /// Conversations whose fan-out is noted.
    fan_out: BTreeSet<ConvId>,
    /// Objects of the archive are read, and not only looked for.
    reads_archive: bool,
    /// Conversations whose archived entries can't be read, or are not to be.
    unread: BTreeSet<ConvId>,
}

impl Offline {
    /// Compares everything with everything. With `repair`, does what can be done; run without it afterwards to see
    /// what remains. Every object of the archive is read; one that is damaged is a finding, and an archive that can't be
    /// reached ends the check.
    pub fn check(&self, repair: bool) -> Result<CheckReport, StoreError> {
        self.check_with(repair, true)
    }

    /// The same; without `reads_archive` it only looks whether the archive's objects are there and as long as they were,
    /// and what follows from their entries is not compared with them.
    pub fn check_with(&self, repair: bool, reads_archive: bool) -> Result<CheckReport, StoreError> {
        let epoch = self.tables.meta(EPOCH_KEY).ok().flatten().and_then(|value| parse_epoch(&value)).unwrap_or(0);
        let mut eras = EraTable::default();
        for region in 1..=Region::MAX {
            if let Some(value) = self.tables.meta(&format!("{ERAS_KEY}{region}")).ok().flatten() {
                eras.take_bytes(region, &value); // what is none is found with the named values
            }
        }
        let mut check = Check {
            store: self,
            tables: &self.tables,
            repair,
            report: CheckReport::default(),
            batch: None,
            value: Vec::new(),
            marked: false,
            eras,
            epoch,
            rev: None,
            fan_out: BTreeSet::new(),
            reads_archive,
            unread: BTreeSet::new(),
        };
        check.journal()?;
        check.logs()?;
        check.archived()?;
        check.erasures()?;
        check.read_fan_out();
        check.conversations()?;
        check.checkpoints_without_logs()?;
        check.rows()?;
        check.todo()?;
        check.meta()?;
        check.commit()?;
        Ok(check.report)
    }
}

impl Check<'_> {
    fn found(&mut self, kind: Kind, place: impl ToString, what: impl ToString) {
        let repairable = kind.repair().is_some();
        self.report.note(kind, place, what, repairable, repairable && self.repair);
    }

    fn not_repairable(&mut self, kind: Kind, place: impl ToString, what: impl ToString) {
        self.report.note(kind, place, what, false, false);
    }

    fn journal(&mut self) -> Result<(), StoreError> {
        for damage in self.store.journal_damage() {
            let what =
                format!("{} bytes were damaged; the file as it was is {}", damage.bytes, damage.kept_as.display());
            let place = format!("{} at byte {}", damage.file, damage.at);
            self.found(Kind::Journal, place, what);
            self.mark()?;
        }
        Ok(())
    }

    /// Before the first entry goes: the next start takes a new era and asks all peers for what they hold.
    fn mark(&mut self) -> Result<(), StoreError> {
        if !self.repair || self.marked {
            return Ok(());
        }
        self.marked = true;
        self.store.not_clean()?;
        encode_opaque(&mut self.value, &[1]);
        let mut batch = self.tables.db.batch();
        batch.insert(&self.tables.state, meta_key(REFILL_ALL_KEY), &self.value[..]);
        self.tables.commit(batch, true).map_err(backend)
    }

    fn batch(&mut self) -> Result<&mut OwnedWriteBatch, StoreError> {
        if self.batch.as_ref().is_some_and(|batch| batch.len() >= BATCH) {
            self.commit()?;
        }
        Ok(self.batch.get_or_insert_with(|| self.tables.db.batch()))
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        match self.batch.take() {
            Some(batch) => self.tables.commit(batch, true).map_err(backend),
            None => Ok(()),
        }
    }

    /// The next revision of the repair's own epoch, which is durable before it is used.
    fn next_rev(&mut self) -> Result<Rev, StoreError> {
        let rev = match self.rev {
            Some(rev) => rev.next(),
            None => {
                self.epoch += 1;
                encode_opaque(&mut self.value, &self.epoch.to_be_bytes());
                let mut batch = self.tables.db.batch();
                batch.insert(&self.tables.state, meta_key(EPOCH_KEY), &self.value[..]);
                self.tables.commit(batch, true).map_err(backend)?;
                Rev::start_of(self.epoch).next()
            }
        };
        self.rev = Some(rev);
        Ok(rev)
    }

    /// Writes a row that was changed, as the user's newest.
    fn rewrite(&mut self, user: &UserId, conversation: ConvId, mut row: RowRecord) -> Result<(), StoreError> {
        if !self.repair {
            return Ok(());
        }
        row.rev = self.next_rev()?;
        let mut value = Vec::new();
        encode_row(&mut value, &row);
        let rows = self.tables.rows.clone();
        self.batch()?.insert(&rows, row_key(user, conversation), &value[..]);
        Ok(())
    }

    /// Has fan-out run again at the next start.
    fn fan_out_again(&mut self, conversation: ConvId, heads: &Heads) -> Result<(), StoreError> {
        if !self.repair || heads.is_empty() || !self.fan_out.insert(conversation) {
            return Ok(());
        }
        let prefix: Heads = heads.keys().map(|origin| (*origin, 0)).collect();
        let mut value = Vec::new();
        encode_todo(&mut value, &prefix, None);
        let todo = self.tables.todo.clone();
        self.batch()?.insert(&todo, todo_key(Target::Fanout, conversation), &value[..]);
        Ok(())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
