//! What can be counted in a run, so that a scenario can say that it must have happened.
//!
//! A run in which nothing happened proves nothing. `[sometimes]` names events with the least number of them; a run
//! with fewer is UNKNOWN, not PASS. The names are closed: a slip of the pen would ask for what never happens.
//!
//! All of them can be seen in the history of a run, so they are counted there, by one machine for all drivers: whoever
//! writes a history gives it every event, and writes [`Event::Sometimes`] for every name that comes back.

use std::collections::{BTreeMap, BTreeSet};

use tern_netsim_verdict::{Event, FaultPhase};

/// All names, and what each counts.
pub const NAMES: [(&str, &str); 12] = [
    ("ack_lost_after_commit", "a message was committed, and its device lost its connection or stopped before the ack"),
    ("acked_unreplicated", "a message was acked by a region that went down before a second one was known to have it"),
    ("caught_up", "a device was shown a message that was sent while it was not live"),
    ("edge_changed", "a device became live at another edge than before"),
    ("moved", "a message changed its place in a timeline after it had been shown"),
    ("path_migrated", "a device got another address or port, and went on without connecting again"),
    ("quic_again", "a device that had been live over TCP became live over QUIC"),
    ("reconnected", "a device that had been live before became live"),
    ("recommitted", "a message was committed by a second region, as its device heard nothing from the first"),
    ("region_changed", "a device became live in another region than before"),
    ("sent_offline", "a message was sent by a device that was not live"),
    ("tcp_fallback", "a device became live over TCP"),
];

/// Kinds of faults after which a connection must find its way from another address.
const MOVES: [&str; 3] = ["handover", "new-address", "nat-rebind"];

/// What is known of a device.
#[derive(Clone, Debug, Default)]
struct Device {
    live: bool,
    /// Edge, region and transport when it was live last.
    last: Option<(String, String, String)>,
    /// It was moved since it became live, and was not heard of since.
    moved: bool,
}

/// What is known of a message.
#[derive(Clone, Debug, Default)]
struct Message {
    device: String,
    /// Where it was committed, in order.
    committed: Vec<String>,
    acked: bool,
    stable: bool,
    /// Its ack was counted as lost.
    lost: bool,
    /// Devices that were not live when it was sent.
    absent: BTreeSet<String>,
}

/// Counts while a history is written.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    devices: BTreeMap<String, Device>,
    messages: BTreeMap<String, Message>,
}

impl Counter {
    /// Takes the next event of a history; the names of what it made happen, each as often as it did.
    pub fn see(&mut self, event: &Event) -> Vec<&'static str> {
        match event {
            Event::Run(run) => {
                self.devices = run.cast.devices.keys().map(|id| (id.clone(), Device::default())).collect();
                Vec::new()
            }
            Event::Connection { device, state, edge, region, transport } if state == "live" => {
                let of = |part: &Option<String>| part.clone().unwrap_or_default();
                self.becomes_live(device, (of(edge), of(region), of(transport)))
            }
            Event::Connection { device, .. } => self.leaves(device),
            Event::Stop { who, .. } if self.devices.contains_key(who) => self.leaves(who),
            Event::Stop { who, .. } => self.goes_down(who),
            Event::Invoke { device, message, .. } => {
                let absent = |(id, one): (&String, &Device)| (!one.live).then(|| id.clone());
                let absent: BTreeSet<String> = self.devices.iter().filter_map(absent).collect();
                let offline = absent.contains(device);
                let new = Message { device: device.clone(), absent, ..Message::default() };
                self.messages.insert(message.clone(), new);
                if offline { vec!["sent_offline"] } else { Vec::new() }
            }
            Event::Commit { region, message } => {
                let Some(message) = self.messages.get_mut(message) else { return Vec::new() };
                let second = !message.committed.is_empty() && !message.committed.contains(region);
                message.committed.push(region.clone());
                if second { vec!["recommitted"] } else { Vec::new() }
            }
            Event::Acked { device, message } => {
                if let Some(message) = self.messages.get_mut(message) {
                    message.acked = true;
                }
                self.heard(device)
            }
            Event::Stable { message, .. } => {
                if let Some(message) = self.messages.get_mut(message) {
                    message.stable = true;
                }
                Vec::new()
            }
            Event::Shown { device, message, new, .. } => {
                let mut names = self.heard(device);
                if !new {
                    names.push("moved");
                } else if self.messages.get_mut(message).is_some_and(|message| message.absent.remove(device)) {
                    names.push("caught_up");
                }
                names
            }
            Event::Fault { phase: FaultPhase::Begin, kind, target, .. } if MOVES.contains(&kind.as_str()) => {
                let id = target.split('.').next().unwrap_or_default();
                if let Some(device) = self.devices.get_mut(id) {
                    device.moved = device.live;
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn becomes_live(&mut self, id: &str, now: (String, String, String)) -> Vec<&'static str> {
        let device = self.devices.entry(id.to_owned()).or_default();
        let mut names = Vec::new();
        if device.live && device.last.as_ref() == Some(&now) {
            return names;
        }
        if now.2 == "tcp" {
            names.push("tcp_fallback");
        }
        if let Some(last) = &device.last {
            let changes = [
                (!device.live, "reconnected"),
                (last.0 != now.0, "edge_changed"),
                (last.1 != now.1, "region_changed"),
                (last.2 == "tcp" && now.2 == "quic", "quic_again"),
            ];
            names.extend(changes.into_iter().filter_map(|(happened, name)| happened.then_some(name)));
        }
        *device = Device { live: true, last: Some(now), moved: false };
        names
    }

    fn leaves(&mut self, id: &str) -> Vec<&'static str> {
        let device = self.devices.entry(id.to_owned()).or_default();
        let was_live = std::mem::take(&mut device.live);
        device.moved = false;
        if !was_live {
            return Vec::new();
        }
        let waits = |one: &&mut Message| one.device == id && !one.committed.is_empty() && !one.acked && !one.lost;
        let lost = self.messages.values_mut().filter(waits).map(|message| message.lost = true).count();
        vec!["ack_lost_after_commit"; lost]
    }

    fn goes_down(&self, who: &str) -> Vec<&'static str> {
        let alone = |one: &&Message| {
            one.acked && !one.stable && one.committed.len() == 1 && one.committed.first().is_some_and(|at| at == who)
        };
        vec!["acked_unreplicated"; self.messages.values().filter(alone).count()]
    }

