//! The platform's key store: a second place for the install id, outside of what backups copy (R3).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use tern_core::ids::InstallId;

/// Keeps (install id, number of starts) where a backup of the database does not reach: Keychain, Keystore,
/// or, by default, a file beside the database.
pub trait KeyStore: Send + std::fmt::Debug {
    /// What was kept last; `None` where nothing is, or it can't be understood.
    fn load(&self) -> io::Result<Option<(InstallId, u64)>>;
    /// Keeps it durably.
    fn save(&self, install: &InstallId, starts: u64) -> io::Result<()>;
}

/// A file that stands for the platform's key store: one line, `<starts> <install id>`.
#[derive(Clone, Debug)]
pub struct FileKeyStore {
    path: PathBuf,
}

impl FileKeyStore {
    /// Kept at `path`, whose directory exists.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl KeyStore for FileKeyStore {
    fn load(&self) -> io::Result<Option<(InstallId, u64)>> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Ok(None),
            Err(e) => return Err(e),
        };
        let parts = text.trim_end_matches('\n').split_once(' ');
        Ok(parts.and_then(|(starts, install)| Some((InstallId::new(install).ok()?, starts.parse().ok()?))))
    }

    fn save(&self, install: &InstallId, starts: u64) -> io::Result<()> {
        // Written beside and renamed: a crash leaves the old line or the new one, never half of one.
        let beside = self.path.with_extension("install-new");
        let mut file = File::create(&beside)?;
        file.write_all(format!("{starts} {install}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        if let Some(parent) = self.path.parent() {
            // Some systems can't sync directories; the rename then becomes durable a little later, and a
            // crash before that costs a new install id, nothing else.
            drop(File::open(parent).and_then(|d| d.sync_all()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_nonsense_counts_as_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let keys = FileKeyStore::new(dir.path().join("x.install"));
        assert_eq!(keys.load().unwrap(), None);
        let install = InstallId::new("a phone").unwrap();
        keys.save(&install, 7).unwrap();
        assert_eq!(keys.load().unwrap(), Some((install, 7)));
        for nonsense in ["", "7", "x y", "7 "] {
            fs::write(dir.path().join("x.install"), nonsense).unwrap();
            assert_eq!(keys.load().unwrap(), None, "{nonsense:?}");
        }
        fs::write(dir.path().join("x.install"), [0xff, 0xfe]).unwrap();
        assert_eq!(keys.load().unwrap(), None);
    }
}
