//! What is dark when: outages of devices, regions that die, partitions.
//!
//! Time is cut into as many pieces as there are faults, and each has its own piece, so that no two meet: a perfect
//! system would stand that as well, but its delays could not be computed by looking at one of them.

use super::{MS, Model, Random, S};
use crate::history::{Cast, Event, FaultPhase};

/// A time in which a device is not connected, from the loss of the connection until it is live.
#[derive(Clone, Debug)]
pub(super) struct Dark {
    pub(super) from_ns: u64,
    pub(super) live_ns: u64,
    /// Where it is connected afterwards.
    pub(super) region: String,
}

struct Fault {
    id: String,
    kind: &'static str,
    target: String,
    begin_ns: u64,
    end_ns: u64,
}

/// See the module.
pub(super) struct Weather {
    /// By device, ascending; the first is its start.
    dark: Vec<Vec<Dark>>,
    faults: Vec<Fault>,
    cuts: Vec<(String, String, u64, u64)>,
}

impl Weather {
    pub(super) fn draw(model: &Model, devices: &[(String, String)], cast: &mut Cast, random: &mut Random) -> Self {
        let regions = cast.regions.clone();
        let dark = (0..devices.len()).map(|i| {
            let live_ns = 200 * MS + random.below(500 * MS);
            vec![Dark { from_ns: 0, live_ns, region: regions[i % regions.len()].clone() }]
        });
        let mut weather = Self { dark: dark.collect(), faults: Vec::new(), cuts: Vec::new() };
        let piece_ns = model.duration_ns.saturating_sub(2 * S) / (model.faults as u64).max(1);
        for number in 0..model.faults {
            let begin_ns = 2 * S + piece_ns * number as u64 + random.below(piece_ns / 5);
            let end_ns = begin_ns + piece_ns / 5 + random.below(piece_ns / 5);
            let live = |random: &mut Random| end_ns + 50 * MS + random.below(piece_ns / 5);
            let at = random.index(devices.len());
            let (kind, target) = match random.below(if regions.len() > 1 { 5 } else { 3 }) {
                0..3 => {
                    let live_ns = live(random);
                    weather.darken(at, begin_ns, live_ns, None);
                    ("outage", format!("{}.cell", devices[at].0))
                }
                3 => {
                    let gone = random.index(regions.len());
                    let next = &regions[(gone + 1) % regions.len()];
                    for device in 0..devices.len() {
                        if weather.region(device, begin_ns) == regions[gone] {
                            let live_ns = begin_ns + 50 * MS + random.below(piece_ns / 5);
                            weather.darken(device, begin_ns, live_ns, Some(next));
                        }
                    }
                    ("region-kill", regions[gone].clone())
                }
                _ => {
                    let a = random.index(regions.len());
                    let b = (a + 1) % regions.len();
                    weather.cuts.push((regions[a].clone(), regions[b].clone(), begin_ns, end_ns));
                    ("partition", format!("{}-{}", regions[a], regions[b]))
                }
            };
            let id = format!("{kind}-{}", number + 1);
            cast.faults.push((id.clone(), kind.into(), target.clone()));
            weather.faults.push(Fault { id, kind, target, begin_ns, end_ns });
        }
        weather
    }

    fn darken(&mut self, device: usize, from_ns: u64, live_ns: u64, to: Option<&String>) {
        let region = to.cloned().unwrap_or_else(|| self.region(device, from_ns));
        self.dark[device].push(Dark { from_ns, live_ns, region });
    }

    pub(super) fn of(&self, device: usize) -> &[Dark] {
        &self.dark[device]
    }

    pub(super) fn reconnects(&self) -> u64 {
        self.dark.iter().map(|all| all.len() as u64 - 1).sum()
    }

    /// Where a device is, or was last.
    pub(super) fn region(&self, device: usize, at_ns: u64) -> String {
        let all = &self.dark[device];
        let now = all.iter().rev().find(|d| d.live_ns <= at_ns).unwrap_or(&all[0]);
        now.region.clone()
    }

    /// When a packet passes a device's link that may go at a moment and is so long on its way.
    pub(super) fn reach(&self, device: usize, from_ns: u64, delay_ns: u64) -> u64 {
        let mut at_ns = from_ns;
        for dark in &self.dark[device] {
            // It is lost if the link turns dark before it has come.
            if at_ns < dark.live_ns && at_ns + delay_ns >= dark.from_ns {
                at_ns = dark.live_ns;
            }
        }
        at_ns + delay_ns
    }

    /// When something that leaves a region at a moment comes to another.
    pub(super) fn cross(&self, a: &str, b: &str, at_ns: u64) -> u64 {
        if a == b {
            return at_ns;
        }
        let arrives_ns = at_ns + 45 * MS;
        let cut = |(x, y, from, until): &&(String, String, u64, u64)| {
            ((x == a && y == b) || (x == b && y == a)) && arrives_ns >= *from && at_ns < *until
        };
        self.cuts.iter().find(cut).map_or(arrives_ns, |(_, _, _, until)| until + 60 * MS)
    }

    pub(super) fn faults(&self) -> Vec<(u64, Event)> {
        let line = |f: &Fault, phase, hits| Event::Fault {
            fault: f.id.clone(),
            phase,
            kind: f.kind.into(),
            target: f.target.clone(),
            hits,
        };
        let nodes = |f: &Fault| {
            let who = || f.target.clone();
            let stop = (f.begin_ns, Event::Stop { who: who(), how: "killed".into() });
            let start = (f.end_ns, Event::Start { who: who() });
            if f.kind == "region-kill" { vec![stop, start] } else { vec![] }
        };
        self.faults
            .iter()
            .flat_map(|f| {
                let mut all = vec![(f.begin_ns, line(f, FaultPhase::Begin, 0))];
                all.extend(nodes(f));
                all.push((f.end_ns, line(f, FaultPhase::End, 1 + (f.end_ns - f.begin_ns) / (100 * MS))));
                all
            })
            .collect()
    }
}
