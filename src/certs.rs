//! The certificates of a running node: read from the files that the configuration names, replaced when these
//! change, and told of before they end.
//!
//! A renewal replaces several files, one after the other, and is often only half done when somebody looks. So
//! what belongs together (a chain, its key, the CA) is read and checked together; what does not fit, or would be
//! refused by those who see it, is rejected and the old stays in use. A start is less strict: a node whose
//! certificate has ended starts and says so loudly, because half of its work (its store, its other
//! certificate) may be what an operator needs right then.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tern_core::clock::Clock;
use tern_net::secured::Secured;
use tern_net::tls::{Credential, Identity, Trust};
use tern_net::x509::{self, Facts, date};

use crate::config::Settings;
use crate::config::routes::RoutesKind;
use crate::pki::leaf_files;

/// Log a warning when a certificate has less than this left: time enough to have one signed by people.
pub const WARN_SECONDS: i64 = 14 * DAY_SECONDS;
const DAY_SECONDS: i64 = 86_400;

/// Files of a node's certificates, as its configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertFiles {
    /// Chain shown to clients.
    pub public_cert: PathBuf,
    /// Its key.
    pub public_key: PathBuf,
    /// Chain shown to nodes.
    pub node_cert: PathBuf,
    /// Its key.
    pub node_key: PathBuf,
    /// CAs of nodes.
    pub node_ca: PathBuf,
}

impl CertFiles {
    /// Of the node `name`.
    pub fn of(settings: &Settings, name: &str) -> Self {
        let pki = settings.data.join("pki");
        let leaf = leaf_files(&pki, name);
        Self {
            public_cert: settings.tls_public_cert.clone().unwrap_or(leaf.public_cert),
            public_key: settings.tls_public_key.clone().unwrap_or(leaf.public_key),
            node_cert: settings.tls_node_cert.clone().unwrap_or(leaf.node_cert),
            node_key: settings.tls_node_key.clone().unwrap_or(leaf.node_key),
            node_ca: settings.tls_node_ca.clone().unwrap_or_else(|| pki.join("node-ca.pem")),
        }
    }

    /// What clients are shown.
    pub fn public(&self) -> Result<Identity> {
        Identity::from_files(&self.public_cert, &self.public_key)
            .context("set tls.public_cert and tls.public_key, or run `tern pki`")
    }

    /// What nodes are shown.
    pub fn node(&self) -> Result<Identity> {
        Identity::from_files(&self.node_cert, &self.node_key)
            .context("set tls.node_cert and tls.node_key, or run `tern pki`")
    }

    /// Whom nodes trust: PEM text.
    pub fn ca(&self) -> Result<Vec<u8>> {
        fs::read(&self.node_ca)
            .with_context(|| format!("can't read {}; set tls.node_ca, or run `tern pki`", self.node_ca.display()))
    }
}

/// A certificate in use, for those who watch it.
#[derive(Clone, Debug)]
struct Watched {
    which: &'static str,
    file: PathBuf,
    until_s: i64,
    /// Days that were left when it was last warned of.
    told_days: Option<i64>,
}

/// The certificates in use.
#[derive(Debug)]
pub struct Certificates {
    clock: Arc<dyn Clock>,
    /// The node's name, for the files' default names.
    name: String,
    /// What other nodes look for in the certificate of this one, if they dial it.
    server_name: Option<String>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    public: Option<Arc<Credential>>,
    node: Option<(Arc<Credential>, Arc<Trust>)>,
    routes: Option<(Arc<Trust>, Option<Arc<Credential>>)>,
    watched: Vec<Watched>,
}

