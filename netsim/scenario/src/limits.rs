//! Limits of scenarios. Each refuses what is surely a slip of the pen, or would fill a machine.

/// Points of a matrix: more are more runs than anybody waits for.
pub const POINTS_MAX: usize = 1000;
/// Files that extend each other in one scenario; deeper chains are not understood by readers either.
pub const FILES_MAX: usize = 32;
/// Bytes of one file: a plan written out, with a recorded trace in it, has some millions.
pub const FILE_BYTES_MAX: u64 = 64 << 20;
/// Devices of one scenario: virtual time has been measured with 1,000.
pub const DEVICES_MAX: usize = 10_000;
/// Faults of one scenario, repetitions written out.
pub const FAULTS_MAX: usize = 20_000;
/// Regions have numbers from 1 to 255, of which one is theirs in every id.
pub const REGION_NUMBER_MAX: u64 = 255;
/// Longest run, in nanoseconds: a week of virtual time takes hours.
pub const DURATION_NS_MAX: u64 = 7 * 24 * 3600 * 1_000_000_000;
/// Longest id of a device: the name of a message, `<device>/<count>`, must fit into the smallest body.
pub const ID_BYTES_MAX: usize = 48;
/// Shortest body: room for the name of its message.
pub const BODY_BYTES_MIN: u32 = 64;
/// Longest body: what tern takes.
pub const BODY_BYTES_MAX: u32 = 64 * 1024;
/// Shortest time between two messages of a load: virtual time has no use for a flood of more.
pub const EVERY_NS_MIN: u64 = 1_000_000;
/// A name that differs from a known one by more letters than this, plus a third of its length, is no slip of it.
pub const SLIP_LETTERS: usize = 2;
