//! quinn endpoints over any [`crate::env::Net`], with nothing random or timed that is not the environment's.
//!
//! quinn draws random numbers in five places: the key of stateless resets, the endpoint's generator, the
//! connection ids of both sides, and the key of address tokens. All of them are seeded from `Env` here, so
//! that two simulated runs with one seed send packets of equal times and sizes.
//!
//! Each parameter says whom it serves. The values for clients are chosen for memory first: a server holds
//! one connection per device, almost all of them idle. Limits of streams cost memory at once, windows only
//! when they are used.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout,
    ServerConfig, TimeSource, TransportConfig, ValidationTokenConfig, VarInt,
};
use ring::hkdf;
use tern_core::clock::{Clock, Entropy};

use crate::congestion::FloorCubicConfig;
use crate::env::Env;
use crate::reset::ResetKey;
use crate::sounding::Sounding;

/// Bytes of the connection ids that this side issues: enough that none is guessed, and room for an encrypted
/// node number.
pub const CID_BYTES: usize = 8;
/// Bytes of the first destination id that a client makes up (RFC 9000, 7.2: at least 8).
pub const FIRST_CID_BYTES: usize = 20;
/// Time between stateless resets of one endpoint: after a restart every client must learn soon that its
/// connection is gone, and quinn's 20 ms would tell only 50 of them a second.
pub const RESET_INTERVAL: Duration = Duration::from_millis(1);
/// Likewise of one that accepts nothing: nobody waits for its resets, and whoever sends it noise is not to be answered.
pub const CLIENT_RESET_INTERVAL: Duration = Duration::from_secs(1);
/// Handshakes that may be waiting for this process at once; more are refused by quinn.
pub const INCOMING: usize = 4096;
/// Bytes kept for one handshake that waits, and for all of them.
pub const INCOMING_BYTES: u64 = 64 * 1024;
/// See [`INCOMING_BYTES`].
pub const INCOMING_BYTES_TOTAL: u64 = 16 * 1024 * 1024;

/// Why an endpoint can't be had. Nothing stays open.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The socket.
    #[error("can't open UDP {at}: {cause}; check that the address is this machine's and the port is free")]
    Bind {
        /// What was asked for.
        at: SocketAddr,
        /// What the system says.
        cause: io::Error,
    },
    /// The TLS set-up lacks what QUIC needs.
    #[error("this TLS set-up can't be used with QUIC: {0}")]
    Tls(String),
}

/// Parameters of one side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuicParams {
    /// Assumed round trip until one is measured; halves the mean handshake on lossy links against 333 ms.
    pub initial_rtt: Duration,
    /// Silence after which the connection is given up; the lower of both sides' counts.
    pub idle_timeout: Duration,
    /// Send a PING after so much silence.
    pub keep_alive: Option<Duration>,
    /// Bidirectional streams that the other side may have open at once. Each costs memory before it is used.
    pub bidi_streams: u32,
    /// Unidirectional ones, likewise. HTTP/3 needs three, and stock clients give up where they are not there at once.
    pub uni_streams: u32,
    /// Bytes of one stream that the other side may send ahead of what was read.
    pub stream_receive_window: u32,
    /// Bytes of all streams, likewise.
    pub receive_window: u32,
    /// Bytes written here that may wait to be sent or acknowledged.
    pub send_window: u64,
    /// Whether the other side may move to another address.
    pub migration: bool,
    /// The other side is asked to acknowledge after so many packets more, or its usual delay of 25 ms, whichever is
    /// first (draft-ietf-quic-ack-frequency); 0 = every other packet, as RFC 9000 has it. What is said on a lane is
    /// answered there, so an early acknowledgement of a packet tells nothing that is waited for; it costs both
    /// sides a datagram, and a phone its radio.
    pub acks_after: u32,
    /// So much may be in flight whatever was lost: see [`crate::congestion`].
    pub window_floor: bool,
}

impl QuicParams {
    /// An edge towards its clients: three lanes and no more (and what HTTP/3 has beside its requests), no heartbeat of
    /// its own (the client's serve, at most every 5 minutes: 13 minutes are over 2.5 of them), windows that carry the
    /// largest frame.
    pub const fn edge() -> Self {
        Self {
            initial_rtt: Duration::from_millis(100),
            idle_timeout: Duration::from_secs(13 * 60),
            keep_alive: None,
            bidi_streams: 3,
            uni_streams: 3,
            stream_receive_window: 160 * 1024,
            receive_window: 320 * 1024,
            send_window: 512 * 1024,
            migration: true,
            acks_after: 4,
            window_floor: false,
        }
    }

