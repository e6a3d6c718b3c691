//! Limits of the network of the real-time driver.

/// Longest packet of a host's device: Ethernet's. Links with a smaller MTU drop what is longer.
pub const DEVICE_MTU: u32 = 1500;
/// Bytes read from a device at once: a packet is never longer than [`DEVICE_MTU`], and a page costs nothing.
pub const READ_BYTES: usize = 4096;
/// Packets that a device holds until the router reads them. The kernel's 500 are a burst of 0.7 MB, which one TCP
/// sender makes while the router waits for its turn; what is dropped there would be a loss that no link decided.
pub const DEVICE_QUEUE_PACKETS: u32 = 10_000;
/// Packets that are read from one device before the others get their turn and what is due is written.
pub const READ_BATCH: usize = 64;
/// Devices that are told to be readable by one call; further ones by the next.
pub const READY_BATCH: usize = 64;
/// So long before something is due the router stops sleeping and watches the clock: timers of a busy machine are
/// about 90 us late in the median.
pub const WATCH_NS: u64 = 150_000;
/// Priority of the router's thread, as of `nice`, where it may not run before all others.
pub const ROUTER_NICE: i32 = -15;
/// Hosts of one lab. Each costs a namespace and three file descriptors; a thousand make the kernel's clean-up take
/// seconds.
pub const HOSTS_MAX: usize = 512;
/// Decisions that are kept for a replay, some 100 bytes each. A run with more can't be replayed, and says so.
pub const DECISIONS_KEPT: usize = 2_000_000;
/// How long a TCP mapping of a NAT lives without packets once it was answered: what RFC 5382 asks for, 2 h 4 min.
pub const NAT_TCP_NS: u64 = 7_440_000_000_000;
/// How long it lives before: what RFC 5382 asks for, 4 min.
pub const NAT_TCP_UNANSWERED_NS: u64 = 240_000_000_000;
/// How long a mapping of an echo identifier lives: what RFC 5508 asks for.
pub const NAT_ECHO_NS: u64 = 60_000_000_000;
/// Addresses that are tried when an interface gets a new one: those that differ in the last byte.
pub const NEW_ADDRESSES: u8 = 250;
/// One-way latency between hosts of one place: two machines in one data centre. As in virtual time.
pub const LATENCY_SAME_PLACE_NS: u64 = 1_000_000;
/// From whom errors of routers come: the address that is reserved for routers without one (RFC 7600).
pub const ROUTER_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 0, 8);
