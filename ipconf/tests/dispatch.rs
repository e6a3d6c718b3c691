//! Requests and their answers: ranking, trust, limits, errors.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::body::{Body, Frame};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::bed::{Bed, code, load, parts};
use tern_core::clock::Clock;
use tern_core::wire::node_v1::EdgeLoad;
use tern_ipconf::DispatchError;
use tern_ipconf::api::{DispatchAnswer, DispatchRequest, RttSample};

#[tokio::test]
async fn clients_get_the_region_near_them_first_by_real_lookups() {
    let bed = Bed::new();
    for (address, first) in [
        ("91.0.0.1", "eu"),
        ("2a01:4f8::1", "eu"),
        ("177.0.0.1", "us"),
        ("2804:14c::1", "us"),
        ("49.32.0.1", "ap"),
        ("2409:4000::1", "ap"),
        ("126.0.0.1", "ap"),
        ("2400:4050::1", "ap"),
        ("81.2.69.160", "eu"),
        ("8.8.8.8", "us"),
    ] {
        let regions = bed.regions(address);
        assert_eq!((regions[0].as_str(), regions.len()), (first, 4), "{address}");
    }
}

#[tokio::test]
async fn addresses_without_a_place_get_the_dispatching_region_first() {
    let bed = Bed::new();
    for address in ["10.0.0.1", "127.0.0.1", "::1", "fe80::1", "203.0.113.1", "100.64.0.1", "2001:db8::1", "0.0.0.0"] {
        let answer = bed.ask(&DispatchRequest { explain: true, ..Default::default() }, address);
        assert_eq!(answer.edges[0].region, "us", "{address}");
        assert_eq!((answer.edges.len(), answer.client.country.clone()), (4, None));
        assert!(answer.client.unplaced.is_some());
        let explain = answer.edges[0].explain.clone().unwrap();
        assert_eq!((explain.rtt_ms, explain.rtt_source.as_str()), (None, "unknown"));
        assert_eq!(explain.reason.replace("0.11", "0.10"), "round trip unknown, load 0.10");
    }
}

