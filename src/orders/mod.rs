//! What operators order of a running deployment: clients are to leave a region (`tern region cordon`) or a node (`tern
//! drain`), or may come back.
//!
//! Reading order: [`tern_core::orders`] (the rule), this module (the orders that a process holds, on its disk and among
//! its neighbours), [`leaving`] (what an edge does about them), [`desk`] (what operators ask over the admin listener),
//! [`command`] (what they type).
//!
//! An order is on disk before it is acknowledged, and on its way within a second: with the gossip of the region to all
//! of its nodes and to every `tern ipconf`, and over the links to all other regions and their nodes. So it does not matter
//! where it is given, nor whether the region that it concerns is alive; a node that was off hears it when it is back.

pub mod command;
pub mod desk;
pub mod leaving;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use tern_core::clock::{Clock, Entropy};
use tern_core::ids::Region;
use tern_core::orders::{self, Order, Orders, Pace, Target};
use tern_core::wire::node_v1 as wire;
use tern_ipconf::LoadTable;
use tern_replication::gossip::limits::ORDERS_AT_ONCE;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::node::Node;

/// After a failure, the file is written again so often.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// An order as the file has it, and as operators' programs read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    region: u32,
    /// Empty: all of the region.
    #[serde(default)]
    node: String,
    leave: bool,
    at_ms: u64,
    #[serde(default)]
    per_second: u32,
    #[serde(default)]
    window_ms: u32,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Lines {
    orders: Vec<Line>,
}

#[derive(Debug, Default)]
struct State {
    orders: Orders,
    /// The last that the region's nodes were told, and the last that peers were.
    told: [Option<Target>; 2],
}

/// The orders that a process holds. See the module.
#[derive(Debug)]
pub struct Board {
    region: Region,
    name: String,
    clock: Arc<dyn Clock>,
    rng: Arc<Entropy>,
    file: PathBuf,
    state: Mutex<State>,
    /// Held while the file is replaced.
    writing: Mutex<()>,
    changed: watch::Sender<u64>,
    loads: Arc<LoadTable>,
}

/// Whom orders are told to.
#[derive(Clone, Copy, Debug)]
pub enum Hearer {
    /// Nodes of the region, and dispatchers.
    Region,
    /// Other regions.
    Peers,
}

impl Board {
    /// What the last start of this node held, and does from now on: `loads` lists accordingly.
    pub fn open(node: &Node, loads: &Arc<LoadTable>) -> Result<Arc<Self>> {
        let file = node.settings.data.join(format!("{}.orders", node.name));
        let orders = read(&file)?;
        let board = Arc::new(Self {
            region: node.region,
            name: node.name.clone(),
            clock: node.env.clock.clone(),
            rng: node.env.rng.clone(),
            file,
            state: Mutex::new(State { orders, told: [None, None] }),
            writing: Mutex::default(),
            changed: watch::Sender::new(0),
            loads: loads.clone(),
        });
        board.apply();
        node.env.tasks.spawn(board.clone().keep());
        Ok(board)
    }

