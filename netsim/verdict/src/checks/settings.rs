//! What users set or erase is so everywhere in the end.
//!
//! Of a thing that was set (a title, whether a conversation is muted) all devices that know it say the same, and it is
//! what some device set last: of one device's own writings only the last can count. Which of two devices' last writings
//! counts is the system's to say.
//!
//! A message that was erased stands in no timeline in the end, and no region holds its content.
//!
//! Left out are devices beyond reach (see [`crate::concern`]) and, of titles, devices of users that are no members in
//! the end.

use std::collections::{BTreeMap, BTreeSet};

use crate::concern::BeyondReach;
use crate::facts::Facts;
use crate::findings::{Findings, names};

pub(crate) fn check(facts: &Facts<'_>, beyond: &BeyondReach<'_>, findings: &mut Findings) {
    registers(facts, beyond, findings);
    for (conversation, of) in &facts.timelines {
        for (device, timeline) in of.iter().filter(|(device, _)| !beyond.devices.contains(*device)) {
            for id in timeline.messages.iter().filter(|id| facts.erased.contains_key(id.as_str())) {
                findings.fail("erasure", timeline.at_ns, || {
                    format!("{id} was erased, and {device} shows it in {conversation} in the end")
                });
            }
        }
    }
    for (region, message) in &facts.kept {
        findings.fail("erasure", facts.last_ns, || {
            format!("{message} was erased, and {region} holds its content in the end")
        });
    }
}

fn registers(facts: &Facts<'_>, beyond: &BeyondReach<'_>, findings: &mut Findings) {
    for (register, writings) in &facts.set {
        let (conversation, what, owner) = register;
        let members = facts.members.get(conversation);
        let stays = |user: &str| {
            let spans = members.and_then(|users| users.get(user));
            spans.and_then(|spans| spans.last()).is_some_and(|(_, until)| *until == u64::MAX)
        };
        let last: BTreeMap<&str, &str> = writings.iter().copied().collect();
        let allowed: BTreeSet<&str> = last.into_values().collect();
        let told = facts.settings.get(register);
        let mut first: Option<(&str, &str)> = None;
        for (device, user) in &facts.run.cast.devices {
            let (device, user) = (device.as_str(), user.as_str());
            let knows = owner.is_none_or(|owner| owner == user) && stays(user);
            if !knows || beyond.devices.contains(device) {
                continue;
            }
            let Some(value) = told.and_then(|told| told.get(device)).copied() else {
                findings.fail("settings", facts.last_ns, || {
                    format!("{device} says nothing of {what} of {conversation} in the end")
                });
                continue;
            };
            if !allowed.contains(value) {
                findings.fail("settings", facts.last_ns, || {
                    let of = names(allowed.iter().copied());
                    format!("{what} of {conversation} is {value:?} on {device} in the end; set last was {of}")
                });
            } else if let Some((other, otherwise)) = first.filter(|(_, otherwise)| *otherwise != value) {
                findings.fail("settings", facts.last_ns, || {
                    format!(
                        "{what} of {conversation} is {value:?} on {device} in the end, and {otherwise:?} on {other}"
                    )
                });
            }
            first.get_or_insert((device, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Event;
    use crate::examples::Example;

    fn set(example: Example, device: &str, what: &str, value: &str) -> Example {
        let (device, conversation) = (device.into(), "alice+bob".into());
        example.event(Event::Set { device, conversation, what: what.into(), value: value.into() })
    }

    /// In the order of the devices.
    fn says(example: Example, what: &str, values: &[(&str, &str)]) -> Vec<String> {
        let told = values.iter().fold(example, |e, (device, value)| {
            let (device, conversation) = ((*device).to_owned(), "alice+bob".to_owned());
            e.event(Event::Setting { device, conversation, what: what.into(), value: (*value).into() })
        });
        told.ends_well().found()
    }

    const ALL: [&str; 4] = ["alice-phone", "alice-tablet", "bob-phone", "bob-tablet"];

    fn title(example: Example, of: [&str; 4]) -> Vec<String> {
        says(example, "title", &ALL.into_iter().zip(of).collect::<Vec<_>>())
    }

    #[test]
    fn a_title_is_what_was_set_last_on_every_device() {
        let twice = || set(set(Example::good(), "alice-phone", "title", "a"), "alice-phone", "title", "b");
        assert_eq!(title(twice(), ["b"; 4]), [""; 0]);
        assert_eq!(title(twice(), ["a"; 4]), ["settings"]);
        assert_eq!(title(twice(), ["b", "b", "b", "a"]), ["settings"]);
        let none = says(twice(), "title", &[("alice-phone", "b"), ("alice-tablet", "b"), ("bob-phone", "b")]);
        assert_eq!(none, ["settings"]);
    }

    #[test]
    fn of_two_devices_writings_either_counts_on_all_devices() {
        let both = || set(set(Example::good(), "alice-phone", "title", "a"), "bob-phone", "title", "b");
        assert_eq!(title(both(), ["a"; 4]), [""; 0]);
        assert_eq!(title(both(), ["b"; 4]), [""; 0]);
        assert_eq!(title(both(), ["a", "a", "b", "b"]), ["settings"]);
    }

    #[test]
    fn what_is_a_users_own_is_asked_of_his_devices_only() {
        let muted = || set(Example::good(), "alice-phone", "muted", "yes");
        assert_eq!(says(muted(), "muted", &[("alice-phone", "yes"), ("alice-tablet", "yes")]), [""; 0]);
        let other = [("alice-phone", "yes"), ("alice-tablet", "yes"), ("bob-phone", "no")];
        assert_eq!(says(muted(), "muted", &other), [""; 0]);
        assert_eq!(says(muted(), "muted", &[("alice-phone", "yes"), ("alice-tablet", "no")]), ["settings"]);
    }

    #[test]
    fn what_was_erased_is_shown_nowhere_and_held_nowhere() {
        let erased = |example: Example| {
            example.event(Event::Erased { device: "alice-phone".into(), message: "alice-phone/1".into() })
        };
        assert_eq!(erased(Example::good()).ends_well().found(), ["erasure"]);
        let gone = |e: Example| ALL.into_iter().fold(e, |e, d| e.drop_from_timeline(d, "alice-phone/1"));
        assert_eq!(gone(erased(Example::good())).found(), [""; 0]);
        let kept = Event::Kept { region: "eu".into(), message: "alice-phone/1".into() };
        assert_eq!(gone(erased(Example::good()).event(kept)).found(), ["erasure"]);
    }
}
