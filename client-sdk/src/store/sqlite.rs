//! The store of a device: one SQLite file per user.
//!
//! WAL with `synchronous = FULL`: a transaction is on disk when its commit returns. A lock file keeps a second
//! client out, because two machines over one store would give one identity to two messages. A failed
//! transaction is rolled back whole; the caller builds its machine anew from what is there.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use tern_core::client::{
    Change, Image, Message, MessageId, MessageState, Op, Outgoing, OutgoingRecord, Placed, choose_install, key_bytes,
    key_from_bytes, merge_copy,
};
use tern_core::entry::Entry;
use tern_core::fold::Erasing;
use tern_core::ids::{ConvId, Heads, Identity, InstallId, Origin, Place, Seq, UserId, body_hash};

use super::format::{heads_bytes, origin_bytes, origin_from, origins_bytes, places_bytes};
use super::keys::KeyStore;
use super::load::{load_conversations, load_cursors, load_outgoing};
use super::schema::MIGRATIONS;
use super::{LocalStore, OpenError, StoreError};

/// How long a transaction waits for a program that reads the file, such as a backup.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module's text.
#[derive(Debug)]
pub struct SqliteStore {
    db: Connection,
    user: UserId,
    _lock: File,
}

impl From<rusqlite::Error> for StoreError {
    fn from(e: rusqlite::Error) -> Self {
        match e.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                Self::ReadOnly(e.to_string())
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt(e.to_string()),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            _ => match e {
                rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..) => {
                    Self::Corrupt(e.to_string())
                }
                e => Self::Failed(e.to_string()),
            },
        }
    }
}

/// A column whose bytes are none of ours.
pub(super) fn damaged(what: &str) -> StoreError {
    StoreError::Corrupt(format!("{what} can't be understood"))
}

impl SqliteStore {
    /// Where the database of `user` lies in `dir`.
    pub fn path(dir: &Path, user: &UserId) -> PathBuf {
        let hash = body_hash(user.as_str().as_bytes());
        let name: String = hash[..16].iter().map(|b| format!("{b:02x}")).collect();
        dir.join(format!("{name}.tern"))
    }

    /// Moves a store that is damaged out of the way, so that [`Self::open`] begins an empty one; where it lies now.
    /// Nothing is deleted. What was acknowledged comes back from the servers; what was not sent stays in that file alone.
    pub fn set_aside(dir: &Path, user: &UserId) -> Result<PathBuf, OpenError> {
        let path = Self::path(dir, user);
        let _lock = Self::lock(&path)?;
        let free = |n: &u32| Some(path.with_extension(format!("damaged-{n}"))).filter(|to| !to.exists());
        let to = (1..=u32::MAX).find_map(|n| free(&n)).unwrap_or_else(|| path.with_extension("damaged"));
        // The log first: without its database it is nothing, and beside a new one it would be taken for that one's.
        for part in ["-wal", "-shm", ""] {
            let of = |path: &Path| PathBuf::from(format!("{}{part}", path.display()));
            match fs::rename(of(&path), of(&to)) {
                Err(cause) if cause.kind() != std::io::ErrorKind::NotFound || part.is_empty() => {
                    return Err(OpenError::Io { path: of(&path), cause });
                }
                _ => {}
            }
        }
        Ok(to)
    }

