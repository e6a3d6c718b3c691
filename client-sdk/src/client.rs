//! What an application sees: clients, conversations, timelines.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tern_core::client::{ConnectionState, DiscardRefused, GroupInfo, Message, MessageId, SendRefused, UnknownMessage};
use tern_core::ids::{ConvId, InstallId, UserId};
use tern_core::kinds::is_countable;
use tern_net::env::Env;
use tern_net::proxy::ThroughProxy;
use tern_net::system::system_env;
use tokio::sync::{oneshot, watch};

use crate::config::{ClientConfig, StaticToken, StoreChoice, TokenProvider, Tokens};
use crate::driver::{self, Tls};
use crate::events::Events;
use crate::limits::{CLOSE, LIST_LOOKS_BACK, PAGINATE};
use crate::shared::{Shared, Unavailable};
use crate::store::keys::{FileKeyStore, KeyStore};
use crate::store::sqlite::SqliteStore;
use crate::store::{LocalStore, OpenError, StoreError};

/// Why a client was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Neither `store` nor `local_store` was called.
    #[error("no store was given: call `store` with a directory, or `local_store`")]
    NoStore,
    /// The store can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The CA certificates can't be used.
    #[error("the CA certificates can't be used: {0}")]
    Tls(#[from] tern_net::tls::TlsError),
    /// The client's thread or its runtime can't be started.
    #[error("the client's thread can't be started: {0}")]
    Thread(std::io::Error),
}

/// Why a call had no effect, or gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

impl From<Unavailable> for CallError {
    fn from(why: Unavailable) -> Self {
        match why {
            Unavailable::Store(e) => Self::Store(e),
            Unavailable::Closed => Self::Closed,
        }
    }
}

/// Why a message was not taken into the outbox. Nothing was stored; it may be sent again.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The message can't be taken.
    #[error(transparent)]
    Refused(#[from] SendRefused),
    /// The store failed, or the client is closed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Why a message was not tried again.
#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    /// It is not waiting.
    #[error(transparent)]
    Unknown(#[from] UnknownMessage),
    /// The store failed, or the client is closed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Why a message was not discarded.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// It is not waiting, or may have been sent.
    #[error(transparent)]
    Refused(#[from] DiscardRefused),
    /// The store failed, or the client is closed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Why older messages did not come. What came is stored; asking again goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum PaginateError {
    /// There is no connection. The messages come by themselves once there is.
    #[error("offline: older messages come once there is a connection")]
    Offline,
    /// They did not come in time.
    #[error("older messages did not come within {PAGINATE:?}")]
    Late,
    /// The store failed, or the client is closed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// 0 = text.
    pub kind: u32,
    /// At most `tern_core::limits::BODY_BYTES`.
    pub body: Bytes,
}

impl Draft {
    /// Plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { kind: 0, body: Bytes::from(text.into()) }
    }
}

/// How many messages are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Exactly, or at least so many.
    pub count: u64,
    /// Whether it is exact: otherwise some are still to be pulled, and a server's number may be in it.
    pub exact: bool,
}

/// A timeline at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// In order of display; own ones that are not acked stand at the end, with `key: None`.
    pub messages: Vec<Message>,
    /// All there is of the conversation is on this device; `limit` may still cut it.
    pub reached_start: bool,
}

/// See [`Conversation::paginate_back`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paginated {
    /// There is nothing older.
    pub reached_start: bool,
}

/// A line of the conversation list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationInfo {
    /// Which.
    pub id: ConvId,
    /// Direct conversations: the other user.
    pub peer: Option<UserId>,
    /// Groups: title and members, as known here.
    pub group: Option<GroupInfo>,
    /// Groups: this user is not in it any more; it can be read up to then.
    pub left: bool,
    /// Until when it is muted, milliseconds since 1970; 0 = it is not.
    pub muted_until_ms: u64,
    /// See [`Conversation::unread`].
    pub unread: Unread,
    /// The newest message.
    pub last: Option<Message>,
}

