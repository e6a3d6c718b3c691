//! Limits of the simulated network. They resemble those of a Linux host, so that code meets the same walls.

use std::time::Duration;

/// One-way latency between hosts for which none was set: two machines in one data centre, rounded up to the
/// resolution of the timers.
pub const LATENCY_DEFAULT: Duration = Duration::from_millis(1);
/// Largest UDP payload that passes: Ethernet's 1,500 bytes less the headers of IPv4 and UDP. Longer ones are
/// dropped, as with the don't-fragment bit.
pub const DATAGRAM_BYTES: usize = 1472;
/// Headers of IPv4 and UDP, which links with a spec count to a datagram's length.
pub const UDP_HEADER_BYTES: usize = 28;
/// Datagrams that wait in a socket before further ones are dropped: about what 4 MiB of buffer hold.
pub const DATAGRAMS_WAITING: usize = 2800;
/// Longest packet of a path, and so of a stream's segment with its headers: Ethernet's.
pub const MTU_BYTES: usize = 1500;
/// Payload of a full segment: the MTU less the headers of IPv4 and TCP.
pub const SEGMENT_BYTES: usize = 1460;
/// Bytes that were written to a stream and are not yet acknowledged; a writer waits beyond that. Twice what can be on
/// its way, so that a writer that is woken late does not stop the sender.
pub const STREAM_SEND_BYTES: usize = 128 * 1024;
/// Bytes that came and were not yet read; the other side sends no more than fits. The most that goes without window
/// scaling: scaled windows are rounded, and smoltcp 0.12 panics where that moves a window's end back.
pub const STREAM_RECEIVE_BYTES: usize = 65_535;
/// After so long without an answer to data, or to the end of a stream, a connection of which smoltcp has lost the thread
/// is helped: see `connection`. Its own retransmissions come sooner.
pub const RESCUE_AFTER: Duration = Duration::from_secs(1);
/// Acknowledgements that came within so long show that a retransmission was not for want of them.
pub const PROGRESS_WITHIN: Duration = Duration::from_millis(200);
/// Connections that wait to be accepted; the next one's opening packet is lost, and tried again.
pub const BACKLOG: usize = 1024;
/// Opening a stream is given up after this long without an answer: six retries of Linux.
pub const OPEN_GIVE_UP: Duration = Duration::from_secs(127);
/// A stream whose data nobody acknowledges for this long is given up: fifteen retries of Linux.
pub const STREAM_GIVE_UP: Duration = Duration::from_secs(924);
/// A stream that its application has let go of, and whose peer does not end its side, is forgotten after this long: as in
/// Linux (`tcp_fin_timeout`).
pub const ORPHAN_GIVE_UP: Duration = Duration::from_secs(60);
/// A NAT forgets a stream after this much silence: the least that RFC 5382 allows, two hours and four minutes.
pub const NAT_TCP_IDLE: Duration = Duration::from_secs(7440);
/// The same for a stream that was not answered: RFC 5382's least for connections that are not established.
pub const NAT_TCP_UNANSWERED: Duration = Duration::from_secs(240);
/// How often it is written down that an interface's NAT had forgotten its device: more is no news.
pub const FORGOTTEN_MAX: usize = 10_000;
/// Streams that a captive portal remembers to have taken; the oldest one is forgotten first.
pub const PORTAL_STREAMS: usize = 1024;
/// Streams that a middlebox remembers; the oldest one is forgotten first, and its packets are lost.
pub const MIDDLEBOX_STREAMS: usize = 1024;
/// First of the ports handed out where 0 was asked for; the last is 65,535.
pub const PORT_FIRST: u16 = 32_768;
/// Packets of a run that are kept for looking at; the shape covers all.
pub const PACKETS_KEPT: usize = 200_000;

/// How long regions are given at the start of a run to hear of each other's edges: three exchanges of loads.
pub const MEETING: Duration = Duration::from_secs(3);
/// In how long a drained edge or region sends its clients away: a short one, as a run is short.
pub const DRAIN_WINDOW: Duration = Duration::from_secs(5);
/// How often the end of a run is looked for.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long everything has to stay calm before a run is over: rows and marks follow within the time of a lazy write and
/// a round of todo.
pub const CALM_FOR: Duration = Duration::from_secs(2);
/// How often links are looked at for the report.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Devices whose links are looked at: a report can't show more, and a herd would fill the history.
pub const LINKS_SAMPLED: usize = 32;
