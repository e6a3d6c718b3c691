//! Who is where: (user -> region, devices, hlc), told between regions.
//!
//! Each region is the only writer of its own part, so a snapshot of it is authoritative and nothing needs a
//! tombstone. Routes are hints: they end stale connections of an install that has moved, and will steer
//! bodies and signals; no delivery depends on them.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{InstallId, Region, UserId};
use crate::wire::node_v1;

use super::CoreId;

/// Routes per frame of a snapshot: bounds the frame.
const ROUTES_PER_FRAME: usize = 512;

/// Who has told a part of the routes: another region's only core node (0), or one of several; of this region, another
/// core node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// Which region.
    pub region: Region,
    /// Which of its core nodes.
    pub core: CoreId,
}

impl Holder {
    /// The only core node of a region.
    pub fn only(region: Region) -> Self {
        Self { region, core: 0 }
    }
}

/// A bound install.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bind {
    /// When, by the clock of its region.
    pub hlc: u64,
    /// The client's own order of its connections; 0 = it has none.
    pub order: u64,
    /// Connections of the install.
    pub(super) connections: u32,
}

impl Bind {
    /// Whether this bind came after `other`: by the client's order if both have one, else by the regions'
    /// clocks, which may differ by more than what lies between two binds.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        if self.order != 0 && other.order != 0 { self.order > other.order } else { self.hlc > other.hlc }
    }
}

/// A user's presence in one region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Live installs.
    pub installs: BTreeMap<InstallId, Bind>,
}

/// What the region's own part and the copies of others' say.
#[derive(Debug, Default)]
pub struct Routes {
    own: BTreeMap<UserId, Route>,
    changed: BTreeSet<UserId>,
    remote: BTreeMap<Holder, BTreeMap<UserId, Route>>,
    /// A snapshot being received: replaces the region's part when its last frame came.
    incoming: BTreeMap<Holder, BTreeMap<UserId, Route>>,
    /// Users of whom a peer said something new.
    told: BTreeSet<UserId>,
}

impl Routes {
    /// An install has bound a connection here.
    pub(super) fn bind(&mut self, user: &UserId, install: &InstallId, hlc: u64, order: u64) {
        let route = self.own.entry(user.clone()).or_default();
        let bind = route.installs.entry(install.clone()).or_default();
        bind.connections += 1;
        bind.hlc = bind.hlc.max(hlc);
        bind.order = bind.order.max(order);
        self.changed.insert(user.clone());
    }

    /// A bound connection has ended.
    pub(super) fn unbind(&mut self, user: &UserId, install: &InstallId) {
        let Some(route) = self.own.get_mut(user) else { return };
        if let Some(bind) = route.installs.get_mut(install) {
            bind.connections -= 1;
            if bind.connections == 0 {
                route.installs.remove(install);
            }
        }
        if route.installs.is_empty() {
            self.own.remove(user);
        }
        self.changed.insert(user.clone());
    }

    /// What changed since it was last taken.
    pub(super) fn take_delta(&mut self) -> Option<node_v1::Routes> {
        let changed = std::mem::take(&mut self.changed);
        if changed.is_empty() {
            return None;
        }
        let mut delta = node_v1::Routes::default();
        for user in changed {
            match self.own.get(&user) {
                Some(route) => delta.set.push(to_wire(&user, route)),
                None => delta.unset.push(user.as_str().to_owned()),
            }
        }
        Some(delta)
    }

    /// All of the region's own part.
    pub(super) fn snapshot(&self) -> Vec<node_v1::Routes> {
        let all: Vec<_> = self.own.iter().map(|(user, route)| to_wire(user, route)).collect();
        let mut frames: Vec<node_v1::Routes> = all
            .chunks(ROUTES_PER_FRAME)
            .map(|part| node_v1::Routes { snapshot: false, more: true, set: part.to_vec(), unset: Vec::new() })
            .collect();
        if frames.is_empty() {
            frames.push(node_v1::Routes::default());
        }
        if let Some(first) = frames.first_mut() {
            first.snapshot = true;
        }
        if let Some(last) = frames.last_mut() {
            last.more = false;
        }
        frames
    }

