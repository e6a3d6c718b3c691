//! May a cleanly stopped store go on in its era (R13)?
//!
//! Problem: the mark of a clean stop lies in the store itself, so a disk that was set back to an earlier day, a
//! copied directory or a snapshot of a virtual machine carries it as well. Going on from there would give places a
//! second time.
//!
//! Rule: each region remembers the highest (start, entries) that it heard of each peer, and tells it when asked,
//! as soon as its own store is open: two regions that start at once confirm each other. The era goes on only if
//! every configured peer has heard of nothing later. One that does not answer in time counts as a no: a new era
//! costs a comparison, a wrong one costs messages.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tern_core::ids::Region;
use tern_core::mutant;
use tern_core::node::refill::Known;
use tern_core::wire::NODE_VERSION;
use tern_core::wire::node_v1::{LinkAsk, LinkTold, NodeFrame, node_frame::Body};
use tokio::sync::Notify;

use super::{Peer, Shared, dial};

/// Peers have so long to confirm.
pub(super) const WITHIN: Duration = Duration::from_secs(5);
/// A peer that can't be asked is tried again after so long.
const AGAIN: Duration = Duration::from_millis(250);
/// A link that was heard within this time is alive: three beats.
const ALIVE: Duration = Duration::from_secs(3);

/// A link to a peer, as it is told to who asks.
#[derive(Clone, Copy, Debug)]
struct Live {
    link: u64,
    start: u64,
    era: u64,
    heard: Duration,
}

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<Region, Known>,
    live: BTreeMap<Region, Live>,
    /// What peers have told of this region.
    told: BTreeMap<Region, LinkTold>,
}

/// What is known of peers, and what they have told of this region.
#[derive(Debug, Default)]
pub(crate) struct Eras {
    state: Mutex<State>,
    changed: Notify,
}

