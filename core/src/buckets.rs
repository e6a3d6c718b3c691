//! Comparing a user's rows by the hashes of buckets (R8).
//!
//! Problem: a device comes to a region that it never visited, with hundreds of conversations that it knows from
//! other regions. A full list costs hundreds of kilobytes, and nearly all of it is known.
//!
//! Rule: both sides hash each row as it was last told by a server, sum the hashes per bucket (wrapping, so
//! order does not matter), and only rows of buckets that differ are told. What differs between regions for no
//! good reason is not hashed: revisions, hints of unread, what the device has pulled. A row that was left counts like
//! any other: its heads end at the cut of the removal, in every region, once all that is below has come.
//!
//! Why simpler ways fail: a cursor of another region says nothing here; vectors of all rows are the full list. A row
//! that was left and counts by its generation alone hides what was written before the removal, or read, where the
//! region that told of the removal lacked that.

use ring::digest::{Context, SHA256};

use crate::ids::{ConvId, Heads};

/// Buckets for up to [`SMALL`] rows.
pub const FEW: usize = 64;
/// Buckets above.
pub const MANY: usize = 512;
/// Rows up to which [`FEW`] buckets are used.
pub const SMALL: usize = 500;

/// `RowRecord::state` of one who has left.
pub const LEFT: u32 = 1;

/// A row as it is compared.
#[derive(Clone, Copy, Debug)]
pub struct RowView<'a> {
    /// Which conversation.
    pub conversation: ConvId,
    /// As told.
    pub heads: &'a Heads,
    /// Read mark.
    pub read: &'a Heads,
    /// Of a direct conversation's other user.
    pub peer_read: &'a Heads,
    /// From where it can be read.
    pub from: &'a Heads,
    /// See `RowRecord::state`.
    pub state: u32,
    /// Of the membership.
    pub generation: u64,
}

/// How many buckets a client with so many rows uses.
pub const fn count(rows: usize) -> usize {
    if rows <= SMALL { FEW } else { MANY }
}

/// In which of `total` buckets a conversation lies. Ids are random or hashes, so any of their bits will do.
pub fn bucket_of(conversation: ConvId, total: usize) -> usize {
    usize::from(u16::from_be_bytes([conversation.0[0], conversation.0[1]])) % total.max(1)
}

/// The hash of a row: the first 8 bytes of SHA-256, big-endian.
pub fn row_hash(row: RowView<'_>) -> u64 {
    let mut hash = Context::new(&SHA256);
    hash.update(b"tern row 1");
    hash.update(&row.conversation.0);
    hash.update(&row.state.to_be_bytes());
    hash.update(&row.generation.to_be_bytes());
    for heads in [row.heads, row.read, row.peer_read, row.from] {
        hash.update(&(heads.len() as u64).to_be_bytes());
        for (origin, seq) in heads {
            hash.update(&[origin.region]);
            hash.update(&origin.era.to_be_bytes());
            hash.update(&seq.to_be_bytes());
        }
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finish().as_ref()[..8]);
    u64::from_be_bytes(first)
}

/// The sums of all buckets.
pub fn sums<'a>(rows: impl Iterator<Item = RowView<'a>>, total: usize) -> Vec<u64> {
    let mut sums = vec![0u64; total];
    for row in rows {
        let sum = &mut sums[bucket_of(row.conversation, total)];
        *sum = sum.wrapping_add(row_hash(row));
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Origin;
    use proptest::prelude::*;

    fn heads(pairs: &[(u8, u64)]) -> Heads {
        pairs.iter().map(|(region, seq)| (Origin { region: *region, era: 7 }, *seq)).collect()
    }

    fn view<'a>(id: u8, heads: &'a Heads, none: &'a Heads) -> RowView<'a> {
        let conversation = ConvId([id; 16]);
        RowView { conversation, heads, read: none, peer_read: none, from: none, state: 0, generation: 1 }
    }

    #[test]
    fn the_hash_is_pinned() {
        let (told, none) = (heads(&[(1, 5), (2, 1)]), Heads::new());
        assert_eq!(format!("{:016x}", row_hash(view(9, &told, &none))), "e0015d12fa2e407e");
    }

    #[test]
    fn a_row_that_was_left_counts_like_any_other() {
        let (here, there, none) = (heads(&[(1, 5)]), heads(&[(1, 3)]), Heads::new());
        let left = |heads| RowView { state: LEFT, ..view(9, heads, &none) };
        assert_ne!(row_hash(left(&here)), row_hash(left(&there)));
        assert_ne!(row_hash(left(&here)), row_hash(RowView { read: &there, ..left(&here) }));
        assert_ne!(row_hash(left(&here)), row_hash(view(9, &here, &none)));
    }

    proptest! {
        #[test]
        fn every_part_of_a_row_changes_its_bucket_alone(id: u8, seq in 1u64..100, part in 0usize..6) {
            let (old, new, none) = (heads(&[(1, seq)]), heads(&[(1, seq + 1)]), Heads::new());
            let before = view(id, &old, &none);
            let after = match part {
                0 => RowView { heads: &new, ..before },
                1 => RowView { read: &new, ..before },
                2 => RowView { peer_read: &new, ..before },
                3 => RowView { from: &new, ..before },
                4 => RowView { state: 2, ..before },
                _ => RowView { generation: 2, ..before },
            };
            let others = [view(id.wrapping_add(1), &old, &none), view(id.wrapping_add(2), &old, &none)];
            let a = sums(others.into_iter().chain([before]), FEW);
            let b = sums([after].into_iter().chain(others), FEW);
            let differing: Vec<usize> = (0..FEW).filter(|i| a[*i] != b[*i]).collect();
            prop_assert_eq!(differing, vec![bucket_of(before.conversation, FEW)]);
        }
    }
}
