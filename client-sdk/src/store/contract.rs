//! What every local store must do, run on both; and what SQLite must do besides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use tern_core::client::{
    ConversationRecord, Intervals, MessageId, MessageState, Op, OriginState, Outgoing, OutgoingRecord,
};
use tern_core::entry::Entry;
use tern_core::fold::Erasing;
use tern_core::ids::{ConvId, Cursor, Heads, Identity, InstallId, Origin, Place, Rev, UserId};

use super::keys::{FileKeyStore, KeyStore};
use super::memory::MemoryStore;
use super::sqlite::SqliteStore;
use super::{LocalStore, OpenError, StoreError};

fn alice() -> UserId {
    UserId::new("alice").unwrap()
}

fn install(text: &str) -> InstallId {
    InstallId::new(text).unwrap()
}

fn origin(region: u8) -> Origin {
    Origin { region, era: u64::MAX - u64::from(region) }
}

fn conv(c: u8) -> ConvId {
    ConvId([c % 2; 16])
}

fn entry(user: &str, n: u64, place: Place, first: Option<Place>, body: &[u8]) -> Arc<Entry> {
    let by = Identity { user: UserId::new(user).unwrap(), install: install("i"), n };
    Arc::new(Entry { wall_ms: u64::MAX - 5, first, ..Entry::text(place, by, Bytes::copy_from_slice(body)) })
}

fn place(hlc: u64, region: u8, seq: u64) -> Place {
    Place { hlc, origin: origin(region), seq }
}

fn open(dir: &tempfile::TempDir) -> Result<SqliteStore, OpenError> {
    let keys = FileKeyStore::new(dir.path().join("keys"));
    SqliteStore::open(dir.path(), &alice(), &keys, install("i"))
}

/// Any op that a machine might hand out, over few conversations and messages so that they meet.
fn op() -> impl Strategy<Value = Op> {
    let entry_op = (0..2u8, 1..4u64, 1..6u64, 1..3u8, 1..9u64, any::<bool>(), any::<bool>()).prop_map(
        |(c, n, hlc, region, seq, copy, unread)| {
            let first = copy.then(|| place(hlc / 2, 1, seq));
            let user = if n == 3 { "alice" } else { "bob" };
            let body = [u8::try_from(n).unwrap(); 3];
            let entry = entry(user, n, place(hlc * 10 + seq, region, seq), first, &body);
            Op::Entry { id: MessageId(0), conversation: conv(c), entry, unread }
        },
    );
    let record = (0..2u8, 1..4u64, 0..5u64, any::<bool>(), 1..9u64).prop_map(|(c, next_n, seen, peer, seq)| {
        Op::Conversation(ConversationRecord {
            id: conv(c),
            peer: peer.then(|| UserId::new("bob").unwrap()),
            next_n,
            seen_hlc: u64::MAX - seen,
            mark: Heads::from([(origin(1), seq)]),
            sighted: peer,
            state: 1,
            generation: u64::MAX - seq,
            heads: Heads::from([(origin(2), seq)]),
            read: Heads::from([(origin(3), seq)]),
            peer_read: Heads::from([(origin(1), seq + 1)]),
            from: Heads::from([(origin(2), seq + 2)]),
            unread_hint: u32::MAX,
            starts: Heads::from([(origin(1), seq + 3)]),
            unfolded: Heads::from([(origin(2), seq + 4)]),
            ended: Heads::from([(origin(3), seq + 5)]),
        })
    });
    let vector = (0..2u8, 1..4u8, 1..99u64, 1..9u64).prop_map(|(c, region, head, a)| {
        let mut held = Intervals::new();
        held.insert(a, a + 3);
        let state = OriginState { head, floor: 1, floor_hlc: u64::MAX, held, lost: Intervals::new() };
        Op::Vector { conversation: conv(c), origin: origin(region), state }
    });
    prop_oneof![
        6 => entry_op,
        4 => (0..2u8, 0..3u64).prop_map(|(c, n)| Op::Queue(outgoing(0, conv(c), n))),
        3 => (0..99u64, 1..5u64).prop_map(|(which, seq)| {
            let mut r = outgoing(which, conv(0), 0).record;
            r.state = MessageState::Sent;
            r.acked = Some((place(seq, 1, seq), [7; 16]));
            r.places = BTreeMap::from([(origin(1), (seq, place(seq, 1, seq)))]);
            Op::Outgoing(r)
        }),
        1 => (0..99u64).prop_map(|which| Op::Release { id: MessageId(which), state: MessageState::Stable }),
        1 => (0..99u64).prop_map(|which| Op::Discard(MessageId(which))),
        2 => (0..2u8, 1..3u8, 1..9u64).prop_map(|(c, region, upto)| {
            Op::Read { conversation: conv(c), mark: Heads::from([(origin(region), upto)]) }
        }),
        1 => Just(Op::ReadFrom(UserId::new("bob").unwrap())),
        2 => (0..2u8, 1..4u64, 1..3u8).prop_map(|(c, seq, region)| {
            Op::Fact { conversation: conv(c), entry: entry("bob", seq, place(seq, region, seq), None, b"fact") }
        }),
        1 => (0..2u8, 1..4u64, 1..3u8).prop_map(|(c, seq, region)| {
            Op::Forget { conversation: conv(c), origin: origin(region), seq }
        }),
        2 => (0..2u8, 1..4u64).prop_map(|(c, n)| {
            let by = Identity { user: UserId::new("bob").unwrap(), install: install("i"), n };
            Op::Erase { conversation: conv(c), what: Erasing::One(by) }
        }),
        1 => (0..2u8, 1..60u64).prop_map(|(c, before)| {
            Op::Erase { conversation: conv(c), what: Erasing::Mine(UserId::new("bob").unwrap(), before) }
        }),
        2 => (0..2u8, 1..3u8, 0..9u64).prop_map(|(c, region, above)| {
            Op::Void { conversation: conv(c), origin: origin(region), above }
        }),
        1 => (0..2u8, any::<[u8; 3]>()).prop_map(|(c, cells)| {
            Op::Folded { conversation: conv(c), cells: Bytes::copy_from_slice(&cells) }
        }),
        2 => record,
        2 => vector,
        1 => (1..4u8, 0..9u64).prop_map(|(r, rev)| Op::Cursor(Cursor { store: origin(r), rev: Rev(u64::MAX - rev) })),
        1 => any::<u64>().prop_map(Op::Connections),
        1 => any::<bool>().prop_map(|fresh| Op::Install { install: install("i"), fresh }),
        1 => Just(Op::Salt(Bytes::from_static(b"salt"))),
        1 => any::<[u8; 5]>().prop_map(|bytes| Op::Networks(Bytes::copy_from_slice(&bytes))),
        1 => any::<u64>().prop_map(|wall_ms| Op::Dispatch { answer: Bytes::from_static(b"{}"), wall_ms }),
    ]
}

