//! What lies on disks: entries, checkpoints, the records of the embedded store, its journal, receipts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tern_core::client::Intervals;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, Identity, InstallId, Origin, Place, Rev, UserId};
use tern_core::kinds::Own;
use tern_core::node::refill::Known;
use tern_core::receipt::ReceiptKey;
use tern_core::sequencer::LogState;
use tern_core::store::{Append, Range, RowRecord, Store, Target};
use tern_replication::store::archive::format::{Run, RunBuilder};
use tern_replication::store::embedded::{EmbeddedStore, Options, backup};
use tern_replication::store::format;

use crate::Came;
use crate::script::{Script, put_blob};

const CONVERSATION: ConvId = ConvId([1; 16]);
const ORIGIN: Origin = Origin { region: 1, era: 9 };

/// An entry of the log that all cases write to.
pub fn an_entry(seq: u64, body: &[u8]) -> Entry {
    Entry {
        peer: Some(UserId::new("bob").unwrap()),
        wall_ms: 1,
        ..Entry::text(
            Place { hlc: (1 << 40) + seq, origin: ORIGIN, seq },
            Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
            Bytes::copy_from_slice(body),
        )
    }
}

/// A stored entry: what is decoded is encoded to the same bytes, and its length is told right.
pub fn entry(bytes: &[u8]) -> Came {
    let bytes = Bytes::copy_from_slice(bytes);
    let decoded = Entry::decode(bytes.clone());
    if let Ok(entry) = &decoded {
        let again = entry.to_bytes();
        assert_eq!(again.len(), entry.encoded_len());
        assert_eq!(Entry::decode(again).as_ref(), Ok(entry));
        let erased = entry.to_erased();
        assert_eq!(Entry::decode(erased.to_bytes()), Ok(erased));
    }
    let unchecked = Entry::decode_unchecked(bytes);
    assert!(unchecked.is_ok() || decoded.is_err(), "what is checked is at least decoded");
    // A bit of a body that turned: it must not pass the check, and is decoded without.
    Came::of(&decoded)
}

/// Entries with all that they may have.
pub fn entry_seeds() -> Vec<Vec<u8>> {
    let plain = an_entry(1, b"hello");
    let first = Some(Place { seq: 9, ..plain.place });
    let copy = Entry { first, peer: None, ..plain.clone() };
    [plain.clone(), copy, plain.to_erased(), an_entry(2, &[7; 300])].map(|e| e.to_bytes().to_vec()).to_vec()
}

/// A conversation's checkpoint: what is read is written the same, and goes on taking entries.
pub fn checkpoint(bytes: &[u8]) -> Came {
    let state = LogState::from_checkpoint(CONVERSATION, Bytes::copy_from_slice(bytes));
    if let Some(state) = &state {
        let again = state.checkpoint();
        let mut state = LogState::from_checkpoint(CONVERSATION, again.clone()).expect("its own checkpoint");
        assert_eq!(state.checkpoint(), again);
        let head = state.head(ORIGIN);
        // Beyond that no conversation gets, and the test's own numbers would wrap.
        if head < 1 << 60 {
            state.apply(Arc::new(an_entry(head + 1, b"next")));
        }
    }
    Came { accepted: state.is_some(), refused: state.is_none() }
}

/// Of states with and without entries.
pub fn checkpoint_seeds() -> Vec<Vec<u8>> {
    let mut state = LogState::new(CONVERSATION);
    let mut seeds = vec![state.checkpoint().to_vec()];
    for seq in 1..=5 {
        state.apply(Arc::new(an_entry(seq, b"x")));
    }
    seeds.push(state.checkpoint().to_vec());
    seeds
}

