//! Recordings of cellular links in the form in which Akamai published them.
//!
//! The form is a shell script, `cellular_emulation.sh` of github.com/akamai/cell-emulation-util (Apache-2.0; Goel,
//! Steiner, Wittie, Flack, Ludin, "Making HTTP/2 Pages Load Faster in Lossy Cellular Networks"). It names two
//! kinds, `loss_based` (conditions `good`, `median`, `poor`) and `experience_based` (`noloss`, `good`, `fair`,
//! `passable`, `poor`, `verypoor`), and for each has four lists of 200 decimal numbers:
//!
//! - `lat_array`: round-trip times in ms, half of it on each side; one list may serve all conditions of a kind;
//! - `thru_array`: rates in kbit/s, the same in both directions;
//! - `gap_array`: seconds without loss before the next lossy step;
//! - `loss_array`: percent lost in that step.
//!
//! A step is 70 ms. The script walks over the lists in step with each other, but takes the next loss only when
//! a gap is over, so gaps and losses shift against each other from round to round. That walk is done here for
//! a hundred rounds, 23 minutes, after which it begins anew.
//!
//! What differs from the script: it shapes with a token bucket of 64 kB of burst, here packets leave one by
//! one; its waits make steps of 50-70 ms on the authors' machine, here they have their nominal 70 ms; its
//! `netem` may let packets overtake each other when the latency falls, here they keep their order, as on a real
//! radio link. Its queue of 128 kB is kept.

use std::collections::BTreeSet;
use std::path::Path;

use crate::dice::{Amount, Chance};
use crate::episodes::{Episode, Episodes};
use crate::limits::{RATE_BPS_MIN, TRACE_LINES_MAX};
use crate::spec::{Delay, LinkSpec, Loss, Queue, Rate, Spec};
use crate::steps::{Step, Steps};
use crate::trace::{TraceError, text_of};

const STEP_NS: u64 = 70_000_000;
/// A step in millionths of a second.
const STEP_US: u64 = 70_000;
const ROUNDS: u64 = 100;
const QUEUE_BYTES: u64 = 128 * 1024;
/// Latencies above this many ms are a mistake.
const LATENCY_MS_MAX: u64 = 600_000;

/// Reads such a file; `kind` and `condition` choose from it.
pub fn read_cellular(path: &Path, kind: &str, condition: &str) -> Result<LinkSpec, TraceError> {
    let (file, text) = text_of(path)?;
    cellular(&file, &text, kind, condition)
}

/// From the text of such a file; `file` is named in errors.
pub fn cellular(file: &str, text: &str, kind: &str, condition: &str) -> Result<LinkSpec, TraceError> {
    let lists = Lists::find(file, text, kind, condition)?;
    let [latency, rate, gap, loss] = &lists.0;
    for other in [rate, gap] {
        if other.values.len() != latency.values.len() {
            let (found, wanted) = (other.values.len(), latency.values.len());
            return Err(other.bad(file, format!("{found} values, but {wanted} latencies: there must be as many")));
        }
    }
    let steps = |list: &List, value: &dyn Fn(u64) -> Result<u64, String>| {
        let mut steps = Vec::with_capacity(list.values.len());
        for (at_ns, millionths) in (0..).step_by(70_000_000).zip(&list.values) {
            steps.push(Step { at_ns, value: value(*millionths).map_err(|problem| list.bad(file, problem))? });
        }
        let repeat_ns = STEP_NS * u64::try_from(list.values.len()).unwrap_or(u64::MAX);
        Ok(Steps { steps, repeat_ns: Some(repeat_ns) })
    };
    // A millionth of a millisecond is a nanosecond; a thousand millionths of a kbit/s are one bit/s.
    let half_ns = steps(latency, &|millionths| match millionths {
        ns if ns > LATENCY_MS_MAX * 1_000_000 => Err(format!("a latency above {LATENCY_MS_MAX} ms")),
        ns => Ok(ns / 2),
    })?;
    let bps = steps(rate, &|millionths| match millionths / 1000 {
        bps if bps < RATE_BPS_MIN => Err(format!("a rate of {bps} bit/s: below {RATE_BPS_MIN} nothing gets through")),
        bps => Ok(bps),
    })?;
    let spec = Spec {
        rate: Rate::Steps(bps),
        delay: Delay { extra_ns: Some(half_ns), ..Delay::default() },
        queue: Queue { bytes: QUEUE_BYTES, ..Queue::default() },
        loss: Loss::Slots(slots(file, gap, loss)?),
        ..Spec::default()
    };
    Ok(LinkSpec::symmetric(spec))
}