    fn heard(&mut self, id: &str) -> Vec<&'static str> {
        let migrated = self.devices.get_mut(id).is_some_and(|device| std::mem::take(&mut device.moved));
        if migrated { vec!["path_migrated"] } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use tern_netsim_verdict::{Cast, Run};

    use super::*;

    fn text(text: &str) -> String {
        text.to_owned()
    }

    fn live(device: &str, edge: &str, region: &str, transport: &str) -> Event {
        let (edge, region, transport) = (Some(text(edge)), Some(text(region)), Some(text(transport)));
        Event::Connection { device: text(device), state: text("live"), edge, region, transport }
    }

    fn offline(device: &str) -> Event {
        Event::Connection { device: text(device), state: text("offline"), edge: None, region: None, transport: None }
    }

    fn invoke(device: &str, message: &str) -> Event {
        Event::Invoke { device: text(device), conversation: text("a+b"), message: text(message), bytes: 64 }
    }

    fn commit(region: &str, message: &str) -> Event {
        Event::Commit { region: text(region), message: text(message) }
    }

    fn shown(device: &str, message: &str, new: bool) -> Event {
        Event::Shown { device: text(device), conversation: text("a+b"), message: text(message), new }
    }

    /// Names that come back, of a run with devices a and b.
    fn counted(events: &[Event]) -> Vec<&'static str> {
        let devices = ["a", "b"].map(|id| (text(id), text(id))).into();
        let run = Run { cast: Cast { devices, ..Cast::default() }, ..Run::default() };
        let mut counter = Counter::default();
        let all = [&[Event::Run(Box::new(run))], events].concat();
        let names: Vec<&str> = all.iter().flat_map(|event| counter.see(event)).collect();
        assert!(names.iter().all(|name| NAMES.iter().any(|(known, _)| known == name)));
        names
    }

    #[test]
    fn an_ack_that_a_device_did_not_live_to_see_is_lost_once() {
        let acked = Event::Acked { device: text("a"), message: text("a/1") };
        let start = [
            live("a", "eu-e1", "eu", "quic"),
            live("b", "eu-e1", "eu", "quic"),
            invoke("a", "a/1"),
            commit("eu", "a/1"),
        ];
        let again = [offline("a"), live("a", "eu-e1", "eu", "quic"), offline("a")];
        assert_eq!(counted(&[&start[..], &again].concat()), ["ack_lost_after_commit", "reconnected"]);
        assert_eq!(counted(&[&start[..], &[acked, offline("a")]].concat()), [""; 0]);
    }

    #[test]
    fn a_region_that_dies_with_the_only_copy_is_counted_by_message() {
        let acked = |message: &str| Event::Acked { device: text("a"), message: text(message) };
        let down = Event::Stop { who: text("eu"), how: text("killed") };
        let stable = Event::Stable { device: text("a"), message: text("a/2") };
        let all = [
            live("a", "eu-e1", "eu", "quic"),
            live("b", "eu-e1", "eu", "quic"),
            invoke("a", "a/1"),
            commit("eu", "a/1"),
            acked("a/1"),
            invoke("a", "a/2"),
            commit("eu", "a/2"),
            acked("a/2"),
            stable,
            down,
            commit("us", "a/1"),
        ];
        assert_eq!(counted(&all), ["acked_unreplicated", "recommitted"]);
    }

    #[test]
    fn transports_edges_and_regions_are_told_when_they_change() {
        let all = [
            live("a", "eu-e1", "eu", "quic"),
            offline("a"),
            live("a", "eu-e1", "eu", "tcp"),
            offline("a"),
            live("a", "us-e1", "us", "quic"),
        ];
        let names = ["tcp_fallback", "reconnected", "reconnected", "edge_changed", "region_changed", "quic_again"];
        assert_eq!(counted(&all), names);
    }

    #[test]
    fn what_was_sent_to_the_absent_is_caught_up_with_and_moves_are_told() {
        let all = [live("a", "e", "eu", "quic"), invoke("a", "a/1"), shown("b", "a/1", true), shown("b", "a/1", false)];
        assert_eq!(counted(&all), ["caught_up", "moved"]);
        assert_eq!(counted(&[invoke("b", "b/1")]), ["sent_offline"]);
    }

    #[test]
    fn a_connection_that_outlives_its_address_has_migrated() {
        let moved = |target: &str| Event::Fault {
            fault: text("f"),
            phase: FaultPhase::Begin,
            kind: text("nat-rebind"),
            target: text(target),
            hits: 0,
        };
        let up = [live("a", "e", "eu", "quic"), live("b", "e", "eu", "quic"), invoke("b", "b/1")];
        let seen = [shown("a", "b/1", true)];
        assert_eq!(counted(&[&up[..], &[moved("a.cell")], &seen].concat()), ["path_migrated"]);
        let again = [moved("a"), offline("a"), live("a", "e", "eu", "quic")];
        assert_eq!(counted(&[&up[..], &again, &seen].concat()), ["reconnected"]);
    }
}
