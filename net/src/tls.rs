//! TLS set-ups: 1.3 only, ring, time from the environment's clock.
//!
//! Certificates end, and connections must not: what a server shows and whom a node trusts ([`Credential`],
//! [`Trust`]) are looked up at each handshake, and can be replaced in between. Connections that are open stay;
//! the next handshake has the new ones.
//!
//! Sessions are not resumed by these set-ups; [`crate::resume`] adds that for clients over QUIC.

use std::fmt::{self, Debug};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    ClientConfig, ConfigBuilder, ConfigSide, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme, WantsVerifier, WantsVersions,
};
use tern_core::clock::Clock;
use tern_core::wire::ALPN_NODE;

use crate::x509::{self, Facts, date};

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
    /// A certificate that nobody would accept now.
    #[error("{from}: {what}; {hint}")]
    Time {
        /// A path, or "memory".
        from: String,
        /// Whose it is, its days, and today.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// A certificate that this node's own peers, who have the same CA, would refuse.
    #[error("the certificate in {from} does not stand up against the CA that nodes trust: {cause}; {hint}")]
    Untrusted {
        /// A path, or "memory".
        from: String,
        /// What is wrong.
        cause: String,
        /// What to do.
        hint: String,
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

    /// What its certificates say, own one first. Empty where that can't be read.
    pub fn facts(&self) -> Vec<Facts> {
        self.chain.iter().map_while(|certificate| x509::facts(certificate)).collect()
    }

    /// Whether each of its certificates is valid at this time, in milliseconds since 1970.
    pub fn check_time(&self, wall_ms: u64) -> Result<(), TlsError> {
        let now = i64::try_from(wall_ms / 1000).unwrap_or(i64::MAX);
        let wrong = |facts: &Facts, hint| TlsError::Time {
            from: self.from.clone(),
            what: format!(
                "the certificate of {:?} is valid from {} to {} (UTC), and now it is {}",
                facts.subject,
                date(facts.not_before_s),
                date(facts.not_after_s),
                date(now)
            ),
            hint,
        };
        for facts in self.facts() {
            if now < facts.not_before_s {
                return Err(wrong(&facts, "wait, or set this machine's clock if it is slow"));
            } else if now > facts.not_after_s {
                return Err(wrong(&facts, "have a new one signed, or set this machine's clock if it is fast"));
            }
        }
        Ok(())
    }

    /// Whether other nodes that trust the CAs in `ca_pem` would accept it, as a client and, if a name is given,
    /// as the server of that name.
    pub fn check_trusted(&self, ca_pem: &[u8], name: Option<&str>, wall_ms: u64) -> Result<(), TlsError> {
        let trust = Trust::new(ca_pem)?;
        let now = UnixTime::since_unix_epoch(Duration::from_millis(wall_ms));
        let untrusted = |cause: rustls::Error, hint: String| TlsError::Untrusted {
            from: self.from.clone(),
            cause: cause.to_string(),
            hint,
        };
        let Some((own, others)) = self.chain.split_first() else { return Ok(()) };
        trust
            .verify_client_cert(own, others, now)
            .map_err(|e| untrusted(e, "have it signed by that CA, for server and client authentication".to_owned()))?;
        if let Some(name) = name {
            let server = ServerName::try_from(name.to_owned()).map_err(|e| TlsError::Setup(e.to_string()))?;
            trust
                .verify_server_cert(own, others, &server, &[], now)
                .map_err(|e| untrusted(e, format!("have one signed by that CA for the name {name}")))?;
        }
        Ok(())
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

/// What a server, or a client that is asked, shows of itself; may be replaced at any time.
#[derive(Debug)]
pub struct Credential(ArcSwap<CertifiedKey>);

impl Credential {
    /// Refuses a key that does not belong to the certificate.
    pub fn new(identity: &Identity) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(certified(identity)?))))
    }

    /// Shows another from the next handshake on. On an error the old one stays.
    pub fn replace(&self, identity: &Identity) -> Result<(), TlsError> {
        self.0.store(Arc::new(certified(identity)?));
        Ok(())
    }
}

