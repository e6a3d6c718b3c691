//! How a command ends: the four exit codes, and what is printed for each.

use std::process::ExitCode;

use crate::config::ConfigError;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// It ran, and what it was to show does not hold. Exit code 1; the command has printed what failed.
    Property,
    /// What was asked for makes no sense: arguments or configuration. Exit code 2.
    Usage(String),
    /// It can't start, or can't go on: ports, files, stores, certificates. Exit code 3.
    Start(anyhow::Error),
}

impl Failure {
    /// Prints the reason to standard error.
    pub fn report(&self) -> ExitCode {
        match self {
            Failure::Property => ExitCode::from(1),
            Failure::Usage(message) => {
                eprintln!("tern: {message}");
                ExitCode::from(2)
            }
            Failure::Start(error) => {
                eprintln!("tern: {error:#}");
                ExitCode::from(3)
            }
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::Usage(error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<ConfigError>() {
            Ok(config) => config.into(),
            Err(error) => Failure::Start(error),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Start(error.into())
    }
}
