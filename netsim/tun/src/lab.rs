//! A lab: hosts, the links between them, and processes in them. What a driver of scenarios uses.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::LabError;
use crate::fabric::Fabric;
use crate::lateness::Summary;
use crate::leftovers::new_directory;
use crate::namespace::{DeviceSpec, Namespace};
use crate::plan::{Attached, LabPlan};
use crate::processes::{Process, Processes};
use crate::router::Router;

/// A function that runs in a host.
#[derive(Debug)]
pub struct Within<R>(JoinHandle<Option<R>>);

impl<R> Within<R> {
    /// Waits for it. Fails where it panicked.
    pub fn join(self) -> Result<R, LabError> {
        self.0.join().ok().flatten().ok_or(LabError::Ended)
    }
}

/// See the module. When it is dropped, or its process ends in whatever way, nothing of it is left.
#[derive(Debug)]
pub struct Lab {
    // In this order: the processes end first, then the links, then the namespaces.
    processes: Processes,
    router: Router,
    hosts: Vec<(String, Arc<OwnedFd>)>,
    directory: PathBuf,
}

impl Lab {
    /// Makes all hosts and lets the links run; the lab's clock begins. Directories of earlier labs, whose processes are
    /// no more, are removed. Blocks for about 5 ms per host.
    pub fn start(plan: &LabPlan) -> Result<Self, LabError> {
        // First what costs nothing and may be wrong.
        let fabric = Fabric::new(plan)?;
        let mut hosts = Vec::with_capacity(plan.hosts.len());
        let mut named = Vec::with_capacity(plan.hosts.len());
        for host in &plan.hosts {
            let devices: Vec<DeviceSpec> = match &host.attached {
                Attached::Wired(address) => vec![DeviceSpec { name: "eth0".to_owned(), address: *address }],
                Attached::Access(interfaces) => interfaces
                    .iter()
                    .map(|interface| DeviceSpec { name: interface.name.clone(), address: interface.address })
                    .collect(),
            };
            let namespace = Namespace::build(&devices)?;
            named.push((host.name.clone(), Arc::clone(&namespace.net)));
            hosts.push(namespace);
        }
        let directory = new_directory(&parent()).map_err(LabError::io("making the lab's temporary directory"))?;
        // From here on the directory is the init's to remove.
        let processes = Processes::start(&directory).inspect_err(|_| {
            if std::fs::remove_dir(&directory).is_err() {
                // It is in the way of nothing, and goes with the next start.
            }
        })?;
        let router = Router::start(fabric, hosts)?;
        Ok(Self { processes, router, hosts: named, directory })
    }

    /// A directory for files of this lab's processes. It is removed with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts a process in a host, in a group of its own. It is killed when its handle is dropped, or with the lab.
    pub fn spawn(&self, host: &str, command: Command) -> Result<Process, LabError> {
        self.processes.spawn(self.net(host)?, command, host)
    }

    /// Runs a process in a host and waits for it. It shares the caller's terminal, input and output.
    pub fn shell(&self, host: &str, command: Command) -> Result<ExitStatus, LabError> {
        self.processes.run(self.net(host)?, command)
    }

    /// Runs a function on a thread of its own in a host: what it opens there, sockets above all, is the host's.
    pub fn within<R: Send + 'static>(
        &self,
        host: &str,
        f: impl FnOnce() -> R + Send + 'static,
    ) -> Result<Within<R>, LabError> {
        let net = Arc::clone(self.net(host)?);
        let (entered, entering) = channel();
        let thread = thread::Builder::new().name(host.to_owned()).spawn(move || {
            let moved = move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network));
            // If it failed, nothing is done in the wrong place.
            let asked = entered.send(moved).is_ok();
            (asked && moved.is_ok()).then(f)
        });
        let thread = thread.map_err(LabError::io("starting a thread"))?;
        let failed = |source| LabError::Io { what: "entering a namespace", source };
        entering.recv().map_err(|_| LabError::Ended)?.map_err(|errno| failed(errno.into()))?;
        Ok(Within(thread))
    }

    /// Asks or changes the links; the function is also told the lab's time in nanoseconds.
    pub fn with<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Fabric, u64) -> R + Send + 'static,
    ) -> Result<R, LabError> {
        self.router.with(f)
    }

    /// The lab's time, in nanoseconds.
    pub fn now_ns(&self) -> Result<u64, LabError> {
        self.with(|_, now_ns| now_ns)
    }

    /// Where a host is reached from outside now.
    pub fn reached_at(&self, host: &str) -> Result<Ipv4Addr, LabError> {
        let host = host.to_owned();
        self.with(move |fabric, _| fabric.reached_at(&host))?
    }

    /// All hosts and where they are reached, a line each, for a human.
    pub fn address_table(&self) -> Result<String, LabError> {
        let width = self.hosts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut table = String::new();
        for (name, _) in &self.hosts {
            let line = format!("{name:width$}  {}\n", self.reached_at(name)?);
            table.push_str(&line);
        }
        Ok(table)
    }

    /// How late packets were so far.
    pub fn lateness(&self) -> Result<Summary, LabError> {
        self.router.lateness()
    }

    /// Packets that the hosts' kernels dropped before the links saw them: with any, the run is worth nothing.
    pub fn dropped_before_read(&self) -> Result<u64, LabError> {
        let mut sum = 0u64;
        for (_, net) in &self.hosts {
            sum = sum.saturating_add(self.processes.dropped_before_read(net)?);
        }
        Ok(sum)
    }

    /// Errors of the hosts' kernels so far, and the first as text: packets that a device did not take, changes of
    /// addresses and routes that were refused.
    pub fn kernel_errors(&self) -> Result<(u64, Option<String>), LabError> {
        self.router.kernel_errors()
    }

    fn net(&self, host: &str) -> Result<&Arc<OwnedFd>, LabError> {
        let found = self.hosts.iter().find(|(name, _)| name == host);
        let names = || self.hosts.iter().map(|(name, _)| name.as_str());
        found.map(|(_, net)| net).ok_or_else(|| LabError::unknown("host", host, names()))
    }
}

/// Where directories of labs are made: in memory, where that is possible. On a disk that others write to, a forced write
/// takes as long as they make it, and would be part of every delay that is measured.
fn parent() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let writable = rustix::fs::access(memory, rustix::fs::Access::WRITE_OK).is_ok();
    if writable { memory.to_owned() } else { std::env::temp_dir() }
}