/// Keys and values of the embedded store's tables.
pub fn records(bytes: &[u8]) -> Came {
    let Some((kind, value)) = bytes.split_first() else { return Came::default() };
    match kind % 12 {
        0 => {
            let row = format::decode_row(value);
            if let Ok(row) = &row {
                let mut again = Vec::new();
                format::encode_row(&mut again, row);
                assert_eq!(format::decode_row(&again).as_ref(), Ok(row));
                assert_eq!(format::row_rev(&again), Ok(row.rev));
            }
            Came::of(&row)
        }
        1 => {
            let todo = format::decode_todo(value);
            if let Ok((prefix, user)) = &todo {
                let mut again = Vec::new();
                format::encode_todo(&mut again, prefix, user.as_ref());
                assert_eq!(format::decode_todo(&again), todo);
            }
            Came::of(&todo)
        }
        2 => {
            let split = format::split_entry(value);
            if let Ok((chain, stored)) = &split {
                let link = format::link_of(&mut Vec::new(), chain, stored, stored.len());
                // Whatever it is, it is the same each time.
                assert_eq!(link, format::link_of(&mut vec![1; 9], chain, stored, stored.len()));
            }
            Came::of(&split)
        }
        3 => Came::of(&format::decode_opaque(value)),
        4 => seen(format::parse_entry_key(value).map(|(log, seq)| assert_eq!(format::entry_key(log, seq), value))),
        5 => seen(format::parse_row_key(value)),
        6 => seen(
            format::parse_todo_key(value)
                .map(|(target, conversation)| assert_eq!(format::todo_key(target, conversation), value)),
        ),
        7 => Came::of(&format::row_rev(value)),
        8 => {
            let by = format::decode_erased(value);
            if let Ok(by) = &by {
                let mut again = Vec::new();
                format::encode_erased(&mut again, by);
                assert_eq!(format::decode_erased(&again).as_ref(), Ok(by));
            }
            Came::of(&by)
        }
        9 => {
            // A client's: which entries of a log it holds.
            let held = Intervals::from_bytes(value);
            if let Some(held) = &held {
                assert_eq!(Intervals::from_bytes(&held.to_bytes()).as_ref(), Some(held));
            }
            seen(held)
        }
        10 => {
            // What a region knows of a peer.
            let known = Known::from_bytes(value);
            if let Some(known) = known {
                assert_eq!(Known::from_bytes(&known.to_bytes()), Some(known));
            }
            seen(known)
        }
        _ => seen(tern_replication::store::parse_epoch(value)),
    }
}

fn seen<T>(found: Option<T>) -> Came {
    Came { accepted: found.is_some(), refused: found.is_none() }
}

/// One record of each kind.
pub fn record_seeds() -> Vec<Vec<u8>> {
    let log = format::LogId { conversation: CONVERSATION, origin: ORIGIN };
    let alice = UserId::new("alice").unwrap();
    let heads = Heads::from([(ORIGIN, 5)]);
    let row = RowRecord { rev: Rev(9), heads: heads.clone(), peer: Some(alice.clone()), ..RowRecord::default() };
    let mut seeds: Vec<Vec<u8>> = (0..4).map(|kind| vec![kind]).collect();
    format::encode_row(&mut seeds[0], &row);
    format::encode_todo(&mut seeds[1], &heads, Some(&alice));
    format::encode_entry(&mut seeds[2], &Default::default(), &an_entry(1, b"hello"));
    format::encode_opaque(&mut seeds[3], b"checkpoint");
    seeds.push([&[4][..], &format::entry_key(log, 7)].concat());
    seeds.push([&[5][..], &format::row_key(&alice, CONVERSATION)].concat());
    seeds.push([&[6][..], &format::todo_key(Target::Fanout, CONVERSATION)].concat());
    let mut erased = vec![8];
    format::encode_erased(&mut erased, &an_entry(1, b"x").by);
    let mut held = Intervals::new();
    held.insert(1, 3);
    held.insert(7, 9);
    let known = Known { start: 2, era: 9, commit: 5, incomplete: true };
    seeds.push(erased);
    seeds.push([&[9][..], &held.to_bytes()].concat());
    seeds.push([&[10][..], &known.to_bytes()].concat());
    seeds.push([&[11][..], &tern_replication::store::epoch_value(7)].concat());
    seeds
}

/// No bytes but the right ones are a receipt, and none proves another message.
pub fn receipts(bytes: &[u8]) -> Came {
    let key = ReceiptKey::new(&[7; 32]);
    let entry = an_entry(1, b"hello");
    let right = key.sign(CONVERSATION, entry.place, &entry.by, &entry.body_hash);
    let accepted = key.verify(CONVERSATION, entry.place, &entry.by, &entry.body_hash, bytes);
    assert_eq!(accepted, bytes == right);
    let elsewhere = Place { seq: 2, ..entry.place };
    assert!(!key.verify(CONVERSATION, elsewhere, &entry.by, &entry.body_hash, bytes) || bytes != right);
    Came { accepted, refused: !accepted }
}

/// The right one, and one of another place.
pub fn receipt_seeds() -> Vec<Vec<u8>> {
    let key = ReceiptKey::new(&[7; 32]);
    let entry = an_entry(1, b"hello");
    let sign = |place| key.sign(CONVERSATION, place, &entry.by, &entry.body_hash).to_vec();
    vec![sign(entry.place), sign(Place { seq: 2, ..entry.place })]
}

