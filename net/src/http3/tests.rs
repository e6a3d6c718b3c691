//! Server and client on loopback, and what strangers may do.

use std::sync::atomic::AtomicBool;

use tokio::sync::Notify;

use super::*;
use crate::env::Env;
use crate::http::{HttpError, read_body};
use crate::quic::{QuicParams, client_config, client_endpoint, server_endpoint};
use crate::system::system_env;
use crate::testing::Pki;
use crate::tls;

const WITHIN: Duration = Duration::from_secs(20);

/// A server on loopback, and what it was asked.
struct Scene {
    env: Env,
    pki: Pki,
    at: SocketAddr,
    over: Arc<Notify>,
    /// Connections that were served to their end.
    ended: Arc<AtomicUsize>,
}

fn scene(limits: HttpLimits, handler: QuicHandler) -> Scene {
    let env = system_env().unwrap();
    let pki = Pki::new();
    let tls = tls::server_tls(&pki.identity(), &[ALPN_HTTP3], env.clock.clone()).unwrap();
    let server = server_endpoint(&env, "127.0.0.1:0".parse().unwrap(), tls, &QuicParams::edge()).unwrap();
    let at = server.local_addr().unwrap();
    let (over, ended) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (tasks, told, count) = (env.tasks.clone(), over.clone(), ended.clone());
    env.tasks.spawn(async move {
        while let Some(incoming) = server.accept().await {
            let Ok(connection) = incoming.await else { continue };
            let (handler, told, count, spawner) = (handler.clone(), told.clone(), count.clone(), tasks.clone());
            tasks.spawn(async move {
                serve_quic(spawner, connection, None, limits, handler, told.notified()).await;
                count.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    Scene { env, pki, at, over, ended }
}

impl Scene {
    async fn connection(&self) -> quinn::Connection {
        let tls = tls::client_tls(self.pki.ca_pem.as_bytes(), &[ALPN_HTTP3], self.env.clock.clone()).unwrap();
        let client = client_endpoint(&self.env, "127.0.0.1:0".parse().unwrap()).unwrap();
        let config = client_config(&self.env, tls, &QuicParams::client_http3()).unwrap();
        client.connect_with(config, self.at, "localhost").unwrap().await.unwrap()
    }

    async fn client(&self) -> Http3Connection {
        let connection = self.connection().await;
        Http3Connection::new(self.env.tasks.clone(), connection, "localhost").await.unwrap()
    }
}

fn echo(limit: usize) -> QuicHandler {
    Arc::new(move |_, request| {
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let (status, body) = match read_body(request.into_body(), limit).await {
                Ok(body) => (StatusCode::OK, body),
                Err(crate::http::BodyError::TooLarge { .. }) => (StatusCode::PAYLOAD_TOO_LARGE, Bytes::new()),
                Err(e) => (StatusCode::BAD_REQUEST, e.to_string().into()),
            };
            let answer = Response::builder().status(status).header("path", path);
            answer.body(Full::new(body)).unwrap()
        })
    })
}

fn post(bytes: usize) -> Request<Full<Bytes>> {
    Request::post("/echo").body(Full::new(Bytes::from(vec![b'x'; bytes]))).unwrap()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(WITHIN, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what} did not come about");
}

/// A frame of HTTP/3 with a length of four bytes.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = 0x8000_0000 | u32::try_from(payload.len()).unwrap();
    [&[kind][..], &length.to_be_bytes(), payload].concat()
}

/// A header as simple as it can be: POST https://localhost/echo, and whatever stands before its end.
fn header(more: &[u8]) -> Vec<u8> {
    let fields = [&[0, 0, 0xc0 | 20, 0xc0 | 23, 0x50, 9][..], b"localhost", &[0x51, 5], b"/echo", more].concat();
    frame(1, &fields)
}

/// The answer of a request that is written by hand: its bytes, or with which code its stream was reset.
async fn raw(connection: &quinn::Connection, pieces: &[&[u8]], finish: bool) -> Result<Vec<u8>, u64> {
    let (mut send, mut recv) = timeout(WITHIN, connection.open_bi()).await.expect("room").map_err(|_| 0u64)?;
    for piece in pieces {
        if send.write_all(piece).await.is_err() {
            break;
        }
    }
    if finish {
        send.finish().ok();
    }
    match timeout(WITHIN, recv.read_to_end(1 << 20)).await.expect("an end in time") {
        Ok(answer) => Ok(answer),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => Err(code.into_inner()),
        Err(_) => Err(0),
    }
}

/// With which code the server closed the connection.
async fn closed(connection: &quinn::Connection) -> u64 {
    match timeout(WITHIN, connection.closed()).await.expect("an end in time") {
        quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("{other:?}"),
    }
}

fn status_of(answer: &[u8]) -> &[u8] {
    // HEADERS, and as its first field `:status` by its place in the static table, or by its name's and a literal.
    assert_eq!(answer[0], 1, "{answer:?}");
    &answer[2..]
}

#[tokio::test]
async fn requests_are_answered_at_once_and_one_after_the_other_and_bodies_are_bounded() {
    let scene = scene(HttpLimits::default(), echo(300_000));
    let mut client = scene.client().await;
    for n in [0, 1, 1_000, 300_000] {
        let answer = client.request(post(n), 300_000, WITHIN).await.unwrap();
        assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, n));
        assert_eq!((answer.headers()["path"].to_str().unwrap(), answer.headers().get("date")), ("/echo", None));
        assert_eq!(answer.headers()[CONTENT_LENGTH], n.to_string());
    }
    let (mut one, mut two) = (client.clone(), client.clone());
    let both = tokio::join!(one.request(post(100_000), 100_000, WITHIN), two.request(post(9), 9, WITHIN));
    assert_eq!((both.0.unwrap().body().len(), both.1.unwrap().body().len()), (100_000, 9));
    let answer = client.request(post(300_001), 10, WITHIN).await.unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let error = client.request(post(500), 499, WITHIN).await.unwrap_err();
    assert!(matches!(error, HttpError::TooLarge { limit: 499, .. }), "{error}");
    let head = Request::head("/echo").body(Full::default()).unwrap();
    let answer = client.request(head, 10, WITHIN).await.unwrap();
    assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, 0));
    drop((client, one, two));
    until("the end", || scene.ended.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_client_that_goes_takes_its_request_with_it() {
    let (begun, dropped) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    struct Gone(Arc<AtomicBool>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let (told, gone) = (begun.clone(), dropped.clone());
    let never: QuicHandler = Arc::new(move |_, _| {
        let (told, gone) = (told.clone(), Gone(gone.clone()));
        Box::pin(async move {
            let _gone = gone;
            told.notify_one();
            std::future::pending().await
        })
    });
    let scene = scene(HttpLimits::default(), never);
    let mut client = scene.client().await;
    tokio::select! {
        biased;
        _ = client.request(post(10), 10, WITHIN) => panic!("nobody answers"),
        () = begun.notified() => {}
    }
    until("its end", || dropped.load(Ordering::SeqCst)).await;
}

#[tokio::test]
async fn at_the_end_what_is_under_way_is_answered_and_the_rest_is_told_to_go_elsewhere() {
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, waits) = (begun.clone(), go_on.clone());
    let slow: QuicHandler = Arc::new(move |_, _| {
        let (told, waits) = (told.clone(), waits.clone());
        Box::pin(async move {
            told.notify_one();
            waits.notified().await;
            Response::new(Full::new(Bytes::from_static(b"late, and there")))
        })
    });
    let scene = scene(HttpLimits::default(), slow);
    let connection = scene.connection().await;
    let mut client = Http3Connection::new(scene.env.tasks.clone(), connection.clone(), "localhost").await.unwrap();
    let mut later = client.clone();
    let asking = async { client.request(post(3), 100, WITHIN).await };
    let ending = async {
        begun.notified().await;
        scene.over.notify_one();
        go_on.notify_one();
    };
    let (answer, ()) = tokio::join!(asking, ending);
    assert_eq!(answer.unwrap().body(), "late, and there");
    assert_eq!(closed(&connection).await, 0x100, "H3_NO_ERROR");
    assert!(later.request(post(3), 100, WITHIN).await.is_err());
    until("the end", || scene.ended.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn an_idle_connection_ends_and_one_that_waits_for_an_answer_does_not() {
    let asked_of = Arc::new(AtomicUsize::new(0));
    let seen = asked_of.clone();
    let never: QuicHandler = Arc::new(move |_, _| {
        seen.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::pending())
    });
    let scene = scene(HttpLimits { header: Duration::from_millis(300), ..HttpLimits::default() }, never);
    let waiting = scene.connection().await;
    let mut client = Http3Connection::new(scene.env.tasks.clone(), waiting.clone(), "localhost").await.unwrap();
    let asked = client.request(post(3), 100, WITHIN);
    let idle = async {
        // Opened after the other one asked, and said only half of a header.
        until("the other one's request", || asked_of.load(Ordering::SeqCst) == 1).await;
        let idle = scene.connection().await;
        let (mut send, _recv) = idle.open_bi().await.unwrap();
        send.write_all(&header(b"")[..7]).await.unwrap();
        closed(&idle).await
    };
    tokio::select! {
        biased;
        answer = asked => panic!("{answer:?}"),
        code = idle => assert_eq!(code, 0x100),
    }
    assert_eq!(waiting.close_reason(), None);
}

#[tokio::test]
async fn a_header_that_is_too_long_gets_431_however_it_is_written() {
    let scene = scene(HttpLimits::default(), echo(10));
    let connection = scene.connection().await;
    // What says that it is long, before it is; what is long when it is unpacked; what never ends.
    let long = vec![b'y'; 20_000];
    let literal =
        |n: usize| [&[0x27, 0, b'a', b'b', b'c', b'd', b'e', b'f', b'g', 0x7f][..], &varint(n - 127)].concat();
    let big = header(&[literal(20_000), long.clone()].concat());
    let said = [&[1, 0xff][..], &[0xff; 7], &[0, 0]].concat();
    let meaningless = [&[0x21, 0xff][..], &[0xff; 7]].concat();
    let repeated = header(&[0xc0 | 31].repeat(600));
    let mut unended: Vec<u8> = Vec::new();
    while unended.len() < 40_000 {
        unended.extend(frame(0x21, &[7; 100]));
    }
    for (name, request, finish) in [
        ("big", big, true),
        ("said to be big", said, false),
        ("a frame without meaning", meaningless, false),
        ("many short fields", repeated, true),
        ("frames without meaning", unended, false),
    ] {
        let answer = raw(&connection, &[&request], finish).await.unwrap_or_else(|code| panic!("{name}: {code:#x}"));
        let status = status_of(&answer);
        assert!(status.ends_with(b"431") || status.windows(4).any(|w| w[..2] == [0x5f, 9]), "{name}: {answer:?}");
    }
    // The connection lives, and serves.
    let answer = raw(&connection, &[&header(b""), &frame(0, b"hello")], true).await.unwrap();
    assert!(answer.ends_with(b"hello"), "{answer:?}");
}

/// The rest of an integer of QPACK (RFC 7541, 5.1).
fn varint(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 128 {
        bytes.push(u8::try_from(n % 128).unwrap() | 0x80);
        n /= 128;
    }
    bytes.push(u8::try_from(n).unwrap());
    bytes
}

#[tokio::test]
async fn a_body_that_is_cut_is_no_body_and_one_in_odd_pieces_is_whole() {
    let scene = scene(HttpLimits::default(), echo(1_000));
    let connection = scene.connection().await;
    let length = |n: &str| [&[0x54, u8::try_from(n.len()).unwrap()][..], n.as_bytes()].concat();
    let body = frame(0, &[b'z'; 50]);
    // Empty frames, frames without meaning, a header's and a body's bytes one by one.
    let odd = [header(b""), frame(0, b""), frame(0, b""), body.clone(), frame(0x21, b"?"), frame(0, b""), body.clone()];
    let odd = odd.concat();
    let pieces: Vec<&[u8]> = odd.chunks(1).collect();
    let answer = raw(&connection, &pieces, true).await.unwrap();
    assert!(answer.ends_with(&[b'z'; 100]), "{answer:?}");
    for (name, request, why) in [
        ("within a frame", [header(b""), body[..30].to_vec()].concat(), "Remote reset"),
        ("behind the last byte but one", [header(b""), body.clone(), frame(0, b"ab")[..6].to_vec()].concat(), "reset"),
        ("before its length", [header(&length("51")), body.clone()].concat(), "50 bytes came of the 51"),
        ("beyond its length", [header(&length("49")), body.clone()].concat(), "50 bytes came of the 49"),
    ] {
        let answer = raw(&connection, &[&request], true).await.unwrap_or_else(|code| panic!("{name}: {code:#x}"));
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(text.contains("cut short") && text.contains(why), "{name}: {text}");
    }
}

#[tokio::test]
async fn frames_of_nothing_are_not_read_without_end() {
    let limits = HttpLimits { request: Duration::from_millis(500), ..HttpLimits::default() };
    let scene = scene(limits, echo(1_000));
    let connection = scene.connection().await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&header(b"")).await.unwrap();
    // One byte each, and then none: more is sent than may be held, and it is not all taken.
    let nothing = frame(0, b"").repeat(80_000);
    let taken = timeout(WITHIN, send.write_all(&nothing)).await.expect("an end in time");
    assert!(taken.is_err(), "stopped, when the request's time was up");
    let mut client = Http3Connection::new(scene.env.tasks.clone(), connection, "localhost").await.unwrap();
    assert_eq!(client.request(post(5), 5, WITHIN).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection_and_no_other() {
    let scene = scene(HttpLimits::default(), echo(1_000));
    let mut honest = scene.client().await;
    let control = |bytes: Vec<u8>| [vec![0], bytes].concat();
    let settings = frame(4, &[6, 0x44, 0]);
    for (name, bytes, code) in [
        ("garbage", control(vec![0xff; 3_000]), 0x107),
        ("no settings", control(frame(7, &[0])), 0x10a),
        ("settings twice", control([settings.clone(), settings.clone()].concat()), 0x105),
        ("a body where there is none", control([settings.clone(), frame(0, b"x")].concat()), 0x105),
        ("more than it may say", control([settings.clone(), frame(0x21, &[7; 1_000]).repeat(40)].concat()), 0x102),
    ] {
        let connection = scene.connection().await;
        let mut stream = connection.open_uni().await.unwrap();
        // It may be stopped in the middle.
        drop(stream.write_all(&bytes).await);
        let finished = stream.finish();
        let ended = closed(&connection).await;
        // Garbage has no length that could be believed, so it ends with its stream.
        assert!(ended == code || (name == "garbage" && ended != 0x100), "{name}: {ended:#x}, {finished:?}");
    }
    for (name, bytes) in [("a body first", frame(0, b"x")), ("a push", frame(5, &[0, 0, 0]))] {
        let connection = scene.connection().await;
        assert!(raw(&connection, &[&bytes], false).await.is_err());
        assert_eq!(closed(&connection).await, 0x105, "{name}");
    }
    assert_eq!(honest.request(post(5), 5, WITHIN).await.unwrap().status(), StatusCode::OK);
    drop(honest);
    until("the end of all", || scene.ended.load(Ordering::SeqCst) == 8).await;
}

#[tokio::test]
async fn a_flood_of_requests_that_are_taken_back_ends_its_connection() {
    let scene = scene(HttpLimits { streams: 8, ..HttpLimits::default() }, echo(1_000));
    let connection = scene.connection().await;
    let flood = async {
        let mut opened = 0;
        while let Ok((mut send, mut recv)) = connection.open_bi().await {
            opened += 1;
            drop(send.write_all(&[1]).await);
            drop((send.reset(VarInt::from_u32(0x10c)), recv.stop(VarInt::from_u32(0x10c))));
            if opened > 10_000 {
                return opened;
            }
        }
        opened
    };
    let opened = timeout(WITHIN, flood).await.expect("an end in time");
    assert_eq!(closed(&connection).await, 0x107, "after {opened}");
    assert!(opened < 1_000, "{opened}");
}

#[tokio::test]
async fn no_more_requests_at_once_than_allowed() {
    let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (seen, count) = (most.clone(), now.clone());
    let counting: QuicHandler = Arc::new(move |_, _| {
        let (seen, count) = (seen.clone(), count.clone());
        Box::pin(async move {
            let n = count.fetch_add(1, Ordering::SeqCst) + 1;
            seen.fetch_max(n, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            count.fetch_sub(1, Ordering::SeqCst);
            Response::new(Full::default())
        })
    });
    let scene = scene(HttpLimits { streams: 4, ..HttpLimits::default() }, counting);
    let client = scene.client().await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut client = client.clone();
        asking.spawn(async move { client.request(post(1), 1, WITHIN).await.unwrap().status() });
    }
    while let Some(asked) = asking.join_next().await {
        assert_eq!(asked.unwrap(), StatusCode::OK);
    }
    assert_eq!(most.load(Ordering::SeqCst), 4);
}
