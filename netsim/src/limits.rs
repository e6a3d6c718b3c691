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
/// Bytes of one direction of a stream that are written but not yet read; a writer waits beyond that.
pub const STREAM_BYTES: usize = 256 * 1024;
/// A reader's progress is told to the writer in steps of this many bytes: a quarter of the window keeps the
/// writer going, and does not double the number of packets.
pub const STREAM_PROGRESS_BYTES: usize = STREAM_BYTES / 4;
/// Bytes of one packet of a stream. Larger than a real segment, so that runs stay small; streams have no
/// loss of single segments to model.
pub const CHUNK_BYTES: usize = 16 * 1024;
/// Connections that wait to be accepted; the next one's opening packet is lost, and tried again.
pub const BACKLOG: usize = 1024;
/// First wait before a lost packet of a stream is sent again; doubles up to [`RETRANSMIT_MAX`].
pub const RETRANSMIT_MIN: Duration = Duration::from_millis(200);
/// Longest wait before a lost packet of a stream is sent again.
pub const RETRANSMIT_MAX: Duration = Duration::from_secs(10);
/// Opening a stream is given up after this long without an answer: six retries of Linux.
pub const OPEN_GIVE_UP: Duration = Duration::from_secs(127);
/// A stream whose packets are lost for this long is given up: fifteen retries of Linux.
pub const STREAM_GIVE_UP: Duration = Duration::from_secs(924);
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
