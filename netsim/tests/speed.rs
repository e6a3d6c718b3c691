//! How fast virtual time runs. Not a test of right or wrong: `cargo test --release --test speed -- --ignored --nocapture`.
//! It counts the processor's time, so that a busy machine does not look like a slow simulation.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

#[allow(dead_code, reason = "shared with tests that do more with a device")]
#[path = "support/devices.rs"]
mod devices;
#[path = "../src/getrandom.rs"]
mod getrandom;

use std::net::Ipv4Addr;
use std::time::Duration;

use devices::{Device, calm, ms, three_regions, until};
use tern_netsim::access::AccessSpec;
use tern_netsim::run::run;
use tern_netsim::world::World;
use tern_netsim_link::{HandOver, NatSpec, profile};

/// Devices in Germany, Japan and America, on good LTE behind home gateways.
fn devices(world: &World, cluster: &tern_netsim::cluster::Cluster, count: usize) -> Vec<Device> {
    let link = profile("lte-good").unwrap().link;
    let one = |i: usize| {
        let (place, net) = [("germany", 91), ("japan", 126), ("america", 12)][i % 3];
        let [high, low] = u16::try_from(i + 1).unwrap().to_be_bytes();
        let nat = Some((NatSpec::default(), Ipv4Addr::new(net, 0, high, low)));
        let address = Ipv4Addr::new(192, 168, 1, 5);
        let cell = AccessSpec { name: "cell".into(), address, link: link.clone(), nat };
        let name = format!("user{i}");
        Device::of(cluster, &name, world.add_device(&format!("{name}-phone"), place, vec![cell]).unwrap())
    };
    (0..count).map(one).collect()
}

/// Seconds of processor that this process has used, as Linux counts them: in hundredths.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    fields.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

fn report(what: &str, world: &World, begin: (Duration, f64, u64)) {
    let (virtual_s, cpu_s) = ((world.elapsed() - begin.0).as_secs_f64(), cpu_s() - begin.1);
    let packets = world.shape().packets - begin.2;
    let factor = virtual_s / cpu_s;
    println!("{what}: {virtual_s:.1} s in {cpu_s:.2} s: {factor:.1} times as fast, {packets} packets");
}

fn now(world: &World) -> (Duration, f64, u64) {
    (world.elapsed(), cpu_s(), world.shape().packets)
}

async fn load(world: World, count: usize, per_second: u64, seconds: u64) {
    let cluster = three_regions(&world).await;
    let begin = now(&world);
    let mut all = devices(&world, &cluster, count);
    let live = |all: &[Device]| all.iter().all(|device| !device.seen.live.is_empty());
    until(&world, "all to be live", &mut all, live).await;
    report(&format!("{count} devices connect"), &world, begin);
    let begin = now(&world);
    for i in 0..per_second * seconds {
        let from = usize::try_from(i).unwrap() * 7 % count;
        all[from].send(&all[(from + 1 + usize::try_from(i).unwrap() % 3) % count], &format!("message {i}"));
        tokio::time::sleep(ms(1000 / per_second)).await;
        if i % per_second == 0 {
            all.iter_mut().for_each(|device| device.look(world.elapsed()));
        }
    }
    report(&format!("{count} devices, {per_second} messages a second"), &world, begin);
    let begin = now(&world);
    until(&world, "everything to be acked", &mut all, calm).await;
    report("the rest", &world, begin);
    let begin = now(&world);
    world.cut("germany", "eu");
    for device in &all {
        let name = device.host.name();
        world.hand_over(&name, None, HandOver { gap_ns: 20_000_000_000, overlap_ns: 0 }).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    world.heal("germany", "eu");
    let after = world.elapsed();
    let live = |device: &Device| matches!(device.client.connection(), tern_client::ConnectionState::Live { .. });
    tokio::time::sleep(Duration::from_secs(20)).await;
    until(&world, "all to be live again", &mut all, |all| all.iter().all(live)).await;
    report("everybody dark for 20 s, and back", &world, begin);
    println!("live {:?} after", world.elapsed() - after);
}

#[test]
#[ignore = "measures; takes a minute"]
fn fifty_devices() {
    let seconds = std::env::var("TERN_SPEED_S").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    run(1, move |world| load(world, 50, 10, seconds)).unwrap();
}

#[test]
#[ignore = "measures; takes minutes"]
fn a_thousand_devices() {
    run(1, |world| load(world, 1000, 20, 20)).unwrap();
}