fn certified(identity: &Identity) -> Result<CertifiedKey, TlsError> {
    CertifiedKey::from_der(identity.chain.clone(), identity.key.clone_key(), &provider())
        .map_err(|e| identity.refused(&e))
}

impl ResolvesServerCert for Credential {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ResolvesClientCert for Credential {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The CAs that others are trusted by, such as other nodes; may be replaced at any time.
#[derive(Debug)]
pub struct Trust(ArcSwap<Verifiers>);

#[derive(Debug)]
struct Verifiers {
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Trust {
    /// From a PEM file's text with at least one CA certificate.
    pub fn new(ca_pem: &[u8]) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(verifiers(ca_pem)?))))
    }

    /// Trusts others from the next handshake on. On an error the old ones stay.
    pub fn replace(&self, ca_pem: &[u8]) -> Result<(), TlsError> {
        self.0.store(Arc::new(verifiers(ca_pem)?));
        Ok(())
    }
}

fn verifiers(ca_pem: &[u8]) -> Result<Verifiers, TlsError> {
    let roots = Arc::new(roots(ca_pem)?);
    let unusable = |e: rustls::server::VerifierBuilderError| TlsError::Roots(e.to_string());
    Ok(Verifiers {
        servers: WebPkiServerVerifier::builder_with_provider(roots.clone(), provider()).build().map_err(unusable)?,
        clients: WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(unusable)?,
    })
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.load().servers.verify_server_cert(own, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(&*self.0.load().servers, message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(&*self.0.load().servers, message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(&*self.0.load().servers)
    }
}

impl ClientCertVerifier for Trust {
    /// None: nodes have one certificate and need no hint, and the list could not change.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.load().clients.verify_client_cert(own, others, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.load().clients.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.load().clients.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.load().clients.supported_verify_schemes()
    }
}

/// Longest TLS record, with its head: one packet of any network. A record can be read when all of it is there, and one of
/// 16 KiB takes several round trips on a new connection, and a loss in it holds up what stands before the loss.
const RECORD_BYTES: usize = 1_350;

fn finish_server(mut config: ServerConfig, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    config.max_fragment_size = Some(RECORD_BYTES);
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

fn finish_client(mut config: ClientConfig, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    config.max_fragment_size = Some(RECORD_BYTES);
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// A server of the public side. Clients are not asked for certificates. A client that offers protocols, none
/// of them in `alpn`, is refused by TLS; over TCP one that offers none at all gets through, so callers that
/// care look at the result.
pub fn server_tls(identity: &Identity, alpn: &[&[u8]], clock: Arc<dyn Clock>) -> Result<Arc<ServerConfig>, TlsError> {
    server_tls_with(Credential::new(identity)?, alpn, clock)
}

/// The same, with a certificate that may be replaced.
pub fn server_tls_with(
    credential: Arc<Credential>,
    alpn: &[&[u8]],
    clock: Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let config = tls13(ServerConfig::builder_with_details(provider(), Arc::new(WallTime(clock))))?
        .with_no_client_auth()
        .with_cert_resolver(credential);
    Ok(finish_server(config, alpn))
}

/// TLS 1.3 and nothing else.
fn tls13<Side: ConfigSide>(
    builder: ConfigBuilder<Side, WantsVersions>,
) -> Result<ConfigBuilder<Side, WantsVerifier>, TlsError> {
    builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(|e| TlsError::Setup(e.to_string()))
}

/// A client of the public side, trusting the CAs in `roots_pem` and no others.
pub fn client_tls(roots_pem: &[u8], alpn: &[&[u8]], clock: Arc<dyn Clock>) -> Result<Arc<ClientConfig>, TlsError> {
    let config = tls13(ClientConfig::builder_with_details(provider(), Arc::new(WallTime(clock))))?
        .with_root_certificates(roots(roots_pem)?)
        .with_no_client_auth();
    Ok(finish_client(config, alpn))
}

/// A client of a server that is none of tern's: trusts the CAs in `trust` alone, and shows `credential` if it is asked for
/// one. See [`crate::secured`].
pub(crate) fn outside_tls(
    trust: Arc<Trust>,
    credential: Option<Arc<Credential>>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let config = tls13(ClientConfig::builder_with_details(provider(), Arc::new(WallTime(clock))))?
        // As for links between nodes: webpki decides, and only its CAs can be replaced.
        .dangerous()
        .with_custom_certificate_verifier(trust);
    let config = match credential {
        Some(credential) => config.with_client_cert_resolver(credential),
        None => config.with_no_client_auth(),
    };
    Ok(finish_client(config, &[]))
}

/// The accepting side of links between nodes: the other node must show a certificate signed by a CA in
/// `ca_pem`. ALPN `tern-node/1`.
pub fn node_server_tls(
    identity: &Identity,
    ca_pem: &[u8],
    clock: Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, TlsError> {
    node_server_tls_with(Credential::new(identity)?, Trust::new(ca_pem)?, clock)
}

/// The same, with a certificate and CAs that may be replaced.
pub fn node_server_tls_with(
    credential: Arc<Credential>,
    trust: Arc<Trust>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let config = tls13(ServerConfig::builder_with_details(provider(), Arc::new(WallTime(clock))))?
        .with_client_cert_verifier(trust)
        .with_cert_resolver(credential);
    Ok(finish_server(config, &[ALPN_NODE]))
}

/// The connecting side of links between nodes: shows its own certificate and trusts the CAs in `ca_pem`
/// alone. ALPN `tern-node/1`.
pub fn node_client_tls(
    identity: &Identity,
    ca_pem: &[u8],
    clock: Arc<dyn Clock>,
) -> Result<Arc<ClientConfig>, TlsError> {
    node_client_tls_with(Credential::new(identity)?, Trust::new(ca_pem)?, clock)
}

/// The same, with a certificate and CAs that may be replaced.
pub fn node_client_tls_with(
    credential: Arc<Credential>,
    trust: Arc<Trust>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let config = tls13(ClientConfig::builder_with_details(provider(), Arc::new(WallTime(clock))))?
        // Not less strict than without: `Trust` asks webpki, and only its CAs can be replaced.
        .dangerous()
        .with_custom_certificate_verifier(trust)
        .with_client_cert_resolver(credential);
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

    /// A certificate of `ca` for these years.
    fn of_years(ca: &rcgen::CertifiedIssuer<'_, rcgen::KeyPair>, names: &[&str], from: i32, to: i32) -> Identity {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        let leaf = params.signed_by(&key, ca).unwrap();
        Identity::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    fn ca() -> rcgen::CertifiedIssuer<'static, rcgen::KeyPair> {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap())
            .unwrap()
    }

    #[test]
    fn a_certificate_that_nobody_would_accept_is_told_with_its_days() {
        let (one, other) = (ca(), ca());
        let now = 1_800_000_000_000; // 2027-01-15
        let good = of_years(&one, &["eu.tern.internal"], 2026, 2030);
        assert!(good.check_time(now).is_ok());
        let error = of_years(&one, &["x"], 2020, 2026).check_time(now).unwrap_err().to_string();
        assert!(error.contains("2026-01-01") && error.contains("now it is 2027-01-15"), "{error}");
        let error = of_years(&one, &["x"], 2028, 2030).check_time(now).unwrap_err().to_string();
        assert!(error.contains("from 2028-01-01") && error.contains("clock"), "{error}");

        let trusted = |identity: &Identity, ca: &str, name| identity.check_trusted(ca.as_bytes(), name, now);
        assert!(trusted(&good, &one.pem(), Some("eu.tern.internal")).is_ok());
        assert!(trusted(&good, &one.pem(), None).is_ok());
        let error = trusted(&good, &other.pem(), None).unwrap_err().to_string();
        assert!(error.contains("signed by that CA"), "{error}");
        let error = trusted(&good, &one.pem(), Some("us.tern.internal")).unwrap_err().to_string();
        assert!(error.contains("for the name us.tern.internal"), "{error}");
        assert!(trusted(&good, &(other.pem() + &one.pem()), None).is_ok(), "a bundle, as while CAs change");
    }

    /// Who is on the other side, as QUIC saw his certificate.
    fn shown_to(connection: &quinn::Connection) -> Vec<u8> {
        let chain = connection.peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap();
        chain[0].to_vec()
    }

    #[tokio::test]
    async fn both_sides_of_a_node_link_change_certificate_and_ca_while_a_connection_stays() {
        use crate::quic::{QuicParams, client_config, client_endpoint, server_endpoint};
        let env = crate::system::system_env().unwrap();
        let (old_ca, new_ca) = (ca(), ca());
        let identity = |ca: &rcgen::CertifiedIssuer<'_, rcgen::KeyPair>, name: &str| of_years(ca, &[name], 2000, 4000);
        let clock = || env.clock.clone();
        let both = |ca: &rcgen::CertifiedIssuer<'_, rcgen::KeyPair>, name| {
            let identity = identity(ca, name);
            (Credential::new(&identity).unwrap(), Trust::new(ca.pem().as_bytes()).unwrap())
        };
        let (server, server_trust) = both(&old_ca, "a.internal");
        let (client, client_trust) = both(&old_ca, "b.internal");
        let tls = node_server_tls_with(server.clone(), server_trust.clone(), clock()).unwrap();
        let any = || "127.0.0.1:0".parse().unwrap();
        let listening = server_endpoint(&env, any(), tls, &QuicParams::node()).unwrap();
        let at = listening.local_addr().unwrap();
        let tls = node_client_tls_with(client.clone(), client_trust.clone(), clock()).unwrap();
        let (env, dialler) = (&env, &client_endpoint(&env, any()).unwrap());
        let (listening, tls) = (&listening, &tls);
        // The server finds out last that it was refused, so both sides' views count.
        let connect = || async move {
            let config = client_config(env, tls.clone(), &QuicParams::node()).unwrap();
            let connecting = dialler.connect_with(config, at, "a.internal").unwrap();
            let (connected, accepted) = tokio::join!(connecting, async { listening.accept().await.unwrap().await });
            connected.ok().zip(accepted.ok())
        };
        let (first, _first) = connect().await.unwrap();

        // First everyone trusts both CAs, then nodes change certificates one by one, then the old CA goes.
        let bundle = old_ca.pem() + &new_ca.pem();
        server_trust.replace(bundle.as_bytes()).unwrap();
        client_trust.replace(bundle.as_bytes()).unwrap();
        server.replace(&identity(&new_ca, "a.internal")).unwrap();
        let (second, accepted) = connect().await.unwrap();
        assert_ne!(shown_to(&first), shown_to(&second));
        client.replace(&identity(&new_ca, "b.internal")).unwrap();
        let (_third, by_new) = connect().await.unwrap();
        assert_ne!(shown_to(&accepted), shown_to(&by_new));
        server_trust.replace(new_ca.pem().as_bytes()).unwrap();
        client_trust.replace(new_ca.pem().as_bytes()).unwrap();
        assert!(connect().await.is_some());
        client.replace(&identity(&old_ca, "b.internal")).unwrap();
        assert!(connect().await.is_none(), "the old CA is trusted no more");

        assert!(server_trust.replace(b"nonsense").is_err());
        assert!(first.close_reason().is_none(), "what was open stays open");
    }
}
