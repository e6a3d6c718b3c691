//! `netsim`: scenarios in, verdicts out.
//!
//! Each run is a process of its own: the C function `getrandom` is replaced for the whole process (see
//! [`tern_netsim::random`]), and what one run leaves behind in statics must not reach the next. So this process only
//! reads scenarios, starts itself once per run (`netsim one`), and judges the histories that come back.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod cli;
mod getrandom;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
