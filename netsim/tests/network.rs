//! The simulated network by itself: streams, datagrams, faults, kills, and runs that repeat.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, missing_docs)]

mod support;

use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::AsyncUdpSocket;
use quinn::udp::{RecvMeta, Transmit};
use tern_core::clock::Entropy;
use tern_net::env::{Env, Stream};
use tern_net::quic::{QuicParams, client_config, client_endpoint, server_endpoint};
use tern_net::tls::{Identity, client_tls, server_tls};
use tern_netsim::limits::{DATAGRAM_BYTES, OPEN_GIVE_UP, STREAM_RECEIVE_BYTES, STREAM_SEND_BYTES};
use tern_netsim::node::{EPOCH_MS, HostState, SimNode};
use tern_netsim::pki::Pki;
use tern_netsim::run::run;
use tern_netsim::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const HOUR: Duration = Duration::from_secs(3600);
const LATENCY: Duration = Duration::from_millis(47);
const PORT: u16 = 7400;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Runs a scenario that must end within an hour of virtual time.
fn sim<Fut, T>(seed: u64, scenario: impl FnOnce(World) -> Fut + Send + 'static) -> T
where
    Fut: Future<Output = T>,
    T: Send + 'static,
{
    run(seed, |world| async move { timeout(HOUR, scenario(world)).await.expect("an hour has passed") }).unwrap()
}

fn two(world: &World) -> (SimNode, SimNode) {
    let a = world.add_host("a", "eu", Ipv4Addr::new(10, 1, 0, 1)).unwrap();
    let b = world.add_host("b", "ap", Ipv4Addr::new(10, 2, 0, 1)).unwrap();
    world.set_latency("eu", "ap", LATENCY);
    (a, b)
}

fn at(node: &SimNode) -> SocketAddr {
    SocketAddr::new(node.ip(), PORT)
}

/// Sends back whatever comes, on every stream.
async fn serve_echo(env: &Env, at: SocketAddr) {
    let mut acceptor = env.net.listen(at).await.unwrap();
    let tasks = env.tasks.clone();
    env.tasks.spawn(async move {
        while let Ok((stream, _)) = acceptor.accept().await {
            tasks.spawn(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                let mut buf = vec![0; 4096];
                while let Ok(n @ 1..) = read.read(&mut buf).await {
                    if write.write_all(&buf[..n]).await.is_err() {
                        return;
                    }
                }
                let _closed = write.shutdown().await;
            });
        }
    });
}

async fn echo(stream: &mut Box<dyn Stream>, text: &[u8]) -> io::Result<()> {
    stream.write_all(text).await?;
    let mut got = vec![0; text.len()];
    stream.read_exact(&mut got).await?;
    assert_eq!(got, text);
    Ok(())
}

fn send(socket: &dyn AsyncUdpSocket, to: SocketAddr, contents: &[u8]) -> io::Result<()> {
    socket.try_send(&Transmit { destination: to, ecn: None, contents, segment_size: None, src_ip: None })
}

async fn receive(socket: &dyn AsyncUdpSocket) -> (Vec<u8>, SocketAddr) {
    let (mut buf, mut meta) = (vec![0; 2000], [RecvMeta::default()]);
    let n = poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buf)], &mut meta)).await.unwrap();
    assert_eq!(n, 1);
    buf.truncate(meta[0].len);
    (buf, meta[0].addr)
}

#[test]
fn a_datagram_takes_exactly_the_latency_and_an_oversized_one_is_lost() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        let (from, to) = (a.env().net.udp(at(&a)).unwrap(), b.env().net.udp(at(&b)).unwrap());
        send(&*from, at(&b), &[7; DATAGRAM_BYTES + 1]).unwrap();
        send(&*from, at(&b), b"hello").unwrap();
        assert_eq!(receive(&*to).await, (b"hello".to_vec(), at(&a)));
        assert_eq!(world.elapsed(), LATENCY);
        let packets = world.packets();
        assert_eq!(packets.iter().map(|p| p.lost).collect::<Vec<_>>(), [true, false]);
    });
}