    fn lock(path: &Path) -> Result<File, OpenError> {
        let lock_path = path.with_extension("lock");
        let io = |cause| OpenError::Io { path: lock_path.clone(), cause };
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(cause)) => Err(io(cause)),
        }
    }

    /// Opens or makes the store of `user` in `dir`, and begins a new start of it: `fresh` becomes the install
    /// id if a new one is needed (R3). `keys` is the second place of the install id.
    pub fn open(dir: &Path, user: &UserId, keys: &dyn KeyStore, fresh: InstallId) -> Result<Self, OpenError> {
        let io = |path: &Path, cause| OpenError::Io { path: path.to_owned(), cause };
        fs::create_dir_all(dir).map_err(|e| io(dir, e))?;
        let path = Self::path(dir, user);
        let lock = Self::lock(&path)?;
        // SQLite takes an empty file for a new database. One that was in use is told by the install id beside it.
        let is_empty = fs::metadata(&path).is_ok_and(|found| found.len() == 0);
        if is_empty && keys.load().map_err(OpenError::Keys)?.is_some() {
            return Err(StoreError::Corrupt("its file is empty, and was not when it was used last".to_owned()).into());
        }
        let db = Connection::open(&path).map_err(StoreError::from)?;
        let mut store = Self { db, user: user.clone(), _lock: lock };
        store.prepare(&path)?;
        store.begin_start(keys, fresh)?;
        Ok(store)
    }

    fn prepare(&mut self, path: &Path) -> Result<(), OpenError> {
        let db = &mut self.db;
        db.busy_timeout(BUSY_TIMEOUT).map_err(StoreError::from)?;
        // Reports an unreadable header before anything is written.
        let found: i64 = db.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(StoreError::from)?;
        let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
        if found > known {
            return Err(OpenError::TooNew { path: path.to_owned(), found, known });
        }
        db.query_row("PRAGMA journal_mode = WAL", [], |r| r.get::<_, String>(0)).map_err(StoreError::from)?;
        db.execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = OFF; PRAGMA journal_size_limit = 4194304;")
            .map_err(StoreError::from)?;
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(StoreError::from)?;
        for (index, step) in MIGRATIONS.iter().enumerate().skip(usize::try_from(found).unwrap_or(0)) {
            tx.execute_batch(step).map_err(StoreError::from)?;
            tx.pragma_update(None, "user_version", i64::try_from(index + 1).unwrap_or(i64::MAX))
                .map_err(StoreError::from)?;
        }
        match meta(&tx, "user")? {
            Some(found) if found != self.user.as_str().as_bytes() => {
                let found = String::from_utf8_lossy(&found).into_owned();
                return Err(OpenError::OtherUser { path: path.to_owned(), found });
            }
            Some(_) => {}
            None => set_meta(&tx, "user", self.user.as_str().as_bytes())?,
        }
        tx.commit().map_err(StoreError::from)?;
        Ok(())
    }

    fn begin_start(&mut self, keys: &dyn KeyStore, fresh: InstallId) -> Result<(), OpenError> {
        let kept = keys.load().map_err(OpenError::Keys)?;
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(StoreError::from)?;
        let here = match (meta(&tx, "install")?, meta(&tx, "starts")?) {
            (Some(install), Some(starts)) => {
                let starts = starts.try_into().map(u64::from_be_bytes).map_err(|_| damaged("the start counter"))?;
                Some((InstallId::from_bytes(&install).map_err(|_| damaged("the install id"))?, starts))
            }
            _ => None,
        };
        let (install, starts, new) = choose_install(here.as_ref(), kept.as_ref(), fresh);
        set_meta(&tx, "starts", &starts.to_be_bytes())?;
        apply_install(&tx, &install, new)?;
        tx.commit().map_err(StoreError::from)?;
        // A crash before this line leaves two places that differ: the next start draws a new id, no harm.
        keys.save(&install, starts).map_err(|cause| match cause.kind() {
            std::io::ErrorKind::StorageFull => StoreError::Full.into(),
            _ => OpenError::Keys(cause),
        })
    }
}

fn meta(db: &Connection, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(db.query_row("SELECT value FROM meta WHERE name = ?1", [name], |r| r.get(0)).optional()?)
}

fn counter(db: &Connection, name: &str) -> Result<Option<u64>, StoreError> {
    let bytes = meta(db, name)?.map(|b| b.try_into().map_err(|_| damaged("a counter"))).transpose()?;
    Ok(bytes.map(u64::from_be_bytes))
}

fn set_meta(db: &Connection, name: &str, value: &[u8]) -> Result<(), StoreError> {
    db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)", params![name, value])?;
    Ok(())
}

fn apply_install(tx: &Transaction<'_>, install: &InstallId, fresh: bool) -> Result<(), StoreError> {
    set_meta(tx, "install", install.as_str().as_bytes())?;
    if fresh {
        tx.execute("UPDATE conversation SET next_n = 1", [])?;
    }
    Ok(())
}

fn id_of(id: MessageId) -> i64 {
    id.0.cast_signed()
}

