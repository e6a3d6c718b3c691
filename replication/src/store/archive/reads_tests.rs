use bytes::Bytes;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Identity, InstallId, Origin, Place, UserId};

use super::super::super::format::encode_entry;
use super::super::format::RunBuilder;
use super::super::objects::MemoryObjects;
use super::*;

const LOG: LogId = LogId { conversation: ConvId([7; 16]), origin: Origin { region: 1, era: 1 } };
const STORE: [u8; 16] = [5; 16];

fn run_of(first: Seq, body: &[u8]) -> Run {
    let entry = Entry::text(
        Place { hlc: first << 16, origin: LOG.origin, seq: first },
        Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: first },
        Bytes::copy_from_slice(body),
    );
    let mut value = Vec::new();
    encode_entry(&mut value, &[0; 16], &entry);
    let mut builder = RunBuilder::new(LOG, first, [0; 16]);
    builder.push(&value).unwrap();
    builder.finish()
}

fn archive(objects: &MemoryObjects, cache_bytes: u64) -> Archive {
    let options = ArchiveOptions { cache_bytes, timeout: Duration::from_secs(10) };
    Archive::new(Arc::new(objects.clone()), "my deployment", 1, options)
}

#[tokio::test(start_paused = true)]
async fn what_is_read_again_comes_from_memory_and_memory_is_bounded() {
    let objects = MemoryObjects::default();
    let writer = archive(&objects, 0);
    let mut marks = Vec::new();
    for first in 1..=8 {
        marks.push((first, writer.write(&run_of(first, &[1; 1_000]), STORE).await.unwrap()));
    }
    let gets = objects.asked()[1];
    let reader = archive(&objects, 3_500);
    for (first, mark) in &marks {
        for _ in 0..3 {
            assert_eq!(reader.run(LOG, *first, mark).await.unwrap().first, *first);
        }
    }
    assert_eq!(objects.asked()[1] - gets, 8);
    assert!(reader.metrics().cache_bytes.get() <= 3_500);
    reader.run(LOG, 8, &marks[7].1).await.unwrap();
    assert_eq!(objects.asked()[1] - gets, 8, "the newest is still there");
    reader.run(LOG, 1, &marks[0].1).await.unwrap();
    assert_eq!(objects.asked()[1] - gets, 9, "the oldest is not");
    reader.forget(&marks[0].1);
    reader.run(LOG, 1, &marks[0].1).await.unwrap();
    assert_eq!(objects.asked()[1] - gets, 10);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_many_want_is_read_once() {
    let objects = MemoryObjects::default();
    let archive = archive(&objects, 1 << 20);
    let mark = archive.write(&run_of(1, b"hi"), STORE).await.unwrap();
    let gets = objects.asked()[1];
    let wanted = (0..50).map(|_| archive.run(LOG, 1, &mark));
    let mut read: Vec<_> = wanted.map(Box::pin).collect();
    for one in &mut read {
        one.await.unwrap();
    }
    assert_eq!(objects.asked()[1] - gets, 1);
    assert!(archive.state().reading.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_silent_object_store_is_given_up_in_time_and_then_left_alone() {
    let objects = MemoryObjects::default();
    let archive = archive(&objects, 1 << 20);
    let mark = archive.write(&run_of(1, b"hi"), STORE).await.unwrap();
    objects.set_silent(true);
    let begun = Instant::now();
    let error = archive.run(LOG, 1, &mark).await.unwrap_err();
    assert!(matches!(&error, ArchiveError::Unavailable(what) if what.contains("10000 ms")), "{error}");
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    let error = archive.run(LOG, 1, &mark).await.unwrap_err();
    assert!(error.to_string().contains("a moment ago"), "{error}");
    assert_eq!(begun.elapsed(), Duration::from_secs(10), "at once");
    assert!(matches!(error.of(LOG), StoreError::Archive(_)));
    objects.set_silent(false);
    tokio::time::advance(ARCHIVE_PAUSE).await;
    archive.run(LOG, 1, &mark).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn more_than_may_wait_are_refused_at_once() {
    let objects = MemoryObjects::default();
    let archive = Arc::new(archive(&objects, 1 << 20));
    let mark = archive.write(&run_of(1, b"hi"), STORE).await.unwrap();
    objects.set_silent(true);
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..ARCHIVE_READS_WAITING {
        let archive = archive.clone();
        #[allow(clippy::disallowed_methods, reason = "ends with the test")]
        waiting.spawn(async move { archive.run(LOG, 1, &mark).await });
    }
    while archive.waiting.load(Ordering::Acquire) < ARCHIVE_READS_WAITING {
        tokio::task::yield_now().await;
    }
    let error = archive.run(LOG, 1, &mark).await.unwrap_err();
    assert!(error.to_string().contains("reads wait already"), "{error}");
    while let Some(read) = waiting.join_next().await {
        assert!(read.unwrap().is_err());
    }
    assert_eq!(archive.waiting.load(Ordering::Acquire), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_what_the_mark_names_is_damaged_and_what_is_gone_is_missing() {
    let objects = MemoryObjects::default();
    let archive = archive(&objects, 0);
    let mark = archive.write(&run_of(1, b"hi"), STORE).await.unwrap();
    let name = archive.name(LOG, 1, &mark);
    assert!(name.starts_with("my_deployment/region-1/"), "{name}");
    objects.spoil(&name, Some(run_of(1, b"ho").object().clone()));
    let error = archive.run(LOG, 1, &mark).await.unwrap_err();
    assert!(error.to_string().contains("another one"), "{error}");
    let whole = run_of(1, b"hi").object().clone();
    objects.spoil(&name, Some(whole.slice(..whole.len() - 1)));
    assert!(matches!(archive.run(LOG, 1, &mark).await, Err(ArchiveError::Damaged { .. })));
    assert!(matches!(archive.is_there(LOG, 1, &mark).await, Err(ArchiveError::Damaged { .. })));
    objects.spoil(&name, Some(Bytes::from(vec![0; ARCHIVE_OBJECT_BYTES_MAX + 1])));
    assert!(matches!(archive.run(LOG, 1, &mark).await, Err(ArchiveError::Damaged { .. })));
    objects.spoil(&name, None);
    let error = archive.run(LOG, 1, &mark).await.unwrap_err();
    assert_eq!(error, ArchiveError::Missing(name));
    assert!(matches!(error.of(LOG), StoreError::Damaged { .. }));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_was_replaced_is_found_again_by_its_chain() {
    let objects = MemoryObjects::default();
    let archive = archive(&objects, 0);
    let run = run_of(1, b"hi");
    let old = archive.write(&run, STORE).await.unwrap();
    archive.write(&run_of(1, b"another history"), STORE).await.unwrap();
    assert_eq!(archive.find_again(LOG, 1, &old, [6; 16]).await.unwrap(), None);
    let new = archive.write(&run.erased(|_| true).unwrap(), STORE).await.unwrap();
    let (found, mark) = archive.find_again(LOG, 1, &old, [6; 16]).await.unwrap().unwrap();
    assert!(mark == new && found.entry(1).unwrap().erased);
    archive.delete(&archive.name(LOG, 1, &new), &[6; 16]).await.unwrap();
    assert!(objects.bytes(&archive.name(LOG, 1, &new)).is_some(), "another store's is left");
    archive.delete(&archive.name(LOG, 1, &new), &STORE).await.unwrap();
    assert!(objects.bytes(&archive.name(LOG, 1, &new)).is_none());
}
