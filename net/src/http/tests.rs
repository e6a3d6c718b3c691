//! The server loop and the client against each other, and against peers that misbehave.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::*;
use crate::system::system_env;
use crate::testing::Pki;
use crate::tls;

const WITHIN: Duration = Duration::from_secs(20);

fn echo() -> Handler {
    Arc::new(|_, request| {
        Box::pin(async move {
            match read_body(request.into_body(), 1000).await {
                Ok(body) => Response::new(Full::new(body)),
                Err(_) => {
                    let mut answer = Response::new(Full::default());
                    *answer.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                    answer
                }
            }
        })
    })
}

fn post(bytes: usize) -> Request<Full<Bytes>> {
    Request::post("/").body(Full::new(Bytes::from(vec![b'x'; bytes]))).unwrap()
}

async fn start(
    env: &Env,
    tls: Option<Arc<rustls::ServerConfig>>,
    limits: HttpLimits,
    handler: Handler,
) -> (SocketAddr, oneshot::Sender<()>) {
    let acceptor = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let at = acceptor.local_addr();
    let (stop, stopped) = oneshot::channel();
    let serving = serve(env.clone(), acceptor, tls, limits, handler);
    env.tasks.spawn(async move {
        tokio::select! { biased; _ = stopped => {}, () = serving => {} }
    });
    (at, stop)
}

#[tokio::test]
async fn requests_over_tls_are_answered_on_one_connection_and_bodies_are_bounded() {
    let env = system_env().unwrap();
    let pki = Pki::new();
    let server = tls::server_tls(&pki.identity(), &[], env.clock.clone()).unwrap();
    let (at, _stop) = start(&env, Some(server), HttpLimits::default(), echo()).await;
    let trust = tls::client_tls(pki.ca_pem.as_bytes(), &[], env.clock.clone()).unwrap();
    let client = HttpClient::new(env.clone(), Some(trust));
    let mut connection = client.connect(at, "localhost", WITHIN).await.unwrap();
    for n in [0, 1, 1000] {
        let answer = connection.request(post(n), 1000, WITHIN).await.unwrap();
        assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, n));
        assert!(answer.headers().get("date").is_none());
    }
    let answer = client.request(at, "localhost", post(1001), 1000, WITHIN).await.unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let error = client.request(at, "localhost", post(500), 499, WITHIN).await.unwrap_err();
    assert!(matches!(error, HttpError::TooLarge { limit: 499, .. }), "{error}");
    let error = client.request(at, "elsewhere.example", post(1), 10, WITHIN).await.unwrap_err();
    assert!(matches!(error, HttpError::Tls { .. }), "{error}");
}

#[tokio::test]
async fn the_end_of_the_server_ends_its_connections() {
    let env = system_env().unwrap();
    let (at, stop) = start(&env, None, HttpLimits::default(), echo()).await;
    let client = HttpClient::new(env.clone(), None);
    let mut connection = client.connect(at, "localhost", WITHIN).await.unwrap();
    connection.request(post(1), 10, WITHIN).await.unwrap();
    drop(stop);
    assert!(connection.request(post(1), 10, WITHIN).await.is_err());
    assert!(matches!(
        client.request(at, "localhost", post(1), 10, WITHIN).await,
        Err(HttpError::Connect { .. } | HttpError::Failed { .. })
    ));
}

