//! The way out of a network whose only one is an HTTP proxy: every TCP connection is a tunnel through it, by
//! CONNECT (RFC 9110, 9.3.6).
//!
//! It is a [`Net`] around another one, so that whoever connects knows nothing of it. UDP goes past it: where there
//! is a proxy, QUIC seldom gets through, and is tried all the same. Names are resolved here and not by the proxy,
//! since a [`Net`] connects to addresses.

use std::fmt::{self, Debug};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tern_core::store::BoxFut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::addresses::Addresses;
use crate::env::{Acceptor, Net, Stream};

/// Bytes of the header of an answer.
const HEAD_BYTES: usize = 8 * 1024;

/// An HTTP proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpProxy {
    /// `host:port`.
    pub address: String,
    /// What `Proxy-Authorization` is to say, such as `Basic dXNlcjpwYXNz`; a secret.
    pub authorization: Option<String>,
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
}

impl ThroughProxy {
    /// Wraps.
    pub fn new(net: Arc<dyn Net>, proxy: HttpProxy) -> Self {
        Self { net, proxy }
    }

    async fn tunnel(&self, to: SocketAddr) -> io::Result<Box<dyn Stream>> {
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
        self.net.resolve(name)
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
    use super::*;
    use crate::system::system_env;

    /// Asks through a proxy that answers this: what it was asked, and what came of it.
    async fn ask(answer: &'static str, authorization: Option<&str>) -> (String, io::Result<Box<dyn Stream>>) {
        let env = system_env().unwrap();
        let mut acceptor = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = format!("localhost:{}", acceptor.local_addr().port());
        let net =
            ThroughProxy::new(env.net.clone(), HttpProxy { address, authorization: authorization.map(str::to_owned) });
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
        let proxy = HttpProxy { address: "192.0.2.1:1".into(), authorization: Some("s\r\necret".into()) };
        let net = ThroughProxy::new(env.net.clone(), proxy);
        assert!(!format!("{net:?}").contains("ecret"));
        let refused = net.connect("192.0.2.2:2".parse().unwrap()).await.err().map(|e| e.kind());
        assert_eq!(refused, Some(io::ErrorKind::InvalidInput));
    }
}