/// The script's walk: where its lossy steps are.
fn slots(file: &str, gap: &List, loss: &List) -> Result<Episodes<Chance>, TraceError> {
    let chances: Result<Vec<Chance>, TraceError> = loss
        .values
        .iter()
        .map(|millionths| match u32::try_from(millionths / 100) {
            // A millionth of a percent is 10 parts per thousand million.
            Ok(ppm) if ppm <= 1_000_000 => Ok(Chance::ppb(u32::try_from(millionths * 10).unwrap_or(u32::MAX))),
            _ => Err(loss.bad(file, "a loss of more than 100 percent".to_owned())),
        })
        .collect();
    let chances = chances?;
    let count = u64::try_from(gap.values.len()).unwrap_or(u64::MAX);
    // The script begins its losses anew one value before the steps.
    let losses = chances.len().min(gap.values.len().saturating_sub(1).max(1));
    let mut episodes = Vec::new();
    let (mut last, mut first) = (0, true);
    for chance in chances.iter().take(losses).cycle() {
        let index = usize::try_from(last % count).unwrap_or(0);
        let gap_us = gap.values.get(index).copied().unwrap_or(0);
        let steps = gap_us.div_ceil(STEP_US).max(1);
        let clear = if first { steps } else { steps - 1 };
        let gap_ns = Amount::Fixed(clear.saturating_mul(STEP_NS));
        episodes.push(Episode { gap_ns, length_ns: Amount::Fixed(STEP_NS), what: *chance });
        (last, first) = (last.saturating_add(steps), false);
        if last >= count.saturating_mul(ROUNDS) {
            break;
        }
    }
    Ok(Episodes(episodes))
}

/// A list of numbers, in millionths, and where it stands.
#[derive(Debug, Default)]
struct List {
    line: usize,
    values: Vec<u64>,
}

impl List {
    fn bad(&self, file: &str, problem: String) -> TraceError {
        TraceError::Line { file: file.to_owned(), line: self.line, problem }
    }
}

const NAMES: [&str; 4] = ["lat_array", "thru_array", "gap_array", "loss_array"];

/// The four lists, in the order of [`NAMES`].
#[derive(Debug)]
struct Lists([List; 4]);

impl Lists {
    fn find(file: &str, text: &str, kind: &str, condition: &str) -> Result<Self, TraceError> {
        let mut lists: [Option<List>; 4] = Default::default();
        let (mut here_kind, mut here_condition) = (None, None);
        let mut known = BTreeSet::new();
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(name) = compared(line, "\"$1\"") {
                (here_kind, here_condition) = (Some(name), None);
            } else if let Some(name) = compared(line, "\"$2\"") {
                here_condition = Some(name);
                known.insert(format!("{}/{name}", here_kind.unwrap_or("?")));
            }
            let Some((name, values)) = line.trim().split_once("=(") else { continue };
            let Some(index) = NAMES.iter().position(|known| *known == name) else { continue };
            if here_kind != Some(kind) || here_condition.is_some_and(|here| here != condition) {
                continue;
            }
            lists[index] = Some(parse(file, number, values)?);
        }
        let bad = |problem| TraceError::File { file: file.to_owned(), problem };
        if !known.contains(&format!("{kind}/{condition}")) {
            let known: Vec<String> = known.into_iter().collect();
            let there = if known.is_empty() { "none at all".to_owned() } else { known.join(", ") };
            return Err(bad(format!("no recording {kind}/{condition}; there is {there}")));
        }
        let mut found: [List; 4] = Default::default();
        for ((list, slot), name) in lists.into_iter().zip(&mut found).zip(NAMES) {
            *slot = list.ok_or_else(|| bad(format!("{kind}/{condition} has no {name}=(...)")))?;
        }
        Ok(Self(found))
    }
}

/// The name that a line of the script compares an argument with.
fn compared<'l>(line: &'l str, argument: &str) -> Option<&'l str> {
    line.split_once(argument)?.1.split_once("== \"")?.1.split('"').next()
}

fn parse(file: &str, line: usize, values: &str) -> Result<List, TraceError> {
    let bad = |problem| TraceError::Line { file: file.to_owned(), line, problem };
    let values =
        values.trim_end().strip_suffix(')').ok_or_else(|| bad("the list does not end with \")\"".to_owned()))?;
    let values: Option<Vec<u64>> = values.split_whitespace().map(millionths).collect();
    let values = values.ok_or_else(|| bad("a list of decimal numbers, please, like 22.5 31 43".to_owned()))?;
    if values.is_empty() || values.len() > TRACE_LINES_MAX {
        return Err(bad("the list is empty, or longer than any recording".to_owned()));
    }
    Ok(List { line, values })
}

