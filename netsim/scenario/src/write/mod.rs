//! A plan as a scenario that plans to it, whatever the seed.
//!
//! What shrinking leaves over must be a file that somebody can keep, read and change. So a plan is written with the
//! same keys that scenarios have, nothing drawn, nothing extended, addresses and numbers included; recordings are
//! written out. Reading it gives an equal plan, but for the file and the seed, which are not its own.

mod links;

use std::fmt::Write as _;

use crate::plan::{Action, Blocked, DevicePlan, Down, Effect, Heal, Plan, Size, Target, Ways, When};
use crate::read::devices::nat_text;
use crate::read::when::trigger_text;
use crate::units::{chance_text, rate_text, time_text};

/// A text in quotes.
pub(crate) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Names in a list.
fn list<'t>(texts: impl IntoIterator<Item = &'t String>) -> String {
    let texts: Vec<String> = texts.into_iter().map(|text| quoted(text)).collect();
    format!("[{}]", texts.join(", "))
}

/// Lines of a file. Writing to a text cannot fail.
#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str) {
        let _infallible = writeln!(self.0, "{}{name}", if self.0.is_empty() { "" } else { "\n" });
    }

    fn raw(&mut self, key: &str, value: impl std::fmt::Display) {
        let _infallible = writeln!(self.0, "{key} = {value}");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.raw(key, quoted(value));
    }

    fn time(&mut self, key: &str, ns: u64) {
        self.text(key, &time_text(ns));
    }

    fn when(&mut self, when: &When) {
        let later = |by_ns: &u64| if *by_ns == 0 { String::new() } else { format!(" + {}", time_text(*by_ns)) };
        match when {
            When::At(ns) => self.time("at", *ns),
            When::After { fault, end, by_ns } => {
                let end = if *end { "end" } else { "begin" };
                self.text("at", &format!("{fault}.{end}{}", later(by_ns)));
            }
            When::On { trigger, by_ns } => {
                self.text("when", &format!("{}{}", trigger_text(trigger), later(by_ns)));
                if let Some(device) = &trigger.device {
                    self.text("of", device);
                }
            }
        }
    }
}

impl Plan {
    /// See the module.
    pub fn to_toml(&self) -> String {
        let mut page = Page::default();
        page.head("[scenario]");
        page.text("name", &self.name);
        page.text("about", &self.about);
        let first = self.seed.min(u64::MAX - 1);
        page.text("seeds", &format!("{first}..{}", first + 1));
        page.time("duration", self.duration_ns);
        if !self.point.is_empty() {
            page.head("[point]");
            self.point.iter().for_each(|(name, value)| page.text(&quoted(name), value));
        }
        page.head("[options]");
        page.time("reoffer_after", self.options.reoffer_after_ns);
        page.time("heartbeat", self.options.heartbeat_ns);
        page.time("disk_sync", self.options.disk_sync_ns);
        page.time("disk_read", self.options.disk_read_ns);
        self.write_topology(&mut page);
        self.devices.iter().for_each(|device| write_device(device, &mut page));
        for group in &self.groups {
            page.head("[[group]]");
            page.text("id", &group.id);
            page.text("creator", &group.creator);
            page.raw("members", list(&group.members));
        }
        self.write_loads(&mut page);
        self.write_actions(&mut page);
        self.write_faults(&mut page);
        self.write_end(&mut page);
        page.0
    }

    fn write_topology(&self, page: &mut Page) {
        for region in &self.regions {
            page.head("[[region]]");
            page.text("name", &region.name);
            page.raw("number", region.number);
            page.raw("at", format!("[{:?}, {:?}]", region.at.0, region.at.1));
            if region.edges > 0 {
                page.raw("edges", region.edges);
            }
        }
        let mut places: Vec<&String> = Vec::new();
        for end in self.paths.iter().flat_map(|path| [&path.a, &path.b]) {
            if !places.contains(&end) && self.regions.iter().all(|region| region.name != *end) {
                places.push(end);
            }
        }
        for place in places {
            page.head("[[place]]");
            page.text("name", place);
        }
        for path in &self.paths {
            page.head("[[path]]");
            page.raw("between", list([&path.a, &path.b]));
            match &path.link {
                None => page.time("latency", path.latency_ns),
                Some(link) => links::entries(link).iter().for_each(|(key, value)| page.raw(key, value)),
            }
        }
    }

