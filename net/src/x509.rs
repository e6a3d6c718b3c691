//! The few facts of a certificate that operators ask for: how long it is valid, for which names, from whom.
//!
//! TLS itself never asks here: rustls and webpki decide whom to trust. This reads no more of RFC 5280 than it
//! needs, gives up (`None`) at whatever it does not understand, and never trusts anything.

use std::net::{Ipv4Addr, Ipv6Addr};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Valid from this second since 1970 on.
    pub not_before_s: i64,
    /// Valid up to and including this second since 1970.
    pub not_after_s: i64,
    /// The common name of its owner, if it has one.
    pub subject: String,
    /// The common name of who signed it.
    pub issuer: String,
    /// Host names and addresses that it is for.
    pub names: Vec<String>,
    /// Whether it may sign others.
    pub is_ca: bool,
    /// The owner's whole name, encoded: equal to `issuer_der` of what it signed.
    pub subject_der: Vec<u8>,
    /// The signer's whole name, encoded.
    pub issuer_der: Vec<u8>,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
/// id-at-commonName.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// id-ce-subjectAltName.
const ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// id-ce-basicConstraints.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// Values one after the other, as DER has them.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

struct Value<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

impl<'a> Der<'a> {
    fn next(&mut self) -> Option<Value<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // Certificates are far shorter than four bytes of length can say.
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0usize, |length, b| length << 8 | usize::from(*b)), rest)
            }
            _ => return None,
        };
        let (content, after) = rest.split_at_checked(length)?;
        let whole = &self.0[..self.0.len() - after.len()];
        self.0 = after;
        Some(Value { tag, content, whole })
    }

    fn expect(&mut self, tag: u8) -> Option<Value<'a>> {
        self.next().filter(|value| value.tag == tag)
    }
}

/// Reads a certificate; None where it is none, or is built in a way that nobody builds them.
pub fn facts(certificate: &[u8]) -> Option<Facts> {
    let mut signed = Der(Der(certificate).expect(SEQUENCE)?.content);
    let mut tbs = Der(signed.expect(SEQUENCE)?.content);
    if tbs.0.first() == Some(&VERSION) {
        tbs.next()?;
    }
    tbs.expect(INTEGER)?; // serial number
    tbs.expect(SEQUENCE)?; // algorithm
    let issuer = tbs.expect(SEQUENCE)?;
    let mut validity = Der(tbs.expect(SEQUENCE)?.content);
    let (not_before_s, not_after_s) = (time(&validity.next()?)?, time(&validity.next()?)?);
    let subject = tbs.expect(SEQUENCE)?;
    tbs.expect(SEQUENCE)?; // public key
    let (mut names, mut is_ca) = (Vec::new(), false);
    while let Some(part) = tbs.next() {
        if part.tag == EXTENSIONS {
            extensions(part.content, &mut names, &mut is_ca)?;
        }
    }
    Some(Facts {
        not_before_s,
        not_after_s,
        subject: common_name(subject.content).unwrap_or_default(),
        issuer: common_name(issuer.content).unwrap_or_default(),
        names,
        is_ca,
        subject_der: subject.whole.to_vec(),
        issuer_der: issuer.whole.to_vec(),
    })
}

/// Those of all certificates in a PEM text, up to the first that can't be read.
pub fn pem_facts(pem: &[u8]) -> Vec<Facts> {
    CertificateDer::pem_slice_iter(pem).map_while(|certificate| facts(&certificate.ok()?)).collect()
}

fn common_name(name: &[u8]) -> Option<String> {
    let mut parts = Der(name);
    while let Some(part) = parts.expect(SET) {
        let mut pair = Der(Der(part.content).expect(SEQUENCE)?.content);
        if pair.expect(OID)?.content == COMMON_NAME {
            return Some(String::from_utf8_lossy(pair.next()?.content).into_owned());
        }
    }
    None
}

