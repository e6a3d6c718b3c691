//! A dispatcher with its edges, and who asks it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tern_core::clock::{Clock, Entropy};
use tern_core::ranking::Position;
use tern_core::wire::node_v1::EdgeLoad;
use tern_ipconf::api::{DispatchAnswer, DispatchRequest, ErrorBody};
use tern_ipconf::{Dispatch, DispatchConfig, DispatchMetrics, Geo, LoadTable};
use tern_net::env::Env;
use tern_net::system::system_env;

#[derive(Debug)]
pub struct ManualClock(pub Mutex<Duration>);

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }
    fn wall_ms(&self) -> u64 {
        0
    }
}

pub struct Bed {
    pub clock: Arc<ManualClock>,
    pub loads: Arc<LoadTable>,
    pub dispatch: Arc<Dispatch>,
    pub registry: Registry,
}

pub fn geo() -> Arc<Geo> {
    static GEO: OnceLock<Arc<Geo>> = OnceLock::new();
    GEO.get_or_init(|| Arc::new(Geo::shipped().unwrap())).clone()
}

pub fn load(region: u32, region_name: &str, edge: &str, at: (f64, f64)) -> EdgeLoad {
    EdgeLoad {
        edge: edge.to_owned(),
        region,
        region_name: region_name.to_owned(),
        addresses: vec![format!("192.0.2.{region}:7414")],
        connections: 100,
        capacity: 1000,
        cpu_permille: 50,
        draining: false,
        age_ms: 0,
        latitude: at.0,
        longitude: at.1,
        generation: 1,
        failure_domain: edge.to_owned(),
    }
}

/// Two edges in Frankfurt, one in Ashburn, one in Singapore; dispatched from Ashburn; 10.0.0.0/8 are its
/// proxies, 198.51.100.0/24 its operators.
impl Bed {
    pub fn empty() -> Self {
        Self::with(|_| {})
    }

    /// Without edges, after `change` of the configuration.
    pub fn with(change: impl FnOnce(&mut DispatchConfig)) -> Self {
        let clock = Arc::new(ManualClock(Mutex::new(Duration::from_secs(1_000))));
        let env = Env { clock: clock.clone(), rng: Arc::new(Entropy::seeded(1)), ..system_env().unwrap() };
        let loads = LoadTable::new();
        let mut registry = Registry::default();
        let mut config = DispatchConfig {
            region_position: Position::new(39.0, -77.5),
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            operators: vec!["198.51.100.0/24".parse().unwrap()],
            ..DispatchConfig::new(2, "us")
        };
        change(&mut config);
        let metrics = DispatchMetrics::register(&mut registry);
        let dispatch = Dispatch::new(env, config, geo(), loads.clone(), metrics);
        Self { clock, loads, dispatch, registry }
    }

    pub fn new() -> Self {
        Self::empty().and_edges()
    }

    /// The four edges.
    pub fn and_edges(self) -> Self {
        let bed = self;
        for (region, name, edge, at) in [
            (1, "eu", "eu-e1", (50.1, 8.7)),
            (1, "eu", "eu-e2", (50.1, 8.7)),
            (2, "us", "us-e1", (39.0, -77.5)),
            (3, "ap", "ap-e1", (1.35, 103.8)),
        ] {
            bed.loads.report(&load(region, name, edge, at), bed.clock.now()).unwrap();
        }
        bed
    }

    pub fn ask(&self, request: &DispatchRequest, address: &str) -> DispatchAnswer {
        self.dispatch.decide(request, address.parse().unwrap()).unwrap()
    }

    pub fn regions(&self, address: &str) -> Vec<String> {
        self.ask(&DispatchRequest::default(), address).edges.into_iter().map(|e| e.region).collect()
    }

    pub async fn post(&self, from: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> (u16, Value) {
        let mut request = Request::post("/v1/dispatch");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let response = self.dispatch.respond(SocketAddr::new(from.parse().unwrap(), 5555), request).await;
        parts(response).await
    }

    pub fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

pub async fn parts(response: Response<Full<Bytes>>) -> (u16, Value) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

pub fn code(answer: &(u16, Value)) -> (u16, String) {
    let body: ErrorBody = serde_json::from_value(answer.1.clone()).unwrap();
    assert!(!body.error.message.is_empty());
    (answer.0, body.error.code)
}