#[test]
fn datagrams_of_one_millisecond_keep_the_order_of_their_nanoseconds() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        let c = world.add_host("c", "us", Ipv4Addr::new(10, 3, 0, 1)).unwrap();
        world.set_latency("a", "c", Duration::from_micros(900));
        world.set_latency("b", "c", Duration::from_micros(200));
        let (slow, fast) = (a.env().net.udp(at(&a)).unwrap(), b.env().net.udp(at(&b)).unwrap());
        let to = c.env().net.udp(at(&c)).unwrap();
        send(&*slow, at(&c), b"slow").unwrap();
        send(&*fast, at(&c), b"fast").unwrap();
        assert_eq!(receive(&*to).await.0, b"fast");
        assert_eq!(receive(&*to).await.0, b"slow");
        assert_eq!(world.elapsed(), ms(1));
    });
}

#[test]
fn a_stream_opens_in_one_round_trip_and_echoes_in_another() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        serve_echo(&b.env(), "0.0.0.0:7400".parse().unwrap()).await;
        let mut stream = a.env().net.connect(at(&b)).await.unwrap();
        assert_eq!(world.elapsed(), LATENCY * 2);
        echo(&mut stream, b"hello").await.unwrap();
        assert_eq!(world.elapsed(), LATENCY * 4);
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        drop(stream);
        tokio::time::sleep(LATENCY * 2).await;
        assert_eq!(world.open(), (0, 1, 0, 0));
    });
}

#[test]
fn a_port_where_nobody_listens_refuses_after_one_round_trip() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        let error = a.env().net.connect(at(&b)).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(world.elapsed(), LATENCY * 2);
        let nobody = "10.9.9.9:1".parse().unwrap();
        assert_eq!(a.env().net.connect(nobody).await.err().unwrap().kind(), io::ErrorKind::HostUnreachable);
        assert_eq!(world.open(), (0, 0, 0, 0));
    });
}

#[test]
fn addresses_and_names_are_the_hosts_own() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        let net = a.env().net;
        assert_eq!(net.udp(at(&b)).err().unwrap().kind(), io::ErrorKind::AddrNotAvailable);
        assert_eq!(net.udp("[::]:0".parse().unwrap()).err().unwrap().kind(), io::ErrorKind::AddrNotAvailable);
        let held = net.udp(at(&a)).unwrap();
        assert_eq!(net.udp(at(&a)).err().unwrap().kind(), io::ErrorKind::AddrInUse);
        drop(held);
        net.udp(at(&a)).unwrap();
        let tcp = net.listen("0.0.0.0:0".parse().unwrap()).await.unwrap();
        assert_eq!(net.udp(tcp.local_addr()).unwrap().local_addr().unwrap(), tcp.local_addr());
        assert_eq!(net.resolve("b").await.unwrap(), [b.ip()]);
        assert_eq!(net.resolve("10.2.3.4").await.unwrap(), ["10.2.3.4".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(net.resolve("nobody").await.err().unwrap().kind(), io::ErrorKind::NotFound);
        world.set_name("dispatch.tern", vec![a.ip(), b.ip()]);
        assert_eq!(net.resolve("dispatch.tern").await.unwrap(), [a.ip(), b.ip()]);
        assert!(world.add_host("a", "eu", Ipv4Addr::new(10, 1, 0, 9)).is_err());
        assert!(world.add_host("c", "eu", Ipv4Addr::new(10, 1, 0, 1)).is_err());
        let loopback = net.listen("127.0.0.1:7403".parse().unwrap()).await.unwrap();
        net.connect(loopback.local_addr()).await.unwrap();
    });
}

#[test]
fn a_killed_process_resets_its_streams_and_refuses_until_it_is_restarted() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        serve_echo(&b.env(), at(&b)).await;
        let mut stream = a.env().net.connect(at(&b)).await.unwrap();
        echo(&mut stream, b"1").await.unwrap();
        assert_eq!(b.tasks(), 2);
        let before = world.elapsed();
        b.kill().await;
        assert_eq!((b.tasks(), b.state(), world.elapsed()), (0, HostState::Killed, before));
        assert_eq!(stream.read(&mut [0; 8]).await.err().unwrap().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(world.elapsed(), before + LATENCY);
        assert_eq!(stream.write(b"2").await.err().unwrap().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(a.env().net.connect(at(&b)).await.err().unwrap().kind(), io::ErrorKind::ConnectionRefused);
        b.restart();
        serve_echo(&b.env(), at(&b)).await;
        echo(&mut a.env().net.connect(at(&b)).await.unwrap(), b"3").await.unwrap();
    });
}

