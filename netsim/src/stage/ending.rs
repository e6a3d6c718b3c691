//! The end of a run: whether all is calm, and what regions and devices hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tern_core::buckets::LEFT;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, UserId};
use tern_core::store::{Range, RowRecord, Store};
use tern_netsim_link::Cause;
use tern_netsim_scenario::Plan;
use tern_netsim_scenario::plan::Action;
use tern_netsim_verdict::{Event, Line, LinkSample};

use super::app::{TITLE, name_in, settings};
use super::{PlayError, Stage, nanos};
use crate::access::Forgotten;
use crate::limits::{CALM_FOR, LOOK_EVERY};
use crate::node::HostState;

/// FNV-1a, 64 bits: the same in every version and on every machine.
struct Digest(u64);

impl Digest {
    fn mix(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// What a region holds of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    heads: String,
    digest: String,
}

impl Stage {
    /// Waits until nothing is on its way any more. Whether that came to be, and what was waiting if not.
    pub(super) async fn calm_down(&mut self) -> Result<(bool, Vec<String>), PlayError> {
        let until_ns = self.now_ns().saturating_add(self.plan.liveness.within_ns);
        let mut calm_since: Option<u64> = None;
        loop {
            let now_ns = self.now_ns();
            let waiting = self.waiting().await?;
            if waiting.is_empty() {
                // Rows and marks follow lazily: it has to stay so for a while.
                let since_ns = *calm_since.get_or_insert(now_ns);
                if now_ns.saturating_sub(since_ns) >= nanos(CALM_FOR) {
                    return Ok((true, Vec::new()));
                }
            } else {
                calm_since = None;
                if now_ns >= until_ns {
                    return Ok((false, waiting));
                }
            }
            self.run_until(now_ns.saturating_add(nanos(LOOK_EVERY))).await?;
        }
    }

    /// What still waits, cheap things first: while there are some, nothing else is looked at.
    async fn waiting(&self) -> Result<Vec<String>, PlayError> {
        let mut waiting = Vec::new();
        for seat in self.devices.values() {
            if let Some(app) = seat.app.as_ref().filter(|app| !app.is_calm()) {
                waiting.push(app.standing());
            }
        }
        if !waiting.is_empty() {
            return Ok(waiting);
        }
        for (label, devices) in &self.audience {
            let mut circles: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
            for (device, circle) in devices {
                let Some(app) = self.devices.get(device).and_then(|seat| seat.app.as_ref()) else { continue };
                match app.timeline(label) {
                    Ok((messages, _)) => {
                        circles.entry(circle).or_default().insert(device, messages.len());
                    }
                    Err(error) => waiting.push(format!("{device} can't show {label}: {error}")),
                }
            }
            for lists in circles.values() {
                let lengths: BTreeSet<usize> = lists.values().copied().collect();
                if lengths.len() > 1 {
                    waiting.push(format!("devices differ in how much they show of {label}: {lists:?}"));
                }
            }
        }
        waiting.extend(self.unsettled());
        if !waiting.is_empty() {
            return Ok(waiting);
        }
        for (region, message) in self.kept().await? {
            waiting.push(format!("{region} holds the content of {message}, which was erased"));
        }
        for (label, id) in self.known() {
            let mut all = BTreeMap::new();
            for region in self.running() {
                all.insert(region.clone(), self.held(&region, id).await?);
            }
            let distinct: Vec<&Held> = all.values().collect();
            if distinct.windows(2).any(|two| two[0] != two[1]) {
                waiting.push(format!("regions differ in {label}: {all:?}"));
            }
        }
        if !waiting.is_empty() {
            return Ok(waiting);
        }
        let mut rows: BTreeMap<(String, String), BTreeMap<String, String>> = BTreeMap::new();
        for region in self.running() {
            for (user, label, row) in self.rows(&region).await? {
                rows.entry((user, label)).or_default().insert(region.clone(), row);
            }
        }
        for ((user, label), by_region) in rows {
            let distinct: BTreeSet<&String> = by_region.values().collect();
            if distinct.len() > 1 || by_region.len() != self.running().len() {
                waiting.push(format!("regions differ in {user}'s row of {label}: {by_region:?}"));
            }
        }
        Ok(waiting)
    }

