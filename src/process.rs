//! What the kernel says about this process, and about others. None where it does not say.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Clock ticks a second in `/proc`: fixed at 100 on every Linux that programs see.
const TICKS_PER_SECOND: u64 = 100;

/// Bytes of memory held.
pub fn resident_bytes() -> Option<i64> {
    bytes_in(Path::new("/proc/self"), "VmRSS:")
}

/// Bytes of memory that another process has allocated: without pages of files that it has mapped, its own program
/// above all, which come as code is run for the first time. None: there is none of that id.
pub fn allocated_bytes_of(pid: u32) -> Option<i64> {
    bytes_in(&of(pid), "RssAnon:")
}

/// File descriptors that another process has in use. None: there is none of that id, or it is another user's.
pub fn open_files_of(pid: u32) -> Option<i64> {
    entries(&of(pid).join("fd"))
}

fn of(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

fn entries(directory: &Path) -> Option<i64> {
    fs::read_dir(directory).ok().and_then(|entries| i64::try_from(entries.count()).ok())
}

fn bytes_in(process: &Path, key: &str) -> Option<i64> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// File descriptors in use.
pub fn open_files() -> Option<i64> {
    // One of them is the directory being read.
    entries(Path::new("/proc/self/fd")).map(|n| n - 1)
}

/// Processor time used since the start, of all threads.
pub fn cpu_time() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name, in parentheses, and may hold anything; user and system time are the 14th
    // and 15th.
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// How busy this process is.
#[derive(Debug)]
pub struct CpuMeter {
    last: Option<Duration>,
    processors: u32,
}

impl CpuMeter {
    /// Begins now.
    pub fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        Self { last: cpu_time(), processors }
    }

    /// Of all processors, since the last call, which was `elapsed` ago: 1000 = all of them.
    pub fn permille(&mut self, elapsed: Duration) -> Option<u32> {
        let now = cpu_time()?;
        let used = now.saturating_sub(self.last.replace(now)?);
        let most = elapsed.as_millis().checked_mul(u128::from(self.processors)).filter(|most| *most > 0)?;
        u32::try_from((used.as_millis() * 1000 / most).min(1000)).ok()
    }
}

impl Default for CpuMeter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_of_this_process() {
        assert!(resident_bytes().unwrap() > 1 << 20);
        assert!(open_files().unwrap() >= 3);
        assert!(cpu_time().is_some());
    }

    #[test]
    fn what_is_said_of_another_process_is_what_it_would_say_itself() {
        let own = std::process::id();
        assert!((1..resident_bytes().unwrap() * 2).contains(&allocated_bytes_of(own).unwrap()));
        assert!(open_files_of(own).unwrap() >= 3);
        // No process can have it.
        assert_eq!((allocated_bytes_of(u32::MAX), open_files_of(u32::MAX)), (None, None));
    }

    #[test]
    fn a_busy_process_has_a_high_share() {
        let mut meter = CpuMeter { last: Some(Duration::ZERO), processors: 1 };
        while cpu_time().unwrap() < Duration::from_millis(20) {}
        assert!(meter.permille(Duration::from_millis(20)).unwrap() >= 900);
        assert!(meter.permille(Duration::from_secs(3600)).unwrap() < 10);
    }
}
