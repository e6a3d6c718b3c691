//! The key of stateless resets, kept over restarts.
//!
//! A process that was killed says nothing to its peers. When it is back, packets of the old connections reach
//! an endpoint that knows none of them; what it may answer is a stateless reset (RFC 9000, 10.3): a token that
//! only the old process could have made. With a key of its own at each start nobody believes it, and every
//! client waits for its idle timer: thirty seconds and more, measured. With the same key it learns in one
//! round trip.
//!
//! The key is one endpoint's own. Two that share it could be made to yield each other's tokens, with which
//! anyone who sees a connection id can end that connection (RFC 9000, 21.11); so it is a random file per node
//! and name, not something derived from what a fleet shares, such as a certificate.

use std::fmt::{self, Debug};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use ring::hmac;
use tern_core::clock::Entropy;

/// Bytes of a key.
pub const RESET_KEY_BYTES: usize = 32;

/// See the module. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct ResetKey([u8; RESET_KEY_BYTES]);

impl Debug for ResetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetKey")
    }
}

impl ResetKey {
    /// One for this start only.
    pub fn random(rng: &Entropy) -> Self {
        let mut key = [0; RESET_KEY_BYTES];
        rng.fill(&mut key);
        Self(key)
    }

    /// The one in `file`; where there is none, or what is there is no key, a new one is made and put there.
    /// A process that dies meanwhile leaves either the old file or the new one.
    ///
    /// # Errors
    /// The file can't be read or written. A caller may go on with [`Self::random`]: clients then notice the
    /// next restart by their own timers.
    pub fn kept_in(file: &Path, rng: &Entropy) -> io::Result<Self> {
        match File::open(file) {
            Ok(mut there) => {
                let mut key = Vec::new();
                (&mut there).take(RESET_KEY_BYTES as u64 + 1).read_to_end(&mut key)?;
                if let Ok(key) = <[u8; RESET_KEY_BYTES]>::try_from(key.as_slice()) {
                    return Ok(Self(key));
                }
                tracing::warn!(
                    file = %file.display(),
                    bytes = key.len(),
                    "this is no key of stateless resets ({RESET_KEY_BYTES} bytes); a new one takes its place, and \
                     clients of the last start notice by their own timers"
                );
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let key = Self::random(rng);
        let mut beside = file.as_os_str().to_owned();
        beside.push(format!(".{:016x}", rng.u64()));
        let beside = Path::new(&beside);
        let written = write(beside, &key.0).and_then(|()| fs::rename(beside, file));
        if written.is_err() {
            // What is left of the attempt; it may not even have been made.
            fs::remove_file(beside).ok();
        }
        written.map(|()| key)
    }

    pub(crate) fn secret(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

/// A new file that only its owner may read, durable when this returns.
pub(crate) fn write(to: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(to)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_kept_private_and_replaced_only_if_it_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("e1.reset");
        let rng = Entropy::seeded(1);
        let first = ResetKey::kept_in(&file, &rng).unwrap();
        assert_eq!(ResetKey::kept_in(&file, &rng).unwrap(), first);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
        #[cfg(unix)]
        {
            let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
            assert_eq!(mode & 0o777, 0o600);
        }
        for damaged in [&b""[..], &[7; 31], &[7; 33]] {
            fs::write(&file, damaged).unwrap();
            let again = ResetKey::kept_in(&file, &rng).unwrap();
            assert_ne!(again, first);
            assert_eq!(ResetKey::kept_in(&file, &rng).unwrap(), again);
        }
        assert!(!format!("{first:?}").contains("0x"));
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error_and_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("none").join("e1.reset");
        assert_eq!(ResetKey::kept_in(&file, &Entropy::seeded(1)).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!file.exists());
    }
}