impl LocalStore for SqliteStore {
    fn load(&mut self) -> Result<Image, StoreError> {
        let tx = self.db.transaction()?;
        let install = meta(&tx, "install")?.ok_or_else(|| damaged("the install id"))?;
        let install = InstallId::from_bytes(&install).map_err(|_| damaged("the install id"))?;
        let newest: Option<i64> = tx.query_row("SELECT max(id) FROM message", [], |r| r.get(0))?;
        let floor = counter(&tx, "next_id")?.unwrap_or(1);
        let dispatch = match (meta(&tx, "dispatch")?, meta(&tx, "dispatch_ms")?) {
            (Some(answer), Some(ms)) => {
                let ms = ms.try_into().map(u64::from_be_bytes).map_err(|_| damaged("the dispatch time"))?;
                Some((Bytes::from(answer), ms))
            }
            _ => None,
        };
        Ok(Image {
            install,
            salt: meta(&tx, "salt")?.map(Bytes::from),
            next_id: floor.max(newest.unwrap_or(0).cast_unsigned() + 1),
            connections: counter(&tx, "connections")?.unwrap_or(0),
            cursors: load_cursors(&tx)?,
            conversations: load_conversations(&tx)?,
            outgoing: load_outgoing(&tx)?,
            dispatch,
            networks: meta(&tx, "networks")?.map(Bytes::from),
        })
    }

    fn rest(&mut self) -> Result<(), StoreError> {
        // The log is written back and emptied: (busy, pages in the log, pages written back).
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    fn apply(&mut self, ops: &[Op]) -> Result<Vec<Change>, StoreError> {
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut changes = Vec::new();
        for op in ops {
            apply_one(&tx, &self.user, op, &mut changes)?;
        }
        tx.commit()?;
        Ok(changes)
    }

    fn timeline(&self, conversation: ConvId, horizon: u64, limit: usize) -> Result<Vec<Message>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let sql = "SELECT * FROM message WHERE conversation = ?1 AND key >= ?2 ORDER BY key DESC, id DESC LIMIT ?3";
        let mut all = messages(&self.db, sql, params![conversation.0, horizon.to_be_bytes(), limit])?;
        all.reverse();
        let pending = "SELECT message.* FROM message JOIN outbox ON message.id = outbox.id
                       WHERE message.conversation = ?1 AND message.key IS NULL ORDER BY message.id";
        all.extend(messages(&self.db, pending, params![conversation.0])?);
        Ok(all)
    }

    fn message(&self, id: MessageId) -> Result<Option<Message>, StoreError> {
        Ok(messages(&self.db, "SELECT * FROM message WHERE id = ?1", params![id_of(id)])?.pop())
    }

    fn copies(&self, id: MessageId) -> Result<Vec<(Origin, Seq)>, StoreError> {
        let mut statement = self.db.prepare(
            "SELECT origin, seq FROM copy WHERE message = ?1 AND conversation =
             (SELECT conversation FROM message WHERE id = ?1) ORDER BY origin, seq",
        )?;
        let mut rows = statement.query([id_of(id)])?;
        let mut all = Vec::new();
        while let Some(r) = rows.next()? {
            let origin = origin_from(&r.get::<_, Vec<u8>>(0)?).ok_or_else(|| damaged("an origin"))?;
            all.push((origin, r.get::<_, i64>(1)?.cast_unsigned()));
        }
        Ok(all)
    }

    fn upto(&self, conversation: ConvId, key: Place) -> Result<Heads, StoreError> {
        // Per origin, the highest below the first that is displayed later.
        let mut statement = self.db.prepare(
            "WITH of AS (SELECT origin, seq, message.key AS key FROM copy JOIN message ON message.id = copy.message
                         WHERE copy.conversation = ?1),
                  later AS (SELECT origin, min(seq) AS seq FROM of WHERE key > ?2 GROUP BY origin)
             SELECT of.origin, max(of.seq) FROM of LEFT JOIN later ON later.origin = of.origin
             WHERE later.seq IS NULL OR of.seq < later.seq GROUP BY of.origin",
        )?;
        let mut rows = statement.query(params![conversation.0, key_bytes(key)])?;
        let mut all = Heads::new();
        while let Some(r) = rows.next()? {
            let origin = origin_from(&r.get::<_, Vec<u8>>(0)?).ok_or_else(|| damaged("an origin"))?;
            all.insert(origin, r.get::<_, i64>(1)?.cast_unsigned());
        }
        Ok(all)
    }

    fn unread(&self, conversation: ConvId) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM message WHERE conversation = ?1 AND unread = 1";
        let count: i64 = self.db.query_row(sql, [conversation.0], |r| r.get(0))?;
        Ok(count.cast_unsigned())
    }
}

