//! One connection to a server: HTTP/2 where the server speaks it, HTTP/1.1 elsewhere.

use std::fmt::{self, Debug};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper::header::{HOST, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::protocol::{Tasks, Version};
use super::{BodyError, KEEP_ALIVE_EVERY, KEEP_ALIVE_WITHIN, read_body};
use crate::env::{Env, Stream};

/// Bytes of an answer that may be on their way at once, over HTTP/2: as much as a whole answer may have in
/// most places, so that no round trip is lost to flow control.
const WINDOW_BYTES: u32 = 256 * 1024;
/// Bytes of an answer's header, over HTTP/2, decompressed.
const HEADER_BYTES: u32 = 16 * 1024;

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
    /// The server has ended this connection in order, without an answer: ask on another one.
    #[error("{to} has ended the connection in order")]
    Closing {
        /// Where to.
        to: SocketAddr,
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

/// Opens HTTP connections. Cheap to clone; holds no connection. Which version is spoken the TLS set-up decides:
/// give it [`super::ALPN_HTTP`] for the best that the server has. Without TLS it is HTTP/1.1.
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
        let authority = authority(server_name).ok_or_else(|| HttpError::Name(server_name.to_owned()))?;
        let stream = self.env.net.connect(to).await.map_err(|cause| HttpError::Connect { to, cause })?;
        let (stream, version): (Box<dyn Stream>, Version) = match &self.tls {
            None => (stream, Version::One),
            Some(tls) => {
                let name = ServerName::try_from(server_name.to_owned())
                    .map_err(|_| HttpError::Name(server_name.to_owned()))?;
                let stream = tls.connect(name, stream).await.map_err(|e| HttpError::Tls {
                    to,
                    name: server_name.to_owned(),
                    cause: e.to_string(),
                })?;
                let version = Version::of_alpn(stream.get_ref().1.alpn_protocol());
                (Box::new(stream), version)
            }
        };
        let (alive, gone) = watch::channel(());
        // The connection was dropped: they end, whatever they were doing. Their own end is seen by the request
        // in flight, or by the next one.
        let tasks = Tasks { spawner: self.env.tasks.clone(), until: gone };
        let failed = |e: hyper::Error| HttpError::Failed { to, cause: e.to_string() };
        let sender = match version {
            Version::One => {
                let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
                tasks.spawn(async move { drop(driver.await) });
                Sender::One(sender)
            }
            Version::Two => {
                let (sender, driver) = http2::Builder::new(tasks.clone())
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(WINDOW_BYTES)
                    .initial_connection_window_size(WINDOW_BYTES)
                    .max_header_list_size(HEADER_BYTES)
                    .keep_alive_interval(KEEP_ALIVE_EVERY)
                    .keep_alive_timeout(KEEP_ALIVE_WITHIN)
                    .handshake(TokioIo::new(stream))
                    .await
                    .map_err(failed)?;
                tasks.spawn(async move { drop(driver.await) });
                Sender::Two(sender)
            }
        };
        let scheme = if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        Ok(HttpConnection { to, authority, scheme, sender, _alive: alive })
    }
}

/// What a request names its server by; an IPv6 address stands in brackets.
pub(crate) fn authority(server_name: &str) -> Option<Authority> {
    match server_name.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]").parse().ok(),
        Err(_) => server_name.parse().ok(),
    }
}

#[derive(Debug)]
enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// A kept-alive connection: one request at a time. Dropping it closes it.
#[derive(Debug)]
pub struct HttpConnection {
    to: SocketAddr,
    authority: Authority,
    scheme: Scheme,
    sender: Sender,
    _alive: watch::Sender<()>,
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

    /// Whether the two sides agreed on HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Two(_))
    }

    async fn exchange(
        &mut self,
        mut request: Request<Full<Bytes>>,
        limit: usize,
    ) -> Result<Response<Bytes>, HttpError> {
        let to = self.to;
        let failed = |cause: String| HttpError::Failed { to, cause };
        let answer = match &mut self.sender {
            Sender::One(sender) => {
                if !request.headers().contains_key(HOST) {
                    let host = HeaderValue::from_str(self.authority.as_str()).map_err(|e| failed(e.to_string()))?;
                    request.headers_mut().insert(HOST, host);
                }
                sender.ready().await.map_err(|e| failed(e.to_string()))?;
                sender.send_request(request).await.map_err(|e| failed(told(&e)))?
            }
            Sender::Two(sender) => {
                // Scheme and authority are parts of the request here, and stand in for Host (RFC 9113, 8.3.1).
                let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
                let uri = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone());
                *request.uri_mut() = uri.path_and_query(path).build().map_err(|e| failed(e.to_string()))?;
                request.headers_mut().remove(HOST);
                sender.ready().await.map_err(|e| failed(e.to_string()))?;
                sender.send_request(request).await.map_err(|e| failed(told(&e)))?
            }
        };
        let (head, body) = answer.into_parts();
        match read_body(body, limit).await {
            Ok(body) => Ok(Response::from_parts(head, body)),
            Err(BodyError::TooLarge { limit }) => Err(HttpError::TooLarge { to, limit }),
            Err(BodyError::Failed(cause)) => Err(failed(cause)),
        }
    }
}

/// With its cause: hyper's own text for a reset stream does not say by whom or why.
fn told(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
