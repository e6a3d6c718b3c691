//! Tokens for simulated users: a signer with one Ed25519 key, derived from the seed (RFC 7515, 7519, 8037).

use std::fmt::{self, Debug};

use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::pki::key_bytes;
use crate::random::derive;

/// Signs tokens, and tells edges how to check them.
pub struct Signer {
    key: Ed25519KeyPair,
    audience: String,
}

impl Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("audience", &self.audience).finish_non_exhaustive()
    }
}

impl Signer {
    /// The signer of a deployment in the world of this seed. Fails only if the key is no key.
    pub fn new(seed: u64, audience: &str) -> Result<Self, ring::error::KeyRejected> {
        let key = Ed25519KeyPair::from_seed_unchecked(&key_bytes(derive(seed, "tokens", 0)))?;
        Ok(Self { key, audience: audience.to_owned() })
    }

    /// The public key as a JWK set, kid `sim`.
    pub fn jwk_set(&self) -> String {
        let x = base64url(self.key.public_key().as_ref());
        format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","kid":"sim","x":"{x}"}}]}}"#)
    }

    /// A token for `user`, which must need no escape in JSON; times in seconds since 1970.
    pub fn token(&self, user: &str, issued_s: u64, expires_s: u64) -> String {
        let header = base64url(br#"{"alg":"EdDSA","kid":"sim","typ":"JWT"}"#);
        let audience = &self.audience;
        let claims = format!(r#"{{"sub":"{user}","aud":"{audience}","iat":{issued_s},"exp":{expires_s}}}"#);
        let signed = format!("{header}.{}", base64url(claims.as_bytes()));
        let signature = base64url(self.key.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }
}

/// RFC 4648, section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..=chunk.len() {
            out.push(char::from(LETTERS[(word >> (18 - 6 * i)) as usize & 63]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_is_as_in_the_rfc() {
        let pairs = [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("fooba", "Zm9vYmE")];
        for (plain, coded) in pairs {
            assert_eq!(base64url(plain.as_bytes()), coded);
        }
        assert_eq!(base64url(&[0xfb, 0xff]), "-_8");
    }

    #[test]
    fn tokens_repeat_and_verify_under_the_key_of_the_set() {
        let signer = Signer::new(3, "sim").unwrap();
        let token = signer.token("alice", 1, 2);
        assert_eq!(token, Signer::new(3, "sim").unwrap().token("alice", 1, 2));
        assert_ne!(token, Signer::new(4, "sim").unwrap().token("alice", 1, 2));
        let (signed, _) = token.rsplit_once('.').unwrap();
        let signature = signer.key.sign(signed.as_bytes());
        let public = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, signer.key.public_key());
        public.verify(signed.as_bytes(), signature.as_ref()).unwrap();
    }
}
