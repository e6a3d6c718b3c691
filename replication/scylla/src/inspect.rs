//! A check of everything that a region holds: whether each log can be read from its first to its last entry.
//!
//! Nothing is written, and nothing is taken over: it may run beside the region. What is being appended meanwhile is
//! not looked at. What is in the archive is looked at run by run: the marks of a log must cover it without gaps, and each
//! object must be what its mark names, and follow from the one before.

use tern_core::ids::{ConvId, Origin, Seq};
use tern_core::store::{Range, Store, StoreError};
use tern_replication::store::archive::reads::not_configured;
use tern_replication::store::archive::seam::Marked;
use tern_replication::store::archive::{Archive, ArchiveError};
use tern_replication::store::format::{Chain, LogId};

use crate::store::ScyllaStore;
use crate::timeline::damaged;

/// Conversations that are listed at once.
const PAGE: usize = 256;
/// Bytes of entries that are read at once.
const READ_BYTES: usize = 1024 * 1024;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Conversations with entries.
    pub conversations: u64,
    /// Their logs.
    pub logs: u64,
    /// Entries that verify.
    pub entries: u64,
    /// Those of them that are in the archive.
    pub archived_entries: u64,
    /// In so many runs.
    pub archived_runs: u64,
    /// Todo rows.
    pub todo: u64,
    /// Users with rows.
    pub users: u64,
    /// Logs that do not verify: conversation, origin, and what is wrong.
    pub damaged: Vec<(ConvId, Origin, String)>,
}

/// Reads everything once. `store` should be one that has written nothing: it takes no conversation over then. Without
/// `reads_archive` it is only asked whether the objects of the archive are there, and as long as they were.
///
/// # Errors
/// The database's, and that the archive can't be read; damage is in the result.
pub async fn inspect(store: &ScyllaStore, reads_archive: bool) -> Result<Inspection, StoreError> {
    let mut found = Inspection { todo: store.todo().await?.len() as u64, ..Inspection::default() };
    let mut after = None;
    loop {
        let page = store.conversations(after, PAGE).await?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        for (conversation, heads) in page {
            found.conversations += 1;
            for (origin, head) in heads {
                found.logs += 1;
                let log = LogId { conversation, origin };
                let archived_to = match archived(store, log, reads_archive, &mut found).await {
                    Ok(archived_to) => archived_to,
                    Err(StoreError::Damaged { what, .. }) => {
                        found.damaged.push((conversation, origin, what));
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                found.entries += archived_to.min(head);
                match entries(store, log, archived_to, head).await {
                    Ok(entries) => found.entries += entries,
                    Err(StoreError::Damaged { what, .. }) => found.damaged.push((conversation, origin, what)),
                    Err(error) => return Err(error),
                }
            }
        }
    }
    let mut after = None;
    loop {
        let page = store.marks(after, PAGE).await?;
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        found.users += page.len() as u64;
    }
    Ok(found)
}

/// Looks at the runs of a log; up to where they go.
async fn archived(store: &ScyllaStore, log: LogId, reads: bool, found: &mut Inspection) -> Result<Seq, StoreError> {
    let (mut to, mut chain) = (0, Chain::default());
    for (first, mark) in store.archived.all(log).await? {
        found.archived_runs += 1;
        found.archived_entries += mark.last.saturating_sub(to);
        if first > to + 1 || mark.last < first {
            return Err(damaged(log, format!("entry {} is not in the archive, and those after it are", to + 1)));
        }
        let archive = store.archive().ok_or_else(|| not_configured(log))?;
        let before = match look(archive, log, (first, mark), reads).await {
            Err(error) => match store.archived.at(log, first).await? {
                // A pass has replaced it meanwhile.
                Some(now) if now != (first, mark) => look(archive, log, now, reads).await,
                _ => Err(error),
            },
            before => before,
        };
        // Two owners may have cut a bucket differently: then runs overlap.
        if before.map_err(|error| error.of(log))?.is_some_and(|before| first == to + 1 && before != chain) {
            return Err(damaged(log, format!("entry {first} in the archive does not follow from the one before")));
        }
        if mark.last > to {
            (to, chain) = (mark.last, mark.chain);
        }
    }
    Ok(to)
}

/// Looks at a run: what it follows, if it is read.
async fn look(
    archive: &Archive,
    log: LogId,
    (first, mark): Marked,
    reads: bool,
) -> Result<Option<Chain>, ArchiveError> {
    if reads {
        return archive.run_or_other(log, first, &mark, mark.store).await.map(|run| Some(run.before));
    }
    archive.is_there(log, first, &mark).await.map(|()| None)
}

/// Reads a log above what is in the archive; how many entries.
async fn entries(store: &ScyllaStore, log: LogId, archived_to: Seq, head: Seq) -> Result<u64, StoreError> {
    let mut seq = archived_to;
    while seq < head {
        let range = Range {
            conversation: log.conversation,
            origin: log.origin,
            from: seq + 1,
            to: head,
            max_entries: usize::MAX,
            max_bytes: READ_BYTES,
            backwards: false,
        };
        let entries = store.range(range).await?;
        let Some(last) = entries.last() else { break };
        seq = last.place.seq;
    }
    Ok(seq.saturating_sub(archived_to))
}
