//! The archive's object stores: a directory, or a bucket of S3 or of what speaks like it.
//!
//! What is moved there, and when, is decided in `tern_replication::store`; here is only how objects are written and read
//! ([`tern_replication::store::archive::Objects`]). Only the binary has this crate, and with it `object_store`.
//!
//! Reading order: [`location`] (what a URL names), [`objects`] (the trait), [`connector`] (its requests over this node's
//! own sockets, clock and TLS), [`open`].
//!
//! Invariants:
//!
//! - No HTTP client but tern's own is used, so that the node's `Env` is all that reaches out, and `ring` the only
//!   cryptography.
//! - A request of `object_store` is one request, or few: whoever asks decides how often it is tried again.
//! - Files are written beside their place, synced and renamed, and their directory is synced.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod connector;
pub mod location;
pub mod objects;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::{BackoffConfig, RetryConfig};
use tern_net::env::Env;
use tern_replication::store::archive::Objects;

pub use location::Location;

use connector::Connector;
use objects::{Directory, Remote};

/// Tries of one request beside the first, for a connection that the other side has just closed.
const RETRIES: usize = 2;

/// How to reach an S3 bucket.
#[derive(Clone, Debug, Default)]
pub struct S3Options {
    /// Where it is, for others than AWS, such as `https://s3.example.com`. The bucket's name goes into the path.
    pub endpoint: Option<String>,
    /// Its region; by default that of `AWS_REGION`, else us-east-1.
    pub region: Option<String>,
    /// Name and secret of the key; by default those of `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or what the
    /// machine's role gives.
    pub key: Option<(String, String)>,
    /// Authorities that the server's certificate may be of (PEM).
    pub ca_pem: Vec<u8>,
}

/// An open object store.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The object store.
    pub objects: Arc<dyn Objects>,
    /// It is known that nothing was ever written there.
    pub is_new: bool,
}

/// Why an object store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory is not there.
    #[error(
        "{dir} of store.tier.url is not a directory that is there ({what}): if its disk is not mounted, mount it; else make the directory",
        dir = .dir.display()
    )]
    Directory {
        /// Which one.
        dir: PathBuf,
        /// What the system says.
        what: String,
    },
    /// Something about S3 makes no sense.
    #[error("the object store of store.tier.url can't be used: {0}")]
    S3(String),
}

/// Opens an object store. Of a directory it makes sure that it is there; a bucket is not asked for anything yet.
/// `within` bounds each HTTP request.
pub fn open(location: &Location, options: &S3Options, env: &Env, within: Duration) -> Result<Opened, OpenError> {
    match location {
        Location::Directory(dir) => {
            // Not made: an unmounted disk must not become an archive of which nobody knows where it went.
            let failed = |what: String| OpenError::Directory { dir: dir.clone(), what };
            if !fs::metadata(dir).map_err(|error| failed(error.to_string()))?.is_dir() {
                return Err(failed("it is a file".to_owned()));
            }
            let files = LocalFileSystem::new_with_prefix(dir).map_err(|error| failed(error.to_string()))?;
            let directory = Directory::new(files.with_fsync(true), dir);
            Ok(Opened { is_new: directory.is_new(), objects: Arc::new(directory) })
        }
        Location::S3 { bucket, prefix } => {
            let failed = |error: object_store::Error| OpenError::S3(error.to_string());
            let retry = RetryConfig { max_retries: RETRIES, retry_timeout: within, backoff: BackoffConfig::default() };
            let connector = Connector::new(env.clone(), &options.ca_pem, within).map_err(OpenError::S3)?;
            let mut builder = AmazonS3Builder::from_env()
                .with_bucket_name(bucket)
                .with_retry(retry)
                .with_disable_bulk_delete(true)
                .with_http_connector(connector);
            if let Some(endpoint) = &options.endpoint {
                builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http:"));
            }
            if let Some(region) = &options.region {
                builder = builder.with_region(region);
            }
            if let Some((name, secret)) = &options.key {
                builder = builder.with_access_key_id(name).with_secret_access_key(secret);
            }
            let remote = Remote::new(builder.build().map_err(failed)?, prefix);
            Ok(Opened { is_new: false, objects: Arc::new(remote) })
        }
    }
}
