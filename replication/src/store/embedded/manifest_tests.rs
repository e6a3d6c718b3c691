use std::collections::BTreeMap;

use tern_core::store::{Appended, Store};

use super::super::tables::TREES;
use super::super::tests::{append, conv, filled, options, reopen, whole};
use super::super::{EmbeddedStore, Offline, OpenError};
use super::*;

/// A store whose entries lie in tables, and the journal again in a few more.
async fn with_tables() -> tempfile::TempDir {
    let dir = filled().await;
    let (store, _) = reopen(dir.path());
    store.compact().await.unwrap();
    assert_eq!(store.append(vec![append(conv(1), 7, 9)]).await, [Appended::Decided]);
    store.close().await.unwrap();
    drop(store);
    dir
}

fn files_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for (path, _) in list(dir).unwrap().unwrap() {
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// The files of a tree that are in use: the pointer, the manifest that it names, and the tables that this lists. What
/// lies beside them is of versions before, and of no use to anyone.
fn in_use(tree: &Path) -> Vec<PathBuf> {
    let current = tree.join("current");
    let version = Cursor(&fs::read(&current).unwrap()).u64().unwrap();
    let mut files = vec![current, tree.join(format!("v{version}"))];
    files.extend(Tree::read(tree).unwrap().unwrap().paths().map(|(path, _)| path));
    files
}

fn read(files: impl IntoIterator<Item = PathBuf>) -> BTreeMap<PathBuf, Vec<u8>> {
    files.into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

/// Files below db/ whose every byte is needed to open it: pointers, manifests, and the tables of the trees' names.
fn needed(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let trees = list(&dir.join("db/keyspaces")).unwrap().unwrap();
    let files = trees.into_iter().flat_map(|(tree, number)| {
        let mut files = in_use(&tree);
        files.truncate(if number == "0" { usize::MAX } else { 2 });
        files
    });
    let files = read(files);
    assert!(files.len() > 2 * 7, "{:?}", files.keys());
    files
}

/// Tables of other trees.
fn tables(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let trees = list(&dir.join("db/keyspaces")).unwrap().unwrap();
    let others = trees.into_iter().filter(|(_, number)| number != "0");
    let files = read(others.flat_map(|(tree, _)| in_use(&tree).split_off(2)));
    assert!(files.len() > 1, "{:?}", files.keys());
    files
}

/// Of one tree alone: the file is found by its place in it.
fn is_damaged(file: &Path) -> bool {
    let dir = file.parent().unwrap();
    let tree = if dir.ends_with("tables") { dir.parent().unwrap() } else { dir };
    let read = Tree::read(tree).map(Option::unwrap);
    let read = if dir == tree { read.map(|_| Vec::new()) } else { read.and_then(|tree| tree.read_tables()) };
    matches!(read, Err(Unsafe::Damaged(..)))
}

fn refused(dir: &Path, file: &Path, what: &str) {
    // Not the journal: 64 MiB, most of them never written.
    let before = files_below(&dir.join("db/keyspaces"));
    let error = EmbeddedStore::open(dir, options()).err().unwrap_or_else(|| panic!("{}: {what}", file.display()));
    let OpenError::Damaged { path, .. } = &error else { panic!("{}: {what}: {error}", file.display()) };
    assert_eq!(path.parent().unwrap().starts_with(dir), file.starts_with(dir));
    assert!(error.to_string().contains("tern store restore"), "{error}");
    assert!(files_below(&dir.join("db/keyspaces")) == before, "{}: {what}: something was changed", file.display());
}

#[tokio::test]
async fn what_was_written_verifies_and_its_trees_are_named() {
    let dir = with_tables().await;
    check(&dir.path().join("db"), true, &TREES).unwrap();
    let names = Tree::read(&dir.path().join("db/keyspaces/0")).unwrap().unwrap().read_tables().map(Names).unwrap();
    for (number, tree) in (1..).zip(TREES) {
        assert_eq!(names.of(tree), [number], "{tree}");
        assert!(names.has(number));
    }
    assert!(names.of("entrees").is_empty() && !names.has(99));
    let (store, report) = reopen(dir.path());
    assert!(report.clean_stop && !report.is_damaged(), "{report:?}");
    assert_eq!(store.range(whole(conv(1))).await.unwrap().len(), 9);
    drop(store);
    // A directory in which nothing was ever made is none of a damaged store.
    assert!(check(Path::new("/nonexistent"), false, &TREES).is_ok());
}

#[tokio::test]
async fn every_bit_of_a_manifest_is_needed_and_a_flipped_one_changes_nothing() {
    let dir = with_tables().await;
    for (path, bytes) in needed(dir.path()) {
        for at in 0..bytes.len() {
            // All bits of the small files; of tables, whose bytes are all alike, one a byte.
            let bits = if path.parent().unwrap().ends_with("tables") { at % 8..at % 8 + 1 } else { 0..8 };
            for bit in bits {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                fs::write(&path, &changed).unwrap();
                assert!(is_damaged(&path), "{} byte {at} bit {bit}", path.display());
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
    // And the store as a whole, for some bytes of each.
    for (path, bytes) in needed(dir.path()) {
        for at in (0..bytes.len()).step_by(if bytes.len() < 100 { 7 } else { 97 }) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x80;
            fs::write(&path, &changed).unwrap();
            refused(dir.path(), &path, &format!("byte {at}"));
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert!(!reopen(dir.path()).1.is_damaged());
}

#[tokio::test]
async fn a_file_that_is_cut_or_missing_is_named_and_nothing_is_deleted_for_it() {
    let dir = with_tables().await;
    let db = dir.path().join("db");
    let mut files = needed(dir.path());
    files.extend(tables(dir.path()));
    for (path, bytes) in &files {
        // Of large ones some, and all near the end, where what is read first lies.
        for length in (0..bytes.len()).filter(|length| length % 61 == 0 || length + 120 > bytes.len()) {
            fs::write(path, &bytes[..length]).unwrap();
            assert!(matches!(check(&db, true, &TREES), Err(Unsafe::Damaged(..))), "{} cut to {length}", path.display());
        }
        fs::write(path, [&bytes[..], b"\0"].concat()).unwrap();
        assert!(matches!(check(&db, true, &TREES), Err(Unsafe::Damaged(..))), "{} with a byte more", path.display());
        fs::remove_file(path).unwrap();
        refused(dir.path(), path, "missing");
        let offline = Offline::open(dir.path()).unwrap_err();
        assert!(matches!(offline, OpenError::Damaged { .. }), "{offline}");
        fs::write(path, bytes).unwrap();
    }
    for name in ["version", "keyspaces", "keyspaces/0", "keyspaces/1", "keyspaces/5"] {
        let (path, aside) = (db.join(name), dir.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        let error = EmbeddedStore::open(dir.path(), options()).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{name}: {error}");
        // Whatever was made meanwhile makes room for what was there.
        assert!(fs::rename(&aside, &path).is_ok(), "{name} was made anew");
    }
    let mut journals = list(&db).unwrap().unwrap();
    journals.retain(|(_, name)| name.ends_with(".jnl"));
    journals.iter().for_each(|(path, name)| fs::rename(path, dir.path().join(name)).unwrap());
    refused(dir.path(), &journals[0].0, "missing");
    journals.iter().for_each(|(path, name)| fs::rename(dir.path().join(name), path).unwrap());
    let (store, report) = reopen(dir.path());
    assert!(!report.is_damaged(), "{report:?}");
    assert_eq!(store.range(whole(conv(1))).await.unwrap().len(), 9);
}

/// A block of a table that is not read at opening is found damaged by its checksum when it is read, and only what is
/// in it is refused. Whatever bit it is, the store opens or says what is damaged.
#[tokio::test]
async fn a_flipped_bit_of_a_table_is_refused_at_opening_or_where_it_is_read() {
    let dir = with_tables().await;
    let (mut refused_at_once, mut opened) = (0, 0);
    for (path, bytes) in tables(dir.path()) {
        for at in (0..bytes.len()).step_by(7) {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&path, &changed).unwrap();
            match check(&dir.path().join("db"), true, &TREES) {
                Err(Unsafe::Damaged(named, _)) => {
                    assert_eq!(named, path);
                    refused_at_once += 1;
                }
                Err(other) => panic!("{other:?}"),
                Ok(_) => opened += 1,
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert!(refused_at_once > 10 && opened > 10, "{refused_at_once} and {opened}");
}

#[tokio::test]
async fn what_does_not_belong_there_is_named_instead_of_ending_the_process() {
    let dir = with_tables().await;
    let db = dir.path().join("db");
    for name in ["keyspaces/lost+found", "keyspaces/1/tables/old", "keyspaces/1/tables/77", "old.jnl"] {
        let path = db.join(name);
        fs::create_dir(&path).unwrap();
        let error = EmbeddedStore::open(dir.path(), options()).unwrap_err();
        assert!(matches!(&error, OpenError::Stray { path: named } if *named == path), "{name}: {error}");
        assert!(error.to_string().contains("move that elsewhere"), "{error}");
        fs::remove_dir(&path).unwrap();
    }
    fs::write(db.join("keyspaces/1/tables/._5"), b"x").unwrap();
    assert!(!reopen(dir.path()).1.is_damaged());
}

/// As lsm-tree 3.1 writes them: a tree of two tables.
#[test]
fn the_form_of_a_manifest_is_pinned() {
    let mut body = vec![3];
    let mut parts = vec![(&b"format_version"[..], 0, 1)];
    let mut tables = vec![7, 1];
    tables.extend(2u32.to_le_bytes());
    for id in [5u64, 9] {
        tables.extend(id.to_le_bytes());
        tables.push(0);
        tables.extend(u128::from(id * 11).to_le_bytes());
        tables.extend(0u64.to_le_bytes());
    }
    tables.extend([0; 6]);
    parts.push((b"tables", 1, tables.len() as u64));
    body.extend(tables);
    let place = body.len() as u64;
    let mut contents = b"TOC!".to_vec();
    contents.extend(2u32.to_le_bytes());
    for (name, at, length) in parts {
        contents.extend(u64::to_le_bytes(at));
        contents.extend(length.to_le_bytes());
        contents.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        contents.extend(name);
    }
    body.extend(&contents);
    body.extend(b"SFA!\x01\x00");
    body.extend(xxh3_128(&contents).to_le_bytes());
    body.extend(place.to_le_bytes());
    body.extend((contents.len() as u64).to_le_bytes());
    assert_eq!(tables_of(&body), Some(vec![(5, 55), (9, 99)]));
    assert_eq!(tables_of(&body[1..]), None);
}
