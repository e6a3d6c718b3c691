//! tern beside other messengers: the same messages, on the same links, in the same weather.
//!
//! Problem: "good on weak networks" says nothing by itself. A link that is dark for ten seconds delays everybody by ten
//! seconds; what a system is worth shows in what it adds to that, and only beside others that have the same weather.
//!
//! Rule: a scenario is played over real packets ([`crate::real`]), and in the same hosts, over the same links, run
//! other systems: their servers in the namespace of the first region, their clients in the namespaces of its devices.
//! Whenever a load writes, every system's client gets the same message, one after the other with less than half a
//! second between them (told in the same moment, whose packet is made first would be first in the queue of a slow link,
//! each time); where the phone's system tells tern of another network, it tells the clients that can be told. From
//! taking a message until showing it on the other device is measured by each client itself with the one monotonic clock
//! of the machine. What is never shown counts as shown at the end.
//!
//! The others: a messenger over TCP and TLS as a careful author would write it, and MQTT and XMPP with stock servers and
//! stock libraries, each set up as well as its options allow (no Nagle, one round trip less where TLS can come first, a
//! session that outlives connections). What helps them is left in: their servers keep everything in memory.
//!
//! Reading order: [`frame`], [`messenger`], [`relay`] (the TCP messenger's format and its two machines), [`sockets`] (its
//! two programs); `mqtt.py` and `xmpp.py` (clients of the stock servers), [`told`] (what clients are told and tell);
//! [`servers`] and [`company`] (who runs beside tern), [`tally`] (from what was told to numbers), [`floor`] (what
//! the links alone would take), [`table`] (for people and
//! machines).

pub mod company;
pub mod floor;
pub mod frame;
pub mod messenger;
pub mod relay;
pub mod servers;
pub mod sockets;
pub mod table;
pub mod tally;
pub mod told;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tern_netsim_scenario::Plan;
use tern_netsim_scenario::plan::{Effect, Target};
use tern_netsim_tun::LabError;
use tern_netsim_verdict::Line;

use crate::real::{RealError, Surroundings, play_beside};
use crate::stage::Heading;

/// tern's 99th percentile is to be at most the others' over this.
pub const RATIO: u64 = 3;
/// After the last message the weather goes on for so long: the longest of what was sent last must be seen. The run ends
/// before if everybody has shown everything.
pub const TAIL: Duration = Duration::from_secs(120);

/// Another system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// The messenger over TCP and TLS of this crate.
    Tcp,
    /// mosquitto and paho-mqtt.
    Mqtt,
    /// ejabberd and slixmpp.
    Xmpp,
}

impl Peer {
    /// All.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Mqtt, Self::Xmpp];

