//! Edges that are reached and of no use, alone and for ten minutes; then a good one stands in their place.

use std::net::SocketAddr;

use rcgen::date_time_ymd;
use tern_client::FallbackEdge;
use tern_core::codes::Code;

use super::*;
use crate::paper_net::Place;
use crate::servers::{ANY, HTTP_1, PORTAL, Says, quic_noise, says, udp_noise};

const EDGE: &str = "192.0.2.1:443";
/// Of one attempt no more is taken than what an answer may have, and what buffers on the way hold.
const BYTES_PER_ATTEMPT: u64 = 1024 * 1024;

fn config(scene: &Scene) -> ClientConfig {
    let mut config = scene.config();
    config.fallback_edges.push(FallbackEdge::new(EDGE, "localhost"));
    config
}

/// Ten minutes; how many connections by TCP and datagrams were sent, by the client alone.
async fn ten_minutes(scene: &Scene) -> (usize, u64) {
    let (tried, datagrams) = (scene.net.tried().len(), scene.net.datagrams());
    minutes(10).await;
    (scene.net.tried().len() - tried, scene.net.datagrams() - datagrams)
}

/// A good edge stands here now.
async fn becomes_good(scene: &Scene) {
    let good = scene.edge.listen_tcp().await;
    scene.net.place(EDGE, Place::Is(good));
}

