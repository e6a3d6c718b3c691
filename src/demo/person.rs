//! A user with one device, who counts what he sends and remembers what he is told.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tern_client::{
    Change, Client, ClientConfig, ConnectionState, Conversation, Draft, Event, MessageId, MessageState, Placed,
    TokenError, TokenProvider, UserId,
};
use tern_core::store::BoxFut;
use tern_net::env::Env;
use tokio::time::{Instant, sleep};

use crate::checker::Message;
use crate::cluster::Endpoints;
use crate::token::Signer;

/// Of the tokens made here: longer than any run.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// How often a connection is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// More messages than a run has.
const WHOLE_TIMELINE: usize = 1_000_000;

/// Where a device is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which edge.
    pub edge: String,
    /// Of which region.
    pub region: String,
    /// By what.
    pub transport: &'static str,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} by {}", self.edge, self.transport)
    }
}

/// What a device was told, with the times.
#[derive(Debug, Default)]
struct Told {
    acked: BTreeSet<MessageId>,
    stable: BTreeSet<MessageId>,
    live: Vec<(Instant, Place)>,
    arrivals: Vec<(Instant, Message)>,
    refused: BTreeSet<MessageId>,
    at_risk: BTreeSet<MessageId>,
    re_offered: usize,
    complaints: Vec<String>,
}

/// See the module.
#[derive(Debug)]
pub struct Person {
    /// His name.
    pub name: String,
    client: Client,
    conversation: Conversation,
    told: Arc<Mutex<Told>>,
    sent: Vec<MessageId>,
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a client of a deployment on this machine is made from. `near`: the region whose dispatch is asked
/// first.
pub fn client_config(endpoints: &Endpoints, user: &UserId, near: Option<&str>) -> Result<ClientConfig> {
    let mut config = ClientConfig::new(user.clone());
    if let Some(near) = near.filter(|near| endpoints.dispatch.iter().all(|(region, _)| region != near)) {
        let regions: Vec<_> = endpoints.dispatch.iter().map(|(region, _)| region.as_str()).collect();
        bail!("there is no region {near}; the regions are {}", regions.join(", "));
    }
    config.roots_pem =
        std::fs::read(&endpoints.public_ca).with_context(|| format!("can't read {}", endpoints.public_ca.display()))?;
    let mut dispatch: Vec<_> = endpoints.dispatch.iter().collect();
    dispatch.sort_by_key(|(region, _)| near != Some(region.as_str()));
    config.dispatch = dispatch
        .into_iter()
        .map(|(_, at)| tern_client::DispatchServer { address: at.to_string(), server_name: "localhost".into() })
        .collect();
    Ok(config)
}

/// Tokens for a client of a deployment on this machine, signed as they are needed.
pub fn tokens(endpoints: &Endpoints, data: &Path, user: &UserId) -> Result<Arc<dyn TokenProvider>> {
    let signer = Signer::open(&data.join("tokens.jwk"))?;
    Ok(Arc::new(OwnTokens { signer, user: user.clone(), audience: endpoints.deployment.clone() }))
}

#[derive(Debug)]
struct OwnTokens {
    signer: Signer,
    user: UserId,
    audience: String,
}

impl TokenProvider for OwnTokens {
    fn token(&self, _refused: bool) -> BoxFut<'_, Result<String, TokenError>> {
        let signed = self.signer.sign(&self.user, &self.audience, TOKEN_TTL);
        Box::pin(std::future::ready(signed.map_err(|e| TokenError(format!("{e:#}")))))
    }
}

impl Person {
    /// Opens `name`'s device in `store` and begins to connect; he will talk to `peer`.
    pub fn join(env: &Env, data: &Path, store: &Path, name: &str, near: &str, peer: &str) -> Result<Self> {
        let endpoints = Endpoints::read(data)?;
        let user = UserId::new(name)?;
        let config = client_config(&endpoints, &user, Some(near))?;
        let tokens = tokens(&endpoints, data, &user)?;
        let client = Client::builder(config).store(store).token_provider(tokens).build()?;
        let told = Arc::new(Mutex::new(Told::default()));
        let conversation = client.direct(&UserId::new(peer)?)?;
        let mut events = client.events();
        let (listener, memory) = (client.clone(), told.clone());
        note_connection(&mut lock(&told), client.connection());
        let listener = Listener { client: listener, user, told: memory };
        env.tasks.spawn(async move {
            while let Some(event) = events.next().await {
                listener.note(event);
            }
        });
        Ok(Self { name: name.to_owned(), client, conversation, told, sent: Vec::new() })
    }

    /// Where he is connected.
    pub fn place(&self) -> Option<Place> {
        place(self.client.connection())
    }

