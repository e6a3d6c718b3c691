//! What a link is like, in data: one [`Spec`] per direction.
//!
//! A default spec is a perfect wire. Everything is an integer with its unit in its name, and [`Spec::check`]
//! refuses what could not be run or would say nothing (a rate of 0, bounds that descend), so that the machine
//! need not.

use std::sync::Arc;

use crate::dice::{Amount, Chance};
use crate::episodes::Episodes;
use crate::limits::{MTU_MIN, QUEUE_BYTES, QUEUE_PACKETS, RATE_BPS_MIN, RATE_SPAN_NS_MIN};
use crate::steps::Steps;
use crate::trace::Trace;

/// A link: both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkSpec {
    /// From the first end to the second: a device's uplink.
    pub up: Spec,
    /// From the second end to the first: a device's downlink.
    pub down: Spec,
}

impl LinkSpec {
    /// The same in both directions.
    pub fn symmetric(spec: Spec) -> Self {
        Self { up: spec.clone(), down: spec }
    }

    /// Whether both directions can be run.
    pub fn check(&self) -> Result<(), SpecError> {
        self.up.check()?;
        self.down.check()
    }
}

/// One direction of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// How fast bits leave.
    pub rate: Rate,
    /// How long a packet is on its way once its last bit has left.
    pub delay: Delay,
    /// What waits to leave.
    pub queue: Queue,
    /// Losses by chance, on the way.
    pub loss: Loss,
    /// How many arrive twice.
    pub duplicate: Chance,
    /// Packets that are held back.
    pub reorder: Reorder,
    /// Packets whose bits flip.
    pub corrupt: Corrupt,
    /// The longest packet.
    pub mtu: Option<Mtu>,
    /// Outages that come and go by themselves.
    pub fades: Option<Episodes<Outage>>,
}

/// How fast bits leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rate {
    /// At once.
    #[default]
    Unlimited,
    /// So many bits a second.
    Constant(u64),
    /// Bits a second over time.
    Steps(Steps),
    /// Bits a second, drawn anew for every span of this length: measurements that tell quantiles.
    Drawn {
        /// How long each holds, in nanoseconds.
        span_ns: u64,
        /// Bits a second.
        bps: Amount,
    },
    /// Opportunities to send, as recorded.
    Trace(Arc<Trace>),
}

/// How long a packet is on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delay {
    /// Always, in nanoseconds.
    pub base_ns: u64,
    /// More of it over time, in nanoseconds.
    pub extra_ns: Option<Steps>,
    /// More or less of it per packet.
    pub jitter: Jitter,
    /// Whether a packet may overtake another one. Real links mostly keep the order, so that jitter makes
    /// packets wait for each other.
    pub overtaking: bool,
}

/// How the delay of packets varies; named by distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Jitter {
    /// Not.
    #[default]
    None,
    /// Uniform, from that much less to that much more.
    Uniform {
        /// Half the width.
        within_ns: u64,
    },
    /// Normal (the sum of twelve uniform numbers, so never beyond six deviations).
    Normal {
        /// The standard deviation.
        sigma_ns: u64,
    },
    /// Exponential, only more: the long tail of retransmissions below IP.
    Exponential {
        /// The mean.
        mean_ns: u64,
    },
}

/// What waits to leave. The packet that is leaving does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// At most so many bytes.
    pub bytes: u64,
    /// At most so many packets.
    pub packets: u32,
    /// Who is dropped.
    pub discipline: Discipline,
}

impl Default for Queue {
    fn default() -> Self {
        Self { bytes: QUEUE_BYTES, packets: QUEUE_PACKETS, discipline: Discipline::DropTail }
    }
}

impl Queue {
    /// A bufferbloated one: so deep that at this rate the last packet waits so long, and nobody is told.
    pub fn bloated(bps: u64, wait_ms: u64) -> Self {
        let bytes = bps.saturating_mul(wait_ms) / 8000;
        Self { bytes, packets: u32::MAX, discipline: Discipline::DropTail }
    }
}

