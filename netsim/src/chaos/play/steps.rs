//! A fault as it goes: it waits, strikes, holds, is undone, is over.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::{Play, tail};
use crate::chaos::error::ChaosError;
use crate::chaos::limits::{COMMAND_WITHIN, READY_WITHIN, STOPPED_WITHIN};
use crate::chaos::observed::Struck;
use crate::chaos::script::{Fault, FaultKind};

/// Where it is.
#[derive(Debug)]
enum Stage {
    Waiting,
    /// A command runs, or processes have been asked to stop.
    Beginning {
        since: Duration,
        child: Option<Child>,
    },
    Holding,
    /// A command runs, or processes are starting.
    Ending {
        since: Duration,
        child: Option<Child>,
    },
    Over,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Step {
    number: usize,
    fault: Fault,
    stage: Stage,
    /// When it began.
    began: Duration,
    /// Of what was observed.
    struck: usize,
}

impl Step {
    pub(super) fn new(number: usize, fault: &Fault) -> Self {
        Self { number, fault: fault.clone(), stage: Stage::Waiting, began: Duration::ZERO, struck: 0 }
    }

    pub(super) fn is_over(&self) -> bool {
        match self.stage {
            Stage::Over => true,
            // What is not undone holds for ever.
            Stage::Holding => self.fault.lasts.is_none(),
            _ => false,
        }
    }

    /// Whether a process is down, or on its way, because of this.
    pub(super) fn holds(&self, name: &str) -> bool {
        let is_one_of = |names: &[String]| names.iter().any(|other| other == name);
        match &self.fault.kind {
            FaultKind::Kill(names) | FaultKind::Terminate(names) => {
                is_one_of(names) && !matches!(self.stage, Stage::Waiting | Stage::Over)
            }
            _ => false,
        }
    }

    /// Its name, once it was undone.
    pub(super) fn over_id(&self) -> Option<String> {
        matches!(self.stage, Stage::Over).then(|| self.fault.id.clone())
    }

    /// Does what is due. `over`: the faults that were undone.
    pub(super) fn advance(
        &mut self,
        now: Duration,
        over: &BTreeSet<String>,
        play: &mut Play<'_>,
    ) -> Result<(), ChaosError> {
        let is_its_turn = self.fault.after.as_ref().is_none_or(|after| over.contains(after));
        match &mut self.stage {
            Stage::Waiting if now >= self.fault.at && is_its_turn => self.begin(now, play),
            Stage::Beginning { since, child } => {
                let (since, child) = (*since, child.take());
                self.beginning(now, since, child, play)
            }
            Stage::Holding if self.fault.lasts.is_some_and(|lasts| now >= self.began + lasts) => self.end(now, play),
            Stage::Ending { since, child } => {
                let (since, child) = (*since, child.take());
                self.ending(now, since, child, play)
            }
            Stage::Waiting | Stage::Holding | Stage::Over => Ok(()),
        }
    }

