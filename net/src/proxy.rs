//! The way out of a network whose only one is an HTTP proxy: every TCP connection is a tunnel through it, by
//! CONNECT (RFC 9110, 9.3.6).
//!
//! It is a [`Net`] around another one, so that whoever connects knows nothing of it. UDP goes past it: where there
//! is a proxy, QUIC seldom gets through, and is tried all the same.
//!
//! A [`Net`] connects to addresses, but proxies often let names through and no addresses, and in networks that they guard
//! names of the outside may not be known at all. So the name that an address was resolved from is remembered, and the proxy
//! is asked for that; a name that can't be resolved gets an address of a block that nobody has (240.0.0.0/4, RFC 1112), which
//! stands for it here.

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use tern_core::store::BoxFut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::addresses::Addresses;
use crate::env::{Acceptor, Net, Stream};
use crate::prefix::IpPrefix;

/// Bytes of the header of an answer.
const HEAD_BYTES: usize = 8 * 1024;
/// Names that are remembered by their addresses: many more than a client has servers.
const NAMES: usize = 256;

/// An HTTP proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpProxy {
    /// `host:port`.
    pub address: String,
    /// What `Proxy-Authorization` is to say, such as `Basic dXNlcjpwYXNz`; a secret.
    pub authorization: Option<String>,
    /// Where connections go past it.
    pub except: Exceptions,
}

/// Places that are reached without a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exceptions {
    all: bool,
    blocks: Vec<IpPrefix>,
    names: Vec<String>,
}

/// Why a text names no proxy that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// A kind of proxy that is not spoken.
    #[error("proxies of the kind {0:?} are not understood; give the address of an HTTP proxy: http://host:port")]
    Scheme(String),
    /// No host, or no port that is one.
    #[error("that is no proxy's address; write http://host:port, or http://user:password@host:port")]
    Address,
    /// A percent sign without two hexadecimal digits, or bytes that are no text.
    #[error("the proxy's user or password is not percent-encoded; write % as %25, @ as %40 and : as %3A")]
    Credentials,
}

impl std::str::FromStr for HttpProxy {
    type Err = ProxyError;

    /// `http://[user:password@]host[:port]`; the port is 80 unless given. No error shows what it is about: that may be a
    /// secret.
    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let rest = match text.trim().split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) => return Err(ProxyError::Scheme(scheme.to_owned())),
            None => text.trim(),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, place) = match rest.rsplit_once('@') {
            Some((credentials, place)) => (Some(credentials), place),
            None => (None, rest),
        };
        // A port follows the last colon, unless that is within an IPv6 address.
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse::<u16>().map_err(|_| ProxyError::Address)?),
            _ => (place, 80),
        };
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).map(str::parse::<std::net::Ipv6Addr>);
        let good = match bare {
            Some(six) => six.is_ok(),
            None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')),
        };
        if !good || port == 0 {
            return Err(ProxyError::Address);
        }
        let authorization = match credentials {
            None => None,
            Some(text) => {
                let (user, password) = text.split_once(':').unwrap_or((text, ""));
                let both = format!("{}:{}", decoded(user)?, decoded(password)?);
                Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(both)))
            }
        };
        Ok(Self { address: format!("{host}:{port}"), authorization, except: Exceptions::default() })
    }
}

fn decoded(text: &str) -> Result<String, ProxyError> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
                match (digit(*high), digit(*low)) {
                    (Some(high), Some(low)) => (high * 16 + low, tail),
                    _ => return Err(ProxyError::Credentials),
                }
            }
            (b'%', _) => return Err(ProxyError::Credentials),
            (byte, tail) => (*byte, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| ProxyError::Credentials)
}

impl HttpProxy {
    /// As the environment has it: `https_proxy` or `HTTPS_PROXY`, then `all_proxy` or `ALL_PROXY`, past which goes what
    /// `no_proxy` or `NO_PROXY` names, and this machine itself. `var` reads a variable. None: it names none.
    pub fn of_environment(var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, ProxyError> {
        let read =
            |names: [&str; 2]| names.into_iter().find_map(|name| var(name).filter(|value| !value.trim().is_empty()));
        let Some(text) = read(["https_proxy", "HTTPS_PROXY"]).or_else(|| read(["all_proxy", "ALL_PROXY"])) else {
            return Ok(None);
        };
        let but = read(["no_proxy", "NO_PROXY"]).unwrap_or_default();
        let except = Exceptions::of(&format!("localhost,127.0.0.0/8,::1,{but}"));
        Ok(Some(Self { except, ..text.parse()? }))
    }
}

impl Exceptions {
    /// A list with commas, as `NO_PROXY` has it: addresses, blocks, and names, which stand for what is below them too; `*`
    /// is all. What is none of these matches nothing.
    pub fn of(list: &str) -> Self {
        let mut all = Self::default();
        for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match item.parse() {
                Ok(block) => all.blocks.push(block),
                Err(_) if item == "*" => all.all = true,
                Err(_) => all.names.push(item.trim_start_matches("*.").trim_matches('.').to_ascii_lowercase()),
            }
        }
        all
    }

