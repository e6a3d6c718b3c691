//! Where an address is, by a MaxMind DB file (MMDB).
//!
//! The default is the DB-IP Lite country data shipped with the binary: a country for nearly every public
//! address, and no coordinates. A country then stands at the point of [`crate::centroids`], which lies where
//! its people live. For a country the size of the United States that point is up to 2,500 km, or 40 ms, off:
//! with edges on both coasts give a city file by `--geoip`, or let what clients measure correct it.
//!
//! Whatever a lookup finds, it is an answer: an address that can't be placed is [`Located::Unknown`] with
//! the reason. Only opening a file can fail, and then the process does not start: an operator who names a
//! file wants that one. A newer file in its place is taken while the process runs, see `watch.rs`.

mod shipped;
mod special;
mod stamp;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use maxminddb::{LookupResult, Reader, WithinOptions};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use tern_core::ranking::{Country, Position};

use crate::centroids::centroid;
use crate::limits::GEOIP_FILE_BYTES;

pub use shipped::fold;
pub use special::Unplaced;
pub use watch::GeoReloadError;

pub(crate) use watch::{Step, Watch, check};

use stamp::Stamp;

/// What a look at a path shows; None = no file is there that can be looked at.
pub(crate) fn stamp_of(path: &Path) -> Option<Stamp> {
    std::fs::metadata(path).ok().filter(Metadata::is_file).map(|m| Stamp::of(&m))
}

/// Addresses that are looked up when a file is opened: evenly spread over IPv4, as many over the assigned
/// part of IPv6. Reading every record of a city file would take seconds.
const PROBES: u32 = 4096;
/// Of so many evenly spread public addresses one in a hundred must be placed, or the file has no places.
const PROBES_PLACED_MIN: u32 = PROBES / 100;

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Located {
    /// Somewhere.
    At {
        /// Its country, if the database says.
        country: Option<Country>,
        /// Coordinates of the database, or the country's point.
        position: Option<Position>,
        /// Whether the coordinates are the database's.
        exact: bool,
        /// Number of its provider's autonomous system, if the database says.
        asn: Option<u32>,
    },
    /// Nowhere.
    Unknown(Unplaced),
}

impl Located {
    /// Its country.
    pub fn country(&self) -> Option<Country> {
        match self {
            Self::At { country, .. } => *country,
            Self::Unknown(_) => None,
        }
    }

    /// Its position.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::At { position, .. } => *position,
            Self::Unknown(_) => None,
        }
    }

    /// Its provider's autonomous system.
    pub fn asn(&self) -> Option<u32> {
        match self {
            Self::At { asn, .. } => *asn,
            Self::Unknown(_) => None,
        }
    }

    /// Whether this is a public address, that only clients of one network use.
    pub fn is_public(&self) -> bool {
        !matches!(self, Self::Unknown(why) if why.is_special())
    }
}

/// Why a GeoIP file can't be used. The process should not start.
#[derive(Debug, thiserror::Error)]
pub enum GeoError {
    /// It can't be read.
    #[error(
        "can't read the GeoIP file {}: {cause}. Check the path given by --geoip and its permissions, or leave \
         --geoip out to use the country data that is shipped", path.display()
    )]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// It is larger than any MMDB of places.
    #[error(
        "the GeoIP file {} has {bytes} bytes; at most {GEOIP_FILE_BYTES} are read, because the whole file is \
         kept in memory. Is this the right file?", path.display()
    )]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It is no MMDB, or a damaged one.
    #[error(
        "the GeoIP file {} is not a usable MaxMind DB: {cause}. It may be cut short or still compressed: \
         download it again and unpack it, or leave --geoip out to use the country data that is shipped",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and where.
        cause: String,
    },
    /// It is being written.
    #[error(
        "the GeoIP file {} changed while it was read. Start again when it is whole, and replace it by renaming a \
         finished file", path.display()
    )]
    Changing {
        /// Which file.
        path: PathBuf,
    },
    /// It is an MMDB of something else.
    #[error(
        "the GeoIP file {} (type {kind:?}) has neither countries nor coordinates: of {PROBES} addresses looked \
         up, {placed} were placed. Use a country or city database", path.display()
    )]
    NoPlaces {
        /// Which file.
        path: PathBuf,
        /// Its own description.
        kind: String,
        /// Addresses that it placed.
        placed: u32,
    },
    /// The shipped data is damaged: a fault of the build.
    #[error("the GeoIP data shipped with this binary is damaged ({0}). Build it again, or give a file by --geoip")]
    Shipped(String),
}

/// A database of places, in memory. Lookups read it in place.
pub struct Geo {
    reader: Reader<Vec<u8>>,
    name: String,
    /// None = shipped.
    file: Option<GeoFile>,
    /// Of [`PROBES`] addresses, so many are placed.
    placed: u32,
}

