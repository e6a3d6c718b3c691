//! Conversations: their checkpoints against their logs, and the rows of their members.

use tern_core::ids::{ConvId, Heads, Origin};
use tern_core::limits::{BATCH_ENTRIES, CELLS, SHIP_BYTES};
use tern_core::sequencer::LogState;
use tern_core::store::{Range, StoreError, Target};

use fjall::Readable;

use super::super::super::format::{checkpoint_key, decode_row, encode_opaque, parse_todo_key, row_key};
use super::super::tables::backend;
use super::{Check, Kind};

/// Conversations listed at once.
const PAGE: usize = 256;
/// Of a row whose group is large: its heads are no longer written.
const LARGE: u32 = 2;

/// Logs folded from their beginning.
struct Folded {
    state: LogState,
    /// An entry that is more than text was erased: what it said can't be folded again.
    lossy: bool,
}

impl Check<'_> {
    /// Which fan-outs are noted already.
    pub(super) fn read_fan_out(&mut self) {
        for row in self.tables.db.snapshot().prefix(&self.tables.todo, [0]) {
            if let Some((Target::Fanout, conversation)) = row.key().ok().and_then(|key| parse_todo_key(&key)) {
                self.fan_out.insert(conversation);
            }
        }
    }

    pub(super) fn conversations(&mut self) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let page = self.tables.conversations(after, PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            for (conversation, heads) in page {
                // With a refused log it is not served, and nothing can be told of what follows from it.
                if !heads.is_empty() && !self.tables.is_refused(conversation) {
                    self.report.conversations += 1;
                    self.conversation(conversation, &heads)?;
                }
            }
        }
        self.commit()
    }

    fn conversation(&mut self, id: ConvId, heads: &Heads) -> Result<(), StoreError> {
        let stored = self.tables.opaque(&checkpoint_key(id));
        let had_one = !matches!(stored, Ok(None));
        let stored = stored.ok().flatten().and_then(|bytes| LogState::from_checkpoint(id, bytes));
        let mut folded = Folded { state: LogState::new(id), lossy: false };
        let mut wrong = None;
        // What it was folded from is partly in the archive, and was not read.
        let unread = self.unread.contains(&id);
        if unread && stored.is_none() {
            return Ok(());
        }
        if had_one {
            self.report.checkpoints += 1;
            match &stored {
                None => wrong = Some("it can't be read".to_owned()),
                Some(stored) => {
                    let above = stored.heads.iter().find(|(o, seq)| heads.get(o).is_none_or(|head| head < seq));
                    if let Some((origin, seq)) = above {
                        let head = heads.get(origin).copied().unwrap_or(0);
                        wrong = Some(format!("it knows {seq} entries of {origin}, and {head} are there"));
                    } else if !unread {
                        self.fold(&mut folded, &stored.heads)?;
                        wrong = differs(stored, &folded);
                    }
                }
            }
        }
        let state = match (stored, &wrong) {
            (Some(stored), None) => {
                let mut continued = Folded { state: stored, lossy: false };
                self.fold(&mut continued, heads)?;
                continued.state
            }
            _ if unread => {
                let what = wrong.unwrap_or_default();
                self.not_repairable(Kind::Checkpoint, format!("conversation {id}"), what);
                return Ok(());
            }
            _ => {
                self.fold(&mut folded, heads)?;
                folded.state
            }
        };
        if let Some(what) = wrong {
            self.found(Kind::Checkpoint, format!("conversation {id}"), what);
            if self.repair {
                let mut value = Vec::new();
                encode_opaque(&mut value, &state.checkpoint());
                let table = self.tables.state.clone();
                self.batch()?.insert(&table, checkpoint_key(id), &value[..]);
            }
        }
        self.members(id, heads, &state)
    }

    /// Applies entries up to `heads`.
    fn fold(&self, folded: &mut Folded, heads: &Heads) -> Result<(), StoreError> {
        for (origin, head) in heads {
            while folded.state.head(*origin) < *head {
                let from = folded.state.head(*origin) + 1;
                let range = self.range(folded.state.conversation(), *origin, from, *head);
                let entries = self.store.range(&range)?;
                if entries.is_empty() {
                    return Err(StoreError::Backend(format!("entry {from} of {origin} is gone while it is checked")));
                }
                for entry in entries {
                    folded.lossy |= entry.erased && entry.kind != 0;
                    folded.state.apply(entry);
                }
                folded.state.shrink();
            }
        }
        Ok(())
    }

    fn range(&self, conversation: ConvId, origin: Origin, from: u64, to: u64) -> Range {
        Range { conversation, origin, from, to, max_entries: BATCH_ENTRIES, max_bytes: SHIP_BYTES, backwards: false }
    }

    /// Every member has a row, it names the other user, and it is up to date or will be.
    fn members(&mut self, id: ConvId, heads: &Heads, state: &LogState) -> Result<(), StoreError> {
        for user in state.fold.users() {
            let Some(reader) = state.fold.reader(&user) else { continue };
            let expected = reader.clip(heads).into_owned();
            let stored = self.tables.rows.get(row_key(&user, id)).map_err(backend)?;
            // One that can't be read is found with the rows.
            let row = match stored.map(|value| decode_row(&value)) {
                Some(Ok(row)) => Some(row),
                Some(Err(_)) => continue,
                None => None,
            };
            let place = || format!("conversation {id}, row of {user}");
            let noted = self.fan_out.contains(&id);
            let Some(row) = row else {
                if !noted {
                    self.found(Kind::Lag, place(), "it is missing, and no fan-out is noted");
                    self.fan_out_again(id, heads)?;
                }
                continue;
            };
            let behind = self.eras.behind(&row.heads, &expected);
            if let Some((origin, has)) = behind.filter(|_| !noted && row.state != LARGE) {
                let seq = expected.get(&origin).copied().unwrap_or(0);
                let what = format!("it has {has} of {seq} entries of {origin}, and no fan-out is noted");
                self.found(Kind::Lag, place(), what);
                self.fan_out_again(id, heads)?;
            }
            let peer = state.fold.peer_of(&user);
            if peer.is_some() && row.peer.as_ref() != peer {
                let named = row.peer.as_ref().map_or("nobody", |peer| peer.as_str());
                self.found(Kind::Row, place(), format!("it names {named} as the other user"));
                let peer = peer.cloned();
                self.rewrite(&user, id, tern_core::store::RowRecord { peer, ..row })?;
            }
        }
        Ok(())
    }

    /// Checkpoints of conversations that have no entries.
    pub(super) fn checkpoints_without_logs(&mut self) -> Result<(), StoreError> {
        let snapshot = self.tables.db.snapshot();
        for row in snapshot.prefix(&self.tables.state, b"c") {
            let Ok((key, value)) = row.into_inner() else {
                self.not_repairable(Kind::Unreadable, "checkpoints", "the disk can't read some of them");
                break;
            };
            let Some(id) = key.get(1..).and_then(ConvId::from_slice) else { continue };
            let refused = self.tables.is_refused(id);
            if refused || !self.tables.heads(&snapshot, id)?.is_empty() {
                continue;
            }
            self.report.checkpoints += 1;
            let claims = super::super::super::format::decode_opaque(&value)
                .ok()
                .and_then(|bytes| LogState::from_checkpoint(id, bytes))
                .is_none_or(|state| !state.heads.is_empty());
            if claims {
                self.found(Kind::Checkpoint, format!("conversation {id}"), "it has no entries here at all");
                if self.repair {
                    let table = self.tables.state.clone();
                    self.batch()?.remove(&table, key);
                }
            }
        }
        self.commit()
    }
}

/// What a checkpoint says that its logs do not.
fn differs(stored: &LogState, folded: &Folded) -> Option<String> {
    let again = &folded.state;
    if stored.highest_hlc < again.highest_hlc {
        return Some("its highest clock value is below that of its entries".to_owned());
    }
    if stored.counted != again.counted {
        return Some(format!("it counts {} messages, and there are {}", stored.counted, again.counted));
    }
    let cells = |state: &LogState| state.fold.cells("").count();
    // With so many cells it depends on the order of arrival which are kept.
    if folded.lossy || cells(stored).max(cells(again)) >= CELLS {
        return None;
    }
    if stored.fold.members != again.fold.members {
        return Some("its members are not those of its entries".to_owned());
    }
    let mut erasing_aside = (stored.fold.clone(), again.fold.clone());
    erasing_aside.0.erasing.clear();
    erasing_aside.1.erasing.clear();
    (erasing_aside.0 != erasing_aside.1).then(|| "its cells or erasures are not those of its entries".to_owned())
}