#[tokio::test]
async fn garbage_gets_an_error_and_the_server_lives() {
    let env = system_env().unwrap();
    let (at, _stop) = start(&env, None, HttpLimits { connections: 1, ..HttpLimits::default() }, echo()).await;
    let mut raw = env.net.connect(at).await.unwrap();
    raw.write_all(b"\x00\x01 nonsense\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    raw.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"));
    let client = HttpClient::new(env.clone(), None);
    assert!(client.request(at, "localhost", post(1), 10, WITHIN).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_answers_gets_a_503_and_a_silent_server_a_time_out() {
    // In memory, since paused time runs ahead of real sockets.
    let (near, far) = tokio::io::duplex(1000);
    let never: Handler = Arc::new(|_, _| Box::pin(std::future::pending()));
    let from = "127.0.0.1:1".parse().unwrap();
    let place = Places::new(1).take().await;
    let tasks = system_env().unwrap().tasks;
    let serving = connection(tasks, Box::new(far), from, None, HttpLimits::default(), never, place.held.clone());
    let asking = async {
        let mut near = near;
        near.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 503"));
    };
    tokio::join!(serving, asking);
}

/// A TLS server of both versions, and what its clients trust.
async fn start_tls(env: &Env, handler: Handler) -> (SocketAddr, oneshot::Sender<()>, Pki) {
    let pki = Pki::new();
    let server = tls::server_tls(&pki.identity(), &ALPN_HTTP, env.clock.clone()).unwrap();
    let (at, stop) = start(env, Some(server), HttpLimits::default(), handler).await;
    (at, stop, pki)
}

fn trusting(env: &Env, pki: &Pki, alpn: &[&[u8]]) -> HttpClient {
    HttpClient::new(env.clone(), Some(tls::client_tls(pki.ca_pem.as_bytes(), alpn, env.clock.clone()).unwrap()))
}

#[tokio::test]
async fn the_two_sides_speak_the_best_version_that_both_know() {
    let env = system_env().unwrap();
    let (at, _stop, pki) = start_tls(&env, echo()).await;
    for (offered, two) in [(&ALPN_HTTP[..], true), (&ALPN_HTTP[..1], true), (&ALPN_HTTP[1..], false), (&[], false)] {
        let client = trusting(&env, &pki, offered);
        let mut connection = client.connect(at, "localhost", WITHIN).await.unwrap();
        assert_eq!(connection.is_http2(), two, "{offered:?}");
        for n in [0, 1, 1000] {
            let answer = connection.request(post(n), 1000, WITHIN).await.unwrap();
            assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, n));
            assert!(answer.headers().get("date").is_none());
        }
        let answer = connection.request(post(1001), 1000, WITHIN).await.unwrap();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let error = client.request(at, "localhost", post(500), 499, WITHIN).await.unwrap_err();
        assert!(matches!(error, HttpError::TooLarge { limit: 499, .. }), "{error}");
    }
}

#[tokio::test]
async fn a_request_of_either_version_names_the_server_and_its_path() {
    let env = system_env().unwrap();
    let told: Handler = Arc::new(|_, request| {
        let host = request.headers().get("host").and_then(|h| h.to_str().ok()).map(str::to_owned);
        let authority = request.uri().authority().map(ToString::to_string);
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap();
        let text = format!("{} {path}", host.or(authority).unwrap());
        Box::pin(async move { Response::new(Full::new(Bytes::from(text))) })
    });
    let (at, _stop, pki) = start_tls(&env, told).await;
    for alpn in [&ALPN_HTTP[..1], &ALPN_HTTP[1..]] {
        let request = Request::get("/a/b?c=d").body(Full::default()).unwrap();
        let answer = trusting(&env, &pki, alpn).request(at, "127.0.0.1", request, 100, WITHIN).await.unwrap();
        assert_eq!(answer.body(), "127.0.0.1 /a/b?c=d");
    }
}

#[tokio::test]
async fn the_end_of_either_side_ends_a_connection_of_http_2() {
    let env = system_env().unwrap();
    let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    struct Count(Arc<AtomicUsize>);
    impl Drop for Count {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let hanging: Handler = Arc::new({
        let (begun, ended) = (begun.clone(), ended.clone());
        move |_, _| {
            begun.fetch_add(1, Ordering::SeqCst);
            let count = Count(ended.clone());
            Box::pin(async move {
                let _count = count;
                std::future::pending().await
            })
        }
    });
    let until = async |counter: &AtomicUsize, n: usize| {
        timeout(WITHIN, async {
            while counter.load(Ordering::SeqCst) < n {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    };
    let (at, stop, pki) = start_tls(&env, hanging).await;
    let client = trusting(&env, &pki, &ALPN_HTTP);
    // The client goes in the middle of a request: the handler is dropped.
    tokio::select! {
        biased;
        _ = client.request(at, "localhost", post(1), 10, WITHIN) => panic!("nothing answers"),
        () = until(&begun, 1) => {}
    }
    until(&ended, 1).await;
    // The server goes: the request fails, and the handler is dropped.
    let going = async {
        until(&begun, 2).await;
        drop(stop);
    };
    let (answer, ()) = tokio::join!(client.request(at, "localhost", post(1), 10, WITHIN), going);
    assert!(matches!(answer, Err(HttpError::Failed { .. })), "{answer:?}");
    until(&ended, 2).await;
}

/// Frames as they are on the wire, from a client that keeps to no rule but those that a test keeps.
struct Raw(Box<dyn Stream>);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// GET http://x/ as HPACK: three entries of the static table, and a literal.
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'x'];
const ENHANCE_YOUR_CALM: u32 = 0xb;
const REFUSED_STREAM: u32 = 7;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

impl Raw {
    async fn begin(mut stream: Box<dyn Stream>, settings: &[u8]) -> Self {
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, settings)).await.unwrap();
        Self(stream)
    }

    /// The next frame that is no SETTINGS and no PING: kind, stream, payload. Those are answered.
    async fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap()];
            self.0.read_exact(&mut payload).await.ok()?;
            match head[3] {
                SETTINGS | PING if head[4] & ACK == 0 => {
                    let answer = if head[3] == PING { payload } else { Vec::new() };
                    self.0.write_all(&frame(head[3], ACK, 0, &answer)).await.ok()?;
                }
                SETTINGS | PING => {}
                kind => return Some((kind, u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)),
            }
        }
    }

    /// Reads to the end of the connection; the code of the GOAWAY before it, if there was one.
    async fn end(mut self) -> Option<u32> {
        let mut code = None;
        while let Some((kind, _, payload)) = self.next().await {
            if kind == GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        code
    }
}

