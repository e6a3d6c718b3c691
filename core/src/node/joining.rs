//! Peer regions that come and go while a node runs.
//!
//! A region that comes is a peer as any other from then on: what is sequenced or copied meanwhile is its due, shipped when
//! its link is up. What was there before it fetches itself, by the comparison that every new store begins with; until that
//! is over nothing is believed to be held there. A region that goes is owed nothing any more: the todo that stands for it
//! is removed with the next flushes.

use std::collections::BTreeSet;

use super::{Link, Node, Now};
use crate::ids::{ConvId, Origin, Region};
use crate::slots::Share;

impl Node {
    /// From now on these are the peers.
    pub fn set_peers(&mut self, now: Now, peers: &BTreeSet<Region>) {
        let gone: Vec<Region> = self.links.keys().filter(|region| !peers.contains(region)).copied().collect();
        for region in gone {
            for at in self.ways.cores(region).collect::<Vec<_>>() {
                self.peer_core_down(now, at);
            }
            self.links.remove(&region);
            self.settings.peers.remove(&region);
            self.refill.forget(region);
            self.marks.forget_region(region);
        }
        for region in peers {
            if *region == self.settings.region || self.links.contains_key(region) {
                continue;
            }
            let mut link = Link::new(now.mono);
            // There is no todo for what was there before.
            link.set_incomplete(Share::all(), true);
            self.links.insert(*region, link);
            self.settings.peers.insert(*region);
        }
        if !self.active.is_empty() {
            self.schedule_flush(now);
        }
        // With other peers, other entries are stable.
        let watched = self.conversations.iter().filter(|(_, conversation)| !conversation.watchers.is_empty());
        let watched: Vec<(ConvId, BTreeSet<Origin>)> = watched
            .map(|(id, conversation)| {
                (*id, conversation.watchers.values().flat_map(|told| told.keys().copied()).collect())
            })
            .collect();
        for (id, origins) in watched {
            self.tell_watchers(now, id, origins);
        }
    }
}
