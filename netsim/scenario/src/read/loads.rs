//! Who writes to whom, how often and how much; and what users do besides.

use std::collections::BTreeSet;

use crate::draws::Draws;
use crate::fields::{Fields, things};
use crate::limits::{BODY_BYTES_MAX, BODY_BYTES_MIN, EVERY_NS_MIN};
use crate::plan::{Action, ActionPlan, DevicePlan, GroupPlan, LoadPlan, Size, Target};
use crate::problem::{Bag, instead};
use crate::read::spans::Spans;
use crate::read::{id_flaw, matches, when};
use crate::tree::{Node, Table, Value};
use crate::units;

/// Who takes part.
pub(crate) struct Cast<'p> {
    pub devices: &'p [DevicePlan],
    pub groups: &'p [GroupPlan],
    pub users: BTreeSet<&'p str>,
}

impl<'p> Cast<'p> {
    pub fn new(devices: &'p [DevicePlan], groups: &'p [GroupPlan]) -> Self {
        Self { devices, groups, users: devices.iter().map(|device| device.user.as_str()).collect() }
    }

    /// A user or group.
    fn target(&self, f: &Fields<'_>, key: &'static str) -> Option<Target> {
        let name = f.need_text(key, "\"bob\", a user, or a group's id")?;
        if self.groups.iter().any(|group| group.id == name) {
            return Some(Target::Group(name.to_owned()));
        }
        if self.users.contains(name) {
            return Some(Target::User(name.to_owned()));
        }
        if let Some(device) = self.devices.iter().find(|device| device.id == name) {
            f.note(key, format!("\"{name}\" is a device, and one writes to users: write \"{}\"", device.user));
            return None;
        }
        let known: Vec<&str> = self.users.iter().copied().chain(self.groups.iter().map(|g| g.id.as_str())).collect();
        f.note(key, format!("no user or group \"{name}\": {}", instead(name, known)));
        None
    }

    /// Devices of an id, of a pattern, or of a user with only one.
    fn devices_of(&self, f: &Fields<'_>, key: &'static str) -> Vec<&'p DevicePlan> {
        let Some(name) = f.need_text(key, "\"alice-phone\", or a pattern as \"herd-*\"") else { return Vec::new() };
        let found: Vec<&DevicePlan> = self.devices.iter().filter(|device| matches(name, &device.id)).collect();
        if !found.is_empty() {
            return found;
        }
        let own: Vec<&DevicePlan> = self.devices.iter().filter(|device| device.user == name).collect();
        if own.len() > 1 {
            let ids: Vec<&str> = own.iter().map(|device| device.id.as_str()).collect();
            f.note(key, format!("user \"{name}\" has several devices: write one of {}", ids.join(", ")));
            return Vec::new();
        }
        if own.is_empty() {
            let known = instead(name, self.devices.iter().map(|device| device.id.as_str()));
            f.note(key, format!("no device \"{name}\": {known}"));
        }
        own
    }

    fn is_member(&self, user: &str, target: &Target) -> bool {
        match target {
            Target::User(_) => true,
            Target::Group(id) => {
                self.groups.iter().any(|group| group.id == *id && group.members.iter().any(|member| member == user))
            }
        }
    }
}

