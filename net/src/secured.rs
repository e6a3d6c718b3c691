//! TLS to servers that are not tern's own, such as a database, over a stream that is open.
//!
//! Problem: the other side was set up by somebody else, and where a handshake fails, TLS says so in its own words, or
//! the stream just ends. Rule: [`Secured::open`] says in [`Insecure`] which of the few things it is that go wrong, and
//! whether it stays so until somebody changes something; whoever calls adds the names of his own keys.
//!
//! The certificate must be of an authority that is trusted and for the name that was asked for; there is no way to leave
//! either out. What is trusted and shown can be replaced, as everywhere ([`crate::tls`]).

use std::fmt::{self, Debug};
use std::io;
use std::sync::Arc;

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error};
use tern_core::clock::Clock;
use tokio_rustls::TlsConnector;

use crate::env::Stream;
use crate::tls::{Credential, TlsError, Trust, outside_tls};
use crate::x509::date;

/// Why there is no TLS session. Nothing that was to be secret was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Insecure {
    /// What was asked for is no name.
    #[error("{0:?} is no host name or address that a certificate could be for")]
    Name(String),
    /// Something else is spoken there.
    #[error("what answers there does not speak TLS")]
    Plain,
    /// An older TLS.
    #[error("it does not speak TLS 1.3")]
    Old,
    /// Its certificate is of nobody who is trusted.
    #[error("its certificate is not of an authority that is trusted here ({0})")]
    Untrusted(String),
    /// Its certificate is for somebody else.
    #[error("its certificate is not for {expected}, but for {presented}")]
    OtherName {
        /// Who was asked for.
        expected: String,
        /// Whom it is for.
        presented: String,
    },
    /// Its certificate is not in force.
    #[error("its certificate {0}; have a new one signed, or set the clock of this machine right")]
    Time(String),
    /// Its certificate is wrong in another way.
    #[error("its certificate can't be used ({0})")]
    Unusable(String),
    /// It asks for a certificate.
    #[error("it wants a certificate from this node")]
    Asks,
    /// It does not accept the one that it was shown.
    #[error("it refuses the certificate of this node ({0})")]
    Refuses(String),
    /// The stream failed or ended meanwhile.
    #[error("the handshake was broken off ({0})")]
    Broken(String),
}

impl Insecure {
    /// Somebody has to change a configuration. A certificate that has ended is none of these: it was right once, and whoever
    /// can wait for its successor should.
    pub fn is_lasting(&self) -> bool {
        !matches!(self, Self::Time(_) | Self::Broken(_))
    }

    /// Of what a stream said, in its handshake or later; a server refuses a client's certificate only when the client
    /// takes the handshake for done (RFC 8446, 4.4.2.4). `None`: it is no matter of TLS.
    pub fn of(error: &io::Error) -> Option<Self> {
        let error = error.get_ref()?.downcast_ref::<Error>()?;
        Some(match error {
            Error::InvalidMessage(_) => Self::Plain,
            Error::PeerIncompatible(_) | Error::AlertReceived(AlertDescription::ProtocolVersion) => Self::Old,
            Error::InvalidCertificate(error) => of_certificate(error),
            Error::AlertReceived(alert) => of_alert(*alert),
            other => Self::Broken(other.to_string()),
        })
    }
}

