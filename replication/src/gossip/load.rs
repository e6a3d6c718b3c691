//! Loads: what an edge says of itself, as it travels.
//!
//! ```text
//! 1 (version)  start 8  counter 4  length 1, name
//! generation 8  flags 1 (1 draining, 2 has a position)  connections 4  capacity 4  cpu 2 (permille)
//! latitude 4, longitude 4 (millionths of a degree, if it has them)
//! count 1, addresses  length 1, failure domain  length 1, region name  whatever a later version adds
//! ```
//!
//! Some 55 bytes. A record is complete in itself: one that is lost costs nothing but its age, and a node that joins
//! knows everything after one second. Each node passes on only what is newer by (start, counter) than what it holds,
//! so a replayed record, or one of an earlier start, ends where it arrives.
//!
//! Operators' orders travel in the same way, each as `2, tern.node.v1.Order`: rarely, so that their size is no matter.
//! They are said again in turn by all who hold them, and passed on by those to whom they are news.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message;
use tern_core::ids::Region;
use tern_core::orders::{self, Orders, Target};
use tern_core::wire::node_v1::{EdgeLoad, Order};

use super::identity::NodeId;
use super::limits::{LOADS_TO_ALL, MEMBERS_MAX, NAME_BYTES, ORDERS_TO_ALL_TICKS, RECORD_ADDRESSES, RECORD_BYTES};
use super::wire::{Reader, WireError, put_address, put_text};

const VERSION: u8 = 1;
/// The first byte of an order.
const ORDER: u8 = 2;
const DRAINING: u8 = 1;
const HAS_POSITION: u8 = 2;
const DEGREE: f64 = 1e6;

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("a load record can't be read: {0}")]
    Wire(#[from] WireError),
    #[error("a load record of version {0}; this node knows {VERSION}")]
    Version(u8),
    #[error("a load record has more than {RECORD_BYTES} bytes")]
    Size,
}

/// A load and when it was said.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub name: Arc<str>,
    /// Of the node that said it, see `NodeId`.
    pub start: u64,
    /// Grows with each record of a start.
    pub counter: u32,
    /// `edge` is the name, `region` the cluster's, `age_ms` 0.
    pub load: EdgeLoad,
}

impl Record {
    /// For the wire. Addresses that are none are left out.
    pub fn encode(&self) -> Vec<u8> {
        let load = &self.load;
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.start.to_be_bytes());
        out.extend_from_slice(&self.counter.to_be_bytes());
        put_text(&self.name, &mut out);
        out.extend_from_slice(&load.generation.to_be_bytes());
        let position = micro(load.latitude).zip(micro(load.longitude)).filter(|at| *at != (0, 0));
        let flags = if load.draining { DRAINING } else { 0 } | if position.is_some() { HAS_POSITION } else { 0 };
        out.push(flags);
        out.extend_from_slice(&load.connections.to_be_bytes());
        out.extend_from_slice(&load.capacity.to_be_bytes());
        out.extend_from_slice(&u16::try_from(load.cpu_permille).unwrap_or(u16::MAX).to_be_bytes());
        if let Some((latitude, longitude)) = position {
            out.extend_from_slice(&latitude.to_be_bytes());
            out.extend_from_slice(&longitude.to_be_bytes());
        }
        let addresses: Vec<_> = load.addresses.iter().filter_map(|a| a.parse().ok()).take(RECORD_ADDRESSES).collect();
        out.push(u8::try_from(addresses.len()).unwrap_or(0));
        for address in addresses {
            put_address(address, &mut out);
        }
        put_text(clipped(&load.failure_domain), &mut out);
        put_text(clipped(&load.region_name), &mut out);
        out
    }

    /// From the wire of a region's cluster.
    pub fn decode(region: Region, bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > RECORD_BYTES {
            return Err(RecordError::Size);
        }
        let mut from = Reader { region, rest: bytes };
        match from.u8()? {
            VERSION => {}
            other => return Err(RecordError::Version(other)),
        }
        let (start, counter) = (from.u64()?, from.u32()?);
        let name = from.text(1, NAME_BYTES, "name")?;
        let (generation, flags) = (from.u64()?, from.u8()?);
        let (connections, capacity, cpu) = (from.u32()?, from.u32()?, from.u16()?);
        let position = if flags & HAS_POSITION == 0 { (0, 0) } else { (from.i32()?, from.i32()?) };
        let count = from.u8()?;
        if usize::from(count) > RECORD_ADDRESSES {
            return Err(WireError::Value("addresses").into());
        }
        let addresses = (0..count).map(|_| from.address().map(|a| a.to_string())).collect::<Result<_, _>>()?;
        let load = EdgeLoad {
            edge: name.to_string(),
            region: region.into(),
            addresses,
            connections,
            capacity,
            cpu_permille: cpu.into(),
            draining: flags & DRAINING != 0,
            age_ms: 0,
            latitude: f64::from(position.0) / DEGREE,
            longitude: f64::from(position.1) / DEGREE,
            generation,
            failure_domain: from.text(0, NAME_BYTES, "failure domain")?.to_string(),
            region_name: from.text(0, NAME_BYTES, "region name")?.to_string(),
        };
        Ok(Self { name, start, counter, load })
    }
}