fn apply_one(tx: &Transaction<'_>, user: &UserId, op: &Op, changes: &mut Vec<Change>) -> Result<(), StoreError> {
    match op {
        Op::Install { install, fresh } => apply_install(tx, install, *fresh)?,
        Op::Salt(salt) => set_meta(tx, "salt", salt)?,
        Op::Rename { from, to } => {
            for table in ["vector", "copy", "message", "outbox", "fact", "folded"] {
                let sql = format!("UPDATE {table} SET conversation = ?2 WHERE conversation = ?1");
                tx.execute(&sql, params![from.0, to.0])?;
            }
            tx.execute("UPDATE OR REPLACE conversation SET id = ?2 WHERE id = ?1", params![from.0, to.0])?;
        }
        Op::Conversation(r) => {
            tx.execute(
                "INSERT OR REPLACE INTO conversation (id, peer, next_n, seen_hlc, mark, state, sighted,
                     generation, heads, read, peer_read, lowest, unread_hint, starts, unfolded, ended)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
                params![
                    r.id.0,
                    r.peer.as_ref().map(UserId::as_str),
                    r.next_n.cast_signed(),
                    r.seen_hlc.cast_signed(),
                    heads_bytes(&r.mark),
                    r.state,
                    r.sighted,
                    r.generation.cast_signed(),
                    heads_bytes(&r.heads),
                    heads_bytes(&r.read),
                    heads_bytes(&r.peer_read),
                    heads_bytes(&r.from),
                    r.unread_hint,
                    heads_bytes(&r.starts),
                    heads_bytes(&r.unfolded),
                    heads_bytes(&r.ended)
                ],
            )?;
        }
        Op::Vector { conversation, origin, state } => {
            tx.execute(
                "INSERT OR REPLACE INTO vector (conversation, origin, head, floor, floor_hlc, held, lost)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    conversation.0,
                    origin_bytes(*origin),
                    state.head.cast_signed(),
                    state.floor.cast_signed(),
                    state.floor_hlc.cast_signed(),
                    state.held.to_bytes(),
                    state.lost.to_bytes()
                ],
            )?;
        }
        Op::Entry { id, conversation, entry, unread } => {
            changes.extend(apply_entry(tx, *id, *conversation, entry, *unread)?);
        }
        Op::Queue(out) => apply_queue(tx, user, out)?,
        Op::Outgoing(record) => {
            put_outgoing(tx, record)?;
            tx.execute(
                "UPDATE message SET install = ?2, n = ?3, state = ?4 WHERE id = ?1",
                params![id_of(record.id), record.install.as_str(), record.n.cast_signed(), record.state.to_code()],
            )?;
        }
        Op::Release { id, state } => {
            tx.execute("DELETE FROM outbox WHERE id = ?1", [id_of(*id)])?;
            tx.execute("UPDATE message SET state = ?2 WHERE id = ?1", params![id_of(*id), state.to_code()])?;
        }
        Op::Discard(id) => {
            // The id must not come back for another message.
            let newest: Option<i64> = tx.query_row("SELECT max(id) FROM message", [], |r| r.get(0))?;
            let next = newest.unwrap_or(0).max(id_of(*id)).cast_unsigned() + 1;
            let kept = meta(tx, "next_id")?.and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes);
            set_meta(tx, "next_id", &next.max(kept).to_be_bytes())?;
            tx.execute("DELETE FROM outbox WHERE id = ?1", [id_of(*id)])?;
            tx.execute("DELETE FROM message WHERE id = ?1", [id_of(*id)])?;
        }
        Op::Read { conversation, mark } => {
            for (origin, upto) in mark {
                tx.execute(
                    "UPDATE message SET unread = 0 WHERE conversation = ?1 AND unread = 1 AND id IN
                     (SELECT message FROM copy WHERE conversation = ?1 AND origin = ?2 AND seq <= ?3)",
                    params![conversation.0, origin_bytes(*origin), upto.cast_signed()],
                )?;
            }
        }
        Op::ReadFrom(user) => {
            tx.execute("UPDATE message SET unread = 0 WHERE user = ?1 AND unread = 1", [user.as_str()])?;
        }
        Op::Fact { conversation, entry } => {
            tx.execute(
                "INSERT OR REPLACE INTO fact (conversation, origin, seq, entry) VALUES (?1, ?2, ?3, ?4)",
                params![
                    conversation.0,
                    origin_bytes(entry.place.origin),
                    entry.place.seq.cast_signed(),
                    &entry.to_bytes()[..]
                ],
            )?;
        }
        Op::Forget { conversation, origin, seq } => {
            tx.execute(
                "DELETE FROM fact WHERE conversation = ?1 AND origin = ?2 AND seq = ?3",
                params![conversation.0, origin_bytes(*origin), seq.cast_signed()],
            )?;
        }
        Op::Erase { conversation, what } => apply_erase(tx, *conversation, what, changes)?,
        Op::Void { conversation, origin, above } => apply_void(tx, *conversation, *origin, *above, changes)?,
        Op::Folded { conversation, cells } => {
            tx.execute(
                "INSERT OR REPLACE INTO folded (conversation, cells) VALUES (?1, ?2)",
                params![conversation.0, &cells[..]],
            )?;
        }
        Op::Cursor(c) => {
            tx.execute(
                "INSERT OR REPLACE INTO cursor (region, era, rev) VALUES (?1, ?2, ?3)",
                params![c.store.region, c.store.era.cast_signed(), c.rev.0.cast_signed()],
            )?;
        }
        Op::Connections(count) => set_meta(tx, "connections", &count.to_be_bytes())?,
        Op::Networks(bytes) => set_meta(tx, "networks", bytes)?,
        Op::Dispatch { answer, wall_ms } => {
            set_meta(tx, "dispatch", answer)?;
            set_meta(tx, "dispatch_ms", &wall_ms.to_be_bytes())?;
        }
    }
    Ok(())
}

