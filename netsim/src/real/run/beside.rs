//! A run in which other systems have part: they are told what devices do, and the end is another.

use std::time::Duration;

use tern_netsim_scenario::Plan;
use tern_netsim_verdict::{Event, Line};

use super::super::Surroundings;
use super::super::error::RealError;
use super::{Run, nanos};
use crate::compare::TAIL;
use crate::compare::company::Company;
use crate::stage::Heading;

/// Whether all is shown is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Run {
    /// As [`Run::set`], and the others' servers serve as well.
    pub(in crate::real) fn set_beside(
        plan: Plan,
        heading: &Heading,
        surroundings: &Surroundings,
        company: Company,
    ) -> Result<Self, RealError> {
        Self::set_up(plan, heading, surroundings, Some(company))
    }

    /// Plays it. Faults go on to the end, and nothing is healed: the weather is everybody's.
    pub(in crate::real) fn play_beside(mut self) -> Result<(Vec<Line>, Company), RealError> {
        self.book.tell(0, Event::Phase { name: "load".into() });
        self.plan_all();
        self.run_until(self.plan.duration_ns)?;
        let now_ns = self.now_ns();
        self.book.tell(now_ns, Event::Phase { name: "quiet".into() });
        let until_ns = self.plan.duration_ns.saturating_add(nanos(TAIL));
        while self.now_ns() < until_ns && !self.everything_is_shown() {
            self.run_until(self.now_ns().saturating_add(nanos(LOOK_EVERY)))?;
        }
        self.over = true;
        for device in &self.plan.devices {
            let id = device.id.clone();
            let by_port = self.lab.with(move |fabric, _| fabric.traffic_by_port(&id))??;
            if let Some(company) = &mut self.company {
                company.note_bytes(&device.id, &by_port);
            }
        }
        let Some(company) = self.company.take() else {
            return Err(RealError::Beside("nobody runs beside tern".to_owned()));
        };
        let quiet = self.book.all_shown() && company.all_shown();
        let lines = self.finish(quiet, Vec::new())?;
        Ok((lines, company))
    }

    fn everything_is_shown(&self) -> bool {
        self.book.all_shown() && self.company.as_ref().is_none_or(Company::all_shown)
    }
}
