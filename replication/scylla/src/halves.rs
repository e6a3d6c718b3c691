//! A bounded map that forgets what was not used for long: what is used is in the young half; when that is full, the
//! old half is dropped and the young one becomes it.

use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Halves<K, V> {
    young: BTreeMap<K, V>,
    old: BTreeMap<K, V>,
    limit: usize,
}

impl<K: Ord + Clone, V: Clone> Halves<K, V> {
    /// Holds at most `limit` values and one, and at least the newest half of it.
    pub(crate) fn new(limit: usize) -> Self {
        Self { young: BTreeMap::new(), old: BTreeMap::new(), limit }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let value = self.old.remove(key)?;
        self.put(key.clone(), value.clone());
        Some(value)
    }

    pub(crate) fn put(&mut self, key: K, value: V) {
        self.young.insert(key, value);
        if self.young.len() > self.limit / 2 {
            self.old = std::mem::take(&mut self.young);
        }
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_number_is_bounded() {
        let mut halves = Halves::new(8);
        for n in 0..200 {
            halves.put(n, n);
            assert_eq!(halves.get(&0), Some(0), "used each time");
            assert!(halves.young.len() + halves.old.len() <= 9);
        }
        assert_eq!((halves.get(&199), halves.get(&100)), (Some(199), None));
    }

    #[test]
    fn what_is_removed_or_replaced_is_so_in_either_half() {
        let mut halves = Halves::new(4);
        for n in 0..3 {
            halves.put(n, 1);
        }
        halves.put(0, 2);
        halves.remove(&1);
        assert_eq!((halves.get(&0), halves.get(&1), halves.get(&2)), (Some(2), None, Some(1)));
    }
}