impl Reader<'_> {
    fn i32(&mut self) -> Result<i32, WireError> {
        Ok(i32::from_be_bytes(self.array()?))
    }
}

/// Dispatch refuses longer text; a record that can't be read would be worse.
fn clipped(text: &str) -> &str {
    let mut end = text.len().min(NAME_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn micro(degrees: f64) -> Option<i32> {
    let scaled = (degrees * DEGREE).round();
    let fits = scaled.abs() <= 180.0 * DEGREE;
    #[expect(clippy::cast_possible_truncation, reason = "at most 180 million")]
    fits.then_some(scaled as i32)
}

/// The newest record of each node.
#[derive(Debug)]
pub(crate) struct Loads {
    region: Region,
    own: Arc<str>,
    /// Whether edges are told loads too.
    to_all: bool,
    records: BTreeMap<Arc<str>, Record>,
    /// Whose is new since this was last taken.
    fresh: Vec<Arc<str>>,
    /// Records that could not be read.
    bad: u64,
    orders: Orders,
    /// Which are news since this was last taken.
    fresh_orders: Vec<Order>,
    /// For so many ticks edges are told orders although there are many nodes.
    spread: u32,
}

impl Loads {
    pub fn new(region: Region, own: Arc<str>) -> Self {
        Self {
            region,
            own,
            to_all: true,
            records: BTreeMap::new(),
            fresh: Vec::new(),
            bad: 0,
            orders: Orders::default(),
            fresh_orders: Vec::new(),
            spread: 0,
        }
    }

    pub fn take_fresh_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.fresh_orders)
    }

    /// An order, and whether somebody else told it. Whether it is to be passed on.
    fn take_order(&mut self, data: &[u8], from_elsewhere: bool) -> Option<Target> {
        let read = if data.len() > RECORD_BYTES { None } else { Order::decode(data).ok() };
        let Some((wire, (target, order))) = read.and_then(|wire| Some((wire.clone(), orders::from_wire(&wire).ok()?)))
        else {
            self.bad += 1;
            return None;
        };
        let news = self.orders.take(&target, order).unwrap_or(false);
        if news {
            self.spread = ORDERS_TO_ALL_TICKS;
            if from_elsewhere {
                self.fresh_orders.push(wire);
            }
        }
        (news || !from_elsewhere).then_some(target)
    }

    /// The newest record of a node.
    pub fn get(&self, name: &str) -> Option<&Record> {
        self.records.get(name)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn bad(&self) -> u64 {
        self.bad
    }

    pub fn forget(&mut self, name: &str) {
        self.records.remove(name);
    }

    pub fn take_fresh(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.fresh)
    }

    /// Once a tick.
    pub fn set_members(&mut self, count: usize) {
        self.spread = self.spread.saturating_sub(1);
        // An edge that was off while clients were sent away must hear of it when it is back.
        let ordered = self.spread > 0 || self.orders.iter().any(|(_, order)| order.leave);
        self.to_all = count <= LOADS_TO_ALL || ordered;
    }

    /// Whether it is news.
    fn take(&mut self, record: Record, from_elsewhere: bool) -> bool {
        if from_elsewhere && record.name == self.own {
            return false;
        }
        let full = self.records.len() >= MEMBERS_MAX;
        let name = record.name.clone();
        match self.records.entry(name.clone()) {
            Entry::Vacant(_) if full => return false,
            Entry::Vacant(place) => {
                place.insert(record);
            }
            Entry::Occupied(mut held) => {
                if (record.start, record.counter) <= (held.get().start, held.get().counter) {
                    return false;
                }
                held.insert(record);
            }
        }
        self.fresh.push(name);
        true
    }
}

/// What foca asks about records; the machine shares it.
#[derive(Clone, Debug)]
pub(crate) struct LoadHandler(Arc<Mutex<Loads>>);

