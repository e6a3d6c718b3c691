//! The files that say what the database is made of, looked at before fjall opens it.
//!
//! fjall trusts them. A count that a flipped bit made large is allocated, which ends the process; a tree whose
//! `current` is gone is taken for one that was never finished, and is deleted with all that it holds, and if that
//! happens to the tree of the trees' names, all others are deleted. So this walk goes first and changes nothing: what
//! does not verify is named, and the store is not opened. Here nothing can be taken out and the rest kept, as in the
//! journal: without its manifest a tree is a heap of files of which nobody knows which are valid.
//!
//! What is checked (fjall 3, lsm-tree 3; integers little-endian):
//!
//! ```text
//! db/version                  "FJL", format
//! db/keyspaces/N/current      u64 version, u128 xxh3 of the manifest, u8 0
//! db/keyspaces/N/vVERSION     the manifest, an archive: format, tables (u64 id, u8 0, u128 xxh3 of the file, u64) ...
//! db/keyspaces/N/tables/ID    a table, an archive: blocks; of it the parts that are read when it is opened
//! ```
//!
//! An archive ends with its contents, `"TOC!", u32 count`, then `u64 place, u64 length, u16 length, name` of each part,
//! and a trailer, `"SFA!", 1, 0, u128 xxh3 of the contents, u64 place and u64 length of them`. A block begins with
//! `"LSM", 3, u8 kind, u128 xxh3 of what follows the header`, in all 33 bytes. Tree 0 has the names of the trees; its
//! tables are small and are read as a whole. Blocks of other tables carry checksums that are checked when they are
//! read, see `verify`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

/// A manifest of a million tables, 64 TiB of them.
const MANIFEST_BYTES_MAX: u64 = 40 * 1024 * 1024;
/// Contents of an archive: a dozen parts with short names.
const CONTENTS_BYTES_MAX: u64 = 64 * 1024;
/// A block that is read when a table is opened: the index of a table of 64 MiB has some hundreds of KiB.
const BLOCK_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The tables of the trees' names: some KiB.
const NAMES_BYTES_MAX: u64 = 16 * 1024 * 1024;
const TRAILER_BYTES: usize = 38;
const BLOCK_HEADER_BYTES: usize = 33;
/// What desktops and archivers leave; the database passes over them.
const PASSED_OVER: [&str; 2] = [".DS_Store", "._"];

/// Why the database must not be opened.
#[derive(Debug)]
pub(super) enum Unsafe {
    /// This file is not what was written.
    Damaged(PathBuf, String),
    /// This does not belong there, and the database can't do with it.
    Stray(PathBuf),
    /// The system failed.
    Io(PathBuf, io::Error),
}

fn damaged<T>(path: &Path, what: impl Into<String>) -> Result<T, Unsafe> {
    Err(Unsafe::Damaged(path.to_owned(), what.into()))
}

/// The tables of the trees' names. They are not compressed: a key, `"n", u64 number` in big-endian, is followed by the
/// length of its value in a byte, and that, the name.
#[derive(Debug, Default)]
struct Names(Vec<u8>);

impl Names {
    /// Numbers of the trees of this name: one, and none where there is no such tree.
    fn of(&self, tree: &str) -> Vec<u64> {
        let value = [&[u8::try_from(tree.len()).unwrap_or(0)], tree.as_bytes()].concat();
        let entry = self.0.windows(9 + value.len()).filter(|bytes| bytes[0] == b'n' && bytes[9..] == value);
        entry.filter_map(|bytes| bytes[1..9].try_into().ok().map(u64::from_be_bytes)).collect()
    }

    fn has(&self, number: u64) -> bool {
        let key = [&b"n"[..], &number.to_be_bytes()].concat();
        self.0.windows(key.len()).any(|bytes| bytes == key)
    }
}

