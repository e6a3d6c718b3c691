//! Who writes a run's history, and notices the moments for which faults wait.
//!
//! Everything that happens is told here, by apps, stores and the stage alike, in the order in which it happens. A line
//! is written before a fault that waits for it strikes, and the fault strikes before whoever told goes on: "after the
//! commit, before the ack" is hit exactly, however short it is.
//!
//! What a scenario may ask to have happened ([`tern_netsim_scenario::sometimes::NAMES`]) is counted here as well, from
//! the same events.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tern_netsim_scenario::plan::{Moment, Trigger};
use tern_netsim_verdict::{Event, Line};

/// Called with the number of a trigger when it fires, before anything else happens.
pub type Reaction = Box<dyn Fn(usize) + Send + Sync>;

/// See the module.
pub struct Scribe {
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
    book: Mutex<Book>,
    reaction: OnceLock<Reaction>,
}

impl fmt::Debug for Scribe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scribe").finish_non_exhaustive()
    }
}

/// What is known of a message.
#[derive(Debug, Default)]
struct Known {
    device: String,
    passed: BTreeSet<Moment>,
    regions: BTreeSet<String>,
    /// Devices that were not live when it was sent.
    away: BTreeSet<String>,
    ack_lost: bool,
}

/// What is known of a device.
#[derive(Debug, Default)]
struct Seat {
    live: bool,
    was_live: bool,
    transport: Option<String>,
    edge: Option<String>,
    region: Option<String>,
    /// Faults that make its connection stale without closing it.
    dark: usize,
}

#[derive(Debug, Default)]
struct Book {
    lines: Vec<Line>,
    messages: BTreeMap<String, Known>,
    /// Committed, not acked yet.
    open: BTreeSet<String>,
    erased: BTreeSet<String>,
    devices: BTreeMap<String, Seat>,
    /// By device and user: he is there.
    presences: BTreeMap<(String, String), bool>,
    triggers: Vec<(Trigger, u64)>,
    counts: BTreeMap<&'static str, u64>,
}

impl Scribe {
    /// Nothing has happened yet. `clock` tells nanoseconds since the run began.
    pub fn new(clock: Box<dyn Fn() -> u64 + Send + Sync>, triggers: Vec<Trigger>) -> Arc<Self> {
        let triggers = triggers.into_iter().map(|trigger| (trigger, 0)).collect();
        let book = Book { triggers, ..Book::default() };
        Arc::new(Self { clock, book: Mutex::new(book), reaction: OnceLock::new() })
    }

    /// Who is called when a trigger fires. Set once.
    pub fn react(&self, reaction: Reaction) {
        // A second one would mean two stages on one history; the first stays.
        let _second = self.reaction.set(reaction);
    }

