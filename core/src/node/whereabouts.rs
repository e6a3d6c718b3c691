//! The routes at work in the node: what its devices make of them, and what those of others make of its devices.

use std::ops::Bound::{Excluded, Unbounded};

use crate::codes::{Code, Refusal};
use crate::edge_api::DownBody;
use crate::ids::{InstallId, UserId};
use crate::wire::node_v1::node_frame::Body;

use super::routes::{Bind, Holder};
use super::user::User;
use super::{ConnKey, DeviceMoved, Node, Now, Present};

/// The connections that a user's devices use.
fn present(user: &User) -> Vec<(InstallId, ConnKey)> {
    let used = user.devices.iter().filter(|(_, device)| device.bound.is_some());
    used.map(|(key, device)| (device.install.clone(), *key)).collect()
}

impl Node {
    /// Tells the region's table of routes.
    pub(super) fn device_moved(&mut self, user: &UserId, install: &InstallId, key: ConnKey, is_here: bool) {
        self.out.moved.push(DeviceMoved { user: user.clone(), install: install.clone(), key, is_here });
    }

    /// Who is here, of those users whose ids come after one: it looks at `limit` users at most, and tells after whom to go
    /// on, if there are more. `None`: nothing this node says counts now, ask again.
    pub fn present_after(&self, now: Now, after: Option<&UserId>, limit: usize) -> Option<(Present, Option<UserId>)> {
        if !self.has_lease(now) {
            return None;
        }
        let from = after.map_or(Unbounded, Excluded);
        let mut users = self.users.range::<UserId, _>((from, Unbounded));
        let page: Vec<(&UserId, &User)> = users.by_ref().take(limit).collect();
        let next = page.last().map(|(id, _)| (*id).clone()).filter(|_| users.next().is_some());
        let here = page.into_iter().map(|(id, user)| (id.clone(), present(user)));
        Some((here.filter(|(_, devices)| !devices.is_empty()).collect(), next))
    }

    /// Which of these users' devices are here; users who are not this node's are left out. `None`: as above.
    pub fn present_of(&self, now: Now, users: &[UserId]) -> Option<Present> {
        let own = users.iter().filter(|user| self.epoch_of_user(user).is_some());
        let present = |id: &UserId| (id.clone(), self.users.get(id).map(present).unwrap_or_default());
        self.has_lease(now).then(|| own.map(present).collect())
    }

    /// A user has begun or ended to use a connection here.
    pub(super) fn route_changed(&mut self, now: Now, user: &UserId) {
        let devices = self.users.get(user).into_iter().flat_map(|known| known.devices.values());
        let binds: Vec<Bind> = devices.filter_map(|device| device.bound).collect();
        self.routes.set(now.mono, user, &binds);
    }

    /// What another core node says of routes.
    pub(super) fn route_told(&mut self, now: Now, from: Holder, body: &Body) -> Result<(), Refusal> {
        let changed = self.routes.told(now.mono, from, body);
        let changed = changed.map_err(|malformed| Refusal::new(Code::BadFrame, malformed.to_string()))?;
        for user in changed {
            self.presence_changed(now, &user);
            self.end_ghosts(from, &user);
        }
        Ok(())
    }

    /// An install that is bound elsewhere since has left here: its old connections are ghosts.
    fn end_ghosts(&mut self, at: Holder, user: &UserId) {
        let Some(known) = self.users.get(user).filter(|known| !known.devices.is_empty()) else { return };
        let there = self.routes.at(at, user);
        let is_ghost = |own: &Bind| there.iter().any(|bind| bind.install == own.install && bind.is_newer_than(own));
        let ghosts = known.devices.iter().filter(|(_, device)| device.bound.as_ref().is_some_and(is_ghost));
        for key in ghosts.map(|(key, _)| *key).collect::<Vec<ConnKey>>() {
            let refusal = Refusal::new(Code::Replaced, "this install has connected in another region");
            self.out.down(key, DownBody::Last(refusal));
        }
    }

    /// Time has passed.
    pub(super) fn routes_due(&mut self, now: Now) {
        for user in self.routes.tick(now.mono) {
            self.presence_changed(now, &user);
        }
    }

    /// Hands over what other core nodes are to be told.
    pub(super) fn tell_routes(&mut self) {
        for (holder, body) in self.routes.take_outputs() {
            if holder.region == self.settings.region {
                self.out.cores.entry(holder.core).or_default().push(body);
            } else {
                self.out.peer(holder, body);
            }
        }
    }
}
