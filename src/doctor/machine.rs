//! Limits of the kernel, memory, and the clock.

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};
use tern_net::system::{LISTEN_BACKLOG, UDP_BUFFER_BYTES};

use super::{Finding, Scene};
use crate::config::scope::Role;

/// Files that are open besides connections: the store's tables and journals, links, logs.
const OWN_FILES: u64 = 1_024;
/// Memory per connection that is idle, with room for some traffic: `tern bench idle` measures the former.
const CONNECTION_BYTES: u64 = 32 * 1024;
/// Memory of a process without connections beside the store's cache: memtables, journals, GeoIP data.
const OWN_BYTES: u64 = 256 * 1024 * 1024;

const MIB: u64 = 1024 * 1024;

pub(super) fn check(scene: &Scene) -> Vec<Finding> {
    let mut findings = vec![open_files(scene)];
    findings.extend(udp_buffers());
    findings.push(backlog(fs::read_to_string("/proc/sys/net/core/somaxconn").ok()));
    findings.push(memory(scene, available_memory()));
    findings.push(clock());
    findings
}

/// Connections that the configuration asks for, with the quarter that is taken beyond them.
fn connections(scene: &Scene) -> u64 {
    match scene.role {
        Role::Region | Role::Edge => u64::from(scene.settings.edge_capacity) * 5 / 4,
        Role::Ipconf | Role::Tools => 1_024,
    }
}

fn open_files(scene: &Scene) -> Finding {
    let limit = getrlimit(Resource::Nofile);
    files(limit.current.unwrap_or(u64::MAX), connections(scene) + OWN_FILES)
}

fn files(limit: u64, needed: u64) -> Finding {
    let what = format!("at most {limit} open files here, {needed} needed if every client comes by TCP");
    let todo = format!(
        "LimitNOFILE={needed} in the systemd unit, or `ulimit -n {needed}` before the start; or a lower edge.capacity"
    );
    if limit >= needed {
        Finding::ok("open files", what)
    } else if limit >= 2 * OWN_FILES {
        Finding::warning("open files", what, todo)
    } else {
        Finding::failed("open files", what, todo)
    }
}

/// What the kernel really gives. It reports twice of it: its own bookkeeping counts as much.
fn udp_buffers() -> Vec<Finding> {
    let socket = match Socket::new(Domain::IPV4, Type::DGRAM, None) {
        Ok(socket) => socket,
        Err(error) => {
            return vec![Finding::failed(
                "udp buffers",
                format!("no UDP socket can be made: {error}"),
                "ulimit -n 4096",
            )];
        }
    };
    // Refused or cut: what is read back says so.
    let _cut = socket.set_recv_buffer_size(UDP_BUFFER_BYTES);
    let _cut = socket.set_send_buffer_size(UDP_BUFFER_BYTES);
    let of = |size: std::io::Result<usize>| size.unwrap_or(0) / 2;
    vec![
        buffer("receive", "rmem_max", of(socket.recv_buffer_size())),
        buffer("send", "wmem_max", of(socket.send_buffer_size())),
    ]
}

fn buffer(which: &str, key: &str, bytes: usize) -> Finding {
    let what = format!("{which} buffer of {} KiB given, {} KiB wanted", bytes / 1024, UDP_BUFFER_BYTES / 1024);
    if bytes >= UDP_BUFFER_BYTES {
        Finding::ok("udp buffers", what)
    } else {
        let line = format!("net.core.{key}={UDP_BUFFER_BYTES}");
        let todo =
            format!("`sysctl -w {line}`, and the line {line} in /etc/sysctl.d/tern.conf; else bursts lose packets");
        Finding::warning("udp buffers", what, todo)
    }
}

fn backlog(somaxconn: Option<String>) -> Finding {
    let Some(limit) = somaxconn.and_then(|text| text.trim().parse::<i32>().ok()) else {
        return Finding::warning("tcp backlog", "the kernel does not say net.core.somaxconn", "look at it on the host");
    };
    let what = format!("{limit} connections may wait to be accepted, {LISTEN_BACKLOG} wanted");
    if limit >= LISTEN_BACKLOG {
        Finding::ok("tcp backlog", what)
    } else {
        Finding::warning("tcp backlog", what, format!("`sysctl -w net.core.somaxconn={LISTEN_BACKLOG}`"))
    }
}