impl Eras {
    pub fn new(known: BTreeMap<Region, Known>) -> Self {
        Self { state: Mutex::new(State { known, ..State::default() }), changed: Notify::new() }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a region is told about itself.
    pub fn tell(&self, region: Region, now: Duration) -> LinkTold {
        self.with(|state| {
            let linked = state.live.get(&region).is_some_and(|live| live.heard + ALIVE > now);
            match state.known.get(&region) {
                Some(k) => LinkTold { known: true, start: k.start, commit: k.commit, era: k.era, linked },
                None => LinkTold { linked, ..LinkTold::default() },
            }
        })
    }

    /// Another node of this region has heard this of a peer.
    pub fn noted(&self, region: Region, noted: Known) {
        self.with(|state| {
            let known = state.known.entry(region).or_default();
            if (noted.start, noted.commit) > (known.start, known.commit) {
                *known = noted;
            }
        });
    }

    /// A peer has told of this region.
    pub fn told(&self, by: Region, told: LinkTold) {
        self.with(|state| state.told.insert(by, told));
        self.changed.notify_one();
    }

    /// A link is up.
    pub fn up(&self, region: Region, link: u64, start: u64, era: u64, commit: u64, now: Duration) {
        self.with(|state| {
            let known = state.known.entry(region).or_default();
            if start > known.start || start == known.start && era != known.era {
                *known = Known { start, era, commit, incomplete: false };
            } else if start == known.start {
                known.commit = known.commit.max(commit);
            }
            state.live.insert(region, Live { link, start, era, heard: now });
        });
    }

    /// A link was heard; it may have told how many entries its era has.
    pub fn heard(&self, region: Region, link: u64, commit: u64, now: Duration) {
        self.with(|state| {
            let Some(live) = state.live.get_mut(&region).filter(|live| live.link == link) else { return };
            live.heard = now;
            if let Some(known) = state.known.get_mut(&region).filter(|k| (k.start, k.era) == (live.start, live.era)) {
                known.commit = known.commit.max(commit);
            }
        });
    }

    /// A link has ended.
    pub fn down(&self, region: Region, link: u64) {
        self.with(|state| {
            if state.live.get(&region).is_some_and(|live| live.link == link) {
                state.live.remove(&region);
            }
        });
    }

    /// Whether another life of a region is linked: one of another era, that did not start before this one.
    pub fn is_ghost(&self, region: Region, start: u64, era: u64, now: Duration) -> bool {
        self.with(|state| {
            let alive = state.live.get(&region).filter(|live| live.heard + ALIVE > now);
            alive.is_some_and(|live| live.era != era && live.start >= start)
        })
    }

    /// Whether all peers confirm (`Some(true)`), one denies (`Some(false)`), or some are still silent.
    fn verdict(&self, peers: &[Peer], own: (u64, u64)) -> Option<bool> {
        mutant!(PeersNotAsked => return Some(true));
        self.with(|state| {
            let later = |told: &LinkTold| told.known && (told.start, told.commit) > own;
            if state.told.values().any(later) {
                return Some(false);
            }
            peers.iter().all(|peer| state.told.contains_key(&peer.region)).then_some(true)
        })
    }

    fn silent(&self, peers: &[Peer]) -> Vec<String> {
        self.with(|state| {
            let silent = peers.iter().filter(|peer| !state.told.contains_key(&peer.region));
            silent.map(|peer| peer.name.clone()).collect()
        })
    }
}

/// What is asked.
pub(super) fn ask(shared: &Shared) -> LinkAsk {
    LinkAsk {
        version: NODE_VERSION,
        oldest: shared.config.oldest_version,
        region: u32::from(shared.config.region),
        deployment: shared.config.deployment.to_vec().into(),
    }
}

/// Whether every peer confirms, within [`WITHIN`], that it has heard of nothing later than (start, entries).
pub(super) async fn confirm(shared: &Arc<Shared>, tls: &Arc<rustls::ClientConfig>, own: (u64, u64)) -> bool {
    let peers = &shared.config.peers;
    tracing::info!(phase = "confirming era", peers = peers.len(), "asking peers whether they know a later start");
    for peer in peers {
        shared.env.tasks.spawn(ask_until_told(shared.clone(), peer.clone(), tls.clone()));
    }
    let wait = async {
        loop {
            if let Some(verdict) = shared.eras.verdict(peers, own) {
                return verdict;
            }
            shared.eras.changed.notified().await;
        }
    };
    match tokio::time::timeout(WITHIN, wait).await {
        Ok(true) => true,
        Ok(false) => {
            tracing::warn!("a peer knows a later start, or more, of this store: it is older than it seems; a new era");
            false
        }
        Err(_late) => {
            let silent = shared.eras.silent(peers).join(", ");
            tracing::warn!(silent, "some peers did not confirm this store's era in time; it takes a new one");
            false
        }
    }
}

/// Asks one peer until it has told, or the time is over.
async fn ask_until_told(shared: Arc<Shared>, peer: Peer, tls: Arc<rustls::ClientConfig>) {
    let asking = async {
        loop {
            match ask_once(&shared, &peer, tls.clone()).await {
                Ok(told) => return shared.eras.told(peer.region, told),
                Err(why) => tracing::debug!(peer = %peer.name, why, "a peer could not be asked; trying again"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    let _in_time_or_not = tokio::time::timeout(WITHIN, asking).await;
}

async fn ask_once(shared: &Arc<Shared>, peer: &Peer, tls: Arc<rustls::ClientConfig>) -> Result<LinkTold, String> {
    let mut why = "it has no address".to_owned();
    for addr in &peer.addrs {
        match ask_at(shared, peer, *addr, tls.clone()).await {
            Ok(told) => return Ok(told),
            Err(error) => why = error,
        }
    }
    Err(why)
}

async fn ask_at(
    shared: &Arc<Shared>,
    peer: &Peer,
    addr: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
) -> Result<LinkTold, String> {
    let (endpoint, connection, mut send, mut frames) = dial::open(shared, peer, addr, tls).await?;
    let exchange = async {
        let frame = NodeFrame { body: Some(Body::LinkAsk(ask(shared))) };
        tern_net::frames::write_one(&mut send, &frame).await.map_err(|e| e.to_string())?;
        match frames.next::<NodeFrame>().await.map_err(|e| e.to_string())?.and_then(|f| f.body) {
            Some(Body::LinkTold(told)) => Ok(told),
            Some(Body::Refused(refused)) => Err(format!("refused: {}", refused.message)),
            _ => Err("the peer did not answer".to_owned()),
        }
    };
    let told = match tokio::time::timeout(WITHIN, exchange).await {
        Ok(told) => told,
        Err(_late) => Err("no answer in time".to_owned()),
    };
    connection.close(0u8.into(), b"asked");
    endpoint.close(0u8.into(), b"asked");
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::from_secs(100);

    #[test]
    fn the_highest_that_was_heard_is_told_and_a_new_life_counts_from_zero() {
        let eras = Eras::new(BTreeMap::new());
        assert!(!eras.tell(1, T).known);
        eras.up(1, 1, 5, 50, 10, T);
        eras.heard(1, 1, 12, T);
        eras.heard(1, 2, 99, T);
        let told = eras.tell(1, T);
        assert_eq!((told.start, told.era, told.commit, told.linked), (5, 50, 12, true));
        eras.up(1, 3, 6, 60, 0, T);
        assert_eq!((eras.tell(1, T).start, eras.tell(1, T).commit), (6, 0));
        eras.up(1, 4, 2, 20, 7, T); // an older life
        assert_eq!((eras.tell(1, T).start, eras.tell(1, T).commit), (6, 0));
        assert!(!eras.tell(1, T + ALIVE).linked);
    }

    #[test]
    fn two_lives_of_one_region_at_once_are_told_apart() {
        let eras = Eras::new(BTreeMap::new());
        eras.up(1, 1, 5, 50, 0, T);
        assert!(!eras.is_ghost(1, 5, 50, T), "the same one, connecting again");
        assert!(!eras.is_ghost(1, 6, 60, T), "restarted");
        assert!(eras.is_ghost(1, 5, 51, T), "one backup restored twice");
        assert!(eras.is_ghost(1, 4, 40, T));
        assert!(!eras.is_ghost(1, 4, 40, T + ALIVE), "the other one is gone");
        eras.down(1, 1);
        assert!(!eras.is_ghost(1, 4, 40, T));
    }

    #[test]
    fn all_must_confirm_and_one_can_deny() {
        let peer = |region| Peer {
            region,
            name: format!("r{region}"),
            addrs: vec!["192.0.2.1:1".parse().unwrap()],
            server_name: String::new(),
        };
        let peers = [peer(2), peer(3)];
        let eras = Eras::new(BTreeMap::new());
        let told = |start, commit| LinkTold { known: true, start, commit, ..LinkTold::default() };
        eras.told(2, told(4, 10));
        assert_eq!(eras.verdict(&peers, (4, 10)), None);
        eras.told(3, LinkTold::default());
        assert_eq!(eras.verdict(&peers, (4, 10)), Some(true), "one that never heard of it says nothing against it");
        assert_eq!(eras.verdict(&peers, (4, 9)), Some(false));
        assert_eq!(eras.verdict(&peers, (3, 99)), Some(false));
        eras.told(3, told(5, 0));
        assert_eq!(eras.verdict(&peers, (4, 10)), Some(false));
    }
}
