//! A device of a run, seen from the run: its process, while there is one, and what it last said of itself.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread;

use tern_netsim_tun::{Lab, Process};

use super::error::RealError;
use super::protocol::{Order, Report, Setup, Standing};
use super::{Heard, Said};

/// See the module.
#[derive(Debug, Default)]
pub struct Seat {
    process: Option<Process>,
    input: Option<ChildStdin>,
    /// Counts starts, so that what is heard of an earlier one is not taken for the present one's.
    start: u64,
    /// What it last said of itself; `None` since it was last asked.
    pub standing: Option<Standing>,
}

impl Seat {
    /// Opens the app. One that runs is killed first.
    pub fn open(
        &mut self,
        lab: &Lab,
        setup: &Setup,
        log: std::fs::File,
        heard: &Sender<Heard>,
    ) -> Result<(), RealError> {
        self.kill()?;
        let program = std::env::current_exe().map_err(RealError::io("finding this program"))?;
        let mut command = Command::new(program);
        command.arg("device").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut process = lab.spawn(&setup.device, command)?;
        let (input, output, _) = process.pipes();
        self.start += 1;
        (self.process, self.input, self.standing) = (Some(process), input, None);
        let first = serde_json::to_string(setup).map_err(|error| RealError::Name(error.to_string()))?;
        self.write(&first);
        let (who, start, heard) = (setup.device.clone(), self.start, heard.clone());
        let read = move || {
            let lines = output.into_iter().flat_map(|output| BufReader::new(output).lines().map_while(Result::ok));
            for line in lines {
                let said = match serde_json::from_str::<Report>(&line) {
                    Ok(report) => Said::Report(Box::new(report)),
                    Err(error) => Said::Nonsense(format!("{error}: {line}")),
                };
                if heard.send(Heard { who: who.clone(), start, said }).is_err() {
                    return;
                }
            }
            // Nobody listens only when the run is over.
            let _over = heard.send(Heard { who, start, said: Said::Ended });
        };
        let name = format!("{} output", setup.device);
        thread::Builder::new().name(name).spawn(read).map_err(RealError::io("starting a thread"))?;
        Ok(())
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.process.is_some()
    }

    /// Whether what was heard is of the present process.
    pub fn is_present(&self, start: u64) -> bool {
        self.start == start && self.process.is_some()
    }

    /// Tells the app to do something. False: it is not open, or has ended.
    pub fn order(&mut self, order: &Order) -> bool {
        let Ok(line) = serde_json::to_string(order) else { return false };
        self.is_open() && self.write(&line)
    }

    /// Kills the app, and waits for it.
    pub fn kill(&mut self) -> Result<(), RealError> {
        self.input = None;
        if let Some(mut process) = self.process.take() {
            process.kill().map_err(RealError::io("killing an app"))?;
        }
        Ok(())
    }

    /// Lets the app stand still, or go on.
    pub fn pause(&mut self, paused: bool) -> Result<(), RealError> {
        let Some(process) = self.process.as_mut() else { return Ok(()) };
        let done = if paused { process.pause() } else { process.resume() };
        done.map_err(RealError::io("signalling an app"))
    }

    /// An app that has just died reads nothing; that it ended is heard.
    fn write(&mut self, line: &str) -> bool {
        self.input.as_mut().is_some_and(|input| writeln!(input, "{line}").and_then(|()| input.flush()).is_ok())
    }
}
