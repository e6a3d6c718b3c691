//! The way in for a client somewhere else: what dispatch would answer it, and whether the edges of that answer can be
//! reached from here, by each transport.
//!
//! The running process is asked by its admin address, so the answer is the one that a client would get now, and nothing is
//! counted or learned from the question. Each edge is then dialled as a client dials it, up to a Hello without a token: an
//! edge that refuses that for its token would have welcomed one with a good one. It counts as a failed handshake there.

use std::fs;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::{Request, StatusCode};
use rustls::pki_types::ServerName;
use tern_core::codes::Code;
use tern_core::limits::FRAME_BYTES;
use tern_core::ranking::Country;
use tern_core::wire::codec::{self, FrameReader};
use tern_core::wire::v1::error::Retry;
use tern_core::wire::v1::{self, frame::Body};
use tern_core::wire::{ALPN_CLIENT, VERSION};
use tern_ipconf::api::{DispatchAnswer, EdgeView};
use tern_net::env::{Env, Stream};
use tern_net::frames::{FrameWriter, Frames, QuicFrames};
use tern_net::http::{ALPN_HTTP, HttpClient};
use tern_net::quic::{QuicParams, client_config, client_endpoint};
use tern_net::tls::client_tls;
use tern_net::websocket;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Finding, Scene, admin_of};
use crate::admin::FROM;

/// From the first packet to the answer: what a client waits for at most, and a lost packet.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Dispatch is asked here: it may have to look through all of the GeoIP data for a country.
const DISPATCH_WITHIN: Duration = Duration::from_secs(30);
/// Dispatch's answer, with explanations.
const ANSWER_BYTES: usize = 256 * 1024;
/// The transports, as dispatch names them.
const TRANSPORTS: [&str; 4] = ["quic", "tcp", "ws", "poll"];

/// Where a client may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// At this address.
    Address(IpAddr),
    /// In this country, at an address that the GeoIP data place there.
    Country(Country),
}

impl FromStr for Whence {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let country = || Country::new(text).map(Self::Country);
        let what = || format!("{text:?} is neither an IP address nor a country of two letters, such as DE");
        text.parse().map(Self::Address).ok().or_else(country).ok_or_else(what)
    }
}

impl std::fmt::Display for Whence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Country(country) => country.fmt(f),
        }
    }
}

pub(super) async fn check(scene: &Scene, from: &[Whence], ca: Option<&Path>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut edges: Vec<EdgeView> = Vec::new();
    for from in from {
        match ask(scene, *from).await {
            Ok(answer) => {
                findings.push(ranking(*from, &answer));
                for edge in answer.edges {
                    if !edges.iter().any(|known| known.id == edge.id) {
                        edges.push(edge);
                    }
                }
            }
            Err(why) => findings.push(why),
        }
    }
    if edges.is_empty() {
        return findings;
    }
    let own = scene.settings.data.join("pki/public-ca.pem");
    let ca = ca.unwrap_or(&own);
    let trust = match fs::read(ca) {
        Ok(pem) => pem,
        Err(cause) => {
            let what = format!(
                "no edge was dialled: the authority of their certificates can't be read from {}: {cause}",
                ca.display()
            );
            findings.push(Finding::warning("edge", what, "name the file that clients trust: --ca FILE"));
            return findings;
        }
    };
    for edge in &edges {
        for at in &edge.addresses {
            findings.extend(dial(&scene.env, &trust, edge, *at).await);
        }
    }
    findings
}

