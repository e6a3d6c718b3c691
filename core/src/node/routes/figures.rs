//! What routes cost: one measure for the benchmark, and for the test that holds it to its bounds.

use std::time::Duration;

use prost::Message;

use crate::ids::UserId;
use crate::wire::node_v1::{NodeFrame, node_frame::Body};

use super::keyed::Key;
use super::limits::FLUSH_EVERY;
use super::{Bind, Holder, Routes};

/// Memory for a user of another region, at most: 64 MB for a million.
pub const BYTES_PER_USER: f64 = 64.0;
/// Changes a second at which the wire is measured: those of a million users who come or go every ten minutes.
pub const CHANGES_PER_SECOND: u64 = 1_700;
/// Bytes a second to one other node at that rate, at most.
pub const WIRE_BYTES_PER_SECOND: f64 = 60_000.0;
/// How long a full copy of a million users may take on loopback.
pub const RESYNC: Duration = Duration::from_secs(5);

/// When all of it begins.
const START: Duration = Duration::from_secs(1_000);
const START_MS: u64 = 1_760_000_000_000;
/// The node whose routes they are, and the one that has a copy.
pub const HERE: Holder = Holder { region: 1, core: 0 };
/// See [`HERE`].
pub const THERE: Holder = Holder { region: 2, core: 0 };

/// A user, whose id of 20 bytes has little in common with that of the next.
pub fn user(i: u64) -> Option<UserId> {
    UserId::new(&format!("{:016x}{:04}", mix(i), i % 10_000)).ok()
}

/// Scatters numbers (the end of splitmix64; Steele, Lea, Flood 2014).
fn mix(i: u64) -> u64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What user `i` has bound at that time: one device, or two of every eighth user, which have connected some hundred times.
pub fn binds(i: u64, at: Duration) -> Vec<Bind> {
    let at_ms = START_MS + u64::try_from(at.as_millis()).unwrap_or(0);
    let device = |device: u64| {
        let install = mix(i ^ device << 40) >> 16;
        Bind { install, at_ms: at_ms - mix(device) % 86_400_000 * device, order: 100 + mix(i) % 900 }
    };
    (0..if i.is_multiple_of(8) { 2 } else { 1 }).map(device).collect()
}

/// A node with so many users, and one that knows nothing of them; there is a link between them.
pub fn pair(users: u64) -> (Routes, Routes) {
    let key = Key::of(b"figures");
    let (mut here, mut there) = (Routes::new(key, 1), Routes::new(key, 2));
    for i in 0..users {
        if let Some(user) = user(i) {
            here.set(Duration::ZERO, &user, &binds(i, START));
        }
    }
    here.up(START, THERE);
    there.up(START, HERE);
    (here, there)
}

/// Hands over what both have to say, until nothing is left. Returns the bytes that went from `here`.
pub fn exchange(now: Duration, here: &mut Routes, there: &mut Routes) -> usize {
    let mut bytes = 0;
    loop {
        let (ours, theirs) = (here.take_outputs(), there.take_outputs());
        if ours.is_empty() && theirs.is_empty() {
            return bytes;
        }
        for (_, body) in ours {
            bytes += on_the_wire(&body);
            // Neither says what can't be; a copy that differs is seen at the end.
            let _all_good = there.told(now, HERE, &body);
        }
        for (_, body) in theirs {
            let _all_good = here.told(now, THERE, &body);
        }
    }
}

/// Bytes of a frame, with the length before it.
fn on_the_wire(body: &Body) -> usize {
    let len = NodeFrame { body: Some(body.clone()) }.encoded_len();
    len + prost::length_delimiter_len(len)
}

/// Whether `there` has what `here` has.
pub fn agree(here: &Routes, there: &Routes) -> bool {
    here.fingerprint(None) == there.fingerprint(Some(HERE))
}

/// Who changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Users leave and come back.
    ComeAndGo,
    /// Users who are there connect anew.
    Move,
}

/// Lets users change at [`CHANGES_PER_SECOND`] for a minute of the machines' own time, in which all that goes over a
/// link of routes occurs. Returns bytes per second from `here`.
pub fn wire(here: &mut Routes, there: &mut Routes, users: u64, changes: Changes) -> f64 {
    const SECONDS: u64 = 60;
    let (mut bytes, mut now, mut done) = (0, START, 0);
    let step = FLUSH_EVERY / 4;
    while now < START + Duration::from_secs(SECONDS) {
        now += step;
        let elapsed = u64::try_from((now - START).as_micros()).unwrap_or(0);
        while done < elapsed * CHANGES_PER_SECOND / 1_000_000 {
            done += 1;
            let i = mix(done) % users.max(1);
            let Some(user) = user(i) else { continue };
            let leaves = changes == Changes::ComeAndGo && here.is_here(&user);
            here.set(now, &user, &if leaves { Vec::new() } else { binds(i, now) });
        }
        here.tick(now);
        there.tick(now);
        bytes += exchange(now, here, there);
    }
    bytes as f64 / SECONDS as f64
}