#[tokio::test(start_paused = true)]
async fn noise_of_every_kind_is_told_and_costs_a_bounded_number_of_attempts_and_bytes() {
    let http = |text| Says::Http(text);
    let cases = [
        (Says::Noise, ANY, "InvalidContentType"),
        (Says::NoiseInTls, ANY, "frame"),
        (Says::HugeFrame, ANY, "frame"),
        (Says::NoiseInTls, HTTP_1, ""),
        (http(PORTAL), HTTP_1, ""),
        (http("content-length: 5\r\n\r\n\x05\x7f\x7f\x7f\x7f"), HTTP_1, ""),
        (http("content-length: 6\r\n\r\n\x05\x7f\x7f\x7f\x7f\x7f"), HTTP_1, ""),
        (http("content-length: 0\r\n\r\n"), HTTP_1, ""),
        (Says::Endless("\r\n"), HTTP_1, ""),
        (Says::Endless("x-endless: "), HTTP_1, ""),
        (Says::Endless("content-length: 52428800\r\n\r\n"), HTTP_1, ""),
        (Says::Nothing, ANY, "no answer in time"),
    ];
    for (what, alpn, told) in cases {
        let scene = Scene::new();
        let taken = says(&scene.env, &scene.edge, EDGE, what, alpn).await;
        let client = scene.client(config(&scene));
        let (attempts, _) = ten_minutes(&scene).await;
        assert!((20..600).contains(&attempts), "{what:?}: {attempts} connections in ten minutes");
        let taken = taken.load(Ordering::SeqCst);
        assert!(taken < BYTES_PER_ATTEMPT * attempts as u64, "{what:?}: {taken} bytes by {attempts} connections");
        let troubles = scene.troubles();
        assert!(!troubles.is_empty() && troubles.contains(told), "{what:?}: {troubles}");
        assert!(client.diagnostics().len() < 64 * 1024);
        assert_eq!(client.waiting(), (1, 0));
        assert!(scene.tokens.asked.load(Ordering::SeqCst) <= 1, "the token is not in question");
        becomes_good(&scene).await;
        delivered(&scene, &client).await;
        client.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn noise_in_quic_streams_and_in_datagrams_is_told_and_bounded() {
    for streams in [true, false] {
        let scene = Scene::new();
        if streams {
            quic_noise(&scene.env, &scene.edge, EDGE);
        } else {
            udp_noise(&scene.env, EDGE);
        }
        let client = scene.client(config(&scene));
        let (attempts, datagrams) = ten_minutes(&scene).await;
        assert!((20..600).contains(&attempts), "{attempts} by TCP");
        assert!((50..20_000).contains(&datagrams), "{datagrams} datagrams");
        assert!(!scene.troubles().is_empty());
        becomes_good(&scene).await;
        delivered(&scene, &client).await;
        client.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_certificate_is_named_and_gets_no_token_by_any_transport() {
    type Alter = fn(&mut rcgen::CertificateParams);
    let name: Alter = |params| *params = rcgen::CertificateParams::new(vec!["other.example".to_owned()]).unwrap();
    let expired: Alter = |params| params.not_after = date_time_ymd(2020, 1, 1);
    let not_yet: Alter = |params| params.not_before = date_time_ymd(2040, 1, 1);
    let cases = [
        (None, "BadSignature"),
        (Some(name), "not valid for name"),
        (Some(expired), "certificate expired"),
        (Some(not_yet), "certificate not valid yet"),
    ];
    for (alter, told) in cases {
        let scene = Scene::new();
        let wrong = match alter {
            None => FakeEdge::new(&scene.env),
            Some(alter) => FakeEdge::with(&scene.env, alter),
        };
        let mut config = config(&scene);
        if alter.is_some() {
            // The name and the time are wrong, the CA is not.
            config.roots_pem.extend_from_slice(wrong.ca_pem.as_bytes());
        }
        wrong.listen_quic_at(EDGE.parse().unwrap());
        let by_tcp = wrong.listen_tcp().await;
        scene.net.place(EDGE, Place::Is(by_tcp));
        let client = scene.client(config);
        let (attempts, datagrams) = ten_minutes(&scene).await;
        assert!((20..600).contains(&attempts) && datagrams < 20_000, "{told}: {attempts}, {datagrams}");
        assert!(scene.troubles().contains(told), "{told}: {}", scene.troubles());
        assert!(client.diagnostics().contains(told));
        assert!(wrong.core.lock().unwrap().hellos.is_empty(), "no Hello, so no token");
        becomes_good(&scene).await;
        delivered(&scene, &client).await;
        client.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_refused_for_a_wrong_clock_is_told_and_asked_for_anew_with_pauses() {
    for quic in [true, false] {
        let scene = Scene::new();
        let at: SocketAddr = EDGE.parse().unwrap();
        let words = "the token was issued 7200 s in the future";
        scene.edge.core.lock().unwrap().refuse = Some((Code::TokenInvalid, words));
        if quic {
            scene.edge.listen_quic_at(at);
        } else {
            becomes_good(&scene).await;
        }
        let client = scene.client(config(&scene));
        minutes(10).await;
        let (asked, refused) = (&scene.tokens.asked, &scene.tokens.refused);
        let asked = asked.load(Ordering::SeqCst);
        assert!((8..60).contains(&asked), "{asked} tokens in ten minutes");
        assert_eq!(refused.load(Ordering::SeqCst), asked - 1, "all but the first for a refusal");
        assert!(scene.edge.core.lock().unwrap().refusals < 120);
        match client.connection() {
            ConnectionState::Connecting { trouble: Some(Trouble::TokenRefused { code, message }), .. } => {
                assert_eq!((code, message.as_str()), (Code::TokenInvalid as u32, words));
            }
            other => panic!("{other:?}"),
        }
        scene.edge.core.lock().unwrap().refuse = None;
        delivered(&scene, &client).await;
        client.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_edge_that_says_welcome_and_nothing_more_is_told_and_left_alone_more_and_more() {
    for quic in [true, false] {
        let scene = Scene::new();
        scene.edge.core.lock().unwrap().mute = true;
        if quic {
            scene.edge.listen_quic_at(EDGE.parse().unwrap());
        } else {
            becomes_good(&scene).await;
        }
        let client = scene.client(config(&scene));
        minutes(10).await;
        let hellos = scene.edge.core.lock().unwrap().hellos.len();
        assert!((10..120).contains(&hellos), "{hellos} sessions in ten minutes");
        assert!(scene.troubles().contains("nothing was heard"), "{}", scene.troubles());
        scene.edge.core.lock().unwrap().mute = false;
        delivered(&scene, &client).await;
        client.close().await;
    }
}
