//! HTTP for `object_store`, over this node's own sockets, clock and TLS.
//!
//! Connections are kept and used again, a few of them; what fails on one is asked again on another by whoever asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::HOST;
use hyper::http::uri::Scheme;
use hyper::{Request, Uri};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use tern_net::env::Env;
use tern_net::http::{HttpClient as Client, HttpConnection, HttpError as Failed};
use tern_net::tls::client_tls;

/// Longest answer: an object, or a list of a thousand of them.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// Connections that are kept while nothing is asked.
const IDLE: usize = 8;

/// Makes HTTP clients for `object_store`.
#[derive(Debug, Clone)]
pub struct Connector(Arc<Shared>);

struct Shared {
    env: Env,
    plain: Client,
    secure: Option<Client>,
    within: Duration,
    idle: Mutex<Vec<(String, HttpConnection)>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector(..)")
    }
}

impl Connector {
    /// Trusts the authorities in `ca_pem`; without any, HTTPS is refused. The error says what is wrong with them.
    pub fn new(env: Env, ca_pem: &[u8], within: Duration) -> Result<Self, String> {
        let secure = match ca_pem {
            [] => None,
            pem => Some(client_tls(pem, &[b"http/1.1"], env.clock.clone()).map_err(|error| error.to_string())?),
        };
        let secure = secure.map(|tls| Client::new(env.clone(), Some(tls)));
        let plain = Client::new(env.clone(), None);
        Ok(Self(Arc::new(Shared { env, plain, secure, within, idle: Mutex::default() })))
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

fn told(error: Failed) -> HttpError {
    let kind = match &error {
        Failed::Connect { .. } | Failed::Tls { .. } | Failed::Name(_) => HttpErrorKind::Connect,
        Failed::Failed { .. } | Failed::Closing { .. } => HttpErrorKind::Interrupted,
        Failed::Late { .. } => HttpErrorKind::Timeout,
        Failed::TooLarge { .. } => HttpErrorKind::Decode,
    };
    HttpError::new(kind, error)
}

fn wrong(what: &str) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, std::io::Error::other(what.to_owned()))
}

impl Shared {
    fn kept(&self, to: &str) -> Option<HttpConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let at = idle.iter().position(|(at, _)| at == to)?;
        Some(idle.swap_remove(at).1)
    }

    fn keep(&self, to: String, connection: HttpConnection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= IDLE {
            idle.remove(0);
        }
        idle.push((to, connection));
    }

    async fn open(&self, uri: &Uri, is_secure: bool) -> Result<HttpConnection, HttpError> {
        let name = uri.host().unwrap_or_default();
        let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        let client = match (&self.secure, is_secure) {
            (Some(client), true) => client,
            (None, true) => {
                return Err(wrong("HTTPS is to be used, and no authorities are trusted: set store.tier.ca"));
            }
            (_, false) => &self.plain,
        };
        let addresses = match name.parse() {
            Ok(address) => vec![address],
            Err(_) => {
                let found = self.env.net.resolve(name).await;
                found.map_err(|error| HttpError::new(HttpErrorKind::Connect, error))?
            }
        };
        let mut last = wrong("its name has no addresses");
        for address in addresses {
            match client.connect(SocketAddr::new(address, port), name, self.within).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = told(error),
            }
        }
        Err(last)
    }

    async fn exchange(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let is_secure = head.uri.scheme() == Some(&Scheme::HTTPS);
        let Some(authority) = head.uri.authority().cloned() else { return Err(wrong("a request to nobody")) };
        let body = body.collect().await?.to_bytes();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut again = Request::builder().method(head.method).uri(path);
        if let Some(headers) = again.headers_mut() {
            *headers = head.headers;
            if !headers.contains_key(HOST)
                && let Ok(host) = authority.as_str().parse()
            {
                headers.insert(HOST, host);
            }
        }
        let again = again.body(Full::new(body)).map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let to = format!("{is_secure} {authority}");
        // A connection that was kept may have been closed meanwhile: then a new one is asked, once.
        if let Some(mut kept) = self.kept(&to)
            && let Ok(answer) = kept.request(again.clone(), ANSWER_BYTES, self.within).await
        {
            self.keep(to, kept);
            return Ok(answer.map(HttpResponseBody::from));
        }
        let mut connection = self.open(&head.uri, is_secure).await?;
        let answer = connection.request(again, ANSWER_BYTES, self.within).await.map_err(told)?;
        self.keep(to, connection);
        Ok(answer.map(|body: Bytes| HttpResponseBody::from(body)))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.0.exchange(request).await
    }
}
