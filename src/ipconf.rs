//! `tern ipconf`: dispatch as a process of its own, beside regions; and dispatch as part of a region.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use prometheus_client::registry::Registry;
use prost::Message;
use tern_core::ranking::Position;
use tern_core::wire::node_v1::LoadReport;
use tern_ipconf::api::HeartbeatView;
use tern_ipconf::{Dispatch, DispatchConfig, DispatchMetrics, DispatchTuning, Geo, LoadTable};
use tern_net::http::{ALPN_HTTP, HttpClient, HttpLimits, serve};
use tracing::Instrument;

use crate::cli::{Global, IpconfArgs};
use crate::config::Settings;
use crate::config::scope::Role;
use crate::config::value::HostPort;
use crate::exit::Failure;
use crate::fleet::Ready;
use crate::logging;
use crate::node::Node;
use crate::operations::{Operations, Origins};
use crate::reload::Part;
use crate::stop::Stop;

/// How often a region is asked for its edges' loads.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A region that has not answered by then is asked again later.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of a region's answer: some thousand edges.
const LOADS_BYTES: usize = 1024 * 1024;

/// Serves dispatch until told to stop.
pub fn run(global: &Global, args: &IpconfArgs) -> Result<(), Failure> {
    let sources = crate::sources(global, &crate::geoip_flag(args.geoip.as_deref()))?;
    let settings = sources.load()?;
    let log = logging::start(&settings.log_level, settings.log_json)?;
    if settings.dispatch_sources.is_empty() {
        let message = "dispatch.sources is empty: give the admin addresses of the regions whose edges are to be listed";
        return Err(Failure::Usage(message.into()));
    }
    crate::block_on(async {
        let mut stop = Stop::watch(args.role.stop_with_stdin)?;
        let node = Node::new(settings, Role::Ipconf)?;
        serve_until_stopped(&node, &mut stop, Origins { sources, log }, global.json).instrument(node.span.clone()).await
    })
}

async fn serve_until_stopped(node: &Node, stop: &mut Stop, origins: Origins, json: bool) -> Result<(), Failure> {
    let (operations, hangup) = Operations::start(node, origins).await?;
    operations.health.phase("listening");
    let mut registry = Registry::default();
    let loads = LoadTable::new();
    let dispatch = start(node, &loads, &mut registry, &operations).await?;
    for source in &node.settings.dispatch_sources {
        let at = node.resolve(source).await?;
        node.env.tasks.spawn(follow(node.env.clone(), source.clone(), at, loads.clone()));
    }
    operations.ready(node, hangup, registry, None);
    let (name, admin) = (node.name.clone(), Some(operations.admin));
    Ready { ready: name, dispatch: Some(dispatch), admin, ..Ready::default() }.print(json);
    let reason = stop.requested().await;
    tracing::info!(reason, "stopping");
    operations.stopping(Duration::ZERO);
    Ok(())
}

/// Starts dispatch on its listener.
pub async fn start(
    node: &Node,
    loads: &Arc<LoadTable>,
    registry: &mut Registry,
    operations: &Operations,
) -> Result<SocketAddr> {
    let settings = &node.settings;
    let geo = geo(settings)?;
    let config = DispatchConfig {
        region_position: settings.region_at.and_then(|at| Position::new(at.latitude, at.longitude)),
        trusted_proxies: settings.dispatch_trusted_proxies.clone(),
        operators: settings.dispatch_operators.clone(),
        heartbeat: heartbeat(settings),
        ..DispatchConfig::new(node.region, node.region_name.clone())
    };
    let metrics = DispatchMetrics::register(registry);
    let dispatch = Dispatch::new(node.env.clone(), config, Arc::new(geo), loads.clone(), metrics);
    add_parts(operations, &dispatch);
    let tls = node.public_tls(&ALPN_HTTP)?;
    let at = settings.dispatch_listen();
    let acceptor = node.env.net.listen(at).await.with_context(|| {
        format!("can't serve dispatch on {at}; is another process using the port? Set listen.dispatch to another one")
    })?;
    let local = acceptor.local_addr();
    let limits = HttpLimits::default();
    node.env.tasks.spawn(serve(node.env.clone(), acceptor, Some(tls), limits, dispatch.handler()));
    Ok(local)
}

fn geo(settings: &Settings) -> Result<Geo, tern_ipconf::GeoError> {
    match &settings.dispatch_geoip {
        Some(path) => Geo::open(path),
        None => Geo::shipped(),
    }
}

fn heartbeat(settings: &Settings) -> HeartbeatView {
    HeartbeatView {
        foreground_ms: crate::millis(settings.heartbeat_foreground),
        background_ms_min: crate::millis(settings.heartbeat_background_min),
        background_ms_max: crate::millis(settings.heartbeat_background_max),
    }
}

/// Adds what can be changed of dispatch while it runs.
fn add_parts(operations: &Operations, dispatch: &Arc<Dispatch>) {
    const TUNED: &[&str] = &[
        "dispatch.trusted_proxies",
        "dispatch.operators",
        "heartbeat.foreground",
        "heartbeat.background_min",
        "heartbeat.background_max",
    ];
    let tuned = dispatch.clone();
    operations.reload.add(Part::new("dispatch", TUNED, move |settings| {
        tuned.tune(DispatchTuning {
            trusted_proxies: settings.dispatch_trusted_proxies.clone(),
            operators: settings.dispatch_operators.clone(),
            heartbeat: heartbeat(settings),
        });
        Ok(())
    }));
    let placed = dispatch.clone();
    let part = Part::new("GeoIP data", &["dispatch.geoip"], move |settings| {
        placed.set_geo(Arc::new(geo(settings).map_err(|error| error.to_string())?));
        Ok(())
    });
    operations.reload.add(part.with_files(|settings| settings.dispatch_geoip.iter().cloned().collect()));
}

/// Asks one region for its edges' loads for as long as this process lives.
async fn follow(env: tern_net::env::Env, source: HostPort, at: SocketAddr, loads: Arc<LoadTable>) {
    let client = HttpClient::new(env.clone(), None);
    let mut told = false;
    loop {
        match ask(&client, &source, at).await {
            Ok(report) => {
                told = false;
                for load in &report.edges {
                    if let Err(error) = loads.report(load, env.clock.now()) {
                        tracing::debug!(%error, "a load report was left out");
                    }
                }
            }
            Err(error) => {
                // Once an outage, not once a second.
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%source, %error, "a region does not tell its edges' loads; they are no longer listed");
                }
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

async fn ask(client: &HttpClient, source: &HostPort, at: SocketAddr) -> Result<LoadReport> {
    let request = Request::get("/loads").body(Full::<Bytes>::default())?;
    let answer = client.request(at, &source.host, request, LOADS_BYTES, ASK_WITHIN).await?;
    if answer.status() != StatusCode::OK {
        return Err(anyhow!("{} answered {}", source, answer.status()));
    }
    Ok(LoadReport::decode(answer.into_body())?)
}
