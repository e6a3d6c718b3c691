//! What a configuration value can be: how it is read from TOML or from text, and how it is shown.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tern_ipconf::IpPrefix;

/// A value as it was written, before its key's type is known.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// A string.
    Text(String),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// true or false.
    Bool(bool),
    /// A list.
    List(Vec<Raw>),
    /// A table.
    Table(BTreeMap<String, Raw>),
    /// What no key takes; names its type.
    Other(&'static str),
}

impl Raw {
    fn kind(&self) -> &'static str {
        match self {
            Raw::Text(_) => "a string",
            Raw::Int(_) => "a whole number",
            Raw::Float(_) => "a fraction",
            Raw::Bool(_) => "true or false",
            Raw::List(_) => "a list",
            Raw::Table(_) => "a table",
            Raw::Other(kind) => kind,
        }
    }
}

/// A type of configuration value.
pub trait Value: Sized {
    /// Its shape in words, with the unit.
    const SHAPE: &'static str;

    /// Reads it from TOML; the error says what is wrong with it.
    fn from_raw(raw: &Raw) -> Result<Self, String>;

    /// Reads it from an environment variable or a flag.
    fn from_text(text: &str) -> Result<Self, String> {
        Self::from_raw(&Raw::Text(text.to_owned()))
    }

    /// The value of a key that nobody set and that has no default. None: such a key must have one.
    fn unset() -> Option<Self> {
        None
    }

    /// As TOML. None: unset.
    fn show(&self) -> Option<String>;

    /// How much it is, for keys with a range. None: it has no size, or is unset.
    fn size(&self) -> Option<u128> {
        None
    }
}

pub(super) fn wrong<T: Value>(raw: &Raw) -> String {
    format!("is {}, expected {}", raw.kind(), T::SHAPE)
}

/// A TOML string literal.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl<T: Value> Value for Option<T> {
    const SHAPE: &'static str = T::SHAPE;
    fn from_raw(raw: &Raw) -> Result<Self, String> {
        T::from_raw(raw).map(Some)
    }
    fn from_text(text: &str) -> Result<Self, String> {
        T::from_text(text).map(Some)
    }
    fn unset() -> Option<Self> {
        Some(None)
    }
    fn show(&self) -> Option<String> {
        self.as_ref().and_then(Value::show)
    }
    fn size(&self) -> Option<u128> {
        self.as_ref().and_then(Value::size)
    }
}

impl<T: Value> Value for Vec<T> {
    const SHAPE: &'static str = T::SHAPE;
    fn from_raw(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::List(items) => items.iter().map(T::from_raw).collect(),
            Raw::Text(_) => Ok(vec![T::from_raw(raw)?]),
            _ => Err(format!("is {}, expected a list of: {}", raw.kind(), T::SHAPE)),
        }
    }
    fn from_text(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(T::from_text).collect()
    }
    fn show(&self) -> Option<String> {
        let items: Vec<String> = self.iter().filter_map(Value::show).collect();
        Some(format!("[{}]", items.join(", ")))
    }
}

impl Value for String {
    const SHAPE: &'static str = "text";
    fn from_raw(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) => Ok(text.clone()),
            _ => Err(wrong::<Self>(raw)),
        }
    }
    fn show(&self) -> Option<String> {
        Some(quoted(self))
    }
}

impl Value for PathBuf {
    const SHAPE: &'static str = "a path; relative ones start at the working directory";
    fn from_raw(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) if !text.is_empty() => Ok(PathBuf::from(text)),
            _ => Err(wrong::<Self>(raw)),
        }
    }
    fn show(&self) -> Option<String> {
        Some(quoted(&self.display().to_string()))
    }
}

impl Value for bool {
    const SHAPE: &'static str = "true or false";
    fn from_raw(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Bool(on) => Ok(*on),
            Raw::Text(text) if text == "true" => Ok(true),
            Raw::Text(text) if text == "false" => Ok(false),
            _ => Err(wrong::<Self>(raw)),
        }
    }
    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

