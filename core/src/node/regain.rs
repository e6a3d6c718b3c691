//! Giving a region back the read marks that it has lost (R11, R13).
//!
//! Problem: a store that was restored, or made anew, lacks marks that it has acked, and with those acks the todo for
//! them is gone everywhere: only a device of the user would bring them back.
//!
//! Rule: before a store asks a peer to compare heads, it sends 512 sums of hashes over (user, conversation, mark).
//! The peer adds up its own, and once all conversations that the other lacked are there, it tells the marks of
//! all users of slots that differ, a few users at a time; only when all of them are acked, which means durable,
//! it says that the comparison is over.
//!
//! Where it stops half-way, the mark `refill/<region>` stands and the next connection compares again: what was
//! told no longer differs. So nothing of it needs to be durable.
//!
//! Why simpler ways fail: telling all marks costs every crash some 50 bytes for each conversation of each user;
//! a user's revisions say nothing, for each region counts its own; marks told before their conversations find no row
//! that names the other user, who would not hear that he was read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::codes::{Code, Refusal};
use crate::ids::{ConvId, Heads, Region, UserId};
use crate::slots::{SHARES, Share};
use crate::store::UserMarks;
use crate::wire::node_v1::{self as wire, node_frame::Body};

use super::refill::{shares_of, some_shares};
use super::routes::Holder;
use super::{Node, Now, Ticket, Want, sums};

/// Sums that are compared, 4 KiB: with 100,000 users 200 share one, and as many are told for each that lost a mark.
pub const MARK_SLOTS: usize = 512;
/// Users per read of all marks: a few hundred rows.
pub const MARKS_PAGE: usize = 64;
/// Users whose marks may wait for an ack: with a thousand conversations each 1 MB is under way.
const USERS_IN_FLIGHT: usize = 16;

/// In which slot a user's marks lie: the first 9 bits of SHA-256 over "marks of" and his id.
fn slot(user: &UserId) -> usize {
    sums::slot(&[b"marks of", user.as_str().as_bytes()], MARK_SLOTS.ilog2())
}

/// The hash of one mark: see [`sums::hash`].
fn mark_hash(user: &UserId, conversation: ConvId, read: &Heads) -> u64 {
    let name = user.as_str().as_bytes();
    sums::hash(&[b"tern mark 1", &(name.len() as u64).to_be_bytes(), name, &conversation.0], read)
}

fn add(sums: &mut [u64], page: &[&UserMarks]) {
    for (user, marks) in page {
        let sum = &mut sums[slot(user)];
        *sum = marks.iter().fold(*sum, |sum, (id, read)| sum.wrapping_add(mark_hash(user, *id, read)));
    }
}

/// Marks for one peer.
#[derive(Debug)]
struct Giving {
    /// It is about users in these.
    shares: BTreeSet<Share>,
    theirs: Vec<u64>,
    sums: Vec<u64>,
    /// Those that differ, once that is known.
    slots: Option<Vec<bool>>,
    /// The peer has the conversations.
    begun: bool,
    after: Option<UserId>,
    reading: bool,
    read_all: bool,
    waiting: VecDeque<UserId>,
    under_way: BTreeSet<UserId>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Regain {
    asking: BTreeMap<Holder, Vec<u64>>,
    giving: BTreeMap<Holder, Giving>,
}

impl Node {
    /// First of a comparison: a peer is to be told the sums of what is held here. Heads follow.
    pub(super) fn ask_for_marks(&mut self, peer: Holder) {
        self.regain.asking.insert(peer, vec![0; MARK_SLOTS]);
        self.want_marks(peer, true, None);
    }

    pub(super) fn regain_down(&mut self, peer: Holder) {
        self.regain.asking.remove(&peer);
        let given = self.regain.giving.remove(&peer);
        self.tickets.retain(|_, t| !matches!(t, Ticket::Marks { peer: p, .. } if *p == peer));
        let given = given.map(|giving| giving.under_way).unwrap_or_default();
        let others = self.ways.cores(peer.region).any(|other| other != peer);
        self.marks.stop_giving(peer.region, others.then_some(&given));
    }

    fn want_marks(&mut self, peer: Holder, asking: bool, after: Option<UserId>) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.tickets.insert(ticket, Ticket::Marks { peer, asking });
        self.out.wants.push(Want::Marks { ticket, after, limit: MARKS_PAGE });
    }

