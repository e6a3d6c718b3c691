//! Texts and files that people and other programs write: tokens and their keys, certificates, configuration,
//! requests to dispatch, GeoIP files.

use std::net::{IpAddr, Ipv4Addr};

use hyper::HeaderMap;
use hyper::header::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use tern_edge::TokenKeys;
use tern_ipconf::api::{DispatchAnswer, DispatchRequest};
use tern_ipconf::forwarded::Caller;
use tern_ipconf::{Geo, IpPrefix};
use tern_net::tls::Identity;
use tern_net::x509;

use crate::Came;
use crate::script::{Script, put_blob};

/// When the tokens of seeds are valid.
pub const WALL_MS: u64 = 1_790_000_000_000;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const SECRET_JWK: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY";

/// The keys that the tokens of seeds are signed by.
pub fn keys() -> TokenKeys {
    let json = json!({"keys": [{"kty": "oct", "kid": "h", "k": SECRET_JWK}]});
    TokenKeys::from_json(json.to_string().as_bytes()).unwrap()
}

/// A valid token.
pub fn token(user: &str) -> String {
    let now = WALL_MS / 1000;
    let claims = json!({"sub": user, "iat": now - 5, "exp": now + 3600, "aud": "tern"});
    let header = Header { kid: Some("h".into()), ..Header::new(Algorithm::HS256) };
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

/// No text but a signed one is a token; whoever it names has a valid id.
pub fn tokens(bytes: &[u8]) -> Came {
    let Ok(text) = std::str::from_utf8(bytes) else { return Came { accepted: false, refused: true } };
    let verified = keys().verify(text, WALL_MS, "tern");
    if let Ok(claims) = &verified {
        assert!(text == token("alice") || text == token("bob"), "a token that nobody signed: {text}");
        assert!(claims.exp_ms > WALL_MS);
    }
    Came::of(&verified)
}

/// Good ones, one of another algorithm, one without parts.
pub fn token_seeds() -> Vec<Vec<u8>> {
    let none = "eyJhbGciOiJub25lIiwia2lkIjoiaCJ9.eyJzdWIiOiJhbGljZSJ9.";
    [token("alice"), token("bob"), none.to_owned(), "..".to_owned()].map(String::into_bytes).to_vec()
}

/// Files of keys.
pub fn token_keys(bytes: &[u8]) -> Came {
    let keys = TokenKeys::from_json(bytes);
    if let Ok(keys) = &keys {
        assert!(keys.verify("a.b.c", WALL_MS, "tern").is_err());
        // `Debug` is for logs: no secret in it.
        assert!(!format!("{keys:?}").contains(SECRET_JWK));
    }
    Came::of(&keys)
}

/// Both kinds of keys, and one that is too short.
pub fn token_key_seeds() -> Vec<Vec<u8>> {
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    [
        json!({"keys": [{"kty": "oct", "kid": "h", "k": SECRET_JWK}]}),
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "e", "x": x}]}),
        json!({"keys": [{"kty": "oct", "kid": "h", "k": "c2hvcnQ"}]}),
        json!({"kty": "OKP", "crv": "Ed25519", "kid": "e", "x": x, "d": x}),
    ]
    .map(|json| json.to_string().into_bytes())
    .to_vec()
}

/// Certificates and keys: a chain and its key, divided by a zero byte.
pub fn pem(bytes: &[u8]) -> Came {
    let (chain, key) = bytes.split_at(bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()));
    x509::pem_facts(chain);
    x509::facts(bytes);
    let identity = Identity::from_pem(chain, key.get(1..).unwrap_or_default());
    if let Err(e) = &identity {
        assert!(!e.to_string().contains("MC4CAQ"), "a message shows the key");
    }
    Came::of(&identity)
}

/// A certificate and key of Ed25519; the key is of no use to anyone.
pub fn pem_seeds() -> Vec<Vec<u8>> {
    let certificate = "-----BEGIN CERTIFICATE-----\n\
        MIIBLDCB36ADAgECAghWrUwgk3mJMzAFBgMrZXAwETEPMA0GA1UEAwwGbGFiZWwx\n\
        -----END CERTIFICATE-----\n";
    let key = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    vec![[certificate, key].join("\0").into_bytes(), certificate.into(), [key, key].join("\0").into_bytes()]
}

/// The text of a configuration: TOML with values of every kind.
pub fn toml(bytes: &[u8]) -> Came {
    let Ok(text) = std::str::from_utf8(bytes) else { return Came { accepted: false, refused: true } };
    let table = text.parse::<::toml::Table>();
    if let Ok(table) = &table {
        let again = ::toml::to_string(table).expect("what was read can be written");
        // NaN is not itself, which is the one thing that may differ.
        if !again.contains("nan") {
            assert_eq!(again.parse::<::toml::Table>().as_ref(), Ok(table));
        }
    }
    Came::of(&table)
}

/// A small configuration.
pub fn toml_seeds() -> Vec<Vec<u8>> {
    let plain = "data = \"/var/lib/tern\"\n[region]\nid = 1\nname = \"eu\"\nat = \"50.1,8.6\"\n";
    let lists =
        "peers = [{ region = 2, addr = \"192.0.2.1:7412\" }]\n[limit]\nhello_timeout = \"5s\"\nx = 1.5\non = true\n";
    vec![plain.into(), lists.into(), b"[a.b.c]\nd = [[[[1]]]]\n".to_vec()]
}

/// What clients post to dispatch, and what they are answered.
pub fn dispatch(bytes: &[u8]) -> Came {
    let request = serde_json::from_slice::<DispatchRequest>(bytes);
    if let Ok(request) = &request {
        // Nothing that was read makes text that can't be read.
        let again = serde_json::to_vec(request).unwrap();
        assert!(
            serde_json::from_slice::<DispatchRequest>(&again).is_ok() || request.rtt.iter().any(|r| !r.ms.is_finite())
        );
    }
    Came::of(&request).and(Came::of(&serde_json::from_slice::<DispatchAnswer>(bytes)))
}

