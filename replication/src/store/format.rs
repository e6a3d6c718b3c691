//! Every key and value that the embedded store writes.
//!
//! | Keyspace | Key | Value |
//! |---|---|---|
//! | `entries` | conversation(16) region(1) era(8) seq(8) | 1, chain(16), the entry's stored form |
//! | `rows` | u8+user conversation(16) | 1, row, see [`encode_row`] |
//! | `todo` | target(1: 0 fan-out, else the peer region) conversation(16) | 1, vector; or 2, vector, u8+user |
//! | `state` | `c` conversation(16) | 1, checkpoint |
//! | `state` | `m` name | 1, value |
//! | `state` | `x` `clean` | 1; present only after a clean stop |
//! | `state` | `x` `purge` | 1, u64 wall milliseconds: since then erased bodies may lie in old files |
//! | `state` | `a` conversation(16) region(1) era(8) first seq(8) | 1, where a run of archived entries lies, see [`ArchiveMark`] |
//! | `erased` | as in `entries` | 1, u64 n, u8+user, u8+install: who wrote the entry whose body was erased there |
//! | `quarantine` | as in `entries` | what stood there, whatever it was: cut by a repair, never read by a node |
//!
//! Integers are big-endian, so that the order of keys is the order of ids and numbers. A vector is a u16 count
//! and per origin region(1) era(8) seq(8). The first byte of every value is its format; a value is written in the
//! oldest format that can say it.
//!
//! **Chain.** `chain(n)` is the first 16 bytes of SHA-256 over `chain(n-1)` (zeros before the first) and the
//! entry's header: its stored form up to and including the body's hash, with the flag `erased` cleared. The body
//! is not in it, only its hash, so a body can be erased later and the chain still verifies (R16); what covers the
//! body is that hash. The chain shows an entry that was changed, lost, doubled or moved; it is not a signature.

use bytes::{Buf, BufMut, Bytes};
use ring::digest::{SHA256, digest};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, Identity, InstallId, Origin, Rev, Seq, UserId};
use tern_core::store::{RowRecord, Target};

/// Of every value.
const FORMAT: u8 = 1;
/// Of rows and todo rows with what the first format can't say.
const FORMAT_2: u8 = 2;
/// The bit of an entry's second byte that says its body was erased, see `tern_core::entry`.
const ERASED: u8 = 8;
/// Longest vector that a value can hold.
pub const VECTOR_ENTRIES: usize = u16::MAX as usize;
/// Bytes of a log's prefix of entry keys.
pub const LOG_BYTES: usize = 25;
/// Bytes of an entry's key.
pub const ENTRY_KEY_BYTES: usize = LOG_BYTES + 8;
/// Key in `state` of the mark of a clean stop.
pub const CLEAN_KEY: &[u8] = b"xclean";
/// Key in `state` of the mark that bodies were erased which old files may still hold.
pub const PURGE_KEY: &[u8] = b"xpurge";

/// Bytes of the key of an archived run's mark.
pub const ARCHIVE_KEY_BYTES: usize = 1 + ENTRY_KEY_BYTES;
/// Bytes of such a mark.
const ARCHIVE_MARK_BYTES: usize = 1 + 8 + 8 + 16 + 32 + 8 + 4 + 16;

/// One log: a conversation and whose entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogId {
    /// Which conversation.
    pub conversation: ConvId,
    /// Whose log.
    pub origin: Origin,
}

/// A link of the checksum chain.
pub type Chain = [u8; 16];

/// Where a run of consecutive entries of one log lies that are in the archive and no longer in `entries`. The marks of a
/// log follow each other from entry 1 on, without gaps. Their keys have the first entry's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveMark {
    /// Number of the last entry.
    pub last: Seq,
    /// Its hlc.
    pub hlc: u64,
    /// Its link: what the entry after it follows.
    pub chain: Chain,
    /// SHA-256 of the object without its last 32 bytes, which hold the same. Part of its name.
    pub hash: [u8; 32],
    /// Length of the object.
    pub bytes: u64,
    /// Entries in it whose bodies are erased.
    pub erased: u32,
    /// Which store wrote it: part of its name.
    pub store: [u8; 16],
}

