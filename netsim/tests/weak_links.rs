//! Links with a spec under sockets: datagrams and segments wait, are lost, come twice.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::future::poll_fn;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::AsyncUdpSocket;
use quinn::udp::{RecvMeta, Transmit};
use tern_netsim::node::SimNode;
use tern_netsim::pipes::LinkError;
use tern_netsim::run::run;
use tern_netsim::world::World;
use tern_netsim_link::{
    Cause, Chance, Corrupt, Counts, LinkSpec, Loss, Mtu, Outage, Queue, Rate, Spec, SpecError, profile,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const PORT: u16 = 7400;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn at(node: &SimNode) -> SocketAddr {
    SocketAddr::new(node.ip(), PORT)
}

struct Ends {
    world: World,
    a: SimNode,
    b: SimNode,
    from: Arc<dyn AsyncUdpSocket>,
    to: Arc<dyn AsyncUdpSocket>,
}

impl Ends {
    /// A device and a host of a region, and the link between device and region.
    fn new(world: World, link: LinkSpec) -> Self {
        let a = world.add_host("phone", "phones", Ipv4Addr::new(10, 1, 0, 1)).unwrap();
        let b = world.add_host("eu-1", "eu", Ipv4Addr::new(10, 2, 0, 1)).unwrap();
        world.set_latency("phones", "eu", ms(500));
        world.set_link("phone", "eu", link).unwrap();
        let (from, to) = (a.env().net.udp(at(&a)).unwrap(), b.env().net.udp(at(&b)).unwrap());
        Self { world, a, b, from, to }
    }

    fn send(&self, contents: &[u8]) {
        let destination = at(&self.b);
        let transmit = Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None };
        self.from.try_send(&transmit).unwrap();
    }

    /// Everything that arrives within so long: (ms, bytes).
    async fn received(&self, within: Duration) -> Vec<(u128, Vec<u8>)> {
        let mut all = Vec::new();
        let until = tokio::time::Instant::now() + within;
        let (mut buf, mut meta) = (vec![0; 2000], [RecvMeta::default()]);
        loop {
            let next = poll_fn(|cx| self.to.poll_recv(cx, &mut [IoSliceMut::new(&mut buf)], &mut meta));
            let Ok(got) = tokio::time::timeout_at(until, next).await else { return all };
            assert_eq!(got.unwrap(), 1);
            all.push((self.world.elapsed().as_millis(), buf[..meta[0].len].to_vec()));
        }
    }

    fn up(&self) -> Counts {
        self.world.link_counts("phone", "eu").unwrap()
    }
}

