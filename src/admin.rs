//! The admin listener: `/metrics` for Prometheus; `/livez`, `/readyz` and `/startupz` for whatever restarts,
//! routes and waits; `/config` and `/reload` for operators.
//!
//! A region and ipconf have `/dispatch?from=ADDRESS`, or a country of two letters: what dispatch would answer a client there
//! (`&user=ID`: of this user), and why; for callers on loopback likewise.
//!
//! A region also has `/store/…` and `/users/…` there, see [`crate::store::answer`] and [`crate::users::answer`], and
//! `/loads`: what its edges report, as a `tern.node.v1.LoadReport`, for tools. (Other nodes learn loads by gossip.)
//!
//! A region has `/routes?user=ID` and `/routes/count`, see [`crate::routes::answer`], for callers on loopback.
//!
//! Every node has `/orders`, see [`crate::orders::desk`], and `/status`, see [`crate::status`].
//!
//! Plain HTTP without a login, so it listens on loopback unless told otherwise; `/config` and `POST /reload`
//! answer callers on loopback alone whatever it listens on, and no browser's page. Nothing here names a user to others,
//! or shows a secret.
//!
//! It is the first thing that listens, so that a start that takes long can be told from one that hangs. What
//! the role adds ([`Shared::publish`]) comes when its start is over.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, ORIGIN};
use hyper::{Method, Request, Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use tern_core::clock::Clock;
use tern_ipconf::api::DispatchRequest;
use tern_ipconf::{Dispatch, DispatchError};
use tern_net::env::Env;
use tern_net::http::{Handler, HttpLimits, serve};
use tern_replication::region::Region;

use crate::archive;
use crate::backend::Backend;
use crate::doctor::Whence;
use crate::health::Health;
use crate::orders::desk::{self, Desk as OrdersDesk};
use crate::process;
use crate::reload::Reloader;
use crate::routes;
use crate::status;
use crate::store;
use crate::users::{self, Desk};

/// How long an admin listener may take to accept a connection. What it then does takes its time.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Longest answer of an admin listener that is read.
const ANSWER_BYTES: u64 = 1024 * 1024;

/// Where dispatch would send somebody.
const DISPATCH: &str = "/dispatch";
/// The same with the beginning of its query; an address or a country of two letters follows.
pub(crate) const FROM: &str = "/dispatch?from=";

/// What `/loads` answers: an encoded `LoadReport`.
pub type Loads = Box<dyn Fn() -> Vec<u8> + Send + Sync>;

/// What is answered with.
pub struct Shared {
    health: Health,
    reloader: Arc<Reloader>,
    base: Registry,
    role: OnceLock<(Registry, Option<Loads>)>,
    store: OnceLock<Backend>,
    dispatch: OnceLock<Arc<Dispatch>>,
    orders: OnceLock<Arc<OrdersDesk>>,
    region: OnceLock<(Arc<Region>, String)>,
    /// Where operators decide about users.
    pub desk: Arc<Desk>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("health", &self.health).finish_non_exhaustive()
    }
}

impl Shared {
    /// `base`: the metrics that are there from the beginning.
    pub fn new(health: Health, reloader: Arc<Reloader>, base: Registry) -> Arc<Self> {
        Arc::new(Self {
            health,
            reloader,
            base,
            role: OnceLock::new(),
            store: OnceLock::new(),
            dispatch: OnceLock::new(),
            orders: OnceLock::new(),
            region: OnceLock::new(),
            desk: Arc::default(),
        })
    }

    /// Adds what the role has when its start is over; counts once.
    pub fn publish(&self, registry: Registry, loads: Option<Loads>) {
        if self.role.set((registry, loads)).is_err() {
            tracing::error!("the role's metrics were published twice");
        }
    }

    /// Lets operators ask for what only the process that has a store can do; counts once.
    pub fn publish_store(&self, store: Backend) {
        if self.store.set(store).is_err() {
            tracing::error!("a store was published twice");
        }
    }

    /// Lets operators ask where clients would be sent; counts once.
    pub fn publish_dispatch(&self, dispatch: Arc<Dispatch>) {
        if self.dispatch.set(dispatch).is_err() {
            tracing::error!("a dispatcher was published twice");
        }
    }

    /// Lets operators give orders; counts once.
    pub fn publish_orders(&self, desk: Arc<OrdersDesk>) {
        if self.orders.set(desk).is_err() {
            tracing::error!("orders were published twice");
        }
    }

