//! Routes as bytes: on the wire, and in tables.
//!
//! Both begin with the number of binds, the length of the user's id and the id. Then per bind, sorted by install: 6 bytes
//! of the install's hash; when it was bound, in a table as 6 bytes of milliseconds, on the wire as a varint of the
//! milliseconds before a base that many routes share; the client's order of its connections, a varint. A user with one
//! device and an id of 20 bytes takes 36 bytes in a table, and 32 on the wire.
//!
//! Regions compare hashes over the form in tables, so it is part of the protocol between nodes.

use super::Bind;
use super::keyed::INSTALL_BITS;
use crate::limits::ID_BYTES;

/// Binds of one user that are kept: above the devices that a user may have, so that no region's other limit matters.
pub const BINDS: usize = 16;
const INSTALL_BYTES: usize = (INSTALL_BITS / 8) as usize;
/// Milliseconds since 1970 until the year 10889.
const MS_BYTES: usize = 6;
const MS_MAX: u64 = (1 << (8 * MS_BYTES)) - 1;

/// Routes that are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packed routes that are cut short or exceed their limits")]
pub struct Malformed;

/// The order in which binds lie, without what two of one install would add.
pub fn canonical(binds: &mut Vec<Bind>) {
    binds.sort_unstable_by_key(|bind| (bind.install, std::cmp::Reverse((bind.order, bind.at_ms))));
    binds.dedup_by_key(|bind| bind.install);
    binds.truncate(BINDS);
}

/// Appends a user's route in the form of tables; `binds` are canonical.
pub fn put_record(out: &mut Vec<u8>, user: &str, binds: &[Bind]) {
    put_head(out, user, binds);
    for bind in binds {
        out.extend_from_slice(&bind.install.to_le_bytes()[..INSTALL_BYTES]);
        out.extend_from_slice(&bind.at_ms.min(MS_MAX).to_le_bytes()[..MS_BYTES]);
        put_varint(out, bind.order);
    }
}

/// Appends a user's route in the form of the wire. None of its binds is newer than `base_ms`.
pub fn put_op(out: &mut Vec<u8>, base_ms: u64, user: &str, binds: &[Bind]) {
    put_head(out, user, binds);
    for bind in binds {
        out.extend_from_slice(&bind.install.to_le_bytes()[..INSTALL_BYTES]);
        put_varint(out, base_ms.saturating_sub(bind.at_ms.min(MS_MAX)));
        put_varint(out, bind.order);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "ids have at most 64 bytes, routes at most 16 binds")]
fn put_head(out: &mut Vec<u8>, user: &str, binds: &[Bind]) {
    out.push(binds.len().min(BINDS) as u8);
    out.push(user.len() as u8);
    out.extend_from_slice(user.as_bytes());
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// The base under which binds that are none newer are short.
pub fn base_of<'a>(binds: impl Iterator<Item = &'a Bind>) -> u64 {
    binds.map(|bind| bind.at_ms.min(MS_MAX)).max().unwrap_or(0)
}

/// The next route in the form of the wire: user and binds, none of which says that he is gone.
pub fn take_op<'a>(bytes: &mut &'a [u8], base_ms: u64) -> Result<(&'a str, Vec<Bind>), Malformed> {
    let (binds, user) = take_head(bytes)?;
    let bind = |bytes: &mut &'a [u8]| {
        let install = take_number(bytes, INSTALL_BYTES)?;
        let before = take_varint(bytes)?;
        Ok(Bind { install, at_ms: base_ms.min(MS_MAX).saturating_sub(before), order: take_varint(bytes)? })
    };
    let binds = (0..binds).map(|_| bind(bytes)).collect::<Result<Vec<_>, _>>()?;
    Ok((std::str::from_utf8(user).map_err(|_| Malformed)?, binds))
}

