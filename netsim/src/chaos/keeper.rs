//! The certainty that what a run has started ends with it, however it ends.
//!
//! Problem: a run can end by its end, by an error, by Ctrl-C, by SIGKILL, while a process of it stands still and hears
//! nothing, and while a fault of somebody's staging waits to be undone.
//!
//! Rule: a shell reads a pipe of which this process holds the other end, and is told what there is: process groups come
//! and go, commands that undo a fault lie in the run's directory. Whatever ends this process closes the pipe; the shell
//! then kills the groups, runs what is left to undo, and removes the directory. There is no signal handler to install and
//! none to forget. It is in a group of its own, so that Ctrl-C at the terminal is not for it.
//!
//! Between the start of a process and the line that tells of it lies a moment; so nodes also stop by themselves when
//! their standard input ends, which is this process's to end.
//!
//! Why not a process namespace, as labs have: it needs root, which a chaos tester need not be.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use super::error::ChaosError;

/// What the shell does. Its argument is the run's directory. What has just been killed may write for a moment.
const SHELL: &str = r#"
all=' '
while read -r sign group; do
  case $sign in
    +) all="$all$group " ;;
    -) all="${all%%" $group "*} ${all#*" $group "}" ;;
  esac
done
for group in $all; do kill -KILL "-$group"; done 2>/dev/null
for undo in "$1"/undo-*; do [ -e "$undo" ] && sh "$undo"; done
rm -rf -- "$1" 2>/dev/null || { sleep 1; rm -rf -- "$1"; }
"#;

/// See the module. Dropping it does what the end of the process does, and waits for it.
#[derive(Debug)]
pub struct Keeper {
    shell: Child,
    input: Option<ChildStdin>,
    directory: PathBuf,
}

impl Keeper {
    /// Starts the shell. `directory` will be removed at the end; what undoing commands say goes to `said`.
    pub fn start(directory: &Path, said: File) -> Result<Self, ChaosError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SHELL, "tern-chaos-keeper"]).arg(directory).process_group(0);
        let errors = said.try_clone().map_err(ChaosError::io("opening a file"))?;
        command.stdin(Stdio::piped()).stdout(said).stderr(errors);
        let mut shell = command.spawn().map_err(ChaosError::io("starting /bin/sh"))?;
        let input = shell.stdin.take();
        Ok(Self { shell, input, directory: directory.to_owned() })
    }

    /// A process that leads a group of its own was started.
    pub fn add(&mut self, group: u32) -> io::Result<()> {
        self.tell('+', group)
    }

    /// It has ended and was waited for: its number may be another's soon.
    pub fn remove(&mut self, group: u32) -> io::Result<()> {
        self.tell('-', group)
    }

    /// From now on this command is to be run at the end. `number` names it.
    pub fn owe(&mut self, number: usize, command: &str) -> io::Result<()> {
        // Written elsewhere first: half a command must not be run.
        let half = self.directory.join(format!("half-{number}"));
        fs::write(&half, format!("{command}\n"))?;
        fs::rename(half, self.owed(number))
    }

    /// It was run.
    pub fn paid(&mut self, number: usize) -> io::Result<()> {
        fs::remove_file(self.owed(number))
    }

    fn owed(&self, number: usize) -> PathBuf {
        self.directory.join(format!("undo-{number}"))
    }

    fn tell(&mut self, sign: char, group: u32) -> io::Result<()> {
        let input = self.input.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(input, "{sign} {group}")?;
        input.flush()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.input.take());
        // Fails only if it was waited for already, which nobody else does.
        let _ended = self.shell.wait();
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "real processes take real time")]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn at_the_end_processes_are_killed_what_is_owed_is_done_and_the_directory_is_gone() {
        let room = tempfile::tempdir().unwrap();
        let directory = room.path().join("run");
        fs::create_dir(&directory).unwrap();
        let said = File::create(room.path().join("said")).unwrap();
        let mut keeper = Keeper::start(&directory, said).unwrap();
        let mut sleeper = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let mut other = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let ended =
            Command::new("true").process_group(0).spawn().and_then(|mut child| child.wait().map(|_| child.id()));
        keeper.add(ended.as_ref().map_or(1, |id| *id)).unwrap();
        keeper.add(sleeper.id()).unwrap();
        keeper.add(other.id()).unwrap();
        keeper.remove(ended.unwrap()).unwrap();
        keeper.owe(1, &format!("echo undone > '{}'", room.path().join("undone").display())).unwrap();
        keeper.owe(2, &format!("echo wrong > '{}'", room.path().join("done-before").display())).unwrap();
        keeper.paid(2).unwrap();
        drop(keeper);
        let end = Instant::now() + Duration::from_secs(30);
        while sleeper.try_wait().unwrap().is_none() || other.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "they live on");
        }
        assert!(room.path().join("undone").exists());
        assert!(!room.path().join("done-before").exists());
        assert!(!directory.exists());
    }
}
