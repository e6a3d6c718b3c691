//! Verifying logs: is every entry there, in its place, with its body, and linked to the one before?
//!
//! A commit is atomic and synced before it is acked, so a crash alone breaks no log. What breaks them is a disk
//! that loses or changes what it had confirmed. Then the rule is: a log whose last entries do not verify, with
//! nothing valid behind them, ends before them (it was torn; the entries are cut and the cut is reported); a log
//! with something valid behind what does not verify is damaged in its middle. Cutting that would drop acked
//! entries that are there, and serving it would show a hole, so it is refused, in all other logs' presence.
//!
//! A block of a table that can't be read at all hides the keys in it. The log that was being read is refused;
//! if the logs in the block can't be told, every log from there to the next readable key is refused: a *span*.

use std::collections::BTreeMap;

use fjall::{OwnedWriteBatch, Readable, Snapshot};
use tern_core::ids::{ConvId, Origin};

use super::super::format::{Chain, ENTRY_KEY_BYTES, LogId, entry_key, link_of, parse_entry_key, split_entry};
use super::tables::{Tables, describe, read_entry};

/// A log that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedLog {
    /// Which conversation.
    pub conversation: ConvId,
    /// Whose log.
    pub origin: Origin,
    /// First entry that does not verify.
    pub seq: u64,
    /// What is wrong with it.
    pub what: String,
}

/// Entries at the end of a log that did not verify and were removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutTail {
    /// Which conversation.
    pub conversation: ConvId,
    /// Whose log.
    pub origin: Origin,
    /// First entry that was removed.
    pub from: u64,
    /// Last entry that was removed.
    pub to: u64,
    /// What was wrong with the first.
    pub what: String,
}

/// Logs that can't be told because the disk does not give them back; all from the first to the last are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// First conversation that may be touched.
    pub from: ConvId,
    /// Last conversation that may be touched.
    pub to: ConvId,
    /// What the disk says.
    pub what: String,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Logs read.
    pub logs: u64,
    /// Entries that verified.
    pub entries: u64,
    /// Torn tails. Cut when the store is opened; refused as damaged when found later.
    pub torn: Vec<CutTail>,
    /// Logs broken in their middle.
    pub damaged: Vec<DamagedLog>,
    /// Stretches that can't be read.
    pub unreadable: Vec<Span>,
}

/// Logs that are refused.
#[derive(Debug, Default)]
pub(super) struct Damage {
    logs: BTreeMap<LogId, String>,
    spans: Vec<Span>,
}

impl Damage {
    pub(super) fn add(&mut self, findings: &Findings) {
        for log in &findings.damaged {
            let key = LogId { conversation: log.conversation, origin: log.origin };
            self.logs.insert(key, format!("entry {}: {}", log.seq, log.what));
        }
        for span in &findings.unreadable {
            if !self.spans.contains(span) {
                self.spans.push(span.clone());
            }
        }
    }

    pub(super) fn count(&self) -> u64 {
        (self.logs.len() + self.spans.len()) as u64
    }

    pub(super) fn of(&self, log: LogId) -> Option<String> {
        self.logs.get(&log).cloned().or_else(|| self.span_over(log.conversation))
    }

    pub(super) fn of_conversation(&self, conversation: ConvId) -> BTreeMap<Origin, String> {
        let first = LogId { conversation, origin: Origin { region: 0, era: 0 } };
        self.logs
            .range(first..)
            .take_while(|(log, _)| log.conversation == conversation)
            .map(|(log, what)| (log.origin, what.clone()))
            .collect()
    }

    pub(super) fn span_over(&self, conversation: ConvId) -> Option<String> {
        let span = self.spans.iter().find(|span| span.from <= conversation && conversation <= span.to)?;
        Some(format!("the disk can't read conversations {} to {}: {}", span.from, span.to, span.what))
    }

    pub(super) fn end_of_span(&self, conversation: ConvId) -> Option<ConvId> {
        self.spans.iter().find(|span| span.from <= conversation && conversation <= span.to).map(|span| span.to)
    }
}

/// The walk through one log.
pub(super) struct Walk {
    pub(super) log: LogId,
    archived_to: u64,
    seq: u64,
    chain: Chain,
    bad: Option<(u64, String)>,
    /// Something valid stands behind what is bad.
    valid_after: bool,
    last_seen: u64,
}

