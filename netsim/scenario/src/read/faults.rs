//! Faults: what, whom, when, how long.

use std::collections::{BTreeMap, BTreeSet};

use crate::draws::Draws;
use crate::fields::{Fields, things};
use crate::limits::FAULTS_MAX;
use crate::plan::{Effect, FaultPlan};
use crate::problem::{Bag, Sources, Spot, instead};
use crate::read::effects::{Hit, KINDS, Stage};
use crate::read::id_flaw;
use crate::read::loads::known_device;
use crate::read::spans::{Spans, Timed};
use crate::read::when::{self, Written};
use crate::tree::Table;

/// One fault as written, all its repetitions and devices with it.
struct Raw {
    base: String,
    kind: String,
    spot: Spot,
    when: Written,
    lasts_ns: Option<(u64, u64)>,
    at_once: bool,
    /// How much later each repetition begins: as drawn, and earliest and latest. `None`: it fits as it was drawn.
    later: Vec<(u64, Option<(u64, u64)>)>,
    hits: Vec<Hit>,
    /// It names its devices by a pattern.
    many: bool,
}

/// All faults, and when they can be.
pub(crate) fn read(
    root: &Table,
    stage: &Stage<'_>,
    sources: &Sources,
    duration_ns: u64,
    draws: &Draws,
    bag: &Bag,
) -> (Vec<FaultPlan>, Spans, BTreeMap<String, Vec<String>>) {
    let nodes = things(root, "fault", bag);
    let mut raws = Vec::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in nodes {
        let Some(f) = Fields::of("a fault", node, bag) else { continue };
        let kind = f.need_text("kind", "\"outage\"").unwrap_or_default();
        let base = f.text("id").map_or_else(
            || {
                let count = counts.entry(kind).or_default();
                *count += 1;
                format!("{kind}-{count}")
            },
            str::to_owned,
        );
        let f = f.called(format!("fault \"{base}\""));
        if f.get("id").is_some()
            && let Some(flaw) = id_flaw(&base)
        {
            f.note("id", flaw);
        }
        raws.extend(raw(&f, base, kind, stage, sources, duration_ns, draws));
    }
    write_out(&raws, duration_ns, draws, bag)
}

fn raw(
    f: &Fields<'_>,
    base: String,
    kind: &str,
    stage: &Stage<'_>,
    sources: &Sources,
    duration_ns: u64,
    draws: &Draws,
) -> Option<Raw> {
    let known = KINDS.iter().find(|one| one.name == kind);
    let when = when::read(f);
    let target = f.need_text("target", "\"alice-phone\", \"alice-phone.cell\", \"eu\" or \"eu<->us\"");
    let Some(known) = known else {
        if !kind.is_empty() {
            f.note("kind", format!("no fault of kind \"{kind}\": {}", instead(kind, KINDS.iter().map(|one| one.name))));
        }
        return None;
    };
    let lasts_ns = if known.lasts { f.times("for") } else { None };
    if lasts_ns.is_some_and(|(least, _)| least == 0) {
        f.note(
            "for",
            "a fault that lasts 0s hits nothing: write a longer time, or leave \"for\" out to last until all is healed",
        );
    }
    let draw = |field: &str, range| draws.within("fault", &base, field, range);
    let hits = target.map(|target| stage.hits(known, target, f, sources, &draw)).unwrap_or_default();
    let later = repetitions(f, when.as_ref(), lasts_ns, duration_ns, &draw);
    f.done();
    let when = when?;
    if let Written::On { trigger, .. } = &when {
        known_device(trigger.device.as_deref(), stage.cast, f);
    }
    let spot = if f.entries().contains_key("at") { f.at("at") } else { f.at("when") };
    let many = target.is_some_and(|target| target.contains('*'));
    Some(Raw { base, kind: kind.to_owned(), spot, when, lasts_ns, at_once: known.at_once, later, hits, many })
}

