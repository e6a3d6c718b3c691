//! Keys and certificates of a deployment on one machine: what `dev` and `demo` make for themselves, and what
//! `tern pki` makes for a deployment by hand.
//!
//! There are two authorities. Nodes trust each other by one; clients pin the other, `public-ca.pem`. A leaf
//! carries the internal names of its node and region, the loopback addresses, and whatever it is asked to.
//!
//! Everything is made once: what is there is used, never overwritten. A key is written before its
//! certificate, so a crash in between leaves a key that gets its certificate on the next start.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ED25519, date_time_ymd,
};
use ring::rand::{SecureRandom, SystemRandom};
use tern_core::clock::Clock;
use tern_net::system::SystemClock;
use tern_replication::gossip::GossipKey;

use crate::cli::{Global, PkiArgs};
use crate::config::Settings;
use crate::exit::Failure;
use crate::gossip::KEY_FILE;
use crate::token;

/// Years that certificates made here are valid for: these are for development and small deployments, where
/// an expiry would be found by an outage.
const VALID_YEARS: i32 = 10;

/// Bytes of a file of keys that are read: room for [`KEYS_MAX`] with a comment for each.
const SECRET_BYTES_MAX: u64 = 64 * 1024;
/// Keys in a file. Receipt keys stay in it for as long as what they have signed; each costs a MAC per receipt that the
/// ones before it have not signed.
const KEYS_MAX: usize = 16;

/// A directory of authorities and leaves.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
}

/// Files of one node.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Shown to clients.
    pub public_cert: PathBuf,
    /// Its key.
    pub public_key: PathBuf,
    /// Shown to nodes.
    pub node_cert: PathBuf,
    /// Its key.
    pub node_key: PathBuf,
}

/// The two authorities.
#[derive(Clone, Copy)]
enum Authority {
    Node,
    Public,
}

impl Authority {
    fn stem(self) -> &'static str {
        match self {
            Authority::Node => "node-ca",
            Authority::Public => "public-ca",
        }
    }

    fn params(self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(
            DnType::CommonName,
            match self {
                Authority::Node => "tern nodes",
                Authority::Public => "tern public",
            },
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        validity(&mut params);
        params
    }
}

fn validity(params: &mut CertificateParams) {
    // Days are enough: the year is counted in mean years, and validity starts a year back so that a machine
    // with a slow clock accepts it as well.
    let mean_year_ms = 31_556_952_000;
    let year = 1970 + i32::try_from(SystemClock.wall_ms() / mean_year_ms).unwrap_or(0);
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + VALID_YEARS, 1, 1);
}

impl Pki {
    /// Opens `<data>/pki`, making the authorities where they are missing.
    pub fn open(data: &Path) -> Result<Self> {
        let pki = Self { dir: data.join("pki") };
        fs::create_dir_all(&pki.dir).with_context(|| format!("can't make {}", pki.dir.display()))?;
        for authority in [Authority::Node, Authority::Public] {
            let (cert, key) = pki.files(authority.stem());
            certified(&cert, &key, |key| Ok(authority.params().self_signed(key)?))?;
        }
        Ok(pki)
    }

    /// The authority that clients pin.
    pub fn public_ca(&self) -> PathBuf {
        self.files(Authority::Public.stem()).0
    }

    /// The authority that nodes trust each other by.
    pub fn node_ca(&self) -> PathBuf {
        self.files(Authority::Node.stem()).0
    }

    /// The files of node `name` in `region`, made where they are missing. `extra`: further names and
    /// addresses that clients and nodes reach it by.
    pub fn leaf(&self, name: &str, region: &str, extra: &[String]) -> Result<Leaf> {
        let leaf = leaf_files(&self.dir, name);
        for (authority, cert, key) in [
            (Authority::Public, &leaf.public_cert, &leaf.public_key),
            (Authority::Node, &leaf.node_cert, &leaf.node_key),
        ] {
            certified(cert, key, |key| self.issue(authority, key, name, region, extra))?;
        }
        Ok(leaf)
    }

    fn issue(
        &self,
        authority: Authority,
        key: &KeyPair,
        name: &str,
        region: &str,
        extra: &[String],
    ) -> Result<Certificate> {
        let internal = format!("{name}.{region}.tern.internal");
        // Nodes that know only the region look for the second name.
        let of_region = region_server_name(region);
        let names = [&internal, &of_region, "localhost", "127.0.0.1", "::1"].into_iter().map(str::to_owned);
        let mut params = CertificateParams::new(names.chain(extra.iter().cloned()).collect::<Vec<_>>())
            .context("a name or address of the certificate is not one")?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, internal);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match authority {
            Authority::Public => vec![ExtendedKeyUsagePurpose::ServerAuth],
            // A node both dials and is dialled.
            Authority::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        validity(&mut params);
        let ca_key = read_key(&self.files(authority.stem()).1)?;
        let ca = authority.params();
        Ok(params.signed_by(key, &Issuer::from_params(&ca, &ca_key))?)
    }

