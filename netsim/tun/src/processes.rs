//! Processes in the hosts of a lab, and the certainty that they end with it.
//!
//! Problem: a run can end by its end, by an error, by Ctrl-C, by SIGTERM, by SIGKILL. A list of children helps in the
//! first two; a signal handler in two more; nothing that a process does itself helps in the last, and a child may have
//! children that nobody listed.
//!
//! Rule: all processes of a lab are in one process namespace. Its init is a shell that reads a pipe of which the lab
//! holds the other end. Whatever ends the lab's process closes that end; the shell reads the end of its input, kills
//! everybody, removes the lab's directory, and ends; with it the kernel ends the namespace. There is no signal handler
//! to install and none to forget.
//!
//! Why not PR_SET_PDEATHSIG: it is not inherited by grandchildren, and asks for a call between fork and exec.
//!
//! The namespace ends only when each of its processes has been waited for, also those that this process started and
//! that are dead; so the lab knows its children, and waits for all of them before it waits for the init.
//!
//! Children are started by one thread, because both kinds of namespace are a thread's: it enters the host's network
//! namespace and spawns there, and has no other duty.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::{
    fmt,
    io::{self, stdin},
};

use rustix::process::{Pid, Signal, getpgrp, kill_process_group};
use rustix::termios::{tcgetpgrp, tcsetpgrp};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::LabError;
use crate::kernel::new_process_namespace;
use crate::namespace::dropped_before_read;

/// What the init of a lab does; its argument is the lab's directory. Other processes end before the directory does,
/// so that none writes into it meanwhile.
const INIT: &str = "cat >/dev/null; kill -KILL -1; rm -rf -- \"$1\"";

/// A piece of work for the thread.
type Work = Box<dyn FnOnce() + Send>;

/// The processes of a lab.
pub(crate) struct Processes {
    init: Child,
    children: Mutex<Vec<Weak<Mutex<Child>>>>,
    work: Option<Sender<(Arc<OwnedFd>, Work)>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processes").field("init", &self.init.id()).finish_non_exhaustive()
    }
}

impl Processes {
    /// Starts the init, which will remove `directory` at the end.
    pub(crate) fn start(directory: &Path) -> Result<Self, LabError> {
        let mut init = Command::new("/bin/sh");
        init.args(["-c", INIT, "tern-netsim-init"]).arg(directory);
        // In a group of its own, so that a Ctrl-C at the terminal is not for it.
        init.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).current_dir("/");
        let (work, queue) = channel();
        let (started, start) = channel();
        let thread = thread::Builder::new().name("processes".to_owned());
        let thread = thread
            .spawn(move || {
                let child = new_process_namespace()
                    .and_then(|()| init.spawn().map_err(LabError::io("starting the lab's init, /bin/sh")));
                let failed = child.is_err();
                if started.send(child).is_ok() && !failed {
                    run(&queue);
                }
            })
            .map_err(LabError::io("starting a thread"))?;
        let init = start.recv().unwrap_or(Err(LabError::Ended))?;
        Ok(Self { init, children: Mutex::new(Vec::new()), work: Some(work), thread: Some(thread) })
    }

    /// Starts a process in a host.
    pub(crate) fn spawn(&self, net: &Arc<OwnedFd>, mut command: Command, what: &str) -> Result<Process, LabError> {
        command.process_group(0);
        let child = self.within(net, move || command.spawn())?;
        let child = child.map_err(LabError::io("starting a process"))?;
        let id = child.id();
        let group = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or(LabError::Ended)?;
        let child = Arc::new(Mutex::new(child));
        let mut children = lock(&self.children);
        children.retain(|known| known.strong_count() > 0);
        children.push(Arc::downgrade(&child));
        Ok(Process { child, id, group, what: what.to_owned() })
    }

    /// Runs a process in a host and waits for it. It gets the caller's terminal, if it is the caller's to give: then
    /// Ctrl-C is for the process, and not for the lab.
    pub(crate) fn run(&self, net: &Arc<OwnedFd>, mut command: Command) -> Result<ExitStatus, LabError> {
        let own = tcgetpgrp(stdin()).is_ok_and(|foreground| foreground == getpgrp());
        if own {
            command.process_group(0);
        }
        let child = self.within(net, move || command.spawn())?;
        let mut child = child.map_err(LabError::io("starting a process"))?;
        if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw).filter(|_| own) {
            // It may have tried to read before the terminal was its own, and stands still then.
            let given = tcsetpgrp(stdin(), group).and_then(|()| kill_process_group(group, Signal::CONT));
            if given.is_err() {
                // It has ended already.
            }
        }
        child.wait().map_err(LabError::io("waiting for a process"))
    }

    /// Packets that the devices of a host dropped before the router could read them.
    pub(crate) fn dropped_before_read(&self, net: &Arc<OwnedFd>) -> Result<u64, LabError> {
        self.within(net, dropped_before_read)?
    }

    /// Does something in a host's namespace.
    fn within<R: Send + 'static>(
        &self,
        net: &Arc<OwnedFd>,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, LabError> {
        let (done, answer) = channel();
        // Nobody waits for the answer only if the asker is gone.
        let work: Work = Box::new(move || drop(done.send(work())));
        let queue = self.work.as_ref().ok_or(LabError::Ended)?;
        queue.send((Arc::clone(net), work)).map_err(|_| LabError::Ended)?;
        answer.recv().map_err(|_| LabError::Ended)
    }
}

/// The thread's life.
fn run(queue: &Receiver<(Arc<OwnedFd>, Work)>) {
    while let Ok((net, work)) = queue.recv() {
        if move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network)).is_ok() {
            work();
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // The init's input ends, and so does everybody; see the module.
        drop(self.init.stdin.take());
        drop(self.work.take());
        let children = std::mem::take(&mut *lock(&self.children));
        for child in children.iter().filter_map(Weak::upgrade) {
            if lock(&child).wait().is_err() {
                // It was waited for already.
            }
        }
        if self.init.wait().is_err() {
            // It was waited for already, so it has ended.
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            // It ended by a panic, which the panic's hook has told.
        }
    }
}

/// A process in a host. It is killed, with its group, when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Arc<Mutex<Child>>,
    id: u32,
    group: Pid,
    what: String,
}

impl Process {
    /// Its number, as seen from outside.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// As it was called.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Its input, output and errors, as far as it was started with pipes and they were not taken before.
    pub fn pipes(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>) {
        let mut child = lock(&self.child);
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    }

    /// Kills it and its group, and waits for it. Nothing happens if it has ended.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.wait()
    }

    /// Asks it and its group to end: SIGTERM.
    pub fn terminate(&mut self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Lets it and its group stand still.
    pub fn pause(&mut self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets them go on.
    pub fn resume(&mut self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Waits until it ends.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        lock(&self.child).wait()
    }

    /// Whether it has ended, and how.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        lock(&self.child).try_wait()
    }

    fn signal(&mut self, signal: Signal) -> io::Result<()> {
        // Once it was waited for, its number may be somebody else's.
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        match kill_process_group(self.group, signal) {
            Ok(()) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.kill().is_err() {
            // It can't be killed only if it has ended: by itself, or with the lab.
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
