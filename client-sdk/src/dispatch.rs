//! Asking ipconf which edges to use.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde::{Deserialize, Serialize};
use tern_core::client::limits::{QUIC_TIMEOUT, TCP_TIMEOUT};
use tern_core::client::{Asking, Candidate, NetInfo, NetKind};
use tern_core::ids::UserId;
use tern_net::addresses::Addresses;
use tern_net::env::Net;
use tern_net::http::HttpClient;

use crate::config::DispatchServer;
use crate::limits::{
    ADDRESS_BYTES, ADDRESSES, ATTEMPT_TIMEOUT, DISPATCH_ANSWER_BYTES, DISPATCH_TTL, EDGES, NAME_BYTES,
};

#[derive(Serialize)]
struct Ask<'a> {
    user: &'a str,
    exclude: &'a [String],
    rtt: Vec<Sample<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
}

#[derive(Serialize)]
struct Sample<'a> {
    edge: &'a str,
    ms: u64,
}

#[derive(Serialize)]
struct Network {
    kind: &'static str,
    metered: bool,
}

impl Network {
    fn of(info: &NetInfo) -> Self {
        let kind = match info.kind {
            NetKind::Unknown => "unknown",
            NetKind::Wifi => "wifi",
            NetKind::Cellular => "cellular",
            NetKind::Wired => "wired",
        };
        Self { kind, metered: info.metered }
    }
}

#[derive(Deserialize)]
struct Answer {
    ttl_s: u64,
    edges: Vec<Edge>,
}

#[derive(Deserialize)]
struct Edge {
    id: String,
    region: String,
    #[serde(default)]
    tls_name: String,
    addresses: Vec<String>,
    #[serde(default)]
    transports: Vec<String>,
    #[serde(default)]
    timeouts_ms: Timeouts,
}

#[derive(Default, Deserialize)]
struct Timeouts {
    quic: Option<u64>,
    tcp: Option<u64>,
}

