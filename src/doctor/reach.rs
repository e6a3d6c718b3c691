//! Other nodes: whether they answer, trust this node's certificate, speak its version and are of its deployment.
//!
//! The question is a region's hello with the number 0, which no region has: whoever is asked looks at the
//! version, the deployment and the number, in this order, and refuses it, saying which. So nothing is linked and
//! nothing changes there, but for a line in its log.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use tern_core::limits::{CLOCK_ALARM_MS, CLOCK_STOP_MS, NODE_FRAME_BYTES};
use tern_core::wire::NODE_VERSION;
use tern_core::wire::node_v1::node_frame::Body;
use tern_core::wire::node_v1::{LinkHello, NodeFrame};
use tern_core::wire::versions::OLDEST;
use tern_net::frames::{QuicFrames, write_one};
use tern_net::http::HttpClient;
use tern_net::quic::{QuicParams, client_config, client_endpoint};
use tern_net::tls::client_tls;

use super::{Finding, Scene};
use crate::config::scope::Role;
use crate::config::value::HostPort;
use crate::ipconf::CLOCK_HEADER;
use crate::node::Node;
use crate::pki::region_server_name;

/// From the first packet to the answer: a round trip or two to another continent, and a lost packet.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of dispatch's answer about its health.
const HEALTH_BYTES: usize = 64 * 1024;
/// How a node of this deployment refuses the region 0.
const NO_SUCH_REGION: &str = "region 0 is";

pub(super) async fn check(scene: &Scene) -> Vec<Finding> {
    let settings = &scene.settings;
    let targets: Vec<(String, HostPort, String)> = match scene.role {
        Role::Region => {
            let of = |p: &crate::config::value::Peer| (p.name.clone(), p.addr.clone(), region_server_name(&p.name));
            settings.peers.iter().map(of).collect()
        }
        Role::Edge => {
            let name = region_server_name(settings.region_name().unwrap_or_default());
            settings.core.iter().map(|addr| ("the core".to_owned(), addr.clone(), name.clone())).collect()
        }
        Role::Ipconf | Role::Tools => Vec::new(),
    };
    if targets.is_empty() {
        return Vec::new();
    }
    let node = match Node::new(settings.clone(), scene.role) {
        Ok(node) => node,
        Err(error) => return vec![Finding::failed("nodes", format!("{error:#}"), "correct the configuration")],
    };
    let mut findings = Vec::new();
    for (name, addr, server_name) in targets {
        let who = format!("{name} at {addr}");
        if scene.role == Role::Region {
            findings.extend(clock_of(&node, &name, &addr, &server_name).await);
        }
        findings.push(match ask(&node, &addr, &server_name).await {
            Ok(took) => Finding::ok("nodes", format!("{who} answers within {} ms", took.as_millis())),
            Err(problem) => problem.told(&who, &addr),
        });
    }
    findings
}

/// How far this machine's clock is off another region's, as that one's dispatch tells. None where it does not:
/// it may be on another port than the usual one, or have a certificate that only clients trust.
async fn clock_of(node: &Node, name: &str, addr: &HostPort, server_name: &str) -> Option<Finding> {
    let ca = fs::read(node.settings.data.join("pki/public-ca.pem")).ok()?;
    let tls = client_tls(&ca, &[b"http/1.1"], node.env.clock.clone()).ok()?;
    // Dispatch is one port below the nodes' unless somebody set it.
    let at = SocketAddr::new(node.resolve(addr).await.ok()?.first()?.ip(), addr.port.checked_sub(1)?);
    let request = Request::get("/health").body(Full::<Bytes>::default()).ok()?;
    let client = HttpClient::new(node.env.clone(), Some(tls));
    let before = node.env.clock.wall_ms();
    let answer = client.request(at, server_name, request, HEALTH_BYTES, ANSWER_WITHIN).await.ok()?;
    let after = node.env.clock.wall_ms();
    let theirs: u64 = answer.headers().get(CLOCK_HEADER)?.to_str().ok()?.parse().ok()?;
    Some(clock_finding(name, theirs, before, after))
}

/// `theirs` was read between `before` and `after`.
fn clock_finding(name: &str, theirs: u64, before: u64, after: u64) -> Finding {
    let ours = before.midpoint(after);
    let off = ours.abs_diff(theirs);
    let which = if theirs > ours { "behind" } else { "ahead of" };
    let what = format!("{off} ms {which} the clock of {name}, give or take {} ms", after.saturating_sub(before) / 2);
    let todo =
        "set the wrong one right: `timedatectl set-ntp true`, or chrony; a region far off the others takes no sends";
    if off > CLOCK_STOP_MS {
        Finding::failed("clock", what, todo)
    } else if off > CLOCK_ALARM_MS {
        Finding::warning("clock", what, todo)
    } else {
        Finding::ok("clock", what)
    }
}

/// What stands between this node and another one.
#[derive(Debug)]
enum Problem {
    /// This node's own files; told by the checks of these as well.
    Own(String),
    Unknown(String),
    Silent,
    Certificate(String),
    Refused(String),
    Broken(String),
}

