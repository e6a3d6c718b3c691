//! The directory of a run, and those of runs that are no more.
//!
//! A lab's namespaces, devices and processes end with its process, whatever kills it (see [`crate::processes`]). What
//! could stay is a directory on disk. Its name says whose it is: the process's number and the moment at which that
//! process started, so that a later process of the same number is not taken for it. Each start removes the directories
//! of the dead.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// With it all directories begin.
const PREFIX: &str = "tern-netsim-";

/// Makes a directory for this process's next lab, and removes those of processes that are no more.
pub(crate) fn new_directory(parent: &Path) -> io::Result<PathBuf> {
    remove_of_the_dead(parent)?;
    let own = std::process::id();
    let started = started(own).ok_or_else(|| io::Error::other("this process is not in /proc"))?;
    for count in 0..u32::MAX {
        let path = parent.join(format!("{PREFIX}{own}-{started}-{count}"));
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| path),
        }
    }
    Err(io::Error::other("too many labs"))
}

/// Removes the directories of processes that are no more; of others, and what is not ours, nothing.
pub(crate) fn remove_of_the_dead(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some((process, moment)) = name.to_str().and_then(owner) else { continue };
        if started(process) != Some(moment) {
            match fs::remove_dir_all(entry.path()) {
                // Another start was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
    }
    Ok(())
}

/// Whose a directory is, by its name: number and start of the process.
fn owner(name: &str) -> Option<(u32, u64)> {
    let mut numbers = name.strip_prefix(PREFIX)?.split('-');
    let owner = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    (numbers.next()?.parse::<u32>().is_ok() && numbers.next().is_none()).then_some(owner)
}

/// When a living process started, in the kernel's ticks since it booted (field 22 of proc_pid_stat(5)).
fn started(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the program's name in brackets, which may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_the_dead_are_removed() {
        let parent = std::env::temp_dir().join(format!("leftovers-{}", std::process::id()));
        fs::create_dir_all(&parent).unwrap();
        let alive = new_directory(&parent).unwrap();
        let second = new_directory(&parent).unwrap();
        assert_ne!(alive, second);
        let own = std::process::id();
        // The same number, but started at another time: that process is dead. The others are not ours.
        let dead = parent.join(format!("{PREFIX}{own}-1-0"));
        let foreign = [format!("{PREFIX}x-1-0"), format!("{PREFIX}{own}-1"), format!("other-{own}-1-0")];
        for path in foreign.iter().map(|name| parent.join(name)).chain([dead.clone()]) {
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), "x").unwrap();
        }
        remove_of_the_dead(&parent).unwrap();
        assert!(alive.exists() && second.exists() && !dead.exists());
        assert!(foreign.iter().all(|name| parent.join(name).exists()));
        fs::remove_dir_all(&parent).unwrap();
    }
}