    /// Waits until he is connected and up to date.
    pub async fn live(&self, within: Duration) -> Result<Place> {
        let until = Instant::now() + within;
        loop {
            if let Some(place) = self.place() {
                return Ok(place);
            }
            if Instant::now() > until {
                bail!("{} is not connected after {} s: {:?}", self.name, within.as_secs(), self.client.connection());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Sends his next message and returns its number.
    pub fn send(&mut self) -> Result<u64> {
        let n = self.sent.len() as u64 + 1;
        let id = self.conversation.send(Draft::text(format!("{} {n}", self.name)))?;
        self.sent.push(id);
        Ok(n)
    }

    /// How many he has sent.
    pub fn sent(&self) -> u64 {
        self.sent.len() as u64
    }

    /// Whether all he has sent is stable.
    pub fn is_settled(&self) -> bool {
        self.client.waiting() == (0, 0)
    }

    /// When he was first live at another place than `at`, after `since`.
    pub fn moved(&self, at: &Place, since: Instant) -> Option<(Instant, Place)> {
        lock(&self.told).live.iter().find(|(when, place)| *when > since && place.edge != at.edge).cloned()
    }

    /// When the first message of `sender` above `n` was shown to him.
    pub fn first_arrival(&self, sender: &str, n: u64) -> Option<Instant> {
        let told = lock(&self.told);
        told.arrivals.iter().filter(|(_, (user, m))| user == sender && *m > n).map(|(when, _)| *when).min()
    }

    /// Messages that he has offered again so far.
    pub fn re_offered(&self) -> usize {
        lock(&self.told).re_offered
    }

    /// What went wrong on his device, in words.
    pub fn complaints(&self) -> Vec<String> {
        lock(&self.told).complaints.clone()
    }

    /// What he sent that is acked, and what of it is stable: as told, or as his device shows.
    pub fn confirmed(&self) -> Result<(BTreeSet<Message>, BTreeSet<Message>)> {
        let told = lock(&self.told);
        let (mut acked, mut stable) = (told.acked.clone(), told.stable.clone());
        drop(told);
        for message in self.conversation.timeline(WHOLE_TIMELINE)?.messages {
            if message.by.user == *self.client.user() {
                match message.state {
                    MessageState::Sent | MessageState::AtRisk => {
                        acked.insert(message.id);
                    }
                    MessageState::Stable => {
                        acked.insert(message.id);
                        stable.insert(message.id);
                    }
                    _ => {}
                }
            }
        }
        Ok((self.named(&acked), self.named(&stable)))
    }

    fn named(&self, ids: &BTreeSet<MessageId>) -> BTreeSet<Message> {
        let counted = self.sent.iter().zip(1..).filter(|(id, _)| ids.contains(id));
        counted.map(|(_, n)| (self.name.clone(), n)).collect()
    }

    /// What was refused, as he was told.
    pub fn refused(&self) -> BTreeSet<Message> {
        self.named(&lock(&self.told).refused)
    }

    /// What his device gave up before it was stable, as he was told.
    pub fn at_risk(&self) -> BTreeSet<Message> {
        self.named(&lock(&self.told).at_risk)
    }

    /// The messages of others that he was told of, in the order told.
    pub fn told(&self) -> Vec<Message> {
        lock(&self.told).arrivals.iter().map(|(_, message)| message.clone()).collect()
    }

    /// What his device shows, in order, of messages that have a place.
    pub fn timeline(&self) -> Result<Vec<Message>> {
        let snapshot = self.conversation.timeline(WHOLE_TIMELINE)?;
        let placed = snapshot.messages.iter().filter(|m| m.key.is_some());
        placed.map(|m| label(m).with_context(|| format!("{} shows a message that nobody sent", self.name))).collect()
    }

    /// Closes his device; what is in its store stays.
    pub async fn leave(self) {
        self.client.close().await;
    }
}

struct Listener {
    client: Client,
    user: UserId,
    told: Arc<Mutex<Told>>,
}

impl Listener {
    fn note(&self, event: Event) {
        let mut told = lock(&self.told);
        match event {
            Event::Connection(state) => note_connection(&mut told, state),
            Event::Sent { id, .. } => {
                told.acked.insert(id);
            }
            Event::Stable { id, .. } => {
                told.acked.insert(id);
                told.stable.insert(id);
            }
            Event::Message(Change { id, what: Placed::Appended | Placed::Inserted { .. }, .. }) => {
                drop(told);
                if let Ok(Some(message)) = self.client.message(id)
                    && message.by.user != self.user
                    && let Some(label) = label(&message)
                {
                    lock(&self.told).arrivals.push((Instant::now(), label));
                }
            }
            Event::ReOffered { count, .. } => told.re_offered += count,
            Event::Failed { id, code, message, .. } => {
                told.refused.insert(id);
                told.complaints.push(format!("a message was refused: {code} {message}"));
            }
            Event::AtRisk { id, .. } => {
                told.at_risk.insert(id);
                told.complaints.push("a message was given up before it was stable".into());
            }
            Event::Gap { from, to, reason, .. } => {
                told.complaints.push(format!("a gap from {from} to {to}: {reason:?}"));
            }
            Event::Kicked { code, message } => told.complaints.push(format!("kicked: {code} {message}")),
            Event::StoreFailed { message } => told.complaints.push(format!("the local store failed: {message}")),
            Event::Lagged { missed } => told.complaints.push(format!("{missed} events were missed")),
            _ => {}
        }
    }
}

fn note_connection(told: &mut Told, state: ConnectionState) {
    if let Some(place) = place(state) {
        told.live.push((Instant::now(), place));
    }
}

fn place(state: ConnectionState) -> Option<Place> {
    match state {
        ConnectionState::Live { edge, region, transport } => Some(Place { edge, region, transport: transport.name() }),
        _ => None,
    }
}

/// Whose message it is, and which of his: texts are "NAME NUMBER". None: nobody of a run wrote it.
pub fn label(message: &tern_client::Message) -> Option<Message> {
    let text = std::str::from_utf8(&message.body).ok()?;
    let (_, n) = text.rsplit_once(' ')?;
    Some((message.by.user.as_str().to_owned(), n.parse().ok()?))
}
