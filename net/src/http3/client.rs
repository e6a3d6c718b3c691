//! Asking over HTTP/3.

use std::fmt::{self, Debug};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h3::client::{RequestStream, SendRequest};
use h3::error::{Code, StreamError};
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_LENGTH, HOST};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Request, Response, Uri};
use tokio::sync::watch;
use tokio::time::timeout;

use super::HTTP3_NO_ERROR;
use super::body::{CutShort, poll_piece, said_length};
use super::stack::{Both, Fate, Opened, Opener, Quic, REQUEST_CANCELLED};
use crate::env::Spawner;
use crate::http::{HttpError, Tasks, authority};

/// Bytes of an answer's header.
const HEADER_BYTES: usize = 16 * 1024;

/// A QUIC connection that speaks HTTP/3, for several requests, also at once: clones share it. Dropping the last closes
/// it.
#[derive(Clone)]
pub struct Http3Connection {
    sender: SendRequest<Opener, Bytes>,
    opened: Opened,
    authority: Authority,
    to: SocketAddr,
    open: Arc<Closing>,
}

/// Closes the connection when dropped.
struct Closing {
    connection: quinn::Connection,
    _alive: watch::Sender<()>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.connection.close(HTTP3_NO_ERROR, b"");
    }
}

impl Debug for Http3Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http3Connection").field("to", &self.to).finish_non_exhaustive()
    }
}

impl Http3Connection {
    /// On a connection that agreed on [`super::ALPN_HTTP3`] and gives the server three unidirectional streams
    /// ([`crate::quic::QuicParams::client_http3`]). Needs no answer of the server.
    pub async fn new(tasks: Spawner, connection: quinn::Connection, server_name: &str) -> Result<Self, HttpError> {
        let authority = authority(server_name).ok_or_else(|| HttpError::Name(server_name.to_owned()))?;
        let to = connection.remote_address();
        let mut builder = h3::client::builder();
        builder.max_field_section_size(HEADER_BYTES as u64).send_grease(false);
        let quic = Quic::new(connection.clone(), None, HEADER_BYTES);
        let opened = quic.opened();
        let built = builder.build(quic).await;
        let (mut driver, sender) = built.map_err(|e| HttpError::Failed { to, cause: e.to_string() })?;
        let (alive, until) = watch::channel(());
        let tasks = Tasks { spawner: tasks, until };
        tasks.spawn(async move {
            let e = poll_fn(|cx| driver.poll_close(cx)).await;
            tracing::debug!(error = %e, "an HTTP/3 connection ended");
        });
        Ok(Self { sender, opened, authority, to, open: Arc::new(Closing { connection, _alive: alive }) })
    }

    /// Whether both are clones of one.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.open, &other.open)
    }

    /// One request; `limit_bytes` bounds the answer's body, `within` all of it. After an error open a new connection.
    /// Dropping the future gives the request up, and tells the server so.
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

    async fn exchange(&mut self, request: Request<Full<Bytes>>, limit: usize) -> Result<Response<Bytes>, HttpError> {
        let to = self.to;
        let failed = |cause: String| HttpError::Failed { to, cause };
        let (mut head, body) = request.into_parts();
        // A whole body in memory can't fail.
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let path = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        let uri = Uri::builder().scheme(Scheme::HTTPS).authority(self.authority.clone());
        head.uri = uri.path_and_query(path).build().map_err(|e| failed(e.to_string()))?;
        head.headers.remove(HOST);
        head.headers.insert(CONTENT_LENGTH, body.len().into());
        // Its own, for the stream that it opens.
        let mut sender = self.sender.clone();
        let opened = sender.send_request(Request::from_parts(head, ())).await;
        let stream = opened.map_err(|e| why(&e, to))?;
        let Some(fate) = self.opened.take(stream.id()) else { return Err(failed("the stream is gone".to_owned())) };
        answer(stream, &fate, body, limit, to).await
    }
}

/// Whether a server that ends is all that is wrong.
fn why(e: &StreamError, to: SocketAddr) -> HttpError {
    let rejected = matches!(e, StreamError::RemoteTerminate { code, .. } if *code == Code::H3_REQUEST_REJECTED);
    if rejected || e.is_h3_no_error() || matches!(e, StreamError::RemoteClosing { .. }) {
        HttpError::Closing { to }
    } else {
        HttpError::Failed { to, cause: e.to_string() }
    }
}

async fn answer(
    mut stream: RequestStream<Both, Bytes>,
    fate: &Fate,
    body: Bytes,
    limit: usize,
    to: SocketAddr,
) -> Result<Response<Bytes>, HttpError> {
    let failed = |cause: String| HttpError::Failed { to, cause };
    // A server may answer without having read it all, and says so by stopping it.
    let said = async {
        if !body.is_empty() {
            stream.send_data(body).await?;
        }
        stream.finish().await
    };
    if let Err(e) = said.await {
        tracing::debug!(%to, error = %e, "a server did not read a request to its end");
    }
    let (head, ()) = stream.recv_response().await.map_err(|e| why(&e, to))?.into_parts();
    let (mut whole, length) = (BytesMut::new(), said_length(&head.headers));
    while let Some(piece) = poll_fn(|cx| poll_piece(fate, cx, |cx| stream.poll_recv_data(cx))).await.transpose() {
        let piece = piece.map_err(|e| failed(e.to_string()))?;
        if whole.len() + piece.len() > limit {
            stream.stop_sending(REQUEST_CANCELLED.into_inner().into());
            return Err(HttpError::TooLarge { to, limit });
        }
        whole.extend_from_slice(&piece);
    }
    match length {
        Some(said) if said != whole.len() as u64 => {
            Err(failed(CutShort::Length { came: whole.len() as u64, said }.to_string()))
        }
        _ => Ok(Response::from_parts(head, whole.freeze())),
    }
}
