//! However a lab ends, nothing of it is left.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tern_netsim_link::Spec;

use crate::support::{children, lab, plan, symmetric, until};

/// Set for the process that has a lab and is killed.
const CHILD: &str = "TERN_NETSIM_TUN_CHILD";

/// Namespaces of all processes, and TUN files that somebody has open: none of a lab is among them once it has ended.
fn namespaces_of(directory: &str) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let of = |id: &u32| {
        fs::read(format!("/proc/{id}/environ"))
            .is_ok_and(|environ| String::from_utf8_lossy(&environ).contains(directory))
    };
    all.filter(of).collect()
}

#[test]
fn a_lab_that_is_dropped_leaves_nothing() {
    let plan = plan(symmetric(Spec::default()), symmetric(Spec::default()), 1);
    let Some(lab) = lab("a_lab_that_is_dropped_leaves_nothing", &plan) else { return };
    let directory = lab.directory().to_owned();
    fs::write(directory.join("file"), "x").unwrap();
    let mut sleeper = Command::new("sleep");
    sleeper.arg("1000").env("TERN_LAB", &directory);
    let sleeper = lab.spawn("phone", sleeper).unwrap();
    let mark = directory.display().to_string();
    until("the process runs", || namespaces_of(&mark).contains(&sleeper.id()));
    drop(lab);
    assert!(!directory.exists());
    drop(sleeper);
    assert_eq!(namespaces_of(&mark), Vec::<u32>::new());
}

/// Runs only as a process of the tests below: has a lab with a process that has a child, says so, and waits.
#[test]
fn has_a_lab_as_a_process_of_its_own() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let plan = plan(symmetric(Spec::default()), symmetric(Spec::default()), 1);
    let Some(lab) = lab("has_a_lab_as_a_process_of_its_own", &plan) else { return };
    let directory = lab.directory().to_owned();
    fs::write(directory.join("file"), "x").unwrap();
    let mut shell = Command::new("/bin/sh");
    // A child in a session of its own escapes the group, not the lab.
    shell.args(["-c", "setsid sleep 1000 & sleep 1000"]).env("TERN_LAB", &directory);
    let shell = lab.spawn("phone", shell).unwrap();
    until("both sleep", || children(shell.id()).len() == 2);
    println!("\nlab {}", directory.display());
    std::io::stdout().flush().unwrap();
    let mut line = String::new();
    // Until it is killed.
    std::io::stdin().read_line(&mut line).unwrap();
}

/// The process, and its lab's directory.
fn start_child() -> Option<(Child, String)> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "ends::has_a_lab_as_a_process_of_its_own", "--nocapture"]).env(CHILD, "1");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).find(|line| line.starts_with("lab ") || line.contains("SKIPPED"));
    if let Some(directory) = said.as_deref().and_then(|line| line.strip_prefix("lab ")) {
        return Some((child, directory.to_owned()));
    }
    child.wait().unwrap();
    println!("{}", said.expect("a process with a lab"));
    None
}

fn leaves_nothing_after(signal: Signal) {
    let Some((mut child, directory)) = start_child() else { return };
    assert!(namespaces_of(&directory).len() >= 3);
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait().unwrap();
    until("all processes have ended", || namespaces_of(&directory).is_empty());
    until("the directory is gone", || !fs::exists(&directory).unwrap());
}

#[test]
fn a_lab_whose_process_is_interrupted_leaves_nothing() {
    leaves_nothing_after(Signal::INT);
}

#[test]
fn a_lab_whose_process_is_terminated_leaves_nothing() {
    leaves_nothing_after(Signal::TERM);
}

#[test]
fn a_lab_whose_process_is_killed_leaves_nothing() {
    leaves_nothing_after(Signal::KILL);
}

#[test]
fn what_even_the_init_could_not_remove_the_next_start_does() {
    let Some((mut child, directory)) = start_child() else { return };
    // Everything dies at once, as when a container is stopped: nobody is left to clean up.
    let init = children(child.id()).into_iter().find(|id| {
        fs::read(format!("/proc/{id}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains("tern-netsim-init"))
    });
    kill_process(Pid::from_raw(i32::try_from(init.unwrap()).unwrap()).unwrap(), Signal::KILL).unwrap();
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    until("all processes have ended", || namespaces_of(&directory).is_empty());
    assert!(fs::exists(&directory).unwrap());
    let plan = plan(symmetric(Spec::default()), symmetric(Spec::default()), 1);
    let next = lab("what_even_the_init_could_not_remove_the_next_start_does", &plan);
    assert!(!fs::exists(&directory).unwrap());
    drop(next);
}
