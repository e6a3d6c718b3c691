//! Ports: whether they can be had, and who has them.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Finding, Scene};
use crate::ports::{self, Listen};

pub(super) fn check(scene: &Scene) -> Vec<Finding> {
    ports::of(&scene.settings, scene.role).iter().map(|listen| port(listen, scene.running)).collect()
}

fn port(listen: &Listen, running: bool) -> Finding {
    if listen.at.port() == 0 {
        return Finding::ok("ports", format!("{listen}: any that is free"));
    }
    let Err(refused) = ports::try_listen(listen) else { return Finding::ok("ports", format!("{listen}: free")) };
    if refused.cause.kind() != ErrorKind::AddrInUse {
        return Finding::failed("ports", format!("{listen}: {}", refused.cause), refused.hint);
    }
    let holder = holder(listen);
    let by = match &holder {
        Some((pid, name)) => format!("held by process {pid} ({name})"),
        None => "held by another user's process".to_owned(),
    };
    if running && holder.is_none_or(|(_, name)| name == "tern") {
        return Finding::ok("ports", format!("{listen}: {by}, the running node"));
    }
    Finding::failed("ports", format!("{listen}: {by}"), refused.hint)
}

/// The process that has the address, if this user may see it: (id, name).
fn holder(listen: &Listen) -> Option<(u32, String)> {
    let table = match (listen.udp, listen.at.is_ipv6()) {
        (false, false) => "tcp",
        (false, true) => "tcp6",
        (true, false) => "udp",
        (true, true) => "udp6",
    };
    let text = fs::read_to_string(format!("/proc/net/{table}")).ok()?;
    let inode = text.lines().skip(1).find_map(|line| holds(line, listen))?;
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let found = files
            .flatten()
            .any(|file| fs::read_link(file.path()).is_ok_and(|target| target.to_str() == Some(wanted.as_str())));
        if found {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((pid, name.trim().to_owned()));
        }
    }
    None
}

/// The inode of a line of /proc/net/{tcp,udp}{,6} that stands for a socket which keeps others from the address.
fn holds(line: &str, listen: &Listen) -> Option<u64> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let local = address(fields.get(1)?)?;
    // 0A: TCP that listens; UDP has no such state.
    let in_the_way = listen.udp || *fields.get(3)? == "0A";
    let same = local.ip() == listen.at.ip() || local.ip().is_unspecified() || listen.at.ip().is_unspecified();
    if !in_the_way || !same || local.port() != listen.at.port() {
        return None;
    }
    fields.get(9)?.parse().ok()
}

/// Words of the machine's byte order in hex, a colon, the port in hex.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |i: usize| Some(u32::from_str_radix(host.get(8 * i..8 * i + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match host.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (i, chunk) in bytes.chunks_mut(4).enumerate() {
                chunk.copy_from_slice(&word(i)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn a_port_that_is_held_names_its_process() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for (at, udp) in [(tcp.local_addr().unwrap(), false), (udp.local_addr().unwrap(), true)] {
            let listen = Listen { key: "listen.client", whom: "clients", at, udp };
            let found = port(&listen, false);
            assert_eq!(found.state, State::Failed, "{found:?}");
            assert!(found.what.contains(&format!("held by process {}", std::process::id())), "{found:?}");
            assert!(found.todo.contains("set listen.client to another"), "{found:?}");
            assert_eq!(port(&listen, true).state, State::Failed, "this test is no tern");
        }
    }

    #[test]
    fn lines_of_the_kernel_are_read_and_nonsense_is_not() {
        assert_eq!(address("0100007F:1CEA"), Some("127.0.0.1:7402".parse().unwrap()));
        assert_eq!(address("00000000000000000000000001000000:0050"), Some("[::1]:80".parse().unwrap()));
        for nonsense in ["", "0100007F", "0100007F:", "01:50", "zz00007F:0050"] {
            assert_eq!(address(nonsense), None, "{nonsense}");
        }
        let listen = |at: &str| Listen { key: "listen.client", whom: "clients", at: at.parse().unwrap(), udp: false };
        let line = "0: 00000000:1CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000 1000 0 4711 1 0 100";
        assert_eq!(holds(line, &listen("127.0.0.1:7402")), Some(4711), "it listens on every address");
        assert_eq!(holds(line, &listen("127.0.0.1:7403")), None);
        assert_eq!(holds(&line.replace(" 0A ", " 01 "), &listen("127.0.0.1:7402")), None, "an open connection");
        assert_eq!(holds("", &listen("127.0.0.1:7402")), None);
    }
}
