//! The trait of the archive over `object_store`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload};
use tern_core::store::BoxFut;
use tern_replication::store::archive::{Listed, ObjectError, Objects};

fn failed(error: Error) -> ObjectError {
    match error {
        Error::NotFound { .. } => ObjectError::Missing,
        // With its causes: the outermost only says that a request failed.
        other => {
            let mut words = other.to_string();
            let mut cause = std::error::Error::source(&other);
            while let Some(error) = cause {
                let text = error.to_string();
                if !words.contains(&text) {
                    words = format!("{words}: {text}");
                }
                cause = error.source();
            }
            ObjectError::Failed(words)
        }
    }
}

fn listed(name: String, meta: &ObjectMeta) -> Listed {
    let written_ms = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0);
    Listed { name, bytes: meta.size, written_ms }
}

async fn get(store: &impl ObjectStore, at: &Path, limit: u64) -> Result<Bytes, ObjectError> {
    let found = store.get(at).await.map_err(failed)?;
    if found.meta.size > limit {
        return Err(ObjectError::TooLong(found.meta.size));
    }
    let mut parts = found.into_stream();
    let mut object = Vec::new();
    while let Some(part) = parts.try_next().await.map_err(failed)? {
        // It may be longer than it said.
        if (object.len() + part.len()) as u64 > limit {
            return Err(ObjectError::TooLong((object.len() + part.len()) as u64));
        }
        object.extend_from_slice(&part);
    }
    Ok(object.into())
}

