//! JSON and protobuf say the same; what is neither is refused; who asks too often waits.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use proptest::prelude::*;
use prost::Message;
use support::bed::{Bed, code, parts};
use tern_core::wire::v1;
use tern_ipconf::PaceConfig;
use tern_ipconf::api::{DispatchAnswer, DispatchRequest, ErrorBody, NetworkKind, NetworkView, RttSample};

const PROTOBUF: &str = "application/x-protobuf";

async fn send(bed: &Bed, from: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut request = Request::post("/v1/dispatch");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into())).unwrap();
    bed.dispatch.respond(SocketAddr::new(from.parse().unwrap(), 5555), request).await
}

async fn body(response: Response<Full<Bytes>>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

fn request() -> DispatchRequest {
    DispatchRequest {
        network: NetworkView { kind: NetworkKind::Cellular, metered: true },
        rtt: vec![RttSample { edge: "ap-e1".to_owned(), ms: 3.5 }],
        exclude: vec!["eu-e1".to_owned()],
        user: Some("ada".to_owned()),
        explain: true,
        as_address: Some("177.0.0.1".parse().unwrap()),
    }
}

#[tokio::test]
async fn the_same_question_gets_the_same_answer_in_either_form() {
    for asked in [DispatchRequest::default(), request()] {
        // Equal dispatchers draw equal numbers: the answers differ in their form alone.
        let json = send(&Bed::new(), "127.0.0.1", &[], serde_json::to_vec(&asked).unwrap()).await;
        let headers = [("content-type", PROTOBUF), ("accept", PROTOBUF)];
        let proto = send(&Bed::new(), "127.0.0.1", &headers, v1::DispatchRequest::from(&asked).encode_to_vec()).await;
        assert_eq!((json.status(), proto.status()), (200.try_into().unwrap(), 200.try_into().unwrap()));
        assert_eq!(
            (&json.headers()["content-type"], &json.headers()["vary"]),
            (&"application/json".parse().unwrap(), &"accept".parse().unwrap())
        );
        assert_eq!(proto.headers()["content-type"], PROTOBUF);
        let (json, proto) = (body(json).await, body(proto).await);
        let of_json: DispatchAnswer = serde_json::from_slice(&json).unwrap();
        let of_proto = DispatchAnswer::try_from(v1::DispatchAnswer::decode(&proto[..]).unwrap()).unwrap();
        assert_eq!(of_json, of_proto);
        assert!(proto.len() < json.len() / 2, "{} of {}", proto.len(), json.len());
    }
}

#[tokio::test]
async fn question_and_answer_may_have_different_forms_and_errors_have_that_of_the_answer() {
    let bed = Bed::new();
    let json_to_proto = send(&bed, "8.8.8.8", &[("accept", PROTOBUF)], "{}").await;
    assert_eq!(v1::DispatchAnswer::decode(body(json_to_proto).await).unwrap().edges.len(), 4);
    let question = v1::DispatchRequest { exclude: vec!["us-e1".to_owned()], ..Default::default() }.encode_to_vec();
    let proto_to_json = send(&bed, "8.8.8.8", &[("content-type", PROTOBUF)], question).await;
    let answer: DispatchAnswer = serde_json::from_slice(&body(proto_to_json).await).unwrap();
    assert!(answer.edges.iter().all(|e| e.id != "us-e1"));

    let wrong: [(&str, Vec<u8>, &str); 4] = [
        (PROTOBUF, b"{}".to_vec(), "no dispatch request in protobuf"),
        (
            PROTOBUF,
            v1::DispatchRequest { r#as: "here".to_owned(), ..Default::default() }.encode_to_vec(),
            "as: invalid",
        ),
        (
            PROTOBUF,
            v1::DispatchRequest { exclude: vec![String::new()], ..Default::default() }.encode_to_vec(),
            "0 bytes",
        ),
        ("application/json", vec![0x0a, 0xff], "no dispatch request"),
    ];
    for (kind, bytes, says) in wrong {
        let failed = send(&bed, "8.8.8.8", &[("content-type", kind), ("accept", PROTOBUF)], bytes).await;
        assert_eq!(failed.status(), 400, "{says}");
        let failure = ErrorBody::from(v1::DispatchFailure::decode(body(failed).await).unwrap());
        assert_eq!(failure.error.code, "bad_request");
        assert!(failure.error.message.contains(says), "{}", failure.error.message);
    }
    // A version of later has more fields, and other kinds.
    let mut later =
        v1::DispatchRequest { network: Some(v1::DispatchNetwork { kind: 99, metered: true }), ..Default::default() }
            .encode_to_vec();
    later.extend([0xfa, 0x07, 2, b'x', b'y']);
    assert_eq!(send(&bed, "8.8.8.8", &[("content-type", PROTOBUF)], later).await.status(), 200);
}

#[tokio::test]
async fn forms_that_there_are_not_are_refused_with_those_that_there_are() {
    let bed = Bed::new();
    let not_acceptable = parts(send(&bed, "8.8.8.8", &[("accept", "text/html")], "{}").await).await;
    assert_eq!(code(&not_acceptable), (406, "not_acceptable".to_owned()));
    assert!(not_acceptable.1["error"]["message"].as_str().unwrap().contains("application/x-protobuf"));
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let unsupported = parts(send(&bed, "8.8.8.8", &form, "{}").await).await;
    assert_eq!(code(&unsupported), (415, "unsupported_media_type".to_owned()));
    let message = unsupported.1["error"]["message"].as_str().unwrap();
    assert!(message.contains("x-www-form-urlencoded") && message.contains("application/json"), "{message}");
    // Nothing said is nothing wrong.
    assert_eq!(send(&bed, "8.8.8.8", &form, "").await.status(), 200);
    let metrics = bed.metrics();
    for line in [
        r#"tern_dispatch_requests_total{outcome="not_acceptable"} 1"#,
        r#"tern_dispatch_requests_total{outcome="unsupported_type"} 1"#,
        r#"tern_dispatch_lists_total{http="1",encoding="json"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn an_address_that_asks_too_often_is_told_when_to_come_back_and_others_are_not_kept() {
    let pace = PaceConfig { per_second: 2, burst: 10, addresses_max: 100 };
    let bed = Bed::with(|config| config.pace = pace).and_edges();
    let ask = async |from: &str, headers: &[(&str, &str)]| send(&bed, from, headers, "").await;
    for _ in 0..10 {
        assert_eq!(ask("8.8.8.8", &[]).await.status(), 200);
    }
    let refused = ask("8.8.8.8", &[]).await;
    let after: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=4).contains(&after), "{after}");
    assert_eq!(code(&parts(refused).await), (429, "too_many_requests".to_owned()));
    let failure = body(ask("8.8.8.8", &[("accept", PROTOBUF)]).await).await;
    assert_eq!(v1::DispatchFailure::decode(failure).unwrap().code, "too_many_requests");
    // Clients of a proxy are told apart by what it says of them, and a stranger can't pretend to be one.
    assert_eq!(ask("10.0.0.1", &[("x-forwarded-for", "8.8.8.8")]).await.status(), 429);
    assert_eq!(ask("10.0.0.1", &[("x-forwarded-for", "8.8.4.4")]).await.status(), 200);
    assert_eq!(ask("8.8.8.8", &[("x-forwarded-for", "198.51.100.7")]).await.status(), 429);
    // This machine and operators are not counted.
    for _ in 0..20 {
        assert_eq!(ask("127.0.0.1", &[]).await.status(), 200);
        assert_eq!(ask("198.51.100.7", &[]).await.status(), 200);
    }
    bed.dispatch.refresh_metrics();
    let metrics = bed.metrics();
    assert!(metrics.contains("tern_dispatch_paced_addresses 2"), "{metrics}");
    assert!(metrics.contains(r#"tern_dispatch_requests_total{outcome="too_often"} 4"#), "{metrics}");
    *bed.clock.0.lock().unwrap() += Duration::from_millis(500);
    assert_eq!(ask("8.8.8.8", &[]).await.status(), 200);
    *bed.clock.0.lock().unwrap() += Duration::from_secs(60);
    bed.dispatch.refresh_metrics();
    assert!(bed.metrics().contains("tern_dispatch_paced_addresses 0"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn requests_come_back_from_protobuf_as_they_were(
        kind in prop::sample::select(vec![
            NetworkKind::Wifi, NetworkKind::Cellular, NetworkKind::Wired, NetworkKind::Unknown,
        ]),
        metered in any::<bool>(),
        rtt in prop::collection::vec((".{0,9}", any::<f64>().prop_filter("equal to itself", |f| !f.is_nan())), 0..5),
        exclude in prop::collection::vec(".{0,9}", 0..5),
        user in prop::option::of(".{1,9}"),
        explain in any::<bool>(),
        as_address in prop::option::of(any::<std::net::IpAddr>()),
    ) {
        let rtt = rtt.into_iter().map(|(edge, ms)| RttSample { edge, ms }).collect();
        let request = DispatchRequest { network: NetworkView { kind, metered }, rtt, exclude, user, explain, as_address };
        let bytes = v1::DispatchRequest::from(&request).encode_to_vec();
        let back = DispatchRequest::try_from(v1::DispatchRequest::decode(&bytes[..]).unwrap()).unwrap();
        prop_assert_eq!(back, request);
    }

    #[test]
    fn any_body_that_says_it_is_protobuf_gets_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let status = runtime.block_on(async {
            let headers = [("content-type", PROTOBUF), ("accept", PROTOBUF)];
            send(&Bed::new(), "8.8.8.8", &headers, bytes).await.status().as_u16()
        });
        prop_assert!(matches!(status, 200 | 400 | 403), "{}", status);
    }
}
