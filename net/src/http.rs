//! HTTP/1.1 over any [`crate::env::Net`]: one server loop and one connection, both with limits.
//!
//! There is no pool and no resolver: whoever asks says which address, and keeps a connection if he wants to
//! ask again. No `Date` header is written, since its text would depend on the machine's calendar.

use std::convert::Infallible;
use std::fmt::{self, Debug};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{HOST, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tern_core::store::BoxFut;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::env::{Acceptor, Env, Stream};

/// Answers requests; the address is the connection's.
pub type Handler = Arc<dyn Fn(SocketAddr, Request<Incoming>) -> BoxFut<'static, Response<Full<Bytes>>> + Send + Sync>;

/// Bounds of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Connections served at once; more wait in the listener's backlog. 1,024: tens of MiB at most.
    pub connections: usize,
    /// A TLS handshake takes no longer. 5 s: a bad mobile link needs two or three.
    pub handshake: Duration,
    /// The next request's header must be whole by then; also how long an idle connection is kept. 30 s.
    pub header: Duration,
    /// A request is answered by then, its body's arrival included, or gets 503. 30 s.
    pub request: Duration,
    /// Bytes of a request's header. 16 KiB.
    pub header_bytes: usize,
    /// Header lines of a request. 64.
    pub headers: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 1024,
            handshake: Duration::from_secs(5),
            header: Duration::from_secs(30),
            request: Duration::from_secs(30),
            header_bytes: 16 * 1024,
            headers: 64,
        }
    }
}

/// After a failed accept (no file descriptors left, say) the server waits this long: the cause lasts, and a
/// loop without a pause would burn a core.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `handler` until the returned future is dropped, which also ends every connection.
pub async fn serve(
    env: Env,
    mut acceptor: Box<dyn Acceptor>,
    tls: Option<Arc<rustls::ServerConfig>>,
    limits: HttpLimits,
    handler: Handler,
) {
    let tls = tls.map(TlsAcceptor::from);
    let places = Arc::new(Semaphore::new(limits.connections.max(1)));
    // Dropped with this future; the connections' tasks see that and end.
    let (_running, stop) = watch::channel(());
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, from) = match acceptor.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(error = %e, "an HTTP connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, handler, mut stop) = (tls.clone(), handler.clone(), stop.clone());
        env.tasks.spawn(async move {
            tokio::select! {
                biased;
                _ = stop.changed() => {}
                () = connection(stream, from, tls, limits, handler) => {}
            }
            drop(place);
        });
    }
}

async fn connection(
    stream: Box<dyn Stream>,
    from: SocketAddr,
    tls: Option<TlsAcceptor>,
    limits: HttpLimits,
    handler: Handler,
) {
    let stream: Box<dyn Stream> = match tls {
        None => stream,
        Some(tls) => match timeout(limits.handshake, tls.accept(stream)).await {
            Ok(Ok(stream)) => Box::new(stream),
            // Strangers who fail a handshake are no event for an operator.
            Ok(Err(_)) | Err(_) => return,
        },
    };
    let service = service_fn(move |request| {
        let answer = handler(from, request);
        async move {
            Ok::<_, Infallible>(timeout(limits.request, answer).await.unwrap_or_else(|_| {
                let mut late = Response::new(Full::new(Bytes::from_static(b"the request was not answered in time\n")));
                *late.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                late
            }))
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .header_read_timeout(limits.header)
        .max_buf_size(limits.header_bytes.max(8192))
        .max_headers(limits.headers)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(e) = served {
        tracing::debug!(%from, error = %e, "an HTTP connection ended early");
    }
}

/// Why a request's body was not read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// More than allowed; the rest was not read.
    #[error("the body has more than {limit} bytes")]
    TooLarge {
        /// What is allowed.
        limit: usize,
    },
    /// The connection failed before its end.
    #[error("the body was cut short: {0}")]
    Failed(String),
}

/// Reads a whole body of at most `limit` bytes.
pub async fn read_body(body: Incoming, limit: usize) -> Result<Bytes, BodyError> {
    match Limited::new(body, limit).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(e) if e.downcast_ref::<LengthLimitError>().is_some() => Err(BodyError::TooLarge { limit }),
        Err(e) => Err(BodyError::Failed(e.to_string())),
    }
}

/// Why a request got no answer. Whether the server acted on it is not known once it was connected.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection. The request was not sent.
    #[error("can't connect to {to}: {cause}")]
    Connect {
        /// Where to.
        to: SocketAddr,
        /// What the system says.
        cause: io::Error,
    },
    /// No TLS session. The request was not sent.
    #[error("no TLS session with {name} at {to}: {cause}; check the name and the CA that is trusted")]
    Tls {
        /// Where to.
        to: SocketAddr,
        /// As whom.
        name: String,
        /// What is wrong.
        cause: String,
    },
    /// A name that can't be in a certificate. The request was not sent.
    #[error("{0:?} is not a host name or address")]
    Name(String),
    /// The connection failed, or the answer is not HTTP.
    #[error("the connection to {to} failed: {cause}")]
    Failed {
        /// Where to.
        to: SocketAddr,
        /// What is wrong.
        cause: String,
    },
    /// The answer is larger than allowed.
    #[error("the answer from {to} has more than {limit} bytes")]
    TooLarge {
        /// Where to.
        to: SocketAddr,
        /// What is allowed.
        limit: usize,
    },
    /// It took too long.
    #[error("{to} did not answer within {after:?}")]
    Late {
        /// Where to.
        to: SocketAddr,
        /// What was allowed.
        after: Duration,
    },
}