    fn begin(&mut self, now: Duration, play: &mut Play<'_>) -> Result<(), ChaosError> {
        self.began = now;
        let begin_ns = play.crowd.now_ns();
        let met = (!self.fault.meets.is_empty()).then(|| {
            let observed = play.crowd.observed();
            let all = observed.clients.iter().enumerate();
            let is_met = |at: &(String, String)| self.fault.meets.iter().any(|name| *name == at.0 || *name == at.1);
            all.filter(|(_, client)| client.at(begin_ns).is_some_and(is_met))
                .map(|(number, _)| number)
                .collect::<Vec<_>>()
        });
        let whom = met.as_ref().map_or_else(String::new, |met| format!("; {} clients are there", met.len()));
        let id = self.fault.id.clone();
        let nobody = met.as_ref().is_some_and(Vec::is_empty);
        let aftermath_ns = u64::try_from(self.fault.aftermath.as_nanos()).unwrap_or(u64::MAX);
        let struck = Struck { id: id.clone(), begin_ns, end_ns: None, aftermath_ns, met };
        let number = {
            let mut observed = play.crowd.observed();
            observed.faults.push(struck);
            observed.faults.len() - 1
        };
        self.struck = number;
        self.stage = Stage::Holding;
        match &self.fault.kind {
            FaultKind::Kill(names) => {
                if let Some(local) = &mut play.local {
                    local.kill(names, &mut play.keeper)?;
                }
                play.say("killed", &id, &format!("{}{whom}", names.join(", ")))?;
            }
            FaultKind::Terminate(names) => {
                for name in names {
                    if let Some(local) = &play.local {
                        local.signal(name, Signal::TERM)?;
                    }
                }
                self.stage = Stage::Beginning { since: now, child: None };
                play.say("terminated", &id, &format!("{} by SIGTERM{whom}", names.join(", ")))?;
            }
            FaultKind::Stop(names) => {
                for name in names {
                    if let Some(local) = &play.local {
                        local.signal(name, Signal::STOP)?;
                    }
                }
                play.say("stopped", &id, &format!("{} by SIGSTOP{whom}", names.join(", ")))?;
            }
            FaultKind::LinkDown(one, other) => {
                if let Some(local) = &play.local {
                    local.link(one, other, true);
                }
                play.say("down", &id, &format!("the link between {one} and {other}"))?;
            }
            FaultKind::Command { run, undo } => {
                let (run, undo) = (run.clone(), undo.clone());
                if let Some(undo) = &undo {
                    play.keeper.owe(self.number, undo).map_err(ChaosError::io("noting what is to be undone"))?;
                }
                play.say("runs", &id, &format!("{run}{whom}"))?;
                let child = self.shell(&run, play)?;
                self.stage = Stage::Beginning { since: now, child: Some(child) };
            }
        }
        if nobody {
            let text = "no client was connected there: nobody can tell what it is like";
            play.record.trouble(play.crowd.now_ns(), &id, text)?;
        }
        Ok(())
    }

    fn beginning(
        &mut self,
        now: Duration,
        since: Duration,
        child: Option<Child>,
        play: &mut Play<'_>,
    ) -> Result<(), ChaosError> {
        if let Some(child) = child {
            if let Some(child) = self.look_at(child, now - since, "run", play)? {
                self.stage = Stage::Beginning { since, child: Some(child) };
            } else {
                self.stage = Stage::Holding;
            }
            return Ok(());
        }
        let FaultKind::Terminate(names) = &self.fault.kind else {
            self.stage = Stage::Holding;
            return Ok(());
        };
        let Some(local) = &mut play.local else { return Ok(()) };
        let mut all = true;
        for name in names {
            let was_running = local.runs(name);
            let how = local.ended(name, &mut play.keeper)?;
            let took = (now - since).as_secs_f64();
            if let Some(how) = how {
                play.record.say(play.crowd.now_ns(), "stopped", name, &format!("{how} after {took:.2} s"))?;
            } else if was_running && now - since > STOPPED_WITHIN {
                local.kill(std::slice::from_ref(name), &mut play.keeper)?;
                let text = format!("it did not stop within {} s, and was killed", STOPPED_WITHIN.as_secs());
                play.record.trouble(play.crowd.now_ns(), name, &text)?;
            } else if was_running {
                all = false;
            }
        }
        if all {
            self.stage = Stage::Holding;
        }
        Ok(())
    }

    fn end(&mut self, now: Duration, play: &mut Play<'_>) -> Result<(), ChaosError> {
        let id = self.fault.id.clone();
        match &self.fault.kind {
            FaultKind::Kill(names) | FaultKind::Terminate(names) => {
                if let Some(local) = &mut play.local {
                    for name in names {
                        local.start(name, &mut play.keeper)?;
                    }
                }
                play.say("starts", &id, &names.join(", "))?;
                self.stage = Stage::Ending { since: now, child: None };
            }
            FaultKind::Stop(names) => {
                for name in names {
                    if let Some(local) = &play.local {
                        local.signal(name, Signal::CONT)?;
                    }
                }
                self.over(play, &format!("{} by SIGCONT", names.join(", ")))?;
            }
            FaultKind::LinkDown(one, other) => {
                if let Some(local) = &play.local {
                    local.link(one, other, false);
                }
                self.over(play, &format!("the link between {one} and {other} is up"))?;
            }
            FaultKind::Command { undo, .. } => {
                let undo = undo.clone().unwrap_or_default();
                play.say("undoes", &id, &undo)?;
                let child = self.shell(&undo, play)?;
                self.stage = Stage::Ending { since: now, child: Some(child) };
            }
        }
        Ok(())
    }