fn apply_erase(
    tx: &Transaction<'_>,
    conversation: ConvId,
    what: &Erasing,
    changes: &mut Vec<Change>,
) -> Result<(), StoreError> {
    // Ids first: the changes are told in their order.
    const LIKE: &str =
        "conversation = ?1 AND user = ?2 AND key IS NOT NULL AND erased = 0 AND NOT kind BETWEEN 16 AND 63";
    let id_at = |r: &Row<'_>| r.get::<_, i64>(0);
    let ids: Vec<i64> = match what {
        Erasing::One(by) => tx
            .prepare(&format!("SELECT id FROM message WHERE {LIKE} AND install = ?3 AND n = ?4 ORDER BY id"))?
            .query_map(params![conversation.0, by.user.as_str(), by.install.as_str(), by.n.cast_signed()], id_at)?
            .collect::<Result<_, _>>()?,
        Erasing::Mine(user, before) => tx
            .prepare(&format!("SELECT id FROM message WHERE {LIKE} AND key < ?3 ORDER BY id"))?
            .query_map(params![conversation.0, user.as_str(), before.to_be_bytes()], id_at)?
            .collect::<Result<_, _>>()?,
    };
    for id in ids {
        tx.execute("UPDATE message SET body = x'', erased = 1, unread = 0 WHERE id = ?1", [id])?;
        changes.push(Change { conversation, id: MessageId(id.cast_unsigned()), what: Placed::Erased });
    }
    Ok(())
}

fn apply_queue(tx: &Transaction<'_>, user: &UserId, out: &Outgoing) -> Result<(), StoreError> {
    let r = &out.record;
    let by = Identity { user: user.clone(), install: r.install.clone(), n: r.n };
    insert_message(
        tx,
        r.id,
        r.conversation,
        &by,
        &body_hash(&out.body),
        (out.kind, out.wall_ms, &out.body),
        r.state,
        false,
    )?;
    put_outgoing(tx, r)
}

#[expect(clippy::too_many_arguments, reason = "one row, and every value is another column")]
fn insert_message(
    tx: &Transaction<'_>,
    id: MessageId,
    conversation: ConvId,
    by: &Identity,
    hash: &[u8; 32],
    (kind, wall_ms, body): (u32, u64, &[u8]),
    state: MessageState,
    unread: bool,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO message (id, conversation, user, install, n, hash, kind, wall_ms, body, key, state, unread)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, NULL, ?10, ?11)",
        params![
            id_of(id),
            conversation.0,
            by.user.as_str(),
            by.install.as_str(),
            by.n.cast_signed(),
            hash,
            kind,
            wall_ms.cast_signed(),
            body,
            state.to_code(),
            unread
        ],
    )?;
    Ok(())
}