    /// One that keeps nothing.
    #[cfg(test)]
    pub(crate) fn without_file(loads: &Arc<LoadTable>) -> Arc<Self> {
        Arc::new(Self {
            region: 1,
            name: "own".to_owned(),
            clock: Arc::new(tern_net::system::SystemClock),
            rng: Arc::new(Entropy::seeded(1)),
            file: PathBuf::from("/nonexistent/orders"),
            state: Mutex::default(),
            writing: Mutex::default(),
            changed: watch::Sender::new(0),
            loads: loads.clone(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Orders are replaced one at a time, each as a whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All orders.
    pub fn orders(&self) -> Orders {
        self.state().orders.clone()
    }

    /// By which order clients are to leave this node, if they are.
    pub fn own(&self) -> Option<(Target, Order)> {
        self.state().orders.leaves_node(self.region, &self.name)
    }

    /// By which order clients are to leave this very node, whatever becomes of its region.
    pub fn own_node(&self) -> Option<Order> {
        self.state().orders.leaves(&Target::node(self.region, &self.name))
    }

    /// Hears of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// An operator orders. The order, and whether it is news; it is on disk when this returns. Blocks meanwhile.
    pub fn give(&self, target: &Target, leave: bool, pace: Pace) -> Result<(Order, bool)> {
        let one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.state().orders.clone();
        let (order, news) = next.give(target, leave, pace, self.clock.wall_ms())?;
        if news {
            write(&self.file, &next, &self.rng).with_context(|| {
                format!("{} can't be written, so nothing was ordered; make it writable", self.file.display())
            })?;
            // Others may have been heard meanwhile: they stay.
            self.state().orders.take(target, order)?;
            drop(one);
            tracing::info!(%target, leave, "an operator's order");
            self.apply();
        }
        Ok((order, news))
    }

    /// Another node tells an order.
    pub fn heard(&self, order: &wire::Order) {
        let (target, order) = match orders::from_wire(order) {
            Ok(read) => read,
            Err(error) => {
                tracing::debug!(%error, "an order was left out");
                return;
            }
        };
        let taken = self.state().orders.take(&target, order);
        match taken {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(%target, leave = order.leave, "an operator's order, heard from another node");
                self.apply();
            }
            Err(error) => tracing::warn!(%target, %error, "an order was left out"),
        }
    }

    /// What to tell next.
    pub fn next_for(&self, hearer: Hearer) -> Vec<wire::Order> {
        let mut state = self.state();
        let State { orders, told } = &mut *state;
        let last = &mut told[hearer as usize];
        let next = orders.after(last.as_ref(), ORDERS_AT_ONCE);
        if let Some((target, _)) = next.last() {
            *last = Some(target.clone());
        }
        next.iter().map(|(target, order)| orders::to_wire(target, order)).collect()
    }

    fn apply(&self) {
        self.loads.cordon_ordered(&self.state().orders.regions_left());
        self.changed.send_modify(|version| *version += 1);
    }

    /// Writes what was heard.
    async fn keep(self: Arc<Self>) {
        let mut changes = self.changes();
        while changes.changed().await.is_ok() {
            loop {
                let written = tokio::task::block_in_place(|| {
                    let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
                    write(&self.file, &self.orders(), &self.rng)
                });
                let Err(error) = written else { break };
                let file = self.file.display();
                tracing::warn!(%file, %error, "operators' orders can't be kept: after a restart this node waits to hear them again");
                sleep(WRITE_AGAIN).await;
            }
        }
    }
}

fn read(file: &Path) -> Result<Orders> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Orders::default()),
        Err(error) => {
            return Err(error).with_context(|| format!("operators' orders can't be read: {}", file.display()));
        }
    };
    let damaged = |why: String| {
        anyhow!(
            "{} is damaged ({why}): it says whether clients may come here. If they may, remove it and start again; \
             orders that other nodes hold are heard from them",
            file.display()
        )
    };
    let lines: Lines = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    let mut all = Orders::default();
    for line in lines.orders {
        let Line { region, node, leave, at_ms, per_second, window_ms } = line;
        let order = wire::Order { region, node, leave, at_ms, per_second, window_ms };
        let (target, order) = orders::from_wire(&order).map_err(|error| damaged(error.to_string()))?;
        all.take(&target, order).map_err(|error| damaged(error.to_string()))?;
    }
    Ok(all)
}

/// Replaces the file; durable when this returns.
fn write(file: &Path, orders: &Orders, rng: &Entropy) -> io::Result<()> {
    let orders = orders.iter().map(|(target, order)| {
        let wire::Order { region, node, leave, at_ms, per_second, window_ms } = orders::to_wire(target, order);
        Line { region, node, leave, at_ms, per_second, window_ms }
    });
    let text = serde_json::to_string_pretty(&Lines { orders: orders.collect() })?;
    if let Some(dir) = file.parent() {
        // A dispatcher has nothing else to keep.
        fs::create_dir_all(dir)?;
    }
    let mut beside = file.as_os_str().to_owned();
    beside.push(format!(".{:016x}", rng.u64()));
    let beside = Path::new(&beside);
    let written = fill(beside, &text).and_then(|()| fs::rename(beside, file));
    if written.is_err() {
        // What is left of the attempt; it may not even have been made.
        fs::remove_file(beside).ok();
    }
    written?;
    match file.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn fill(file: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_comes_back_as_it_was_and_a_damaged_one_is_no_reason_to_serve() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("eu-e1.orders");
        let rng = Entropy::seeded(1);
        assert!(read(&file).unwrap().is_empty());
        let mut orders = Orders::default();
        orders.give(&Target::region(3), true, Pace::PerSecond(9), 5).unwrap();
        orders.give(&Target::node(1, "eu-e2"), true, Pace::Within(Duration::from_secs(3)), 6).unwrap();
        orders.give(&Target::region(3), false, Pace::Configured, 7).unwrap();
        write(&file, &orders, &rng).unwrap();
        assert_eq!(read(&file).unwrap(), orders);
        write(&file, &Orders::default(), &rng).unwrap();
        assert!(read(&file).unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing lies beside");
        for bad in ["", "{\"orders\":[{\"region\":0,\"leave\":true,\"at_ms\":1}]}", "{\"orders\":[{}]}"] {
            fs::write(&file, bad).unwrap();
            let error = read(&file).unwrap_err().to_string();
            assert!(error.contains("eu-e1.orders is damaged"), "{error}");
        }
    }
}
