//! Limits of the dispatch API and of what it keeps.

use std::time::Duration;

/// Largest request body: the largest request there can be has about 10 KiB.
pub const BODY_BYTES: usize = 16 * 1024;
/// A body that has not arrived by then is given up: a phone on a bad link sends 16 KiB in less.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Round trips in one request: ten lists' worth.
pub const RTT_SAMPLES: usize = 50;
/// Edges that one request may exclude, likewise.
pub const EXCLUDED: usize = 50;
/// Longest round trip that a request may tell, in milliseconds. What is longer is not one.
pub const RTT_MS_MAX: f64 = 60_000.0;
/// Media ranges of `Accept` that are looked at: browsers send a handful.
pub const MEDIA_RANGES: usize = 32;
/// Edges that an explanation names as not listed: what an operator can read.
pub const UNLISTED: usize = 64;
/// Addresses that one edge may report: two families, two networks each, twice.
pub const ADDRESSES_PER_EDGE: usize = 8;
/// Bytes of a failure domain's or region's name.
pub const NAME_BYTES: usize = 64;
/// Largest GeoIP file that is read into memory; the largest city files have some 130 MB.
pub const GEOIP_FILE_BYTES: u64 = 1024 * 1024 * 1024;
/// How often the GeoIP file is looked at: a new one is in use within two such times, and a look costs
/// microseconds.
pub const GEOIP_LOOK_EVERY: Duration = Duration::from_secs(5);
/// A new GeoIP file is read and checked within this time, or is of no use: a minute is ten times what a large
/// city file takes on a busy machine. Meanwhile both files are in memory.
pub const GEOIP_CHECK_WITHIN: Duration = Duration::from_secs(60);
/// A list is good for this long; each answer is up to [`TTL_JITTER_PERCENT`] off, so that clients that once
/// asked together do not go on asking together.
pub const TTL_S: u32 = 300;
/// See [`TTL_S`].
pub const TTL_JITTER_PERCENT: u32 = 10;
/// Where no edge can be listed, clients are asked to wait so many seconds, and up to as many more at random:
/// an edge that starts is listed within one.
pub const RETRY_AFTER_S: u32 = 2;