/// Checks the database in `db`, whose trees are called so. `whole`: there is a store, so that nothing may be missing.
pub(super) fn check(db: &Path, whole: bool, called: &[&str]) -> Result<(), Unsafe> {
    let version = db.join("version");
    match read_at_most(&version, CONTENTS_BYTES_MAX)? {
        Some(bytes) if bytes == b"FJL\x03" => {}
        // Another version's: the database says so, and touches nothing.
        Some(bytes) if bytes.len() == 4 && bytes.starts_with(b"FJL") => return Ok(()),
        Some(_) => return damaged(&version, "it names no version"),
        None if whole => return damaged(&version, "it is missing"),
        None => return Ok(()),
    }
    let keyspaces = db.join("keyspaces");
    let (mut trees, mut names) = (BTreeSet::new(), Names::default());
    for (path, name) in list(&keyspaces)?.unwrap_or_default() {
        // Files are passed over there.
        if !path.is_file() {
            let Some(number) = name.parse().ok().filter(|n: &u64| n.to_string() == name) else {
                return Err(Unsafe::Stray(path));
            };
            trees.insert(number);
        }
    }
    if whole && !trees.contains(&0) {
        return damaged(&keyspaces.join("0"), "it is missing");
    }
    let mut journals = list(db)?.unwrap_or_default();
    journals.retain(|(_, name)| name.ends_with(".jnl"));
    match journals.iter().find(|(path, _)| !path.is_file()) {
        Some((path, _)) => return Err(Unsafe::Stray(path.clone())),
        None if whole && journals.is_empty() => {
            return damaged(&db.join("0.jnl"), "it is missing, and so is any other");
        }
        None => {}
    }
    // In order: tree 0 comes first.
    for number in &trees {
        let number = *number;
        let dir = keyspaces.join(number.to_string());
        let Some(tree) = Tree::read(&dir)? else {
            if whole && (number == 0 || names.has(number)) {
                return damaged(&dir.join("current"), "it is missing");
            }
            continue;
        };
        if number == 0 {
            names = Names(tree.read_tables()?);
            let mut named = called.iter().flat_map(|tree| names.of(tree));
            if let Some(missing) = named.find(|number| !trees.contains(number)) {
                return damaged(&keyspaces.join(missing.to_string()), "it is missing");
            }
        } else if !tree.tables.is_empty() && !names.has(number) {
            return damaged(&keyspaces.join("0"), format!("it does not name {}, which is in use", dir.display()));
        } else {
            tree.check_tables()?;
        }
    }
    Ok(())
}

/// A tree whose manifest verified.
struct Tree {
    dir: PathBuf,
    /// Ids and checksums.
    tables: Vec<(u64, u128)>,
}

impl Tree {
    /// `None`: a crash kept it from being made, and nothing was ever written to it.
    fn read(dir: &Path) -> Result<Option<Self>, Unsafe> {
        let current = dir.join("current");
        let mut files = list(&dir.join("tables"))?.unwrap_or_default();
        files.retain(|(_, name)| !PASSED_OVER.iter().any(|other| name.starts_with(other)));
        let Some(pointer) = read_at_most(&current, CONTENTS_BYTES_MAX)? else {
            let versions = list(dir)?.unwrap_or_default();
            if files.is_empty() && !versions.iter().any(|(_, name)| name.starts_with('v') && name != "v0") {
                return Ok(None);
            }
            return damaged(&current, "it is missing");
        };
        let mut rest = Cursor(&pointer);
        let (Some(version), Some(sum), Some([0])) = (rest.u64(), rest.u128(), rest.array::<1>()) else {
            return damaged(&current, "it does not say which version of the tree is valid");
        };
        if !rest.0.is_empty() {
            return damaged(&current, "it is too long");
        }
        let path = dir.join(format!("v{version}"));
        let Some(manifest) = read_at_most(&path, MANIFEST_BYTES_MAX)? else {
            return damaged(&path, format!("{} names it, and it is missing", current.display()));
        };
        if xxh3_128(&manifest) != sum {
            return damaged(&path, format!("its checksum is not the one in {}", current.display()));
        }
        for (path, name) in files {
            if path.is_dir() || name.parse::<u64>().is_err() {
                return Err(Unsafe::Stray(path));
            }
        }
        // It is what was written, and if it is in a form that is not known here, the database may know it.
        let tables = tables_of(&manifest).unwrap_or_default();
        Ok(Some(Self { dir: dir.to_owned(), tables }))
    }

    fn paths(&self) -> impl Iterator<Item = (PathBuf, u128)> + '_ {
        self.tables.iter().map(|(id, sum)| (self.dir.join("tables").join(id.to_string()), *sum))
    }

    fn check_tables(&self) -> Result<(), Unsafe> {
        self.paths().try_for_each(|(path, _)| check_table(&path))
    }

    /// Reads and checks all of them.
    fn read_tables(&self) -> Result<Vec<u8>, Unsafe> {
        let mut all = Vec::new();
        for (path, sum) in self.paths() {
            let Some(bytes) = read_at_most(&path, NAMES_BYTES_MAX)? else { return damaged(&path, "it is missing") };
            if xxh3_128(&bytes) != sum {
                return damaged(&path, "its checksum is not the one in its tree's manifest");
            }
            all.extend(bytes);
        }
        Ok(all)
    }
}

