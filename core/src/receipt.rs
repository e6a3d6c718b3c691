//! Receipts: the proof, carried by the sender, that a region gave a message its place (R4).
//!
//! A message acked by a region that is then lost is offered again elsewhere. It must keep its place, or it
//! would jump behind the sender's later messages; and a client must not be able to choose a place, or it
//! could write into the past. So an ack carries a MAC over display key, identity and body hash, under a key
//! that all regions of a deployment share.
//!
//! There may be older keys beside it, which sign nothing and are still believed: a key that is replaced has signed
//! what lies in clients' outboxes, and membership entries, which keep their receipts for ever.

use ring::hmac;

use crate::ids::{ConvId, Identity, Place};

/// Bytes of a receipt: HMAC-SHA-256 cut to 128 bits (RFC 2104, section 5).
pub const RECEIPT_BYTES: usize = 16;

/// A receipt as it travels.
pub type Receipt = [u8; RECEIPT_BYTES];

/// The deployment's key for receipts, and those that are believed beside it.
#[derive(Clone)]
pub struct ReceiptKey {
    signs: hmac::Key,
    older: Vec<hmac::Key>,
}

impl std::fmt::Debug for ReceiptKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReceiptKey(..)")
    }
}

impl ReceiptKey {
    /// From 32 secret bytes.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self { signs: hmac::Key::new(hmac::HMAC_SHA256, secret), older: Vec::new() }
    }

    /// Believes what these have signed as well.
    #[must_use]
    pub fn with_older<'a>(mut self, secrets: impl IntoIterator<Item = &'a [u8; 32]>) -> Self {
        self.older.extend(secrets.into_iter().map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret)));
        self
    }

    /// The receipt for a message that is displayed at `key`.
    pub fn sign(&self, conversation: ConvId, key: Place, by: &Identity, body_hash: &[u8; 32]) -> Receipt {
        Self::mac(&self.signs, conversation, key, by, body_hash)
    }

    fn mac(secret: &hmac::Key, conversation: ConvId, key: Place, by: &Identity, body_hash: &[u8; 32]) -> Receipt {
        let mut mac = hmac::Context::with_key(secret);
        mac.update(b"tern receipt 1");
        mac.update(&conversation.0);
        mac.update(&key.hlc.to_be_bytes());
        mac.update(&[key.origin.region]);
        mac.update(&key.origin.era.to_be_bytes());
        mac.update(&key.seq.to_be_bytes());
        for text in [by.user.as_str(), by.install.as_str()] {
            mac.update(&(text.len() as u64).to_be_bytes());
            mac.update(text.as_bytes());
        }
        mac.update(&by.n.to_be_bytes());
        mac.update(body_hash);
        let tag = mac.sign();
        let mut receipt = [0; RECEIPT_BYTES];
        receipt.copy_from_slice(&tag.as_ref()[..RECEIPT_BYTES]);
        receipt
    }

    /// Whether `receipt` was signed for exactly this, by any of the keys. Takes the same time for every wrong receipt.
    pub fn verify(
        &self,
        conversation: ConvId,
        key: Place,
        by: &Identity,
        body_hash: &[u8; 32],
        receipt: &[u8],
    ) -> bool {
        let is_by = |secret| {
            let expected = Self::mac(secret, conversation, key, by, body_hash);
            expected.iter().zip(receipt).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
        };
        receipt.len() == RECEIPT_BYTES && (is_by(&self.signs) || self.older.iter().any(is_by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{InstallId, Origin, UserId, body_hash};

    #[test]
    fn a_receipt_proves_one_place_of_one_message_and_nothing_else() {
        let key = ReceiptKey::new(&[7; 32]);
        let conversation = ConvId([1; 16]);
        let place = Place { hlc: 9, origin: Origin { region: 1, era: 2 }, seq: 3 };
        let by = Identity { user: UserId::new("a").unwrap(), install: InstallId::new("i").unwrap(), n: 1 };
        let hash = body_hash(b"x");
        let receipt = key.sign(conversation, place, &by, &hash);
        assert!(key.verify(conversation, place, &by, &hash, &receipt));
        let hex: String = receipt.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "348122238de271a14566226ee96e6781", "the form is pinned: regions of two versions must agree");
        let older = Place { hlc: 8, ..place };
        assert!(!key.verify(conversation, older, &by, &hash, &receipt), "a client forges an old place");
        assert!(!key.verify(ConvId([2; 16]), place, &by, &hash, &receipt));
        assert!(!key.verify(conversation, place, &Identity { n: 2, ..by.clone() }, &hash, &receipt));
        assert!(!key.verify(conversation, place, &by, &body_hash(b"y"), &receipt));
        assert!(!key.verify(conversation, place, &by, &hash, &receipt[..15]));
        assert!(!ReceiptKey::new(&[8; 32]).verify(conversation, place, &by, &hash, &receipt));
    }

    #[test]
    fn a_new_key_signs_and_what_older_ones_signed_is_still_believed() {
        let conversation = ConvId([1; 16]);
        let place = Place { hlc: 9, origin: Origin { region: 1, era: 2 }, seq: 3 };
        let by = Identity { user: UserId::new("a").unwrap(), install: InstallId::new("i").unwrap(), n: 1 };
        let hash = body_hash(b"x");
        let (old, new) = (ReceiptKey::new(&[7; 32]), ReceiptKey::new(&[8; 32]));
        // The steps: the new one is believed, it signs, the old one goes.
        let steps = [old.clone(), old.with_older([&[8; 32]]), new.clone().with_older([&[7; 32]]), new];
        let signed = |key: &ReceiptKey| key.sign(conversation, place, &by, &hash);
        let believes = |key: &ReceiptKey, receipt: Receipt| key.verify(conversation, place, &by, &hash, &receipt);
        for (at, step) in steps.iter().enumerate() {
            assert!(believes(step, signed(step)));
            for beside in &steps[at.saturating_sub(1)..(at + 2).min(steps.len())] {
                assert!(believes(beside, signed(step)), "of step {at}");
            }
        }
        assert!(!believes(&steps[3], signed(&steps[0])) && !believes(&steps[0], signed(&steps[3])));
        assert_eq!(signed(&steps[0]), signed(&steps[1]));
        assert_eq!(signed(&steps[2]), signed(&steps[3]));
        let later = Place { hlc: 10, ..place };
        assert!(!steps[2].verify(conversation, later, &by, &hash, &signed(&steps[0])));
        assert!(!steps[2].verify(conversation, place, &by, &hash, &[]));
    }
}
