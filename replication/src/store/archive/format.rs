//! The object of a run, and its name.
//!
//! ```text
//! header   "TERNARCH"  u8 format = 1  conversation(16)  region(1) era(8)  u64 first  u64 last  chain(16) before the first
//! entries  u32 length  the value as it stood in `entries`: 1, chain(16), the entry's stored form
//! end      [u8; 32] SHA-256 of all before
//! name     <deployment>/region-<n>/<store>/<conversation>/<region>-<era>/<bucket>/<first>-<hash>
//! ```
//! Integers are big-endian; in names numbers are decimal with leading zeros, so that names are in the order of entries,
//! and the rest is hex. The bucket is the number of the first entry divided by 4,096.

use bytes::{Buf, BufMut, Bytes};
use ring::digest::{SHA256, digest};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Origin, Seq};

use super::super::format::{ArchiveMark, Chain, LogId, erased_value, link_of, split_entry};
use super::super::limits::{ARCHIVE_BUCKET_BITS, ARCHIVE_OBJECT_BYTES_MAX};

const MAGIC: &[u8; 8] = b"TERNARCH";
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 8 + 1 + 16 + 9 + 8 + 8 + 16;
const HASH_BYTES: usize = 32;
/// An entry takes more than this, so that a damaged header can't ask for much memory.
const ENTRY_BYTES_MIN: usize = 4 + 17;

/// A run of entries: verified, whole.
#[derive(Clone, PartialEq, Eq)]
pub struct Run {
    /// Whose entries.
    pub log: LogId,
    /// Number of the first.
    pub first: Seq,
    /// What the first one follows.
    pub before: Chain,
    /// The object.
    object: Bytes,
    /// Where the value of each entry begins and ends in the object.
    places: Vec<(u32, u32)>,
    hlc: u64,
    chain: Chain,
    erased: u32,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Run({} of {}, {} to {})", self.log.conversation, self.log.origin, self.first, self.last())
    }
}

impl Run {
    /// Reads and verifies an object. The error says what is wrong with it.
    pub fn read(object: Bytes) -> Result<Self, String> {
        if object.len() < HEADER_BYTES + ENTRY_BYTES_MIN + HASH_BYTES || !object.starts_with(MAGIC) {
            return Err("it does not begin like an object of tern, or is cut off".to_owned());
        }
        if object[8] != FORMAT {
            return Err(format!("its format is {}, and this version knows format {FORMAT}", object[8]));
        }
        let (content, hash) = object.split_at(object.len() - HASH_BYTES);
        if digest(&SHA256, content).as_ref() != hash {
            return Err("its hash does not match".to_owned());
        }
        let mut b = &content[9..HEADER_BYTES];
        let conversation = ConvId::from_slice(&b[..16]).ok_or("an id that is none")?;
        b.advance(16);
        let origin = Origin { region: b.get_u8(), era: b.get_u64() };
        let (first, last) = (b.get_u64(), b.get_u64());
        let mut before = [0; 16];
        b.copy_to_slice(&mut before);
        let mut draft = Draft::new(LogId { conversation, origin }, first, before);
        let mut at = HEADER_BYTES;
        while at < content.len() {
            let length = content.get(at..at + 4).map(|mut length| length.get_u32() as usize);
            let value = length.and_then(|length| content.get(at + 4..at + 4 + length));
            let value = value.ok_or("an entry is cut off")?;
            draft.note(at + 4, value)?;
            at += 4 + value.len();
        }
        if first == 0 || last.checked_sub(first).and_then(|n| n.checked_add(1)) != Some(draft.places.len() as u64) {
            return Err(format!(
                "it says that it holds entries {first} to {last}, and it holds {}",
                draft.places.len()
            ));
        }
        Ok(draft.into_run(object.clone()))
    }

    /// Number of the last entry.
    pub fn last(&self) -> Seq {
        self.first + self.places.len() as u64 - 1
    }

    /// Length of the object.
    pub fn bytes(&self) -> u64 {
        self.object.len() as u64
    }

    /// The object.
    pub fn object(&self) -> &Bytes {
        &self.object
    }

    /// An entry's value as it stood in the store.
    pub fn value(&self, seq: Seq) -> Option<&[u8]> {
        let at = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        let (from, to) = *self.places.get(at)?;
        self.object.get(from as usize..to as usize)
    }

    /// An entry.
    pub fn entry(&self, seq: Seq) -> Option<Entry> {
        let at = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        let (from, to) = *self.places.get(at)?;
        // Verified when the run was read; a copy, so that an entry that is kept does not keep the whole run.
        Entry::decode_unchecked(Bytes::copy_from_slice(self.object.get(from as usize + 17..to as usize)?)).ok()
    }

    /// The mark of this run, written by `store`.
    pub fn mark(&self, store: [u8; 16]) -> ArchiveMark {
        let mut hash = [0; HASH_BYTES];
        hash.copy_from_slice(&self.object[self.object.len() - HASH_BYTES..]);
        let (hlc, chain, erased) = (self.hlc, self.chain, self.erased);
        ArchiveMark { last: self.last(), hlc, chain, hash, bytes: self.bytes(), erased, store }
    }

    /// The same run with these entries erased.
    pub fn erased(&self, which: impl Fn(Seq) -> bool) -> Result<Self, String> {
        let mut builder = RunBuilder::new(self.log, self.first, self.before);
        for seq in self.first..=self.last() {
            let value = self.value(seq).ok_or("an entry is gone")?;
            match self.entry(seq).filter(|entry| which(seq) && !entry.erased) {
                Some(entry) => {
                    let (link, _) = split_entry(value).map_err(|error| error.to_string())?;
                    builder.push(&erased_value(&link, &entry))?;
                }
                None => builder.push(value)?,
            }
        }
        Ok(builder.finish())
    }
}