#[test]
fn a_host_without_power_answers_nobody_and_resets_old_streams_once_it_is_back() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        serve_echo(&b.env(), at(&b)).await;
        let net = a.env().net;
        let mut stream = net.connect(at(&b)).await.unwrap();
        echo(&mut stream, b"1").await.unwrap();
        stream.write_all(b"on its way").await.unwrap();
        b.power_off().await;
        let before = world.elapsed();
        assert_eq!(net.connect(at(&b)).await.err().unwrap().kind(), io::ErrorKind::TimedOut);
        assert!(world.elapsed() - before >= OPEN_GIVE_UP);
        b.restart();
        assert_eq!(stream.read(&mut [0; 8]).await.err().unwrap().kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn clocks_go_on_over_restarts_and_only_the_calendar_is_skewed() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        let (early, other) = (a.env().clock, b.env().clock);
        a.set_clock_skew_ms(-250);
        tokio::time::sleep(ms(1500)).await;
        a.kill().await;
        a.restart();
        for clock in [early, a.env().clock] {
            assert_eq!((clock.now(), clock.wall_ms()), (ms(1500), EPOCH_MS + 1250));
        }
        assert_eq!((other.now(), other.wall_ms()), (ms(1500), EPOCH_MS + 1500));
    });
}

#[test]
fn handles_of_an_earlier_start_do_nothing() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        let old = b.env();
        let socket = old.net.udp(at(&b)).unwrap();
        b.kill().await;
        assert!(send(&*socket, at(&a), b"x").is_err());
        assert!(old.net.udp(at(&b)).is_err());
        old.tasks.spawn(async { panic!("a dead node runs nothing") });
        b.restart();
        let _held = b.env().net.udp(at(&b)).unwrap();
        drop(socket);
        assert!(old.net.listen(at(&b)).await.is_err());
        assert_eq!(world.open().0, 1);
        assert_ne!(old.rng.u64(), b.env().rng.u64());
    });
}

#[test]
fn a_cut_link_stalls_a_stream_and_loses_nothing_of_it() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        serve_echo(&b.env(), at(&b)).await;
        let mut stream = a.env().net.connect(at(&b)).await.unwrap();
        for (from, to) in [("eu", "ap"), ("b", "a")] {
            world.blackhole(from, to);
            let stalled = timeout(Duration::from_secs(5), echo(&mut stream, b"first")).await;
            assert!(stalled.is_err());
            world.heal(from, to);
            let mut got = [0; 5];
            stream.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"first");
            echo(&mut stream, b"second").await.unwrap();
        }
        world.cut("a", "b");
        let net = a.env().net;
        assert!(timeout(Duration::from_secs(5), net.connect(at(&b))).await.is_err());
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.err().unwrap().kind(), io::ErrorKind::TimedOut);
    });
}

#[test]
fn a_writer_waits_for_a_reader_that_does_not_read() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        let mut acceptor = b.env().net.listen(at(&b)).await.unwrap();
        let net = a.env().net;
        let (client, server) = tokio::join!(net.connect(at(&b)), acceptor.accept());
        let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
        let mut written = 0;
        while let Ok(n) = timeout(ms(500), client.write(&[7; 10_000])).await {
            written += n.unwrap();
        }
        assert_eq!(written, STREAM_SEND_BYTES + STREAM_RECEIVE_BYTES);
        let mut got = vec![0; written / 2];
        server.read_exact(&mut got).await.unwrap();
        let more = timeout(ms(500), client.write_all(&vec![8; written / 2])).await;
        more.unwrap().unwrap();
        drop(client);
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), written);
    });
}

