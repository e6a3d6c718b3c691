//! Who has the region, and the time-stamps of its plain writes.
//!
//! **The problem.** Named values, checkpoints and todo rows are replaced by plain writes, of which the highest
//! time-stamp wins. Taken from clocks, a process that is started on another machine, whose clock is behind, writes
//! below what its predecessor wrote, and its writes are lost; and a predecessor that was paused wakes up and removes
//! the todo row that its successor has just written.
//!
//! **The rule.** Time-stamps are reserved before they are used, by a conditional write on the row `owner`: (epoch,
//! holder, reserved). A process uses none above `reserved`, and its successor uses none below. So whatever a
//! predecessor still writes loses, by whatever clock. Once its reserve is used up it must reserve more, which its
//! successor's name in `holder` makes fail: from then on it is fenced, in all it does, however long it slept.
//!
//! The same row holds the region's epoch. It is claimed, not written: of two processes that start at once, one gets
//! it. A process that claims it waits until the clock has passed its predecessor's reserve, unless that gave it back;
//! for so long the predecessor may go on in conversations that are not taken over yet. What it appends there is safe
//! (each conversation has its own fence), but its successor would hear of it only at the next start.
//!
//! A process that serves renews its reserve all the time, also while it writes nothing. So a command that must not run
//! beside one sees it, a second process of the same region can refuse to start instead of fencing the first
//! ([`Stamps::wait_until_free`]), and a process that was paused finds within seconds that it is fenced.

use std::sync::Arc;
use std::time::Duration;

use tern_core::clock::Clock;
use tern_core::store::StoreError;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::limits::{CONTENTION_TRIES, RESOLVE_PAUSE, RESOLVE_WITHIN, STAMP_RENEWAL, STAMP_WAIT, STAMP_WINDOW_US};
use crate::requests::{Cas, Requests};

/// The one scope there is. Processes that share a region will each have their own.
const SCOPE: &str = "region";

/// The row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    epoch: i64,
    holder: Vec<u8>,
    reserved: i64,
}

/// Why a time-stamp, and so a write, is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StampError {
    /// Another process has the region.
    Fenced,
    /// The database did not answer.
    Backend(String),
}

impl From<StampError> for StoreError {
    fn from(error: StampError) -> Self {
        Self::Backend(match error {
            StampError::Fenced => "another process has taken over this region; nothing was written".to_owned(),
            StampError::Backend(what) => what,
        })
    }
}

impl From<StoreError> for StampError {
    fn from(error: StoreError) -> Self {
        Self::Backend(error.to_string())
    }
}

#[derive(Debug, Default)]
struct State {
    /// The highest that was handed out.
    last: i64,
    /// The row as this process wrote it; `None` until it has.
    mine: Option<Owner>,
    fenced: bool,
}

/// [`STAMP_RENEWAL`] in microseconds.
fn renewal_us() -> i64 {
    i64::try_from(STAMP_RENEWAL.as_micros()).unwrap_or(STAMP_WINDOW_US)
}

pub(crate) struct Stamps {
    requests: Arc<Requests>,
    clock: Arc<dyn Clock>,
    /// Names this store.
    holder: [u8; 16],
    state: Mutex<State>,
}

impl Stamps {
    pub(crate) fn new(requests: Arc<Requests>, clock: Arc<dyn Clock>, holder: [u8; 16]) -> Self {
        Self { requests, clock, holder, state: Mutex::default() }
    }

    fn now_us(&self) -> i64 {
        i64::try_from(self.clock.wall_ms().saturating_mul(1_000)).unwrap_or(i64::MAX / 2)
    }

    /// The region's epoch as it is stored; 0 = none yet.
    pub(crate) async fn epoch(&self) -> Result<u64, StoreError> {
        let owner = self.read().await?;
        Ok(owner.map_or(0, |owner| owner.epoch.cast_unsigned()))
    }