    /// Lets operators ask where users are, by the node of this name; counts once.
    pub fn publish_region(&self, region: Arc<Region>, node: &str) {
        if self.region.set((region, node.to_owned())).is_err() {
            tracing::error!("a region was published twice");
        }
    }

    fn metrics(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        encode_registry(&mut out, &self.base)?;
        if let Some((registry, _)) = self.role.get() {
            encode_registry(&mut out, registry)?;
        }
        encode_eof(&mut out)?;
        Ok(out)
    }
}

/// Starts the listener and returns where it listens. It ends with the node's tasks.
pub async fn start(env: &Env, at: SocketAddr, shared: &Arc<Shared>) -> Result<SocketAddr> {
    let acceptor = env.net.listen(at).await.with_context(|| {
        format!("can't serve metrics on {at}; is another process using the port? Set listen.admin to another one")
    })?;
    let local = acceptor.local_addr();
    env.tasks.spawn(serve(
        env.clone(),
        acceptor,
        None,
        HttpLimits::default(),
        handler(shared.clone(), env.clock.clone()),
    ));
    Ok(local)
}

/// Answers the paths.
fn handler(shared: Arc<Shared>, clock: Arc<dyn Clock>) -> Handler {
    Arc::new(move |from, request: Request<hyper::body::Incoming>| {
        let (shared, clock) = (shared.clone(), clock.clone());
        Box::pin(async move {
            let (head, _body) = request.into_parts();
            if head.uri.path().starts_with("/store/") {
                let plan = archive::plan(&shared.reloader.settings(), clock.wall_ms());
                return store::answer(&head.method, &head.uri, from, &head.headers, shared.store.get(), &plan).await;
            }
            if head.uri.path().starts_with("/users/") {
                return users::answer(&head.method, &head.uri, from, &head.headers, &shared.desk).await;
            }
            if head.uri.path() == "/routes" || head.uri.path().starts_with("/routes/") {
                let region = shared.region.get().cloned();
                return routes::answer(&head.method, &head.uri, from, &head.headers, region).await;
            }
            if head.uri.path() == "/orders" || head.uri.path().starts_with("/orders/") {
                return desk::answer(&head.method, &head.uri, from, &head.headers, shared.orders.get());
            }
            if head.uri.path() == DISPATCH && head.method == Method::GET && is_local(from, &head.headers) {
                return where_to(head.uri.query().unwrap_or(""), &shared);
            }
            answer(&head.method, head.uri.path(), from, &head.headers, &shared)
        })
    })
}

fn answer(
    method: &Method,
    path: &str,
    from: SocketAddr,
    headers: &HeaderMap,
    shared: &Shared,
) -> Response<Full<Bytes>> {
    let wanted = if path == "/reload" { &[Method::POST][..] } else { &[Method::GET, Method::HEAD][..] };
    if !wanted.contains(method) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("{} is what is answered here\n", wanted[0]));
        let allowed = if path == "/reload" { "POST" } else { "GET, HEAD" };
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        return response;
    }
    if matches!(path, "/config" | "/reload" | DISPATCH) && !is_local(from, headers) {
        let message = "this is answered on the machine itself only, and to no browser: use curl there\n";
        return text(StatusCode::FORBIDDEN, message.into());
    }
    match path {
        "/livez" => verdict("live", "stuck", &shared.health.stuck()),
        "/readyz" => match &shared.health.not_ready()[..] {
            [] => {
                let notes = shared.health.noted().into_iter().map(|note| format!("{note}\n"));
                text(StatusCode::OK, format!("ready\n{}", notes.collect::<String>()))
            }
            missing => verdict("ready", "not ready", missing),
        },
        "/startupz" => match shared.health.starting() {
            None => text(StatusCode::OK, "started\n".into()),
            Some((phase, since)) => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("starting: {phase}, for {} s\n", since.as_secs()))
            }
        },
        "/metrics" => match shared.metrics() {
            Ok(out) => {
                let mut response = text(StatusCode::OK, out);
                let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n".into()),
        },
        "/config" => json(StatusCode::OK, &shared.reloader.json()),
        "/reload" => match shared.health.starting() {
            Some((phase, _)) => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("starting ({phase}): reload when it is ready\n"))
            }
            None => {
                // Reading files must not hold up the other tasks of this thread.
                let report = tokio::task::block_in_place(|| shared.reloader.reload());
                let status = if report.is_ok() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
                json(status, &report.json())
            }
        },
        "/status" => match shared.orders.get() {
            Some(desk) => json(StatusCode::OK, &serde_json::json!(status::of(desk, &shared.health))),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n".into()),
        },
        "/loads" => match shared.role.get() {
            Some((_, Some(loads))) => {
                let mut response = Response::new(Full::new(Bytes::from(loads())));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
                response
            }
            Some((_, None)) => text(StatusCode::NOT_FOUND, "only a region tells its edges' loads\n".into()),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n".into()),
        },
        _ => {
            let paths = "/metrics, /livez, /readyz, /startupz, /config, /status, /orders, /dispatch?from= and, by POST, /reload";
            text(StatusCode::NOT_FOUND, format!("here are {paths}\n"))
        }
    }
}

