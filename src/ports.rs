//! The addresses that a role listens on, and whether they can be had.
//!
//! A start looks at all of them before it opens anything else: a region that found its port taken only after
//! its store was opened would begin a new era for nothing, at every attempt of whatever restarts it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Settings;
use crate::config::scope::Role;

/// One address that a role listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Key that sets it.
    pub key: &'static str,
    /// Who connects there.
    pub whom: &'static str,
    /// Where.
    pub at: SocketAddr,
    /// UDP, else TCP.
    pub udp: bool,
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} for {}", if self.udp { "UDP" } else { "TCP" }, self.at, self.whom)
    }
}

/// All of a role's addresses.
pub fn of(settings: &Settings, role: Role) -> Vec<Listen> {
    let mut all = Vec::new();
    let mut add = |key, whom, at, udp| all.push(Listen { key, whom, at, udp });
    add("listen.admin", "operators", settings.admin_listen(), false);
    add("listen.gossip", "gossip", settings.gossip_listen(), true);
    if matches!(role, Role::Region | Role::Edge) {
        let client = settings.client_listen();
        for udp in [false, true] {
            add("listen.client", "clients", client, udp);
            for also in &settings.listen_also {
                let port = if also.port() == 0 { client.port() } else { also.port() };
                add("listen.also", "clients", SocketAddr::new(also.ip(), port), udp);
            }
        }
    }
    if role == Role::Region {
        add("listen.node", "other nodes", settings.node_listen(), true);
    }
    if matches!(role, Role::Region | Role::Ipconf) {
        add("listen.dispatch", "dispatch", settings.dispatch_listen(), false);
    }
    all
}

/// Why an address can't be had: what the system says, and what to do.
#[derive(Debug)]
pub struct Refused {
    /// What the system says.
    pub cause: io::Error,
    /// What to do.
    pub hint: String,
}

/// Whether the address can be had now; nothing stays open.
pub fn try_listen(listen: &Listen) -> Result<(), Refused> {
    bind(listen).map_err(|cause| Refused { hint: hint(listen, &cause), cause })
}

fn bind(listen: &Listen) -> io::Result<()> {
    let (kind, protocol) = if listen.udp { (Type::DGRAM, Protocol::UDP) } else { (Type::STREAM, Protocol::TCP) };
    let socket = Socket::new(Domain::for_address(listen.at), kind, Some(protocol))?;
    if listen.at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if !listen.udp {
        // As the listener does: connections of an earlier process may linger.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&listen.at.into())
}

fn hint(listen: &Listen, cause: &io::Error) -> String {
    let key = listen.key;
    match cause.kind() {
        ErrorKind::AddrInUse => format!("stop the process that has it, or set {key} to another one"),
        ErrorKind::PermissionDenied => format!(
            "ports below 1024 need a permission: AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit, or \
             `sysctl -w net.ipv4.ip_unprivileged_port_start={}`; or set {key} to a higher one",
            listen.at.port()
        ),
        ErrorKind::AddrNotAvailable => {
            format!("no interface of this machine has {}: correct listen.ip or {key}", listen.at.ip())
        }
        _ => format!("correct {key}"),
    }
}

/// Whether all can be had; else what to change, for each that can't.
pub fn check(settings: &Settings, role: Role) -> anyhow::Result<()> {
    let problems: Vec<String> = of(settings, role)
        .iter()
        .filter_map(|listen| {
            let refused = try_listen(listen).err()?;
            Some(format!("can't listen on {listen}: {}; {}", refused.cause, refused.hint))
        })
        .collect();
    anyhow::ensure!(problems.is_empty(), "nothing was started:\n  {}", problems.join("\n  "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn each_role_has_its_addresses_and_a_taken_one_is_told_with_its_key() {
        let settings = |flags: &[(&str, String)]| {
            let flags = flags.iter().map(|(key, value)| ("--set".into(), (*key).into(), value.clone())).collect();
            Sources { flags, ..Sources::default() }.load().unwrap()
        };
        let held = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let local = ("listen.ip", "127.0.0.1".to_owned());
        let settings = settings(&[local, ("listen.client", "0".into()), ("listen.node", port.to_string())]);
        let keys = |role| of(&settings, role).iter().map(|l| (l.key, l.udp)).collect::<Vec<_>>();
        let (admin, gossip) = (("listen.admin", false), ("listen.gossip", true));
        assert_eq!(keys(Role::Edge), [admin, gossip, ("listen.client", false), ("listen.client", true)]);
        assert_eq!(keys(Role::Ipconf), [admin, gossip, ("listen.dispatch", false)]);
        assert!(check(&settings, Role::Edge).is_ok());
        let error = check(&settings, Role::Region).unwrap_err().to_string();
        assert!(error.contains(&format!("UDP 127.0.0.1:{port} for other nodes")), "{error}");
        assert!(error.contains("set listen.node to another"), "{error}");
        drop(held);
        assert!(check(&settings, Role::Region).is_ok());
    }

    #[test]
    fn other_refusals_say_what_to_do_as_well() {
        let listen = |at: &str| Listen { key: "listen.client", whom: "clients", at: at.parse().unwrap(), udp: false };
        let refused = try_listen(&listen("192.0.2.1:0")).unwrap_err();
        assert!(refused.hint.contains("no interface of this machine has 192.0.2.1"), "{}", refused.hint);
        let denied = hint(&listen("0.0.0.0:443"), &io::Error::from(ErrorKind::PermissionDenied));
        assert!(denied.contains("ip_unprivileged_port_start=443") && denied.contains("CAP_NET_BIND_SERVICE"));
    }
}
