//! When a role should stop: SIGTERM, SIGINT, or, for a supervised child, the end of its standard input.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::set_parent_process_death_signal;
use tern_core::clock::Clock;
use tern_net::system::SystemClock;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// A child whose parent is gone ends by then even if its orderly stop hangs.
const ORPHAN_LIMIT: Duration = Duration::from_secs(15);

/// The reasons to stop, watched from creation on.
#[derive(Debug)]
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
    parent_gone: Option<oneshot::Receiver<()>>,
}

impl Stop {
    /// Starts watching. With `with_stdin`, standard input is read to its end and the end counts as well.
    pub fn watch(with_stdin: bool) -> Result<Self> {
        let parent_gone = if with_stdin { Some(watch_stdin()?) } else { None };
        if with_stdin {
            // While it is suspended (SIGSTOP) it would not see its input end and stay for ever. To a process that
            // runs the signal is nothing.
            set_parent_process_death_signal(Some(rustix::process::Signal::CONT))
                .context("can't ask to be resumed when the parent process is gone")?;
        }
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("can't listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("can't listen for SIGINT")?,
            parent_gone,
        })
    }

    /// Waits for the next reason and names it. Dropping the future loses nothing.
    pub async fn requested(&mut self) -> &'static str {
        let parent_gone = async {
            match &mut self.parent_gone {
                Some(gone) => {
                    // An error is the thread's end, which is the same.
                    let _ended = gone.await;
                }
                None => std::future::pending().await,
            }
        };
        let reason = tokio::select! {
            biased;
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = parent_gone => "the end of standard input",
        };
        if reason == "the end of standard input" {
            self.parent_gone = None;
        }
        reason
    }
}

fn watch_stdin() -> Result<oneshot::Receiver<()>> {
    let (tell, gone) = oneshot::channel();
    let watch = move || {
        let mut buffer = [0; 256];
        // What comes is of no interest; an error is an end.
        while matches!(std::io::stdin().lock().read(&mut buffer), Ok(1..)) {}
        // The receiver is gone where the process is stopping already.
        let _stopping = tell.send(());
        // Parking, unlike the runtime's timers, works whatever the runtime is doing; nobody unparks it.
        let until = SystemClock.now() + ORPHAN_LIMIT;
        while SystemClock.now() < until {
            std::thread::park_timeout(ORPHAN_LIMIT);
        }
        eprintln!("tern: the parent process is gone and the orderly stop took too long: exiting");
        std::process::exit(1);
    };
    std::thread::Builder::new().name("tern-stdin".into()).spawn(watch).context("can't start a thread")?;
    Ok(gone)
}
