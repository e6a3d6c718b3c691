//! How far a peer region is behind, for operators: entries that are held here and that it has not acked.

use super::Node;
use crate::ids::Region;

/// Logs that are looked at, at most: a look takes no noticeable part of a second, however long a link was down.
const LOGS: usize = 2_000;

/// What a peer has not acked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Entries.
    pub entries: u64,
    /// Whether these are all: with more logs than are looked at there may be more.
    pub whole: bool,
}

impl Node {
    /// How far a peer is behind, as far as a look at some logs tells.
    pub fn lag(&self, peer: Region) -> Lag {
        let Some(link) = self.links.get(&peer) else { return Lag { entries: 0, whole: true } };
        let mut lag = Lag { entries: 0, whole: true };
        for (at, (id, origin, acked)) in link.prefixes().enumerate() {
            if at >= LOGS {
                lag.whole = false;
                break;
            }
            let head = self.conversations.get(&id).and_then(|c| c.published.get(&origin)).copied();
            lag.entries += head.unwrap_or(acked).saturating_sub(acked);
        }
        lag
    }
}