/// Bodies of tern's own kinds.
pub fn bodies(bytes: &[u8]) -> Came {
    let mut script = Script::new(bytes);
    let mut came = Came::default();
    while let Some(kind) = script.more() {
        let body = Bytes::copy_from_slice(script.blob());
        came = came.and(Came::of(&Own::read(u32::from(kind % 80), &body)));
    }
    came
}

/// One body of each kind, empty and not.
pub fn body_seeds() -> Vec<Vec<u8>> {
    let mut empty = Vec::new();
    let mut named = Vec::new();
    for kind in 14..=40 {
        empty.push(kind);
        put_blob(&mut empty, &[]);
        named.push(kind);
        put_blob(&mut named, b"\x0a\x05alice");
    }
    vec![empty, named]
}

type Files = BTreeMap<String, Vec<u8>>;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// A store as a kill leaves it, by file. With `compacted` what was written first lies in tables.
fn killed_store(compacted: bool) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("store");
    let (store, _) = EmbeddedStore::open(&at, Options::new(1).init()).unwrap();
    runtime().block_on(async {
        for seq in 1..=8 {
            let entries = vec![Arc::new(an_entry(seq, &[b'x'; 64]))];
            let (conversation, origin) = (CONVERSATION, ORIGIN);
            store.append(vec![Append { conversation, origin, epoch: 1, entries, todo: Vec::new() }]).await;
            if compacted && seq == 4 {
                store.compact().await.unwrap();
            }
        }
    });
    // Read while it is open: as the disk has it after a kill.
    let mut files = BTreeMap::new();
    read_all(&at, &at, &mut files);
    files
}

fn read_all(root: &Path, dir: &Path, files: &mut Files) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(root, &path, files);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let mut bytes = std::fs::read(&path).unwrap();
            // The journal is made of zeros to its end, of which some stay. Nothing else is: there zeros count.
            if name.ends_with(".jnl") {
                bytes.truncate(bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 64).min(bytes.len()));
            }
            files.insert(name, bytes);
        }
    }
}

/// Opens a store some of whose bytes were changed: a script of (file, place, byte). It is opened or refused; what it
/// then gives out is a beginning of what was acked, without a hole, and nothing is missing without a word.
fn changed(mut files: Files, which: impl Fn(&str, usize) -> bool, bytes: &[u8]) -> Came {
    let mut script = Script::new(bytes);
    let names: Vec<String> =
        files.iter().filter(|(name, bytes)| which(name, bytes.len())).map(|(name, _)| name.clone()).collect();
    // A journal that ends between two groups looks like one that was never longer: no file tells of what followed. After
    // a kill the region takes a new era for that reason, and asks its peers (R13).
    let mut cut = false;
    while let Some(which) = script.more() {
        let name = &names[usize::from(which) % names.len()];
        let file = files.get_mut(name).unwrap();
        let at = (usize::from(script.u8()) << 8 | usize::from(script.u8())) % file.len().max(1);
        match script.pick(4) {
            0 => {
                file.truncate(at);
                cut |= name.ends_with(".jnl");
            }
            1 => file.insert(at.min(file.len()), script.u8()),
            _ if at < file.len() => file[at] = script.u8(),
            _ => {}
        }
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in &files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let opened = EmbeddedStore::open(dir.path(), Options::new(1));
    let came = Came::of(&opened);
    if let Ok((store, report)) = opened {
        assert!(!report.may_keep_era(), "it was killed");
        let range = Range {
            conversation: CONVERSATION,
            origin: ORIGIN,
            from: 1,
            to: u64::MAX,
            max_entries: 100,
            max_bytes: usize::MAX,
            backwards: false,
        };
        if let Ok(entries) = runtime().block_on(store.range(range)) {
            for (seq, entry) in (1..).zip(&entries) {
                assert_eq!(**entry, an_entry(seq, &[b'x'; 64]), "an entry that nobody wrote");
            }
            assert!(
                entries.len() == 8 || cut || report.is_damaged() || report.torn_journal_bytes > 0,
                "{} of 8 entries, and not a word: {report:?}",
                entries.len()
            );
        }
    }
    came
}

/// The journal and what else is large in a store that was never compacted.
pub fn journal(bytes: &[u8]) -> Came {
    static FILES: OnceLock<Files> = OnceLock::new();
    changed(FILES.get_or_init(|| killed_store(false)).clone(), |_, length| length > 200, bytes)
}

/// All but the journal, down to the smallest file, in a store with tables: the files that say what there is.
pub fn manifest(bytes: &[u8]) -> Came {
    static FILES: OnceLock<Files> = OnceLock::new();
    let files = FILES.get_or_init(|| killed_store(true)).clone();
    changed(files, |name, length| name.starts_with("db/") && !name.ends_with(".jnl") && length > 0, bytes)
}

/// Nothing changed; a byte of each of the first files; an end; two files at once.
pub fn manifest_seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![vec![], vec![0, 0, 3, 0], vec![1, 0, 0, 0], vec![0, 0, 1, 2, 9, 1, 0, 40, 2, 0xff]];
    seeds.extend((0..24).map(|file| vec![file, 0, file * 7, 2, 0xa5]));
    seeds
}

