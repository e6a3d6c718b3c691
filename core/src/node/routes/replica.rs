//! A copy of another node's part of the routes.
//!
//! Per shard is known as of which change it is (its *at*): a change that is older is skipped, and so is an older part of
//! a shard, in whatever order they come. Changes are taken without a gap. A digest says what all shards amount to at a
//! change: those that differ are pulled, some at a time, each in parts that replace a range of hashes as of their change.
//! When the node has started anew, what the copy holds stays, as a hint, until its shard has been compared: marked by
//! the digest, swept by the parts.

use std::time::Duration;

use crate::ids::UserId;
use crate::wire::node_v1 as wire;

use super::keyed::Key;
use super::limits::{
    ACK_AFTER, LOST_EVERY, PARTS, PULL_AGAIN, PULLS, STALE_AFTER, STATE_EVERY, SWEEP_EVERY, SWEEP_SHARDS,
};
use super::packed::{Malformed, take_op};
use super::table::{Hash, SHARDS, Table, shard_of};
use super::{Bind, Bug, Lsn, has};

/// See the module.
#[derive(Debug)]
pub(super) struct Replica {
    pub table: Table,
    pub up: bool,
    /// Of the other node's part; 0: nothing is known of it.
    pub epoch: u64,
    /// All changes up to this one were taken, or are in what was compared.
    pub lsn: Lsn,
    shards: Vec<Shard>,
    /// Some shard may be another than it should be; false: none is, which need not be looked up.
    differs: bool,
    heard: Option<Duration>,
    /// When it is said what was heard.
    pub ack_at: Option<Duration>,
    /// When it is said at the latest.
    state_at: Option<Duration>,
    /// Something is missing; and when that was said.
    pub lost: bool,
    lost_at: Option<Duration>,
    /// When the next shards are emptied of those who are gone.
    sweep_at: Option<Duration>,
    /// Shards that were pulled.
    pub pulled: u64,
}

/// What is known of a shard.
#[derive(Clone, Debug, Default)]
struct Shard {
    at: Lsn,
    differs: Option<Differs>,
}

/// A shard that is not what it should be.
#[derive(Clone, Debug)]
enum Differs {
    /// It is to be pulled.
    Unasked,
    /// Nobody is in it as of that change.
    Empty(Lsn),
    /// It was asked for then, and these parts of it as of one change have come.
    Asked { since: Duration, lsn: Lsn, came: Vec<bool> },
}

/// Users whose routes have changed by what was told.
pub(super) type Changed = Vec<UserId>;

impl Replica {
    pub fn new(key: Key) -> Self {
        Self {
            table: Table::new(key),
            up: false,
            epoch: 0,
            lsn: 0,
            shards: vec![Shard::default(); SHARDS],
            differs: false,
            heard: None,
            ack_at: None,
            state_at: None,
            lost: false,
            lost_at: None,
            sweep_at: None,
            pulled: 0,
        }
    }

    /// There is a link to the node. What was asked for on another one does not come any more.
    pub fn up(&mut self, now: Duration) {
        self.up = true;
        self.lost = false;
        self.lost_at = None;
        self.ack_at = Some(now);
        for shard in &mut self.shards {
            if let Some(Differs::Asked { .. }) = shard.differs {
                shard.differs = Some(Differs::Unasked);
            }
        }
    }

    pub fn down(&mut self) {
        self.up = false;
        self.ack_at = None;
        self.state_at = None;
    }

    pub fn heard_at(&mut self, now: Duration) {
        self.heard = Some(now);
    }

    /// Whether it is to be said now what was heard.
    pub fn is_ack_due(&self, now: Duration) -> bool {
        self.up && self.ack_at.into_iter().chain(self.state_at).any(|at| at <= now)
    }

    /// Whether what is held of a user is a hint only: nothing was heard of the node for a while, or his shard is not as
    /// the node says that it should be.
    pub fn is_hint(&self, now: Duration, hash: Hash) -> bool {
        self.is_stale(now) || self.shards[shard_of(hash)].differs.is_some()
    }

    /// Whether nothing was heard of the node for a while.
    pub fn is_stale(&self, now: Duration) -> bool {
        self.heard.is_none_or(|at| at + STALE_AFTER <= now)
    }

    /// Whether every shard is what the node has said that it should be.
    pub fn is_whole(&self) -> bool {
        self.epoch != 0 && self.shards.iter().all(|shard| shard.differs.is_none())
    }