/// Writes what `flood` makes until the server ends the connection, at most `limit` bytes; the bytes it took and
/// the code that it ended with.
async fn flood(env: &Env, at: SocketAddr, limit: usize, mut make: impl FnMut(u32) -> Vec<u8>) -> (usize, Option<u32>) {
    let Raw(stream) = Raw::begin(env.net.connect(at).await.unwrap(), &[]).await;
    let (read, mut write) = tokio::io::split(stream);
    let reading = async {
        // The half that reads answers nothing: it only looks for the end.
        let mut bytes = Vec::new();
        drop(read.take(1 << 20).read_to_end(&mut bytes).await);
        bytes
    };
    let writing = async {
        let mut written = 0;
        for i in 0.. {
            let bytes = make(i);
            if written + bytes.len() > limit || write.write_all(&bytes).await.is_err() {
                break;
            }
            written += bytes.len();
        }
        written
    };
    let (bytes, written) = timeout(WITHIN, async { tokio::join!(reading, writing) }).await.unwrap();
    let mut rest = &bytes[..];
    let mut code = None;
    while let Some((head, tail)) = rest.split_at_checked(9) {
        let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap();
        let Some((payload, tail)) = tail.split_at_checked(length) else { break };
        if head[3] == GOAWAY {
            code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        rest = tail;
    }
    (written, code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_resets_headers_and_continuations_end_their_connection_and_no_other() {
    let env = system_env().unwrap();
    let (at, _stop) = start(&env, None, HttpLimits::default(), echo()).await;
    let mut bystander = HttpClient::new(env.clone(), None).connect(at, "localhost", WITHIN).await.unwrap();
    let mut two = Raw::begin(env.net.connect(at).await.unwrap(), &[]).await;
    const LIMIT: usize = 64 << 20;
    // What was written includes what lies in both kernels. The reset that follows a GOAWAY may overtake it.
    let ended_calmly = |written: usize, code: Option<u32>| {
        assert!(written < LIMIT / 8, "{written} bytes were taken");
        assert!(code.is_none_or(|c| c == ENHANCE_YOUR_CALM), "{code:?}");
    };

    // Requests that are reset at once, 1,000 to a write: more than the server can look at in between.
    let resets = |i: u32| {
        let of = |n: u32| {
            let stream = 2 * (i * 1_000 + n) + 1;
            let mut one = frame(HEADERS, END_HEADERS | END_STREAM, stream, GET);
            one.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            one
        };
        (0..1_000).flat_map(of).collect()
    };
    let (written, code) = flood(&env, at, LIMIT, resets).await;
    ended_calmly(written, code);

    // A header that is continued without end, by empty frames and by full ones.
    for payload in [&[][..], &[0; 1_000]] {
        let continuations = |i: u32| match i {
            0 => frame(HEADERS, END_STREAM, 1, GET),
            _ => frame(CONTINUATION, 0, 1, payload).repeat(100),
        };
        let (written, code) = flood(&env, at, LIMIT, continuations).await;
        ended_calmly(written, code);
    }

    // Headers that unfold: one literal of 4 KB in the table, then thousands of references to it, a byte each.
    let mut bomb = GET.to_vec();
    bomb.extend([0x40, 1, b'a', 0x7f, 0xa1, 0x1e]);
    bomb.extend([b'v'; 4_000]);
    bomb.extend([0xbe; 10_000]);
    let unfolding = |i: u32| frame(HEADERS, END_HEADERS | END_STREAM, 2 * i + 1, &bomb);
    let (written, code) = flood(&env, at, LIMIT, unfolding).await;
    ended_calmly(written, code);

    // Who had nothing to do with it goes on, in both versions.
    assert!(bystander.request(post(3), 10, WITHIN).await.is_ok());
    two.0.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, GET)).await.unwrap();
    assert!(matches!(two.next().await, Some((HEADERS, 1, _))));
}

#[tokio::test]
async fn requests_beyond_the_limit_of_a_connection_are_refused_and_prior_knowledge_is_understood() {
    let env = system_env().unwrap();
    let never: Handler = Arc::new(|_, _| Box::pin(std::future::pending()));
    let limits = HttpLimits { streams: 3, ..HttpLimits::default() };
    let (at, _stop) = start(&env, None, limits, never).await;
    let mut raw = Raw::begin(env.net.connect(at).await.unwrap(), &[]).await;
    for stream in [1, 3, 5, 7] {
        raw.0.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, stream, GET)).await.unwrap();
    }
    let refused = timeout(WITHIN, raw.next()).await.unwrap();
    assert_eq!(refused, Some((RST_STREAM, 7, REFUSED_STREAM.to_be_bytes().to_vec())));
}

