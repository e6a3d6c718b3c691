//! Asks dispatch, over HTTPS as any client would, which edges it would list for real addresses around the
//! world, and why.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use tern_ipconf::api::{DispatchAnswer, DispatchRequest, EdgeView, HealthView};
use tern_net::env::Env;
use tern_net::http::{HttpClient, HttpConnection};
use tern_net::tls::client_tls;
use tokio::time::{Instant, sleep};

use super::narrator::Narrator;

/// Addresses of large access networks, looked up as they are.
const ADDRESSES: [&str; 8] = [
    "91.0.0.1",     // Germany
    "2a01:4f8::1",  // Germany
    "177.0.0.1",    // Brazil
    "2804:14c::1",  // Brazil
    "49.32.0.1",    // India
    "2409:4000::1", // India
    "126.0.0.1",    // Japan
    "2400:4050::1", // Japan
];
/// Dispatch of a process that serves answers within milliseconds; a loaded machine may take longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Edges report once a second, and regions exchange that once a second.
const LISTED_WITHIN: Duration = Duration::from_secs(15);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// An answer has a few KiB.
const ANSWER_BYTES: usize = 64 * 1024;

/// A connection to one region's dispatch.
#[derive(Debug)]
pub struct Lookup {
    http: HttpConnection,
}

impl Lookup {
    /// Connects, trusting the deployment's authority alone.
    pub async fn connect(env: &Env, at: SocketAddr, public_ca: &Path) -> Result<Self> {
        let ca = std::fs::read(public_ca).with_context(|| format!("can't read {}", public_ca.display()))?;
        let tls = client_tls(&ca, &[b"http/1.1"], env.clock.clone())?;
        let client = HttpClient::new(env.clone(), Some(Arc::clone(&tls)));
        let http = client.connect(at, "localhost", ANSWER_WITHIN).await?;
        Ok(Self { http })
    }

    /// How many edges may be listed now.
    pub async fn edges_listed(&mut self) -> Result<usize> {
        let health: HealthView = self.exchange(Request::get("/v1/health").body(Full::default())?).await?;
        Ok(usize::try_from(health.edges_listed)?)
    }

    /// Waits until so many edges are listed.
    pub async fn wait_for_edges(&mut self, count: usize) -> Result<()> {
        let until = Instant::now() + LISTED_WITHIN;
        loop {
            let listed = self.edges_listed().await?;
            if listed >= count {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("dispatch lists {listed} of {count} edges after {} s", LISTED_WITHIN.as_secs());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Asks for each address and says what the answer is.
    pub async fn narrate(&mut self, narrator: Narrator) -> Result<()> {
        for address in ADDRESSES {
            let address: IpAddr = address.parse()?;
            let question = DispatchRequest { as_address: Some(address), explain: true, ..DispatchRequest::default() };
            let body = Full::new(Bytes::from(serde_json::to_vec(&question)?));
            let answer: DispatchAnswer = self.exchange(Request::post("/v1/dispatch").body(body)?).await?;
            let country = answer.client.country.as_deref().unwrap_or("?");
            let edges: Vec<String> = answer.edges.iter().map(described).collect();
            narrator.say(
                "dispatch",
                &format!("{address:<13} ({country}) -> {}", edges.join(", ")),
                json!({ "address": address, "country": country, "edges": answer.edges }),
            );
        }
        Ok(())
    }

    async fn exchange<T: serde::de::DeserializeOwned>(&mut self, request: Request<Full<Bytes>>) -> Result<T> {
        let answer: Response<Bytes> = self.http.request(request, ANSWER_BYTES, ANSWER_WITHIN).await?;
        if answer.status() != StatusCode::OK {
            bail!("dispatch answered {}: {}", answer.status(), String::from_utf8_lossy(answer.body()));
        }
        serde_json::from_slice(answer.body()).context("dispatch answered something else than documented")
    }
}

fn described(edge: &EdgeView) -> String {
    match &edge.explain {
        Some(why) => format!("{} ({})", edge.id, why.reason),
        None => edge.id.clone(),
    }
}
