//! What checks found, so much of it as a human can use.

use std::collections::BTreeMap;

use crate::limits::{FINDINGS_PER_CHECK, NAMES_PER_FINDING};
use crate::verdict::{Finding, Verdict};

/// Collects; of one check and verdict only the first [`FINDINGS_PER_CHECK`] are kept, the others counted.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    kept: Vec<Finding>,
    counts: BTreeMap<(String, Verdict), (usize, u64)>,
}

impl Findings {
    /// Adds one. The text is made only if it is kept.
    pub(crate) fn add(&mut self, check: &str, verdict: Verdict, at_ns: u64, text: impl FnOnce() -> String) {
        let (count, left_ns) = self.counts.entry((check.to_owned(), verdict)).or_default();
        *count += 1;
        if *count <= FINDINGS_PER_CHECK {
            self.kept.push(Finding { check: check.to_owned(), verdict, at_ns, text: text() });
        } else if *count == FINDINGS_PER_CHECK + 1 {
            *left_ns = at_ns;
        }
    }

    /// Something that must hold does not.
    pub(crate) fn fail(&mut self, check: &str, at_ns: u64, text: impl FnOnce() -> String) {
        self.add(check, Verdict::Fail, at_ns, text);
    }

    /// The worst, and all: the worst first, then in order of time; what was left out is told with its number.
    pub(crate) fn finish(mut self) -> (Verdict, Vec<Finding>) {
        for ((check, verdict), (count, at_ns)) in self.counts {
            if count > FINDINGS_PER_CHECK {
                let text = format!("and {} more like the {check} findings above", count - FINDINGS_PER_CHECK);
                self.kept.push(Finding { check, verdict, at_ns, text });
            }
        }
        self.kept.sort_by_key(|f| (std::cmp::Reverse(f.verdict), f.at_ns));
        (self.kept.first().map_or(Verdict::Pass, |f| f.verdict), self.kept)
    }
}

/// A list of names for a sentence: `a, b and 3 more`.
pub(crate) fn names<'a>(all: impl IntoIterator<Item = &'a str>) -> String {
    let all: Vec<&str> = all.into_iter().collect();
    if all.len() > NAMES_PER_FINDING {
        return format!("{} and {} more", all[..NAMES_PER_FINDING].join(", "), all.len() - NAMES_PER_FINDING);
    }
    all.join(", ")
}

/// A time for a sentence: `12.345 s`, or `850 ms`.
pub(crate) fn time(ns: u64) -> String {
    let ms = ns.div_ceil(1_000_000);
    if ms < 1000 { format!("{ms} ms") } else { format!("{}.{:03} s", ms / 1000, ms % 1000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_findings_is_counted() {
        let mut findings = Findings::default();
        findings.add("herd", Verdict::Unknown, 0, || "first in time".into());
        for i in 0..1000 {
            findings.fail("order", i, || format!("{i}"));
        }
        let (verdict, all) = findings.finish();
        assert_eq!((verdict, all.len()), (Verdict::Fail, FINDINGS_PER_CHECK + 2));
        assert_eq!(all[0].text, "0");
        assert_eq!(all[FINDINGS_PER_CHECK].text, "and 980 more like the order findings above");
        assert_eq!(all[FINDINGS_PER_CHECK + 1].verdict, Verdict::Unknown);
    }

    #[test]
    fn words_for_humans() {
        assert_eq!(names(["a", "b"]), "a, b");
        assert_eq!(names(["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d, e and 2 more");
        assert_eq!(
            (time(0), time(1), time(850_000_000), time(12_345_000_000)),
            ("0 ms".into(), "1 ms".into(), "850 ms".into(), "12.345 s".into())
        );
    }
}
