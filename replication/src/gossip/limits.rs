//! Limits of the gossip between nodes.

use std::time::Duration;

/// Largest datagram that is sent or taken: passes the tunnels that clouds put between machines, with room for
/// the headers of IPv6 and UDP.
pub const DATAGRAM_BYTES: usize = 1400;
/// Keys of a deployment: a rotation needs two, one that begins before another has ended three. Each costs its key
/// schedule and a comparison a datagram.
pub const KEYS_MAX: usize = 4;
/// Longest name of a node, in bytes: as of edges.
pub const NAME_BYTES: usize = 64;
/// Largest load record. A usual one has some 50 bytes, one with eight addresses and long names four times that;
/// far from [`DATAGRAM_BYTES`], since a record that does not fit beside a header would never leave.
pub const RECORD_BYTES: usize = 512;
/// Addresses in a load record: as many as dispatch takes.
pub const RECORD_ADDRESSES: usize = 8;
/// Nodes that are remembered in one cluster; further ones are not let in, and their loads not kept. A region with
/// more needs another way of finding each other.
pub const MEMBERS_MAX: usize = 4096;
/// Up to so many members, loads go to all nodes, edges included, which then know where to send their clients when
/// they drain. Above, they go to those alone that answer dispatch, and cost edges nothing.
pub const LOADS_TO_ALL: usize = 64;
/// Each node says so many of the orders that it holds with each of its loads, in turn: a node that joins knows a handful
/// of orders within a second or two.
pub const ORDERS_AT_ONCE: usize = 4;
/// After an order is news, edges hear of orders for so many ticks, however many members there are: those that are to take
/// clients back must hear it.
pub const ORDERS_TO_ALL_TICKS: u32 = 60;
/// Senders whose datagrams are told from replayed ones. More than [`MEMBERS_MAX`], so that those of dead nodes stay
/// known until these are forgotten.
pub const SENDERS_MAX: usize = 2 * MEMBERS_MAX;
/// Each node says its load so often: dispatch takes an edge off its list after three times that.
pub const LOAD_EVERY: Duration = Duration::from_secs(1);
/// Housekeeping, and what asks for it by the clock.
pub const TICK: Duration = Duration::from_secs(1);
/// Timers that are later than this mean that the process stood still. Then all are moved by as much: else a node
/// that wakes up would declare others dead for answers that wait in its own socket.
pub const LATE_MAX: Duration = Duration::from_secs(2);
/// A node that knows no other asks its seeds so often, give or take half of it: a region's nodes find each other
/// within a second or two of its first seed's return.
pub const SEEK_ALONE: Duration = Duration::from_secs(1);
/// After [`SEEK_TIRED`] attempts, this often: the seeds may be gone for good.
pub const SEEK_ALONE_LONG: Duration = Duration::from_secs(5);
/// See [`SEEK_ALONE_LONG`]: after a minute.
pub const SEEK_TIRED: u32 = 60;
/// A node that knows others asks a seed that is none of them so often, give or take half of it. This is what joins
/// two halves of a region that started apart, and what finds a seed that was restarted and has no seeds itself.
pub const SEEK_MISSING: Duration = Duration::from_secs(5);
/// Nodes that are asked in one attempt.
pub const SEEK_AT_ONCE: usize = 5;
/// A node whose place another one of its name has taken asks so often whether that is gone; doubles up to
/// [`REPLACED_RETRY_MAX`].
pub const REPLACED_RETRY: Duration = Duration::from_secs(2);
/// See [`REPLACED_RETRY`].
pub const REPLACED_RETRY_MAX: Duration = Duration::from_secs(30);
/// The same node is answered so often, at most, that it was replaced or must show a cookie.
pub const ANSWER_EVERY: Duration = Duration::from_millis(200);
/// Nodes for which [`ANSWER_EVERY`] is kept.
pub const ANSWERED_MAX: usize = 1024;
/// One living node is asked so often whom it knows; an answer names some forty, drawn at random. In a region where a
/// hundred nodes start together, after forty seconds hardly anyone misses anyone.
pub const ASK_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// Dead nodes are asked so often whether they are alive after all: it heals a partition.
pub const ASK_DEAD_EVERY: Duration = Duration::from_secs(10);
/// Dead nodes asked at once.
pub const ASK_DEAD_AT_ONCE: usize = 3;
/// A dead node is remembered for so long, and asked whether it is back. After a longer partition, seeds are what
/// joins the halves.
pub const FORGET_DEAD: Duration = Duration::from_secs(6 * 3600);
/// Every piece of news is passed on so many times by each node, at least. With a fifth of all datagrams lost, four
/// times (what is usual for twenty nodes) leave one node in twenty without the news that it is suspected.
pub const TRANSMISSIONS_MIN: u8 = 10;
/// Clusters are taken to have at least so many nodes.
pub const CLUSTER_MIN: usize = 16;
/// Datagrams of a batch that are read in one go.
pub const RECEIVE_AT_ONCE: usize = 8;
/// After a socket's error, reading waits so long: errors that stay must not spin.
pub const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// Names of seeds are looked up again so often while a node is alone or a name could not be found.
pub const RESOLVE_EVERY: Duration = Duration::from_secs(30);
/// A node that leaves says so this many times, each to a few random others: one datagram may be lost.
pub const FAREWELLS: usize = 3;
/// So many nodes, about, tell a suspected one each second that it is suspected.
pub const SUSPECT_TELLERS: u64 = 8;
