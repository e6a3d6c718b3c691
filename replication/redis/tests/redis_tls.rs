//! Servers that speak TLS, and those that can't be trusted, on real ones. What they hold over TLS the other tests show, which
//! `check` runs on such servers too.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "tasks that end with their test")]

mod place;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use place::{Place, said, script, servers, tls_dir, trusting};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use tern_net::secured::Secured;
use tern_net::system::{SystemClock, system_env};
use tern_net::tls::{Credential, Identity, Trust};
use tern_redis::{Options, RedisRoutes};
use tern_replication::routes::{Routes, RoutesError};

/// An authority, and what it has signed.
struct Ca {
    ca: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Ca {
    fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()).unwrap();
        let dir = dir.join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
        Self { ca, dir }
    }

    fn pem(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A directory with a certificate for a name, good until a year, its key, and this authority.
    fn signs(&self, name: &str, until: i32) -> PathBuf {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let dir = self.dir.join(format!("{name}-{until}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("ca.pem"), self.ca.pem()).unwrap();
        fs::write(dir.join("cert.pem"), params.signed_by(&key, &self.ca).unwrap().pem()).unwrap();
        fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
        dir
    }
}

/// Starts a server that shows what is in a directory.
fn start(server: usize, shows: &Path, options: &[&str]) {
    said(script().env("TERN_REDIS_TLS", shows).args(["extra", &server.to_string()]).args(options));
}

/// What a node that starts is told of a server.
async fn check(options: Options) -> Result<usize, RoutesError> {
    RedisRoutes::new(options, system_env().unwrap()).check().await
}

fn unfit(found: Result<usize, RoutesError>, says: &[&str]) {
    let Err(RoutesError::Unfit(what)) = found else { panic!("{found:?}") };
    assert!(says.iter().all(|part| what.contains(part)), "{what}");
}

/// The node starts all the same: it is waited for.
fn waited_for(found: Result<usize, RoutesError>, says: &[&str]) {
    let Err(RoutesError::Unreachable(what)) = found else { panic!("{found:?}") };
    assert!(says.iter().all(|part| what.contains(part)), "{what}");
}

fn shown(dir: &Path) -> Identity {
    Identity::from_files(&dir.join("cert.pem"), &dir.join("key.pem")).unwrap()
}

/// One server that does not speak TLS, beside which others are started.
fn place() -> Option<Place> {
    Place::new().filter(|place| !place.is_cluster() && tls_dir().is_none())
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_can_not_be_trusted_are_refused_with_what_to_change() {
    let Some(place) = place() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (Ca::new(dir.path(), "ours"), Ca::new(dir.path(), "other"));
    let tls =
        |server: usize| Options { nodes: vec![place.at(server)], tls: Some(trusting(&ours.pem())), ..place.plain("n") };
    let host = |server: usize| place.at(server).0;

    start(5, &ours.signs(&host(5), 4000), &[]);
    assert_eq!(check(tls(5)).await, Ok(1));
    waited_for(check(Options { tls: None, ..tls(5) }).await, &["ends new connections", "set routes.tls.ca"]);
    waited_for(check(tls(1)).await, &["does it speak TLS at that port"]);

    start(6, &other.signs(&host(6), 4000), &[]);
    unfit(check(tls(6)).await, &["not of an authority that is trusted", "set routes.tls.ca"]);
    start(7, &ours.signs("redis.internal", 4000), &[]);
    unfit(check(tls(7)).await, &[&format!("not for {}", host(7)), "redis.internal", "routes.tls.name"]);
    let trust = Trust::new(&fs::read(ours.pem()).unwrap()).unwrap();
    let by_name = Secured::new(trust, None, Some("redis.internal".to_owned()), Arc::new(SystemClock)).unwrap();
    assert_eq!(check(Options { tls: Some(by_name), ..tls(7) }).await, Ok(1));
    start(8, &ours.signs(&host(8), 2020), &[]);
    waited_for(check(tls(8)).await, &["has ended on 2020-01-01", "tls-cert-file"]);
    start(9, &ours.signs(&host(9), 4000), &["--tls-protocols", "TLSv1.2"]);
    unfit(check(tls(9)).await, &["does not speak TLS 1.3", "tls-protocols"]);
    for server in 5..=9 {
        servers(&["kill", &server.to_string()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_a_certificate_is_shown_one_and_what_is_shown_and_trusted_can_be_replaced() {
    let Some(place) = place() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (Ca::new(dir.path(), "ours"), Ca::new(dir.path(), "other"));
    start(5, &ours.signs(&place.at(5).0, 4000), &["--tls-auth-clients", "yes"]);
    let trust = Trust::new(&fs::read(ours.pem()).unwrap()).unwrap();
    let options = |credential| {
        let tls = Secured::new(trust.clone(), credential, None, Arc::new(SystemClock)).unwrap();
        Options { nodes: vec![place.at(5)], tls: Some(tls), ..place.plain("n") }
    };
    let without = check(options(None)).await.unwrap_err().to_string();
    assert!(without.contains("routes.tls.cert and routes.tls.key"), "{without}");

    let credential = Credential::new(&shown(&other.signs("eu-n1", 4000))).unwrap();
    let refused = check(options(Some(credential.clone()))).await.unwrap_err().to_string();
    assert!(refused.contains("routes.tls.cert"), "{refused}");
    credential.replace(&shown(&ours.signs("eu-n1", 4000))).unwrap();
    let routes = RedisRoutes::new(options(Some(credential)), system_env().unwrap());
    assert_eq!(routes.check().await, Ok(1));

    // Connections that are there stay, and the next one finds other authorities.
    trust.replace(&fs::read(other.pem()).unwrap()).unwrap();
    assert_eq!(routes.check().await, Ok(1));
    servers(&["kill", "5"]);
    assert!(routes.count().await.is_err());
    servers(&["start", "5"]);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        match routes.check().await {
            Err(RoutesError::Unfit(what)) if what.contains("not of an authority") => break,
            other => assert!(std::time::Instant::now() < end, "{other:?}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    trust.replace(&fs::read(ours.pem()).unwrap()).unwrap();
    while routes.check().await != Ok(1) {
        assert!(std::time::Instant::now() < end);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    servers(&["kill", "5"]);
}