#[test]
fn bytes_arrive_complete_and_in_order_under_random_cuts_and_latencies() {
    for seed in 0..20 {
        sim(seed, move |world| async move {
            let (a, b) = two(&world);
            let rng = Entropy::seeded(seed);
            serve_echo(&b.env(), at(&b)).await;
            let stream = a.env().net.connect(at(&b)).await.unwrap();
            let sent: Vec<u8> = (0..600_000u32).map(|i| (i % 251) as u8).collect();
            let (mut read, mut write) = tokio::io::split(stream);
            let writing = async {
                let mut rest = sent.as_slice();
                while !rest.is_empty() {
                    let n = rest.len().min(1 + rng.below(30_000) as usize);
                    write.write_all(&rest[..n]).await.unwrap();
                    rest = &rest[n..];
                }
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let disturbing = async {
                let rng = Entropy::seeded(seed ^ 99);
                for _ in 0..30 {
                    tokio::time::sleep(ms(rng.below(300))).await;
                    world.set_latency("eu", "ap", ms(1 + rng.below(100)));
                    world.blackhole(["a", "b"][rng.below(2) as usize], ["b", "a"][rng.below(2) as usize]);
                    tokio::time::sleep(ms(rng.below(300))).await;
                    world.heal("a", "b");
                    world.heal("a", "a");
                    world.heal("b", "b");
                }
            };
            let (read, (), ()) = tokio::join!(read.read_to_end(&mut got), writing, disturbing);
            read.unwrap();
            assert!(got == sent, "seed {seed}: {} of {} bytes", got.len(), sent.len());
        });
    }
}

struct Quic {
    pki: Pki,
}

impl Quic {
    fn new(seed: u64) -> Self {
        Self { pki: Pki::new(seed, "public").unwrap() }
    }

    fn serve(&self, env: &Env, at: SocketAddr) {
        let issued = self.pki.issue(&["b"]).unwrap();
        let identity = Identity::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
        let tls = server_tls(&identity, &[b"echo"], Arc::clone(&env.clock)).unwrap();
        let endpoint = server_endpoint(env, at, tls, &QuicParams::node()).unwrap();
        let tasks = env.tasks.clone();
        env.tasks.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                tasks.spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                        while let Ok(Some(chunk)) = recv.read_chunk(4096, true).await {
                            if send.write_chunk(chunk.bytes).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
    }

    async fn connect(&self, env: &Env, to: SocketAddr) -> quinn::Connection {
        let tls = client_tls(self.pki.ca_pem().as_bytes(), &[b"echo"], Arc::clone(&env.clock)).unwrap();
        let config = client_config(env, tls, &QuicParams::node()).unwrap();
        let endpoint = client_endpoint(env, "0.0.0.0:0".parse().unwrap()).unwrap();
        endpoint.connect_with(config, to, "b").unwrap().await.unwrap()
    }
}

async fn quic_echo(connection: &quinn::Connection, rounds: usize, bytes: usize) {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    for _ in 0..rounds {
        send.write_all(&vec![7; bytes]).await.unwrap();
        let mut got = vec![0; bytes];
        recv.read_exact(&mut got).await.unwrap();
    }
}

#[test]
fn quic_connects_in_one_round_trip_and_echoes_in_another() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        let quic = Quic::new(1);
        quic.serve(&b.env(), at(&b));
        let connection = quic.connect(&a.env(), at(&b)).await;
        assert_eq!(world.elapsed(), LATENCY * 2);
        quic_echo(&connection, 1, 5).await;
        assert_eq!(world.elapsed(), LATENCY * 4);
        quic_echo(&connection, 3, 100_000).await;
    });
}

#[test]
fn quic_gets_through_where_every_eighth_datagram_is_lost_and_notices_a_killed_peer() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        let mut count = 0;
        let filter = Box::new(move |_: &_| {
            count += 1;
            count % 8 == 0
        });
        world.set_filter("eu", "ap", Some(filter));
        let quic = Quic::new(1);
        quic.serve(&b.env(), at(&b));
        let connection = quic.connect(&a.env(), at(&b)).await;
        quic_echo(&connection, 20, 10_000).await;
        assert!(world.packets().iter().any(|packet| packet.lost));
        b.kill().await;
        let before = world.elapsed();
        assert_eq!(connection.closed().await, quinn::ConnectionError::TimedOut);
        assert!((ms(4000)..ms(7000)).contains(&(world.elapsed() - before)));
    });
}

