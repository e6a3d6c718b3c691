//! Links: a profile or a recording, and what is said on top.
//!
//! `profile = "lte-good"` takes a measured link by its name; `trace` reads mahimahi's recordings and `cellular`
//! Akamai's. Every other key replaces one property of both directions; inside of `up` and `down` it replaces that of
//! one. So a link reads as what it is like first, and what is different second.

use std::sync::Arc;

use tern_netsim_link::{
    Amount, Chance, Corrupt, Delay, Discipline, Episode, Episodes, Jitter, LinkSpec, Loss, Mtu, Outage, Queue, Rate,
    Reorder, Spec, Step, Steps, Trace, profile, read_cellular,
};

use crate::fields::{Fields, unit};
use crate::problem::{Sources, instead};
use crate::tree::{Node, Value};
use crate::units;

/// How an outage is named.
pub(crate) const OUTAGES: [(&str, Outage); 2] = [("loses", Outage::Loses), ("stalls", Outage::Stalls)];

/// A link by a profile's name, or by a table; and what to call it.
pub(crate) fn of_node(what: &str, node: &Node, sources: &Sources, f: &Fields<'_>) -> Option<(String, LinkSpec)> {
    if let Value::Text(name) = &node.value {
        return named(name).map_err(|text| f.bag().note(node.spot, text)).ok().map(|link| (name.clone(), link));
    }
    let fields = Fields::of(what, node, f.bag())?;
    let link = of_table(&fields, sources);
    fields.done();
    Some(link)
}

fn named(name: &str) -> Result<LinkSpec, String> {
    let known = instead(name, tern_netsim_link::profile::names());
    profile(name).map(|profile| profile.link).map_err(|_| format!("no profile \"{name}\": {known}"))
}

/// A link by the keys of a table that may have others.
pub(crate) fn of_table(f: &Fields<'_>, sources: &Sources) -> (String, LinkSpec) {
    let bases = ["profile", "trace", "cellular"].map(|key| f.get(key).is_some());
    if bases.iter().filter(|given| **given).count() > 1 {
        f.note("profile", format!("{} is either a profile, or a trace, or cellular: keep one", f.what));
    }
    let mut label = String::new();
    let mut link = LinkSpec::default();
    if let Some(name) = f.text("profile") {
        label = name.to_owned();
        link = named(name).map_err(|text| f.note("profile", text)).unwrap_or_default();
    } else if f.get("trace").is_some() {
        (label, link) = recorded(f, sources);
    } else if f.get("cellular").is_some() {
        (label, link) = akamai(f, sources);
    }
    let based = !label.is_empty();
    let mut changed = false;
    for spec in [&mut link.up, &mut link.down] {
        changed |= properties(f, spec, sources);
    }
    for (key, spec) in [("up", &mut link.up), ("down", &mut link.down)] {
        let Some(node) = f.get(key) else { continue };
        let Some(one) = Fields::of(format!("\"{key}\" of {}", f.what), node, f.bag()) else { continue };
        changed |= properties(&one, spec, sources);
        one.done();
    }
    if let Err(error) = link.check() {
        f.note("rate", error.to_string());
        link = LinkSpec::default();
    }
    if changed {
        label = if based { format!("{label}, changed") } else { "own".to_owned() };
    } else if !based {
        label = "wire".to_owned();
    }
    if let Some(given) = f.text("label") {
        label = given.to_owned();
    }
    (label, link)
}

/// Whether a table says anything of a link besides its delay.
pub(crate) fn is_more_than_delay(f: &Fields<'_>) -> bool {
    let keys = [
        "profile",
        "trace",
        "cellular",
        "rate",
        "jitter",
        "loss",
        "duplicate",
        "reorder",
        "corrupt",
        "mtu",
        "queue",
        "fades",
        "up",
        "down",
        "label",
    ];
    keys.into_iter().filter(|key| f.get(key).is_some()).count() > 0
}

