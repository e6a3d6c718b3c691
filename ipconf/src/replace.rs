//! Looks after the GeoIP file of a running dispatcher: the driver of `geo/watch.rs`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::dispatch::Dispatch;
use crate::geo::{Geo, GeoReloadError, Step, Watch, check, stamp_of};
use crate::limits::GEOIP_CHECK_WITHIN;

/// How a check of a file ended.
enum Checked {
    /// It can be used.
    Good(Box<Geo>),
    /// It changed again.
    Changed,
    /// It can't be used: in a word, and why.
    Bad(&'static str, String),
}

impl Dispatch {
    /// Looks every so often, see [`crate::limits::GEOIP_LOOK_EVERY`], whether the file that the GeoIP data came
    /// from was replaced, and uses the new one if it can be used. Ends when the returned future is dropped.
    /// Data that is shipped is not looked after.
    pub async fn look_after_geo(self: Arc<Self>, every: Duration) {
        let mut path = PathBuf::new();
        let mut watch = Watch::default();
        loop {
            tokio::time::sleep(every).await;
            let in_use = self.geo();
            let Some(file) = in_use.file() else { continue };
            // A reload of the configuration may have named another one.
            if file.path != path {
                path.clone_from(&file.path);
                watch = Watch::default();
            }
            let stamp = match watch.look(file.stamp, stamp_of(&path)) {
                Step::Wait => continue,
                Step::Gone => {
                    tracing::warn!(file = %path.display(), "the GeoIP file is gone; its data stays in use");
                    self.metrics.geo_file("gone");
                    continue;
                }
                Step::Check(stamp) => stamp,
            };
            let looked = path.clone();
            let old = in_use.clone();
            match in_a_thread(move || check(&looked, stamp, &old)).await {
                Checked::Good(geo) => self.replace_geo(&in_use, *geo, &path),
                Checked::Changed => {}
                Checked::Bad(outcome, error) => {
                    watch.refuse(stamp);
                    let built_s = in_use.built_s();
                    tracing::warn!(
                        file = %path.display(), %error, built_s,
                        "the GeoIP file was replaced, but the new one is not used; the data in use stays"
                    );
                    self.metrics.geo_file(outcome);
                }
            }
        }
    }

    /// Unless an operator was faster.
    fn replace_geo(&self, old: &Arc<Geo>, new: Geo, path: &Path) {
        let (built_s, before_s) = (new.built_s(), old.built_s());
        if self.swap_geo(old, Arc::new(new)) {
            tracing::info!(file = %path.display(), built_s, before_s, "the GeoIP file was replaced and is in use");
            self.metrics.geo_file("taken");
        }
    }
}

/// Reading and following a whole city file takes seconds, in which this thread has clients to serve. A thread
/// of its own, since those of a pool would outlive a simulated node; here it ends with its file.
async fn in_a_thread(check: impl FnOnce() -> Result<Option<Geo>, GeoReloadError> + Send + 'static) -> Checked {
    let (tell, told) = oneshot::channel();
    let started = std::thread::Builder::new().name("geoip-check".to_owned()).spawn(move || {
        // Nobody waits any more if the dispatcher ended meanwhile.
        drop(tell.send(check()));
    });
    if let Err(error) = started {
        return Checked::Bad("unchecked", format!("no thread could be started to check it: {error}"));
    }
    match timeout(GEOIP_CHECK_WITHIN, told).await {
        Ok(Ok(Ok(Some(geo)))) => Checked::Good(Box::new(geo)),
        Ok(Ok(Ok(None))) => Checked::Changed,
        Ok(Ok(Err(error))) => Checked::Bad(error.name(), error.to_string()),
        Ok(Err(_)) => Checked::Bad("unchecked", "checking it failed in the middle".to_owned()),
        Err(_) => {
            let within_s = GEOIP_CHECK_WITHIN.as_secs();
            Checked::Bad("unchecked", format!("it could not be read and checked within {within_s} s"))
        }
    }
}