/// What the running dispatch would answer.
async fn ask(scene: &Scene, from: Whence) -> Result<DispatchAnswer, Finding> {
    let check = "dispatch";
    let failed = |what: String, todo: &str| Err(Finding::failed(check, what, todo));
    let at = admin_of(&scene.settings);
    let Ok(request) = Request::get(format!("{FROM}{from}")).body(Full::<Bytes>::default()) else {
        return failed(format!("{from} can't be asked for"), "give an address or a country of two letters");
    };
    let client = HttpClient::new(scene.env.clone(), None);
    let answer = match client.request(at, "localhost", request, ANSWER_BYTES, DISPATCH_WITHIN).await {
        Ok(answer) => answer,
        Err(error) => {
            let todo = "ask where a region or ipconf of this configuration runs, or set listen.admin to its address";
            return failed(format!("nobody answers at the admin address {at}: {error}"), todo);
        }
    };
    let words = || String::from_utf8_lossy(answer.body()).trim().to_owned();
    match answer.status() {
        StatusCode::OK => match serde_json::from_slice(answer.body()) {
            Ok(answer) => Ok(answer),
            Err(error) => failed(format!("{at} answers something else: {error}"), "run the same version on both sides"),
        },
        StatusCode::SERVICE_UNAVAILABLE => {
            let todo =
                "start edges, and see that their reports arrive: gossip.seeds, gossip.key, and UDP between the nodes";
            failed(format!("{from}: {}", words()), todo)
        }
        StatusCode::BAD_REQUEST => failed(format!("{from}: {}", words()), "name an address instead"),
        status => failed(
            format!("{from}: {at} answers {status}: {}", words()),
            "ask where a region or ipconf of this version runs: edges have no dispatch",
        ),
    }
}

fn ranking(from: Whence, answer: &DispatchAnswer) -> Finding {
    let place = match (&answer.client.country, &answer.client.unplaced) {
        (Some(country), _) => country.clone(),
        (None, Some(why)) => format!("not placed: {why}"),
        (None, None) => "not placed".to_owned(),
    };
    let of = |edge: &EdgeView| {
        let why = edge.explain.as_ref().map_or_else(String::new, |why| format!(" ({})", why.reason));
        format!("{}. {}{why}", edge.rank, edge.id)
    };
    let edges: Vec<String> = answer.edges.iter().map(of).collect();
    let not: Vec<String> = answer.unlisted.iter().map(|u| format!("{} ({})", u.id, u.reason)).collect();
    let not = if not.is_empty() { String::new() } else { format!("; not listed: {}", not.join(", ")) };
    let who = match from {
        Whence::Address(_) => format!("{from} ({place})"),
        Whence::Country(_) => format!("{} ({place})", answer.client.address),
    };
    let what = format!("{who} -> {}{not}", edges.join(", "));
    if answer.client.unplaced.is_some() {
        let todo =
            "it gets the edges of dispatch's own region first; give a fuller database by dispatch.geoip if it matters";
        return Finding::warning("dispatch", what, todo);
    }
    Finding::ok("dispatch", what)
}

/// Why an edge is not reached.
#[derive(Debug, PartialEq, Eq)]
enum Problem {
    /// Nothing came back.
    Silent,
    /// Nobody listens.
    Refused(String),
    Certificate(String),
    /// Somebody else is there, or somebody between.
    Other(String),
    /// It is the edge, and it takes nobody now.
    Closed(String),
}

/// One address by all transports at once, as clients race them.
async fn dial(env: &Env, trust: &[u8], edge: &EdgeView, at: SocketAddr) -> Vec<Finding> {
    let dialer = Dialer { env, trust, name: &edge.tls_name, at };
    let all = tokio::join!(timed(dialer.quic()), timed(dialer.tcp()), timed(dialer.websocket()), timed(dialer.poll()));
    let results = [all.0, all.1, all.2, all.3];
    judge(edge, at, &results)
}

#[expect(clippy::disallowed_methods, reason = "it is the machine's own time that is measured")]
async fn timed(dialling: impl Future<Output = Result<(), Problem>>) -> Result<Duration, Problem> {
    let started = Instant::now();
    let result = tokio::time::timeout(ANSWER_WITHIN, dialling).await.unwrap_or(Err(Problem::Silent));
    result.map(|()| started.elapsed())
}