pub(crate) fn read(root: &Table, cast: &Cast<'_>, duration_ns: u64, bag: &Bag) -> Vec<LoadPlan> {
    let (mut loads, mut ids) = (Vec::new(), BTreeSet::new());
    for (number, node) in things(root, "load", bag).into_iter().enumerate() {
        let Some(f) = Fields::of("a load", node, bag) else { continue };
        let base = f.text("id").map_or_else(|| format!("load-{}", number + 1), str::to_owned);
        let f = f.called(format!("load \"{base}\""));
        if let Some(flaw) = id_flaw(&base) {
            f.note("id", flaw);
        }
        let (to, from) = (cast.target(&f, "to"), cast.devices_of(&f, "from"));
        let pace = pace(&f);
        let size = f.get("size").and_then(|node| size(node, &f)).unwrap_or(Size::Fixed(100));
        let (from_ns, until_ns) = f.times("during").unwrap_or((0, duration_ns));
        if from_ns >= duration_ns || until_ns > duration_ns || from_ns == until_ns {
            let wanted = format!("write a span as \"0s..{}\"", units::time_text(duration_ns));
            f.note("during", format!("a load runs for some time within the duration of the run: {wanted}"));
        }
        let count = f.whole("count", 1, u64::MAX);
        f.done();
        let many = f.text("from").is_some_and(|from| from.contains('*'));
        let (Some(to), Some((every_ns, poisson))) = (to, pace) else { continue };
        for device in from {
            if to == Target::User(device.user.clone()) {
                // A pattern means everybody else.
                if !many {
                    f.note("to", format!("\"{}\" writes to itself: name another user", device.user));
                }
                continue;
            }
            if !cast.is_member(&device.user, &to) {
                f.note("from", format!("\"{}\" is not in that group: add it to its members", device.user));
                continue;
            }
            let id = if many { format!("{base}@{}", device.id) } else { base.clone() };
            if !ids.insert(id.clone()) {
                f.note("id", format!("a second load \"{id}\": give it another id, or leave one out"));
            }
            let (from, to) = (device.id.clone(), to.clone());
            loads.push(LoadPlan { id, from, to, every_ns, poisson, size, from_ns, until_ns, count });
        }
    }
    loads
}

/// The mean time between two messages, and whether it varies.
fn pace(f: &Fields<'_>) -> Option<(u64, bool)> {
    let (rate, every) = (f.get("rate").is_some(), f.get("every").is_some());
    let every_ns = match (rate, every) {
        (true, true) => {
            f.note("every", format!("{} has both \"rate\" and \"every\": keep one", f.what));
            return None;
        }
        (false, false) => {
            f.missing("rate", "\"2/s\", or every = \"500ms\"");
            return None;
        }
        (true, false) => f.unit("rate", units::frequency)?,
        (false, true) => f.time("every")?,
    };
    if every_ns < EVERY_NS_MIN {
        let key = if rate { "rate" } else { "every" };
        f.note(key, "more than 1000 messages a second of one device are a flood: write \"1000/s\" or less");
        return None;
    }
    let poisson = f.one_of("spacing", &[("poisson", true), ("even", false)]).unwrap_or(rate);
    Some((every_ns, poisson))
}