    fn address(&self, ip: IpAddr) -> bool {
        self.all || self.blocks.iter().any(|block| block.contains(ip))
    }

    fn name(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let below = |parent: &String| {
            name.strip_suffix(parent.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.all || self.names.iter().any(below)
    }
}

impl Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpProxy").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Another network, whose TCP connections go through a proxy.
#[derive(Clone, Debug)]
pub struct ThroughProxy {
    net: Arc<dyn Net>,
    proxy: HttpProxy,
    names: Arc<Mutex<Names>>,
}

/// What addresses were resolved from, the oldest first.
#[derive(Debug, Default)]
struct Names(VecDeque<(IpAddr, String)>);

impl Names {
    fn of(&self, ip: IpAddr) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| *known == ip).map(|(_, name)| name.as_str())
    }

    fn note(&mut self, ip: IpAddr, name: &str) {
        self.0.retain(|(known, _)| *known != ip);
        self.0.push_back((ip, name.to_owned()));
        if self.0.len() > NAMES {
            self.0.pop_front();
        }
    }

    /// The address that stands for a name.
    fn stand_in(&mut self, name: &str) -> IpAddr {
        if let Some((ip, _)) = self.0.iter().find(|(ip, known)| known == name && is_stand_in(*ip)) {
            return *ip;
        }
        let taken = self.0.iter().filter_map(|(ip, _)| Some(*ip).filter(|ip| is_stand_in(*ip)));
        let free = taken.max().map_or(Ipv4Addr::new(240, 0, 0, 1), |last| match last {
            IpAddr::V4(last) => Ipv4Addr::from_bits(last.to_bits().saturating_add(1)),
            IpAddr::V6(_) => Ipv4Addr::new(240, 0, 0, 1),
        });
        self.note(free.into(), name);
        free.into()
    }
}

fn is_stand_in(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(four) if four.octets()[0] == 240)
}

impl ThroughProxy {
    /// Wraps.
    pub fn new(net: Arc<dyn Net>, proxy: HttpProxy) -> Self {
        Self { net, proxy, names: Arc::default() }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let found = self.net.resolve(name).await;
        if name.parse::<IpAddr>().is_ok() {
            return found;
        }
        match found {
            Ok(all) if !all.is_empty() => {
                let mut names = self.names();
                all.iter().for_each(|ip| names.note(*ip, name));
                Ok(all)
            }
            // The proxy may know it.
            Ok(_) | Err(_) if !self.proxy.except.name(name) => Ok(vec![self.names().stand_in(name)]),
            found => found,
        }
    }

    async fn tunnel(&self, to: SocketAddr) -> io::Result<Box<dyn Stream>> {
        let name = self.names().of(to.ip()).map(str::to_owned);
        if self.proxy.except.address(to.ip()) || name.as_ref().is_some_and(|name| self.proxy.except.name(name)) {
            return self.net.connect(to).await;
        }
        let to = name.map_or_else(|| to.to_string(), |name| format!("{name}:{}", to.port()));
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
        let authorization = match &self.proxy.authorization {
            Some(text) if text.bytes().any(|b| b.is_ascii_control()) => {
                return Err(invalid("the proxy's authorization has control characters".to_owned()));
            }
            Some(text) => format!("Proxy-Authorization: {text}\r\n"),
            None => String::new(),
        };
        let proxies = Addresses::of(self.net.as_ref(), &self.proxy.address)
            .await
            .map_err(|e| io::Error::new(e.kind(), format!("the proxy {} can't be found: {e}", self.proxy.address)))?;
        let mut stream = proxies.race(|proxy| self.net.connect(proxy)).await?;
        stream.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{authorization}\r\n").as_bytes()).await?;
        stream.flush().await?;
        let head = read_head(&mut stream).await?;
        let status = head.lines().next().unwrap_or_default();
        // Nothing follows a header of 2xx but what comes through the tunnel.
        if status.starts_with("HTTP/1.") && status.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
            return Ok(stream);
        }
        Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("the proxy opens no way to {to}: {status}")))
    }
}

