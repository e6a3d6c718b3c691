//! Limits of a page, each with its reason. What is left out because of one is said in the page.

/// A page that takes longer to load than to read is not looked at; and it must pass as an attachment.
pub const PAGE_BYTES_MAX: usize = 2_000_000;

/// Lanes of devices: more do not fit on any screen. Those that findings and faults name come first.
pub const LANES_MAX: usize = 40;

/// Lines from a message's invocation to a place where it was seen, in one picture: about so many can still be told
/// apart, and they take 100 kB.
pub const LIFE_LINES_MAX: usize = 4000;

/// Bars of faults above the lanes.
pub const FAULT_BARS_MAX: usize = 24;

/// Links with a picture of their own; of the others there are figures.
pub const LINKS_MAX: usize = 24;

/// Links with figures, in a table.
pub const LINK_ROWS_MAX: usize = 200;

/// Points of a curve over time: as many as a card has pixels on a small screen.
pub const BUCKETS: usize = 160;

/// Rows of a table of latencies or recoveries.
pub const ROWS_MAX: usize = 80;

/// Rows that are seen without unfolding, where there may be many more.
pub const ROWS_OPEN: usize = 12;

/// Rows of the table of devices.
pub const DEVICE_ROWS_MAX: usize = 100;

/// Findings that one page lists, over all runs.
pub const FINDINGS_MAX: usize = 300;

/// Characters of one text that came from the run: rows and messages have no length that one could trust.
pub const TEXT_CHARS_MAX: usize = 600;

/// Characters of a name in a label.
pub const NAME_CHARS_MAX: usize = 48;

/// Cells of a heat map. With more runs a cell stands for several, and shows the worst.
pub const CELLS_MAX: usize = 6000;

/// Rows of a heat map.
pub const HEAT_ROWS_MAX: usize = 400;

/// Runs that did not pass and are listed with what replays them.
pub const FAILED_RUNS_MAX: usize = 100;

/// What is drawn before and after the moment of interest in the enlarged picture, in nanoseconds.
pub const ZOOM_MARGIN_NS: u64 = 2_000_000_000;

/// The longest time that the enlarged picture covers: beyond it, it would show no more than the whole one.
pub const ZOOM_NS_MAX: u64 = 40_000_000_000;