impl Walk {
    pub(super) fn new(log: LogId) -> Self {
        Self::behind(log, 0, [0; 16])
    }

    /// Of a log of which everything up to `seq` is in the archive, and that goes on from this link. What stands in the
    /// table below that waits to be removed.
    pub(super) fn behind(log: LogId, seq: u64, chain: Chain) -> Self {
        Self { log, archived_to: seq, seq, chain, bad: None, valid_after: false, last_seen: seq }
    }

    pub(super) fn take(&mut self, scratch: &mut Vec<u8>, seq: u64, value: &[u8]) {
        if seq <= self.archived_to {
            return;
        }
        self.last_seen = seq;
        if self.bad.is_some() {
            // An entry that is whole by itself. Its link can't be asked: it hangs on what is bad.
            self.valid_after |= read_entry(self.log, seq, value).is_ok();
            return;
        }
        if seq != self.seq + 1 {
            self.bad = Some((self.seq + 1, "it is missing".to_owned()));
            self.take(scratch, seq, value);
            return;
        }
        match read_entry(self.log, seq, value) {
            Ok((chain, entry)) if self.follows(scratch, chain, value, entry.body.len()) => {
                self.seq = seq;
                self.chain = chain;
            }
            Ok(_) => self.bad = Some((seq, "its checksum does not follow from the entry before".to_owned())),
            Err(what) => self.bad = Some((seq, what)),
        }
    }

    fn follows(&self, scratch: &mut Vec<u8>, chain: Chain, value: &[u8], body_bytes: usize) -> bool {
        split_entry(value).is_ok_and(|(_, stored)| link_of(scratch, &self.chain, stored, body_bytes) == Some(chain))
    }

    pub(super) fn end(self, findings: &mut Findings) {
        findings.logs += 1;
        findings.entries += self.seq;
        let LogId { conversation, origin } = self.log;
        match self.bad {
            None => {}
            Some((seq, what)) if self.valid_after => {
                findings.damaged.push(DamagedLog { conversation, origin, seq, what });
            }
            Some((from, what)) => {
                findings.torn.push(CutTail { conversation, origin, from, to: self.last_seen, what });
            }
        }
    }

    fn unreadable(mut self, error: &str, findings: &mut Findings) {
        let seq = self.bad.take().map_or(self.seq + 1, |(seq, _)| seq);
        let LogId { conversation, origin } = self.log;
        findings.logs += 1;
        findings.entries += self.seq;
        findings.damaged.push(DamagedLog { conversation, origin, seq, what: format!("it can't be read: {error}") });
    }
}

/// Reads every entry of every log once, in order. Holds one entry at a time, and what it found. `stop` is asked
/// once per log; `None` if it said so.
pub(super) fn verify(tables: &Tables, stop: impl Fn() -> bool) -> Option<Findings> {
    let snapshot = tables.db.snapshot();
    let mut findings = Findings::default();
    let mut scratch = Vec::new();
    let mut walk: Option<Walk> = None;
    let mut start = [0; ENTRY_KEY_BYTES];
    'from: loop {
        for row in snapshot.range(&tables.entries, &start[..]..) {
            let (key, value) = match row.into_inner() {
                Ok(row) => row,
                Err(error) => {
                    let error = describe(&error);
                    let next = match walk.take() {
                        Some(walk) => {
                            let next = after(walk.log);
                            walk.unreadable(&error, &mut findings);
                            next
                        }
                        None => skip(tables, &snapshot, &start, &error, &mut findings),
                    };
                    match next {
                        Some(next) => start = next,
                        None => break 'from,
                    }
                    continue 'from;
                }
            };
            // A key of another form is nothing that this version wrote; it can't be a part of any log.
            let Some((log, seq)) = parse_entry_key(&key) else { continue };
            let mut current = match walk.take() {
                Some(current) if current.log == log => current,
                finished => {
                    if let Some(finished) = finished {
                        finished.end(&mut findings);
                    }
                    if stop() {
                        return None;
                    }
                    match tables.last_mark(&snapshot, log) {
                        Ok(last) => last.map_or_else(|| Walk::new(log), |(_, m)| Walk::behind(log, m.last, m.chain)),
                        Err(error) => {
                            let mut walk = Walk::new(log);
                            walk.bad = Some((1, error.to_string()));
                            walk
                        }
                    }
                }
            };
            current.take(&mut scratch, seq, &value);
            walk = Some(current);
        }
        break;
    }
    if let Some(walk) = walk {
        walk.end(&mut findings);
    }
    Some(findings)
}

