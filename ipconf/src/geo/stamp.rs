//! What tells that a file is another one, or has other bytes, without reading it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Device, inode, size, and the times of the last write and of the last change of any kind, in seconds and
/// nanoseconds. A rename over the file changes the inode; a write in place the times, and who sets one back
/// can't set back the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            written: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// A stamp that differs for other numbers.
    #[cfg(test)]
    pub(crate) fn numbered(inode: u64, bytes: u64) -> Self {
        Self { device: 1, inode, bytes, written: (0, 0), changed: (0, 0) }
    }
}