/// `100`, `"uniform(80..4000)"`, `"zipf(80..4000)"`.
fn size(node: &Node, f: &Fields<'_>) -> Option<Size> {
    let length = |text: &str| {
        let number = text.parse::<u32>().ok().filter(|bytes| (BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(bytes));
        let wanted = format!("bodies have {BODY_BYTES_MIN} to {BODY_BYTES_MAX} bytes");
        number.map(u64::from).ok_or_else(|| format!("\"{text}\" is no length of a body: {wanted}"))
    };
    let read = |text: &str| -> Result<Size, String> {
        let whole = |bytes: u64| u32::try_from(bytes).unwrap_or(BODY_BYTES_MAX);
        let inside = |name: &str| text.strip_prefix(name)?.strip_suffix(')');
        if let Some(inside) = inside("zipf(") {
            return units::range(inside, length).map(|(low, high)| Size::Zipf(whole(low), whole(high)));
        }
        if let Some(inside) = inside("uniform(") {
            return units::range(inside, length).map(|(low, high)| Size::Uniform(whole(low), whole(high)));
        }
        if text.parse::<i64>().is_err() {
            return Err(format!("\"{text}\" is no size: write 100, \"uniform(80..4000)\" or \"zipf(80..4000)\""));
        }
        length(text).map(|bytes| Size::Fixed(whole(bytes)))
    };
    if matches!(node.value, Value::List(_) | Value::Table(_)) {
        f.note("size", "\"size\" is a number of bytes, \"uniform(80..4000)\" or \"zipf(80..4000)\"");
        return None;
    }
    crate::fields::unit(node, "size", f.bag(), read)
}

pub(crate) fn actions(
    root: &Table,
    cast: &Cast<'_>,
    spans: &Spans,
    duration_ns: u64,
    draws: &Draws,
    bag: &Bag,
) -> Vec<ActionPlan> {
    let mut actions = Vec::new();
    for (number, node) in things(root, "action", bag).into_iter().enumerate() {
        let Some(f) = Fields::of("an action", node, bag) else { continue };
        let id = f.text("id").map_or_else(|| format!("action-{}", number + 1), str::to_owned);
        let f = f.called(format!("action \"{id}\""));
        let written = when::read(&f);
        let found = cast.devices_of(&f, "device");
        let what = what(&f, cast);
        f.done();
        let Some(written) = written else { continue };
        spans.check(&written, &f, duration_ns);
        if let when::Written::On { trigger, .. } = &written {
            known_device(trigger.device.as_deref(), cast, &f);
        }
        for device in found {
            let Some(what) = what.clone() else { continue };
            let when = written.draw(0, |range| draws.within("action", &id, "at", range));
            actions.push(ActionPlan { when, device: device.id.clone(), what });
        }
    }
    actions
}

/// `of` of a trigger names a device.
pub(crate) fn known_device(of: Option<&str>, cast: &Cast<'_>, f: &Fields<'_>) {
    if let Some(of) = of.filter(|of| !cast.devices.iter().any(|device| device.id == *of)) {
        let known = instead(of, cast.devices.iter().map(|device| device.id.as_str()));
        f.note("of", format!("no device \"{of}\": {known}"));
    }
}

/// What an action does, by its word.
pub(crate) const ACTIONS: [&str; 15] = [
    "read",
    "read-all",
    "mute",
    "unmute",
    "title",
    "erase",
    "add",
    "remove",
    "foreground",
    "background",
    "metered",
    "unmetered",
    "put-away",
    "take-out",
    "watch",
];

fn what(f: &Fields<'_>, cast: &Cast<'_>) -> Option<Action> {
    let word = f.need_text("do", "\"read\"")?;
    let group = || match cast.target(f, "group")? {
        Target::Group(group) => Some(group),
        Target::User(user) => {
            f.note("group", format!("\"{user}\" is a user: name a group"));
            None
        }
    };
    let user = || {
        let user = f.need_text("user", "\"bob\"")?;
        if !cast.users.contains(user) {
            f.note("user", format!("no user \"{user}\": {}", instead(user, cast.users.iter().copied())));
        }
        Some(user.to_owned())
    };
    match word {
        "read" => cast.target(f, "conversation").map(Action::Read),
        "read-all" => Some(Action::ReadAll),
        "mute" => cast.target(f, "conversation").map(Action::Mute),
        "unmute" => cast.target(f, "conversation").map(Action::Unmute),
        "foreground" => Some(Action::Foreground(true)),
        "background" => Some(Action::Foreground(false)),
        "metered" => Some(Action::Metered(true)),
        "unmetered" => Some(Action::Metered(false)),
        "put-away" => Some(Action::Away(true)),
        "take-out" => Some(Action::Away(false)),
        "watch" => user().map(Action::Watch),
        "erase" => cast.target(f, "conversation").map(Action::Erase),
        "title" => {
            let title = f.need_text("title", "\"Plans\"").map(str::to_owned);
            group().zip(title).map(|(group, title)| Action::Title { group, title })
        }
        "add" => group().zip(user()).map(|(group, user)| Action::Add { group, user }),
        "remove" => group().zip(user()).map(|(group, user)| Action::Remove { group, user }),
        _ => {
            f.note("do", format!("\"{word}\" is nothing that users do: {}", instead(word, ACTIONS)));
            None
        }
    }
}