async fn delete(store: &impl ObjectStore, at: &Path) -> Result<(), ObjectError> {
    match store.delete(at).await {
        Err(Error::NotFound { .. }) | Ok(()) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// In the directory of every archive: without it, something else is there, such as the place where a disk was mounted.
const MARKER: &str = "TERN-ARCHIVE";

/// Objects in files below a directory.
#[derive(Debug)]
pub struct Directory {
    files: LocalFileSystem,
    dir: PathBuf,
    /// The marker was there once.
    is_known: AtomicBool,
}

impl Directory {
    /// Below `dir`, which `files` has as its prefix.
    pub fn new(files: LocalFileSystem, dir: &std::path::Path) -> Self {
        let is_known = AtomicBool::new(dir.join(MARKER).exists());
        Self { files, dir: dir.to_owned(), is_known }
    }

    /// Whether nothing was ever written there.
    pub fn is_new(&self) -> bool {
        !self.is_known.load(Ordering::Acquire)
    }

    /// An object was found, so whoever wrote it, maybe another region, has made an archive of it.
    fn found(&self) {
        if self.is_new() && self.dir.join(MARKER).exists() {
            self.is_known.store(true, Ordering::Release);
        }
    }

    /// Whether this is the archive still, and not an empty place where its disk was.
    fn check(&self) -> Result<(), ObjectError> {
        if !self.is_new() && !self.dir.join(MARKER).exists() {
            let what =
                format!("{} holds no archive any more: if its disk is not mounted, mount it", self.dir.display());
            return Err(ObjectError::Failed(what));
        }
        Ok(())
    }

    fn failed(&self, error: Error) -> ObjectError {
        self.check().err().unwrap_or_else(|| failed(error))
    }

    async fn begin(&self) -> Result<(), ObjectError> {
        self.check()?;
        if self.is_new() {
            let words = Bytes::from_static(b"old messages of tern\n");
            self.files.put(&Path::from(MARKER), PutPayload::from_bytes(words)).await.map_err(failed)?;
            self.is_known.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Goes through folders in order of their names: a directory does not keep its own order.
    fn walk<'a>(
        &'a self,
        folder: Path,
        after: Option<&'a str>,
        limit: usize,
        found: &'a mut Vec<Listed>,
    ) -> BoxFut<'a, Result<(), ObjectError>> {
        Box::pin(async move {
            let inside = self.files.list_with_delimiter(Some(&folder)).await.map_err(failed)?;
            let mut files = inside.objects;
            files.sort_by(|a, b| a.location.cmp(&b.location));
            let mut folders = inside.common_prefixes;
            folders.sort();
            // A folder holds either objects or folders.
            for meta in files.iter().filter(|meta| after.is_none_or(|after| meta.location.as_ref() > after)) {
                if found.len() < limit {
                    found.push(listed(meta.location.to_string(), meta));
                }
            }
            for folder in folders {
                let before = |after: &str| !after.starts_with(folder.as_ref()) && folder.as_ref() < after;
                if found.len() < limit && !after.is_some_and(before) {
                    self.walk(folder, after, limit, found).await?;
                }
            }
            Ok(())
        })
    }
}

impl Objects for Directory {
    fn put<'a>(&'a self, name: &'a str, object: Bytes) -> BoxFut<'a, Result<(), ObjectError>> {
        Box::pin(async move {
            self.begin().await?;
            self.files.put(&Path::from(name), PutPayload::from_bytes(object)).await.map(|_| ()).map_err(failed)
        })
    }

    fn get<'a>(&'a self, name: &'a str, limit: u64) -> BoxFut<'a, Result<Bytes, ObjectError>> {
        Box::pin(async move {
            let found = get(&self.files, &Path::from(name), limit).await.inspect(|_| self.found());
            found.map_err(|error| self.check().err().unwrap_or(error))
        })
    }

    fn length<'a>(&'a self, name: &'a str) -> BoxFut<'a, Result<u64, ObjectError>> {
        Box::pin(
            async move { self.files.head(&Path::from(name)).await.map(|meta| meta.size).map_err(|e| self.failed(e)) },
        )
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFut<'a, Result<(), ObjectError>> {
        Box::pin(async move { delete(&self.files, &Path::from(name)).await })
    }

    fn list<'a>(
        &'a self,
        folder: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFut<'a, Result<Vec<Listed>, ObjectError>> {
        Box::pin(async move {
            let mut found = Vec::new();
            match self.walk(Path::from(folder), after, limit, &mut found).await {
                Ok(()) | Err(ObjectError::Missing) => Ok(found),
                Err(error) => Err(error),
            }
        })
    }
}

/// Objects in a bucket.
#[derive(Debug)]
pub struct Remote {
    bucket: AmazonS3,
    prefix: String,
}

impl Remote {
    /// Below `prefix`, if it is not empty.
    pub fn new(bucket: AmazonS3, prefix: &str) -> Self {
        Self { bucket, prefix: prefix.to_owned() }
    }

    fn at(&self, name: &str) -> Path {
        if self.prefix.is_empty() { Path::from(name) } else { Path::from(format!("{}/{name}", self.prefix)) }
    }

    fn name(&self, at: &Path) -> String {
        let whole = at.as_ref();
        let below = whole.strip_prefix(&self.prefix).unwrap_or(whole);
        below.strip_prefix('/').unwrap_or(below).to_owned()
    }
}

impl Objects for Remote {
    fn put<'a>(&'a self, name: &'a str, object: Bytes) -> BoxFut<'a, Result<(), ObjectError>> {
        Box::pin(async move {
            self.bucket.put(&self.at(name), PutPayload::from_bytes(object)).await.map(|_| ()).map_err(failed)
        })
    }

    fn get<'a>(&'a self, name: &'a str, limit: u64) -> BoxFut<'a, Result<Bytes, ObjectError>> {
        Box::pin(async move { get(&self.bucket, &self.at(name), limit).await })
    }

    fn length<'a>(&'a self, name: &'a str) -> BoxFut<'a, Result<u64, ObjectError>> {
        Box::pin(async move { self.bucket.head(&self.at(name)).await.map(|meta| meta.size).map_err(failed) })
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFut<'a, Result<(), ObjectError>> {
        Box::pin(async move { delete(&self.bucket, &self.at(name)).await })
    }

    fn list<'a>(
        &'a self,
        folder: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFut<'a, Result<Vec<Listed>, ObjectError>> {
        Box::pin(async move {
            let folder = self.at(folder);
            let mut stream = match after {
                Some(after) => self.bucket.list_with_offset(Some(&folder), &self.at(after)),
                None => self.bucket.list(Some(&folder)),
            };
            let mut found = Vec::new();
            while found.len() < limit {
                let Some(meta) = stream.try_next().await.map_err(failed)? else { break };
                found.push(listed(self.name(&meta.location), &meta));
            }
            Ok(found)
        })
    }
}
