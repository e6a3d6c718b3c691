//! A small lab to test with, and what the tests need of the world.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use tern_netsim_link::{LinkSpec, NatSpec, Spec};
use tern_netsim_scenario::plan::{InterfacePlan, PathPlan};
use tern_netsim_tun::{Attached, HostPlan, Lab, LabError, LabPlan};

pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const HOME: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const WIFI: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 5);
pub const CELL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub const PORT: u16 = 5353;
/// A packet that has not come by then never will.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// `server` in `eu`; `phone` in `paris` with `wifi` behind a home gateway, and `cell` with a public address.
pub fn plan(wifi: LinkSpec, cell: LinkSpec, path_ms: u64) -> LabPlan {
    let interface = |name: &str, link, address, nat| InterfacePlan {
        name: name.to_owned(),
        profile: String::new(),
        link,
        address,
        nat,
    };
    let interfaces =
        vec![interface("wifi", wifi, WIFI, Some((NatSpec::default(), HOME))), interface("cell", cell, CELL, None)];
    LabPlan {
        seed: 11,
        hosts: vec![
            HostPlan { name: "server".to_owned(), place: "eu".to_owned(), attached: Attached::Wired(SERVER) },
            HostPlan { name: "phone".to_owned(), place: "paris".to_owned(), attached: Attached::Access(interfaces) },
        ],
        paths: vec![PathPlan {
            a: "paris".to_owned(),
            b: "eu".to_owned(),
            latency_ns: path_ms * 1_000_000,
            link: None,
        }],
        radio_tail_ns: 10_000_000_000,
    }
}

/// The lab; `None` where this machine can't have one, which is said.
pub fn lab(test: &str, plan: &LabPlan) -> Option<Lab> {
    match Lab::start(plan) {
        Ok(lab) => Some(lab),
        Err(error @ (LabError::NoPermission { .. } | LabError::NoTun(_))) => {
            assert!(std::env::var_os("CI").is_none(), "{test} can't be skipped in CI: {error}");
            println!("{test} was SKIPPED: {error}");
            None
        }
        Err(other) => panic!("{other}"),
    }
}

pub fn symmetric(spec: Spec) -> LinkSpec {
    LinkSpec::symmetric(spec)
}

/// Answers datagrams with what they say until nobody asks for a while; returns from where they came.
pub fn echo_until_silent(silent: Duration) -> Vec<SocketAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
    socket.set_read_timeout(Some(silent)).unwrap();
    let mut from = Vec::new();
    let mut buffer = [0; 2048];
    while let Ok((length, source)) = socket.recv_from(&mut buffer) {
        from.push(source);
        socket.send_to(&buffer[..length], source).unwrap();
    }
    from
}

/// Asks once; how long the answer took, if it came.
pub fn ask(socket: &UdpSocket, patience: Duration) -> Option<Duration> {
    socket.set_read_timeout(Some(patience)).unwrap();
    let begin = now();
    socket.send_to(b"are you there?", (SERVER, PORT)).unwrap();
    socket.recv(&mut [0; 2048]).ok().map(|_| now().duration_since(begin))
}

#[expect(clippy::disallowed_methods, reason = "these tests measure real links")]
pub fn now() -> Instant {
    Instant::now()
}

/// Waits for something that will come true.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = now() + PATIENCE;
    while !holds() {
        assert!(now() < deadline, "{what} did not come true");
        pause(Duration::from_millis(5));
    }
}

#[expect(clippy::disallowed_methods, reason = "a condition in another process can't be waited for otherwise")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Processes that a process has started.
pub fn children(of: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parent = |id: &u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    all.filter(|id| parent(id) == Some(of)).collect()
}