#[tokio::test]
async fn the_answer_has_the_documented_shape() {
    let bed = Bed::new();
    let (status, answer) =
        bed.post("91.0.0.1", &[], r#"{"explain": true, "network": {"kind": "cellular", "metered": true}}"#).await;
    assert_eq!(status, 200);
    assert_eq!(answer["client"], json!({"address": "91.0.0.1", "country": "DE"}));
    let ttl = answer["ttl_s"].as_u64().unwrap();
    assert!((270..=330).contains(&ttl), "{ttl}");
    assert_eq!(
        answer["heartbeat"],
        json!({"foreground_ms": 20_000, "background_ms_min": 25_000, "background_ms_max": 270_000})
    );
    let first = &answer["edges"][0];
    assert_eq!(first["region"], "eu");
    assert_eq!(first["addresses"], json!(["192.0.2.1:7414"]));
    assert_eq!(first["transports"], json!(["quic", "tcp", "ws", "poll"]));
    assert_eq!(first["rank"], 1);
    assert_eq!(first["explain"]["rtt_source"], "distance");
    assert!(first["explain"]["reason"].as_str().unwrap().contains("ms by distance, load"));
    let (_, wifi) = bed.post("91.0.0.1", &[], "{}").await;
    assert!(wifi["edges"][0].get("explain").is_none());
    let quic = |a: &Value, i: usize| a["edges"][i]["timeouts_ms"]["quic"].as_u64().unwrap();
    assert!(quic(&wifi, 0) >= 1_000 && quic(&wifi, 3) > quic(&wifi, 0) && quic(&answer, 3) > quic(&wifi, 3));
    let typed: DispatchAnswer = serde_json::from_value(answer.clone()).unwrap();
    assert_eq!(serde_json::to_value(typed).unwrap(), answer);
}

#[tokio::test]
async fn an_empty_body_is_a_request_and_unknown_fields_are_ignored() {
    let bed = Bed::new();
    for body in ["", "  \n", "{}", r#"{"later": [1], "network": {"kind": "satellite", "x": 1}}"#] {
        assert_eq!(bed.post("8.8.8.8", &[], body).await.0, 200, "{body}");
    }
}

#[tokio::test]
async fn a_dead_edge_is_out_of_the_lists_within_three_seconds() {
    let bed = Bed::new();
    let ids = |bed: &Bed| -> Vec<String> {
        bed.ask(&DispatchRequest::default(), "91.0.0.1").edges.into_iter().map(|e| e.id).collect()
    };
    for ms in (0..3_000).step_by(500) {
        *bed.clock.0.lock().unwrap() = Duration::from_millis(1_000_000 + ms);
        for (region, name, edge, at) in
            [(1, "eu", "eu-e2", (50.1, 8.7)), (2, "us", "us-e1", (39.0, -77.5)), (3, "ap", "ap-e1", (1.35, 103.8))]
        {
            bed.loads.report(&load(region, name, edge, at), bed.clock.now()).unwrap();
        }
        assert!(ids(&bed).contains(&"eu-e1".to_owned()));
    }
    *bed.clock.0.lock().unwrap() = Duration::from_secs(1_003);
    assert!(!ids(&bed).contains(&"eu-e1".to_owned()));
    assert_eq!(bed.regions("91.0.0.1").len(), 3);
    // Its link's end is noticed at once.
    assert!(bed.loads.remove(1, "eu-e2", 1));
    assert_eq!(bed.regions("91.0.0.1"), ["us", "ap"]);
}

#[tokio::test]
async fn with_no_edge_to_list_the_answer_says_why_and_when_to_ask_again() {
    let bed = Bed::empty();
    let ask = |bed: &Bed| bed.dispatch.decide(&DispatchRequest::default(), "8.8.8.8".parse().unwrap()).unwrap_err();
    assert!(ask(&bed).to_string().contains("none has reported"));
    bed.loads.report(&EdgeLoad { draining: true, ..load(1, "eu", "a", (0.0, 0.0)) }, bed.clock.now()).unwrap();
    bed.loads.report(&EdgeLoad { capacity: 0, ..load(1, "eu", "b", (0.0, 0.0)) }, bed.clock.now()).unwrap();
    bed.loads.report(&load(1, "eu", "c", (0.0, 0.0)), bed.clock.now()).unwrap();
    bed.loads.set_cordoned(1, "c", true);
    let error = ask(&bed).to_string();
    assert!(error.contains("1 draining, 1 cordoned, 1 full"), "{error}");

    let request = Request::post("/v1/dispatch").body(Full::new(Bytes::new())).unwrap();
    let response = bed.dispatch.respond("8.8.8.8:1".parse().unwrap(), request).await;
    let after: u32 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((2..=4).contains(&after));
    assert_eq!(code(&parts(response).await), (503, "no_edges".to_owned()));
}

#[tokio::test]
async fn what_if_is_answered_to_this_machine_and_to_operators_only() {
    let bed = Bed::new();
    let body = r#"{"as": "177.0.0.1"}"#;
    let country = |answer: &(u16, Value)| answer.1["client"]["country"].as_str().map(str::to_owned);
    for from in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "198.51.100.7"] {
        let answer = bed.post(from, &[], body).await;
        assert_eq!((answer.0, country(&answer).as_deref()), (200, Some("BR")), "{from}");
    }
    // An operator behind a trusted proxy.
    assert_eq!(bed.post("10.0.0.1", &[("x-forwarded-for", "198.51.100.7")], body).await.0, 200);
    let forbidden: [(&str, &[(&str, &str)]); 6] = [
        ("8.8.8.8", &[]),
        ("8.8.8.8", &[("x-forwarded-for", "127.0.0.1")]),
        ("10.0.0.1", &[]),
        ("10.0.0.1", &[("x-forwarded-for", "127.0.0.1")]),
        // A proxy on this machine that nobody configured: its clients are not this machine.
        ("127.0.0.1", &[("x-forwarded-for", "8.8.8.8")]),
        ("127.0.0.1", &[("forwarded", "for=8.8.8.8")]),
    ];
    for (from, headers) in forbidden {
        let answer = bed.post(from, headers, body).await;
        assert_eq!(code(&answer), (403, "what_if_forbidden".to_owned()), "{from} {headers:?}");
    }
    let error = bed.dispatch.decide(
        &DispatchRequest { as_address: Some("177.0.0.1".parse().unwrap()), ..Default::default() },
        "8.8.8.8".parse().unwrap(),
    );
    assert_eq!(error.unwrap_err(), DispatchError::WhatIfForbidden("8.8.8.8".parse().unwrap()));
}

