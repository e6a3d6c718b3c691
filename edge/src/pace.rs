//! Sends per user, over all of the user's connections to this edge.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tern_core::ids::UserId;
use tern_core::pacing::{Bucket, Rate};

/// One user's allowance, shared by his connections.
#[derive(Debug)]
pub(crate) struct UserPace {
    pub(crate) id: UserId,
    bucket: Mutex<Bucket>,
}

/// All users that are connected, or were a moment ago.
#[derive(Debug)]
pub(crate) struct Paces {
    rate: RwLock<Allowed>,
    table: Mutex<Table>,
}

#[derive(Clone, Copy, Debug)]
struct Allowed {
    rate: Rate,
    /// By when an empty allowance is whole again: forgetting it earlier would make reconnecting pay.
    refill: Duration,
}

impl Allowed {
    fn new(per_second: u32, burst: u32) -> Self {
        let refill = Duration::from_secs(1) * burst.max(1) / per_second.max(1) + Duration::from_secs(1);
        Self { rate: Rate::new(per_second, burst), refill }
    }
}

#[derive(Debug, Default)]
struct Table {
    users: BTreeMap<UserId, Arc<UserPace>>,
    leaving: VecDeque<(Duration, UserId)>,
}

impl Paces {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        Self { rate: RwLock::new(Allowed::new(per_second, burst)), table: Mutex::default() }
    }

    /// Another rate from now on.
    pub(crate) fn set_rate(&self, per_second: u32, burst: u32) {
        *self.rate.write().unwrap_or_else(PoisonError::into_inner) = Allowed::new(per_second, burst);
    }

    fn allowed(&self) -> Allowed {
        *self.rate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The allowance of a user who connects; `None` where he has `most` connections already.
    pub(crate) fn enter(&self, id: &UserId, most: usize) -> Option<Arc<UserPace>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Arc::new(UserPace { id: id.clone(), bucket: Mutex::default() });
        let pace = table.users.entry(id.clone()).or_insert_with(fresh);
        // One handle is the table's.
        (Arc::strong_count(pace) <= most).then(|| pace.clone())
    }

    /// One connection of the user ended.
    pub(crate) fn leave(&self, pace: Arc<UserPace>, now: Duration) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        // This handle and the table's.
        let stays = Arc::strong_count(&pace) > 2;
        let whole = pace.bucket.lock().unwrap_or_else(PoisonError::into_inner).is_whole(now);
        let id = pace.id.clone();
        // While the table is locked: of two that leave at once each would otherwise take the other for one that
        // stays, and the user would never be forgotten.
        drop(pace);
        if stays {
            return;
        }
        if whole {
            table.users.remove(&id);
        } else {
            table.leaving.push_back((now + self.allowed().refill, id));
        }
    }

    /// Takes one send, or says how long to wait.
    pub(crate) fn take(&self, pace: &UserPace, now: Duration) -> Result<(), Duration> {
        pace.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(self.allowed().rate, now)
    }

    /// Forgets those who left long enough ago.
    pub(crate) fn forget(&self, now: Duration) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((due, id)) = table.leaving.front().cloned() {
            if due > now {
                return;
            }
            table.leaving.pop_front();
            if table.users.get(&id).is_some_and(|pace| Arc::strong_count(pace) == 1) {
                table.users.remove(&id);
            }
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.table.lock().unwrap().users.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_rate_counts_at_once_and_what_was_used_stays_used() {
        let paces = Paces::new(20, 60);
        let (id, now) = (UserId::new("u").unwrap(), Duration::from_secs(9));
        let pace = paces.enter(&id, 9).unwrap();
        assert!((0..10).all(|_| paces.take(&pace, now).is_ok()));
        paces.set_rate(20, 12);
        assert!((0..2).all(|_| paces.take(&pace, now).is_ok()));
        assert_eq!(paces.take(&pace, now), Err(Duration::from_millis(50)));
        paces.set_rate(20, 60);
        assert!(paces.take(&pace, now).is_ok());
    }

    #[test]
    fn a_user_has_so_many_connections_and_one_more_when_one_ends() {
        let paces = Paces::new(20, 60);
        let (id, now) = (UserId::new("u").unwrap(), Duration::from_secs(9));
        let mut held: Vec<_> = (0..9).map(|_| paces.enter(&id, 9).unwrap()).collect();
        assert!(paces.enter(&id, 9).is_none());
        assert!(paces.enter(&UserId::new("v").unwrap(), 9).is_some());
        paces.leave(held.pop().unwrap(), now);
        assert!(paces.enter(&id, 9).is_some());
    }

    #[test]
    fn connections_of_a_user_that_end_at_once_leave_nothing_behind() {
        let paces = Paces::new(20, 60);
        for i in 0..2_000 {
            let id = UserId::new(&format!("u{i}")).unwrap();
            let ends = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    let pace = paces.enter(&id, 9).unwrap();
                    let (ends, paces) = (&ends, &paces);
                    scope.spawn(move || {
                        ends.wait();
                        paces.leave(pace, Duration::ZERO);
                    });
                }
            });
        }
        assert_eq!(paces.len(), 0);
    }

    #[test]
    fn reconnecting_does_not_refill_the_allowance_and_nobody_is_remembered_for_ever() {
        let paces = Paces::new(20, 60);
        let (id, now) = (UserId::new("u").unwrap(), Duration::from_secs(9));
        let one = paces.enter(&id, 9).unwrap();
        let two = paces.enter(&id, 9).unwrap();
        assert!((0..60).all(|i| paces.take(if i % 2 == 0 { &one } else { &two }, now).is_ok()));
        paces.leave(one, now);
        paces.leave(two, now);
        let again = paces.enter(&id, 9).unwrap();
        assert_eq!(paces.take(&again, now), Err(Duration::from_millis(50)));
        paces.leave(again, now);
        paces.forget(now + Duration::from_secs(3));
        assert_eq!(paces.len(), 1);
        paces.forget(now + Duration::from_secs(4));
        assert_eq!(paces.len(), 0);
        let calm = paces.enter(&id, 9).unwrap();
        paces.leave(calm, now);
        assert_eq!(paces.len(), 0);
    }
}
