//! A local store that fails, in paused time: typed, without haste, and nothing is lost that `send` has returned for.

use std::sync::atomic::AtomicBool;

use tern_client::store::{LocalStore, StoreError};
use tern_client::{CallError, Event, FallbackEdge, SendError};
use tern_core::client::{Change, Image, Message, MessageId, Op};
use tern_core::ids::{ConvId, Heads, Origin, Place, Seq};

use super::*;

/// A store that can't be written, or not even be read, while it is told so.
#[derive(Debug)]
struct Sick {
    inner: MemoryStore,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    unwritable: AtomicBool,
    unreadable: AtomicBool,
    tries: AtomicUsize,
}

impl State {
    fn set(&self, unwritable: bool, unreadable: bool) {
        self.unwritable.store(unwritable, Ordering::SeqCst);
        self.unreadable.store(unreadable, Ordering::SeqCst);
    }
}

impl LocalStore for Sick {
    fn load(&mut self) -> Result<Image, StoreError> {
        if self.state.unreadable.load(Ordering::SeqCst) {
            self.state.tries.fetch_add(1, Ordering::SeqCst);
            return Err(StoreError::Failed("the disk is gone".into()));
        }
        self.inner.load()
    }

    fn apply(&mut self, ops: &[Op]) -> Result<Vec<Change>, StoreError> {
        if self.state.unwritable.load(Ordering::SeqCst) {
            self.state.tries.fetch_add(1, Ordering::SeqCst);
            return Err(StoreError::Full);
        }
        self.inner.apply(ops)
    }

    fn timeline(&self, conversation: ConvId, horizon: u64, limit: usize) -> Result<Vec<Message>, StoreError> {
        self.inner.timeline(conversation, horizon, limit)
    }

    fn message(&self, id: MessageId) -> Result<Option<Message>, StoreError> {
        self.inner.message(id)
    }

    fn copies(&self, id: MessageId) -> Result<Vec<(Origin, Seq)>, StoreError> {
        self.inner.copies(id)
    }

    fn upto(&self, conversation: ConvId, key: Place) -> Result<Heads, StoreError> {
        self.inner.upto(conversation, key)
    }

    fn unread(&self, conversation: ConvId) -> Result<u64, StoreError> {
        self.inner.unread(conversation)
    }
}

/// A client with a good edge, live, and its disk.
async fn live() -> (Scene, Client, Arc<State>) {
    let scene = Scene::new();
    let mut config = scene.config();
    let at = scene.edge.listen_tcp().await;
    config.fallback_edges.push(FallbackEdge::new(at.to_string(), "localhost"));
    let inner = MemoryStore::new(user("alice"), InstallId::new("phone").unwrap());
    let state = Arc::new(State::default());
    let store = Box::new(Sick { inner, state: state.clone() });
    let builder = Client::builder(config).local_store(store).token_provider(scene.tokens.clone());
    let client = builder.env(scene.env.clone()).build().unwrap();
    until("live", || matches!(client.connection(), ConnectionState::Live { .. })).await;
    (scene, client, state)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), wait).await.is_ok(), "waited in vain: {what}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_told_tried_again_with_pauses_and_used_as_soon_as_it_works() {
    for unreadable in [false, true] {
        let (scene, client, disk) = live().await;
        let conversation = client.direct(&user("bob")).unwrap();
        conversation.send(Draft::text("before")).unwrap();
        let mut events = client.events();
        disk.set(true, unreadable);
        let refused = conversation.send(Draft::text("refused")).unwrap_err();
        assert!(matches!(refused, SendError::Call(CallError::Store(StoreError::Full))), "{refused}");
        let told = |c: &Client| match c.connection() {
            ConnectionState::Connecting { retry_at: Some(_), trouble: Some(Trouble::Store { message }) } => {
                Some(message)
            }
            _ => None,
        };
        assert!(told(&client).is_some(), "{:?}", client.connection());
        assert!(client.diagnostics().contains("store       failed"), "{}", client.diagnostics());
        if unreadable {
            // Not even a look at it is possible, and none makes it busy.
            assert!(conversation.timeline(10).is_err());
        }
        minutes(10).await;
        let tries = disk.tries.load(Ordering::SeqCst);
        assert!((10..60).contains(&tries), "{tries} tries in ten minutes");
        let (mut failures, mut states) = (0, 0);
        while let Some(event) = events.try_next() {
            failures += usize::from(matches!(event, Event::StoreFailed { .. }));
            let store = |t: &Option<Trouble>| matches!(t, Some(Trouble::Store { .. }));
            states += usize::from(
                matches!(&event, Event::Connection(ConnectionState::Connecting { trouble, .. }) if store(trouble)),
            );
        }
        assert!((10..60).contains(&failures) && failures == states, "{failures}, {states}");
        disk.set(false, false);
        until("live again by itself", || matches!(client.connection(), ConnectionState::Live { .. })).await;
        conversation.send(Draft::text("after")).unwrap();
        until("all is sent", || texts(&client) == ["before", "re: before", "after", "re: after"]).await;
        assert_eq!(scene.edge.core.lock().unwrap().log.len(), 4);
        client.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_goes_out_after_the_store_works_again() {
    let (scene, client, disk) = live().await;
    let conversation = client.direct(&user("bob")).unwrap();
    // Taken, and the disk fails before its ack is stored.
    conversation.send(Draft::text("taken")).unwrap();
    disk.set(true, true);
    minutes(3).await;
    disk.set(false, false);
    until("it is sent, once", || texts(&client) == ["taken", "re: taken"] && client.waiting().0 == 0).await;
    assert_eq!(scene.edge.core.lock().unwrap().log.len(), 2);
    client.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_suspended_while_its_store_fails_does_not_connect_when_it_works_again() {
    let (scene, client, disk) = live().await;
    disk.set(true, false);
    assert!(client.direct(&user("bob")).is_err());
    // What there is to do is done; the store is at fault, and that is said.
    drop(client.suspend(Duration::from_secs(5)).await);
    let hellos = scene.edge.core.lock().unwrap().hellos.len();
    disk.set(false, false);
    minutes(5).await;
    assert_eq!(client.connection(), ConnectionState::Offline);
    assert_eq!(scene.edge.core.lock().unwrap().hellos.len(), hellos);
    client.resume().unwrap();
    until("live", || matches!(client.connection(), ConnectionState::Live { .. })).await;
    client.close().await;
}
