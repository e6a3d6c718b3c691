//! What an edge does about orders: while its clients are to leave, they are sent away, those who come are refused, and
//! an order taken back in the middle ends that at once.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tern_core::orders::{Order, Pace};
use tern_edge::Edge;
use tokio::sync::watch;

use super::Board;
use crate::reload::Reloader;

/// See the module.
pub struct Leaving {
    /// The orders.
    pub board: Arc<Board>,
    /// Whose clients.
    pub edge: Arc<Edge>,
    /// How long they have.
    pub reload: Arc<Reloader>,
    /// Where they may go, as "ip:port"; told whether the whole region is to be left.
    pub alternates: Box<dyn Fn(bool) -> Vec<String> + Send + Sync>,
    /// Told when all have left for this node's own sake, and when they may come back.
    pub left: Box<dyn Fn(bool) + Send + Sync>,
    /// Told what is being done, for `systemctl status`.
    pub tell: Box<dyn Fn(&str) + Send + Sync>,
}

impl fmt::Debug for Leaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaving").field("board", &self.board).finish_non_exhaustive()
    }
}

impl Leaving {
    /// Carries orders out until `ending` says that the process ends: whatever then happens to its clients is another's
    /// to do.
    pub async fn follow(self, mut ending: watch::Receiver<bool>) {
        let mut changes = self.board.changes();
        let mut last: Option<Order> = None;
        loop {
            let own = self.board.own();
            let order = own.as_ref().map(|(_, order)| *order);
            if order.is_none() {
                // Also at first: an order that the node began with may have been taken back since.
                (self.left)(false);
            }
            if order.is_none() && last.is_some() {
                tracing::info!("clients may come back, by an operator's order");
                self.edge.undrain();
                (self.tell)("serving");
            }
            let leaving = async {
                if let Some((target, order)) = &own {
                    let clients = self.edge.connections();
                    tracing::info!(%target, clients, "clients are sent away, by an operator's order");
                    (self.tell)("clients are sent away, by an operator's order");
                    self.edge.set_alternates((self.alternates)(target.node.is_none()));
                    self.send_away(*order, &format!("clients are to leave {target}")).await;
                    (self.left)(self.board.own_node().is_some());
                    tracing::info!(%target, "all clients have left");
                    (self.tell)("left by all clients, by an operator's order");
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                ended = ending.wait_for(|ending| *ending) => {
                    // An error says that the edge is gone, which is an end too.
                    drop(ended);
                    return;
                }
                () = another(&mut changes, &self.board, order) => {}
                () = leaving => {}
            }
            last = order;
        }
    }

    async fn send_away(&self, order: Order, reason: &str) {
        let window = self.reload.settings().edge_drain_window;
        let (telling, window) = match order.pace {
            Pace::Configured => return self.edge.drain(window).await,
            Pace::PerSecond(n) => {
                let clients = u32::try_from(self.edge.connections()).unwrap_or(u32::MAX);
                (Duration::from_secs(1).saturating_mul(clients) / n.max(1), window)
            }
            Pace::Within(all) => {
                // The last ones have the configured time to leave, or half of all if that is shorter.
                let window = window.min(all / 2);
                (all - window, window)
            }
        };
        self.edge.drain_paced(telling, window, reason).await;
    }
}

/// Until this node's order is another one.
async fn another(changes: &mut watch::Receiver<u64>, board: &Board, order: Option<Order>) {
    while board.own().map(|(_, order)| order) == order {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
