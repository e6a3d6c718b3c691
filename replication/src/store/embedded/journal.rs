//! fjall's journal, looked at before fjall replays it.
//!
//! After a crash the newest journal may end in the middle of a group: the group was never acked, and dropping it
//! is right. fjall does that, but it also ends its replay, without a word, at the first thing in the middle that is
//! no entry, however much valid data stands behind it; and it refuses to open at all where a group's checksum does
//! not match, be it the torn last one, of which a power failure may have kept the end and lost the beginning.
//! So this walk goes first, and leaves a journal that fjall reads to its end:
//!
//! - A tail that is no whole group, or a last group whose checksum does not match, is cut off.
//! - A group in the middle whose checksum does not match is taken out. Logs that go on behind it then show a hole
//!   and are refused; the others are whole.
//! - Where the middle can't even be followed, everything from there is cut off.
//!
//! In the last two cases acked entries are gone: a copy of the journal is kept beside, and the report says so.
//!
//! - The number of a group is the one thing that its checksum leaves out. fjall passes over a group whose number says
//!   that it lies in a table already, and counts on from the highest: so one that a flipped bit changed hides a group,
//!   or ends the process where numbers end. They only grow: one that does not fit between its neighbours is put right.
//!
//! Format (fjall 3, integers little-endian): a group is `1, u32 items, u64 seqno`, then items, then
//! `3, u64 xxh3 of the items, "FJL", 3`. An item is `2, u8 type, u8 compression, u64 keyspace, u16 key length,
//! u32 value length, u32 stored length, key, value`, or `4, u64 keyspace`. Behind the last group there are zeros.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const MAGIC: &[u8] = b"FJL\x03";
const CHUNK: usize = 1024 * 1024;
/// Where a group's number stands.
const NUMBER_AT: usize = 5;
/// Groups are numbered below this: a million a second for eight years.
const NUMBER_END: u64 = 1 << 48;

/// A part of the journal that was taken out although groups stood in it that had been acked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalDamage {
    /// Name of the file.
    pub file: String,
    /// Where the damage begins, in bytes.
    pub at: u64,
    /// Bytes taken out.
    pub bytes: u64,
    /// The journal as it was.
    pub kept_as: PathBuf,
}

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// Bytes of a group that a crash had interrupted.
    pub torn_bytes: u64,
    pub damage: Vec<JournalDamage>,
}

/// Checks the journals in `db`; copies of damaged ones go to `keep_in`.
pub(super) fn check(db: &Path, keep_in: &Path) -> io::Result<Checked> {
    let mut checked = Checked::default();
    match fs::read(db.join("version")) {
        Ok(version) if version == MAGIC => {}
        // There is nothing yet, or something that this walk does not know: fjall will say so.
        Ok(_) => return Ok(checked),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(checked),
        Err(error) => return Err(error),
    }
    let mut files = Vec::new();
    for file in fs::read_dir(db)? {
        let path = file?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok());
        if let Some(number) = number {
            files.push((number, path));
        }
    }
    files.sort();
    let newest = files.last().map(|(number, _)| *number);
    for (number, path) in files {
        let mut data = read_used(&path)?;
        let walked = walk(&data);
        let mended = mend(&mut data, &walked.good);
        if !mended.is_empty() {
            tracing::warn!(
                file = number,
                groups = mended.len(),
                "numbers of groups in the store's journal were damaged and have been put right"
            );
            write_numbers(&path, &data, &mended)?;
        }
        let Some(at) = walked.bad.first().map(|(from, _)| *from) else { continue };
        let in_middle = walked.bad.iter().any(|(_, to)| *to != data.len()) || walked.lost_groups;
        if !in_middle && Some(number) == newest {
            checked.torn_bytes += (data.len() - at) as u64;
            truncate(&path, at as u64)?;
        } else {
            let bytes = walked.bad.iter().map(|(from, to)| (to - from) as u64).sum();
            let file = format!("{number}.jnl");
            let kept_as = keep(&path, keep_in, &file)?;
            rewrite(&path, &data, &walked.good)?;
            checked.damage.push(JournalDamage { file, at: at as u64, bytes, kept_as });
        }
    }
    Ok(checked)
}