/// Bytes that this process may have: of the machine, or of its control group if that is less.
fn available_memory() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse::<u64>().ok());
    Some(group.map_or(machine, |group| group.min(machine)))
}

fn memory(scene: &Scene, available: Option<u64>) -> Finding {
    let cache = if scene.role == Role::Region { scene.settings.store_cache.0 } else { 0 };
    let needed = OWN_BYTES + cache + connections(scene) * CONNECTION_BYTES;
    let Some(available) = available else {
        return Finding::warning(
            "memory",
            format!("{} MiB needed, what is there is unknown", needed / MIB),
            "`free -m`",
        );
    };
    let what = format!("{} MiB available, {} MiB needed at full capacity", available / MIB, needed / MIB);
    let todo = "a lower edge.capacity or store.cache, or more memory (MemoryMax= in the unit, if that is the limit)";
    if available >= needed || scene.running {
        Finding::ok("memory", what)
    } else if available >= OWN_BYTES + cache {
        Finding::warning("memory", what, todo)
    } else {
        Finding::failed("memory", what, todo)
    }
}

/// Whether something keeps the clock right, as the machine itself says. Regions order messages by their clocks,
/// and one that is far off takes no sends.
fn clock() -> Finding {
    if fs::metadata("/run/systemd/timesync/synchronized").is_ok() {
        return Finding::ok("clock", "synchronized by systemd-timesyncd");
    }
    if let Some(said) = output("timedatectl", &["show", "--property=NTPSynchronized", "--value"]) {
        match said.trim() {
            "yes" => return Finding::ok("clock", "synchronized, says the kernel"),
            "no" => return unsynchronized("the kernel says that nothing keeps it right"),
            _ => {}
        }
    }
    // Reference id, stratum ...: the fifth is the offset in seconds.
    if let Some(said) = output("chronyc", &["-c", "tracking"]) {
        let offset = said.split(',').nth(4).and_then(|text| text.parse::<f64>().ok());
        return match offset {
            Some(seconds) if seconds.abs() < 0.5 => {
                Finding::ok("clock", format!("synchronized by chrony, {:.1} ms off", seconds * 1000.0))
            }
            Some(seconds) => unsynchronized(&format!("chrony says that it is {seconds:.1} s off")),
            None => unsynchronized("chrony runs and has no source"),
        };
    }
    unsynchronized("nothing on this machine says whether it is right (in a container: look at the host)")
}

fn unsynchronized(what: &str) -> Finding {
    Finding::warning("clock", what, "`timedatectl set-ntp true`, or install chrony")
}

/// What a command prints; None where it is not there or fails.
fn output(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn limits_are_judged_by_what_the_configuration_needs_and_name_the_figure_to_set() {
        assert_eq!(files(2_000_000, 126_024).state, State::Ok);
        let low = files(65_536, 126_024);
        assert_eq!(low.state, State::Warning);
        assert!(low.todo.contains("LimitNOFILE=126024"), "{}", low.todo);
        assert_eq!(files(1_024, 126_024).state, State::Failed);

        assert_eq!(buffer("receive", "rmem_max", UDP_BUFFER_BYTES).state, State::Ok);
        let small = buffer("receive", "rmem_max", 212_992);
        assert!(small.state == State::Warning && small.todo.contains("net.core.rmem_max=4194304"), "{}", small.todo);

        assert_eq!(backlog(Some("4096\n".into())).state, State::Ok);
        assert!(backlog(Some("128\n".into())).todo.contains("somaxconn=4096"));
        assert_eq!(backlog(None).state, State::Warning);
        assert_eq!(backlog(Some("many".into())).state, State::Warning);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        assert!(available_memory().is_some_and(|bytes| bytes > MIB));
        assert_eq!(udp_buffers().len(), 2);
        assert_eq!(output("no-such-command", &[]), None);
        assert_eq!(output("false", &[]), None);
        assert!(!clock().what.is_empty());
    }
}
