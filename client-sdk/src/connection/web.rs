//! Connections that look like the web to those on the way: a WebSocket, and polls, over TCP or over QUIC.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::{Request, Response, StatusCode};
use tern_core::client::{Failure, Transport};
use tern_core::limits::FRAME_BYTES;
use tern_core::wire::codec::{self, FrameReader};
use tern_core::wire::compact::Writer;
use tern_core::wire::{Lane, v1};
use tern_net::addresses::Addresses;
use tern_net::frames::FrameWriter;
use tern_net::http::{HttpClient, HttpConnection, HttpError};
use tern_net::http3::Http3Connection;
use tern_net::quic::QuicParams;
use tern_net::websocket::{self, WebSocket};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Inbox, closing, dial, encode, ended, network, tls_to};
use crate::driver::Tls;
use crate::limits::{POLL_ANSWER_BYTES, POLL_BYTES, POLL_PAUSE, POLL_PAUSE_MAX, POLL_TRIES, POLL_WAIT, POLL_WITHIN};
use crate::shared::{ConnectJob, Outgoing, Shared};

/// What was read, as far as it is whole.
fn deliver(shared: &Arc<Shared>, job: &ConnectJob, reader: &mut FrameReader, inbox: &mut Inbox) -> Result<(), Failure> {
    if let Some(first) = reader.next::<v1::Frame>().map_err(network)? {
        let batch = inbox.read(first, || reader.next::<v1::Frame>().map_err(network))?;
        shared.frames(job.conn, &job.out, batch);
    }
    Ok(())
}

/// Appends what is to be sent, control first.
fn take(out: &Outgoing, writer: &mut Writer, into: &mut BytesMut) {
    for lane in Lane::ALL {
        out.take(lane).iter().for_each(|frame| encode(writer, frame, into));
    }
}

pub(super) async fn socket(shared: &Arc<Shared>, tls: &Tls, job: &ConnectJob, to: &Addresses) -> Result<(), Failure> {
    let host = &job.candidate.server_name;
    let stream = tls_to(shared, &tls.websocket, job, to).await?;
    let mut socket = websocket::open(stream, host, "/v1/ws", shared.env.rng.clone()).await.map_err(network)?;
    let mut out = FrameWriter::new();
    codec::put(&*job.hello.0, out.buffer());
    tokio::select! {
        biased;
        failure = talk(shared, job, &mut socket, &mut out) => return Err(failure),
        _ = closing(&job.out) => {}
    }
    // The other side may be gone already.
    drop(poll_fn(|cx| socket.poll_write(&mut out, cx)).await);
    drop(socket.close(1000, "").await);
    Ok(())
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Arc<Shared>,
    job: &ConnectJob,
    socket: &mut WebSocket<S>,
    out: &mut FrameWriter,
) -> Failure {
    let (mut reader, mut inbox, mut writer) = (FrameReader::new(FRAME_BYTES), Inbox::default(), Writer::default());
    loop {
        let moved = poll_fn(|cx| {
            if let std::task::Poll::Ready(Err(e)) = socket.poll_write(out, cx) {
                return std::task::Poll::Ready(Err(e));
            }
            socket.poll_fill(&mut reader, cx)
        });
        tokio::select! {
            biased;
            read = moved => match read {
                Ok(0) => return network("the edge closed the connection"),
                Ok(_) => if let Err(failure) = deliver(shared, job, &mut reader, &mut inbox) {
                    return failure;
                },
                Err(e) => return network(e),
            },
            () = job.out.more[0].notified() => take(&job.out, &mut writer, out.buffer()),
        }
    }
}

/// How the requests of a session travel, and where to.
struct Way<'a> {
    shared: &'a Arc<Shared>,
    tls: &'a Tls,
    job: &'a ConnectJob,
    to: SocketAddr,
    /// The connection that requests over HTTP/3 share, as long as it is good.
    common: Mutex<Option<(Http3Connection, quinn::Endpoint)>>,
}

/// A connection that carries requests.
enum Carrier {
    /// One at a time.
    Tcp(HttpConnection),
    /// All of them. Its endpoint is its own.
    Quic { connection: Http3Connection, _endpoint: quinn::Endpoint },
}

impl Carrier {
    async fn request(&mut self, request: Request<Full<Bytes>>, within: Duration) -> Result<Response<Bytes>, HttpError> {
        match self {
            Self::Tcp(connection) => connection.request(request, POLL_ANSWER_BYTES, within).await,
            Self::Quic { connection, .. } => connection.request(request, POLL_ANSWER_BYTES, within).await,
        }
    }
}

impl<'a> Way<'a> {
    /// With the first connection, to the first address that is good.
    async fn find(
        shared: &'a Arc<Shared>,
        tls: &'a Tls,
        job: &'a ConnectJob,
        to: &Addresses,
    ) -> Result<(Self, Carrier), Failure> {
        let way = |to| Self { shared, tls, job, to, common: Mutex::new(None) };
        let reach = |to| async move {
            let way = way(to);
            let carrier = way.connect().await?;
            Ok((way, carrier))
        };
        to.race(reach).await
    }

