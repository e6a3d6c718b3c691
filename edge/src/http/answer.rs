//! What is answered to a request that does not become a WebSocket.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_MAX_AGE, ALLOW, CACHE_CONTROL,
    CONTENT_TYPE, HeaderValue, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Response, StatusCode};
use tern_net::http::BodyError;

use super::{POLL, WEBSOCKET};
use crate::poll::Misfit;

pub(super) type Answer = Response<Full<Bytes>>;

/// A request that is not served. Nothing was done.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("there is nothing at this path; there are GET {WEBSOCKET} and POST {POLL}")]
    NotFound,
    #[error("this path has only {0}")]
    Method(&'static str),
    #[error("open a WebSocket here, of version 13: {0}")]
    Upgrade(&'static str),
    #[error("{0}")]
    Header(&'static str),
    #[error("pages of this origin may not connect here")]
    Origin,
    #[error("the body is not whole frames, each with its length before it")]
    Frames,
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
    #[error("the body did not arrive in time")]
    Late,
    #[error("the body was cut short")]
    Cut,
    #[error("this edge takes no more connections now, or none from this address; come again later, or elsewhere")]
    Full,
    #[error(transparent)]
    Misfit(#[from] Misfit),
}

impl HttpError {
    fn parts(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Upgrade(_) => (StatusCode::UPGRADE_REQUIRED, "upgrade_required"),
            Self::Header(_) => (StatusCode::BAD_REQUEST, "bad_header"),
            Self::Origin => (StatusCode::FORBIDDEN, "bad_origin"),
            Self::Frames => (StatusCode::BAD_REQUEST, "bad_body"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::Late => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::Cut => (StatusCode::BAD_REQUEST, "body_cut"),
            Self::Full => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
            Self::Misfit(Misfit::Number(_)) => (StatusCode::CONFLICT, "wrong_number"),
            Self::Misfit(Misfit::Repeated) => (StatusCode::CONFLICT, "repeated"),
            Self::Misfit(Misfit::Full) => (StatusCode::SERVICE_UNAVAILABLE, "not_read_yet"),
            Self::Misfit(Misfit::Over) => (StatusCode::GONE, "session_over"),
        }
    }

    pub(super) fn response(&self) -> Answer {
        let (status, code) = self.parts();
        let body = serde_json::json!({ "error": { "code": code, "message": self.to_string() } });
        let mut response = respond(status, "application/json", Bytes::from(body.to_string()));
        let headers = response.headers_mut();
        match self {
            Self::Method(allowed) => {
                headers.insert(ALLOW, HeaderValue::from_static(allowed));
            }
            Self::Upgrade(_) => {
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            _ => {}
        }
        response
    }

    /// Whether the client should have known better, so that it counts against its address block.
    pub(super) fn is_fault(&self) -> bool {
        !matches!(self, Self::Full | Self::Misfit(_) | Self::Cut)
    }
}

impl From<BodyError> for HttpError {
    fn from(e: BodyError) -> Self {
        match e {
            BodyError::TooLarge { limit } => Self::TooLarge(limit),
            BodyError::Failed(_) => Self::Cut,
        }
    }
}

pub(super) fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What a browser asks before it lets a page of another origin poll.
pub(super) fn preflight() -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, DELETE"));
    let allowed = "content-type, tern-poll, tern-number, tern-wait-ms";
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    response
}
