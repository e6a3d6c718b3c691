//! A plan of which something was left out, made valid again.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::{Action, Effect, FaultPlan, Plan, Target, When};

/// Takes out what refers to what is gone, or lies after the end. Anchors of faults that are gone become what they
/// stood for, by the plan `before`.
pub(super) fn mend(plan: &mut Plan, before: &Plan) {
    groups(plan);
    let users: BTreeSet<String> = plan.devices.iter().map(|device| device.user.clone()).collect();
    let devices: BTreeSet<String> = plan.devices.iter().map(|device| device.id.clone()).collect();
    let members: BTreeMap<String, Vec<String>> =
        plan.groups.iter().map(|group| (group.id.clone(), group.members.clone())).collect();
    let user_of: BTreeMap<String, String> =
        plan.devices.iter().map(|device| (device.id.clone(), device.user.clone())).collect();
    let reachable = |target: &Target| match target {
        Target::User(user) => users.contains(user),
        Target::Group(group) => members.contains_key(group),
    };
    let duration_ns = plan.duration_ns;
    plan.loads.iter_mut().for_each(|load| load.until_ns = load.until_ns.min(duration_ns));
    plan.loads.retain(|load| {
        let in_it =
            |group: &String| members.get(group).zip(user_of.get(&load.from)).is_some_and(|(all, u)| all.contains(u));
        load.from_ns < load.until_ns
            && devices.contains(&load.from)
            && match &load.to {
                Target::User(user) => users.contains(user),
                Target::Group(group) => in_it(group),
            }
    });
    plan.faults.retain(|fault| exists(plan_parts(&fault.effect), &devices, &plan.regions, &plan.paths));
    anchors(plan, before, &devices);
    plan.actions.retain(|action| {
        devices.contains(&action.device)
            && match &action.what {
                Action::Read(target) | Action::Mute(target) | Action::Unmute(target) | Action::Erase(target) => {
                    reachable(target)
                }
                Action::Watch(user) => users.contains(user),
                Action::ReadAll | Action::Foreground(_) | Action::Metered(_) | Action::Away(_) => true,
                Action::Title { group, .. } => members.contains_key(group),
                Action::Add { group, user } | Action::Remove { group, user } => {
                    members.contains_key(group) && users.contains(user)
                }
            }
    });
    let faults: BTreeSet<&String> = plan.faults.iter().map(|fault| &fault.id).collect();
    plan.expect.recover_within_ns.retain(|fault, _| faults.contains(fault));
    plan.expect.unhit.retain(|fault| faults.contains(fault));
}

/// Groups without their lost members; another one's device makes it if the creator's is gone.
fn groups(plan: &mut Plan) {
    let devices = &plan.devices;
    plan.groups.retain_mut(|group| {
        group.members.retain(|member| devices.iter().any(|device| device.user == *member));
        if devices.iter().any(|device| device.id == group.creator) {
            return true;
        }
        match devices.iter().find(|device| group.members.contains(&device.user)) {
            Some(device) => {
                group.creator = device.id.clone();
                true
            }
            None => false,
        }
    });
}

/// What an effect needs: a device, a region or edge or device, or a path.
enum Needs<'e> {
    Device(&'e str),
    Node(&'e str),
    Path(&'e str, &'e str),
}

fn plan_parts(effect: &Effect) -> Needs<'_> {
    match effect {
        Effect::LinkOutage { device, .. }
        | Effect::LinkChange { device, .. }
        | Effect::Block { device, .. }
        | Effect::HandOver { device, .. }
        | Effect::NewAddress { device, .. }
        | Effect::NatRebind { device, .. }
        | Effect::AppKill { device }
        | Effect::Suspend { device } => Needs::Device(device),
        Effect::PathCut { a, b, .. } | Effect::PathChange { a, b, .. } => Needs::Path(a, b),
        Effect::Region { region: node, .. }
        | Effect::Edge { edge: node, .. }
        | Effect::Clock { node, .. }
        | Effect::Disk { region: node, .. } => Needs::Node(node),
    }
}

fn exists(
    needs: Needs<'_>,
    devices: &BTreeSet<String>,
    regions: &[crate::plan::RegionPlan],
    paths: &[crate::plan::PathPlan],
) -> bool {
    match needs {
        Needs::Device(device) => devices.contains(device),
        Needs::Node(node) => {
            let is_edge = |region: &crate::plan::RegionPlan| {
                let number = node.strip_prefix(&region.name).and_then(|rest| rest.strip_prefix("-e"));
                number.and_then(|number| number.parse::<u8>().ok()).is_some_and(|n| n >= 2 && n <= region.edges + 1)
            };
            devices.contains(node) || regions.iter().any(|region| region.name == node || is_edge(region))
        }
        Needs::Path(a, b) => paths.iter().any(|path| (path.a == a && path.b == b) || (path.a == b && path.b == a)),
    }
}

/// Anchors without their faults become times or moments; what would happen after the end goes.
fn anchors(plan: &mut Plan, before: &Plan, devices: &BTreeSet<String>) {
    // Taking one out may take its anchor from another, which then may lie elsewhere: until nothing changes.
    loop {
        let kept: BTreeSet<String> = plan.faults.iter().map(|fault| fault.id.clone()).collect();
        let mend = |when: &mut When| {
            if let When::After { fault, .. } = when
                && !kept.contains(fault)
            {
                *when = resolved(when, &before.faults);
            }
        };
        plan.faults.iter_mut().for_each(|fault| mend(&mut fault.when));
        plan.actions.iter_mut().for_each(|action| mend(&mut action.when));
        let (faults, duration_ns) = (plan.faults.clone(), plan.duration_ns);
        let happens = |when: &When| match resolved(when, &faults) {
            When::At(ns) => ns < duration_ns,
            When::On { trigger, .. } => trigger.device.is_none_or(|device| devices.contains(&device)),
            When::After { .. } => false,
        };
        plan.faults.retain(|fault| happens(&fault.when));
        plan.actions.retain(|action| happens(&action.when));
        if plan.faults.len() == kept.len() {
            return;
        }
    }
}

/// What an anchor stands for: a time, or a moment and some time. An anchor in a circle stands for nothing.
fn resolved(when: &When, faults: &[FaultPlan]) -> When {
    let (mut later_ns, mut when) = (0_u64, when);
    for _ in 0..=faults.len() {
        match when {
            When::At(ns) => return When::At(ns.saturating_add(later_ns)),
            When::On { trigger, by_ns } => {
                return When::On { trigger: trigger.clone(), by_ns: by_ns.saturating_add(later_ns) };
            }
            When::After { fault, end, by_ns } => {
                let Some(anchor) = faults.iter().find(|one| one.id == *fault) else { return when.clone() };
                let lasts_ns = if *end { anchor.lasts_ns.unwrap_or(0) } else { 0 };
                later_ns = later_ns.saturating_add(*by_ns).saturating_add(lasts_ns);
                when = &anchor.when;
            }
        }
    }
    when.clone()
}