/// A connection in memory, where paused time may run ahead.
fn in_memory(limits: HttpLimits, handler: Handler) -> (Box<dyn Stream>, impl Future<Output = ()>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let from = "127.0.0.1:1".parse().unwrap();
    let tasks = system_env().unwrap().tasks;
    let serving = async move {
        let place = Places::new(1).take().await;
        connection(tasks, Box::new(far), from, None, limits, handler, place.held.clone()).await;
    };
    (Box::new(near), serving)
}

#[tokio::test]
async fn who_opens_connections_and_says_nothing_keeps_nobody_out() {
    let env = system_env().unwrap();
    let (at, _stop) = start(&env, None, HttpLimits { connections: 8, ..HttpLimits::default() }, echo()).await;
    let client = HttpClient::new(env.clone(), None);
    let mut regular = client.connect(at, "localhost", WITHIN).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..40 {
        let mut stream = env.net.connect(at).await.unwrap();
        // Half of a header, which never ends.
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx-y:").await.unwrap();
        silent.push(stream);
        // Who asks now and then stays.
        assert!(regular.request(post(1), 10, WITHIN).await.is_ok());
        assert!(client.request(at, "localhost", post(1), 10, WITHIN).await.is_ok());
    }
    // The first of the silent ones were turned out, at once and not by a time-out.
    let mut rest = Vec::new();
    let end = timeout(WITHIN, silent[0].read_to_end(&mut rest)).await.unwrap();
    assert!(end.is_err() || rest.is_empty(), "{end:?} {rest:?}");
}

#[tokio::test(start_paused = true)]
async fn connections_of_http_2_end_when_idle_when_silent_and_when_answers_are_not_taken() {
    let began = tokio::time::Instant::now;
    // Idle: pings are answered, and it ends all the same.
    let (near, serving) = in_memory(HttpLimits::default(), echo());
    let at = began();
    let (_, code) = tokio::join!(serving, async { Raw::begin(near, &[]).await.end().await });
    assert_eq!(code, Some(0), "a GOAWAY without an error");
    assert!((30..=31).contains(&at.elapsed().as_secs()), "{:?}", at.elapsed());

    // Silent: pings are not answered, while a request is under way.
    let never: Handler = Arc::new(|_, _| Box::pin(std::future::pending()));
    let (near, serving) = in_memory(HttpLimits::default(), never);
    let at = began();
    let mut raw = Raw::begin(near, &[]).await;
    raw.0.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, GET)).await.unwrap();
    serving.await;
    assert!((20..=21).contains(&at.elapsed().as_secs()), "{:?}", at.elapsed());

    // A window of nothing: the answer is never taken.
    let answering: Handler = Arc::new(|_, _| Box::pin(async { Response::new(Full::from("answer")) }));
    let (near, serving) = in_memory(HttpLimits::default(), answering);
    let at = began();
    let asking = async {
        let mut raw = Raw::begin(near, &[0, 4, 0, 0, 0, 0]).await;
        raw.0.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, GET)).await.unwrap();
        let mut kinds = Vec::new();
        while let Some((kind, ..)) = raw.next().await {
            kinds.push(kind);
        }
        kinds
    };
    let (_, kinds) = tokio::join!(serving, asking);
    assert!(kinds.contains(&HEADERS) && !kinds.contains(&DATA), "{kinds:?}");
    assert!((30..=36).contains(&at.elapsed().as_secs()), "{:?}", at.elapsed());

    // Not even a beginning.
    let (near, serving) = in_memory(HttpLimits::default(), echo());
    let at = began();
    serving.await;
    assert!((30..=31).contains(&at.elapsed().as_secs()), "{:?}", at.elapsed());
    drop(near);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_answers_gets_a_503_over_http_2_too() {
    let never: Handler = Arc::new(|_, _| Box::pin(std::future::pending()));
    let (near, serving) = in_memory(HttpLimits::default(), never);
    let asking = async {
        let mut raw = Raw::begin(near, &[]).await;
        raw.0.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, GET)).await.unwrap();
        let (kind, _, header) = raw.next().await.unwrap();
        // 503 is not in the static table: a literal, by name 8 (":status").
        assert_eq!((kind, header.starts_with(&[0x48])), (HEADERS, true), "{header:?}");
        let (kind, _, text) = raw.next().await.unwrap();
        assert_eq!((kind, &text[..]), (DATA, &b"the request was not answered in time\n"[..]));
    };
    tokio::select! { () = serving => panic!("the connection ended"), () = asking => {} }
}

