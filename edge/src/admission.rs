//! Who may begin a handshake.
//!
//! Until a Hello is accepted nobody has shown a token, and each attempt costs this process a place, a task,
//! buffers and two signatures. A limit on all of them together would let one party take all places and lock
//! out everyone; a fixed limit per address block is either too low for a city behind one address or too high
//! for an attacker with a hundred blocks. So a block gets a share of what is *free* (Choudhury and Hahne,
//! "Dynamic queue length thresholds", 1998): alone it may hold a fifth of all places, and of fifty that take all
//! they can none gets in the way of a newcomer, since the last sixteenth goes to blocks that hold nothing.
//!
//! The source of a QUIC packet may be forged. Attempts whose address is not proven are counted apart: a few
//! per block and a few hundred in all are served at once; beyond that each is told to come again with a token
//! that proves its address (Retry, RFC 9000, 8.1.2), which costs nothing to remember. Whoever then finishes his
//! handshake has proven his address and is counted with the others, or refused. So forged packets make a block
//! pay one round trip, and never make it refused.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::EdgeLimits;
use crate::guard::{Block, block};

/// A block that holds fewer gets a place wherever there is one: a household, and the attempts of one race.
const FIRST_FEW: u32 = 8;
/// One block may hold this part of the free places.
const SHARE_OF_FREE: u32 = 4;
/// This part of all places is kept for blocks that hold none.
const RESERVE: u32 = 16;

/// What is to become of an attempt.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// Served. The place is held until the ticket goes.
    Yes(Ticket),
    /// To come again with a proof of its address.
    Retry,
    /// Refused: its block holds its share, or all places are taken.
    No,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    proven: u32,
    unproven: u32,
}

#[derive(Debug, Default)]
struct Places {
    blocks: BTreeMap<Block, Held>,
    all: Held,
}

/// See the module. Cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    places: Arc<Mutex<Places>>,
    most: u32,
    unproven: u32,
    unproven_per_block: u32,
}

impl Admission {
    pub(crate) fn new(limits: &EdgeLimits) -> Self {
        Self {
            places: Arc::default(),
            most: limits.handshakes.max(1),
            unproven: limits.unproven_handshakes,
            unproven_per_block: limits.unproven_handshakes_per_block,
        }
    }

    /// An attempt from there. `proven`: packets sent there are known to arrive there.
    pub(crate) fn arrive(&self, from: IpAddr, proven: bool) -> Admitted {
        let key = block(from);
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let all = places.all;
        let held = places.blocks.get(&key).copied().unwrap_or_default();
        let full = !self.has_room(all, held);
        if full {
            // Only those who proved their addresses fill a block.
            return Admitted::No;
        }
        if !proven {
            if all.unproven >= self.unproven || held.unproven >= self.unproven_per_block {
                return Admitted::Retry;
            }
            places.all.unproven += 1;
        } else {
            places.all.proven += 1;
        }
        let held = places.blocks.entry(key).or_default();
        *(if proven { &mut held.proven } else { &mut held.unproven }) += 1;
        drop(places);
        Admitted::Yes(Ticket { admission: self.clone(), key, proven })
    }

    /// A connection of a trusted proxy. Whose requests it will carry is not known yet, and each of them is looked at by
    /// its own address; so the proxy's block has no share, and is given a place wherever there is one.
    pub(crate) fn arrive_trusted(&self, from: IpAddr) -> Admitted {
        let key = block(from);
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.all.proven >= self.most {
            return Admitted::No;
        }
        places.all.proven += 1;
        places.blocks.entry(key).or_default().proven += 1;
        drop(places);
        Admitted::Yes(Ticket { admission: self.clone(), key, proven: true })
    }

    fn has_room(&self, all: Held, held: Held) -> bool {
        let free = self.most.saturating_sub(all.proven);
        let share = if free <= self.most / RESERVE { 1 } else { (free / SHARE_OF_FREE).max(FIRST_FEW) };
        free > 0 && held.proven < share
    }

    /// Attempts that hold a place.
    pub(crate) fn pending(&self) -> u32 {
        let all = self.places.lock().unwrap_or_else(PoisonError::into_inner).all;
        all.proven + all.unproven
    }
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    admission: Admission,
    key: Block,
    proven: bool,
}

impl Ticket {
    /// The address is proven now. False: its block holds its share, and the connection is to be refused.
    pub(crate) fn prove(&mut self) -> bool {
        if self.proven {
            return true;
        }
        let mut places = self.admission.places.lock().unwrap_or_else(PoisonError::into_inner);
        let held = places.blocks.get(&self.key).copied().unwrap_or_default();
        if !self.admission.has_room(places.all, held) {
            return false;
        }
        places.give_back(self.key, false);
        places.all.proven += 1;
        places.blocks.entry(self.key).or_default().proven += 1;
        self.proven = true;
        true
    }
}

