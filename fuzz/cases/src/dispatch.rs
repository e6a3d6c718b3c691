//! Dispatch as a whole: a request with its headers, in both forms, to the answer.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::{Request, StatusCode};
use prometheus_client::registry::Registry;
use prost::Message;
use tern_core::clock::{Clock, Entropy};
use tern_core::wire::node_v1::EdgeLoad;
use tern_core::wire::v1;
use tern_ipconf::api::{DispatchAnswer, DispatchRequest, ErrorBody};
use tern_ipconf::{Dispatch, DispatchConfig, DispatchMetrics, Geo, LoadTable};
use tern_net::env::Env;
use tern_net::system::system_env;
use tokio::runtime::Runtime;

use crate::Came;
use crate::script::Script;

const NOW: Duration = Duration::from_secs(1_000);
const TYPES: [&str; 5] = [
    "application/x-protobuf",
    "application/json",
    "application/*;q=0.5, */*;q=0.1",
    "text/html",
    "application/protobuf",
];
const CALLERS: [&str; 5] = ["91.0.0.1:5", "[2804:14c::1]:5", "127.0.0.1:5", "10.0.0.1:5", "198.51.100.7:5"];

#[derive(Debug)]
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Duration {
        NOW
    }

    fn wall_ms(&self) -> u64 {
        1_790_000_000_000
    }
}

fn runtime() -> &'static (Runtime, Env) {
    static RUNTIME: OnceLock<(Runtime, Env)> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let env = runtime.block_on(async { system_env().unwrap() });
        (runtime, env)
    })
}

/// Three edges of two regions, as they were before anyone asked.
fn dispatcher() -> Arc<Dispatch> {
    static GEO: OnceLock<Arc<Geo>> = OnceLock::new();
    let geo = GEO.get_or_init(|| Arc::new(Geo::shipped().unwrap())).clone();
    let env = Env { clock: Arc::new(Stopped), rng: Arc::new(Entropy::seeded(1)), ..runtime().1.clone() };
    let loads = LoadTable::new();
    for (region, edge, at) in [(1, "eu-e1", (50.1, 8.7)), (1, "eu-e2", (50.1, 8.7)), (2, "us-e1", (39.0, -77.5))] {
        let load = EdgeLoad {
            edge: edge.into(),
            region,
            region_name: ["eu", "us"][region as usize - 1].into(),
            addresses: vec![format!("192.0.2.{region}:7414")],
            connections: 10,
            capacity: 100,
            latitude: at.0,
            longitude: at.1,
            generation: 1,
            ..EdgeLoad::default()
        };
        loads.report(&load, NOW).unwrap();
    }
    let config = DispatchConfig {
        trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
        operators: vec!["198.51.100.0/24".parse().unwrap()],
        ..DispatchConfig::new(1, "eu")
    };
    Dispatch::new(env, config, geo, loads, DispatchMetrics::register(&mut Registry::default()))
}

/// What is decoded as protobuf is the same again after a way through the API's own types.
fn protobuf(body: &[u8]) {
    if let Ok(Ok(request)) = v1::DispatchRequest::decode(body).map(DispatchRequest::try_from) {
        let again = v1::DispatchRequest::from(&request);
        // NaN is not itself.
        let same = DispatchRequest::try_from(again).as_ref() == Ok(&request);
        assert!(same || request.rtt.iter().any(|sample| sample.ms.is_nan()), "{request:?}");
    }
    if let Ok(Ok(answer)) = v1::DispatchAnswer::decode(body).map(DispatchAnswer::try_from) {
        let again = DispatchAnswer::try_from(v1::DispatchAnswer::from(&answer));
        let nan =
            answer.edges.iter().flat_map(|e| &e.explain).any(|e| e.rtt_ms.is_some_and(f64::is_nan) || e.load.is_nan());
        assert!(again.as_ref() == Ok(&answer) || nan, "{answer:?}");
    }
}

