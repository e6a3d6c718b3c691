//! One connection after its Welcome: requests, round trips, silence, heartbeat.
//!
//! *Problem.* A dead path looks like a quiet one, and QUIC's own timers double with each loss: an outage of
//! ten seconds lasts twenty.
//!
//! *Rule.* While an answer is awaited, silence is measured from the later of the last byte heard and the
//! moment the first answer was awaited. After 250 ms, or as soon as an answer is late, tiny probes start; after four
//! round trips, and a second at least, the connection counts as dead and another is made. Without anything awaited only
//! the heartbeat tells; the heartbeat's own Pong is awaited. Long before that another edge may be asked
//! ([`super::pulse`]).
//!
//! *Why the simpler way fails.* Measuring from the last byte heard alone: a client that was idle for a minute
//! would call its connection dead with the first message it sends. Probes after 250 ms wherever: with a round trip of more
//! than that they are awaited themselves, and never end. Nothing said in the dark: often one direction alone is dark, and
//! what goes the other way would arrive at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::candidates::{ConnNo, Transport};
use super::comparing::Comparison;
use super::data::MessageId;
use super::heartbeat::Heartbeat;
use super::limits::{
    BEAT_FLOOR, BEAT_JITTER, BLIND_BYTES, HOLD_AFTER, PINGS, PROBE, PROBE_FAST_FOR, PROBE_SLOW, REQUEST_TIMEOUT,
    SEND_HEAD, SILENCE_MIN, TOKEN_MARGIN, TOKEN_PAUSE, TOKEN_PAUSE_MAX, WINDOW, WINDOW_RESERVE,
};
use super::pulse::Pulse;
use super::typing::Said;
use crate::ids::{ConvId, Cursor, Heads, Identity, InstallId, Origin, Rev, Seq};

/// A request whose answer is awaited.
#[derive(Clone, Debug)]
pub(super) enum Request {
    /// A message, or the re-offer of one.
    Send { conversation: ConvId, id: MessageId, offer: bool, bytes: usize },
    /// Rows above a cursor.
    Rows { asked: Option<Cursor> },
    /// Entries; what was answered so far.
    Pull { conversation: ConvId, origin: Origin, from: Seq, to: Seq, came: bool },
    /// A membership entry of whomever, for a region that lacks it.
    Give { conversation: ConvId, by: Identity, bytes: usize },
    /// Hashes of rows.
    Compare,
    /// A read mark.
    Mark { conversation: ConvId, read: Heads },
    /// What a server has folded of a conversation.
    Cells { conversation: ConvId },
    /// Which logs a conversation has, and the folds that were told then.
    Eras { conversation: ConvId, folds: Heads },
    /// A fresh token.
    Token,
    /// Where the user's devices are.
    Devices,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) conn: ConnNo,
    pub(super) install: InstallId,
    pub(super) edge: String,
    pub(super) region: String,
    pub(super) transport: Transport,
    /// Whose rows: the cursor's store.
    pub(super) store: Origin,
    pub(super) requests: BTreeMap<u32, (Request, Duration)>,
    pub(super) sends: usize,
    pub(super) offers: usize,
    pub(super) bytes: usize,
    pub(super) pulls: usize,
    pub(super) rows_in_flight: bool,
    pub(super) rows_at: Option<Duration>,
    pub(super) target: Rev,
    pub(super) push_acked: Rev,
    pub(super) push_ack_at: Option<Duration>,
    pub(super) rev_unknown_since: Option<Duration>,
    pub(super) asked: BTreeSet<(ConvId, Origin)>,
    pub(super) unstable_at: Option<Duration>,
    pub(super) caught_up: bool,
    pub(super) leaving: bool,
    pub(super) comparing: Option<Comparison>,
    /// Conversations whose mark is on the way.
    pub(super) marks: BTreeSet<ConvId>,
    /// Marks that were not taken: when to try again, and how often that was.
    pub(super) mark_pauses: BTreeMap<ConvId, (Duration, u32)>,
    /// Folds that were not to be had: when to ask again.
    pub(super) cells_pauses: BTreeMap<ConvId, Duration>,
    /// Questions which logs there are: when the next may be asked about a conversation, and when about a doubt.
    pub(super) eras_pauses: BTreeMap<ConvId, Duration>,
    pub(super) doubts: BTreeMap<ConvId, Duration>,
    /// Where this user was said to be typing.
    pub(super) typing: Said,
    /// When to renew the token, and how often that has failed.
    pub(super) token_at: Option<Duration>,
    pub(super) token_failures: u32,
    /// The region's clock, and when it said so.
    wall: Option<(u64, Duration)>,
    in_flight_max: usize,
    next_req: u32,
    next_echo: u32,
    pings: BTreeMap<u32, Duration>,
    last_ping: Duration,
    last_heard: Duration,
    last_sent: Duration,
    last_request: Duration,
    last_answer: Duration,
    /// Bytes that were given to the connection since it fell silent.
    blind: usize,
    awaiting_since: Option<Duration>,
    srtt: Option<Duration>,
    pub(super) heartbeat: Heartbeat,
    /// The address by which the edge sees this client.
    pub(super) seen_address: String,
    /// What the transport says of the other side.
    pub(super) pulse: Pulse,
    /// The last ping that ended a silence.
    beat: Option<Beat>,
    /// The last ping that asked for a second answer: its echo, and when that is due.
    asks_again: Option<(u32, Duration)>,
    /// Likewise once the region has agreed.
    again: Option<(u32, Duration)>,
    /// It does so at all: then its first answers prove nothing about silences.
    answers_again: bool,
    /// How long neither side had spoken when the last frame came.
    silence: Duration,
    /// Permille of the heartbeat after which the next ping goes out.
    jitter: u32,
}

