//! What operators have of every role: the admin listener, health, reload, and what systemd is told.
//!
//! A role's start: [`Operations::start`] before anything that may take long, [`Health::phase`] at each step,
//! its reloadable parts to [`Operations::reload`], then [`Operations::ready`]; and [`Operations::stopping`] when
//! it begins to drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use tern_core::store::{Durability, Store};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};

use crate::admin::{self, Loads, Shared};
use crate::certs::{CertFiles, CertificateMetrics};
use crate::config::Sources;
use crate::health::{Health, STUCK_AFTER};
use crate::logging::LogFilter;
use crate::node::Node;
use crate::reload::{Part, ReloadMetrics, Reloader};
use crate::systemd::Systemd;

/// How often files that the configuration names are looked at: a renewed certificate is in use within this
/// time, and looking costs a handful of system calls.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often systemd hears that a start goes on.
const STARTING_EVERY: Duration = Duration::from_secs(5);
/// How long it then waits for the next word.
const STARTING_GRACE: Duration = Duration::from_secs(60);
/// How often parts are asked whether they still answer.
const BEAT_EVERY: Duration = Duration::from_secs(2);
/// What a stop may take beyond its drain: links, the store's last flush, a slow disk.
const STOP_GRACE: Duration = Duration::from_secs(30);

/// What a role is started with.
#[derive(Clone, Debug)]
pub struct Origins {
    /// Where its configuration came from.
    pub sources: Sources,
    /// Its log.
    pub log: LogFilter,
}

/// See the module.
#[derive(Debug)]
pub struct Operations {
    /// What is asked by those who restart, route and wait.
    pub health: Health,
    /// The configuration in force.
    pub reload: Arc<Reloader>,
    /// Where the admin listener is.
    pub admin: SocketAddr,
    shared: Arc<Shared>,
    systemd: Systemd,
}

impl Operations {
    /// Listens for operators. From now on SIGHUP does not end the process; it is acted on once it is ready.
    pub async fn start(node: &Node, origins: Origins) -> Result<(Self, Hangup)> {
        crate::ports::check(&node.settings, node.role)?;
        let hangup = Hangup(signal(SignalKind::hangup()).context("can't listen for SIGHUP")?);
        let systemd = Systemd::from_environment();
        let health = Health::new(node.env.clock.clone());
        let reload = Reloader::new(node.role, origins.sources, node.settings.clone(), node.env.clock.clone());
        add_common_parts(&reload, node, origins.log);
        let mut base = Registry::default();
        admin::register_process(&mut base);
        base.register_collector(Box::new(ReloadMetrics(reload.clone())));
        base.register_collector(Box::new(CertificateMetrics(node.certificates.clone())));
        let shared = Shared::new(health.clone(), reload.clone(), base);
        let admin = admin::start(&node.env, node.settings.admin_listen(), &shared).await?;
        if systemd.is_there() {
            node.env.tasks.spawn(tell_starting(health.clone(), systemd.clone()));
        }
        Ok((Self { health, reload, admin, shared, systemd }, hangup))
    }

    /// All serves: says so to everyone, and begins to listen for SIGHUP and for changed files.
    pub fn ready(&self, node: &Node, hangup: Hangup, registry: Registry, loads: Option<Loads>) {
        let forgotten = self.reload.forgotten();
        if !forgotten.is_empty() {
            tracing::error!(?forgotten, "keys that are documented to be reloadable need a restart: please report this");
        }
        self.shared.publish(registry, loads);
        node.env.tasks.spawn(beat(self.health.clone()));
        if let Some(every) = self.systemd.watchdog_every() {
            node.env.tasks.spawn(watchdog(self.health.clone(), self.systemd.clone(), every));
        }
        let watch = Watch {
            hangup,
            reload: self.reload.clone(),
            certificates: node.certificates.clone(),
            systemd: self.systemd.clone(),
        };
        node.env.tasks.spawn(watch.run());
        self.health.started();
        self.systemd.ready("serving");
    }

    /// Lets operators ask where clients would be sent.
    pub fn publish_dispatch(&self, dispatch: Arc<tern_ipconf::Dispatch>) {
        self.shared.publish_dispatch(dispatch);
    }

    /// Lets operators give orders.
    pub fn publish_orders(&self, desk: &Arc<crate::orders::desk::Desk>) {
        self.shared.publish_orders(desk.clone());
    }

