//! Which core node of another region is told what.
//!
//! Problem: a peer region may have several core nodes, and a conversation or a user is one node's there, another's a
//! moment later; this side need not have several itself.
//!
//! Rule: whatever is about a conversation or a user is told to the node that owns its slot in the peer region, as far as
//! is known, and its answer to the owner here. A node says what it knows of its region's owners when its link is up and
//! whenever it hears of a change. Where a slot has another owner, or its owner's link was away, all that was on its way
//! for the slot counts as lost and is offered anew ([`super::link::Link::reset`]); who is told something that is not its
//! own leaves it. A region with one core node owns all of its slots by that.
//!
//! Why simpler ways fail: a gateway per region is a bottleneck, and one more hop for each message; frames that any node
//! passes on to the owner need acks of their own between the nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::codes::Refusal;
use crate::ids::{ConvId, Region, UserId};
use crate::owners::Owners;
use crate::slots::{Share, Slot};
use crate::wire::node_v1::{self as wire, node_frame::Body};

use super::CoreId;
use super::routes::Holder;

/// A peer region.
#[derive(Debug, Default)]
struct Way {
    /// Nodes that are linked, and their names.
    cores: BTreeMap<CoreId, Arc<str>>,
    /// `None`: one node owns all.
    owners: Option<Owners>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ways {
    regions: BTreeMap<Region, Way>,
    /// For users' slots.
    salt: Vec<u8>,
}

impl Ways {
    pub(super) fn new(salt: Vec<u8>) -> Self {
        Self { regions: BTreeMap::new(), salt }
    }

    /// A node is linked; without a name: the region's only one. Whether it is the first of its region.
    pub(super) fn up(&mut self, at: Holder, name: Option<&str>) -> bool {
        let way = self.regions.entry(at.region).or_default();
        match name {
            None => *way = Way::default(),
            // Its store may have been made anew while nobody was linked, with epochs that begin again: all is told anew.
            Some(_) if way.cores.is_empty() => way.owners = Some(Owners::default()),
            Some(_) => {
                way.owners.get_or_insert_default();
            }
        }
        let first = way.cores.is_empty();
        way.cores.insert(at.core, name.unwrap_or_default().into());
        first
    }

    /// A node's link is gone. Whether it was the last of its region.
    pub(super) fn down(&mut self, at: Holder) -> bool {
        let Some(way) = self.regions.get_mut(&at.region) else { return false };
        way.cores.remove(&at.core).is_some() && way.cores.is_empty()
    }

    /// What a node says of its region's owners. Returns the shares of which that is news, and those that it says are its
    /// own: what was said to a new owner before it knew that it was one was lost.
    pub(super) fn told(&mut self, at: Holder, told: &wire::Owners) -> Result<BTreeSet<Share>, Refusal> {
        let Some(way) = self.regions.get_mut(&at.region) else { return Ok(BTreeSet::new()) };
        let (Some(owners), Some(name)) = (&mut way.owners, way.cores.get(&at.core)) else { return Ok(BTreeSet::new()) };
        let changed = owners.told(told)?;
        let own = told.shares.iter().filter(|share| share.node == **name);
        let own = own.filter_map(|share| Share::new(u16::try_from(share.share).ok()?));
        Ok(changed.into_iter().chain(own).collect())
    }

    /// Whether a region has several core nodes.
    pub(super) fn is_shared(&self, region: Region) -> bool {
        self.regions.get(&region).is_some_and(|way| way.owners.is_some())
    }

    /// What a node owns, as far as is known.
    pub(super) fn shares_of(&self, at: Holder) -> BTreeSet<Share> {
        let Some(way) = self.regions.get(&at.region) else { return BTreeSet::new() };
        match (way.cores.get(&at.core), &way.owners) {
            (None, _) => BTreeSet::new(),
            (Some(_), None) => Share::all().collect(),
            (Some(name), Some(owners)) => owners.owned_by(name).collect(),
        }
    }

    /// The linked nodes of a region.
    pub(super) fn cores(&self, region: Region) -> impl Iterator<Item = Holder> {
        let cores = self.regions.get(&region).into_iter().flat_map(|way| way.cores.keys());
        cores.map(move |core| Holder { region, core: *core })
    }

    fn at_slot(&self, region: Region, slot: impl FnOnce() -> Slot) -> Option<Holder> {
        let way = self.regions.get(&region)?;
        let core = match &way.owners {
            None => way.cores.keys().next(),
            Some(owners) => {
                let name = owners.of_slot(slot())?;
                way.cores.iter().find(|(_, known)| *known == name).map(|(core, _)| core)
            }
        };
        core.map(|core| Holder { region, core: *core })
    }

    /// The node that a conversation is told to, if it is linked.
    pub(super) fn of(&self, region: Region, id: ConvId) -> Option<Holder> {
        self.at_slot(region, || Slot::of(id))
    }

