//! What the archive relies on, of every object store: in memory, in a directory, and in a bucket of a server that speaks
//! S3, which `replication/archive/tests/s3/check` starts.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tern_archive::{Location, S3Options, open};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Identity, InstallId, Origin, Place, UserId};
use tern_core::store::{Append, Appended, Durability, Put, Range, Store};
use tern_net::system::system_env;
use tern_replication::store::archive::TierPlan;
use tern_replication::store::archive::{ObjectError, Objects};
use tern_replication::store::{Archive, ArchiveOptions, EmbeddedStore, MemoryObjects, Options};

const HERE: Origin = Origin { region: 1, era: 1 };

async fn contract(objects: &dyn Objects) {
    let name = "test/region-1/00ab/07/001-00/0000000000000001/00000000000000004097-ab";
    assert_eq!(objects.get(name, 100).await, Err(ObjectError::Missing));
    assert_eq!(objects.length(name).await, Err(ObjectError::Missing));
    assert_eq!(objects.list("test/region-1/00ab", None, 10).await.unwrap(), []);
    objects.delete(name).await.unwrap();

    objects.put(name, Bytes::from_static(b"first")).await.unwrap();
    assert_eq!(objects.get(name, 100).await.unwrap(), "first");
    objects.put(name, Bytes::from_static(b"the second")).await.unwrap();
    assert_eq!(objects.get(name, 10).await.unwrap(), "the second");
    assert_eq!(objects.length(name).await, Ok(10));
    assert_eq!(objects.get(name, 9).await, Err(ObjectError::TooLong(10)));
    let large = Bytes::from((0..2_200_000u32).flat_map(u32::to_le_bytes).step_by(4).collect::<Vec<u8>>());
    objects.put(name, large.clone()).await.unwrap();
    assert_eq!(objects.get(name, 3_000_000).await.unwrap(), large);
    objects.delete(name).await.unwrap();
    assert_eq!(objects.get(name, 100).await, Err(ObjectError::Missing));

    let mut names = Vec::new();
    for (folder, below) in [("00ab", ["07/1/a-1", "07/1/a-2", "07/2/b"]), ("00ac", ["07/1/a", "08/1/a", "08/10/a"])] {
        for one in below {
            names.push(format!("test/region-1/{folder}/{one}"));
        }
    }
    for name in names.iter().rev() {
        objects.put(name, Bytes::from_static(b"x")).await.unwrap();
    }
    for (folder, expected) in
        [("test/region-1/00ab", &names[..3]), ("test/region-1/00ac", &names[3..]), ("test", &names)]
    {
        for limit in 1..8 {
            let (mut found, mut after) = (Vec::new(), None::<String>);
            loop {
                let page = objects.list(folder, after.as_deref(), limit).await.unwrap();
                assert!(page.len() <= limit && page.iter().all(|listed| listed.bytes == 1));
                let Some(last) = page.last() else { break };
                after = Some(last.name.clone());
                found.extend(page.into_iter().map(|listed| listed.name));
            }
            assert_eq!(found, expected, "{folder} by {limit}");
        }
    }
    for name in &names {
        objects.delete(name).await.unwrap();
    }
    assert_eq!(objects.list("test", None, 10).await.unwrap(), []);
}

fn entry(seq: u64) -> Arc<Entry> {
    Arc::new(Entry::text(
        Place { hlc: seq << 16, origin: HERE, seq },
        Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
        format!("<message {seq} as it was written>"),
    ))
}

/// Whole buckets of a store go there, are read, erased, and read again.
async fn tiering(objects: Arc<dyn Objects>) {
    let dir = tempfile::tempdir().unwrap();
    let options = ArchiveOptions { cache_bytes: 0, ..ArchiveOptions::default() };
    let archive = Archive::new(objects, "test", 1, options);
    let options = Options { archive: Some(Arc::new(archive)), archive_id: [7; 16], ..Options::new(1).init() };
    let (store, _) = EmbeddedStore::open(dir.path(), options).unwrap();
    let (conversation, mut expected) = (ConvId([1; 16]), (1..=9_000).map(entry).collect::<Vec<_>>());
    for part in expected.chunks(500) {
        let append = Append { conversation, origin: HERE, epoch: 1, entries: part.to_vec(), todo: Vec::new() };
        assert_eq!(store.append(vec![append]).await, [Appended::Decided]);
    }
    let plan = TierPlan { eager: true, sweep: true, ..TierPlan::new(9_000_000, Duration::ZERO) };
    let report = store.tier(&plan).await.unwrap();
    assert_eq!((&report.failed, report.moved_buckets, report.moved_entries, report.runs), (&None, 2, 8_191, 2));
    let range = Range {
        conversation,
        origin: HERE,
        from: 1,
        to: u64::MAX,
        max_entries: usize::MAX,
        max_bytes: usize::MAX,
        backwards: false,
    };
    assert_eq!(store.range(range).await.unwrap(), expected);
    let by = expected[99].by.clone();
    let erase = Put::Erase { conversation, origin: HERE, seq: 100, by };
    store.put(vec![erase], Durability::Synced).await.unwrap();
    let report = store.tier(&plan).await.unwrap();
    assert_eq!((&report.failed, report.rewritten, report.unwritten_erasures), (&None, 1, 0));
    expected[99] = Arc::new(expected[99].to_erased());
    assert_eq!(store.range(range).await.unwrap(), expected);
}