/// Why a dispatch request gave no list.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DispatchError {
    #[error("{0} can't be resolved: {1}")]
    Resolve(String, std::io::Error),
    #[error(transparent)]
    Http(#[from] tern_net::http::HttpError),
    #[error("the answer has status {0}")]
    Status(u16),
    #[error("the answer can't be understood: {0}")]
    Json(#[from] serde_json::Error),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the request can't be made: {0}")]
    Request(#[from] hyper::http::Error),
}

/// One question, to all addresses of the server one after the other until one gives a list. The answer as it came, for
/// the store, and what it says.
pub(crate) async fn ask(
    net: &dyn Net,
    http: &HttpClient,
    server: &DispatchServer,
    user: &UserId,
    asking: &Asking,
    network: Option<&NetInfo>,
    edge_name: Option<&str>,
) -> Result<(Vec<Candidate>, Duration, Bytes), DispatchError> {
    let ms = |rtt: &Duration| u64::try_from(rtt.as_millis()).unwrap_or(u64::MAX).max(1);
    let rtt = asking.measured.iter().map(|(edge, rtt)| Sample { edge, ms: ms(rtt) }).collect();
    let (user, network) = (user.as_str(), network.map(Network::of));
    let body = Bytes::from(serde_json::to_vec(&Ask { user, exclude: &asking.exclude, rtt, network })?);
    let one = |to: SocketAddr| {
        let body = body.clone();
        async move {
            let request = Request::post("/v1/dispatch").header("content-type", "application/json");
            let request = request.body(Full::new(body))?;
            let answer = http.request(to, &server.server_name, request, DISPATCH_ANSWER_BYTES, asking.timeout).await?;
            if !answer.status().is_success() {
                return Err(DispatchError::Status(answer.status().as_u16()));
            }
            let text = answer.into_body();
            let (list, ttl) = parse(&text, edge_name)?;
            Ok((list, ttl, text))
        }
    };
    let whole = async {
        let addresses = Addresses::of(net, &server.address).await;
        let addresses = addresses.map_err(|e| DispatchError::Resolve(server.address.clone(), e))?;
        addresses.race(one).await
    };
    // The engine counts on an answer by then, or a word that there is none.
    let late = |_| DispatchError::Late(asking.timeout);
    tokio::time::timeout(asking.timeout, whole).await.map_err(late)?
}

/// Candidates of an answer, in its order, and how long they hold.
pub(crate) fn parse(text: &[u8], edge_name: Option<&str>) -> Result<(Vec<Candidate>, Duration), serde_json::Error> {
    let answer: Answer = serde_json::from_slice(text)?;
    let mut list = Vec::new();
    for edge in answer.edges.into_iter().take(EDGES) {
        let offers = |t: &str| edge.transports.is_empty() || edge.transports.iter().any(|o| o == t);
        let within = |ms: Option<u64>, default| {
            ms.map_or(default, Duration::from_millis).clamp(ATTEMPT_TIMEOUT.0, ATTEMPT_TIMEOUT.1)
        };
        let server_name = match edge_name {
            Some(name) => name.to_owned(),
            // Dispatchers of before do not tell it.
            None if edge.tls_name.is_empty() => format!("{}.{}.tern.internal", edge.id, edge.region),
            None => edge.tls_name,
        };
        if [&edge.id, &edge.region, &server_name].iter().any(|name| name.len() > NAME_BYTES) {
            continue;
        }
        for address in edge.addresses.iter().filter(|a| a.len() <= ADDRESS_BYTES).take(ADDRESSES) {
            list.push(Candidate {
                edge: edge.id.clone(),
                region: edge.region.clone(),
                address: address.clone(),
                server_name: server_name.clone(),
                quic: offers("quic"),
                tcp: offers("tcp"),
                quic_timeout: within(edge.timeouts_ms.quic, QUIC_TIMEOUT),
                tcp_timeout: within(edge.timeouts_ms.tcp, TCP_TIMEOUT),
            });
        }
    }
    Ok((list, Duration::from_secs(answer.ttl_s).clamp(DISPATCH_TTL.0, DISPATCH_TTL.1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_gives_candidates_in_its_order_with_sane_time_outs() {
        let text = br#"{"ttl_s": 300, "client": {"address": "192.0.2.7", "country": "DE"}, "edges": [
            {"id": "eu-e1", "region": "eu", "addresses": ["192.0.2.1:7410", "[2001:db8::1]:7410"], "transports": ["quic", "tcp"],
             "timeouts_ms": {"quic": 800, "tcp": 1}, "rank": 1},
            {"id": "us-e1", "region": "us", "tls_name": "us-e1.example.net", "addresses": ["198.51.100.1:7420"], "transports": ["tcp"], "rank": 2}],
            "heartbeat": {"foreground_ms": 25000, "background_ms_min": 1, "background_ms_max": 2}, "later": []}"#;
        let (list, ttl) = parse(text, None).unwrap();
        assert_eq!(ttl, Duration::from_secs(300));
        assert_eq!(list.len(), 3);
        assert_eq!(list[0].server_name, "eu-e1.eu.tern.internal");
        assert_eq!(list[2].server_name, "us-e1.example.net");
        assert_eq!((list[0].quic_timeout, list[0].tcp_timeout), (Duration::from_millis(800), ATTEMPT_TIMEOUT.0));
        assert_eq!(list[1].address, "[2001:db8::1]:7410");
        assert!(!list[2].quic && list[2].tcp && list[2].quic_timeout == QUIC_TIMEOUT);
        assert_eq!(parse(text, Some("im.example.com")).unwrap().0[2].server_name, "im.example.com");
    }

    #[test]
    fn names_and_addresses_without_measure_are_left_out() {
        let long = "x".repeat(400);
        let edge = |id: &str, address: &str| format!(r#"{{"id": "{id}", "region": "eu", "addresses": ["{address}"]}}"#);
        let edges = [edge(&long, "192.0.2.1:1"), edge("a", &long), edge("b", "192.0.2.1:1")].join(",");
        let (list, _) = parse(format!(r#"{{"ttl_s": 300, "edges": [{edges}]}}"#).as_bytes(), None).unwrap();
        assert_eq!(list.iter().map(|c| c.edge.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn answers_that_are_none_are_errors_and_an_empty_list_is_empty() {
        for text in ["", "{}", "[]", "{\"ttl_s\": -1, \"edges\": []}", "{\"ttl_s\": 1, \"edges\": [{}]}"] {
            assert!(parse(text.as_bytes(), None).is_err(), "{text}");
        }
        assert_eq!(parse(b"{\"ttl_s\": 0, \"edges\": []}", None).unwrap(), (Vec::new(), DISPATCH_TTL.0));
    }
}