fn put_outgoing(tx: &Transaction<'_>, r: &OutgoingRecord) -> Result<(), StoreError> {
    tx.execute(
        "INSERT OR REPLACE INTO outbox (id, conversation, install, n, state, key, receipt, places, tried)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            id_of(r.id),
            r.conversation.0,
            r.install.as_str(),
            r.n.cast_signed(),
            r.state.to_code(),
            r.acked.map(|(key, _)| key_bytes(key)),
            r.acked.map(|(_, receipt)| receipt),
            places_bytes(&r.places),
            origins_bytes(&r.tried)
        ],
    )?;
    Ok(())
}

fn apply_entry(
    tx: &Transaction<'_>,
    id: MessageId,
    conversation: ConvId,
    entry: &Entry,
    unread: bool,
) -> Result<Option<Change>, StoreError> {
    let by = &entry.by;
    let found = tx
        .query_row(
            "SELECT id, key, unread, erased FROM message
             WHERE conversation = ?1 AND user = ?2 AND install = ?3 AND n = ?4 AND hash = ?5 AND n <> 0",
            params![conversation.0, by.user.as_str(), by.install.as_str(), by.n.cast_signed(), entry.body_hash],
            |r| Ok((r.get::<_, i64>(0)?, r.get::<_, Option<Vec<u8>>>(1)?, r.get::<_, bool>(2)?, r.get::<_, bool>(3)?)),
        )
        .optional()?;
    let known = found.is_some();
    let (row, key, was_unread, was_erased) = match found {
        Some((row, None, unread, erased)) => (row, None, unread, erased),
        Some((row, Some(key), unread, erased)) => {
            (row, Some(key_from_bytes(&key).ok_or_else(|| damaged("a message's place"))?), unread, erased)
        }
        None => {
            let content = (entry.kind, entry.wall_ms, &entry.body[..]);
            insert_message(tx, id, conversation, by, &entry.body_hash, content, MessageState::Received, unread)?;
            (id_of(id), None, unread, false)
        }
    };
    let erases = entry.erased && !was_erased;
    if erases {
        tx.execute("UPDATE message SET body = x'', erased = 1 WHERE id = ?1", [row])?;
    }
    tx.execute(
        "INSERT OR REPLACE INTO copy (conversation, origin, seq, message, key) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            conversation.0,
            origin_bytes(entry.place.origin),
            entry.place.seq.cast_signed(),
            row,
            key_bytes(entry.display_key())
        ],
    )?;
    let (lowest, unread) = merge_copy((key, was_unread), entry.display_key(), unread);
    let has_void = known && has_void(tx, row)?;
    let lowest = if has_void { place_of(tx, row)?.unwrap_or(lowest) } else { lowest };
    let unread = unread && !entry.erased;
    let erased = Change { conversation, id: MessageId(row.cast_unsigned()), what: Placed::Erased };
    if key == Some(lowest) && unread == was_unread {
        return Ok(erases.then_some(erased));
    }
    tx.execute("UPDATE message SET key = ?2, unread = ?3 WHERE id = ?1", params![row, key_bytes(lowest), unread])?;
    if key == Some(lowest) {
        return Ok(erases.then_some(erased));
    }
    let after = neighbour(tx, BEFORE, conversation, lowest, row)?;
    let what = if known {
        Placed::Moved { after }
    } else if neighbour(tx, BEHIND, conversation, lowest, row)?.is_none() {
        Placed::Appended
    } else {
        Placed::Inserted { after }
    };
    Ok(Some(Change { conversation, id: MessageId(row.cast_unsigned()), what }))
}

/// The message shown before, and behind, a place.
const BEFORE: &str =
    "SELECT id FROM message WHERE conversation = ?1 AND (key, id) < (?2, ?3) ORDER BY key DESC, id DESC LIMIT 1";
const BEHIND: &str = "SELECT id FROM message WHERE conversation = ?1 AND (key, id) > (?2, ?3) ORDER BY key, id LIMIT 1";

fn neighbour(
    tx: &Transaction<'_>,
    sql: &str,
    conversation: ConvId,
    key: Place,
    row: i64,
) -> Result<Option<MessageId>, StoreError> {
    let found = tx.query_row(sql, params![conversation.0, key_bytes(key), row], |r| r.get::<_, i64>(0)).optional()?;
    Ok(found.map(|id| MessageId(id.cast_unsigned())))
}

