//! Whether the process of another core node of this region is gone.
//!
//! Problem: a node whose beat stands still may be dead, or paused, or cut off from the database. Only time tells these
//! apart, and that time is most of what a node's death costs its users. Yet where the process alone died, its machine
//! knows at once.
//!
//! Rule: a node listens for streams at its own address, from before it claims a generation until its process ends, and
//! nothing is ever said on them. Each of the others keeps one open. That it ends says nothing yet. But if the machine then
//! refuses another, nobody listens there: the process that had this generation is gone, and so is all that it could still
//! say on the strength of its lease. The keeper then waits for [`GONE_AFTER`] where it would wait for its
//! [`DEAD_AFTER`](super::shares::DEAD_AFTER).
//!
//! What a refusal is not. A node of an older version does not listen, and some firewalls refuse in a machine's name: so it
//! counts only for a generation under which a stream was open, and only while the beat stands still as well. Who is wrong
//! all the same has fenced a node that lives, which corrupts nothing: it finds out with its next renewal and begins anew.
//! A machine that answers nothing (without power, cut off, behind a firewall that drops) is not known to be dead any sooner
//! than without all this.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tern_core::leases::NodeLease;
use tern_core::owners::CoreNode;
use tern_net::env::Stream;
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Shared;
use super::shares::RENEW_EVERY;

/// A node whose process is gone is dead when its beat has stood still for so long: a renewal is missing.
pub(super) const GONE_AFTER: Duration = Duration::from_millis(400);
const _: () = assert!(GONE_AFTER.as_millis() > RENEW_EVERY.as_millis());
/// Streams that are held for others at once; a region has fewer core nodes. More are closed as they come.
const HELD: usize = 256;
/// A stream that can't be had by then is tried again.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Between two tries, and between two looks at who is at the other end.
const PAUSE: Duration = Duration::from_millis(300);

/// Listens for the others. Where that can't be, they wait longer before they take this node for dead.
pub(super) async fn listen(shared: &Arc<Shared>, at: SocketAddr) {
    let mut acceptor = match shared.env.net.listen(at).await {
        Ok(acceptor) => acceptor,
        Err(error) => {
            tracing::warn!(%at, %error, "the TCP port beside the node port can't be had: if this process dies, the other core nodes notice later");
            return;
        }
    };
    let (tasks, shared) = (shared.env.tasks.clone(), shared.clone());
    let held = Arc::new(Semaphore::new(HELD));
    tasks.clone().spawn(async move {
        loop {
            match acceptor.accept().await {
                Ok((mut stream, _)) => {
                    // Perhaps of a node that this one has not heard of.
                    shared.newcomer.store(true, Ordering::Relaxed);
                    shared.look.notify_one();
                    let Ok(place) = held.clone().try_acquire_owned() else { continue };
                    tasks.spawn(async move {
                        ended(&mut *stream).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a stream of a core node could not be taken");
                    sleep(PAUSE).await;
                }
            }
        }
    });
}

/// Waits for the end of a stream on which nothing is to be said.
async fn ended(stream: &mut dyn Stream) {
    let _anything_ends_it = stream.read(&mut [0]).await;
}

/// Sees to it that each of these nodes is watched.
pub(super) fn keep(shared: &Arc<Shared>, nodes: &[NodeLease]) {
    for node in nodes.iter().filter(|node| node.name != shared.config.node) {
        let mut watched = shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if !watched.contains_key(&node.name) {
            watched.insert(node.name.clone(), None);
            shared.env.tasks.spawn(watch(shared.clone(), node.name.clone()));
        }
    }
}

/// Whether the process that had this generation is gone.
pub(super) fn is_gone(shared: &Shared, name: &str, generation: u64) -> bool {
    let watched = shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
    watched.get(name).copied().flatten() == Some(generation)
}

fn known(shared: &Shared, name: &str) -> Option<CoreNode> {
    shared.owners.lock().unwrap_or_else(PoisonError::into_inner).nodes().get(name).cloned()
}

/// Notes which generation of a node is gone.
fn note(shared: &Shared, name: &str, gone: Option<u64>) {
    let mut watched = shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(noted) = watched.get_mut(name)
        && std::mem::replace(noted, gone) != gone
        && gone.is_some()
    {
        shared.look.notify_one();
    }
}

/// Watches a node for as long as it is one of the region's.
async fn watch(shared: Arc<Shared>, name: String) {
    // The last generation under which a stream was open.
    let mut open_under = None;
    // What is known is read before it is tried: whoever takes a later generation listens by then.
    while let Some(node) = known(&shared, &name) {
        match timeout(CONNECT_WITHIN, shared.env.net.connect(node.addr)).await {
            Ok(Ok(mut stream)) => {
                open_under = Some(node.generation);
                note(&shared, &name, None);
                let began = shared.env.clock.now();
                hold(&shared, &name, &node, &mut *stream, &mut open_under).await;
                if shared.env.clock.now() >= began + PAUSE {
                    continue; // now it shows whether the process has ended
                }
            }
            Ok(Err(error))
                if error.kind() == io::ErrorKind::ConnectionRefused && open_under == Some(node.generation) =>
            {
                note(&shared, &name, open_under);
            }
            Ok(Err(_)) | Err(_) => {} // no word of whoever listens there
        }
        sleep(PAUSE).await;
    }
    shared.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
}

/// Holds a stream until it ends, or leads elsewhere than it should.
async fn hold(shared: &Shared, name: &str, at: &CoreNode, stream: &mut dyn Stream, open_under: &mut Option<u64>) {
    let mut over = std::pin::pin!(ended(stream));
    loop {
        tokio::select! {
            () = &mut over => return,
            () = sleep(PAUSE) => match known(shared, name) {
                Some(now) if now.addr == at.addr => *open_under = Some(now.generation),
                _ => return,
            },
        }
    }
}
