use proptest::prelude::*;

use super::*;

type Owned = (Table, Vec<u8>, Vec<u8>);
type Borrowed<'a> = (Table, &'a [u8], &'a [u8]);

const HEADER: Header = Header { kind: Kind::Backup, region: 7, wall_ms: 0x0102_0304_0506_0708, archived: false };

fn file(records: &[Borrowed<'_>]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), HEADER).unwrap();
    for (table, key, value) in records {
        writer.put(*table, key, value).unwrap();
    }
    let (out, counts, bytes) = writer.finish().unwrap();
    assert_eq!((counts.0.iter().sum::<u64>(), bytes), (records.len() as u64, out.len() as u64));
    out
}

fn read(bytes: &[u8]) -> Result<Vec<Owned>, ReadError> {
    let mut reader = Reader::new(bytes)?;
    assert_eq!(reader.header(), HEADER);
    let mut found = Vec::new();
    while let Some(record) = reader.read()? {
        found.push((record.table, record.key.to_vec(), record.value.to_vec()));
    }
    assert_eq!(reader.read().unwrap(), None, "the end stays the end");
    assert_eq!(reader.bytes(), bytes.len() as u64);
    Ok(found)
}

#[test]
fn the_file_is_pinned() {
    let hex: String = file(&[(Table::Todo, b"k", b"value")]).iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = concat!(
        "5445524e424b5550",
        "01",
        "01",
        "07",
        "0102030405060708",
        "4b0e98c07768b130",
        "03",
        "0001",
        "00000005",
        "6b",
        "76616c7565",
        "7202a8736e669182",
    );
    assert_eq!(hex[..expected.len()], *expected);
    assert!(hex[expected.len()..].starts_with(concat!("ff", "0000", "00000050", "0000000000000000")));
    assert_eq!(hex.len() / 2, 27 + 21 + 7 + 80 + 8);
}

#[test]
fn other_files_and_later_versions_are_told_apart() {
    assert!(matches!(Reader::new(&b"SQLite format 3"[..]), Err(ReadError::NotOne)));
    assert!(matches!(Reader::new(&b""[..]), Err(ReadError::NotOne)));
    let mut later = file(&[]);
    later[8] = 3;
    assert!(matches!(Reader::new(&later[..]), Err(ReadError::Newer(3))));
}

#[test]
fn an_order_or_a_number_that_cannot_be_is_refused_although_every_record_is_whole() {
    let cases: [&[Borrowed<'_>]; 3] = [
        &[(Table::Rows, b"b", b""), (Table::Rows, b"a", b"")],
        &[(Table::Rows, b"a", b""), (Table::Rows, b"a", b"")],
        &[(Table::Rows, b"a", b""), (Table::Entries, b"b", b"")],
    ];
    for records in cases {
        assert!(matches!(read(&file(records)), Err(ReadError::Damaged { what: "it is out of order", .. })));
    }
    // A record taken out whole.
    let whole = file(&[(Table::Rows, b"a", b"1"), (Table::Rows, b"b", b"2")]);
    let one = 7 + 2 + 8;
    let without = [&whole[..27], &whole[27 + one..]].concat();
    assert!(matches!(read(&without), Err(ReadError::Damaged { .. })));
    let longer = [&whole[..], b"x"].concat();
    assert!(matches!(read(&longer), Err(ReadError::Damaged { what: "something stands behind the end", .. })));
}

fn records() -> impl Strategy<Value = Vec<Owned>> {
    let record =
        (0usize..6, proptest::collection::vec(any::<u8>(), 0..40), proptest::collection::vec(any::<u8>(), 0..300));
    proptest::collection::vec(record, 0..12).prop_map(|mut records| {
        records.sort();
        records.dedup_by(|a, b| (a.0, &a.1) == (b.0, &b.1));
        records.retain(|record| !record.1.is_empty());
        records.into_iter().map(|(table, key, value)| (TABLES[table], key, value)).collect()
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(records in records()) {
        let borrowed: Vec<_> = records.iter().map(|(table, key, value)| (*table, &key[..], &value[..])).collect();
        prop_assert_eq!(read(&file(&borrowed)).unwrap(), records);
    }

    #[test]
    fn any_changed_bit_and_any_cut_is_refused(records in records(), at: prop::sample::Index, bit in 0u8..8) {
        let borrowed: Vec<_> = records.iter().map(|(table, key, value)| (*table, &key[..], &value[..])).collect();
        let mut bytes = file(&borrowed);
        let at = at.index(bytes.len());
        let cut = read(&bytes[..at]);
        prop_assert!(matches!(cut, Err(ReadError::Truncated(_) | ReadError::NotOne)), "{:?}", cut);
        bytes[at] ^= 1 << bit;
        prop_assert!(read(&bytes).is_err());
    }
}
