//! Why a script is not played to its end.

use std::io;
use std::path::PathBuf;

/// There are no figures then. What was started has been ended.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// The script, or what was said of it on the command line.
    #[error("{0}")]
    Script(String),
    /// There is no program to start.
    #[error(
        "no tern program: looked for {}. Build it with `cargo build --release -p tern`, or name one with --tern PATH",
        looked.display()
    )]
    NoTern {
        /// Where it was looked for.
        looked: PathBuf,
    },
    /// A file, process or socket.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// The program says no.
    #[error("`tern {command}` failed: {said}")]
    Tern {
        /// What it was asked.
        command: String,
        /// Its words.
        said: String,
    },
    /// A process does not serve.
    #[error("{node} does not serve: {said}; its log is {}", log.display())]
    NotReady {
        /// Which.
        node: String,
        /// The end of its log.
        said: String,
        /// All of it.
        log: PathBuf,
    },
    /// Clients are not let in.
    #[error("{0}")]
    Clients(String),
    /// Core nodes do not come to rest.
    #[error("the core nodes of a region do not share it evenly; they say: {0}")]
    Shared(String),
}

impl ChaosError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
