//! Logs: text for people, JSON for machines, always on standard error so that standard output is the
//! command's own. What is logged can be changed while the process runs.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Changes what is logged. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// Logs what `filter` says from now on. On an error the old filter stays.
    pub fn set(&self, filter: &str) -> Result<()> {
        let filter = parse(filter)?;
        self.0.reload(filter).context("the log's filter can't be changed")
    }
}

fn parse(filter: &str) -> Result<EnvFilter> {
    EnvFilter::builder().parse(filter).with_context(|| {
        format!(
            "log.level is {filter:?}, expected error, warn, info, debug, trace, or a filter such as \
             \"info,tern_edge=debug\""
        )
    })
}

/// Sets up logging for this process; to be called once. `filter` is a level or a list such as
/// "info,tern_edge=debug".
pub fn start(filter: &str, json: bool) -> Result<LogFilter> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let text = fmt::layer().with_writer(io::stderr).with_ansi(!json && io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(filter);
    let started = if json {
        registry.with(text.json().flatten_event(true).with_current_span(false).with_span_list(true)).try_init()
    } else {
        registry.with(text).try_init()
    };
    started.map_err(|error| anyhow::anyhow!("logging was started twice: {error}"))?;
    Ok(LogFilter(handle))
}
