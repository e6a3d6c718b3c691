//! Why two nodes do not accept each other's certificates, in words for an operator.
//!
//! A handshake fails on one side with the reason, and on the other with an alert (RFC 8446, 6): a number, and words of the
//! TLS library. Neither says what is to be changed, and where.

use quinn::ConnectionError;

/// RFC 9001, 4.8: codes from here on are TLS alerts.
const CRYPTO: u64 = 0x100;
// RFC 8446, 6.2.
const BAD_CERTIFICATE: u64 = 42;
const UNSUPPORTED_CERTIFICATE: u64 = 43;
const CERTIFICATE_EXPIRED: u64 = 45;
const UNKNOWN_CA: u64 = 48;
const DECRYPT_ERROR: u64 = 51;
const CERTIFICATE_REQUIRED: u64 = 116;

/// What is wrong with which side's certificate, and what to change; `None`: the connection failed for something else.
pub fn certificate_refused(error: &ConnectionError) -> Option<String> {
    // By this side, with a reason, or by the other.
    let (code, by_us, words) = match error {
        ConnectionError::TransportError(error) => (u64::from(error.code), true, error.reason.clone()),
        ConnectionError::ConnectionClosed(closed) => {
            (u64::from(closed.error_code), false, String::from_utf8_lossy(&closed.reason).into_owned())
        }
        _ => return None,
    };
    let alert = code.checked_sub(CRYPTO).filter(|alert| *alert <= 0xff)?;
    let (whose, here, there) = match by_us {
        true => ("the other node's certificate is not accepted here", "there", "here"),
        false => ("the other node does not accept this node's certificate", "here", "there"),
    };
    let todo = match alert {
        CERTIFICATE_EXPIRED => {
            format!("it has ended or is not yet valid: make a new one {here} (tls.node_cert), or set the clocks right")
        }
        // The latter where two authorities have one name.
        UNKNOWN_CA | DECRYPT_ERROR => {
            format!(
                "it is of an authority that is not in tls.node_ca {there}: all nodes of a deployment have one authority"
            )
        }
        BAD_CERTIFICATE => format!(
            "it is not for the name that was asked for, or damaged: does the address lead to the right region, and was \
             the certificate {here} made with its name (tern pki --region)?"
        ),
        UNSUPPORTED_CERTIFICATE => format!("it is not made for nodes: make one {here} with tern pki"),
        CERTIFICATE_REQUIRED => format!("there is none: set tls.node_cert {here}"),
        _ => format!("look at tls.node_cert {here} and tls.node_ca {there}"),
    };
    Some(format!("{whose}; {todo} ({})", if words.is_empty() { format!("alert {alert}") } else { words }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::quic::{QuicParams, client_config, client_endpoint, server_endpoint};
    use crate::tls::{Identity, node_client_tls, node_server_tls};

    type Ca = rcgen::CertifiedIssuer<'static, rcgen::KeyPair>;

    fn ca() -> Ca {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        rcgen::CertifiedIssuer::self_signed(params, key).unwrap()
    }

    fn until(ca: &Ca, name: &str, year: i32) -> Identity {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let leaf = params.signed_by(&key, ca).unwrap();
        Identity::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    /// Why a node that dials and one that listens part.
    async fn both_sides(dials: (&Identity, &Ca), listens: (&Identity, &Ca)) -> (String, String) {
        let env = crate::system::system_env().unwrap();
        let any = || "127.0.0.1:0".parse().unwrap();
        let tls = node_server_tls(listens.0, listens.1.pem().as_bytes(), Arc::clone(&env.clock)).unwrap();
        let listening = server_endpoint(&env, any(), tls, &QuicParams::node()).unwrap();
        let tls = node_client_tls(dials.0, dials.1.pem().as_bytes(), Arc::clone(&env.clock)).unwrap();
        let dialler = client_endpoint(&env, any()).unwrap();
        let config = client_config(&env, tls, &QuicParams::node()).unwrap();
        let connecting = dialler.connect_with(config, listening.local_addr().unwrap(), "a.internal").unwrap();
        let dialled = async {
            match connecting.await {
                Ok(connection) => connection.closed().await,
                Err(error) => error,
            }
        };
        let listened = async {
            match listening.accept().await.unwrap().await {
                Ok(connection) => connection.closed().await,
                Err(error) => error,
            }
        };
        let (dialled, listened) = tokio::join!(dialled, listened);
        let told = |error: &ConnectionError| certificate_refused(error).unwrap_or_else(|| panic!("{error}"));
        (told(&dialled), told(&listened))
    }

    #[tokio::test]
    async fn each_side_is_told_whose_certificate_is_refused_and_what_to_change() {
        let (one, other) = (ca(), ca());
        let (a, b) = (until(&one, "a.internal", 4000), until(&one, "b.internal", 4000));
        let (dialled, listened) = both_sides((&until(&one, "b.internal", 2020), &one), (&a, &one)).await;
        assert!(dialled.contains("does not accept this node's") && dialled.contains("new one here"), "{dialled}");
        assert!(listened.contains("other node's certificate is not") && listened.contains("one there"), "{listened}");
        let (dialled, listened) = both_sides((&b, &one), (&until(&one, "a.internal", 2020), &one)).await;
        assert!(dialled.contains("not accepted here; it has ended"), "{dialled}");
        assert!(listened.contains("this node's certificate; it has ended"), "{listened}");
        let (dialled, listened) = both_sides((&b, &one), (&until(&other, "a.internal", 4000), &one)).await;
        assert!(dialled.contains("not in tls.node_ca here"), "{dialled}");
        assert!(listened.contains("not in tls.node_ca there"), "{listened}");
        let (dialled, listened) = both_sides((&until(&other, "b.internal", 4000), &one), (&a, &one)).await;
        assert!(dialled.contains("not in tls.node_ca there"), "{dialled}");
        assert!(listened.contains("not in tls.node_ca here"), "{listened}");
        let (dialled, listened) = both_sides((&b, &one), (&until(&one, "c.internal", 4000), &one)).await;
        assert!(
            dialled.contains("not for the name") && listened.contains("made with its name"),
            "{dialled} {listened}"
        );
    }

    #[test]
    fn what_is_no_matter_of_certificates_is_none() {
        assert_eq!(certificate_refused(&ConnectionError::TimedOut), None);
        assert_eq!(certificate_refused(&ConnectionError::LocallyClosed), None);
    }
}
