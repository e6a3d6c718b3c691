//! The laws of a link, checked on a log of packets without knowing how it works.

use std::collections::BTreeMap;

use tern_netsim_link::{Cause, Dice, Fate, Jitter, Outage, Output, Purpose, Rate};

use crate::oracle::{Capacity, LINK, Plan, WAY, opportunities};

/// A log: what was reported, and how many packets were said to be on their way at the end.
pub struct Log {
    pub outputs: Vec<Output<u64>>,
    pub in_flight: u64,
    /// (lost in outages that were set, waited in them, held back), as counted.
    pub hits: (u64, u64, u64),
}

/// The first law that is broken, if one is.
pub fn audit(plan: &Plan, log: &Log) -> Result<(), String> {
    conservation(plan, log)?;
    order(log)?;
    rate(plan, log)?;
    delay(plan, log)?;
    causes(plan, log)
}

fn law(holds: bool, broken: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken()) }
}

/// In = out + dropped by cause + in flight; nothing twice but copies, nothing that was not sent.
fn conservation(plan: &Plan, log: &Log) -> Result<(), String> {
    let mut ends: BTreeMap<u64, u32> = BTreeMap::new();
    for out in &log.outputs {
        let sent = plan.sent.get(out.number as usize);
        law(sent == Some(&(out.sent_ns, out.bytes)), || format!("{out:?} was not sent so: {sent:?}"))?;
        law(out.payload == out.number, || format!("{out:?} carries another packet"))?;
        *ends.entry(out.number).or_default() += u32::from(out.fate != Fate::Copied);
    }
    law(ends.values().all(|count| *count <= 1), || format!("two outcomes of one packet: {ends:?}"))?;
    let ended: u64 = ends.values().map(|count| u64::from(*count)).sum();
    let sent = plan.sent.len() as u64;
    law(sent == ended + log.in_flight, || format!("{sent} sent, {ended} ended, {} in flight", log.in_flight))
}

/// Outcomes come in the order of time, none before its cause; packets leave in the order of sending.
fn order(log: &Log) -> Result<(), String> {
    law(log.outputs.is_sorted_by_key(|out| out.at_ns), || "outcomes go back in time".to_owned())?;
    let sound = |out: &Output<u64>| {
        let left_ns = out.left_ns.unwrap_or(out.sent_ns);
        out.sent_ns <= left_ns && left_ns <= out.at_ns
    };
    law(log.outputs.iter().all(sound), || "an outcome before its cause".to_owned())?;
    law(leaves(log).is_sorted_by_key(|(_, left_ns, _)| *left_ns), || "the queue is not first-in first-out".to_owned())
}

/// (number, when its last bit left, bytes) of all that left, by number.
fn leaves(log: &Log) -> Vec<(u64, u64, u32)> {
    let originals = log.outputs.iter().filter(|out| out.fate != Fate::Copied);
    let mut all: Vec<_> = originals.filter_map(|out| Some((out.number, out.left_ns?, out.bytes))).collect();
    all.sort_unstable();
    all
}

/// Between any two departures no more has left than could have.
fn rate(plan: &Plan, log: &Log) -> Result<(), String> {
    let leaves = leaves(log);
    let capacity = Capacity::new(&plan.spec.rate, Dice::new(plan.seed, LINK, WAY, Purpose::Rate));
    let trace = match &plan.spec.rate {
        Rate::Trace(trace) => Some(opportunities(trace)),
        _ => None,
    };
    for (i, (_, from_ns, _)) in leaves.iter().enumerate() {
        let mut bits = 0u128;
        for (number, until_ns, bytes) in &leaves[i + 1..] {
            bits += u128::from(*bytes) * 8;
            let room = match (&capacity, &trace) {
                (Some(capacity), _) => capacity.between(*from_ns, *until_ns) / 1_000_000_000,
                (_, Some(trace)) => {
                    let lines = trace.iter().filter(|(at_ns, _)| (from_ns..=until_ns).contains(&at_ns)).count();
                    lines as u128 * 12_000
                }
                (None, None) => continue,
            };
            law(bits <= room, || {
                format!("{bits} bits where {room} could, up to packet {number}: {from_ns}..{until_ns}")
            })?;
        }
    }
    Ok(())
}

/// Nobody is faster than the delay of the moment at which he left, and only order makes one slower than jitter.
fn delay(plan: &Plan, log: &Log) -> Result<(), String> {
    let delay = &plan.spec.delay;
    let most = match delay.jitter {
        Jitter::None => Some(0),
        Jitter::Uniform { within_ns } => Some(within_ns),
        Jitter::Normal { sigma_ns } => Some(6 * sigma_ns + 1),
        Jitter::Exponential { .. } => None,
    };
    for out in &log.outputs {
        let (Some(left_ns), false) = (out.left_ns, matches!(out.fate, Fate::Dropped(Cause::Loss | Cause::Outage)))
        else {
            continue;
        };
        let least_ns = delay.now_ns(left_ns).saturating_add_signed(delay.jitter.least_ns());
        law(out.at_ns >= left_ns + least_ns, || format!("too fast: {out:?}"))?;
        if let (Some(most), true) = (most, delay.overtaking) {
            let most_ns = delay.now_ns(left_ns) + most + plan.spec.reorder.by_ns;
            law(out.at_ns <= left_ns + most_ns, || format!("too slow: {out:?}"))?;
        }
    }
    Ok(())
}

/// Each cause needs a reason that can be seen.
fn causes(plan: &Plan, log: &Log) -> Result<(), String> {
    let spec = &plan.spec;
    let fades = plan.fades();
    for out in &log.outputs {
        let Fate::Dropped(cause) = out.fate else { continue };
        let reason = match cause {
            Cause::TooLong(bytes) => spec.mtu.is_some_and(|mtu| mtu.notice && mtu.bytes == bytes && out.bytes > bytes),
            Cause::BlackHole => spec.mtu.is_some_and(|mtu| !mtu.notice && out.bytes > mtu.bytes),
            Cause::QueueFull => others_inside(log, out) > 0 || fades.iter().any(|w| w.contains(out.at_ns)),
            Cause::Codel => out.at_ns > out.sent_ns,
            Cause::Outage => fades.iter().any(|w| w.what == Outage::Loses && w.contains(out.at_ns)),
            Cause::Loss => spec.loss != tern_netsim_link::Loss::None,
            Cause::Corrupt => !spec.corrupt.deliver,
        };
        law(reason, || format!("no reason for {out:?}"))?;
    }
    Ok(())
}

/// Packets that entered before this one and had not left when it came; what is not reported is still inside.
fn others_inside(log: &Log, late: &Output<u64>) -> usize {
    let gone = |out: &&Output<u64>| {
        let gone_ns = out.left_ns.unwrap_or(out.at_ns);
        out.number < late.number && out.fate != Fate::Copied && gone_ns <= late.sent_ns
    };
    late.number as usize - log.outputs.iter().filter(gone).count()
}
