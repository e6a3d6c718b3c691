//! Numbers and names as a page says them, escaped.

use crate::limits::{NAME_CHARS_MAX, TEXT_CHARS_MAX};

/// Text for HTML, also within quoted attributes. Control characters are written out, and what is too long is cut:
/// whatever a system under test was made to say, here it is only text.
pub(crate) fn text(raw: &str) -> String {
    cut(raw, TEXT_CHARS_MAX)
}

/// A name for HTML.
pub(crate) fn name(raw: &str) -> String {
    cut(raw, NAME_CHARS_MAX)
}

/// Text that must not be shortened: a command.
pub(crate) fn whole(raw: &str) -> String {
    cut(raw, usize::MAX)
}

fn cut(raw: &str, chars_max: usize) -> String {
    let mut escaped = String::with_capacity(raw.len());
    for (i, c) in raw.chars().enumerate() {
        if i >= chars_max {
            escaped.push('…');
            break;
        }
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() => escaped.extend(c.escape_default()),
            // These would turn the direction of all that follows.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => escaped.extend(c.escape_unicode()),
            c => escaped.push(c),
        }
    }
    escaped
}

/// `1,234,567`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(c);
    }
    grouped
}

/// `1 device`, `2 devices`.
pub(crate) fn counted(n: u64, what: &str) -> String {
    format!("{} {what}{}", count(n), if n == 1 { "" } else { "s" })
}

/// `850 ms`, `12.34 s`, `3:20 min`, `1:02:30 h`.
pub(crate) fn time(ns: u64) -> String {
    let ms = ns.div_ceil(1_000_000);
    let s = ms / 1000;
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..120_000 => format!("{s}.{:02} s", ms % 1000 / 10),
        120_000..3_600_000 => format!("{}:{:02} min", s / 60, s % 60),
        _ => format!("{}:{:02}:{:02} h", s / 3600, s / 60 % 60, s % 60),
    }
}

/// `850 B`, `12.3 kB`, `1.2 MB`; powers of ten.
pub(crate) fn bytes(n: u64) -> String {
    scaled(n, "B")
}

/// `850 bit/s`, `12.3 kbit/s`.
pub(crate) fn rate(bits_per_second: u64) -> String {
    scaled(bits_per_second, "bit/s")
}

fn scaled(n: u64, unit: &str) -> String {
    let (divisor, prefix) = match n {
        0..1000 => return format!("{n} {unit}"),
        1000..1_000_000 => (1000, "k"),
        1_000_000..1_000_000_000 => (1_000_000, "M"),
        _ => (1_000_000_000, "G"),
    };
    let tenths = n / (divisor / 10);
    if tenths >= 1000 {
        format!("{} {prefix}{unit}", tenths / 10)
    } else {
        format!("{}.{} {prefix}{unit}", tenths / 10, tenths % 10)
    }
}

/// Of two numbers, as a percentage with two digits after the point, for positions in CSS.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    let hundredths = u128::from(part.min(whole)) * 10_000 / u128::from(whole.max(1));
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_only_text() {
        assert_eq!(text("<b a='\"'>&\n\u{202e}"), "&lt;b a=&#39;&quot;&#39;&gt;&amp;\\n\\u{202e}");
        assert_eq!(text(&"x".repeat(TEXT_CHARS_MAX + 5)).chars().count(), TEXT_CHARS_MAX + 1);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!((count(7), count(1234), count(1_234_567)), ("7".into(), "1,234".into(), "1,234,567".into()));
        let times = [1, 850_000_000, 12_345_000_000, 200_000_000_000, 3_750_000_000_000].map(time);
        assert_eq!(times, ["1 ms", "850 ms", "12.34 s", "3:20 min", "1:02:30 h"]);
        assert_eq!(
            (bytes(999), bytes(12_345), bytes(123_456_789)),
            ("999 B".into(), "12.3 kB".into(), "123 MB".into())
        );
        assert_eq!((percent(1, 3), percent(0, 0), percent(9, 3)), ("33.33%".into(), "0.00%".into(), "100.00%".into()));
    }
}