#[tokio::test]
async fn what_if_neither_learns_nor_counts_as_an_assignment() {
    let bed = Bed::new();
    let request = DispatchRequest {
        as_address: Some("91.0.0.1".parse().unwrap()),
        rtt: vec![RttSample { edge: "ap-e1".to_owned(), ms: 1.0 }],
        explain: true,
        ..Default::default()
    };
    for _ in 0..200 {
        let answer = bed.ask(&request, "127.0.0.1");
        assert_eq!(answer.edges[0].region, "eu", "the samples are this machine's");
        assert_eq!(answer.edges[0].explain.as_ref().unwrap().load, 0.1, "as reported");
    }
    assert!(bed.metrics().contains("tern_dispatch_rtt_samples_learned_total 0"));
}

#[tokio::test]
async fn forwarded_addresses_count_from_trusted_proxies_only() {
    let bed = Bed::new();
    let (_, by_proxy) = bed.post("10.0.0.1", &[("x-forwarded-for", "1.2.3.4, 91.0.0.1, 10.0.0.9")], "").await;
    assert_eq!(by_proxy["client"]["address"], "91.0.0.1");
    let (_, by_stranger) = bed.post("8.8.8.8", &[("x-forwarded-for", "91.0.0.1")], "").await;
    assert_eq!(by_stranger["client"]["address"], "8.8.8.8");
}

