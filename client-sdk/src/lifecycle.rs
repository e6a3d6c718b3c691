//! The application's life on a phone: put away, woken by a push, taken out again.

use std::time::Duration;

use tern_core::client::{ConnectionState, MessageId, NetInfo, Placed, Saving, Trouble};
use tokio::time::timeout;

use crate::client::{CallError, Client};
use crate::events::Event;

/// What a push notification brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Messages of others that came meanwhile, in the order in which they came.
    pub messages: Vec<MessageId>,
    /// All that there is has come. Otherwise the time was over first: what has come is kept, the rest comes later.
    pub caught_up: bool,
}

impl Client {
    /// The device's network changed, or with `None` something of it did: back-offs end, the connection in use has to
    /// show that it lives, and what is known of this network decides what is tried first.
    ///
    /// # Errors
    /// Where the client is closed, or its store failed.
    pub fn network_changed(&self, info: Option<NetInfo>) -> Result<(), CallError> {
        Ok(self.shared().act(|machine, now| machine.network_changed(now, info))?)
    }

    /// Whether the user looks at the application. In the background the heartbeat is learned: it costs as little as the
    /// network allows. The default is the foreground.
    ///
    /// # Errors
    /// Where the client is closed, or its store failed.
    pub fn set_foreground(&self, foreground: bool) -> Result<(), CallError> {
        Ok(self.shared().act(|machine, now| machine.set_foreground(now, foreground))?)
    }

    /// When data is to be saved while the application is in the background: by default on networks that
    /// [`Client::network_changed`] calls metered. Of what was missed then only the newest messages of each conversation are
    /// fetched, enough for a notification; the rest comes with the foreground or with another network, and whatever the
    /// application asks for comes at once. Kept until the client is closed.
    ///
    /// # Errors
    /// Where the client is closed, or its store failed.
    pub fn set_saving(&self, saving: Saving) -> Result<(), CallError> {
        Ok(self.shared().act(|machine, now| machine.set_saving(now, saving))?)
    }

    /// The system is about to stop this process: what waits to be sent is given until `deadline` from now, then the
    /// connection ends, and the store is brought to rest: it holds no lock and no file half written until the next call.
    /// Tells whether nothing waits to be sent. Calls stay possible; what is sent then is stored, and goes out after
    /// [`Client::resume`].
    ///
    /// # Errors
    /// Where the client is closed, or its store failed; it is offline then, too.
    pub async fn suspend(&self, deadline: Duration) -> Result<bool, CallError> {
        let until = self.shared().env.clock.now() + deadline;
        let mut version = self.shared().version.subscribe();
        self.set_foreground(false)?;
        let hopeless = |state| match state {
            ConnectionState::Offline => true,
            ConnectionState::Connecting { trouble, .. } => matches!(trouble, Some(Trouble::Store { .. })),
            _ => false,
        };
        while self.waiting().0 > 0 && !hopeless(self.connection()) {
            match timeout(self.left(until), version.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        self.shared().suspend()?;
        Ok(self.waiting().0 == 0)
    }

    /// The application is in use again: connects at once, in the foreground.
    ///
    /// # Errors
    /// Where the client is closed, or its store failed.
    pub fn resume(&self) -> Result<(), CallError> {
        self.set_foreground(true)?;
        self.reconnect()
    }

    /// A push notification came while the application was put away: connects, takes what there is until `deadline` from
    /// now, and leaves everything as it was: a suspended client is suspended again. Of the payload nothing is needed: any
    /// push says that there is something.
    ///
    /// # Errors
    /// Where the client is closed, or its store failed.
    pub async fn handle_push(&self, _payload: &[u8], deadline: Duration) -> Result<Pushed, CallError> {
        let until = self.shared().env.clock.now() + deadline;
        let suspended = self.connection() == ConnectionState::Offline;
        let mut events = self.events();
        let mut version = self.shared().version.subscribe();
        if suspended {
            self.reconnect()?;
        } else {
            // It may be dead without knowing.
            self.network_changed(None)?;
        }
        let mut pushed = Pushed::default();
        loop {
            pushed.caught_up = matches!(self.connection(), ConnectionState::Live { .. });
            if pushed.caught_up || !matches!(timeout(self.left(until), version.changed()).await, Ok(Ok(()))) {
                break;
            }
        }
        while let Some(event) = events.try_next() {
            if let Event::Message(change) = event
                && matches!(change.what, Placed::Appended | Placed::Inserted { .. })
                && self.message(change.id)?.is_some_and(|message| message.by.user != *self.user())
            {
                pushed.messages.push(change.id);
            }
        }
        if suspended {
            self.suspend(self.left(until)).await?;
        }
        Ok(pushed)
    }

    fn left(&self, until: Duration) -> Duration {
        until.saturating_sub(self.shared().env.clock.now())
    }
}
