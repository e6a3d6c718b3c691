//! What fuzz cases need to see. No part of the crate's API.

use bytes::Bytes;
use tern_core::wire::v1::{Frame, Packed};

/// What is in a packed frame.
///
/// # Errors
/// Why it is refused, in words.
pub fn unpack(zstd: Bytes) -> Result<Frame, String> {
    crate::unpacking::unpack(&Packed { zstd }).map_err(|e| e.to_string())
}