#[tokio::test]
async fn objects_in_memory() {
    let objects = MemoryObjects::default();
    contract(&objects).await;
    tiering(Arc::new(objects)).await;
}

#[tokio::test]
async fn objects_in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::Directory(dir.path().to_owned());
    let env = system_env().unwrap();
    let objects = open(&location, &S3Options::default(), &env, Duration::from_secs(10)).unwrap().objects;
    // Of another region, opened when nothing was there.
    let reader = open(&location, &S3Options::default(), &env, Duration::from_secs(10)).unwrap().objects;
    contract(&*objects).await;
    tiering(objects.clone()).await;
    objects.put("test/x", Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(reader.get("test/x", 10).await.unwrap(), "x");
    let away = dir.path().with_extension("away");
    std::fs::rename(dir.path(), &away).unwrap();
    std::fs::create_dir(dir.path()).unwrap();
    for _ in 0..2 {
        let gone = objects.get("test/x", 10).await.unwrap_err();
        assert!(gone.to_string().contains("mount it"), "an empty place is not an archive without objects: {gone}");
        let gone = reader.get("test/x", 10).await.unwrap_err();
        assert!(gone.to_string().contains("mount it"), "also for who only reads: {gone}");
        assert!(objects.put("test/y", Bytes::from_static(b"y")).await.is_err(), "nor one to write to");
    }
    std::fs::remove_dir(dir.path()).unwrap();
    std::fs::rename(&away, dir.path()).unwrap();
    assert_eq!(objects.get("test/x", 10).await.unwrap(), "x");
    let missing = Location::Directory(dir.path().join("not-there"));
    let error = open(&missing, &S3Options::default(), &env, Duration::from_secs(10)).unwrap_err().to_string();
    assert!(error.contains("not-there") && error.contains("mount it"), "{error}");
}

#[tokio::test]
async fn objects_in_a_bucket() {
    let Ok(endpoint) = std::env::var("TERN_S3_ENDPOINT") else {
        println!("skipped: no server that speaks S3; replication/archive/tests/s3/check starts one");
        return;
    };
    let options = |secret: &str| S3Options {
        endpoint: Some(endpoint.clone()),
        region: Some("us-east-1".to_owned()),
        key: Some((std::env::var("TERN_S3_KEY").unwrap(), secret.to_owned())),
        ca_pem: std::env::var("TERN_S3_CA").map(|path| std::fs::read(path).unwrap()).unwrap_or_default(),
    };
    let secret = std::env::var("TERN_S3_SECRET").unwrap();
    let env = system_env().unwrap();
    for url in ["s3://tern-archive", "s3://tern-archive/one/two"] {
        let location = Location::parse(url).unwrap();
        let objects = open(&location, &options(&secret), &env, Duration::from_secs(10)).unwrap().objects;
        contract(&*objects).await;
        tiering(objects).await;
    }
    let location = Location::parse("s3://tern-archive").unwrap();
    let stranger = open(&location, &options("not the secret"), &env, Duration::from_secs(10)).unwrap().objects;
    let refused = stranger.put("test/x", Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(refused, ObjectError::Failed(_)), "{refused}");
    let nowhere = Location::parse("s3://no-such-bucket").unwrap();
    let nowhere = open(&nowhere, &options(&secret), &env, Duration::from_secs(10)).unwrap().objects;
    assert!(nowhere.put("test/x", Bytes::from_static(b"x")).await.is_err());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_soon() {
    let options = S3Options {
        endpoint: Some("http://127.0.0.1:9".to_owned()),
        key: Some(("name".to_owned(), "secret".to_owned())),
        ..S3Options::default()
    };
    let location = Location::parse("s3://tern-archive").unwrap();
    let objects = open(&location, &options, &system_env().unwrap(), Duration::from_secs(2)).unwrap().objects;
    let error = objects.get("test/x", 10).await.unwrap_err();
    assert!(matches!(&error, ObjectError::Failed(what) if what.contains("can't connect to 127.0.0.1:9")), "{error}");
}