fn recorded(f: &Fields<'_>, sources: &Sources) -> (String, LinkSpec) {
    let spec = |rate| Spec { rate, ..Spec::default() };
    match f.get("trace") {
        Some(node) if matches!(node.value, Value::Table(_)) => {
            let Some(both) = Fields::of(format!("\"trace\" of {}", f.what), node, f.bag()) else {
                return ("trace".to_owned(), LinkSpec::default());
            };
            let mut link = LinkSpec::default();
            let mut labels = Vec::new();
            for (key, way) in [("up", &mut link.up), ("down", &mut link.down)] {
                match (both.text(key), trace(&both, key, sources)) {
                    (Some(path), Some(rate)) => {
                        *way = spec(rate);
                        labels.push(path);
                    }
                    (None, _) => both.missing(key, "\"traces/file\""),
                    _ => {}
                }
            }
            both.done();
            (format!("trace {}", labels.join(" / ")), link)
        }
        _ => {
            let path = f.text("trace").unwrap_or_default();
            let link = trace(f, "trace", sources).map(|rate| LinkSpec::symmetric(spec(rate)));
            (format!("trace {path}"), link.unwrap_or_default())
        }
    }
}

/// A recording of mahimahi's form, by the path under a key.
fn trace(f: &Fields<'_>, key: &'static str, sources: &Sources) -> Option<Rate> {
    let path = sources.beside(f.at(key), f.text(key)?);
    let read = Trace::read_mahimahi(&path);
    let hint = "paths are relative to the file that names them";
    read.map_err(|error| f.note(key, format!("{error}; {hint}"))).ok().map(|trace| Rate::Trace(Arc::new(trace)))
}

fn akamai(f: &Fields<'_>, sources: &Sources) -> (String, LinkSpec) {
    let none = || ("cellular".to_owned(), LinkSpec::default());
    let Some(node) = f.get("cellular") else { return none() };
    let Some(c) = Fields::of(format!("\"cellular\" of {}", f.what), node, f.bag()) else { return none() };
    let file = c.need_text("file", "\"traces/cellular_emulation.sh\"");
    let kind = c.need_text("kind", "\"loss_based\"");
    let condition = c.need_text("condition", "\"median\"");
    c.done();
    let (Some(file), Some(kind), Some(condition)) = (file, kind, condition) else { return none() };
    let path = sources.beside(c.at("file"), file);
    let link = read_cellular(&path, kind, condition).map_err(|error| c.note("file", error.to_string()));
    (format!("cellular {kind} {condition}"), link.unwrap_or_default())
}

/// Replaces what a table says of one direction; whether it said anything.
fn properties(f: &Fields<'_>, spec: &mut Spec, sources: &Sources) -> bool {
    let mut changed = false;
    let mut set = |is_set: bool| changed |= is_set;
    set(rate(f, sources).map(|rate| spec.rate = rate).is_some());
    set(delay(f, &mut spec.delay));
    set(jitter(f).map(|jitter| spec.delay.jitter = jitter).is_some());
    set(loss(f).map(|loss| spec.loss = loss).is_some());
    set(f.unit("duplicate", units::chance).map(|share| spec.duplicate = share).is_some());
    set(reorder(f).map(|reorder| spec.reorder = reorder).is_some());
    set(corrupt(f).map(|corrupt| spec.corrupt = corrupt).is_some());
    set(mtu(f).map(|mtu| spec.mtu = Some(mtu)).is_some());
    let constant = if let Rate::Constant(bps) = spec.rate { Some(bps) } else { None };
    set(queue(f, constant).map(|queue| spec.queue = queue).is_some());
    set(fades(f).map(|fades| spec.fades = fades).is_some());
    changed
}

/// `rate`: a number with its unit, `unlimited`, or a table of steps, quantiles or a recording.
pub(crate) fn rate(f: &Fields<'_>, sources: &Sources) -> Option<Rate> {
    let node = f.get("rate")?;
    if matches!(&node.value, Value::Text(text) if text == "unlimited") {
        return Some(Rate::Unlimited);
    }
    if !matches!(node.value, Value::Table(_)) {
        let bps = f.unit("rate", units::rate)?;
        let rate = Rate::Constant(bps);
        return match (Spec { rate: rate.clone(), ..Spec::default() }).check() {
            Ok(()) => Some(rate),
            Err(error) => {
                f.note("rate", error.to_string());
                None
            }
        };
    }
    let r = Fields::of(format!("\"rate\" of {}", f.what), node, f.bag())?;
    let rate = if r.get("trace").is_some() {
        trace(&r, "trace", sources)
    } else if r.get("trace_ms").is_some() {
        inline_trace(&r)
    } else if r.get("steps").is_some() {
        steps(&r, units::rate).map(Rate::Steps)
    } else if r.get("drawn").is_some() {
        let bps = amount(&r, "drawn", units::rate);
        let span_ns = r.time("span");
        if r.get("span").is_none() {
            r.missing("span", "\"1s\"");
        }
        bps.zip(span_ns).map(|(bps, span_ns)| Rate::Drawn { span_ns, bps })
    } else {
        r.missing("drawn", "\"300kbit/s..10Mbit/s\", or \"steps\", or \"trace\"");
        None
    };
    r.done();
    rate
}

