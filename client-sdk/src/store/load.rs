//! Reading a machine's image out of SQLite.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::Transaction;
use tern_core::client::{
    ConversationImage, ConversationRecord, Intervals, MessageId, MessageState, OriginState, Outgoing, OutgoingRecord,
    key_from_bytes,
};
use tern_core::entry::Entry;
use tern_core::ids::ConvId;
use tern_core::ids::{Cursor, InstallId, Origin, Place, Rev, UserId};

use super::StoreError;
use super::format::{heads_from, origin_from, origins_from, places_from};
use super::sqlite::{conv_of, damaged};

pub(super) fn load_cursors(tx: &Transaction<'_>) -> Result<BTreeMap<u8, Cursor>, StoreError> {
    let mut statement = tx.prepare("SELECT region, era, rev FROM cursor")?;
    let mut rows = statement.query([])?;
    let mut all = BTreeMap::new();
    while let Some(r) = rows.next()? {
        let store = Origin { region: r.get(0)?, era: r.get::<_, i64>(1)?.cast_unsigned() };
        all.insert(store.region, Cursor { store, rev: Rev(r.get::<_, i64>(2)?.cast_unsigned()) });
    }
    Ok(all)
}

pub(super) fn load_conversations(tx: &Transaction<'_>) -> Result<BTreeMap<ConvId, ConversationImage>, StoreError> {
    let mut all = BTreeMap::new();
    let mut statement = tx.prepare(
        "SELECT id, peer, next_n, seen_hlc, mark, state, sighted, generation, heads, read, peer_read, lowest, unread_hint,
             starts, unfolded, ended
         FROM conversation",
    )?;
    let mut rows = statement.query([])?;
    while let Some(r) = rows.next()? {
        let id = conv_of(&r.get::<_, Vec<u8>>(0)?)?;
        let peer: Option<String> = r.get(1)?;
        let heads = |column: usize| {
            heads_from(&r.get::<_, Vec<u8>>(column)?).ok_or_else(|| damaged("a vector of a conversation"))
        };
        let record = ConversationRecord {
            id,
            peer: peer.map(|p| UserId::new(&p).map_err(|_| damaged("a user's id"))).transpose()?,
            next_n: r.get::<_, i64>(2)?.cast_unsigned(),
            seen_hlc: r.get::<_, i64>(3)?.cast_unsigned(),
            mark: heads(4)?,
            state: r.get(5)?,
            sighted: r.get(6)?,
            generation: r.get::<_, i64>(7)?.cast_unsigned(),
            heads: heads(8)?,
            read: heads(9)?,
            peer_read: heads(10)?,
            from: heads(11)?,
            unread_hint: r.get(12)?,
            starts: heads(13)?,
            unfolded: heads(14)?,
            ended: heads(15)?,
        };
        all.insert(id, ConversationImage::new(record));
    }
    let mut statement = tx.prepare("SELECT conversation, origin, head, floor, floor_hlc, held, lost FROM vector")?;
    let mut rows = statement.query([])?;
    while let Some(r) = rows.next()? {
        let id = conv_of(&r.get::<_, Vec<u8>>(0)?)?;
        let origin = origin_from(&r.get::<_, Vec<u8>>(1)?).ok_or_else(|| damaged("an origin"))?;
        let set = |bytes: Vec<u8>| Intervals::from_bytes(&bytes).ok_or_else(|| damaged("a set of entries"));
        let state = OriginState {
            head: r.get::<_, i64>(2)?.cast_unsigned(),
            floor: r.get::<_, i64>(3)?.cast_unsigned(),
            floor_hlc: r.get::<_, i64>(4)?.cast_unsigned(),
            held: set(r.get(5)?)?,
            lost: set(r.get(6)?)?,
        };
        let new = || ConversationImage::new(ConversationRecord::new(id, None));
        all.entry(id).or_insert_with(new).origins.insert(origin, state);
    }
    let mut statement = tx.prepare("SELECT conversation, entry FROM fact ORDER BY conversation, origin, seq")?;
    let mut rows = statement.query([])?;
    while let Some(r) = rows.next()? {
        let id = conv_of(&r.get::<_, Vec<u8>>(0)?)?;
        let entry = Entry::decode(Bytes::from(r.get::<_, Vec<u8>>(1)?)).map_err(|_| damaged("an entry"))?;
        let new = || ConversationImage::new(ConversationRecord::new(id, None));
        all.entry(id).or_insert_with(new).facts.push(Arc::new(entry));
    }
    let mut statement = tx.prepare("SELECT conversation, cells FROM folded")?;
    let mut rows = statement.query([])?;
    while let Some(r) = rows.next()? {
        let id = conv_of(&r.get::<_, Vec<u8>>(0)?)?;
        let new = || ConversationImage::new(ConversationRecord::new(id, None));
        all.entry(id).or_insert_with(new).folded = Some(Bytes::from(r.get::<_, Vec<u8>>(1)?));
    }
    Ok(all)
}

pub(super) fn load_outgoing(tx: &Transaction<'_>) -> Result<Vec<Outgoing>, StoreError> {
    let mut all = Vec::new();
    let mut statement = tx.prepare(
        "SELECT o.id, o.conversation, o.install, o.n, o.state, o.key, o.receipt, o.places, m.kind, m.wall_ms, m.body, o.tried
         FROM outbox o JOIN message m ON m.id = o.id ORDER BY o.id",
    )?;
    let mut rows = statement.query([])?;
    while let Some(r) = rows.next()? {
        let key: Option<Vec<u8>> = r.get(5)?;
        let receipt: Option<Vec<u8>> = r.get(6)?;
        let acked: Option<(Place, _)> = match (key, receipt) {
            (Some(key), Some(receipt)) => {
                let key = key_from_bytes(&key).ok_or_else(|| damaged("an acked place"))?;
                Some((key, receipt.try_into().map_err(|_| damaged("a receipt"))?))
            }
            _ => None,
        };
        let record = OutgoingRecord {
            id: MessageId(r.get::<_, i64>(0)?.cast_unsigned()),
            conversation: conv_of(&r.get::<_, Vec<u8>>(1)?)?,
            install: InstallId::new(&r.get::<_, String>(2)?).map_err(|_| damaged("an install id"))?,
            n: r.get::<_, i64>(3)?.cast_unsigned(),
            state: MessageState::from_code(r.get(4)?).ok_or_else(|| damaged("a message's state"))?,
            acked,
            places: places_from(&r.get::<_, Vec<u8>>(7)?).ok_or_else(|| damaged("the places of a message"))?,
            tried: origins_from(&r.get::<_, Vec<u8>>(11)?).ok_or_else(|| damaged("the regions of a message"))?,
        };
        all.push(Outgoing {
            record,
            kind: r.get(8)?,
            wall_ms: r.get::<_, i64>(9)?.cast_unsigned(),
            body: Bytes::from(r.get::<_, Vec<u8>>(10)?),
        });
    }
    Ok(all)
}
