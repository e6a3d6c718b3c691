//! What has to be reached, as people write it: `0.3 s + 1.5 RTT`, `15`.

use std::fmt;

use serde::Deserialize;

/// A sum of seconds (or of whatever is measured) and round trips.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Reach {
    plain: f64,
    round_trips: f64,
    text: String,
}

impl Reach {
    /// With this round trip, in seconds.
    pub fn value(&self, rtt_s: f64) -> f64 {
        self.plain + self.round_trips * rtt_s
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Reach {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (mut plain, mut round_trips) = (0.0, 0.0);
        for term in text.split('+') {
            let mut words = term.split_whitespace();
            let number = words.next().and_then(|word| word.parse::<f64>().ok()).filter(|n| n.is_finite() && *n >= 0.0);
            let wrong = || format!("{text:?} can't be read; write \"0.3 s + 1.5 RTT\" or a number");
            let number = number.ok_or_else(wrong)?;
            match (words.next(), words.next()) {
                (None | Some("s"), None) => plain += number,
                (Some("ms"), None) => plain += number / 1000.0,
                (Some("RTT"), None) => round_trips += number,
                _ => return Err(wrong()),
            }
        }
        Ok(Self { plain, round_trips, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_times_and_round_trips_are_read_and_nothing_else() {
        let value = |text: &str| Reach::try_from(text.to_owned()).unwrap().value(0.1);
        assert!((value("0.3 s + 1.5 RTT") - 0.45).abs() < 1e-9);
        assert!((value("250 ms") - 0.25).abs() < 1e-9);
        assert!((value("15") - 15.0).abs() < 1e-9);
        for text in ["", "s", "1 RTTs", "1 s s", "-1 s", "1 s +", "inf"] {
            assert!(Reach::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
