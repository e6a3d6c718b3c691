//! What the links decided, written down, so that it can be decided again.
//!
//! A run over real packets can't be repeated: the kernel's timing is another each time. But the links' part in it can:
//! a direction of a link is a pure machine, and what it decided follows from what entered it and when. So both are
//! kept, and [`replay`] feeds the one to a fresh machine and compares the other. A difference is a bug in the machine
//! or in the router, not an accident.

use std::fmt::Write;

use tern_netsim_link::{Direction, Fate, Outage, Spec, SpecError, Way};

use crate::limits::DECISIONS_KEPT;

/// A direction of a link, by its place in [`Decisions::lines`].
pub type LineId = usize;

/// What happened to a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A packet of this length entered.
    Sent(u32),
    /// The line is another one.
    Spec(Box<Spec>),
    /// An outage began or ended.
    Outage(Option<Outage>),
    /// This became of a packet.
    Fate {
        /// Its number on this line.
        number: u64,
        /// When its last bit left.
        left_ns: Option<u64>,
        /// What became of it.
        fate: Fate,
    },
}

/// When what happened to which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// In nanoseconds since the lab began.
    pub at_ns: u64,
    /// Which line.
    pub line: LineId,
    /// What.
    pub event: Event,
}

/// All of a run.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    /// Keys the randomness of all lines.
    pub seed: u64,
    /// Name, direction, and what each was like when it was made.
    pub lines: Vec<(String, Way, Spec)>,
    /// In the order of time.
    pub kept: Vec<Decision>,
    /// There were more than are kept.
    pub cut: bool,
}

/// Why a run's decisions can't be had again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A line can't be made.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// There were more than are kept.
    #[error("the run made more than {DECISIONS_KEPT} decisions, and the rest was not kept")]
    Cut,
    /// The model decides otherwise.
    #[error("{line} {way:?}: the model says {model}, the run said {run}")]
    Other {
        /// Name of the link.
        line: String,
        /// Its direction.
        way: Way,
        /// What the model decides.
        model: String,
        /// What was decided.
        run: String,
    },
}

impl Decisions {
    pub(crate) fn push(&mut self, at_ns: u64, line: LineId, event: Event) {
        if self.kept.len() < DECISIONS_KEPT {
            self.kept.push(Decision { at_ns, line, event });
        } else {
            self.cut = true;
        }
    }

    /// As text, a line each: time in ns, link, direction, packet's number, its fate; for humans and other programs.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut entered = vec![0u64; self.lines.len()];
        for Decision { at_ns, line, event } in &self.kept {
            let Some((name, way, _)) = self.lines.get(*line) else { continue };
            let way = if *way == Way::Up { "up" } else { "down" };
            let said = match event {
                Event::Sent(bytes) => {
                    let number = entered[*line];
                    entered[*line] += 1;
                    writeln!(text, "{at_ns} {name} {way} {number} sent {bytes}")
                }
                Event::Spec(_) => writeln!(text, "{at_ns} {name} {way} - changed"),
                Event::Outage(outage) => writeln!(text, "{at_ns} {name} {way} - outage {outage:?}"),
                Event::Fate { number, fate, .. } => writeln!(text, "{at_ns} {name} {way} {number} {fate:?}"),
            };
            debug_assert!(said.is_ok(), "text takes whatever is written");
        }
        text
    }
}

/// Decides everything again. Returns how many fates were compared.
pub fn replay(decisions: &Decisions) -> Result<u64, ReplayError> {
    if decisions.cut {
        return Err(ReplayError::Cut);
    }
    let mut compared = 0;
    for (id, (name, way, spec)) in decisions.lines.iter().enumerate() {
        let mut direction = Direction::new(decisions.seed, name, *way, spec.clone())?;
        let mut said = Vec::new();
        let own = || decisions.kept.iter().filter(|decision| decision.line == id);
        let until_ns = decisions.kept.last().map_or(0, |decision| decision.at_ns);
        for Decision { at_ns, event, .. } in own() {
            match event {
                Event::Sent(bytes) => drop(direction.send(*at_ns, *bytes, ())),
                Event::Spec(spec) => direction.set_spec(*at_ns, (**spec).clone())?,
                Event::Outage(outage) => direction.set_outage(*at_ns, *outage),
                Event::Fate { number, left_ns, fate } => said.push((*at_ns, *number, *left_ns, *fate)),
            }
        }
        let mut decided = Vec::new();
        while let Some(output) = direction.poll(until_ns) {
            decided.push((output.at_ns, output.number, output.left_ns, output.fate));
        }
        // What was due at the very end may not have been asked for any more.
        while decided.len() > said.len() && decided.last().is_some_and(|last| last.0 == until_ns) {
            decided.pop();
        }
        compared += u64::try_from(said.len()).unwrap_or(u64::MAX);
        if decided != said {
            let at = decided.iter().zip(&said).take_while(|(model, run)| model == run).count();
            let of = |list: &[(u64, u64, Option<u64>, Fate)]| format!("{:?}", list.get(at));
            let (model, run) = (of(&decided), of(&said));
            return Err(ReplayError::Other { line: name.clone(), way: *way, model, run });
        }
    }
    Ok(compared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tern_netsim_link::{Cause, Chance, Loss};

    /// Ten packets over a lossy line, as a router would write them down.
    fn run() -> Decisions {
        let spec = Spec { loss: Loss::Random(Chance::percent(40)), ..Spec::default() };
        let mut decisions =
            Decisions { seed: 5, lines: vec![("l".to_owned(), Way::Up, spec.clone())], ..Decisions::default() };
        let mut direction = Direction::new(5, "l", Way::Up, spec).unwrap();
        for at_ns in 0..10 {
            direction.send(at_ns, 100, ());
            decisions.push(at_ns, 0, Event::Sent(100));
            if at_ns == 5 {
                direction.set_outage(at_ns, Some(Outage::Loses));
                decisions.push(at_ns, 0, Event::Outage(Some(Outage::Loses)));
            }
            while let Some(output) = direction.poll(at_ns) {
                let (number, left_ns, fate) = (output.number, output.left_ns, output.fate);
                decisions.push(output.at_ns, 0, Event::Fate { number, left_ns, fate });
            }
        }
        decisions
    }

    #[test]
    fn the_model_decides_the_same_again_and_a_change_is_noticed() {
        let decisions = run();
        assert_eq!(replay(&decisions).unwrap(), 10);
        assert_eq!(decisions.text().lines().count(), 21);
        assert!(decisions.text().contains("\n9 l up 9 Dropped(Outage)"), "{}", decisions.text());
        let mut other = run();
        for decision in &mut other.kept {
            if let Event::Fate { number: 3, fate, .. } = &mut decision.event {
                *fate = if *fate == Fate::Delivered { Fate::Dropped(Cause::Loss) } else { Fate::Delivered };
            }
        }
        assert!(matches!(replay(&other), Err(ReplayError::Other { .. })));
        let mut missing = run();
        missing.kept.retain(|decision| !matches!(decision.event, Event::Fate { number: 3, .. }));
        assert!(matches!(replay(&missing), Err(ReplayError::Other { .. })));
        let mut cut = run();
        cut.cut = true;
        assert!(matches!(replay(&cut), Err(ReplayError::Cut)));
    }
}
