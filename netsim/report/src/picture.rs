//! What a page draws, taken from a history in one pass.
//!
//! A history is read again here, and not taken from the checks: they keep what decides, a picture needs what shows. It is
//! drawn of any history, also of one that makes no sense: then a picture is needed most.

use std::collections::{BTreeMap, BTreeSet};

use tern_netsim_verdict::{Event, FaultPhase, Finding, Line, LinkSample, Run};

/// A message's way.
#[derive(Debug, Default)]
pub(crate) struct Life<'a> {
    pub(crate) device: &'a str,
    pub(crate) conversation: &'a str,
    pub(crate) invoked_ns: u64,
    /// Regions that decided on it.
    pub(crate) commits: Vec<(u64, &'a str)>,
    pub(crate) acked_ns: Option<u64>,
    /// Devices on which it appeared as new.
    pub(crate) shown: Vec<(u64, &'a str)>,
}

impl Life<'_> {
    /// The last that is told of it.
    pub(crate) fn last_ns(&self) -> u64 {
        let commits = self.commits.iter().map(|(at_ns, _)| *at_ns);
        let shown = self.shown.iter().map(|(at_ns, _)| *at_ns);
        commits.chain(shown).chain(self.acked_ns).max().unwrap_or(self.invoked_ns)
    }
}

/// A fault, from when until when.
#[derive(Debug)]
pub(crate) struct Band<'a> {
    pub(crate) fault: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) target: &'a str,
    pub(crate) from_ns: u64,
    pub(crate) until_ns: Option<u64>,
    pub(crate) hits: u64,
}

impl Band<'_> {
    /// Whether it hits who has this name: itself, a link of it, or a path to it.
    pub(crate) fn hits(&self, who: &str) -> bool {
        // `alice` is not `alice-phone`, but `eu` is in `eu-us`, `eu<->us` and `eu..us`.
        self.target.match_indices(who).any(|(at, _)| {
            let (before, after) = (&self.target[..at], &self.target[at + who.len()..]);
            let begins = before.is_empty() || !before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let ends = after.is_empty() || after.starts_with(['.', '<', '-', ' ', '/', '~']);
            begins && ends && !who.is_empty()
        })
    }
}

/// How late packets were.
#[derive(Debug)]
pub(crate) struct Late {
    pub(crate) packets: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) max_ns: u64,
    pub(crate) delay_ns: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Picture<'a> {
    pub(crate) run: Option<&'a Run>,
    pub(crate) lines: usize,
    pub(crate) end_ns: u64,
    pub(crate) phases: Vec<(u64, &'a str)>,
    pub(crate) lives: BTreeMap<&'a str, Life<'a>>,
    pub(crate) bands: Vec<Band<'a>>,
    /// By device, region or edge: its state from a moment on. Devices have those of their connection, and `stopped`.
    pub(crate) states: BTreeMap<&'a str, Vec<(u64, &'a str)>>,
    /// By link and way.
    pub(crate) links: BTreeMap<(&'a str, &'a str), Vec<(u64, &'a LinkSample)>>,
    pub(crate) late: Option<Late>,
    pub(crate) shape: Option<&'a str>,
    pub(crate) packets: Option<u64>,
    pub(crate) quiet: Option<bool>,
    pub(crate) waiting: &'a [String],
}

impl<'a> Picture<'a> {
    pub(crate) fn of(lines: &'a [Line]) -> Self {
        let mut picture = Self { lines: lines.len(), ..Self::default() };
        for line in lines {
            picture.end_ns = picture.end_ns.max(line.at_ns);
            picture.take(line);
        }
        picture
    }

    fn take(&mut self, line: &'a Line) {
        let at_ns = line.at_ns;
        match &line.event {
            Event::Run(run) => self.run = Some(run),
            Event::Phase { name } => self.phases.push((at_ns, name)),
            Event::Start { who } => self.states.entry(who).or_default().push((at_ns, "started")),
            Event::Stop { who, .. } => self.states.entry(who).or_default().push((at_ns, "stopped")),
            Event::Connection { device, state, .. } => self.states.entry(device).or_default().push((at_ns, state)),
            Event::Invoke { device, conversation, message, .. } => {
                let life = self.lives.entry(message).or_default();
                (life.device, life.conversation, life.invoked_ns) = (device, conversation, at_ns);
            }
            Event::Commit { region, message, .. } => {
                if let Some(life) = self.lives.get_mut(message.as_str()) {
                    life.commits.push((at_ns, region));
                }
            }
            Event::Acked { message, .. } => {
                if let Some(life) = self.lives.get_mut(message.as_str()) {
                    life.acked_ns.get_or_insert(at_ns);
                }
            }
            Event::Shown { device, message, new: true, .. } => {
                if let Some(life) = self.lives.get_mut(message.as_str()) {
                    life.shown.push((at_ns, device));
                }
            }
            Event::Fault { fault, phase: FaultPhase::Begin, kind, target, .. } => {
                self.bands.push(Band { fault, kind, target, from_ns: at_ns, until_ns: None, hits: 0 });
            }
            Event::Fault { fault, phase: FaultPhase::End, hits, .. } => {
                let open = self.bands.iter_mut().rev().find(|b| b.fault == fault && b.until_ns.is_none());
                if let Some(band) = open {
                    (band.until_ns, band.hits) = (Some(at_ns), *hits);
                }
            }
            Event::Link(sample) => {
                self.links.entry((&sample.link, &sample.way)).or_default().push((at_ns, sample));
            }
            Event::Lateness { packets, p50_ns, p99_ns, max_ns, delay_ns } => {
                let (packets, p50_ns, p99_ns, max_ns, delay_ns) = (*packets, *p50_ns, *p99_ns, *max_ns, *delay_ns);
                self.late = Some(Late { packets, p50_ns, p99_ns, max_ns, delay_ns });
            }
            Event::End { quiet, waiting, shape, packets } => {
                (self.quiet, self.waiting) = (Some(*quiet), waiting);
                (self.shape, self.packets) = (shape.as_deref(), Some(*packets));
            }
            _ => {}
        }
    }

    /// Devices with their users, in order; empty if the history does not say.
    pub(crate) fn devices(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let run = self.run;
        run.into_iter().flat_map(|run| run.cast.devices.iter().map(|(d, u)| (d.as_str(), u.as_str())))
    }

    /// Messages that findings name.
    pub(crate) fn suspects(&self, findings: &[Finding]) -> BTreeSet<&'a str> {
        let words = findings.iter().flat_map(|f| f.text.split([' ', ',', ':']));
        words.filter_map(|word| self.lives.get_key_value(word)).map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_whom_its_target_names() {
        let band = |target| Band { fault: "f", kind: "k", target, from_ns: 0, until_ns: None, hits: 0 };
        assert!(band("alice-phone.cell").hits("alice-phone") && !band("alice-phone.cell").hits("alice-tablet"));
        assert!(band("eu<->us").hits("eu") && band("eu<->us").hits("us") && !band("eu<->us").hits("ap"));
        assert!(band("eu-us").hits("us") && !band("eur-us").hits("eu") && !band("eu-us").hits(""));
    }
}
