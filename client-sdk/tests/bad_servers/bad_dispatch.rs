//! Dispatch servers that answer nonsense: alone for ten minutes, and beside a good one.

use tern_client::{DispatchServer, FallbackEdge};

use super::*;
use crate::paper_net::Place;
use crate::servers::{HTTP_1, PORTAL, Says, says};

const BAD: &str = "192.0.2.66:443";
const GOOD: &str = "192.0.2.1:443";

fn cases() -> Vec<(Says, &'static str)> {
    let http = |text| Says::Http(text);
    vec![
        (Says::Noise, "no TLS session"),
        (Says::NoiseInTls, "failed"),
        (Says::Nothing, "did not answer within"),
        (http(PORTAL), "can't be understood"),
        (http("content-length: 27\r\n\r\n{\"ttl_s\": 300, \"edges\": []}"), "names no edge"),
        (http("content-length: 12\r\n\r\n\"nonsense!!\""), "can't be understood"),
        (Says::Endless("content-length: 52428800\r\n\r\n"), "more than 262144 bytes"),
        (Says::Endless("\r\n{\"ttl_s\": 300, \"edges\": ["), "more than 262144 bytes"),
        (Says::Endless("x-endless: "), "failed"),
    ]
}

fn server(address: &str) -> DispatchServer {
    DispatchServer { address: address.into(), server_name: "localhost".into() }
}

async fn good(scene: &Scene) {
    let edge = scene.edge.listen_tcp().await;
    let dispatch = scene.edge.listen_dispatch(edge, r#"["tcp"]"#).await;
    scene.net.place(GOOD, Place::Is(dispatch));
}

#[tokio::test(start_paused = true)]
async fn alone_it_is_asked_a_bounded_number_of_times_and_what_it_says_is_told() {
    for (what, told) in cases() {
        let scene = Scene::new();
        let taken = says(&scene.env, &scene.edge, BAD, what, HTTP_1).await;
        let mut config = scene.config();
        config.dispatch.push(server(BAD));
        let client = scene.client(config);
        minutes(10).await;
        let asked = scene.net.tried().len();
        assert!((10..120).contains(&asked), "{what:?}: asked {asked} times in ten minutes");
        let taken = taken.load(Ordering::SeqCst);
        assert!(taken < 1024 * 1024 * asked as u64, "{what:?}: {taken} bytes in {asked} answers");
        match client.connection() {
            ConnectionState::Connecting { trouble: Some(Trouble::NoEdge { message }), .. } => {
                assert!(message.contains(told), "{what:?}: {message}");
            }
            other => panic!("{what:?}: {other:?}"),
        }
        assert!(client.diagnostics().contains(told));
        assert_eq!(client.waiting(), (1, 0));
        let dispatch = scene.edge.listen_dispatch(scene.edge.listen_tcp().await, r#"["tcp"]"#).await;
        scene.net.place(BAD, Place::Is(dispatch));
        delivered(&scene, &client).await;
        client.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn beside_a_good_one_it_costs_a_moment() {
    for (what, _) in cases() {
        let scene = Scene::new();
        says(&scene.env, &scene.edge, BAD, what, HTTP_1).await;
        good(&scene).await;
        let mut config = scene.config();
        config.dispatch = vec![server(BAD), server(GOOD)];
        let client = scene.client(config);
        let within = delivered(&scene, &client).await;
        assert!(within < Duration::from_secs(1), "{what:?}: {within:?}");
        client.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_of_dead_edges_is_left_for_a_built_in_edge_and_asked_for_anew() {
    let scene = Scene::new();
    let dead: Vec<String> = (1..=16).map(|i| format!("198.51.100.{i}:443")).collect();
    dead.iter().for_each(|at| scene.net.place(at, Place::Swallows));
    let edges: Vec<String> = dead
        .iter()
        .map(|at| format!(r#"{{"id": "{at}", "region": "eu", "addresses": ["{at}"], "transports": ["tcp"]}}"#))
        .collect();
    let dispatch = scene.edge.serve_dispatch(format!(r#"{{"ttl_s": 300, "edges": [{}]}}"#, edges.join(","))).await;
    scene.net.place(BAD, Place::Is(dispatch));
    let mut config = scene.config();
    config.dispatch.push(server(BAD));
    config.fallback_edges.push(FallbackEdge::new(GOOD, "localhost"));
    let by_tcp = scene.edge.listen_tcp().await;
    scene.net.place(GOOD, Place::Is(by_tcp));
    let client = scene.client(config);
    let within = delivered(&scene, &client).await;
    assert!(within < Duration::from_secs(5), "{within:?}");
    client.close().await;

    // Without one: round by round, less and less often, until dispatch has a better list.
    let scene = Scene::new();
    dead.iter().for_each(|at| scene.net.place(at, Place::Swallows));
    let dispatch = scene.edge.serve_dispatch(format!(r#"{{"ttl_s": 300, "edges": [{}]}}"#, edges.join(","))).await;
    scene.net.place(BAD, Place::Is(dispatch));
    let mut config = scene.config();
    config.dispatch.push(server(BAD));
    let client = scene.client(config);
    minutes(10).await;
    let tried = scene.net.tried();
    let asked = tried.iter().filter(|(_, to)| to.to_string() == BAD).count();
    assert!((4..60).contains(&asked) && tried.len() < 2000, "asked {asked} times, {} attempts", tried.len());
    assert!(scene.troubles().contains("no answer in time"), "{}", scene.troubles());
    let better = scene.edge.listen_dispatch(scene.edge.listen_tcp().await, r#"["tcp"]"#).await;
    scene.net.place(BAD, Place::Is(better));
    delivered(&scene, &client).await;
    client.close().await;
}