/// A ping that ended a silence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    echo: u32,
    /// When it was sent.
    pub(super) at: Duration,
    pub(super) silence: Duration,
    /// A second answer had been due at the end of the silence, and did not come.
    pub(super) missed: bool,
}

/// What is due on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Send a Ping with this echo that asks to be answered again after so many milliseconds, if any.
    Ping(u32, u32),
    /// Not one packet has come for longer than an answer takes: somebody else is to be asked.
    Doubt,
    /// Nothing was heard for too long.
    Silent,
    /// Requests stay unanswered although the connection lives.
    Stuck,
}

impl Session {
    #[expect(clippy::too_many_arguments, reason = "one caller, and every value is another thing")]
    pub(super) fn new(
        now: Duration,
        conn: ConnNo,
        install: InstallId,
        (edge, region): (String, String),
        transport: Transport,
        cursor: Cursor,
        heartbeat: Heartbeat,
        in_flight: u32,
    ) -> Self {
        let in_flight = if in_flight == 0 { WINDOW } else { WINDOW.min(in_flight as usize) };
        Self {
            conn,
            install,
            edge,
            region,
            transport,
            store: cursor.store,
            requests: BTreeMap::new(),
            sends: 0,
            offers: 0,
            bytes: 0,
            pulls: 0,
            rows_in_flight: false,
            rows_at: None,
            target: cursor.rev,
            push_acked: Rev(0),
            push_ack_at: None,
            rev_unknown_since: None,
            asked: BTreeSet::new(),
            unstable_at: None,
            caught_up: false,
            leaving: false,
            comparing: None,
            marks: BTreeSet::new(),
            mark_pauses: BTreeMap::new(),
            cells_pauses: BTreeMap::new(),
            eras_pauses: BTreeMap::new(),
            doubts: BTreeMap::new(),
            typing: Said::default(),
            token_at: None,
            token_failures: 0,
            wall: None,
            in_flight_max: in_flight.saturating_sub(WINDOW_RESERVE).max(1),
            next_req: 1,
            next_echo: 0,
            pings: BTreeMap::new(),
            last_ping: now,
            last_heard: now,
            last_sent: now,
            last_request: now,
            last_answer: now,
            blind: 0,
            awaiting_since: None,
            srtt: None,
            heartbeat,
            seen_address: String::new(),
            pulse: Pulse::new(now),
            beat: None,
            asks_again: None,
            again: None,
            answers_again: false,
            silence: Duration::ZERO,
            jitter: 950,
        }
    }

    /// The region's clock and the token's end, as a Welcome or a TokenTaken tells them.
    pub(super) fn token_until(&mut self, now: Duration, wall_ms: Option<u64>, expires_ms: u64, permille: u32) {
        if let Some(wall_ms) = wall_ms.filter(|ms| *ms > 0) {
            self.wall = Some((wall_ms, now));
        }
        self.token_failures = 0;
        let left = self.wall_ms(now).filter(|_| expires_ms > 0).map(|wall| expires_ms.saturating_sub(wall));
        self.token_at = left.map(|ms| {
            let left = Duration::from_millis(ms);
            let margin = TOKEN_MARGIN.min(left / 4);
            now + left - margin / 2 - margin * permille.min(1000) / 2000
        });
    }