/// Checks what is read of a table when it is opened.
fn check_table(path: &Path) -> Result<(), Unsafe> {
    let io_failed = |error| Unsafe::Io(path.to_owned(), error);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return damaged(path, "it is missing"),
        Err(error) => return Err(io_failed(error)),
    };
    let length = file.metadata().map_err(io_failed)?.len();
    let Some(end) = length.checked_sub(TRAILER_BYTES as u64) else { return damaged(path, "it is cut short") };
    let trailer = read_part(&mut file, end..length).map_err(io_failed)?;
    let Some((place, sum)) = trailer_of(&trailer, length).filter(|(place, _)| end - place <= CONTENTS_BYTES_MAX) else {
        return damaged(path, "its end is damaged");
    };
    let contents = read_part(&mut file, place..end).map_err(io_failed)?;
    let Some(parts) = contents_of(&contents, sum, place) else { return damaged(path, "its contents are damaged") };
    for part in [&b"meta"[..], b"tli"] {
        let what = String::from_utf8_lossy(part);
        let Some((_, place)) = parts.iter().find(|(name, _)| name == part) else {
            return damaged(path, format!("its part {what} is missing"));
        };
        if place.end - place.start > BLOCK_BYTES_MAX {
            return damaged(path, format!("its part {what} is too large"));
        }
        if !is_block(&read_part(&mut file, place.clone()).map_err(io_failed)?) {
            return damaged(path, format!("its part {what} is damaged"));
        }
    }
    Ok(())
}

fn is_block(bytes: &[u8]) -> bool {
    let Some((header, data)) = bytes.split_at_checked(BLOCK_HEADER_BYTES) else { return false };
    let mut rest = Cursor(header);
    let (magic, _kind, sum) = (rest.array::<4>(), rest.array::<1>(), rest.u128());
    // The header ends with the low four bytes of its own checksum.
    let own = xxh3_128(&header[..BLOCK_HEADER_BYTES - 4]).to_le_bytes();
    magic == Some(*b"LSM\x03") && sum == Some(xxh3_128(data)) && own[..4] == header[BLOCK_HEADER_BYTES - 4..]
}

/// Ids and checksums of the tables of a manifest; `None` if it is of a form that this walk does not know.
fn tables_of(manifest: &[u8]) -> Option<Vec<(u64, u128)>> {
    let end = manifest.len().checked_sub(TRAILER_BYTES)?;
    let (place, sum) = trailer_of(&manifest[end..], manifest.len() as u64)?;
    let parts = contents_of(&manifest[usize::try_from(place).ok()?..end], sum, place)?;
    let part = |name: &[u8]| {
        let (_, place) = parts.iter().find(|(of, _)| of == name)?;
        manifest.get(usize::try_from(place.start).ok()?..usize::try_from(place.end).ok()?)
    };
    if part(b"format_version")? != [3] {
        return None;
    }
    let mut rest = Cursor(part(b"tables")?);
    let mut tables = Vec::new();
    for _level in 0..rest.array::<1>()?[0] {
        for _run in 0..rest.array::<1>()?[0] {
            for _table in 0..rest.u32()? {
                let (id, [_kind], sum) = (rest.u64()?, rest.array()?, rest.u128()?);
                rest.u64()?;
                tables.push((id, sum));
            }
        }
    }
    Some(tables)
}

/// Place and checksum of the contents that a trailer tells of, in a file of this length.
fn trailer_of(trailer: &[u8], length: u64) -> Option<(u64, u128)> {
    let mut rest = Cursor(trailer);
    if rest.array()? != *b"SFA!\x01\x00" {
        return None;
    }
    let (sum, place, bytes) = (rest.u128()?, rest.u64()?, rest.u64()?);
    let fits = place.checked_add(bytes)?.checked_add(TRAILER_BYTES as u64)? == length;
    fits.then_some((place, sum))
}

/// The parts that contents name, all of which lie before them.
fn contents_of(contents: &[u8], sum: u128, end: u64) -> Option<Vec<(Vec<u8>, Range<u64>)>> {
    if xxh3_128(contents) != sum {
        return None;
    }
    let mut rest = Cursor(contents);
    if rest.array()? != *b"TOC!" {
        return None;
    }
    let mut parts = Vec::new();
    for _part in 0..rest.u32()? {
        let (place, length, name) = (rest.u64()?, rest.u64()?, u16::from_le_bytes(rest.array()?));
        let (name, after) = rest.0.split_at_checked(usize::from(name))?;
        rest.0 = after;
        let until = place.checked_add(length).filter(|until| *until <= end)?;
        parts.push((name.to_vec(), place..until));
    }
    Some(parts)
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }
}

fn read_part(file: &mut File, place: Range<u64>) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(place.start))?;
    let mut bytes = Vec::new();
    file.take(place.end - place.start).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The whole file, unless there is none.
fn read_at_most(path: &Path, most: u64) -> Result<Option<Vec<u8>>, Unsafe> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes)) {
        Ok(read) if read as u64 > most => damaged(path, format!("it has more than {most} bytes")),
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Unsafe::Io(path.to_owned(), error)),
    }
}

/// What is in a directory, unless there is none. A name that is no text is shown as far as it is.
fn list(dir: &Path) -> Result<Option<Vec<(PathBuf, String)>>, Unsafe> {
    let failed = |error| Unsafe::Io(dir.to_owned(), error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        found.push((entry.path(), entry.file_name().to_string_lossy().into_owned()));
    }
    found.sort();
    Ok(Some(found))
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
