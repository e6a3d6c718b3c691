//! The three calls into the kernel that no safe library offers. All other code of this crate is safe.
//!
//! A namespace belongs to a thread: what a thread opens afterwards, devices and sockets, belongs to the namespace it
//! was in, and stays there whoever uses it. So namespaces are made and entered only on threads that do nothing else.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use rustix::ioctl::{Opcode, Updater, opcode};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::error::LabError;

/// `TUNSETIFF` of `linux/if_tun.h`: `_IOW('T', 202, int)`, although the argument is an `ifreq`.
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
/// `IFF_TUN | IFF_NO_PI`: IP packets without a header before them.
const FLAGS: u16 = 0x0001 | 0x1000;
/// Longest name of a device, without the zero at its end.
pub const DEVICE_NAME_BYTES: usize = 15;

/// `struct ifreq`, as far as this call looks at it; 40 bytes in all on 64 bits, no less elsewhere.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Moves this thread into a network namespace of its own. It ends with its last user: thread, process, open file.
pub fn new_network_namespace() -> Result<OwnedFd, LabError> {
    // SAFETY: `FILES` is not among the flags, so all threads still share one table of file descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(|source| LabError::namespace("network", source))?;
    let own =
        File::open("/proc/thread-self/ns/net").map_err(|source| LabError::Io { what: "own namespace", source })?;
    Ok(own.into())
}

/// Lets the processes that this thread starts from now on be in a process namespace of their own. The first of them
/// is its init: when that ends, the kernel kills all others.
pub fn new_process_namespace() -> Result<(), LabError> {
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID) }.map_err(|source| LabError::namespace("process", source))
}

/// Makes a TUN device in this thread's network namespace. It ends when the file is closed.
pub fn new_device(name: &str) -> Result<File, LabError> {
    let path = "/dev/net/tun";
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default())
        .open(path);
    let file = opened.map_err(LabError::NoTun)?;
    let mut request = Request { name: [0; 16], flags: FLAGS, rest: [0; 22] };
    for (to, from) in request.name.iter_mut().take(DEVICE_NAME_BYTES).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the driver's TUNSETIFF reads and writes one `ifreq`, which `Request` is as long as; it lives until after
    // the call.
    let made = unsafe { rustix::ioctl::ioctl(&file, Updater::<'_, TUNSETIFF, Request>::new(&mut request)) };
    made.map_err(|source| LabError::namespace("TUN device", source))?;
    Ok(file)
}

/// Puts this thread before all threads of ordinary priority (`SCHED_FIFO`): it runs as soon as it wakes. Fails where
/// that is not permitted.
pub fn run_before_others() -> std::io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads the structure, which outlives it, and changes nothing but this thread's scheduling.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
