//! Child processes of the same binary on one machine: starts them, waits until they serve, kills them, and
//! never leaves one behind.
//!
//! A child must end when its parent does, however the parent ends. So every child is started with
//! `--stop-with-stdin` and holds the reading end of a pipe whose other end is this process: when it is gone,
//! for whatever reason, the kernel closes the pipe and the child stops. (The pipe is held apart from the
//! child's handle, which would close it before waiting.) Children are in process groups of
//! their own, so that Ctrl-C reaches this process alone, which then stops them in order.
//!
//! A child that serves says so by one line of JSON on its standard output, see [`Ready`]. Its log goes to a
//! file.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

/// A child that does not serve by then has failed. Opening a small store takes a fraction of a second; a
/// busy machine may take many times that.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of a child's log that are shown when it fails to start.
const LOG_TAIL: usize = 2000;

/// The line by which a process says that it serves; `null` where it has no such listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The node's name.
    pub ready: String,
    /// QUIC and TCP for clients.
    pub client: Option<SocketAddr>,
    /// HTTPS of dispatch.
    pub dispatch: Option<SocketAddr>,
    /// QUIC for nodes.
    pub node: Option<SocketAddr>,
    /// HTTP of metrics and health.
    pub admin: Option<SocketAddr>,
    /// UDP of the gossip between nodes.
    pub gossip: Option<SocketAddr>,
}

impl Ready {
    /// Prints it to standard output: as JSON, or for a person.
    pub fn print(&self, json: bool) {
        use std::io::Write;
        let line = if json {
            serde_json::to_string(self).unwrap_or_default()
        } else {
            let part = |name, at: Option<SocketAddr>| at.map_or_else(String::new, |at| format!("  {name} {at}"));
            format!(
                "ready     {}{}{}{}{}{}",
                self.ready,
                part("client", self.client),
                part("dispatch", self.dispatch),
                part("node", self.node),
                part("admin", self.admin),
                part("gossip", self.gossip)
            )
        };
        // Whoever started this may have closed the pipe: that is no reason to stop serving.
        let _closed = writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush());
    }
}

/// Why a child is not running.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The system would not start it.
    #[error("process {name} can't be started: {cause}")]
    Spawn {
        /// Which.
        name: String,
        /// Why.
        cause: io::Error,
    },
    /// It ended, or did not serve in time.
    #[error("process {name} {what}; its log is {}{tail}", log.display())]
    NotReady {
        /// Which.
        name: String,
        /// What it did instead.
        what: String,
        /// Where it says why.
        log: PathBuf,
        /// The end of it.
        tail: String,
    },
}

/// The children of this process, by name. Dropping it kills them.
#[derive(Debug)]
pub struct Fleet {
    binary: PathBuf,
    logs: PathBuf,
    children: BTreeMap<String, Running>,
}

/// A child and the pipe whose end stops it.
#[derive(Debug)]
struct Running {
    child: Child,
    _stdin: Option<ChildStdin>,
}

impl Fleet {
    /// Children run `binary` and log to `<data>/logs/`.
    pub fn new(binary: PathBuf, data: &Path) -> io::Result<Self> {
        let logs = data.join("logs");
        fs::create_dir_all(&logs)?;
        Ok(Self { binary, logs, children: BTreeMap::new() })
    }

    /// Starts a child and waits until it serves. A child of that name that runs is killed first. Dropping
    /// the future kills the new child.
    pub async fn start(&mut self, name: &str, arguments: &[String]) -> Result<Ready, FleetError> {
        self.kill(name).await;
        let log = self.log_path(name);
        let spawn_error = |cause| FleetError::Spawn { name: name.to_owned(), cause };
        let log_file = OpenOptions::new().create(true).append(true).open(&log).map_err(spawn_error)?;
        let mut child = self.spawn(arguments, log_file).map_err(spawn_error)?;
        let stdin = child.stdin.take();
        let outcome = timeout(READY_WITHIN, first_line(&mut child)).await;
        let what = match outcome {
            Ok(Ok(Some(ready))) => {
                self.children.insert(name.to_owned(), Running { child, _stdin: stdin });
                return Ok(ready);
            }
            Ok(Ok(None)) => match timeout(READY_WITHIN, child.wait()).await {
                Ok(Ok(status)) => format!("ended at once with {status}"),
                _ => "closed its output without a word".to_owned(),
            },
            Ok(Err(error)) => format!("can't be listened to: {error}"),
            Err(_) => format!("did not serve within {} s", READY_WITHIN.as_secs()),
        };
        end_now(&mut child).await;
        Err(FleetError::NotReady { name: name.to_owned(), what, tail: tail(&log), log })
    }

