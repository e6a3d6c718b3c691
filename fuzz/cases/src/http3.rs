//! What a client of HTTP/3 says by hand: requests, and what stands beside them, at a server on loopback.
//!
//! Each input has a connection of its own, whose other requests must not suffer from what one of them says; what
//! panics in a task of the server is kept, and breaks the case.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use quinn::Connection;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519};
use tern_core::store::BoxFut;
use tern_net::env::{Env, Spawn, Spawner};
use tern_net::http::{HttpLimits, read_body};
use tern_net::http3::{ALPN_HTTP3, QuicHandler, serve_quic};
use tern_net::quic::{QuicParams, client_config, client_endpoint, server_endpoint};
use tern_net::system::system_env;
use tern_net::tls::{Identity, client_tls, server_tls};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::Came;

/// Nothing takes so long unless it hangs.
const WITHIN: Duration = Duration::from_secs(20);
const BODY_BYTES: usize = 1_000;

/// Starts tasks as the environment does, and counts those that panic.
#[derive(Clone, Debug)]
struct Watching {
    tasks: Spawner,
    panics: Arc<AtomicUsize>,
}

impl Spawn for Watching {
    fn spawn(&self, task: BoxFut<'static, ()>) {
        self.tasks.spawn(Watched { task, panics: self.panics.clone() });
    }
}

struct Watched {
    task: BoxFut<'static, ()>,
    panics: Arc<AtomicUsize>,
}

impl Future for Watched {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let polled = catch_unwind(AssertUnwindSafe(|| self.task.as_mut().poll(cx)));
        polled.unwrap_or_else(|_| {
            self.panics.fetch_add(1, Ordering::SeqCst);
            Poll::Ready(())
        })
    }
}

struct Server {
    runtime: Runtime,
    env: Env,
    at: SocketAddr,
    ca: String,
    panics: Arc<AtomicUsize>,
}

fn server() -> Server {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap();
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let identity = Identity::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (env, at, panics) = runtime.block_on(async {
        let env = system_env().unwrap();
        let tls = server_tls(&identity, &[ALPN_HTTP3], env.clock.clone()).unwrap();
        let endpoint = server_endpoint(&env, "127.0.0.1:0".parse().unwrap(), tls, &QuicParams::edge()).unwrap();
        let at = endpoint.local_addr().unwrap();
        let panics = Arc::new(AtomicUsize::new(0));
        let tasks = Spawner::new(Arc::new(Watching { tasks: env.tasks.clone(), panics: panics.clone() }));
        let handler: QuicHandler = Arc::new(|_, request| {
            Box::pin(async move {
                let status = if read_body(request.into_body(), BODY_BYTES).await.is_ok() { 200 } else { 400 };
                Response::builder().status(status).body(Full::new(Bytes::from_static(b"heard"))).unwrap()
            })
        });
        let limits = HttpLimits { request: Duration::from_millis(500), ..HttpLimits::default() };
        env.tasks.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let Ok(connection) = incoming.await else { continue };
                let (handler, spawner) = (handler.clone(), tasks.clone());
                let serving = serve_quic(spawner, connection, None, limits, handler, std::future::pending());
                tasks.spawn(serving);
            }
        });
        (env, at, panics)
    });
    Server { runtime, env, at, ca: ca.pem(), panics }
}

/// The answer to these bytes, if the connection lives and the stream is not reset.
async fn ask(connection: &Connection, bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut send, mut recv) = connection.open_bi().await.ok()?;
    // It may be stopped in the middle, and answered all the same.
    drop(send.write_all(bytes).await);
    drop(send.finish());
    timeout(WITHIN, recv.read_to_end(1 << 20)).await.expect("an end in time").ok()
}

/// Whether an answer is status 200, as the static table of QPACK has it, or its name and a literal.
fn is_ok(answer: &[u8]) -> bool {
    answer.windows(3).any(|w| w == b"200") || answer.get(..10).is_some_and(|head| head.contains(&(0xc0 | 25)))
}

