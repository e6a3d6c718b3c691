//! The GeoIP file is replaced under a running dispatcher: by renames, in place, by worse ones.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use support::bed::Bed;
use support::{Value, file, mmdb_built};
use tern_core::ranking::Country;
use tern_ipconf::Geo;
use tern_ipconf::api::DispatchRequest;
use tern_net::system::system_env;

/// Looks follow each other faster than an operator's do.
const EVERY: Duration = Duration::from_millis(10);
/// Until something is so, or the test has failed.
const WITHIN: Duration = Duration::from_secs(20);

fn country(code: &'static str) -> Value {
    Value::Map(vec![("country_code", Value::Text(code))])
}

/// All of IPv4 in one country.
fn all_in(code: &'static str, epoch: u64) -> Vec<u8> {
    mmdb_built(epoch, 4, "country", &[("0.0.0.0", 1, country(code)), ("128.0.0.0", 1, country(code))])
}

struct Watched {
    bed: Bed,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Watched {
    /// A dispatcher that looks after a file by which all addresses are in Germany, built at 1,000.
    fn start() -> Self {
        let bed = Bed::new();
        let (dir, path) = file(&all_in("DE", 1_000));
        bed.dispatch.set_geo(Arc::new(Geo::open(&path).unwrap()));
        system_env().unwrap().tasks.spawn(bed.dispatch.clone().look_after_geo(EVERY));
        Self { bed, path, _dir: dir }
    }

    /// A new file, renamed over the old one.
    fn rename(&self, bytes: &[u8]) {
        let new = self.path.with_extension("new");
        std::fs::write(&new, bytes).unwrap();
        std::fs::rename(&new, &self.path).unwrap();
    }

    fn country(&self) -> Option<Country> {
        self.bed.dispatch.geo().locate("8.8.8.8".parse().unwrap()).country()
    }

    fn count(&self, outcome: &str) -> u32 {
        let line = format!("tern_dispatch_geoip_files_total{{outcome=\"{outcome}\"}} ");
        let metrics = self.bed.metrics();
        metrics.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |n| n.parse().unwrap())
    }

    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let until = tokio::time::Instant::now() + WITHIN;
        while !so(self) {
            assert!(tokio::time::Instant::now() < until, "never {what}; it is {:?}", self.country());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn a_newer_file_is_taken_whether_renamed_into_place_or_written_in_place() {
    let watched = Watched::start();
    watched.rename(&all_in("FR", 2_000));
    watched.until("in France", |w| w.country() == Country::new("FR")).await;
    std::fs::write(&watched.path, all_in("IT", 3_000)).unwrap();
    watched.until("in Italy", |w| w.country() == Country::new("IT")).await;
    watched.until("counted", |w| w.count("taken") == 2).await;
    assert!(!watched.bed.metrics().contains("unusable"));
    // Answers are made with it, and the gauge says how old it is.
    assert_eq!(watched.bed.ask(&DispatchRequest::default(), "8.8.8.8").client.country.as_deref(), Some("IT"));
    watched.bed.dispatch.refresh_metrics();
    assert!(watched.bed.metrics().contains("tern_dispatch_geoip_built_seconds 3000"));
}

#[tokio::test]
async fn what_can_not_be_used_or_is_worse_is_refused_once_and_the_data_in_use_stays() {
    let watched = Watched::start();
    let whole = all_in("FR", 2_000);
    let asn = Value::Map(vec![("autonomous_system_number", Value::Uint(3320))]);
    // It is as long as it says, and no address that is tried leads to the broken record.
    let mut far_off =
        mmdb_built(2_000, 4, "country", &[("0.0.0.0", 1, country("ES")), ("128.0.0.1", 32, country("ES"))]);
    let broken = far_off.windows(12).rposition(|w| w == b"country_code").unwrap() - 1;
    far_off[broken - 1] = 0xff;
    let bad: [(&str, &str, u32, Vec<u8>); 8] = [
        ("empty", "unusable", 1, Vec::new()),
        ("half of one", "unusable", 2, whole[..whole.len() / 2].to_vec()),
        ("of something else", "unusable", 3, b"PK\x03\x04 no database".to_vec()),
        ("of providers only", "unusable", 4, mmdb_built(2_000, 4, "asn", &[("0.0.0.0", 1, asn)])),
        ("older", "older", 1, all_in("FR", 999)),
        ("other contents of the same build", "same_build", 1, all_in("FR", 1_000)),
        ("of a tenth of the addresses", "fewer", 1, mmdb_built(2_000, 4, "country", &[("16.0.0.0", 5, country("FR"))])),
        ("broken where no probe looks", "damaged", 1, far_off),
    ];
    for (what, outcome, n, bytes) in bad {
        watched.rename(&bytes);
        watched.until(what, |w| w.count(outcome) >= n).await;
        assert_eq!(
            (watched.country(), watched.count(outcome), watched.count("taken")),
            (Country::new("DE"), n, 0),
            "{what}"
        );
    }
    std::fs::remove_file(&watched.path).unwrap();
    watched.until("gone", |w| w.count("gone") == 1).await;
    assert_eq!(watched.country(), Country::new("DE"));
    // After all that a good one is taken as ever.
    watched.rename(&whole);
    watched.until("in France", |w| w.country() == Country::new("FR")).await;
}

#[tokio::test]
async fn a_file_that_only_looks_new_is_no_reason_to_refuse_anything() {
    let watched = Watched::start();
    // Copied over itself: another inode, the same bytes.
    watched.rename(&all_in("DE", 1_000));
    watched.until("taken", |w| w.count("taken") == 1).await;
    std::fs::File::open(&watched.path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    watched.until("taken again", |w| w.count("taken") == 2).await;
    assert_eq!(watched.count("same_build"), 0);
}

#[tokio::test]
async fn an_operator_may_set_what_would_be_refused_and_it_stays() {
    let watched = Watched::start();
    watched.rename(&all_in("FR", 1));
    watched.until("refused", |w| w.count("older") == 1).await;
    watched.bed.dispatch.set_geo(Arc::new(Geo::open(&watched.path).unwrap()));
    assert_eq!(watched.country(), Country::new("FR"));
    // And is followed from there, older than what was in use before.
    watched.rename(&all_in("IT", 2));
    watched.until("in Italy", |w| w.country() == Country::new("IT")).await;
}