    /// Starts a child and does not wait: it may be killed before it serves. A child of that name that runs is
    /// killed first. Whether it came up is seen by [`Self::ended`].
    pub async fn launch(&mut self, name: &str, arguments: &[String]) -> Result<(), FleetError> {
        self.kill(name).await;
        let spawn_error = |cause| FleetError::Spawn { name: name.to_owned(), cause };
        let log = OpenOptions::new().create(true).append(true).open(self.log_path(name)).map_err(spawn_error)?;
        let mut child = self.spawn(arguments, log).map_err(spawn_error)?;
        // Its standard output stays open, so that the line by which it says that it serves goes somewhere.
        let stdin = child.stdin.take();
        self.children.insert(name.to_owned(), Running { child, _stdin: stdin });
        Ok(())
    }

    /// Sends a signal to a child. False: there is none.
    pub fn signal(&self, name: &str, signal: Signal) -> bool {
        let pid = self.pid(name).and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // One that has just ended can't be signalled, which is the same as none.
        pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    /// The end of a child's log, for a message.
    pub fn log_tail(&self, name: &str) -> String {
        tail(&self.log_path(name))
    }

    fn spawn(&self, arguments: &[String], log: File) -> io::Result<Child> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).args(["--json", "--stop-with-stdin", "--set", "log.json=false"]);
        // A child is configured by its arguments alone.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with(crate::config::source::ENV_PREFIX) {
                command.env_remove(name);
            }
        }
        // It is this process that systemd waits for, if it does.
        command.env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        command.process_group(0).kill_on_drop(true).spawn()
    }

    /// Where the children's logs are.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// The file that a child's log goes to.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Names of the children that were started and not stopped.
    pub fn names(&self) -> Vec<String> {
        self.children.keys().cloned().collect()
    }

    /// Its process id, while it runs.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.children.get(name).and_then(|running| running.child.id())
    }

    /// A child that ended by itself, and how.
    pub fn ended(&mut self) -> Option<(String, ExitStatus)> {
        self.children.iter_mut().find_map(|(name, running)| Some((name.clone(), running.child.try_wait().ok()??)))
    }

    /// Kills a child at once, as a crash would, and waits until it is gone. False: there was none.
    pub async fn kill(&mut self, name: &str) -> bool {
        let Some(mut running) = self.children.remove(name) else { return false };
        end_now(&mut running.child).await;
        true
    }

    /// Kills several children at the same moment.
    pub async fn kill_all(&mut self, names: &[String]) {
        let mut children: Vec<Running> = names.iter().filter_map(|name| self.children.remove(name)).collect();
        for running in &mut children {
            // It may have ended by itself just now.
            let _ended = running.child.start_kill();
        }
        for running in &mut children {
            end_now(&mut running.child).await;
        }
    }

    /// Asks every child to stop, waits up to `grace`, then kills what is left.
    pub async fn stop(&mut self, grace: Duration) {
        let mut children: Vec<Running> = std::mem::take(&mut self.children).into_values().collect();
        for running in &children {
            if let Some(pid) = running.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
                // It may have ended by itself just now.
                let _ended = kill_process(pid, Signal::TERM);
            }
        }
        let waited = timeout(grace, async {
            for running in &mut children {
                // Waiting fails only for a process that is not there.
                let _gone = running.child.wait().await;
            }
        });
        if waited.await.is_err() {
            for running in &mut children {
                end_now(&mut running.child).await;
            }
        }
    }
}

async fn end_now(child: &mut Child) {
    // Both fail only where it has ended and was waited for already.
    let _ended = child.start_kill();
    let _gone = child.wait().await;
}

/// The ready line. None: the output ended first.
async fn first_line(child: &mut Child) -> io::Result<Option<Ready>> {
    let Some(output) = child.stdout.take() else { return Ok(None) };
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await? {
        if let Ok(ready) = serde_json::from_str(&line) {
            return Ok(Some(ready));
        }
    }
    Ok(None)
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let from = text.len().saturating_sub(LOG_TAIL);
    match String::from_utf8_lossy(&text[from..]).trim() {
        "" => String::new(),
        tail => format!("; it ends with:\n{tail}"),
    }
}