fn outgoing(id: u64, conversation: ConvId, n: u64) -> Outgoing {
    let record = OutgoingRecord {
        id: MessageId(id),
        conversation,
        install: install("i"),
        n,
        state: MessageState::Queued,
        acked: None,
        places: BTreeMap::new(),
        tried: BTreeSet::from([origin(2)]),
    };
    Outgoing { record, kind: 7, wall_ms: 1, body: Bytes::from_static(b"mine") }
}

/// Makes the ops such as a machine hands out: fresh ids for what is new, known ones for what is changed, own
/// counts used once.
fn sensible(ops: Vec<Op>) -> Vec<Op> {
    let (mut next, mut mine) = (1, Vec::<OutgoingRecord>::new());
    let mut out = Vec::new();
    for op in ops {
        let pick = |id: MessageId, mine: &[OutgoingRecord]| {
            mine.get(usize::try_from(id.0).unwrap() % mine.len().max(1)).cloned()
        };
        match op {
            Op::Entry { conversation, entry, unread, .. } => {
                out.push(Op::Entry { id: MessageId(next), conversation, entry, unread });
                next += 1;
            }
            Op::Queue(mut o) => {
                o.record.id = MessageId(next);
                o.record.n = if o.record.n == 0 { 0 } else { 100 + next };
                mine.push(o.record.clone());
                out.push(Op::Queue(o));
                next += 1;
            }
            Op::Outgoing(changed) => {
                if let Some(mut known) = pick(changed.id, &mine) {
                    known.n = 100 + known.id.0;
                    out.push(Op::Outgoing(OutgoingRecord {
                        conversation: known.conversation,
                        n: known.n,
                        id: known.id,
                        ..changed
                    }));
                }
            }
            Op::Release { id, state } => {
                if let Some(known) = pick(id, &mine) {
                    mine.retain(|m| m.id != known.id);
                    out.push(Op::Release { id: known.id, state });
                }
            }
            Op::Discard(id) => {
                if let Some(known) = pick(id, &mine) {
                    mine.retain(|m| m.id != known.id);
                    out.push(Op::Discard(known.id));
                }
            }
            op => out.push(op),
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn sqlite_does_what_the_book_does(steps in prop::collection::vec(prop::collection::vec(op(), 1..6), 1..14), reopen in 0..14usize) {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = open(&dir).unwrap();
        let mut memory = MemoryStore::new(alice(), install("i"));
        // A machine stores a conversation before, or with, what is kept of it.
        let known: Vec<_> = (0..2).map(|c| Op::Conversation(ConversationRecord::new(conv(c), None))).collect();
        disk.apply(&known).unwrap();
        memory.apply(&known).unwrap();
        let flat: Vec<_> = steps.iter().flatten().cloned().collect();
        let mut ops = sensible(flat).into_iter();
        for (index, step) in steps.iter().enumerate() {
            let step: Vec<_> = ops.by_ref().take(step.len()).collect();
            prop_assert_eq!(disk.apply(&step).unwrap(), memory.apply(&step).unwrap());
            if index == reopen {
                drop(disk);
                disk = open(&dir).unwrap();
            }
            prop_assert_eq!(disk.load().unwrap(), memory.load().unwrap());
            for c in 0..2 {
                for (horizon, limit) in [(0, 99), (0, 2), (25, 99)] {
                    let (a, b) = (disk.timeline(conv(c), horizon, limit), memory.timeline(conv(c), horizon, limit));
                    prop_assert_eq!(a.unwrap(), b.unwrap());
                }
                prop_assert_eq!(disk.unread(conv(c)).unwrap(), memory.unread(conv(c)).unwrap());
                for hlc in [0, 15, 33, 99] {
                    let key = place(hlc, 1, 9);
                    prop_assert_eq!(disk.upto(conv(c), key).unwrap(), memory.upto(conv(c), key).unwrap());
                }
            }
            for id in 0..30 {
                prop_assert_eq!(disk.message(MessageId(id)).unwrap(), memory.message(MessageId(id)).unwrap());
                let (mut a, mut b) = (disk.copies(MessageId(id)).unwrap(), memory.copies(MessageId(id)).unwrap());
                a.sort_unstable();
                b.sort_unstable();
                prop_assert_eq!(a, b);
            }
        }
    }
}

#[test]
fn a_conversation_takes_all_it_has_to_its_final_id() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = open(&dir).unwrap();
    let mut memory = MemoryStore::new(alice(), install("i"));
    let (from, to) = (conv(0), ConvId([9; 16]));
    let ops = vec![
        Op::Conversation(ConversationRecord::new(from, Some(UserId::new("bob").unwrap()))),
        Op::Queue(outgoing(1, from, 0)),
        Op::Entry {
            id: MessageId(2),
            conversation: from,
            entry: entry("bob", 1, place(1, 1, 1), None, b"x"),
            unread: true,
        },
        Op::Vector { conversation: from, origin: origin(1), state: OriginState::default() },
        Op::Fact { conversation: from, entry: entry("bob", 2, place(2, 1, 2), None, b"fact") },
        Op::Folded { conversation: from, cells: Bytes::from_static(b"cells") },
        Op::Rename { from, to },
    ];
    for store in [&mut disk as &mut dyn LocalStore, &mut memory] {
        store.apply(&ops).unwrap();
        assert!(store.timeline(from, 0, 9).unwrap().is_empty());
        assert_eq!(store.timeline(to, 0, 9).unwrap().len(), 2);
        assert_eq!(store.unread(to).unwrap(), 1);
        store.apply(&[Op::Read { conversation: to, mark: Heads::from([(origin(1), 1)]) }]).unwrap();
        assert_eq!(store.unread(to).unwrap(), 0, "its copies went along");
    }
    assert_eq!(disk.load().unwrap(), memory.load().unwrap());
    assert_eq!(disk.load().unwrap().conversations.keys().collect::<Vec<_>>(), vec![&to]);
}

/// The file was made by format 1 and stays as it is for ever.
#[test]
fn a_file_of_format_1_is_opened_with_all_it_holds_and_takes_what_came_since() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(SqliteStore::path(dir.path(), &alice()), include_bytes!("fixtures/format-1.tern")).unwrap();
    std::fs::write(dir.path().join("keys"), "1 i\n").unwrap();
    let mut disk = open(&dir).unwrap();
    let image = disk.load().unwrap();
    assert_eq!((image.install, image.salt), (install("i"), Some(Bytes::from_static(b"salt"))));
    let kept = &image.conversations[&conv(0)];
    assert_eq!((kept.record.next_n, kept.record.seen_hlc, kept.record.sighted), (3, 77, true));
    assert_eq!((kept.record.generation, kept.record.read.len(), kept.facts.len()), (0, 0, 0));
    assert_eq!(image.outgoing.len(), 1);
    assert_eq!((image.outgoing[0].record.n, image.outgoing[0].record.tried.len()), (2, 0));
    let shown = disk.timeline(conv(0), 0, 9).unwrap();
    assert_eq!(
        shown.iter().map(|m| (&m.body[..], m.erased)).collect::<Vec<_>>(),
        [(&b"hi"[..], false), (b"mine", false)]
    );
    assert_eq!(disk.unread(conv(0)).unwrap(), 1);
    let by = Identity { user: UserId::new("bob").unwrap(), install: install("b"), n: 1 };
    disk.apply(&[Op::Erase { conversation: conv(0), what: Erasing::One(by) }]).unwrap();
    let shown = disk.timeline(conv(0), 0, 9).unwrap();
    assert!(shown[0].erased && shown[0].body.is_empty());
    assert_eq!(disk.unread(conv(0)).unwrap(), 0);
}

