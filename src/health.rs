//! What a process says of its health: whether it is alive, whether it wants work, whether its start is over.
//!
//! Three questions, because their answers are acted on differently (Kubernetes has a probe for each, systemd a
//! watchdog and a notification). *Live* is asked by who restarts: it fails only where nothing but a restart
//! helps, which an unreachable peer is not. *Ready* is asked by who routes. *Started* is asked by who would
//! otherwise take a long replay for a hang.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tern_core::clock::Clock;

/// A part that has not answered for so long is stuck. Well above what a slow disk, a long compaction or a
/// suspended virtual machine takes: a needless restart of a region costs every client a reconnect.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);

type Ready = Box<dyn Fn() -> Result<(), String> + Send + Sync>;
type Note = Box<dyn Fn() -> Option<String> + Send + Sync>;
type Silence = Box<dyn Fn() -> Duration + Send + Sync>;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    phase: Option<&'static str>,
    since: Duration,
    serving: bool,
    ready: Vec<(&'static str, Ready)>,
    silence: Vec<(&'static str, Silence)>,
    beats: BTreeMap<&'static str, Duration>,
    notes: Vec<Note>,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("phase", &self.state().phase).finish_non_exhaustive()
    }
}

impl Health {
    /// Of a process that begins.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let state = State { phase: Some("reading the configuration"), since: clock.now(), ..State::default() };
        Self(Arc::new(Inner { clock, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the start is at, such as "opening the store".
    pub fn phase(&self, phase: &'static str) {
        tracing::debug!(phase, "starting");
        let mut state = self.state();
        state.phase = Some(phase);
        state.since = self.0.clock.now();
    }

    /// The start is over, and work is wanted.
    pub fn started(&self) {
        let mut state = self.state();
        state.phase = None;
        state.serving = true;
    }

    /// No more work is wanted: draining begins.
    pub fn draining(&self) {
        self.state().serving = false;
    }

    /// A part that must be able to work for work to be wanted; what it says if it can't is for operators.
    pub fn needs(&self, name: &'static str, ready: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        self.state().ready.push((name, Box::new(ready)));
    }

    /// What those who ask should know, and what makes nothing unready.
    pub fn notes(&self, note: impl Fn() -> Option<String> + Send + Sync + 'static) {
        self.state().notes.push(Box::new(note));
    }

    /// See [`Self::notes`].
    pub fn noted(&self) -> Vec<String> {
        self.state().notes.iter().filter_map(|note| note()).collect()
    }

    /// A part that is stuck when it has been silent for [`STUCK_AFTER`].
    pub fn watches(&self, name: &'static str, silence: impl Fn() -> Duration + Send + Sync + 'static) {
        self.state().silence.push((name, Box::new(silence)));
    }

    /// A part that says so itself when it is well; stuck when it has not for [`STUCK_AFTER`].
    pub fn beat(&self, name: &'static str) {
        let now = self.0.clock.now();
        self.state().beats.insert(name, now);
    }

    /// What the start is at and for how long; None: it is over.
    pub fn starting(&self) -> Option<(&'static str, Duration)> {
        let state = self.state();
        state.phase.map(|phase| (phase, self.0.clock.now().saturating_sub(state.since)))
    }

    /// Why work should not be sent here; empty: all is well.
    pub fn not_ready(&self) -> Vec<String> {
        if let Some((phase, since)) = self.starting() {
            return vec![format!("starting: {phase}, for {} s", since.as_secs())];
        }
        let state = self.state();
        let serving = (!state.serving).then(|| "serving: draining".to_owned());
        let parts = state.ready.iter().filter_map(|(name, ready)| ready().err().map(|why| format!("{name}: {why}")));
        serving.into_iter().chain(parts).collect()
    }

    /// Why only a restart helps; empty: it is alive.
    pub fn stuck(&self) -> Vec<String> {
        let state = self.state();
        let now = self.0.clock.now();
        let told = state.beats.iter().map(|(name, at)| (*name, now.saturating_sub(*at)));
        let asked = state.silence.iter().map(|(name, silence)| (*name, silence()));
        told.chain(asked)
            .filter(|(_, silence)| *silence >= STUCK_AFTER)
            .map(|(name, silence)| format!("{name}: has not answered for {} s", silence.as_secs()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    #[derive(Debug, Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::Relaxed))
        }

        fn wall_ms(&self) -> u64 {
            0
        }
    }

    #[test]
    fn a_start_names_its_phase_then_parts_name_themselves_until_draining_begins() {
        let clock = Arc::new(Hand::default());
        let health = Health::new(clock.clone());
        health.phase("opening the store");
        clock.0.store(7, Ordering::Relaxed);
        assert_eq!(health.not_ready(), ["starting: opening the store, for 7 s"]);
        let store = Arc::new(AtomicBool::new(false));
        let seen = store.clone();
        health.needs("store", move || seen.load(Ordering::Relaxed).then_some(()).ok_or_else(|| "full".to_owned()));
        health.started();
        assert_eq!(health.not_ready(), ["store: full"]);
        store.store(true, Ordering::Relaxed);
        health.notes(|| Some("cordoned".to_owned()));
        health.notes(|| None);
        assert!(health.not_ready().is_empty() && health.starting().is_none());
        assert_eq!(health.noted(), ["cordoned"]);
        health.draining();
        assert_eq!(health.not_ready(), ["serving: draining"]);
    }

    #[test]
    fn only_a_long_silence_is_death_and_a_long_start_is_not() {
        let clock = Arc::new(Hand::default());
        let health = Health::new(clock.clone());
        health.phase("opening the store");
        clock.0.store(10_000, Ordering::Relaxed);
        assert!(health.stuck().is_empty());
        health.beat("store");
        health.watches("core", || STUCK_AFTER - Duration::from_secs(1));
        clock.0.store(10_059, Ordering::Relaxed);
        assert!(health.stuck().is_empty());
        clock.0.store(10_060, Ordering::Relaxed);
        assert_eq!(health.stuck(), ["store: has not answered for 60 s"]);
        health.beat("store");
        assert!(health.stuck().is_empty());
        health.watches("core", || STUCK_AFTER);
        assert_eq!(health.stuck(), ["core: has not answered for 60 s"]);
    }
}
