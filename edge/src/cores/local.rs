//! A core node in this very process.
//!
//! A core may answer within the call that hands it something, so it is never called under the lock of [`super::Cores`].
//! What it is to be told is put down under that lock, in the router's order, and handed over by whoever comes first; who
//! comes meanwhile leaves what he has to that one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tern_core::edge_api::{CorePort, Up};
use tern_core::router::CoreNo;
use tern_core::wire::node_v1;

/// See the module.
#[derive(Debug)]
pub(super) struct Local {
    no: CoreNo,
    welcome: node_v1::EdgeWelcome,
    core: OnceLock<Arc<dyn CorePort>>,
    up: AtomicBool,
    failed: AtomicBool,
    out: Mutex<Out>,
}

#[derive(Debug, Default)]
struct Out {
    ups: Vec<Up>,
    /// Somebody is handing over.
    busy: bool,
}

impl Local {
    pub(super) fn new(no: CoreNo, welcome: node_v1::EdgeWelcome) -> Self {
        let (up, failed) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { no, welcome, core: OnceLock::new(), up, failed, out: Mutex::default() }
    }

    pub(super) fn no(&self) -> CoreNo {
        self.no
    }

    pub(super) fn welcome(&self) -> &node_v1::EdgeWelcome {
        &self.welcome
    }

    /// Who it is. Once.
    pub(super) fn is_core(&self, core: Arc<dyn CorePort>) {
        self.core.get_or_init(|| core);
    }

    pub(super) fn core(&self) -> Option<&Arc<dyn CorePort>> {
        self.core.get()
    }

    /// Whether it was up before.
    pub(super) fn set_up(&self, up: bool) -> bool {
        if !up {
            self.out().ups.clear();
        }
        self.up.swap(up, Ordering::AcqRel)
    }

    /// Whether that is to be told: the first time only.
    pub(super) fn fails_anew(&self) -> bool {
        !self.failed.swap(true, Ordering::Relaxed)
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be handed over by [`Self::flush`].
    pub(super) fn put(&self, ups: Vec<Up>) {
        self.out().ups.extend(ups);
    }

    /// Hands over what was put down.
    pub(super) fn flush(&self) {
        let Some(core) = self.core() else { return };
        loop {
            let ups = {
                let mut out = self.out();
                if out.busy || out.ups.is_empty() {
                    return;
                }
                out.busy = true;
                std::mem::take(&mut out.ups)
            };
            core.submit(ups);
            self.out().busy = false;
        }
    }
}
