//! What a user can send to whoever helps him: how the client came to be where it is.
//!
//! Nothing of messages, users, tokens or names of networks is in it; edges are named, as everybody is told of them.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::time::Duration;

use super::effects::ConnectionState;
use super::limits::{JOURNAL_LINES, WORDS_BYTES};
use super::machine::Machine;
use super::trouble::cut;

/// The last things that happened to connections, with the moments by the client's clock.
#[derive(Debug, Default)]
pub(super) struct Journal {
    lines: VecDeque<(Duration, String)>,
    left_out: u64,
}

impl Journal {
    /// Something happened.
    pub(super) fn note(&mut self, now: Duration, what: impl fmt::Display) {
        if self.lines.len() == JOURNAL_LINES {
            self.lines.pop_front();
            self.left_out += 1;
        }
        self.lines.push_back((now, cut(&what.to_string(), 2 * WORDS_BYTES).to_owned()));
    }
}

impl Machine {
    /// A text for people; see the module. `wall_ms` is the calendar clock now.
    pub fn diagnostics(&self, now: Duration, wall_ms: u64) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _infallible = self.describe(now, wall_ms, &mut text);
        text
    }

    fn describe(&self, now: Duration, wall_ms: u64, text: &mut String) -> fmt::Result {
        writeln!(text, "client      {}; at {wall_ms} ms since 1970", self.setup.agent)?;
        writeln!(text, "state       {}", state(&self.connection()))?;
        match self.engine.live() {
            Some((_, candidate, transport)) => {
                writeln!(text, "edge        {} by {}", candidate.address, transport.name())?;
            }
            None => writeln!(text, "edge        none")?,
        }
        if let Some(session) = &self.session {
            let rtt = session.srtt().map_or_else(|| "not measured".to_owned(), |rtt| format!("{} ms", rtt.as_millis()));
            writeln!(text, "round trip  {rtt}")?;
            let beat = session.heartbeat.interval().as_secs();
            let mode = if self.foreground { "foreground" } else { "background" };
            let learned = session.heartbeat.learned();
            let bound = match learned.too_long_s {
                0 => String::new(),
                too_long_s => format!(", {too_long_s} s was too long"),
            };
            writeln!(text, "heartbeat   {beat} s, {mode}; {} s of silence survived{bound}", learned.survived_s)?;
            writeln!(text, "requests    {} await an answer", session.requests.len())?;
        }
        let here = self.engine.networks.here();
        let wall_ms = self.engine.wall_ms(now);
        let quic = if here.loses_quic(wall_ms) {
            format!("lost {} times in a row, tried again now and then", here.quic_losses)
        } else {
            "nothing against it".to_owned()
        };
        let rtt = here.rtt().map_or_else(|| "?".to_owned(), |rtt| rtt.as_millis().to_string());
        let http3 = if here.has_only_http3(wall_ms) { ", and by h3 alone something got through" } else { "" };
        writeln!(text, "network     QUIC: {quic}{http3}; last good edge {:?}, {rtt} ms", here.edge)?;
        let (queued, kept) = self.waiting();
        let saves = if self.is_saving() { "saved: of what was missed the newest is taken" } else { "not saved" };
        writeln!(text, "data        {saves}")?;
        writeln!(text, "outbox      {queued} not acked, {kept} acked and not stable")?;
        writeln!(text, "behind      {} conversations of {}", self.wanting.len(), self.convs.len())?;
        let journal = &self.engine.journal;
        writeln!(text, "what happened, seconds before now ({} older left out):", journal.left_out)?;
        for (at, what) in &journal.lines {
            writeln!(text, "  {:>10.3}  {what}", now.saturating_sub(*at).as_secs_f64())?;
        }
        Ok(())
    }
}

fn state(state: &ConnectionState) -> String {
    match state {
        ConnectionState::Offline => "offline".to_owned(),
        ConnectionState::Connecting { retry_at, trouble } => {
            let doing = if retry_at.is_some() { "waiting before it connects again" } else { "connecting" };
            trouble.as_ref().map_or_else(|| doing.to_owned(), |trouble| format!("{doing}; {trouble}"))
        }
        ConnectionState::Recovering { edge, region, behind, .. } => {
            format!("recovering at {edge} in {region}, {behind} conversations behind")
        }
        ConnectionState::Live { edge, region, .. } => format!("live at {edge} in {region}"),
    }
}
