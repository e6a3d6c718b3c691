//! TLS sessions taken up again, so that a client's first words travel with its first packet (0-RTT).
//!
//! *Server.* [`Tickets`] holds what it takes to take a session up again, each usable once: whoever records a first
//! packet and sends it again finds its ticket used, and the early data in it is not read. (A stateless ticket would
//! be good many times, so rustls takes no early data with one.) It is bounded: the oldest give way, and who comes
//! with one that is gone shakes hands in full, which costs the round trip that early data would have saved. A stop in
//! order keeps them in a file for the next start, encrypted under a key from the node's own [`ResetKey`]; the file is gone
//! before the first of them can be used, so that a crash can't make a ticket good twice.
//!
//! *Client.* [`Resuming`] keeps the tickets of each server apart: names may be shared by many servers, and a ticket
//! shown to the wrong one is wasted. They live as long as the process: rustls 0.23 can't write them down.

mod kept;

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::server::StoresServerSessions;
use rustls::{ClientConfig, ServerConfig};
use tern_core::clock::Entropy;

use self::kept::{NAME_BYTES, Name, Ring};
use crate::reset::{ResetKey, write};

/// Given with each handshake: for the next connection, and two attempts beside it. Each costs an edge memory.
const TICKETS_PER_HANDSHAKE: usize = 3;
/// Servers whose tickets a client keeps: those of a dispatch list, and of one before it.
const SERVERS: usize = 16;
/// What is in the file; another number means that it can't be read by this version.
const FILE_MAGIC: &[u8; 8] = b"terntk\0\x01";

/// See the module. Shared by all listeners of a node.
pub struct Tickets {
    sessions: Mutex<Ring>,
    most: usize,
}

impl Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("kept", &self.len()).field("most", &self.most).finish()
    }
}

/// Why tickets of the last start can't be had. The server serves as well without.
#[derive(Debug, thiserror::Error)]
pub enum TicketsError {
    /// The file system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is no such file, of another version or another key, or damaged.
    #[error("it is damaged, or was written with another key or for other parameters")]
    Unreadable,
}

impl Tickets {
    /// At most so many are kept, about 160 bytes each; 0 = none, and no early data. One that was used counts until those
    /// that came before it have gone.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { sessions: Mutex::default(), most })
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sessions that may be taken up.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets clients of a QUIC server take sessions up again, and send data with their first packet.
    pub fn offer(self: &Arc<Self>, config: &mut ServerConfig) {
        if self.most == 0 {
            return;
        }
        config.session_storage = self.clone();
        config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
        // QUIC has its own limit, so this is all or nothing (RFC 9001, 4.6.1).
        config.max_early_data_size = u32::MAX;
    }

    /// Takes what a former start left in `file`, which is then gone: how many, none where there is no file. `made_for` names
    /// what client and server must agree on, such as limits of a connection: tickets for anything else are of no use.
    ///
    /// # Errors
    /// The file can't be read or removed, or holds no tickets of this node: none of them is used.
    pub fn take_up(&self, file: &Path, key: &ResetKey, made_for: &str) -> Result<usize, TicketsError> {
        let sealed = match fs::read(file) {
            Ok(sealed) => sealed,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(e.into()),
        };
        fs::remove_file(file)?;
        // A crash must not bring it back.
        if let Some(directory) = file.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::File::open(directory)?.sync_all()?;
        }
        let plain = unseal(sealed, key, made_for).ok_or(TicketsError::Unreadable)?;
        let sessions = read_sessions(&plain).ok_or(TicketsError::Unreadable)?;
        let mut ours = self.lock();
        Ok(sessions.into_iter().filter(|(name, session)| ours.put(name, session, self.most)).count())
    }

    /// Leaves all of them to the next start, and keeps none: nothing can be taken up here any more.
    ///
    /// # Errors
    /// The file can't be written; they are lost then.
    pub fn leave(&self, file: &Path, key: &ResetKey, made_for: &str, rng: &Entropy) -> io::Result<usize> {
        let sessions = std::mem::take(&mut *self.lock());
        let mut plain = Vec::new();
        let mut count = 0;
        for (name, session) in sessions.drain() {
            let length = u16::try_from(session.len()).unwrap_or(u16::MAX);
            plain.extend_from_slice(&name);
            plain.extend_from_slice(&length.to_be_bytes());
            plain.extend_from_slice(&session);
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        let sealed = seal(plain, key, made_for, rng).ok_or_else(|| io::Error::other("it can't be encrypted"))?;
        match fs::remove_file(file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => write(file, &sealed)?,
        }
        Ok(count)
    }
}

