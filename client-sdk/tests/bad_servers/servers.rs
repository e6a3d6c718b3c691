//! Servers that speak TCP, TLS or QUIC, and say nothing that makes sense.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tern_core::wire::ALPN_CLIENT;
use tern_net::env::{Env, Stream};
use tern_net::quic::{QuicParams, server_endpoint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fake_edge::FakeEdge;

/// What a server says to whoever connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// Bytes that are not even TLS.
    Noise,
    /// Within TLS, bytes that are none of ours.
    NoiseInTls,
    /// Within TLS, a frame of 4 GiB begins.
    HugeFrame,
    /// Answers any request of HTTP by 200 and this.
    Http(&'static str),
    /// Likewise, and never ends.
    Endless(&'static str),
    /// Nothing, within TLS.
    Nothing,
}

pub const PORTAL: &str = "content-type: text/html\r\n\r\n<html>Please log in</html>";

/// `at` says this from now on, as `edge`. The bytes that were taken from it.
pub async fn says(env: &Env, edge: &FakeEdge, at: &str, says: Says, alpn: &'static [&'static [u8]]) -> Arc<AtomicU64> {
    let mut acceptor = env.net.listen(at.parse().unwrap()).await.unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(edge.tls(alpn));
    let taken = Arc::new(AtomicU64::new(0));
    let counted = taken.clone();
    env.tasks.spawn(async move {
        while let Ok((stream, _)) = acceptor.accept().await {
            let (tls, counted) = (tls.clone(), counted.clone());
            tokio::spawn(async move {
                if says == Says::Noise {
                    talk(stream, says, &counted).await;
                } else if let Ok(stream) = tls.accept(stream).await {
                    talk(Box::new(stream), says, &counted).await;
                }
            });
        }
    });
    taken
}

/// All ALPNs that a client offers anywhere.
pub const ANY: &[&[u8]] = &[ALPN_CLIENT, b"h2", b"http/1.1"];
pub const HTTP_1: &[&[u8]] = &[b"http/1.1"];

async fn talk(mut stream: Box<dyn Stream>, says: Says, taken: &AtomicU64) {
    let mut read = [0; 4096];
    // The client speaks first.
    drop(stream.read(&mut read).await);
    let noise: Vec<u8> = (0..8192u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
    let (first, then): (Vec<u8>, Option<Vec<u8>>) = match says {
        Says::Noise | Says::NoiseInTls => (noise, None),
        Says::HugeFrame => (vec![0xff, 0xff, 0xff, 0xff, 0x0f], Some(vec![0; 8192])),
        Says::Http(rest) => (format!("HTTP/1.1 200 OK\r\ntern-poll: x\r\n{rest}").into_bytes(), None),
        Says::Endless(rest) => {
            (format!("HTTP/1.1 200 OK\r\ntern-poll: x\r\n{rest}").into_bytes(), Some(vec![b' '; 8192]))
        }
        Says::Nothing => (Vec::new(), None),
    };
    let mut next = Some(first);
    while let Some(bytes) = next {
        if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        taken.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        next = then.clone();
        tokio::task::yield_now().await;
    }
    if matches!(says, Says::Http(_)) {
        drop(stream.shutdown().await);
        return;
    }
    // Open until the client has enough.
    while matches!(stream.read(&mut read).await, Ok(1..)) {}
}

/// QUIC at `at`: a handshake that is right, and noise on every stream.
pub fn quic_noise(env: &Env, edge: &FakeEdge, at: &str) {
    let endpoint = server_endpoint(env, at.parse().unwrap(), edge.tls(&[ALPN_CLIENT]), &QuicParams::edge()).unwrap();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else { return };
                while let Ok((mut into, _from)) = connection.accept_bi().await {
                    drop(into.write_all(&[0xaa; 5000]).await);
                }
            });
        }
    });
}

/// UDP at `at`: every datagram is answered by one that is not QUIC.
pub fn udp_noise(env: &Env, at: &str) {
    let socket = env.net.udp(at.parse::<SocketAddr>().unwrap()).unwrap();
    tokio::spawn(async move {
        let (mut bytes, mut meta) = (vec![0; 2000], [quinn::udp::RecvMeta::default()]);
        loop {
            let mut bufs = [std::io::IoSliceMut::new(&mut bytes)];
            let got = std::future::poll_fn(|cx| socket.poll_recv(cx, &mut bufs, &mut meta)).await;
            if got.is_err() {
                return;
            }
            for contents in [&[0xff; 1200][..], &[0x40; 60], &[]] {
                let (destination, ecn) = (meta[0].addr, None);
                drop(socket.try_send(&quinn::udp::Transmit {
                    destination,
                    ecn,
                    contents,
                    segment_size: None,
                    src_ip: None,
                }));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}