/// Looks only at the newest entry of every log: one seek a log, whatever its length.
pub(super) fn verify_heads(tables: &Tables) -> Findings {
    let snapshot = tables.db.snapshot();
    let mut findings = Findings::default();
    let mut start = [0; ENTRY_KEY_BYTES];
    while let Some(first) = snapshot.range(&tables.entries, &start[..]..).next() {
        let next = match first.key() {
            Ok(key) => parse_entry_key(&key).and_then(|(log, _)| {
                findings.logs += 1;
                let LogId { conversation, origin } = log;
                let newest = snapshot.range(&tables.entries, entry_key(log, 0)..=entry_key(log, u64::MAX)).next_back();
                let bad = match newest.map(fjall::Guard::into_inner) {
                    None => None,
                    Some(Ok((key, value))) => {
                        let seq = parse_entry_key(&key).map_or(0, |(_, seq)| seq);
                        match read_entry(log, seq, &value) {
                            Ok(_) => {
                                findings.entries += seq;
                                None
                            }
                            // It is in the archive, and waits to be removed.
                            Err(_) if tables.archived_to(&snapshot, log).is_ok_and(|to| seq <= to) => None,
                            Err(what) => Some((seq, what)),
                        }
                    }
                    Some(Err(error)) => Some((0, format!("it can't be read: {}", describe(&error)))),
                };
                if let Some((seq, what)) = bad {
                    findings.damaged.push(DamagedLog { conversation, origin, seq, what });
                }
                after(log)
            }),
            Err(error) => skip(tables, &snapshot, &start, &describe(&error), &mut findings),
        };
        match next {
            Some(next) => start = next,
            None => break,
        }
    }
    findings
}

/// The first key that may belong to a later log.
pub(super) fn after(log: LogId) -> Option<[u8; ENTRY_KEY_BYTES]> {
    let mut key = entry_key(log, 0);
    let next = key[..16 + 1 + 8].iter_mut().rev().any(|byte| {
        *byte = byte.wrapping_add(1);
        *byte != 0
    });
    next.then_some(key)
}

/// Nothing at `start` can be read. The next readable key is found from the far end: everything before it is
/// refused, up to and with its own conversation, whose earlier logs may be hidden.
fn skip(
    tables: &Tables,
    snapshot: &Snapshot,
    start: &[u8; ENTRY_KEY_BYTES],
    error: &str,
    findings: &mut Findings,
) -> Option<[u8; ENTRY_KEY_BYTES]> {
    let mut first = None;
    for row in snapshot.range(&tables.entries, &start[..]..).rev() {
        match row.key() {
            Ok(key) => first = parse_entry_key(&key).map(|(log, _)| log),
            Err(_) => break,
        }
    }
    let from = ConvId::from_slice(&start[..16]).unwrap_or(ConvId([0; 16]));
    let to = first.map_or(ConvId([0xff; 16]), |log| log.conversation);
    findings.unreadable.push(Span { from, to, what: error.to_owned() });
    first.and_then(|log| {
        after(LogId { conversation: log.conversation, origin: Origin { region: u8::MAX, era: u64::MAX } })
    })
}

/// Removes torn tails. Synced by the caller's commit.
pub(super) fn cut(tables: &Tables, batch: &mut OwnedWriteBatch, torn: &[CutTail]) -> fjall::Result<()> {
    for tail in torn {
        let log = LogId { conversation: tail.conversation, origin: tail.origin };
        for row in tables.db.snapshot().range(&tables.entries, entry_key(log, tail.from)..=entry_key(log, u64::MAX)) {
            batch.remove(&tables.entries, row.key()?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_after_a_log_is_above_all_its_entries_and_below_the_next_log() {
        let log =
            |conversation, region, era| LogId { conversation: ConvId(conversation), origin: Origin { region, era } };
        let one = log([7; 16], 3, u64::MAX);
        let next = after(one).unwrap();
        assert!(next > entry_key(one, u64::MAX));
        assert_eq!(next, entry_key(log([7; 16], 4, 0), 0));
        assert!(after(log([0xff; 16], 0xff, u64::MAX)).is_none());
    }
}