impl StoresServerSessions for Tickets {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let Ok(name) = Name::try_from(key) else { return false };
        self.lock().put(&name, &value, self.most)
    }

    /// None: a session is good once, and only TLS 1.2 asks without using it up.
    fn get(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let name = Name::try_from(key).ok()?;
        self.lock().take(&name)
    }

    fn can_cache(&self) -> bool {
        self.most > 0
    }
}

fn sealing_key(key: &ResetKey) -> Option<LessSafeKey> {
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"tern session tickets").extract(key.secret());
    let bytes = secret.expand(&[b"file"], &AES_256_GCM).ok()?;
    Some(LessSafeKey::new(UnboundKey::from(bytes)))
}

fn seal(mut plain: Vec<u8>, key: &ResetKey, made_for: &str, rng: &Entropy) -> Option<Vec<u8>> {
    let mut nonce = [0; NONCE_LEN];
    rng.fill(&mut nonce);
    let aad = Aad::from(made_for.as_bytes());
    sealing_key(key)?.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut plain).ok()?;
    Some([FILE_MAGIC.as_slice(), &nonce, &plain].concat())
}

fn unseal(mut sealed: Vec<u8>, key: &ResetKey, made_for: &str) -> Option<Vec<u8>> {
    let mut rest = sealed.split_off(FILE_MAGIC.len().min(sealed.len()));
    if sealed != FILE_MAGIC || rest.len() < NONCE_LEN {
        return None;
    }
    let mut sealed = rest.split_off(NONCE_LEN);
    let nonce = Nonce::try_assume_unique_for_key(&rest).ok()?;
    let plain = sealing_key(key)?.open_in_place(nonce, Aad::from(made_for.as_bytes()), &mut sealed).ok()?;
    Some(plain.to_vec())
}

fn read_sessions(mut plain: &[u8]) -> Option<Vec<(Name, &[u8])>> {
    let mut sessions = Vec::new();
    while !plain.is_empty() {
        let (name, rest) = plain.split_first_chunk::<NAME_BYTES>()?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (session, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        sessions.push((*name, session));
        plain = rest;
    }
    Some(sessions)
}

/// See the module. One per process and CA.
pub struct Resuming {
    base: Arc<ClientConfig>,
    /// The set-up towards each server, with its tickets; the last used last.
    towards: Mutex<VecDeque<(String, Arc<ClientConfig>)>>,
}

impl Debug for Resuming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resuming").finish_non_exhaustive()
    }
}

impl Resuming {
    /// Connections by this set-up, which itself takes nothing up.
    pub fn new(base: Arc<ClientConfig>) -> Arc<Self> {
        Arc::new(Self { base, towards: Mutex::default() })
    }

    /// What to connect to this server with; `server` may be anything that tells it from others. What it gives is kept
    /// for the next connection to it, and each ticket is shown once.
    pub fn towards(&self, server: &str) -> Arc<ClientConfig> {
        let mut all = self.towards.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.iter().position(|(name, _)| name == server).and_then(|place| all.remove(place));
        let (name, config) = known.unwrap_or_else(|| {
            let mut config = (*self.base).clone();
            config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(1)));
            config.enable_early_data = true;
            (server.to_owned(), Arc::new(config))
        });
        let found = config.clone();
        all.push_back((name, config));
        if all.len() > SERVERS {
            all.pop_front();
        }
        found
    }
}

#[cfg(test)]
#[path = "resume_tests.rs"]
mod tests;