    /// Nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        (self.clock)()
    }

    /// Something happened.
    pub fn tell(&self, event: Event) {
        let fired = self.with(|book, now_ns| {
            let fired = book.notice(&event);
            book.push(now_ns, event);
            fired
        });
        self.fire(&fired);
    }

    /// A region's store decided on a message.
    pub fn committed(&self, region: &str, era: u64, message: &str) {
        let known = self.with(|book, _| {
            let known = book.messages.get_mut(message)?;
            known.regions.insert(region.to_owned());
            Some(known.passed.contains(&Moment::Committed))
        });
        // Text that no load wrote is of no interest, and of a message the first commit counts.
        if known.is_none() {
            return;
        }
        self.tell(Event::Commit {
            region: region.to_owned(),
            era: Some(format!("{era:016x}")),
            message: message.to_owned(),
        });
    }

    /// Messages that users erased.
    pub fn erased(&self) -> BTreeSet<String> {
        self.with(|book, _| book.erased.clone())
    }

    /// A device re-offered messages.
    pub fn reoffered(&self, count: usize) {
        self.count("reoffered", u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Something of the scenario's list happened.
    pub fn count(&self, name: &'static str, times: u64) {
        self.with(|book, _| *book.counts.entry(name).or_default() += times);
    }

    /// A fault that closes no connection begins or ends on a device's way.
    pub fn dark(&self, device: &str, begins: bool) {
        self.with(|book, _| {
            let seat = book.devices.entry(device.to_owned()).or_default();
            seat.dark = if begins { seat.dark + 1 } else { seat.dark.saturating_sub(1) };
        });
    }

    /// A region goes down: what only it has of the messages that were acked counts.
    pub fn region_down(&self, region: &str) {
        self.with(|book, _| {
            let only = |known: &&Known| known.regions.len() == 1 && known.regions.contains(region);
            let acked = |known: &&Known| known.passed.contains(&Moment::Acked);
            let count = book.messages.values().filter(acked).filter(only).count();
            *book.counts.entry("acked_unreplicated").or_default() += u64::try_from(count).unwrap_or(u64::MAX);
        });
    }

    /// Whether a message has passed a moment.
    pub fn passed(&self, message: &str, moment: Moment) -> bool {
        self.with(|book, _| book.messages.get(message).is_some_and(|known| known.passed.contains(&moment)))
    }

    /// Messages that were sent and have not passed a moment.
    pub fn without(&self, moment: Moment) -> Vec<String> {
        self.with(|book, _| {
            let open = book.messages.iter().filter(|(_, known)| !known.passed.contains(&moment));
            open.map(|(message, _)| message.clone()).collect()
        })
    }

    /// The lines since it was last asked, and how many messages were offered again since then: for a history that is
    /// written elsewhere.
    pub fn drain(&self) -> (Vec<Line>, u64) {
        self.with(|book, _| {
            let reoffered = book.counts.get_mut("reoffered").map_or(0, std::mem::take);
            (std::mem::take(&mut book.lines), reoffered)
        })
    }

    /// The history, with the counts at its end.
    pub fn finish(&self, end: Event) -> Vec<Line> {
        self.with(|book, now_ns| {
            for (name, count) in std::mem::take(&mut book.counts) {
                book.push(now_ns, Event::Sometimes { name: name.to_owned(), count });
            }
            book.push(now_ns, end);
            std::mem::take(&mut book.lines)
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut Book, u64) -> T) -> T {
        let now_ns = self.now_ns();
        let mut book: MutexGuard<'_, Book> = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut book, now_ns)
    }

    fn fire(&self, fired: &[usize]) {
        if let Some(reaction) = self.reaction.get() {
            fired.iter().for_each(|trigger| reaction(*trigger));
        }
    }
}

impl Book {
    fn push(&mut self, at_ns: u64, event: Event) {
        let at_ns = self.lines.last().map_or(at_ns, |last| last.at_ns.max(at_ns));
        self.lines.push(Line { at_ns, event });
    }

    fn counted(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    /// Takes a moment down, and says which triggers it fires.
    fn notice(&mut self, event: &Event) -> Vec<usize> {
        match event {
            Event::Invoke { device, message, .. } => {
                let away = self.devices.iter().filter(|(_, seat)| !seat.live).map(|(device, _)| device.clone());
                let known = Known { device: device.clone(), away: away.collect(), ..Known::default() };
                if known.away.contains(device) {
                    self.counted("sent_offline");
                }
                self.messages.insert(message.clone(), known);
                self.passes(message, Moment::Invoked)
            }
            Event::Commit { message, .. } => {
                if self.messages.get(message).is_some_and(|known| known.passed.contains(&Moment::Committed)) {
                    return Vec::new();
                }
                self.open.insert(message.clone());
                self.passes(message, Moment::Committed)
            }
            Event::Acked { message, .. } => {
                self.open.remove(message);
                self.passes(message, Moment::Acked)
            }
            Event::Stable { message, .. } => self.passes(message, Moment::Stable),
            Event::Erased { message, .. } => {
                self.counted("erased");
                self.erased.insert(message.clone());
                Vec::new()
            }
            Event::Shown { device, message, new, .. } => {
                if !new {
                    self.counted("moved");
                    return Vec::new();
                }
                if self.messages.get(message).is_some_and(|known| known.away.contains(device)) {
                    self.counted("caught_up");
                }
                self.passes(message, Moment::Shown)
            }
            Event::Connection { device, state, edge, region, transport } => {
                self.connection(device, state, edge.as_deref(), region.as_deref(), transport.as_deref())
            }
            Event::Presence { device, user, online } => {
                let before = self.presences.insert((device.clone(), user.clone()), *online);
                match (before, online) {
                    (None | Some(false), true) => self.counted("friend_came"),
                    (Some(true), false) => self.counted("friend_gone"),
                    _ => {}
                }
                Vec::new()
            }
            Event::Start { who } => {
                self.devices.entry(who.clone()).or_default();
                Vec::new()
            }
            Event::Stop { who, .. } => {
                if let Some(seat) = self.devices.get_mut(who) {
                    seat.live = false;
                    self.acks_lost(who);
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn connection(
        &mut self,
        device: &str,
        state: &str,
        edge: Option<&str>,
        region: Option<&str>,
        transport: Option<&str>,
    ) -> Vec<usize> {
        let seat = self.devices.entry(device.to_owned()).or_default();
        let before = std::mem::replace(&mut seat.live, state == "live");
        let of = |then: &Option<String>, now: Option<&str>| then.as_deref() == now;
        let same = of(&seat.edge, edge) && of(&seat.region, region) && of(&seat.transport, transport);
        let (live, stale) = (seat.live, seat.dark > 0);
        if before && live && same {
            return Vec::new();
        }
        // A connection may be replaced by one elsewhere in one step; one that asks for more is still the same.
        if before && !(state == "recovering" && same) {
            if stale {
                self.counted("stale_connection");
            }
            self.acks_lost(device);
        }
        let seat = self.devices.entry(device.to_owned()).or_default();
        if !live {
            return if state == "recovering" { self.happens(device, Moment::Recovering) } else { Vec::new() };
        }
        let by = |name: &str| transport == Some(name);
        let was = |then: &Option<String>, now: Option<&str>| then.is_some() && then.as_deref() != now;
        let happened = [
            ("reconnected", seat.was_live),
            ("tcp_fallback", by("tcp")),
            ("websocket_fallback", by("ws")),
            ("polled", by("poll")),
            ("quic_again", by("quic") && was(&seat.transport, transport)),
            ("region_changed", was(&seat.region, region)),
            ("edge_changed", was(&seat.edge, edge)),
        ];
        (seat.was_live, seat.transport) = (true, transport.map(str::to_owned));
        (seat.edge, seat.region) = (edge.map(str::to_owned), region.map(str::to_owned));
        for (name, _) in happened.iter().filter(|(_, happened)| *happened) {
            self.counted(name);
        }
        self.happens(device, Moment::Live)
    }

    /// A device lost its connection: acks on their way to it are lost.
    fn acks_lost(&mut self, device: &str) {
        let mut lost = 0;
        for message in &self.open {
            if let Some(known) = self.messages.get_mut(message)
                && known.device == device
                && !std::mem::replace(&mut known.ack_lost, true)
            {
                lost += 1;
            }
        }
        if lost > 0 {
            *self.counts.entry("ack_lost_after_commit").or_default() += lost;
        }
    }

    /// A message passes a moment.
    fn passes(&mut self, message: &str, moment: Moment) -> Vec<usize> {
        let Some(known) = self.messages.get_mut(message) else { return Vec::new() };
        let fired = fires(&mut self.triggers, moment, &known.device, |given| known.passed.contains(&given));
        known.passed.insert(moment);
        fired
    }

    /// A moment of a device.
    fn happens(&mut self, device: &str, moment: Moment) -> Vec<usize> {
        fires(&mut self.triggers, moment, device, |_| false)
    }
}

fn fires(triggers: &mut [(Trigger, u64)], moment: Moment, device: &str, passed: impl Fn(Moment) -> bool) -> Vec<usize> {
    let mut fired = Vec::new();
    for (number, (trigger, times)) in triggers.iter_mut().enumerate() {
        let whose = trigger.device.as_deref().is_none_or(|wanted| wanted == device);
        let given = trigger.given.iter().all(|(given, wanted)| passed(*given) == *wanted);
        if trigger.moment != moment || !whose || !given {
            continue;
        }
        *times += 1;
        if *times == trigger.nth {
            fired.push(number);
        }
    }
    fired
}
