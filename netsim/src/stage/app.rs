//! The app of a device: what a user does with the client SDK, and what he sees.
//!
//! It knows nothing of simulations: an `Env` and a store come from outside, and what happens goes to the
//! [`Scribe`]. What it must remember over a killed process (which message is which) lies in its [`Memory`], as the
//! user's own mind would keep it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tern_client::{
    Client, ConnectionState, Conversation, Draft, Event as Told, Events, FOR_EVER, GroupOptions, Message, MessageId,
    MessageState, NetInfo, Placed, Presence, UserId,
};
use tern_core::ids::ConvId;
use tern_netsim_scenario::Plan;
use tern_netsim_scenario::plan::{Action, Target};
use tern_netsim_verdict::Event;
use tokio::sync::Notify;

use super::scribe::Scribe;

/// What can be set, as histories call it, and its values where they are two.
pub const TITLE: &str = "title";
const MUTED: &str = "muted";
const YES: &str = "yes";
const NO: &str = "no";

/// What an app that is put away has to say must be said by then: what systems give it, at the least.
const PUT_AWAY_WITHIN: Duration = Duration::from_secs(5);

/// What a scenario's users set: conversation and what.
pub fn settings(plan: &Plan) -> BTreeSet<(String, &'static str)> {
    let user = |device: &str| {
        let of = plan.devices.iter().find(|one| one.id == device);
        of.map(|one| one.user.clone()).unwrap_or_default()
    };
    let all = plan.actions.iter().filter_map(|action| match &action.what {
        Action::Mute(target) | Action::Unmute(target) => Some(match target {
            Target::User(peer) => (direct_label(&user(&action.device), peer), MUTED),
            Target::Group(group) => (group.clone(), MUTED),
        }),
        Action::Title { group, .. } => Some((group.clone(), TITLE)),
        _ => None,
    });
    all.collect()
}

/// What a user remembers, whatever becomes of his app.
#[derive(Debug, Default)]
pub struct Memory {
    /// What he wrote.
    sent: BTreeMap<MessageId, String>,
    count: u64,
    /// Which of it he was told to be acked and stable.
    acked: BTreeMap<String, bool>,
    /// Members of groups, as he last knew them.
    members: BTreeMap<String, BTreeSet<String>>,
    /// The network that his device's system named last.
    network: String,
    /// Of whom he wants to know whether they are there.
    watched: BTreeSet<UserId>,
}

impl Memory {
    /// What a store still holds of what this device wrote, for an app whose process took its user's mind with it.
    pub fn remember(&mut self, device: &str, message: &Message) {
        let name = name_of(message);
        let count = name.split_once('/').filter(|(of, _)| *of == device).and_then(|(_, count)| count.parse().ok());
        if let Some(count) = count {
            self.count = self.count.max(count);
            self.sent.insert(message.id, name);
        }
    }
}

/// All conversations of a run, by what the system calls them.
#[derive(Debug, Default)]
pub struct Names(Mutex<(BTreeMap<ConvId, String>, BTreeMap<String, ConvId>)>);

impl Names {
    /// The system calls this conversation so.
    pub fn learn(&self, id: ConvId, label: &str) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.0.insert(id, label.to_owned());
        names.1.insert(label.to_owned(), id);
    }

    /// What the scenario calls a conversation.
    pub fn label(&self, id: ConvId) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.get(&id).cloned()
    }

    /// What the system calls a conversation of the scenario.
    pub fn id(&self, label: &str) -> Option<ConvId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.get(label).copied()
    }
}

/// What a message says behind its name: letters that pack about as well as what people write, five bits of news in each. Dots
/// would pack to nothing, and history would seem to cost nothing.
fn letters(message: &str) -> impl Iterator<Item = char> {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz .,'?!";
    // FNV-1a, then the steps of a linear congruential generator (Knuth's MMIX).
    let mut state = message
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(LETTERS[(state >> 59) as usize])
    })
}

/// The name of a direct conversation.
pub fn direct_label(a: &str, b: &str) -> String {
    if a <= b { format!("{a}+{b}") } else { format!("{b}+{a}") }
}

/// An app that runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App {
    device: String,
    user: String,
    client: Client,
    memory: Arc<Mutex<Memory>>,
    names: Arc<Names>,
    scribe: Arc<Scribe>,
    put_away: Arc<Notify>,
}

impl App {
    /// Opens the app on a client. [`App::watch`] is to be run beside it, as a task of the device.
    pub fn open(
        device: &str,
        user: &str,
        client: Client,
        memory: Arc<Mutex<Memory>>,
        names: Arc<Names>,
        scribe: Arc<Scribe>,
    ) -> Self {
        let (device, user) = (device.to_owned(), user.to_owned());
        let app = Self { device, user, client, memory, names, scribe, put_away: Arc::default() };
        app.scribe.tell(Event::Start { who: app.device.clone() });
        app.catch_up();
        app
    }