    /// As it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Mqtt => "mqtt",
            Self::Xmpp => "xmpp",
        }
    }

    /// Where its server listens.
    pub fn port(self) -> u16 {
        match self {
            Self::Tcp => 7500,
            Self::Mqtt => 8883,
            Self::Xmpp => 5223,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|peer| peer.name() == text);
        found.ok_or_else(|| {
            format!("there is no {text} to compare with; there are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// Why nothing could be compared. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The scenario.
    #[error("{scenario} can't be compared over: {why}")]
    Scenario {
        /// Its name.
        scenario: String,
        /// What is in the way.
        why: String,
    },
    /// tern, or the network.
    #[error(transparent)]
    Real(#[from] RealError),
    /// The network.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A server does not answer.
    #[error("the server of {peer} does not serve: {said}")]
    NotReady {
        /// Whose.
        peer: Peer,
        /// The end of its log.
        said: String,
    },
    /// Certificates.
    #[error("certificates or TLS: {0}")]
    Tls(String),
    /// A line that makes no sense.
    #[error("{0}")]
    Line(String),
    /// A file or process.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system says.
        source: io::Error,
    },
}

impl CompareError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Where things are that do not come with this program.
#[derive(Clone, Debug)]
pub struct Outside {
    /// A Python with the stock client libraries.
    pub python: PathBuf,
}

/// What came of a run.
#[derive(Debug)]
pub struct Compared {
    /// tern's history, and what the machine was worth.
    pub lines: Vec<Line>,
    /// tern first.
    pub flows: Vec<tally::Flow>,
    /// Those whose clients never got a connection: that tells of no link, but of how they were set up.
    pub never_live: Vec<Peer>,
    /// What the links alone would take, where that can be told.
    pub floor: Option<tally::Flow>,
    /// How late the machine was with packets: 99th percentile, and the shortest way it was to simulate.
    pub late_ns: (u64, u64),
}

impl Compared {
    /// Whether the machine, and not the links, decided on latencies: then the run is worth nothing.
    pub fn too_slow(&self) -> bool {
        let (p99_ns, delay_ns) = self.late_ns;
        p99_ns > delay_ns / tern_netsim_verdict::limits::LATENESS_SHARE
    }
}

/// Lets loads end so long after the first of them begins. A plan can't be made longer: it says no faults for later.
pub fn shorten(plan: &mut Plan, load: Duration) -> Result<(), String> {
    let load_ns = u64::try_from(load.as_nanos()).unwrap_or(u64::MAX);
    let begins_ns = plan.loads.iter().map(|load| load.from_ns).min().unwrap_or(0);
    let end_ns = begins_ns.saturating_add(load_ns);
    if end_ns > plan.duration_ns {
        let most = plan.duration_ns.saturating_sub(begins_ns) / 60_000_000_000;
        return Err(format!("{} writes for {most} minutes, and no longer", plan.name));
    }
    plan.duration_ns = end_ns;
    for load in &mut plan.loads {
        load.until_ns = load.until_ns.min(end_ns);
    }
    Ok(())
}

/// Refuses what the others could not have part in.
pub fn check(plan: &Plan) -> Result<(), CompareError> {
    let refuse = |why: String| Err(CompareError::Scenario { scenario: plan.name.clone(), why });
    for fault in &plan.faults {
        let links = matches!(
            fault.effect,
            Effect::LinkOutage { .. }
                | Effect::LinkChange { .. }
                | Effect::Block { .. }
                | Effect::PathCut { .. }
                | Effect::PathChange { .. }
                | Effect::HandOver { .. }
                | Effect::NewAddress { .. }
                | Effect::NatRebind { .. }
        );
        if !links {
            return refuse(format!("the fault {} ({}) strikes tern alone", fault.id, fault.kind));
        }
    }
    if plan.loads.iter().any(|load| matches!(load.to, Target::Group(_))) {
        return refuse("it writes into groups".to_owned());
    }
    if plan.loads.is_empty() {
        return refuse("nobody writes anything".to_owned());
    }
    let mut users: Vec<&str> = plan.devices.iter().map(|device| device.user.as_str()).collect();
    users.sort_unstable();
    if users.windows(2).any(|two| two[0] == two[1]) {
        return refuse("a user has two devices".to_owned());
    }
    Ok(())
}

/// Plays a plan with these beside tern. Takes as long as the plan does, and needs root.
pub fn compare(
    plan: Plan,
    heading: &Heading,
    surroundings: &Surroundings,
    peers: &[Peer],
    outside: &Outside,
) -> Result<Compared, CompareError> {
    check(&plan)?;
    let devices: Vec<String> = plan.devices.iter().map(|device| device.id.clone()).collect();
    let company = company::Company::new(peers, outside, &surroundings.logs);
    let (lines, company) = play_beside(plan.clone(), heading, surroundings, company)?;
    let end_ns = lines.last().map_or(0, |line| line.at_ns);
    let late_ns = tally::lateness(&lines);
    let mut flows = vec![tally::Flow::of_tern(&lines, end_ns, &company.bytes_of_tern(&devices))];
    let mut never_live = Vec::new();
    for peer in peers {
        let told = company.told(*peer);
        if told.iter().any(|(_, told)| told.what == told::What::Live) {
            flows.push(tally::Flow::of_peer(*peer, &told, end_ns, &company.bytes(*peer, &devices)));
        } else {
            never_live.push(*peer);
        }
    }
    let floor = floor::floor(&plan, &lines, &flows[0].fates, company.lab_zero_ns(), end_ns);
    Ok(Compared { lines, flows, never_live, floor, late_ns })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use tern_netsim_scenario::Scenario;

    use super::*;

    fn plan(more: &str) -> Plan {
        let text = format!(
            r#"
            [scenario]
            name = "beside"
            about = "Two people."
            duration = "5min"
            [[region]]
            name = "eu"
            aws = "euc1"
            [[device]]
            id = "phone"
            user = "alice"
            place = "eu"
            [[device]]
            id = "laptop"
            user = "bob"
            place = "eu"
            [[load]]
            from = "phone"
            to = "bob"
            rate = "1/s"
            during = "60s..5min"
            {more}
            "#
        );
        let scenario = Scenario::from_toml(text, Path::new("beside.toml")).unwrap();
        scenario.plan(0, &BTreeMap::new()).unwrap()
    }

    #[test]
    fn a_plan_can_be_made_shorter_and_not_longer() {
        let mut plan = plan("");
        shorten(&mut plan, Duration::from_secs(120)).unwrap();
        assert_eq!((plan.duration_ns, plan.loads[0].until_ns), (180_000_000_000, 180_000_000_000));
        let refused = shorten(&mut plan, Duration::from_secs(121)).unwrap_err();
        assert!(refused.contains("for 2 minutes"), "{refused}");
    }

    #[test]
    fn what_strikes_tern_alone_is_no_comparison() {
        let fault = |kind: &str, target: &str| {
            format!("[[fault]]\nid = \"it\"\nkind = \"{kind}\"\ntarget = \"{target}\"\nat = \"90s\"\nfor = \"3s\"\n")
        };
        assert!(check(&plan(&fault("outage", "phone"))).is_ok());
        for (kind, target) in [("region-kill", "eu"), ("app-kill", "phone"), ("suspend", "phone")] {
            let refused = check(&plan(&fault(kind, target))).unwrap_err();
            assert!(refused.to_string().contains("strikes tern alone"), "{refused}");
        }
    }

    #[test]
    fn peers_are_read_by_name() {
        assert_eq!("mqtt".parse(), Ok(Peer::Mqtt));
        assert!("smtp".parse::<Peer>().unwrap_err().contains("tcp, mqtt, xmpp"));
    }
}