macro_rules! whole_numbers {
    ($($type:ty, $shape:literal;)*) => {$(
        impl Value for $type {
            const SHAPE: &'static str = $shape;
            fn from_raw(raw: &Raw) -> Result<Self, String> {
                match raw {
                    Raw::Int(n) => <$type>::try_from(*n).map_err(|_| format!("is {n}, expected {}", Self::SHAPE)),
                    Raw::Text(text) => text.parse().map_err(|_| format!("is {text:?}, expected {}", Self::SHAPE)),
                    _ => Err(wrong::<Self>(raw)),
                }
            }
            fn show(&self) -> Option<String> {
                Some(self.to_string())
            }
            fn size(&self) -> Option<u128> {
                Some(u128::from(*self))
            }
        }
    )*};
}

whole_numbers! {
    u8, "a whole number from 0 to 255";
    u16, "a port from 0 to 65535";
    u32, "a whole number from 0 to 4294967295";
}

macro_rules! parsed {
    ($($type:ty, $shape:literal;)*) => {$(
        impl Value for $type {
            const SHAPE: &'static str = $shape;
            fn from_raw(raw: &Raw) -> Result<Self, String> {
                match raw {
                    Raw::Text(text) => text.parse().map_err(|_| format!("is {text:?}, expected {}", Self::SHAPE)),
                    _ => Err(wrong::<Self>(raw)),
                }
            }
            fn show(&self) -> Option<String> {
                Some(quoted(&self.to_string()))
            }
        }
    )*};
}

parsed! {
    IpAddr, "an IP address, such as \"0.0.0.0\" or \"::\"";
    SocketAddr, "an IP address and port, such as \"127.0.0.1:7413\" or \"[::1]:7413\"";
}

impl Value for Duration {
    const SHAPE: &'static str = "a duration, such as \"250ms\", \"3s\", \"10m\" or \"24h\"";
    fn from_raw(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) => parse_duration(text).ok_or_else(|| format!("is {text:?}, expected {}", Self::SHAPE)),
            Raw::Int(_) | Raw::Float(_) => Err("has no unit: write it as text, such as \"3s\" or \"250ms\"".to_owned()),
            _ => Err(wrong::<Self>(raw)),
        }
    }
    fn show(&self) -> Option<String> {
        Some(quoted(&show_duration(*self)))
    }
    fn size(&self) -> Option<u128> {
        Some(self.as_millis())
    }
}

/// Reads a duration: a whole number and one of ms, s, m, h, d.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let count: u64 = text[..digits].parse().ok()?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    count.checked_mul(unit_ms).map(Duration::from_millis)
}

/// The shortest exact way to write a duration; below a millisecond is cut off.
pub fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if ms != 0 && ms.is_multiple_of(size) {
            return format!("{}{unit}", ms / size);
        }
    }
    format!("{ms}ms")
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

const BYTE_UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl Value for ByteSize {
    const SHAPE: &'static str = "bytes, such as 65536 or \"256MiB\"";
    fn from_raw(raw: &Raw) -> Result<Self, String> {
        let bad = |shown: &str| format!("is {shown:?}, expected {}", Self::SHAPE);
        match raw {
            Raw::Int(n) => u64::try_from(*n).map(Self).map_err(|_| bad(&n.to_string())),
            Raw::Text(text) => {
                let (digits, size) = BYTE_UNITS
                    .iter()
                    .find_map(|(unit, size)| text.strip_suffix(unit).map(|digits| (digits, *size)))
                    .unwrap_or((text, 1));
                let count: u64 = digits.trim().parse().map_err(|_| bad(text))?;
                count.checked_mul(size).map(Self).ok_or_else(|| bad(text))
            }
            _ => Err(wrong::<Self>(raw)),
        }
    }
    fn show(&self) -> Option<String> {
        let whole = BYTE_UNITS.iter().find(|(_, size)| self.0 != 0 && self.0.is_multiple_of(*size));
        Some(match whole {
            Some((unit, size)) => quoted(&format!("{}{unit}", self.0 / size)),
            None => self.0.to_string(),
        })
    }
    fn size(&self) -> Option<u128> {
        Some(self.0.into())
    }
}

