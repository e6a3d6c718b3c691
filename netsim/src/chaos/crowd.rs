//! The users: clients of the client library, as applications use it, who write to each other and remember what they were
//! told.
//!
//! All clients live in this process and keep what they have in memory, so that a hundred of them cost no disk. Each
//! message says which it is: what a staging's conversations hold from earlier runs is not taken for this one's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tern_client::store::memory::MemoryStore;
use tern_client::{
    Change, Client, ClientConfig, ConnectionState, Conversation, DispatchServer, Draft, Env, Event, InstallId, Message,
    MessageId, Placed, StaticToken, UserId,
};
use tern_netsim_verdict::{Reading, Spot};

use super::error::ChaosError;
use super::observed::{Known, Observed, Sent};
use crate::real::device::monotonic_ns;

/// Events of a client that may wait to be noted: after a link was down for ten minutes everything comes at once.
const EVENTS: usize = 1 << 16;
/// More messages than a run has.
const WHOLE_TIMELINE: usize = usize::MAX >> 1;
/// Older messages that are asked for at once.
const OLDER: u64 = 500;

/// Where clients find the system.
#[derive(Clone, Debug)]
pub struct Doors {
    /// Region, `host:port` and the certificate's name, of each dispatch.
    pub dispatch: Vec<(String, String, String)>,
    /// What is pinned, as PEM.
    pub roots: Vec<u8>,
}

struct Member {
    client: Client,
}

/// See the module.
pub struct Crowd {
    members: Vec<Member>,
    /// Who write to each other, and each one's handle.
    pairs: Vec<[(usize, Conversation); 2]>,
    run: String,
    bytes: usize,
    observed: Arc<Mutex<Observed>>,
    zero_ns: u64,
    written: u64,
}

fn lock(observed: &Mutex<Observed>) -> MutexGuard<'_, Observed> {
    observed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who writes to whom: neighbours first, which are of different regions where there are several.
pub fn pairs(clients: usize, count: usize) -> Vec<(usize, usize)> {
    let mut all: Vec<(usize, usize)> = Vec::new();
    for distance in 1..=clients / 2 {
        for one in 0..clients {
            let other = (one + distance) % clients;
            let pair = (one.min(other), one.max(other));
            // Opposite ones meet from both sides.
            if distance * 2 == clients && one >= distance {
                continue;
            }
            all.push(pair);
            if all.len() == count {
                return all;
            }
        }
    }
    all
}

/// The user names of the clients, with their regions: regions take turns.
pub fn users(regions: &[String], of_each: u64) -> Vec<(String, String)> {
    let of = |n| regions.iter().map(move |region| (format!("chaos-{region}-{n}"), region.clone()));
    (1..=of_each).flat_map(of).collect()
}

impl Crowd {
    /// Opens all clients, which begin to connect. `run` names this run in messages.
    pub fn open(
        env: &Env,
        users: &[(String, String, String)],
        doors: &Doors,
        count: usize,
        bytes: usize,
        run: &str,
    ) -> Result<Self, ChaosError> {
        let observed = Arc::new(Mutex::new(Observed::default()));
        let zero_ns = monotonic_ns();
        let mut members = Vec::new();
        for (number, (user, region, token)) in users.iter().enumerate() {
            let wrong = |what: &dyn std::fmt::Display| ChaosError::Clients(format!("the client of {user}: {what}"));
            let id = UserId::new(user).map_err(|error| wrong(&error))?;
            let mut config = ClientConfig::new(id.clone());
            config.events = EVENTS;
            config.roots_pem.clone_from(&doors.roots);
            let mut dispatch: Vec<_> = doors.dispatch.iter().collect();
            dispatch.sort_by_key(|(of, _, _)| of != region);
            config.dispatch = dispatch
                .into_iter()
                .map(|(_, address, name)| DispatchServer { address: address.clone(), server_name: name.clone() })
                .collect();
            let install = format!("{:016x}{:016x}", env.rng.u64(), env.rng.u64());
            let install = InstallId::new(&install).map_err(|error| wrong(&error))?;
            let client = Client::builder(config)
                .env(env.clone())
                .local_store(Box::new(MemoryStore::new(id, install)))
                .token_provider(Arc::new(StaticToken(token.clone())))
                .build()
                .map_err(|error| wrong(&error))?;
            lock(&observed).add_client(user, region);
            let listener = Listener {
                number,
                client: client.clone(),
                observed: Arc::clone(&observed),
                run: run.to_owned(),
                zero_ns,
            };
            listener.connection(client.connection());
            let mut events = client.events();
            env.tasks.spawn(async move {
                while let Some(event) = events.next().await {
                    listener.note(event);
                }
            });
            members.push(Member { client });
        }
        let mut both = Vec::new();
        for (one, other) in pairs(members.len(), count) {
            let handle = |from: usize, to: usize| {
                let peer = UserId::new(&users[to].0).map_err(|error| ChaosError::Clients(error.to_string()))?;
                let opened = members[from].client.direct(&peer);
                opened.map(|handle| (from, handle)).map_err(|error| ChaosError::Clients(error.to_string()))
            };
            both.push([handle(one, other)?, handle(other, one)?]);
        }
        Ok(Self { members, pairs: both, run: run.to_owned(), bytes, observed, zero_ns, written: 0 })
    }