/// The file that a database was read from.
#[derive(Clone, Debug)]
pub(crate) struct GeoFile {
    pub(crate) path: PathBuf,
    pub(crate) stamp: Stamp,
    /// Hash of its bytes.
    digest: u64,
}

impl fmt::Debug for Geo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Geo").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Geo {
    /// The shipped data: 8.2 MB of memory, unpacked here (some tens of milliseconds).
    pub fn shipped() -> Result<Self, GeoError> {
        let mmdb = shipped::unpack(shipped::SHIPPED).map_err(GeoError::Shipped)?;
        let reader = Reader::from_source(mmdb).map_err(|e| GeoError::Shipped(e.to_string()))?;
        let geo = Self { reader, name: "DB-IP Lite country, shipped".to_owned(), file: None, placed: 0 };
        match geo.probe() {
            Ok(placed) if placed >= PROBES_PLACED_MIN => Ok(Self { placed, ..geo }),
            Ok(placed) => Err(GeoError::Shipped(format!("only {placed} of {PROBES} addresses are placed"))),
            Err(cause) => Err(GeoError::Shipped(cause)),
        }
    }

    /// Any MMDB with countries or coordinates: flat fields (`country_code`, `latitude`, `longitude`) or
    /// MaxMind's (`country.iso_code`, `location.latitude`). The file is read once and kept in memory. Blocks
    /// on the disk: call it while starting.
    pub fn open(path: &Path) -> Result<Self, GeoError> {
        let owned = || path.to_owned();
        let read = |cause| GeoError::Read { path: owned(), cause };
        let must_be_file = |metadata: &Metadata| match metadata.is_file() {
            true => Ok(()),
            false => Err(read(io::Error::other("it is not a file"))),
        };
        // Before it is opened: opening a pipe waits for its other end.
        must_be_file(&std::fs::metadata(path).map_err(read)?)?;
        let mut file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        must_be_file(&metadata)?;
        let (stamp, bytes) = (Stamp::of(&metadata), metadata.len());
        if bytes > GEOIP_FILE_BYTES {
            return Err(GeoError::TooLarge { path: owned(), bytes });
        }
        let mut mmdb = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        Read::by_ref(&mut file).take(GEOIP_FILE_BYTES).read_to_end(&mut mmdb).map_err(read)?;
        if Stamp::of(&file.metadata().map_err(read)?) != stamp {
            return Err(GeoError::Changing { path: owned() });
        }
        let mut hasher = DefaultHasher::new();
        hasher.write(&mmdb);
        let digest = hasher.finish();
        let damaged = |cause: String| GeoError::Damaged { path: owned(), cause };
        let reader = Reader::from_source(mmdb).map_err(|e| damaged(e.to_string()))?;
        let kind = reader.metadata().database_type.clone();
        let file = Some(GeoFile { path: owned(), stamp, digest });
        let geo = Self { reader, name: path.display().to_string(), file, placed: 0 };
        match geo.probe().map_err(damaged)? {
            placed if placed >= PROBES_PLACED_MIN => Ok(Self { placed, ..geo }),
            placed => Err(GeoError::NoPlaces { path: owned(), kind, placed }),
        }
    }

    /// The file it came from; None if it is the shipped data.
    pub(crate) fn file(&self) -> Option<&GeoFile> {
        self.file.as_ref()
    }

    /// Follows every branch of the tree and every record. Seconds for a city file.
    fn verify(&self) -> Result<(), String> {
        self.reader.verify().map_err(|e| e.to_string())
    }

    /// Where it came from, for the log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Seconds since 1970 when the database was built, by its own word.
    pub fn built_s(&self) -> u64 {
        self.reader.metadata().build_epoch
    }

    /// Where an address is. IPv4 addresses written as IPv6 are IPv4.
    pub fn locate(&self, address: IpAddr) -> Located {
        let address = address.to_canonical();
        if let Some(why) = special::special(address) {
            return Located::Unknown(why);
        }
        if address.is_ipv6() && self.reader.metadata().ip_version == 4 {
            return Located::Unknown(Unplaced::NoIpv6);
        }
        match self.read(address) {
            Ok(Some(record)) => record.located(),
            Ok(None) => Located::Unknown(Unplaced::NotFound),
            Err(_) => Located::Unknown(Unplaced::Damaged),
        }
    }

    /// Some address that lies in this country by these data: the first one of IPv4, or else of IPv6. Looks through all
    /// networks until there is one; the few different records that they have are read once each.
    pub fn address_in(&self, country: Country) -> Option<IpAddr> {
        let mut seen: BTreeMap<usize, bool> = BTreeMap::new();
        let mut lies_there = |network: &LookupResult<'_, Vec<u8>>| {
            let Some(offset) = network.offset() else { return false };
            *seen.entry(offset).or_insert_with(|| {
                let record = network.decode::<Record<'_>>().ok().flatten();
                record.is_some_and(|record| record.located().country() == Some(country))
            })
        };
        let address = |network: LookupResult<'_, Vec<u8>>| {
            let one = match network.network().ok()?.network().to_canonical() {
                IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() | 1)),
                IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() | 1)),
            };
            // Not one that is somebody's own in every network, whatever the data say.
            (self.locate(one).country() == Some(country)).then_some(one)
        };
        let networks = self.reader.networks(WithinOptions::default()).ok()?;
        networks.filter_map(Result::ok).filter(|network| lies_there(network)).find_map(address)
    }

    fn read(&self, address: IpAddr) -> Result<Option<Record<'_>>, String> {
        let found = self.reader.lookup(address).map_err(|e| e.to_string())?;
        found.decode::<Record<'_>>().map_err(|e| e.to_string())
    }

    /// Looks up addresses all over; returns how many of the IPv4 ones are placed.
    fn probe(&self) -> Result<u32, String> {
        let mut placed = 0;
        for i in 0..PROBES {
            let v4 = Ipv4Addr::from(i << 20 | 0x0001_0101);
            let record = self.read(IpAddr::V4(v4))?;
            placed += u32::from(record.is_some_and(|r| matches!(r.located(), Located::At { .. })));
            if self.reader.metadata().ip_version == 6 {
                // 2000::/3, where all assigned addresses are.
                let v6 = Ipv6Addr::from(0x2000 << 112 | u128::from(i) << 113 | 1);
                self.read(IpAddr::V6(v6))?;
            }
        }
        Ok(placed)
    }
}