    /// A client towards an edge: opens all streams itself; a wide window, because backlogs come this way.
    pub const fn client() -> Self {
        Self {
            bidi_streams: 0,
            uni_streams: 0,
            stream_receive_window: 1024 * 1024,
            receive_window: 2 * 1024 * 1024,
            window_floor: true,
            ..Self::edge()
        }
    }

    /// A client that speaks HTTP/3.
    pub const fn client_http3() -> Self {
        Self { uni_streams: 3, ..Self::client() }
    }

    /// Links between nodes: found dead within 5 s, and full over 300 Mbit/s at 200 ms.
    pub const fn node() -> Self {
        Self {
            initial_rtt: Duration::from_millis(100),
            idle_timeout: Duration::from_secs(5),
            keep_alive: Some(Duration::from_secs(1)),
            bidi_streams: 4,
            uni_streams: 0,
            stream_receive_window: 8 * 1024 * 1024,
            receive_window: 16 * 1024 * 1024,
            send_window: 8 * 1024 * 1024,
            migration: false,
            acks_after: 0,
            window_floor: false,
        }
    }

    fn transport(&self) -> Arc<TransportConfig> {
        let mut t = TransportConfig::default();
        // A time-out above 2^62 ms can't be said on the wire; no timer serves as well as one of 146 million years.
        t.max_idle_timeout(IdleTimeout::try_from(self.idle_timeout).ok());
        t.keep_alive_interval(self.keep_alive)
            .initial_rtt(self.initial_rtt)
            .max_concurrent_bidi_streams(VarInt::from_u32(self.bidi_streams))
            .max_concurrent_uni_streams(VarInt::from_u32(self.uni_streams))
            .stream_receive_window(VarInt::from_u32(self.stream_receive_window))
            .receive_window(VarInt::from_u32(self.receive_window))
            .send_window(self.send_window)
            .datagram_receive_buffer_size(None)
            .datagram_send_buffer_size(0);
        if self.window_floor {
            t.congestion_controller_factory(Arc::new(FloorCubicConfig::default()));
        }
        if self.acks_after > 0 {
            let mut acks = AckFrequencyConfig::default();
            acks.ack_eliciting_threshold(VarInt::from_u32(self.acks_after));
            // The first packet after an outage is out of order: its acknowledgement is what all the rest waits for.
            acks.reordering_threshold(VarInt::from_u32(1));
            t.ack_frequency_config(Some(acks));
        }
        Arc::new(t)
    }
}

/// Connection ids from the environment's randomness.
struct Cids(Arc<Entropy>);

impl ConnectionIdGenerator for Cids {
    fn generate_cid(&mut self) -> ConnectionId {
        random_cid::<CID_BYTES>(&self.0)
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn random_cid<const N: usize>(rng: &Entropy) -> ConnectionId {
    let mut bytes = [0; N];
    rng.fill(&mut bytes);
    ConnectionId::new(&bytes)
}

fn random_key(rng: &Entropy) -> [u8; 32] {
    let mut key = [0; 32];
    rng.fill(&mut key);
    key
}

/// Wall time for address tokens.
struct TokenTime(Arc<dyn Clock>);

impl TimeSource for TokenTime {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.wall_ms())
    }
}

fn endpoint_config(env: &Env, reset: &ResetKey) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(reset.hmac()));
    let rng = env.rng.clone();
    config
        .rng_seed(Some(random_key(&env.rng)))
        .cid_generator(move || Box::new(Cids(rng.clone())))
        .min_reset_interval(RESET_INTERVAL);
    config
}

fn open(
    env: &Env,
    at: SocketAddr,
    server: Option<ServerConfig>,
    reset: &ResetKey,
    sounding: Option<&Arc<Sounding>>,
) -> Result<Endpoint, QuicError> {
    let bind = |cause| QuicError::Bind { at, cause };
    let socket = env.net.udp(at).map_err(bind)?;
    let socket = match sounding {
        Some(sounding) => sounding.wrap(socket),
        None => socket,
    };
    let mut config = endpoint_config(env, reset);
    if server.is_none() {
        config.min_reset_interval(CLIENT_RESET_INTERVAL);
    }
    Endpoint::new_with_abstract_socket(config, server, socket, env.net.quic_runtime()).map_err(bind)
}

/// What a server answers with; exposed for those that change it while running.
pub fn server_config(
    env: &Env,
    tls: Arc<rustls::ServerConfig>,
    params: &QuicParams,
) -> Result<ServerConfig, QuicError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|e| QuicError::Tls(e.to_string()))?;
    let token_key = hkdf::Salt::new(hkdf::HKDF_SHA256, b"tern address tokens").extract(&random_key(&env.rng));
    let mut config = ServerConfig::new(Arc::new(crypto), Arc::new(token_key));
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    config
        .transport_config(params.transport())
        .migration(params.migration)
        .max_incoming(INCOMING)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL)
        .validation_token_config(tokens)
        .time_source(Arc::new(TokenTime(env.clock.clone())));
    Ok(config)
}