    fn files(&self, stem: &str) -> (PathBuf, PathBuf) {
        (self.dir.join(format!("{stem}.pem")), self.dir.join(format!("{stem}.key")))
    }
}

/// The name in the certificates of all nodes of a region.
pub fn region_server_name(region: &str) -> String {
    format!("{region}.tern.internal")
}

/// Where the files of node `name` are in the directory `pki`.
pub fn leaf_files(pki: &Path, name: &str) -> Leaf {
    let file = |end: &str| pki.join(format!("{name}.{end}"));
    Leaf {
        public_cert: file("public.pem"),
        public_key: file("public.key"),
        node_cert: file("node.pem"),
        node_key: file("node.key"),
    }
}

/// The secrets that all regions of a deployment share, made where they are missing.
pub fn shared_secrets(data: &Path) -> Result<()> {
    fs::create_dir_all(data).with_context(|| format!("can't make {}", data.display()))?;
    let tokens = data.join("tokens.jwk");
    if !tokens.exists() {
        write_new(&tokens, token::new_key_set(&random_bytes()?)?.as_bytes(), true)?;
    }
    for name in ["receipt.key", "direct.salt"] {
        let path = data.join(name);
        if !path.exists() {
            write_new(&path, format!("{}\n", hex(&random_bytes()?)).as_bytes(), true)?;
        }
    }
    let path = data.join(KEY_FILE);
    if !path.exists() {
        // All nodes get it, edges too, and none of them can make a receipt with it.
        let receipts = read_keys_file(&data.join("receipt.key"), "receipt key")?;
        let key = receipts.first().and_then(GossipKey::from_receipt_key).context("the gossip key can't be derived")?;
        write_new(&path, format!("{}\n", hex(key.reveal())).as_bytes(), true)?;
    }
    Ok(())
}

/// A file of 32 bytes as 64 hex digits.
pub fn read_hex_file(path: &Path, what: &str) -> Result<[u8; 32]> {
    parse_hex(read_secret(path, what)?.trim())
        .with_context(|| format!("the {what} {} must be 64 hex digits, the same in every region", path.display()))
}

/// A file of keys, one a line, each 64 hex digits; the first is the one in use, the others are still taken.
pub fn read_keys_file(path: &Path, what: &str) -> Result<Vec<[u8; 32]>> {
    parse_keys(&read_secret(path, what)?).map_err(|why| anyhow!("the {what} {}: {why}", path.display()))
}

fn read_secret(path: &Path, what: &str) -> Result<String> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(SECRET_BYTES_MAX).read_to_string(&mut text));
    read.with_context(|| {
        format!("can't read the {what} {}; copy it from another region, or make one with `tern pki`", path.display())
    })?;
    Ok(text)
}

/// Keys, divided by line ends or commas. Empty lines and those that begin with # are passed over. What is wrong is said
/// without the key.
pub fn parse_keys(text: &str) -> Result<Vec<[u8; 32]>, String> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().starts_with('#'));
    let words = lines.flat_map(|(number, line)| line.split(',').map(move |word| (number, word.trim())));
    let mut keys: Vec<[u8; 32]> = Vec::new();
    for (number, word) in words.filter(|(_, word)| !word.is_empty()) {
        let key = parse_hex(word).ok_or_else(|| format!("line {number} is not 64 hex digits"))?;
        if keys.contains(&key) {
            return Err(format!("the key in line {number} is there twice"));
        }
        keys.push(key);
    }
    match keys.len() {
        0 => Err("it must be 64 hex digits, the same in every region".to_owned()),
        count if count > KEYS_MAX => Err(format!("it has {count} keys, and at most {KEYS_MAX} are taken")),
        _ => Ok(keys),
    }
}

/// The deployment's receipt keys, newest first.
pub fn receipt_secrets(settings: &Settings) -> Result<Vec<[u8; 32]>> {
    match &settings.receipt_key {
        Some(text) => parse_keys(text.reveal()).map_err(|why| anyhow!("receipt.key: {why}")),
        None => read_keys_file(&settings.path(&settings.receipt_key_file, "receipt.key"), "receipt key"),
    }
}

/// 64 hex digits.
pub fn parse_hex(text: &str) -> Option<[u8; 32]> {
    // Not left to the parser of numbers, which takes a sign.
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; 32];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(out)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn random_bytes() -> Result<[u8; 32]> {
    let mut out = [0; 32];
    SystemRandom::new().fill(&mut out).ok().context("the system has no random numbers to give")?;
    Ok(out)
}

/// Makes a key and its certificate where they are missing.
fn certified(cert: &Path, key: &Path, issue: impl FnOnce(&KeyPair) -> Result<Certificate>) -> Result<()> {
    match (cert.exists(), key.exists()) {
        (true, true) => return Ok(()),
        (true, false) => {
            // An authority whose key was taken off the machine is how it should be; it needs nothing.
            if cert.file_stem().is_some_and(|s| s.to_string_lossy().ends_with("-ca")) {
                return Ok(());
            }
            bail!(
                "{} is there but its key {} is not: restore it, or delete both to have them made anew",
                cert.display(),
                key.display()
            );
        }
        (false, false) => {
            let made = KeyPair::generate_for(&PKCS_ED25519)?;
            write_new(key, made.serialize_pem().as_bytes(), true)?;
        }
        (false, true) => {}
    }
    let issued = issue(&read_key(key)?)?;
    write_new(cert, issued.pem().as_bytes(), false)
}