    /// Tells what the client tells, until it is closed.
    pub async fn watch(self, mut events: Events) {
        self.connection(&self.client.connection());
        let telling = async {
            while let Some(event) = events.next().await {
                self.told(event);
            }
        };
        let resting = async {
            loop {
                self.put_away.notified().await;
                if let Err(error) = self.client.suspend(PUT_AWAY_WITHIN).await {
                    self.broken(format!("it can't be put away: {error}"));
                }
            }
        };
        tokio::select! {
            biased;
            () = telling => {}
            () = resting => {}
        }
    }

    /// The device that it is on.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A message to somebody; `bytes` of it at least what its name needs.
    pub fn send(&self, to: &Target, bytes: u32) {
        let label = self.label(to);
        let message = {
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            memory.count += 1;
            format!("{}/{}", self.device, memory.count)
        };
        let mut text = format!("{message} ");
        let wanted = usize::try_from(bytes).unwrap_or(usize::MAX);
        text.extend(letters(&message).take(wanted.saturating_sub(text.len())));
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        // Told before it is stored: from then on the client may tell of it.
        self.scribe.tell(Event::Invoke {
            device: self.device.clone(),
            conversation: label,
            message: message.clone(),
            bytes: length,
        });
        let sent = self.conversation(to).and_then(|with| {
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            let id = with.send(Draft::text(text)).map_err(|error| error.to_string())?;
            memory.sent.insert(id, message.clone());
            Ok(())
        });
        if let Err(reason) = sent {
            self.scribe.tell(Event::Refused { device: self.device.clone(), message, reason });
        }
    }

    /// The device's system says that it is in another network; without a name, that something of it has changed.
    pub fn network_changed(&self, network: Option<&str>) {
        let info = network.map(|id| NetInfo { id: id.to_owned(), ..NetInfo::default() });
        if let Some(info) = &info {
            self.memory().network.clone_from(&info.id);
        }
        if let Err(error) = self.client.network_changed(info) {
            self.broken(format!("it can't be told of another network: {error}"));
        }
    }

    /// Makes a group.
    pub fn create_group(&self, label: &str, members: &[String]) -> Result<(), String> {
        let others = members.iter().filter(|user| **user != self.user);
        let others: Vec<UserId> = others.map(|user| UserId::new(user)).collect::<Result<_, _>>().map_err(text)?;
        let group = self.client.create_group(label, &others, GroupOptions::default()).map_err(text)?;
        self.names.learn(group.id(), label);
        Ok(())
    }

    /// Does something besides writing.
    pub fn act(&self, action: &Action) -> Result<(), String> {
        match action {
            Action::Read(target) => self.conversation(target)?.mark_read().map_err(text),
            Action::ReadAll => {
                for info in self.client.conversations().map_err(text)? {
                    self.client.conversation(info.id).mark_read().map_err(text)?;
                }
                Ok(())
            }
            Action::Mute(target) => self.mute(target, true),
            Action::Unmute(target) => self.mute(target, false),
            Action::Away(true) => {
                self.put_away.notify_one();
                Ok(())
            }
            Action::Away(false) => self.client.resume().map_err(text),
            Action::Watch(user) => {
                self.memory().watched.insert(UserId::new(user).map_err(text)?);
                self.watch_presence()
            }
            Action::Foreground(foreground) => self.client.set_foreground(*foreground).map_err(text),
            Action::Metered(metered) => {
                let info = NetInfo { id: self.memory().network.clone(), metered: *metered, ..NetInfo::default() };
                self.client.network_changed(Some(info)).map_err(text)
            }
            Action::Title { group, title } => {
                self.set(group.clone(), TITLE, title);
                self.group(group)?.set_title(title).map(|_| ()).map_err(text)
            }
            Action::Erase(target) => self.erase(target),
            Action::Add { group, user } => {
                let users = [UserId::new(user).map_err(text)?];
                self.group(group)?.add(&users, false).map_err(text)?;
                self.scribe.tell(Event::Added { conversation: group.clone(), user: user.clone() });
                self.learn_members(group)
            }
            Action::Remove { group, user } => {
                let users = [UserId::new(user).map_err(text)?];
                self.group(group)?.remove(&users).map_err(text)?;
                self.scribe.tell(Event::Removed { conversation: group.clone(), user: user.clone() });
                self.learn_members(group)
            }
        }
    }

    fn mute(&self, target: &Target, muted: bool) -> Result<(), String> {
        self.set(self.label(target), MUTED, if muted { YES } else { NO });
        self.conversation(target)?.mute(if muted { FOR_EVER } else { 0 }).map(|_| ()).map_err(text)
    }

