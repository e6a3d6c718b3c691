//! Values about the table that says where a region's users are connected.

use super::value::{Raw, Value, wrong};

/// Where a region keeps who is connected where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutesKind {
    /// Each core node knows its own users, and nothing is written anywhere.
    Memory,
    /// All core nodes write what they know into Redis.
    Redis,
}

impl Value for RoutesKind {
    const SHAPE: &'static str = "\"memory\" or \"redis\"";

    fn from_raw(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) if text == "memory" => Ok(Self::Memory),
            Raw::Text(text) if text == "redis" => Ok(Self::Redis),
            Raw::Text(text) => Err(format!("is {text:?}, expected {}", Self::SHAPE)),
            _ => Err(wrong::<Self>(raw)),
        }
    }

    fn show(&self) -> Option<String> {
        match self {
            Self::Memory => "memory".to_owned().show(),
            Self::Redis => "redis".to_owned().show(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_and_the_rest_is_refused() {
        for kind in [RoutesKind::Memory, RoutesKind::Redis] {
            let shown = kind.show().unwrap();
            assert_eq!(RoutesKind::from_text(shown.trim_matches('"')), Ok(kind));
        }
        assert!(RoutesKind::from_text("Redis").unwrap_err().contains("\"memory\" or \"redis\""));
        assert!(RoutesKind::from_raw(&Raw::Bool(true)).is_err());
    }
}
