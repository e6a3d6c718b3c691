//! What operators have ordered: clients are to leave a region, or a node.
//!
//! Problem: an order must hold for as long as it is not taken back, on every node that lists, sends or receives clients,
//! although any of them may be down or unreachable when it is given, the region that it concerns among them; and nobody
//! is in command.
//!
//! Rule: for each target there is one word, the last order; of two the one with the later stamp holds, and of equal
//! stamps the one that says to leave. Whoever holds an order tells it on and keeps it on disk. An order is stamped with
//! the wall clock of the node that takes it, and later than whatever it replaces: a wrong clock can delay nobody's
//! second thoughts. Orders to come back are kept as long as orders to leave, for a node that was off meanwhile believes
//! what it last heard.
//!
//! Why simpler ways fail: a list in every dispatcher's configuration is as many commands as there are dispatchers; a flag
//! in the region's store is not read while the region is dead.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use crate::ids::Region;
use crate::wire::node_v1 as wire;

/// Orders that are kept: all regions there can be, and as many nodes. Of orders to come back the oldest give way.
pub const ORDERS_MAX: usize = 512;
/// Bytes of a node's name.
const NAME_BYTES: usize = 64;
/// Clients are sent away over this time at most: longer is no drain but a mistake.
pub const PACE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Whom clients are to leave.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The region.
    pub region: Region,
    /// A node of it; None: all of them.
    pub node: Option<Arc<str>>,
}

impl Target {
    /// A whole region.
    pub fn region(region: Region) -> Self {
        Self { region, node: None }
    }

    /// A node.
    pub fn node(region: Region, name: &str) -> Self {
        Self { region, node: Some(name.into()) }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "node {node} of region {}", self.region),
            None => write!(f, "region {}", self.region),
        }
    }
}

/// How fast clients are sent away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pace {
    /// As the edge is configured.
    #[default]
    Configured,
    /// So many of an edge's clients a second.
    PerSecond(u32),
    /// All of an edge's clients within this time.
    Within(Duration),
}

/// An order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    /// When it was given, in milliseconds since 1970, and later than what it replaced.
    pub at_ms: u64,
    /// Whether clients are to leave, or may come back.
    pub leave: bool,
    /// How fast they are to leave.
    pub pace: Pace,
}

/// Why an order is not taken. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// A field that can't be.
    #[error("{0}")]
    Bad(String),
    /// No room.
    #[error("{ORDERS_MAX} orders are in force, and no more are kept: take some back first")]
    TooMany,
}

/// The last order for each target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders(BTreeMap<Target, Order>);

impl Orders {
    /// An operator says that clients are to leave a target, or may come back; `wall_ms`: what the clock says. The order, and
    /// whether it is news: what is so already is not ordered again, unless at another pace.
    pub fn give(
        &mut self,
        target: &Target,
        leave: bool,
        pace: Pace,
        wall_ms: u64,
    ) -> Result<(Order, bool), OrderError> {
        let pace = if leave { pace } else { Pace::Configured };
        let held = self.0.get(target).copied();
        let before = held.unwrap_or(Order { at_ms: 0, leave: false, pace: Pace::Configured });
        if before.leave == leave && (before.pace == pace || pace == Pace::Configured) {
            return Ok((before, false));
        }
        let order = Order { at_ms: wall_ms.max(before.at_ms.saturating_add(1)), leave, pace };
        self.take(target, order)?;
        Ok((order, true))
    }

    /// Somebody tells an order. Whether it is news.
    pub fn take(&mut self, target: &Target, order: Order) -> Result<bool, OrderError> {
        match self.0.get_mut(target) {
            Some(held) if *held >= order => Ok(false),
            Some(held) => {
                *held = order;
                Ok(true)
            }
            None => {
                if self.0.len() >= ORDERS_MAX {
                    let oldest = self.0.iter().filter(|(_, o)| !o.leave).min_by_key(|(_, o)| o.at_ms);
                    let Some(oldest) = oldest.map(|(target, _)| target.clone()) else {
                        return Err(OrderError::TooMany);
                    };
                    self.0.remove(&oldest);
                }
                self.0.insert(target.clone(), order);
                Ok(true)
            }
        }
    }

    /// The order by which clients leave this very target, if they are to.
    pub fn leaves(&self, target: &Target) -> Option<Order> {
        self.0.get(target).copied().filter(|order| order.leave)
    }