/// Who is dropped from a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discipline {
    /// Who comes when it is full.
    #[default]
    DropTail,
    /// As well, from the head, who waited too long (RFC 8289).
    Codel {
        /// The wait that is tolerated.
        target_ns: u64,
        /// For so long, before the first drop.
        interval_ns: u64,
    },
}

impl Discipline {
    /// `CoDel` with the values of its RFC: 5 ms, 100 ms.
    pub const CODEL: Self = Self::Codel { target_ns: 5_000_000, interval_ns: 100_000_000 };
}

/// Losses by chance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Loss {
    /// None.
    #[default]
    None,
    /// Each packet on its own (Bernoulli).
    Random(Chance),
    /// In bursts (Gilbert-Elliott): with each packet the channel may change its state, then the packet is
    /// lost by the chance of that state. The channel starts good.
    Bursts {
        /// Good turns bad.
        to_bad: Chance,
        /// Bad turns good.
        to_good: Chance,
        /// Loss while good.
        good: Chance,
        /// Loss while bad.
        bad: Chance,
    },
    /// In slots of time, by the chance of the slot, as in the Akamai recordings.
    Slots(Episodes<Chance>),
}

impl Loss {
    /// Bursts of `burst` packets in the mean that lose `share` of all: r = 1 / burst, p = r * loss / (1 - loss).
    pub fn bursts(share: Chance, burst: u32) -> Self {
        let to_good = 1_000_000_000 / burst.max(1);
        let to_bad = u64::from(to_good) * u64::from(share.as_ppb()) / u64::from(share.complement().as_ppb().max(1));
        Self::Bursts {
            to_bad: Chance::ppb(u32::try_from(to_bad).unwrap_or(u32::MAX)),
            to_good: Chance::ppb(to_good),
            good: Chance::NEVER,
            bad: Chance::ALWAYS,
        }
    }
}

/// Packets that are held back, whatever the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reorder {
    /// How many.
    pub share: Chance,
    /// By how much more delay, in nanoseconds.
    pub by_ns: u64,
}

/// Packets whose bits flip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Corrupt {
    /// How many.
    pub share: Chance,
    /// Whether they are delivered. By default the receiver's UDP checksum drops them.
    pub deliver: bool,
}

/// The longest packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu {
    /// In bytes, as the caller counts packets.
    pub bytes: u32,
    /// Whether the sender is told (ICMP "fragmentation needed"). Where not, it is a PMTU black hole.
    pub notice: bool,
}

/// What an outage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outage {
    /// Packets leave and are lost.
    Loses,
    /// Packets wait in the queue, and leave when it ends.
    Stalls,
}

/// What is wrong with a spec. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// It would never send.
    #[error("a rate of {0} bit/s never gets a packet through: use 100 bit/s or more, or an outage")]
    Rate(u64),
    /// A field says nothing that could be run.
    #[error("{field}: {flaw}")]
    Field {
        /// Which.
        field: &'static str,
        /// Why.
        flaw: &'static str,
    },
    /// No packet of IPv4 is so short.
    #[error("mtu: {0} bytes are fewer than IPv4 allows; use 68 or more")]
    Mtu(u32),
}

impl Spec {
    /// A perfect wire of this delay.
    pub fn with_delay_ms(base_ms: u64) -> Self {
        Self { delay: Delay { base_ns: base_ms * 1_000_000, ..Delay::default() }, ..Self::default() }
    }