/// A decimal number in millionths; further digits are cut off.
fn millionths(word: &str) -> Option<u64> {
    let (whole, part) = word.split_once('.').unwrap_or((word, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) {
        return None;
    }
    let part: String = part.chars().chain("000000".chars()).take(6).collect();
    whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(part.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = r#"
if [ "$1" == "loss_based" ]
then
	lat_array=(22 30.5 40)
	if [ "$2" == "good" ]
	then
		thru_array=(1000.5 250 9.616815)
		gap_array=(0.14 0.07 0.21)
		loss_array=(33.3333 50 100)
	elif [ "$2" == "poor" ]
	then
		thru_array=(1000 0 1)
		gap_array=(0.14 0.07 0.21)
		loss_array=(33.3333 50 100)
	fi
elif [ "$1" == "experience_based" ]
then
	if [ "$2" == "noloss" ]
	then
		lat_array=(20)
		thru_array=(400)
		gap_array=(99999)
		loss_array=(0)
	fi
fi
"#;

    fn of(kind: &str, condition: &str) -> Result<Spec, String> {
        let link = cellular("cell.sh", SCRIPT, kind, condition).map_err(|error| error.to_string())?;
        assert_eq!((link.check(), &link.up), (Ok(()), &link.down));
        Ok(link.up)
    }

    #[test]
    fn rates_and_halves_of_latencies_change_with_every_step() {
        let spec = of("loss_based", "good").unwrap();
        let Rate::Steps(rate) = &spec.rate else { panic!("{spec:?}") };
        assert_eq!([0, 1, 2, 3].map(|step| rate.at(step * STEP_NS).0), [1_000_500, 250_000, 9616, 1_000_500]);
        let at = [0, 1, 2, 3].map(|step| spec.delay.now_ns(step * STEP_NS));
        assert_eq!(at, [11_000_000, 15_250_000, 20_000_000, 11_000_000]);
        assert_eq!(of("experience_based", "noloss").unwrap().delay.now_ns(0), 10_000_000);
    }

    #[test]
    fn lossy_steps_are_where_the_script_has_them() {
        // The script itself, step by step, in hundredths.
        let (gaps, losses) = ([14, 7, 21], [33, 50, 100]);
        let (mut count, mut gap, mut next) = (0, 0, 0);
        let mut lossy = Vec::new();
        for step in 0..60 {
            let mut loss = 0;
            if count == 0 && step == 0 {
                gap = gaps[step % 3];
            } else if count >= gap {
                loss = losses[next];
                next = (next + 1) % 2;
                gap = gaps[step % 3];
                count = 0;
            }
            count += 7;
            lossy.push(loss);
        }
        let spec = of("loss_based", "good").unwrap();
        let Loss::Slots(Episodes(slots)) = &spec.loss else { panic!("{spec:?}") };
        let mut read = Vec::new();
        for slot in slots {
            let clear = usize::try_from(slot.gap_ns.least() / STEP_NS).unwrap();
            read.extend(std::iter::repeat_n(0, clear));
            read.push(slot.what.as_ppb() / 10_000_000);
        }
        assert_eq!(read[..60], lossy);
        assert!(read.len() >= 300, "a hundred rounds of three steps");
    }

    #[test]
    fn what_can_not_be_used_is_named_by_file_and_line() {
        assert_eq!(
            of("loss_based", "poor").unwrap_err(),
            "cell.sh:12: a rate of 0 bit/s: below 100 nothing gets through"
        );
        assert_eq!(
            of("loss_based", "fair").unwrap_err(),
            "cell.sh: no recording loss_based/fair; there is experience_based/noloss, loss_based/good, loss_based/poor"
        );
        let with = |from: &str, to: &str| {
            cellular("cell.sh", &SCRIPT.replacen(from, to, 1), "loss_based", "good").unwrap_err().to_string()
        };
        assert_eq!(with("30.5", "x"), "cell.sh:4: a list of decimal numbers, please, like 22.5 31 43");
        assert_eq!(with("(22 30.5 40)", "(22 30.5 40"), "cell.sh:4: the list does not end with \")\"");
        assert_eq!(with("0.14 0.07", "0.14"), "cell.sh:8: 2 values, but 3 latencies: there must be as many");
        assert_eq!(with("50 100", "50 101"), "cell.sh:9: a loss of more than 100 percent");
        assert_eq!(with("22", "9999999"), "cell.sh:4: a latency above 600000 ms");
        assert_eq!(with("gap_array", "gape"), "cell.sh: loss_based/good has no gap_array=(...)");
        assert!(cellular("e", "", "a", "b").unwrap_err().to_string().contains("none at all"));
        let missing = read_cellular(Path::new("no/such.sh"), "a", "b").unwrap_err();
        assert!(missing.to_string().starts_with("no/such.sh: can't be read: "));
    }
}
