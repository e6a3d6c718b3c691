//! From a history to a verdict.
//!
//! Checks are run only as far as the history carries them. If its form is wrong (see `facts`), nothing is
//! checked but what the system itself calls broken. If it was cut off, nothing is said of the end that it does not
//! have, but what was seen until then was seen. So nothing that is said to FAIL is a consequence of a bad history, and
//! FAIL may outrank INVALID.

use serde::{Deserialize, Serialize};

use crate::checks::{
    agreement, convergence, coverage, delivery, duplicates, durability, load, order, phantoms, recovery, settings,
    trouble,
};
use crate::concern::BeyondReach;
use crate::facts::Facts;
use crate::figures::Figures;
use crate::findings::Findings;
use crate::history::{Event, Line};
use crate::verdict::{Finding, Verdict};

/// What a run is worth, why, and what was measured in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// The worst of all findings; PASS if there is none.
    pub verdict: Verdict,
    /// The worst first, then in order of time.
    pub findings: Vec<Finding>,
    /// What was measured.
    pub figures: Figures,
}

/// Judges a history. Never fails: a history that makes no sense is INVALID.
pub fn judge(lines: &[Line]) -> Judgement {
    let mut findings = Findings::default();
    let figures = match Facts::of(lines, &mut findings) {
        Some(facts) => check(&facts, &mut findings),
        None => {
            for line in lines {
                if let Event::Broken { who, text } = &line.event {
                    findings.fail("broken", line.at_ns, || format!("{who}: {text}"));
                }
            }
            Figures::default()
        }
    };
    let (verdict, findings) = findings.finish();
    Judgement { verdict, findings, figures }
}

fn check(facts: &Facts<'_>, findings: &mut Findings) -> Figures {
    let mut figures = Figures::count(facts);
    trouble::check(facts, findings);
    figures.duplicated = duplicates::check(facts, findings);
    figures.phantoms = phantoms::check(facts, findings);
    let disorder = order::check(facts, findings);
    (figures.out_of_order, figures.late) = (disorder.out_of_order, disorder.late);
    agreement::check(facts, findings);
    figures.connects_per_second_most = load::herd(facts, findings);
    let latencies = delivery::check(facts, findings);
    (figures.delivery, figures.acks) = (latencies.shown, latencies.acked);
    (figures.delivery_by_phase, figures.delivery_by_fault) = (latencies.by_phase, latencies.by_fault);
    if facts.end.is_none() {
        findings.add("history", Verdict::Invalid, facts.last_ns, || "the history has no end: it was cut off".into());
        return figures;
    }
    let beyond = BeyondReach::of(facts);
    let losses = durability::check(facts, &beyond, findings);
    (figures.lost, figures.lost_allowed) = (losses.lost.len() as u64, losses.allowed.len() as u64);
    figures.unacked = losses.unacked;
    figures.converged_ns = convergence::check(facts, &beyond, &losses.allowed, findings);
    settings::check(facts, &beyond, findings);
    figures.recoveries = recovery::check(facts, findings);
    load::traffic(facts, findings);
    load::presence(facts, findings);
    coverage::check(facts, findings);
    figures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::Example;

    fn invalid(lines: &[Line]) -> String {
        let judged = judge(lines);
        assert_eq!(judged.verdict, Verdict::Invalid, "{judged:?}");
        judged.findings[0].text.clone()
    }

    #[test]
    fn a_history_whose_form_is_wrong_is_invalid() {
        let good = Example::good().ends_well().lines();
        assert_eq!(judge(&good).verdict, Verdict::Pass);
        assert_eq!(invalid(&[]), "the history does not begin with what was run");
        assert_eq!(invalid(&good[1..]), "the history does not begin with what was run");
        assert_eq!(invalid(&good[..good.len() - 1]), "the history has no end: it was cut off");
        let mut descends = good.clone();
        descends[2].at_ns = 1 << 60;
        assert_eq!(invalid(&descends), "line 4: time descends");
        let mut twice = good.clone();
        twice.extend(good.last().cloned());
        assert!(invalid(&twice).contains("something follows the end"));
    }

    #[test]
    fn names_that_the_cast_does_not_have_are_invalid() {
        let shown = |device: &str, conversation: &str| Event::Shown {
            device: device.into(),
            conversation: conversation.into(),
            message: "alice-phone/1".into(),
            new: false,
        };
        let of = |event: Event| invalid(&Example::good().event(event).ends_well().lines());
        assert_eq!(of(shown("dave", "team")), "no device of the cast is named dave");
        assert_eq!(of(shown("bob-phone", "club")), "no conversation of the cast is named club");
        let region = Event::Commit { region: "mars".into(), era: None, message: "alice-phone/1".into() };
        assert_eq!(of(region), "no region of the cast is named mars");
        let stopped = Event::Stop { who: "eu-e9".into(), how: "killed".into() };
        assert_eq!(of(stopped), "no device, edge or region of the cast is named eu-e9");
        let acked = |device: &str, message: &str| Event::Acked { device: device.into(), message: message.into() };
        assert!(of(acked("alice-phone", "alice-phone/7")).contains("was never invoked"));
        assert!(of(acked("bob-phone", "alice-phone/1")).contains("is a message of alice-phone"));
    }

    #[test]
    fn what_was_seen_before_a_history_breaks_off_was_seen() {
        let twice = Example::good().shown("bob-phone", "alice-phone/1").lines();
        let judged = judge(&twice);
        assert_eq!((judged.verdict, judged.figures.lost), (Verdict::Fail, 0));
        assert_eq!(judged.findings.iter().map(|f| f.check.as_str()).collect::<Vec<_>>(), ["duplicates", "history"]);
    }

    #[test]
    fn what_is_broken_is_told_of_any_history() {
        let broken = Event::Broken { who: "eu".into(), text: "panicked".into() };
        let judged = judge(&[Line { at_ns: 7, event: broken }]);
        assert_eq!((judged.verdict, judged.findings[0].at_ns), (Verdict::Fail, 7));
    }
}
