//! Replaces the C function `getrandom` in a binary that runs simulations. Included by path, once per binary.

/// As getrandom(2), but from the seed.
///
/// # Safety
/// `out` points to `len` writable bytes, as the function it stands for demands.
#[allow(unsafe_code, reason = "the C function that libraries draw their randomness from can be replaced no other way")]
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(out: *mut u8, len: usize, _flags: u32) -> isize {
    if len > 0 {
        // SAFETY: the caller promises `len` writable bytes; they are written here, never read.
        let out = unsafe {
            std::ptr::write_bytes(out, 0, len);
            std::slice::from_raw_parts_mut(out, len)
        };
        tern_netsim::random::fill(out);
    }
    isize::try_from(len).unwrap_or(isize::MAX)
}
