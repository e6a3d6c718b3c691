//! The file of a backup: a header, records in the order of the tables and their keys, a trailer.
//!
//! ```text
//! header   "TERNBKUP"  u8 format (1; 2: some entries are in the archive)  u8 kind (1 backup, 2 erasures)  u8 region  u64 wall milliseconds
//!          u64 xxh3 of the header so far
//! record   u8 table (1-6)  u16 key length  u32 value length  key  value  u64 xxh3 of the record so far
//! trailer  u8 255  u16 0  u32 80  u64 records of each table  [u8; 32] SHA-256 of all before the trailer
//!          u64 xxh3 of the trailer so far
//! ```
//! Integers are big-endian. Keys and values are those of [`crate::store::format`]. Each byte is covered by a
//! checksum next to it, so damage is told with its place; the hash and the counts at the end show what no record
//! can: that one is missing, doubled or from another file. None of it is a signature.

use std::io::{self, Read, Write};

use bytes::{Buf, BufMut};
use ring::digest::{Context, SHA256};
use xxhash_rust::xxh3::xxh3_64;

use super::super::super::limits::BACKUP_VALUE_BYTES;

const MAGIC: &[u8; 8] = b"TERNBKUP";
/// Of the file.
pub const FORMAT: u8 = 2;
/// Of a file that a version without an archive understands.
const FORMAT_WHOLE: u8 = 1;
const TRAILER: u8 = 255;
const HEADER_BYTES: usize = 27;
const TRAILER_BYTES: u32 = 80;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole store.
    Backup,
    /// The list of what was erased.
    Erasures,
}

/// A table of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Entries of all logs.
    Entries,
    /// Users' rows.
    Rows,
    /// Todo rows.
    Todo,
    /// Checkpoints and named values.
    State,
    /// Places whose bodies were erased.
    Erased,
    /// What repairs took out of logs.
    Quarantine,
}

/// All of them, in the order of the file.
pub const TABLES: [Table; 6] =
    [Table::Entries, Table::Rows, Table::Todo, Table::State, Table::Erased, Table::Quarantine];

/// Records of each table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub [u64; 6]);

impl Counts {
    /// Of one table.
    pub fn of(&self, table: Table) -> u64 {
        self.0[table as usize]
    }
}

/// Where a file came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it holds.
    pub kind: Kind,
    /// Whose store it was made of.
    pub region: u8,
    /// When, by the wall clock of that machine.
    pub wall_ms: u64,
    /// Some entries of the store were in the archive, and so are not in the file.
    pub archived: bool,
}

/// Why bytes are not such a file.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Something else.
    #[error("it does not begin like one")]
    NotOne,
    /// A later version wrote it.
    #[error("its format is {0}, and this version knows format {FORMAT}")]
    Newer(u8),
    /// It ends too early.
    #[error("it ends at byte {0}, before its end")]
    Truncated(u64),
    /// A checksum does not match, or what it covers makes no sense.
    #[error("the record at byte {at} is damaged: {what}")]
    Damaged {
        /// Where the record begins.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The system failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes a file.
pub struct Writer<W> {
    out: W,
    hash: Context,
    counts: Counts,
    record: Vec<u8>,
    /// Bytes written.
    pub bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Begins with the header.
    pub fn new(out: W, header: Header) -> io::Result<Self> {
        let mut writer =
            Self { out, hash: Context::new(&SHA256), counts: Counts::default(), record: Vec::new(), bytes: 0 };
        writer.record.put_slice(MAGIC);
        writer.record.put_u8(if header.archived { FORMAT } else { FORMAT_WHOLE });
        writer.record.put_u8(match header.kind {
            Kind::Backup => 1,
            Kind::Erasures => 2,
        });
        writer.record.put_u8(header.region);
        writer.record.put_u64(header.wall_ms);
        writer.write()?;
        Ok(writer)
    }

    /// One record.
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> io::Result<()> {
        let (Ok(key_length), Ok(value_length)) = (u16::try_from(key.len()), u32::try_from(value.len())) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a key or value is too long for a backup"));
        };
        self.record.put_u8(table as u8 + 1);
        self.record.put_u16(key_length);
        self.record.put_u32(value_length);
        self.record.put_slice(key);
        self.record.put_slice(value);
        self.counts.0[table as usize] += 1;
        self.write()
    }

    /// Ends with the trailer. Flushed, not synced.
    pub fn finish(mut self) -> io::Result<(W, Counts, u64)> {
        self.record.put_u8(TRAILER);
        self.record.put_u16(0);
        self.record.put_u32(TRAILER_BYTES);
        self.counts.0.iter().for_each(|count| self.record.put_u64(*count));
        let hash = self.hash.clone().finish();
        self.record.put_slice(hash.as_ref());
        self.write()?;
        self.out.flush()?;
        Ok((self.out, self.counts, self.bytes))
    }

    fn write(&mut self) -> io::Result<()> {
        self.record.put_u64(xxh3_64(&self.record));
        self.hash.update(&self.record);
        self.bytes += self.record.len() as u64;
        self.out.write_all(&self.record)?;
        self.record.clear();
        Ok(())
    }
}

