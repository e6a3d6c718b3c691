//! A runtime in virtual time, on a thread of its own.

use std::io;

use crate::random;
use crate::world::World;

/// A run that did not end as it should.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Nothing was run.
    #[error("the simulation's thread or runtime could not be started; nothing was run: {0}")]
    Start(#[source] io::Error),
    /// The scenario itself panicked; its message went to standard error.
    #[error("the scenario panicked; see its message above")]
    Scenario,
    /// Tasks of nodes panicked; their messages went to standard error.
    #[error("{0} tasks of simulated nodes panicked; see their messages above")]
    Tasks(usize),
}

/// Runs a scenario to its end.
///
/// The thread is new, so that nothing thread-local of an earlier run (the keys of hash maps, the runtime's
/// seed) reaches into this one; the runtime has timers on a paused clock and no I/O. Tasks of nodes that
/// still run when the scenario ends are dropped with the runtime.
///
/// A scenario that waits for what never happens jumps from timer to timer for ever: give it a
/// `tokio::time::timeout` in virtual time, and run it in a process that a test can end.
pub fn run<F, Fut, T>(seed: u64, scenario: F) -> Result<T, RunError>
where
    F: FnOnce(World) -> Fut + Send + 'static,
    Fut: Future<Output = T>,
    T: Send + 'static,
{
    random::seed(seed);
    let thread = std::thread::Builder::new().name("simulation".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        Ok(runtime.block_on(async move {
            let world = World::new(seed);
            let out = scenario(world.clone()).await;
            (out, world.panics())
        }))
    });
    let outcome = thread.map_err(RunError::Start)?.join().map_err(|_| RunError::Scenario)?;
    match outcome.map_err(RunError::Start)? {
        (out, 0) => Ok(out),
        (_, panics) => Err(RunError::Tasks(panics)),
    }
}