/// An object of the archive: what is read is all there, and is the same run when its bodies are erased.
pub fn archive(bytes: &[u8]) -> Came {
    // With its hash made right, since else nothing behind it is looked at.
    let hash = |bytes: &[u8]| ring::digest::digest(&ring::digest::SHA256, bytes);
    let object = [bytes, hash(bytes).as_ref()].concat();
    let read = Run::read(object.clone().into());
    if let Ok(run) = &read {
        assert_eq!(run.object()[..], object[..]);
        let entries: Vec<Entry> = (run.first..=run.last()).map(|seq| run.entry(seq).expect("all are there")).collect();
        assert!(run.entry(run.first - 1).is_none() && run.entry(run.last() + 1).is_none());
        let (whole, erased) = (run.mark([0; 16]), run.erased(|_| true).expect("it verified").mark([0; 16]));
        assert_eq!((whole.last, whole.chain, entries.len()), (erased.last, erased.chain, erased.erased as usize));
    }
    Came::of(&read)
}

/// Without their hashes: whole ones, one that is cut, one of which an entry was changed.
pub fn archive_seeds() -> Vec<Vec<u8>> {
    let log = format::LogId { conversation: CONVERSATION, origin: ORIGIN };
    let run = |bodies: &[&[u8]]| {
        let (mut builder, mut value, mut chain) = (RunBuilder::new(log, 1, [0; 16]), Vec::new(), [0; 16]);
        for (seq, body) in (1..).zip(bodies) {
            chain = format::encode_entry(&mut value, &chain, &an_entry(seq, body));
            builder.push(&value).expect("it follows");
        }
        let object = builder.finish().object().to_vec();
        object[..object.len() - 32].to_vec()
    };
    let whole = run(&[b"hello", b"", b"again"]);
    let (cut, mut changed) = (whole[..whole.len() - 9].to_vec(), whole.clone());
    let last = changed.len() - 1;
    changed[last] ^= 1;
    vec![run(&[b"hello"]), whole, cut, changed]
}

/// A file as a backup: verified, and if it is whole, restored, which gives a store that opens.
pub fn backups(bytes: &[u8]) -> Came {
    let dir = tempfile::tempdir().unwrap();
    let (file, store) = (dir.path().join("backup"), dir.path().join("store"));
    std::fs::write(&file, bytes).unwrap();
    let verified = backup::verify(&file);
    let mut came = Came::of(&verified);
    let restored = backup::restore(&file, &store, None, None);
    assert!(verified.is_ok() || restored.is_err(), "what does not verify is not restored");
    assert!(restored.is_ok() || !verified.is_ok_and(|found| found.is_sound()), "{:?}", restored.err());
    if let Ok(report) = &restored {
        came.accepted = true;
        EmbeddedStore::open(&store, Options::new(report.backup.header.region)).expect("what was restored");
    }
    came
}

/// A whole one, a list of erasures, one that is cut, one with a byte more.
pub fn backup_seeds() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = EmbeddedStore::open(&dir.path().join("store"), Options::new(1).init()).unwrap();
    let (backup, erasures) = (dir.path().join("backup"), dir.path().join("erasures"));
    runtime().block_on(async {
        let entries = (1..=3).map(|seq| Arc::new(an_entry(seq, b"hello"))).collect();
        let (conversation, origin) = (CONVERSATION, ORIGIN);
        store.append(vec![Append { conversation, origin, epoch: 1, entries, todo: Vec::new() }]).await;
        store.backup(backup.clone()).await.unwrap();
        store.export_erasures(erasures.clone()).await.unwrap();
    });
    let whole = std::fs::read(&backup).unwrap();
    let erasures = std::fs::read(&erasures).unwrap();
    let (cut, longer) = (whole[..whole.len() - 9].to_vec(), [&whole[..], b"x"].concat());
    vec![whole, erasures, cut, longer]
}

/// Nothing changed; a byte of the middle; an end.
pub fn journal_seeds() -> Vec<Vec<u8>> {
    vec![vec![], vec![0, 1, 40, 2, 0xff], vec![0, 2, 0, 0], vec![1, 0, 0, 0], vec![1, 0, 3, 2, 9], vec![2, 0, 0, 2, 9]]
}
