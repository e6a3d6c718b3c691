//! Scripts as they are written, each value with its place.

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use toml::Spanned;

use super::Door;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) chaos: HeadingEntry,
    #[serde(default, rename = "values")]
    pub(super) _values: toml::Table,
    pub(super) target: Spanned<TargetEntry>,
    pub(super) load: LoadEntry,
    #[serde(default)]
    pub(super) fault: Vec<FaultEntry>,
    pub(super) bounds: Option<BoundsEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeadingEntry {
    pub(super) name: Spanned<String>,
    pub(super) about: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TargetEntry {
    pub(super) kind: Spanned<String>,
    pub(super) regions: Option<Spanned<Vec<String>>>,
    pub(super) nodes: Option<Spanned<Number>>,
    pub(super) edges: Option<Spanned<Number>>,
    pub(super) reoffer_after: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) settings: Vec<Spanned<String>>,
    pub(super) database: Option<Spanned<DatabaseEntry>>,
    pub(super) dispatch: Option<Spanned<Vec<Door>>>,
    pub(super) ca: Option<Spanned<String>>,
    pub(super) token_command: Option<Spanned<String>>,
    pub(super) token_file: Option<Spanned<String>>,
}

fn start<T>(place: Option<&Spanned<T>>) -> Option<usize> {
    place.map(|place| place.span().start)
}

impl TargetEntry {
    /// Where something stands that only a local system has.
    pub(super) fn of_local(&self) -> Option<usize> {
        start(self.regions.as_ref())
            .or(start(self.nodes.as_ref()))
            .or(start(self.edges.as_ref()))
            .or(start(self.reoffer_after.as_ref()))
            .or(start(self.settings.first()))
            .or(start(self.database.as_ref()))
    }

    /// Where something stands that only staging has.
    pub(super) fn of_staging(&self) -> Option<usize> {
        start(self.dispatch.as_ref())
            .or(start(self.ca.as_ref()))
            .or(start(self.token_command.as_ref()))
            .or(start(self.token_file.as_ref()))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DatabaseEntry {
    pub(super) nodes: Spanned<String>,
    pub(super) replication: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoadEntry {
    pub(super) clients: Spanned<Number>,
    pub(super) conversations: Spanned<Number>,
    pub(super) rate: Spanned<Number>,
    #[serde(rename = "for")]
    pub(super) time: Spanned<String>,
    pub(super) bytes: Option<Spanned<Number>>,
    pub(super) settle: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FaultEntry {
    pub(super) id: Spanned<String>,
    pub(super) at: Spanned<String>,
    pub(super) after: Option<Spanned<String>>,
    pub(super) kind: Spanned<String>,
    pub(super) target: Option<Spanned<String>>,
    #[serde(rename = "for")]
    pub(super) lasts: Option<Spanned<String>>,
    pub(super) aftermath: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) meets: Vec<String>,
    pub(super) run: Option<Spanned<String>>,
    pub(super) undo: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitsEntry {
    pub(super) median: Option<Spanned<String>>,
    pub(super) p99: Option<Spanned<String>>,
    pub(super) max: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BoundsEntry {
    pub(super) next_ack: Option<LimitsEntry>,
    pub(super) live_again: Option<LimitsEntry>,
    pub(super) caught_up: Option<LimitsEntry>,
    pub(super) ack_outside_faults: Option<LimitsEntry>,
    pub(super) shown_outside_faults: Option<LimitsEntry>,
    pub(super) routes_complete: Option<LimitsEntry>,
    pub(super) lost: Option<Spanned<Number>>,
    pub(super) doubled: Option<Spanned<Number>>,
    pub(super) out_of_order: Option<Spanned<Number>>,
    pub(super) not_acked: Option<Spanned<Number>>,
    pub(super) not_shown: Option<Spanned<Number>>,
    pub(super) memory_growth_mib: Option<Spanned<Number>>,
}

/// A number, or a string that is one: of a value, for instance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number(f64);

impl Number {
    pub(super) fn value(self) -> Option<f64> {
        Some(self.0).filter(|number| number.is_finite())
    }

    /// None: it is not whole, or negative, or larger than anything that is counted here.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is whole, positive and small")]
    pub(super) fn whole(self) -> Option<u64> {
        let fits = self.0 >= 0.0 && self.0 <= 1e15 && self.0.fract() == 0.0;
        fits.then_some(self.0 as u64)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Number;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Number, E> {
                Ok(Number(number as f64))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number as f64))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Number, E> {
                Ok(Number(number))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Number, E> {
                let number = text.trim().parse().map_err(|_| E::custom(format!("{text:?} is no number")))?;
                Ok(Number(number))
            }
        }
        from.deserialize_any(Any)
    }
}
