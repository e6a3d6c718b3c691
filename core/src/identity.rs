//! Which messages a region holds, by identity (R3).
//!
//! A resend, a replay, a second connection or a second region must find that a message is already there,
//! even ten days later; so what is held is an exact set, never a window of time. Per install the counts `n`
//! are nearly consecutive, so the set is a list of runs. A run also tells where its entries lie: `n` and seq
//! both ascend within it, so any one of them is found in a short range of the log, without a row per message.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes};

use crate::ids::{Identity, InstallId, Origin, Seq, UserId};
use crate::pack::{get_count, get_install, get_user, put_count, put_text};

/// A run is closed once it spans this many seqs: bounds the search for one of its messages.
const RUN_SPAN: u64 = 4096;

/// Messages `from..=to` of one install, ascending in one log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First n.
    pub from: u64,
    /// Last n.
    pub to: u64,
    /// Which log.
    pub origin: Origin,
    /// Where `from` lies.
    pub seq_from: Seq,
    /// Where `to` lies.
    pub seq_to: Seq,
}

impl Run {
    /// The seqs between which message `n` of this run lies.
    pub fn range_of(&self, n: u64) -> (Seq, Seq) {
        (self.seq_from + (n - self.from), self.seq_to - (self.to - n))
    }

    fn covers(&self, n: u64) -> bool {
        (self.from..=self.to).contains(&n)
    }
}

/// The identities that one conversation holds, copies included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldIdentities {
    installs: BTreeMap<UserId, BTreeMap<InstallId, Vec<Run>>>,
}

impl HeldIdentities {
    /// Whether at least one copy is held.
    pub fn contains(&self, user: &UserId, install: &InstallId, n: u64) -> bool {
        self.runs(user, install).iter().any(|r| r.covers(n))
    }

    /// The lowest of `from..=to` that is not held. Takes time by the number of runs, not by the distance:
    /// a client may name any floor.
    pub fn first_missing(&self, user: &UserId, install: &InstallId, from: u64, to: u64) -> Option<u64> {
        let runs = self.runs(user, install);
        let mut n = from;
        while n <= to {
            match runs.iter().filter(|r| r.covers(n)).map(|r| r.to).max() {
                Some(held_to) => n = held_to + 1,
                None => return Some(n),
            }
        }
        None
    }

    /// The runs that hold `n`, one per copy.
    pub fn locate(&self, user: &UserId, install: &InstallId, n: u64) -> impl Iterator<Item = &Run> {
        self.runs(user, install).iter().filter(move |r| r.covers(n))
    }

    /// All runs of a user.
    pub fn of_user(&self, user: &UserId) -> impl Iterator<Item = &Run> {
        self.installs.get(user).into_iter().flat_map(BTreeMap::values).flatten()
    }

    /// Notes an entry. Entries of one log come in order of their seqs.
    pub fn insert(&mut self, by: &Identity, origin: Origin, seq: Seq) {
        // The usual case finds both; ids are cloned only for the first message of an install.
        let known = self.installs.get_mut(&by.user).and_then(|installs| installs.get_mut(&by.install));
        let Some(runs) = known else {
            let runs = vec![Run { from: by.n, to: by.n, origin, seq_from: seq, seq_to: seq }];
            self.installs.entry(by.user.clone()).or_default().insert(by.install.clone(), runs);
            return;
        };
        let last = runs.iter_mut().rev().find(|r| r.origin == origin);
        if let Some(run) = last
            && run.to + 1 == by.n
            && run.seq_to < seq
            && seq - run.seq_from < RUN_SPAN
        {
            run.to = by.n;
            run.seq_to = seq;
        } else {
            runs.push(Run { from: by.n, to: by.n, origin, seq_from: seq, seq_to: seq });
        }
    }

    fn runs(&self, user: &UserId, install: &InstallId) -> &[Run] {
        self.installs.get(user).and_then(|installs| installs.get(install)).map_or(&[], Vec::as_slice)
    }