#[test]
fn twenty_kills_and_restarts_leave_no_task_and_nothing_open() {
    sim(1, |world| async move {
        let (a, b) = two(&world);
        let idle = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let quic = Quic::new(1);
        for cycle in 0..20 {
            let (env, client) = (b.env(), a.env());
            quic.serve(&env, at(&b));
            serve_echo(&env, at(&b)).await;
            let connection = quic.connect(&client, at(&b)).await;
            quic_echo(&connection, 2, 2000).await;
            let mut stream = client.net.connect(at(&b)).await.unwrap();
            echo(&mut stream, b"hello").await.unwrap();
            // Killed with work in flight, by turns with and without a word to its peers.
            stream.write_all(b"unanswered").await.unwrap();
            if cycle % 2 == 0 {
                b.kill().await;
            } else {
                b.power_off().await;
            }
            assert_eq!(b.tasks(), 0);
            a.kill().await;
            drop((connection, stream));
            a.restart();
            b.restart();
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!((a.tasks(), b.tasks(), world.open()), (0, 0, (0, 0, 0, 0)));
        assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), idle);
    });
}

#[test]
fn a_panic_in_a_node_is_not_overlooked() {
    let outcome = run(1, |world| async move {
        let (a, _) = two(&world);
        a.env().tasks.spawn(async { panic!("on purpose") });
        tokio::time::sleep(ms(1)).await;
    });
    assert_eq!(outcome.unwrap_err().to_string(), "1 tasks of simulated nodes panicked; see their messages above");
}

/// Five clients by QUIC and TCP, losses, a kill; hash maps and unbiased `select!` in the way.
#[test]
fn busy_scenario_of_a_child() {
    let Some(seed) = support::child_seed() else { return };
    let (shape, packets) = sim(seed, move |world| async move {
        let (a, b) = two(&world);
        let quic = Arc::new(Quic::new(seed));
        quic.serve(&b.env(), at(&b));
        serve_echo(&b.env(), at(&b)).await;
        let loss = Entropy::seeded(seed);
        world.set_filter("ap", "eu", Some(Box::new(move |packet| packet.bytes > 0 && loss.below(10) == 0)));
        #[expect(clippy::disallowed_types, reason = "its order, drawn from the hooked getrandom, must repeat too")]
        let mut names = std::collections::HashMap::new();
        for i in 0..5u64 {
            let env = a.env();
            let (quic, to) = (Arc::clone(&quic), at(&b));
            names.insert(format!("client {i}"), i);
            a.env().tasks.spawn(async move {
                let connection = quic.connect(&env, to).await;
                for _ in 0..20 {
                    tokio::select! {
                        () = tokio::time::sleep(ms(env.rng.below(100))) => {}
                        () = tokio::time::sleep(ms(env.rng.below(100))) => {}
                    }
                    let mut stream = env.net.connect(to).await.unwrap();
                    quic_echo(&connection, 1, 1 + usize::try_from(env.rng.below(5000)).unwrap()).await;
                    echo(&mut stream, &vec![1; 1 + usize::try_from(env.rng.below(5000)).unwrap()]).await.unwrap();
                }
            });
        }
        // The order of a hash map's iteration becomes visible on the wire.
        let socket = a.env().net.udp("0.0.0.0:0".parse().unwrap()).unwrap();
        for i in names.values() {
            send(&*socket, at(&b), &vec![0; 20 + usize::try_from(*i).unwrap()]).unwrap();
        }
        while a.tasks() > 1 && world.elapsed() < Duration::from_secs(120) {
            tokio::time::sleep(ms(100)).await;
        }
        b.kill().await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        (world.shape(), world.packets())
    });
    support::report(shape, &packets);
    assert!(tern_netsim::random::drawn(seed) > 0, "nothing drew from the replaced getrandom");
}

#[test]
fn one_seed_has_one_shape_in_every_process_and_another_seed_another() {
    let watchdog = Duration::from_secs(300);
    let first = support::run_twice("busy_scenario_of_a_child", 1, watchdog);
    assert_ne!(first, support::run_child("busy_scenario_of_a_child", 2, None, watchdog));
}
