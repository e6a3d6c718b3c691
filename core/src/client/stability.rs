//! Which own messages need a second region, and what the server says of them (R14).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::data::MessageState;
use super::effects::Event;
use super::limits::{UNSTABLE_ASK, UNSTABLE_ASK_FIRST};
use super::machine::Machine;
use crate::codes::Refusal;
use crate::ids::{ConvId, Origin};
use crate::limits::UNSTABLE_PER_FRAME;
use crate::mutants::{Mutant, on};
use crate::wire::convert;
use crate::wire::v1::{self, frame::Body};

/// Origins named per conversation in an `UnstableLog`.
const ORIGINS_PER_LOG: usize = 16;

impl Machine {
    /// A server says what is stable.
    pub(super) fn on_stable(&mut self, now: Duration, stable: &v1::Stable) -> Result<(), Refusal> {
        let conversation = convert::conversation(&stable.conversation)?;
        let origin = convert::origin(stable.origin)?;
        let Some(conv) = self.convs.get_mut(&conversation) else { return Ok(()) };
        let (released, count) = conv.outbox.stable(now, origin, stable.upto, stable.offer && !on(Mutant::NeverOffered));
        for id in released {
            self.release(conversation, id, MessageState::Stable);
            self.event(Event::Stable { conversation, id, regions: stable.regions });
        }
        if count > 0 {
            self.event(Event::ReOffered { conversation, count });
        }
        Ok(())
    }

    /// Origins in which unstable messages of a conversation are known to be held.
    pub(super) fn unstable_origins(&self, id: ConvId) -> BTreeSet<Origin> {
        let own = self.convs.get(&id).into_iter().flat_map(|c| c.outbox.unstable.values());
        own.flat_map(|o| o.out.record.places.keys().copied()).collect()
    }

    /// What is said of it in a Hello or an Unstable.
    pub(super) fn unstable_log(&self, id: ConvId) -> Option<v1::UnstableLog> {
        let origins = self.unstable_origins(id);
        let origins: Vec<_> = origins.into_iter().take(ORIGINS_PER_LOG).map(Into::into).collect();
        (!origins.is_empty()).then(|| v1::UnstableLog { conversation: Bytes::copy_from_slice(&id.0), origins })
    }

    /// Something is unstable: ask soon if it was not asked for on this connection, and again now and then.
    pub(super) fn ask_stability(&mut self, now: Duration, id: ConvId, origin: Origin) {
        let Some(session) = &mut self.session else { return };
        let asked = session.asked.contains(&(id, origin));
        let at = now + if asked { UNSTABLE_ASK } else { UNSTABLE_ASK_FIRST };
        session.unstable_at = Some(session.unstable_at.map_or(at, |t| t.min(at)));
    }

    /// Asks for what is unstable, if that is due.
    pub(super) fn ask_unstable(&mut self, now: Duration) {
        if self.session.as_ref().and_then(|s| s.unstable_at).is_none_or(|t| now < t) {
            return;
        }
        let logs: Vec<_> = self.unstable.iter().filter_map(|id| self.unstable_log(*id)).collect();
        let asked =
            self.unstable.iter().flat_map(|id| self.unstable_origins(*id).into_iter().map(|o| (*id, o))).collect();
        if let Some(session) = &mut self.session {
            session.unstable_at = (!logs.is_empty()).then_some(now + UNSTABLE_ASK);
            session.asked = asked;
        }
        for part in logs.chunks(UNSTABLE_PER_FRAME) {
            self.write_frame(0, Body::Unstable(v1::Unstable { logs: part.to_vec() }));
        }
    }
}