/// The first byte says what the rest is: a request, or what stands on a stream beside requests.
pub fn run(bytes: &[u8]) -> Came {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let Some((first, rest)) = bytes.split_first() else { return Came::default() };
    let server = SERVER.get_or_init(server);
    let tls = client_tls(server.ca.as_bytes(), &[ALPN_HTTP3], server.env.clock.clone()).unwrap();
    let came = server.runtime.block_on(async {
        let endpoint = client_endpoint(&server.env, "127.0.0.1:0".parse().unwrap()).unwrap();
        let config = client_config(&server.env, tls, &QuicParams::client_http3()).unwrap();
        let connecting = endpoint.connect_with(config, server.at, "localhost").unwrap();
        let connection = timeout(WITHIN, connecting).await.expect("an answer in time").expect("the server lives");
        if first % 2 == 0 {
            let answer = ask(&connection, rest).await;
            let good = answer.as_ref().is_some_and(|answer| is_ok(answer));
            if good {
                // What concerns one request alone leaves the others.
                assert!(ask(&connection, &request(b"hello")).await.is_some_and(|answer| is_ok(&answer)));
            }
            Came { accepted: good, refused: !good }
        } else {
            let mut aside = connection.open_uni().await.expect("room for three");
            drop(aside.write_all(rest).await);
            let good = ask(&connection, &request(b"hello")).await.is_some_and(|answer| is_ok(&answer));
            Came { accepted: good, refused: !good }
        }
    });
    assert_eq!(server.panics.load(Ordering::SeqCst), 0, "a task of the server panicked");
    came
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = 0x4000 | u16::try_from(payload.len()).unwrap();
    [&[kind][..], &length.to_be_bytes(), payload].concat()
}

/// POST https://localhost/echo.
fn header() -> Vec<u8> {
    frame(1, &[&[0, 0, 0xc0 | 20, 0xc0 | 23, 0x50, 9][..], b"localhost", &[0x51, 5], b"/echo"].concat())
}

fn request(body: &[u8]) -> Vec<u8> {
    [header(), frame(0, body)].concat()
}

/// Requests in whole and odd shapes; settings, and what else may be said beside them.
pub fn seeds() -> Vec<Vec<u8>> {
    let huffman = frame(1, &[0, 0, 0xd4, 0xd7, 0x50, 0x86, 0xa0, 0xe4, 0x1d, 0x13, 0x9d, 0x09, 0xc1]);
    let get = frame(1, &[&[0, 0, 0xc0 | 17, 0xc0 | 23, 0xc0 | 1, 0x50, 1][..], b"h"].concat());
    let requests = [
        request(b"hello"),
        request(&[7; 1_001]),
        header(),
        get,
        huffman,
        [header(), frame(0, b""), frame(0x21, b"?"), frame(0, b"x"), frame(1, &[0, 0])].concat(),
        frame(0, b"a body first"),
        frame(1, &[0, 0, 0x10]),
        frame(1, &[2, 0, 0x80]),
        vec![1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        [vec![0x40, 0x41, 0], b"of a web transport".to_vec()].concat(),
    ];
    let settings = frame(4, &[1, 0, 6, 0x44, 0, 7, 0]);
    let asides = [
        [vec![0], settings.clone()].concat(),
        [vec![0], settings.clone(), frame(0x0d, &[3]), frame(7, &[8]), frame(0x21, b"grease")].concat(),
        [vec![0], settings.clone(), settings].concat(),
        [vec![0], frame(7, &[0])].concat(),
        vec![2, 0x3f, 0xe1, 0x1f],
        vec![3, 0x80],
        vec![1, 0],
        vec![0x21, 1, 2, 3],
        vec![0x40, 0x54, 0],
    ];
    let requests = requests.into_iter().map(|bytes| [&[0], &bytes[..]].concat());
    requests.chain(asides.into_iter().map(|bytes| [&[1], &bytes[..]].concat())).collect()
}
