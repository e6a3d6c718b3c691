//! The contract of tables of routes, on real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "tasks that end with their test")]

#[path = "../../src/routes/contract.rs"]
mod contract;
mod place;

use std::sync::Arc;
use std::time::Duration;

use contract::World;
use place::Place;
use tern_core::store::BoxFut;
use tern_net::system::system_env;
use tern_redis::{Options, RedisRoutes};
use tern_replication::routes::Routes;

struct Servers {
    place: Place,
    routes: Arc<RedisRoutes>,
}

/// No server is slow here but where the machine is busy.
fn table(place: &Place, node: &str) -> RedisRoutes {
    let options = Options { request_timeout: Duration::from_secs(10), ..place.options(node) };
    RedisRoutes::new(options, system_env().unwrap())
}

impl Servers {
    fn new(place: Place) -> Self {
        let routes = Arc::new(table(&place, "eu-n1"));
        Self { place, routes }
    }
}

impl World for Servers {
    fn routes(&self) -> Arc<dyn Routes> {
        self.routes.clone()
    }

    fn another(&self) -> Arc<dyn Routes> {
        Arc::new(table(&self.place, "eu-n2"))
    }

    fn lose(&mut self) -> BoxFut<'_, ()> {
        self.place.lose();
        Box::pin(std::future::ready(()))
    }
}

mod redis {
    use super::{Place, Servers};
    crate::contract::contract!(match Place::new() {
        Some(place) => Servers::new(place),
        None => return,
    });
}

#[test]
fn random_histories() {
    let Some(place) = Place::new() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let world = runtime.block_on(async { Servers::new(place) });
    contract::random_histories(300, &world, &runtime);
}