impl LoadHandler {
    pub fn new(region: Region, own: Arc<str>) -> Self {
        Self(Arc::new(Mutex::new(Loads::new(region, own))))
    }

    pub fn lock(&self) -> MutexGuard<'_, Loads> {
        // A panic while it was held leaves whole records behind: they are replaced one at a time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An order as it travels.
pub(crate) fn encode_order(order: &Order) -> Vec<u8> {
    let mut out = vec![ORDER];
    out.extend(order.encode_to_vec());
    out
}

/// A node's newer record replaces its older one in the queue to be passed on, and so does an order for one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NewsOf {
    Load(Arc<str>),
    Order(Target),
}

impl foca::Invalidates for NewsOf {
    fn invalidates(&self, other: &Self) -> bool {
        self == other
    }
}

impl foca::BroadcastHandler<NodeId> for LoadHandler {
    type Key = NewsOf;
    type Error = std::convert::Infallible;

    fn receive_item(&mut self, data: &[u8], sender: Option<&NodeId>) -> Result<Option<NewsOf>, Self::Error> {
        let mut loads = self.lock();
        if let Some((&ORDER, data)) = data.split_first() {
            return Ok(loads.take_order(data, sender.is_some()).map(NewsOf::Order));
        }
        let Ok(record) = Record::decode(loads.region, data) else {
            // The rest of the datagram may be good: a node of a later version may be among us.
            loads.bad += 1;
            return Ok(None);
        };
        let name = record.name.clone();
        Ok(loads.take(record, sender.is_some()).then_some(NewsOf::Load(name)))
    }

    fn should_add_broadcast_data(&self, member: &NodeId) -> bool {
        member.role.dispatches() || self.lock().to_all
    }
}

#[cfg(test)]
mod tests {
    use foca::BroadcastHandler as _;
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn record(name: &str, start: u64, counter: u32) -> Record {
        let load = EdgeLoad {
            edge: name.to_owned(),
            region: 1,
            region_name: "eu".to_owned(),
            addresses: vec!["192.0.2.1:7414".to_owned(), "[2001:db8::1]:7414".to_owned()],
            connections: 5,
            capacity: 100,
            cpu_permille: 20,
            draining: true,
            age_ms: 0,
            latitude: 50.11,
            longitude: -8.68,
            generation: 9,
            failure_domain: "a".to_owned(),
        };
        Record { name: name.into(), start, counter, load }
    }

