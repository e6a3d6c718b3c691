//! The admin listener: `/metrics` for Prometheus, `/livez` and `/readyz` for whatever restarts and routes.
//!
//! A region also has `/loads` there: what its edges report, as a `tern.node.v1.LoadReport`, for a
//! `tern ipconf` of its own.
//!
//! Plain HTTP without a login, so it listens on loopback unless told otherwise. Nothing here names a user.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use tern_net::env::Env;
use tern_net::http::{Handler, HttpLimits, serve};

use crate::process;

/// What `/readyz` asks: a name, and whether that part can do its work now.
pub type Check = (&'static str, Box<dyn Fn() -> bool + Send + Sync>);

/// What `/loads` answers: an encoded `LoadReport`.
pub type Loads = Box<dyn Fn() -> Vec<u8> + Send + Sync>;

/// Whether this process wants to be sent work. Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    serving: Arc<AtomicBool>,
    checks: Arc<Vec<Check>>,
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readiness").field("serving", &self.serving).finish_non_exhaustive()
    }
}

impl Readiness {
    /// Not serving yet.
    pub fn new(checks: Vec<Check>) -> Self {
        Self { serving: Arc::new(AtomicBool::new(false)), checks: Arc::new(checks) }
    }

    /// Says whether work is wanted: true once everything listens, false when draining begins.
    pub fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Relaxed);
    }

    /// What is not ready, by name; empty: all is.
    fn missing(&self) -> Vec<&'static str> {
        let serving = (!self.serving.load(Ordering::Relaxed)).then_some("serving");
        serving.into_iter().chain(self.checks.iter().filter(|(_, ok)| !ok()).map(|(name, _)| *name)).collect()
    }
}

/// Starts the listener and returns where it listens. It ends with the node's tasks.
pub async fn start(
    env: &Env,
    at: SocketAddr,
    registry: Registry,
    readiness: Readiness,
    loads: Option<Loads>,
) -> Result<SocketAddr> {
    let acceptor = env.net.listen(at).await.with_context(|| {
        format!("can't serve metrics on {at}; is another process using the port? Set listen.admin to another one")
    })?;
    let local = acceptor.local_addr();
    env.tasks.spawn(serve(env.clone(), acceptor, None, HttpLimits::default(), handler(registry, readiness, loads)));
    Ok(local)
}

/// Answers the paths.
fn handler(registry: Registry, readiness: Readiness, loads: Option<Loads>) -> Handler {
    let shared = Arc::new((registry, readiness, loads));
    Arc::new(move |_, request: Request<hyper::body::Incoming>| {
        let (registry, readiness, loads) = &*shared;
        let answer = answer(request.method(), request.uri().path(), registry, readiness, loads.as_ref());
        Box::pin(std::future::ready(answer))
    })
}

fn answer(
    method: &Method,
    path: &str,
    registry: &Registry,
    readiness: &Readiness,
    loads: Option<&Loads>,
) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n".into());
    }
    match path {
        "/livez" => text(StatusCode::OK, "live\n".into()),
        "/readyz" => match readiness.missing() {
            missing if missing.is_empty() => text(StatusCode::OK, "ready\n".into()),
            missing => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", "))),
        },
        "/metrics" => {
            let mut out = String::new();
            match prometheus_client::encoding::text::encode(&mut out, registry) {
                Ok(()) => {
                    let mut response = text(StatusCode::OK, out);
                    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
                    response.headers_mut().insert(CONTENT_TYPE, kind);
                    response
                }
                Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n".into()),
            }
        }
        "/loads" if loads.is_some() => {
            let mut response = Response::new(Full::new(Bytes::from(loads.map_or_else(Vec::new, |loads| loads()))));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
            response
        }
        _ => text(StatusCode::NOT_FOUND, "here are /metrics, /livez and /readyz\n".into()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
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

    fn get(path: &str, readiness: &Readiness) -> (StatusCode, String) {
        let mut registry = Registry::default();
        register_process(&mut registry);
        let response = answer(&Method::GET, path, &registry, readiness, None);
        let status = response.status();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = runtime
            .block_on(async { http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes() });
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn readiness_names_what_is_missing_and_ends_when_draining_begins() {
        let store = Arc::new(AtomicBool::new(false));
        let seen = store.clone();
        let readiness = Readiness::new(vec![("store", Box::new(move || seen.load(Ordering::Relaxed)))]);
        assert_eq!(get("/readyz", &readiness), (StatusCode::SERVICE_UNAVAILABLE, "not ready: serving, store\n".into()));
        readiness.set_serving(true);
        assert_eq!(get("/readyz", &readiness).1, "not ready: store\n");
        store.store(true, Ordering::Relaxed);
        assert_eq!(get("/readyz", &readiness).0, StatusCode::OK);
        readiness.set_serving(false);
        assert_eq!(get("/readyz", &readiness).0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get("/livez", &readiness).0, StatusCode::OK);
    }

    #[test]
    fn metrics_are_in_the_text_format_and_name_their_units() {
        let (status, text) = get("/metrics", &Readiness::new(Vec::new()));
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("# UNIT tern_process_resident_bytes bytes"), "{text}");
        assert!(text.contains("tern_build_info{version="), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn other_paths_and_methods_are_refused_politely() {
        let readiness = Readiness::new(Vec::new());
        assert_eq!(get("/", &readiness).0, StatusCode::NOT_FOUND);
        let response = answer(&Method::POST, "/metrics", &Registry::default(), &readiness, None);
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
