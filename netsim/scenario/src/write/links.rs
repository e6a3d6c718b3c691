//! Links as they are written: a profile by its name, or what differs from a perfect wire.

use tern_netsim_link::{
    Amount, Chance, Corrupt, Delay, Discipline, Episodes, Jitter, LinkSpec, Loss, Mtu, Outage, Queue, Rate, Reorder,
    Spec, Steps, profile,
};

use super::{chance_text, quoted, rate_text, time_text};
use crate::plan::Patch;
use crate::read::links::OUTAGES;

/// Keys with their values.
pub(super) type Entries = Vec<(&'static str, String)>;

/// An inline table.
pub(super) fn table(entries: &Entries) -> String {
    let entries: Vec<String> = entries.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    if entries.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", entries.join(", ")) }
}

/// A link.
pub(super) fn entries(link: &LinkSpec) -> Entries {
    for name in profile::names() {
        if profile(name).is_ok_and(|profile| profile.link == *link) {
            return vec![("profile", quoted(name))];
        }
    }
    let (up, down) = (spec(&link.up), spec(&link.down));
    if up == down {
        // A path with a link like a wire is one all the same.
        return if up.is_empty() { vec![("rate", quoted("unlimited"))] } else { up };
    }
    vec![("up", table(&up)), ("down", table(&down))]
}

/// One direction.
fn spec(spec: &Spec) -> Entries {
    let mut entries = Entries::new();
    let Spec { rate, delay, queue, loss, duplicate, reorder, corrupt, mtu, fades } = spec;
    let wire = Spec::default();
    if *rate != wire.rate {
        entries.push(("rate", rate_value(rate)));
    }
    if (Delay { jitter: Jitter::None, ..delay.clone() }) != wire.delay {
        entries.push(("delay", delay_value(delay)));
    }
    if delay.jitter != wire.delay.jitter {
        entries.push(("jitter", jitter_value(delay.jitter)));
    }
    if *queue != wire.queue {
        entries.push(("queue", queue_value(*queue)));
    }
    if *loss != wire.loss {
        entries.push(("loss", loss_value(loss)));
    }
    if *duplicate != wire.duplicate {
        entries.push(("duplicate", chance(*duplicate)));
    }
    if *reorder != wire.reorder {
        entries.push(("reorder", reorder_value(*reorder)));
    }
    if *corrupt != wire.corrupt {
        entries.push(("corrupt", corrupt_value(*corrupt)));
    }
    if let Some(mtu) = mtu {
        entries.push(("mtu", mtu_value(*mtu)));
    }
    if let Some(fades) = fades {
        entries.push(("fades", episodes(fades, |what| format!("how = {}", quoted(outage(*what))))));
    }
    entries
}

/// What a `degrade` changes.
pub(super) fn patch_entries(patch: &Patch) -> Entries {
    let Patch { link, rate, delay_ns, jitter, loss, duplicate, reorder, corrupt, mtu, queue } = patch;
    let all: [(&str, Option<String>); 10] = [
        ("as", link.as_ref().map(|link| table(&self::entries(link)))),
        ("rate", rate.as_ref().map(rate_value)),
        ("delay", delay_ns.map(time)),
        ("jitter", jitter.map(jitter_value)),
        ("loss", loss.as_ref().map(loss_value)),
        ("duplicate", duplicate.map(chance)),
        ("reorder", reorder.map(reorder_value)),
        ("corrupt", corrupt.map(corrupt_value)),
        ("mtu", mtu.map(mtu_value)),
        ("queue", queue.map(queue_value)),
    ];
    all.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

/// `loses` or `stalls`.
pub(super) fn outage(outage: Outage) -> &'static str {
    OUTAGES.iter().find(|(_, one)| *one == outage).map_or("loses", |(word, _)| word)
}

fn time(ns: u64) -> String {
    quoted(&time_text(ns))
}

fn chance(chance: Chance) -> String {
    quoted(&chance_text(chance))
}

fn rate(bps: u64) -> String {
    quoted(&rate_text(bps))
}

fn rate_value(of: &Rate) -> String {
    match of {
        Rate::Unlimited => quoted("unlimited"),
        Rate::Constant(bps) => rate(*bps),
        Rate::Steps(list) => format!("{{ {} }}", steps(list, rate_text)),
        Rate::Drawn { span_ns, bps } => format!("{{ drawn = {}, span = {} }}", amount(bps, rate_text), time(*span_ns)),
        Rate::Trace(trace) => format!("{{ trace_ms = {:?} }}", trace.lines_ms()),
    }
}

fn steps(list: &Steps, text: impl Fn(u64) -> String) -> String {
    let pairs: Vec<String> =
        list.steps.iter().map(|step| format!("[{}, {}]", time(step.at_ns), quoted(&text(step.value)))).collect();
    let repeat = list.repeat_ns.map_or(String::new(), |ns| format!(", repeat = {}", time(ns)));
    format!("steps = [{}]{repeat}", pairs.join(", "))
}

fn amount(amount: &Amount, text: impl Fn(u64) -> String) -> String {
    match amount {
        Amount::Fixed(value) => quoted(&text(*value)),
        Amount::Uniform { low, high } => quoted(&format!("{}..{}", text(*low), text(*high))),
        Amount::Quantiles(points) => {
            let share = |ppm: u32| chance(Chance::ppm(ppm));
            let pairs: Vec<String> =
                points.iter().map(|(ppm, value)| format!("[{}, {}]", share(*ppm), quoted(&text(*value)))).collect();
            format!("[{}]", pairs.join(", "))
        }
    }
}

fn episodes<T>(episodes: &Episodes<T>, what: impl Fn(&T) -> String) -> String {
    let one = |episode: &tern_netsim_link::Episode<T>| {
        let (gap, length) = (amount(&episode.gap_ns, time_text), amount(&episode.length_ns, time_text));
        format!("{{ gap = {gap}, for = {length}, {} }}", what(&episode.what))
    };
    format!("[{}]", episodes.0.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn delay_value(delay: &Delay) -> String {
    let base = time(delay.base_ns);
    if delay.extra_ns.is_none() && !delay.overtaking {
        return base;
    }
    let extra = delay.extra_ns.as_ref().map_or(String::new(), |extra| format!(", {}", steps(extra, time_text)));
    format!("{{ base = {base}{extra}, overtaking = {} }}", delay.overtaking)
}

fn jitter_value(jitter: Jitter) -> String {
    match jitter {
        Jitter::None => quoted("none"),
        Jitter::Uniform { within_ns } => time(within_ns),
        Jitter::Normal { sigma_ns } => format!("{{ normal = {} }}", time(sigma_ns)),
        Jitter::Exponential { mean_ns } => format!("{{ exponential = {} }}", time(mean_ns)),
    }
}

fn loss_value(loss: &Loss) -> String {
    match loss {
        Loss::None => quoted("none"),
        Loss::Random(share) => chance(*share),
        Loss::Bursts { to_bad, to_good, good, bad } => format!(
            "{{ to_bad = {}, to_good = {}, good = {}, bad = {} }}",
            chance(*to_bad),
            chance(*to_good),
            chance(*good),
            chance(*bad)
        ),
        Loss::Slots(slots) => {
            format!("{{ slots = {} }}", episodes(slots, |share| format!("loss = {}", chance(*share))))
        }
    }
}

fn reorder_value(reorder: Reorder) -> String {
    format!("{{ share = {}, by = {} }}", chance(reorder.share), time(reorder.by_ns))
}

fn corrupt_value(corrupt: Corrupt) -> String {
    format!("{{ share = {}, deliver = {} }}", chance(corrupt.share), corrupt.deliver)
}

fn mtu_value(mtu: Mtu) -> String {
    format!("{{ bytes = {}, notice = {} }}", mtu.bytes, mtu.notice)
}

fn queue_value(queue: Queue) -> String {
    let discipline = match queue.discipline {
        Discipline::DropTail => "discipline = \"drop-tail\"".to_owned(),
        Discipline::Codel { target_ns, interval_ns } => {
            format!("discipline = \"codel\", target = {}, interval = {}", time(target_ns), time(interval_ns))
        }
    };
    format!("{{ bytes = {}, packets = {}, {discipline} }}", queue.bytes, queue.packets)
}
