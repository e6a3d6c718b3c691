//! The servers of other systems: what they need, how they are set up, and whether they serve.
//!
//! Each runs in a region's host as a child of the lab, in the foreground, with a directory of its own below the lab's: it
//! ends with the lab, and so does everything it wrote.

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tern_netsim_tun::{Lab, Process};

use super::{CompareError, Outside, Peer};
use crate::real::device::monotonic_ns;

/// A server that does not serve by then has failed: ejabberd takes ten seconds on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// Between two looks at whether it serves.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Bytes of a server's log that are shown when it does not serve.
const LOG_TAIL: usize = 2000;
/// XMPP addresses end with it, and all certificates name it.
pub const DOMAIN: &str = "tern.test";
/// Of all users of ejabberd: it guards nothing.
const PASSWORD: &str = "compare";

/// What is lacking for a peer on this machine, and what to do about it.
pub fn lacks(peer: Peer, outside: &Outside) -> Option<String> {
    let python = |module: &str, package: &str| {
        let status = Command::new(&outside.python)
            .args(["-c", &format!("import {module}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let has = status.is_ok_and(|status| status.success());
        let python = outside.python.display();
        (!has).then(|| format!("{python} has no {module}: pip install {package}, or name another with --python"))
    };
    match peer {
        Peer::Tcp => None,
        Peer::Mqtt if program("mosquitto").is_none() => Some("there is no mosquitto: apt install mosquitto".to_owned()),
        Peer::Mqtt => python("paho.mqtt.client", "paho-mqtt"),
        Peer::Xmpp if program("erl").is_none() || ejabberd().is_none() => {
            Some("there is no ejabberd: apt install ejabberd".to_owned())
        }
        Peer::Xmpp => python("slixmpp", "slixmpp"),
    }
}

/// A certificate for all servers, below `directory`.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// What clients pin.
    pub roots: PathBuf,
    chain: PathBuf,
    key: PathBuf,
    both: PathBuf,
}

impl Certificates {
    /// ECDSA on P-256, a chain of two, as from a public authority.
    pub fn make(directory: &Path, address: Ipv4Addr) -> Result<Self, CompareError> {
        let tls = |error: rcgen::Error| CompareError::Tls(error.to_string());
        let named = |names: Vec<String>, name: &str| {
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name.push(DnType::CommonName, name);
            // Dates of other centuries end ejabberd.
            (params.not_before, params.not_after) = (date_time_ymd(2025, 1, 1), date_time_ymd(2040, 1, 1));
            Ok::<_, rcgen::Error>(params)
        };
        let mut authority = named(Vec::new(), "compare").map_err(tls)?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().map_err(tls)?).map_err(tls)?;
        let key = KeyPair::generate().map_err(tls)?;
        let leaf = named(vec![DOMAIN.to_owned(), address.to_string()], DOMAIN).map_err(tls)?;
        let leaf = leaf.signed_by(&key, &authority).map_err(tls)?;
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            let written = fs::write(&path, text);
            written.map_err(CompareError::io(format!("writing {}", path.display()))).map(|()| path)
        };
        Ok(Self {
            roots: write("roots.pem", authority.pem())?,
            chain: write("chain.pem", leaf.pem())?,
            key: write("key.pem", key.serialize_pem())?,
            both: write("both.pem", leaf.pem() + &authority.pem() + &key.serialize_pem())?,
        })
    }
}

/// Starts a server in a host, and waits until it serves.
pub fn start(
    peer: Peer,
    lab: &Lab,
    (host, address): (&str, Ipv4Addr),
    users: &[String],
    certificates: &Certificates,
    logs: &Path,
) -> Result<Process, CompareError> {
    let directory = lab.directory().join("compare").join(peer.name());
    fs::create_dir_all(&directory).map_err(CompareError::io("making a server's directory"))?;
    let server = SocketAddr::from((address, peer.port()));
    // A file that says more than an open port does.
    let mut flag = None;
    let mut command = match peer {
        Peer::Tcp => relay(server, certificates)?,
        Peer::Mqtt => mosquitto(&directory, server, certificates)?,
        Peer::Xmpp => {
            let ready = directory.join("ready");
            let command = erlang(&directory, server, users, certificates, &ready)?;
            flag = Some(ready);
            command
        }
    };
    let log_path = logs.join(format!("{peer}-server.log"));
    let open = || OpenOptions::new().create(true).append(true).open(&log_path);
    let opening = || CompareError::io(format!("opening {}", log_path.display()));
    command.stdin(Stdio::null()).stdout(open().map_err(opening())?).stderr(open().map_err(opening())?);
    let mut process = lab.spawn(host, command)?;
    let deadline_ns = monotonic_ns() + u64::try_from(READY_WITHIN.as_nanos()).unwrap_or(u64::MAX);
    loop {
        let listens = lab.within(host, move || TcpStream::connect_timeout(&server, LOOK_EVERY).is_ok())?.join()?;
        if listens && flag.as_ref().is_none_or(|flag| flag.exists()) {
            return Ok(process);
        }
        let ended = process.try_wait().map_err(CompareError::io("waiting for a server"))?.is_some();
        if ended || monotonic_ns() >= deadline_ns {
            let log = fs::read(&log_path).unwrap_or_default();
            let tail = &log[log.len().saturating_sub(LOG_TAIL)..];
            return Err(CompareError::NotReady { peer, said: String::from_utf8_lossy(tail).trim().to_owned() });
        }
        #[expect(clippy::disallowed_methods, reason = "this thread has nothing else to do")]
        std::thread::sleep(LOOK_EVERY);
    }
}