/// Why a value is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It ends too early, goes on too long, or holds an id that is none.
    #[error("a stored value that is no {0}")]
    Malformed(&'static str),
    /// Written by a version that this one does not know.
    #[error("a stored {0} of format {1}, which this version does not know")]
    Unknown(&'static str, u8),
}

/// The prefix of all entry keys of a log.
pub fn log_prefix(log: LogId) -> [u8; LOG_BYTES] {
    let mut key = [0; LOG_BYTES];
    key[..16].copy_from_slice(&log.conversation.0);
    key[16] = log.origin.region;
    key[17..].copy_from_slice(&log.origin.era.to_be_bytes());
    key
}

/// The key of an entry.
pub fn entry_key(log: LogId, seq: Seq) -> [u8; ENTRY_KEY_BYTES] {
    let mut key = [0; ENTRY_KEY_BYTES];
    key[..LOG_BYTES].copy_from_slice(&log_prefix(log));
    key[LOG_BYTES..].copy_from_slice(&seq.to_be_bytes());
    key
}

/// Reads an entry's key.
pub fn parse_entry_key(key: &[u8]) -> Option<(LogId, Seq)> {
    if key.len() != ENTRY_KEY_BYTES {
        return None;
    }
    let conversation = ConvId::from_slice(&key[..16])?;
    let era = u64::from_be_bytes(key[17..25].try_into().ok()?);
    let seq = u64::from_be_bytes(key[25..].try_into().ok()?);
    Some((LogId { conversation, origin: Origin { region: key[16], era } }, seq))
}

/// Writes the value of an entry that follows `previous` into `out`, which is emptied first, and returns its own
/// link of the chain. Nothing is allocated once `out` is large enough.
pub fn encode_entry(out: &mut Vec<u8>, previous: &Chain, entry: &Entry) -> Chain {
    out.clear();
    out.put_u8(FORMAT);
    // The previous link stands in the place of the own one while that is computed: both inputs of the hash then
    // lie next to each other.
    out.put_slice(previous);
    entry.encode(out);
    let header_end = out.len() - 4 - entry.body.len();
    let flags = out[18];
    out[18] = flags & !ERASED;
    let link = shorten(digest(&SHA256, &out[1..header_end]).as_ref());
    out[18] = flags;
    out[1..17].copy_from_slice(&link);
    link
}

/// Splits an entry's value into its link and the entry's stored form.
pub fn split_entry(value: &[u8]) -> Result<(Chain, &[u8]), FormatError> {
    match value {
        [FORMAT, rest @ ..] if rest.len() > 16 => {
            let mut link = [0; 16];
            link.copy_from_slice(&rest[..16]);
            Ok((link, &rest[16..]))
        }
        [format, ..] if *format != FORMAT => Err(FormatError::Unknown("entry", *format)),
        _ => Err(FormatError::Malformed("entry")),
    }
}

/// The link that belongs to an entry with this stored form and so long a body, if it follows `previous`: over the
/// bytes as they are stored, so that no bit of the header can change unseen. `None` if there is no room for a
/// header. `scratch` is overwritten.
pub fn link_of(scratch: &mut Vec<u8>, previous: &Chain, stored: &[u8], body_bytes: usize) -> Option<Chain> {
    let header = stored.get(..stored.len().checked_sub(4 + body_bytes)?)?;
    scratch.clear();
    scratch.put_slice(previous);
    scratch.put_slice(header);
    *scratch.get_mut(17)? &= !ERASED;
    Some(shorten(digest(&SHA256, scratch).as_ref()))
}

fn shorten(hash: &[u8]) -> Chain {
    let mut link = [0; 16];
    link.copy_from_slice(&hash[..16]);
    link
}

/// The prefix of all row keys of a user. The length stands first, so no user's keys begin with another's.
pub fn rows_prefix(user: &UserId) -> Vec<u8> {
    let text = user.as_str().as_bytes();
    let mut key = Vec::with_capacity(1 + text.len() + 16);
    #[expect(clippy::cast_possible_truncation, reason = "ids are at most 64 bytes")]
    key.push(text.len() as u8);
    key.extend_from_slice(text);
    key
}

/// The key of a row.
pub fn row_key(user: &UserId, conversation: ConvId) -> Vec<u8> {
    let mut key = rows_prefix(user);
    key.extend_from_slice(&conversation.0);
    key
}

/// Reads the conversation of a row's key.
pub fn parse_row_key(key: &[u8]) -> Option<ConvId> {
    ConvId::from_slice(key.get(key.len().checked_sub(16)?..)?)
}

/// Reads the user of a row's key.
pub fn parse_row_user(key: &[u8]) -> Option<UserId> {
    let text = key.get(1..key.len().checked_sub(16)?)?;
    UserId::new(std::str::from_utf8(text).ok()?).ok().filter(|_| usize::from(key[0]) == text.len())
}

/// `1, u64 rev, u32 state, u64 generation, u64 last_hlc, u64 counted, u8+peer (0 = none), heads, read`; format 2
/// goes on with `peer_read, from`.
pub fn encode_row(out: &mut Vec<u8>, row: &RowRecord) {
    out.clear();
    let second = !row.peer_read.is_empty() || !row.from.is_empty();
    out.put_u8(if second { FORMAT_2 } else { FORMAT });
    out.put_u64(row.rev.0);
    out.put_u32(row.state);
    out.put_u64(row.generation);
    out.put_u64(row.last_hlc);
    out.put_u64(row.counted);
    let peer = row.peer.as_ref().map_or("", UserId::as_str);
    #[expect(clippy::cast_possible_truncation, reason = "ids are at most 64 bytes")]
    out.put_u8(peer.len() as u8);
    out.put_slice(peer.as_bytes());
    put_vector(out, &row.heads);
    put_vector(out, &row.read);
    if second {
        put_vector(out, &row.peer_read);
        put_vector(out, &row.from);
    }
}

/// Reads a row.
pub fn decode_row(value: &[u8]) -> Result<RowRecord, FormatError> {
    let (second, mut b) = open_either(value, "row")?;
    let bad = || FormatError::Malformed("row");
    if b.len() < 37 {
        return Err(bad());
    }
    let mut row = RowRecord {
        rev: Rev(b.get_u64()),
        state: b.get_u32(),
        generation: b.get_u64(),
        last_hlc: b.get_u64(),
        counted: b.get_u64(),
        ..RowRecord::default()
    };
    let length = usize::from(b.get_u8());
    let (peer, rest) = b.split_at_checked(length).ok_or_else(bad)?;
    if length > 0 {
        row.peer = Some(UserId::from_bytes(peer).map_err(|_| bad())?);
    }
    b = rest;
    row.heads = get_vector(&mut b).ok_or_else(bad)?;
    row.read = get_vector(&mut b).ok_or_else(bad)?;
    if second {
        row.peer_read = get_vector(&mut b).ok_or_else(bad)?;
        row.from = get_vector(&mut b).ok_or_else(bad)?;
    }
    if b.is_empty() { Ok(row) } else { Err(bad()) }
}

/// The revision of a stored row, without reading the rest.
pub fn row_rev(value: &[u8]) -> Result<Rev, FormatError> {
    open_either(value, "row")?.1.try_get_u64().map(Rev).map_err(|_| FormatError::Malformed("row"))
}

/// The key of a todo row: fan-out first, then the peers.
pub fn todo_key(target: Target, conversation: ConvId) -> [u8; 17] {
    let mut key = [0; 17];
    key[0] = match target {
        Target::Fanout => 0,
        Target::Peer(region) => region,
    };
    key[1..].copy_from_slice(&conversation.0);
    key
}

/// Reads a todo row's key.
pub fn parse_todo_key(key: &[u8]) -> Option<(Target, ConvId)> {
    let (first, rest) = key.split_first()?;
    let target = if *first == 0 { Target::Fanout } else { Target::Peer(*first) };
    Some((target, ConvId::from_slice(rest)?))
}

/// Writes a todo row's value.
pub fn encode_todo(out: &mut Vec<u8>, prefix: &Heads, user: Option<&UserId>) {
    out.clear();
    out.put_u8(if user.is_some() { FORMAT_2 } else { FORMAT });
    put_vector(out, prefix);
    if let Some(user) = user {
        put_text(out, user.as_str());
    }
}

/// Reads a todo row's value.
pub fn decode_todo(value: &[u8]) -> Result<(Heads, Option<UserId>), FormatError> {
    let (second, mut b) = open_either(value, "todo row")?;
    let bad = || FormatError::Malformed("todo row");
    let prefix = get_vector(&mut b).ok_or_else(bad)?;
    let user = if second {
        let text = get_text(&mut b).ok_or_else(bad)?;
        Some(UserId::from_bytes(text).map_err(|_| bad())?)
    } else {
        None
    };
    if b.is_empty() { Ok((prefix, user)) } else { Err(bad()) }
}

/// Writes a value of `erased`.
pub fn encode_erased(out: &mut Vec<u8>, by: &Identity) {
    out.clear();
    out.put_u8(FORMAT);
    out.put_u64(by.n);
    put_text(out, by.user.as_str());
    put_text(out, by.install.as_str());
}

/// Reads a value of `erased`.
pub fn decode_erased(value: &[u8]) -> Result<Identity, FormatError> {
    let mut b = open(value, "erasure")?;
    let bad = || FormatError::Malformed("erasure");
    let n = b.try_get_u64().map_err(|_| bad())?;
    let user = UserId::from_bytes(get_text(&mut b).ok_or_else(bad)?).map_err(|_| bad())?;
    let install = InstallId::from_bytes(get_text(&mut b).ok_or_else(bad)?).map_err(|_| bad())?;
    if b.is_empty() && n > 0 { Ok(Identity { user, install, n }) } else { Err(bad()) }
}

/// The value of an entry with its body erased: its link stays, since no body is in it.
pub fn erased_value(link: &Chain, entry: &Entry) -> Vec<u8> {
    let erased = entry.to_erased();
    let mut out = Vec::with_capacity(17 + erased.encoded_len());
    out.put_u8(FORMAT);
    out.put_slice(link);
    erased.encode(&mut out);
    out
}

/// The key of a conversation's checkpoint.
pub fn checkpoint_key(conversation: ConvId) -> [u8; 17] {
    let mut key = [b'c'; 17];
    key[1..].copy_from_slice(&conversation.0);
    key
}

/// The key of a named value.
pub fn meta_key(name: &str) -> Vec<u8> {
    [b"m", name.as_bytes()].concat()
}

/// The key of the mark of a run that begins at `first`.
pub fn archive_key(log: LogId, first: Seq) -> [u8; ARCHIVE_KEY_BYTES] {
    let mut key = [b'a'; ARCHIVE_KEY_BYTES];
    key[1..].copy_from_slice(&entry_key(log, first));
    key
}

/// Reads the key of a run's mark.
pub fn parse_archive_key(key: &[u8]) -> Option<(LogId, Seq)> {
    parse_entry_key(key.strip_prefix(b"a")?)
}

/// `1, u64 last, u64 hlc, chain(16), hash(32), u64 bytes, u32 erased, store(16)`
pub fn encode_mark(out: &mut Vec<u8>, mark: &ArchiveMark) {
    out.clear();
    out.put_u8(FORMAT);
    out.put_u64(mark.last);
    out.put_u64(mark.hlc);
    out.put_slice(&mark.chain);
    out.put_slice(&mark.hash);
    out.put_u64(mark.bytes);
    out.put_u32(mark.erased);
    out.put_slice(&mark.store);
}

/// Reads the mark of a run.
pub fn decode_mark(value: &[u8]) -> Result<ArchiveMark, FormatError> {
    let mut b = open(value, "mark of an archived run")?;
    if value.len() != ARCHIVE_MARK_BYTES {
        return Err(FormatError::Malformed("mark of an archived run"));
    }
    let mut mark = ArchiveMark {
        last: b.get_u64(),
        hlc: b.get_u64(),
        chain: [0; 16],
        hash: [0; 32],
        bytes: 0,
        erased: 0,
        store: [0; 16],
    };
    b.copy_to_slice(&mut mark.chain);
    b.copy_to_slice(&mut mark.hash);
    mark.bytes = b.get_u64();
    mark.erased = b.get_u32();
    b.copy_to_slice(&mut mark.store);
    Ok(mark)
}

/// Writes an opaque value.
pub fn encode_opaque(out: &mut Vec<u8>, value: &[u8]) {
    out.clear();
    out.put_u8(FORMAT);
    out.put_slice(value);
}

/// Reads an opaque value.
pub fn decode_opaque(value: &[u8]) -> Result<Bytes, FormatError> {
    open(value, "value").map(Bytes::copy_from_slice)
}

fn open<'a>(value: &'a [u8], what: &'static str) -> Result<&'a [u8], FormatError> {
    match value.split_first() {
        Some((&FORMAT, rest)) => Ok(rest),
        Some((format, _)) => Err(FormatError::Unknown(what, *format)),
        None => Err(FormatError::Malformed(what)),
    }
}

/// Like [`open`], of a value that has two formats. Whether it is the second, and the rest.
fn open_either<'a>(value: &'a [u8], what: &'static str) -> Result<(bool, &'a [u8]), FormatError> {
    match value.split_first() {
        Some((&FORMAT_2, rest)) => Ok((true, rest)),
        _ => Ok((false, open(value, what)?)),
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    #[expect(clippy::cast_possible_truncation, reason = "ids are at most 64 bytes")]
    out.put_u8(text.len() as u8);
    out.put_slice(text.as_bytes());
}

fn get_text<'a>(b: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(b.try_get_u8().ok()?);
    let (text, rest) = b.split_at_checked(length)?;
    *b = rest;
    Some(text)
}

fn put_vector(out: &mut Vec<u8>, vector: &Heads) {
    #[expect(clippy::cast_possible_truncation, reason = "puts with more than 65,535 origins are refused before")]
    out.put_u16(vector.len() as u16);
    for (origin, seq) in vector {
        out.put_u8(origin.region);
        out.put_u64(origin.era);
        out.put_u64(*seq);
    }
}

fn get_vector(b: &mut &[u8]) -> Option<Heads> {
    let count = usize::from(b.try_get_u16().ok()?);
    if b.len() < count * 17 {
        return None;
    }
    Some((0..count).map(|_| (Origin { region: b.get_u8(), era: b.get_u64() }, b.get_u64())).collect())
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
