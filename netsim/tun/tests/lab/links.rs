//! Delays and losses of real datagrams are the model's.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tern_netsim_link::{Chance, Direction, Fate, Loss, Spec, Way};
use tern_netsim_tun::replay;

use crate::support::{PORT, SERVER, ask, echo_until_silent, lab, now, plan, symmetric, until};

#[test]
fn an_answer_takes_the_delays_of_both_ways_and_never_less() {
    let plan = plan(symmetric(Spec::with_delay_ms(43)), symmetric(Spec::default()), 7);
    let Some(lab) = lab("an_answer_takes_the_delays_of_both_ways_and_never_less", &plan) else { return };
    let server = lab.within("server", || echo_until_silent(Duration::from_secs(1))).unwrap();
    let phone = lab.within("phone", || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        (0..20).map(|_| ask(&socket, Duration::from_secs(5)).unwrap()).collect::<Vec<_>>()
    });
    let took = phone.unwrap().join().unwrap();
    assert_eq!(server.join().unwrap().len(), 20);
    assert!(took.iter().all(|took| *took >= Duration::from_millis(100)), "{took:?}");
    let lateness = lab.lateness().unwrap();
    assert_eq!((lateness.packets, lateness.delay_ns), (40, 50_000_000));
    assert_eq!(lab.kernel_errors().unwrap(), (0, None));
    assert_eq!(lab.dropped_before_read().unwrap(), 0);
}

/// The figure of the real-time driver: printed, and checked only downwards, since another process may take the
/// machine's time at any moment.
#[test]
fn the_median_over_25_ms_is_that_of_the_model() {
    let plan = plan(symmetric(Spec::with_delay_ms(25)), symmetric(Spec::default()), 0);
    let Some(lab) = lab("the_median_over_25_ms_is_that_of_the_model", &plan) else { return };
    let server = lab.within("server", || echo_until_silent(Duration::from_secs(1))).unwrap();
    let phone = lab.within("phone", || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        (0..200).map(|_| ask(&socket, Duration::from_secs(5)).unwrap()).collect::<Vec<_>>()
    });
    let mut took = phone.unwrap().join().unwrap();
    server.join().unwrap();
    took.sort_unstable();
    let (median, model) = (took[took.len() / 2], Duration::from_millis(50));
    let more_per_mille = median.saturating_sub(model).as_micros() * 1000 / model.as_micros();
    let late = lab.lateness().unwrap();
    println!(
        "round trips over 25 ms each way: model {model:?}, least {:?}, median {median:?} ({more_per_mille} per mille \
         more), p99 {:?}; lateness of packets p50 {} us, p99 {} us, max {} us",
        took[0],
        took[197],
        late.p50_ns / 1000,
        late.p99_ns / 1000,
        late.max_ns / 1000,
    );
    assert!(took[0] >= model);
}

/// A batch waits until all of the one before it that the model delivers has come: no buffer of a kernel overflows, however
/// long the machine lets the receiver wait.
#[test]
fn each_lost_and_doubled_packet_is_the_one_that_the_model_names() {
    const PACKETS: u64 = 3000;
    const BATCH: u64 = 50;
    let spec =
        Spec { loss: Loss::bursts(Chance::percent(10), 4), duplicate: Chance::percent(3), ..Spec::with_delay_ms(5) };
    let plan = plan(symmetric(spec.clone()), symmetric(Spec::default()), 1);
    let name = "each_lost_and_doubled_packet_is_the_one_that_the_model_names";
    let Some(lab) = lab(name, &plan) else { return };
    // The model alone, without a kernel.
    let mut direction = Direction::new(11, "phone.wifi", Way::Up, spec).unwrap();
    for number in 0..PACKETS {
        direction.send(0, 36, number);
    }
    let mut expected = Vec::new();
    while let Some(output) = direction.poll(u64::MAX) {
        if matches!(output.fate, Fate::Delivered | Fate::Copied) {
            expected.push(output.payload);
        }
    }
    expected.sort_unstable();
    let come = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&come);
    let server = lab.within("server", move || {
        let socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let (mut buffer, mut seen) = ([0; 64], Vec::new());
        while socket.recv(&mut buffer).is_ok() {
            seen.push(u64::from_be_bytes(buffer[..8].try_into().unwrap()));
            counted.store(seen.len(), Ordering::Release);
        }
        seen
    });
    let named = expected.clone();
    lab.within("phone", move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for first in (0..PACKETS).step_by(BATCH.try_into().unwrap()) {
            let before = named.partition_point(|number| *number < first);
            until("all of the batch before", || come.load(Ordering::Acquire) >= before);
            for number in first..first + BATCH {
                socket.send_to(&number.to_be_bytes(), (SERVER, PORT)).unwrap();
            }
        }
    })
    .unwrap()
    .join()
    .unwrap();
    let mut seen = server.unwrap().join().unwrap();
    seen.sort_unstable();
    assert!(expected.len() < 2900 && seen == expected, "{} came, the model says {}", seen.len(), expected.len());
    let decisions = lab.with(|fabric, _| fabric.decisions().clone()).unwrap();
    assert!(replay(&decisions).unwrap() >= PACKETS);
}

#[test]
fn many_at_once_come_no_earlier_than_the_rate_allows() {
    // 100 packets of 1,028 bytes at 4 Mbit/s: 206 ms of sending.
    let spec = Spec { rate: tern_netsim_link::Rate::Constant(4_000_000), ..Spec::with_delay_ms(10) };
    let plan = plan(symmetric(spec), symmetric(Spec::default()), 1);
    let Some(lab) = lab("many_at_once_come_no_earlier_than_the_rate_allows", &plan) else { return };
    let server = lab.within("server", || {
        let socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (0..100).map(|_| socket.recv(&mut [0; 2048]).map(|_| now()).unwrap()).collect::<Vec<_>>()
    });
    let begin = lab.within("phone", || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let begin = now();
        for _ in 0..100 {
            socket.send_to(&[0; 1000], (SERVER, PORT)).unwrap();
        }
        begin
    });
    let begin = begin.unwrap().join().unwrap();
    for (count, at) in (1..).zip(server.unwrap().join().unwrap()) {
        let least = Duration::from_micros(11_000 + 2_056 * count);
        assert!(at.duration_since(begin) >= least, "packet {count} after {:?}", at.duration_since(begin));
    }
}