    /// Whether it is exactly what the node's part was at the change `lsn`.
    #[cfg(test)]
    pub fn is_exact(&self) -> bool {
        self.is_whole() && self.shards.iter().all(|shard| shard.at <= self.lsn)
    }

    pub fn next_deadline(&self) -> Option<Duration> {
        let asked = if self.up && self.differs { &self.shards[..] } else { &[] };
        let pulls = asked.iter().filter_map(|shard| match shard.differs {
            Some(Differs::Asked { since, .. }) if !has(Bug::AskedOnce) => Some(since + PULL_AGAIN),
            _ => None,
        });
        pulls.chain(self.ack_at).chain(self.state_at).chain(self.sweep_at).min()
    }

    /// The node says up to where it has told.
    pub fn told_upto(&mut self, now: Duration, epoch: u64, lsn: Lsn) {
        if epoch != self.epoch || lsn > self.lsn {
            self.miss(now);
        }
    }

    /// Something is missing, which is said soon.
    fn miss(&mut self, now: Duration) {
        self.lost = true;
        let at = self.lost_at.map_or(now, |said| now.max(said + LOST_EVERY));
        self.ack_at = Some(self.ack_at.map_or(at, |old| old.min(at)));
    }

    /// What was heard is about to be said. Whether it is to be said that something is missing.
    pub fn acks(&mut self, now: Duration) -> bool {
        self.ack_at = None;
        self.state_at = Some(now + STATE_EVERY);
        let lost = self.lost && self.lost_at.is_none_or(|said| said + LOST_EVERY <= now);
        if lost {
            self.lost = false;
            self.lost_at = Some(now);
        }
        lost
    }

    pub fn delta(&mut self, now: Duration, delta: &wire::RouteDelta, changed: &mut Changed) -> Result<(), Malformed> {
        if delta.epoch != self.epoch || delta.first_lsn > self.lsn + 1 && !has(Bug::GapTaken) {
            self.miss(now);
            return Ok(());
        }
        let mut rest = &delta.ops[..];
        let mut lsn = delta.first_lsn.max(1) - 1;
        while !rest.is_empty() {
            let (user, binds) = take_op(&mut rest, delta.base_ms)?;
            lsn += 1;
            if lsn <= self.lsn {
                continue;
            }
            self.lsn = lsn;
            let shard = &mut self.shards[shard_of(self.table.hash(user))];
            if lsn <= shard.at {
                continue;
            }
            shard.at = lsn;
            set(&mut self.table, user, &binds, changed);
        }
        let at = now + ACK_AFTER;
        self.ack_at = Some(self.ack_at.map_or(at, |old| old.min(at)));
        Ok(())
    }

    /// What all shards amount to as of a change.
    pub fn digest(&mut self, now: Duration, digest: &wire::RouteDigest) -> Result<(), Malformed> {
        if digest.epoch == 0 || digest.sums.len() != SHARDS || digest.counts.len() != SHARDS {
            return Err(Malformed);
        }
        if digest.epoch != self.epoch {
            self.epoch = digest.epoch;
            self.lsn = 0;
            self.shards = vec![Shard::default(); SHARDS];
            if has(Bug::LifeIgnored) {
                self.lsn = digest.lsn;
                return Ok(());
            }
        }
        if digest.lsn < self.lsn {
            return Ok(()); // it was overtaken
        }
        self.lsn = digest.lsn;
        self.lost = false;
        self.differs = true;
        for (i, sum) in digest.sums.iter().zip(&digest.counts).enumerate() {
            let (sum, shard) = ((*sum.0, *sum.1), &mut self.shards[i]);
            if shard.at > digest.lsn {
                continue; // a part of it is newer
            }
            if self.table.sum(i) == sum {
                (shard.at, shard.differs) = (digest.lsn, None);
            } else if sum.1 == 0 {
                shard.differs = Some(Differs::Empty(digest.lsn));
                self.sweep_at.get_or_insert(now);
            } else if !matches!(shard.differs, Some(Differs::Asked { .. })) {
                shard.differs = Some(Differs::Unasked);
            }
        }
        self.ack_at.get_or_insert(now);
        Ok(())
    }

