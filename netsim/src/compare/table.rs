//! Comparisons as tables for people, and as JSON.

use std::fmt::Write as _;

use serde::Serialize;
use tern_netsim_scenario::Plan;

use super::tally::{Fate, Flow};
use super::{Compared, Peer, RATIO};

/// One scenario's comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The scenario's name.
    pub scenario: String,
    /// In a sentence.
    pub about: String,
    /// The weak link: whose, and what it is.
    pub link: String,
    /// The device that is on it.
    pub phone: String,
    /// The seed.
    pub seed: u64,
    /// So long messages were written.
    pub seconds: u64,
    /// tern first.
    pub flows: Vec<Flow>,
    /// What the links alone would take, where that can be told.
    pub floor: Option<Flow>,
    /// Peers that could not be had, and why.
    pub skipped: Vec<(Peer, String)>,
    /// The machine was too slow: all of it is worth nothing.
    pub too_slow: bool,
    /// How late packets were at the 99th percentile, in nanoseconds.
    pub late_p99_ns: u64,
}

impl Table {
    /// Of a run; the phone is the plan's first device.
    pub fn of(plan: &Plan, compared: &Compared, skipped: &[(Peer, String)]) -> Self {
        let phone = plan.devices.first();
        let from_ns = plan.loads.iter().map(|load| load.from_ns).min().unwrap_or(0);
        let link = phone.map(|phone| phone.interfaces.iter().map(|one| one.profile.clone()).collect::<Vec<_>>());
        Self {
            scenario: plan.name.clone(),
            about: plan.about.clone(),
            link: link.unwrap_or_default().join(", "),
            phone: phone.map(|phone| phone.id.clone()).unwrap_or_default(),
            seed: plan.seed,
            seconds: plan.duration_ns.saturating_sub(from_ns) / 1_000_000_000,
            flows: compared.flows.clone(),
            floor: compared.floor.clone(),
            skipped: skipped.iter().cloned().chain(compared.never_live.iter().map(never)).collect(),
            too_slow: compared.too_slow(),
            late_p99_ns: compared.late_ns.0,
        }
    }

    /// A flow's 99th percentile over tern's; `None` for tern itself, and where there is nothing to divide.
    pub fn ratio(&self, flow: &Flow) -> Option<f64> {
        let tern = self.flows.first().filter(|tern| tern.name != flow.name)?;
        let (own, others) = (tern.times.p99_ns, flow.times.p99_ns);
        (own > 0 && others > 0).then(|| seconds(others) / seconds(own))
    }

    /// Whether tern's 99th percentile is at most a third of this flow's.
    fn beaten(&self, flow: &Flow) -> bool {
        let own = self.flows.first().map_or(0, |tern| tern.times.p99_ns);
        own > 0 && flow.times.p99_ns >= own.saturating_mul(RATIO)
    }

    /// Whether it is at most a third of that of everybody who was measured, on a machine that kept up.
    pub fn reached(&self) -> bool {
        let others = self.flows.get(1..).unwrap_or_default();
        !self.too_slow && !others.is_empty() && others.iter().all(|flow| self.beaten(flow))
    }

    /// As Markdown, which is readable as it is.
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "| {} | Sent | Shown | p50 | p95 | p99 | Max | Live again | Bytes up / down | p99 over tern's |\n\
             |---|---|---|---|---|---|---|---|---|---|\n",
            self.scenario
        );
        for flow in &self.flows {
            let times = &flow.times;
            let (up, down) = flow.bytes.get(&self.phone).copied().unwrap_or_default();
            let ratio = self.ratio(flow).map_or_else(String::new, |ratio| {
                format!("{ratio:.2}{}", if self.beaten(flow) { "" } else { " **missed**" })
            });
            let _infallible = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {up} / {down} | {ratio} |",
                flow.name,
                times.sent,
                flow.shown,
                show(times.p50_ns),
                show(times.p95_ns),
                show(times.p99_ns),
                show(times.max_ns),
                flow.live_again,
            );
        }
        if let Some(floor) = &self.floor {
            let [p50, p95, p99, max] = floor.times.in_order().map(show);
            let _infallible = writeln!(out, "| {} | | | {p50} | {p95} | {p99} | {max} | | | |", floor.name);
        }
        out
    }

    /// What the table leaves out.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = vec![format!(
            "{} Link of {}: {}. Seed {}, {} s of messages both ways; packets {} late at p99.",
            self.about,
            self.phone,
            self.link,
            self.seed,
            self.seconds,
            show(self.late_p99_ns)
        )];
        let by_author = |flow: &Flow| {
            let each = flow.by_author.iter().map(|(device, times)| format!("{device} {}", show(times.p99_ns)));
            format!("{}: {}", flow.name, each.collect::<Vec<_>>().join(", "))
        };
        let authors: Vec<String> = self.flows.iter().chain(&self.floor).map(by_author).collect();
        notes.push(format!("p99 by author: {}.", authors.join("; ")));
        for (peer, why) in &self.skipped {
            notes.push(format!("{peer} was skipped: {why}."));
        }
        if self.too_slow {
            notes.push("INVALID: the machine was too slow, and not the links made the delays.".to_owned());
        }
        notes
    }

    /// The messages that took tern longest, for whoever wants to know why.
    pub fn slowest(&self, count: usize) -> Vec<Fate> {
        let mut fates = self.flows.first().map(|tern| tern.fates.clone()).unwrap_or_default();
        fates.sort_by_key(|fate| {
            std::cmp::Reverse(fate.shown_ns.map_or(u64::MAX, |at_ns| at_ns.saturating_sub(fate.sent_ns)))
        });
        fates.truncate(count);
        fates
    }
}

