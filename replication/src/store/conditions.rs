//! What an append must satisfy, and the epoch's form: the same for every backend.

use bytes::Bytes;
use tern_core::ids::Seq;
use tern_core::limits::BODY_BYTES;
use tern_core::store::{Append, Put, StoreError};

/// The named value that holds the region's epoch: 8 bytes, big-endian. A put of a lower one changes nothing.
pub const EPOCH_KEY: &str = "epoch";

/// The value to put under [`EPOCH_KEY`].
pub fn epoch_value(epoch: u64) -> Bytes {
    Bytes::copy_from_slice(&epoch.to_be_bytes())
}

/// Reads a value of [`EPOCH_KEY`]; `None` if it is not 8 bytes long.
pub fn parse_epoch(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

/// Checks that the entries follow `head` in their own log. The error says what is wrong; nothing may be
/// written then. Bodies are not hashed again here: whoever made the entry did.
pub fn follows(append: &Append, head: Seq) -> Result<(), String> {
    let log = || format!("log {} of {}", append.conversation, append.origin);
    if append.entries.is_empty() {
        return Err(format!("an append without entries to {}; nothing was written", log()));
    }
    let mut expected = head;
    for entry in &append.entries {
        expected += 1;
        let place = entry.place;
        if place.origin != append.origin {
            return Err(format!("an entry of {} was appended to {}; nothing was written", place.origin, log()));
        }
        if place.seq != expected {
            return Err(format!(
                "entry {} was appended to {} where {expected} follows; nothing was written",
                place.seq,
                log()
            ));
        }
        if entry.body.len() > BODY_BYTES {
            return Err(format!("a body of {} bytes was appended to {}; nothing was written", entry.body.len(), log()));
        }
    }
    Ok(())
}

/// Checks what could not be read back. Nothing of `puts` may be written if one of them is refused.
pub fn acceptable(puts: &[Put]) -> Result<(), StoreError> {
    let bad = |what: String| Err(StoreError::Backend(format!("{what}; nothing of the put was written")));
    for put in puts {
        match put {
            Put::Meta { key, value } if key == EPOCH_KEY && parse_epoch(value).is_none() => {
                return bad(format!("the epoch must be 8 bytes, and {} were put", value.len()));
            }
            Put::Meta { key, .. } if key.len() > usize::from(u8::MAX) => {
                return bad(format!("the name of a value has {} bytes, at most 255 are possible", key.len()));
            }
            Put::Row { row, .. }
                if [&row.heads, &row.read, &row.peer_read, &row.from]
                    .iter()
                    .any(|vector| vector.len() > super::format::VECTOR_ENTRIES) =>
            {
                return bad(format!(
                    "a row with {} heads, {} and {} read marks and {} origins of its beginning is too long",
                    row.heads.len(),
                    row.read.len(),
                    row.peer_read.len(),
                    row.from.len()
                ));
            }
            Put::Todo(todo) if todo.prefix.len() > super::format::VECTOR_ENTRIES => {
                return bad(format!("a todo row with {} origins is too long", todo.prefix.len()));
            }
            _ => {}
        }
    }
    Ok(())
}
