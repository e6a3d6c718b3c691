//! Who owns which slots of a region, as a core node or an edge has heard.
//!
//! Rule: each share has an owner and an epoch, which grows whenever the share changes hands; of two words on a share the
//! one of the higher epoch holds, in whatever order and by whichever way they came. The truth lies in the store; this is
//! what is known of it, and whoever acts on an old word is told so by the node that he asks, or fenced by the store.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::codes::{Code, Refusal};
use crate::slots::{SHARES, Share, Slot};
use crate::wire::node_v1 as wire;

/// Core nodes of a region, at most: what others name beyond is left out.
pub const CORE_NODES: usize = 64;
/// Bytes of a core node's name.
pub const NODE_NAME_BYTES: usize = 64;

/// A core node of the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreNode {
    /// Where it listens for nodes.
    pub addr: SocketAddr,
    /// Counts the leases that were given under its name.
    pub generation: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Owners {
    shares: Vec<(Option<Arc<str>>, u64)>,
    nodes: BTreeMap<Arc<str>, CoreNode>,
}

impl Default for Owners {
    fn default() -> Self {
        Self { shares: vec![(None, 0); usize::from(SHARES)], nodes: BTreeMap::new() }
    }
}

impl Owners {
    /// Who owns a share, and its epoch; 0: nothing was heard of it.
    pub fn of(&self, share: Share) -> (Option<&Arc<str>>, u64) {
        self.shares.get(usize::from(share.number())).map_or((None, 0), |(node, epoch)| (node.as_ref(), *epoch))
    }

    /// Who owns a slot.
    pub fn of_slot(&self, slot: Slot) -> Option<&Arc<str>> {
        self.of(slot.share()).0
    }

    /// What a core node owns, ascending.
    pub fn owned_by<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Share> + 'a {
        Share::all().filter(move |share| self.of(*share).0.is_some_and(|owner| **owner == *name))
    }

    /// The core nodes that were named.
    pub fn nodes(&self) -> &BTreeMap<Arc<str>, CoreNode> {
        &self.nodes
    }

    /// A share has this owner since this epoch. Whether that is news.
    pub fn set(&mut self, share: Share, node: Option<Arc<str>>, epoch: u64) -> bool {
        let Some(known) = self.shares.get_mut(usize::from(share.number())) else { return false };
        if epoch <= known.1 {
            return false;
        }
        *known = (node, epoch);
        true
    }

    /// A core node is there. Whether that is news: an older generation is none.
    pub fn node(&mut self, name: &str, node: CoreNode) -> bool {
        let room = self.nodes.len() < CORE_NODES;
        match self.nodes.get_mut(name) {
            Some(known) if known.generation > node.generation || *known == node => false,
            Some(known) => {
                *known = node;
                true
            }
            None if room && !name.is_empty() && name.len() <= NODE_NAME_BYTES => {
                self.nodes.insert(name.into(), node);
                true
            }
            None => false,
        }
    }

    /// A core node is gone for good.
    pub fn forget(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// What another has heard. Returns the shares of which it knew better. Nodes without an address are left out.
    pub fn told(&mut self, told: &wire::Owners) -> Result<Vec<Share>, Refusal> {
        let bad = |what: &str| Refusal::new(Code::BadFrame, what);
        if told.shares.len() > usize::from(SHARES) || told.nodes.len() > CORE_NODES {
            return Err(bad("more shares or core nodes than a region has"));
        }
        for node in &told.nodes {
            let addr = node.addr.parse().map_err(|_| bad("a core node without an address"))?;
            self.node(&node.name, CoreNode { addr, generation: node.generation });
        }
        let mut changed = Vec::new();
        for share in &told.shares {
            let number = u16::try_from(share.share).ok().and_then(Share::new);
            let number = number.ok_or_else(|| bad("a share that there is not"))?;
            if share.node.len() > NODE_NAME_BYTES {
                return Err(bad("a core node with too long a name"));
            }
            let node = (!share.node.is_empty()).then(|| Arc::from(share.node.as_str()));
            if self.set(number, node, share.epoch) {
                changed.push(number);
            }
        }
        Ok(changed)
    }

    /// All that is known.
    pub fn to_wire(&self) -> wire::Owners {
        self.some_to_wire(Share::all())
    }

    /// What is known of some shares, and all nodes.
    pub fn some_to_wire(&self, shares: impl IntoIterator<Item = Share>) -> wire::Owners {
        let shares = shares.into_iter().map(|share| (share, self.of(share))).filter(|(_, (_, epoch))| *epoch > 0);
        wire::Owners {
            shares: shares
                .map(|(share, (node, epoch))| wire::Share {
                    share: u32::from(share.number()),
                    node: node.map_or_else(String::new, ToString::to_string),
                    epoch,
                })
                .collect(),
            nodes: self
                .nodes
                .iter()
                .map(|(name, node)| wire::CoreNode {
                    name: name.to_string(),
                    addr: node.addr.to_string(),
                    generation: node.generation,
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(n: u16) -> Share {
        Share::new(n).unwrap()
    }

    #[test]
    fn the_higher_epoch_holds_in_whatever_order_it_is_heard() {
        let word = |node: &str, epoch| wire::Owners {
            shares: vec![wire::Share { share: 7, node: node.into(), epoch }],
            nodes: Vec::new(),
        };
        let (mut a, mut b) = (Owners::default(), Owners::default());
        assert_eq!(a.told(&word("x", 1)).unwrap(), [share(7)]);
        assert_eq!(a.told(&word("y", 2)).unwrap(), [share(7)]);
        assert_eq!(b.told(&word("y", 2)).unwrap(), [share(7)]);
        assert_eq!(b.told(&word("x", 1)).unwrap(), []);
        assert_eq!(a.of(share(7)), (Some(&"y".into()), 2));
        assert_eq!(a.of(share(7)), b.of(share(7)));
        assert_eq!(b.told(&a.to_wire()).unwrap(), []);
    }

    #[test]
    fn what_can_not_be_is_refused() {
        let mut owners = Owners::default();
        let told = |share, addr: &str| wire::Owners {
            shares: vec![wire::Share { share, node: "x".into(), epoch: 1 }],
            nodes: vec![wire::CoreNode { name: "x".into(), addr: addr.into(), generation: 1 }],
        };
        assert!(owners.told(&told(256, "127.0.0.1:1")).is_err());
        assert!(owners.told(&told(0, "nowhere")).is_err());
        assert!(owners.told(&told(0, "127.0.0.1:1")).is_ok());
        for i in 0..1_000 {
            let addr = "127.0.0.1:2".parse().unwrap();
            owners.node(&format!("n{i}"), CoreNode { addr, generation: 1 });
        }
        assert_eq!(owners.nodes().len(), CORE_NODES);
        let older = CoreNode { addr: "127.0.0.1:3".parse().unwrap(), generation: 0 };
        assert!(!owners.node("x", older));
    }
}