/// One line for what works, and one for each transport that does not.
fn judge(edge: &EdgeView, at: SocketAddr, results: &[Result<Duration, Problem>; 4]) -> Vec<Finding> {
    let who = format!("{} at {at}", edge.id);
    let offers = |name: &str| {
        edge.transports.is_empty()
            || serde_json::to_value(&edge.transports)
                .is_ok_and(|all| all.as_array().is_some_and(|all| all.iter().any(|t| t == name)))
    };
    let tried: Vec<_> = TRANSPORTS.into_iter().zip(results).filter(|(name, _)| offers(name)).collect();
    let works: Vec<String> = tried
        .iter()
        .filter_map(|(name, result)| Some(format!("{name} {} ms", result.as_ref().ok()?.as_millis())))
        .collect();
    let mut findings = Vec::new();
    if !works.is_empty() {
        findings.push(Finding::ok("edge", format!("{who} answers by {}", works.join(", "))));
    }
    for (name, result) in tried {
        let Err(problem) = result else { continue };
        let (what, todo) = advice(&who, &edge.tls_name, name, problem, works.is_empty());
        // Clients get in by what is left.
        let make = if works.is_empty() { Finding::failed } else { Finding::warning };
        findings.push(make("edge", what, todo));
    }
    findings
}

fn advice(who: &str, name: &str, transport: &str, problem: &Problem, alone: bool) -> (String, String) {
    let (protocol, web) = (if transport == "quic" { "UDP" } else { "TCP" }, matches!(transport, "ws" | "poll"));
    let what = |words: &str| format!("{who} by {transport}: {words}");
    match problem {
        Problem::Silent if alone => (
            what("no answer"),
            format!("start it, see that its `advertise` is this address, and let {protocol} to this port through firewalls"),
        ),
        Problem::Silent => (
            what("no answer"),
            format!("let {protocol} to this port through firewalls and load balancers; clients lose time until they use another way"),
        ),
        Problem::Refused(why) => (
            what(&format!("nobody listens there: {why}")),
            format!("start the edge, and see that its `advertise` and listen.client are of this address ({protocol})"),
        ),
        Problem::Certificate(why) => (
            what(&format!("its certificate is not accepted: {why}")),
            format!("it must be for {name:?} (dispatch.edge_tls_name), be valid now, and be of the authority that clients trust (--ca)"),
        ),
        Problem::Closed(why) => (what(&format!("it takes nobody now: {why}")), "see its log and its load".to_owned()),
        Problem::Other(why) if web => (
            what(&format!("the answer is no edge's: {why}")),
            "something between speaks for it: let a proxy or load balancer pass TCP as it is, or upgrades and POST to /v1/".to_owned(),
        ),
        Problem::Other(why) => (
            what(&format!("the answer is no edge's: {why}")),
            "is this the port of its clients, and is TLS ended nowhere before it? ALPN must be tern/1".to_owned(),
        ),
    }
}

struct Dialer<'a> {
    env: &'a Env,
    trust: &'a [u8],
    name: &'a str,
    at: SocketAddr,
}

fn other(error: impl std::fmt::Display) -> Problem {
    Problem::Other(error.to_string())
}

/// A Hello that no edge welcomes.
fn hello() -> v1::Frame {
    let hello = v1::Hello { versions: vec![VERSION], install: "tern-doctor".to_owned(), ..v1::Hello::default() };
    v1::Frame::new(1, Body::Hello(hello))
}

/// Whether this is how an edge refuses a Hello for its token alone.
fn verdict(frame: Option<v1::Frame>) -> Result<(), Problem> {
    match frame.and_then(|frame| frame.body) {
        Some(Body::Error(error)) if error.retry == Retry::NewToken as i32 => Ok(()),
        Some(Body::Error(error)) => {
            let name = Code::from_u32(error.code).map_or("refused", Code::name);
            Err(Problem::Closed(format!("{name}: {}", error.message)))
        }
        Some(_) => Err(Problem::Other("it says something else than a refusal".to_owned())),
        None => Err(Problem::Other("it ends the connection without a word".to_owned())),
    }
}