/// Entries of a run, each verified as it comes.
struct Draft {
    log: LogId,
    first: Seq,
    before: Chain,
    places: Vec<(u32, u32)>,
    hlc: u64,
    chain: Chain,
    erased: u32,
    scratch: Vec<u8>,
}

impl Draft {
    fn new(log: LogId, first: Seq, before: Chain) -> Self {
        Self { log, first, before, places: Vec::new(), hlc: 0, chain: before, erased: 0, scratch: Vec::new() }
    }

    fn note(&mut self, at: usize, value: &[u8]) -> Result<(), String> {
        let seq = self.first + self.places.len() as u64;
        let (link, stored) = split_entry(value).map_err(|error| format!("entry {seq}: {error}"))?;
        let entry = Entry::decode(Bytes::copy_from_slice(stored)).map_err(|error| format!("entry {seq}: {error}"))?;
        if entry.place.origin != self.log.origin || entry.place.seq != seq {
            return Err(format!("entry {seq} says that it is entry {} of {}", entry.place.seq, entry.place.origin));
        }
        if link_of(&mut self.scratch, &self.chain, stored, entry.body.len()) != Some(link) {
            return Err(format!("the checksum of entry {seq} does not follow from the entry before"));
        }
        let place = |at: usize| u32::try_from(at).map_err(|_| "it is too long".to_owned());
        self.places.push((place(at)?, place(at + value.len())?));
        (self.hlc, self.chain) = (entry.place.hlc, link);
        self.erased += u32::from(entry.erased);
        Ok(())
    }

    fn into_run(self, object: Bytes) -> Run {
        let Self { log, first, before, places, hlc, chain, erased, .. } = self;
        Run { log, first, before, object, places, hlc, chain, erased }
    }
}

/// Makes the object of a run.
pub struct RunBuilder {
    draft: Draft,
    object: Vec<u8>,
}

impl RunBuilder {
    /// Of entries from `first` on, which follows `before`.
    pub fn new(log: LogId, first: Seq, before: Chain) -> Self {
        let mut object = Vec::new();
        object.put_slice(MAGIC);
        object.put_u8(FORMAT);
        object.put_slice(&log.conversation.0);
        object.put_u8(log.origin.region);
        object.put_u64(log.origin.era);
        object.put_u64(first);
        object.put_u64(0);
        object.put_slice(&before);
        Self { draft: Draft::new(log, first, before), object }
    }

    /// Takes the next entry's value, which must verify.
    pub fn push(&mut self, value: &[u8]) -> Result<(), String> {
        if self.object.len() + value.len() + 4 + HASH_BYTES > ARCHIVE_OBJECT_BYTES_MAX {
            return Err("the run is too long for one object".to_owned());
        }
        self.draft.note(self.object.len() + 4, value)?;
        self.object.put_u32(u32::try_from(value.len()).map_err(|_| "an entry is too long")?);
        self.object.put_slice(value);
        Ok(())
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.object.len()
    }

    /// Whether there is no entry yet; such a run is never finished.
    pub fn is_empty(&self) -> bool {
        self.draft.places.is_empty()
    }

    /// The link that the next entry follows.
    pub fn chain(&self) -> Chain {
        self.draft.chain
    }

    /// Ends it.
    pub fn finish(mut self) -> Run {
        let last = self.draft.first + self.draft.places.len() as u64 - 1;
        self.object[HEADER_BYTES - 24..HEADER_BYTES - 16].copy_from_slice(&last.to_be_bytes());
        let hash = digest(&SHA256, &self.object);
        self.object.put_slice(hash.as_ref());
        self.draft.into_run(self.object.into())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n)]);
        out.push(digit(byte >> 4));
        out.push(digit(byte & 15));
        out
    })
}

/// The folder of all objects that a store writes, below that of its region.
pub fn store_folder(region: &str, store: &[u8; 16]) -> String {
    format!("{region}/{}", hex(store))
}

/// The folder of the objects of a bucket.
pub fn bucket_folder(region: &str, store: &[u8; 16], log: LogId, first: Seq) -> String {
    format!(
        "{}/{}/{:03}-{:016x}/{:016}",
        store_folder(region, store),
        log.conversation,
        log.origin.region,
        log.origin.era,
        first >> ARCHIVE_BUCKET_BITS
    )
}

/// The name of a run's object.
pub fn object_name(region: &str, log: LogId, first: Seq, mark: &ArchiveMark) -> String {
    format!("{}/{first:020}-{}", bucket_folder(region, &mark.store, log, first), hex(&mark.hash))
}

/// What an object's name says: which run, and the hash in hex. `None`: not a name of this store's.
pub fn parse_name<'a>(region: &str, store: &[u8; 16], name: &'a str) -> Option<(LogId, Seq, &'a str)> {
    let rest = name.strip_prefix(&store_folder(region, store))?.strip_prefix('/')?;
    let mut parts = rest.split('/');
    let (conversation, origin, _bucket, object) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || conversation.len() != 32 || !conversation.is_ascii() {
        return None;
    }
    let id = u128::from_str_radix(conversation, 16).ok()?;
    let (region, era) = origin.split_once('-')?;
    let origin = Origin { region: region.parse().ok()?, era: u64::from_str_radix(era, 16).ok()? };
    let (first, hash) = object.split_once('-')?;
    Some((LogId { conversation: ConvId(id.to_be_bytes()), origin }, first.parse().ok()?, hash))
}

/// Whether a hash in hex is this one.
pub fn is_hash(text: &str, hash: &[u8; 32]) -> bool {
    text == hex(hash)
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
