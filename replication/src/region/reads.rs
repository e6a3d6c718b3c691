//! What the machine wants read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Origin};
use tern_core::limits::{BATCH_ENTRIES, SHIP_BYTES};
use tern_core::node::Want;
use tern_core::sequencer::LogState;
use tern_core::slots::Slot;
use tern_core::store::{Range, Store, StoreError};

use super::Shared;
use super::core_task::Input;

/// A failed read of a conversation or user is tried again after so long: what waits for it waits.
const RETRY: Duration = Duration::from_millis(500);

/// Likewise entries that lie in an archive that can't be read.
const ARCHIVE_RETRY: Duration = Duration::from_secs(5);

/// Reads and tells the core; `fence` is the epoch of what is read, where several nodes share the store. Never gives up
/// on a conversation or a user: the machine waits for it.
pub(super) async fn read(shared: Arc<Shared>, store: Arc<dyn Store>, want: Want, fence: Option<u64>) {
    match want {
        Want::Conversation(id) => loop {
            // Nothing is read that a former owner could still add to.
            let fenced = match (&shared.config.sharing, fence) {
                (Some(sharing), Some(epoch)) => sharing.store.fence_log(id, epoch).await,
                _ => Ok(true),
            };
            if fenced == Ok(false) {
                break shared.push(Input::Lose([Slot::of(id)].into()));
            }
            let read = match fenced {
                Ok(_) => conversation(&*store, id).await,
                Err(error) => Err(error),
            };
            match read {
                Ok((state, damaged)) => break shared.push(Input::ConversationLoaded(Box::new(state), damaged, fence)),
                Err(error) => tracing::error!(conversation = %id, %error, "a conversation can't be read; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        },
        Want::User(user) => loop {
            match store.rows(user.clone()).await {
                Ok(rows) => break shared.push(Input::UserLoaded(user, rows, fence)),
                Err(error) => tracing::error!(%error, "a user's rows can't be read; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        },
        Want::Heads { ticket, after, limit } => loop {
            match store.conversations(after, limit).await {
                Ok(page) => break shared.push(Input::HeadsRead(ticket, page)),
                Err(error) => tracing::error!(%error, "the heads of conversations can't be read; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        },
        Want::Marks { ticket, after, limit } => loop {
            match store.marks(after.clone(), limit).await {
                Ok(page) => break shared.push(Input::MarksRead(ticket, page)),
                Err(error) => tracing::error!(%error, "read marks can't be read; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        },
        Want::Range { ticket, range, patient } => loop {
            match store.range(range).await {
                // A peer region, or an erasure, that waits for old entries: they are not lost, and it must have them.
                Err(StoreError::Archive(what)) if patient => {
                    tracing::warn!(what, "old entries can't be read; trying again");
                }
                entries => break shared.push(Input::RangeRead(ticket, entries)),
            }
            tokio::time::sleep(ARCHIVE_RETRY).await;
        },
    }
}

/// A conversation's state: its checkpoint, and what its logs hold above it.
async fn conversation(store: &dyn Store, id: ConvId) -> Result<(LogState, BTreeMap<Origin, String>), StoreError> {
    let image = store.conversation(id).await?;
    let mut state = image
        .checkpoint
        .and_then(|bytes| LogState::from_checkpoint(id, bytes))
        .filter(|s| s.heads.iter().all(|(o, seq)| image.heads.get(o).is_some_and(|head| head >= seq)))
        .unwrap_or_else(|| LogState::new(id));
    for (origin, head) in &image.heads {
        if image.damaged.contains_key(origin) {
            continue;
        }
        while state.head(*origin) < *head {
            for entry in above(store, id, *origin, state.head(*origin), *head).await? {
                state.apply(entry);
            }
        }
    }
    state.highest_hlc = state.highest_hlc.max(image.highest_hlc);
    Ok((state, image.damaged))
}

async fn above(
    store: &dyn Store,
    conversation: ConvId,
    origin: Origin,
    from: u64,
    to: u64,
) -> Result<Vec<Arc<Entry>>, StoreError> {
    let range = Range {
        conversation,
        origin,
        from: from + 1,
        to,
        max_entries: BATCH_ENTRIES,
        max_bytes: SHIP_BYTES,
        backwards: false,
    };
    let entries = store.range(range).await?;
    let contiguous = entries.iter().zip(from + 1..).all(|(e, seq)| e.place.seq == seq);
    if entries.is_empty() || !contiguous {
        return Err(StoreError::Backend(format!("log {conversation} of {origin} has a hole above {from}")));
    }
    Ok(entries)
}
