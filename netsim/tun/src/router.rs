//! The thread that carries packets: the machine of [`crate::fabric`] between the hosts' devices and the clock.
//!
//! Problem: a sleeping thread of a busy machine wakes about 90 us late in the median, and milliseconds late at times;
//! a thread that never sleeps takes one of two cores from the processes that it serves.
//!
//! Rule: the thread sleeps until shortly before the next moment at which something is due, and watches the clock from
//! then on. It never writes early, so that a delay is never undercut; how late it writes is counted. It runs before all
//! threads of ordinary priority: otherwise the processes that it serves, when they use both cores, make it milliseconds
//! late.
//!
//! Who wants something of the machine sends a function, which the thread runs between two packets ([`Router::with`]).
//! So the machine needs no lock, and a change has one exact moment.

use std::io::{ErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::process::setpriority_process;
use rustix::thread::set_current_timer_slack;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::error::LabError;
use crate::fabric::{Fabric, Output, Port};
use crate::kernel::run_before_others;
use crate::lateness::{Lateness, Summary};
use crate::limits::{READ_BATCH, READ_BYTES, READY_BATCH, ROUTER_NICE, WATCH_NS};
use crate::namespace::{Device, Namespace};
use crate::netlink::Netlink;

/// Marks of the two files that are no devices.
const WAKE: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// What the thread is asked to do.
type Request = Box<dyn FnOnce(&mut Worker) + Send>;

/// A handle of the thread; it ends with this.
#[derive(Debug)]
pub struct Router {
    requests: Option<Sender<Request>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Router {
    /// Starts the thread, at moment 0 of the machine. `hosts` are in the order of the plan.
    pub fn start(fabric: Fabric, hosts: Vec<Namespace>) -> Result<Self, LabError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = Arc::new(wake.map_err(|errno| LabError::Io { what: "making an eventfd", source: errno.into() })?);
        let (requests, queue) = channel();
        let mut worker = Worker::new(fabric, hosts, Arc::clone(&wake))?;
        let thread = thread::Builder::new().name("router".to_owned()).spawn(move || worker.run(&queue));
        let thread = thread.map_err(LabError::io("starting a thread"))?;
        Ok(Self { requests: Some(requests), wake, thread: Some(thread) })
    }

    /// Runs a function on the machine, which has advanced to the moment that the function is given.
    pub fn with<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Fabric, u64) -> R + Send + 'static,
    ) -> Result<R, LabError> {
        self.ask(move |worker| f(&mut worker.fabric, worker.now_ns))
    }

    /// How late packets were so far.
    pub fn lateness(&self) -> Result<Summary, LabError> {
        self.ask(|worker| worker.lateness.summary())
    }

    /// Errors of the hosts' kernels so far, the first of them as text: packets that a device did not take, changes that
    /// were refused.
    pub fn kernel_errors(&self) -> Result<(u64, Option<String>), LabError> {
        self.ask(|worker| (worker.errors, worker.first_error.clone()))
    }

    fn ask<R: Send + 'static>(&self, f: impl FnOnce(&mut Worker) -> R + Send + 'static) -> Result<R, LabError> {
        let (done, answer) = channel();
        // Nobody waits for the answer only if the asker is gone.
        let request: Request = Box::new(move |worker| drop(done.send(f(worker))));
        self.requests.as_ref().ok_or(LabError::Ended)?.send(request).map_err(|_| LabError::Ended)?;
        self.wake_up();
        answer.recv().map_err(|_| LabError::Ended)
    }

    fn wake_up(&self) {
        if rustix::io::write(&self.wake, &1u64.to_ne_bytes()).is_err() {
            // The counter is full, so the thread has been woken often enough.
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        drop(self.requests.take());
        self.wake_up();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            // It ended by a panic, which the panic's hook has told.
        }
    }
}

/// The thread's own.
struct Worker {
    fabric: Fabric,
    now_ns: u64,
    begin: Instant,
    devices: Vec<Vec<Device>>,
    netlinks: Vec<Netlink>,
    ports: Vec<Port>,
    epoll: OwnedFd,
    timer: OwnedFd,
    timer_ns: Option<u64>,
    wake: Arc<OwnedFd>,
    lateness: Lateness,
    errors: u64,
    first_error: Option<String>,
}