/// A recording that is written into the scenario itself: milliseconds of its opportunities.
fn inline_trace(r: &Fields<'_>) -> Option<Rate> {
    let lines: Vec<String> = r.list("trace_ms").iter().filter_map(Node::plain).collect();
    let trace = Trace::mahimahi("trace_ms", &lines.join("\n"));
    trace.map_err(|error| r.note("trace_ms", error.to_string())).ok().map(|trace| Rate::Trace(Arc::new(trace)))
}

/// `steps = [["0s", "1Mbit/s"], ["10s", "32kbit/s"]]`, and perhaps `repeat`.
fn steps(f: &Fields<'_>, read: impl Fn(&str) -> Result<u64, String>) -> Option<Steps> {
    let mut steps = Vec::new();
    for node in f.list("steps") {
        let (at_ns, value) = pair(node, "steps", f, &read)?;
        steps.push(Step { at_ns, value });
    }
    Some(Steps { steps, repeat_ns: f.time("repeat") })
}

/// `["10s", "32kbit/s"]`.
fn pair(node: &Node, key: &str, f: &Fields<'_>, read: impl Fn(&str) -> Result<u64, String>) -> Option<(u64, u64)> {
    let Value::List(two) = &node.value else {
        f.bag().note(node.spot, format!("\"{key}\" is a list of pairs: write [[\"0s\", ...], [\"10s\", ...]]"));
        return None;
    };
    let [first, second] = two.as_slice() else {
        f.bag().note(node.spot, format!("each of \"{key}\" is a pair: {} values are not two", two.len()));
        return None;
    };
    Some((unit(first, key, f.bag(), units::time)?, unit(second, key, f.bag(), read)?))
}

/// An amount to draw from: `"3s"`, `"20s..60s"`, or quantiles `[["0%", "1s"], ["50%", "4s"], ["100%", "38s"]]`.
fn amount(f: &Fields<'_>, key: &'static str, read: impl Fn(&str) -> Result<u64, String> + Copy) -> Option<Amount> {
    let node = f.get(key)?;
    let Value::List(points) = &node.value else {
        let text = node.plain().unwrap_or_default();
        let (low, high) = f.unit(key, |text| units::range(text, read))?;
        return Some(if text.contains("..") { Amount::Uniform { low, high } } else { Amount::Fixed(low) });
    };
    let mut quantiles = Vec::new();
    for node in points {
        let Value::List(two) = &node.value else {
            f.bag()
                .note(node.spot, format!("\"{key}\" is a list of quantiles: write [[\"0%\", ...], [\"100%\", ...]]"));
            return None;
        };
        let [share, value] = two.as_slice() else {
            f.bag().note(node.spot, "a quantile is a share and a value: write [\"50%\", ...]");
            return None;
        };
        let share = unit(share, key, f.bag(), units::chance)?;
        quantiles.push((share.as_ppb() / 1000, unit(value, key, f.bag(), read)?));
    }
    Some(Amount::Quantiles(quantiles))
}

/// `delay = "25ms"`, or a table; whether it said anything.
fn delay(f: &Fields<'_>, delay: &mut Delay) -> bool {
    let Some(node) = f.get("delay") else { return false };
    if !matches!(node.value, Value::Table(_)) {
        return f.time("delay").map(|ns| delay.base_ns = ns).is_some();
    }
    let Some(d) = Fields::of(format!("\"delay\" of {}", f.what), node, f.bag()) else { return false };
    if let Some(ns) = d.time("base") {
        delay.base_ns = ns;
    }
    if d.get("steps").is_some() {
        delay.extra_ns = steps(&d, units::time);
    }
    if let Some(overtaking) = d.flag("overtaking") {
        delay.overtaking = overtaking;
    }
    d.done();
    true
}