    /// Waits until no process can have the region any more, and returns whether it is free: not so if another goes on
    /// renewing its reserve, or has reserved further ahead than any clock explains.
    pub(crate) async fn wait_until_free(&self) -> Result<bool, StoreError> {
        let Some(first) = self.read().await? else { return Ok(true) };
        let ahead = first.reserved.saturating_sub(self.now_us());
        let Ok(ahead) = u64::try_from(ahead) else { return Ok(true) };
        // Clocks may differ: whoever lives has renewed twice meanwhile, by any clock.
        let wait = Duration::from_micros(ahead).clamp(2 * STAMP_RENEWAL, STAMP_WAIT);
        tracing::info!(?wait, "the process that had this region did not give it back: looking whether it still runs");
        let until = Instant::now() + wait;
        while Instant::now() < until {
            tokio::time::sleep(RESOLVE_PAUSE.1.min(until - Instant::now())).await;
            let now = self.read().await?;
            if now.is_some_and(|now| now.holder != first.holder || now.reserved > first.reserved) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reserves anew if this store has the region and its reserve comes to its end. [`StampError::Fenced`]: another
    /// process has it.
    pub(crate) async fn renew(&self) -> Result<(), StampError> {
        let mut state = self.state.lock().await;
        if state.fenced {
            return Err(StampError::Fenced);
        }
        let Some(mine) = state.mine.as_ref() else { return Ok(()) };
        let now = self.now_us();
        if mine.reserved > now + STAMP_WINDOW_US - renewal_us() {
            return Ok(());
        }
        self.reserve(&mut state, None, now).await
    }

    /// `count` time-stamps, the first of which is returned. Ascending from call to call, and above all that
    /// predecessors used.
    pub(crate) async fn take(&self, count: usize) -> Result<i64, StampError> {
        let count = i64::try_from(count.max(1)).unwrap_or(i64::MAX / 4);
        let mut state = self.state.lock().await;
        if state.fenced {
            return Err(StampError::Fenced);
        }
        let now = self.now_us();
        let first = now.max(state.last + 1);
        let end = first + count - 1;
        let reserved = state.mine.as_ref().map_or(i64::MIN, |owner| owner.reserved);
        if end > reserved {
            self.reserve(&mut state, None, end).await?;
        }
        // A predecessor's clock may have been ahead.
        let first = first.max(state.last + 1);
        let end = first + count - 1;
        if state.mine.as_ref().is_none_or(|owner| owner.reserved < end) {
            self.reserve(&mut state, None, end).await?;
        }
        state.last = end;
        Ok(first)
    }

    /// Makes the region this store's, under `epoch`. An epoch below the stored one changes nothing if the region is
    /// this store's already. Waits until a predecessor can't write any more.
    pub(crate) async fn claim(&self, epoch: u64) -> Result<(), StampError> {
        let mut state = self.state.lock().await;
        if state.fenced {
            return Err(StampError::Fenced);
        }
        let end = self.now_us().max(state.last + 1);
        self.reserve(&mut state, Some(epoch.cast_signed()), end).await
    }

    /// Whether the region is this store's, as far as it knows.
    pub(crate) async fn is_mine(&self) -> bool {
        let state = self.state.lock().await;
        state.mine.is_some() && !state.fenced
    }

    /// Gives back what is reserved, so that a successor need not wait. The last write of a store that is closed.
    pub(crate) async fn release(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let Some(mine) = state.mine.clone().filter(|_| !state.fenced) else { return Ok(()) };
        state.fenced = true;
        let given = Owner { reserved: state.last, ..mine.clone() };
        match self.write(Some(&mine), &given).await {
            Cas::Applied | Cas::Refused => Ok(()),
            Cas::Unclear(what) => Err(StoreError::Backend(what)),
        }
    }

    /// Writes the row so that it is this store's and reaches beyond `end`.
    async fn reserve(&self, state: &mut State, epoch: Option<i64>, end: i64) -> Result<(), StampError> {
        let claims = epoch.is_some();
        // What was written without an answer, and the reserve that it follows if that was a predecessor's.
        let mut tried: Option<(Owner, i64)> = None;
        let until = Instant::now() + RESOLVE_WITHIN;
        for attempt in 0..CONTENTION_TRIES {
            if attempt > 0 && Instant::now() > until {
                break;
            }
            // Who has held it knows it, unless a write of his own is unclear.
            let found = match (&state.mine, attempt) {
                (Some(mine), 0) => Some(mine.clone()),
                _ => self.read().await?,
            };
            if let Some((next, before)) = tried.take()
                && found.as_ref() == Some(&next)
            {
                state.mine = Some(next);
                self.outwait(claims, before).await;
                return Ok(());
            }
            let mine = found.as_ref().is_some_and(|owner| owner.holder == self.holder);
            if state.mine.is_some() && !mine {
                state.fenced = true;
                return Err(StampError::Fenced);
            }
            let stored = found.as_ref().map_or(0, |owner| owner.epoch);
            match epoch {
                Some(epoch) if mine && epoch <= stored => {
                    state.mine = found;
                    return Ok(());
                }
                Some(epoch) if epoch <= stored => {
                    return Err(StampError::Backend(format!(
                        "another process has taken epoch {stored} of this region; nothing was written"
                    )));
                }
                _ => {}
            }
            let before = found.as_ref().map_or(0, |owner| owner.reserved);
            if !mine {
                state.last = state.last.max(before);
            }
            let next = Owner {
                epoch: epoch.unwrap_or(stored),
                holder: self.holder.to_vec(),
                reserved: if mine { before.max(end + STAMP_WINDOW_US) } else { before.max(end) + STAMP_WINDOW_US },
            };
            let before = if mine { i64::MIN } else { before };
            match self.write(found.as_ref(), &next).await {
                Cas::Applied => {
                    state.mine = Some(next);
                    self.outwait(claims, before).await;
                    return Ok(());
                }
                Cas::Refused => {}
                Cas::Unclear(what) => {
                    tracing::warn!(what, "whether time-stamps were reserved is not known yet; looking again");
                    tried = Some((next, before));
                    tokio::time::sleep(RESOLVE_PAUSE.0).await;
                }
            }
        }
        Err(StampError::Backend("the database does not say who has this region; nothing was written".to_owned()))
    }

    /// Who claims the region waits until the clock, which counts milliseconds, has passed what a predecessor had
    /// reserved.
    async fn outwait(&self, claims: bool, reserved: i64) {
        let ahead = reserved.saturating_add(1_000).saturating_sub(self.now_us());
        let Some(ahead) = u64::try_from(ahead).ok().filter(|_| claims) else { return };
        let wait = Duration::from_micros(ahead);
        if wait > STAMP_WAIT {
            tracing::error!(
                ahead_s = wait.as_secs(),
                "the process that had this region before wrote with a clock far ahead of this one's: check both"
            );
        }
        let wait = wait.min(STAMP_WAIT);
        tracing::info!(
            wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            "the process that had this region before did not give it back: waiting until it can't write any more"
        );
        tokio::time::sleep(wait).await;
    }

    async fn read(&self) -> Result<Option<Owner>, StoreError> {
        type Row = (Option<i64>, Option<Vec<u8>>, Option<i64>);
        let row = self.requests.row::<Row>(&self.requests.statements().owner, (SCOPE,)).await?;
        Ok(row.map(|(epoch, holder, reserved)| Owner {
            epoch: epoch.unwrap_or(0),
            holder: holder.unwrap_or_default(),
            reserved: reserved.unwrap_or(0),
        }))
    }

    async fn write(&self, before: Option<&Owner>, next: &Owner) -> Cas {
        let statements = self.requests.statements();
        match before {
            None => {
                let values = (SCOPE, next.epoch, &next.holder[..], next.reserved);
                self.requests.conditional(&statements.owner_first, values).await
            }
            Some(before) => {
                let values = (
                    next.epoch,
                    &next.holder[..],
                    next.reserved,
                    SCOPE,
                    before.epoch,
                    &before.holder[..],
                    before.reserved,
                );
                self.requests.conditional(&statements.owner_take, values).await
            }
        }
    }
}
