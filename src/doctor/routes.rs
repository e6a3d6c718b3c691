//! The table of routes in Redis, where a region keeps one.

use tern_redis::RedisRoutes;
use tern_replication::routes::RoutesError;

use super::{Finding, Scene};
use crate::certs::Certificates;
use crate::config::routes::RoutesKind;
use crate::config::scope::Role;
use crate::routes::options;

/// Connects as the region would, and looks whether the table can be there.
pub(super) async fn check(scene: &Scene) -> Option<Finding> {
    if scene.role != Role::Region || scene.settings.routes_kind != RoutesKind::Redis {
        return None;
    }
    let check = "routes";
    let options = scene.settings.node_name().map_err(anyhow::Error::from).and_then(|name| {
        let certificates = Certificates::new(scene.env.clock.clone(), name.clone(), None);
        options(&scene.settings, &name, &certificates)
    });
    let options = match options {
        Ok(options) => options,
        Err(error) => return Some(Finding::failed(check, format!("{error:#}"), "correct the section [routes]")),
    };
    let how = if options.tls.is_some() { "over TLS" } else { "without TLS" };
    let at = format!("{how}, keys below {}", options.prefix);
    Some(match RedisRoutes::new(options, scene.env.clone()).check().await {
        Ok(1) => Finding::ok(check, format!("one server of Redis, {at}")),
        Ok(servers) => Finding::ok(check, format!("a cluster of {servers} servers of Redis, {at}")),
        // The region starts all the same.
        Err(RoutesError::Unreachable(what)) => Finding::warning(check, what, "start it, or correct routes.nodes"),
        Err(error) => {
            Finding::failed(check, error.to_string(), "what it says; see \"Routes in Redis\" in docs/OPERATIONS.md")
        }
    })
}