    /// Tells what everybody holds, and ends the history.
    pub(super) async fn finish(mut self, quiet: bool, waiting: Vec<String>) -> Result<Vec<Line>, PlayError> {
        for number in self.rig.holding() {
            self.rig.lift(number)?;
        }
        for (device, app) in self.devices.iter().filter_map(|(device, seat)| Some((device, seat.app.as_ref()?))) {
            tracing::debug!(device, "in the end\n{}", app.client().diagnostics());
        }
        self.sample()?;
        let over_ns = self.now_ns();
        // The world is older than the run.
        let older_ns = nanos(self.world.elapsed()).saturating_sub(over_ns);
        for device in self.devices.keys() {
            let counts = self.world.host_counts(device)?;
            self.scribe.tell(Event::Traffic {
                device: device.clone(),
                up_bytes: counts.sent_bytes,
                down_bytes: counts.received_bytes,
                up_packets: counts.sent_packets,
                down_packets: counts.received_packets,
                wakeups: counts.wakeups,
                over_ns,
            });
            for Forgotten { interface, died_ns, again_ns } in self.world.forgotten(device)? {
                let device = device.clone();
                let (died_ns, again_ns) = (died_ns.saturating_sub(older_ns), again_ns.saturating_sub(older_ns));
                self.scribe.tell(Event::Forgotten { device, interface, died_ns, again_ns });
            }
        }
        for (label, devices) in &self.audience {
            for device in devices.keys() {
                let Some(app) = self.devices.get(device).and_then(|seat| seat.app.as_ref()) else { continue };
                let event = match app.timeline(label) {
                    Ok((messages, unread)) => Event::Timeline {
                        device: device.clone(),
                        conversation: label.clone(),
                        messages,
                        unread: Some(unread),
                    },
                    Err(text) => Event::Broken { who: device.clone(), text: format!("{label}: {text}") },
                };
                self.scribe.tell(event);
            }
        }
        for (conversation, what, device, value) in self.settings() {
            let what = what.to_owned();
            self.scribe.tell(match value {
                Ok(value) => Event::Setting { device, conversation, what, value },
                Err(text) => Event::Broken { who: device, text: format!("{what} of {conversation}: {text}") },
            });
        }
        for (region, message) in self.kept().await? {
            self.scribe.tell(Event::Kept { region, message });
        }
        for region in self.running() {
            for (conversation, id) in self.known() {
                let Held { heads, digest } = self.held(&region, id).await?;
                self.scribe.tell(Event::Log { region: region.clone(), conversation, heads, digest });
            }
            for (user, conversation, row) in self.rows(&region).await? {
                self.scribe.tell(Event::Row { region: region.clone(), user, conversation, row });
            }
        }
        if self.world.panics() > 0 {
            let text = format!("{} tasks of nodes panicked; see standard error", self.world.panics());
            self.scribe.tell(Event::Broken { who: "the system".into(), text });
        }
        let shape = self.world.shape();
        let end = Event::End { quiet, waiting, shape: Some(format!("{:016x}", shape.hash)), packets: shape.packets };
        Ok(self.scribe.finish(end))
    }

    /// What devices say of what users of this scenario set: conversation, what, device, value.
    fn settings(&self) -> Vec<(String, &'static str, String, Result<String, String>)> {
        let mut all = Vec::new();
        for (label, what) in settings(&self.plan) {
            for device in self.audience.get(&label).into_iter().flat_map(BTreeMap::keys) {
                let Some(app) = self.devices.get(device).and_then(|seat| seat.app.as_ref()) else { continue };
                all.push((label.clone(), what, device.clone(), app.setting(&label, what)));
            }
        }
        all
    }

