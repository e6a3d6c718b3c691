//! TLS set-ups: 1.3 only, ring, time from the environment's clock.
//!
//! Sessions are not resumed: a ticket cache costs memory per connection, and early data (which needs it)
//! must come with a bounded one.

use std::fmt::{self, Debug};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tern_core::clock::Clock;
use tern_core::wire::ALPN_NODE;

/// Why TLS could not be set up. Nothing was opened.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that can't be read.
    #[error("can't read {what} from {}: {cause}; check the path and that this process may read it", path.display())]
    Read {
        /// Which part.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// Text that is not PEM, or has no such part.
    #[error("no usable {what} in {from}: {cause}; it must be PEM text with {expected}")]
    Pem {
        /// Which part.
        what: &'static str,
        /// A path, or "memory".
        from: String,
        /// What is wrong.
        cause: String,
        /// What is looked for.
        expected: &'static str,
    },
    /// A certificate and key that TLS can't use.
    #[error("the certificate and key from {from} can't be used: {cause}; make sure that they belong together")]
    Identity {
        /// A path, or "memory".
        from: String,
        /// What is wrong.
        cause: String,
    },
    /// A CA certificate that TLS can't use.
    #[error("a CA certificate can't be used: {0}; give the PEM of the CA that signs the other side's certificates")]
    Roots(String),
    /// The TLS library refuses its own set-up.
    #[error("TLS 1.3 can't be set up: {0}")]
    Setup(String),
}

/// A certificate chain and its private key. `Debug` shows neither.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    from: String,
}

impl Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("from", &self.from)
            .field("certificates", &self.chain.len())
            .finish_non_exhaustive()
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key(), from: self.from.clone() }
    }
}

impl Identity {
    /// From two PEM files: the chain, own certificate first, and the private key (PKCS#8, SEC1 or PKCS#1).
    pub fn from_files(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |what, path: &Path| {
            std::fs::read(path).map_err(|cause| TlsError::Read { what, path: path.to_owned(), cause })
        };
        let chain_pem = read("the certificate chain", chain)?;
        let key_pem = read("the private key", key)?;
        Self::parse(&chain_pem, &key_pem, &chain.display().to_string(), &key.display().to_string())
    }

    /// From PEM text in memory.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Self::parse(chain, key, "memory", "memory")
    }

    fn parse(chain: &[u8], key: &[u8], chain_from: &str, key_from: &str) -> Result<Self, TlsError> {
        let pem =
            |what, from: &str, cause: String, expected| TlsError::Pem { what, from: from.to_owned(), cause, expected };
        let expected = "-----BEGIN CERTIFICATE-----";
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| pem("certificate", chain_from, e.to_string(), expected))?;
        if chain.is_empty() {
            return Err(pem("certificate", chain_from, "there is none".into(), expected));
        }
        // What is wrong with a key file is told without its lines: they may be the key.
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            pem("private key", key_from, "there is none, or it is damaged".into(), "-----BEGIN PRIVATE KEY-----")
        })?;
        Ok(Self { chain, key, from: chain_from.to_owned() })
    }

    fn refused(&self, cause: &rustls::Error) -> TlsError {
        TlsError::Identity { from: self.from.clone(), cause: cause.to_string() }
    }
}

/// Wall time for certificates and tokens, from the environment.
#[derive(Debug)]
pub(crate) struct WallTime(pub(crate) Arc<dyn Clock>);

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.wall_ms())))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| TlsError::Roots(e.to_string()))?;
        store.add(certificate).map_err(|e| TlsError::Roots(e.to_string()))?;
    }
    if store.is_empty() {
        return Err(TlsError::Roots("there is none in the text given".into()));
    }
    Ok(store)
}

fn finish_server(mut config: ServerConfig, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

fn finish_client(mut config: ClientConfig, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// A server of the public side. Clients are not asked for certificates. A client that offers protocols, none
/// of them in `alpn`, is refused by TLS; over TCP one that offers none at all gets through, so callers that
/// care look at the result.
pub fn server_tls(identity: &Identity, alpn: &[&[u8]], clock: Arc<dyn Clock>) -> Result<Arc<ServerConfig>, TlsError> {
    let config = ServerConfig::builder_with_details(provider(), Arc::new(WallTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| TlsError::Setup(e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(|e| identity.refused(&e))?;
    Ok(finish_server(config, alpn))
}

/// A client of the public side, trusting the CAs in `roots_pem` and no others.
pub fn client_tls(roots_pem: &[u8], alpn: &[&[u8]], clock: Arc<dyn Clock>) -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_details(provider(), Arc::new(WallTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| TlsError::Setup(e.to_string()))?
        .with_root_certificates(roots(roots_pem)?)
        .with_no_client_auth();
    Ok(finish_client(config, alpn))
}

/// The accepting side of links between nodes: the other node must show a certificate signed by a CA in
/// `ca_pem`. ALPN `tern-node/1`.
pub fn node_server_tls(
    identity: &Identity,
    ca_pem: &[u8],
    clock: Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), provider())
        .build()
        .map_err(|e| TlsError::Roots(e.to_string()))?;
    let config = ServerConfig::builder_with_details(provider(), Arc::new(WallTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| TlsError::Setup(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(|e| identity.refused(&e))?;
    Ok(finish_server(config, &[ALPN_NODE]))
}

/// The connecting side of links between nodes: shows its own certificate and trusts the CAs in `ca_pem`
/// alone. ALPN `tern-node/1`.
pub fn node_client_tls(
    identity: &Identity,
    ca_pem: &[u8],
    clock: Arc<dyn Clock>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_details(provider(), Arc::new(WallTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| TlsError::Setup(e.to_string()))?
        .with_root_certificates(roots(ca_pem)?)
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(|e| identity.refused(&e))?;
    Ok(finish_client(config, &[ALPN_NODE]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::SystemClock;
    use crate::testing::Pki;

    #[test]
    fn errors_name_the_file_and_what_is_wrong_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (chain, key) = (dir.path().join("chain.pem"), dir.path().join("key.pem"));
        let error = Identity::from_files(&chain, &key).unwrap_err().to_string();
        assert!(error.contains("chain.pem") && error.contains("certificate chain"), "{error}");
        let pki = Pki::new();
        std::fs::write(&chain, &pki.leaf_pem).unwrap();
        std::fs::write(&key, b"no key").unwrap();
        let error = Identity::from_files(&chain, &key).unwrap_err().to_string();
        assert!(error.contains("key.pem") && error.contains("private key"), "{error}");
        std::fs::write(&key, &pki.key_pem).unwrap();
        assert!(Identity::from_files(&chain, &key).is_ok());
        assert!(matches!(Identity::from_pem(b"", pki.key_pem.as_bytes()), Err(TlsError::Pem { .. })));
        assert!(matches!(client_tls(b"", &[], Arc::new(SystemClock)), Err(TlsError::Roots(_))));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_and_no_key_is_ever_printed() {
        let (one, other) = (Pki::new(), Pki::new());
        let mixed = Identity::from_pem(one.leaf_pem.as_bytes(), other.key_pem.as_bytes()).unwrap();
        let error = server_tls(&mixed, &[], Arc::new(SystemClock)).unwrap_err();
        assert!(matches!(error, TlsError::Identity { .. }), "{error}");
        let shown = format!("{mixed:?}");
        assert!(shown.contains("certificates: 1") && shown.len() < 80, "{shown}");
    }
}