/// A place on earth, in degrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    /// North is positive.
    pub latitude: f64,
    /// East is positive.
    pub longitude: f64,
}

impl Value for Position {
    const SHAPE: &'static str = "latitude and longitude in degrees, such as \"50.11,8.68\"";
    fn from_raw(raw: &Raw) -> Result<Self, String> {
        let Raw::Text(text) = raw else { return Err(wrong::<Self>(raw)) };
        text.split_once(',')
            .and_then(|(lat, lon)| Some((lat.trim().parse().ok()?, lon.trim().parse().ok()?)))
            .filter(|(lat, lon): &(f64, f64)| lat.abs() <= 90.0 && lon.abs() <= 180.0)
            .map(|(latitude, longitude)| Self { latitude, longitude })
            .ok_or_else(|| format!("is {text:?}, expected {}", Self::SHAPE))
    }
    fn from_text(text: &str) -> Result<Self, String> {
        Self::from_raw(&Raw::Text(text.to_owned()))
    }
    fn show(&self) -> Option<String> {
        Some(quoted(&format!("{},{}", self.latitude, self.longitude)))
    }
}

/// A host (a name or an address) and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Without brackets.
    pub host: String,
    /// 1-65535.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl std::str::FromStr for HostPort {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (host, port) = text.rsplit_once(':').ok_or(())?;
        let port: u16 = port.parse().ok().filter(|p| *p != 0).ok_or(())?;
        let bare = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or(())?,
            None if host.contains(':') => return Err(()),
            None => host,
        };
        let fits = !bare.is_empty() && bare.len() <= 253 && !bare.contains(char::is_whitespace);
        if fits { Ok(Self { host: bare.to_owned(), port }) } else { Err(()) }
    }
}

impl Value for HostPort {
    const SHAPE: &'static str = "host and port, such as \"us.example.org:7422\", \"192.0.2.1:7422\" or \"[::1]:7422\"";
    fn from_raw(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) => text.parse().map_err(|()| format!("is {text:?}, expected {}", Self::SHAPE)),
            _ => Err(wrong::<Self>(raw)),
        }
    }
    fn show(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

/// Another region of the deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub region: u8,
    /// Its name.
    pub name: String,
    /// Where its node port is reached.
    pub addr: HostPort,
}

impl Value for Peer {
    const SHAPE: &'static str = "{ region = 2, name = \"us\", addr = \"us.example.org:7422\" }, \
        or as text \"2:us@us.example.org:7422\"";
    fn from_raw(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Table(table) => {
                if let Some(unknown) = table.keys().find(|k| !["region", "name", "addr"].contains(&k.as_str())) {
                    return Err(format!("has the unknown key {unknown:?}, expected {}", Self::SHAPE));
                }
                let part =
                    |name: &str| table.get(name).ok_or_else(|| format!("lacks {name}, expected {}", Self::SHAPE));
                Ok(Self {
                    region: u8::from_raw(part("region")?)?,
                    name: String::from_raw(part("name")?)?,
                    addr: HostPort::from_raw(part("addr")?)?,
                })
            }
            Raw::Text(text) => text
                .split_once('@')
                .and_then(|(who, addr)| {
                    let (region, name) = who.split_once(':')?;
                    Some(Self { region: region.parse().ok()?, name: name.to_owned(), addr: addr.parse().ok()? })
                })
                .ok_or_else(|| format!("is {text:?}, expected {}", Self::SHAPE)),
            _ => Err(wrong::<Self>(raw)),
        }
    }
    fn show(&self) -> Option<String> {
        Some(format!(
            "{{ region = {}, name = {}, addr = {} }}",
            self.region,
            quoted(&self.name),
            quoted(&self.addr.to_string())
        ))
    }
}