/// Whether somebody on the machine itself asks, and no browser's page.
fn is_local(from: SocketAddr, headers: &HeaderMap) -> bool {
    from.ip().to_canonical().is_loopback() && !headers.contains_key(ORIGIN)
}

/// What dispatch would answer a client at an address, or in a country, with its reasons. Nothing is counted for it.
fn where_to(query: &str, shared: &Shared) -> Response<Full<Bytes>> {
    let say = |status, what: &str| text(status, format!("{what}\n"));
    let Some(dispatch) = shared.dispatch.get() else {
        return say(StatusCode::NOT_FOUND, "there is no dispatch here, or it is starting");
    };
    let address = match store::parameter(query, "from").map(|text| text.parse::<Whence>()) {
        Some(Ok(Whence::Address(address))) => address,
        Some(Ok(Whence::Country(country))) => {
            // It looks at many records.
            match tokio::task::block_in_place(|| dispatch.geo().address_in(country)) {
                Some(address) => address,
                None => {
                    let what = format!("the GeoIP data have no address of {country}");
                    return say(StatusCode::BAD_REQUEST, &what);
                }
            }
        }
        Some(Err(what)) => return say(StatusCode::BAD_REQUEST, &what),
        None => return say(StatusCode::BAD_REQUEST, "from=ADDRESS or from=COUNTRY is missing"),
    };
    let user = store::parameter(query, "user");
    let question = DispatchRequest { as_address: Some(address), user, explain: true, ..DispatchRequest::default() };
    match dispatch.decide(&question, Ipv4Addr::LOCALHOST.into()) {
        Ok(answer) => json(StatusCode::OK, &serde_json::json!(answer)),
        Err(error @ DispatchError::NoEdges { .. }) => say(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        Err(error) => say(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

/// 200 where nothing is missing, else 503 with what is.
fn verdict(good: &str, bad: &str, missing: &[String]) -> Response<Full<Bytes>> {
    if missing.is_empty() {
        text(StatusCode::OK, format!("{good}\n"))
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, format!("{bad}: {}\n", missing.join("; ")))
    }
}

/// Asks the admin listener of a node on this machine to do something, and waits for as long as it takes. Returns
/// what it answers; what it refuses is the error.
pub(crate) fn post(admin: SocketAddr, path: &str) -> Result<String> {
    ask(admin, "POST", path, None)
}

/// Asks an admin listener for something, likewise.
pub(crate) fn get(admin: SocketAddr, path: &str) -> Result<String> {
    ask(admin, "GET", path, None)
}

/// Likewise, and gives up where it takes longer.
pub(crate) fn get_within(admin: SocketAddr, path: &str, within: Duration) -> Result<String> {
    ask(admin, "GET", path, Some(within))
}

fn ask(mut admin: SocketAddr, method: &str, path: &str, within: Option<Duration>) -> Result<String> {
    match admin.ip() {
        ip if !ip.is_unspecified() => {}
        IpAddr::V4(_) => admin.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => admin.set_ip(Ipv6Addr::LOCALHOST.into()),
    }
    let mut stream = TcpStream::connect_timeout(&admin, within.unwrap_or(CONNECT_WITHIN))?;
    stream.set_read_timeout(within)?;
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => bail!("{}", body.trim()),
    }
}

pub(crate) fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = text(status, format!("{value:#}\n"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Registers what every process tells of itself.
pub fn register_process(registry: &mut Registry) {
    let info = Family::<Vec<(&'static str, &'static str)>, Gauge>::default();
    info.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION"))]).set(1);
    registry.register("tern_build_info", "Which version this is: always 1", info);
    registry.register_collector(Box::new(Process));
}

/// Reads what the kernel knows of this process whenever it is asked.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gauges = [
            ("tern_process_resident", "Memory held by this process", Some(Unit::Bytes), process::resident_bytes()),
            ("tern_process_open_files", "File descriptors in use", None, process::open_files()),
        ];
        for (name, help, unit, value) in gauges {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, unit.as_ref(), gauge.metric_type())?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use crate::config::scope::Role;
    use tern_net::system::SystemClock;

    const HERE: &str = "127.0.0.1:5";

    fn shared() -> Arc<Shared> {
        let sources = Sources { environment: vec![("TERN_RECEIPT_KEY".into(), "hidden".into())], ..Sources::default() };
        let settings = sources.load().unwrap();
        let clock = Arc::new(SystemClock);
        let mut registry = Registry::default();
        register_process(&mut registry);
        Shared::new(Health::new(clock.clone()), Reloader::new(Role::Edge, sources, settings, clock), registry)
    }

    fn ask(shared: &Shared, method: &Method, path: &str, from: &str, headers: &HeaderMap) -> (u16, String) {
        // Several threads, as in a running node: reloading blocks one of them.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let from = from.parse().unwrap();
        let response = runtime.block_on(async { answer(method, path, from, headers, shared) });
        let status = response.status().as_u16();
        let body = runtime
            .block_on(async { http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes() });
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    fn get(shared: &Shared, path: &str) -> (u16, String) {
        ask(shared, &Method::GET, path, HERE, &HeaderMap::new())
    }

    #[test]
    fn the_three_health_questions_have_three_answers() {
        let shared = shared();
        shared.health.phase("opening the store");
        assert_eq!(get(&shared, "/startupz"), (503, "starting: opening the store, for 0 s\n".into()));
        assert_eq!(get(&shared, "/readyz"), (503, "not ready: starting: opening the store, for 0 s\n".into()));
        assert_eq!(get(&shared, "/livez"), (200, "live\n".into()), "a long start is no reason to restart");
        shared.health.needs("core", || Err("no link".into()));
        shared.health.started();
        assert_eq!(get(&shared, "/startupz"), (200, "started\n".into()));
        assert_eq!(get(&shared, "/readyz"), (503, "not ready: core: no link\n".into()));
        shared.health.watches("core", || crate::health::STUCK_AFTER);
        assert_eq!(get(&shared, "/livez"), (503, "stuck: core: has not answered for 60 s\n".into()));
    }

    #[test]
    fn metrics_are_in_the_text_format_and_name_their_units_before_and_after_the_start() {
        let shared = shared();
        let (status, text) = get(&shared, "/metrics");
        assert_eq!(status, 200);
        assert!(text.contains("# UNIT tern_process_resident_bytes bytes"), "{text}");
        assert!(text.contains("tern_build_info{version="), "{text}");
        let mut registry = Registry::default();
        registry.register("tern_things", "Things", Gauge::<i64>::default());
        shared.publish(registry, None);
        let (_, text) = get(&shared, "/metrics");
        assert!(text.contains("tern_things 0") && text.contains("tern_build_info"), "{text}");
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    }

    #[test]
    fn the_configuration_is_shown_and_read_again_on_this_machine_only() {
        let shared = shared();
        let (none, mut page) = (HeaderMap::new(), HeaderMap::new());
        page.insert(ORIGIN, HeaderValue::from_static("https://example.org"));
        let (status, config) = get(&shared, "/config");
        assert!(status == 200 && !config.contains("hidden"), "{config}");
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let key = config["keys"].as_array().unwrap().iter().find(|k| k["key"] == "receipt.key").unwrap();
        assert_eq!(key["source"], "environment TERN_RECEIPT_KEY");
        for (path, method) in [("/config", Method::GET), ("/reload", Method::POST)] {
            assert_eq!(ask(&shared, &method, path, "192.0.2.1:5", &none).0, 403);
            assert_eq!(ask(&shared, &method, path, HERE, &page).0, 403);
        }
        assert_eq!(ask(&shared, &Method::POST, "/reload", HERE, &none).0, 503, "not while it starts");
        shared.health.started();
        let (status, report) = ask(&shared, &Method::POST, "/reload", "[::1]:5", &none);
        assert!(status == 200 && report.contains("\"ok\": true"), "{report}");
        assert_eq!(get(&shared, "/reload").0, 405);
    }

    #[test]
    fn other_paths_and_methods_are_refused_politely() {
        let shared = shared();
        assert_eq!(get(&shared, "/").0, 404);
        assert_eq!(ask(&shared, &Method::POST, "/metrics", HERE, &HeaderMap::new()).0, 405);
        assert_eq!(get(&shared, "/loads").0, 503);
        shared.publish(Registry::default(), Some(Box::new(|| b"loads".to_vec())));
        assert_eq!(get(&shared, "/loads"), (200, "loads".into()));
    }
}
