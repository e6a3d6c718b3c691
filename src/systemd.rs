//! Tells systemd what this process does (sd_notify(3)): a datagram of `KEY=VALUE` lines to the socket that
//! `NOTIFY_SOCKET` names. Without that variable nothing is sent.
//!
//! Own lines instead of a crate: it is one datagram, and a crate would read and change the environment behind
//! this process's back.

use std::env;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The way to systemd, if it listens. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Systemd {
    socket: Option<Arc<(UnixDatagram, SocketAddr)>>,
    watchdog: Option<Duration>,
}

impl Systemd {
    /// As the environment says.
    pub fn from_environment() -> Self {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        Self::new(
            variable("NOTIFY_SOCKET").as_deref(),
            variable("WATCHDOG_USEC").as_deref(),
            variable("WATCHDOG_PID").as_deref(),
        )
    }

    fn new(socket: Option<&str>, watchdog_us: Option<&str>, watchdog_pid: Option<&str>) -> Self {
        let Some(name) = socket else { return Self::default() };
        let socket = match open(name) {
            Ok(socket) => Some(Arc::new(socket)),
            Err(error) => {
                tracing::warn!(socket = name, %error, "systemd can't be told when this process is ready");
                None
            }
        };
        // Meant for the main process of a service; a child inherits the variables.
        let own = watchdog_pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
        let watchdog = watchdog_us.filter(|_| own).and_then(|us| us.parse().ok()).filter(|us| *us > 0);
        Self { socket, watchdog: watchdog.map(Duration::from_micros) }
    }

    /// Whether it listens.
    pub fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// How often it wants to hear that all is well, if at all: half of its limit, as its manual advises.
    pub fn watchdog_every(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.is_there()).map(|limit| limit / 2)
    }

    /// All listens and serves.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// What is being done, for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}"));
    }

    /// The configuration is being read again; [`Self::ready`] follows.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1000));
    }

    /// The process stops, and needs no longer than this for it.
    pub fn stopping(&self, status: &str, within: Duration) {
        self.send(&format!("STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={}", within.as_micros()));
    }

    /// Starting goes on; it is heard of again within this time.
    pub fn still_starting(&self, status: &str, within: Duration) {
        self.send(&format!("STATUS={status}\nEXTEND_TIMEOUT_USEC={}", within.as_micros()));
    }

    /// All is well.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, text: &str) {
        let Some((socket, to)) = self.socket.as_deref() else { return };
        // systemd may be busy or gone: neither is a reason to stop serving, and nobody could be told.
        let _unheard = socket.send_to_addr(text.as_bytes(), to);
    }
}

fn open(name: &str) -> std::io::Result<(UnixDatagram, SocketAddr)> {
    let to = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None if name.starts_with('/') => SocketAddr::from_pathname(name)?,
        None => return Err(std::io::Error::other("neither a path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    // Never to wait for systemd.
    socket.set_nonblocking(true)?;
    Ok((socket, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn it_is_told_over_a_path_and_over_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        Systemd::new(path.to_str(), None, None).ready("serving");
        assert_eq!(heard(&by_path), "READY=1\nSTATUS=serving");

        let name = format!("tern-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let systemd = Systemd::new(Some(&format!("@{name}")), Some("3000000"), None);
        systemd.reloading();
        let said = heard(&by_name);
        let at: u64 = said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!(at > 0);
        assert_eq!(systemd.watchdog_every(), Some(Duration::from_millis(1500)));
        systemd.stopping("draining", Duration::from_secs(7));
        assert_eq!(heard(&by_name), "STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=7000000");
    }

    #[test]
    fn nothing_is_asked_of_a_process_that_systemd_did_not_mean() {
        let other = (std::process::id() + 1).to_string();
        let systemd = Systemd::new(Some("@x"), Some("3000000"), Some(&other));
        assert_eq!(systemd.watchdog_every(), None);
        assert_eq!(Systemd::new(Some("@x"), Some("never"), None).watchdog_every(), None);
        assert!(!Systemd::new(None, Some("3000000"), None).is_there());
        let wrong = Systemd::new(Some("relative"), Some("3000000"), None);
        assert!(!wrong.is_there() && wrong.watchdog_every().is_none());
        wrong.ready("to nobody");
        // Nobody listens there: that must not be noticed.
        systemd.ready("to nobody");
    }
}