impl Value for IpPrefix {
    const SHAPE: &'static str = "an address block, such as \"10.0.0.0/8\" or \"2001:db8::/32\"";
    fn from_raw(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) => text.parse().map_err(|e| format!("holds {e}")),
            _ => Err(wrong::<Self>(raw)),
        }
    }
    fn show(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

/// Text that is never shown: not in logs, not by `config check`, not by Debug.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself: for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Value for Secret {
    const SHAPE: &'static str = "secret text";
    fn from_raw(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) => Ok(Self(text.clone())),
            // Not `wrong`: nothing of a secret may reach an error message.
            _ => Err("is not a string; it holds a secret and must be one".to_owned()),
        }
    }
    fn show(&self) -> Option<String> {
        Some("\"(secret, not shown)\"".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Value>(text: &str) -> Result<T, String> {
        T::from_text(text)
    }

    #[test]
    fn durations_need_a_unit_and_are_shown_as_short_as_possible() {
        assert_eq!(read::<Duration>("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(read::<Duration>("250ms"), Ok(Duration::from_millis(250)));
        assert!(read::<Duration>("3").is_err());
        assert!(read::<Duration>("3 weeks").is_err());
        assert!(read::<Duration>("99999999999999999999d").is_err());
        assert!(Duration::from_raw(&Raw::Int(3)).unwrap_err().contains("no unit"));
        assert_eq!(show_duration(Duration::from_secs(7200)), "2h");
        assert_eq!(show_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(show_duration(Duration::ZERO), "0ms");
    }

    #[test]
    fn hosts_need_a_port_and_ipv6_needs_brackets() {
        let host = |text: &str| text.parse::<HostPort>().map(|h| h.to_string());
        assert_eq!(host("us.example.org:7422").as_deref(), Ok("us.example.org:7422"));
        assert_eq!(host("[::1]:7422").as_deref(), Ok("[::1]:7422"));
        for bad in ["", "us.example.org", "us:0", "::1:7422", "[::1:7422", ":7422", "a b:1", "us:70000"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn peers_are_read_from_tables_and_from_text() {
        let peer = read::<Vec<Peer>>("2:us@us.example.org:7422, 3:ap@[::1]:7432").unwrap();
        assert_eq!(peer[1].addr.to_string(), "[::1]:7432");
        assert_eq!(peer[0].show().unwrap(), "{ region = 2, name = \"us\", addr = \"us.example.org:7422\" }");
        assert!(read::<Peer>("us@example.org:1").unwrap_err().contains("expected {"));
        let table = BTreeMap::from([("region".to_owned(), Raw::Int(2)), ("nmae".to_owned(), Raw::Text("us".into()))]);
        assert!(Peer::from_raw(&Raw::Table(table)).unwrap_err().contains("nmae"));
    }

    #[test]
    fn positions_and_prefixes_out_of_range_are_refused() {
        assert_eq!(read::<Position>("50.11,8.68"), Ok(Position { latitude: 50.11, longitude: 8.68 }));
        assert!(read::<Position>("91,0").is_err());
        assert!(read::<Position>("north").is_err());
        assert_eq!(read::<IpPrefix>("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert!(read::<IpPrefix>("10.0.0.0/33").is_err());
    }

    #[test]
    fn sizes_take_binary_units() {
        assert_eq!(read::<ByteSize>("256MiB"), Ok(ByteSize(256 << 20)));
        assert_eq!(read::<ByteSize>("65536"), Ok(ByteSize(65536)));
        assert_eq!(ByteSize(256 << 20).show().unwrap(), "\"256MiB\"");
        assert!(read::<ByteSize>("1 lot").is_err());
        assert!(read::<ByteSize>("99999999999999999GiB").is_err());
    }

    #[test]
    fn a_secret_is_in_no_output() {
        let secret = read::<Secret>("hunter2").unwrap();
        assert!(!format!("{secret:?} {}", secret.show().unwrap()).contains("hunter2"));
        assert!(!Secret::from_raw(&Raw::Int(7777)).unwrap_err().contains("7777"));
    }
}