    /// Told before it is stored: from then on others may know of it.
    fn set(&self, conversation: String, what: &str, value: &str) {
        let (what, value) = (what.to_owned(), value.to_owned());
        self.scribe.tell(Event::Set { device: self.device.clone(), conversation, what, value });
    }

    /// Erases the newest own message that a server has acknowledged. Does nothing if there is none.
    fn erase(&self, target: &Target) -> Result<(), String> {
        let conversation = self.conversation(target)?;
        let shown = conversation.timeline(usize::MAX).map_err(text)?.messages;
        let acked = |message: &Message| matches!(message.state, MessageState::Sent | MessageState::Stable);
        let sent = self.memory.lock().unwrap_or_else(PoisonError::into_inner).sent.clone();
        let newest = shown.iter().rev().filter(|message| !message.erased && acked(message));
        let Some((id, message)) = newest.map(|message| message.id).find_map(|id| Some((id, sent.get(&id)?))) else {
            return Ok(());
        };
        self.scribe.tell(Event::Erased { device: self.device.clone(), message: message.clone() });
        conversation.erase(id).map(|_| ()).map_err(text)
    }

    /// What it says of something that was set; see [`Event::Set`].
    pub fn setting(&self, label: &str, what: &str) -> Result<String, String> {
        let conversation = self.group(label)?;
        if what == TITLE {
            return Ok(conversation.group().map_err(text)?.map_or_else(String::new, |group| group.title));
        }
        Ok(if conversation.is_muted().map_err(text)? { YES } else { NO }.to_owned())
    }

    /// What it shows of a conversation, top to bottom, and how much of it is unread.
    pub fn timeline(&self, label: &str) -> Result<(Vec<String>, (u64, bool)), String> {
        let conversation = match self.names.id(label) {
            Some(id) => self.client.conversation(id),
            None => return Err(format!("{label} was never made")),
        };
        let shown = conversation.timeline(usize::MAX).map_err(text)?;
        let messages = shown.messages.iter().filter(|message| message.kind == 0 && !message.erased);
        let unread = conversation.unread().map_err(text)?;
        Ok((messages.map(name_of).collect(), (unread.count, unread.exact)))
    }

    /// Whether it is live, and waits for nothing.
    pub fn is_calm(&self) -> bool {
        matches!(self.client.connection(), ConnectionState::Live { .. }) && self.client.waiting() == (0, 0)
    }

    /// How it stands, for a human.
    pub fn standing(&self) -> String {
        format!("{}: {:?}, waiting {:?}", self.device, self.client.connection(), self.client.waiting())
    }

    fn label(&self, to: &Target) -> String {
        match to {
            Target::User(peer) => direct_label(&self.user, peer),
            Target::Group(group) => group.clone(),
        }
    }

    fn conversation(&self, to: &Target) -> Result<Conversation, String> {
        match to {
            Target::User(peer) => self.client.direct(&UserId::new(peer).map_err(text)?).map_err(text),
            Target::Group(group) => self.group(group),
        }
    }

    fn group(&self, label: &str) -> Result<Conversation, String> {
        let id = self.names.id(label).ok_or_else(|| format!("the group {label} was never made"))?;
        Ok(self.client.conversation(id))
    }

    /// Tells whom of a group it knows now to have come or gone since it last looked. What it finds at first is no news.
    fn learn_members(&self, label: &str) -> Result<(), String> {
        let Some(info) = self.group(label)?.group().map_err(text)? else { return Ok(()) };
        let now: BTreeSet<String> = info.members.iter().map(|member| member.user.to_string()).collect();
        if now.is_empty() {
            // Not known yet.
            return Ok(());
        }
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let before = memory.members.insert(label.to_owned(), now.clone()).unwrap_or_else(|| now.clone());
        drop(memory);
        for user in before.symmetric_difference(&now) {
            self.scribe.tell(Event::Learned {
                device: self.device.clone(),
                conversation: label.to_owned(),
                user: user.clone(),
                member: now.contains(user),
            });
        }
        Ok(())
    }

