//! Histories to draw: a calm run, one in which much goes wrong, one that is hostile, one that is huge, and batches.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use tern_netsim_verdict::model::{Model, Random};
use tern_netsim_verdict::{BatchRun, Event, Judgement, Line, Run, judge};

pub const S: u64 = 1_000_000_000;

pub fn model(seed: u64) -> Model {
    Model {
        seed,
        regions: 3,
        users: 4,
        devices: 2,
        messages: 140,
        duration_ns: 90 * S,
        faults: 5,
        removal: false,
        link_samples: true,
    }
}

fn run_of(lines: &mut [Line]) -> &mut Run {
    match &mut lines[0].event {
        Event::Run(run) => run,
        _ => panic!("no run"),
    }
}

/// A run that passes, with limits that it keeps.
pub fn calm() -> Vec<Line> {
    let mut lines = model(11).lines();
    let run = run_of(&mut lines);
    run.scenario = "metro-commute".into();
    run.about = "Phones go under ground and come back; nobody misses anything.".into();
    run.replay = "tern-netsim run netsim/scenarios/metro-commute.toml --seed 11 --point access=lte".into();
    for (fault, _, _) in run.cast.faults.clone() {
        run.expect.recover_within_ns.insert(fault, 9 * S);
    }
    lines
}

/// One in which a message is lost, one is shown twice, a phantom appears, and a limit is missed.
pub fn wrong() -> Vec<Line> {
    let mut lines = model(23).lines();
    let run = run_of(&mut lines);
    run.scenario = "region-killed-unreplicated".into();
    run.about =
        "A region dies with acked messages that no other region has; it comes back, and nothing is lost.".into();
    run.replay = "tern-netsim run netsim/scenarios/region-killed-unreplicated.toml --seed 23 --point access=lte".into();
    run.mutant = Some("ack-before-commit".into());
    for (fault, _, _) in run.cast.faults.clone() {
        run.expect.recover_within_ns.insert(fault, S / 2);
    }
    run.sometimes.insert("ack_lost_after_commit".into(), 2);
    let shown: Vec<usize> = (0..lines.len()).filter(|i| matches!(lines[*i].event, Event::Shown { .. })).collect();
    let at = shown[shown.len() / 2];
    let mut again = lines[at].clone();
    again.at_ns = lines[at + 40].at_ns;
    let Event::Shown { message: lost, .. } = again.event.clone() else { panic!("not shown") };
    lines.insert(at + 41, again);
    for line in &mut lines {
        if let Event::Timeline { messages, device, .. } = &mut line.event
            && device.starts_with("bob")
        {
            messages.retain(|m| *m != lost);
        }
    }
    let mut phantom = lines[at].clone();
    if let Event::Shown { message, .. } = &mut phantom.event {
        *message = "<img src=x onerror=alert(1)>".into();
    }
    lines.insert(at, phantom);
    lines
}

/// Every name tries to be more than text.
pub fn hostile() -> Vec<Line> {
    let evil = "<script>alert('x')</script>\"><b onmouseover=alert(2)>&amp;\u{202e}";
    let text: Vec<String> = model(5)
        .lines()
        .iter()
        .map(|line| {
            let mut json = serde_json::to_string(line).unwrap();
            let quoted = serde_json::to_string(evil).unwrap();
            let inner = &quoted[1..quoted.len() - 1];
            for name in ["team", "alice-phone", "outage-1", "\"lte\"", "access", "perfect-delivery", "reconnected"] {
                let bare = name.trim_matches('"');
                json = json.replace(bare, &format!("{inner}{bare}"));
            }
            json
        })
        .collect();
    let mut lines: Vec<Line> = text.iter().map(|json| serde_json::from_str(json).unwrap()).collect();
    run_of(&mut lines).expect.deliver_p99_ns = Some(1);
    lines
}

/// Many devices, messages and faults.
pub fn huge() -> Vec<Line> {
    let model = Model { users: 60, messages: 2500, faults: 120, duration_ns: 600 * S, removal: true, ..model(3) };
    model.lines()
}

pub fn judged(lines: &[Line]) -> Judgement {
    judge(lines)
}

/// Some scenarios, points and seeds, of which some go wrong.
pub fn batch(scenarios: usize, seeds: u64) -> Vec<BatchRun> {
    let names = ["elevator", "metro-commute", "region-partition", "reconnect-herd", "udp-blocked", "satellite"];
    let (good, bad) = (calm(), wrong());
    let (good_judged, bad_judged) = (judged(&good), judged(&bad));
    let mut runs = Vec::new();
    for scenario in 0..scenarios {
        for access in ["lte-driving", "3g-commute"] {
            let mut random = Random(scenario as u64);
            for seed in 0..seeds {
                let dice = random.below(40);
                let (lines, judgement) = if dice == 0 { (&bad, &bad_judged) } else { (&good, &good_judged) };
                let Event::Run(run) = &lines[0].event else { panic!("no run") };
                let mut one = BatchRun::of(run, judgement);
                one.scenario = match names.get(scenario) {
                    Some(name) => (*name).to_owned(),
                    None => format!("scenario-{scenario}"),
                };
                one.seed = seed;
                one.mutant = None;
                one.point = [("access".to_owned(), access.to_owned())].into();
                one.replay = format!(
                    "tern-netsim run netsim/scenarios/{}.toml --seed {seed} --point access={access}",
                    one.scenario
                );
                if dice == 1 {
                    one.verdict = tern_netsim_verdict::Verdict::Unknown;
                    one.findings = bad_judged.findings.iter().rev().take(1).cloned().collect();
                }
                one.page = (dice == 0).then(|| format!("{}-{access}-{seed}.html", one.scenario));
                runs.push(one);
            }
        }
    }
    runs
}