    /// Time of the run.
    pub fn now_ns(&self) -> u64 {
        monotonic_ns().saturating_sub(self.zero_ns)
    }

    /// The same clock, to be taken along.
    pub fn clock(&self) -> impl Fn() -> u64 + Send + 'static {
        let zero_ns = self.zero_ns;
        move || monotonic_ns().saturating_sub(zero_ns)
    }

    /// Who is not connected and up to date, and why.
    pub fn not_live(&self, users: &[(String, String, String)]) -> Vec<String> {
        let all = self.members.iter().zip(users);
        let not = all.filter(|(member, _)| !matches!(member.client.connection(), ConnectionState::Live { .. }));
        not.map(|(member, (user, ..))| format!("{user} is {:?}", member.client.connection())).collect()
    }

    /// The next message. Conversations take turns, and so do the two of each.
    pub fn write(&mut self) -> Result<(), ChaosError> {
        let count = self.pairs.len() as u64;
        let pair = usize::try_from(self.written % count).unwrap_or(0);
        let side = usize::from((self.written / count) % 2 == 1);
        self.written += 1;
        let (from, conversation) = &self.pairs[pair][side];
        let name = format!("{pair}/{}", self.written);
        let mut body = format!("{} {name} ", self.run);
        body.extend(std::iter::repeat_n('.', self.bytes.saturating_sub(body.len())));
        let sent_ns = self.now_ns();
        let id = conversation.send(Draft::text(body)).map_err(|error| ChaosError::Clients(error.to_string()))?;
        let to = self.pairs[pair][1 - side].0;
        lock(&self.observed).sent(id, Sent::new(pair, *from, to, name, sent_ns));
        Ok(())
    }

    /// What is known so far.
    pub fn observed(&self) -> MutexGuard<'_, Observed> {
        lock(&self.observed)
    }

    /// Fetches what devices have left out: one that missed much fetches the newest first, and the rest when it is asked
    /// for. What does not come now is asked for again.
    pub async fn fetch_older(&self) {
        for (_, conversation) in self.pairs.iter().flatten() {
            let reached = conversation.timeline(1).is_ok_and(|shown| shown.reached_start);
            if !reached {
                let _later = conversation.paginate_back(OLDER).await;
            }
        }
    }

    /// Looks at all conversations from both sides. What a device that is not up to date lacks may still be there.
    pub fn read(&self) -> Result<Vec<Reading>, ChaosError> {
        let mut readings = Vec::new();
        for (pair, sides) in self.pairs.iter().enumerate() {
            for (member, conversation) in sides {
                let invoked_ns = self.now_ns();
                let shown = conversation.timeline(WHOLE_TIMELINE).map_err(|e| ChaosError::Clients(e.to_string()))?;
                let entries = shown.messages.iter().filter_map(|message| {
                    let spot = spot(message)?;
                    Some((spot, name(message, &self.run).map(str::to_owned)))
                });
                let is_live = matches!(self.members[*member].client.connection(), ConnectionState::Live { .. });
                readings.push(Reading {
                    client: lock(&self.observed).clients[*member].user.clone(),
                    log: pair.to_string(),
                    invoked_ns,
                    entries: entries.collect(),
                    returned_ns: self.now_ns(),
                    is_whole: is_live && shown.reached_start,
                });
            }
        }
        Ok(readings)
    }

    /// What each client says of how it got where it is, by user.
    pub fn diagnostics(&self) -> Vec<(String, String)> {
        let users = lock(&self.observed).clients.iter().map(|client| client.user.clone()).collect::<Vec<_>>();
        users.into_iter().zip(self.members.iter().map(|member| member.client.diagnostics())).collect()
    }

    /// Closes all clients.
    pub async fn close(self) {
        for member in self.members {
            member.client.close().await;
        }
    }
}