#[test]
fn a_transaction_that_fails_in_the_middle_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = open(&dir).unwrap();
    disk.apply(&[Op::Queue(outgoing(1, conv(0), 1))]).unwrap();
    let before = disk.load().unwrap();
    // The second message claims the first one's id.
    let broken = [Op::Salt(Bytes::from_static(b"s")), Op::Queue(outgoing(1, conv(0), 2))];
    assert!(matches!(disk.apply(&broken), Err(StoreError::Failed(_))));
    assert_eq!(disk.load().unwrap(), before);
}

#[test]
fn a_second_client_is_kept_out_and_let_in_when_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir).unwrap();
    let refused = open(&dir).unwrap_err();
    assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
    drop(first);
    open(&dir).unwrap();
}

#[test]
fn an_install_id_is_kept_while_both_places_agree() {
    let dir = tempfile::tempdir().unwrap();
    let keys = FileKeyStore::new(dir.path().join("keys"));
    let open = |fresh| SqliteStore::open(dir.path(), &alice(), &keys, install(fresh)).unwrap().load().unwrap();
    assert_eq!(open("a").install, install("a"));
    assert_eq!(open("b").install, install("a"), "the second start keeps it");
    // SQLite was brought back from a backup: the start counters differ.
    keys.save(&install("a"), 9).unwrap();
    assert_eq!(open("c").install, install("c"));
    assert_eq!(open("d").install, install("c"));
    // Cloned to another phone, whose key store is empty.
    std::fs::remove_file(dir.path().join("keys")).unwrap();
    assert_eq!(open("e").install, install("e"));
}

