//! A client as a process, in direct conversations and in a group that one of them makes, with all in it: it sends until
//! its input ends, then waits until all is stable, and prints what it does and is told, one fact a line, so that
//! whoever reads knows it even if the process dies.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use tern::checker::{Fact, Message, What};
use tern::cluster::Endpoints;
use tern::demo::person::{client_config, label, tokens};
use tern_client::{Change, Client, ConvId, Conversation, Draft, Event, GroupOptions, MessageId, Placed, UserId};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{MissedTickBehavior, interval};

/// A client process is told by this what to be.
pub const TASK: &str = "TERN_KILLS_CLIENT";
/// How many of the newest messages are looked at first for the newest own one.
const LOOK_BACK: usize = 256;
/// The group's name in facts.
pub const GROUP: &str = "group";
/// More than a run has.
pub const WHOLE_TIMELINE: usize = usize::MAX >> 1;

/// What a client process is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The deployment's directory.
    pub data: String,
    /// The device's.
    pub store: String,
    /// Who it is.
    pub user: String,
    /// Whose dispatch it asks first.
    pub near: String,
    /// Whom it writes to, and with whom it is in the group, in turn.
    pub peers: Vec<String>,
    /// It makes the group.
    pub founds: bool,
    /// How often it sends.
    pub every: Duration,
}

/// A conversation's name in facts.
pub fn name_of(one: &str, other: &str) -> String {
    if one < other { format!("{one}+{other}") } else { format!("{other}+{one}") }
}

impl Task {
    /// Opens the device.
    pub fn open(&self) -> Client {
        let data = Path::new(&self.data);
        let endpoints = Endpoints::read(data).unwrap();
        let user = UserId::new(&self.user).unwrap();
        let config = client_config(&endpoints, &user, Some(&self.near)).unwrap();
        let tokens = tokens(&endpoints, data, &user).unwrap();
        Client::builder(config).store(&self.store).token_provider(tokens).build().unwrap()
    }

    /// Its conversations, by name. The group may not have come yet.
    pub fn conversations(&self, client: &Client) -> Vec<(String, Conversation)> {
        let open =
            |peer: &String| (name_of(&self.user, peer), client.direct(&UserId::new(peer.as_str()).unwrap()).unwrap());
        let group = client.conversations().unwrap().into_iter().find(|info| info.group.is_some());
        let group = group.map(|info| (GROUP.to_owned(), client.conversation(info.id)));
        self.peers.iter().map(open).chain(group).collect()
    }

    /// Makes the group, unless an earlier life has.
    fn found(&self, client: &Client) {
        if self.founds && client.conversations().unwrap().iter().all(|info| info.group.is_none()) {
            let members: Vec<UserId> = self.peers.iter().map(|peer| UserId::new(peer.as_str()).unwrap()).collect();
            client.create_group("everyone", &members, GroupOptions::default()).unwrap();
        }
    }
}

/// Written by a person: changes of groups and settings are messages too.
pub fn is_text(message: &tern_client::Message) -> bool {
    message.kind == 0
}

/// How many own messages a conversation has.
fn count_own(conversation: &Conversation, user: &str) -> u64 {
    let mut limit = LOOK_BACK;
    loop {
        let shown = conversation.timeline(limit).unwrap().messages;
        let own = |m: &&tern_client::Message| is_text(m) && m.by.user.as_str() == user;
        let newest = shown.iter().filter(own).map(|m| label(m).unwrap().1).max();
        if newest.is_some() || shown.len() < limit {
            return newest.unwrap_or(0);
        }
        limit = limit.saturating_mul(4).min(WHOLE_TIMELINE);
    }
}

struct Device {
    task: Task,
    client: Client,
    conversations: Vec<(String, Conversation)>,
    /// Own messages of each.
    sent: BTreeMap<String, u64>,
}

impl Device {
    fn tell(what: What, conversation: &str, message: Message) {
        println!("{}", Fact { what, conversation: conversation.to_owned(), message });
    }

    fn note(&mut self, what: What, at: ConvId, id: MessageId) {
        let Some(message) = self.client.message(id).unwrap().filter(is_text) else { return };
        if what == What::Shown && message.by.user.as_str() == self.task.user {
            return; // he sees his own from the start
        }
        if self.conversations.iter().all(|(_, c)| c.id() != at) {
            self.look_for_the_group();
        }
        let Some((name, _)) = self.conversations.iter().find(|(_, c)| c.id() == at) else {
            panic!("{} was told of a conversation that it does not know", self.task.user)
        };
        // Whatever it says, it is shown: a text that nobody wrote is a phantom.
        let label = label(&message).unwrap_or_else(|| ("nobody".to_owned(), 0));
        Self::tell(what, name, label);
    }

    fn look_for_the_group(&mut self) {
        self.conversations = self.task.conversations(&self.client);
        for (name, conversation) in &self.conversations {
            if !self.sent.contains_key(name) {
                self.sent.insert(name.clone(), count_own(conversation, &self.task.user));
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Sent { conversation, id } => self.note(What::Acked, conversation, id),
            Event::Stable { conversation, id, .. } => self.note(What::Stable, conversation, id),
            Event::AtRisk { conversation, id } => self.note(What::AtRisk, conversation, id),
            Event::Failed { conversation, id, code, message } => {
                println!("note {} was refused: {code} {message}", self.task.user);
                self.note(What::Refused, conversation, id);
            }
            Event::Message(Change { conversation, id, what: Placed::Appended | Placed::Inserted { .. } }) => {
                self.note(What::Shown, conversation, id);
            }
            Event::Gap { origin, from, to, reason, .. } => {
                println!("note {}: a gap of {origin:?} from {from} to {to}: {reason:?}", self.task.user);
            }
            Event::GroupChanged { .. } => self.look_for_the_group(),
            Event::ChangeRefused { code, message, .. } => {
                println!("note a change by {} was refused: {code} {message}", self.task.user);
            }
            Event::StoreFailed { message } => println!("note the store of {} failed: {message}", self.task.user),
            Event::Kicked { code, message } => println!("note {} was kicked: {code} {message}", self.task.user),
            Event::Lagged { missed } => println!("note {} missed {missed} events", self.task.user),
            _ => {}
        }
    }

    fn send(&mut self, turn: usize) {
        let (name, conversation) = &self.conversations[turn % self.conversations.len()];
        let n = self.sent.get_mut(name).unwrap();
        *n += 1;
        Self::tell(What::Sending, name, (self.task.user.clone(), *n));
        conversation.send(Draft::text(format!("{} {n}", self.task.user))).unwrap();
    }
}

/// Runs until its input has ended and nothing is left to do.
pub async fn run(task: Task) {
    // The parent may be killed too, and may have suspended this process before.
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let client = task.open();
    let mut events = client.events();
    task.found(&client);
    let conversations = task.conversations(&client);
    let sent = conversations.iter().map(|(name, c)| (name.clone(), count_own(c, &task.user))).collect();
    let mut clock = interval(task.every);
    // After a suspension it goes on at its pace.
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut device = Device { task, client, conversations, sent };
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    let mut turn = 0;
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            event = events.next() => match event {
                Some(event) => device.event(event),
                None => break,
            },
            line = input.next_line(), if !stopping => stopping = !matches!(line, Ok(Some(_))),
            _ = clock.tick() => {
                if !stopping {
                    device.send(turn);
                    turn += 1;
                } else if device.client.waiting() == (0, 0) {
                    break;
                }
            }
        }
    }
    device.client.close().await;
}
