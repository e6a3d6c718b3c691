//! A check of everything that a region holds: whether each log can be read from its first to its last entry.
//!
//! Nothing is written, and nothing is taken over: it may run beside the region. What is being appended meanwhile is
//! not looked at.

use tern_core::ids::{ConvId, Origin};
use tern_core::store::{Range, Store, StoreError};

use crate::store::ScyllaStore;

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
    /// Todo rows.
    pub todo: u64,
    /// Users with rows.
    pub users: u64,
    /// Logs that do not verify: conversation, origin, and what is wrong.
    pub damaged: Vec<(ConvId, Origin, String)>,
}

/// Reads everything once. `store` should be one that has written nothing: it takes no conversation over then. The
/// error is the database's; damage is in the result.
pub async fn inspect(store: &ScyllaStore) -> Result<Inspection, StoreError> {
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
                match log(store, conversation, origin, head).await {
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

async fn log(store: &ScyllaStore, conversation: ConvId, origin: Origin, head: u64) -> Result<u64, StoreError> {
    let mut seq = 0;
    while seq < head {
        let range = Range {
            conversation,
            origin,
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
    Ok(seq)
}
