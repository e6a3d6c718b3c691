//! foca, as it is set up here.

use std::num::{NonZeroU8, NonZeroU32, NonZeroUsize};
use std::sync::Arc;

use foca::{Foca, PeriodicParams};
use tern_core::clock::Entropy;
use tern_core::ids::Region;

use super::identity::NodeId;
use super::limits::{
    ASK_ALIVE_EVERY, ASK_DEAD_AT_ONCE, ASK_DEAD_EVERY, CLUSTER_MIN, DATAGRAM_BYTES, FORGET_DEAD, TRANSMISSIONS_MIN,
};
use super::load::LoadHandler;
use super::seal::SEAL_BYTES;
use super::wire::Codec;

/// The membership protocol with its types.
pub(crate) type Membership = Foca<NodeId, Codec, Random, LoadHandler>;

/// A random stream for foca, from the node's own.
#[derive(Clone, Debug)]
pub(crate) struct Random(Arc<Entropy>);

impl rand_core::TryRng for Random {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        #[expect(clippy::cast_possible_truncation, reason = "any 32 of the 64 bits")]
        Ok(self.0.u64() as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.0.u64())
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill(out);
        Ok(())
    }
}

/// foca's settings for a cluster of so many nodes: its LAN profile, with what `limits` says instead.
pub(crate) fn profile(members: usize) -> foca::Config {
    let size = u32::try_from(members.max(CLUSTER_MIN).next_power_of_two()).unwrap_or(u32::MAX);
    let mut config = foca::Config::new_lan(NonZeroU32::new(size).unwrap_or(NonZeroU32::MIN));
    config.max_packet_size = NonZeroUsize::new(DATAGRAM_BYTES - SEAL_BYTES - 1).unwrap_or(NonZeroUsize::MIN);
    config.max_transmissions =
        config.max_transmissions.max(NonZeroU8::new(TRANSMISSIONS_MIN).unwrap_or(NonZeroU8::MIN));
    config.remove_down_after = Some(FORGET_DEAD);
    config.periodic_announce = Some(PeriodicParams { frequency: ASK_ALIVE_EVERY, num_members: NonZeroUsize::MIN });
    config.periodic_announce_to_down_members = Some(PeriodicParams {
        frequency: ASK_DEAD_EVERY,
        num_members: NonZeroUsize::new(ASK_DEAD_AT_ONCE).unwrap_or(NonZeroUsize::MIN),
    });
    config
}

/// A node's membership, before it knows anyone.
pub(crate) fn membership(
    region: Region,
    id: NodeId,
    rng: &Arc<Entropy>,
    loads: &LoadHandler,
    cluster: usize,
) -> Membership {
    let codec = Codec { region };
    Foca::with_custom_broadcast(id, profile(cluster), Random(rng.clone()), codec, loads.clone())
}