    /// What a peer says of its part. Returns the users and installs that are now bound there. Ids that are
    /// none are left out.
    pub(super) fn told(&mut self, region: Holder, routes: node_v1::Routes) -> Vec<(UserId, InstallId, Bind)> {
        if routes.snapshot {
            self.incoming.insert(region, BTreeMap::new());
        }
        let receiving = self.incoming.contains_key(&region);
        let table = if receiving { self.incoming.entry(region) } else { self.remote.entry(region) }.or_default();
        let mut bound = Vec::new();
        for route in routes.set {
            let Ok(user) = UserId::new(&route.user) else { continue };
            let bind = |b: &node_v1::Bind| Bind { hlc: b.hlc, order: b.order, connections: 1 };
            let installs: BTreeMap<_, _> =
                route.binds.iter().filter_map(|b| Some((InstallId::new(&b.install).ok()?, bind(b)))).collect();
            if !receiving {
                self.told.insert(user.clone());
            }
            bound.extend(installs.iter().map(|(install, bind)| (user.clone(), install.clone(), *bind)));
            table.insert(user, Route { installs });
        }
        for user in routes.unset {
            if let Ok(user) = UserId::new(&user) {
                table.remove(&user);
                self.told.insert(user);
            }
        }
        if receiving
            && !routes.more
            && let Some(whole) = self.incoming.remove(&region)
        {
            self.told.extend(whole.keys().cloned());
            let before = self.remote.insert(region, whole).unwrap_or_default();
            self.told.extend(before.into_keys());
        }
        bound
    }

    /// Users of whom a peer said something since it was last taken.
    pub(super) fn take_told(&mut self) -> BTreeSet<UserId> {
        std::mem::take(&mut self.told)
    }

    /// Who is at another core node, as far as it has told.
    pub(super) fn users_of(&self, region: Holder) -> Vec<UserId> {
        self.remote.get(&region).into_iter().flat_map(|table| table.keys().cloned()).collect()
    }

    /// Where a user is, this node not included.
    pub fn elsewhere(&self, user: &UserId) -> impl Iterator<Item = (Holder, &Route)> {
        self.remote.iter().filter_map(move |(holder, table)| Some((*holder, table.get(user)?)))
    }

    /// A user's presence here.
    pub fn here(&self, user: &UserId) -> Option<&Route> {
        self.own.get(user)
    }

    /// Users present here, and per other region as far as known.
    pub fn counts(&self) -> (usize, BTreeMap<Region, usize>) {
        let mut regions = BTreeMap::new();
        for (holder, table) in &self.remote {
            *regions.entry(holder.region).or_default() += table.len();
        }
        (self.own.len(), regions)
    }
}

fn to_wire(user: &UserId, route: &Route) -> node_v1::Route {
    let devices = u32::try_from(route.installs.len()).unwrap_or(32).min(32);
    node_v1::Route {
        user: user.as_str().to_owned(),
        devices: u32::MAX.checked_shr(32 - devices).unwrap_or(0),
        hlc: route.installs.values().map(|b| b.hlc).max().unwrap_or(0),
        binds: route
            .installs
            .iter()
            .map(|(install, b)| node_v1::Bind { install: install.as_str().to_owned(), hlc: b.hlc, order: b.order })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(i: u32) -> UserId {
        UserId::new(&format!("user{i}")).unwrap()
    }

    fn phone() -> InstallId {
        InstallId::new("phone").unwrap()
    }

    #[test]
    fn a_peer_follows_by_snapshot_and_deltas() {
        let (mut here, mut there) = (Routes::default(), Routes::default());
        for i in 0..1200 {
            here.bind(&user(i), &phone(), 1, 0);
        }
        there.told(
            Holder::only(1),
            node_v1::Routes { set: vec![to_wire(&user(9999), &Route::default())], ..Default::default() },
        );
        let frames = here.snapshot();
        assert_eq!(frames.len(), 3);
        for frame in frames {
            there.told(Holder::only(1), frame);
        }
        assert_eq!(there.counts().1, [(1, 1200)].into(), "a snapshot replaces what was told before");
        here.take_delta();
        here.unbind(&user(3), &phone());
        here.bind(&user(5000), &phone(), 2, 9);
        let bound = there.told(Holder::only(1), here.take_delta().unwrap());
        assert_eq!(bound, [(user(5000), phone(), Bind { hlc: 2, order: 9, connections: 1 })]);
        assert_eq!(there.counts().1, [(1, 1200)].into());
        assert!(there.elsewhere(&user(3)).next().is_none());
        assert!(here.take_delta().is_none());
    }

    #[test]
    fn two_connections_of_an_install_count_once_and_end_with_the_last() {
        let mut routes = Routes::default();
        routes.bind(&user(1), &phone(), 1, 0);
        routes.bind(&user(1), &phone(), 2, 0);
        assert_eq!(to_wire(&user(1), routes.here(&user(1)).unwrap()).devices, 1);
        routes.unbind(&user(1), &phone());
        assert!(routes.here(&user(1)).is_some());
        routes.unbind(&user(1), &phone());
        assert!(routes.here(&user(1)).is_none());
        let delta = routes.take_delta().unwrap();
        assert_eq!((delta.set.len(), delta.unset.len()), (0, 1));
    }
}