    /// A page of marks that was wanted; one of fewer users than the limit is the last.
    pub fn marks_read(&mut self, now: Now, ticket: u64, page: &[UserMarks]) {
        let Some(Ticket::Marks { peer, asking }) = self.tickets.remove(&ticket) else { return };
        let after = page.last().map(|(user, _)| user.clone());
        let more = page.len() >= MARKS_PAGE;
        // Others of this region compare what is theirs.
        let shares =
            if asking { self.refill.shares(peer, true) } else { self.regain.giving.get(&peer).map(|g| &g.shares) };
        let Some(shares) = shares.cloned() else { return };
        let about_all = shares.len() == usize::from(SHARES);
        let page: Vec<&UserMarks> = page
            .iter()
            .filter(|(user, _)| about_all || shares.contains(&self.slot_of(user).share()) && self.owns_user(user))
            .collect();
        if asking {
            self.refill_heard(now, peer.region);
            let Some(sums) = self.regain.asking.get_mut(&peer) else { return };
            add(sums, &page);
            if more {
                return self.want_marks(peer, true, after);
            }
            let shares = some_shares(&shares);
            let slots = self.regain.asking.remove(&peer).unwrap_or_default();
            self.out.peer(peer, Body::CompareMarks(wire::CompareMarks { slots, shares }));
            return self.want_heads(peer, true, None);
        }
        let Some(giving) = self.regain.giving.get_mut(&peer) else { return };
        match &giving.slots {
            None => {
                add(&mut giving.sums, &page);
                if more {
                    return self.want_marks(peer, false, after);
                }
                let slots: Vec<bool> = giving.sums.iter().zip(&giving.theirs).map(|(a, b)| a != b).collect();
                giving.read_all = !slots.contains(&true);
                giving.slots = Some(slots);
            }
            Some(slots) => {
                let told = page.iter().filter(|(user, marks)| slots[slot(user)] && !marks.is_empty());
                giving.waiting.extend(told.map(|(user, _)| user.clone()));
                (giving.after, giving.read_all, giving.reading) = (after, !more, false);
            }
        }
        self.pump_giving(now, peer);
    }

    /// A peer that will ask for a comparison tells what marks it has.
    pub(super) fn compare_marks_told(&mut self, peer: Holder, compare: wire::CompareMarks) -> Result<(), Refusal> {
        if compare.slots.len() != MARK_SLOTS {
            return Err(Refusal::new(Code::BadFrame, "a comparison of another number of slots"));
        }
        self.tickets.retain(|_, t| !matches!(t, Ticket::Marks { peer: p, asking: false } if *p == peer));
        let giving = Giving {
            shares: shares_of(&compare.shares)?,
            theirs: compare.slots,
            sums: vec![0; MARK_SLOTS],
            slots: None,
            begun: false,
            after: None,
            reading: false,
            read_all: false,
            waiting: VecDeque::new(),
            under_way: BTreeSet::new(),
        };
        self.regain.giving.insert(peer, giving);
        self.want_marks(peer, false, None);
        Ok(())
    }

    /// The peer has all conversations that it lacked: whether it must still be told marks. Once it has them the
    /// comparison goes on by itself.
    pub(super) fn must_give_marks(&mut self, now: Now, peer: Holder) -> bool {
        let Some(giving) = self.regain.giving.get_mut(&peer) else { return false };
        if !std::mem::replace(&mut giving.begun, true) {
            self.pump_giving(now, peer);
        }
        self.regain.giving.contains_key(&peer)
    }

    /// Whether a peer is being told marks that it has lost.
    #[cfg(test)]
    pub(super) fn is_giving_marks(&self, region: Region) -> bool {
        self.regain.giving.iter().any(|(peer, giving)| peer.region == region && !giving.under_way.is_empty())
    }

    /// Tells as many users' marks as may be under way.
    fn pump_giving(&mut self, now: Now, peer: Holder) {
        while let Some(giving) = self.regain.giving.get_mut(&peer).filter(|g| g.begun && g.slots.is_some()) {
            if giving.under_way.len() >= USERS_IN_FLIGHT {
                return;
            }
            let Some(user) = giving.waiting.pop_front() else {
                if !giving.read_all && !std::mem::replace(&mut giving.reading, true) {
                    let after = giving.after.clone();
                    self.want_marks(peer, false, after);
                } else if giving.read_all && giving.under_way.is_empty() {
                    self.regain.giving.remove(&peer);
                    self.pump_refill(now);
                }
                return;
            };
            giving.under_way.insert(user.clone());
            self.counters.marks_returned += 1;
            self.give_marks(now, peer.region, &user);
        }
    }

    /// The peer holds all marks of a user durably.
    pub(super) fn marks_given(&mut self, now: Now, region: Region, user: &UserId) {
        let peers: Vec<Holder> = self.regain.giving.keys().filter(|peer| peer.region == region).copied().collect();
        for peer in peers {
            if self.regain.giving.get_mut(&peer).is_some_and(|g| g.under_way.remove(user)) {
                self.pump_giving(now, peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Origin;

    #[test]
    fn slots_and_hashes_are_pinned() {
        let user = UserId::new("bob").unwrap();
        let read: Heads = [(Origin { region: 1, era: 7 }, 5)].into();
        let none: Heads = [(Origin { region: 3, era: 1 }, 0)].into();
        assert_eq!(slot(&user), 486);
        assert_eq!(format!("{:016x}", mark_hash(&user, ConvId([9; 16]), &read)), "55092b3742cf76b9");
        assert_eq!(mark_hash(&user, ConvId([9; 16]), &none), mark_hash(&user, ConvId([9; 16]), &Heads::new()));
    }
}
