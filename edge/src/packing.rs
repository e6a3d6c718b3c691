//! History in fewer bytes, for clients that understand it.
//!
//! A page holds entries of one conversation, and who may pull it may read all of it. So its size tells nobody what he
//! could not read: an attacker who writes into a page and watches how long it gets learns about what he sees anyhow. Rows
//! speak of many conversations and are not packed for that reason; nor are pushes, in which there is too little to
//! find anything twice.

use prost::Message;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::v1::{self, Frame};

/// Below it there is little to gain.
const WORTH_IT: usize = 512;
/// zstd's own scale; higher ones take several times as long for a few per cent.
const LEVEL: i32 = 1;

/// The same in fewer bytes; `None` where that saves less than a tenth, as with what applications encrypted.
pub(crate) fn pack(frame: &Frame) -> Option<Frame> {
    let length = frame.encoded_len();
    if length < WORTH_IT {
        return None;
    }
    let zstd = zstd::bulk::compress(&frame.encode_to_vec(), LEVEL).ok()?;
    (zstd.len() < length - length / 10).then(|| Frame::new(frame.req, Body::Packed(v1::Packed { zstd: zstd.into() })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(body: impl Fn(u64) -> Vec<u8>) -> Frame {
        let entry = |seq| v1::Entry { seq, body: body(seq).into(), ..v1::Entry::default() };
        Frame::new(7, Body::Page(v1::Page { entries: (1..=50).map(entry).collect(), ..v1::Page::default() }))
    }

    #[test]
    fn text_gets_shorter_and_what_does_not_stays_as_it_is() {
        let text =
            page(|seq| format!("Shall we meet at the station at {seq} o'clock? I have the tickets.").into_bytes());
        let Some(Body::Packed(packed)) = pack(&text).unwrap().body else { panic!("packed") };
        assert!(packed.zstd.len() * 3 < text.encoded_len());
        let back = zstd::bulk::decompress(&packed.zstd, 1 << 17).unwrap();
        assert_eq!(Frame::decode(&*back).unwrap(), text);
        let mut state = 1u64;
        let mut noise = |_: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        let bytes: Vec<Vec<u8>> = (0..51).map(|_| (0..100).map(&mut noise).collect()).collect();
        assert!(pack(&page(|seq| bytes[usize::try_from(seq).unwrap()].clone())).is_none());
        let short = Frame::new(7, Body::Page(v1::Page { last: true, ..v1::Page::default() }));
        assert!(pack(&short).is_none());
    }
}