    /// The order by which clients leave a node: its own, or that for its region; the later of both.
    pub fn leaves_node(&self, region: Region, name: &str) -> Option<(Target, Order)> {
        let of = |target: Target| self.leaves(&target).map(|order| (target, order));
        of(Target::region(region))
            .into_iter()
            .chain(of(Target::node(region, name)))
            .max_by_key(|(_, order)| order.at_ms)
    }

    /// Regions that clients are to leave, ascending.
    pub fn regions_left(&self) -> Vec<Region> {
        self.iter().filter(|(target, order)| target.node.is_none() && order.leave).map(|(t, _)| t.region).collect()
    }

    /// All, ordered by target.
    pub fn iter(&self) -> impl Iterator<Item = (&Target, &Order)> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `count` after a target, from the first again after the last; each once.
    pub fn after(&self, last: Option<&Target>, count: usize) -> Vec<(Target, Order)> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let to = last.map_or(Bound::Unbounded, Bound::Included);
        let before = if last.is_some() { Some(self.0.range::<Target, _>((Bound::Unbounded, to))) } else { None };
        let all = self.0.range::<Target, _>((from, Bound::Unbounded)).chain(before.into_iter().flatten());
        all.take(count).map(|(target, order)| (target.clone(), *order)).collect()
    }
}

/// For the wire between nodes.
pub fn to_wire(target: &Target, order: &Order) -> wire::Order {
    let (per_second, window_ms) = match order.pace {
        Pace::Configured => (0, 0),
        Pace::PerSecond(n) => (n, 0),
        Pace::Within(window) => (0, u32::try_from(window.as_millis()).unwrap_or(u32::MAX).max(1)),
    };
    wire::Order {
        region: target.region.into(),
        node: target.node.as_deref().unwrap_or_default().to_owned(),
        leave: order.leave,
        at_ms: order.at_ms,
        per_second,
        window_ms,
    }
}

