//! Values about the database of a region that keeps nothing on its own disk.

use tern_archive::Location;

use super::value::{Raw, Value, wrong};

/// Where a region keeps what must outlive it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// On the disk of its one node, below `data`.
    Embedded,
    /// On ScyllaDB or Cassandra.
    Scylla,
}

impl Value for StoreKind {
    const SHAPE: &'static str = "\"embedded\" or \"scylla\"";

    fn from_raw(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) if text == "embedded" => Ok(Self::Embedded),
            Raw::Text(text) if text == "scylla" => Ok(Self::Scylla),
            Raw::Text(text) => Err(format!("is {text:?}, expected {}", Self::SHAPE)),
            _ => Err(wrong::<Self>(raw)),
        }
    }

    fn show(&self) -> Option<String> {
        match self {
            Self::Embedded => "embedded".to_owned().show(),
            Self::Scylla => "scylla".to_owned().show(),
        }
    }
}

/// How many replicas a datacenter has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// The datacenter's name.
    pub datacenter: String,
    /// From 1.
    pub count: u8,
}

impl Value for Replicas {
    const SHAPE: &'static str = "a datacenter and its number of replicas, such as \"dc1:3\"";

    fn from_raw(raw: &Raw) -> Result<Self, String> {
        let Raw::Text(text) = raw else { return Err(wrong::<Self>(raw)) };
        let parsed = text.rsplit_once(':').and_then(|(name, count)| {
            let count = count.parse().ok().filter(|count| *count > 0)?;
            (!name.is_empty()).then(|| Self { datacenter: name.to_owned(), count })
        });
        parsed.ok_or_else(|| format!("is {text:?}, expected {}", Self::SHAPE))
    }

    fn show(&self) -> Option<String> {
        format!("{}:{}", self.datacenter, self.count).show()
    }
}

/// Where old messages move to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveUrl {
    /// As it was written.
    pub text: String,
    /// What it names.
    pub location: Location,
}

impl Value for ArchiveUrl {
    const SHAPE: &'static str = "\"file:///DIRECTORY\" or \"s3://BUCKET/PREFIX\"";

    fn from_raw(raw: &Raw) -> Result<Self, String> {
        let Raw::Text(text) = raw else { return Err(wrong::<Self>(raw)) };
        let location = Location::parse(text).map_err(|what| format!("is wrong: {what}"))?;
        Ok(Self { text: text.clone(), location })
    }

    fn show(&self) -> Option<String> {
        self.text.show()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_and_the_rest_is_refused() {
        let replicas = Replicas::from_text("eu-west:3").unwrap();
        assert_eq!((replicas.datacenter.as_str(), replicas.count), ("eu-west", 3));
        assert_eq!(replicas.show().unwrap(), "\"eu-west:3\"");
        for bad in ["", "dc1", "dc1:", ":3", "dc1:0", "dc1:x", "dc1:256"] {
            assert!(Replicas::from_text(bad).unwrap_err().contains("dc1:3"), "{bad}");
        }
        assert_eq!(StoreKind::from_text("scylla"), Ok(StoreKind::Scylla));
        assert!(StoreKind::from_text("Scylla").is_err());
        assert_eq!(StoreKind::Embedded.show().unwrap(), "\"embedded\"");
    }
}
