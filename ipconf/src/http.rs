//! The dispatch API over HTTP: paths, methods, limits, errors.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, VARY};
use hyper::{Method, Request, Response, StatusCode};
use prost::Message;
use serde::Serialize;
use tern_core::wire::v1;
use tern_net::forwarded::Caller;
use tern_net::http::Handler;

use crate::api::{DispatchRequest, ErrorBody, ErrorView};
use crate::dispatch::{Dispatch, DispatchError};
use crate::encoding::Encoding;
use crate::limits::{BODY_BYTES, BODY_TIMEOUT};
use crate::metrics::Outcome;
use crate::proto::ProtoError;

const DISPATCH: &str = "/v1/dispatch";
const HEALTH: &str = "/v1/health";

/// A request without a list.
#[derive(Debug, thiserror::Error)]
enum HttpError {
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
    #[error("the body is no dispatch request: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the body is no dispatch request in protobuf: {0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("the body is no dispatch request: {0}")]
    Field(#[from] ProtoError),
    #[error(
        "Accept allows neither application/json nor application/x-protobuf, which are the forms that answers have; \
         name one of them, or leave Accept out for JSON"
    )]
    NotAcceptable,
    #[error(
        "a body of type {0:?} is not understood; send application/json or application/x-protobuf \
         (tern.v1.DispatchRequest), and say which in Content-Type"
    )]
    UnsupportedType(String),
    #[error("the body has more than {BODY_BYTES} bytes")]
    TooLarge,
    #[error("the body did not arrive within {} s", BODY_TIMEOUT.as_secs())]
    Timeout,
    #[error("the body was cut short: {0}")]
    Cut(String),
    #[error("there is nothing at this path; there are POST {DISPATCH} and GET {HEALTH}")]
    NotFound,
    #[error("this path has only {0}")]
    MethodNotAllowed(&'static str),
}

impl HttpError {
    fn parts(&self) -> (StatusCode, &'static str, Outcome) {
        match self {
            Self::Json(_)
            | Self::Protobuf(_)
            | Self::Field(_)
            | Self::Cut(_)
            | Self::Dispatch(DispatchError::BadRequest(_)) => {
                (StatusCode::BAD_REQUEST, "bad_request", Outcome::BadRequest)
            }
            Self::Dispatch(DispatchError::WhatIfForbidden(_)) => {
                (StatusCode::FORBIDDEN, "what_if_forbidden", Outcome::Forbidden)
            }
            Self::Dispatch(DispatchError::NoEdges { .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, "no_edges", Outcome::NoEdges)
            }
            Self::Dispatch(DispatchError::TooOften { .. }) => {
                (StatusCode::TOO_MANY_REQUESTS, "too_many_requests", Outcome::TooOften)
            }
            Self::NotAcceptable => (StatusCode::NOT_ACCEPTABLE, "not_acceptable", Outcome::NotAcceptable),
            Self::UnsupportedType(_) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", Outcome::UnsupportedType)
            }
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", Outcome::TooLarge),
            Self::Timeout => (StatusCode::REQUEST_TIMEOUT, "body_timeout", Outcome::Timeout),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", Outcome::NotFound),
            Self::MethodNotAllowed(_) => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", Outcome::MethodNotAllowed)
            }
        }
    }

    fn response(&self, encoding: Encoding) -> (Response<Full<Bytes>>, Outcome) {
        let (status, code, outcome) = self.parts();
        let body = ErrorBody { error: ErrorView { code: code.to_owned(), message: self.to_string() } };
        let mut response = match encoding {
            Encoding::Json => json(status, &body),
            Encoding::Protobuf => protobuf(status, &v1::DispatchFailure::from(&body)),
        };
        match self {
            Self::Dispatch(
                DispatchError::NoEdges { retry_after_s, .. } | DispatchError::TooOften { retry_after_s, .. },
            ) => {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(*retry_after_s));
            }
            Self::MethodNotAllowed(allowed) => {
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
            }
            _ => {}
        }
        (response, outcome)
    }
}

