//! What every role builds first: the environment, and the secrets its configuration names.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ring::hmac;
use rustls::{ClientConfig, ServerConfig};
use tern_core::receipt::ReceiptKey;
use tern_core::store::BoxFut;
use tern_net::env::{Env, Spawn, Spawner};
use tern_net::system::system_env;
use tern_net::tls::{node_client_tls_with, node_server_tls_with, server_tls_with};
use tracing::{Instrument, Span};

use crate::certs::Certificates;
use crate::config::Settings;
use crate::config::scope::Role;
use crate::config::value::HostPort;
use crate::pki::{read_hex_file, receipt_secrets, region_server_name};

/// A node of a deployment, before it does anything.
#[derive(Debug)]
pub struct Node {
    /// Its environment. Everything it starts logs with its region and name.
    pub env: Env,
    /// Its name.
    pub name: String,
    /// Its region's name.
    pub region_name: String,
    /// Its region's id.
    pub region: u8,
    /// What it is.
    pub role: Role,
    /// The configuration that it was started with.
    pub settings: Settings,
    /// What it shows to others, and whom it trusts.
    pub certificates: Arc<Certificates>,
    /// What its log lines are marked with; for the role's own future, which is no task of `env`.
    pub span: Span,
}

/// Starts tasks within a span, so that every line they log names the node.
#[derive(Debug)]
struct InSpan {
    inner: Spawner,
    span: Span,
}

impl Spawn for InSpan {
    fn spawn(&self, task: BoxFut<'static, ()>) {
        self.inner.spawn(task.instrument(self.span.clone()));
    }
}

impl Node {
    /// Reads what names the node. Must run inside a tokio runtime.
    pub fn new(settings: Settings, role: Role) -> Result<Self> {
        let name = settings.node_name()?;
        let region_name = settings.region_name()?.to_owned();
        let region = settings.region_id()?;
        let mut env = system_env().context("the system gives no randomness or clock")?;
        let span = tracing::info_span!("node", region = %region_name, node = %name);
        env.tasks = Spawner::new(Arc::new(InSpan { inner: env.tasks, span: span.clone() }));
        // Nodes are dialled by the region's name, and edges by nobody.
        let dialled_as = (role == Role::Region).then(|| region_server_name(&region_name));
        let certificates = Certificates::new(env.clock.clone(), name.clone(), dialled_as);
        Ok(Self { env, name, region_name, region, role, settings, certificates, span })
    }

    /// TLS towards clients; `alpn`: what is spoken.
    pub fn public_tls(&self, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>> {
        Ok(server_tls_with(self.certificates.public(&self.settings)?, alpn, self.env.clock.clone())?)
    }

    /// TLS towards other nodes: as the one that is dialled, and as the one that dials.
    pub fn node_tls(&self) -> Result<(Arc<ServerConfig>, Arc<ClientConfig>)> {
        let (credential, trust) = self.certificates.node(&self.settings)?;
        let clock = || self.env.clock.clone();
        let server = node_server_tls_with(credential.clone(), trust.clone(), clock())?;
        Ok((server, node_client_tls_with(credential, trust, clock())?))
    }

    /// The deployment's receipt key, and what tells this deployment from others: a MAC of its name under that
    /// key, so that neither a test region nor one with another key can link itself to production; and what else peers
    /// may say while the key is replaced.
    pub fn receipt_key(&self) -> Result<(ReceiptKey, [u8; 32], Vec<[u8; 32]>)> {
        let secrets = receipt_secrets(&self.settings)?;
        let deployment = |secret: &[u8; 32]| {
            let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), self.settings.deployment.as_bytes());
            let mut deployment = [0; 32];
            deployment.copy_from_slice(mac.as_ref());
            deployment
        };
        let (first, older) = secrets.split_first().context("there is no receipt key")?;
        let also = older.iter().map(deployment).collect();
        Ok((ReceiptKey::new(first).with_older(older), deployment(first), also))
    }

    /// The salt of direct conversations' ids.
    pub fn direct_salt(&self) -> Result<Vec<u8>> {
        let path = self.settings.path(&self.settings.direct_salt_file, "direct.salt");
        Ok(read_hex_file(&path, "salt of direct conversations")?.to_vec())
    }

    /// The addresses of a host; at least one.
    pub async fn resolve(&self, host: &HostPort) -> Result<Vec<SocketAddr>> {
        resolve(&self.env, host).await
    }
}

/// The addresses of a host; at least one.
pub async fn resolve(env: &Env, host: &HostPort) -> Result<Vec<SocketAddr>> {
    let addresses = env.net.resolve(&host.host).await;
    let hint = "correct it in peers, core or gossip.seeds, or give an address instead of a name";
    let addresses = addresses.with_context(|| format!("can't find the address of {host}; {hint}"))?;
    let addresses: Vec<SocketAddr> = addresses.into_iter().map(|ip| SocketAddr::new(ip, host.port)).collect();
    if addresses.is_empty() {
        bail!("{host} has no address; {hint}");
    }
    Ok(addresses)
}
