//! What is asked of an object store, and one in memory.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tern_core::store::BoxFut;

/// Why an object store did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// There is no object of that name.
    #[error("there is no such object")]
    Missing,
    /// It is longer than it may be. Nothing of it is kept.
    #[error("it has {0} bytes, more than any that tern writes")]
    TooLong(u64),
    /// The object store failed, or can't be reached. The same may succeed later.
    #[error("{0}")]
    Failed(String),
}

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// When it was written, in wall milliseconds of the object store's clock.
    pub written_ms: u64,
}

/// An object store. Names are words of `a-z 0-9 - . _` between slashes.
pub trait Objects: Debug + Send + Sync + 'static {
    /// Writes an object whole: when the future ends well it is durable, and until then there is none, or the one that
    /// was there before.
    fn put<'a>(&'a self, name: &'a str, object: Bytes) -> BoxFut<'a, Result<(), ObjectError>>;

    /// Reads an object of at most `limit` bytes.
    fn get<'a>(&'a self, name: &'a str, limit: u64) -> BoxFut<'a, Result<Bytes, ObjectError>>;

    /// The length of an object, without reading it.
    fn length<'a>(&'a self, name: &'a str) -> BoxFut<'a, Result<u64, ObjectError>>;

    /// Deletes an object; that there is none is no error.
    fn delete<'a>(&'a self, name: &'a str) -> BoxFut<'a, Result<(), ObjectError>>;

    /// Objects whose names begin with `folder/` and come after `after`, in order of their names, at most `limit` of
    /// them. One that is written or deleted meanwhile may be among them or not.
    fn list<'a>(
        &'a self,
        folder: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFut<'a, Result<Vec<Listed>, ObjectError>>;
}

/// An object store in memory, for simulation and tests. Clones are the same one. It can fail, lose and spoil what it has.
#[derive(Clone, Default)]
pub struct MemoryObjects {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, (Bytes, u64)>,
    dead: bool,
    silent: bool,
    now_ms: u64,
    /// Requests answered: puts, gets, deletions, lists.
    asked: [u64; 4],
}

impl Debug for MemoryObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryObjects(..)")
    }
}

impl MemoryObjects {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on every request fails, or none does.
    pub fn set_dead(&self, dead: bool) {
        self.state().dead = dead;
    }

    /// From now on no request is answered, or all are. Those that wait for an answer wait for ever.
    pub fn set_silent(&self, silent: bool) {
        self.state().silent = silent;
    }

    /// What its clock shows.
    pub fn set_time(&self, now_ms: u64) {
        self.state().now_ms = now_ms;
    }

    /// Names of all objects, in order.
    pub fn names(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// An object's bytes.
    pub fn bytes(&self, name: &str) -> Option<Bytes> {
        self.state().objects.get(name).map(|(object, _)| object.clone())
    }

    /// Replaces an object behind the back of whoever wrote it; `None` takes it away.
    pub fn spoil(&self, name: &str, object: Option<Bytes>) {
        let mut state = self.state();
        let now = state.now_ms;
        match object {
            Some(object) => state.objects.insert(name.to_owned(), (object, now)),
            None => state.objects.remove(name),
        };
    }

    /// Requests answered so far: puts, gets, deletions, lists.
    pub fn asked(&self) -> [u64; 4] {
        self.state().asked
    }

    async fn ask<T>(
        &self,
        what: usize,
        answer: impl FnOnce(&mut State) -> Result<T, ObjectError>,
    ) -> Result<T, ObjectError> {
        if self.state().silent {
            std::future::pending::<()>().await;
        }
        let mut state = self.state();
        if state.dead {
            return Err(ObjectError::Failed("it is dead".to_owned()));
        }
        state.asked[what] += 1;
        answer(&mut state)
    }
}

impl Objects for MemoryObjects {
    fn put<'a>(&'a self, name: &'a str, object: Bytes) -> BoxFut<'a, Result<(), ObjectError>> {
        Box::pin(self.ask(0, move |state| {
            let now = state.now_ms;
            state.objects.insert(name.to_owned(), (object, now));
            Ok(())
        }))
    }

    fn get<'a>(&'a self, name: &'a str, limit: u64) -> BoxFut<'a, Result<Bytes, ObjectError>> {
        Box::pin(self.ask(1, move |state| match state.objects.get(name) {
            Some((object, _)) if object.len() as u64 > limit => Err(ObjectError::TooLong(object.len() as u64)),
            Some((object, _)) => Ok(object.clone()),
            None => Err(ObjectError::Missing),
        }))
    }

    fn length<'a>(&'a self, name: &'a str) -> BoxFut<'a, Result<u64, ObjectError>> {
        Box::pin(self.ask(1, move |state| {
            state.objects.get(name).map(|(object, _)| object.len() as u64).ok_or(ObjectError::Missing)
        }))
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFut<'a, Result<(), ObjectError>> {
        Box::pin(self.ask(2, move |state| {
            state.objects.remove(name);
            Ok(())
        }))
    }

    fn list<'a>(
        &'a self,
        folder: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFut<'a, Result<Vec<Listed>, ObjectError>> {
        Box::pin(self.ask(3, move |state| {
            let start = format!("{folder}/");
            let named = state.objects.iter().filter(|(name, _)| name.starts_with(&start));
            let named = named.filter(|(name, _)| after.is_none_or(|after| name.as_str() > after)).take(limit);
            let listed = named.map(|(name, (object, written_ms))| Listed {
                name: name.clone(),
                bytes: object.len() as u64,
                written_ms: *written_ms,
            });
            Ok(listed.collect())
        }))
    }
}
