//! Bytes as a history: what happens next, and with what.

/// Reads an input from its beginning. At its end everything is 0, and [`Script::more`] says so.
#[derive(Debug)]
pub struct Script<'a> {
    rest: &'a [u8],
    steps: usize,
}

/// Steps of one input, so that a long one takes no longer than a few milliseconds.
pub const STEPS: usize = 400;

impl<'a> Script<'a> {
    /// Over an input.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, steps: 0 }
    }

    /// What happens next, if anything.
    pub fn more(&mut self) -> Option<u8> {
        self.steps += 1;
        if self.rest.is_empty() || self.steps > STEPS { None } else { Some(self.u8()) }
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    /// One of `count`.
    pub fn pick(&mut self, count: u8) -> u8 {
        self.u8() % count.max(1)
    }

    /// A number that is mostly small and sometimes at an edge.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            n @ 0..=199 => u64::from(n),
            200..=219 => u64::from(self.u8()) << 8 | u64::from(self.u8()),
            220..=229 => u64::MAX - u64::from(self.u8()),
            230..=239 => 1 << (self.u8() % 64),
            _ => self.bytes(8).iter().fold(0, |n, b| n << 8 | u64::from(*b)),
        }
    }

    /// Likewise, of 32 bits.
    pub fn number32(&mut self) -> u32 {
        u32::try_from(self.number() & u64::from(u32::MAX)).unwrap_or(u32::MAX)
    }

    /// So many bytes, or what is left.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// Bytes with their length before them.
    pub fn blob(&mut self) -> &'a [u8] {
        let count = usize::from(self.u8());
        self.bytes(count)
    }
}

/// Writes what [`Script::blob`] reads.
pub fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    let count = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
    out.push(count);
    out.extend_from_slice(&bytes[..usize::from(count)]);
}
