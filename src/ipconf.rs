//! `tern ipconf`: dispatch as a process of its own, beside regions; and dispatch as part of a region.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::header::HeaderValue;
use prometheus_client::registry::Registry;
use tern_core::clock::Clock;
use tern_core::ranking::Position;
use tern_ipconf::api::HeartbeatView;
use tern_ipconf::limits::GEOIP_LOOK_EVERY;
use tern_ipconf::{Dispatch, DispatchConfig, DispatchMetrics, DispatchTuning, Geo, LoadTable, PaceConfig};
use tern_net::http::{ALPN_HTTP, Handler, HttpLimits, serve};
use tracing::Instrument;

use crate::cli::{Global, IpconfArgs};
use crate::config::scope::Role;
use crate::config::{ConfigError, Settings};
use crate::exit::Failure;
use crate::fleet::Ready;
use crate::gossip::{self, ToTable};
use crate::logging;
use crate::node::Node;
use crate::operations::{Operations, Origins};
use crate::orders::Board;
use crate::orders::desk::Desk;
use crate::policies;
use crate::reload::Part;
use crate::stop::Stop;

/// The header of dispatch's answers with its clock, in milliseconds since 1970.
pub const CLOCK_HEADER: &str = "tern-time-ms";

/// Serves dispatch until told to stop.
pub fn run(global: &Global, args: &IpconfArgs) -> Result<(), Failure> {
    let sources = crate::sources(global, &crate::geoip_flag(args.geoip.as_deref()))?;
    let settings = sources.load()?;
    let log = logging::start(&settings.log_level, settings.log_json)?;
    gossip::check(Role::Ipconf, &settings)?;
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
    let board = Board::open(node, &loads)?;
    let desk = Desk::new(node, &operations, &board, &loads, None);
    operations.publish_orders(&desk);
    let watcher = Arc::new(ToTable { loads: loads.clone(), direct: Arc::default(), board });
    let gossip = Arc::new(gossip::start(node, None, watcher, &mut registry).await?);
    desk.attach_gossip(gossip.clone());
    gossip::add_part(&operations, &gossip);
    operations.ready(node, hangup, registry, None);
    let (name, admin) = (node.name.clone(), Some(operations.admin));
    let heard = Some(gossip.local_addr());
    Ready { ready: name, dispatch: Some(dispatch), admin, gossip: heard, ..Ready::default() }.print(json);
    let reason = stop.requested().await;
    tracing::info!(reason, "stopping");
    operations.stopping(Duration::ZERO);
    gossip.leave().await;
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
    let wanted =
        policies::read(settings).map_err(|problem| ConfigError(vec![format!("dispatch.policies: {problem}")]))?;
    let config = DispatchConfig {
        region_position: settings.region_at.and_then(|at| Position::new(at.latitude, at.longitude)),
        trusted_proxies: settings.dispatch_trusted_proxies.clone(),
        operators: settings.dispatch_operators.clone(),
        heartbeat: heartbeat(settings),
        pace: PaceConfig {
            per_second: settings.dispatch_per_second,
            burst: settings.dispatch_burst,
            ..PaceConfig::default()
        },
        edge_tls_name: settings.dispatch_edge_tls_name.clone(),
        ..DispatchConfig::new(node.region, node.region_name.clone())
    };
    let metrics = DispatchMetrics::register(registry);
    let dispatch = Dispatch::new(node.env.clone(), config, Arc::new(geo), loads.clone(), metrics);
    dispatch.set_policies(wanted);
    loads.cordon_regions(&settings.dispatch_cordoned_regions);
    add_parts(operations, &dispatch, loads);
    operations.publish_dispatch(dispatch.clone());
    if node.role == Role::Ipconf {
        let asked = dispatch.clone();
        operations.health.needs("edges", move || match asked.health().edges_listed {
            0 => Err("none can be listed; see gossip.seeds".to_owned()),
            _ => Ok(()),
        });
    }
    let tls = node.public_tls(&ALPN_HTTP)?;
    let at = settings.dispatch_listen();
    let acceptor = node.env.net.listen(at).await.with_context(|| {
        format!("can't serve dispatch on {at}; is another process using the port? Set listen.dispatch to another one")
    })?;
    let local = acceptor.local_addr();
    let limits = HttpLimits::default();
    node.env.tasks.spawn(dispatch.clone().look_after_geo(GEOIP_LOOK_EVERY));
    node.env.tasks.spawn(serve(
        node.env.clone(),
        acceptor,
        Some(tls),
        limits,
        with_clock(dispatch.handler(), node.env.clock.clone()),
    ));
    Ok(local)
}

/// Adds this machine's clock to each answer: a doctor on another machine compares it with its own.
fn with_clock(handler: Handler, clock: Arc<dyn Clock>) -> Handler {
    Arc::new(move |from, request| {
        let (answering, clock) = (handler(from, request), clock.clone());
        Box::pin(async move {
            let mut answer = answering.await;
            answer.headers_mut().insert(CLOCK_HEADER, HeaderValue::from(clock.wall_ms()));
            answer
        })
    })
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
fn add_parts(operations: &Operations, dispatch: &Arc<Dispatch>, loads: &Arc<LoadTable>) {
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
    // Its content is looked after by the dispatcher itself, which takes it only when it is whole.
    let cordoned = loads.clone();
    operations.reload.add(Part::new("cordoned regions", &["dispatch.cordoned_regions"], move |settings| {
        cordoned.cordon_regions(&settings.dispatch_cordoned_regions);
        Ok(())
    }));
    let placed = dispatch.clone();
    let steered = dispatch.clone();
    let part = Part::new("placement policies", &["dispatch.policies"], move |settings| {
        steered.set_policies(policies::read(settings)?);
        Ok(())
    });
    operations.reload.add(part.with_files(policies::files));
    let part = Part::new("GeoIP data", &["dispatch.geoip"], move |settings| {
        placed.set_geo(Arc::new(geo(settings).map_err(|error| error.to_string())?));
        Ok(())
    });
    operations.reload.add(part);
}
