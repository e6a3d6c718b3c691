//! A device that is offered messages by the clock, and does what an SDK does.
//!
//! Messages come whether they can be sent or not; what can't be sent waits in the device, as in an outbox. So many
//! are un-acked at most. Told to come back later, the device waits as long as it was told, sends the first refused
//! message alone, and the rest once that is acked. A latency is that of a message that was taken, from its last
//! transmission to its ack: how long it waited in the outbox before is what the sender was told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use tern_core::client::limits::WINDOW_PER_CONVERSATION;
use tern_core::codes::Code;
use tern_core::edge_api::SendRequest;
use tern_core::ids::{ConvId, UserId};
use tern_core::wire::compact::Writer;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{codec, v1};
use tern_net::env::Env;
use tokio::time::{Instant, sleep_until};

use super::latency::Latencies;
use super::load::Phase;
use super::messages::{PushAcks, body};
use super::session::QuicSession;

/// How long a typing signal counts.
const SIGNAL_TTL_MS: u32 = 5_000;

/// What one device is offered in a phase.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// A message so often; `None`: always one more than may be sent, which is a closed loop.
    pub every: Option<Duration>,
    /// Un-acked messages at most.
    pub window: usize,
    /// A typing signal so often.
    pub signal_every: Option<Duration>,
    /// The first message comes so long after the beginning.
    pub first: Duration,
}

impl Offer {
    /// As many un-acked messages as an SDK has.
    pub const WINDOW: usize = WINDOW_PER_CONVERSATION;

    /// Messages that have come since the beginning.
    fn arrived(&self, since: Duration) -> u64 {
        match self.every {
            None => u64::MAX,
            Some(every) if since >= self.first => {
                let nanos = (since - self.first).as_nanos() / every.as_nanos().max(1);
                u64::try_from(nanos).unwrap_or(u64::MAX).saturating_add(1)
            }
            Some(_) => 0,
        }
    }

    /// When that number is reached.
    fn comes_at(&self, number: u64) -> Duration {
        self.first + self.every.unwrap_or_default().mul_f64(number.saturating_sub(1) as f64)
    }
}

/// What one device saw in the measured part of a phase.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Messages acked.
    pub acked: u64,
    /// Transmissions that were told to come back later.
    pub refused: u64,
    /// Of those acked.
    pub latencies: Latencies,
    /// Messages that had come and were not sent at the end.
    pub left: u64,
}

impl Seen {
    /// Adds another's.
    pub fn merge(&mut self, other: &Self) {
        self.acked += other.acked;
        self.refused += other.refused;
        self.left += other.left;
        self.latencies.merge(&other.latencies);
    }
}

/// See the module.
pub struct Device {
    session: QuicSession,
    writer: Writer,
    conversation: ConvId,
    /// Direct conversations.
    peer: Option<UserId>,
    /// The first message that is not acked, and those from it on that were sent: by which request, and when.
    floor: u64,
    in_flight: VecDeque<(u32, Duration)>,
    /// Of the last transmission. Each has its own: a late answer to an earlier one is none to this one.
    req: u32,
    /// Nothing is sent before.
    wait_until: Option<Instant>,
    /// It was told to come back, and what it sent since is not acked.
    probing: bool,
    seen_hlc: u64,
    acks: PushAcks,
    out: BytesMut,
}

impl Device {
    /// A device that has sent the messages below `n` to this conversation.
    pub fn new(session: QuicSession, conversation: ConvId, peer: Option<UserId>, n: u64) -> Self {
        Self {
            conversation,
            session,
            writer: Writer::default(),
            peer,
            floor: n,
            in_flight: VecDeque::new(),
            req: 0,
            wait_until: None,
            probing: false,
            seen_hlc: 0,
            acks: PushAcks::default(),
            out: BytesMut::new(),
        }
    }