    /// Tells systemd what is being done.
    pub fn status(&self) -> impl Fn(&str) + Send + Sync + 'static {
        let systemd = self.systemd.clone();
        move |status| systemd.status(status)
    }

    /// Lets operators ask for backups of the region's store.
    pub fn publish_store(&self, store: crate::backend::Backend) {
        self.shared.publish_store(store);
    }

    /// Lets operators decide about users, through the region's core.
    pub fn publish_region(&self, region: &Arc<tern_replication::region::Region>, node: &Node) {
        self.shared.publish_region(region.clone(), &node.name);
        let desk = self.shared.desk.clone();
        desk.attach(region.attach_edge(desk.clone()), node.env.clone());
    }

    /// Draining begins, and takes this long at most.
    pub fn stopping(&self, drain: Duration) {
        self.health.draining();
        self.systemd.stopping("draining: clients are sent elsewhere", drain + STOP_GRACE);
    }

    /// Liveness of a store: its writer is asked for nothing, again and again.
    pub fn watch_store(&self, node: &Node, store: Arc<dyn Store>) {
        let asked = move || {
            let store = store.clone();
            // A refusal is an answer: a full disk is no reason to restart.
            async move { drop(store.put(Vec::new(), Durability::Lazy).await) }
        };
        node.env.tasks.spawn(ask_again(self.health.clone(), "store", asked));
    }
}

/// Asks a part, again and again, and says that it is well whenever it answers. It counts as well when this
/// begins, so that one that never answers is found.
async fn ask_again<F: Future<Output = ()>>(health: Health, part: &'static str, ask: impl Fn() -> F) {
    health.beat(part);
    loop {
        if timeout(STUCK_AFTER, ask()).await.is_ok() {
            health.beat(part);
        }
        sleep(BEAT_EVERY).await;
    }
}

/// What every role can change: its log and its certificates.
fn add_common_parts(reload: &Reloader, node: &Node, log: LogFilter) {
    reload.add(Part::new("log", &["log.level"], move |settings| {
        log.set(&settings.log_level).map_err(|error| format!("{error:#}"))
    }));
    let (certificates, name) = (node.certificates.clone(), node.name.clone());
    let public = Part::new("certificate for clients", &["tls.public_cert", "tls.public_key"], move |settings| {
        certificates.replace_public(settings)
    });
    reload.add(public.with_files(move |settings| {
        let files = CertFiles::of(settings, &name);
        vec![files.public_cert, files.public_key]
    }));
    let (certificates, name) = (node.certificates.clone(), node.name.clone());
    let keys = &["tls.node_cert", "tls.node_key", "tls.node_ca"];
    let between = Part::new("certificate for nodes", keys, move |settings| certificates.replace_node(settings));
    reload.add(between.with_files(move |settings| {
        let files = CertFiles::of(settings, &name);
        vec![files.node_cert, files.node_key, files.node_ca]
    }));
}

/// SIGHUP, caught from the beginning.
#[derive(Debug)]
pub struct Hangup(Signal);

struct Watch {
    hangup: Hangup,
    reload: Arc<Reloader>,
    certificates: Arc<crate::certs::Certificates>,
    systemd: Systemd,
}

impl Watch {
    async fn run(mut self) {
        loop {
            self.certificates.warn_of_ends();
            tokio::select! {
                biased;
                signal = self.hangup.0.recv() => {
                    if signal.is_none() {
                        return;
                    }
                    self.systemd.reloading();
                    let report = tokio::task::block_in_place(|| self.reload.reload());
                    self.systemd.ready(if report.is_ok() {
                        "serving"
                    } else {
                        "serving; the last reload failed, see the log"
                    });
                }
                () = sleep(LOOK_EVERY) => tokio::task::block_in_place(|| self.reload.look_at_files()),
            }
        }
    }
}

/// The runtime itself: a task that gets no turn is as good as dead.
async fn beat(health: Health) {
    loop {
        health.beat("tasks");
        sleep(BEAT_EVERY).await;
    }
}

async fn watchdog(health: Health, systemd: Systemd, every: Duration) {
    loop {
        let stuck = health.stuck();
        if stuck.is_empty() {
            systemd.alive();
        } else {
            tracing::error!(?stuck, "a part of this process does not answer: systemd will restart it");
        }
        sleep(every).await;
    }
}

async fn tell_starting(health: Health, systemd: Systemd) {
    while let Some((phase, since)) = health.starting() {
        systemd.still_starting(&format!("{phase} (for {} s)", since.as_secs()), STARTING_GRACE);
        sleep(STARTING_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::{Context as TaskContext, Waker};

    use tern_core::clock::Clock;

    use super::*;

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
    fn a_part_that_never_answers_is_found_and_one_that_does_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _inside = runtime.enter();
        let (clock, mut cx) = (Arc::new(Hand::default()), TaskContext::from_waker(Waker::noop()));
        let health = Health::new(clock.clone());
        let mut stuck = pin!(ask_again(health.clone(), "store", std::future::pending));
        assert!(stuck.as_mut().poll(&mut cx).is_pending());
        clock.0.store(STUCK_AFTER.as_secs(), Ordering::Relaxed);
        assert_eq!(health.stuck(), ["store: has not answered for 60 s"]);
        let mut well = pin!(ask_again(health.clone(), "store", || std::future::ready(())));
        assert!(well.as_mut().poll(&mut cx).is_pending());
        assert!(health.stuck().is_empty());
    }
}