fn spot(message: &Message) -> Option<Spot> {
    let place = message.key?;
    let origin = format!("{}.{:x}", place.origin.region, place.origin.era);
    Some(Spot { hlc: place.hlc, origin, seq: place.seq })
}

/// The name of a message of this run.
fn name<'a>(message: &'a Message, run: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(&message.body).ok()?;
    let mut words = text.split(' ');
    (words.next() == Some(run)).then_some(())?;
    words.next()
}

struct Listener {
    number: usize,
    client: Client,
    observed: Arc<Mutex<Observed>>,
    run: String,
    zero_ns: u64,
}

impl Listener {
    fn now_ns(&self) -> u64 {
        monotonic_ns().saturating_sub(self.zero_ns)
    }

    fn note(&self, event: Event) {
        match event {
            Event::Connection(state) => self.connection(state),
            Event::Sent { id, .. } | Event::Stable { id, .. } => self.acked(id),
            Event::Message(Change { id, what: Placed::Appended | Placed::Inserted { .. }, .. }) => self.shown(id),
            Event::Failed { id, .. } => lock(&self.observed).refused(self.number, id),
            Event::ReOffered { count, .. } => lock(&self.observed).re_offered += count,
            Event::Lagged { missed } => lock(&self.observed).missed_events += missed,
            _ => {}
        }
    }

    fn connection(&self, state: ConnectionState) {
        let at = match state {
            ConnectionState::Live { edge, region, .. } => Some((edge, region)),
            _ => None,
        };
        let now_ns = self.now_ns();
        lock(&self.observed).clients[self.number].states.push((now_ns, at));
    }

    fn acked(&self, id: MessageId) {
        let now_ns = self.now_ns();
        // It is gone only when the client is closed, at the end.
        if let Ok(Some(message)) = self.client.message(id)
            && let Some(spot) = spot(&message)
        {
            lock(&self.observed).acked(self.number, id, now_ns, spot);
        }
    }

    fn shown(&self, id: MessageId) {
        let now_ns = self.now_ns();
        if let Ok(Some(message)) = self.client.message(id)
            && message.by.user != *self.client.user()
            && let Some(name) = name(&message, &self.run)
        {
            lock(&self.observed).shown(Known { client: self.number, name: name.to_owned() }, now_ns);
        }
    }
}

/// Reads what clients pin.
pub fn roots(path: &Path) -> Result<Vec<u8>, ChaosError> {
    std::fs::read(path).map_err(ChaosError::io(format!("can't read the CA {}", path.display())))
}

/// Tokens of a file: lines of `USER TOKEN`.
pub fn tokens_of_file(path: &Path) -> Result<BTreeMap<String, String>, ChaosError> {
    let text = std::fs::read_to_string(path).map_err(ChaosError::io(format!("can't read {}", path.display())))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let pair =
                line.split_once(char::is_whitespace).map(|(user, token)| (user.to_owned(), token.trim().to_owned()));
            pair.ok_or_else(|| ChaosError::Script(format!("{}: a line is not USER TOKEN", path.display())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_pairs_are_different_and_neighbours_come_first() {
        assert_eq!(pairs(4, 4), [(0, 1), (1, 2), (2, 3), (0, 3)]);
        for clients in 2..9 {
            let all = pairs(clients, usize::MAX);
            let different: BTreeSet<_> = all.iter().collect();
            assert_eq!((all.len(), different.len()), (clients * (clients - 1) / 2, all.len()), "{clients}");
            assert!(all.iter().all(|(one, other)| one < other));
        }
        assert_eq!(pairs(2, 1), [(0, 1)]);
        let users = users(&["eu".into(), "us".into()], 2);
        let names: Vec<&str> = users.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["chaos-eu-1", "chaos-us-1", "chaos-eu-2", "chaos-us-2"]);
    }
}
