//! The task that ticks the machine and starts what the machine asks for.

use std::sync::Arc;
use std::time::Duration;

use tern_core::client::limits::TOKEN_TIMEOUT;
use tern_core::client::{Asking, NetInfo};
use tern_core::wire::ALPN_CLIENT;
use tern_net::http::{ALPN_HTTP, HttpClient};
use tern_net::http3::ALPN_HTTP3;
use tern_net::resume::Resuming;
use tern_net::tls::client_tls;

use crate::config::TokenError;
use crate::connection;
use crate::dispatch;
use crate::limits::TICK_MIN;
use crate::shared::{Job, Shared};

/// TLS set-ups of a client, made once.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) edges: Arc<rustls::ClientConfig>,
    /// The same, with sessions that are taken up again.
    pub(crate) quic: Arc<Resuming>,
    pub(crate) http: Arc<rustls::ClientConfig>,
    pub(crate) http3: Arc<rustls::ClientConfig>,
    pub(crate) websocket: Arc<rustls::ClientConfig>,
}

impl Tls {
    pub(crate) fn new(shared: &Shared) -> Result<Self, tern_net::tls::TlsError> {
        let make = |alpn: &[&[u8]]| client_tls(&shared.config.roots_pem, alpn, shared.env.clock.clone());
        let edges = make(&[ALPN_CLIENT])?;
        Ok(Self {
            quic: Resuming::new(edges.clone()),
            edges,
            http: make(&ALPN_HTTP)?,
            http3: make(&[ALPN_HTTP3])?,
            websocket: make(&[b"http/1.1"])?,
        })
    }
}

/// Runs until the client is closed. `tls` is absent where there is no server to talk to.
pub(crate) async fn run(shared: Arc<Shared>, tls: Option<Tls>) {
    while let Some((jobs, deadline)) = shared.work() {
        for job in jobs {
            start(&shared, tls.as_ref(), job);
        }
        let due = async {
            match deadline {
                Some(at) => tokio::time::sleep(at.saturating_sub(shared.env.clock.now()).max(TICK_MIN)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shared.wake.notified() => {}
            () = due => shared.tick(),
        }
    }
}

fn start(shared: &Arc<Shared>, tls: Option<&Tls>, job: Job) {
    let task = shared.clone();
    match job {
        Job::Connect(job) => {
            let tls = tls.cloned();
            shared.env.tasks.spawn(async move {
                let failure = match tls {
                    Some(tls) => connection::run(&task, &tls, &job).await,
                    None => connection::no_roots(),
                };
                task.ended(job.conn, &job.out, &failure);
            });
        }
        Job::Dispatch(asking, network) => {
            let tls = tls.cloned();
            shared.env.tasks.spawn(async move { ask_dispatch(&task, tls, &asking, network.as_ref()).await });
        }
        Job::Token { refused } => shared.env.tasks.spawn(async move {
            let late = || TokenError(format!("the token provider did not answer within {TOKEN_TIMEOUT:?}"));
            let token = tokio::time::timeout(TOKEN_TIMEOUT, task.tokens.token(refused)).await;
            let token = token.unwrap_or_else(|_| Err(late()));
            // Store errors were told as events.
            let _told = match token {
                Ok(token) => task.act(|m, now| m.token(now, Some(token))),
                Err(error) => {
                    tracing::warn!(%error, "no token: trying again after a pause");
                    task.act(|m, now| m.no_token(now, &error.0))
                }
            };
        }),
    }
}

async fn ask_dispatch(shared: &Arc<Shared>, tls: Option<Tls>, asking: &Asking, network: Option<&NetInfo>) {
    let answer = match (shared.config.dispatch.get(asking.target), tls) {
        (Some(server), Some(tls)) => {
            let http = HttpClient::new(shared.env.clone(), Some(tls.http));
            let edge_name = shared.config.edge_name.as_deref();
            dispatch::ask(shared.env.net.as_ref(), &http, server, &shared.config.user, asking, network, edge_name).await
        }
        _ => Ok((Vec::new(), Duration::ZERO, bytes::Bytes::new())),
    };
    let wall_ms = shared.env.clock.wall_ms();
    // Store errors were told as events.
    let _told = match answer {
        Ok((list, ttl, text)) => shared.act(|m, now| m.dispatched(now, wall_ms, list, ttl, text)),
        Err(error) => {
            tracing::info!(%error, asking.target, "dispatch gave no list");
            let address = shared.config.dispatch.get(asking.target).map_or("", |server| &server.address);
            shared.act(|m, now| m.dispatch_refused(now, &format!("{address}: {error}")))
        }
    };
}