/// A full request, an empty one, a deep one.
pub fn dispatch_seeds() -> Vec<Vec<u8>> {
    let request = json!({
        "network": {"kind": "wifi", "metered": false},
        "rtt": [{"edge": "eu-e1", "ms": 12.5}, {"edge": "us-e1", "ms": 91}],
        "exclude": ["ap-e1"], "explain": true, "as": "192.0.2.7"
    });
    vec![
        request.to_string().into_bytes(),
        b"{}".to_vec(),
        [&[b'['; 300][..], &[b']'; 300]].concat(),
        b"{\"rtt\":[{\"edge\":\"\",\"ms\":1e400}]}".to_vec(),
    ]
}

fn proxies() -> Vec<IpPrefix> {
    ["10.0.0.0/8", "2001:db8:1::/48"].map(|p| p.parse().unwrap()).to_vec()
}

/// Headers of proxies, as blobs: nothing that a client writes makes him someone who did not pass a proxy.
pub fn forwarded(bytes: &[u8]) -> Came {
    let mut script = Script::new(bytes);
    let mut headers = HeaderMap::new();
    let mut came = Came::default();
    while let Some(kind) = script.more() {
        match HeaderValue::from_bytes(script.blob()) {
            Ok(value) if headers.len() < 32 => {
                let name = if kind.is_multiple_of(4) { "forwarded" } else { "x-forwarded-for" };
                headers.append(name, value);
            }
            _ => came.refused = true,
        }
    }
    let stranger = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));
    let told = Caller::of(stranger, &headers, &proxies());
    assert_eq!(told.address, stranger);
    let told = Caller::of(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), &headers, &proxies());
    assert!(told.trusted);
    came.accepted |= told.address != IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    came.refused |= !headers.is_empty() && !came.accepted;
    came
}

/// One hop, two, ports, brackets, garbage.
pub fn forwarded_seeds() -> Vec<Vec<u8>> {
    let header = |values: &[&str]| {
        let mut out = Vec::new();
        for value in values {
            out.push(1);
            put_blob(&mut out, value.as_bytes());
        }
        out
    };
    vec![
        header(&["8.8.8.8"]),
        header(&["1.1.1.1, 10.2.2.2"]),
        header(&["8.8.8.8:443", "[2001:db8::1]:443"]),
        header(&["unknown, _hidden", ""]),
    ]
}

/// Blocks of addresses: what is read is written the same, and contains itself.
pub fn prefixes(bytes: &[u8]) -> Came {
    let Ok(text) = std::str::from_utf8(bytes) else { return Came { accepted: false, refused: true } };
    let prefix = text.parse::<IpPrefix>();
    if let Ok(prefix) = &prefix {
        let written = prefix.to_string();
        assert_eq!(written.parse::<IpPrefix>().as_ref(), Ok(prefix), "{written}");
        let address = written.split('/').next().unwrap().parse().unwrap();
        assert!(prefix.contains(address));
    }
    Came::of(&prefix)
}

/// Of both families.
pub fn prefix_seeds() -> Vec<Vec<u8>> {
    ["10.0.0.0/8", "2001:db8::/32", "::/0", "0.0.0.0/0", "::ffff:10.0.0.1", "::1/128", "10.0.0.1/33"]
        .map(Into::into)
        .to_vec()
}

/// GeoIP files: any file is opened or refused, and lookups in one that was opened end.
pub fn mmdb(bytes: &[u8]) -> Came {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("geo.mmdb");
    std::fs::write(&path, bytes).unwrap();
    let geo = Geo::open(&path);
    if let Ok(geo) = &geo {
        for address in ["0.0.0.0", "8.8.8.8", "255.255.255.255", "::", "2001:db8::1", "10.0.0.1"] {
            geo.locate(address.parse().unwrap());
        }
        geo.built_s();
    }
    Came::of(&geo)
}

/// The smallest file: a tree of one node whose halves both are in Germany. Format: MaxMind DB 2.0.
pub fn mmdb_seeds() -> Vec<Vec<u8>> {
    let text = |s: &str| [&[0x40 | u8::try_from(s.len()).unwrap()][..], s.as_bytes()].concat();
    let map = |pairs: &[(&str, Vec<u8>)]| {
        let mut out = vec![0xe0 | u8::try_from(pairs.len()).unwrap()];
        for (key, value) in pairs {
            out.extend(text(key));
            out.extend_from_slice(value);
        }
        out
    };
    let u16_of = |n: u8| vec![0xa1, n];
    let u32_of = |n: u8| vec![0xc1, n];
    // Both records point at the first byte of the data: node count + 16 + 0.
    let tree = [0, 0, 17, 0, 0, 17];
    let data = map(&[("country_code", text("DE"))]);
    let metadata = |ip_version| {
        map(&[
            ("node_count", u32_of(1)),
            ("record_size", u16_of(24)),
            ("ip_version", u16_of(ip_version)),
            ("database_type", text("Test")),
            ("languages", vec![0x00, 0x04]),
            ("binary_format_major_version", u16_of(2)),
            ("binary_format_minor_version", vec![0xa0]),
            ("build_epoch", vec![0x04, 0x02, 0x65, 0x00, 0x00, 0x00]),
            ("description", vec![0xe0]),
        ])
    };
    [4, 6].map(|v| [&tree[..], &[0; 16], &data, b"\xab\xcd\xefMaxMind.com", &metadata(v)].concat()).to_vec()
}