/// Makes a client. See the crate's example.
pub struct Builder {
    config: ClientConfig,
    store: Option<StoreChoice>,
    keys: Option<Box<dyn KeyStore>>,
    tokens: Tokens,
    env: Option<Env>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Builder {
    /// Keeps everything in an SQLite file of this directory, which is made if need be.
    #[must_use]
    pub fn store(mut self, directory: impl Into<PathBuf>) -> Self {
        self.store = Some(StoreChoice::Directory(directory.into()));
        self
    }

    /// Where the install id is kept beside the store: the platform's key store. Default: a file.
    #[must_use]
    pub fn key_store(mut self, keys: Box<dyn KeyStore>) -> Self {
        self.keys = Some(keys);
        self
    }

    /// Keeps everything there.
    #[must_use]
    pub fn local_store(mut self, store: Box<dyn LocalStore>) -> Self {
        self.store = Some(StoreChoice::Given(store));
        self
    }

    /// Where tokens come from.
    #[must_use]
    pub fn token_provider(mut self, tokens: Arc<dyn TokenProvider>) -> Self {
        self.tokens = tokens;
        self
    }

    /// Sockets, clocks, randomness and tasks. Default: a thread of its own, named `tern-client`.
    #[must_use]
    pub fn env(mut self, env: Env) -> Self {
        self.env = Some(env);
        self
    }

    /// Opens the store and starts to connect. Needs no network.
    pub fn build(self) -> Result<Client, BuildError> {
        let (env, stop) = match self.env {
            Some(env) => (env, None),
            None => own_thread().map(|(env, stop)| (env, Some(stop)))?,
        };
        let store: Box<dyn LocalStore> = match self.store {
            None => return Err(BuildError::NoStore),
            Some(StoreChoice::Given(store)) => store,
            Some(StoreChoice::Directory(dir)) => {
                let path = SqliteStore::path(&dir, &self.config.user).with_extension("install");
                let keys = self.keys.unwrap_or_else(|| Box::new(FileKeyStore::new(path)));
                Box::new(SqliteStore::open(&dir, &self.config.user, keys.as_ref(), fresh_install(&env)?)?)
            }
        };
        let env = match &self.config.proxy {
            Some(proxy) => Env { net: Arc::new(ThroughProxy::new(env.net.clone(), proxy.clone())), ..env },
            None => env,
        };
        let shared = Arc::new(Shared::new(env, self.config, self.tokens, store)?);
        let tls = if shared.config.roots_pem.is_empty() { None } else { Some(Tls::new(&shared)?) };
        let (done, ended) = watch::channel(false);
        let driver = shared.clone();
        shared.env.tasks.spawn(async move {
            driver::run(driver, tls).await;
            done.send_replace(true);
        });
        // A store error was told as an event and is tried again.
        let _told = shared.connect();
        Ok(Client { handle: Arc::new(Handle { shared, ended, _stop: stop }) })
    }
}

/// 32 random hexadecimal digits.
fn fresh_install(env: &Env) -> Result<InstallId, OpenError> {
    let text = format!("{:016x}{:016x}", env.rng.u64(), env.rng.u64());
    InstallId::new(&text).map_err(|e| OpenError::Keys(std::io::Error::other(e)))
}

/// A thread with a runtime; it ends when the sender is dropped.
fn own_thread() -> Result<(Env, oneshot::Sender<()>), BuildError> {
    let (stop, stopped) = oneshot::channel::<()>();
    let (send, receive) = mpsc::channel();
    let body = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => {
                drop(send.send(Err(e)));
                return;
            }
        };
        runtime.block_on(async move {
            // Whoever waits for the environment is there: it blocks on the other end.
            drop(send.send(system_env()));
            // Ends with the client: a dropped sender is the signal.
            drop(stopped.await);
            // The last close frames get out.
            tokio::time::sleep(Duration::from_millis(200)).await;
        });
    };
    thread::Builder::new().name("tern-client".to_owned()).spawn(body).map_err(BuildError::Thread)?;
    let gone = || std::io::Error::other("the client's thread ended at once");
    let env = receive.recv().unwrap_or_else(|_| Err(gone())).map_err(BuildError::Thread)?;
    Ok((env, stop))
}

#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
    ended: watch::Receiver<bool>,
    _stop: Option<oneshot::Sender<()>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// A client of one user on one device. Cheap to clone; the last one dropped closes it.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) handle: Arc<Handle>,
}