/// Opens HTTP connections. Cheap to clone; holds no connection.
#[derive(Clone)]
pub struct HttpClient {
    env: Env,
    tls: Option<TlsConnector>,
}

impl Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

impl HttpClient {
    /// With `tls`, HTTPS; without, plain HTTP.
    pub fn new(env: Env, tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        Self { env, tls: tls.map(TlsConnector::from) }
    }

    /// One request on a connection of its own. `limit_bytes` bounds the answer's body, `within` all of it.
    /// Dropping the future closes the connection.
    pub async fn request(
        &self,
        to: SocketAddr,
        server_name: &str,
        request: Request<Full<Bytes>>,
        limit_bytes: usize,
        within: Duration,
    ) -> Result<Response<Bytes>, HttpError> {
        let whole = async {
            let mut connection = self.open(to, server_name).await?;
            connection.exchange(request, limit_bytes).await
        };
        timeout(within, whole).await.map_err(|_| HttpError::Late { to, after: within })?
    }

    /// A connection for several requests, one after the other.
    pub async fn connect(
        &self,
        to: SocketAddr,
        server_name: &str,
        within: Duration,
    ) -> Result<HttpConnection, HttpError> {
        timeout(within, self.open(to, server_name)).await.map_err(|_| HttpError::Late { to, after: within })?
    }

    async fn open(&self, to: SocketAddr, server_name: &str) -> Result<HttpConnection, HttpError> {
        let host = HeaderValue::from_str(server_name).map_err(|_| HttpError::Name(server_name.to_owned()))?;
        let stream = self.env.net.connect(to).await.map_err(|cause| HttpError::Connect { to, cause })?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => stream,
            Some(tls) => {
                let name = ServerName::try_from(server_name.to_owned())
                    .map_err(|_| HttpError::Name(server_name.to_owned()))?;
                Box::new(tls.connect(name, stream).await.map_err(|e| HttpError::Tls {
                    to,
                    name: server_name.to_owned(),
                    cause: e.to_string(),
                })?)
            }
        };
        let failed = |e: hyper::Error| HttpError::Failed { to, cause: e.to_string() };
        let (sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let (alive, gone) = oneshot::channel();
        self.env.tasks.spawn(async move {
            tokio::select! {
                biased;
                // The connection was dropped: close it, whatever it was doing.
                _ = gone => {}
                // Its end is seen by the request in flight, or by the next one.
                _ = driver => {}
            }
        });
        Ok(HttpConnection { to, host, sender, _alive: alive })
    }
}

/// A kept-alive connection: one request at a time. Dropping it closes it.
#[derive(Debug)]
pub struct HttpConnection {
    to: SocketAddr,
    host: HeaderValue,
    sender: SendRequest<Full<Bytes>>,
    _alive: oneshot::Sender<()>,
}

impl HttpConnection {
    /// One request; `limit_bytes` bounds the answer's body, `within` all of it. After an error open a new
    /// connection.
    pub async fn request(
        &mut self,
        request: Request<Full<Bytes>>,
        limit_bytes: usize,
        within: Duration,
    ) -> Result<Response<Bytes>, HttpError> {
        let to = self.to;
        let exchange = self.exchange(request, limit_bytes);
        timeout(within, exchange).await.map_err(|_| HttpError::Late { to, after: within })?
    }

    async fn exchange(
        &mut self,
        mut request: Request<Full<Bytes>>,
        limit: usize,
    ) -> Result<Response<Bytes>, HttpError> {
        let to = self.to;
        let failed = |cause: String| HttpError::Failed { to, cause };
        request.headers_mut().entry(HOST).or_insert_with(|| self.host.clone());
        self.sender.ready().await.map_err(|e| failed(e.to_string()))?;
        let answer = self.sender.send_request(request).await.map_err(|e| failed(e.to_string()))?;
        let (head, body) = answer.into_parts();
        match read_body(body, limit).await {
            Ok(body) => Ok(Response::from_parts(head, body)),
            Err(BodyError::TooLarge { limit }) => Err(HttpError::TooLarge { to, limit }),
            Err(BodyError::Failed(cause)) => Err(failed(cause)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::system_env;
    use crate::testing::Pki;
    use crate::tls;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
        let serving = connection(Box::new(far), from, None, HttpLimits::default(), never);
        let asking = async {
            let mut near = near;
            near.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 503"));
        };
        tokio::join!(serving, asking);
    }
}