    /// The node that a user is told to, likewise.
    pub(super) fn of_user(&self, region: Region, user: &UserId) -> Option<Holder> {
        self.at_slot(region, || Slot::of_user(&self.salt, user))
    }
}

impl super::Outputs {
    /// To one core node of a peer region.
    pub(super) fn peer(&mut self, at: Holder, body: Body) {
        self.links.entry(at).or_default().push(body);
    }

    /// To the owner of a conversation there. Where it is not linked the frame is dropped: what it is about is offered
    /// again when it is.
    pub(super) fn link(&mut self, ways: &Ways, region: Region, id: ConvId, body: Body) {
        if let Some(at) = ways.of(region, id) {
            self.peer(at, body);
        }
    }

    /// To the owner of a user there.
    pub(super) fn link_user(&mut self, ways: &Ways, region: Region, user: &UserId, body: Body) {
        if let Some(at) = ways.of_user(region, user) {
            self.peer(at, body);
        }
    }
}

/// A set of shares as it is sent: one bit each, the first one the lowest.
pub(super) fn shares_to_wire(shares: &BTreeSet<Share>) -> bytes::Bytes {
    let mut bits = vec![0u8; usize::from(crate::slots::SHARES) / 8];
    for share in shares {
        let number = usize::from(share.number());
        if let Some(byte) = bits.get_mut(number / 8) {
            *byte |= 1 << (number % 8);
        }
    }
    bits.into()
}

/// From there; nothing stands for all. `None` if it is no set of shares.
pub(super) fn shares_from_wire(bits: &[u8]) -> Option<BTreeSet<Share>> {
    if bits.is_empty() {
        return Some(Share::all().collect());
    }
    if bits.len() != usize::from(crate::slots::SHARES) / 8 {
        return None;
    }
    let has =
        |share: &Share| bits.get(usize::from(share.number()) / 8).is_some_and(|b| b >> (share.number() % 8) & 1 == 1);
    Some(Share::all().filter(has).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EU: Region = 1;

    fn at(core: CoreId) -> Holder {
        Holder { region: EU, core }
    }

    fn told(share: u32, node: &str, epoch: u64) -> wire::Owners {
        wire::Owners { shares: vec![wire::Share { share, node: node.into(), epoch }], nodes: Vec::new() }
    }

    #[test]
    fn a_region_of_one_node_gets_everything_and_one_of_several_by_slot() {
        let mut ways = Ways::new(b"salt".to_vec());
        let id = ConvId([9; 16]);
        let share = Slot::of(id).share();
        assert_eq!(ways.of(EU, id), None);
        assert!(ways.up(at(0), None));
        assert_eq!((ways.of(EU, id), ways.shares_of(at(0)).len()), (Some(at(0)), 256));
        assert!(ways.down(at(0)));
        assert!(ways.up(at(1), Some("a")) && !ways.up(at(2), Some("b")));
        assert_eq!(ways.of(EU, id), None, "nobody is known to own it");
        let number = u32::from(share.number());
        assert_eq!(ways.told(at(1), &told(number, "b", 1)).unwrap(), [share].into());
        assert_eq!(ways.of(EU, id), Some(at(2)));
        assert_eq!(ways.told(at(1), &told(number, "b", 1)).unwrap(), BTreeSet::new());
        assert_eq!(ways.told(at(2), &told(number, "b", 1)).unwrap(), [share].into(), "its own word is that it knows");
        assert!(!ways.down(at(2)));
        assert_eq!(ways.of(EU, id), None, "its owner is not linked");
        ways.told(at(1), &told(number, "a", 2)).unwrap();
        assert_eq!((ways.of(EU, id), ways.shares_of(at(1))), (Some(at(1)), [share].into()));
        assert!(ways.down(at(1)) && ways.up(at(1), Some("a")));
        assert_eq!(ways.of(EU, id), None, "what was known is a former life's, perhaps");
        ways.told(at(1), &told(number, "a", 1)).unwrap();
        assert_eq!(ways.of(EU, id), Some(at(1)), "its epochs begin again");
        assert!(ways.up(at(0), None), "a store of its own again");
        assert_eq!(ways.of(EU, id), Some(at(0)));
    }

    #[test]
    fn sets_of_shares_come_back_as_they_were() {
        let some: BTreeSet<Share> = [0, 7, 8, 100, 255].into_iter().filter_map(Share::new).collect();
        assert_eq!(shares_from_wire(&shares_to_wire(&some)), Some(some));
        assert_eq!(shares_from_wire(&shares_to_wire(&BTreeSet::new())), Some(BTreeSet::new()));
        assert_eq!(shares_from_wire(&[]).map(|all| all.len()), Some(256));
        assert_eq!(shares_from_wire(&[1, 2, 3]), None);
    }
}
