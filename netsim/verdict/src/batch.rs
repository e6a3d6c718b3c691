//! Many runs: each in a few words, for terminals, for CI systems, and for a report of all.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::history::Run;
use crate::judge::Judgement;
use crate::verdict::{Finding, Verdict};

/// A run that was judged, without its history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRun {
    /// The scenario's name.
    pub scenario: String,
    /// Its seed.
    pub seed: u64,
    /// Which point of the scenario's matrix.
    pub point: BTreeMap<String, String>,
    /// `sim` or `tun`.
    pub driver: String,
    /// A bug that was switched on for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutant: Option<String>,
    /// What it is worth.
    pub verdict: Verdict,
    /// Why.
    pub findings: Vec<Finding>,
    /// What was measured.
    pub figures: BatchFigures,
    /// What replays it.
    pub replay: String,
    /// Where its own report is, relative to that of the batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<String>,
}

/// What is kept of the figures of one run among many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchFigures {
    /// How long it took, in nanoseconds of the run's own clock.
    pub duration_ns: u64,
    /// In one line, as [`crate::Figures::line`] says it.
    pub line: String,
    /// Messages.
    pub invoked: u64,
    /// Of which devices were told that they are durable.
    pub acked: u64,
    /// Appearances on devices.
    pub shown: u64,
    /// Median of delivery, in nanoseconds.
    pub deliver_p50_ns: u64,
    /// 99th percentile, in nanoseconds.
    pub deliver_p99_ns: u64,
    /// Until everything was calm, in nanoseconds.
    pub converged_ns: Option<u64>,
    /// The longest time after each fault, in nanoseconds, and its limit.
    pub recovered_ns: BTreeMap<String, (u64, Option<u64>)>,
    /// What should happen sometimes: how often it must, and did.
    pub sometimes: BTreeMap<String, (u64, u64)>,
}

impl BatchRun {
    /// Of a run that was judged.
    pub fn of(run: &Run, judged: &Judgement) -> Self {
        let figures = &judged.figures;
        let mut recovered_ns: BTreeMap<String, (u64, Option<u64>)> = BTreeMap::new();
        for recovery in &figures.recoveries {
            if let Some(took_ns) = recovery.took_ns {
                let longest = recovered_ns.entry(recovery.fault.clone()).or_insert((0, recovery.limit_ns));
                longest.0 = longest.0.max(took_ns);
            }
        }
        Self {
            scenario: run.scenario.clone(),
            seed: run.seed,
            point: run.point.clone(),
            driver: run.driver.clone(),
            mutant: run.mutant.clone(),
            verdict: judged.verdict,
            findings: judged.findings.clone(),
            figures: BatchFigures {
                duration_ns: figures.duration_ns,
                line: figures.line(),
                invoked: figures.invoked,
                acked: figures.acked,
                shown: figures.shown,
                deliver_p50_ns: figures.delivery.median_ns(),
                deliver_p99_ns: figures.delivery.percentile_ns(99),
                converged_ns: figures.converged_ns,
                recovered_ns,
                sometimes: figures.sometimes.clone(),
            },
            replay: run.replay.clone(),
            page: None,
        }
    }

    /// Seed, point, and what else tells it from other runs of the scenario.
    pub fn name(&self) -> String {
        let mut name = format!("seed {}", self.seed);
        for (key, value) in &self.point {
            let _ = write!(name, " {key}={value}");
        }
        if self.driver != "sim" {
            let _ = write!(name, " {}", self.driver);
        }
        if let Some(mutant) = &self.mutant {
            let _ = write!(name, " mutant={mutant}");
        }
        name
    }
}

/// The worst of all; UNKNOWN if there are none, because then nothing was shown.
pub fn worst(runs: &[BatchRun]) -> Verdict {
    runs.iter().map(|r| r.verdict).max().unwrap_or(Verdict::Unknown)
}

/// One run for a terminal, each line ended: verdict, figures, findings, and if it did not pass, what replays it.
pub fn summary(run: &BatchRun) -> String {
    let mut text = format!("{:<7} {} {}\n", run.verdict, plain(&run.scenario), plain(&run.name()));
    let _ = writeln!(text, "        {}", plain(&run.figures.line));
    for finding in &run.findings {
        let at = crate::findings::time(finding.at_ns);
        let _ = writeln!(text, "        {} {} at {at}: {}", finding.verdict, finding.check, plain(&finding.text));
    }
    if run.verdict != Verdict::Pass {
        let _ = writeln!(text, "        replay: {}", plain(&run.replay));
    }
    text
}

/// The last line of a batch for a terminal: how many runs, and how many of each verdict.
pub fn totals(runs: &[BatchRun]) -> String {
    let count = |verdict| runs.iter().filter(|r| r.verdict == verdict).count();
    let mut text = format!("{} runs: {} passed", runs.len(), count(Verdict::Pass));
    for verdict in [Verdict::Fail, Verdict::Invalid, Verdict::Unknown] {
        if count(verdict) > 0 {
            let _ = write!(text, ", {} {verdict}", count(verdict));
        }
    }
    text.push('\n');
    text
}

/// What a terminal must not be told by a message: control characters are written out.
fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::Example;
    use crate::history::Event;

    fn run(example: &Example) -> BatchRun {
        let lines = example.lines();
        let Event::Run(run) = &lines[0].event else { panic!("no run") };
        BatchRun { replay: "tern-netsim run x.toml --seed 7".into(), ..BatchRun::of(run, &crate::judge(&lines)) }
    }

    #[test]
    fn a_run_that_passed_is_two_lines() {
        let text = summary(&run(&Example::good().ends_well()));
        assert!(text.starts_with("PASS    example seed 0\n        1 sent, 1 acked, 3 shown, 0 lost"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_run_that_failed_says_why_and_how_to_see_it_again() {
        let text = summary(&run(&Example::good().shown("bob-phone", "\x1b[2J\n").ends_well()));
        assert!(text.contains("FAIL phantoms at 1.400 s: \\u{1b}[2J\\n appears on bob-phone"), "{text}");
        assert!(text.ends_with("replay: tern-netsim run x.toml --seed 7\n"));
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn a_batch_is_worth_what_its_worst_run_is() {
        let good = run(&Example::good().ends_well());
        let bad = BatchRun { verdict: Verdict::Invalid, ..good.clone() };
        assert_eq!((worst(std::slice::from_ref(&good)), worst(&[])), (Verdict::Pass, Verdict::Unknown));
        assert_eq!(worst(&[good.clone(), bad.clone()]).exit_code(), 1);
        assert_eq!(totals(&[good, bad]), "2 runs: 1 passed, 1 INVALID\n");
    }
}