impl Client {
    /// Begins to make a client. Without a token provider it stays offline.
    pub fn builder(config: ClientConfig) -> Builder {
        Builder { config, store: None, keys: None, tokens: Arc::new(StaticToken(String::new())), env: None }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// The user.
    pub fn user(&self) -> &UserId {
        &self.shared().config.user
    }

    /// The install id under which new messages are counted.
    pub fn install(&self) -> InstallId {
        self.shared().lock().machine.install().clone()
    }

    /// The direct conversation with `peer`. Made here if it is not known; known to others with its first
    /// message.
    pub fn direct(&self, peer: &UserId) -> Result<Conversation, CallError> {
        self.shared().act(|m, _| m.direct(peer))?;
        Ok(Conversation { handle: self.handle.clone(), which: Which::Direct(peer.clone()) })
    }

    /// A conversation by its id.
    pub fn conversation(&self, id: ConvId) -> Conversation {
        Conversation { handle: self.handle.clone(), which: Which::Id(id) }
    }

    /// All conversations of this device, the one with the newest message first.
    pub fn conversations(&self) -> Result<Vec<ConversationInfo>, CallError> {
        let mut all = self.shared().look(|machine, store| {
            let blocked = machine.blocked();
            let of = |record: &tern_core::client::ConversationRecord| {
                let (count, exact) = machine.unread(record.id, store.unread(record.id)?);
                let group = machine.group(record.id);
                let hidden = if group.is_some() { Some(&blocked) } else { None };
                Ok(ConversationInfo {
                    id: record.id,
                    peer: record.peer.clone(),
                    group,
                    left: record.has_left(),
                    muted_until_ms: machine.muted_until(record.id),
                    unread: Unread { count, exact },
                    last: newest(store, record.id, hidden)?,
                })
            };
            // The user's own log holds settings, not messages.
            let own = machine.own_log();
            machine.conversations().filter(|record| record.id != own).map(of).collect::<Result<Vec<_>, StoreError>>()
        })?;
        // A message without a place is newer than all that have one.
        let newest = |c: &ConversationInfo| c.last.as_ref().map(|m| (m.key.is_none(), m.key, m.id));
        all.sort_by_key(|c| (std::cmp::Reverse(newest(c)), c.id));
        Ok(all)
    }

    /// One message, whatever became of it.
    pub fn message(&self, id: MessageId) -> Result<Option<Message>, CallError> {
        Ok(self.shared().look(|_, store| store.message(id))?)
    }

    /// Everything that happens from now on.
    pub fn events(&self) -> Events {
        Events::new(self.shared().subscribe())
    }

    /// Whether and how it is connected.
    pub fn connection(&self) -> ConnectionState {
        self.shared().lock().connection()
    }

    /// The smoothed round trip of the connection, once one was measured.
    pub fn round_trip(&self) -> Option<Duration> {
        self.shared().lock().machine.round_trip()
    }

    /// Own messages that are not acked, and those acked and not stable.
    pub fn waiting(&self) -> (usize, usize) {
        self.shared().lock().machine.waiting()
    }

    /// How the client came to be where it is, as a text that a user can send to whoever helps him: attempts with their
    /// causes, round trips, transports, the heartbeat, the queue. Nothing of messages, users or tokens is in it.
    pub fn diagnostics(&self) -> String {
        let (now, wall_ms) = (self.shared().env.clock.now(), self.shared().env.clock.wall_ms());
        let inner = self.shared().lock();
        inner.store_line(now) + &inner.machine.diagnostics(now, wall_ms)
    }

    /// Connects now instead of later, and after a [`crate::Event::Kicked`].
    pub fn reconnect(&self) -> Result<(), CallError> {
        Ok(self.shared().connect()?)
    }

    /// Ends the connection and gives the store back: it may be opened again once this returns. Calls on any
    /// clone fail from then on. What was sent and not acked stays in the store.
    pub async fn close(self) {
        self.shared().close();
        let mut ended = self.handle.ended.clone();
        if tokio::time::timeout(CLOSE, ended.wait_for(|done| *done)).await.is_err() {
            tracing::warn!("the client's driver did not end in time; its store is closed");
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Which {
    Direct(UserId),
    Id(ConvId),
}

/// A conversation. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Conversation {
    pub(crate) handle: Arc<Handle>,
    pub(crate) which: Which,
}

impl Conversation {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Its id. That of a direct conversation changes once, with the first connection ever of this device: see
    /// [`crate::Event::Renamed`].
    pub fn id(&self) -> ConvId {
        match &self.which {
            Which::Direct(peer) => self.shared().lock().machine.direct_id(peer),
            Which::Id(id) => *id,
        }
    }

    /// Puts a message into the outbox: stored when it returns. It goes out in order, as soon as it can.
    pub fn send(&self, draft: Draft) -> Result<MessageId, SendError> {
        let wall_ms = self.shared().env.clock.wall_ms();
        let sent = self.shared().act(|machine, now| {
            let id = match &self.which {
                Which::Direct(peer) => machine.direct(peer),
                Which::Id(id) => *id,
            };
            machine.send(now, id, draft.kind, draft.body, wall_ms)
        });
        Ok(sent.map_err(CallError::from)??)
    }

    /// Tries a failed message again.
    pub fn retry(&self, id: MessageId) -> Result<(), RetryError> {
        Ok(self.shared().act(|m, now| m.retry(now, id)).map_err(CallError::from)??)
    }

    /// Drops a message that failed or was never handed to a connection; what it held back goes on.
    pub fn discard(&self, id: MessageId) -> Result<(), DiscardError> {
        Ok(self.shared().act(|m, now| m.discard(now, id)).map_err(CallError::from)??)
    }

    /// The newest `limit` messages of those that can be shown without a hole, and own ones that are waiting.
    pub fn timeline(&self, limit: usize) -> Result<Snapshot, CallError> {
        let id = self.id();
        Ok(self.shared().look(|machine, store| {
            let mut messages = store.timeline(id, machine.horizon(id), limit)?;
            if machine.group(id).is_some() {
                // Blocked users write to groups all the same; it is not shown.
                let blocked = machine.blocked();
                messages.retain(|m| !blocked.contains(&m.by.user));
            }
            Ok(Snapshot { messages, reached_start: machine.reached_start(id) })
        })?)
    }

    /// Fetches about `count` older messages; they are there when it returns. May be cancelled: what was
    /// asked for still comes.
    pub async fn paginate_back(&self, count: u64) -> Result<Paginated, PaginateError> {
        let id = self.id();
        let mut version = self.shared().version.subscribe();
        if self.shared().act(|m, now| m.page_back(now, id, count)).map_err(CallError::from)? {
            return Ok(Paginated { reached_start: true });
        }
        let came = async {
            loop {
                let now = self.shared().env.clock.now();
                let look = self.shared().look(|machine, _| Ok((machine.is_pulling(now, id), machine.connection())));
                match look.map_err(CallError::from)? {
                    (false, _) => break,
                    (true, ConnectionState::Live { .. } | ConnectionState::Recovering { .. }) => {}
                    (true, _) => return Err(PaginateError::Offline),
                }
                if version.changed().await.is_err() {
                    return Err(CallError::Closed.into());
                }
            }
            let look = self.shared().look(|machine, _| Ok(machine.reached_start(id)));
            Ok(Paginated { reached_start: look.map_err(CallError::from)? })
        };
        tokio::time::timeout(PAGINATE, came).await.unwrap_or(Err(PaginateError::Late))
    }

    /// Everything that is held is read, on all devices of the user.
    pub fn mark_read(&self) -> Result<(), CallError> {
        let id = self.id();
        Ok(self.shared().act(|m, now| m.mark_read(now, id, None))?)
    }

    /// This message, and everything displayed before it, is read. One without a place changes nothing.
    pub fn mark_read_upto(&self, message: MessageId) -> Result<(), CallError> {
        let id = self.id();
        let upto = self.shared().look(|_, store| {
            let key = store.message(message)?.filter(|m| m.conversation == id).and_then(|m| m.key);
            key.map(|key| store.upto(id, key)).transpose()
        })?;
        if let Some(upto) = upto {
            self.shared().act(|m, now| m.mark_read(now, id, Some(&upto)))?;
        }
        Ok(())
    }

    /// Whether the other user of a direct conversation has read this message.
    pub fn peer_has_read(&self, message: MessageId) -> Result<bool, CallError> {
        let id = self.id();
        Ok(self.shared().look(|machine, store| {
            let read = machine.peer_read(id);
            let copies = store.copies(message)?;
            Ok(copies.iter().any(|(origin, seq)| read.get(origin).is_some_and(|upto| seq <= upto)))
        })?)
    }

    /// This user is typing here, or has stopped: to be called with every change of what he writes, `false` when it
    /// is empty again; `send` ends it by itself. The others get [`crate::Event::Typing`] while they are connected.
    /// Says it again every few seconds at most; does nothing offline, and is never kept.
    pub fn typing(&self, typing: bool) -> Result<(), CallError> {
        let id = self.id();
        Ok(self.shared().act(|m, now| m.typing(now, id, typing))?)
    }

    /// Who else is typing here now.
    pub fn who_is_typing(&self) -> Result<Vec<UserId>, CallError> {
        let id = self.id();
        Ok(self.shared().look(|machine, _| Ok(machine.typists(id)))?)
    }

    /// How many messages of others are not read.
    pub fn unread(&self) -> Result<Unread, CallError> {
        let id = self.id();
        Ok(self.shared().look(|machine, store| {
            let (count, exact) = machine.unread(id, store.unread(id)?);
            Ok(Unread { count, exact })
        })?)
    }
}

/// The newest message that is shown in a list.
fn newest(
    store: &dyn LocalStore,
    id: ConvId,
    hidden: Option<&BTreeSet<UserId>>,
) -> Result<Option<Message>, StoreError> {
    let shown = |m: &Message| {
        let message = is_countable(m.kind) || m.kind >= 64;
        message && hidden.is_none_or(|hidden| !hidden.contains(&m.by.user))
    };
    // Changes of the group and what is hidden stand between messages: look a little way back.
    Ok(store.timeline(id, 0, LIST_LOOKS_BACK)?.into_iter().rev().find(shown))
}
