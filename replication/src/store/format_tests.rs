use proptest::prelude::*;
use tern_core::ids::{Identity, InstallId, Place};

use super::*;

fn entry(seq: Seq, body: &'static [u8]) -> Entry {
    Entry {
        peer: Some(UserId::new("bob").unwrap()),
        wall_ms: 5,
        ..Entry::text(
            Place { hlc: 0x0102_0304_0506_0708, origin: Origin { region: 1, era: 0x1112_1314_1516_1718 }, seq },
            Identity { user: UserId::new("al").unwrap(), install: InstallId::new("p").unwrap(), n: 4 },
            Bytes::from_static(body),
        )
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn log() -> LogId {
    LogId { conversation: ConvId([0xc0; 16]), origin: Origin { region: 1, era: 0x1112_1314_1516_1718 } }
}

fn heads() -> Heads {
    [(Origin { region: 1, era: 2 }, 3), (Origin { region: 4, era: 5 }, 6)].into_iter().collect()
}

#[test]
fn keys_are_pinned() {
    assert_eq!(hex(&entry_key(log(), 3)), format!("{}0111121314151617180000000000000003", "c0".repeat(16)));
    assert_eq!(hex(&row_key(&UserId::new("al").unwrap(), ConvId([7; 16]))), format!("02616c{}", "07".repeat(16)));
    assert_eq!(hex(&todo_key(Target::Fanout, ConvId([7; 16]))), format!("00{}", "07".repeat(16)));
    assert_eq!(hex(&todo_key(Target::Peer(9), ConvId([7; 16]))), format!("09{}", "07".repeat(16)));
    assert_eq!(hex(&checkpoint_key(ConvId([7; 16]))), format!("63{}", "07".repeat(16)));
    assert_eq!(hex(&meta_key("epoch")), "6d65706f6368");
}

#[test]
fn an_entrys_value_and_its_chain_are_pinned() {
    let mut out = Vec::new();
    let first = encode_entry(&mut out, &[0; 16], &entry(3, b"hi"));
    assert_eq!(hex(&first), FIRST_LINK);
    let stored = hex(&entry(3, b"hi").to_bytes());
    assert_eq!(hex(&out), format!("01{FIRST_LINK}{stored}"));
    let second = encode_entry(&mut out, &first, &entry(4, b"ho"));
    assert_eq!(hex(&second), SECOND_LINK);
}

const FIRST_LINK: &str = "3742e0b180683011afb7d0f646c24582";
const SECOND_LINK: &str = "380171b26a8543c8e62a26955a0570bc";

#[test]
fn the_chain_is_a_hash_over_the_previous_link_and_the_header_alone() {
    let mut out = Vec::new();
    let previous = [9; 16];
    let link = encode_entry(&mut out, &previous, &entry(3, b"hi"));
    let stored = entry(3, b"hi").to_bytes();
    let input = [&previous[..], &stored[..stored.len() - 6]].concat();
    assert_eq!(link, digest(&SHA256, &input).as_ref()[..16]);
}

#[test]
fn an_erased_body_leaves_the_chain_as_it_was() {
    let mut out = Vec::new();
    let whole = encode_entry(&mut out, &[1; 16], &entry(3, b"hi"));
    let mut erased = entry(3, b"hi");
    erased.body = Bytes::new();
    erased.erased = true;
    assert_eq!(encode_entry(&mut out, &[1; 16], &erased), whole);
    let (_, stored) = split_entry(&out).unwrap();
    assert_eq!(Entry::decode(Bytes::copy_from_slice(stored)).unwrap(), erased, "the flag itself is stored");
}

#[test]
fn rows_and_todo_are_pinned() {
    let row = RowRecord {
        rev: Rev(1),
        heads: heads(),
        read: Heads::new(),
        state: 2,
        generation: 3,
        peer: Some(UserId::new("bob").unwrap()),
        last_hlc: 4,
        counted: 5,
        ..RowRecord::default()
    };
    let vector = "0002010000000000000002000000000000000304000000000000000500000000000000\
                  06";
    let mut out = Vec::new();
    encode_row(&mut out, &row);
    let expected =
        concat!("01", "0000000000000001", "00000002", "0000000000000003", "0000000000000004", "0000000000000005");
    assert_eq!(hex(&out), format!("{expected}03626f62{vector}0000"));
    assert_eq!(row_rev(&out), Ok(Rev(1)));
    let ranged = RowRecord { peer_read: heads(), ..row.clone() };
    encode_row(&mut out, &ranged);
    let second = expected.replacen("01", "02", 1);
    assert_eq!(hex(&out), format!("{second}03626f62{vector}0000{vector}0000"));
    assert_eq!((row_rev(&out), decode_row(&out)), (Ok(Rev(1)), Ok(ranged)));
    encode_todo(&mut out, &heads(), None);
    assert_eq!(hex(&out), format!("01{vector}"));
    encode_todo(&mut out, &heads(), Some(&UserId::new("al").unwrap()));
    assert_eq!(hex(&out), format!("02{vector}02616c"));
}

#[test]
fn erasures_are_pinned() {
    let mut out = Vec::new();
    let by = entry(3, b"hi").by;
    encode_erased(&mut out, &by);
    assert_eq!(hex(&out), "01000000000000000402616c0170");
    assert_eq!(decode_erased(&out), Ok(by));
    assert_eq!(decode_erased(&out[..13]), Err(FormatError::Malformed("erasure")));
    let link = encode_entry(&mut out, &[1; 16], &entry(3, b"hi"));
    let erased = erased_value(&link, &entry(3, b"hi"));
    encode_entry(&mut out, &[1; 16], &entry(3, b"hi").to_erased());
    assert_eq!(erased, out);
}

#[test]
fn a_value_of_a_later_format_is_told_apart_from_a_broken_one() {
    assert_eq!(decode_row(&[3, 0, 0]), Err(FormatError::Unknown("row", 3)));
    assert_eq!(decode_row(&[1, 0, 0]), Err(FormatError::Malformed("row")));
    assert_eq!(decode_todo(&[3]), Err(FormatError::Unknown("todo row", 3)));
    assert_eq!(split_entry(&[2; 40]), Err(FormatError::Unknown("entry", 2)));
    assert_eq!(split_entry(&[]), Err(FormatError::Malformed("entry")));
}

fn vector() -> impl Strategy<Value = Heads> {
    proptest::collection::btree_map(
        (1u8.., any::<u64>()).prop_map(|(region, era)| Origin { region, era }),
        any::<u64>(),
        0..12,
    )
}

proptest! {
    #[test]
    fn rows_are_read_as_written(rev: u64, heads in vector(), read in vector(), state: u32, generation: u64,
        peer_read in vector(), from in vector(), peer in proptest::option::of("[a-zü]{1,30}"), last_hlc: u64, counted: u64) {
        let peer = peer.map(|p| UserId::new(&p).unwrap());
        let row = RowRecord { rev: Rev(rev), heads, read, peer_read, from, state, generation, peer, last_hlc, counted };
        let mut out = Vec::new();
        encode_row(&mut out, &row);
        prop_assert_eq!(decode_row(&out), Ok(row.clone()));
        prop_assert_eq!(row_rev(&out), Ok(row.rev));
        encode_todo(&mut out, &row.heads, row.peer.as_ref());
        prop_assert_eq!(decode_todo(&out), Ok((row.heads, row.peer)));
    }

    #[test]
    fn any_bytes_are_a_value_or_an_error(bytes: Vec<u8>) {
        let _value_or_error = (decode_row(&bytes), decode_todo(&bytes), split_entry(&bytes).is_ok(), decode_erased(&bytes), parse_entry_key(&bytes),
            parse_todo_key(&bytes), parse_row_key(&bytes));
    }

    #[test]
    fn keys_order_as_ids_and_numbers_do(a: [u8; 16], b: [u8; 16], ra in 1u8.., rb in 1u8.., ea: u64, eb: u64, sa: u64, sb: u64) {
        let one = (LogId { conversation: ConvId(a), origin: Origin { region: ra, era: ea } }, sa);
        let two = (LogId { conversation: ConvId(b), origin: Origin { region: rb, era: eb } }, sb);
        prop_assert_eq!(entry_key(one.0, one.1).cmp(&entry_key(two.0, two.1)), one.cmp(&two));
        prop_assert_eq!(parse_entry_key(&entry_key(one.0, one.1)), Some(one));
    }

    #[test]
    fn a_changed_header_changes_the_link(bit in 0usize..8, at in 18usize..120) {
        let mut out = Vec::new();
        let link = encode_entry(&mut out, &[1; 16], &entry(3, b"hi"));
        let header_end = out.len() - 6;
        prop_assume!(at < header_end && !(at == 18 && bit == 3));
        prop_assert_eq!(link_of(&mut Vec::new(), &[1; 16], &out[17..], 2), Some(link));
        out[at] ^= 1 << bit;
        prop_assert_ne!(link_of(&mut Vec::new(), &[1; 16], &out[17..], 2), Some(link));
    }
}