/// The header of an answer, and nothing of what follows it. One byte at a time: it is short, and asked for once.
pub(crate) async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_BYTES {
            let what = format!("an answer whose header has more than {HEAD_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

impl Net for ThroughProxy {
    fn udp(&self, at: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        self.net.udp(at)
    }

    fn listen(&self, at: SocketAddr) -> BoxFut<'_, io::Result<Box<dyn Acceptor>>> {
        self.net.listen(at)
    }

    fn connect(&self, to: SocketAddr) -> BoxFut<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(self.tunnel(to))
    }

    fn resolve(&self, name: &str) -> BoxFut<'_, io::Result<Vec<IpAddr>>> {
        let name = name.to_owned();
        Box::pin(async move { self.look_up(&name).await })
    }

    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime> {
        self.net.quic_runtime()
    }

    fn buffers(&self) -> bool {
        self.net.buffers()
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;
    use crate::system::system_env;

    /// Asks through a proxy that answers this: what it was asked, and what came of it.
    async fn ask(answer: &'static str, authorization: Option<&str>) -> (String, io::Result<Box<dyn Stream>>) {
        let env = system_env().unwrap();
        let mut acceptor = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = format!("localhost:{}", acceptor.local_addr().port());
        let net = ThroughProxy::new(
            env.net.clone(),
            HttpProxy { address, authorization: authorization.map(str::to_owned), except: Exceptions::default() },
        );
        let proxy = async {
            let (mut stream, _) = acceptor.accept().await.unwrap();
            let asked = read_head(&mut stream).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            asked
        };
        tokio::join!(proxy, net.connect("[2001:db8::1]:443".parse().unwrap()))
    }

    #[tokio::test]
    async fn a_tunnel_begins_where_the_header_ends() {
        let (asked, stream) = ask("HTTP/1.1 200 Connection established\r\nvia: x\r\n\r\n!", Some("Basic eA==")).await;
        let expected =
            "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\nProxy-Authorization: Basic eA==\r\n\r\n";
        assert_eq!(asked, expected);
        assert_eq!(stream.unwrap().read_u8().await.unwrap(), b'!');
    }

    #[tokio::test]
    async fn a_refusal_garbage_and_an_end_are_errors_and_secrets_are_not_shown() {
        for (answer, kind) in [
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", io::ErrorKind::ConnectionRefused),
            ("SSH-2.0-x 200\r\n\r\n", io::ErrorKind::ConnectionRefused),
            ("HTTP/1.1 200", io::ErrorKind::UnexpectedEof),
        ] {
            let (asked, stream) = ask(answer, None).await;
            assert!(!asked.contains("Authorization"));
            assert_eq!(stream.err().map(|e| e.kind()), Some(kind), "{answer}");
        }
        let env = system_env().unwrap();
        let authorization = Some("s\r\necret".into());
        let proxy = HttpProxy { authorization, ..HttpProxy::from_str("192.0.2.1:1").unwrap() };
        let net = ThroughProxy::new(env.net.clone(), proxy);
        assert!(!format!("{net:?}").contains("ecret"));
        let refused = net.connect("192.0.2.2:2".parse().unwrap()).await.err().map(|e| e.kind());
        assert_eq!(refused, Some(io::ErrorKind::InvalidInput));
    }

    #[test]
    fn an_address_of_a_proxy_is_read_as_is_usual_and_no_error_shows_a_secret() {
        for (text, address, authorization) in [
            ("http://proxy.example:3128", "proxy.example:3128", None),
            ("HTTP://10.0.0.1:8080/", "10.0.0.1:8080", None),
            ("proxy_1.example", "proxy_1.example:80", None),
            ("http://[2001:db8::1]:3128", "[2001:db8::1]:3128", None),
            ("http://[2001:db8::1]", "[2001:db8::1]:80", None),
            ("http://user:pa%40ss%3A@proxy.example:3128", "proxy.example:3128", Some("Basic dXNlcjpwYUBzczo=")),
            ("http://us@er:x@proxy.example:3128", "proxy.example:3128", Some("Basic dXNAZXI6eA==")),
            ("http://user@proxy.example:3128", "proxy.example:3128", Some("Basic dXNlcjo=")),
        ] {
            let proxy: HttpProxy = text.parse().unwrap();
            assert_eq!((proxy.address.as_str(), proxy.authorization.as_deref()), (address, authorization), "{text}");
        }
        for (text, error) in [
            ("socks5://secret@proxy:1080", ProxyError::Scheme("socks5".into())),
            ("https://proxy:443", ProxyError::Scheme("https".into())),
            ("", ProxyError::Address),
            ("http://user:secret@", ProxyError::Address),
            ("http://proxy:0", ProxyError::Address),
            ("http://proxy:99999", ProxyError::Address),
            ("http://secret/path:1", ProxyError::Address),
            ("http://[zz]:1", ProxyError::Address),
            ("http://user:secret%4@proxy:1", ProxyError::Credentials),
            ("http://user:secret%ff@proxy:1", ProxyError::Credentials),
        ] {
            let found = text.parse::<HttpProxy>().unwrap_err();
            assert_eq!(found, error, "{text}");
            assert!(!found.to_string().contains("secret"), "{found}");
        }
    }

    #[test]
    fn the_environment_names_a_proxy_and_what_goes_past_it() {
        let of = |vars: &[(&str, &str)]| {
            let read = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            HttpProxy::of_environment(read)
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[("HTTPS_PROXY", " "), ("HTTP_PROXY", "http://other:1")]), Ok(None));
        let proxy = of(&[("https_proxy", "http://a:1"), ("HTTPS_PROXY", "http://b:1")]).unwrap().unwrap();
        assert_eq!(proxy.address, "a:1", "the lower case is asked first");
        assert_eq!(of(&[("ALL_PROXY", "http://c:1")]).unwrap().unwrap().address, "c:1");
        assert!(of(&[("ALL_PROXY", "socks5://c:1")]).is_err());
        assert!(proxy.except.address([127, 0, 0, 9].into()) && proxy.except.name("localhost"));
        let no = "example.org, .intern, *.lab,192.0.2.0/24,2001:db8::1";
        let proxy = of(&[("HTTPS_PROXY", "http://b:1"), ("NO_PROXY", no)]).unwrap().unwrap();
        for name in ["example.org", "im.EXAMPLE.org.", "a.intern", "x.lab"] {
            assert!(proxy.except.name(name), "{name}");
        }
        assert!(!proxy.except.name("badexample.org") && !proxy.except.name("example.com"));
        assert!(proxy.except.address([192, 0, 2, 7].into()) && !proxy.except.address([192, 0, 3, 7].into()));
        assert!(proxy.except.address("2001:db8::1".parse().unwrap()));
        let all = of(&[("HTTPS_PROXY", "http://b:1"), ("NO_PROXY", "*")]).unwrap().unwrap();
        assert!(all.except.address([8, 8, 8, 8].into()) && all.except.name("x"));
    }

    #[tokio::test]
    async fn a_proxy_is_asked_by_name_also_for_one_that_is_not_known_here() {
        let env = system_env().unwrap();
        let mut acceptor = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let proxy: HttpProxy = format!("127.0.0.1:{}", acceptor.local_addr().port()).parse().unwrap();
        let net = ThroughProxy::new(env.net.clone(), proxy.clone());
        let mut asked = async |net: &ThroughProxy, name: &str| {
            let ip = net.resolve(name).await.unwrap()[0];
            let answering = async {
                let (mut stream, _) = acceptor.accept().await.unwrap();
                let head = read_head(&mut stream).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                head.lines().next().unwrap().to_owned()
            };
            let (line, stream) = tokio::join!(answering, net.connect(SocketAddr::new(ip, 443)));
            stream.unwrap();
            line
        };
        assert_eq!(asked(&net, "no-such-host.invalid").await, "CONNECT no-such-host.invalid:443 HTTP/1.1");
        assert_eq!(asked(&net, "other.invalid").await, "CONNECT other.invalid:443 HTTP/1.1");
        assert_eq!(asked(&net, "no-such-host.invalid").await, "CONNECT no-such-host.invalid:443 HTTP/1.1");
        assert_eq!(asked(&net, "localhost").await, "CONNECT localhost:443 HTTP/1.1");
        assert_eq!(asked(&net, "192.0.2.1").await, "CONNECT 192.0.2.1:443 HTTP/1.1");
        // What is excepted is neither asked for nor made up.
        let except = Exceptions::of("invalid,127.0.0.0/8,::1");
        let net = ThroughProxy::new(env.net.clone(), HttpProxy { except, ..proxy });
        assert!(net.resolve("no-such-host.invalid").await.is_err());
        let direct = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert!(net.connect(direct.local_addr()).await.is_ok());
    }

    #[test]
    fn names_are_forgotten_beyond_a_bound() {
        let mut names = Names::default();
        for i in 0..10_000 {
            names.stand_in(&format!("{i}.invalid"));
        }
        assert_eq!(names.0.len(), NAMES);
        assert!(names.0.iter().all(|(ip, _)| is_stand_in(*ip)));
    }
}
