//! Keeps a link to whoever answers at one address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::{Cores, Region, Way};
use crate::edge::Edge;
use crate::link::{BACKOFF_MAX, BACKOFF_MIN, Link, LinkError};

/// What to do about an address.
enum Plan {
    Dial,
    /// There is a link to who answers there.
    Wait,
    /// Nobody names it any more.
    Forget,
}

/// See the module.
pub(super) struct Keeper {
    cores: Arc<Cores>,
    edge: Arc<Edge>,
    to: SocketAddr,
    /// Who answered there last.
    name: Option<Arc<str>>,
}

impl Cores {
    fn plan(&self, to: SocketAddr, name: Option<&Arc<str>>) -> Plan {
        let mut state = self.state();
        let mut named =
            state.owners.nodes().iter().filter(|(_, node)| node.addr == to).map(|(name, _)| name).peekable();
        if !self.configured.contains(&to) && named.peek().is_none() {
            drop(named);
            state.kept.remove(&to);
            return Plan::Forget;
        }
        match &state.region {
            Region::Lost => Plan::Dial,
            Region::Known(known) if !known.is_shared && !known.links.is_empty() => Plan::Wait,
            Region::Known(known) => {
                if named.chain(name).any(|name| known.names.contains_key(name) || state.is_local(name)) {
                    Plan::Wait
                } else {
                    Plan::Dial
                }
            }
        }
    }
}

impl Keeper {
    pub(super) fn new(cores: Arc<Cores>, edge: Arc<Edge>, to: SocketAddr) -> Self {
        Self { cores, edge, to, name: None }
    }

    /// Until the edge stops, or nobody names the address any more.
    pub(super) async fn keep(mut self) {
        let mut stopped = self.edge.stopped();
        let mut changed = self.cores.changed.subscribe();
        let mut failures = 0u32;
        while stopped.borrow().is_none() {
            changed.mark_unchanged();
            match self.cores.plan(self.to, self.name.as_ref()) {
                Plan::Dial => {}
                Plan::Forget => return,
                Plan::Wait => {
                    tokio::select! {
                        biased;
                        _ = stopped.changed() => return,
                        _ = changed.changed() => continue,
                    }
                }
            }
            let (was_up, ended) = tokio::select! {
                biased;
                _ = stopped.changed() => return,
                ended = self.link() => ended,
            };
            if let LinkError::Spare(name) = &ended {
                tracing::debug!(core = %self.to, node = %name, "a second link to a core node is not needed");
                failures = 0;
                continue;
            }
            failures = if was_up { 0 } else { failures.saturating_add(1) };
            if was_up || failures.is_power_of_two() {
                tracing::warn!(core = %self.to, failures, error = %ended, "no link to the core; the edge tries again, and where no other core node can be reached its clients are sent elsewhere");
            }
            let most = BACKOFF_MIN.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
            let pause = self.cores.env().rng.below(u64::try_from(most.as_millis()).unwrap_or(0));
            tokio::select! {
                biased;
                _ = stopped.changed() => return,
                () = sleep(Duration::from_millis(pause)) => {}
            }
        }
    }

    /// Runs one link to its end: whether it was up, and why it ended.
    async fn link(&mut self) -> (bool, LinkError) {
        let opened = match self.cores.dialler.open(self.to).await {
            Ok(opened) => opened,
            Err(error) => return (false, error),
        };
        self.name = opened.welcome.shared.then(|| opened.welcome.node.as_str().into());
        let no = self.cores.state().next_no();
        let link = Arc::new(Link::new());
        if let Err(error) = self.cores.up(no, &opened.welcome, Way::Remote(link.clone())) {
            opened.close();
            return (false, error);
        }
        tracing::info!(core = %self.to, node = %opened.welcome.node, "linked to the core");
        let ear = self.cores.ear(no);
        let ended = opened.serve(self.cores.env(), &link, &ear).await;
        link.close();
        self.cores.down(no);
        (true, ended)
    }
}
