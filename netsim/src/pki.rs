//! Certificate authorities and certificates that are the same in every run of a seed.
//!
//! Keys are Ed25519 and derived from the seed; serial numbers and dates are fixed. An Ed25519 signature is a
//! function of key and content, so the certificates are equal byte by byte, and no handshake packet differs
//! in length between two runs. (An ECDSA signature's length varies by its random number.)

use std::fmt::{self, Debug};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ED25519, SerialNumber,
    date_time_ymd,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tern_core::clock::Entropy;

use crate::random::derive;

/// What precedes the 32 bytes of an Ed25519 key in PKCS#8 (RFC 8410, section 7).
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub chain_pem: String,
    /// Its key.
    pub key_pem: String,
}

impl Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").finish_non_exhaustive()
    }
}

/// A certificate authority of a world.
pub struct Pki {
    seed: u64,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Debug for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pki").finish_non_exhaustive()
    }
}

impl Pki {
    /// The authority `name` ("public", "nodes") of a seed.
    pub fn new(seed: u64, name: &str) -> Result<Self, rcgen::Error> {
        let seed = derive(seed, name, 0);
        let mut params = params(Vec::new(), name, derive(seed, "serial", 0))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self { seed, ca: CertifiedIssuer::self_signed(params, key_pair(seed)?)? })
    }

    /// What others must trust.
    pub fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    /// A certificate for these names and addresses; the first name also tells one certificate from another.
    pub fn issue(&self, names: &[&str]) -> Result<Issued, rcgen::Error> {
        let first = names.first().copied().unwrap_or("nobody");
        let key = key_pair(derive(self.seed, first, 1))?;
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let leaf = params(names, first, derive(self.seed, first, 2))?.signed_by(&key, &self.ca)?;
        Ok(Issued { chain_pem: leaf.pem(), key_pem: key.serialize_pem() })
    }
}

/// 32 bytes of key for a seed.
pub(crate) fn key_bytes(seed: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    Entropy::seeded(seed).fill(&mut bytes);
    bytes
}

fn key_pair(seed: u64) -> Result<KeyPair, rcgen::Error> {
    let der = [PKCS8_ED25519.as_slice(), &key_bytes(seed)].concat();
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &PKCS_ED25519)
}

fn params(names: Vec<String>, common: &str, serial: u64) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common);
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    // The two highest bits fix the number's length in DER.
    let serial = (serial >> 2) | (1 << 62);
    params.serial_number = Some(SerialNumber::from_slice(&serial.to_be_bytes()));
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tern_core::clock::Clock;
    use tern_net::tls::{Identity, client_tls, node_client_tls, node_server_tls, server_tls};

    #[derive(Debug)]
    struct Fixed;
    impl Clock for Fixed {
        fn now(&self) -> std::time::Duration {
            std::time::Duration::ZERO
        }
        fn wall_ms(&self) -> u64 {
            crate::node::EPOCH_MS
        }
    }

    #[test]
    fn one_seed_gives_equal_certificates_and_others_differ() {
        let pems = |seed: u64| {
            let pki = Pki::new(seed, "public").unwrap();
            let issued = pki.issue(&["edge.eu.tern.internal", "127.0.0.1"]).unwrap();
            (pki.ca_pem(), issued.chain_pem, issued.key_pem)
        };
        assert_eq!(pems(1), pems(1));
        assert_ne!(pems(1), pems(2));
        let pki = Pki::new(1, "public").unwrap();
        assert_ne!(pki.issue(&["a"]).unwrap().key_pem, pki.issue(&["b"]).unwrap().key_pem);
        assert_ne!(pki.ca_pem(), Pki::new(1, "nodes").unwrap().ca_pem());
    }

    #[test]
    fn the_certificates_are_accepted_by_the_tls_set_up() {
        let pki = Pki::new(1, "nodes").unwrap();
        let issued = pki.issue(&["core.eu.tern.internal", "10.0.0.1"]).unwrap();
        let identity = Identity::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
        let (ca, clock) = (pki.ca_pem(), Arc::new(Fixed));
        server_tls(&identity, &[b"tern/1"], Arc::clone(&clock) as _).unwrap();
        client_tls(ca.as_bytes(), &[b"tern/1"], Arc::clone(&clock) as _).unwrap();
        node_server_tls(&identity, ca.as_bytes(), Arc::clone(&clock) as _).unwrap();
        node_client_tls(&identity, ca.as_bytes(), clock).unwrap();
    }
}