    /// Whether it can be run.
    pub fn check(&self) -> Result<(), SpecError> {
        self.check_rate()?;
        let of = |field, flaw: Option<&'static str>| match flaw {
            Some(flaw) => Err(SpecError::Field { field, flaw }),
            None => Ok(()),
        };
        of("delay", self.delay.extra_ns.as_ref().and_then(Steps::flaw))?;
        if let Loss::Slots(slots) = &self.loss {
            of("loss", slots.flaw())?;
        }
        of("fades", self.fades.as_ref().and_then(Episodes::flaw))?;
        if let Discipline::Codel { target_ns, interval_ns } = self.queue.discipline {
            let sound = target_ns > 0 && target_ns < interval_ns;
            of("queue", (!sound).then_some("CoDel's target must be above 0 and below its interval"))?;
        }
        of("queue", (self.queue.packets == 0).then_some("a queue needs room for one packet at least"))?;
        match self.mtu {
            Some(mtu) if mtu.bytes < MTU_MIN => Err(SpecError::Mtu(mtu.bytes)),
            _ => Ok(()),
        }
    }

    fn check_rate(&self) -> Result<(), SpecError> {
        let flaw = |flaw| SpecError::Field { field: "rate", flaw };
        let least = match &self.rate {
            Rate::Unlimited | Rate::Trace(_) => return Ok(()),
            Rate::Constant(bps) => *bps,
            Rate::Steps(steps) => match steps.flaw() {
                Some(text) => return Err(flaw(text)),
                None => steps.values().min().unwrap_or(0),
            },
            Rate::Drawn { span_ns, bps } => {
                if *span_ns < RATE_SPAN_NS_MIN {
                    return Err(flaw("a drawn rate must hold for 1 ms at least"));
                }
                if !bps.is_sound() {
                    return Err(flaw("bounds must ascend, and quantiles go from 0 to 1,000,000 parts per million"));
                }
                bps.least()
            }
        };
        if least < RATE_BPS_MIN { Err(SpecError::Rate(least)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_of_zero_is_refused_in_every_form() {
        let of = |rate| Spec { rate, ..Spec::default() }.check();
        assert_eq!(of(Rate::Constant(0)), Err(SpecError::Rate(0)));
        assert_eq!(of(Rate::Steps(Steps::new(&[(0, 1000), (5, 0)], None))), Err(SpecError::Rate(0)));
        let drawn = Rate::Drawn { span_ns: 1_000_000, bps: Amount::Uniform { low: 0, high: 9 } };
        assert_eq!(of(drawn), Err(SpecError::Rate(0)));
        assert_eq!(of(Rate::Constant(100)), Ok(()));
        assert!(SpecError::Rate(0).to_string().contains("outage"));
    }

    #[test]
    fn what_says_nothing_is_refused_by_name() {
        let field = |spec: Spec| match spec.check() {
            Err(SpecError::Field { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let codel = Discipline::Codel { target_ns: 5, interval_ns: 5 };
        let queue = Queue { discipline: codel, ..Queue::default() };
        assert_eq!(field(Spec { queue, ..Spec::default() }), "queue");
        let queue = Queue { packets: 0, ..Queue::default() };
        assert_eq!(field(Spec { queue, ..Spec::default() }), "queue");
        assert_eq!(field(Spec { loss: Loss::Slots(Episodes(vec![])), ..Spec::default() }), "loss");
        assert_eq!(field(Spec { fades: Some(Episodes(vec![])), ..Spec::default() }), "fades");
        let delay = Delay { extra_ns: Some(Steps::new(&[], None)), ..Delay::default() };
        assert_eq!(field(Spec { delay, ..Spec::default() }), "delay");
        let rate = Rate::Drawn { span_ns: 1, bps: Amount::Fixed(1000) };
        assert_eq!(field(Spec { rate, ..Spec::default() }), "rate");
        let mtu = Some(Mtu { bytes: 10, notice: true });
        assert_eq!(Spec { mtu, ..Spec::default() }.check(), Err(SpecError::Mtu(10)));
        assert_eq!(LinkSpec::default().check(), Ok(()));
    }

    #[test]
    fn bursts_follow_the_formula() {
        let Loss::Bursts { to_bad, to_good, good, bad } = Loss::bursts(Chance::ppm(15_000), 8) else { panic!() };
        assert_eq!((to_good.as_ppb(), good, bad), (125_000_000, Chance::NEVER, Chance::ALWAYS));
        assert_eq!(to_bad.as_ppb(), 1_903_553);
    }
}