/// `jitter = "10ms"` (uniform), or `{ normal = "3ms" }`, `{ exponential = "15ms" }`.
pub(crate) fn jitter(f: &Fields<'_>) -> Option<Jitter> {
    let node = f.get("jitter")?;
    match &node.value {
        Value::Text(text) if text == "none" => Some(Jitter::None),
        Value::Table(_) => {
            let j = Fields::of(format!("\"jitter\" of {}", f.what), node, f.bag())?;
            let uniform = j.time("uniform").map(|within_ns| Jitter::Uniform { within_ns });
            let normal = j.time("normal").map(|sigma_ns| Jitter::Normal { sigma_ns });
            let exponential = j.time("exponential").map(|mean_ns| Jitter::Exponential { mean_ns });
            if uniform.or(normal).or(exponential).is_none() {
                j.missing("uniform", "\"10ms\", or \"normal\", or \"exponential\"");
            }
            j.done();
            uniform.or(normal).or(exponential)
        }
        _ => f.time("jitter").map(|within_ns| Jitter::Uniform { within_ns }),
    }
}

/// `loss = "2%"` (each on its own), bursts, or slots of time.
pub(crate) fn loss(f: &Fields<'_>) -> Option<Loss> {
    let node = f.get("loss")?;
    match &node.value {
        Value::Text(text) if text == "none" => return Some(Loss::None),
        Value::Table(_) => {}
        _ => return f.unit("loss", units::chance).map(Loss::Random),
    }
    let l = Fields::of(format!("\"loss\" of {}", f.what), node, f.bag())?;
    let chance = |key| l.unit(key, units::chance);
    let loss = if l.get("share").is_some() {
        let burst = l.whole("burst", 1, 1_000_000).and_then(|burst| u32::try_from(burst).ok());
        if l.get("burst").is_none() {
            l.missing("burst", "8");
        }
        chance("share").zip(burst).map(|(share, burst)| Loss::bursts(share, burst))
    } else if l.get("to_bad").is_some() {
        let (to_bad, to_good) = (chance("to_bad"), chance("to_good"));
        if l.get("to_good").is_none() {
            l.missing("to_good", "\"25%\"");
        }
        let (good, bad) = (chance("good").unwrap_or(Chance::NEVER), chance("bad").unwrap_or(Chance::ALWAYS));
        to_bad.zip(to_good).map(|(to_bad, to_good)| Loss::Bursts { to_bad, to_good, good, bad })
    } else if l.get("slots").is_some() {
        episodes(&l, "slots", |slot| slot.unit("loss", units::chance)).map(Loss::Slots)
    } else {
        l.missing("share", "\"1.5%\" and burst = 8, or \"to_bad\" and \"to_good\", or \"slots\"");
        None
    };
    l.done();
    loss
}

