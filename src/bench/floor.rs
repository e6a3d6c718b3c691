//! What the same traffic costs without tern: the floor beside every figure.
//!
//! `tern bench-floor`, hidden, is a process with two servers: a QUIC echo, which sends each stretch of a
//! stream back as it came, with the same transport parameters and certificates as an edge; and an HTTPS server
//! that answers nothing, on the same loop as dispatch. The echo relays nothing, stores nothing and looks into
//! nothing; it is less than any messaging server over quinn can do.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use tern_core::store::BoxFut;
use tern_core::wire::ALPN_CLIENT;
use tern_net::env::Env;
use tern_net::frames::CHUNK_BYTES;
use tern_net::http::{Handler, HttpLimits, read_body, serve};
use tern_net::quic::{QuicParams, server_endpoint};
use tokio::time::sleep;

use crate::cli::{Global, RoleArgs};
use crate::config::scope::Role;
use crate::exit::Failure;
use crate::fleet::Ready;
use crate::logging;
use crate::node::Node;
use crate::stop::Stop;

use super::Bench;
use super::load::{Crowd, Phase, each};
use super::messages::warm_up;
use super::readings::cpu_of;
use super::session::Dialer;

/// Name of the process in the fleet.
pub const NAME: &str = "floor";
/// Bytes of an echoed message: a Send with a body of 128 bytes, as it is on the wire.
const MESSAGE_BYTES: usize = 166;
/// How long an echo phase counts at most.
const MEASURE: Duration = Duration::from_secs(3);
/// Echoes in flight when a phase ends come back within this time.
const DRAIN: Duration = Duration::from_secs(5);
/// Connects under way at once.
const AT_ONCE: usize = 32;
/// Bytes of a request that the empty handler takes.
const REQUEST_BYTES: usize = 64 * 1024;

/// Runs both servers until told to stop.
pub fn run(global: &Global, args: &RoleArgs) -> Result<(), Failure> {
    let settings = crate::settings(global, &[])?;
    logging::start(&settings.log_level, settings.log_json)?;
    crate::block_on(async {
        let mut stop = Stop::watch(args.stop_with_stdin)?;
        let node = Node::new(settings, Role::Tools)?;
        let any = ([127, 0, 0, 1], 0).into();
        let endpoint = server_endpoint(&node.env, any, node.public_tls(&[ALPN_CLIENT])?, &QuicParams::edge())
            .context("the echo can't be served")?;
        let client = endpoint.local_addr().context("the echo has no address")?;
        node.env.tasks.spawn(accept(node.env.clone(), endpoint));
        let acceptor = node.env.net.listen(any).await.context("the empty handler can't be served")?;
        let dispatch = acceptor.local_addr();
        let tls = node.public_tls(&[b"http/1.1"])?;
        node.env.tasks.spawn(serve(node.env.clone(), acceptor, Some(tls), HttpLimits::default(), empty()));
        let ready =
            Ready { ready: NAME.to_owned(), client: Some(client), dispatch: Some(dispatch), ..Ready::default() };
        ready.print(global.json);
        stop.requested().await;
        Ok(())
    })
}

async fn accept(env: Env, endpoint: quinn::Endpoint) {
    let tasks = env.tasks.clone();
    while let Some(incoming) = endpoint.accept().await {
        env.tasks.spawn({
            let tasks = tasks.clone();
            async move {
                let Ok(connection) = incoming.await else { return };
                while let Ok((send, recv)) = connection.accept_bi().await {
                    tasks.spawn(send_back(send, recv));
                }
            }
        });
    }
}

async fn send_back(mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
    while let Ok(Some(chunk)) = recv.read_chunk(CHUNK_BYTES, true).await {
        if send.write_chunk(chunk.bytes).await.is_err() {
            return;
        }
    }
}

/// Reads the request, as any handler must, and answers nothing.
fn empty() -> Handler {
    Arc::new(|_, request| {
        Box::pin(async move {
            let _ignored = read_body(request.into_body(), REQUEST_BYTES).await;
            Response::new(Full::new(Bytes::new()))
        })
    })
}

/// What the echo cost.
#[derive(Clone, Copy, Debug)]
pub struct Echoed {
    /// Server processor time per echoed message.
    pub cpu_us: f64,
}

/// Echoes over so many connections, with so many messages in flight on each, one phase per number.
pub async fn echo(bench: &mut Bench, connections: usize, in_flight: &[usize]) -> Result<Vec<Echoed>> {
    let server = bench.start_floor().await?;
    let dialer = Dialer::new(bench, &server)?;
    let time = MEASURE.min(Duration::from_secs(u64::from(bench.args.seconds)));
    let mut results = Vec::new();
    for &most in in_flight {
        bench.report.progress(&format!("floor: quinn echo, {connections} connections, {most} in flight"));
        let dialing = dialer.clone();
        let opened = each(&bench.env, connections, AT_ONCE, move |i| {
            let dialer = dialing.clone();
            async move {
                let connection = dialer.quic_connection(i).await?;
                Ok((connection.open_bi().await?, connection))
            }
        });
        let phase = Arc::new(Phase::default());
        let clients = opened.await?.into_iter().map(|((send, recv), connection)| {
            Box::pin(client(connection, send, recv, most, phase.clone())) as BoxFut<'static, _>
        });
        let mut crowd = Crowd::start(&bench.env, clients.collect());
        let measured = async {
            sleep(warm_up(time)).await;
            let (count, cpu, at) = (phase.counts().0, cpu_of(server.pid)?, bench.env.clock.now());
            sleep(time).await;
            let took = bench.env.clock.now().saturating_sub(at).as_secs_f64();
            let cpu = cpu_of(server.pid)?.saturating_sub(cpu).as_secs_f64();
            let echoed = (phase.counts().0 - count) as f64;
            Ok::<_, anyhow::Error>((echoed / took, cpu * 1e6 / echoed.max(1.0)))
        };
        let (rate, cpu_us) = tokio::select! {
            biased;
            error = crowd.failure() => bail!(error),
            measured = measured => measured?,
        };
        phase.stop_sending();
        crowd.end(DRAIN).await.context("waiting for the last echoes")?;
        let key = |name: &str| format!("messages.echo.{most}.{name}");
        bench.report.add(
            key("rate"),
            rate,
            "/s",
            format!("bare quinn echo of {MESSAGE_BYTES} bytes, {most} in flight: the floor"),
        );
        bench.report.add(key("cpu"), cpu_us, "us", "its server processor time per message");
        results.push(Echoed { cpu_us });
    }
    bench.fleet.kill(NAME).await;
    Ok(results)
}

async fn client(
    connection: quinn::Connection,
    mut send: quinn::SendStream,
    mut recv: quinn::RecvStream,
    most: usize,
    phase: Arc<Phase>,
) -> Result<()> {
    let batch = vec![0x5a; MESSAGE_BYTES * most];
    let sending = phase.sending();
    send.write_all(&batch).await?;
    let (mut waiting, mut part) = (most, 0);
    while waiting > 0 {
        let chunk = recv.read_chunk(CHUNK_BYTES, true).await?.context("the echo ended a stream")?;
        part += chunk.bytes.len();
        let back = part / MESSAGE_BYTES;
        part %= MESSAGE_BYTES;
        phase.acked.fetch_add(back as u64, std::sync::atomic::Ordering::Relaxed);
        if *sending.borrow() {
            send.write_all(&batch[..back * MESSAGE_BYTES]).await?;
        } else {
            waiting = waiting.saturating_sub(back);
        }
    }
    connection.close(0u32.into(), b"");
    Ok(())
}
