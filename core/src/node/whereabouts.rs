//! The routes at work in the node: what its devices make of them, and what those of others make of its devices.

use crate::codes::{Code, Refusal};
use crate::edge_api::DownBody;
use crate::ids::UserId;
use crate::wire::node_v1::node_frame::Body;

use super::routes::{Bind, Holder};
use super::{ConnKey, Node, Now};

impl Node {
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