fn has_void(tx: &Transaction<'_>, row: i64) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM copy WHERE message = ?1 AND void = 1)";
    Ok(tx.query_row(sql, [row], |r| r.get(0))?)
}

/// The lowest place of a message: of its copies that count, or of all if none does.
fn place_of(tx: &Transaction<'_>, row: i64) -> Result<Option<Place>, StoreError> {
    let sql = "SELECT key FROM copy WHERE message = ?1 AND key IS NOT NULL ORDER BY void, key LIMIT 1";
    let key: Option<Vec<u8>> = tx.query_row(sql, [row], |r| r.get(0)).optional()?;
    key.map(|key| key_from_bytes(&key).ok_or_else(|| damaged("a copy's place"))).transpose()
}

/// Copies of a log above its end do not count, and those below do.
fn apply_void(
    tx: &Transaction<'_>,
    conversation: ConvId,
    origin: Origin,
    above: Seq,
    changes: &mut Vec<Change>,
) -> Result<(), StoreError> {
    let log = params![conversation.0, origin_bytes(origin), above.cast_signed()];
    let ids: Vec<i64> = tx
        .prepare(
            "SELECT DISTINCT message FROM copy
             WHERE conversation = ?1 AND origin = ?2 AND void <> (seq > ?3) ORDER BY message",
        )?
        .query_map(log, |r| r.get(0))?
        .collect::<Result<_, _>>()?;
    tx.execute("UPDATE copy SET void = (seq > ?3) WHERE conversation = ?1 AND origin = ?2", log)?;
    for row in ids {
        let sql = "SELECT key FROM message WHERE id = ?1";
        let shown: Option<Vec<u8>> = tx.query_row(sql, [row], |r| r.get(0)).optional()?.flatten();
        let Some(key) = place_of(tx, row)?.filter(|key| shown.as_deref() != Some(&key_bytes(*key)[..])) else {
            continue;
        };
        tx.execute("UPDATE message SET key = ?2 WHERE id = ?1", params![row, key_bytes(key)])?;
        let after = neighbour(tx, BEFORE, conversation, key, row)?;
        changes.push(Change { conversation, id: MessageId(row.cast_unsigned()), what: Placed::Moved { after } });
    }
    Ok(())
}

pub(super) fn conv_of(bytes: &[u8]) -> Result<ConvId, StoreError> {
    ConvId::from_slice(bytes).ok_or_else(|| damaged("a conversation's id"))
}

fn messages(db: &Connection, sql: &str, args: impl rusqlite::Params) -> Result<Vec<Message>, StoreError> {
    let mut statement = db.prepare(sql)?;
    let mut rows = statement.query(args)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(message_of(row)?);
    }
    Ok(all)
}

fn message_of(row: &Row<'_>) -> Result<Message, StoreError> {
    let key: Option<Vec<u8>> = row.get("key")?;
    Ok(Message {
        id: MessageId(row.get::<_, i64>("id")?.cast_unsigned()),
        conversation: conv_of(&row.get::<_, Vec<u8>>("conversation")?)?,
        by: Identity {
            user: UserId::new(&row.get::<_, String>("user")?).map_err(|_| damaged("a sender"))?,
            install: InstallId::new(&row.get::<_, String>("install")?).map_err(|_| damaged("an install id"))?,
            n: row.get::<_, i64>("n")?.cast_unsigned(),
        },
        kind: row.get("kind")?,
        wall_ms: row.get::<_, i64>("wall_ms")?.cast_unsigned(),
        body: Bytes::from(row.get::<_, Vec<u8>>("body")?),
        key: key.map(|k| key_from_bytes(&k).ok_or_else(|| damaged("a message's place"))).transpose()?,
        state: MessageState::from_code(row.get("state")?).ok_or_else(|| damaged("a message's state"))?,
        unread: row.get("unread")?,
        erased: row.get("erased")?,
    })
}

#[cfg(test)]
impl SqliteStore {
    /// Lets the file not grow any more: SQLite then says what it says on a full disk.
    pub(super) fn limit_pages_for_test(&self) {
        let pages: i64 = self.db.query_row("PRAGMA page_count", [], |r| r.get(0)).unwrap();
        self.db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |r| r.get::<_, i64>(0)).unwrap();
    }
}
