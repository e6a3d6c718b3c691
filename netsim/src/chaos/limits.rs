//! Limits of chaos scripts, and why they are what they are.

use std::time::Duration;

/// Regions of a local system: each is at least one process, and this machine carries them all.
pub const REGIONS: usize = 8;
/// Core nodes, and further edges, of a region.
pub const NODES_PER_REGION: u64 = 9;
/// Clients of a script: one process carries them all, on one thread.
pub const CLIENTS: u64 = 2000;
/// Messages a second: what one thread of clients can write and note down.
pub const RATE: f64 = 5000.0;
/// Bytes of a message: half of what a client takes, so that its name fits in beside it.
pub const BODY_BYTES: u64 = 8192;
/// A run: a day of it is a soak, for which there are others.
pub const RUN: Duration = Duration::from_secs(24 * 3600);
/// A process that does not serve by then has failed. On a busy machine a start takes many times what it takes else.
pub const READY_WITHIN: Duration = Duration::from_secs(60);
/// A process that was asked to stop has drained and ended by then.
pub const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// All clients are live by then, before the load begins.
pub const LIVE_WITHIN: Duration = Duration::from_secs(60);
/// The core nodes of a region have their parts of it by then.
pub const SHARED_WITHIN: Duration = Duration::from_secs(120);
/// A command of a fault that takes longer has failed.
pub const COMMAND_WITHIN: Duration = Duration::from_secs(300);
/// Due things are done so often: finer than any figure is told.
pub const TICK: Duration = Duration::from_millis(2);
/// Memory of processes is read so often.
pub const READ_EVERY: Duration = Duration::from_secs(1);
/// Tables of routes are counted so often: a tenth of the time in which the loss of one is noticed.
pub const COUNT_EVERY: Duration = Duration::from_millis(50);
/// A core node that does not tell by then is taken to know of no routes.
pub const COUNT_WITHIN: Duration = Duration::from_secs(2);
/// At the end it is looked so often whether everything has come.
pub const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Bytes of a log, or of what a command says, that are shown.
pub const TAIL: usize = 2000;
/// Messages that are written at once when the machine was busy: more would be a burst that nobody asked for.
pub const BURST: u64 = 500;
/// At the end of a run processes stop in order within it, or are killed.
pub const END_WITHIN: Duration = Duration::from_secs(20);