impl Dispatch {
    /// For [`tern_net::http::serve`]: `POST /v1/dispatch` and `GET /v1/health`.
    pub fn handler(self: &Arc<Self>) -> Handler {
        let dispatch = self.clone();
        Arc::new(move |connection: SocketAddr, request| {
            let dispatch = dispatch.clone();
            Box::pin(async move { dispatch.respond(connection, request).await })
        })
    }

    /// Answers one request.
    pub async fn respond<B>(&self, connection: SocketAddr, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        // An error in a form that was not asked for is still told, in the one that people can read.
        let accepted = Encoding::accepted(request.headers());
        let answered = match request.uri().path() {
            DISPATCH if request.method() == Method::POST => self.dispatch(connection, request, accepted).await,
            DISPATCH => Err(HttpError::MethodNotAllowed("POST")),
            HEALTH if [Method::GET, Method::HEAD].contains(request.method()) => Ok(self.health_response()),
            HEALTH => Err(HttpError::MethodNotAllowed("GET, HEAD")),
            _ => Err(HttpError::NotFound),
        };
        let (response, outcome) = answered.unwrap_or_else(|e| e.response(accepted.unwrap_or_default()));
        self.metrics.ended(outcome);
        response
    }

    async fn dispatch<B>(
        &self,
        connection: SocketAddr,
        request: Request<B>,
        accepted: Option<Encoding>,
    ) -> Result<(Response<Full<Bytes>>, Outcome), HttpError>
    where
        B: Body,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let caller = Caller::of(connection.ip(), request.headers(), &self.tuning().trusted_proxies);
        // Before anything that costs more than this.
        self.admit(caller)?;
        let encoding = accepted.ok_or(HttpError::NotAcceptable)?;
        let (head, body) = request.into_parts();
        // A body that says that it is too large is not read at all.
        if body.size_hint().lower() > BODY_BYTES as u64 {
            return Err(HttpError::TooLarge);
        }
        let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES).collect()).await;
        let body = match body {
            Err(_) => return Err(HttpError::Timeout),
            Ok(Err(e)) if e.is::<LengthLimitError>() => return Err(HttpError::TooLarge),
            Ok(Err(e)) => return Err(HttpError::Cut(e.to_string())),
            Ok(Ok(body)) => body.to_bytes(),
        };
        // All fields are optional, and so is the whole; then it is no matter what it says it is.
        let request = match Encoding::of_body(&head.headers) {
            _ if body.is_empty() => DispatchRequest::default(),
            Ok(Encoding::Json) if body.trim_ascii().is_empty() => DispatchRequest::default(),
            Ok(Encoding::Json) => serde_json::from_slice(&body)?,
            Ok(Encoding::Protobuf) => v1::DispatchRequest::decode(body)?.try_into()?,
            Err(other) => return Err(HttpError::UnsupportedType(other)),
        };
        let answer = self.decide_for(&request, caller)?;
        self.metrics.listed(head.version, encoding.name());
        let response = match encoding {
            Encoding::Json => json(StatusCode::OK, &answer),
            Encoding::Protobuf => protobuf(StatusCode::OK, &v1::DispatchAnswer::from(&answer)),
        };
        Ok((response, Outcome::Ok))
    }

    fn health_response(&self) -> (Response<Full<Bytes>>, Outcome) {
        self.refresh_metrics();
        let health = self.health();
        let status = if health.edges_listed > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (json(status, &health), Outcome::Health)
    }
}

fn json(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    // Fails only for maps with keys that are no text, of which the API has none.
    encoded(status, Encoding::Json, serde_json::to_vec(body).unwrap_or_default())
}

fn protobuf(status: StatusCode, body: &impl Message) -> Response<Full<Bytes>> {
    encoded(status, Encoding::Protobuf, body.encode_to_vec())
}

fn encoded(status: StatusCode, encoding: Encoding, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, encoding.content_type());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(VARY, HeaderValue::from_static("accept"));
    response
}