    #[test]
    fn the_format_on_the_wire_stays_and_is_small() {
        let bytes = record("eu-e1", 2, 3).encode();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let expected = "01\
            0000000000000002\
            00000003\
            0565752d6531\
            0000000000000009\
            03\
            00000005000000640014\
            02fc9e30ff7b8dc0\
            02\
            04c00002011cf6\
            0620010db80000000000000000000000011cf6\
            0161\
            026575";
        assert_eq!(hex, expected);
        let mut usual = record("eu-e1", 2, 3);
        usual.load.addresses.pop();
        assert!(usual.encode().len() <= 60, "{}", usual.encode().len());
        let mut largest = record(&"n".repeat(64), 1, 1);
        largest.load.failure_domain = "d".repeat(64);
        largest.load.region_name = "r".repeat(64);
        largest.load.addresses = vec!["[2001:db8::1]:7414".to_owned(); 9];
        assert!(largest.encode().len() <= RECORD_BYTES);
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over_and_what_it_changes_is_left_alone() {
        let mut bytes = record("eu-e1", 2, 3).encode();
        bytes.extend_from_slice(b"more");
        assert_eq!(Record::decode(1, &bytes), Ok(record("eu-e1", 2, 3)));
        bytes[0] = 3;
        assert_eq!(Record::decode(1, &bytes), Err(RecordError::Version(3)));
        let mut handler = LoadHandler::new(1, "own".into());
        assert_eq!(handler.receive_item(&bytes, None), Ok(None));
        bytes[0] = 1;
        assert_eq!(handler.receive_item(&bytes[..9], None), Ok(None));
        assert_eq!(handler.lock().bad(), 2);
        assert_eq!(handler.lock().len(), 0);
        assert!(handler.receive_item(&bytes, None).unwrap().is_some());
    }

    #[test]
    fn an_order_is_passed_on_by_those_to_whom_it_is_news_and_said_again_by_those_who_hold_it() {
        let order = Order { region: 3, leave: true, at_ms: 7, ..Order::default() };
        let bytes = encode_order(&order);
        assert_eq!(bytes, [2, 8, 3, 24, 1, 32, 7], "the format stays");
        let other = NodeId {
            region: 1,
            role: super::super::identity::Role::Ipconf,
            name: "x".into(),
            start: 1,
            turn: 0,
            addr: "192.0.2.1:1".parse().unwrap(),
        };
        let mut handler = LoadHandler::new(1, "own".into());
        handler.lock().set_members(LOADS_TO_ALL + 1);
        assert!(!handler.lock().to_all);
        assert!(handler.receive_item(&bytes, Some(&other)).unwrap().is_some());
        assert_eq!(handler.lock().take_fresh_orders(), std::slice::from_ref(&order));
        assert!(handler.receive_item(&bytes, Some(&other)).unwrap().is_none(), "no news");
        assert!(handler.receive_item(&bytes, None).unwrap().is_some(), "but said again");
        assert!(handler.lock().take_fresh_orders().is_empty());
        handler.lock().set_members(LOADS_TO_ALL + 1);
        assert!(handler.lock().to_all, "edges hear of it too");
        let back = Order { leave: false, at_ms: 8, ..order };
        assert!(handler.receive_item(&encode_order(&back), Some(&other)).unwrap().is_some());
        (0..=ORDERS_TO_ALL_TICKS).for_each(|_| handler.lock().set_members(LOADS_TO_ALL + 1));
        assert!(!handler.lock().to_all);
        for bad in [&[2, 8, 0][..], &[2, 255], &[2, 8]] {
            assert_eq!(handler.receive_item(bad, Some(&other)), Ok(None));
        }
        assert_eq!(handler.lock().bad(), 3);
    }

    #[test]
    fn the_newest_of_each_node_wins_in_any_order() {
        let mut handler = LoadHandler::new(1, "own".into());
        let other = NodeId {
            region: 1,
            role: super::super::identity::Role::Edge,
            name: "x".into(),
            start: 1,
            turn: 0,
            addr: "192.0.2.1:1".parse().unwrap(),
        };
        let mut take = |name: &str, start, counter| {
            handler.receive_item(&record(name, start, counter).encode(), Some(&other)).unwrap().is_some()
        };
        assert!(take("a", 5, 7));
        assert!(!take("a", 5, 7), "again");
        assert!(!take("a", 5, 6));
        assert!(!take("a", 4, 99), "an earlier start");
        assert!(take("a", 6, 0), "a later start");
        assert!(take("b", 1, 1));
        assert!(!take("own", 99, 1), "nobody speaks for this node");
        let mut loads = handler.lock();
        assert_eq!(loads.take_fresh().len(), 3);
        assert_eq!(loads.get("a").unwrap().start, 6);
    }

    proptest! {
        #[test]
        fn loads_come_back_as_they_were(
            name in "[a-z0-9-]{1,64}", start in any::<u64>(), counter in any::<u32>(), generation in any::<u64>(),
            connections in any::<u32>(), capacity in any::<u32>(), cpu in any::<u16>(), draining in any::<bool>(),
            latitude in -90_000_000..=90_000_000i32, longitude in -180_000_000..=180_000_000i32,
            addresses in proptest::collection::vec((any::<[u8; 16]>(), any::<u16>()), 0..=8),
            domain in "[ -~]{0,64}",
        ) {
            let mut record = record(&name, start, counter);
            record.load.generation = generation;
            (record.load.connections, record.load.capacity) = (connections, capacity);
            (record.load.cpu_permille, record.load.draining) = (cpu.into(), draining);
            record.load.latitude = f64::from(latitude) / DEGREE;
            record.load.longitude = f64::from(longitude) / DEGREE;
            record.load.addresses = addresses
                .into_iter()
                .map(|(ip, port)| std::net::SocketAddr::new(ip.into(), port).to_string())
                .collect();
            record.load.failure_domain = domain;
            prop_assert_eq!(Record::decode(1, &record.encode()), Ok(record));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in any::<Vec<u8>>()) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = 1;
            }
            let _any_answer = Record::decode(1, &bytes);
        }

        #[test]
        fn long_text_is_cut_so_that_it_can_be_read(domain in "\\PC{0,90}") {
            let mut record = record("a", 1, 1);
            record.load.failure_domain = domain.clone();
            let read = Record::decode(1, &record.encode()).unwrap();
            prop_assert!(domain.starts_with(&read.load.failure_domain));
            prop_assert!(read.load.failure_domain.len() > 60 || read.load.failure_domain == domain);
        }
    }
}