fn extensions(list: &[u8], names: &mut Vec<String>, is_ca: &mut bool) -> Option<()> {
    let mut list = Der(Der(list).expect(SEQUENCE)?.content);
    while let Some(extension) = list.expect(SEQUENCE) {
        let mut parts = Der(extension.content);
        let id = parts.expect(OID)?.content;
        let mut value = parts.next()?;
        if value.tag == BOOLEAN {
            value = parts.next()?; // it was "critical"
        }
        if value.tag != OCTETS {
            return None;
        }
        let mut inner = Der(Der(value.content).next()?.content);
        if id == BASIC_CONSTRAINTS {
            *is_ca = inner.next().is_some_and(|v| v.tag == BOOLEAN && v.content != [0]);
        } else if id == ALT_NAME {
            while let Some(name) = inner.next() {
                match (name.tag, name.content) {
                    (DNS_NAME, text) => names.push(String::from_utf8_lossy(text).into_owned()),
                    (IP_ADDRESS, bytes) => {
                        if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
                            names.push(Ipv4Addr::from(v4).to_string());
                        } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
                            names.push(Ipv6Addr::from(v6).to_string());
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    Some(())
}

/// Seconds since 1970 of a time as RFC 5280, 4.1.2.5 has it: always in UTC, with seconds.
fn time(value: &Value<'_>) -> Option<i64> {
    let text = std::str::from_utf8(value.content).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match (value.tag, text.len()) {
        (UTC_TIME, 12) => {
            let year: i64 = text[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        (GENERALIZED_TIME, 14) => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let part = |i: usize| rest[2 * i..2 * i + 2].parse::<i64>().ok();
    let (month, day, hour, minute, second) = (part(0)?, part(1)?, part(2)?, part(3)?, part(4)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from 1970 of a date of the proleptic Gregorian calendar, its year counted from March.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// A day of the calendar (UTC) of a second since 1970, as YYYY-MM-DD.
pub fn date(second: i64) -> String {
    let days = second.div_euclid(86_400) + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ED25519};

    #[test]
    fn a_certificate_tells_its_names_its_time_and_its_signer() {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.distinguished_name.push(DnType::CommonName, "the authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap();
        let names = ["eu.tern.internal", "192.0.2.7", "2001:db8::7"].map(str::to_owned);
        let mut leaf = CertificateParams::new(names.to_vec()).unwrap();
        leaf.not_before = rcgen::date_time_ymd(2024, 2, 29);
        leaf.not_after = rcgen::date_time_ymd(2061, 12, 31);
        leaf.distinguished_name.push(DnType::CommonName, "eu-e1");
        let leaf = leaf.signed_by(&KeyPair::generate_for(&PKCS_ED25519).unwrap(), &ca).unwrap();
        let (of_ca, of_leaf) = (facts(ca.der()).unwrap(), facts(leaf.der()).unwrap());
        assert_eq!(of_leaf.names, names);
        assert_eq!((of_leaf.not_before_s, of_leaf.not_after_s), (1_709_164_800, 2_903_212_800));
        assert_eq!((of_leaf.issuer.as_str(), of_leaf.is_ca), ("the authority", false));
        assert_eq!(of_leaf.issuer_der, of_ca.subject_der);
        assert_eq!((of_ca.subject.as_str(), of_ca.is_ca), ("the authority", true));
        assert_eq!(date(of_leaf.not_before_s), "2024-02-29");
        assert_eq!(date(of_leaf.not_after_s), "2061-12-31");
        for cut in 0..leaf.der().len() {
            assert_eq!(facts(&leaf.der()[..cut]), None, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            facts(&bytes);
            facts(&[&[0x30, 0x82, 1, 0][..], &bytes].concat());
        }

        #[test]
        fn dates_are_those_of_the_calendar(day in -200_000i64..200_000) {
            let text = date(day * 86_400 + 86_399);
            let digits = format!("{}000000Z", text.replace('-', ""));
            if day >= -719_162 && text.len() == 10 {
                let value = Value { tag: GENERALIZED_TIME, content: digits.as_bytes(), whole: &[] };
                prop_assert_eq!(time(&value), Some(day * 86_400));
            }
        }
    }
}