/// The route with which bytes in the form of tables begin.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// His id.
    pub user: &'a str,
    /// Number of binds.
    count: usize,
    binds: &'a [u8],
    /// All of it.
    pub bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// `None`: the bytes are none that were written by [`put_record`].
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        let (count, user) = take_head(&mut rest).ok()?;
        let binds = rest;
        for _ in 0..count {
            take(&mut rest, INSTALL_BYTES + MS_BYTES).ok()?;
            take_varint(&mut rest).ok()?;
        }
        let bytes = bytes.get(..bytes.len() - rest.len())?;
        Some(Self { user: std::str::from_utf8(user).ok()?, count, binds, bytes })
    }

    /// Whether it is of this user, at the cost of a comparison.
    pub fn is_of(bytes: &[u8], user: &str) -> bool {
        let mut rest = bytes;
        take_head(&mut rest).is_ok_and(|(_, id)| id == user.as_bytes())
    }

    /// The user's binds.
    pub fn binds(&self) -> Vec<Bind> {
        let mut rest = self.binds;
        let bind = |bytes: &mut &[u8]| {
            let install = take_number(bytes, INSTALL_BYTES)?;
            let at_ms = take_number(bytes, MS_BYTES)?;
            Ok::<_, Malformed>(Bind { install, at_ms, order: take_varint(bytes)? })
        };
        (0..self.count).map_while(|_| bind(&mut rest).ok()).collect()
    }
}

fn take_head<'a>(bytes: &mut &'a [u8]) -> Result<(usize, &'a [u8]), Malformed> {
    let head = take(bytes, 2)?;
    let (binds, len) = (usize::from(head[0]), usize::from(head[1]));
    if binds > BINDS || len == 0 || len > ID_BYTES {
        return Err(Malformed);
    }
    Ok((binds, take(bytes, len)?))
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = bytes.split_at_checked(count).ok_or(Malformed)?;
    *bytes = rest;
    Ok(taken)
}

fn take_number(bytes: &mut &[u8], count: usize) -> Result<u64, Malformed> {
    let mut number = [0; 8];
    number[..count].copy_from_slice(take(bytes, count)?);
    Ok(u64::from_le_bytes(number))
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0u64;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = take(bytes, 1)?[0];
        let part = u64::from(byte & 0x7f);
        if part.leading_zeros() < shift {
            return Err(Malformed);
        }
        value |= part << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bind() -> impl Strategy<Value = Bind> {
        let order = prop_oneof![0u64..300, any::<u64>()];
        (0..1u64 << INSTALL_BITS, 0..=MS_MAX, order).prop_map(|(install, at_ms, order)| Bind { install, at_ms, order })
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(user in "[a-zé-]{1,30}", binds in prop::collection::vec(bind(), 0..BINDS)) {
            let mut binds = binds;
            canonical(&mut binds);
            let (mut record, mut op) = (Vec::new(), Vec::new());
            put_record(&mut record, &user, &binds);
            let size = record.len();
            record.push(7);
            let read = Record::read(&record).unwrap();
            prop_assert_eq!((read.user, read.binds(), read.bytes.len()), (user.as_str(), binds.clone(), size));
            prop_assert!(Record::is_of(&record, &user) && !Record::is_of(&record, "another"));
            let base = base_of(binds.iter());
            put_op(&mut op, base, &user, &binds);
            let mut rest = &op[..];
            prop_assert_eq!(take_op(&mut rest, base), Ok((user.as_str(), binds)));
            prop_assert!(rest.is_empty());
            for end in 0..op.len() {
                prop_assert_eq!(take_op(&mut &op[..end], base), Err(Malformed));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60), base in any::<u64>()) {
            if let Ok((user, binds)) = take_op(&mut &bytes[..], base) {
                prop_assert!(user.len() <= ID_BYTES && binds.len() <= BINDS);
            }
        }
    }

    #[test]
    fn both_forms_stay() {
        let binds = [Bind { install: 0x0605_0403_0201, at_ms: 0x0c0b_0a09_0807, order: 300 }];
        let mut out = Vec::new();
        put_op(&mut out, 0x0c0b_0a09_0807 + 200, "bob", &binds);
        put_op(&mut out, 0, "al", &[]);
        assert_eq!(out, [1, 3, b'b', b'o', b'b', 1, 2, 3, 4, 5, 6, 0xc8, 1, 0xac, 2, 0, 2, b'a', b'l']);
        out.clear();
        put_record(&mut out, "bob", &binds);
        assert_eq!(out, [1, 3, b'b', b'o', b'b', 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0xac, 2]);
    }

    #[test]
    fn of_two_binds_of_an_install_the_newer_one_stays() {
        let bind = |install, at_ms, order| Bind { install, at_ms, order };
        let mut binds = vec![bind(2, 1, 1), bind(1, 5, 3), bind(1, 9, 2)];
        canonical(&mut binds);
        assert_eq!(binds, [bind(1, 5, 3), bind(2, 1, 1)]);
    }
}
