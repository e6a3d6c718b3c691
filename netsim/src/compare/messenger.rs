//! The client of the TCP messenger, as a machine: what a careful author of a messenger over TCP and TLS does.
//!
//! - A message stays until the relay has acknowledged it, and is sent again, under the same number, first thing on every new
//!   connection: right behind the `Hello`, without a round trip between them.
//! - Every 30 s of a connection a ping; if nothing at all has come within 10 s of one, the connection is dead.
//! - A connection that is gone is made anew at once, and then after 1, 2, 4... 30 s with jitter; a `Welcome` sets it back.
//! - What is delivered twice is shown once.
//! - Where the system tells of another network, as it tells tern, it does not wait any longer: it tries at once, or asks at
//!   once whether the connection still carries, for half as long.
//!
//! It is not worse than it has to be, on purpose: a comparison is worth what the other side is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tern_core::clock::Entropy;

use super::frame::Frame;

/// Between two pings: less than NATs of carriers forget a stream in, and what messengers use.
pub const PING_EVERY: Duration = Duration::from_secs(30);
/// A ping that nothing has answered for so long shows a dead connection: several round trips of the worst link, with a
/// retransmission or two.
pub const PONG_WITHIN: Duration = Duration::from_secs(10);
/// The same when the system has told of another network: there is a reason to doubt.
pub const DOUBT_WITHIN: Duration = Duration::from_secs(5);
/// TCP, TLS and `Welcome` together: on 2G they take six seconds, with a lost SYN ten.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// The first wait after an attempt that failed.
pub const BACK_OFF_MIN: Duration = Duration::from_secs(1);
/// The longest one.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Open a connection, instead of any there is.
    Connect,
    /// Write this on it.
    Write(Frame),
    /// Let go of it.
    Close,
    /// It is welcome: to be noted.
    Live,
    /// A connection is gone that was welcome: to be noted.
    Lost,
    /// The relay has this one: to be noted.
    Acked(u64),
    /// Show this.
    Show(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// None; the next attempt is due then.
    Waiting(Duration),
    /// One is being made, and given up then.
    Connecting(Duration),
    /// It carries frames; not yet welcome, and given up then.
    Greeting(Duration),
    Live {
        ping_at: Duration,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Messenger {
    user: String,
    phase: Phase,
    tries: u32,
    /// Something must have been heard by then.
    answer_by: Option<Duration>,
    unacked: BTreeMap<u64, (String, String)>,
    last_id: u64,
    seen: BTreeSet<(String, u64)>,
    entropy: Entropy,
    outputs: VecDeque<Output>,
}

impl Messenger {
    /// It connects at once.
    pub fn new(now: Duration, user: &str, seed: u64) -> Self {
        Self {
            user: user.to_owned(),
            phase: Phase::Waiting(now),
            tries: 0,
            answer_by: None,
            unacked: BTreeMap::new(),
            last_id: 0,
            seen: BTreeSet::new(),
            entropy: Entropy::seeded(seed),
            outputs: VecDeque::new(),
        }
    }

    /// Its user writes something. Returns the message's number.
    pub fn send(&mut self, to: &str, text: &str) -> u64 {
        self.last_id += 1;
        let (id, to, text) = (self.last_id, to.to_owned(), text.to_owned());
        self.unacked.insert(id, (to.clone(), text.clone()));
        if matches!(self.phase, Phase::Live { .. } | Phase::Greeting(_)) {
            self.outputs.push_back(Output::Write(Frame::Send { id, to, text }));
        }
        id
    }

    /// The connection stands, with TLS.
    pub fn connected(&mut self) {
        let Phase::Connecting(until) = self.phase else { return };
        self.phase = Phase::Greeting(until);
        self.outputs.push_back(Output::Write(Frame::Hello { user: self.user.clone() }));
        for (id, (to, text)) in &self.unacked {
            let frame = Frame::Send { id: *id, to: to.clone(), text: text.clone() };
            self.outputs.push_back(Output::Write(frame));
        }
    }

    /// A frame came.
    pub fn heard(&mut self, now: Duration, frame: Frame) {
        self.answer_by = None;
        match frame {
            Frame::Welcome if matches!(self.phase, Phase::Greeting(_)) => {
                self.phase = Phase::Live { ping_at: now.saturating_add(PING_EVERY) };
                self.tries = 0;
                self.outputs.push_back(Output::Live);
            }
            Frame::Ack { id } if self.unacked.remove(&id).is_some() => self.outputs.push_back(Output::Acked(id)),
            Frame::Deliver { from, id, text } => {
                self.outputs.push_back(Output::Write(Frame::Got { from: from.clone(), id }));
                if self.seen.insert((from, id)) {
                    self.outputs.push_back(Output::Show(text));
                }
            }
            // A relay says nothing else that would matter.
            _ => {}
        }
    }

    /// The connection has ended, or could not be made.
    pub fn gone(&mut self, now: Duration) {
        if !matches!(self.phase, Phase::Waiting(_)) {
            self.retry(now);
        }
    }

    /// The system tells of another network.
    pub fn network_changed(&mut self, now: Duration) {
        self.tries = 0;
        match self.phase {
            Phase::Live { .. } => {
                self.outputs.push_back(Output::Write(Frame::Ping));
                self.expect_answer(now.saturating_add(DOUBT_WITHIN));
            }
            Phase::Waiting(_) => self.phase = Phase::Waiting(now),
            // What is being made may be of the old network.
            Phase::Connecting(_) | Phase::Greeting(_) => {
                self.outputs.push_back(Output::Close);
                self.phase = Phase::Waiting(now);
            }
        }
        self.tick(now);
    }

    /// When [`Messenger::tick`] is due.
    pub fn deadline(&self) -> Duration {
        match self.phase {
            Phase::Waiting(at) | Phase::Connecting(at) | Phase::Greeting(at) => at,
            Phase::Live { ping_at } => self.answer_by.map_or(ping_at, |by| by.min(ping_at)),
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        match self.phase {
            Phase::Waiting(at) if at <= now => {
                self.phase = Phase::Connecting(now.saturating_add(CONNECT_WITHIN));
                self.outputs.push_back(Output::Connect);
            }
            Phase::Connecting(until) | Phase::Greeting(until) if until <= now => self.give_up(now),
            Phase::Live { .. } if self.answer_by.is_some_and(|by| by <= now) => self.give_up(now),
            Phase::Live { ping_at } if ping_at <= now => {
                self.outputs.push_back(Output::Write(Frame::Ping));
                self.phase = Phase::Live { ping_at: now.saturating_add(PING_EVERY) };
                self.expect_answer(now.saturating_add(PONG_WITHIN));
            }
            _ => {}
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn expect_answer(&mut self, by: Duration) {
        self.answer_by = Some(self.answer_by.map_or(by, |before| before.min(by)));
    }

    fn give_up(&mut self, now: Duration) {
        self.outputs.push_back(Output::Close);
        self.retry(now);
    }

    fn retry(&mut self, now: Duration) {
        // What was to be written on the old connection is not for the next one, which sends it all again.
        self.outputs.retain(|output| !matches!(output, Output::Write(_)));
        let lost = matches!(self.phase, Phase::Live { .. });
        if lost {
            self.outputs.push_back(Output::Lost);
        }
        self.answer_by = None;
        let wait = if lost { Duration::ZERO } else { self.back_off() };
        self.phase = Phase::Waiting(now.saturating_add(wait));
    }

    /// Doubled with each attempt that failed; between half of it and all of it, so that a herd spreads.
    fn back_off(&mut self) -> Duration {
        let doubled = BACK_OFF_MIN.saturating_mul(1 << self.tries.min(10)).min(BACK_OFF_MAX);
        self.tries = self.tries.saturating_add(1);
        let half = doubled / 2;
        let spread_ms = u64::try_from(half.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        half + Duration::from_millis(self.entropy.below(spread_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn all(messenger: &mut Messenger) -> Vec<Output> {
        std::iter::from_fn(|| messenger.poll_output()).collect()
    }

    /// Lets it do what is due at its deadline, and returns that.
    fn next(messenger: &mut Messenger) -> Duration {
        let at = messenger.deadline();
        messenger.tick(at);
        at
    }

    fn send(id: u64) -> Output {
        Output::Write(Frame::Send { id, to: "bob".into(), text: format!("text {id}") })
    }

    fn hello() -> Output {
        Output::Write(Frame::Hello { user: "alice".into() })
    }

    fn ping() -> Output {
        Output::Write(Frame::Ping)
    }

    /// Connected and welcome at 0 s.
    fn live() -> Messenger {
        let mut messenger = Messenger::new(s(0), "alice", 1);
        messenger.tick(s(0));
        messenger.connected();
        messenger.heard(s(0), Frame::Welcome);
        assert_eq!(all(&mut messenger), [Output::Connect, hello(), Output::Live]);
        messenger
    }

    #[test]
    fn what_was_not_acked_goes_first_on_the_next_connection_under_its_number() {
        let mut messenger = live();
        for text in ["text 1", "text 2", "text 3"] {
            messenger.send("bob", text);
        }
        messenger.heard(s(1), Frame::Ack { id: 2 });
        assert_eq!(all(&mut messenger), [send(1), send(2), send(3), Output::Acked(2)]);
        messenger.gone(s(2));
        messenger.send("bob", "text 4");
        messenger.tick(s(2));
        assert_eq!(all(&mut messenger), [Output::Lost, Output::Connect]);
        messenger.connected();
        assert_eq!(all(&mut messenger), [hello(), send(1), send(3), send(4)]);
        messenger.heard(s(3), Frame::Ack { id: 1 });
        messenger.heard(s(3), Frame::Ack { id: 1 });
        assert_eq!(all(&mut messenger), [Output::Acked(1)], "an ack counts once");
    }

    #[test]
    fn what_comes_twice_is_confirmed_twice_and_shown_once() {
        let mut messenger = live();
        let deliver = |id| Frame::Deliver { from: "bob".into(), id, text: "hello".into() };
        let got = |id| Output::Write(Frame::Got { from: "bob".into(), id });
        let show = || Output::Show("hello".into());
        messenger.heard(s(1), deliver(1));
        messenger.heard(s(2), deliver(1));
        messenger.heard(s(3), deliver(2));
        assert_eq!(all(&mut messenger), [got(1), show(), got(1), got(2), show()]);
    }

    #[test]
    fn a_ping_that_nothing_answers_ends_the_connection_and_another_is_made_at_once() {
        let mut messenger = live();
        assert_eq!((next(&mut messenger), all(&mut messenger)), (s(30), vec![ping()]));
        messenger.heard(s(31), Frame::Pong);
        assert_eq!((next(&mut messenger), all(&mut messenger)), (s(60), vec![ping()]));
        // Whatever comes shows that it lives.
        messenger.heard(s(69), Frame::Ack { id: 9 });
        assert_eq!((next(&mut messenger), all(&mut messenger)), (s(90), vec![ping()]));
        assert_eq!((next(&mut messenger), all(&mut messenger)), (s(100), vec![Output::Close, Output::Lost]));
        assert_eq!((next(&mut messenger), all(&mut messenger)), (s(100), vec![Output::Connect]));
    }

    #[test]
    fn waits_between_attempts_double_with_jitter_until_the_longest_and_a_welcome_sets_them_back() {
        let mut messenger = Messenger::new(s(0), "alice", 7);
        let (mut now, mut waits) = (s(0), Vec::new());
        for _ in 0..9 {
            messenger.tick(now);
            assert_eq!(all(&mut messenger), [Output::Connect]);
            messenger.gone(now);
            let at = messenger.deadline();
            waits.push(at - now);
            now = at;
        }
        let longest = [1, 2, 4, 8, 16, 30, 30, 30, 30];
        for (wait, longest) in waits.iter().zip(longest) {
            assert!(*wait >= s(longest) / 2 && *wait <= s(longest), "{waits:?}");
        }
        assert!(waits.iter().zip(longest).any(|(wait, longest)| *wait != s(longest)), "no jitter: {waits:?}");
        messenger.tick(now);
        messenger.connected();
        messenger.heard(now, Frame::Welcome);
        messenger.gone(now);
        assert_eq!(messenger.deadline(), now, "one that was welcome is replaced at once");
        messenger.tick(now);
        messenger.gone(now);
        assert!(messenger.deadline() - now <= s(1));
    }

    #[test]
    fn an_attempt_that_takes_too_long_is_given_up_also_where_no_welcome_comes() {
        let mut messenger = Messenger::new(s(0), "alice", 1);
        messenger.tick(s(0));
        assert_eq!((all(&mut messenger), next(&mut messenger)), (vec![Output::Connect], CONNECT_WITHIN));
        assert_eq!(all(&mut messenger), [Output::Close]);
        let again = next(&mut messenger);
        messenger.connected();
        assert_eq!(all(&mut messenger), [Output::Connect, hello()]);
        assert_eq!(next(&mut messenger), again + CONNECT_WITHIN);
        assert_eq!(all(&mut messenger), [Output::Close]);
    }

    #[test]
    fn another_network_ends_every_wait() {
        let mut messenger = live();
        messenger.network_changed(s(5));
        assert_eq!((all(&mut messenger), messenger.deadline()), (vec![ping()], s(5) + DOUBT_WITHIN));
        messenger.tick(s(10));
        assert_eq!(all(&mut messenger), [Output::Close, Output::Lost]);
        messenger.tick(s(10));
        for _ in 0..6 {
            messenger.gone(messenger.deadline());
            next(&mut messenger);
        }
        all(&mut messenger);
        messenger.gone(s(100));
        messenger.network_changed(s(101));
        assert_eq!(all(&mut messenger), [Output::Connect]);
        messenger.network_changed(s(102));
        assert_eq!(all(&mut messenger), [Output::Close, Output::Connect], "the attempt was in the old network");
    }
}
