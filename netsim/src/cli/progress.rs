//! How far a batch is, on one line of a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Shown at most so often.
const EVERY: Duration = Duration::from_millis(200);
/// Width of the bar, in characters.
const WIDTH: u64 = 24;

/// See the module. Silent where standard error is no terminal.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    began: Instant,
    last: Option<Instant>,
}

impl Progress {
    /// Begins.
    pub fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal(), began: now(), last: None }
    }

    /// So many of so many are done (`None`: it goes by time), so many of them did not pass.
    pub fn at(&mut self, done: u64, of: Option<u64>, bad: u64) {
        if !self.shown || self.last.is_some_and(|last| last.elapsed() < EVERY) {
            return;
        }
        self.last = Some(now());
        let mut err = std::io::stderr().lock();
        // A terminal that can't be written to shows nothing; the batch goes on.
        let _shown = write!(err, "\r\x1b[K{}", line(done, of, bad, self.began.elapsed())).and_then(|()| err.flush());
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if self.shown && self.last.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a batch takes is a matter of real time")]
fn now() -> Instant {
    Instant::now()
}

fn line(done: u64, of: Option<u64>, bad: u64, elapsed: Duration) -> String {
    let bad = if bad > 0 { format!(", {bad} did not pass") } else { String::new() };
    let Some(of) = of.filter(|of| *of > 0) else {
        return format!("{done} runs{bad}, {} s", elapsed.as_secs());
    };
    let full = done.min(of) * WIDTH / of;
    let bar: String = (0..WIDTH).map(|place| if place < full { '#' } else { '.' }).collect();
    let left = match done {
        0 => String::new(),
        done => {
            let left_ms = elapsed.as_millis() * u128::from(of.saturating_sub(done)) / u128::from(done);
            format!(", {} s left", left_ms / 1000)
        }
    };
    format!("[{bar}] {done}/{of}{bad}{left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_well_and_how_long() {
        let seconds = Duration::from_secs;
        assert_eq!(line(6, Some(24), 1, seconds(10)), "[######..................] 6/24, 1 did not pass, 30 s left");
        assert_eq!(line(0, Some(2), 0, seconds(0)), "[........................] 0/2");
        assert_eq!(line(7, None, 0, seconds(5)), "7 runs, 5 s");
    }
}