    /// What devices can't tell of settings, or tell differently: of a title all members, of the rest the devices of one
    /// user.
    fn unsettled(&self) -> Vec<String> {
        let mut waiting = Vec::new();
        let mut told: BTreeMap<_, BTreeMap<String, String>> = BTreeMap::new();
        for (label, what, device, value) in self.settings() {
            let user = self.plan.devices.iter().find(|one| one.id == device).map(|one| &one.user);
            match value {
                Ok(value) => {
                    let whose = user.filter(|_| what != TITLE);
                    told.entry((label, what, whose)).or_default().insert(device, value);
                }
                Err(error) => waiting.push(format!("{device} can't tell {what} of {label}: {error}")),
            }
        }
        for ((label, what, _), by_device) in told {
            if by_device.values().collect::<BTreeSet<_>>().len() > 1 {
                waiting.push(format!("devices differ in {what} of {label}: {by_device:?}"));
            }
        }
        waiting
    }

    /// Erased messages whose content a region still holds.
    async fn kept(&self) -> Result<BTreeSet<(String, String)>, PlayError> {
        let (mut kept, erased) = (BTreeSet::new(), self.scribe.erased());
        if erased.is_empty() {
            return Ok(kept);
        }
        for region in self.running() {
            for (_, id) in self.known() {
                for entry in self.entries(&region, id).await? {
                    let name = name_in(&entry.body);
                    if entry.kind == 0 && erased.contains(&name) {
                        kept.insert((region.clone(), name));
                    }
                }
            }
        }
        Ok(kept)
    }

    /// All conversations, as the system calls them.
    fn known(&self) -> Vec<(String, ConvId)> {
        let labels = self.audience.keys();
        labels.filter_map(|label| self.names.id(label).map(|id| (label.clone(), id))).collect()
    }

    /// Regions whose core runs.
    fn running(&self) -> Vec<String> {
        let all = self.plan.regions.iter().map(|region| region.name.clone());
        all.filter(|name| {
            self.cluster.core(name).is_some() && self.cluster.host(name).is_ok_and(|host| host.state() == HostState::Up)
        })
        .collect()
    }

    async fn held(&self, region: &str, conversation: ConvId) -> Result<Held, PlayError> {
        let store = self.cluster.store(region)?;
        let image = store.conversation(conversation).await.map_err(super::ClusterError::Store)?;
        let mut digest = Digest(0xcbf2_9ce4_8422_2325);
        for entry in self.entries(region, conversation).await? {
            digest.mix(format!("{entry:?}").as_bytes());
        }
        Ok(Held { heads: heads(&image.heads), digest: format!("{:016x}", digest.0) })
    }

    /// All entries that a region holds of a conversation, log by log.
    async fn entries(&self, region: &str, conversation: ConvId) -> Result<Vec<Arc<Entry>>, PlayError> {
        let store = self.cluster.store(region)?;
        let image = store.conversation(conversation).await.map_err(super::ClusterError::Store)?;
        let mut all = Vec::new();
        for (origin, head) in &image.heads {
            let range = Range {
                conversation,
                origin: *origin,
                from: 1,
                to: *head,
                max_entries: usize::MAX,
                max_bytes: usize::MAX,
                backwards: false,
            };
            all.extend(store.range(range).await.map_err(super::ClusterError::Store)?);
        }
        Ok(all)
    }