fn sim<Fut, T>(link: LinkSpec, scenario: impl FnOnce(Ends) -> Fut + Send + 'static) -> T
where
    Fut: Future<Output = T>,
    T: Send + 'static,
{
    let all = |world| async move { timeout(ms(3_600_000), scenario(Ends::new(world, link))).await.expect("an hour") };
    run(1, all).unwrap()
}

/// 1,500 bytes on the wire take 10 ms, and are 20 ms on their way.
fn slow() -> Spec {
    Spec { rate: Rate::Constant(1_200_000), ..Spec::with_delay_ms(20) }
}

fn moments(received: &[(u128, Vec<u8>)]) -> Vec<u128> {
    received.iter().map(|(ms, _)| *ms).collect()
}

#[test]
fn datagrams_leave_at_the_rate_of_the_link_headers_included() {
    sim(LinkSpec::symmetric(slow()), |ends| async move {
        (0..3).for_each(|_| ends.send(&[7; 1472]));
        assert_eq!(moments(&ends.received(ms(1000)).await), [30, 40, 50]);
        let counts = ends.up();
        assert_eq!((counts.sent, counts.sent_bytes, counts.delivered), (3, 4500, 3));
        assert_eq!(ends.world.link_counts("eu", "phone").unwrap(), Counts::default());
        assert_eq!(ends.world.open().3, 0, "nothing is left on its way");
    });
}

#[test]
fn what_the_queue_and_the_mtu_drop_is_counted_by_cause() {
    let mtu = Some(Mtu { bytes: 1400, notice: false });
    let spec = Spec { queue: Queue { packets: 1, ..Queue::default() }, mtu, ..slow() };
    sim(LinkSpec::symmetric(spec), |ends| async move {
        (0..4).for_each(|_| ends.send(&[7; 1000]));
        ends.send(&[7; 1373]);
        assert_eq!(ends.received(ms(1000)).await.len(), 2);
        let dropped: Vec<_> = ends.up().dropped.into_iter().collect();
        assert_eq!(dropped, [(Cause::BlackHole, 1), (Cause::QueueFull, 2)]);
    });
}

#[test]
fn copies_and_flipped_bits_reach_the_socket() {
    let corrupt = Corrupt { share: Chance::ALWAYS, deliver: true };
    let spec = Spec { duplicate: Chance::ALWAYS, corrupt, ..Spec::with_delay_ms(20) };
    sim(LinkSpec::symmetric(spec), |ends| async move {
        ends.send(&[0; 100]);
        let received = ends.received(ms(1000)).await;
        let ones: Vec<u32> =
            received.iter().map(|(_, bytes)| bytes.iter().map(|byte| byte.count_ones()).sum()).collect();
        assert!(ones.len() == 2 && (1..=3).contains(&ones[0]) && ones[1] == 0, "{ones:?}");
    });
}

#[test]
fn an_outage_stalls_or_loses_one_direction_of_datagrams_and_streams() {
    sim(LinkSpec::symmetric(Spec::with_delay_ms(20)), |ends| async move {
        let (world, outage) = (ends.world.clone(), |outage| ends.world.set_outage("phone", "eu", outage).unwrap());
        outage(Some(Outage::Stalls));
        ends.send(b"1");
        ends.send(b"2");
        assert_eq!(ends.received(ms(5000)).await, []);
        outage(None);
        assert_eq!(moments(&ends.received(ms(1000)).await), [5020, 5020]);
        outage(Some(Outage::Loses));
        ends.send(b"3");
        outage(None);
        assert_eq!((ends.received(ms(1000)).await, ends.up().dropped.get(&Cause::Outage)), (vec![], Some(&1)));

        let mut acceptor = ends.b.env().net.listen(at(&ends.b)).await.unwrap();
        let begin = world.elapsed();
        let mut stream = ends.a.env().net.connect(at(&ends.b)).await.unwrap();
        assert_eq!(world.elapsed() - begin, ms(40), "the link's delay, not the latency");
        let (mut other, _) = acceptor.accept().await.unwrap();
        outage(Some(Outage::Loses));
        stream.write_all(b"x").await.unwrap();
        other.write_all(b"y").await.unwrap();
        let begin = world.elapsed();
        assert_eq!(stream.read_u8().await.unwrap(), b'y');
        assert_eq!(world.elapsed() - begin, ms(20), "the other direction lives");
        tokio::time::sleep(ms(980)).await;
        outage(None);
        assert_eq!(other.read_u8().await.unwrap(), b'x');
        let healed = world.elapsed() - begin - ms(20 + 980);
        assert!((ms(20)..ms(1500)).contains(&healed), "with the next retransmission: {healed:?}");
    });
}

#[test]
fn a_link_can_be_changed_and_what_can_not_be_run_is_refused() {
    sim(LinkSpec::symmetric(slow()), |ends| async move {
        let world = &ends.world;
        let zero = Spec { rate: Rate::Constant(0), ..slow() };
        let refused = world.set_link("phone", "eu", LinkSpec { up: slow(), down: zero }).unwrap_err();
        assert!(matches!(&refused, LinkError::Spec { source: SpecError::Rate(0), .. }), "{refused}");
        assert!(refused.to_string().starts_with("the link phone - eu can't be run: a rate of 0 bit/s"), "{refused}");
        let unknown = world.set_outage("phone", "us", None).unwrap_err();
        assert_eq!(unknown.to_string(), "no link was set between phone and us; set one first");
        assert!(world.link_counts("phones", "eu").is_err(), "groups have their own");

        // Named the other way round it is the same link.
        let faster = Spec { rate: Rate::Constant(12_000_000), ..Spec::with_delay_ms(5) };
        (0..2).for_each(|_| ends.send(&[7; 1472]));
        world.set_link("eu", "phone", LinkSpec { up: slow(), down: faster }).unwrap();
        assert_eq!(moments(&ends.received(ms(1000)).await), [15, 16], "the first was leaving already");
    });
}

#[test]
fn the_same_seed_loses_the_same_datagrams() {
    let lost = || {
        let mut link = profile("wifi-bad").unwrap().link;
        link.up.loss = Loss::Random(Chance::percent(10));
        sim(link, |ends| async move {
            // Fewer than a socket holds.
            for n in 0..2500u16 {
                ends.send(&n.to_le_bytes());
                tokio::time::sleep(ms(2)).await;
            }
            let received = ends.received(ms(1000)).await;
            let counts = ends.up();
            assert!(counts.dropped.get(&Cause::Loss).is_some_and(|lost| (200..300).contains(lost)), "{counts:?}");
            assert_eq!(received.len() as u64 + counts.dropped_in_all(), 2500);
            received
        })
    };
    assert_eq!(lost(), lost());
}