/// Reads a file and checks it. Only when [`Reader::read`] has said that there is no more is it known to be whole.
pub struct Reader<R> {
    input: R,
    hash: Context,
    counts: Counts,
    record: Vec<u8>,
    at: u64,
    last: (u8, Vec<u8>),
    header: Header,
    ended: bool,
}

/// A record.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where it belongs.
    pub table: Table,
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub fn new(mut input: R) -> Result<Self, ReadError> {
        let mut record = Vec::new();
        input.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut record)?;
        if record.len() < MAGIC.len() + 1 || !record.starts_with(MAGIC) {
            return Err(ReadError::NotOne);
        }
        if !(FORMAT_WHOLE..=FORMAT).contains(&record[8]) {
            return Err(ReadError::Newer(record[8]));
        }
        if record.len() < HEADER_BYTES {
            return Err(ReadError::Truncated(record.len() as u64));
        }
        let damaged = |what| ReadError::Damaged { at: 0, what };
        let (content, sum) = record.split_at(HEADER_BYTES - 8);
        if xxh3_64(content).to_be_bytes() != sum {
            return Err(damaged("its checksum does not match"));
        }
        let kind = match content[9] {
            1 => Kind::Backup,
            2 => Kind::Erasures,
            _ => return Err(damaged("its kind is not known")),
        };
        let header =
            Header { kind, region: content[10], wall_ms: (&content[11..]).get_u64(), archived: content[8] == FORMAT };
        let mut hash = Context::new(&SHA256);
        hash.update(&record);
        let counts = Counts::default();
        Ok(Self { input, hash, counts, record, at: HEADER_BYTES as u64, last: (0, Vec::new()), header, ended: false })
    }

    /// Where it came from.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Records read.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes read.
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// The next record; `None` after the last, when all is known to be whole.
    pub fn read(&mut self) -> Result<Option<Record<'_>>, ReadError> {
        if self.ended {
            return Ok(None);
        }
        let at = self.at;
        let damaged = |what| ReadError::Damaged { at, what };
        self.record.clear();
        self.fill(7)?;
        let (table, key, value) = {
            let mut head = &self.record[..];
            (head.get_u8(), usize::from(head.get_u16()), head.get_u32() as usize)
        };
        if value > BACKUP_VALUE_BYTES || (table != TRAILER && !(1..=6).contains(&table)) {
            return Err(damaged("it begins like no record"));
        }
        self.fill(key + value + 8)?;
        let (content, sum) = self.record.split_at(self.record.len() - 8);
        if xxh3_64(content).to_be_bytes() != sum {
            return Err(damaged("its checksum does not match"));
        }
        if table == TRAILER {
            if (key, value) != (0, TRAILER_BYTES as usize) {
                return Err(damaged("a trailer of a wrong length"));
            }
            let mut content = &content[7..];
            let counts = Counts(std::array::from_fn(|_| content.get_u64()));
            if counts != self.counts {
                return Err(damaged("it counts other records than there are"));
            }
            if self.hash.clone().finish().as_ref() != content {
                return Err(damaged("its hash is not that of the file"));
            }
            if self.input.by_ref().take(1).read_to_end(&mut Vec::new())? > 0 {
                return Err(ReadError::Damaged { at: self.at, what: "something stands behind the end" });
            }
            self.ended = true;
            return Ok(None);
        }
        self.hash.update(&self.record);
        let place = &self.record[7..7 + key];
        if (table, place) <= (self.last.0, &self.last.1[..]) {
            return Err(damaged("it is out of order"));
        }
        self.last.0 = table;
        self.last.1.clear();
        self.last.1.extend_from_slice(place);
        let table = TABLES[usize::from(table) - 1];
        self.counts.0[table as usize] += 1;
        Ok(Some(Record { table, key: place, value: &self.record[7 + key..7 + key + value] }))
    }

    /// Appends so many bytes to the record. What is not there is not allocated.
    fn fill(&mut self, bytes: usize) -> Result<(), ReadError> {
        let read = self.input.by_ref().take(bytes as u64).read_to_end(&mut self.record)?;
        self.at += read as u64;
        if read < bytes { Err(ReadError::Truncated(self.at)) } else { Ok(()) }
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
