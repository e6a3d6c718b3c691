//! The history of a run over real packets.
//!
//! Processes note the times of what happens themselves, and are heard in any order. So everything is kept as it comes,
//! and put into the order of time at the end; only then it goes to the scribe of virtual time, which counts what a
//! scenario may ask to have happened.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tern_netsim_verdict::{Event, Line};

use crate::stage::scribe::Scribe;

/// What is told.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Event(Event),
    /// A fault that closes no connection begins or ends on a device's way.
    Dark(String, bool),
    Reoffered(u64),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Book {
    told: Vec<(u64, Told)>,
    /// Messages whose ack, or that they are stable, was told: an app that was opened again tells it again.
    acked: BTreeSet<String>,
    stable: BTreeSet<String>,
}

impl Book {
    /// Something happened.
    pub fn tell(&mut self, at_ns: u64, event: Event) {
        let new = match &event {
            Event::Acked { message, .. } => self.acked.insert(message.clone()),
            Event::Stable { message, .. } => self.stable.insert(message.clone()),
            _ => true,
        };
        if new {
            self.told.push((at_ns, Told::Event(event)));
        }
    }

    /// A fault that closes no connection begins or ends on a device's way.
    pub fn dark(&mut self, at_ns: u64, device: &str, begins: bool) {
        self.told.push((at_ns, Told::Dark(device.to_owned(), begins)));
    }

    /// Whether every message that was sent was shown on another device than its author's.
    pub fn all_shown(&self) -> bool {
        let (mut sent, mut shown) = (BTreeSet::new(), BTreeSet::new());
        for (_, told) in &self.told {
            match told {
                Told::Event(Event::Invoke { message, .. }) => drop(sent.insert(message)),
                Told::Event(Event::Shown { device, message, new: true, .. })
                    if !message.starts_with(&format!("{device}/")) =>
                {
                    shown.insert(message);
                }
                _ => {}
            }
        }
        sent.is_subset(&shown)
    }

    /// A device offered messages again.
    pub fn reoffered(&mut self, at_ns: u64, count: u64) {
        self.told.push((at_ns, Told::Reoffered(count)));
    }

    /// The history.
    pub fn finish(mut self, end_ns: u64, end: Event) -> Vec<Line> {
        // Stable: what was told first of one moment stays first.
        self.told.sort_by_key(|(at_ns, _)| *at_ns);
        let now_ns = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&now_ns);
        let scribe = Scribe::new(Box::new(move || clock.load(Ordering::Relaxed)), Vec::new());
        for (at_ns, told) in self.told {
            now_ns.store(at_ns, Ordering::Relaxed);
            match told {
                Told::Event(event) => scribe.tell(event),
                Told::Dark(device, begins) => scribe.dark(&device, begins),
                Told::Reoffered(count) => scribe.reoffered(usize::try_from(count).unwrap_or(usize::MAX)),
            }
        }
        now_ns.store(end_ns, Ordering::Relaxed);
        scribe.finish(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_shown_when_another_device_than_the_authors_has_shown_it() {
        let mut book = Book::default();
        let (device, conversation, message) = ("a".to_owned(), "a+b".to_owned(), "a/1".to_owned());
        let shown = |device: &str| Event::Shown {
            device: device.into(),
            conversation: "a+b".into(),
            message: "a/1".into(),
            new: true,
        };
        assert!(book.all_shown());
        book.tell(1, Event::Invoke { device, conversation, message, bytes: 9 });
        book.tell(2, shown("a"));
        assert!(!book.all_shown());
        book.tell(3, shown("b"));
        assert!(book.all_shown());
    }

    #[test]
    fn what_is_heard_late_stands_where_it_happened_and_nothing_is_acked_twice() {
        let mut book = Book::default();
        let acked = |message: &str| Event::Acked { device: "a".into(), message: message.into() };
        book.tell(30, acked("a/2"));
        book.tell(10, acked("a/1"));
        book.tell(40, acked("a/1"));
        book.reoffered(35, 2);
        let end = Event::End { quiet: true, waiting: Vec::new(), shape: None, packets: 0 };
        let lines = book.finish(50, end);
        let at: Vec<u64> = lines.iter().map(|line| line.at_ns).collect();
        assert_eq!(at, [10, 30, 50, 50]);
        assert_eq!(lines[0].event, acked("a/1"));
        assert_eq!(lines[2].event, Event::Sometimes { name: "reoffered".into(), count: 2 });
    }
}