    /// The token was not renewed: again after a pause.
    pub(super) fn token_again(&mut self, now: Duration) {
        let pause = TOKEN_PAUSE.saturating_mul(1 << self.token_failures.min(6)).min(TOKEN_PAUSE_MAX);
        self.token_failures += 1;
        self.token_at = Some(now + pause);
    }

    /// The region's clock, as far as it was told.
    pub(super) fn wall_ms(&self, now: Duration) -> Option<u64> {
        let (wall_ms, at) = self.wall?;
        // The other side says what it likes.
        Some(wall_ms.saturating_add(u64::try_from(now.saturating_sub(at).as_millis()).unwrap_or(0)))
    }

    /// Whether the fold of a conversation is on its way.
    pub(super) fn pulls_cells_of(&self, id: ConvId) -> bool {
        self.requests.values().any(|(r, _)| matches!(r, Request::Cells { conversation } if *conversation == id))
    }

    /// Whether it is being asked which logs a conversation has.
    pub(super) fn pulls_eras_of(&self, id: ConvId) -> bool {
        self.requests.values().any(|(r, _)| matches!(r, Request::Eras { conversation, .. } if *conversation == id))
    }

    /// Registers a request and gives its number.
    pub(super) fn request(&mut self, now: Duration, request: Request) -> u32 {
        let req = self.fresh_req();
        match &request {
            Request::Send { offer, bytes, .. } => {
                self.sends += 1;
                self.offers += usize::from(*offer);
                self.bytes += bytes;
            }
            Request::Give { bytes, .. } => {
                self.sends += 1;
                self.offers += 1;
                self.bytes += bytes;
            }
            Request::Rows { .. } | Request::Compare => self.rows_in_flight = true,
            Request::Pull { .. } => self.pulls += 1,
            Request::Mark { conversation, .. } => {
                self.marks.insert(*conversation);
            }
            Request::Cells { .. } | Request::Eras { .. } | Request::Token | Request::Devices => {}
        }
        if let Request::Send { bytes, .. } | Request::Give { bytes, .. } = &request
            && self.is_silent(now)
        {
            self.blind += bytes + SEND_HEAD;
        }
        if self.requests.is_empty() {
            self.last_answer = now;
        }
        self.last_request = now;
        self.requests.insert(req, (request, now));
        self.sent(now);
        self.await_from(now);
        req
    }

    /// A request number that is not in use; 1 was the Hello's.
    pub(super) fn fresh_req(&mut self) -> u32 {
        loop {
            self.next_req = self.next_req.wrapping_add(1).max(2);
            if !self.requests.contains_key(&self.next_req) {
                return self.next_req;
            }
        }
    }

    /// Takes an answered request out.
    pub(super) fn answered(&mut self, now: Duration, req: u32) -> Option<Request> {
        let (request, at) = self.requests.remove(&req)?;
        self.last_answer = now;
        self.pulse.answered(at);
        match &request {
            Request::Send { offer, bytes, .. } => {
                self.sends -= 1;
                self.offers -= usize::from(*offer);
                self.bytes -= bytes;
            }
            Request::Give { bytes, .. } => {
                self.sends -= 1;
                self.offers -= 1;
                self.bytes -= bytes;
            }
            Request::Rows { .. } | Request::Compare => self.rows_in_flight = false,
            Request::Pull { .. } => self.pulls -= 1,
            Request::Mark { conversation, .. } => {
                self.marks.remove(conversation);
            }
            Request::Cells { .. } | Request::Eras { .. } | Request::Token | Request::Devices => {}
        }
        self.settle();
        Some(request)
    }

    /// A part of an answer came.
    pub(super) fn answering(&mut self, now: Duration, req: u32) -> Option<&mut Request> {
        self.last_answer = now;
        self.requests.get_mut(&req).map(|(request, at)| {
            *at = now;
            request
        })
    }

    /// Whether one more send of so many bytes may go out.
    pub(super) fn room(&self, now: Duration, bytes: usize) -> bool {
        let blind = self.is_silent(now) && self.blind + bytes + SEND_HEAD > BLIND_BYTES;
        !blind
            && self.sends < self.in_flight_max
            && (self.bytes == 0 || self.bytes + bytes <= super::limits::WINDOW_BYTES)
    }