    /// Takes those away who were in shards in which nobody is, some shards at a time.
    pub fn sweep(&mut self, now: Duration, changed: &mut Changed) {
        if self.sweep_at.is_none_or(|at| at > now) {
            return;
        }
        self.sweep_at = None;
        let mut left = SWEEP_SHARDS;
        for i in 0..SHARDS {
            let Some(Differs::Empty(lsn)) = self.shards[i].differs else { continue };
            if left == 0 {
                self.sweep_at = Some(now + SWEEP_EVERY);
                return;
            }
            left -= 1;
            if self.shards[i].at > lsn {
                // Somebody has come since.
                self.shards[i].differs = Some(Differs::Unasked);
                continue;
            }
            let gone: Vec<String> = self.table.records(i).map(|record| record.user.to_owned()).collect();
            for user in gone {
                set(&mut self.table, &user, &[], changed);
            }
            self.shards[i] = Shard { at: lsn, differs: None };
        }
    }

    /// Shards to be asked for now.
    pub fn pulls(&mut self, now: Duration) -> Vec<u32> {
        let mut pulls = Vec::new();
        if !self.up || !self.differs {
            return pulls;
        }
        self.differs = self.shards.iter().any(|shard| shard.differs.is_some());
        let late = |since: Duration| since + PULL_AGAIN <= now && !has(Bug::AskedOnce);
        let asked = |s: &&Shard| matches!(s.differs, Some(Differs::Asked { .. }));
        let mut left = PULLS.saturating_sub(self.shards.iter().filter(asked).count());
        for (i, shard) in (0u32..).zip(&mut self.shards) {
            let due = match shard.differs {
                Some(Differs::Unasked) if left > 0 => {
                    left -= 1;
                    true
                }
                Some(Differs::Asked { since, .. }) => late(since),
                _ => false,
            };
            if due {
                shard.differs = Some(Differs::Asked { since: now, lsn: 0, came: Vec::new() });
                pulls.push(i);
            }
        }
        pulls
    }

    /// A part of a shard as of a change.
    pub fn chunk(&mut self, chunk: &wire::RouteChunk, changed: &mut Changed) -> Result<(), Malformed> {
        let (Ok(i), Ok(part), Ok(parts)) =
            (usize::try_from(chunk.shard), usize::try_from(chunk.part), usize::try_from(chunk.parts))
        else {
            return Err(Malformed);
        };
        let inside = i < SHARDS && shard_of(chunk.from) == i && shard_of(chunk.to) == i && chunk.from <= chunk.to;
        if !inside || part >= parts || parts > PARTS {
            return Err(Malformed);
        }
        if chunk.epoch != self.epoch {
            return Ok(());
        }
        let shard = &mut self.shards[i];
        let Some(Differs::Asked { lsn, came, .. }) = &mut shard.differs else { return Ok(()) };
        if (chunk.lsn < shard.at || chunk.lsn < *lsn) && !has(Bug::OldPartTaken) {
            return Ok(()); // a change has overtaken it: the shard is asked for again
        }
        if chunk.lsn > *lsn || came.len() != parts {
            (*lsn, *came) = (chunk.lsn, vec![false; parts]);
        }
        let mut routes = Vec::new();
        let mut rest = &chunk.ops[..];
        while !rest.is_empty() {
            let (user, binds) = take_op(&mut rest, chunk.base_ms)?;
            let hash = self.table.hash(user);
            if !(chunk.from..=chunk.to).contains(&hash) || binds.is_empty() {
                return Err(Malformed);
            }
            routes.push((hash, user, binds));
        }
        came[part] = true;
        let whole = came.iter().all(|came| *came);
        shard.at = chunk.lsn;
        if whole {
            shard.differs = None;
            self.pulled += 1;
        }
        routes.sort_unstable_by_key(|(hash, user, _)| (*hash, *user));
        let there = |hash, user: &str| routes.binary_search_by_key(&(hash, user), |(h, u, _)| (*h, *u)).is_ok();
        let known = self.table.records(i).map(|record| (self.table.hash(record.user), record.user));
        let gone = known.filter(|(hash, user)| {
            (chunk.from..=chunk.to).contains(hash) && !there(*hash, user) && !has(Bug::NobodySwept)
        });
        let gone: Vec<String> = gone.map(|(_, user)| user.to_owned()).collect();
        for user in gone {
            set(&mut self.table, &user, &[], changed);
        }
        for (_, user, binds) in &routes {
            set(&mut self.table, user, binds, changed);
        }
        Ok(())
    }
}

fn set(table: &mut Table, user: &str, binds: &[Bind], changed: &mut Changed) {
    if table.set(user, binds)
        && let Ok(user) = UserId::new(user)
    {
        changed.push(user);
    }
}