    fn write_loads(&self, page: &mut Page) {
        for load in &self.loads {
            page.head("[[load]]");
            page.text("id", &load.id);
            page.text("from", &load.from);
            page.text("to", target(&load.to));
            page.time("every", load.every_ns);
            page.text("spacing", if load.poisson { "poisson" } else { "even" });
            match load.size {
                Size::Fixed(bytes) => page.raw("size", bytes),
                Size::Uniform(low, high) => page.text("size", &format!("uniform({low}..{high})")),
                Size::Zipf(low, high) => page.text("size", &format!("zipf({low}..{high})")),
            }
            page.text("during", &format!("{}..{}", time_text(load.from_ns), time_text(load.until_ns)));
            if let Some(count) = load.count {
                page.raw("count", count);
            }
        }
    }

    fn write_actions(&self, page: &mut Page) {
        for action in &self.actions {
            page.head("[[action]]");
            page.text("device", &action.device);
            page.when(&action.when);
            match &action.what {
                Action::Read(conversation) => {
                    page.text("do", "read");
                    page.text("conversation", target(conversation));
                }
                Action::ReadAll => page.text("do", "read-all"),
                Action::Mute(conversation) => {
                    page.text("do", "mute");
                    page.text("conversation", target(conversation));
                }
                Action::Unmute(conversation) => {
                    page.text("do", "unmute");
                    page.text("conversation", target(conversation));
                }
                Action::Foreground(foreground) => {
                    page.text("do", if *foreground { "foreground" } else { "background" });
                }
                Action::Metered(metered) => page.text("do", if *metered { "metered" } else { "unmetered" }),
                Action::Away(away) => page.text("do", if *away { "put-away" } else { "take-out" }),
                Action::Watch(user) => {
                    page.text("do", "watch");
                    page.text("user", user);
                }
                Action::Erase(conversation) => {
                    page.text("do", "erase");
                    page.text("conversation", target(conversation));
                }
                Action::Title { group, title } => {
                    page.text("do", "title");
                    page.text("group", group);
                    page.text("title", title);
                }
                Action::Add { group, user } | Action::Remove { group, user } => {
                    page.text("do", if matches!(action.what, Action::Add { .. }) { "add" } else { "remove" });
                    page.text("group", group);
                    page.text("user", user);
                }
            }
        }
    }

    fn write_faults(&self, page: &mut Page) {
        for fault in &self.faults {
            page.head("[[fault]]");
            page.text("id", &fault.id);
            page.text("kind", &fault.kind);
            page.text("target", &target_of(&fault.effect));
            page.when(&fault.when);
            if let Some(ns) = fault.lasts_ns {
                page.time("for", ns);
            }
            match &fault.effect {
                Effect::LinkOutage { outage, .. } => page.text("how", links::outage(*outage)),
                Effect::LinkChange { change, .. } | Effect::PathChange { change, .. } => {
                    links::patch_entries(change).iter().for_each(|(key, value)| page.raw(key, value));
                }
                Effect::Block { what, .. } => {
                    let (word, longest_ns) = match what {
                        Blocked::Udp => ("udp", None),
                        Blocked::Tcp => ("tcp", None),
                        Blocked::Captive => ("captive", None),
                        Blocked::AllButWeb { longest_ns } => ("all-but-web", *longest_ns),
                    };
                    page.text("what", word);
                    if let Some(ns) = longest_ns {
                        page.time("longest", ns);
                    }
                }
                Effect::HandOver { to, how, .. } => {
                    if let Some(to) = to {
                        page.text("to", to);
                    }
                    page.time("gap", how.gap_ns);
                    page.time("overlap", how.overlap_ns);
                }
                Effect::Region { how: Down::Kill { lose_unsynced }, .. } => {
                    page.text("lose", if *lose_unsynced { "unsynced" } else { "nothing" });
                }
                Effect::Clock { step_ms, drift_ppm, .. } => {
                    if *step_ms != 0 {
                        let sign = if *step_ms < 0 { "-" } else { "" };
                        page.text("step", &format!("{sign}{}ms", step_ms.unsigned_abs()));
                    }
                    page.raw("drift_ppm", drift_ppm);
                }
                Effect::Disk { sync_ns, .. } => page.time("sync", *sync_ns),
                Effect::PathCut { .. }
                | Effect::NewAddress { .. }
                | Effect::NatRebind { .. }
                | Effect::AppKill { .. }
                | Effect::Suspend { .. }
                | Effect::Region { .. }
                | Effect::Edge { .. } => {}
            }
        }
    }

