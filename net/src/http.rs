//! HTTP/1.1 over any [`crate::env::Net`]: one server loop and one request, both with limits.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tern_core::store::BoxFut;

/// Answers requests; the address is the connection's.
pub type Handler = Arc<dyn Fn(SocketAddr, Request<Incoming>) -> BoxFut<'static, Response<Full<Bytes>>> + Send + Sync>;