/// A connection in memory that is told to end by the handler, while it works on the request that it does so for.
fn ended_by_a_request(answer: usize, takes: Duration) -> (Box<dyn Stream>, impl Future<Output = ()>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let finish = Arc::new(tokio::sync::Notify::new());
    let told = finish.clone();
    let handler: Handler = Arc::new(move |_, _| {
        told.notify_one();
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            Response::new(Full::new(Bytes::from(vec![b'x'; answer])))
        })
    });
    let from = "127.0.0.1:1".parse().unwrap();
    let limits = HttpLimits { request: Duration::from_secs(60), ..HttpLimits::default() };
    let tasks = system_env().unwrap().tasks;
    let serving = async move {
        let over = async { finish.notified().await };
        serve_stream(tasks, Box::new(far), Some(b"h2"), from, limits, handler, over).await;
    };
    (Box::new(near), serving)
}

/// What is said until the end of the connection: frames' kinds and streams, repetitions left out. `window`: how much room
/// the client makes after each DATA.
async fn order_of(near: Box<dyn Stream>, streams: &[u32], window: u32) -> (Vec<(u8, u32)>, usize) {
    let mut raw = Raw::begin(near, &[]).await;
    for stream in streams {
        raw.0.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, *stream, GET)).await.unwrap();
    }
    let (mut said, mut bytes) = (Vec::new(), 0);
    while let Some((kind, stream, payload)) = raw.next().await {
        if kind == DATA && !payload.is_empty() {
            bytes += payload.len();
            for of in [0, stream] {
                // The server may be gone after the last one.
                drop(raw.0.write_all(&frame(8, 0, of, &window.to_be_bytes())).await);
            }
        }
        if said.last() != Some(&(kind, stream)) {
            said.push((kind, stream));
        }
    }
    (said, bytes)
}

#[tokio::test(start_paused = true)]
async fn the_last_answers_of_a_connection_are_out_before_its_end_is_told() {
    // 200 KB is three times the window that a client has at first.
    for (answer, window) in [(5, 1 << 16), (200_000, 1 << 16), (200_000, 1000)] {
        let (near, serving) = ended_by_a_request(answer, Duration::from_millis(100));
        let (_, (said, bytes)) = tokio::join!(serving, order_of(near, &[1, 3], window));
        assert_eq!(bytes, 2 * answer);
        let goaway = said.iter().position(|(kind, _)| *kind == GOAWAY).expect("the end is told");
        assert!(said[goaway..].iter().all(|(kind, _)| *kind == GOAWAY), "{answer} bytes: {said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_takes_longer_is_answered_behind_the_word_of_the_end_and_not_cut() {
    let (near, serving) = ended_by_a_request(5, Duration::from_secs(25));
    let at = tokio::time::Instant::now();
    let (_, (said, bytes)) = tokio::join!(serving, order_of(near, &[1], 1 << 16));
    assert_eq!((said.first(), said.last(), bytes), (Some(&(GOAWAY, 0)), Some(&(DATA, 1)), 5), "{said:?}");
    assert!((25..=26).contains(&at.elapsed().as_secs()), "{:?}", at.elapsed());
}
