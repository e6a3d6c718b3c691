//! TCP of simulated hosts over links that lose, cut, translate and lie.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tern_net::env::{Env, Stream};
use tern_netsim::access::{AccessSpec, Block};
use tern_netsim::node::SimNode;
use tern_netsim::packets::Protocol;
use tern_netsim::run::run;
use tern_netsim::world::World;
use tern_netsim_link::{
    Chance, Delay, HandOver, Jitter, LinkSpec, Loss, Mtu, NatSpec, Outage, Rate, Reorder, Spec, Way, profile,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const PORT: u16 = 7400;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(91, 0, 0, 1);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

struct Ends {
    world: World,
    phone: SimNode,
    server: SimNode,
}

impl Ends {
    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        self.phone.env().net.connect(SocketAddr::new(SERVER.into(), PORT)).await
    }
}

fn sim<Fut, T>(seed: u64, link: LinkSpec, scenario: impl FnOnce(Ends) -> Fut + Send + 'static) -> T
where
    Fut: Future<Output = T>,
    T: Send + 'static,
{
    let all = |world: World| async move {
        let inside = Ipv4Addr::new(192, 168, 1, 5);
        let wifi = AccessSpec { name: "wifi".into(), address: inside, link, nat: Some((NatSpec::default(), OUTSIDE)) };
        let phone = world.add_device("phone", "germany", vec![wifi]).unwrap();
        let server = world.add_host("eu-1", "eu", SERVER).unwrap();
        world.set_latency("germany", "eu", ms(10));
        serve_echo(&server.env()).await;
        timeout(ms(3_600_000), scenario(Ends { world, phone, server })).await.expect("an hour")
    };
    run(seed, all).unwrap()
}

/// Sends back whatever comes, with the address it came from before.
async fn serve_echo(env: &Env) {
    let mut acceptor = env.net.listen(SocketAddr::new(SERVER.into(), PORT)).await.unwrap();
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

fn lossy(percent: u32) -> Spec {
    Spec { loss: Loss::Random(Chance::percent(percent)), ..Spec::with_delay_ms(40) }
}

/// Writes and reads at once; returns what came back.
async fn both_ways(stream: Box<dyn Stream>, bytes: usize) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let sent: Vec<u8> = (0..bytes).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let writing = async {
        for piece in sent.chunks(700) {
            write.write_all(piece).await.unwrap();
            tokio::time::sleep(ms(3)).await;
        }
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (read, ()) = tokio::join!(read.read_to_end(&mut got), writing);
    read.unwrap();
    assert!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
    got
}

#[test]
fn data_both_ways_over_a_link_that_loses_five_percent_never_hangs() {
    let mut times = Vec::new();
    for seed in 0..40 {
        times.push(sim(seed, LinkSpec::symmetric(lossy(5)), |ends| async move {
            let stream = ends.connect().await.unwrap();
            timeout(ms(300_000), both_ways(stream, 100_000)).await.expect("it hangs");
            tokio::time::sleep(ms(60_000)).await;
            assert_eq!(ends.world.open(), (0, 1, 0, 0), "nothing is left");
            ends.world.elapsed()
        }));
    }
    times.sort();
    println!("100 kB both ways at 5 %: median {:?}, most {:?}", times[20] - ms(60_000), times[39] - ms(60_000));
}

#[test]
fn nothing_hangs_where_packets_are_lost_doubled_held_back_and_slow() {
    for seed in 0..20 {
        let spec = Spec {
            rate: Rate::Constant(400_000),
            duplicate: Chance::percent(3),
            reorder: Reorder { share: Chance::percent(5), by_ns: 80_000_000 },
            delay: Delay { base_ns: 40_000_000, jitter: Jitter::Uniform { within_ns: 30_000_000 }, ..Delay::default() },
            ..lossy(20)
        };
        sim(seed, LinkSpec::symmetric(spec), |ends| async move {
            let stream = ends.connect().await.unwrap();
            timeout(ms(1_800_000), both_ways(stream, 30_000)).await.expect("it hangs");
        });
    }
}

#[test]
fn a_stream_goes_through_a_nat_and_outlives_its_silence() {
    sim(1, LinkSpec::symmetric(Spec::with_delay_ms(20)), |ends| async move {
        let mut acceptor = ends.server.env().net.listen(SocketAddr::new(SERVER.into(), 7401)).await.unwrap();
        let net = ends.phone.env().net;
        let (ours, theirs) = tokio::join!(net.connect(SocketAddr::new(SERVER.into(), 7401)), acceptor.accept());
        let (mut ours, (mut theirs, from)) = (ours.unwrap(), theirs.unwrap());
        assert_eq!(from.ip(), OUTSIDE);
        tokio::time::sleep(ms(1_800_000)).await;
        theirs.write_all(b"still there").await.unwrap();
        let mut got = [0; 11];
        ours.read_exact(&mut got).await.unwrap();
        ends.world.rebind_nat("phone", None).unwrap();
        // The NAT knows nothing of it now, and the server nothing of the NAT's new port: it resets.
        ours.write_all(b"x").await.unwrap();
        assert_eq!(ours.read(&mut got).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn an_outage_stalls_a_stream_and_a_hand_over_strands_it() {
    let cell = AccessSpec {
        name: "cell".into(),
        address: Ipv4Addr::new(92, 0, 0, 1),
        link: LinkSpec::symmetric(Spec::with_delay_ms(50)),
        nat: None,
    };
    run(1, |world| async move {
        let link = LinkSpec::symmetric(Spec::with_delay_ms(20));
        let wifi = AccessSpec { name: "wifi".into(), address: Ipv4Addr::new(93, 0, 0, 1), link, nat: None };
        let phone = world.add_device("phone", "germany", vec![wifi, cell]).unwrap();
        let server = world.add_host("eu-1", "eu", SERVER).unwrap();
        serve_echo(&server.env()).await;
        let to = SocketAddr::new(SERVER.into(), PORT);
        let mut stream = phone.env().net.connect(to).await.unwrap();
        for outage in [Outage::Loses, Outage::Stalls] {
            world.set_access_outage("phone", "wifi", Way::Up, Some(outage)).unwrap();
            stream.write_all(b"hello").await.unwrap();
            let mut got = [0; 5];
            assert!(timeout(ms(20_000), stream.read_exact(&mut got)).await.is_err());
            world.set_access_outage("phone", "wifi", Way::Up, None).unwrap();
            timeout(ms(11_000), stream.read_exact(&mut got)).await.expect("a retransmission").unwrap();
            let counts = world.access_counts("phone", "wifi", Way::Up).unwrap().counts;
            assert!(counts.outage_lost > 1 || counts.outage_waited > 1, "{counts:?}");
        }
        world.hand_over("phone", Some("cell"), HandOver::default()).unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let mut other = phone.env().net.connect(to).await.unwrap();
        other.write_all(b"y").await.unwrap();
        assert_eq!(other.read_u8().await.unwrap(), b'y');
        world.switch_off("phone").unwrap();
        let refused = phone.env().net.connect(to).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::NetworkUnreachable);
    })
    .unwrap();
}

#[test]
fn a_captive_portal_takes_streams_and_never_answers_and_a_block_loses_them() {
    sim(1, LinkSpec::symmetric(Spec::with_delay_ms(20)), |ends| async move {
        let world = &ends.world;
        let mut before = ends.connect().await.unwrap();
        before.write_all(b"o").await.unwrap();
        assert_eq!(before.read_u8().await.unwrap(), b'o');
        tokio::time::sleep(ms(1000)).await;
        world.set_block("phone", None, Some(Block::Captive)).unwrap();
        let begin = world.elapsed();
        let mut stream = ends.connect().await.unwrap();
        assert_eq!(world.elapsed() - begin, ms(40), "the portal is at the end of the access link");
        stream.write_all(&[7; 10_000]).await.unwrap();
        assert!(timeout(ms(60_000), stream.read_u8()).await.is_err());
        let count = world.packets().len();
        assert!(timeout(ms(60_000), stream.read_u8()).await.is_err());
        assert_eq!(world.packets().len(), count, "all is acknowledged");
        before.write_all(b"old").await.unwrap();
        assert!(timeout(ms(10_000), before.read_u8()).await.is_err(), "an older one is stuck");

        world.set_block("phone", None, Some(Block::Tcp)).unwrap();
        assert!(timeout(ms(10_000), ends.connect()).await.is_err());
        assert!(world.host_counts("phone").unwrap().blocked > 10);
        world.set_block("phone", None, None).unwrap();
        assert_eq!(before.read_u8().await.unwrap(), b'o');
        stream.write_all(b"who are you?").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_notice_makes_segments_shorter_and_without_one_long_ones_are_lost_for_ever() {
    for notice in [true, false] {
        let up = Spec { mtu: Some(Mtu { bytes: 1000, notice }), ..Spec::with_delay_ms(20) };
        sim(1, LinkSpec { up, down: Spec::with_delay_ms(20) }, move |ends| async move {
            let mut stream = ends.connect().await.unwrap();
            stream.write_all(&[7; 900]).await.unwrap();
            stream.read_exact(&mut [0; 900]).await.unwrap();
            stream.write_all(&[7; 20_000]).await.unwrap();
            let mut got = vec![0; 20_000];
            let echoed = timeout(ms(60_000), stream.read_exact(&mut got)).await;
            assert_eq!(echoed.is_ok(), notice);
        });
    }
}

#[test]
fn a_paused_process_has_a_kernel_that_acknowledges_until_its_buffer_is_full() {
    sim(1, LinkSpec::symmetric(Spec::with_delay_ms(20)), |ends| async move {
        let mut stream = ends.connect().await.unwrap();
        ends.server.set_paused(true);
        stream.write_all(&[7; 1000]).await.unwrap();
        tokio::time::sleep(ms(1000)).await;
        let quiet = ends.world.packets().len();
        tokio::time::sleep(ms(60_000)).await;
        assert_eq!(ends.world.packets().len(), quiet, "all is acknowledged");
        assert!(timeout(ms(60_000), stream.write_all(&[7; 300_000])).await.is_err());
        let waited = ends.world.host_counts("eu-1").unwrap().waited;
        assert!((40..200).contains(&waited), "{waited}");
        // Another stream is granted by the kernel, too.
        let mut other = ends.connect().await.unwrap();
        other.write_all(b"x").await.unwrap();
        ends.server.set_paused(false);
        assert_eq!(other.read_u8().await.unwrap(), b'x');
        let mut got = vec![0; 60_000];
        stream.read_exact(&mut got).await.unwrap();
    });
}

#[test]
fn a_slow_link_is_filled_but_not_with_the_same_again_and_again() {
    let twog = profile("2g-rural").unwrap().link;
    sim(1, twog, |ends| async move {
        let mut stream = ends.connect().await.unwrap();
        let begin = ends.world.elapsed();
        stream.write_all(&[7; 20_000]).await.unwrap();
        let mut got = vec![0; 20_000];
        stream.read_exact(&mut got).await.unwrap();
        let took = ends.world.elapsed() - begin;
        let counts = ends.world.access_counts("phone", "wifi", Way::Up).unwrap().counts;
        println!("20 kB over 2g-rural and back: {took:?}, {} bytes up", counts.sent_bytes);
        assert!(took < ms(90_000), "{took:?}");
        assert!(counts.sent_bytes < 100_000, "{}", counts.sent_bytes);
    });
}

#[test]
fn a_megabyte_over_a_good_link_takes_seconds() {
    for (name, most) in [("lte-good", ms(10_000)), ("wifi-bad", ms(30_000))] {
        let link = profile(name).unwrap().link;
        sim(1, link, move |ends| async move {
            let stream = ends.connect().await.unwrap();
            let begin = ends.world.elapsed();
            let (mut read, mut write) = tokio::io::split(stream);
            let writing = async {
                write.write_all(&[7; 1_000_000]).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (read, ()) = tokio::join!(read.read_to_end(&mut got), writing);
            assert_eq!(read.unwrap(), 1_000_000);
            let took = ends.world.elapsed() - begin;
            let counts = ends.world.access_counts("phone", "wifi", Way::Up).unwrap().counts;
            println!("1 MB over {name} and back: {took:?}, {} bytes up", counts.sent_bytes);
            assert!(took < most, "{took:?}");
        });
    }
}

#[test]
fn a_closed_window_opens_again_though_its_news_are_lost() {
    for seed in 0..20 {
        sim(seed, LinkSpec::symmetric(lossy(20)), |ends| async move {
            let mut acceptor = ends.server.env().net.listen(SocketAddr::new(SERVER.into(), 7401)).await.unwrap();
            let net = ends.phone.env().net;
            let mut stream = net.connect(SocketAddr::new(SERVER.into(), 7401)).await.unwrap();
            let (mut slow, _) = acceptor.accept().await.unwrap();
            let writing = async {
                stream.write_all(&[7; 400_000]).await.unwrap();
                stream.shutdown().await.unwrap();
            };
            let reading = async {
                let mut all = 0;
                loop {
                    tokio::time::sleep(ms(10_000)).await;
                    let mut some = vec![0; 60_000];
                    let mut got = 0;
                    while got < some.len() {
                        match slow.read(&mut some[got..]).await.unwrap() {
                            0 => return all + got,
                            n => got += n,
                        }
                    }
                    all += got;
                }
            };
            let (got, ()) = tokio::join!(reading, writing);
            assert_eq!(got, 400_000);
        });
    }
}

#[test]
fn what_opens_acknowledges_and_resets_is_told_from_data() {
    sim(1, LinkSpec::symmetric(Spec::with_delay_ms(20)), |ends| async move {
        let mut stream = ends.connect().await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
        drop(stream);
        tokio::time::sleep(ms(1000)).await;
        let protocols = |protocol| ends.world.packets().iter().filter(|packet| packet.protocol == protocol).count();
        assert_eq!(protocols(Protocol::Tcp), 4, "data and end, both ways");
        assert!((5..=7).contains(&protocols(Protocol::TcpControl)), "{}", protocols(Protocol::TcpControl));
    });
}