    fn write_end(&self, page: &mut Page) {
        page.head("[liveness]");
        page.text(
            "heal",
            match self.liveness.heal {
                Heal::All => "all",
                Heal::Core => "core",
                Heal::Nothing => "nothing",
            },
        );
        page.time("within", self.liveness.within_ns);
        let expect = &self.expect;
        page.head("[expect]");
        let times = [("converge_within", expect.converge_within_ns), ("deliver_p99", expect.deliver_p99_ns)];
        times.into_iter().filter_map(|(key, ns)| Some((key, ns?))).for_each(|(key, ns)| page.time(key, ns));
        let numbers = [
            ("connects_per_second", expect.connects_per_second),
            ("bytes_per_hour", expect.bytes_per_hour),
            ("wakeups_per_hour", expect.wakeups_per_hour),
            ("presence_changes", expect.presence_changes),
        ];
        numbers.into_iter().filter_map(|(key, most)| Some((key, most?))).for_each(|(key, most)| page.raw(key, most));
        page.raw("failures", expect.failures);
        page.raw("unacked", expect.unacked);
        page.raw("may_lose", list(&expect.may_lose));
        page.raw("unhit", list(&expect.unhit));
        if !expect.recover_within_ns.is_empty() {
            page.head("[expect.recover_within]");
            expect.recover_within_ns.iter().for_each(|(fault, ns)| page.time(&quoted(fault), *ns));
        }
        if !self.sometimes.is_empty() {
            page.head("[sometimes]");
            self.sometimes.iter().for_each(|(name, least)| page.raw(name, least));
        }
    }
}

fn write_device(device: &DevicePlan, page: &mut Page) {
    page.head("[[device]]");
    page.text("id", &device.id);
    page.text("user", &device.user);
    page.text("place", &device.place);
    page.time("starts", device.starts_ns);
    page.text("dispatch", &device.dispatch);
    for interface in &device.interfaces {
        let mut entries = vec![("label", quoted(&interface.profile))];
        entries.extend(links::entries(&interface.link));
        entries.push(("address", quoted(&interface.address.to_string())));
        if let Some((nat, outside)) = &interface.nat {
            entries.push(("nat", nat_text(nat)));
            entries.push(("outside", quoted(&outside.to_string())));
        }
        page.raw(&format!("iface.{}", interface.name), links::table(&entries));
    }
}

fn target(target: &Target) -> &str {
    match target {
        Target::User(name) | Target::Group(name) => name,
    }
}

/// What an effect hits, as a scenario names it.
pub(crate) fn target_of(effect: &Effect) -> String {
    let way = |ways: Ways| match (ways.up, ways.down) {
        (true, false) => ".up",
        (false, true) => ".down",
        _ => "",
    };
    let part = |device: &str, interface: &Option<String>| match interface {
        Some(interface) => format!("{device}.{interface}"),
        None => device.to_owned(),
    };
    match effect {
        Effect::LinkOutage { device, interface, ways, .. } | Effect::LinkChange { device, interface, ways, .. } => {
            format!("{}{}", part(device, interface), way(*ways))
        }
        Effect::PathCut { a, b, ways } | Effect::PathChange { a, b, ways, .. } => match (ways.up, ways.down) {
            (true, false) => format!("{a}->{b}"),
            (false, true) => format!("{b}->{a}"),
            _ => format!("{a}<->{b}"),
        },
        Effect::Block { device, interface, .. }
        | Effect::NewAddress { device, interface }
        | Effect::NatRebind { device, interface } => part(device, interface),
        Effect::HandOver { device, .. } | Effect::AppKill { device } | Effect::Suspend { device } => device.clone(),
        Effect::Region { region: name, .. }
        | Effect::Edge { edge: name, .. }
        | Effect::Clock { node: name, .. }
        | Effect::Disk { region: name, .. } => name.clone(),
    }
}