    /// (user, conversation, row) of everybody who takes part.
    async fn rows(&self, region: &str) -> Result<Vec<(String, String, String)>, PlayError> {
        let users: BTreeSet<String> = self.plan.devices.iter().map(|device| device.user.clone()).collect();
        let store = self.cluster.store(region)?;
        let mut all = Vec::new();
        for user in users {
            let id = UserId::new(&user).map_err(|error| PlayError::Name(error.to_string()))?;
            for (conversation, row) in store.rows(id).await.map_err(super::ClusterError::Store)? {
                if let Some(label) = self.names.label(conversation) {
                    all.push((user.clone(), label, row_text(&row)));
                }
            }
        }
        Ok(all)
    }
}

/// All conversations in which something was or could be written, with those who are members at the end.
pub(crate) fn members(plan: &Plan) -> BTreeMap<String, Vec<String>> {
    let mut all = super::headline(plan, &super::Heading::default(), "").cast.conversations;
    for action in &plan.actions {
        match &action.what {
            Action::Add { group, user } => {
                let members = all.entry(group.clone()).or_default();
                if !members.contains(user) {
                    members.push(user.clone());
                }
            }
            Action::Remove { group, user } => all.entry(group.clone()).or_default().retain(|one| one != user),
            _ => {}
        }
    }
    all
}

/// By conversation, the devices of those who are members at the end, each with whom it must agree in how much it shows:
/// who came later, or came back, is not shown what was written without him, so only his own devices are like him.
pub(super) type Audience = BTreeMap<String, BTreeMap<String, String>>;

/// See [`Audience`].
pub(super) fn audience(plan: &Plan) -> Audience {
    let mut devices: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for device in &plan.devices {
        devices.entry(&device.user).or_default().push(&device.id);
    }
    let moved: BTreeSet<(&str, &str)> = plan
        .actions
        .iter()
        .filter_map(|action| match &action.what {
            Action::Add { group, user } | Action::Remove { group, user } => Some((group.as_str(), user.as_str())),
            _ => None,
        })
        .collect();
    let mut all = Audience::new();
    for (label, users) in members(plan) {
        let of = all.entry(label.clone()).or_default();
        for user in users {
            let circle = if moved.contains(&(label.as_str(), user.as_str())) { user.as_str() } else { "" };
            for device in devices.get(user.as_str()).into_iter().flatten() {
                of.insert((*device).to_owned(), circle.to_owned());
            }
        }
    }
    all
}

/// All of a row that regions have in common: not the revision, nor what was counted, which depends on the order in which
/// copies came. Of a group that was left only the membership counts (R8): how much of the log below the cut a region has
/// told of is no news for who has left.
fn row_text(row: &RowRecord) -> String {
    if row.state == LEFT {
        return format!("left generation {}", row.generation);
    }
    let RowRecord { heads: held, read, peer_read, from, state, generation, peer, last_hlc, rev: _, counted: _ } = row;
    format!(
        "heads {} read {} peer_read {} from {} state {state} generation {generation} peer {} last_hlc {last_hlc}",
        heads(held),
        heads(read),
        heads(peer_read),
        heads(from),
        peer.as_ref().map_or("-", |peer| peer.as_str()),
    )
}

fn heads(heads: &tern_core::ids::Heads) -> String {
    let all: Vec<String> = heads.iter().map(|(origin, head)| format!("{origin}:{head}")).collect();
    format!("[{}]", all.join(" "))
}

/// The name of a cause in histories.
pub(crate) fn cause(cause: Cause) -> String {
    match cause {
        Cause::TooLong(_) => "too-long",
        Cause::BlackHole => "black-hole",
        Cause::QueueFull => "queue-full",
        Cause::Codel => "codel",
        Cause::Outage => "outage",
        Cause::Loss => "loss",
        Cause::Corrupt => "corrupt",
    }
    .to_owned()
}

/// What a link did between two looks.
pub(crate) fn since(before: &LinkSample, now: LinkSample) -> LinkSample {
    let dropped = now
        .dropped
        .iter()
        .map(|(cause, count)| (cause.clone(), count.saturating_sub(before.dropped.get(cause).copied().unwrap_or(0))));
    LinkSample {
        over_ns: now.over_ns - before.over_ns,
        sent: now.sent - before.sent,
        sent_bytes: now.sent_bytes - before.sent_bytes,
        delivered: now.delivered - before.delivered,
        delivered_bytes: now.delivered_bytes - before.delivered_bytes,
        dropped: dropped.filter(|(_, count)| *count > 0).collect(),
        ..now
    }
}