fn never(peer: &Peer) -> (Peer, String) {
    (*peer, "none of its clients ever got a connection; see the logs".to_owned())
}

/// The document of several.
pub fn document(tables: &[Table], command: &str) -> String {
    let mut out = format!(
        "# Comparison\n\nWritten by `{command}`, over real packets in real time: numbers differ from run to run, and the links \
         do not. p50, p95, p99 and max are times from the moment at which the author's client takes a message until the other \
         device shows it; what was never shown counts until the end. \"links alone\" is what each message would have taken as the \
         only packet, without loss: nobody can be faster. Bytes are the phone's, with headers. \
         \"Live again\" counts reconnects of both devices; with tern also catching up on the same connection. tern's p99 is to be \
         at most a third of everybody's. How it is measured: [NETSIM.md](NETSIM.md#beside-others).\n"
    );
    for table in tables {
        let _infallible = write!(out, "\n## {}\n\n{}\n", table.scenario, table.markdown());
        for note in table.notes() {
            let _infallible = writeln!(out, "{note}");
        }
    }
    out
}

#[allow(clippy::cast_precision_loss, reason = "times of a run: far below 2^52 ns")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn show(ns: u64) -> String {
    let seconds = seconds(ns);
    if seconds < 0.01 {
        format!("{:.2} ms", seconds * 1e3)
    } else if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tally::Times;
    use super::*;

    fn flow(name: &str, p99_ms: u64) -> Flow {
        Flow {
            name: name.into(),
            shown: 9,
            times: Times { sent: 10, p99_ns: p99_ms * 1_000_000, ..Times::default() },
            by_author: BTreeMap::new(),
            live_again: 2,
            bytes: BTreeMap::from([("phone".into(), (1000, 2000))]),
            fates: vec![],
        }
    }

    fn table(flows: Vec<Flow>) -> Table {
        Table {
            scenario: "train".into(),
            about: "A train.".into(),
            link: "4g-train".into(),
            phone: "phone".into(),
            seed: 7,
            seconds: 60,
            flows,
            floor: Some(Flow { bytes: BTreeMap::new(), ..flow("links alone", 90) }),
            skipped: vec![(Peer::Xmpp, "there is no ejabberd".into())],
            too_slow: false,
            late_p99_ns: 100_000,
        }
    }

    #[test]
    fn the_goal_is_a_third_of_everybody_on_a_machine_that_kept_up() {
        let mut reached = table(vec![flow("tern", 100), flow("tcp", 300), flow("mqtt", 1000)]);
        assert!(reached.reached());
        reached.too_slow = true;
        assert!(!reached.reached());
        assert!(!table(vec![flow("tern", 100), flow("tcp", 299), flow("mqtt", 1000)]).reached());
        assert!(!table(vec![flow("tern", 100)]).reached(), "against nobody nothing is shown");
        assert!(!table(vec![flow("tern", 0), flow("tcp", 0)]).reached());
    }

    #[test]
    fn a_table_tells_who_missed_and_who_was_skipped() {
        let table = table(vec![flow("tern", 100), flow("tcp", 250), flow("mqtt", 1000)]);
        let text = document(&[table], "netsim compare");
        assert!(
            text.contains("| tern | 10 | 9 | 0.00 ms | 0.00 ms | 100 ms | 0.00 ms | 2 | 1000 / 2000 |  |"),
            "{text}"
        );
        assert!(text.contains("1000 / 2000 | 2.50 **missed** |") && text.contains("| 10.00 |"), "{text}");
        assert!(text.contains("| links alone | | | 0.00 ms | 0.00 ms | 90 ms | 0.00 ms | | | |"), "{text}");
        assert!(text.contains("xmpp was skipped: there is no ejabberd."), "{text}");
        assert!(text.contains("Seed 7, 60 s"), "{text}");
    }
}
