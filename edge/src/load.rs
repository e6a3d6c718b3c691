//! How long Sends wait on their whole way, and which are refused for it.
//!
//! A Send waits in the socket and for the tasks that read it, which soundings tell
//! ([`tern_net::sounding`]); then for the core and its store, which the time from reading it to writing its ack
//! tells, less what two commits take with nothing else to do: a slow disk is no load, and refusing makes it no
//! faster. The sum is what [`tern_core::pressure`] judges. Who is to be refused is told here, at once, from the
//! conversation's id alone: a refusal costs a frame each way, and nothing beyond this edge.
//!
//! A task of the edge watches while anyone sends, and sleeps otherwise: an idle edge sends no soundings.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tern_core::ids::ConvId;
use tern_core::pressure::{Level, Pressure, WINDOW, refused};
use tern_net::sounding::Sounding;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::edge::Edge;

/// Between two looks, and between two soundings: a few a window.
const EVERY: Duration = Duration::from_millis(20);
/// A sounding that has not come by then was lost, in a full buffer or by a filter of packets.
const LOST: Duration = Duration::from_secs(1);
/// The watch ends after so many looks in a row without a Send.
const IDLE_LOOKS: u32 = 50;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pressure: Mutex<Pressure>,
    lag_us: AtomicU64,
    /// Of an ack's time, what refusing does not shorten; `u64::MAX`: all of it.
    commit_us: AtomicU64,
    shed: AtomicU32,
    level: AtomicUsize,
    /// Something was sent since the last look.
    active: AtomicBool,
    watched: AtomicBool,
    begin: Notify,
}

impl Load {
    fn pressure(&self) -> MutexGuard<'_, Pressure> {
        self.pressure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A Send came: whether its sender is to come back later, and in how many milliseconds.
    pub(crate) fn refuses(&self, wall_ms: u64, conversation: ConvId) -> Option<u32> {
        if !self.active.load(Ordering::Relaxed) {
            self.active.store(true, Ordering::Relaxed);
            if !self.watched.load(Ordering::Relaxed) {
                self.begin.notify_one();
            }
        }
        // Whether it is a group's only the core knows.
        refused(self.shed.load(Ordering::Relaxed), wall_ms, conversation, false)
    }

    /// An ack is being written, so long after its Send was read.
    pub(crate) fn answered(&self, now: Duration, took: Duration) {
        // It may have come just after a commit began, and waited for that one and its own.
        let commits = Duration::from_micros(self.commit_us.load(Ordering::Relaxed).saturating_mul(2));
        let mut pressure = self.pressure();
        pressure.sample(now, self.lag() + took.saturating_sub(commits));
        self.publish(&pressure);
    }

    fn set_commit_time(&self, time: Option<Duration>) {
        let us = time.and_then(|time| u64::try_from(time.as_micros()).ok()).unwrap_or(u64::MAX);
        self.commit_us.store(us, Ordering::Relaxed);
    }

    /// How much is given up.
    pub(crate) fn level(&self) -> Level {
        Level::ALL.get(self.level.load(Ordering::Relaxed)).copied().unwrap_or_default()
    }

    /// How long what is sent waits before it is read.
    fn lag(&self) -> Duration {
        Duration::from_micros(self.lag_us.load(Ordering::Relaxed))
    }

