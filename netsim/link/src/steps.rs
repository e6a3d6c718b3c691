//! Values that change at known moments: a rate that falls in a tunnel, a delay that jumps with the satellite.

/// A value that holds from a moment on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// From when, in nanoseconds since the world began, or since the list began anew.
    pub at_ns: u64,
    /// The value.
    pub value: u64,
}

/// A value over time, in steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps {
    /// In ascending order; the first at 0.
    pub steps: Vec<Step>,
    /// With it, the list begins anew after so long; without it, the last value holds for ever.
    pub repeat_ns: Option<u64>,
}

impl Steps {
    /// From pairs of (nanoseconds, value).
    pub fn new(steps: &[(u64, u64)], repeat_ns: Option<u64>) -> Self {
        Self { steps: steps.iter().map(|&(at_ns, value)| Step { at_ns, value }).collect(), repeat_ns }
    }

    /// The value at a moment, and until when it holds at least (not included; `u64::MAX`: for ever).
    pub fn at(&self, now_ns: u64) -> (u64, u64) {
        let (begin_ns, within_ns) = match self.repeat_ns {
            Some(period_ns) if period_ns > 0 => (now_ns - now_ns % period_ns, now_ns % period_ns),
            _ => (0, now_ns),
        };
        let next = self.steps.partition_point(|step| step.at_ns <= within_ns);
        let value = self.steps.get(next.saturating_sub(1)).map_or(0, |step| step.value);
        let until_ns = match self.steps.get(next) {
            Some(step) => begin_ns.saturating_add(step.at_ns),
            None => self.repeat_ns.map_or(u64::MAX, |period_ns| begin_ns.saturating_add(period_ns)),
        };
        (value, until_ns)
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = u64> + '_ {
        self.steps.iter().map(|step| step.value)
    }

    /// What is wrong with it, if something is.
    pub(crate) fn flaw(&self) -> Option<&'static str> {
        if self.steps.first().is_none_or(|step| step.at_ns != 0) {
            return Some("the first step must be at 0");
        }
        if self.steps.windows(2).any(|two| two[0].at_ns >= two[1].at_ns) {
            return Some("steps must be in ascending order of time, no two at the same moment");
        }
        let last_ns = self.steps.last().map_or(0, |step| step.at_ns);
        if self.repeat_ns.is_some_and(|period_ns| period_ns <= last_ns) {
            return Some("the list must repeat after its last step, not before");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_holds_until_the_next_and_the_list_repeats() {
        let steps = Steps::new(&[(0, 5), (10, 6), (30, 7)], Some(40));
        let at: Vec<_> = [0, 9, 10, 29, 30, 39, 40, 50, 119].map(|t| steps.at(t)).to_vec();
        assert_eq!(at, [(5, 10), (5, 10), (6, 30), (6, 30), (7, 40), (7, 40), (5, 50), (6, 70), (7, 120)]);
        let once = Steps::new(&[(0, 5), (10, 6)], None);
        assert_eq!([once.at(9), once.at(10), once.at(1 << 60)], [(5, 10), (6, u64::MAX), (6, u64::MAX)]);
    }

    #[test]
    fn lists_that_say_nothing_clear_are_found_out() {
        assert!(Steps::new(&[], None).flaw().is_some());
        assert!(Steps::new(&[(1, 1)], None).flaw().is_some());
        assert!(Steps::new(&[(0, 1), (0, 2)], None).flaw().is_some());
        assert!(Steps::new(&[(0, 1), (9, 2)], Some(9)).flaw().is_some());
        assert!(Steps::new(&[(0, 1), (9, 2)], Some(10)).flaw().is_none());
    }
}