impl Worker {
    fn new(fabric: Fabric, hosts: Vec<Namespace>, wake: Arc<OwnedFd>) -> Result<Self, LabError> {
        let failed = |errno: Errno| LabError::Io { what: "making an epoll", source: errno.into() };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(failed)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN).map_err(failed)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN).map_err(failed)?;
        let mut ports = Vec::new();
        for (host, namespace) in hosts.iter().enumerate() {
            for (interface, device) in namespace.devices.iter().enumerate() {
                let mark = u64::try_from(ports.len()).unwrap_or(TIMER);
                epoll::add(&epoll, &device.file, EventData::new_u64(mark), EventFlags::IN).map_err(failed)?;
                ports.push(Port { host, interface });
            }
        }
        let (netlinks, devices) = hosts.into_iter().map(|host| (host.netlink, host.devices)).unzip();
        let begin = now();
        let (lateness, errors, first_error) = (Lateness::default(), 0, None);
        Ok(Self {
            fabric,
            now_ns: 0,
            begin,
            devices,
            netlinks,
            ports,
            epoll,
            timer,
            timer_ns: None,
            wake,
            lateness,
            errors,
            first_error,
        })
    }

    /// Until the handle is gone.
    fn run(&mut self, requests: &Receiver<Request>) {
        let first = run_before_others().is_ok() || setpriority_process(None, ROUTER_NICE).is_ok();
        if !(first && set_current_timer_slack(NonZeroU64::new(1)).is_ok()) {
            // It is not permitted: more packets will be late, which is counted.
        }
        let mut buffer = vec![0; READ_BYTES];
        let mut ready = Vec::with_capacity(READY_BATCH);
        loop {
            self.tick();
            loop {
                match requests.try_recv() {
                    Ok(request) => {
                        request(self);
                        self.tick();
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let watches = self.set_timer();
            ready.clear();
            let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), watches.then_some(&no_wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return self.note("waiting for packets", &errno.into()),
            }
            for event in &ready {
                // The structure is packed, so its field is copied first.
                let data = event.data;
                match data.u64() {
                    WAKE => self.clear(false),
                    TIMER => {
                        self.timer_ns = None;
                        self.clear(true);
                    }
                    mark => self.read(mark, &mut buffer),
                }
            }
        }
    }

    /// Lets everything happen up to now, and does what has to be done.
    fn tick(&mut self) {
        self.now_ns = self.clock_ns();
        self.fabric.advance(self.now_ns);
        while let Some(output) = self.fabric.poll_output() {
            self.put(output);
        }
    }

    fn put(&mut self, output: Output) {
        match output {
            Output::Deliver { to, bytes, due_ns, way_ns } => {
                let Some(device) = self.devices.get_mut(to.host).and_then(|all| all.get_mut(to.interface)) else {
                    return;
                };
                let written = device.file.write(&bytes);
                self.lateness.add(self.clock_ns().saturating_sub(due_ns), way_ns);
                if let Err(error) = written {
                    self.note("writing a packet to a device", &error);
                }
            }
            Output::Route { port, address } => {
                let routed = self.on(port, |netlink, device| netlink.set_default_route(device.index, address));
                self.note_if(routed);
            }
            Output::Address { port, old, new, used } => {
                // The new one first: with the last address of a device its routes go.
                let changed = self.on(port, |netlink, device| {
                    netlink.add_address(device.index, new)?;
                    if used {
                        netlink.set_default_route(device.index, new)?;
                    }
                    netlink.remove_address(device.index, old)
                });
                self.note_if(changed);
            }
        }
    }

    fn on(&self, port: Port, f: impl FnOnce(&Netlink, &Device) -> Result<(), LabError>) -> Result<(), LabError> {
        let device = self.devices.get(port.host).and_then(|all| all.get(port.interface));
        self.netlinks.get(port.host).zip(device).map_or(Err(LabError::Ended), |(netlink, device)| f(netlink, device))
    }

    /// Reads what a host has sent, up to a batch.
    fn read(&mut self, mark: u64, buffer: &mut [u8]) {
        let Some(port) = usize::try_from(mark).ok().and_then(|index| self.ports.get(index)).copied() else { return };
        for _ in 0..READ_BATCH {
            let read = self.devices[port.host][port.interface].file.read(buffer);
            match read {
                Ok(length) => {
                    let now_ns = self.clock_ns();
                    self.fabric.handle_packet(now_ns, port, &buffer[..length]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.note("reading from a device", &error),
            }
        }
    }

    /// Arms the timer; true: something is due so soon that it is not worth it.
    fn set_timer(&mut self) -> bool {
        let Some(next_ns) = self.fabric.next_ns() else { return false };
        let now_ns = self.clock_ns();
        let wake_ns = next_ns.saturating_sub(WATCH_NS);
        if wake_ns <= now_ns {
            return true;
        }
        if self.timer_ns != Some(wake_ns) {
            let relative = std::time::Duration::from_nanos(wake_ns - now_ns);
            let once = Itimerspec {
                it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
                it_value: Timespec {
                    tv_sec: i64::try_from(relative.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: i64::from(relative.subsec_nanos()),
                },
            };
            if let Err(errno) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
                self.note("setting a timer", &errno.into());
                return true;
            }
            self.timer_ns = Some(wake_ns);
        }
        false
    }

    /// Reads one of the two files that wake the thread, so that it does not go on waking it.
    fn clear(&mut self, timer: bool) {
        let file = if timer { &self.timer } else { &*self.wake };
        if let Err(errno) = rustix::io::read(file, &mut [0; 8])
            && errno != Errno::AGAIN
        {
            self.note("reading what wakes the router", &errno.into());
        }
    }

    fn clock_ns(&self) -> u64 {
        u64::try_from(now().duration_since(self.begin).as_nanos()).unwrap_or(u64::MAX)
    }

    fn note_if(&mut self, result: Result<(), LabError>) {
        match result {
            Err(LabError::Io { what, source }) => self.note(what, &source),
            Err(other) => self.note(&other.to_string(), &std::io::Error::other("in a running lab")),
            Ok(()) => {}
        }
    }

    fn note(&mut self, what: &str, error: &std::io::Error) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| format!("{what}: {error}"));
    }
}

/// The one clock of this crate.
#[expect(clippy::disallowed_methods, reason = "this is the real-time driver: its links keep real time")]
fn now() -> Instant {
    Instant::now()
}