#[tokio::test]
async fn measured_round_trips_are_learned_from_public_addresses_only() {
    let bed = Bed::new();
    let samples = |edge: &str| vec![RttSample { edge: edge.to_owned(), ms: 3.0 }];
    let measured = DispatchRequest { rtt: samples("ap-e1"), ..Default::default() };
    // A Brazilian address that is in fact near Singapore.
    for _ in 0..20 {
        assert_eq!(bed.ask(&measured, "177.0.0.1").edges[0].region, "ap");
    }
    assert_eq!(bed.regions("177.0.0.99")[0], "ap", "a neighbour profits");
    assert_eq!(bed.regions("177.99.0.1")[0], "us", "another network does not");
    // A private client's own samples serve itself; a loopback client measures nothing.
    assert_eq!(bed.ask(&measured, "192.168.0.1").edges[0].region, "ap");
    assert_eq!(bed.regions("192.168.0.1")[0], "us");
    assert_eq!(bed.ask(&measured, "127.0.0.1").edges[0].region, "us");
    // Edges that nobody knows.
    bed.ask(&DispatchRequest { rtt: samples("nope"), ..Default::default() }, "91.0.0.1");
    bed.dispatch.refresh_metrics();
    let metrics = bed.metrics();
    for line in [
        "tern_dispatch_rtt_samples_learned_total 20",
        "tern_dispatch_rtt_samples_ignored_total 3",
        "tern_dispatch_learned_networks 1",
        r#"tern_dispatch_unplaced_total{reason="private"} 2"#,
        r#"tern_dispatch_edges{standing="listed"} 4"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn excluded_edges_are_left_out() {
    let bed = Bed::new();
    let request = DispatchRequest { exclude: vec!["eu-e1".to_owned(), "eu-e2".to_owned()], ..Default::default() };
    let regions: Vec<String> = bed.ask(&request, "91.0.0.1").edges.into_iter().map(|e| e.region).collect();
    assert_eq!(regions, ["us", "ap"]);
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let bed = Bed::new();
    let long = "x".repeat(65);
    let many = |n: usize| json!({"rtt": vec![json!({"edge": "e", "ms": 1}); n]}).to_string();
    let cases = [
        ("{".to_owned(), "EOF"),
        ("[1]".to_owned(), "invalid"),
        ("\u{1}\u{2}garbage".to_owned(), "expected value"),
        (r#"{"explain": "yes"}"#.to_owned(), "expected a boolean"),
        (r#"{"as": "999.1.1.1"}"#.to_owned(), "invalid IP address"),
        (r#"{"rtt": [{"edge": "e"}]}"#.to_owned(), "missing field `ms`"),
        (r#"{"rtt": [{"edge": "e", "ms": -1}]}"#.to_owned(), "0 to 60000"),
        (r#"{"rtt": [{"edge": "e", "ms": 1e999}]}"#.to_owned(), "out of range"),
        (r#"{"rtt": [{"edge": "", "ms": 1}]}"#.to_owned(), "0 bytes"),
        (json!({"exclude": [long]}).to_string(), "65 bytes"),
        (json!({"exclude": vec!["e"; 51]}).to_string(), "at most 50"),
        (many(51), "at most 50"),
        (format!("{}{}", "[".repeat(5_000), "]".repeat(5_000)), "body"),
    ];
    for (body, says) in cases {
        let answer = bed.post("8.8.8.8", &[], body.clone()).await;
        assert_eq!(code(&answer), (400, "bad_request".to_owned()), "{body:.60}");
        assert!(answer.1["error"]["message"].as_str().unwrap().contains(says), "{body:.60}: {}", answer.1);
    }
    assert_eq!(bed.post("8.8.8.8", &[], many(50)).await.0, 200);
    assert_eq!(bed.post("8.8.8.8", &[], &b"\xff\xfe"[..]).await.0, 400);
    assert!(bed.metrics().contains(r#"tern_dispatch_requests_total{outcome="bad_request"}"#));
}

/// A body of unknown length: so many bytes, then silence or an end.
struct Trickle {
    left: usize,
    ends: bool,
}

impl Body for Trickle {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return if self.ends { Poll::Ready(None) } else { Poll::Pending };
        }
        let n = self.left.min(1_000);
        self.left -= n;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b' '; n])))))
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_too_large_or_never_end_are_refused() {
    let bed = Bed::new();
    let from: SocketAddr = "8.8.8.8:1".parse().unwrap();
    let too_large = bed.post("8.8.8.8", &[], vec![b' '; 16 * 1024 + 1]).await;
    assert_eq!(code(&too_large), (413, "body_too_large".to_owned()));
    let just = bed.post("8.8.8.8", &[], vec![b' '; 16 * 1024]).await;
    assert_eq!(just.0, 200);
    let send = |left, ends| {
        let request = Request::post("/v1/dispatch").body(Trickle { left, ends }).unwrap();
        bed.dispatch.respond(from, request)
    };
    assert_eq!(code(&parts(send(100_000, true).await).await), (413, "body_too_large".to_owned()));
    assert_eq!(code(&parts(send(10, false).await).await), (408, "body_timeout".to_owned()));
}

#[tokio::test]
async fn other_paths_and_methods_are_refused_and_health_tells() {
    let bed = Bed::new();
    let ask = |method: &str, path: &str| {
        let request = Request::builder().method(method).uri(path).body(Full::new(Bytes::new())).unwrap();
        bed.dispatch.respond("8.8.8.8:1".parse().unwrap(), request)
    };
    assert_eq!(code(&parts(ask("GET", "/").await).await), (404, "not_found".to_owned()));
    assert_eq!(code(&parts(ask("POST", "/v1/dispatch/x").await).await), (404, "not_found".to_owned()));
    let wrong = ask("GET", "/v1/dispatch").await;
    assert_eq!(wrong.headers()["allow"], "POST");
    assert_eq!(code(&parts(wrong).await), (405, "method_not_allowed".to_owned()));
    assert_eq!(ask("DELETE", "/v1/health").await.status(), 405);
    assert_eq!(parts(ask("POST", "/v1/dispatch?x=1").await).await.0, 200);
    let health = parts(ask("GET", "/v1/health").await).await;
    assert_eq!(health, (200, json!({"status": "ok", "region": "us", "edges_listed": 4, "edges_unlisted": 0})));
    *bed.clock.0.lock().unwrap() += Duration::from_secs(3);
    let health = parts(ask("GET", "/v1/health").await).await;
    assert_eq!(health, (503, json!({"status": "no_edges", "region": "us", "edges_listed": 0, "edges_unlisted": 4})));
}

#[tokio::test]
async fn metrics_are_named_with_units_and_name_no_client() {
    let bed = Bed::new();
    bed.ask(&DispatchRequest::default(), "91.0.0.1");
    let metrics = bed.metrics();
    assert!(metrics.lines().filter(|l| !l.starts_with('#')).all(|l| l.starts_with("tern_dispatch_")), "{metrics}");
    assert!(metrics.contains("tern_dispatch_decide_seconds_count 1"));
    assert!(metrics.contains(r#"tern_dispatch_assigned_total{region="eu"} 1"#));
    assert!(!metrics.contains("91.0"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_address_and_any_body_gets_an_answer_in_json(
        address in prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(IpAddr::from),
        ],
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "\\{(\"(rtt|as|exclude|explain|network)\": ?(true|1|\"x\"|\\[\\]|\\{\\}),?){0,3}\\}".prop_map(String::into_bytes),
        ],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bed = Bed::new();
            let placed = bed.ask(&DispatchRequest::default(), &address.to_string());
            assert_eq!(placed.edges.len(), 4);
            let (status, answer) = bed.post(&address.to_string(), &[], body).await;
            assert!(matches!(status, 200 | 400 | 403), "{status} {answer}");
        });
    }
}