impl Certificates {
    /// None is read yet.
    pub fn new(clock: Arc<dyn Clock>, name: String, server_name: Option<String>) -> Arc<Self> {
        Arc::new(Self { clock, name, server_name, inner: Mutex::default() })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_s(&self) -> i64 {
        i64::try_from(self.clock.wall_ms() / 1000).unwrap_or(i64::MAX)
    }

    /// What clients are shown; read at the first call.
    pub fn public(&self, settings: &Settings) -> Result<Arc<Credential>> {
        let mut inner = self.inner();
        if let Some(credential) = &inner.public {
            return Ok(credential.clone());
        }
        let files = CertFiles::of(settings, &self.name);
        let identity = files.public()?;
        let credential = Credential::new(&identity)?;
        inner.watch("public", &files.public_cert, &identity.facts());
        inner.public = Some(credential.clone());
        self.tell_unusable(&identity);
        Ok(credential)
    }

    /// What nodes are shown, and whom they trust; read at the first call.
    pub fn node(&self, settings: &Settings) -> Result<(Arc<Credential>, Arc<Trust>)> {
        let mut inner = self.inner();
        if let Some(node) = &inner.node {
            return Ok(node.clone());
        }
        let files = CertFiles::of(settings, &self.name);
        let (identity, ca) = (files.node()?, files.ca()?);
        let node = (Credential::new(&identity)?, Trust::new(&ca)?);
        inner.watch("node", &files.node_cert, &identity.facts());
        inner.watch("node_ca", &files.node_ca, &x509::pem_facts(&ca));
        inner.node = Some(node.clone());
        self.tell_unusable(&identity);
        Ok(node)
    }

    /// TLS to the servers of the table of routes, if there is to be any; files are read at the first call.
    pub fn routes(&self, settings: &Settings) -> Result<Option<Secured>> {
        let Some((ca, shown)) = routes_files(settings)? else { return Ok(None) };
        let mut inner = self.inner();
        let (trust, credential) = match &inner.routes {
            Some(known) => known.clone(),
            None => {
                let credential = shown.as_ref().map(Credential::new).transpose()?;
                let read = (Trust::new(&ca).context("routes.tls.ca")?, credential);
                inner.watch_routes(settings, shown.as_ref());
                inner.routes = Some(read.clone());
                read
            }
        };
        if let Some(identity) = &shown {
            self.tell_unusable(identity);
        }
        Ok(Some(Secured::new(trust, credential, settings.routes_tls_name.clone(), self.clock.clone())?))
    }

    /// Reads again what servers of the table of routes are trusted by and shown. On an error all of the old stays.
    pub fn replace_routes(&self, settings: &Settings) -> Result<(), String> {
        let mut inner = self.inner();
        let files = match settings.routes_kind {
            RoutesKind::Memory => None,
            RoutesKind::Redis => routes_files(settings).map_err(|e| format!("{e:#}"))?,
        };
        let (trust, credential, ca, shown) = match (inner.routes.clone(), files) {
            (None, None) => return Ok(()),
            (Some((trust, credential)), Some((ca, shown))) if credential.is_some() == shown.is_some() => {
                (trust, credential, ca, shown)
            }
            _ => return Err("whether there is TLS, and a certificate in it, changes with a restart".to_owned()),
        };
        // What can fail comes first, so that both or none are replaced.
        Trust::new(&ca).map_err(|e| e.to_string())?;
        if let (Some(credential), Some(identity)) = (&credential, &shown) {
            identity.check_time(self.clock.wall_ms()).map_err(|e| e.to_string())?;
            credential.replace(identity).map_err(|e| e.to_string())?;
        }
        trust.replace(&ca).map_err(|e| e.to_string())?;
        inner.watch_routes(settings, shown.as_ref());
        Ok(())
    }

    fn tell_unusable(&self, identity: &Identity) {
        if let Err(error) = identity.check_time(self.clock.wall_ms()) {
            tracing::error!(%error, "a certificate will be refused by everyone who sees it");
        }
    }

    /// Reads what clients are shown again. On an error the old one stays.
    pub fn replace_public(&self, settings: &Settings) -> Result<(), String> {
        let mut inner = self.inner();
        let Some(credential) = inner.public.clone() else { return Ok(()) };
        let files = CertFiles::of(settings, &self.name);
        let identity = files.public().map_err(|e| format!("{e:#}"))?;
        identity.check_time(self.clock.wall_ms()).map_err(|e| e.to_string())?;
        credential.replace(&identity).map_err(|e| e.to_string())?;
        inner.watch("public", &files.public_cert, &identity.facts());
        Ok(())
    }

    /// Reads what nodes are shown and whom they trust again. On an error all of the old stays.
    pub fn replace_node(&self, settings: &Settings) -> Result<(), String> {
        let mut inner = self.inner();
        let Some((credential, trust)) = inner.node.clone() else { return Ok(()) };
        let files = CertFiles::of(settings, &self.name);
        let identity = files.node().map_err(|e| format!("{e:#}"))?;
        let ca = files.ca().map_err(|e| format!("{e:#}"))?;
        let now = self.clock.wall_ms();
        identity.check_time(now).map_err(|e| e.to_string())?;
        identity.check_trusted(&ca, self.server_name.as_deref(), now).map_err(|e| e.to_string())?;
        // The one that can fail comes first, so that both or none are replaced: the CA has just been read.
        credential.replace(&identity).map_err(|e| e.to_string())?;
        trust.replace(&ca).map_err(|e| e.to_string())?;
        inner.watch("node", &files.node_cert, &identity.facts());
        inner.watch("node_ca", &files.node_ca, &x509::pem_facts(&ca));
        Ok(())
    }

    /// Logs what ends soon: once a day, and when it has ended.
    pub fn warn_of_ends(&self) {
        let now = self.now_s();
        for watched in &mut self.inner().watched {
            let left = watched.until_s - now;
            let days = left.div_euclid(DAY_SECONDS);
            if left >= WARN_SECONDS || watched.told_days == Some(days) {
                continue;
            }
            watched.told_days = Some(days);
            let (which, file, until) = (watched.which, watched.file.display(), date(watched.until_s));
            if left < 0 {
                tracing::error!(which, %file, until, "a certificate has ended: nobody accepts it; replace the file");
            } else {
                tracing::warn!(which, %file, until, days, "a certificate ends soon: replace the file, no restart is needed");
            }
        }
    }

    /// (which, seconds left) of each in use.
    pub fn left(&self) -> Vec<(&'static str, i64)> {
        let now = self.now_s();
        self.inner().watched.iter().map(|watched| (watched.which, watched.until_s - now)).collect()
    }
}

/// The authorities that servers of the table of routes are trusted by (PEM), and what they are shown; `None`: no TLS.
fn routes_files(settings: &Settings) -> Result<Option<(Vec<u8>, Option<Identity>)>> {
    let Some(ca) = &settings.routes_tls_ca else { return Ok(None) };
    let ca = fs::read(ca).with_context(|| format!("{} of routes.tls.ca can't be read", ca.display()))?;
    let shown = match (&settings.routes_tls_cert, &settings.routes_tls_key) {
        (Some(cert), Some(key)) => Some(Identity::from_files(cert, key).context("routes.tls.cert and routes.tls.key")?),
        (None, None) => None,
        _ => bail!("routes.tls.cert and routes.tls.key belong together, and one of them is not set"),
    };
    Ok(Some((ca, shown)))
}

impl Inner {
    /// The authorities are not watched: a bundle of those that a system trusts always has some that end.
    fn watch_routes(&mut self, settings: &Settings, shown: Option<&Identity>) {
        if let (Some(file), Some(identity)) = (&settings.routes_tls_cert, shown) {
            self.watch("routes", file, &identity.facts());
        }
    }