fn of_certificate(error: &CertificateError) -> Insecure {
    let day = |time: &UnixTime| date(i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    match error {
        // The latter where two authorities have one name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Insecure::Untrusted(error.to_string()),
        CertificateError::NotValidForNameContext { expected, presented } => Insecure::OtherName {
            expected: expected.to_str().into_owned(),
            presented: if presented.is_empty() { "no name".to_owned() } else { presented.join(", ") },
        },
        CertificateError::ExpiredContext { time, not_after } => {
            Insecure::Time(format!("has ended on {}, and now it is {} (UTC)", day(not_after), day(time)))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            Insecure::Time(format!("is valid from {} on, and now it is {} (UTC)", day(not_before), day(time)))
        }
        CertificateError::Expired | CertificateError::NotValidYet => Insecure::Time("is not in force".to_owned()),
        other => Insecure::Unusable(other.to_string()),
    }
}

fn of_alert(alert: AlertDescription) -> Insecure {
    match alert {
        AlertDescription::CertificateRequired => Insecure::Asks,
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => Insecure::Refuses(format!("{alert:?}")),
        other => Insecure::Broken(format!("it says {other:?}")),
    }
}

/// How streams to a server are secured. Cheap to clone.
#[derive(Clone)]
pub struct Secured {
    tls: TlsConnector,
    name: Option<String>,
}

impl Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secured").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Secured {
    /// Trusts the authorities in `trust` alone; `credential` is shown to a server that asks. `name`: whom certificates
    /// must be for, whatever host is dialled; without it, for that host.
    pub fn new(
        trust: Arc<Trust>,
        credential: Option<Arc<Credential>>,
        name: Option<String>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, TlsError> {
        Ok(Self { tls: outside_tls(trust, credential, clock)?.into(), name })
    }

    /// The handshake, on a stream to `host`. It has no time-out of its own.
    pub async fn open(&self, host: &str, stream: Box<dyn Stream>) -> Result<Box<dyn Stream>, Insecure> {
        let name = self.name.as_deref().unwrap_or(host);
        let server = ServerName::try_from(name.to_owned()).map_err(|_| Insecure::Name(name.to_owned()))?;
        match self.tls.connect(server, stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(Insecure::of(&error).unwrap_or_else(|| Insecure::Broken(error.to_string()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{RootCertStore, ServerConfig};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsAcceptor;

    use crate::system::SystemClock;
    use crate::tls::Identity;

    type Ca = CertifiedIssuer<'static, KeyPair>;

    fn ca() -> Ca {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap()
    }

    /// PEM of a certificate of these years, and of its key.
    fn leaf(ca: &Ca, name: &str, years: (i32, i32)) -> (String, String) {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
    }

    fn identity((cert, key): &(String, String)) -> Identity {
        Identity::from_pem(cert.as_bytes(), key.as_bytes()).unwrap()
    }

    /// A server that shows `shows`, asks for certificates of `asks`, and answers one byte by its successor.
    fn server(shows: &(String, String), asks: Option<&Ca>) -> TlsAcceptor {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap();
        let builder = match asks {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(ca.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = vec![CertificateDer::from_pem_slice(shows.0.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(shows.1.as_bytes()).unwrap();
        TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()))
    }

    /// What a client hears that says one byte to a server.
    async fn say(secured: &Secured, host: &str, server: TlsAcceptor) -> Result<u8, Insecure> {
        let (here, there) = tokio::io::duplex(64 * 1024);
        let serving = async move {
            let mut stream = server.accept(there).await?;
            let byte = stream.read_u8().await?;
            stream.write_u8(byte + 1).await?;
            stream.flush().await
        };
        let asking = async {
            let mut stream = secured.open(host, Box::new(here)).await?;
            let exchange = async {
                stream.write_u8(1).await?;
                stream.flush().await?;
                stream.read_u8().await
            };
            exchange.await.map_err(|error| Insecure::of(&error).unwrap_or(Insecure::Broken(error.to_string())))
        };
        let (_refused_or_served, said) = tokio::join!(serving, asking);
        said
    }

    fn secured(ca: &Ca, credential: Option<&Identity>, name: Option<&str>) -> Secured {
        let trust = Trust::new(ca.pem().as_bytes()).unwrap();
        let credential = credential.map(|identity| Credential::new(identity).unwrap());
        Secured::new(trust, credential, name.map(str::to_owned), Arc::new(SystemClock)).unwrap()
    }

    const YEARS: (i32, i32) = (2000, 4000);

    #[tokio::test]
    async fn a_server_whose_certificate_fits_is_spoken_to_by_its_host_or_by_the_name_that_was_set() {
        let ca = ca();
        let of_host = leaf(&ca, "127.8.1.1", YEARS);
        assert_eq!(say(&secured(&ca, None, None), "127.8.1.1", server(&of_host, None)).await, Ok(2));
        let of_name = leaf(&ca, "redis.internal", YEARS);
        let by_name = secured(&ca, None, Some("redis.internal"));
        assert_eq!(say(&by_name, "127.8.1.1", server(&of_name, None)).await, Ok(2));
    }

    #[tokio::test]
    async fn a_certificate_that_does_not_fit_is_told_with_what_is_wrong() {
        let (ours, other) = (ca(), ca());
        let secured = secured(&ours, None, None);
        let told = async |shows| say(&secured, "redis.internal", server(&shows, None)).await.unwrap_err();
        let error = told(leaf(&other, "redis.internal", YEARS)).await;
        assert!(matches!(error, Insecure::Untrusted(_)) && error.is_lasting(), "{error}");
        let error = told(leaf(&ours, "mongo.internal", YEARS)).await;
        let words = error.to_string();
        assert!(words.contains("not for redis.internal") && words.contains("mongo.internal"), "{words}");
        let error = told(leaf(&ours, "redis.internal", (2000, 2001))).await;
        assert!(error.to_string().contains("has ended on 2001-01-01") && !error.is_lasting(), "{error}");
        let error = told(leaf(&ours, "redis.internal", (3000, 3001))).await;
        assert!(error.to_string().contains("valid from 3000-01-01"), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_asks_for_a_certificate_is_shown_the_one_there_is() {
        let (ours, other) = (ca(), ca());
        let shows = leaf(&ours, "redis.internal", YEARS);
        let ask = async |credential: Option<&Identity>| {
            say(&secured(&ours, credential, None), "redis.internal", server(&shows, Some(&ours))).await
        };
        assert_eq!(ask(None).await, Err(Insecure::Asks));
        assert_eq!(ask(Some(&identity(&leaf(&ours, "eu-n1", YEARS)))).await, Ok(2));
        let error = ask(Some(&identity(&leaf(&other, "eu-n1", YEARS)))).await.unwrap_err();
        assert!(matches!(error, Insecure::Refuses(_)), "{error}");
    }

    #[tokio::test]
    async fn what_speaks_something_else_or_nothing_is_told_so() {
        let ca = ca();
        let secured = secured(&ca, None, None);
        let answered = async |words: &'static [u8]| {
            let (here, mut there) = tokio::io::duplex(4096);
            let (opened, ()) = tokio::join!(secured.open("redis.internal", Box::new(here)), async move {
                there.write_all(words).await.unwrap();
                there.shutdown().await.unwrap();
                drop(there);
            });
            opened.err().unwrap()
        };
        assert_eq!(answered(b"-ERR unknown command\r\n").await, Insecure::Plain);
        // An alert of a server that knows TLS 1.2 at most.
        assert_eq!(answered(&[21, 3, 3, 0, 2, 2, 70]).await, Insecure::Old);
        assert!(matches!(answered(b"").await, Insecure::Broken(_)));
        let (here, _there) = tokio::io::duplex(64);
        let no_name = secured.open("not a name", Box::new(here)).await.err().unwrap();
        assert_eq!(no_name, Insecure::Name("not a name".to_owned()));
    }
}
