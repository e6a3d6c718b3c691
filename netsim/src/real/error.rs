//! Why a plan is not played over real packets.

use std::io;
use std::path::PathBuf;

use tern_netsim_tun::LabError;

/// There is no history then. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum RealError {
    /// The plan asks for what only virtual time can do.
    #[error("{what} can't be had over real packets: {why}; play it with --driver sim")]
    SimOnly {
        /// What the plan asks for.
        what: String,
        /// Why not.
        why: &'static str,
    },
    /// There is no program to start.
    #[error(
        "no tern program: looked for {}. Build it with `cargo build --release -p tern`, or name one with --tern PATH",
        looked.display()
    )]
    NoTern {
        /// Where it was looked for.
        looked: PathBuf,
    },
    /// The network.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A file or process.
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
    /// A node does not serve.
    #[error("{node} does not serve: {said}")]
    NotReady {
        /// Which.
        node: String,
        /// The end of its log.
        said: String,
    },
    /// What runs beside tern.
    #[error("{0}")]
    Beside(String),
    /// A name that is none.
    #[error("{0}")]
    Name(String),
}

impl RealError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
