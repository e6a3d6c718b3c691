//! What was seen of a run, with times of one clock; no judgement.

use std::collections::BTreeMap;

use tern_client::MessageId;
use tern_netsim_verdict::{LogHistory, Outcome, Reading, Sending, Spot};

/// A message that was handed to a client.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Number of the conversation.
    pub conversation: usize,
    /// Number of the client that wrote it.
    pub from: usize,
    /// And of the one that is to see it.
    pub to: usize,
    /// Its name.
    pub name: String,
    /// When.
    pub sent_ns: u64,
    /// When and where it was acked.
    pub acked: Option<(u64, Spot)>,
    /// When it was first shown to its reader.
    pub shown_ns: Option<u64>,
    /// How often its reader was told that it is new.
    pub told: u32,
    /// For good.
    pub refused: bool,
}

impl Sent {
    /// Nothing is known of it yet.
    pub fn new(conversation: usize, from: usize, to: usize, name: String, sent_ns: u64) -> Self {
        Self { conversation, from, to, name, sent_ns, acked: None, shown_ns: None, told: 0, refused: false }
    }
}

/// A message as its reader knows it.
#[derive(Clone, Debug)]
pub struct Known {
    /// The reader's number.
    pub client: usize,
    /// The message's name.
    pub name: String,
}

/// A client.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Its user.
    pub user: String,
    /// The region that it asks first.
    pub region: String,
    /// Where it was live since when (edge, region); `None`: nowhere.
    pub states: Vec<(u64, Option<(String, String)>)>,
}

impl Seen {
    /// Where it is live at a moment.
    pub fn at(&self, at_ns: u64) -> Option<&(String, String)> {
        let before = self.states.iter().rev().find(|(since_ns, _)| *since_ns <= at_ns);
        before.and_then(|(_, at)| at.as_ref())
    }
}

/// A fault that struck.
#[derive(Clone, Debug, Default)]
pub struct Struck {
    /// Its name.
    pub id: String,
    /// When it began to strike.
    pub begin_ns: u64,
    /// When it was undone.
    pub end_ns: Option<u64>,
    /// So long after it nothing counts as undisturbed.
    pub aftermath_ns: u64,
    /// Clients that it met; `None`: everybody.
    pub met: Option<Vec<usize>>,
}

impl Struck {
    /// From when to when it, or what it left, may be felt.
    pub fn window_ns(&self) -> (u64, u64) {
        (self.begin_ns, self.end_ns.unwrap_or(self.begin_ns) + self.aftermath_ns)
    }

    /// Whether it met a client.
    pub fn met(&self, client: usize) -> bool {
        self.met.as_ref().is_none_or(|met| met.contains(&client))
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// In the order sent.
    pub messages: Vec<Sent>,
    /// By their numbers.
    pub clients: Vec<Seen>,
    /// In the order struck.
    pub faults: Vec<Struck>,
    /// When, of which process, how many bytes.
    pub memory: Vec<(u64, String, u64)>,
    /// When, how many routes were in the tables of all regions. `None`: somewhere nobody could say.
    pub routes: Vec<(u64, Option<u64>)>,
    /// What conversations hold at the end.
    pub readings: Vec<Reading>,
    /// Processes that ended though nobody wanted them to.
    pub died: u64,
    /// Messages offered to another region.
    pub re_offered: usize,
    /// Events that came too fast: times are not known then.
    pub missed_events: u64,
    by_id: BTreeMap<(usize, MessageId), usize>,
    by_name: BTreeMap<String, usize>,
}

impl Observed {
    /// The next client.
    pub fn add_client(&mut self, user: &str, region: &str) {
        self.clients.push(Seen { user: user.to_owned(), region: region.to_owned(), states: Vec::new() });
    }

    /// A message was handed to its client, which calls it `id`.
    pub fn sent(&mut self, id: MessageId, message: Sent) {
        let number = self.messages.len();
        self.by_id.insert((message.from, id), number);
        self.by_name.insert(message.name.clone(), number);
        self.messages.push(message);
    }

    /// A client was told that its message is durable.
    pub fn acked(&mut self, client: usize, id: MessageId, now_ns: u64, spot: Spot) {
        if let Some(number) = self.by_id.get(&(client, id)) {
            self.messages[*number].acked.get_or_insert((now_ns, spot));
        }
    }

    /// A client was told that its message is refused.
    pub fn refused(&mut self, client: usize, id: MessageId) {
        if let Some(number) = self.by_id.get(&(client, id)) {
            self.messages[*number].refused = true;
        }
    }

    /// A reader was told that a message is new.
    pub fn shown(&mut self, known: Known, now_ns: u64) {
        let Some(message) = self.by_name.get(&known.name).map(|number| &mut self.messages[*number]) else { return };
        if message.to == known.client {
            message.shown_ns.get_or_insert(now_ns);
            message.told += 1;
        }
    }

    /// How many messages are neither acked nor refused, and how many of the others are not shown.
    pub fn missing(&self) -> (usize, usize) {
        let waiting = self.messages.iter().filter(|message| message.acked.is_none() && !message.refused).count();
        let unseen = self.messages.iter().filter(|message| message.acked.is_some() && message.shown_ns.is_none());
        (waiting, unseen.count())
    }

    /// For the judge of logs.
    pub fn history(&self) -> LogHistory {
        let sendings = self.messages.iter().map(|message| Sending {
            client: self.clients[message.from].user.clone(),
            log: message.conversation.to_string(),
            message: message.name.clone(),
            invoked_ns: message.sent_ns,
            outcome: match &message.acked {
                Some((returned_ns, spot)) => Outcome::Acked { returned_ns: *returned_ns, spot: spot.clone() },
                None if message.refused => Outcome::Refused,
                None => Outcome::Unknown,
            },
        });
        LogHistory { sendings: sendings.collect(), readings: self.readings.clone() }
    }
}