fn read_key(path: &Path) -> Result<KeyPair> {
    let pem = fs::read_to_string(path).with_context(|| format!("can't read the key {}", path.display()))?;
    KeyPair::from_pem(&pem).with_context(|| format!("{} is not a private key in PEM", path.display()))
}

/// Writes a file that must not be there yet, whole or not at all.
fn write_new(path: &Path, content: &[u8], secret: bool) -> Result<()> {
    let mode = if secret { 0o600 } else { 0o644 };
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        // A link, unlike a rename, never replaces what another process made meanwhile.
        match fs::hard_link(&partial, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    };
    let written = write();
    let removed = fs::remove_file(&partial);
    written.and(removed).with_context(|| format!("can't write {}", path.display()))
}

/// `tern pki`: makes what is missing and says where it is.
pub fn run(global: &Global, args: &PkiArgs) -> Result<(), Failure> {
    for name in [&args.node, &args.region] {
        if !crate::config::is_name(name) {
            return Err(Failure::Usage(format!(
                "{name:?} can't be part of a host name: use 1 to 32 characters of a-z, 0-9 and \"-\""
            )));
        }
    }
    let settings = crate::settings(global, &[])?;
    shared_secrets(&settings.data)?;
    let pki = Pki::open(&settings.data)?;
    let leaf = pki.leaf(&args.node, &args.region, &args.address)?;
    let shared = |name: &str| settings.data.join(name);
    let files = [
        ("clients pin", pki.public_ca()),
        ("all nodes", pki.node_ca()),
        ("all nodes", shared("tokens.jwk")),
        ("all nodes", shared(KEY_FILE)),
        ("all regions", shared("receipt.key")),
        ("all regions", shared("direct.salt")),
        ("this node", leaf.public_cert),
        ("this node", leaf.public_key),
        ("this node", leaf.node_cert),
        ("this node", leaf.node_key),
    ];
    for (whose, path) in files {
        if global.json {
            println!("{}", serde_json::json!({ "for": whose, "path": path }));
        } else {
            println!("{whose:<12} {}", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).filter(|p| p.is_file()).collect();
        files.sort();
        files.into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
    }

    #[test]
    fn what_is_there_is_used_and_never_overwritten() {
        let data = tempfile::tempdir().unwrap();
        let make = || {
            shared_secrets(data.path()).unwrap();
            Pki::open(data.path()).unwrap().leaf("eu-e1", "eu", &[]).unwrap()
        };
        let leaf = make();
        let before = (content(data.path()), content(&data.path().join("pki")));
        assert_eq!(before.1.len(), 8, "two authorities and two leaves, each with a key, and nothing else");
        make();
        assert_eq!(before, (content(data.path()), content(&data.path().join("pki"))));
        for secret in
            [&leaf.public_key, &leaf.node_key, &data.path().join("tokens.jwk"), &data.path().join("receipt.key")]
        {
            assert_eq!(fs::metadata(secret).unwrap().permissions().mode() & 0o777, 0o600, "{}", secret.display());
        }
    }

    #[test]
    fn a_crash_between_key_and_certificate_is_made_good() {
        let data = tempfile::tempdir().unwrap();
        let leaf = Pki::open(data.path()).unwrap().leaf("eu-e1", "eu", &[]).unwrap();
        let key = fs::read(&leaf.node_key).unwrap();
        fs::remove_file(&leaf.node_cert).unwrap();
        Pki::open(data.path()).unwrap().leaf("eu-e1", "eu", &[]).unwrap();
        assert!(leaf.node_cert.exists());
        assert_eq!(fs::read(&leaf.node_key).unwrap(), key);
    }

    #[test]
    fn a_certificate_without_its_key_is_reported_not_replaced() {
        let data = tempfile::tempdir().unwrap();
        let leaf = Pki::open(data.path()).unwrap().leaf("eu-e1", "eu", &[]).unwrap();
        fs::remove_file(&leaf.public_key).unwrap();
        let error = Pki::open(data.path()).unwrap().leaf("eu-e1", "eu", &[]).unwrap_err();
        assert!(error.to_string().contains("delete both"), "{error}");
    }

    #[test]
    fn hex_files_are_64_digits() {
        let data = tempfile::tempdir().unwrap();
        shared_secrets(data.path()).unwrap();
        let path = data.path().join("receipt.key");
        assert!(read_hex_file(&path, "receipt key").is_ok());
        fs::write(&path, "abc").unwrap();
        assert!(read_hex_file(&path, "receipt key").unwrap_err().to_string().contains("64 hex digits"));
        assert_eq!(parse_hex(&"0g".repeat(32)), None);
    }
}
