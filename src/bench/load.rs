//! Running many clients at once, in phases.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tern_core::store::BoxFut;
use tern_net::env::Env;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// Runs `job` for 0 to `count`, so many at once, and returns what they made, in order. The first failure ends
/// it; jobs that are under way then end at their own pace.
pub async fn each<T, F, Fut>(env: &Env, count: usize, at_once: usize, job: F) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Fn(usize) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T>> + Send,
{
    let shared = Arc::new((AtomicUsize::new(0), job));
    let (tell, mut told) = mpsc::channel(at_once.max(1));
    for _ in 0..at_once.min(count) {
        let (shared, tell) = (shared.clone(), tell.clone());
        env.tasks.spawn(async move {
            loop {
                let index = shared.0.fetch_add(1, Ordering::Relaxed);
                // A failed send: another job has failed.
                if index >= count || tell.send((index, (shared.1)(index).await)).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(tell);
    let mut made: Vec<Option<T>> = std::iter::repeat_with(|| None).take(count).collect();
    while let Some((index, result)) = told.recv().await {
        if let Some(place) = made.get_mut(index) {
            *place = Some(result?);
        }
    }
    made.into_iter().collect::<Option<Vec<T>>>().context("a client's task has ended before its time")
}

/// Tasks that were started together; waits for all of them.
pub struct Crowd<T> {
    told: mpsc::Receiver<(usize, Result<T>)>,
    count: usize,
}

impl<T: Send + 'static> Crowd<T> {
    /// Starts them.
    pub fn start(env: &Env, jobs: Vec<BoxFut<'static, Result<T>>>) -> Self {
        let count = jobs.len();
        let (tell, told) = mpsc::channel(count.max(1));
        for (index, job) in jobs.into_iter().enumerate() {
            let tell = tell.clone();
            env.tasks.spawn(async move {
                // Nobody listens where another task has failed.
                let _failed = tell.send((index, job.await)).await;
            });
        }
        Self { told, count }
    }

    /// What they returned, in the order in which they were given.
    pub async fn end(mut self, within: Duration) -> Result<Vec<T>> {
        let mut made: Vec<Option<T>> = std::iter::repeat_with(|| None).take(self.count).collect();
        let collect = async {
            while let Some((index, result)) = self.told.recv().await {
                if let Some(place) = made.get_mut(index) {
                    *place = Some(result?);
                }
            }
            made.into_iter().collect::<Option<Vec<T>>>().context("a client's task has ended before its time")
        };
        let ended = timeout(within, collect).await;
        ended.map_err(|_| anyhow!("the clients did not come to an end within {} s", within.as_secs()))?
    }

    /// Fails as soon as one of them does; otherwise lasts for ever.
    pub async fn failure(&mut self) -> anyhow::Error {
        match self.told.recv().await {
            Some((_, Err(error))) => error,
            _ => anyhow!("a client stopped by itself"),
        }
    }
}

/// What the clients of one phase share with who watches them.
#[derive(Debug)]
pub struct Phase {
    measuring: AtomicBool,
    sending: watch::Sender<bool>,
    receiving: watch::Sender<bool>,
    /// Messages acked, or echoed, since the phase began.
    pub acked: AtomicU64,
    /// Messages that reached their receiver.
    pub delivered: AtomicU64,
}

impl Default for Phase {
    fn default() -> Self {
        Self {
            measuring: AtomicBool::new(false),
            sending: watch::Sender::new(true),
            receiving: watch::Sender::new(true),
            acked: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
        }
    }
}

impl Phase {
    /// Whether what happens now counts.
    pub fn is_measuring(&self) -> bool {
        self.measuring.load(Ordering::Relaxed)
    }

    /// Begins or ends the time that counts.
    pub fn set_measuring(&self, measuring: bool) {
        self.measuring.store(measuring, Ordering::Relaxed);
    }

    /// No more sends.
    pub fn stop_sending(&self) {
        self.sending.send_replace(false);
    }

    /// Receivers may end once they have what was sent.
    pub fn stop_receiving(&self) {
        self.receiving.send_replace(false);
    }

    /// Whether to send, and a way to wait for its end.
    pub fn sending(&self) -> watch::Receiver<bool> {
        self.sending.subscribe()
    }

    /// Whether to receive, likewise.
    pub fn receiving(&self) -> watch::Receiver<bool> {
        self.receiving.subscribe()
    }

    /// (acked, delivered).
    pub fn counts(&self) -> (u64, u64) {
        (self.acked.load(Ordering::Relaxed), self.delivered.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tern_net::system::system_env;

    #[tokio::test]
    async fn jobs_run_so_many_at_once_and_their_results_keep_their_order() {
        let env = system_env().unwrap();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (running, highest) = (now.clone(), most.clone());
        let made = each(&env, 50, 4, move |i| {
            let (running, highest) = (running.clone(), highest.clone());
            async move {
                highest.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(i * 2)
            }
        });
        assert_eq!(made.await.unwrap(), (0..50).map(|i| i * 2).collect::<Vec<_>>());
        assert!(most.load(Ordering::SeqCst) <= 4);
    }

    #[tokio::test]
    async fn the_first_failure_is_told() {
        let env = system_env().unwrap();
        let failed = each(&env, 10, 2, |i| async move { if i == 3 { Err(anyhow!("three")) } else { Ok(()) } }).await;
        assert_eq!(failed.unwrap_err().to_string(), "three");
        let jobs: Vec<BoxFut<'static, Result<()>>> =
            vec![Box::pin(std::future::pending()), Box::pin(async { Err(anyhow!("lost")) })];
        let mut crowd = Crowd::start(&env, jobs);
        assert_eq!(crowd.failure().await.to_string(), "lost");
    }
}