    /// Runs one phase to its end, with nothing in flight after it.
    pub async fn run(mut self, env: Env, phase: Arc<Phase>, offer: Offer) -> Result<(Self, Seen)> {
        let mut sending = phase.sending();
        let mut seen = Seen::default();
        let began = Instant::now();
        let (mut handed, mut next_signal) = (0, offer.signal_every.map(|every| began + every.mul_f64(0.5)));
        loop {
            let on = *sending.borrow_and_update();
            let now = Instant::now();
            if self.wait_until.is_some_and(|at| at <= now) {
                self.wait_until = None;
            }
            let arrived = offer.arrived(now.saturating_duration_since(began));
            if on {
                while handed < arrived && self.may_send(offer.window) {
                    handed += 1;
                    self.put(&env);
                }
                if let (Some(every), Some(at)) = (offer.signal_every, &mut next_signal)
                    && *at <= now
                {
                    *at = now + every;
                    self.put_signal();
                }
            }
            if !self.out.is_empty() {
                self.session.message.send.write_all(&self.out).await?;
                self.out.clear();
            }
            if !on && self.in_flight.is_empty() {
                self.acks.send(&mut self.session.control, env.clock.now(), true).await?;
                if offer.every.is_some() {
                    seen.left = arrived.saturating_sub(handed);
                }
                return Ok((self, seen));
            }
            // When something may be sent that may not now; acks come by themselves.
            let message = match self.wait_until {
                Some(at) => Some(at),
                None if self.may_send(offer.window) => Some(began + offer.comes_at(handed + 1)),
                None => None,
            };
            let timer = message.into_iter().chain(next_signal).min();
            tokio::select! {
                biased;
                frame = self.session.message.frames.next() => {
                    self.read(frame?, &env, &phase, &mut seen)?;
                    self.acks.send(&mut self.session.control, env.clock.now(), false).await?;
                }
                () = sleep_until(timer.unwrap_or(now)), if on && timer.is_some() => {}
                _ = sending.changed(), if on => {}
            }
        }
    }

    fn may_send(&self, window: usize) -> bool {
        self.wait_until.is_none() && self.in_flight.len() < if self.probing { 1 } else { window }
    }

    fn put(&mut self, env: &Env) {
        let now = env.clock.now();
        let n = self.floor + self.in_flight.len() as u64;
        // 0 would ask for no answer.
        self.req = self.req.wrapping_add(1).max(1);
        self.in_flight.push_back((self.req, now));
        let send = SendRequest {
            conversation: self.conversation,
            peer: self.peer.clone().filter(|_| self.seen_hlc == 0),
            n,
            floor: self.floor,
            seen_hlc: self.seen_hlc,
            kind: 0,
            body: body(now),
            wall_ms: env.clock.wall_ms(),
            offer: None,
            membership: None,
            named: None,
        };
        self.writer.send(self.req, &send, &mut self.out);
    }

    fn put_signal(&mut self) {
        let signal = v1::Signal {
            conversation: Bytes::copy_from_slice(&self.conversation.0),
            kind: 0,
            body: Bytes::new(),
            ttl_ms: SIGNAL_TTL_MS,
            from: None,
        };
        codec::put(&v1::Frame::new(0, Body::Signal(signal)), &mut self.out);
    }

    fn read(&mut self, first: Option<v1::Frame>, env: &Env, phase: &Phase, seen: &mut Seen) -> Result<()> {
        let now = env.clock.now();
        let measuring = phase.is_measuring();
        let mut next = Some(first.context("the server ended a message lane")?);
        while let Some(frame) = next {
            match frame.body {
                Some(Body::Ack(ack)) => {
                    self.seen_hlc = self.seen_hlc.max(ack.hlc);
                    // Acks of one conversation come in order.
                    if self.in_flight.front().is_some_and(|(req, _)| *req == frame.req)
                        && let Some((_, sent)) = self.in_flight.pop_front()
                    {
                        self.floor += 1;
                        self.probing = false;
                        if measuring {
                            seen.acked += 1;
                            seen.latencies.add(now.saturating_sub(sent));
                        }
                    }
                }
                Some(Body::Error(error))
                    if [Code::Overloaded as u32, Code::OutOfOrder as u32].contains(&error.code) =>
                {
                    seen.refused += u64::from(measuring);
                    // From the refused one on everything is sent again, after the time that was asked for.
                    if let Some(keep) = self.in_flight.iter().position(|(req, _)| *req == frame.req) {
                        self.in_flight.truncate(keep);
                        self.probing = true;
                        let until = Instant::now() + Duration::from_millis(u64::from(error.retry_after_ms));
                        self.wait_until = Some(self.wait_until.map_or(until, |at| at.max(until)));
                    }
                }
                Some(Body::Push(push)) => self.acks.saw(push.rev),
                Some(Body::Advance(advance)) => self.acks.saw(advance.rev),
                Some(Body::Define(_) | Body::Stable(_) | Body::Signal(_)) => {}
                _ => bail!(super::session::unexpected(&frame)),
            }
            next = self.session.message.frames.buffered()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn messages_come_by_the_clock_and_each_has_its_time() {
        let offer = Offer { every: Some(10 * MS), window: 4, signal_every: None, first: 5 * MS };
        assert_eq!([0, 4, 5, 14, 15, 105].map(|ms| offer.arrived(ms * MS)), [0, 0, 1, 1, 2, 11]);
        for n in 1..50 {
            let at = offer.comes_at(n);
            assert_eq!((offer.arrived(at), offer.arrived(at - MS)), (n, n - 1));
        }
        assert_eq!(Offer { every: None, ..offer }.arrived(Duration::ZERO), u64::MAX);
    }
}