    fn await_from(&mut self, now: Duration) {
        self.awaiting_since.get_or_insert(now);
    }

    fn settle(&mut self) {
        if self.requests.is_empty() && self.pings.is_empty() {
            self.awaiting_since = None;
        }
    }

    /// Something was written.
    pub(super) fn sent(&mut self, now: Duration) {
        self.last_sent = now;
        self.pulse.wrote(now);
    }

    /// Something was read.
    pub(super) fn heard(&mut self, now: Duration) {
        let before = self.last_heard.max(self.last_sent);
        if now > before {
            self.silence = now - before;
        }
        self.last_heard = now;
        self.blind = 0;
    }

    /// A Pong: measures the round trip, and answers all earlier pings.
    pub(super) fn pong(&mut self, now: Duration, echo: u32) {
        if let Some(at) = self.pings.get(&echo).copied() {
            self.measured(now.saturating_sub(at));
            self.pulse.answered(at);
        }
        self.pings.retain(|e, _| e.wrapping_sub(echo).wrapping_sub(1) < u32::MAX / 2);
        self.settle();
    }

    /// A round trip took so long (RFC 6298's smoothing).
    pub(super) fn measured(&mut self, rtt: Duration) {
        self.srtt = Some(self.srtt.map_or(rtt, |s| s * 7 / 8 + rtt / 8));
    }

    pub(super) fn srtt(&self) -> Option<Duration> {
        self.srtt
    }

    /// The transport has taken in so many packets until now. Whether that ends a doubt.
    pub(super) fn felt(&mut self, now: Duration, packets: u64, round_trip: Duration) -> bool {
        self.pulse.felt(now, packets, round_trip)
    }

    /// After how many thousandths of the interval the first beat is due.
    pub(super) fn first_beat(&mut self, permille: u32) {
        self.jitter = permille;
    }

    /// Sends a Ping: its echo, and after how many milliseconds it asks to be answered again, if `asks`.
    pub(super) fn ping(&mut self, now: Duration, jitter: u32, asks: bool) -> (u32, u32) {
        self.next_echo = self.next_echo.wrapping_add(1);
        let before = self.last_heard.max(self.last_sent);
        let missed = self.again.filter(|(_, at)| now >= *at + self.silence_limit()).map(|(_, at)| at);
        let silence = missed.unwrap_or(now).saturating_sub(before);
        // A first beat comes early: that it fails says nothing of how long silences may be.
        if silence >= BEAT_FLOOR / 2 && BEAT_JITTER.contains(&self.jitter) {
            self.beat = Some(Beat { echo: self.next_echo, at: now, silence, missed: missed.is_some() });
        }
        if missed.is_some() {
            self.again = None;
        }
        if self.pings.len() < PINGS {
            self.pings.insert(self.next_echo, now);
        }
        self.last_ping = now;
        self.jitter = jitter;
        self.sent(now);
        self.await_from(now);
        if !asks {
            return (self.next_echo, 0);
        }
        let after = self.heartbeat.interval() * jitter / 1000;
        self.asks_again = Some((self.next_echo, now + after));
        (self.next_echo, u32::try_from(after.as_millis()).unwrap_or(u32::MAX))
    }

    /// The region will answer a ping once more.
    pub(super) fn will_answer_again(&mut self, echo: u32) {
        self.answers_again = true;
        if let Some(asked) = self.asks_again.take_if(|(asked, _)| *asked == echo) {
            self.again = Some(asked);
        }
    }

    /// See [`Self::will_answer_again`].
    pub(super) fn answers_again(&self) -> bool {
        self.answers_again
    }

    /// The second answer to a ping came: after how much silence the way in was open. `None`: it was not the one that was
    /// waited for.
    pub(super) fn answered_again(&mut self, now: Duration, echo: u32) -> Option<Duration> {
        let (_, at) = self.again.take_if(|(awaited, _)| *awaited == echo)?;
        // A device that slept reads it late, and what was sent since has opened the way anew.
        let before = now.saturating_sub(self.silence);
        Some(if self.last_sent > at { Duration::ZERO } else { at.saturating_sub(before).min(self.silence) })
    }

    /// The ping that ended a silence and is answered now, or by an earlier answer than its own.
    pub(super) fn beat_answered(&mut self, echo: u32) -> Option<Beat> {
        self.beat.take_if(|beat| beat.echo.wrapping_sub(echo).wrapping_sub(1) >= u32::MAX / 2)
    }

