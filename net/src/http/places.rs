//! How many connections are served at once, and whose place a new one takes when all are.
//!
//! The obvious rule, "new ones wait until a place is free", gives the server to whoever opens connections and
//! then says nothing: a thousand of them cost one machine nothing, and each keeps its place until it times
//! out. The rule: a new connection takes the place of the one that has had no request under way for the
//! longest time. Who is being answered is never turned out; only when all are, new ones wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot, watch};

/// All places of a server.
pub(super) struct Places {
    most: usize,
    table: Mutex<Table>,
    freed: Notify,
}

#[derive(Default)]
struct Table {
    held: BTreeMap<u64, Held>,
    /// Numbers connections, and the moments at which they had nothing more to do.
    tick: u64,
}

struct Held {
    /// The moment since when it has no request under way; None = it has one.
    idle_since: Option<u64>,
    /// Dropped to end it.
    _stay: oneshot::Sender<()>,
}

impl Places {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(1), table: Mutex::default(), freed: Notify::new() })
    }

    /// A place, when there is one. To be called by one task at a time.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        loop {
            if let Some(place) = self.try_take() {
                return place;
            }
            self.freed.notified().await;
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Place> {
        let mut table = self.table();
        if table.held.len() >= self.most {
            let idle = table.held.iter().filter_map(|(id, held)| Some((held.idle_since?, *id)));
            let (_, longest) = idle.min()?;
            table.held.remove(&longest);
        }
        table.tick += 1;
        let id = table.tick;
        let (stay, turned_out) = oneshot::channel();
        table.held.insert(id, Held { idle_since: Some(id), _stay: stay });
        let under_way = watch::Sender::new(0);
        Some(Place { held: Arc::new(HeldPlace { id, places: self.clone(), under_way }), turned_out })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each change is one step: a panic can't have left it half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection, free again when this is dropped.
pub(super) struct Place {
    pub(super) held: Arc<HeldPlace>,
    /// Ends when another connection needs the place more.
    pub(super) turned_out: oneshot::Receiver<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.held.places.table().held.remove(&self.held.id);
        self.held.places.freed.notify_one();
    }
}

/// What the requests of a connection know of its place.
pub(super) struct HeldPlace {
    id: u64,
    places: Arc<Places>,
    under_way: watch::Sender<usize>,
}

impl HeldPlace {
    /// How many requests are under way.
    pub(super) fn under_way(&self) -> watch::Receiver<usize> {
        self.under_way.subscribe()
    }

    fn change(&self, by: isize) {
        // Within the lock, or two changes might be told in the wrong order.
        let mut table = self.places.table();
        self.under_way.send_modify(|n| *n = n.saturating_add_signed(by));
        let idle = *self.under_way.borrow() == 0;
        table.tick += 1;
        let tick = table.tick;
        if let Some(held) = table.held.get_mut(&self.id) {
            held.idle_since = idle.then_some(tick);
        }
        drop(table);
        if idle {
            self.places.freed.notify_one();
        }
    }
}

/// One request more under way, until this is dropped.
pub(super) struct UnderWay(Arc<HeldPlace>);

impl UnderWay {
    pub(super) fn count(place: &Arc<HeldPlace>) -> Self {
        place.change(1);
        Self(place.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.change(-1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned_out(place: &mut Place) -> bool {
        matches!(place.turned_out.try_recv(), Err(oneshot::error::TryRecvError::Closed))
    }

    #[test]
    fn the_place_of_the_one_idle_longest_is_taken_and_never_that_of_a_request() {
        let places = Places::new(3);
        let mut held: Vec<Place> = (0..3).map(|_| places.try_take().unwrap()).collect();
        // The first asks and is answered: now the second is idle longest. The third is being answered.
        drop(UnderWay::count(&held[0].held));
        let third = UnderWay::count(&held[2].held);
        let mut fourth = places.try_take().unwrap();
        assert_eq!([0, 1, 2].map(|i| turned_out(&mut held[i])), [false, true, false]);
        // What is turned out frees no second place when it ends.
        drop(held.remove(1));
        let fourth_asks = UnderWay::count(&fourth.held);
        let mut fifth = places.try_take().unwrap();
        assert!(turned_out(&mut held[0]) && !turned_out(&mut held[1]) && !turned_out(&mut fourth));
        // All are busy: there is none, until one is free or idle.
        let fifth_asks = UnderWay::count(&fifth.held);
        assert!(places.try_take().is_none());
        drop(third);
        let sixth = places.try_take().unwrap();
        assert!(turned_out(&mut held[1]) && !turned_out(&mut fifth));
        drop((fourth_asks, fifth_asks, sixth));
        drop((fourth, fifth, held));
        assert!(places.table().held.is_empty());
    }

    #[tokio::test]
    async fn who_waits_is_let_in_by_an_end_and_by_an_answer() {
        for by_end in [true, false] {
            let places = Places::new(1);
            let first = places.take().await;
            let asking = UnderWay::count(&first.held);
            let mut waiting = std::pin::pin!(places.take());
            assert!(futures_poll(waiting.as_mut()).is_none());
            if by_end {
                drop(first);
                waiting.await;
            } else {
                drop(asking);
                waiting.await;
                drop(first);
            }
        }
    }

    fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }
}
