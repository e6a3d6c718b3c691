//! What the routes of another region cost, in memory that is really asked for, and on the wire: the bounds that hold for
//! a million users, for fewer of them. A binary of its own, for its allocator counts.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tern_core::node::routes::figures::{
    BYTES_PER_USER, Changes, HERE, THERE, WIRE_BYTES_PER_SECOND, agree, exchange, pair, user, wire,
};

/// The system's allocator, which counts.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn more(bytes: usize) {
    let used = USED.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(used, Ordering::Relaxed);
}

#[allow(unsafe_code, reason = "no other way to see what is asked for; each call is handed on as it is")]
// SAFETY: all that the trait asks for is kept by `System`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        more(size);
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Users: one shard then has a tenth of those that it has of a million.
const USERS: u64 = 100_000;

/// One test, so that nothing else asks for memory meanwhile.
#[test]
fn routes_of_another_region_keep_to_their_bounds_in_memory_and_on_the_wire() {
    let now = Duration::from_secs(1_000);
    let before = USED.load(Ordering::Relaxed);
    let (mut here, mut there) = pair(USERS);
    let own = USED.load(Ordering::Relaxed) - before;
    MOST.store(USED.load(Ordering::Relaxed), Ordering::Relaxed);
    let begun = USED.load(Ordering::Relaxed);
    exchange(now, &mut here, &mut there);
    let copy = USED.load(Ordering::Relaxed) - begun;
    let most = MOST.load(Ordering::Relaxed) - begun;
    assert!(agree(&here, &there));
    let per_user = |bytes: usize| bytes as f64 / USERS as f64;
    println!(
        "own {:.1}, copy {:.1}, while it comes {:.1} bytes per user",
        per_user(own),
        per_user(copy),
        per_user(most)
    );
    assert!(per_user(copy) <= BYTES_PER_USER, "{} bytes per user", per_user(copy));
    assert!(per_user(own) <= BYTES_PER_USER, "{} bytes per user", per_user(own));
    // What is on the way of a full copy is bounded, and does not grow with the number of users.
    assert!(most - copy < 24 * 1024 * 1024, "{} bytes besides while it comes", most - copy);
    let told = there.parts(now).next().unwrap().bytes;
    assert!(copy.abs_diff(told) < copy / 20, "operators are told of {told} bytes, and {copy} were asked for");

    for changes in [Changes::ComeAndGo, Changes::Move] {
        let rate = wire(&mut here, &mut there, USERS, changes);
        println!("{changes:?}: {rate:.0} bytes a second");
        assert!(rate <= WIRE_BYTES_PER_SECOND, "{changes:?}: {rate} bytes a second");
        assert!(rate > WIRE_BYTES_PER_SECOND / 4.0, "{rate}: did anything change?");
        let later = now + Duration::from_secs(120);
        here.tick(later);
        there.tick(later);
        exchange(later, &mut here, &mut there);
        assert!(agree(&here, &there), "{changes:?}");
        let copy = there.parts(later).next().unwrap().bytes;
        assert!(per_user(copy) <= BYTES_PER_USER, "{} bytes per user after many changes", per_user(copy));
    }

    // What has gone takes no memory.
    for i in 0..USERS {
        here.set(Duration::from_secs(2_000), &user(i).unwrap(), &[]);
    }
    for second in 2_000..2_020 {
        let now = Duration::from_secs(second);
        here.tick(now);
        there.tick(now);
        exchange(now, &mut here, &mut there);
    }
    assert!(agree(&here, &there) && there.parts(now).next().unwrap().users == 0);
    here.forget(THERE);
    there.forget(HERE);
    let left = USED.load(Ordering::Relaxed).saturating_sub(before);
    assert!(left < 2 * 1024 * 1024, "{left} bytes are left");
}