    fn kept(&self) -> MutexGuard<'_, Option<(Http3Connection, quinn::Endpoint)>> {
        self.common.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<Carrier, Failure> {
        let host = &self.job.candidate.server_name;
        if self.job.transport != Transport::Http3 {
            let http = HttpClient::new(self.shared.env.clone(), Some(self.tls.http.clone()));
            return Ok(Carrier::Tcp(http.connect(self.to, host, POLL_WITHIN).await.map_err(network)?));
        }
        if let Some((connection, _endpoint)) = self.kept().clone() {
            return Ok(Carrier::Quic { connection, _endpoint });
        }
        let dialing = async {
            let params = QuicParams::client_http3();
            let (endpoint, connecting) = dial(self.shared, self.job, self.to, self.tls.http3.clone(), params)?;
            let connection = connecting.await.map_err(|e| ended(&e))?;
            let rtt = connection.rtt();
            // Where the store fails nothing is connected to anyway, and it was told.
            let _told = self.shared.act(|machine, _| machine.path_measured(self.job.conn, rtt));
            let tasks = self.shared.env.tasks.clone();
            Ok((Http3Connection::new(tasks, connection, host).await.map_err(network)?, endpoint))
        };
        let dialed = tokio::time::timeout(POLL_WITHIN, dialing).await.map_err(|_| network("no connection in time"))?;
        let (connection, endpoint) = dialed?;
        *self.kept() = Some((connection.clone(), endpoint.clone()));
        Ok(Carrier::Quic { connection, _endpoint: endpoint })
    }

    /// This one is of no use any more: the next request gets another.
    fn give_up(&self, carrier: &Carrier) {
        if let Carrier::Quic { connection, .. } = carrier {
            self.kept().take_if(|(kept, _)| kept.is_same(connection));
        }
    }
}

/// One request of a session that is polled, to be sent until it is answered.
#[derive(Clone)]
struct Ask {
    number: u64,
    /// `None`: the first one.
    name: Option<String>,
    body: Bytes,
}

/// Asks, again where the answer is lost: the edge gives it again. The connection is for the next request.
async fn ask(way: &Way<'_>, mut carrier: Option<Carrier>, ask: Ask) -> Result<(Response<Bytes>, Carrier), Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        let request = Request::post("/v1/poll").header("tern-wait-ms", POLL_WAIT.as_millis().to_string());
        let request = match &ask.name {
            Some(name) => request.header("tern-poll", name).header("tern-number", ask.number.to_string()),
            None => request,
        };
        let request = request.body(Full::new(ask.body.clone())).map_err(network)?;
        let answered = async {
            let mut carrier = match carrier.take() {
                Some(carrier) => carrier,
                None => way.connect().await?,
            };
            let mut asked = carrier.request(request.clone(), POLL_WAIT + POLL_WITHIN).await;
            if let Err(HttpError::Closing { .. }) = asked {
                // Its last answer was the one before, which is no failure.
                way.give_up(&carrier);
                carrier = way.connect().await?;
                asked = carrier.request(request, POLL_WAIT + POLL_WITHIN).await;
            }
            match asked {
                Ok(answer) => Ok((answer, carrier)),
                Err(e) => {
                    way.give_up(&carrier);
                    Err(network(e))
                }
            }
        };
        let failed = match answered.await {
            Ok((answer, carrier)) if answer.status() == StatusCode::OK => return Ok((answer, carrier)),
            Ok((answer, _)) => {
                let failed = network(format!("the edge answers a poll with status {}", answer.status()));
                // Not read yet; or it overtook the one before it on another connection.
                if ![StatusCode::SERVICE_UNAVAILABLE, StatusCode::CONFLICT].contains(&answer.status()) {
                    return Err(failed);
                }
                failed
            }
            Err(failed) => failed,
        };
        // A Hello whose answer was lost is said again by the next attempt.
        if ask.name.is_none() || tries >= POLL_TRIES {
            return Err(failed);
        }
        tokio::time::sleep(POLL_PAUSE * tries).await;
    }
}

