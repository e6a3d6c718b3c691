//! The dispatch API over a real TLS listener on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use prometheus_client::registry::Registry;
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use tern_core::wire::node_v1::EdgeLoad;
use tern_core::wire::v1;
use tern_ipconf::{Dispatch, DispatchConfig, DispatchMetrics, Geo, LoadTable};
use tern_net::http::{ALPN_HTTP, HttpClient, HttpLimits, serve};
use tern_net::system::system_env;
use tern_net::tls::{Identity, client_tls, server_tls};

const PROTOBUF: &str = "application/x-protobuf";
const WITHIN: Duration = Duration::from_secs(20);

/// A CA in PEM, and an identity for 127.0.0.1 that it signed.
fn certificates() -> (String, Identity) {
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    (ca.pem(), Identity::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap())
}

#[tokio::test]
async fn a_list_is_served_over_https_and_the_connection_is_kept() {
    let env = system_env().unwrap();
    let (ca, identity) = certificates();
    let loads = LoadTable::new();
    let edge = EdgeLoad {
        edge: "eu-e1".to_owned(),
        region: 1,
        region_name: "eu".to_owned(),
        addresses: vec!["127.0.0.1:7414".to_owned()],
        capacity: 100,
        ..EdgeLoad::default()
    };
    loads.report(&edge, env.clock.now()).unwrap();
    let mut registry = Registry::default();
    let metrics = DispatchMetrics::register(&mut registry);
    let config = DispatchConfig::new(1, "eu");
    let dispatch = Dispatch::new(env.clone(), config, Arc::new(Geo::shipped().unwrap()), loads, metrics);

    let acceptor = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let at = acceptor.local_addr();
    let tls = server_tls(&identity, &ALPN_HTTP, env.clock.clone()).unwrap();
    env.tasks.spawn(serve(env.clone(), acceptor, Some(tls), HttpLimits::default(), dispatch.handler()));

    for (alpn, two) in [(&ALPN_HTTP[..], true), (&ALPN_HTTP[1..], false)] {
        let tls = client_tls(ca.as_bytes(), alpn, env.clock.clone()).unwrap();
        let client = HttpClient::new(env.clone(), Some(tls));
        let mut connection = client.connect(at, "127.0.0.1", WITHIN).await.unwrap();
        assert_eq!(connection.is_http2(), two);
        for (body, status) in
            [(&br#"{"as": "91.0.0.1", "explain": true}"#[..], 200), (b"{", 400), (&[b' '; 20_000], 413)]
        {
            let request = Request::post("/v1/dispatch").body(Full::new(Bytes::from_static(body))).unwrap();
            let response = connection.request(request, 64 * 1024, WITHIN).await.unwrap();
            assert_eq!(response.status(), status);
            let answer: Value = serde_json::from_slice(response.body()).unwrap();
            if status == 200 {
                assert_eq!((&answer["client"]["country"], &answer["edges"][0]["id"]), (&"DE".into(), &"eu-e1".into()));
            } else {
                assert!(answer["error"]["code"].is_string());
            }
        }
        // In protobuf, there and back.
        let question = v1::DispatchRequest { r#as: "177.0.0.1".to_owned(), ..Default::default() }.encode_to_vec();
        let request = Request::post("/v1/dispatch").header("content-type", PROTOBUF).header("accept", PROTOBUF);
        let request = request.body(Full::from(question)).unwrap();
        let response = connection.request(request, 64 * 1024, WITHIN).await.unwrap();
        let answer = v1::DispatchAnswer::decode(response.into_body()).unwrap();
        assert_eq!(
            (answer.client.unwrap().country(), answer.edges[0].tls_name.as_str()),
            ("BR", "eu-e1.eu.tern.internal")
        );
    }
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for (http, encoding) in [("1", "json"), ("1", "protobuf"), ("2", "json"), ("2", "protobuf")] {
        let line = format!("tern_dispatch_lists_total{{http=\"{http}\",encoding=\"{encoding}\"}} 1");
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}