/// How much later each repetition begins; one that is not repeated begins once.
fn repetitions(
    f: &Fields<'_>,
    when: Option<&Written>,
    lasts_ns: Option<(u64, u64)>,
    duration_ns: u64,
    draw: &dyn Fn(&str, (u64, u64)) -> u64,
) -> Vec<(u64, Option<(u64, u64)>)> {
    let once = vec![(0, Some((0, 0)))];
    let every = f.times("every");
    let times = f.whole("times", 1, FAULTS_MAX as u64);
    let Some(every) = every else {
        if times.is_some() && f.get("every").is_none() {
            f.missing("every", "\"10s\", the time from one beginning to the next");
        }
        return once;
    };
    if every.0 == 0 || lasts_ns.is_some_and(|(_, longest)| longest > every.0) {
        f.note("every", "the next one can begin before this one ends: write a longer time than \"for\"");
        return once;
    }
    let first_ns = match when {
        Some(Written::At(range)) => draw("at", *range),
        Some(Written::On { .. }) => {
            f.note("every", "what waits for the system happens once: use nth(...) for each, or \"at\"");
            return once;
        }
        _ if times.is_none() => {
            f.missing("times", "5, as the first one's time is not known");
            return once;
        }
        _ => 0,
    };
    let (mut later, mut sum, mut bounds) = (once, 0_u64, (0_u64, 0_u64));
    loop {
        let number = later.len();
        if number >= FAULTS_MAX || times.is_some_and(|times| number as u64 >= times) {
            return later;
        }
        sum = sum.saturating_add(draw(&format!("every {number}"), every));
        if times.is_none() && first_ns.saturating_add(sum) >= duration_ns {
            return later;
        }
        bounds = (bounds.0.saturating_add(every.0), bounds.1.saturating_add(every.1));
        // Without a number of times it goes on as long as there is time, whatever is drawn.
        later.push((sum, times.map(|_| bounds)));
    }
}

/// One plan for each repetition and device.
fn write_out(
    raws: &[Raw],
    duration_ns: u64,
    draws: &Draws,
    bag: &Bag,
) -> (Vec<FaultPlan>, Spans, BTreeMap<String, Vec<String>>) {
    let (mut plans, mut timed, mut bases) = (Vec::new(), BTreeMap::new(), BTreeMap::<String, Vec<String>>::new());
    let explicit: BTreeSet<&str> = raws.iter().map(|raw| raw.base.as_str()).collect();
    for raw in raws {
        let drawn = |field: &str, range| draws.within("fault", &raw.base, field, range);
        for (number, (later_ns, bounds)) in raw.later.iter().enumerate() {
            let repeated = match raw.later.len() {
                1 => raw.base.clone(),
                _ => format!("{}-{}", raw.base, number + 1),
            };
            let lasts = format!("for {number}");
            let lasts_ns = raw.lasts_ns.map(|range| drawn(if number == 0 { "for" } else { &lasts }, range));
            let when = raw.when.draw(*later_ns, |range| drawn("at", range));
            for hit in &raw.hits {
                let id = if raw.many { format!("{repeated}@{}", hit.name) } else { repeated.clone() };
                let Raw { spot, at_once, .. } = *raw;
                let span = match (&raw.when, bounds) {
                    (Written::At(range), None) => {
                        let at_ns = drawn("at", *range);
                        Written::At((at_ns, at_ns))
                    }
                    _ => raw.when.clone(),
                };
                let later_ns = bounds.unwrap_or((*later_ns, *later_ns));
                let one = Timed { spot, when: span, later_ns, lasts_ns: raw.lasts_ns, at_once };
                let taken = timed.insert(id.clone(), one).is_some();
                if taken || (id != raw.base && explicit.contains(id.as_str())) {
                    bag.note(spot, format!("a second fault \"{id}\": give it another id, or leave one out"));
                }
                bases.entry(raw.base.clone()).or_default().push(id.clone());
                let (kind, target): (String, String) = (raw.kind.clone(), hit.target.clone());
                let (when, effect): (_, Effect) = (when.clone(), hit.effect.clone());
                plans.push(FaultPlan { id, kind, target, when, lasts_ns, effect });
            }
        }
    }
    if plans.len() > FAULTS_MAX {
        let spot = raws.last().map_or(Spot { file: 0, at: 0 }, |raw| raw.spot);
        bag.note(spot, format!("{} faults are more than {FAULTS_MAX}: repeat them less often", plans.len()));
    }
    (plans, Spans::new(timed, duration_ns, bag), bases)
}
