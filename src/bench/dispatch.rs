//! Rankings on a core, and dispatch over kept-alive HTTPS beside a server that answers nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, StatusCode};
use rustix::time::{ClockId, clock_gettime};
use tern_core::ranking::bench_input;
use tern_core::store::BoxFut;
use tern_ipconf::api::{DispatchRequest, HealthView};
use tern_net::http::{HttpClient, HttpConnection};
use tokio::time::{Instant, sleep};

use super::load::{Crowd, Phase, each};
use super::readings::cpu_of;
use super::report::Goal;
use super::{Bench, Server, floor};

/// Edges among which a ranking chooses.
const EDGES: usize = 50;
/// Rankings between two looks at the clock.
const RANKINGS: u32 = 4096;
/// Processor time for which rankings are counted at most.
const RANK_FOR: Duration = Duration::from_secs(2);
/// What the issue asks for.
const RANKINGS_GOAL: f64 = 300_000.0;
/// Connections that ask, one request at a time each.
const ASKING: usize = 32;
/// Who asks: addresses of large access networks, so that each is looked up and placed.
const ADDRESSES: [&str; 8] =
    ["91.0.0.1", "2a01:4f8::1", "177.0.0.1", "2804:14c::1", "49.32.0.1", "2409:4000::1", "126.0.0.1", "2400:4050::1"];
/// Before requests are counted.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long they are counted at most.
const ASK_FOR: Duration = Duration::from_secs(4);
/// One request takes no longer, or the machine is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// An answer has a few hundred bytes per edge.
const ANSWER_BYTES: usize = 64 * 1024;
/// The region's own edge reports once a second.
const LISTED_WITHIN: Duration = Duration::from_secs(15);
/// A name in every leaf of a development deployment.
const SERVER_NAME: &str = "localhost";

/// See the module.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    bench.report.progress(&format!("dispatch: rankings over {EDGES} edges"));
    let time = RANK_FOR.min(Duration::from_secs(u64::from(bench.args.seconds)));
    let rate = tokio::task::block_in_place(|| rankings_per_second(time));
    let meaning = format!("rankings a second on one processor, {EDGES} edges, clients of 8 countries");
    bench.report.held("dispatch.rankings", rate, "/s", Goal::AtLeast(RANKINGS_GOAL), meaning);

    let server = bench.start_region().await?;
    let asked = asked(bench, &server).await;
    bench.stop_region().await;
    let (rate, cpu_us) = asked?;
    let server = bench.start_floor().await?;
    let empty = ask(bench, &server).await;
    bench.fleet.kill(floor::NAME).await;
    let (empty_rate, empty_cpu_us) = empty?;

    let report = &mut bench.report;
    let of = format!("over {ASKING} kept-alive HTTPS connections");
    report.add("dispatch.https.rate", rate, "/s", format!("dispatches a second {of}, one edge listed, real GeoIP"));
    report.add("dispatch.https.cpu", cpu_us, "us", "server processor time per dispatch");
    report.add(
        "dispatch.empty.rate",
        empty_rate,
        "/s",
        format!("requests a second {of} to a handler that answers nothing"),
    );
    report.add("dispatch.empty.cpu", empty_cpu_us, "us", "server processor time per such request");
    report.add(
        "dispatch.over_empty",
        cpu_us / empty_cpu_us.max(0.01),
        "x",
        "processor time of a dispatch over that of the empty answer",
    );
    Ok(())
}

/// By the time this thread had a processor: others share the machine.
fn rankings_per_second(time: Duration) -> f64 {
    let mut input = bench_input(EDGES);
    let used = || {
        let t = clock_gettime(ClockId::ThreadCPUTime);
        t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
    };
    let (began, mut count) = (used(), 0.0);
    loop {
        for _ in 0..RANKINGS {
            std::hint::black_box(input.rank_once());
        }
        count += f64::from(RANKINGS);
        let took = used() - began;
        if took >= time.as_secs_f64() {
            return count / took;
        }
    }
}

async fn asked(bench: &mut Bench, server: &Server) -> Result<(f64, f64)> {
    let mut http = connect(bench, server).await?;
    let until = Instant::now() + LISTED_WITHIN;
    loop {
        let request = Request::get("/v1/health").body(Full::default())?;
        let answer = http.request(request, ANSWER_BYTES, ANSWER_WITHIN).await?;
        let health: HealthView = serde_json::from_slice(answer.body()).context("dispatch does not say its health")?;
        if health.edges_listed > 0 {
            return ask(bench, server).await;
        }
        if Instant::now() > until {
            bail!("dispatch lists no edge after {} s", LISTED_WITHIN.as_secs());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn connect(bench: &Bench, server: &Server) -> Result<HttpConnection> {
    let at = server.ready.dispatch.context("the server has no dispatch port")?;
    let client = HttpClient::new(bench.env.clone(), Some(bench.client_tls(b"http/1.1")?));
    Ok(client.connect(at, SERVER_NAME, ANSWER_WITHIN).await?)
}

/// Requests a second, and server microseconds per request.
async fn ask(bench: &mut Bench, server: &Server) -> Result<(f64, f64)> {
    bench.report.progress(&format!("dispatch: {ASKING} HTTPS connections to {}", server.ready.ready));
    let at = server.ready.dispatch.context("the server has no dispatch port")?;
    let client = HttpClient::new(bench.env.clone(), Some(bench.client_tls(b"http/1.1")?));
    let connections = each(&bench.env, ASKING, ASKING, move |_| {
        let client = client.clone();
        async move { Ok(client.connect(at, SERVER_NAME, ANSWER_WITHIN).await?) }
    });
    let phase = Arc::new(Phase::default());
    let mut clients: Vec<BoxFut<'static, Result<()>>> = Vec::new();
    for (index, connection) in connections.await?.into_iter().enumerate() {
        let as_address = Some(ADDRESSES[index % ADDRESSES.len()].parse()?);
        let body = Bytes::from(serde_json::to_vec(&DispatchRequest { as_address, ..DispatchRequest::default() })?);
        clients.push(Box::pin(keep_asking(connection, body, phase.clone())));
    }
    let mut crowd = Crowd::start(&bench.env, clients);
    let time = ASK_FOR.min(Duration::from_secs(u64::from(bench.args.seconds)));
    let measured = async {
        sleep(WARM_UP).await;
        let (count, cpu, at) = (phase.counts().0, cpu_of(server.pid)?, bench.env.clock.now());
        sleep(time).await;
        let took = bench.env.clock.now().saturating_sub(at).as_secs_f64();
        let cpu = cpu_of(server.pid)?.saturating_sub(cpu).as_secs_f64();
        let answered = (phase.counts().0 - count) as f64;
        Ok::<_, anyhow::Error>((answered / took, cpu * 1e6 / answered.max(1.0)))
    };
    let measured = tokio::select! {
        biased;
        error = crowd.failure() => bail!(error),
        measured = measured => measured?,
    };
    phase.stop_sending();
    crowd.end(ANSWER_WITHIN).await?;
    Ok(measured)
}

async fn keep_asking(mut connection: HttpConnection, body: Bytes, phase: Arc<Phase>) -> Result<()> {
    let sending = phase.sending();
    while *sending.borrow() {
        let request = Request::post("/v1/dispatch").header(CONTENT_TYPE, "application/json");
        let request = request.body(Full::new(body.clone()))?;
        let answer = connection.request(request, ANSWER_BYTES, ANSWER_WITHIN).await?;
        if answer.status() != StatusCode::OK {
            bail!("dispatch answered {}: {}", answer.status(), String::from_utf8_lossy(answer.body()));
        }
        phase.acked.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
