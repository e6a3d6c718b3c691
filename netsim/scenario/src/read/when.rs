//! When something happens: at a time, with another fault, or with something that the system does.
//!
//! `at = "20s"`, `at = "20s..30s"` (drawn), `at = "tunnel.end"`, `at = "tunnel.begin + 2s"`, and
//! `when = "first(send.committed && !send.acked)"` or `when = "nth(3, device.live) + 100ms"`. A moment with `!` must
//! not have passed yet; the first one without is what happens, the others are what must have passed before.

use crate::fields::Fields;
use crate::plan::{Moment, Trigger, When};
use crate::problem::instead;
use crate::units;

/// Moments by their names in a scenario.
pub(crate) const MOMENTS: [(&str, Moment); 7] = [
    ("send.invoked", Moment::Invoked),
    ("send.committed", Moment::Committed),
    ("send.acked", Moment::Acked),
    ("send.stable", Moment::Stable),
    ("send.shown", Moment::Shown),
    ("device.live", Moment::Live),
    ("device.recovering", Moment::Recovering),
];

/// As written: ranges are not drawn yet.
#[derive(Clone, Debug)]
pub(crate) enum Written {
    At((u64, u64)),
    After { fault: String, end: bool, by_ns: (u64, u64) },
    On { trigger: Trigger, by_ns: (u64, u64) },
}

impl Written {
    /// With ranges drawn.
    pub fn draw(&self, later_ns: u64, draw: impl Fn((u64, u64)) -> u64) -> When {
        match self {
            Self::At(range) => When::At(draw(*range).saturating_add(later_ns)),
            Self::After { fault, end, by_ns } => {
                When::After { fault: fault.clone(), end: *end, by_ns: draw(*by_ns).saturating_add(later_ns) }
            }
            Self::On { trigger, by_ns } => {
                When::On { trigger: trigger.clone(), by_ns: draw(*by_ns).saturating_add(later_ns) }
            }
        }
    }
}

/// `at` or `when` of a table; one of them must be there.
pub(crate) fn read(f: &Fields<'_>) -> Option<Written> {
    let of = f.text("of");
    match (f.get("at"), f.get("when")) {
        (Some(_), Some(_)) => {
            f.note("when", format!("{} has both \"at\" and \"when\": keep one", f.what));
            None
        }
        (None, None) => {
            f.missing("at", "\"20s\", or when = \"first(send.committed && !send.acked)\"");
            None
        }
        (Some(_), None) => {
            if of.is_some() {
                f.note("of", "\"of\" says whose moments \"when\" waits for: leave it out, or write \"when\"");
            }
            f.unit("at", at)
        }
        (None, Some(_)) => {
            let (mut trigger, by_ns) = f.unit("when", when)?;
            trigger.device = of.map(str::to_owned);
            Some(Written::On { trigger, by_ns })
        }
    }
}

fn at(text: &str) -> Result<Written, String> {
    let trimmed = text.trim();
    if trimmed.starts_with(|first: char| first.is_ascii_digit() || first == '-') {
        return units::times(trimmed).map(Written::At);
    }
    let (anchor, by) = trimmed.split_once('+').unwrap_or((trimmed, "0s"));
    let bad = || {
        let ways = "write \"20s\", \"20s..30s\", \"tunnel.end\" or \"tunnel.begin+2s\", where tunnel is a fault's id";
        format!("\"{text}\" says no time: {ways}")
    };
    let (fault, end) = anchor.trim().rsplit_once('.').ok_or_else(bad)?;
    let end = match end {
        "end" => true,
        "begin" => false,
        early if early.starts_with("end-") || early.starts_with("begin-") => {
            let turn = "anchor the other fault to this one, with \"+\"";
            return Err(format!("\"{text}\" lies before something that may come at any time: {turn}"));
        }
        _ => return Err(bad()),
    };
    Ok(Written::After { fault: fault.trim().to_owned(), end, by_ns: units::times(by.trim())? })
}