/// `[{ gap = "1s..2s", for = "50ms", ... }]`.
fn episodes<T>(f: &Fields<'_>, key: &'static str, what: impl Fn(&Fields<'_>) -> Option<T>) -> Option<Episodes<T>> {
    let mut episodes = Vec::new();
    for node in f.list(key) {
        let one = Fields::of(format!("one of \"{key}\" of {}", f.what), node, f.bag())?;
        let (gap, length) = (amount(&one, "gap", units::time), amount(&one, "for", units::time));
        for (key, given) in [("gap", &gap), ("for", &length)] {
            if given.is_none() && one.get(key).is_none() {
                one.missing(key, "\"1s..2s\"");
            }
        }
        let what = what(&one);
        one.done();
        episodes.push(Episode { gap_ns: gap?, length_ns: length?, what: what? });
    }
    Some(Episodes(episodes))
}

/// `reorder = { share = "1%", by = "30ms" }`.
pub(crate) fn reorder(f: &Fields<'_>) -> Option<Reorder> {
    let r = Fields::of(format!("\"reorder\" of {}", f.what), f.get("reorder")?, f.bag())?;
    let (share, by_ns) = (r.unit("share", units::chance), r.time("by"));
    if share.is_none() || by_ns.is_none() {
        r.note("share", "\"reorder\" needs how many and by how much: write { share = \"1%\", by = \"30ms\" }");
    }
    r.done();
    share.zip(by_ns).map(|(share, by_ns)| Reorder { share, by_ns })
}

/// `corrupt = "0.1%"`, or `{ share = "0.1%", deliver = true }`.
pub(crate) fn corrupt(f: &Fields<'_>) -> Option<Corrupt> {
    let node = f.get("corrupt")?;
    if !matches!(node.value, Value::Table(_)) {
        return f.unit("corrupt", units::chance).map(|share| Corrupt { share, deliver: false });
    }
    let c = Fields::of(format!("\"corrupt\" of {}", f.what), node, f.bag())?;
    let share = c.unit("share", units::chance);
    if c.get("share").is_none() {
        c.missing("share", "\"0.1%\"");
    }
    let deliver = c.flag("deliver").unwrap_or(false);
    c.done();
    share.map(|share| Corrupt { share, deliver })
}

/// `mtu = 1280`, or `{ bytes = 1280, notice = false }`.
pub(crate) fn mtu(f: &Fields<'_>) -> Option<Mtu> {
    let node = f.get("mtu")?;
    let (bytes, notice) = if matches!(node.value, Value::Table(_)) {
        let m = Fields::of(format!("\"mtu\" of {}", f.what), node, f.bag())?;
        if m.get("bytes").is_none() {
            m.missing("bytes", "1280");
        }
        let (bytes, notice) = (m.whole("bytes", 68, 65_535), m.flag("notice").unwrap_or(true));
        m.done();
        (bytes, notice)
    } else {
        (f.whole("mtu", 68, 65_535), true)
    };
    bytes.and_then(|bytes| u32::try_from(bytes).ok()).map(|bytes| Mtu { bytes, notice })
}

/// `queue = { wait = "2s" }` (of a constant rate), or `{ bytes = "64kB", packets = 100, discipline = "codel" }`.
pub(crate) fn queue(f: &Fields<'_>, constant_bps: Option<u64>) -> Option<Queue> {
    let q = Fields::of(format!("\"queue\" of {}", f.what), f.get("queue")?, f.bag())?;
    let mut queue = Queue::default();
    if let Some(wait_ns) = q.time("wait") {
        match constant_bps {
            Some(bps) => queue = Queue::bloated(bps, wait_ns / 1_000_000),
            None => q.note("wait", "\"wait\" needs a constant rate beside it: write rate = \"1Mbit/s\", or give bytes"),
        }
    }
    if let Some(node) = q.get("bytes") {
        let bytes = if matches!(node.value, Value::Whole(_)) {
            q.whole("bytes", 0, u64::MAX)
        } else {
            q.unit("bytes", units::size)
        };
        queue.bytes = bytes.unwrap_or(queue.bytes);
    }
    let packets = q.whole("packets", 1, u64::from(u32::MAX)).and_then(|packets| u32::try_from(packets).ok());
    queue.packets = packets.unwrap_or(queue.packets);
    let words = [("drop-tail", Discipline::DropTail), ("codel", Discipline::CODEL)];
    queue.discipline = q.one_of("discipline", &words).unwrap_or(queue.discipline);
    if let Discipline::Codel { target_ns, interval_ns } = &mut queue.discipline {
        *target_ns = q.time("target").unwrap_or(*target_ns);
        *interval_ns = q.time("interval").unwrap_or(*interval_ns);
    }
    q.done();
    Some(queue)
}

/// `fades = [{ gap = "60s..120s", for = "20s..60s", how = "loses" }]`, or `"none"`.
fn fades(f: &Fields<'_>) -> Option<Option<Episodes<Outage>>> {
    if matches!(f.get("fades").map(|node| &node.value), Some(Value::Text(text)) if text == "none") {
        return Some(None);
    }
    f.get("fades")?;
    let how = |one: &Fields<'_>| match one.get("how") {
        Some(_) => one.one_of("how", &OUTAGES),
        None => Some(Outage::Loses),
    };
    episodes(f, "fades", how).map(Some)
}
