//! The region's table of routes, as the core's task and its links feed it.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tern_core::edge_api::ConnId;
use tern_core::ids::{InstallId, UserId};
use tern_core::node::EdgeId;
use tern_core::store::BoxFut;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Shared;
use super::core_task::Input;
use crate::routes::Routes;
use crate::routes::limits::CORE_WITHIN;
use crate::routes::writer::{self, Core, Table, Told};

/// A stopping node waits so long at most for a table that is to be told that its connections are over.
pub(super) const STOP_WITHIN: Duration = Duration::from_secs(1);

/// See `Region::keep_routes`.
pub(super) fn keep(shared: &Arc<Shared>, routes: Arc<dyn Routes>) -> Arc<Table> {
    let names = shared.names();
    let made = shared.table.get().is_none();
    let table = shared.table.get_or_init(|| {
        let table = Table::new(routes, &shared.config.node, shared.env.clock.clone());
        names.iter().for_each(|(edge, name)| table.edge_up(*edge, name));
        table
    });
    if made {
        shared.env.tasks.spawn(writer::run(table.clone(), Arc::new(Asked(shared.clone()))));
    }
    table.clone()
}

/// See `Region::devices_of`.
pub(super) async fn devices_of(shared: &Arc<Shared>, user: UserId) -> Option<Vec<(InstallId, String, ConnId)>> {
    let told = Asked(shared.clone()).of(vec![user]).await?;
    let (_, devices) = told.users.into_iter().next()?;
    let names = shared.names();
    let name = |edge: EdgeId| names.get(&edge).cloned().unwrap_or_default();
    Some(devices.into_iter().map(|(install, key)| (install, name(key.edge), key.conn)).collect())
}

impl Shared {
    fn names(&self) -> MutexGuard<'_, std::collections::BTreeMap<EdgeId, String>> {
        self.edge_names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An edge is linked, before anything of it reaches the core's task.
    pub(super) fn edge_up(&self, edge: EdgeId, name: &str) {
        let mut names = self.names();
        names.insert(edge, name.to_owned());
        if let Some(table) = self.table.get() {
            table.edge_up(edge, name);
        }
    }

    /// The link of an edge is down.
    pub(super) fn edge_down(&self, edge: EdgeId) {
        self.names().remove(&edge);
        if let Some(table) = self.table.get() {
            table.edge_down(edge);
        }
        self.push(Input::EdgeDown(edge));
    }
}

/// The core's task as the writer asks it.
struct Asked(Arc<Shared>);

impl Asked {
    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<Option<T>>) -> Input) -> Option<T> {
        let (tell, told) = oneshot::channel();
        self.0.push(ask(tell));
        timeout(CORE_WITHIN, told).await.ok()?.ok()?
    }
}

impl Core for Asked {
    fn after(&self, user: Option<UserId>) -> BoxFut<'_, Option<(Told, Option<UserId>)>> {
        Box::pin(self.ask(|tell| Input::PresentAfter(user, tell)))
    }

    fn of(&self, users: Vec<UserId>) -> BoxFut<'_, Option<Told>> {
        Box::pin(self.ask(|tell| Input::PresentOf(users, tell)))
    }
}
