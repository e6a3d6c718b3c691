//! A scenario, played over real packets: a plan goes in, a history comes out, of the same form as in virtual time.
//!
//! Problem: virtual time says what the code does over a model of a network. Whether that is what it does over a
//! network, with a kernel's sockets and timers and a disk, only that can show.
//!
//! Rule: everything that can be the same is. The links are the same machines (`tern_netsim_tun` carries packets through
//! them in real time), the app of a device is the same code, loads write the same messages at the same times, faults
//! begin and end by the same rules, and the history is judged by the same checks. What differs: regions and edges are
//! processes of the `tern` release binary, devices processes of this one, and time passes.
//!
//! What can't be had here is refused before anything starts ([`topology::check`]): faults at moments of the system,
//! clocks and disks of single nodes, and kills that lose what was not synced. What regions hold at the end is not told:
//! it lies inside of their processes; devices are compared all the same. A run in which the machine could not keep up
//! says so in its history (`Lateness`) and is INVALID.
//!
//! Reading order: [`play`] below, `run` (what happens when), [`topology`] (hosts), [`deployment`] (regions and edges),
//! [`protocol`], [`device`] and [`seat`] (devices, from inside and outside), [`holding`] and [`rig`] (faults), [`book`]
//! (the history); [`weather`] for programs that are none of tern's.

pub mod book;
pub mod deployment;
pub mod device;
mod error;
pub mod holding;
pub mod protocol;
pub mod rig;
mod run;
pub mod seat;
pub mod topology;
pub mod weather;

use std::path::PathBuf;

use tern_netsim_scenario::Plan;
use tern_netsim_verdict::Line;

pub use self::error::RealError;
use self::protocol::Report;
use crate::compare::company::Company;
use crate::stage::Heading;

/// What a run needs besides its plan.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The `tern` program; beside this one, if not said.
    pub tern: Option<PathBuf>,
    /// Where logs of nodes and devices go. Made if need be.
    pub logs: PathBuf,
}

/// What is heard of a process.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Of whom.
    pub who: String,
    /// Of which of its starts.
    pub start: u64,
    /// What.
    pub said: Said,
}

/// See [`Heard`].
#[derive(Clone, Debug)]
pub enum Said {
    /// A node serves.
    Serves,
    /// A device tells.
    Report(Box<Report>),
    /// A line makes no sense.
    Nonsense(String),
    /// Its output has ended: it has, too.
    Ended,
}

/// Plays a plan, and returns its history. Takes as long as the plan does, and needs root.
pub fn play(plan: Plan, heading: &Heading, surroundings: &Surroundings) -> Result<Vec<Line>, RealError> {
    topology::check(&plan)?;
    run::Run::set(plan, heading, surroundings)?.play()
}

/// Plays a plan with other systems beside tern, and returns them with what they told. What was to be healed at the end stays,
/// and nobody waits for calm: the run ends when everybody has shown everything, or [`crate::compare::TAIL`] after the load.
pub fn play_beside(
    plan: Plan,
    heading: &Heading,
    surroundings: &Surroundings,
    company: Company,
) -> Result<(Vec<Line>, Company), RealError> {
    topology::check(&plan)?;
    run::Run::set_beside(plan, heading, surroundings, company)?.play_beside()
}