impl Dialer<'_> {
    fn config(&self, alpn: &[&[u8]]) -> Result<Arc<rustls::ClientConfig>, Problem> {
        client_tls(self.trust, alpn, self.env.clock.clone()).map_err(|e| Problem::Certificate(e.to_string()))
    }

    async fn tls(&self, alpn: &[&[u8]]) -> Result<TlsStream<Box<dyn Stream>>, Problem> {
        let name = ServerName::try_from(self.name.to_owned()).map_err(|e| Problem::Certificate(e.to_string()))?;
        let config = self.config(alpn)?;
        let stream = self.env.net.connect(self.at).await.map_err(|e| match e.kind() {
            std::io::ErrorKind::TimedOut => Problem::Silent,
            _ => Problem::Refused(e.to_string()),
        })?;
        TlsConnector::from(config).connect(name, stream).await.map_err(|e| {
            let inner = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match inner {
                Some(rustls::Error::InvalidCertificate(_)) => Problem::Certificate(e.to_string()),
                _ => other(e),
            }
        })
    }

    async fn quic(&self) -> Result<(), Problem> {
        let any: SocketAddr = if self.at.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let endpoint = client_endpoint(self.env, any).map_err(other)?;
        let config = client_config(self.env, self.config(&[ALPN_CLIENT])?, &QuicParams::client()).map_err(other)?;
        let connection =
            endpoint.connect_with(config, self.at, self.name).map_err(other)?.await.map_err(|error| match &error {
                quinn::ConnectionError::TimedOut => Problem::Silent,
                // RFC 9001, 4.8: a TLS alert of this side; 42 to 48 are about certificates (RFC 8446, 6).
                quinn::ConnectionError::TransportError(inner) if (0x12a..=0x130).contains(&u64::from(inner.code)) => {
                    Problem::Certificate(error.to_string())
                }
                _ => other(error),
            })?;
        let (mut send, recv) = connection.open_bi().await.map_err(other)?;
        let mut bytes = BytesMut::new();
        codec::put(&hello(), &mut bytes);
        send.write_all(&bytes).await.map_err(other)?;
        let answer = QuicFrames::new(recv, FRAME_BYTES).next::<v1::Frame>().await;
        let closed = connection.close_reason();
        endpoint.close(0u8.into(), b"asked");
        match (answer, closed) {
            // An edge says it by closing, too: whichever comes first.
            (_, Some(quinn::ConnectionError::ApplicationClosed(close))) => {
                let code = u32::try_from(close.error_code.into_inner()).ok().and_then(Code::from_u32);
                match code {
                    Some(code) if code.retry() == Retry::NewToken => Ok(()),
                    Some(code) => Err(Problem::Closed(code.name().to_owned())),
                    None => Err(other(format!("it is closed by code {}", close.error_code))),
                }
            }
            (answer, _) => verdict(answer.map_err(other)?),
        }
    }

    async fn tcp(&self) -> Result<(), Problem> {
        let mut stream = self.tls(&[ALPN_CLIENT]).await?;
        let mut bytes = BytesMut::new();
        codec::put(&hello(), &mut bytes);
        stream.write_all(&bytes).await.map_err(other)?;
        stream.flush().await.map_err(other)?;
        verdict(Frames::new(stream, FRAME_BYTES).next().await.map_err(other)?)
    }

    async fn websocket(&self) -> Result<(), Problem> {
        let stream = self.tls(&[b"http/1.1"]).await?;
        let mut socket = websocket::open(stream, self.name, "/v1/ws", self.env.rng.clone()).await.map_err(other)?;
        let (mut writer, mut reader) = (FrameWriter::new(), FrameReader::new(FRAME_BYTES));
        writer.put(&hello());
        poll_fn(|cx| socket.poll_write(&mut writer, cx)).await.map_err(other)?;
        loop {
            if let Some(frame) = reader.next::<v1::Frame>().map_err(other)? {
                return verdict(Some(frame));
            }
            if poll_fn(|cx| socket.poll_fill(&mut reader, cx)).await.map_err(other)? == 0 {
                return verdict(None);
            }
        }
    }

    async fn poll(&self) -> Result<(), Problem> {
        // For a certificate that is wrong, which the client of HTTP tells in words alone.
        drop(self.tls(&ALPN_HTTP).await?);
        let mut bytes = BytesMut::new();
        codec::put(&hello(), &mut bytes);
        let request = Request::post("/v1/poll").body(Full::new(bytes.freeze())).map_err(other)?;
        let client = HttpClient::new(self.env.clone(), Some(self.config(&ALPN_HTTP)?));
        let answer = client.request(self.at, self.name, request, FRAME_BYTES, ANSWER_WITHIN).await.map_err(other)?;
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            return Err(Problem::Closed(String::from_utf8_lossy(answer.body()).into_owned()));
        }
        if answer.status() != StatusCode::OK {
            return Err(other(format!("status {}", answer.status())));
        }
        let mut reader = FrameReader::new(FRAME_BYTES);
        reader.extend(answer.body());
        verdict(reader.next().map_err(other)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use tern_ipconf::api::{TimeoutsView, Transport};

    fn edge(transports: &[Transport]) -> EdgeView {
        EdgeView {
            id: "eu-e1".into(),
            region: "eu".into(),
            tls_name: "eu-e1.eu.tern.internal".into(),
            addresses: vec!["192.0.2.1:443".parse().unwrap()],
            transports: transports.to_vec(),
            timeouts_ms: TimeoutsView { quic: 1, tcp: 1 },
            rank: 1,
            explain: None,
        }
    }

    #[test]
    fn a_place_is_an_address_or_a_country() {
        assert_eq!("2001:db8::1".parse(), Ok(Whence::Address("2001:db8::1".parse().unwrap())));
        assert_eq!("de".parse(), Ok(Whence::Country(Country::new("DE").unwrap())));
        for text in ["", "germany", "192.0.2", "192.0.2.0/24"] {
            assert!(text.parse::<Whence>().unwrap_err().contains("two letters"), "{text}");
        }
    }

    #[test]
    fn each_failure_has_its_advice_and_its_weight() {
        let all = [Transport::Quic, Transport::Tcp, Transport::Ws, Transport::Poll];
        let at = "192.0.2.1:443".parse().unwrap();
        let ok = || Ok(Duration::from_millis(12));
        let found = judge(&edge(&all), at, &[Err(Problem::Silent), ok(), ok(), Err(other("status 404"))]);
        assert_eq!(found.iter().map(|f| f.state).collect::<Vec<_>>(), [State::Ok, State::Warning, State::Warning]);
        assert_eq!(found[0].what, "eu-e1 at 192.0.2.1:443 answers by tcp 12 ms, ws 12 ms");
        assert!(found[1].what.contains("by quic: no answer") && found[1].todo.contains("UDP"), "{:?}", found[1]);
        assert!(found[2].what.contains("status 404") && found[2].todo.contains("load balancer"), "{:?}", found[2]);
        let dead = [(); 4].map(|()| Err(Problem::Refused("refused".into())));
        let found = judge(&edge(&all), at, &dead);
        assert!(found.len() == 4 && found.iter().all(|f| f.state == State::Failed && f.todo.contains("advertise")));
        // What it does not offer is no fault.
        let certificate = || Err(Problem::Certificate("expired".into()));
        let found = judge(&edge(&all[1..2]), at, &[Err(Problem::Silent), certificate(), certificate(), certificate()]);
        assert!(found.len() == 1 && found[0].todo.contains("eu-e1.eu.tern.internal"), "{found:?}");
    }

    #[test]
    fn only_a_refusal_for_the_token_is_a_good_sign() {
        let error = |code| Some(v1::Frame::new(1, Body::Error(tern_core::codes::Refusal::new(code, "no").to_wire())));
        assert_eq!(verdict(error(Code::TokenInvalid)), Ok(()));
        assert_eq!(verdict(error(Code::Draining)), Err(Problem::Closed("draining: no".into())));
        assert!(matches!(verdict(Some(hello())), Err(Problem::Other(_))));
        assert!(matches!(verdict(None), Err(Problem::Other(_))));
    }
}