/// The file without the zeros at its end, most of which were never written.
fn read_used(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let zeros = vec![0; CHUNK];
    let mut chunk = vec![0; CHUNK];
    let mut data = Vec::new();
    let mut pending = 0;
    loop {
        let mut filled = 0;
        while filled < CHUNK {
            match file.read(&mut chunk[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        if chunk[..filled] == zeros[..filled] {
            pending += filled;
        } else {
            data.resize(data.len() + pending, 0);
            pending = 0;
            data.extend_from_slice(&chunk[..filled]);
        }
        if filled < CHUNK {
            break;
        }
    }
    let used = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    data.truncate(used);
    Ok(data)
}

#[derive(Debug, Default)]
struct Walked {
    good: Vec<(usize, usize)>,
    bad: Vec<(usize, usize)>,
    /// What could not be followed at the end has ends of groups in it.
    lost_groups: bool,
}

fn walk(data: &[u8]) -> Walked {
    let mut walked = Walked::default();
    let mut at = 0;
    while at < data.len() {
        match group(&data[at..]) {
            Some((length, true)) => {
                walked.good.push((at, at + length));
                at += length;
            }
            Some((length, false)) => {
                walked.bad.push((at, at + length));
                at += length;
            }
            None => {
                walked.lost_groups = data[at..].windows(MAGIC.len()).any(|bytes| bytes == MAGIC);
                walked.bad.push((at, data.len()));
                break;
            }
        }
    }
    walked
}

fn number_of(data: &[u8], at: usize) -> u64 {
    let bytes = data.get(at + NUMBER_AT..at + NUMBER_AT + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

/// Puts numbers of whole groups right that do not fit between their neighbours; returns where those groups begin.
fn mend(data: &mut [u8], good: &[(usize, usize)]) -> Vec<usize> {
    // A longest run of groups whose numbers grow is right: one that is wrong breaks it once.
    let numbers: Vec<u64> = good.iter().map(|(at, _)| number_of(data, *at)).collect();
    let fits = longest_growing(&numbers);
    let ahead = fits.iter().take_while(|fits| !**fits).count();
    let mut next = numbers.get(ahead).map_or(1, |first| first.saturating_sub(ahead as u64));
    let mut mended = Vec::new();
    for (place, (at, _)) in good.iter().enumerate() {
        // Between the one before and the one after it there was room for it.
        let number = if fits[place] { numbers[place].max(next) } else { next };
        if number != numbers[place] {
            data[at + NUMBER_AT..at + NUMBER_AT + 8].copy_from_slice(&number.to_le_bytes());
            mended.push(*at);
        }
        next = number + 1;
    }
    mended
}

/// Which of these belong to a longest growing run of numbers below [`NUMBER_END`].
fn longest_growing(numbers: &[u64]) -> Vec<bool> {
    // Places by the length of the longest run that ends there. Of one length, later places have no higher numbers.
    let mut ending: Vec<Vec<usize>> = Vec::new();
    for (place, number) in numbers.iter().enumerate().filter(|(_, number)| **number < NUMBER_END) {
        let lowest = |places: &Vec<usize>| places.last().is_some_and(|last| numbers[*last] < *number);
        let length = ending.partition_point(lowest);
        match ending.get_mut(length) {
            Some(places) => places.push(place),
            None => ending.push(vec![place]),
        }
    }
    let mut fits = vec![false; numbers.len()];
    let mut below = NUMBER_END;
    for (length, places) in ending.iter().enumerate().rev() {
        // The last one at the end, where nothing tells; else the one that is closest to the next.
        let first = places.partition_point(|place| numbers[*place] >= below);
        let place = if length + 1 == ending.len() { places.last() } else { places.get(first) };
        if let Some(place) = place {
            fits[*place] = true;
            below = numbers[*place];
        }
    }
    fits
}

fn write_numbers(path: &Path, data: &[u8], groups: &[usize]) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    for at in groups {
        file.seek(SeekFrom::Start((at + NUMBER_AT) as u64))?;
        file.write_all(&data[at + NUMBER_AT..at + NUMBER_AT + 8])?;
    }
    file.sync_all()
}

/// Length of the group that begins here, and whether its checksum matches; `None` if no whole group does.
fn group(data: &[u8]) -> Option<(usize, bool)> {
    let mut rest = Cursor(data);
    if rest.byte()? != START {
        return None;
    }
    let items = rest.number::<4>()?;
    rest.skip(8)?;
    let from = data.len() - rest.0.len();
    for _ in 0..items {
        match rest.byte()? {
            ITEM => {
                let (_type, compression) = (rest.byte()?, rest.byte()?);
                rest.skip(8)?;
                let (key, value, stored) = (rest.number::<2>()?, rest.number::<4>()?, rest.number::<4>()?);
                if compression == 0 && value != stored {
                    return None;
                }
                rest.skip(key)?;
                rest.skip(stored)?;
            }
            CLEAR => rest.skip(8)?,
            _ => return None,
        }
    }
    let to = data.len() - rest.0.len();
    if rest.byte()? != END {
        return None;
    }
    let (checksum, magic) = rest.0.split_at_checked(8).and_then(|(sum, rest)| Some((sum, rest.get(..MAGIC.len())?)))?;
    if magic != MAGIC {
        return None;
    }
    let length = to + 1 + 8 + MAGIC.len();
    Some((length, xxh3_64(&data[from..to]).to_le_bytes() == checksum))
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.0 = self.0.get(bytes..)?;
        Some(())
    }

    /// Little-endian, of at most four bytes.
    fn number<const N: usize>(&mut self) -> Option<usize> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }
}

fn truncate(path: &Path, length: u64) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.set_len(length)?;
    file.sync_all()
}

/// Copies a journal to the first free name.
fn keep(path: &Path, keep_in: &Path, file: &str) -> io::Result<PathBuf> {
    let mut number = 1;
    loop {
        let kept_as = keep_in.join(format!("damaged-{number}-{file}"));
        match File::create_new(&kept_as) {
            Ok(mut copy) => {
                io::copy(&mut File::open(path)?, &mut copy)?;
                copy.sync_all()?;
                return Ok(kept_as);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

fn rewrite(path: &Path, data: &[u8], good: &[(usize, usize)]) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = File::create(&draft)?;
    for (from, to) in good {
        file.write_all(&data[*from..*to])?;
    }
    file.sync_all()?;
    fs::rename(&draft, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group_of(items: &[(&[u8], &[u8])]) -> Vec<u8> {
        numbered(9, items)
    }

    fn numbered(number: u64, items: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (key, value) in items {
            body.extend([ITEM, 0, 0]);
            body.extend(7u64.to_le_bytes());
            body.extend(u16::try_from(key.len()).unwrap().to_le_bytes());
            body.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
            body.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
            body.extend(*key);
            body.extend(*value);
        }
        let mut group = vec![START];
        group.extend(u32::try_from(items.len()).unwrap().to_le_bytes());
        group.extend(number.to_le_bytes());
        group.extend(&body);
        group.push(END);
        group.extend(xxh3_64(&body).to_le_bytes());
        group.extend(MAGIC);
        group
    }

    #[test]
    fn every_cut_of_a_group_is_no_group_and_every_flip_is_noticed() {
        let whole = group_of(&[(b"key", b"value"), (b"k", &[0; 300])]);
        assert_eq!(group(&whole), Some((whole.len(), true)));
        for cut in 0..whole.len() {
            assert_eq!(group(&whole[..cut]), None);
        }
        // The sequence number (bytes 5 to 12) is the one thing that the checksum leaves out.
        for at in (0..whole.len()).filter(|at| !(5..13).contains(at)) {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            assert!(!matches!(group(&changed), Some((_, true))), "byte {at}");
        }
    }

    #[test]
    fn a_number_that_does_not_fit_between_its_neighbours_is_put_right_and_no_other() {
        let journal = |numbers: &[u64]| -> Vec<u8> {
            numbers.iter().flat_map(|number| numbered(*number, &[(b"key", &number.to_le_bytes())])).collect()
        };
        let read = |data: &[u8]| -> Vec<u64> { walk(data).good.iter().map(|(at, _)| number_of(data, *at)).collect() };
        let right = [7, 8, 11, 12, 20, 21];
        let whole = journal(&right);
        assert_eq!(mend(&mut whole.clone(), &walk(&whole).good), []);
        for place in 0..right.len() {
            for bit in 0..64 {
                let mut numbers = right;
                numbers[place] ^= 1 << bit;
                let mut data = journal(&numbers);
                let good = walk(&data).good;
                mend(&mut data, &good);
                let mended = read(&data);
                assert!(mended.is_sorted() && mended.windows(2).all(|two| two[0] < two[1]), "{numbers:?}: {mended:?}");
                assert!(mended.iter().all(|number| *number < NUMBER_END), "{numbers:?}: {mended:?}");
                // Where two are out of order, and nothing behind them, either may be the one.
                let changed = (0..right.len()).filter(|at| mended[*at] != numbers[*at]).count();
                assert!(changed <= 1, "{numbers:?}: {mended:?}");
            }
        }
        assert_eq!(mend(&mut [], &[]), []);
        let mut highest = journal(&[u64::MAX]);
        let good = walk(&highest).good;
        mend(&mut highest, &good);
        assert_eq!(read(&highest), [1]);
    }

    #[test]
    fn zeros_at_the_end_of_a_file_are_not_read_as_content() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut content = vec![0; CHUNK * 2 + 5];
        content.extend([1, 2, 0]);
        content.extend(vec![0; CHUNK * 2]);
        fs::write(file.path(), &content).unwrap();
        assert_eq!(read_used(file.path()).unwrap(), content[..CHUNK * 2 + 7]);
        fs::write(file.path(), vec![0; CHUNK * 3]).unwrap();
        assert_eq!(read_used(file.path()).unwrap(), []);
    }
}