/// An endpoint that accepts connections at `at` (port 0: any free one; ask `Endpoint::local_addr`).
pub fn server_endpoint(
    env: &Env,
    at: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    params: &QuicParams,
) -> Result<Endpoint, QuicError> {
    server_endpoint_with(env, at, tls, params, &ResetKey::random(&env.rng), None)
}

/// Likewise, with a key of stateless resets that outlives the process: after a kill and a restart at the same
/// address, clients learn within a round trip that their connections are gone. And with soundings of its socket.
pub fn server_endpoint_with(
    env: &Env,
    at: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    params: &QuicParams,
    reset: &ResetKey,
    sounding: Option<&Arc<Sounding>>,
) -> Result<Endpoint, QuicError> {
    let config = server_config(env, tls, params)?;
    open(env, at, Some(config), reset, sounding)
}

/// An endpoint that opens connections from `bind`, whose family must be the target's: bind `0.0.0.0:0` for
/// IPv4 and `[::]:0` for IPv6. One per connection where connections are to move between networks.
pub fn client_endpoint(env: &Env, bind: SocketAddr) -> Result<Endpoint, QuicError> {
    open(env, bind, None, &ResetKey::random(&env.rng), None)
}

/// What a connection is opened with, for `Endpoint::connect_with`.
pub fn client_config(
    env: &Env,
    tls: Arc<rustls::ClientConfig>,
    params: &QuicParams,
) -> Result<ClientConfig, QuicError> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| QuicError::Tls(e.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    let rng = env.rng.clone();
    config
        .transport_config(params.transport())
        .initial_dst_cid_provider(Arc::new(move || random_cid::<FIRST_CID_BYTES>(&rng)));
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::system_env;
    use crate::testing::Pki;
    use crate::tls;

    const ANY: &str = "127.0.0.1:0";

    async fn connect(
        env: &Env,
        server: &Endpoint,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        let client = client_endpoint(env, ANY.parse().unwrap()).unwrap();
        let config = client_config(env, tls, &QuicParams::client()).unwrap();
        client.connect_with(config, server.local_addr().unwrap(), "localhost").unwrap().await
    }

    #[tokio::test]
    async fn a_stream_is_echoed_with_the_largest_frame() {
        let env = system_env().unwrap();
        let pki = Pki::new();
        let tls = tls::server_tls(&pki.identity(), &[b"t"], env.clock.clone()).unwrap();
        let server = server_endpoint(&env, ANY.parse().unwrap(), tls, &QuicParams::edge()).unwrap();
        let accepting = server.clone();
        env.tasks.spawn(async move {
            let connection = accepting.accept().await.unwrap().await.unwrap();
            let (mut send, mut recv) = connection.accept_bi().await.unwrap();
            let got = recv.read_to_end(1 << 20).await.unwrap();
            send.write_all(&got).await.unwrap();
            send.finish().unwrap();
            connection.closed().await;
        });
        let tls = tls::client_tls(pki.ca_pem.as_bytes(), &[b"t"], env.clock.clone()).unwrap();
        let connection = connect(&env, &server, tls).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let sent: Vec<u8> = (0..128u32 * 1024).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let (wrote, got) = tokio::join!(
            async {
                send.write_all(&sent).await?;
                send.finish().unwrap();
                Ok::<_, quinn::WriteError>(())
            },
            recv.read_to_end(1 << 20)
        );
        wrote.unwrap();
        assert_eq!(got.unwrap(), sent);
    }

    #[tokio::test]
    async fn another_protocol_or_ca_is_refused() {
        let env = system_env().unwrap();
        let (pki, stranger) = (Pki::new(), Pki::new());
        let tls = tls::server_tls(&pki.identity(), &[b"t"], env.clock.clone()).unwrap();
        let server = server_endpoint(&env, ANY.parse().unwrap(), tls, &QuicParams::edge()).unwrap();
        let accepting = server.clone();
        env.tasks.spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let _ = incoming.await;
            }
        });
        for (ca, alpn) in [(&pki.ca_pem, &b"other"[..]), (&stranger.ca_pem, b"t")] {
            let tls = tls::client_tls(ca.as_bytes(), &[alpn], env.clock.clone()).unwrap();
            assert!(connect(&env, &server, tls).await.is_err());
        }
    }

    #[tokio::test]
    async fn nodes_must_show_a_certificate_of_the_right_ca() {
        let env = system_env().unwrap();
        let (pki, stranger) = (Pki::new(), Pki::new());
        let tls = tls::node_server_tls(&pki.identity(), pki.ca_pem.as_bytes(), env.clock.clone()).unwrap();
        let server = server_endpoint(&env, ANY.parse().unwrap(), tls, &QuicParams::node()).unwrap();
        let (accepting, tasks) = (server.clone(), env.tasks.clone());
        env.tasks.spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                tasks.spawn(async move {
                    if let Ok(connection) = incoming.await {
                        let (mut send, _recv) = connection.accept_bi().await.unwrap();
                        send.write_all(b"in").await.unwrap();
                        connection.closed().await;
                    }
                });
            }
        });
        let good = tls::node_client_tls(&pki.identity(), pki.ca_pem.as_bytes(), env.clock.clone()).unwrap();
        let connection = connect(&env, &server, good).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(b"x").await.unwrap();
        let mut got = [0; 2];
        recv.read_exact(&mut got).await.unwrap();
        // With TLS 1.3 a client learns of its refusal only after its own handshake is done.
        let bad = tls::node_client_tls(&stranger.identity(), pki.ca_pem.as_bytes(), env.clock.clone()).unwrap();
        if let Ok(connection) = connect(&env, &server, bad).await {
            connection.closed().await;
        }
        let none = tls::client_tls(pki.ca_pem.as_bytes(), &[tern_core::wire::ALPN_NODE], env.clock.clone()).unwrap();
        if let Ok(connection) = connect(&env, &server, none).await {
            connection.closed().await;
        }
    }

    /// A server in a runtime of its own that dies without a word, and a client that goes on talking to whoever
    /// answers at that address next.
    fn killed_and_restarted(keys: [&ResetKey; 2]) -> Option<quinn::ConnectionError> {
        let pki = Pki::new();
        let serve = |at: SocketAddr, key: ResetKey| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let endpoint = runtime.block_on(async {
                let env = system_env().unwrap();
                let tls = tls::server_tls(&pki.identity(), &[b"t"], env.clock.clone()).unwrap();
                let server = server_endpoint_with(&env, at, tls, &QuicParams::edge(), &key, None).unwrap();
                let accepting = server.clone();
                env.tasks.spawn(async move {
                    while let Some(incoming) = accepting.accept().await {
                        if let Ok(connection) = incoming.await {
                            connection.closed().await;
                        }
                    }
                });
                server
            });
            (runtime, endpoint.local_addr().unwrap(), endpoint)
        };
        let (first, at, endpoint) = serve(ANY.parse().unwrap(), keys[0].clone());
        let client = tokio::runtime::Runtime::new().unwrap();
        let connection = client.block_on(async {
            let env = system_env().unwrap();
            let tls = tls::client_tls(pki.ca_pem.as_bytes(), &[b"t"], env.clock.clone()).unwrap();
            connect(&env, &endpoint, tls).await.unwrap()
        });
        // The runtime first: an endpoint that is dropped while its driver runs would say goodbye.
        first.shutdown_background();
        drop(endpoint);
        let bound = || std::net::UdpSocket::bind(at).is_err();
        let freed = client.block_on(async {
            let freed = async {
                while bound() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), freed).await
        });
        assert!(freed.is_ok(), "the socket of the dead server stays open");
        let (second, _, _endpoint) = serve(at, keys[1].clone());
        let ended = client.block_on(async {
            let (mut send, _recv) = connection.open_bi().await.unwrap();
            // Larger than the smallest packet that is answered.
            send.write_all(&[1; 200]).await.unwrap();
            tokio::time::timeout(Duration::from_secs(3), connection.closed()).await.ok()
        });
        second.shutdown_background();
        client.shutdown_background();
        ended
    }

    #[test]
    fn clients_of_a_server_that_was_killed_learn_at_once_if_it_keeps_its_key_and_wait_if_not() {
        let rng = Entropy::seeded(5);
        let (one, other) = (ResetKey::random(&rng), ResetKey::random(&rng));
        assert_eq!(killed_and_restarted([&one, &one]), Some(quinn::ConnectionError::Reset));
        assert_eq!(killed_and_restarted([&one, &other]), None);
    }

    #[tokio::test]
    async fn equal_seeds_give_equal_connection_ids() {
        let draw = |seed| {
            let rng = Arc::new(Entropy::seeded(seed));
            let mut cids = Cids(rng);
            [cids.generate_cid(), cids.generate_cid()]
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[tokio::test]
    async fn a_port_in_use_is_told() {
        let env = system_env().unwrap();
        let first = client_endpoint(&env, ANY.parse().unwrap()).unwrap();
        let at = first.local_addr().unwrap();
        let error = client_endpoint(&env, at).unwrap_err().to_string();
        assert!(error.contains(&at.to_string()) && error.contains("port is free"), "{error}");
    }
}
