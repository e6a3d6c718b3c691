//! Tokens: JSON Web Tokens (RFC 7519), signed with Ed25519 (`EdDSA`) or HMAC-SHA-256 (`HS256`).
//!
//! A deployment has several active keys, told apart by `kid`, so that keys can be changed without an outage:
//! add the new one everywhere, sign with it, remove the old one after the longest token's life. Times are
//! compared with the environment's wall clock, not with the machine's.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::path::{Path, PathBuf};

use jsonwebtoken::jwk::{AlgorithmParameters, CommonParameters, Jwk, OctetKeyParameters, OctetKeyType};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use tern_core::codes::{Code, Refusal};
use tern_core::ids::UserId;

/// Longest token that is looked at: a few hundred bytes are usual.
pub const TOKEN_BYTES: usize = 4096;
/// Shortest shared secret for HS256 (RFC 7518, 3.2).
pub const SECRET_BYTES: usize = 32;
/// Keys of one set: two are in use while keys change.
pub const KEYS: usize = 64;
/// A token may be issued, or become valid, this far in the future: clocks differ.
pub const IAT_LEEWAY_MS: u64 = 30_000;

/// Why a key set can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file that can't be read.
    #[error("can't read the token keys from {}: {cause}; check the path and that this process may read it", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// Not JSON, or not a key or key set.
    #[error("the token keys are not a JWK or JWK set (RFC 7517): {0}")]
    Json(String),
    /// One key is no good.
    #[error("token key {kid:?}: {what}")]
    Key {
        /// Which one.
        kid: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// Nobody could connect.
    #[error(
        "there are no token keys, so that nobody could connect; put at least one Ed25519 (OKP) or HS256 (oct) key into the set"
    )]
    Empty,
}

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token, a wrong signature, or claims that are none.
    #[error("{0}")]
    Invalid(String),
    /// Past its `exp`.
    #[error("the token expired {0} s ago")]
    Expired(u64),
    /// Signed by nobody known here.
    #[error("the token is signed by key {0:?}, which this deployment does not know")]
    UnknownKey(String),
    /// For another deployment.
    #[error("the token is not for this deployment: its aud does not name {0:?}")]
    Audience(String),
}

impl TokenError {
    /// The code for the wire.
    pub fn code(&self) -> Code {
        match self {
            TokenError::Invalid(_) => Code::TokenInvalid,
            TokenError::Expired(_) => Code::TokenExpired,
            TokenError::UnknownKey(_) => Code::TokenUnknownKey,
            TokenError::Audience(_) => Code::TokenAudience,
        }
    }

    /// Ready for the wire.
    pub fn refusal(&self) -> Refusal {
        Refusal::new(self.code(), self.to_string())
    }
}

/// What a valid token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The user.
    pub sub: UserId,
    /// Until when, milliseconds since 1970.
    pub exp_ms: u64,
    /// When it was issued, milliseconds since 1970; 0 = it does not say.
    pub iat_ms: u64,
}

/// The active keys of a deployment. `Debug` shows their ids alone.
#[derive(Clone)]
pub struct TokenKeys {
    keys: BTreeMap<String, Key>,
}

#[derive(Clone)]
struct Key {
    key: DecodingKey,
    validation: Validation,
}

impl Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

#[derive(Deserialize)]
struct RawSet {
    keys: Vec<RawKey>,
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    #[serde(default)]
    kid: String,
    crv: Option<String>,
    x: Option<String>,
    k: Option<String>,
}