    /// A ping that ended a silence and is not answered yet.
    pub(super) fn beat_open(&self) -> Option<Beat> {
        self.beat
    }

    /// What is open says nothing any more: the network is another one.
    pub(super) fn forget_beat(&mut self) {
        (self.beat, self.again, self.asks_again) = (None, None, None);
    }

    fn silence_from(&self) -> Option<Duration> {
        self.awaiting_since.map(|t| t.max(self.last_heard))
    }

    fn silence_limit(&self) -> Duration {
        self.srtt.map_or(SILENCE_MIN, |s| (s * 4 + Duration::from_millis(500)).max(SILENCE_MIN))
    }

    fn doubt_at(&self) -> Option<Duration> {
        self.pulse.doubt_at(self.silence_from(), self.srtt)
    }

    fn probe_at(&self) -> Option<Duration> {
        let from = self.silence_from()?;
        let step = if self.last_ping.saturating_sub(from) < PROBE_FAST_FOR { PROBE } else { PROBE_SLOW };
        let patience = self.answer_within();
        let at = (from + patience).max(self.last_ping + step);
        // On a long way one goes out sooner, behind what was asked last: its arrival tells the transport of a loss before
        // that, which otherwise only a timer of several round trips would. It is no reason for another one.
        let behind = self.last_request + PROBE;
        let follows = patience > PROBE && !self.requests.is_empty() && self.last_ping < self.last_request;
        Some(if follows { at.min(behind) } else { at })
    }

    /// Before that no answer is late, so silence means nothing.
    fn answer_within(&self) -> Duration {
        PROBE.max(self.srtt.unwrap_or_default() * 5 / 4)
    }

    fn is_silent(&self, now: Duration) -> bool {
        let after = HOLD_AFTER.max(self.srtt.unwrap_or_default() * 2);
        self.silence_from().is_some_and(|since| now >= since + after)
    }

    fn heartbeat_at(&self) -> Duration {
        if let Some((_, at)) = self.again {
            return at + self.silence_limit();
        }
        self.last_heard.max(self.last_sent) + self.heartbeat.interval() * self.jitter / 1000
    }

    /// The edge did not know the user's rev: ask again soon, to see whether it has lost its region.
    fn unsure_at(&self) -> Option<Duration> {
        self.rev_unknown_since.map(|_| self.last_ping + PROBE_SLOW)
    }

    fn stuck_at(&self) -> Option<Duration> {
        let oldest = self.requests.values().map(|(_, at)| *at).min()?;
        // A slow radio at 2 KB/s is slow, not stuck.
        let slow = Duration::from_millis(self.bytes as u64 / 2);
        Some(oldest.max(self.last_answer) + REQUEST_TIMEOUT + slow)
    }

    /// What is due; asked again until nothing is.
    pub(super) fn due(&mut self, now: Duration, jitter: u32) -> Option<Due> {
        let mut asks = false;
        if !self.leaving {
            if self.silence_from().is_some_and(|t| now >= t + self.silence_limit()) {
                self.leaving = true;
                return Some(Due::Silent);
            }
            if self.stuck_at().is_some_and(|t| now >= t) {
                self.leaving = true;
                return Some(Due::Stuck);
            }
            if self.doubt_at().is_some_and(|t| now >= t) {
                if self.pulse.doubts(now) {
                    return Some(Due::Doubt);
                }
                // Where no answer is awaited, nothing would end the doubt.
                asks = self.silence_from().is_none();
            }
        }
        let beat = now >= self.heartbeat_at();
        let ping =
            asks || beat || self.probe_at().is_some_and(|t| now >= t) || self.unsure_at().is_some_and(|t| now >= t);
        ping.then(|| {
            let (echo, again_ms) = self.ping(now, jitter, beat);
            Due::Ping(echo, again_ms)
        })
    }

    /// When something will be due.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let silent = self.silence_from().map(|t| t + self.silence_limit()).filter(|_| !self.leaving);
        let stuck = self.stuck_at().filter(|_| !self.leaving);
        // While an answer about rows is awaited, that decides anew.
        let rows = self.rows_at.filter(|_| self.comparing.is_none());
        let doubt = self.doubt_at().filter(|_| !self.leaving);
        let probes = [self.probe_at(), self.unsure_at(), doubt];
        let timers = [silent, stuck, rows, self.push_ack_at, self.unstable_at, self.token_at];
        timers.into_iter().chain(probes).flatten().chain([self.heartbeat_at()]).min()
    }
}
