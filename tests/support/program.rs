//! The program that is tested.

use std::ffi::OsStr;
use std::process::Command;

/// `tern`, see [`clean`].
pub fn tern() -> Command {
    clean(env!("CARGO_BIN_EXE_tern"))
}

/// A program, without what the environment says to `tern`: that is meant for the tests.
pub fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TERN_")) {
        command.env_remove(name);
    }
    command
}