/// The fields of a record that matter, flat or nested; all others are skipped.
#[derive(Debug, Deserialize)]
struct Record<'a> {
    #[serde(borrow, default)]
    country_code: Option<&'a str>,
    #[serde(borrow, default)]
    country: Option<CountryField<'a>>,
    #[serde(borrow, default)]
    registered_country: Option<CountryField<'a>>,
    #[serde(default)]
    latitude: Option<f64>,
    #[serde(default)]
    longitude: Option<f64>,
    #[serde(default)]
    location: Option<LocationField>,
    /// MaxMind's and DB-IP's name for it.
    #[serde(default)]
    autonomous_system_number: Option<u32>,
    /// IPinfo's, as text: "AS3320".
    #[serde(default)]
    asn: Option<AsnField>,
    #[serde(default)]
    traits: Option<TraitsField>,
}

/// Where MaxMind's larger files have the autonomous system.
#[derive(Debug, Deserialize)]
struct TraitsField {
    #[serde(default)]
    autonomous_system_number: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct LocationField {
    #[serde(default)]
    latitude: Option<f64>,
    #[serde(default)]
    longitude: Option<f64>,
}

impl Record<'_> {
    fn located(&self) -> Located {
        let nested = [&self.country, &self.registered_country].into_iter().flatten().find_map(|c| c.0);
        let country = self.country_code.and_then(Country::new).or_else(|| nested.and_then(Country::new));
        let (latitude, longitude) = match &self.location {
            Some(location) => (location.latitude, location.longitude),
            None => (self.latitude, self.longitude),
        };
        let exact = latitude.zip(longitude).and_then(|(latitude, longitude)| Position::new(latitude, longitude));
        let position = exact.or_else(|| country.and_then(centroid));
        if country.is_none() && position.is_none() {
            return Located::Unknown(Unplaced::NotFound);
        }
        let in_traits = || self.traits.as_ref().and_then(|t| t.autonomous_system_number);
        let as_text = || self.asn.as_ref().and_then(|a| a.0);
        let asn = self.autonomous_system_number.or_else(as_text).or_else(in_traits).filter(|asn| *asn != 0);
        Located::At { country, position, exact: exact.is_some(), asn }
    }
}

/// A code as text, or a map with `iso_code`; some files have a country's name here, which is no code.
#[derive(Debug)]
struct CountryField<'a>(Option<&'a str>);

impl<'de: 'a, 'a> Deserialize<'de> for CountryField<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Field;
        impl<'de> Visitor<'de> for Field {
            type Value = Option<&'de str>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a country: its code, or a map with iso_code")
            }

            fn visit_borrowed_str<E>(self, code: &'de str) -> Result<Self::Value, E> {
                Ok(Some(code))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut code = None;
                while let Some(key) = map.next_key::<&str>()? {
                    if key == "iso_code" {
                        code = Some(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(code)
            }
        }
        deserializer.deserialize_any(Field).map(CountryField)
    }
}

/// The number of an autonomous system: a number, or text with or without "AS". Anything else is none.
#[derive(Debug)]
struct AsnField(Option<u32>);

impl<'de> Deserialize<'de> for AsnField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Field;
        impl<'de> Visitor<'de> for Field {
            type Value = Option<u32>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an autonomous system: its number, or text like AS3320")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(text.strip_prefix("AS").unwrap_or(text).parse().ok())
            }

            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(u32::try_from(number).ok())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(None)
            }
        }
        deserializer.deserialize_any(Field).map(AsnField)
    }
}