    /// After a start: what came of messages while nobody listened.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch_presence(&self) -> Result<(), String> {
        let watched: Vec<UserId> = self.memory().watched.iter().cloned().collect();
        self.client.watch_presence(&watched).map_err(text)
    }

    fn catch_up(&self) {
        if let Err(error) = self.watch_presence() {
            self.broken(format!("it can't watch anybody: {error}"));
        }
        let sent = self.memory.lock().unwrap_or_else(PoisonError::into_inner).sent.clone();
        for id in sent.keys() {
            if let Ok(Some(message)) = self.client.message(*id) {
                match message.state {
                    MessageState::Sent => self.acked(*id, false),
                    MessageState::Stable => self.acked(*id, true),
                    _ => {}
                }
            }
        }
    }

    fn acked(&self, id: MessageId, stable: bool) {
        let (message, before) = {
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(message) = memory.sent.get(&id).cloned() else { return };
            let before = memory.acked.get(&message).copied();
            memory.acked.insert(message.clone(), stable || before == Some(true));
            (message, before)
        };
        let device = || self.device.clone();
        if before.is_none() {
            self.scribe.tell(Event::Acked { device: device(), message: message.clone() });
        }
        if stable && before != Some(true) {
            self.scribe.tell(Event::Stable { device: device(), message });
        }
    }

    fn failed(&self, id: MessageId, code: u32, words: &str, maybe: bool) {
        let message = self.memory.lock().unwrap_or_else(PoisonError::into_inner).sent.get(&id).cloned();
        if let Some(message) = message {
            let reason = format!("{code}: {words}");
            self.scribe.tell(Event::Failed { device: self.device.clone(), message, reason, maybe });
        }
    }

    fn connection(&self, state: &ConnectionState) {
        let at = |state: &str, edge: &str, region: &str, transport: &str| Event::Connection {
            device: self.device.clone(),
            state: state.to_owned(),
            edge: Some(edge.to_owned()),
            region: Some(region.to_owned()),
            transport: Some(transport.to_owned()),
        };
        let nowhere = |state: &str| Event::Connection {
            device: self.device.clone(),
            state: state.to_owned(),
            edge: None,
            region: None,
            transport: None,
        };
        self.scribe.tell(match state {
            ConnectionState::Offline => nowhere("offline"),
            ConnectionState::Connecting { .. } => nowhere("connecting"),
            ConnectionState::Recovering { edge, region, transport, .. } => {
                at("recovering", edge, region, transport.name())
            }
            ConnectionState::Live { edge, region, transport } => at("live", edge, region, transport.name()),
        });
    }

    fn broken(&self, text: String) {
        self.scribe.tell(Event::Broken { who: self.device.clone(), text });
    }

    fn told(&self, event: Told) {
        match event {
            Told::Connection(state) => self.connection(&state),
            Told::Message(change) if change.what != Placed::Erased => match self.client.message(change.id) {
                Ok(Some(message)) => self.shown(&message, matches!(change.what, Placed::Moved { .. })),
                Ok(None) => {}
                Err(error) => self.broken(format!("a message can't be read: {error}")),
            },
            Told::Sent { id, .. } => self.acked(id, false),
            Told::Stable { id, .. } => self.acked(id, true),
            Told::Failed { id, code, message, .. } => self.failed(id, code, &message, false),
            Told::Unknown { id, code, message, .. } => self.failed(id, code, &message, true),
            Told::GatewayForgot { silence } => {
                let silence_ns = u64::try_from(silence.as_nanos()).unwrap_or(u64::MAX);
                self.scribe.tell(Event::GatewayForgot { device: self.device.clone(), silence_ns });
            }
            Told::Presence { user, presence } => {
                let (user, online) = (user.as_str().to_owned(), presence == Presence::Online);
                self.scribe.tell(Event::Presence { device: self.device.clone(), user, online });
            }
            Told::ReOffered { count, .. } => self.scribe.reoffered(count),
            Told::Renamed { from, to } => {
                if let Some(label) = self.names.label(from) {
                    self.names.learn(to, &label);
                }
            }
            Told::GroupChanged { conversation } => {
                if let Some(label) = self.names.label(conversation)
                    && let Err(error) = self.learn_members(&label)
                {
                    self.broken(format!("the members of {label} can't be read: {error}"));
                }
            }
            Told::Kicked { .. } => {
                // Its user knows of no second process with its store, and opens it again.
                if let Err(error) = self.client.reconnect() {
                    self.broken(format!("it does not connect again: {error}"));
                }
            }
            Told::ChangeRefused { code, message, .. } => {
                self.broken(format!("a change of a group or setting was refused: {code}, {message}"));
            }
            Told::AtRisk { id, .. } => self.broken(format!("message {id} was released before it was stable")),
            Told::Gap { origin, from, to, reason, .. } => {
                self.broken(format!("{from}-{to} of {origin} can't be had for good: {reason:?}"));
            }
            other => tracing::trace!(device = self.device, ?other, "of no interest"),
        }
    }

    fn shown(&self, message: &Message, moved: bool) {
        let name = name_of(message);
        let own = name.split_once('/').is_some_and(|(device, _)| device == self.device);
        if message.kind != 0 || own || message.erased {
            return;
        }
        let conversation = self.names.label(message.conversation).unwrap_or_else(|| message.conversation.to_string());
        self.scribe.tell(Event::Shown { device: self.device.clone(), conversation, message: name, new: !moved });
    }
}

/// How the run calls a message: the head of its body.
pub fn name_in(body: &[u8]) -> String {
    let head = body.split(|byte| *byte == b' ').next().unwrap_or(body);
    String::from_utf8_lossy(head).into_owned()
}

fn name_of(message: &Message) -> String {
    name_in(&message.body)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
