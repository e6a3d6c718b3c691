//! Delta debugging over a list.

/// Finds a part of a list for which `fails` holds, such that no piece of it can be left out. `fails` is not asked for
/// the whole list, which is known to fail, and keeps the last part for which it said yes.
pub(super) fn ddmin<T: Clone>(all: &[T], mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut kept = all.to_vec();
    if !kept.is_empty() && fails(&[]) {
        return Vec::new();
    }
    let mut pieces = 2;
    while kept.len() > 1 {
        let size = kept.len().div_ceil(pieces);
        let mut gained = false;
        let mut from = 0;
        while from < kept.len() {
            let until = (from + size).min(kept.len());
            let without = [&kept[..from], &kept[until..]].concat();
            if !without.is_empty() && fails(&without) {
                kept = without;
                gained = true;
            } else {
                from = until;
            }
        }
        if size == 1 && !gained {
            break;
        }
        pieces = if gained { pieces.clamp(2, kept.len().max(2)) } else { (pieces * 2).min(kept.len()) };
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_needed_to_the_last_piece() {
        let all: Vec<u32> = (0..50).collect();
        for needed in [vec![], vec![7], vec![0, 49], vec![3, 4, 5], vec![1, 10, 20, 30, 41]] {
            let mut asked = 0;
            let left = ddmin(&all, |part| {
                asked += 1;
                needed.iter().all(|one| part.contains(one))
            });
            assert_eq!(left, needed);
            assert!(asked < 150, "{asked} for {needed:?}");
        }
        assert_eq!(ddmin(&[1, 2], |part| part.contains(&1) || part.contains(&2)).len(), 1);
        assert!(ddmin::<u32>(&[], |_| true).is_empty());
    }
}