fn when(text: &str) -> Result<(Trigger, (u64, u64)), String> {
    let bad = || {
        format!("\"{text}\" is no moment: write \"first(send.committed && !send.acked)\" or \"nth(3, device.live)\"")
    };
    let (call, by) = match text.rsplit_once(')') {
        Some((call, rest)) => match (rest.trim(), rest.trim().strip_prefix('+')) {
            ("", _) => (call, "0s"),
            (_, Some(by)) => (call, by.trim()),
            _ => return Err(bad()),
        },
        None => return Err(bad()),
    };
    let (name, inside) = call.split_once('(').ok_or_else(bad)?;
    let (nth, inside) = match name.trim() {
        "first" => (1, inside),
        "nth" => {
            let (nth, inside) = inside.split_once(',').ok_or_else(bad)?;
            let nth = nth.trim().parse::<u64>().ok().filter(|nth| *nth > 0);
            (nth.ok_or_else(|| format!("\"{text}\": the first time has number 1"))?, inside)
        }
        _ => return Err(bad()),
    };
    let mut all = Vec::new();
    for word in inside.split("&&").map(str::trim) {
        let (name, passed) = word.strip_prefix('!').map_or((word, true), |name| (name.trim(), false));
        let moment = MOMENTS.iter().find(|(known, _)| *known == name).map(|(_, moment)| *moment);
        let known = || format!("\"{name}\" is no moment: {}", instead(name, MOMENTS.iter().map(|(known, _)| *known)));
        all.push((moment.ok_or_else(known)?, passed));
    }
    let first = all.iter().position(|(_, passed)| *passed);
    let first = first.ok_or_else(|| format!("\"{text}\" waits for nothing: one moment must be without \"!\""))?;
    let (moment, _) = all.remove(first);
    let of_device = |moment: &Moment| matches!(moment, Moment::Live | Moment::Recovering);
    if !all.is_empty() && (of_device(&moment) || all.iter().any(|(moment, _)| of_device(moment))) {
        return Err(format!("\"{text}\" joins moments of a message with those of a device: only send.* can be joined"));
    }
    Ok((Trigger { nth, moment, given: all, device: None }, units::times(by)?))
}

/// How a trigger is written; the reverse of reading it.
pub(crate) fn trigger_text(trigger: &Trigger) -> String {
    let name = |moment: Moment| MOMENTS.iter().find(|(_, one)| *one == moment).map_or("", |(name, _)| *name);
    let mut words = vec![name(trigger.moment).to_owned()];
    for (moment, passed) in &trigger.given {
        words.push(format!("{}{}", if *passed { "" } else { "!" }, name(*moment)));
    }
    match trigger.nth {
        1 => format!("first({})", words.join(" && ")),
        nth => format!("nth({nth}, {})", words.join(" && ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_anchors_and_triggers_are_told_apart() {
        assert!(matches!(at("20s..30s"), Ok(Written::At((20_000_000_000, 30_000_000_000)))));
        let Ok(Written::After { fault, end, by_ns }) = at("tunnel.begin + 2s") else { panic!() };
        assert_eq!((fault.as_str(), end, by_ns), ("tunnel", false, (2_000_000_000, 2_000_000_000)));
        assert!(at("tunnel").unwrap_err().contains("says no time"));
        assert!(at("tunnel.end-2s").unwrap_err().contains("anchor the other fault"));
        assert!(at("-2s").unwrap_err().contains("before the beginning"));
        let (trigger, by_ns) = when("nth(3, send.committed && !send.acked) + 1ms").unwrap();
        assert_eq!((trigger.nth, trigger.moment, by_ns), (3, Moment::Committed, (1_000_000, 1_000_000)));
        assert_eq!(trigger.given, [(Moment::Acked, false)]);
        assert_eq!(trigger_text(&trigger), "nth(3, send.committed && !send.acked)");
        assert!(when("first(send.comitted)").unwrap_err().contains("did you mean \"send.committed\"?"));
        assert!(when("first(!send.acked)").unwrap_err().contains("waits for nothing"));
        assert!(when("first(device.live && send.acked)").unwrap_err().contains("only send.*"));
        for text in ["", "send.acked", "last(send.acked)", "first(send.acked) 2s", "nth(0, send.acked)"] {
            assert!(when(text).is_err(), "{text}");
        }
    }
}
