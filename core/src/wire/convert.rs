//! Wire values to checked values and back.

use crate::codes::{Code, Refusal};
use crate::ids::{ConvId, Cursor, InstallId, Origin, Place, Rev, UserId};
use crate::wire::{node_v1, v1};

/// Region numbers are 1-255.
fn region(value: u32) -> Result<u8, Refusal> {
    u8::try_from(value)
        .ok()
        .filter(|r| *r != 0)
        .ok_or_else(|| Refusal::new(Code::BadFrame, format!("region {value}; regions are 1 to 255")))
}

fn missing(what: &str) -> Refusal {
    Refusal::new(Code::BadFrame, format!("{what} is missing"))
}

/// A conversation id.
pub fn conversation(bytes: &[u8]) -> Result<ConvId, Refusal> {
    ConvId::from_slice(bytes)
        .ok_or_else(|| Refusal::new(Code::BadId, format!("a conversation id of {} bytes; it has 16", bytes.len())))
}

/// A user id.
pub fn user(text: &str) -> Result<UserId, Refusal> {
    UserId::new(text).map_err(|e| Refusal::new(Code::BadId, format!("user: {e}")))
}

/// An install id.
pub fn install(text: &str) -> Result<InstallId, Refusal> {
    InstallId::new(text).map_err(|e| Refusal::new(Code::BadId, format!("install: {e}")))
}

macro_rules! origins_and_places {
    ($($wire:ident),*) => {$(
        impl From<Origin> for $wire::Origin {
            fn from(o: Origin) -> Self {
                Self { region: u32::from(o.region), era: o.era }
            }
        }

        impl TryFrom<$wire::Origin> for Origin {
            type Error = Refusal;
            fn try_from(o: $wire::Origin) -> Result<Self, Refusal> {
                Ok(Self { region: region(o.region)?, era: o.era })
            }
        }

        impl From<Place> for $wire::Place {
            fn from(p: Place) -> Self {
                Self { hlc: p.hlc, origin: Some(p.origin.into()), seq: p.seq }
            }
        }

        impl TryFrom<$wire::Place> for Place {
            type Error = Refusal;
            fn try_from(p: $wire::Place) -> Result<Self, Refusal> {
                if p.seq == 0 {
                    return Err(Refusal::new(Code::BadFrame, "a place with seq 0; seqs start at 1"));
                }
                let origin = p.origin.ok_or_else(|| missing("a place's origin"))?.try_into()?;
                Ok(Self { hlc: p.hlc, origin, seq: p.seq })
            }
        }
    )*};
}

origins_and_places!(v1, node_v1);

impl From<Cursor> for v1::Cursor {
    fn from(c: Cursor) -> Self {
        Self { region: u32::from(c.store.region), era: c.store.era, rev: c.rev.0 }
    }
}

impl TryFrom<v1::Cursor> for Cursor {
    type Error = Refusal;
    fn try_from(c: v1::Cursor) -> Result<Self, Refusal> {
        Ok(Self { store: Origin { region: region(c.region)?, era: c.era }, rev: Rev(c.rev) })
    }
}

/// An origin that must be there.
pub fn origin(o: Option<v1::Origin>) -> Result<Origin, Refusal> {
    o.ok_or_else(|| missing("origin"))?.try_into()
}
