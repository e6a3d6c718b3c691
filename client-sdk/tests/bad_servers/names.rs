//! Names with several addresses: dispatch and edges are found at any of them.

use std::net::SocketAddr;
use std::time::Duration;

use tern_client::{ConnectionState, DispatchServer, FallbackEdge, Transport};

use super::*;
use crate::paper_net::Place;
use crate::servers::{HTTP_1, PORTAL, Says, says};

const SIX: &str = "2001:db8::1";
const FOUR: &str = "192.0.2.1";

fn live_by(client: &Client) -> Option<Transport> {
    match client.connection() {
        ConnectionState::Live { transport, .. } => Some(transport),
        _ => None,
    }
}

/// Dispatch at `name:443`, good at the IPv4 address alone.
async fn dispatch_at_four(scene: &Scene) -> ClientConfig {
    let edge = scene.edge.listen_tcp().await;
    let dispatch = scene.edge.listen_dispatch(edge, r#"["tcp"]"#).await;
    scene.net.place(&format!("{FOUR}:443"), Place::Is(dispatch));
    let mut config = scene.config();
    config.dispatch.push(DispatchServer { address: "dispatch.example:443".into(), server_name: "localhost".into() });
    config
}

#[tokio::test(start_paused = true)]
async fn dispatch_is_asked_at_the_next_address_after_a_quarter_of_a_second() {
    let scene = Scene::new();
    let config = dispatch_at_four(&scene).await;
    scene.net.name("dispatch.example", &[SIX, "2001:db8::2", FOUR]);
    scene.net.place(&format!("[{SIX}]:443"), Place::Swallows);
    let client = scene.client(config);
    let within = delivered(&scene, &client).await;
    assert!(within < Duration::from_millis(600), "{within:?}");
    let tried = scene.net.tried();
    let ports: Vec<_> = tried.iter().filter(|(_, to)| to.port() == 443).collect();
    assert_eq!(ports.len(), 2, "the other family comes before a second address of the first: {tried:?}");
    assert_eq!(
        (ports[1].0 - ports[0].0, ports[1].1),
        (Duration::from_millis(250), format!("{FOUR}:443").parse().unwrap())
    );
    client.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_not_dispatch_brings_on_the_next_at_once() {
    let portal = Says::Http(PORTAL);
    for wrong in [None, Some(Says::Noise), Some(Says::NoiseInTls), Some(portal)] {
        let scene = Scene::new();
        let config = dispatch_at_four(&scene).await;
        scene.net.name("dispatch.example", &[SIX, FOUR]);
        if let Some(wrong) = wrong {
            says(&scene.env, &scene.edge, &format!("[{SIX}]:443"), wrong, HTTP_1).await;
        }
        let client = scene.client(config);
        let within = delivered(&scene, &client).await;
        assert!(within < Duration::from_millis(450), "{wrong:?}: {within:?}");
        client.close().await;
    }
    // Another's certificate is no answer either.
    let scene = Scene::new();
    let config = dispatch_at_four(&scene).await;
    scene.net.name("dispatch.example", &[SIX, FOUR]);
    let other = FakeEdge::new(&scene.env);
    let elsewhere = other.listen_dispatch("192.0.2.66:1".parse().unwrap(), "[]").await;
    scene.net.place(&format!("[{SIX}]:443"), Place::Is(elsewhere));
    let client = scene.client(config);
    assert!(delivered(&scene, &client).await < Duration::from_millis(450));
    client.close().await;
}

fn named(scene: &Scene) -> ClientConfig {
    scene.net.name("edge.example", &[SIX, FOUR]);
    let mut config = scene.config();
    config.fallback_edges.push(FallbackEdge::new("edge.example:443", "localhost"));
    config
}

#[tokio::test(start_paused = true)]
async fn an_edge_is_found_by_quic_at_the_second_address_of_its_name() {
    let scene = Scene::new();
    scene.edge.listen_quic_at(format!("{FOUR}:443").parse().unwrap());
    let client = scene.client(named(&scene));
    let within = delivered(&scene, &client).await;
    assert_eq!(live_by(&client), Some(Transport::Quic), "{}", client.diagnostics());
    assert!((250..500).contains(&within.as_millis()), "{within:?}");
    assert_eq!(scene.edge.core.lock().unwrap().hellos.len(), 1, "the others have said nothing");
    client.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_edge_is_found_by_tcp_websocket_and_polls_at_the_second_address_of_its_name() {
    for transport in [Transport::Tcp, Transport::WebSocket, Transport::Poll] {
        let scene = Scene::new();
        let at: SocketAddr = match transport {
            Transport::Tcp => scene.edge.listen_tcp().await,
            Transport::WebSocket => scene.edge.listen_websocket().await,
            _ => scene.edge.listen_polls().await,
        };
        scene.net.place(&format!("{FOUR}:443"), Place::Is(at));
        scene.net.place(&format!("[{SIX}]:443"), Place::Swallows);
        let client = scene.client(named(&scene));
        delivered(&scene, &client).await;
        assert_eq!(live_by(&client), Some(transport), "{}", client.diagnostics());
        assert_eq!(scene.edge.core.lock().unwrap().hellos.len(), 1);
        client.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_without_addresses_and_one_with_a_wrong_certificate_everywhere_say_so() {
    let scene = Scene::new();
    let mut config = named(&scene);
    config.fallback_edges.push(FallbackEdge::new("nowhere.example:443", "localhost"));
    let other = FakeEdge::new(&scene.env);
    for ip in [SIX, FOUR] {
        let elsewhere = other.listen_tcp().await;
        let at = SocketAddr::new(ip.parse().unwrap(), 443);
        scene.net.place(&at.to_string(), Place::Is(elsewhere));
    }
    let client = scene.client(config);
    minutes(2).await;
    assert!(other.core.lock().unwrap().hellos.is_empty());
    let diagnostics = client.diagnostics();
    assert!(diagnostics.contains("BadSignature") && diagnostics.contains("nowhere.example:443"), "{diagnostics}");
    client.close().await;
}
