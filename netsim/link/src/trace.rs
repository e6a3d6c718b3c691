//! Packet-delivery traces: recordings of cellular links in the format of mahimahi.
//!
//! One line is one opportunity: a whole number of milliseconds since the recording began, at which 1,500 bytes
//! may cross the link; several in one millisecond are several lines. The recording repeats from its last
//! line on (mm-link(1); Winstein, Sivaraman, Balakrishnan, "Stochastic Forecasts Achieve High Throughput and
//! Low Delay over Cellular Networks", NSDI 2013). As there, lines must not go back in time, none is empty, and
//! the last one must be later than 0, since it is also the length of the recording.

use std::path::Path;

use crate::limits::TRACE_LINES_MAX;

/// A trace, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    opportunities_ns: Vec<u64>,
    period_ns: u64,
}

/// Why a trace can't be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file can't be read.
    #[error("{file}: can't be read: {source}")]
    Unreadable {
        /// Its path.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("{file}:{line}: {problem}")]
    Line {
        /// The file's path.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what to write instead.
        problem: String,
    },
    /// The file as a whole is not what it should be.
    #[error("{file}: {problem}")]
    File {
        /// Its path.
        file: String,
        /// What is wrong, and what to write instead.
        problem: String,
    },
}

/// Reads a file that a scenario names.
pub(crate) fn text_of(path: &Path) -> Result<(String, String), TraceError> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((file, text)),
        Err(source) => Err(TraceError::Unreadable { file, source }),
    }
}

impl Trace {
    /// Reads a file of mahimahi's format.
    pub fn read_mahimahi(path: &Path) -> Result<Self, TraceError> {
        let (file, text) = text_of(path)?;
        Self::mahimahi(&file, &text)
    }

    /// From the text of such a file; `file` is named in errors.
    pub fn mahimahi(file: &str, text: &str) -> Result<Self, TraceError> {
        let bad = |line: usize, problem: String| TraceError::Line { file: file.to_owned(), line: line + 1, problem };
        let mut opportunities_ns = Vec::new();
        let mut last_ms = 0;
        for (line, words) in text.lines().enumerate() {
            if line >= TRACE_LINES_MAX {
                return Err(bad(line, format!("more than {TRACE_LINES_MAX} lines: cut the recording")));
            }
            let word = words.trim_end();
            let ms: u64 = word.parse().map_err(|_| {
                bad(line, format!("\"{word}\" is not a whole number of milliseconds since the recording began"))
            })?;
            if ms < last_ms {
                return Err(bad(line, format!("{ms} comes after {last_ms}: lines must not go back in time")));
            }
            let at_ns = ms.checked_mul(1_000_000).filter(|ns| *ns < u64::MAX / 4);
            opportunities_ns.push(at_ns.ok_or_else(|| bad(line, format!("{ms} ms are more than a hundred years")))?);
            last_ms = ms;
        }
        match opportunities_ns.last().copied() {
            Some(period_ns) if period_ns > 0 => Ok(Self { opportunities_ns, period_ns }),
            _ => Err(TraceError::File {
                file: file.to_owned(),
                problem: "a recording needs a line later than 0 ms, which is also its length".to_owned(),
            }),
        }
    }

    fn len(&self) -> u64 {
        u64::try_from(self.opportunities_ns.len()).unwrap_or(u64::MAX)
    }

    /// Its lines, in milliseconds.
    pub fn lines_ms(&self) -> Vec<u64> {
        self.opportunities_ns.iter().map(|ns| ns / 1_000_000).collect()
    }

    /// When the recording begins anew, in nanoseconds.
    pub fn period_ns(&self) -> u64 {
        self.period_ns
    }

    /// Bits a second, in the mean.
    pub fn mean_bps(&self) -> u64 {
        let bits = u128::from(self.len()) * 12_000 * 1_000_000_000;
        u64::try_from(bits / u128::from(self.period_ns)).unwrap_or(u64::MAX)
    }

    /// When the opportunity of this number is, counted over all repetitions.
    pub(crate) fn at_ns(&self, number: u64) -> u64 {
        let (round, index) = (number / self.len(), number % self.len());
        let within_ns = usize::try_from(index).ok().and_then(|index| self.opportunities_ns.get(index)).copied();
        round.saturating_mul(self.period_ns).saturating_add(within_ns.unwrap_or(u64::MAX))
    }

    /// Number of the first opportunity that is not before a moment.
    pub(crate) fn first_from(&self, now_ns: u64) -> u64 {
        // The last line of one round falls onto the beginning of the next, and comes first.
        let round = now_ns.saturating_sub(1) / self.period_ns;
        let within_ns = now_ns - round * self.period_ns;
        let index = self.opportunities_ns.partition_point(|at_ns| *at_ns < within_ns);
        round.saturating_mul(self.len()).saturating_add(u64::try_from(index).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn problem(text: &str) -> String {
        Trace::mahimahi("dir/lte.down", text).unwrap_err().to_string()
    }

    #[test]
    fn a_single_line_is_a_fixed_rate_and_recordings_repeat() {
        let fixed = Trace::mahimahi("t", "1\n").unwrap();
        assert_eq!((fixed.mean_bps(), fixed.period_ns()), (12_000_000, MS));
        let times: Vec<u64> = (0..3).map(|number| fixed.at_ns(number) / MS).collect();
        assert_eq!(times, [1, 2, 3]);
        let trace = Trace::mahimahi("t", "0\r\n3\r\n3\r\n5\r\n").unwrap();
        let times: Vec<u64> = (0..9).map(|number| trace.at_ns(number) / MS).collect();
        assert_eq!(times, [0, 3, 3, 5, 5, 8, 8, 10, 10]);
        for now_ns in 0..40 * MS / 1000 {
            let now_ns = now_ns * 1000;
            let slow = (0..).find(|number| trace.at_ns(*number) >= now_ns).unwrap();
            assert_eq!(trace.first_from(now_ns), slow, "{now_ns}");
        }
    }

    #[test]
    fn bad_lines_are_named_by_file_and_line() {
        assert_eq!(
            problem("1\nx\n"),
            "dir/lte.down:2: \"x\" is not a whole number of milliseconds since the recording began"
        );
        assert_eq!(problem("1\n5\n4\n"), "dir/lte.down:3: 4 comes after 5: lines must not go back in time");
        assert!(problem("1\n\n2\n").starts_with("dir/lte.down:2: \"\" is not"));
        assert!(problem("-1\n").starts_with("dir/lte.down:1: "));
        assert!(problem("").contains("needs a line later than 0"));
        assert!(problem("0\n0\n").contains("needs a line later than 0"));
        assert!(problem("99999999999999\n").contains("a hundred years"));
        let missing = Trace::read_mahimahi(Path::new("no/such.trace")).unwrap_err();
        assert!(missing.to_string().starts_with("no/such.trace: can't be read: "), "{missing}");
    }
}