    fn watch(&mut self, which: &'static str, file: &Path, facts: &[Facts]) {
        self.watched.retain(|watched| watched.which != which);
        if let Some(until_s) = facts.iter().map(|facts| facts.not_after_s).min() {
            self.watched.push(Watched { which, file: file.to_owned(), until_s, told_days: None });
        }
    }
}

/// How long each certificate is still good, as metrics.
#[derive(Debug)]
pub struct CertificateMetrics(pub Arc<Certificates>);

impl Collector for CertificateMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Until the first certificate of a chain ends; below zero: it has";
        let name = "tern_certificate_expires_in";
        let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for (which, left) in self.0.left() {
            let gauge = ConstGauge::new(left);
            gauge.encode(family.encode_family(&[("certificate", which)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use crate::pki::{Pki, region_server_name};
    use tern_net::system::SystemClock;

    fn settings(data: &Path) -> Settings {
        let flag = ("--data".to_owned(), "data".to_owned(), data.display().to_string());
        Sources { flags: vec![flag], ..Sources::default() }.load().unwrap()
    }

    #[test]
    fn halves_of_a_renewal_and_strangers_are_rejected_and_the_whole_is_taken() {
        let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let old = Pki::open(data.path()).unwrap().leaf("eu-e1", "eu", &[]).unwrap();
        let settings = settings(data.path());
        let certificates = Certificates::new(Arc::new(SystemClock), "eu-e1".into(), Some(region_server_name("eu")));
        // Nothing is in use yet, so nothing is read.
        assert!(certificates.replace_public(&settings).is_ok() && certificates.left().is_empty());
        certificates.public(&settings).unwrap();
        certificates.node(&settings).unwrap();
        let which: Vec<&str> = certificates.left().iter().map(|(which, _)| *which).collect();
        assert_eq!(which, ["public", "node", "node_ca"]);
        assert!(certificates.left().iter().all(|(_, left)| *left > 8 * 365 * DAY_SECONDS));

        // One file of two.
        let of_other = Pki::open(other.path()).unwrap();
        let new = of_other.leaf("eu-e1", "eu", &[]).unwrap();
        fs::copy(&new.public_cert, &old.public_cert).unwrap();
        let error = certificates.replace_public(&settings).unwrap_err();
        assert!(error.contains("belong together"), "{error}");
        fs::copy(&new.public_key, &old.public_key).unwrap();
        certificates.replace_public(&settings).unwrap();

        // Another CA's node certificate, while that CA is not trusted.
        fs::copy(&new.node_cert, &old.node_cert).unwrap();
        fs::copy(&new.node_key, &old.node_key).unwrap();
        let error = certificates.replace_node(&settings).unwrap_err();
        assert!(error.contains("signed by that CA"), "{error}");
        fs::copy(of_other.node_ca(), data.path().join("pki/node-ca.pem")).unwrap();
        certificates.replace_node(&settings).unwrap();

        // A node of another region.
        let stranger = of_other.leaf("us-e1", "us", &[]).unwrap();
        fs::copy(&stranger.node_cert, &old.node_cert).unwrap();
        fs::copy(&stranger.node_key, &old.node_key).unwrap();
        let error = certificates.replace_node(&settings).unwrap_err();
        assert!(error.contains("for the name eu.tern.internal"), "{error}");
        fs::remove_file(&old.node_key).unwrap();
        assert!(certificates.replace_node(&settings).unwrap_err().contains("can't read the private key"));
    }

    /// A certificate that signs itself, for these years.
    fn of_years(files: &CertFiles, from: i32, to: i32) {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["eu.tern.internal".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        fs::write(&files.public_cert, params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(&files.public_key, key.serialize_pem()).unwrap();
    }

    #[test]
    fn what_servers_of_the_table_of_routes_are_shown_and_trusted_by_is_replaced_together() {
        let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let leaf = Pki::open(data.path()).unwrap().leaf("eu-n1", "eu", &[]).unwrap();
        let ca = data.path().join("pki/node-ca.pem");
        let with = |values: &[(&str, &Path)]| {
            let values = values.iter().map(|(key, value)| ((*key).to_owned(), value.display().to_string()));
            let fixed = [("routes.kind", "redis"), ("routes.nodes", "h:1"), ("region.name", "eu")];
            let fixed = fixed.map(|(key, value)| (key.to_owned(), value.to_owned()));
            let flags = fixed.into_iter().chain(values).map(|(key, value)| ("--set".to_owned(), key, value)).collect();
            Sources { flags, ..Sources::default() }.load()
        };
        let shown = [("routes.tls.cert", &*leaf.node_cert), ("routes.tls.key", &*leaf.node_key)];
        let whole = with(&[&shown[..], &[("routes.tls.ca", &*ca)]].concat()).unwrap();
        let certificates = Certificates::new(Arc::new(SystemClock), "eu-n1".into(), None);
        assert!(certificates.routes(&with(&[]).unwrap()).unwrap().is_none(), "there is no TLS");
        assert!(certificates.routes(&whole).unwrap().is_some());
        assert_eq!(certificates.left().iter().map(|(which, _)| *which).collect::<Vec<_>>(), ["routes"]);

        let of_other = Pki::open(other.path()).unwrap();
        let new = of_other.leaf("eu-n1", "eu", &[]).unwrap();
        fs::copy(&new.node_cert, &leaf.node_cert).unwrap();
        assert!(certificates.replace_routes(&whole).unwrap_err().contains("belong together"));
        fs::copy(&new.node_key, &leaf.node_key).unwrap();
        fs::write(&ca, "nonsense").unwrap();
        assert!(certificates.replace_routes(&whole).is_err());
        fs::copy(of_other.node_ca(), &ca).unwrap();
        certificates.replace_routes(&whole).unwrap();
        for less in [&[("routes.tls.ca", &*ca)][..], &[]] {
            let error = certificates.replace_routes(&with(less).unwrap()).unwrap_err();
            assert!(error.contains("with a restart"), "{error}");
        }

        let error = with(&shown).unwrap_err().to_string();
        assert!(error.contains("routes.tls.ca is not set"), "{error}");
        let error = with(&[shown[0], ("routes.tls.ca", &*ca)]).unwrap_err().to_string();
        assert!(error.contains("routes.tls.key belong together"), "{error}");
        fs::remove_file(&ca).unwrap();
        let error = Certificates::new(Arc::new(SystemClock), "eu-n1".into(), None).routes(&whole).unwrap_err();
        assert!(error.to_string().contains("routes.tls.ca can't be read"), "{error}");
    }

    #[test]
    fn a_start_takes_what_has_ended_and_a_replacement_must_be_in_force() {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir(data.path().join("pki")).unwrap();
        let settings = settings(data.path());
        let files = CertFiles::of(&settings, "eu-e1");
        let certificates = Certificates::new(Arc::new(SystemClock), "eu-e1".into(), None);
        of_years(&files, 2020, 2021);
        certificates.public(&settings).unwrap();
        assert!(certificates.left()[0].1 < 0, "and the metric says so");
        certificates.warn_of_ends();
        for (from, to) in [(2020, 2022), (3000, 3001)] {
            of_years(&files, from, to);
            let error = certificates.replace_public(&settings).unwrap_err();
            assert!(error.contains(&format!("from {from}-01-01 to {to}-01-01")), "{error}");
        }
        of_years(&files, 2020, 3000);
        certificates.replace_public(&settings).unwrap();
        assert!(certificates.left()[0].1 > 0);
    }
}