/// See the module: a byte each for caller, form and wanted form, then headers of proxies, then the body.
pub fn http(bytes: &[u8]) -> Came {
    let mut script = Script::new(bytes);
    let caller: SocketAddr = CALLERS[usize::from(script.pick(5))].parse().unwrap();
    let mut request = Request::builder().method("POST").uri("/v1/dispatch");
    for header in [CONTENT_TYPE, ACCEPT] {
        let value = match script.u8() {
            which @ 0..=199 => HeaderValue::from_static(TYPES[usize::from(which) % TYPES.len()]),
            200..=219 => continue,
            _ => HeaderValue::from_bytes(script.blob()).unwrap_or(HeaderValue::from_static("*/*")),
        };
        request = request.header(header, value);
    }
    if let Ok(value) = HeaderValue::from_bytes(script.blob()) {
        request = request.header("x-forwarded-for", value);
    }
    let body = Bytes::copy_from_slice(script.bytes(bytes.len()));
    protobuf(&body);
    let request = request.body(Full::new(body)).unwrap();
    let (runtime, _) = runtime();
    let (parts, answer) = runtime.block_on(async {
        let (parts, body) = dispatcher().respond(caller, request).await.into_parts();
        (parts, body.collect().await.unwrap().to_bytes())
    });
    let as_protobuf = parts.headers.get(CONTENT_TYPE).is_some_and(|t| t == TYPES[0]);
    if parts.status == StatusCode::OK {
        let answer: DispatchAnswer = match as_protobuf {
            true => v1::DispatchAnswer::decode(answer).unwrap().try_into().unwrap(),
            false => serde_json::from_slice(&answer).unwrap(),
        };
        assert!((1..=5).contains(&answer.edges.len()));
        return Came { accepted: true, refused: false };
    }
    assert!(parts.status.is_client_error(), "{parts:?}");
    let error: ErrorBody = match as_protobuf {
        true => v1::DispatchFailure::decode(answer).unwrap().into(),
        false => serde_json::from_slice(&answer).unwrap(),
    };
    assert!(!error.error.code.is_empty() && error.error.message.len() < 2_000, "{error:?}");
    Came { accepted: false, refused: true }
}

/// A full request and an empty one in both forms; one that asks too much; an answer; garbage.
pub fn http_seeds() -> Vec<Vec<u8>> {
    let request = v1::DispatchRequest {
        network: Some(v1::DispatchNetwork { kind: v1::DispatchNetworkKind::Cellular.into(), metered: true }),
        rtt: vec![
            v1::DispatchRtt { edge: "eu-e1".into(), ms: 12.5 },
            v1::DispatchRtt { edge: "us-e1".into(), ms: 91.0 },
        ],
        exclude: vec!["eu-e2".into()],
        explain: true,
        r#as: "8.8.8.8".into(),
        user: "ada".into(),
    };
    let own = v1::DispatchRequest { r#as: String::new(), ..request.clone() };
    let many = v1::DispatchRequest { exclude: vec!["x".into(); 51], ..own.clone() };
    let answer = v1::DispatchAnswer {
        client: Some(v1::DispatchClient { address: "91.0.0.1".into(), ..v1::DispatchClient::default() }),
        edges: vec![v1::DispatchEdge { addresses: vec!["192.0.2.1:5".into()], ..v1::DispatchEdge::default() }],
        ..v1::DispatchAnswer::default()
    };
    let of = |head: &[u8], body: &[u8]| [head, body].concat();
    vec![
        of(&[0, 0, 0, 0], &own.encode_to_vec()),
        of(&[2, 0, 1, 0], &request.encode_to_vec()),
        of(&[4, 0, 0, 0], &request.encode_to_vec()),
        of(&[1, 0, 0, 0], &request.encode_to_vec()),
        of(&[0, 0, 0, 0], &many.encode_to_vec()),
        of(&[3, 0, 0, 7], b"8.8.8.8"),
        of(&[0, 1, 1, 0], b"{}"),
        of(&[0, 1, 0, 0], b"{\"rtt\":[{\"edge\":\"eu-e1\",\"ms\":1e3}]}"),
        of(&[0, 3, 0, 0], b"x"),
        of(&[0, 0, 0, 0], &answer.encode_to_vec()),
        of(&[0, 0, 0, 0], &[0x12; 40]),
    ]
}
