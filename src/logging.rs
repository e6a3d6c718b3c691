//! Logs: text for people, JSON for machines, always on standard error so that standard output is the
//! command's own.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// Sets up logging for this process; to be called once. `filter` is a level or a list such as
/// "info,tern_edge=debug".
pub fn start(filter: &str, json: bool) -> Result<()> {
    let filter = EnvFilter::builder().parse(filter).with_context(|| {
        format!("log.level is {filter:?}, expected error, warn, info, debug, trace, or a filter such as \"info,tern_edge=debug\"")
    })?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(!json && io::stderr().is_terminal());
    let started = if json {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(true).try_init()
    } else {
        builder.try_init()
    };
    started.map_err(|error| anyhow::anyhow!("logging was started twice: {error}"))
}