    fn ending(
        &mut self,
        now: Duration,
        since: Duration,
        child: Option<Child>,
        play: &mut Play<'_>,
    ) -> Result<(), ChaosError> {
        if let Some(child) = child {
            if let Some(child) = self.look_at(child, now - since, "undo", play)? {
                self.stage = Stage::Ending { since, child: Some(child) };
                return Ok(());
            }
            play.keeper.paid(self.number).map_err(ChaosError::io("noting what was undone"))?;
            return self.over(play, "undone");
        }
        let (FaultKind::Kill(names) | FaultKind::Terminate(names)) = &self.fault.kind else { return Ok(()) };
        let Some(local) = &mut play.local else { return Ok(()) };
        local.listen();
        let late: Vec<String> = names.iter().filter(|name| !local.serves(name)).cloned().collect();
        if late.is_empty() {
            return self.over(play, &format!("serves again after {:.2} s", (now - since).as_secs_f64()));
        }
        for name in &late {
            let ended = local.ended(name, &mut play.keeper)?;
            if ended.is_some() || now - since > READY_WITHIN {
                let text = local.not_ready(name).to_string();
                play.record.trouble(play.crowd.now_ns(), name, &text)?;
                return self.over(play, "it is left as it is");
            }
        }
        Ok(())
    }

    fn over(&mut self, play: &mut Play<'_>, text: &str) -> Result<(), ChaosError> {
        let now_ns = play.crowd.now_ns();
        play.crowd.observed().faults[self.struck].end_ns = Some(now_ns);
        self.stage = Stage::Over;
        play.record.say(now_ns, "over", &self.fault.id, text)
    }

    /// Starts a command of the shell; what it says goes to a log.
    fn shell(&self, command: &str, play: &mut Play<'_>) -> Result<Child, ChaosError> {
        let log = play.record.logs().join(format!("{}.log", self.fault.id));
        let open = || OpenOptions::new().create(true).append(true).open(&log);
        let (out, errors) =
            (open().map_err(ChaosError::io("opening a log"))?, open().map_err(ChaosError::io("opening a log"))?);
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", command]).stdin(Stdio::null()).stdout(out).stderr(errors).process_group(0);
        let child = shell.spawn().map_err(ChaosError::io("starting /bin/sh"))?;
        play.keeper.add(child.id()).map_err(ChaosError::io("telling of a process"))?;
        Ok(child)
    }

    /// Gives a command back that still runs. One that fails, or takes too long, is a trouble: nobody knows what it did.
    fn look_at(
        &self,
        mut child: Child,
        took: Duration,
        which: &str,
        play: &mut Play<'_>,
    ) -> Result<Option<Child>, ChaosError> {
        let status = child.try_wait().map_err(ChaosError::io("waiting for a command"))?;
        let id = &self.fault.id;
        let wrong = match status {
            None if took <= COMMAND_WITHIN => return Ok(Some(child)),
            None => {
                child.kill().and_then(|()| child.wait()).map_err(ChaosError::io("killing a command"))?;
                Some(format!("{which} took longer than {} s, and was killed", COMMAND_WITHIN.as_secs()))
            }
            Some(status) if !ExitStatus::success(&status) => {
                let said = tail(&play.record.logs().join(format!("{id}.log")));
                Some(format!("{which} failed with {status}: {said}"))
            }
            Some(_) => None,
        };
        play.keeper.remove(child.id()).map_err(ChaosError::io("telling of a process"))?;
        match wrong {
            Some(text) => play.record.trouble(play.crowd.now_ns(), id, &text)?,
            None => play.say("done", id, &format!("{which}, after {:.2} s", took.as_secs_f64()))?,
        }
        Ok(None)
    }
}
