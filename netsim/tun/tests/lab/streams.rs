//! The kernel's TCP, and programs that know nothing of this, over the model's links.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use tern_netsim_link::{Chance, Loss, Mtu, Rate, Spec};
use tern_netsim_scenario::plan::Blocked;

use crate::support::{HOME, PATIENCE, PORT, SERVER, lab, plan, symmetric, until};

/// Bytes that look like nothing else at the same place.
fn file(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

/// Sends a file from the phone to the server; what came, and from which address.
fn transfer(lab: &tern_netsim_tun::Lab, length: usize) -> (Vec<u8>, Ipv4Addr) {
    let listener = lab.within("server", || TcpListener::bind(("0.0.0.0", PORT)).unwrap()).unwrap().join().unwrap();
    let server = lab.within("server", move || {
        let (mut stream, from) = listener.accept().unwrap();
        let mut came = Vec::new();
        stream.read_to_end(&mut came).unwrap();
        stream.write_all(b"thank you").unwrap();
        (came, from)
    });
    let phone = lab.within("phone", move || {
        let mut stream = TcpStream::connect((SERVER, PORT)).unwrap();
        stream.write_all(&file(length)).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut thanks = String::new();
        stream.read_to_string(&mut thanks).unwrap();
        thanks
    });
    assert_eq!(phone.unwrap().join().unwrap(), "thank you");
    let (came, from) = server.unwrap().join().unwrap();
    let std::net::IpAddr::V4(from) = from.ip() else { panic!("{from}") };
    (came, from)
}

#[test]
fn a_file_arrives_whole_through_a_lossy_link_and_a_nat() {
    let mut spec = Spec { loss: Loss::Random(Chance::percent(3)), ..Spec::with_delay_ms(10) };
    spec.rate = Rate::Constant(20_000_000);
    let plan = plan(symmetric(spec), symmetric(Spec::default()), 2);
    let Some(lab) = lab("a_file_arrives_whole_through_a_lossy_link_and_a_nat", &plan) else { return };
    let (came, from) = transfer(&lab, 300_000);
    assert!(came == file(300_000));
    assert_eq!(from, HOME);
    let counts = lab.with(|fabric, _| fabric.access_counts("phone", "wifi")).unwrap().unwrap();
    assert!(counts.up.dropped_in_all() > 0, "{counts:?}");
}

#[test]
fn tcp_learns_of_a_smaller_mtu_from_the_link() {
    let spec = Spec { mtu: Some(Mtu { bytes: 900, notice: true }), ..Spec::with_delay_ms(5) };
    let plan = plan(symmetric(spec), symmetric(Spec::default()), 1);
    let Some(lab) = lab("tcp_learns_of_a_smaller_mtu_from_the_link", &plan) else { return };
    let (came, _) = transfer(&lab, 50_000);
    assert!(came == file(50_000));
    let counts = lab.with(|fabric, _| fabric.access_counts("phone", "wifi")).unwrap().unwrap();
    assert!(counts.up.dropped_in_all() > 0, "the first long packet is what teaches it: {counts:?}");
}

#[test]
fn a_captive_portal_accepts_and_never_answers() {
    let plan = plan(symmetric(Spec::with_delay_ms(5)), symmetric(Spec::default()), 1);
    let Some(lab) = lab("a_captive_portal_accepts_and_never_answers", &plan) else { return };
    lab.with(|fabric, _| fabric.set_block("phone", None, Some(Blocked::Captive))).unwrap().unwrap();
    // Nobody listens anywhere.
    let phone = lab.within("phone", || {
        let mut stream = TcpStream::connect_timeout(&(SERVER, 443).into(), PATIENCE).unwrap();
        stream.write_all(&[7; 20_000]).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        stream.read(&mut [0; 10]).unwrap_err().kind()
    });
    let kind = phone.unwrap().join().unwrap();
    assert!(matches!(kind, std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{kind:?}");
    let counts = lab.with(|fabric, _| fabric.access_counts("phone", "wifi")).unwrap().unwrap();
    assert!(counts.portal >= 2 && counts.up.sent_bytes > 20_000, "{counts:?}");
}

#[test]
fn a_program_that_is_not_ours_is_behind_the_link_too() {
    let plan = plan(symmetric(Spec::with_delay_ms(40)), symmetric(Spec::default()), 10);
    let Some(lab) = lab("a_program_that_is_not_ours_is_behind_the_link_too", &plan) else { return };
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("a_program_that_is_not_ours_is_behind_the_link_too was SKIPPED: there is no curl");
        return;
    }
    let listener = lab.within("server", || TcpListener::bind(("0.0.0.0", 80)).unwrap()).unwrap().join().unwrap();
    let server = lab.within("server", move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let length = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--noproxy", "*", "-w", " %{time_total} %{local_ip}", &format!("http://{SERVER}/")]);
    curl.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut curl = lab.spawn("phone", curl).unwrap();
    let mut said = String::new();
    curl.pipes().1.unwrap().read_to_string(&mut said).unwrap();
    assert!(curl.wait().unwrap().success());
    assert!(server.unwrap().join().unwrap().starts_with("GET / HTTP/1.1"));
    let words: Vec<&str> = said.split(' ').collect();
    assert_eq!((words[0], words[2]), ("hello", "192.168.1.5"));
    // Two round trips of 100 ms: one to open, one to ask.
    assert!(words[1].parse::<f64>().unwrap() >= 0.2, "{said}");
}

#[test]
fn a_process_stands_still_goes_on_and_is_killed_with_its_children() {
    let plan = plan(symmetric(Spec::default()), symmetric(Spec::default()), 1);
    let Some(lab) = lab("a_process_stands_still_goes_on_and_is_killed_with_its_children", &plan) else { return };
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped());
    let mut shell = lab.spawn("server", shell).unwrap();
    let state = |id: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        stat.rsplit_once(')')?.1.trim().chars().next()
    };
    shell.pause().unwrap();
    until("the process stands still", || state(shell.id()) == Some('T'));
    shell.resume().unwrap();
    until("the process goes on", || state(shell.id()) == Some('S'));
    let child = crate::support::children(shell.id());
    assert_eq!(child.len(), 1);
    assert!(shell.try_wait().unwrap().is_none());
    assert!(!shell.kill().unwrap().success());
    until("the child is gone", || matches!(state(child[0]), None | Some('Z')));
    let status = lab
        .shell("server", {
            let mut c = Command::new("/bin/sh");
            c.args(["-c", "exit 7"]);
            c
        })
        .unwrap();
    assert_eq!(status.code(), Some(7));
}