pub(super) async fn polls(shared: &Arc<Shared>, tls: &Tls, job: &ConnectJob, to: &Addresses) -> Result<(), Failure> {
    let mut hello = BytesMut::new();
    codec::put(&*job.hello.0, &mut hello);
    let first = Ask { number: 0, name: None, body: hello.freeze() };
    let (way, carrier) = Way::find(shared, tls, job, to).await?;
    let way = &way;
    let (answer, carrier) = ask(way, Some(carrier), first).await?;
    let name = answer.headers().get("tern-poll").and_then(|name| name.to_str().ok()).map(str::to_owned);
    let mut inbox = Inbox::default();
    told(shared, job, &mut inbox, answer.body())?;
    let Some(name) = name else { return Err(network("the edge began no session")) };
    let mut free = VecDeque::from([carrier]);
    let session = exchange(way, &name, &mut inbox, &mut free);
    tokio::select! {
        biased;
        failure = session => return Err(failure),
        _ = closing(&job.out) => {}
    }
    // Without it, or if it takes too long, the edge finds out by itself, only later.
    let mut free = free.pop_front();
    for _ in 0..2 {
        let carrier = match free.take() {
            Some(carrier) => Ok(carrier),
            None => way.connect().await,
        };
        let Ok(mut carrier) = carrier else { break };
        let request = Request::delete("/v1/poll").header("tern-poll", &name).body(Full::default()).map_err(network)?;
        // A connection may have given its last answer before.
        if !matches!(carrier.request(request, POLL_WITHIN).await, Err(HttpError::Closing { .. })) {
            break;
        }
        way.give_up(&carrier);
    }
    Ok(())
}

fn told(shared: &Arc<Shared>, job: &ConnectJob, inbox: &mut Inbox, body: &[u8]) -> Result<(), Failure> {
    let mut reader = FrameReader::new(FRAME_BYTES);
    reader.extend(body);
    deliver(shared, job, &mut reader, inbox)?;
    if reader.in_frame() { Err(network("the answer to a poll ends in the middle of a frame")) } else { Ok(()) }
}

/// Always one request that waits; with something to send, a second one, which ends the first. Answers are taken
/// in the order of their numbers.
async fn exchange(way: &Way<'_>, name: &str, inbox: &mut Inbox, free: &mut VecDeque<Carrier>) -> Failure {
    let (shared, job) = (way.shared, way.job);
    let (mut writer, mut waiting, mut number) = (Writer::default(), BytesMut::new(), 0);
    let mut next = |waiting: &mut BytesMut, carrier| {
        number += 1;
        let body = whole(waiting);
        Box::pin(ask(way, carrier, Ask { number, name: Some(name.to_owned()), body }))
    };
    take(&job.out, &mut writer, &mut waiting);
    let (mut asked_at, mut pause) = (shared.env.clock.now(), Duration::ZERO);
    let mut older = next(&mut waiting, free.pop_front());
    loop {
        if waiting.is_empty() {
            tokio::select! {
                biased;
                answer = &mut older => {
                    let empty = answer.as_ref().is_ok_and(|(answer, _)| answer.body().is_empty());
                    if let Err(failure) = settle(shared, job, inbox, free, answer) {
                        return failure;
                    }
                    take(&job.out, &mut writer, &mut waiting);
                    // It should have waited for something to tell, and may do so again as fast as it is asked.
                    let hasty = empty && shared.env.clock.now() < asked_at + POLL_WAIT / 4;
                    pause = if hasty { (pause * 2).clamp(POLL_PAUSE, POLL_PAUSE_MAX) } else { Duration::ZERO };
                    if waiting.is_empty() && !pause.is_zero() {
                        tokio::select! {
                            biased;
                            () = job.out.more[0].notified() => take(&job.out, &mut writer, &mut waiting),
                            () = tokio::time::sleep(pause) => {}
                        }
                    }
                    asked_at = shared.env.clock.now();
                    older = next(&mut waiting, free.pop_front());
                }
                // It may tell of what was taken already.
                () = job.out.more[0].notified() => take(&job.out, &mut writer, &mut waiting),
            }
            continue;
        }
        // Both go on; the older one ends for the newer one.
        let mut newer = next(&mut waiting, free.pop_front());
        let mut early = None;
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut older => break answer,
                answer = &mut newer, if early.is_none() => early = Some(answer),
            }
        };
        if let Err(failure) = settle(shared, job, inbox, free, answer) {
            return failure;
        }
        older = match early {
            None => newer,
            Some(answer) => {
                if let Err(failure) = settle(shared, job, inbox, free, answer) {
                    return failure;
                }
                take(&job.out, &mut writer, &mut waiting);
                next(&mut waiting, free.pop_front())
            }
        };
    }
}

/// As many whole frames as a request takes.
fn whole(waiting: &mut BytesMut) -> Bytes {
    let mut taken = 0;
    while taken < waiting.len() {
        let next = taken + websocket::first_frame(&waiting[taken..]);
        if next > POLL_BYTES {
            break;
        }
        taken = next;
    }
    waiting.split_to(taken).freeze()
}

fn settle(
    shared: &Arc<Shared>,
    job: &ConnectJob,
    inbox: &mut Inbox,
    free: &mut VecDeque<Carrier>,
    answer: Result<(Response<Bytes>, Carrier), Failure>,
) -> Result<(), Failure> {
    let (answer, carrier) = answer?;
    free.push_back(carrier);
    told(shared, job, inbox, answer.body())
}