    fn set_lag(&self, lag: Duration) {
        self.lag_us.store(u64::try_from(lag.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn look(&self, now: Duration) -> (Level, Duration, u32) {
        let mut pressure = self.pressure();
        pressure.roll(now);
        self.publish(&pressure);
        (pressure.level(), pressure.standing(), pressure.shed_permille())
    }

    fn publish(&self, pressure: &Pressure) {
        self.shed.store(pressure.shed_permille(), Ordering::Relaxed);
        self.level.store(pressure.level() as usize, Ordering::Relaxed);
    }
}

/// Watches the load of an edge until it stops. `sounding`: where datagrams wait in buffers of the system.
pub(crate) async fn watch(edge: Arc<Edge>, sounding: Option<Arc<Sounding>>) {
    let load = &edge.load;
    let mut stopped = edge.stopped();
    // Until one has come back, one that does not says nothing: it may be filtered.
    let mut proven = false;
    let mut idle = 0;
    while stopped.borrow().is_none() {
        if idle > IDLE_LOOKS && load.level() == Level::Normal {
            load.watched.store(false, Ordering::Relaxed);
            tokio::select! {
                biased;
                _ = stopped.changed() => return,
                () = load.begin.notified() => {}
            }
            idle = 0;
        }
        load.watched.store(true, Ordering::Relaxed);
        idle = if load.active.swap(false, Ordering::Relaxed) { 0 } else { idle + 1 };
        if let Some(sounding) = &sounding {
            sound(&edge, sounding, &mut proven).await;
        }
        look(&edge);
        tokio::select! {
            biased;
            _ = stopped.changed() => {}
            () = sleep(EVERY) => {}
        }
    }
}

/// One sounding. The load is looked at meanwhile.
async fn sound(edge: &Edge, sounding: &Sounding, proven: &mut bool) {
    let began = edge.env.clock.now();
    if !sounding.send() {
        return;
    }
    loop {
        let came = timeout(EVERY, sounding.came()).await.is_ok();
        let late = edge.env.clock.now().saturating_sub(began);
        if came {
            *proven = true;
            return edge.load.set_lag(late);
        }
        if *proven {
            // It stands at least so long already.
            edge.load.set_lag(edge.load.lag().max(late));
        }
        if late > LOST {
            return;
        }
        look(edge);
    }
}

fn look(edge: &Edge) {
    let (level, standing, shed) = edge.load.look(edge.env.clock.now());
    edge.metrics.lag.set(edge.load.lag().as_secs_f64());
    edge.metrics.standing.set(standing.as_secs_f64());
    edge.metrics.shed.set(f64::from(shed) / 1000.0);
    edge.load.set_commit_time(edge.give_up(level));
}

/// What is given up is told more often than it is forgotten.
const _: () = assert!(EVERY.as_millis() < WINDOW.as_millis());

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_waits_before_it_is_read_counts_as_well_as_what_waits_for_its_ack() {
        let load = Load::default();
        load.set_lag(30 * MS);
        for i in 0..40 {
            load.answered(Duration::from_secs(1) + 10 * MS * i, 10 * MS);
        }
        assert_eq!(load.level(), Level::Merge, "30 ms before, 10 ms after");
        assert_eq!(load.refuses(0, ConvId([1; 16])), None);
    }

    #[test]
    fn a_slow_disk_is_no_load_and_a_core_elsewhere_is_judged_by_nobody_here() {
        for commit in [Some(70 * MS), None] {
            let load = Load::default();
            load.set_commit_time(commit);
            load.set_lag(5 * MS);
            for i in 0..40 {
                load.answered(Duration::from_secs(1) + 10 * MS * i, 150 * MS);
            }
            let level = if commit.is_some() { Duration::from_millis(15) } else { Duration::from_millis(5) };
            assert_eq!((load.level(), load.pressure().standing()), (Level::Normal, level));
        }
    }

    #[test]
    fn a_queue_that_stands_refuses_some_conversations_and_an_edge_at_rest_none() {
        let load = Load::default();
        let mut now = Duration::from_secs(1);
        for _ in 0..60 {
            now += 10 * MS;
            load.answered(now, 400 * MS);
        }
        let refused = (0..200).filter(|i| load.refuses(0, ConvId([*i; 16])).is_some()).count();
        assert!((60..200).contains(&refused), "{refused} of 200");
        let mut looks = 0;
        while load.level() != Level::Normal {
            now += EVERY;
            load.look(now);
            looks += 1;
        }
        assert!(looks < 250, "nobody is refused 5 s after the last Send");
        assert_eq!(load.refuses(0, ConvId([1; 16])), None);
    }
}