impl Problem {
    fn told(self, who: &str, addr: &HostPort) -> Finding {
        let check = "nodes";
        match self {
            Problem::Own(why) => {
                Finding::warning(check, format!("{who} was not asked: {why}"), "correct that, then look again")
            }
            Problem::Unknown(why) => {
                let todo = "correct its name in the configuration or in DNS, or give an address";
                Finding::failed(check, format!("{who} is unknown: {why}"), todo)
            }
            Problem::Silent => {
                let todo = format!("start it; if it runs, let UDP to {addr} through firewalls on both sides");
                Finding::warning(check, format!("{who} does not answer"), todo)
            }
            Problem::Certificate(why) => {
                let todo =
                    "both nodes need certificates of an authority in each other's tls.node_ca, for the right names";
                Finding::failed(check, format!("{who}: the certificates are not accepted: {why}"), todo)
            }
            Problem::Refused(why) => {
                let todo = "run the same version, and give all regions the same deployment, receipt key and salt";
                Finding::failed(check, format!("{who} refuses this node: {why}"), todo)
            }
            Problem::Broken(why) => {
                Finding::warning(check, format!("{who} answers, but not as a node does: {why}"), "is it the node port?")
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "it is the machine's own time that is measured")]
async fn ask(node: &Node, addr: &HostPort, server_name: &str) -> Result<Duration, Problem> {
    let own = |why: anyhow::Error| Problem::Own(format!("{why:#}"));
    let (_, tls) = node.node_tls().map_err(own)?;
    // An edge may have no receipt key, and then can't tell its deployment.
    let deployment = node.receipt_key().ok().map(|(_, deployment, _)| deployment);
    if node.role == Role::Region && deployment.is_none() {
        return Err(Problem::Own("there is no receipt key to show".into()));
    }
    let ways = node.resolve(addr).await.map_err(|error| Problem::Unknown(format!("{error:#}")))?;
    let Some(to) = ways.first().copied() else { return Err(Problem::Unknown(format!("{addr} has no address"))) };
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let broken = |error: &dyn std::fmt::Display| Problem::Broken(error.to_string());
    let endpoint = client_endpoint(&node.env, any).map_err(|e| broken(&e))?;
    let config = client_config(&node.env, tls, &QuicParams::node()).map_err(|e| broken(&e))?;
    let started = Instant::now();
    let asked = async {
        let connection = endpoint
            .connect_with(config, to, server_name)
            .map_err(|e| broken(&e))?
            .await
            .map_err(connection_problem)?;
        let (mut send, recv) = connection.open_bi().await.map_err(connection_problem)?;
        let hello = LinkHello {
            version: NODE_VERSION,
            oldest: OLDEST,
            region_name: "tern doctor".into(),
            node: node.name.clone(),
            deployment: deployment.unwrap_or_default().to_vec().into(),
            ..LinkHello::default()
        };
        let frame = NodeFrame { body: Some(Body::LinkHello(hello)) };
        let written = write_one(&mut send, &frame).await;
        let answer = match written {
            Ok(()) => QuicFrames::new(recv, NODE_FRAME_BYTES).next::<NodeFrame>().await.map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        // In TLS 1.3 a client learns that its certificate was refused only after its own handshake is over.
        match (answer, connection.close_reason()) {
            (Ok(Some(NodeFrame { body: Some(Body::Refused(refused)) })), _) => Ok(refused.message),
            (_, Some(reason)) => Err(connection_problem(reason)),
            (Ok(_), None) => Err(Problem::Broken("it said something else than a refusal".into())),
            (Err(why), None) => Err(Problem::Broken(why)),
        }
    };
    let answer = tokio::time::timeout(ANSWER_WITHIN, asked).await;
    endpoint.close(0u8.into(), b"asked");
    let refusal = answer.unwrap_or(Err(Problem::Silent))?;
    let without_key = deployment.is_none() && refusal.starts_with("another deployment");
    if refusal.starts_with(NO_SUCH_REGION) || without_key {
        Ok(started.elapsed())
    } else {
        Err(Problem::Refused(refusal))
    }
}

fn connection_problem(error: quinn::ConnectionError) -> Problem {
    // RFC 9001, 4.8: 0x100 and above are TLS alerts.
    let is_tls = |code: u64| (0x100..0x200).contains(&code);
    match &error {
        quinn::ConnectionError::TimedOut => Problem::Silent,
        quinn::ConnectionError::TransportError(inner) if is_tls(inner.code.into()) => {
            Problem::Certificate(error.to_string())
        }
        quinn::ConnectionError::ConnectionClosed(inner) if is_tls(inner.error_code.into()) => {
            Problem::Certificate(error.to_string())
        }
        _ => Problem::Broken(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn a_clock_is_judged_by_what_regions_do_about_it() {
        let found = clock_finding("us", 1_000_000, 999_900, 1_000_000);
        assert_eq!((found.state, found.what.as_str()), (State::Ok, "50 ms behind the clock of us, give or take 50 ms"));
        let found = clock_finding("us", 1_000_000, 1_002_000, 1_002_010);
        assert!(found.state == State::Warning && found.what.contains("2005 ms ahead of"), "{found:?}");
        assert_eq!(clock_finding("us", 1_000_000, 900_000, 900_000).state, State::Failed);
    }
}
