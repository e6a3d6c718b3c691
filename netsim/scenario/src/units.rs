//! Numbers with units, read and written exactly.
//!
//! Everything is an integer of the smallest unit: nanoseconds, bits a second, parts per thousand million, bytes. A
//! decimal is read digit by digit; one that is finer than the smallest unit is refused, so what is written is what is
//! meant. [`time_text`] and its like write what reads back as the same number.

use tern_netsim_link::Chance;

const TIMES: [(&str, u64); 9] = [
    ("ns", 1),
    ("us", 1000),
    ("µs", 1000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];
const RATES: [(&str, u64); 4] = [("bit/s", 1), ("kbit/s", 1000), ("Mbit/s", 1_000_000), ("Gbit/s", 1_000_000_000)];
const CHANCES: [(&str, u64); 3] = [("%", 10_000_000), ("ppm", 1000), ("ppb", 1)];
const SIZES: [(&str, u64); 6] =
    [("B", 1), ("kB", 1000), ("KB", 1000), ("MB", 1_000_000), ("KiB", 1024), ("MiB", 1 << 20)];

/// Digits, perhaps a point and more digits, as a multiple of `unit`.
fn decimal(text: &str, unit: u64) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || text.ends_with('.') {
        return None;
    }
    let mut value = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let mut unit = unit;
    for digit in part.trim_end_matches('0').bytes() {
        if !unit.is_multiple_of(10) {
            return None;
        }
        unit /= 10;
        value = value.checked_add(u64::from(digit - b'0') * unit)?;
    }
    Some(value)
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(end);
    let (_, size) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    decimal(number, *size)
}

/// `20s` in nanoseconds.
pub(crate) fn time(text: &str) -> Result<u64, String> {
    if text.trim().starts_with('-') {
        return Err(format!("\"{text}\" is before the beginning of the run: write a time from 0s on"));
    }
    let bad = || format!("\"{text}\" is not a time: write a number and ns, us, ms, s, min or h, as \"1.5s\"");
    with_unit(text, &TIMES).ok_or_else(bad)
}

/// `20s`, or `20s..30s` with both ends included.
pub(crate) fn times(text: &str) -> Result<(u64, u64), String> {
    range(text, time)
}

/// `a`, or `a..b` with both ends included.
pub(crate) fn range(text: &str, one: impl Fn(&str) -> Result<u64, String>) -> Result<(u64, u64), String> {
    let (low, high) = match text.split_once("..") {
        Some((low, high)) => (one(low.trim())?, one(high.trim())?),
        None => one(text.trim()).map(|value| (value, value))?,
    };
    match low <= high {
        true => Ok((low, high)),
        false => Err(format!("\"{text}\" goes backwards: write the smaller end first")),
    }
}

/// `20kbit/s` in bits a second.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let bad =
        || format!("\"{text}\" is not a rate: write a number and bit/s, kbit/s, Mbit/s or Gbit/s, as \"20kbit/s\"");
    with_unit(text, &RATES).ok_or_else(bad)
}

/// `2%`.
pub(crate) fn chance(text: &str) -> Result<Chance, String> {
    let ppb = with_unit(text, &CHANCES).filter(|ppb| *ppb <= 1_000_000_000).and_then(|ppb| u32::try_from(ppb).ok());
    let bad = || format!("\"{text}\" is not a share: write 0% to 100%, or parts per million as \"300ppm\"");
    ppb.map(Chance::ppb).ok_or_else(bad)
}

/// `30kB` in bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("\"{text}\" is not a size: write a number of bytes, or one with kB, MB, KiB or MiB");
    with_unit(text, &SIZES).ok_or_else(bad)
}

/// `2/s`: the time between two, in nanoseconds.
pub(crate) fn frequency(text: &str) -> Result<u64, String> {
    let bad = || format!("\"{text}\" is not how often: write \"2/s\", \"0.5/s\", \"30/min\" or \"10/h\"");
    let (number, unit) = text.split_once('/').ok_or_else(bad)?;
    let (_, unit_ns) = TIMES.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(bad)?;
    let thousandths = decimal(number.trim(), 1000).ok_or_else(bad)?;
    match thousandths {
        0 => Err(format!("\"{text}\" is never: write a higher rate, or leave the load out")),
        thousandths => Ok(unit_ns.saturating_mul(1000) / thousandths),
    }
}

/// Reads back as the same time.
pub(crate) fn time_text(ns: u64) -> String {
    let units = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1000)];
    text_of(ns, &units, "ns")
}

/// Reads back as the same rate.
pub(crate) fn rate_text(bps: u64) -> String {
    text_of(bps, &[("Gbit/s", 1_000_000_000), ("Mbit/s", 1_000_000), ("kbit/s", 1000)], "bit/s")
}

/// Reads back as the same share.
pub(crate) fn chance_text(chance: Chance) -> String {
    text_of(u64::from(chance.as_ppb()), &[("%", 10_000_000), ("ppm", 1000)], "ppb")
}

fn text_of(value: u64, units: &[(&str, u64)], smallest: &str) -> String {
    match units.iter().find(|(_, size)| value.is_multiple_of(*size)) {
        Some((name, size)) => format!("{}{name}", value / size),
        None => format!("{value}{smallest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_meant() {
        assert_eq!(time("20s"), Ok(20_000_000_000));
        assert_eq!(
            [time("1.5ms"), time("0.000001ms"), time("10min"), time("2 h")],
            [Ok(1_500_000), Ok(1), Ok(600_000_000_000), Ok(7_200_000_000_000)]
        );
        assert_eq!(times("40ms..4s"), Ok((40_000_000, 4_000_000_000)));
        assert_eq!(rate("1.5Mbit/s"), Ok(1_500_000));
        assert_eq!(chance("0.3%"), Ok(Chance::ppm(3000)));
        assert_eq!(size("1.5kB"), Ok(1500));
        assert_eq!(
            [frequency("2/s"), frequency("0.5/s"), frequency("30/min")],
            [Ok(500_000_000), Ok(2_000_000_000), Ok(2_000_000_000)]
        );
    }

    #[test]
    fn what_has_no_unit_or_no_sense_is_refused_with_an_example() {
        for text in ["20", "s", "1.s", ".5s", "1..2", "20 parsecs", "1.5ns", "99999999999999h", ""] {
            assert!(time(text).unwrap_err().contains("as \"1.5s\""), "{text}");
        }
        assert!(time("-5s").unwrap_err().contains("before the beginning"));
        assert!(times("30s..20s").unwrap_err().contains("goes backwards"));
        assert!(chance("101%").is_err() && chance("2").is_err() && rate("20kbps").is_err());
        assert!(frequency("0/s").unwrap_err().contains("never"));
    }

    #[test]
    fn written_numbers_read_back() {
        for ns in [0, 1, 1000, 1500, 1_000_000, 20_000_000_000, 61_000_000_001] {
            assert_eq!(time(&time_text(ns)), Ok(ns));
            assert_eq!(rate(&rate_text(ns)), Ok(ns));
        }
        for ppb in [0, 1, 1000, 3_000_000, 20_000_000, 1_000_000_000] {
            assert_eq!(chance(&chance_text(Chance::ppb(ppb))), Ok(Chance::ppb(ppb)));
        }
    }
}
