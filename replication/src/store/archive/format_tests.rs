use proptest::prelude::*;
use tern_core::ids::{Identity, InstallId, Place, UserId};

use super::super::super::format::encode_entry;
use super::*;

const LOG: LogId = LogId { conversation: ConvId([7; 16]), origin: Origin { region: 3, era: 0x0102_0304_0506_0708 } };

fn entry(seq: u64, body: &[u8]) -> Entry {
    Entry::text(
        Place { hlc: seq << 16, origin: LOG.origin, seq },
        Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
        Bytes::copy_from_slice(body),
    )
}

fn run(first: u64, bodies: &[&[u8]]) -> Run {
    let (mut value, mut chain) = (Vec::new(), [9; 16]);
    let mut builder = RunBuilder::new(LOG, first, chain);
    for (seq, body) in (first..).zip(bodies) {
        chain = encode_entry(&mut value, &chain, &entry(seq, body));
        builder.push(&value).unwrap();
    }
    builder.finish()
}

#[test]
fn the_bytes_of_an_object_are_pinned() {
    let object = run(5, &[b"hi"]).object().clone();
    let header = [
        &b"TERNARCH\x01"[..],
        &[7; 16],
        &[3, 1, 2, 3, 4, 5, 6, 7, 8],
        &5u64.to_be_bytes(),
        &5u64.to_be_bytes(),
        &[9; 16],
    ];
    assert_eq!(object[..HEADER_BYTES], header.concat());
    let (mut value, _) = (Vec::new(), ());
    encode_entry(&mut value, &[9; 16], &entry(5, b"hi"));
    let length = u32::try_from(value.len()).unwrap().to_be_bytes();
    assert_eq!(object[HEADER_BYTES..object.len() - 32], [&length[..], &value].concat());
    assert_eq!(object[object.len() - 32..], *digest(&SHA256, &object[..object.len() - 32]).as_ref());
}

#[test]
fn a_run_is_read_as_it_was_written() {
    let written = run(4, &[b"one", b"", b"three"]);
    let read = Run::read(written.object().clone()).unwrap();
    assert_eq!(read, written);
    assert_eq!((read.first, read.last(), read.before), (4, 6, [9; 16]));
    assert_eq!(read.entry(6).unwrap(), entry(6, b"three"));
    assert_eq!((read.entry(3), read.entry(7)), (None, None));
    assert_eq!(read.mark([1; 16]), written.mark([1; 16]));
    assert_eq!(read.mark([1; 16]).erased, 0);
}

#[test]
fn an_erased_run_is_the_same_run_without_the_body() {
    let whole = run(4, &[b"one", b"<secret>", b"three"]);
    let erased = whole.erased(|seq| seq == 5).unwrap();
    let (before, after) = (whole.mark([1; 16]), erased.mark([1; 16]));
    assert_eq!((after.last, after.chain, after.hlc, after.erased), (before.last, before.chain, before.hlc, 1));
    assert_ne!(after.hash, before.hash);
    assert!(erased.entry(5).unwrap().erased && !erased.entry(4).unwrap().erased);
    assert!(!erased.object().windows(8).any(|bytes| bytes == b"<secret>"));
    assert_eq!(Run::read(erased.object().clone()).unwrap(), erased);
    assert_eq!(erased.erased(|seq| seq == 5).unwrap(), erased, "once more changes nothing");
}

#[test]
fn names_say_which_run_it_is_and_are_in_the_order_of_entries() {
    let mark = run(4_097, &[b"one"]).mark([0xab; 16]);
    let name = object_name("tern/region-1", LOG, 4_097, &mark);
    let start = "tern/region-1/abababababababababababababababab/07070707070707070707070707070707/003-0102030405060708/\
                 0000000000000001/00000000000000004097-";
    assert!(name.starts_with(start) && name.len() == start.len() + 64, "{name}");
    let (log, first, hash) = parse_name("tern/region-1", &[0xab; 16], &name).unwrap();
    assert!(log == LOG && first == 4_097 && is_hash(hash, &mark.hash));
    assert_eq!(parse_name("tern/region-1", &[0xac; 16], &name), None, "another store's");
    assert_eq!(parse_name("tern/region-1", &[0xab; 16], "tern/region-1/abababababababababababababababab/x"), None);
    assert!(object_name("r", LOG, 9, &mark) < object_name("r", LOG, 10, &mark));
    assert!(object_name("r", LOG, 4_095, &mark) < object_name("r", LOG, 4_096, &mark));
}

#[test]
fn what_does_not_follow_is_not_taken() {
    let mut value = Vec::new();
    encode_entry(&mut value, &[9; 16], &entry(5, b"hi"));
    assert!(RunBuilder::new(LOG, 5, [8; 16]).push(&value).unwrap_err().contains("does not follow"));
    assert!(RunBuilder::new(LOG, 6, [9; 16]).push(&value).unwrap_err().contains("entry 6 says that it is entry 5"));
    let other = LogId { conversation: LOG.conversation, origin: Origin { region: 1, era: 1 } };
    assert!(RunBuilder::new(other, 5, [9; 16]).push(&value).is_err());
}

proptest! {
    #[test]
    fn a_changed_or_cut_object_is_refused(at: prop::sample::Index, bit in 0u8..8, cut: prop::sample::Index) {
        let object = run(1, &[b"one", b"two", b"three"]).object().to_vec();
        let mut changed = object.clone();
        changed[at.index(object.len())] ^= 1 << bit;
        prop_assert!(Run::read(changed.into()).is_err());
        prop_assert!(Run::read(Bytes::copy_from_slice(&object[..cut.index(object.len())])).is_err());
    }

    #[test]
    fn bytes_that_have_a_right_hash_are_a_run_or_an_error(mut bytes: Vec<u8>, like: bool) {
        if like {
            bytes.splice(0..0, run(1, &[b"one"]).object()[..HEADER_BYTES].iter().copied());
        }
        let hash = digest(&SHA256, &bytes);
        bytes.extend_from_slice(hash.as_ref());
        let _run_or_error = Run::read(bytes.into());
    }
}