#[derive(Deserialize)]
struct RawClaims {
    sub: Option<String>,
    exp: Option<f64>,
    iat: Option<f64>,
    nbf: Option<f64>,
    aud: Option<Audience>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl TokenKeys {
    /// From a file: a JWK set, or a single JWK. Private parts are ignored.
    pub fn from_file(path: &Path) -> Result<Self, KeysError> {
        let bytes = std::fs::read(path).map_err(|cause| KeysError::Read { path: path.to_owned(), cause })?;
        Self::from_json(&bytes)
    }

    /// From the text of a JWK set or a single JWK.
    pub fn from_json(json: &[u8]) -> Result<Self, KeysError> {
        // serde_json's messages tell the place, never the content around it.
        let value: serde_json::Value = serde_json::from_slice(json).map_err(|e| KeysError::Json(e.to_string()))?;
        let raw: Vec<RawKey> = if value.get("keys").is_some() {
            serde_json::from_value::<RawSet>(value).map(|set| set.keys)
        } else {
            serde_json::from_value::<RawKey>(value).map(|key| vec![key])
        }
        .map_err(|_| KeysError::Json("a key lacks its kty, or a field is not text".into()))?;
        if raw.len() > KEYS {
            return Err(KeysError::Json(format!("{} keys; at most {KEYS} are allowed", raw.len())));
        }
        let mut keys = BTreeMap::new();
        for raw in raw {
            let (kid, key) = raw.parse()?;
            if keys.insert(kid.clone(), key).is_some() {
                return Err(KeysError::Key { kid, what: "there are two keys of this kid; give each its own".into() });
            }
        }
        if keys.is_empty() {
            return Err(KeysError::Empty);
        }
        Ok(Self { keys })
    }

    /// Checks a token: signature, `exp`, `iat`, `nbf`, `aud`, and that `sub` is a user id. A token without
    /// `kid` is checked by the only key, if there is only one.
    pub fn verify(&self, token: &str, now_wall_ms: u64, audience: &str) -> Result<Claims, TokenError> {
        let invalid = |what: &str| TokenError::Invalid(what.to_owned());
        if token.is_empty() || token.len() > TOKEN_BYTES {
            return Err(invalid("the token is empty or longer than 4096 bytes"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| invalid("the token is not a JSON Web Token"))?;
        let key = match &header.kid {
            Some(kid) => self.keys.get(kid),
            None if self.keys.len() == 1 => self.keys.values().next(),
            None => None,
        };
        let Some(key) = key else {
            return Err(TokenError::UnknownKey(header.kid.unwrap_or_default().chars().take(64).collect()));
        };
        let claims = jsonwebtoken::decode::<RawClaims>(token, &key.key, &key.validation)
            .map_err(|_| invalid("the token's signature is wrong, or its claims are malformed"))?
            .claims;
        let exp_ms = claims.exp.and_then(to_ms).ok_or_else(|| invalid("the token has no exp"))?;
        if exp_ms <= now_wall_ms {
            return Err(TokenError::Expired((now_wall_ms - exp_ms) / 1000));
        }
        let latest = now_wall_ms.saturating_add(IAT_LEEWAY_MS);
        if claims.iat.is_some_and(|iat| to_ms(iat).is_none_or(|iat| iat > latest)) {
            return Err(invalid("the token was issued in the future: compare the clocks of issuer and edge"));
        }
        if claims.nbf.is_some_and(|nbf| to_ms(nbf).is_none_or(|nbf| nbf > latest)) {
            return Err(invalid("the token is not valid yet"));
        }
        let ours = match &claims.aud {
            Some(Audience::One(aud)) => aud == audience,
            Some(Audience::Many(auds)) => auds.iter().any(|aud| aud == audience),
            None => false,
        };
        if !ours {
            return Err(TokenError::Audience(audience.to_owned()));
        }
        let sub = claims.sub.as_deref().ok_or_else(|| invalid("the token has no sub"))?;
        let sub = UserId::new(sub).map_err(|e| TokenError::Invalid(format!("the token's sub is no user id: {e}")))?;
        Ok(Claims { sub, exp_ms, iat_ms: claims.iat.and_then(to_ms).unwrap_or(0) })
    }
}

/// Seconds since 1970, possibly with a fraction, to milliseconds.
fn to_ms(seconds: f64) -> Option<u64> {
    let ms = seconds * 1000.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
    (ms.is_finite() && (0.0..1e16).contains(&ms)).then_some(ms as u64)
}

impl RawKey {
    fn parse(self) -> Result<(String, Key), KeysError> {
        let RawKey { kty, kid, crv, x, k } = self;
        let wrong = |what: &str| KeysError::Key { kid: kid.clone(), what: what.to_owned() };
        let (key, algorithm) = match (kty.as_str(), crv.as_deref()) {
            ("OKP", Some("Ed25519")) => {
                let x = x.ok_or_else(|| wrong("it has no x, the public key"))?;
                if x.trim_end_matches('=').len() != 43 {
                    return Err(wrong("x must be the 32 bytes of the public key as base64url"));
                }
                let key = DecodingKey::from_ed_components(&x).map_err(|_| wrong("x is not base64url"))?;
                (key, Algorithm::EdDSA)
            }
            ("oct", _) => {
                let value = k.ok_or_else(|| wrong("it has no k, the secret"))?;
                if value.trim_end_matches('=').len() * 3 / 4 < SECRET_BYTES {
                    return Err(wrong("k is shorter than 32 bytes, which could be guessed; make a longer secret"));
                }
                let parameters = OctetKeyParameters { key_type: OctetKeyType::Octet, value };
                let jwk =
                    Jwk { common: CommonParameters::default(), algorithm: AlgorithmParameters::OctetKey(parameters) };
                (DecodingKey::from_jwk(&jwk).map_err(|_| wrong("k is not base64url"))?, Algorithm::HS256)
            }
            _ => return Err(wrong("only kty OKP with crv Ed25519, and kty oct (HS256) are supported")),
        };
        // Claims are checked here and not by the library, which would read the machine's clock.
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Ok((kid, Key { key, validation }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::{Value, json};

    pub(crate) const WALL_MS: u64 = 1_790_000_000_000;
    pub(crate) const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const SECRET_JWK: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY";

    pub(crate) fn keys() -> TokenKeys {
        let json = json!({"keys": [{"kty": "oct", "kid": "h", "k": SECRET_JWK}, {"kty": "oct", "kid": "old", "k": SECRET_JWK}]});
        TokenKeys::from_json(json.to_string().as_bytes()).unwrap()
    }

    pub(crate) fn sign(kid: &str, claims: &Value) -> String {
        let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(SECRET)).unwrap()
    }

    pub(crate) fn token(user: &str) -> String {
        sign("h", &claims(user))
    }

    fn claims(user: &str) -> Value {
        let now = WALL_MS / 1000;
        json!({"sub": user, "iat": now - 5, "exp": now + 3600, "aud": "tern"})
    }

    fn verify(token: &str) -> Result<Claims, TokenError> {
        keys().verify(token, WALL_MS, "tern")
    }

    fn with(name: &str, value: Value) -> String {
        let mut claims = claims("alice");
        claims[name] = value;
        sign("h", &claims)
    }

    #[test]
    fn a_good_token_names_its_user_and_end() {
        let claims = verify(&token("alice")).unwrap();
        assert_eq!((claims.sub.as_str(), claims.exp_ms), ("alice", WALL_MS + 3_600_000));
        assert!(verify(&with("aud", json!(["x", "tern"]))).is_ok());
        assert!(verify(&with("iat", json!(WALL_MS / 1000 + 29))).is_ok());
    }

    #[test]
    fn each_bad_token_gets_its_own_code() {
        let code = |token: &str| verify(token).unwrap_err().code();
        let now = WALL_MS / 1000;
        assert_eq!(code(""), Code::TokenInvalid);
        assert_eq!(code("a.b.c"), Code::TokenInvalid);
        assert_eq!(code(&"x".repeat(5000)), Code::TokenInvalid);
        assert_eq!(code(&with("exp", json!(now - 1))), Code::TokenExpired);
        assert_eq!(code(&with("exp", Value::Null)), Code::TokenInvalid);
        assert_eq!(code(&with("iat", json!(now + 31))), Code::TokenInvalid);
        assert_eq!(code(&with("nbf", json!(now + 31))), Code::TokenInvalid);
        assert_eq!(code(&with("aud", json!("other"))), Code::TokenAudience);
        assert_eq!(code(&with("aud", Value::Null)), Code::TokenAudience);
        assert_eq!(code(&with("sub", json!(""))), Code::TokenInvalid);
        assert_eq!(code(&sign("foreign", &claims("alice"))), Code::TokenUnknownKey);
        let header = Header { kid: Some("h".into()), ..Header::new(Algorithm::HS256) };
        let forged = jsonwebtoken::encode(&header, &claims("alice"), &EncodingKey::from_secret(b"guess")).unwrap();
        assert_eq!(code(&forged), Code::TokenInvalid);
        let none = "eyJhbGciOiJub25lIiwia2lkIjoiaCJ9.eyJzdWIiOiJhbGljZSJ9.";
        assert_eq!(code(none), Code::TokenInvalid);
    }

    #[test]
    fn ed25519_keys_verify_and_refuse_tokens_of_the_other_algorithm() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let x = base64url(pair.public_key_raw());
        let json = json!({"kty": "OKP", "crv": "Ed25519", "kid": "dev", "x": x, "d": "ignored"});
        let keys = TokenKeys::from_json(json.to_string().as_bytes()).unwrap();
        let header = Header { kid: Some("dev".into()), ..Header::new(Algorithm::EdDSA) };
        let token =
            jsonwebtoken::encode(&header, &claims("bob"), &EncodingKey::from_ed_der(pair.serialized_der())).unwrap();
        assert_eq!(keys.verify(&token, WALL_MS, "tern").unwrap().sub.as_str(), "bob");
        // The public key is no secret: a token "signed" with it by HS256 must not pass.
        let header = Header { kid: Some("dev".into()), ..Header::new(Algorithm::HS256) };
        let forged =
            jsonwebtoken::encode(&header, &claims("bob"), &EncodingKey::from_secret(pair.public_key_raw())).unwrap();
        assert_eq!(keys.verify(&forged, WALL_MS, "tern").unwrap_err().code(), Code::TokenInvalid);
    }

    #[test]
    fn key_sets_that_are_none_are_told_apart_and_secrets_never_shown() {
        let error = |json: &str| TokenKeys::from_json(json.as_bytes()).unwrap_err().to_string();
        assert!(error("{").contains("JWK"));
        assert!(error("{\"keys\": []}").contains("no token keys"));
        assert!(error("{\"keys\": [{\"kty\": \"RSA\", \"kid\": \"r\"}]}").contains("\"r\""));
        assert!(error("{\"kty\": \"oct\", \"kid\": \"s\", \"k\": \"c2hvcnQ\"}").contains("shorter than 32"));
        assert!(TokenKeys::from_file(Path::new("/nonexistent")).unwrap_err().to_string().contains("/nonexistent"));
        assert_eq!(format!("{:?}", keys()), "{\"h\", \"old\"}");
    }

    fn base64url(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut out = String::new();
        for chunk in bytes.chunks(3) {
            let n = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
            for i in 0..=chunk.len() {
                out.push(char::from(DIGITS[(n >> (18 - 6 * i)) as usize & 63]));
            }
        }
        out
    }
}