fn relay(server: SocketAddr, certificates: &Certificates) -> Result<Command, CompareError> {
    let program = std::env::current_exe().map_err(CompareError::io("finding this program"))?;
    let mut command = Command::new(program);
    command.arg("relay").arg(server.to_string()).arg(&certificates.chain).arg(&certificates.key);
    Ok(command)
}

fn mosquitto(directory: &Path, server: SocketAddr, certificates: &Certificates) -> Result<Command, CompareError> {
    let config = directory.join("mosquitto.conf");
    // It gives up root's rights, and could not read its key any more.
    let text = format!(
        "user root\nlistener {} {}\ncertfile {}\nkeyfile {}\nallow_anonymous true\npersistence false\n\
         set_tcp_nodelay true\nmax_queued_messages 0\nlog_dest stderr\n",
        server.port(),
        server.ip(),
        certificates.chain.display(),
        certificates.key.display()
    );
    fs::write(&config, text).map_err(CompareError::io("writing mosquitto's configuration"))?;
    let mut command = Command::new(program("mosquitto").unwrap_or_else(|| PathBuf::from("mosquitto")));
    command.arg("-c").arg(config);
    Ok(command)
}

/// ejabberd without `ejabberdctl`, which changes users and needs a name service of Erlang's; it is the same program.
fn erlang(
    directory: &Path,
    server: SocketAddr,
    users: &[String],
    certificates: &Certificates,
    ready: &Path,
) -> Result<Command, CompareError> {
    let config = directory.join("ejabberd.yml");
    let text = format!(
        r#"hosts: ["{DOMAIN}"]
loglevel: warning
certfiles: ["{}"]
listen:
  - port: {}
    ip: "{}"
    module: ejabberd_c2s
    tls: true
    access: c2s
    shaper: none
access_rules:
  c2s:
    allow: all
auth_method: [internal]
modules:
  mod_offline: {{}}
  mod_roster: {{}}
  mod_stream_mgmt:
    resend_on_timeout: true
"#,
        certificates.both.display(),
        server.port(),
        server.ip()
    );
    fs::write(&config, text).map_err(CompareError::io("writing ejabberd's configuration"))?;
    let users: Vec<String> = users.iter().map(|user| format!("<<\"{user}\">>")).collect();
    let run = format!(
        "{{ok, _}} = application:ensure_all_started(ejabberd), \
         [ok = ejabberd_auth:try_register(User, <<\"{DOMAIN}\">>, <<\"{PASSWORD}\">>) || User <- [{}]], \
         ok = file:write_file(\"{}\", <<>>).",
        users.join(", "),
        ready.display()
    );
    let mut command = Command::new(program("erl").unwrap_or_else(|| PathBuf::from("erl")));
    command.arg("-noinput").arg("-pa").arg(ejabberd().unwrap_or_default());
    command.arg("-mnesia").arg("dir").arg(format!("\"{}\"", directory.join("mnesia").display()));
    command.arg("-eval").arg(run).current_dir(directory);
    command.env("HOME", directory).env("EJABBERD_CONFIG_PATH", &config);
    command.env("EJABBERD_LOG_PATH", directory.join("ejabberd.log")).env("ERL_CRASH_DUMP", directory.join("crash"));
    Ok(command)
}

/// A program of the system. Those of servers are often not on the path of a user.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let further = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(further).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// Where ejabberd's code is: distributions have it in different places.
fn ejabberd() -> Option<PathBuf> {
    let triplet = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    for parent in [triplet.as_str(), "/usr/lib64", "/usr/lib", "/usr/lib/ejabberd/lib", "/usr/lib64/ejabberd/lib"] {
        let Ok(entries) = fs::read_dir(parent) else { continue };
        let mut found: Vec<PathBuf> = entries
            .map_while(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("ejabberd"))
            .map(|entry| entry.path().join("ebin"))
            .filter(|ebin| ebin.join("ejabberd.beam").is_file())
            .collect();
        found.sort();
        if let Some(last) = found.pop() {
            return Some(last);
        }
    }
    None
}