#[test]
fn after_a_backup_older_messages_keep_their_identity_and_new_counts_start_again() {
    let dir = tempfile::tempdir().unwrap();
    let keys = FileKeyStore::new(dir.path().join("keys"));
    let mut disk = SqliteStore::open(dir.path(), &alice(), &keys, install("a")).unwrap();
    let record = ConversationRecord { next_n: 5, ..ConversationRecord::new(conv(0), None) };
    let mut mine = outgoing(1, conv(0), 4);
    mine.record.install = install("a");
    disk.apply(&[Op::Conversation(record), Op::Queue(mine)]).unwrap();
    drop(disk);
    keys.save(&install("a"), 77).unwrap();
    let image = SqliteStore::open(dir.path(), &alice(), &keys, install("b")).unwrap().load().unwrap();
    assert_eq!(image.install, install("b"));
    assert_eq!(image.outgoing[0].record.install, install("a"));
    assert_eq!(image.outgoing[0].record.n, 4);
    assert_eq!(image.conversations[&conv(0)].record.next_n, 1);
}

#[test]
fn a_damaged_file_is_reported_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir).unwrap());
    let path = SqliteStore::path(dir.path(), &alice());
    let garbage = vec![0x5a; 8192];
    std::fs::write(&path, &garbage).unwrap();
    let error = open(&dir).unwrap_err();
    assert!(matches!(error, OpenError::Store(StoreError::Corrupt(_))), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), garbage);
}

#[test]
fn a_store_of_a_newer_version_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir).unwrap());
    let db = rusqlite::Connection::open(SqliteStore::path(dir.path(), &alice())).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    assert!(matches!(open(&dir).unwrap_err(), OpenError::TooNew { found: 99, .. }));
}

#[test]
fn a_full_disk_is_a_typed_error_and_what_was_stored_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = open(&dir).unwrap();
    disk.apply(&[Op::Queue(outgoing(1, conv(0), 1))]).unwrap();
    disk.limit_pages_for_test();
    let mut big = outgoing(2, conv(0), 2);
    big.body = vec![1; 60_000].into();
    let error = disk.apply(&[Op::Queue(big)]).unwrap_err();
    assert!(matches!(error, StoreError::Full), "{error}");
    assert_eq!(disk.load().unwrap().outgoing.len(), 1);
}
