//! `tern routes`: where a user's devices are connected; and the table in Redis that a region may keep of that.
//!
//! The command asks a core node on this machine, by its admin address. Where the region keeps a table, any of its core
//! nodes answers for every user, by the table; otherwise each for its own users, by what it knows.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::header::ORIGIN;
use hyper::{HeaderMap, Method, Response, StatusCode, Uri};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tern_core::hlc;
use tern_core::ids::UserId;
use tern_redis::{Options, RedisRoutes};
use tern_replication::region::Region;
use tern_replication::routes::RoutesError;
use tern_replication::routes::writer::{Collector, Standing};

use crate::admin;
use crate::certs::Certificates;
use crate::cli::Global;
use crate::config::Settings;
use crate::config::routes::RoutesKind;
use crate::exit::Failure;
use crate::health::Health;
use crate::node::Node;
use crate::operations::Operations;
use crate::reload::Part;
use crate::status::Status;
use crate::store::{encode, parameter};

/// Options of `routes`.
#[derive(Clone, Debug, Args)]
pub struct RoutesArgs {
    /// Whose devices; without it, how the table stands
    #[arg(value_name = "USER", value_parser = crate::cli::user)]
    pub user: Option<UserId>,
    /// Count users and routes in the table: reads all of it
    #[arg(long, conflicts_with = "user")]
    pub count: bool,
}

/// A device, as `/routes?user=` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Which install.
    pub install: String,
    /// The edge that it is connected to.
    pub edge: String,
    /// The core node that has said so.
    pub node: String,
    /// The edge's number of the connection.
    pub connection: u64,
    /// Since when, or when it was last said, in milliseconds since 1970; where a table is kept.
    pub said_ms: Option<u64>,
    /// It counts. False: left over from a link that is down, or from before the table was lost.
    pub live: bool,
}

/// What `/routes` tells of the table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TableStatus {
    /// `memory` or `redis`.
    pub kind: String,
    /// All that this node knows is in the table.
    pub complete: bool,
    /// Why it can't be written.
    pub problem: Option<String>,
    /// Changes that wait to be written.
    pub waiting: u64,
    /// How often it was written anew since this node's start.
    pub rebuilds: u64,
    /// How long the last time took.
    pub rebuild_ms: u64,
}

/// What `/routes/count` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Counted {
    users: u64,
    routes: u64,
    over: u64,
}