impl Places {
    fn give_back(&mut self, key: Block, proven: bool) {
        let part = |held: &mut Held| {
            let count = if proven { &mut held.proven } else { &mut held.unproven };
            *count = count.saturating_sub(1);
        };
        part(&mut self.all);
        if let Some(held) = self.blocks.get_mut(&key) {
            part(held);
            if *held == Held::default() {
                self.blocks.remove(&key);
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut places = self.admission.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.give_back(self.key, self.proven);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn limits() -> EdgeLimits {
        EdgeLimits {
            handshakes: 1_000,
            unproven_handshakes: 100,
            unproven_handshakes_per_block: 10,
            ..EdgeLimits::default()
        }
    }

    fn ip(block: u32, host: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from((block << 8) + host))
    }

    fn fill(admission: &Admission, block: u32, proven: bool, held: &mut Vec<Ticket>) -> usize {
        let before = held.len();
        for host in 0.. {
            match admission.arrive(ip(block, host % 256), proven) {
                Admitted::Yes(ticket) => held.push(ticket),
                Admitted::No | Admitted::Retry => break,
            }
        }
        held.len() - before
    }

    #[test]
    fn one_block_gets_a_fifth_and_fifty_blocks_still_leave_room_for_a_newcomer() {
        let (admission, mut held) = (Admission::new(&limits()), Vec::new());
        assert_eq!(fill(&admission, 1, true, &mut held), 200);
        assert_eq!(fill(&admission, 2, true, &mut held), 160);
        for block in 3..=50 {
            fill(&admission, block, true, &mut held);
        }
        assert!(admission.pending() < 1_000, "{} places are taken", admission.pending());
        assert!(matches!(admission.arrive(ip(1_000, 1), true), Admitted::Yes(_)));
        assert!(matches!(admission.arrive(ip(1, 1), true), Admitted::No), "who holds his share gets no more");
        // What is given back is there again, and nothing is remembered of who has none.
        held.clear();
        assert_eq!(admission.pending(), 0);
        assert!(admission.places.lock().unwrap().blocks.is_empty());
    }

    #[test]
    fn all_places_are_a_limit_even_if_every_block_is_small() {
        let (admission, mut held) = (Admission::new(&limits()), Vec::new());
        for block in 0..10_000 {
            if let Admitted::Yes(ticket) = admission.arrive(ip(block, 1), true) {
                held.push(ticket);
            }
        }
        assert_eq!(held.len(), 1_000);
        assert_eq!(admission.places.lock().unwrap().blocks.len(), 1_000);
    }

    #[test]
    fn forged_sources_make_a_block_prove_its_address_and_never_make_it_refused() {
        let (admission, mut held) = (Admission::new(&limits()), Vec::new());
        assert_eq!(fill(&admission, 1, false, &mut held), 10);
        assert!(matches!(admission.arrive(ip(1, 77), false), Admitted::Retry));
        assert!(matches!(admission.arrive(ip(1, 77), true), Admitted::Yes(_)));
        for block in 2..100 {
            fill(&admission, block, false, &mut held);
        }
        assert_eq!(admission.pending(), 100);
        assert!(matches!(admission.arrive(ip(500, 1), false), Admitted::Retry), "many blocks: everyone proves first");
        assert!(matches!(admission.arrive(ip(500, 1), true), Admitted::Yes(_)));
    }

    #[test]
    fn an_attempt_that_proves_its_address_makes_room_for_the_next_unproven_one() {
        let (admission, mut held) = (Admission::new(&limits()), Vec::new());
        fill(&admission, 1, false, &mut held);
        assert!(held[0].prove() && held[0].prove());
        assert_eq!(admission.pending(), 10);
        assert_eq!(fill(&admission, 1, false, &mut held), 1);
        drop(held);
        assert_eq!(admission.pending(), 0);
    }

    #[test]
    fn finishing_many_handshakes_one_after_the_other_is_no_way_around_the_share() {
        let (admission, mut held) = (Admission::new(&limits()), Vec::new());
        for host in 0..10_000 {
            if let Admitted::Yes(mut ticket) = admission.arrive(ip(1, host % 256), false)
                && ticket.prove()
            {
                held.push(ticket);
            }
        }
        assert_eq!((held.len(), admission.pending()), (200, 200));
        // Some that began while there was room, and end when there is none.
        held.truncate(195);
        let mut late: Vec<_> = std::iter::repeat_with(|| admission.arrive(ip(1, 1), false)).take(10).collect();
        let proven = late.iter_mut().filter_map(|a| if let Admitted::Yes(t) = a { Some(t.prove()) } else { None });
        assert_eq!(proven.filter(|proven| *proven).count(), 5);
        drop((late, held));
        assert_eq!(admission.pending(), 0);
    }
}
