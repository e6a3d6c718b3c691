//! What is to be written into a table of routes: of each device the last word, and no more than there is room for.

use std::collections::BTreeMap;

use tern_core::ids::{InstallId, UserId};
use tern_core::node::{ConnKey, DeviceMoved};

use super::limits::CHANGES_WAITING;

/// The last word on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Which connection.
    pub key: ConnKey,
    /// The device uses it; else it has ended.
    pub is_here: bool,
    /// When that was said.
    pub stamp: u64,
}

/// What waits of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// All of his devices are to be announced, as his owner knows them by then.
    pub whole: bool,
    /// Single devices.
    pub devices: BTreeMap<InstallId, Word>,
}

/// See the module.
#[derive(Debug)]
pub struct Waiting {
    users: BTreeMap<UserId, Said>,
    len: usize,
    room: usize,
}

impl Default for Waiting {
    fn default() -> Self {
        Self::with_room(CHANGES_WAITING)
    }
}

impl Waiting {
    /// Takes so many words at most.
    pub fn with_room(room: usize) -> Self {
        Self { users: BTreeMap::new(), len: 0, room }
    }

    /// Words that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The core says something of a device. False: there is no room, and it is lost.
    #[must_use]
    pub fn moved(&mut self, moved: DeviceMoved, stamp: u64) -> bool {
        let DeviceMoved { user, install, key, is_here } = moved;
        let there = self.users.get(&user).and_then(|said| said.devices.get(&install));
        // The end of a connection is no news of a device that has gone on to another one.
        if !is_here && there.is_some_and(|word| word.is_here && word.key != key) {
            return true;
        }
        if there.is_none() && self.len >= self.room {
            return false;
        }
        let said = self.users.entry(user).or_default();
        self.len += usize::from(said.devices.insert(install, Word { key, is_here, stamp }).is_none());
        true
    }

    /// A user is to be announced whole. False: there is no room.
    #[must_use]
    pub fn whole(&mut self, user: UserId) -> bool {
        let waits = self.users.get(&user).is_some_and(|said| said.whole);
        if waits || self.len < self.room {
            self.len += usize::from(!waits);
            self.users.entry(user).or_default().whole = true;
            return true;
        }
        false
    }

    /// All devices of a user are announced, as they were at that time: what was said before is of no use.
    pub fn announced(&mut self, user: &UserId, stamp: u64) {
        let Some(said) = self.users.get_mut(user) else { return };
        let before = said.devices.len();
        said.devices.retain(|_, word| word.stamp > stamp);
        self.len -= before - said.devices.len() + usize::from(said.whole);
        said.whole = false;
        if said.devices.is_empty() {
            self.users.remove(user);
        }
    }

    /// Takes what waits of some users, so many words or a few more.
    pub fn take(&mut self, words: usize) -> Vec<(UserId, Said)> {
        let mut taken = Vec::new();
        let mut left = words;
        while left > 0
            && let Some((user, said)) = self.users.pop_first()
        {
            let count = said.devices.len() + usize::from(said.whole);
            self.len -= count;
            left = left.saturating_sub(count);
            taken.push((user, said));
        }
        taken
    }

