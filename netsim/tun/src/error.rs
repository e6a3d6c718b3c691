//! Why a lab can't be had.

use std::io;

use tern_netsim_link::{InterfaceError, SpecError};

/// Why a lab was not started, or why something could not be done in it. After a failed start nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// This user may not make namespaces or devices.
    #[error(
        "no permission to make a {what}: the real-time driver needs root, or CAP_SYS_ADMIN and CAP_NET_ADMIN (with \
         sudo; in a container --cap-add SYS_ADMIN --cap-add NET_ADMIN). Or run the scenario in virtual time, which \
         needs nothing"
    )]
    NoPermission {
        /// Which.
        what: &'static str,
    },
    /// There is no TUN driver.
    #[error(
        "/dev/net/tun can't be opened: {0}. The real-time driver needs TUN devices: `modprobe tun`, in a container also \
         --device /dev/net/tun. Or run the scenario in virtual time, which needs nothing"
    )]
    NoTun(#[source] io::Error),
    /// The kernel refused something else.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// What the lab should be made of makes no sense.
    #[error("{0}")]
    Plan(String),
    /// A link can't be run.
    #[error("the link {link}: {source}")]
    Link {
        /// Its name.
        link: String,
        /// Why.
        source: SpecError,
    },
    /// A device's interfaces.
    #[error("{device}: {source}")]
    Interface {
        /// Whose.
        device: String,
        /// What is wrong.
        source: InterfaceError,
    },
    /// There is no such host, interface or path.
    #[error("there is no {kind} {name}; there is {known}")]
    Unknown {
        /// `host`, `interface`, `path`.
        kind: &'static str,
        /// As it was called.
        name: String,
        /// Those that are there.
        known: String,
    },
    /// The router's thread is gone: the lab was ended, or its device failed. Nothing was done.
    #[error("the lab has ended")]
    Ended,
}

impl LabError {
    /// What the kernel said about a namespace or device.
    pub(crate) fn namespace(what: &'static str, source: rustix::io::Errno) -> Self {
        if source == rustix::io::Errno::PERM {
            Self::NoPermission { what }
        } else {
            Self::Io { what, source: source.into() }
        }
    }

    pub(crate) fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// There is none of this name, but there are these.
    pub(crate) fn unknown<'k>(kind: &'static str, name: &str, known: impl Iterator<Item = &'k str>) -> Self {
        let known: Vec<&str> = known.collect();
        Self::Unknown { kind, name: name.to_owned(), known: known.join(", ") }
    }
}
