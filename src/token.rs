//! Tokens for development and tests: `tern token`, and what `chat` and `demo` use.
//!
//! In production an application's own server signs tokens; tern only checks them. A token is a JWT
//! (RFC 7519) signed with EdDSA (RFC 8037): `sub` is the user, `aud` the deployment, and `iat`, `exp` are
//! seconds since 1970.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};
use tern_core::clock::Clock;
use tern_core::ids::UserId;
use tern_net::system::SystemClock;

use crate::cli::{Global, TokenArgs};
use crate::cluster::Endpoints;
use crate::config::source::Source;
use crate::exit::Failure;

/// The `kid` of the key that `dev` and `demo` make.
const DEV_KEY_ID: &str = "dev";
/// What stands before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410, section 7).
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A JWK set (RFC 7517), as far as signing needs it.
#[derive(Serialize, Deserialize)]
struct KeySet {
    keys: Vec<Key>,
}

#[derive(Serialize, Deserialize)]
struct Key {
    kty: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
    kid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    d: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    k: Option<String>,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    aud: &'a str,
}

/// A set of one Ed25519 key, secret part included, from 32 random bytes.
pub fn new_key_set(seed: &[u8; 32]) -> Result<String> {
    let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok().context("32 bytes are not an Ed25519 key")?;
    let key = Key {
        kty: "OKP".into(),
        crv: Some("Ed25519".into()),
        alg: Some("EdDSA".into()),
        kid: DEV_KEY_ID.into(),
        x: Some(URL_SAFE_NO_PAD.encode(pair.public_key().as_ref())),
        d: Some(URL_SAFE_NO_PAD.encode(seed)),
        k: None,
    };
    Ok(serde_json::to_string_pretty(&KeySet { keys: vec![key] })? + "\n")
}

/// Signs tokens with the first key of a set that has its secret part.
pub struct Signer {
    key: EncodingKey,
    header: Header,
    path: PathBuf,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("path", &self.path).field("kid", &self.header.kid).finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads a JWK set.
    pub fn open(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| {
            format!("can't read {}; --data must be the directory of a `tern dev` or `tern pki`", path.display())
        })?;
        let set: KeySet =
            serde_json::from_str(&text).with_context(|| format!("{} is not a JWK set", path.display()))?;
        for key in &set.keys {
            let (algorithm, encoding) = match (key.kty.as_str(), key.crv.as_deref(), &key.d, &key.k) {
                ("OKP", Some("Ed25519"), Some(d), _) => {
                    let seed = URL_SAFE_NO_PAD.decode(d).ok().filter(|seed| seed.len() == 32);
                    let seed = seed.with_context(|| format!("key {:?} of {} has a bad d", key.kid, path.display()))?;
                    (Algorithm::EdDSA, EncodingKey::from_ed_der(&[&PKCS8_ED25519[..], &seed].concat()))
                }
                ("oct", _, _, Some(k)) => {
                    let secret = URL_SAFE_NO_PAD.decode(k);
                    let secret =
                        secret.ok().with_context(|| format!("key {:?} of {} has a bad k", key.kid, path.display()))?;
                    (Algorithm::HS256, EncodingKey::from_secret(&secret))
                }
                _ => continue,
            };
            let header = Header { kid: Some(key.kid.clone()), ..Header::new(algorithm) };
            return Ok(Self { key: encoding, header, path: path.to_owned() });
        }
        bail!(
            "{} has no key that can sign: only public parts; use the file that `tern dev` or `tern pki` made, or let \
             your own server sign",
            path.display()
        )
    }

    /// A token for `user`, valid for `ttl` from now.
    pub fn sign(&self, user: &UserId, audience: &str, ttl: Duration) -> Result<String> {
        let now = SystemClock.wall_ms() / 1000;
        let claims = Claims { sub: user.as_str(), iat: now, exp: now.saturating_add(ttl.as_secs()), aud: audience };
        jsonwebtoken::encode(&self.header, &claims, &self.key)
            .with_context(|| format!("the key of {} can't sign", self.path.display()))
    }
}

/// `tern token`: prints a token and nothing else.
pub fn run(global: &Global, args: &TokenArgs) -> Result<(), Failure> {
    let settings = crate::settings(global, &[])?;
    let signer = Signer::open(&settings.path(&settings.tokens_file, "tokens.jwk"))?;
    let audience = match &args.audience {
        Some(audience) => audience.clone(),
        // The deployment of a `tern dev` beats the default, but not what someone set.
        None if *settings.source("deployment") == Source::Default => {
            Endpoints::read(&settings.data).map_or(settings.deployment, |e| e.deployment)
        }
        None => settings.deployment,
    };
    let token = signer.sign(&args.user, &audience, args.ttl)?;
    if global.json {
        println!("{}", serde_json::json!({ "user": args.user.as_str(), "audience": audience, "token": token }));
    } else {
        println!("{token}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation};

    fn written(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        file
    }

    #[test]
    fn a_token_is_checked_by_the_public_part_of_the_set() {
        let file = written(&new_key_set(&[7; 32]).unwrap());
        let signer = Signer::open(file.path()).unwrap();
        let token = signer.sign(&UserId::new("alice").unwrap(), "tern", Duration::from_secs(60)).unwrap();
        let set: jsonwebtoken::jwk::JwkSet = serde_json::from_str(&fs::read_to_string(file.path()).unwrap()).unwrap();
        let header = jsonwebtoken::decode_header(&token).unwrap();
        let key = DecodingKey::from_jwk(set.find(header.kid.as_deref().unwrap()).unwrap()).unwrap();
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&["tern"]);
        let claims = jsonwebtoken::decode::<serde_json::Value>(&token, &key, &validation).unwrap().claims;
        assert_eq!(claims["sub"], "alice");
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 60);
    }

    #[test]
    fn a_set_without_a_secret_part_says_so() {
        let public = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"AAAA"}]}"#;
        assert!(Signer::open(written(public).path()).unwrap_err().to_string().contains("no key that can sign"));
        assert!(Signer::open(written("{").path()).unwrap_err().to_string().contains("not a JWK set"));
        assert!(Signer::open(Path::new("/nonexistent")).unwrap_err().to_string().contains("--data"));
    }

    #[test]
    fn a_shared_secret_signs_as_well_and_is_not_in_debug() {
        let file = written(r#"{"keys":[{"kty":"oct","kid":"h","k":"c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"}]}"#);
        let signer = Signer::open(file.path()).unwrap();
        assert!(signer.sign(&UserId::new("a").unwrap(), "tern", Duration::from_secs(1)).is_ok());
        assert!(!format!("{signer:?}").contains("secret"));
    }
}