    /// What was taken could not be written: it waits again, unless there is a later word. False: there is no room.
    #[must_use]
    pub fn put_back(&mut self, user: UserId, said: Said) -> bool {
        let mut fits = !said.whole || self.whole(user.clone());
        for (install, word) in said.devices {
            let there = self.users.get(&user).and_then(|said| said.devices.get(&install));
            if there.is_some() {
                continue;
            }
            let Word { key, is_here, stamp } = word;
            fits &= self.moved(DeviceMoved { user: user.clone(), install, key, is_here }, stamp);
        }
        fits
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.users.clear();
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn moved(name: &str, device: &str, conn: u64, is_here: bool) -> DeviceMoved {
        let install = InstallId::new(device).unwrap();
        DeviceMoved { user: user(name), install, key: ConnKey { edge: 1, conn }, is_here }
    }

    fn words(waiting: &mut Waiting) -> Vec<(String, String, u64, bool)> {
        let taken = waiting.take(usize::MAX);
        assert!(waiting.is_empty());
        let words = taken.into_iter().flat_map(|(user, said)| {
            let of = move |(install, word): (InstallId, Word)| {
                (user.as_str().to_owned(), install.as_str().to_owned(), word.key.conn, word.is_here)
            };
            said.devices.into_iter().map(of)
        });
        words.collect()
    }

    fn word(name: &str, device: &str, conn: u64, is_here: bool) -> (String, String, u64, bool) {
        (name.to_owned(), device.to_owned(), conn, is_here)
    }

    #[test]
    fn of_each_device_the_last_word_waits() {
        let mut waiting = Waiting::default();
        for (stamp, said) in [
            moved("alice", "phone", 1, true),
            moved("alice", "pc", 2, true),
            moved("alice", "phone", 1, false),
            moved("bob", "phone", 3, true),
        ]
        .into_iter()
        .enumerate()
        {
            assert!(waiting.moved(said, stamp as u64));
        }
        assert_eq!(waiting.len(), 3);
        let expected = [word("alice", "pc", 2, true), word("alice", "phone", 1, false), word("bob", "phone", 3, true)];
        assert_eq!(words(&mut waiting), expected);
    }

    #[test]
    fn the_end_of_an_old_connection_does_not_hide_the_new_one() {
        let mut waiting = Waiting::default();
        assert!(waiting.moved(moved("alice", "phone", 2, true), 1));
        assert!(waiting.moved(moved("alice", "phone", 1, false), 2));
        assert_eq!(words(&mut waiting), [word("alice", "phone", 2, true)]);
    }

    #[test]
    fn what_is_above_the_room_is_refused_and_what_is_known_is_not() {
        let mut waiting = Waiting::with_room(2);
        assert!(waiting.moved(moved("alice", "phone", 1, true), 1));
        assert!(waiting.whole(user("bob")) && waiting.whole(user("bob")));
        assert!(!waiting.moved(moved("carol", "phone", 2, true), 2) && !waiting.whole(user("dan")));
        assert!(waiting.moved(moved("alice", "phone", 1, false), 3), "it takes the place of what waits");
        assert_eq!(waiting.len(), 2);
        assert_eq!(waiting.take(1).len(), 1);
        assert!(waiting.moved(moved("carol", "phone", 2, true), 4));
    }

    #[test]
    fn what_could_not_be_written_waits_again_below_what_was_said_since() {
        let mut waiting = Waiting::with_room(3);
        assert!(waiting.moved(moved("alice", "phone", 1, true), 1) && waiting.moved(moved("alice", "pc", 2, true), 2));
        assert!(waiting.whole(user("alice")));
        let (name, said) = waiting.take(9).remove(0);
        assert!(waiting.moved(moved("alice", "phone", 1, false), 3));
        assert!(waiting.put_back(name, said));
        assert_eq!(waiting.len(), 3);
        let (_, said) = waiting.take(9).remove(0);
        assert!(said.whole && !said.devices[&InstallId::new("phone").unwrap()].is_here);
        assert_eq!(said.devices[&InstallId::new("pc").unwrap()].stamp, 2);
    }

    #[test]
    fn an_announcement_makes_what_was_said_before_it_useless() {
        let mut waiting = Waiting::default();
        assert!(waiting.whole(user("alice")) && waiting.moved(moved("alice", "phone", 1, true), 1));
        assert!(waiting.moved(moved("alice", "pc", 2, true), 3));
        waiting.announced(&user("alice"), 2);
        assert_eq!(waiting.len(), 1);
        assert_eq!(words(&mut waiting), [word("alice", "pc", 2, true)]);
        waiting.announced(&user("nobody"), 9);
        assert!(waiting.is_empty());
    }
}