    /// For the conversation's checkpoint.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_count(out, self.installs.values().map(BTreeMap::len).sum());
        let all =
            self.installs.iter().flat_map(|(user, installs)| installs.iter().map(move |(i, runs)| (user, i, runs)));
        for (user, install, runs) in all {
            for text in [user.as_str(), install.as_str()] {
                put_text(out, text);
            }
            put_count(out, runs.len());
            for run in runs {
                out.put_u64(run.from);
                out.put_u64(run.to);
                out.put_u8(run.origin.region);
                out.put_u64(run.origin.era);
                out.put_u64(run.seq_from);
                out.put_u64(run.seq_to);
            }
        }
    }

    /// From a checkpoint; `None` where the bytes are none.
    pub(crate) fn decode(b: &mut Bytes) -> Option<Self> {
        let mut installs = BTreeMap::<UserId, BTreeMap<InstallId, Vec<Run>>>::new();
        for _ in 0..get_count(b)? {
            let user = get_user(b)?;
            let install = get_install(b)?;
            let mut runs = Vec::new();
            for _ in 0..get_count(b)? {
                let run = Run {
                    from: b.try_get_u64().ok()?,
                    to: b.try_get_u64().ok()?,
                    origin: Origin { region: b.try_get_u8().ok()?, era: b.try_get_u64().ok()? },
                    seq_from: b.try_get_u64().ok()?,
                    seq_to: b.try_get_u64().ok()?,
                };
                if run.from > run.to || run.seq_from > run.seq_to || run.to - run.from > run.seq_to - run.seq_from {
                    return None;
                }
                runs.push(run);
            }
            installs.entry(user).or_default().insert(install, runs);
        }
        Some(Self { installs })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    const A: Origin = Origin { region: 1, era: 1 };
    const B: Origin = Origin { region: 2, era: 2 };

    fn by(n: u64) -> Identity {
        Identity { user: UserId::new("u").unwrap(), install: InstallId::new("i").unwrap(), n }
    }

    #[test]
    fn a_phone_that_was_off_for_ten_days_finds_its_old_message() {
        let mut held = HeldIdentities::default();
        for n in 1..=50_000 {
            held.insert(&by(n), A, n * 2);
        }
        let id = by(17);
        let runs: Vec<_> = held.locate(&id.user, &id.install, 17).collect();
        assert_eq!(runs.len(), 1);
        let (from, to) = runs[0].range_of(17);
        assert!(from <= 34 && 34 <= to && to - from < RUN_SPAN);
    }

    #[test]
    fn a_reinstall_counts_for_itself() {
        let mut held = HeldIdentities::default();
        held.insert(&by(1), A, 1);
        assert!(!held.contains(&UserId::new("u").unwrap(), &InstallId::new("new").unwrap(), 1));
    }

    #[test]
    fn a_floor_of_any_distance_is_answered_at_once() {
        let mut held = HeldIdentities::default();
        held.insert(&by(1), A, 1);
        let id = by(1);
        assert_eq!(held.first_missing(&id.user, &id.install, 1, u64::MAX), Some(2));
        assert_eq!(held.first_missing(&id.user, &id.install, 1, 1), None);
        assert_eq!(held.first_missing(&id.user, &id.install, 2, 1), None);
    }

    proptest! {
        #[test]
        fn runs_are_the_exact_set(entries in proptest::collection::vec((1u64..40, any::<bool>()), 0..80)) {
            let mut held = HeldIdentities::default();
            let mut exact = BTreeSet::new();
            let mut places = Vec::new();
            for (i, (n, second)) in entries.iter().enumerate() {
                let origin = if *second { B } else { A };
                held.insert(&by(*n), origin, i as u64 + 1);
                exact.insert(*n);
                places.push((*n, origin, i as u64 + 1));
            }
            let id = by(1);
            for n in 1..42 {
                prop_assert_eq!(held.contains(&id.user, &id.install, n), exact.contains(&n));
                prop_assert_eq!(
                    held.first_missing(&id.user, &id.install, n, 41),
                    (n..=41).find(|k| !exact.contains(k))
                );
            }
            for (n, origin, seq) in places {
                let found = held.locate(&id.user, &id.install, n).any(|r| {
                    let (from, to) = r.range_of(n);
                    r.origin == origin && from <= seq && seq <= to
                });
                prop_assert!(found);
            }
            let mut bytes = Vec::new();
            held.encode(&mut bytes);
            prop_assert_eq!(HeldIdentities::decode(&mut Bytes::from(bytes)), Some(held));
        }

        #[test]
        fn any_bytes_are_a_set_or_none(bytes: Vec<u8>) {
            let _set_or_none = HeldIdentities::decode(&mut Bytes::from(bytes));
        }
    }
}
