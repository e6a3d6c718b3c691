//! The archive of a region's old messages, by its configuration, and the task that moves them there.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tern_archive::{Location, S3Options};
use tern_core::ids::Region;
use tern_net::env::Env;
use tern_replication::store::archive::{Archive, ArchiveOptions, TierPlan, TierReport};
use tern_replication::store::limits::ARCHIVE_SWEEP_EVERY;

use crate::backend::Backend;
use crate::config::keys::Settings;

/// Where systems keep the authorities that they trust.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// The first pass after a start waits so long: there is more urgent work then.
const FIRST_AFTER: Duration = Duration::from_secs(60);

/// Opens what `store.tier.url` names; `None` where it is not set. With whether nothing was ever written there.
pub fn open(settings: &Settings, env: &Env, region: Region) -> Result<(Option<Arc<Archive>>, bool)> {
    open_as(settings, env, region, |archive| archive)
}

fn open_as(
    settings: &Settings,
    env: &Env,
    region: Region,
    form: impl FnOnce(Archive) -> Archive,
) -> Result<(Option<Arc<Archive>>, bool)> {
    let Some(url) = &settings.store_tier_url else { return Ok((None, true)) };
    let options = match &url.location {
        Location::Directory(_) => S3Options::default(),
        Location::S3 { .. } => s3_options(settings)?,
    };
    let opened = tern_archive::open(&url.location, &options, env, settings.store_tier_timeout)?;
    let options = ArchiveOptions { cache_bytes: settings.store_tier_cache.0, timeout: settings.store_tier_timeout };
    let archive = Archive::new(opened.objects, &settings.deployment, region, options);
    Ok((Some(Arc::new(form(archive))), opened.is_new))
}

/// The same for a region whose messages lie in a database with those of other regions.
pub fn of_database(settings: &Settings, env: &Env, region: Region) -> Result<(Option<Arc<Archive>>, bool)> {
    open_as(settings, env, region, Archive::of_all_regions)
}

fn s3_options(settings: &Settings) -> Result<S3Options> {
    let is_plain = settings.store_tier_endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let ca_pem = match &settings.store_tier_ca {
        Some(path) => fs::read(path).with_context(|| format!("{} of store.tier.ca can't be read", path.display()))?,
        None if is_plain => Vec::new(),
        None => SYSTEM_AUTHORITIES.iter().find_map(|path| fs::read(path).ok()).ok_or_else(|| {
            anyhow!("this system has no file of trusted authorities where others have it: set store.tier.ca to one")
        })?,
    };
    let secret = settings.store_tier_secret.as_ref().map(|secret| secret.reveal().to_owned());
    Ok(S3Options {
        endpoint: settings.store_tier_endpoint.clone(),
        region: settings.store_tier_region.clone(),
        key: settings.store_tier_key.clone().zip(secret),
        ca_pem,
    })
}

/// The plan of a pass.
pub fn plan(settings: &Settings, now_ms: u64) -> TierPlan {
    TierPlan::new(now_ms, settings.store_tier_after)
}

/// Moves what is old, now and then, for as long as the process lives.
pub async fn tend(store: Backend, settings: Settings, env: Env) {
    let mut swept: Option<Duration> = None;
    tokio::time::sleep(FIRST_AFTER.min(settings.store_tier_every)).await;
    loop {
        let now = env.clock.now();
        let sweep = swept.is_none_or(|at| now.saturating_sub(at) >= ARCHIVE_SWEEP_EVERY);
        match store.tier(&TierPlan { sweep, ..plan(&settings, env.clock.wall_ms()) }).await {
            Ok(report) => {
                if sweep && report.failed.is_none() {
                    swept = Some(now);
                }
                tell(&report);
            }
            Err(error) => tracing::error!(%error, "old messages could not be moved to the archive; trying again"),
        }
        tokio::time::sleep(settings.store_tier_every).await;
    }
}

fn tell(report: &TierReport) {
    if let Some(what) = &report.failed {
        tracing::error!(what, "not all that is old could be moved to the archive; trying again");
    }
    if report.moved_buckets + report.rewritten + report.orphans > 0 {
        tracing::info!(
            buckets = report.moved_buckets,
            entries = report.moved_entries,
            bytes = report.moved_bytes,
            rewritten = report.rewritten,
            orphans = report.orphans,
            archived_bytes = report.archived_bytes,
            "old messages were moved to the archive"
        );
    }
}