/// From the wire between nodes, or from a file.
pub fn from_wire(order: &wire::Order) -> Result<(Target, Order), OrderError> {
    let region = Region::try_from(order.region).ok().filter(|region| *region != 0);
    let region =
        region.ok_or_else(|| OrderError::Bad(format!("an order for region {}; regions are 1 to 255", order.region)))?;
    if order.node.len() > NAME_BYTES || order.node.chars().any(char::is_control) {
        return Err(OrderError::Bad(format!("an order for a node whose name is none: at most {NAME_BYTES} bytes")));
    }
    let window = Duration::from_millis(order.window_ms.into());
    if window > PACE_MAX {
        return Err(OrderError::Bad(format!("an order to leave within {} s; a day is the most", window.as_secs())));
    }
    let pace = match (order.per_second, order.window_ms) {
        (0, 0) => Pace::Configured,
        (0, _) => Pace::Within(window),
        (n, _) => Pace::PerSecond(n),
    };
    let node = (!order.node.is_empty()).then(|| order.node.as_str().into());
    Ok((Target { region, node }, Order { at_ms: order.at_ms, leave: order.leave, pace }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_so_already_is_not_ordered_again_and_each_order_is_later_than_the_last() {
        let (mut orders, eu) = (Orders::default(), Target::region(1));
        assert!(!orders.give(&eu, false, Pace::Configured, 100).unwrap().1, "nobody had sent clients away");
        assert!(orders.is_empty());
        let (first, news) = orders.give(&eu, true, Pace::PerSecond(5), 100).unwrap();
        assert!(news && first.at_ms == 100);
        assert_eq!(orders.give(&eu, true, Pace::Configured, 150).unwrap(), (first, false), "as fast as before");
        assert!(orders.give(&eu, true, Pace::PerSecond(50), 160).unwrap().1, "at another pace");
        // The clock of the node that takes the order back is behind.
        let (back, news) = orders.give(&eu, false, Pace::Configured, 7).unwrap();
        assert!(news && back.at_ms == 161 && orders.regions_left().is_empty());
        assert_eq!(orders.give(&eu, false, Pace::Configured, 999).unwrap(), (back, false));
    }

    #[test]
    fn a_node_is_left_for_its_own_sake_or_its_regions() {
        let mut orders = Orders::default();
        orders.give(&Target::node(1, "a"), true, Pace::Configured, 5).unwrap();
        assert!(orders.leaves_node(1, "a").is_some());
        assert!(orders.leaves_node(1, "b").is_none() && orders.leaves_node(2, "a").is_none());
        orders.give(&Target::region(1), true, Pace::Configured, 6).unwrap();
        assert_eq!(orders.leaves_node(1, "a").unwrap().0, Target::region(1));
        assert!(orders.leaves_node(1, "b").is_some() && orders.leaves_node(2, "a").is_none());
        assert_eq!(orders.regions_left(), [1]);
        orders.give(&Target::region(1), false, Pace::Configured, 7).unwrap();
        assert_eq!(orders.leaves_node(1, "a").unwrap().0, Target::node(1, "a"));
    }

    #[test]
    fn orders_are_told_in_turn_and_each_once() {
        let mut orders = Orders::default();
        assert!(orders.after(None, 4).is_empty() && orders.after(Some(&Target::region(9)), 4).is_empty());
        for region in 1..=5 {
            orders.give(&Target::region(region), true, Pace::Configured, 1).unwrap();
        }
        let told = |last: Option<u8>, count| -> Vec<u8> {
            orders.after(last.map(Target::region).as_ref(), count).iter().map(|(t, _)| t.region).collect()
        };
        assert_eq!(told(None, 2), [1, 2]);
        assert_eq!(told(Some(2), 2), [3, 4]);
        assert_eq!(told(Some(4), 2), [5, 1]);
        assert_eq!(told(Some(4), 99), [5, 1, 2, 3, 4]);
    }

    #[test]
    fn orders_to_come_back_give_way_and_orders_to_leave_do_not() {
        let mut orders = Orders::default();
        let name = |i: usize| Target::node(1, &format!("n{i}"));
        for i in 0..ORDERS_MAX {
            orders.give(&name(i), true, Pace::Configured, 1_000).unwrap();
        }
        assert_eq!(orders.give(&Target::region(3), true, Pace::Configured, 1), Err(OrderError::TooMany));
        orders.give(&name(7), false, Pace::Configured, 1).unwrap();
        assert!(orders.give(&Target::region(3), true, Pace::Configured, 1).unwrap().1);
        assert_eq!(orders.iter().count(), ORDERS_MAX);
        assert_eq!(orders.iter().filter(|(_, order)| order.leave).count(), ORDERS_MAX);
    }

    #[test]
    fn orders_that_can_not_be_are_refused() {
        let good = to_wire(&Target::node(3, "x"), &Order { at_ms: 5, leave: true, pace: Pace::PerSecond(7) });
        assert!(from_wire(&good).is_ok());
        for bad in [
            wire::Order { region: 0, ..good.clone() },
            wire::Order { region: 256, ..good.clone() },
            wire::Order { node: "x".repeat(65), ..good.clone() },
            wire::Order { node: "a\nb".to_owned(), ..good.clone() },
            wire::Order { window_ms: u32::MAX, ..good.clone() },
        ] {
            assert!(from_wire(&bad).is_err(), "{bad:?}");
        }
    }

    fn any_order() -> impl Strategy<Value = (Target, Order)> {
        let pace = prop_oneof![
            Just(Pace::Configured),
            (1u32..9).prop_map(Pace::PerSecond),
            (1u64..9).prop_map(|ms| Pace::Within(Duration::from_millis(ms)))
        ];
        (1u8..4, proptest::option::of("[ab]"), 0u64..4, any::<bool>(), pace).prop_map(
            |(region, node, at_ms, leave, pace)| {
                (Target { region, node: node.map(Into::into) }, Order { at_ms, leave, pace })
            },
        )
    }

    proptest! {
        #[test]
        fn whoever_heard_the_same_orders_believes_the_same_in_whatever_order_and_however_often(
            told in proptest::collection::vec(any_order(), 0..12), seed in any::<u64>()
        ) {
            let (mut a, mut b) = (Orders::default(), Orders::default());
            for (target, order) in &told {
                a.take(target, *order).unwrap();
            }
            let mut shuffled: Vec<_> = told.iter().chain(&told).enumerate().collect();
            shuffled.sort_by_key(|(i, _)| (*i as u64 + 1).wrapping_mul(seed | 1).rotate_left(17));
            for (_, (target, order)) in shuffled {
                b.take(target, *order).unwrap();
            }
            prop_assert_eq!(&a, &b);
            for (target, order) in a.iter() {
                prop_assert_eq!(from_wire(&to_wire(target, order)).unwrap(), (target.clone(), *order));
            }
        }
    }
}