impl TableStatus {
    /// Of what the writer tells; `None`: no table is kept.
    pub fn of(standing: Option<Standing>) -> Self {
        let Some(standing) = standing else {
            return Self { kind: "memory".to_owned(), complete: true, ..Self::default() };
        };
        Self {
            kind: "redis".to_owned(),
            complete: standing.is_complete,
            problem: standing.problem,
            waiting: standing.waiting,
            rebuilds: standing.rebuilds,
            rebuild_ms: u64::try_from(standing.rebuild_took.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Runs the command.
pub fn run(global: &Global, args: &RoutesArgs) -> Result<(), Failure> {
    let settings = crate::settings(global, &[])?;
    let at = settings.admin_listen();
    let ask = |path: &str| {
        let said = admin::get(at, path);
        said.with_context(|| {
            format!("asked the region at {at}; if its admin listener is elsewhere, give its configuration, or --set listen.admin=ADDRESS")
        })
    };
    let unread = "the answer is not that of a region of this version";
    let lines = if let Some(user) = &args.user {
        let said = ask(&format!("/routes?user={}", encode(user.as_str())))?;
        if global.json {
            return print_json(&said);
        }
        let devices: Vec<Device> = serde_json::from_str(&said).context(unread)?;
        devices_lines(user, &devices)
    } else if args.count {
        let said = ask("/routes/count")?;
        if global.json {
            return print_json(&said);
        }
        let counted: Counted = serde_json::from_str(&said).context(unread)?;
        let Counted { users, routes, over } = counted;
        vec![format!("{routes} routes of {users} users; {over} left over, which count no more and run out")]
    } else {
        let status: Status = serde_json::from_str(&ask("/status")?).context(unread)?;
        let table = status.routes.with_context(|| format!("{} is no core node of a region", status.node))?;
        if global.json {
            return print_json(&serde_json::json!(table).to_string());
        }
        vec![table_line(&table)]
    };
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn print_json(text: &str) -> Result<(), Failure> {
    let value: serde_json::Value = serde_json::from_str(text).context("the answer is no JSON")?;
    println!("{value}");
    Ok(())
}

fn devices_lines(user: &UserId, devices: &[Device]) -> Vec<String> {
    if devices.is_empty() {
        return vec![format!("{user} is not connected in this region")];
    }
    let width = devices.iter().map(|device| device.install.chars().count()).max().unwrap_or(0);
    let line = |device: &Device| {
        let Device { install, edge, node, connection, live, .. } = device;
        let over = if *live { "" } else { "  (left over: counts no more)" };
        format!("{install:width$}  at {edge}, connection {connection}, says {node}{over}")
    };
    devices.iter().map(line).collect()
}

fn table_line(table: &TableStatus) -> String {
    if table.kind == "memory" {
        return "no table is kept (routes.kind = \"memory\"): each core node answers for its own users".to_owned();
    }
    match &table.problem {
        Some(problem) => format!("not written: {problem}; {} changes wait", table.waiting),
        None if table.complete => format!(
            "complete; written anew {} times since this node's start, the last time within {} ms",
            table.rebuilds, table.rebuild_ms
        ),
        None => format!("being written; {} changes wait", table.waiting),
    }
}

/// Where the table is.
pub fn options(settings: &Settings, node: &str, certificates: &Certificates) -> Result<Options> {
    let nodes = settings.routes_nodes.iter().map(|node| (node.host.clone(), node.port)).collect();
    let mut options = Options::new(nodes, &settings.routes_key_prefix(), node);
    options.user = settings.routes_user.clone();
    options.request_timeout = settings.routes_request_timeout;
    options.tls = certificates.routes(settings)?;
    options.password = match (&settings.routes_password, &settings.routes_password_file) {
        (Some(password), _) => Some(password.reveal().to_owned()),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path);
            let text = text.with_context(|| format!("can't read routes.password_file {}", path.display()))?;
            let first = text.lines().next().unwrap_or_default().trim_end();
            if first.is_empty() {
                bail!("routes.password_file {} has no password on its first line", path.display());
            }
            Some(first.to_owned())
        }
        (None, None) => None,
    };
    Ok(options)
}

/// Opens the table that is configured, if one is. One that can't be used as it is is an error; one that does not answer
/// is waited for while the region serves.
pub async fn open(node: &Node) -> Result<Option<Arc<RedisRoutes>>> {
    if node.settings.routes_kind == RoutesKind::Memory {
        return Ok(None);
    }
    let routes = RedisRoutes::new(options(&node.settings, &node.name, &node.certificates)?, node.env.clone());
    match routes.check().await {
        Ok(servers) => {
            let (prefix, tls) = (node.settings.routes_key_prefix(), node.settings.routes_tls_ca.is_some());
            tracing::info!(servers, prefix, tls, "the table of routes is in Redis");
        }
        Err(RoutesError::Unreachable(what)) => {
            tracing::warn!(
                what,
                "the table of routes does not answer: the region starts without it, and writes it later"
            );
        }
        Err(error) => return Err(error).context("routes.kind is \"redis\", and the table can't be there"),
    }
    Ok(Some(Arc::new(routes)))
}

/// Lets certificates and authorities of TLS to the table be replaced while the region runs.
pub fn add_part(node: &Node, operations: &Operations) {
    let certificates = node.certificates.clone();
    let keys = &["routes.tls.ca", "routes.tls.cert", "routes.tls.key"];
    let part = Part::new("TLS to the table of routes", keys, move |settings| certificates.replace_routes(settings));
    operations.reload.add(part.with_files(|settings| {
        let files = [&settings.routes_tls_ca, &settings.routes_tls_cert, &settings.routes_tls_key];
        files.into_iter().flatten().cloned().collect()
    }));
}

/// Has a region keep its table, and operators see how it stands.
pub fn keep(routes: Arc<RedisRoutes>, region: &Region, registry: &mut Registry, health: &Health) {
    routes.metrics().register(registry);
    let table = region.keep_routes(routes);
    registry.register_collector(Box::new(Collector(table.clone())));
    health.notes(move || table.standing().problem.map(|problem| format!("table of routes: {problem}")));
}

/// Answers `/routes?user=ID` and `/routes/count`, to callers on the machine itself and to no browser's page.
pub async fn answer(
    method: &Method,
    uri: &Uri,
    from: SocketAddr,
    headers: &HeaderMap,
    region: Option<(Arc<Region>, String)>,
) -> Response<Full<Bytes>> {
    let say = |status, what: &str| admin::text(status, format!("{what}\n"));
    if !from.ip().to_canonical().is_loopback() || headers.contains_key(ORIGIN) {
        return say(StatusCode::FORBIDDEN, "this is answered on the machine itself only, and to no browser");
    }
    if method != Method::GET {
        return say(StatusCode::METHOD_NOT_ALLOWED, "GET is what is answered here");
    }
    let Some((region, node)) = region else {
        return say(StatusCode::SERVICE_UNAVAILABLE, "there is no region here, or it is starting");
    };
    if uri.path() == "/routes/count" {
        let Some(table) = region.route_table() else {
            return say(StatusCode::NOT_FOUND, "no table is kept: routes.kind is \"memory\"");
        };
        return match table.count().await {
            Ok(counts) => {
                let counted = Counted { users: counts.users, routes: counts.routes, over: counts.over };
                admin::json(StatusCode::OK, &serde_json::json!(counted))
            }
            Err(error) => say(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        };
    }
    if uri.path() != "/routes" {
        return say(StatusCode::NOT_FOUND, "here are /routes?user= and /routes/count");
    }
    let user = match parameter(uri.query().unwrap_or(""), "user").as_deref().map(UserId::new) {
        Some(Ok(user)) => user,
        Some(Err(error)) => return say(StatusCode::BAD_REQUEST, &format!("user: {error}")),
        None => return say(StatusCode::BAD_REQUEST, "user=ID is missing"),
    };
    match devices(&region, node, user).await {
        Ok(devices) => admin::json(StatusCode::OK, &serde_json::json!(devices)),
        Err(what) => say(StatusCode::SERVICE_UNAVAILABLE, &what),
    }
}

async fn devices(region: &Region, node: String, user: UserId) -> Result<Vec<Device>, String> {
    if let Some(table) = region.route_table() {
        let listed = table.look_up(user).await.map_err(|error| error.to_string())?;
        let device = |listed: tern_replication::routes::Listed| Device {
            install: listed.install.as_str().to_owned(),
            edge: listed.route.link.edge.clone(),
            node: listed.route.link.node.clone(),
            connection: listed.route.connection,
            said_ms: Some(hlc::to_ms(listed.stamp)),
            live: listed.is_live,
        };
        return Ok(listed.into_iter().map(device).collect());
    }
    let known = region.devices_of(user.clone()).await.ok_or_else(|| {
        format!("{user} is another core node's of this region, or this one can't say now: ask the others")
    })?;
    let device = |(install, edge, connection): (tern_core::ids::InstallId, String, u64)| Device {
        install: install.as_str().to_owned(),
        edge,
        node: node.clone(),
        connection,
        said_ms: None,
        live: true,
    };
    Ok(known.into_iter().map(device).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use tern_net::system::SystemClock;

    fn settings(values: &[(&str, &str)]) -> Result<Settings, String> {
        let flags = values.iter().map(|(key, value)| (format!("--set {key}"), (*key).to_owned(), (*value).to_owned()));
        let sources = Sources { flags: flags.collect(), ..Sources::default() };
        sources.load().map_err(|error| error.to_string())
    }

    #[test]
    fn the_password_comes_from_the_key_or_from_a_file_and_is_never_shown() {
        let redis = [("routes.kind", "redis"), ("routes.nodes", "127.0.0.1:1,[::1]:2"), ("region.name", "eu")];
        let with = |more: &[(&str, &str)]| settings(&[&redis[..], more].concat()).unwrap();
        let certificates = Certificates::new(Arc::new(SystemClock), "eu-e1".to_owned(), None);
        let options = |settings: &Settings, node| super::options(settings, node, &certificates);
        let plain = options(&with(&[]), "eu-e1").unwrap();
        assert_eq!(plain.nodes, [("127.0.0.1".to_owned(), 1), ("::1".to_owned(), 2)]);
        assert_eq!((plain.prefix.as_str(), plain.password), ("tern:tern:eu", None));
        let given = options(&with(&[("routes.password", "hidden-word"), ("routes.user", "tern")]), "eu-e1").unwrap();
        assert!(given.password.as_deref() == Some("hidden-word") && !format!("{given:?}").contains("hidden-word"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let with_file = with(&[("routes.password_file", path.to_str().unwrap())]);
        assert!(options(&with_file, "n").unwrap_err().to_string().contains("routes.password_file"));
        std::fs::write(&path, "\n").unwrap();
        assert!(options(&with_file, "n").unwrap_err().to_string().contains("no password"));
        std::fs::write(&path, "from file\r\nnot this\n").unwrap();
        assert_eq!(options(&with_file, "n").unwrap().password.as_deref(), Some("from file"));
    }

    #[test]
    fn a_table_without_a_server_or_with_a_prefix_that_is_none_is_refused_with_what_to_set() {
        let error = settings(&[("routes.kind", "redis")]).unwrap_err();
        assert!(error.contains("routes.nodes is not set"), "{error}");
        let redis = [("routes.kind", "redis"), ("routes.nodes", "h:1")];
        for (key, value) in [("routes.prefix", "{tern}"), ("deployment", "my shop")] {
            let error = settings(&[&redis[..], &[(key, value)]].concat()).unwrap_err();
            assert!(error.contains("routes.prefix") && error.contains("is no prefix"), "{error}");
        }
        let both = [("routes.password", "secret-word"), ("routes.password_file", "f")];
        let error = settings(&[&redis[..], &both].concat()).unwrap_err();
        assert!(error.contains("both set") && !error.contains("secret-word"), "{error}");
    }

    #[test]
    fn what_is_printed_says_where_and_what_does_not_count() {
        let user = UserId::new("alice").unwrap();
        assert_eq!(devices_lines(&user, &[]), ["alice is not connected in this region"]);
        let device = |install: &str, live| Device {
            install: install.to_owned(),
            edge: "eu-e2".to_owned(),
            node: "eu-n1".to_owned(),
            connection: 7,
            said_ms: None,
            live,
        };
        assert_eq!(
            devices_lines(&user, &[device("phone", true), device("pc", false)]),
            [
                "phone  at eu-e2, connection 7, says eu-n1",
                "pc     at eu-e2, connection 7, says eu-n1  (left over: counts no more)"
            ]
        );
        let redis = TableStatus { kind: "redis".to_owned(), waiting: 3, ..TableStatus::default() };
        assert!(table_line(&TableStatus::of(None)).contains("routes.kind"));
        assert_eq!(table_line(&redis), "being written; 3 changes wait");
        let problem = TableStatus { problem: Some("it is full".to_owned()), ..redis };
        assert_eq!(table_line(&problem), "not written: it is full; 3 changes wait");
    }
}
