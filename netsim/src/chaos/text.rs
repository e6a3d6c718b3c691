//! Times as people write and read them.

use std::time::Duration;

/// `500ms`, `10s`, `1.5s`, `10m`, `2h`.
pub fn parse_time(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(at);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let number: f64 = number.parse().ok().filter(|n: &f64| n.is_finite())?;
    Duration::try_from_secs_f64(number * seconds).ok()
}

/// Seconds, as short as they are exact enough.
pub fn show_seconds(seconds: f64) -> String {
    match seconds {
        s if s.is_infinite() => "never".to_owned(),
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        let read = |text| parse_time(text).map(|time| time.as_millis());
        assert_eq!(read("500ms"), Some(500));
        assert_eq!(read("1.5s"), Some(1500));
        assert_eq!(read("10m"), Some(600_000));
        assert_eq!(read("2h"), Some(7_200_000));
        for text in ["", "5", "s", "1d", "-1s", "1.2.3s", "${down}", "1e9h"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(show_seconds(0.0421), "42 ms");
        assert_eq!(show_seconds(f64::INFINITY), "never");
    }
}
