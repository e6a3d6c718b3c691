//! Frames that were packed, as a client unpacks them; and what an edge packs.

use bytes::Bytes;
use prost::Message;
use tern_core::limits::FRAME_BYTES;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::v1::{Entry, Frame, Packed, Page, Ping};

use crate::Came;
use crate::wire::client_frame_seeds;

/// The first byte says what the rest is: what came as packed, or a frame that is packed and unpacked again.
pub fn run(bytes: &[u8]) -> Came {
    let Some((first, rest)) = bytes.split_first() else { return Came::default() };
    if first % 2 == 0 {
        let came = tern_client::fuzzing::unpack(Bytes::copy_from_slice(rest));
        if let Ok(frame) = &came {
            assert!(!matches!(frame.body, Some(Body::Packed(_))), "a frame within a frame within a frame");
            // Numbers one by one come back as a list, which has its length on top.
            assert!(frame.encoded_len() <= 2 * FRAME_BYTES, "{} bytes", frame.encoded_len());
        }
        return Came::of(&came);
    }
    let Ok(frame) = Frame::decode(rest) else { return Came { accepted: false, refused: true } };
    let Some(packed) = tern_edge::fuzzing::pack(&frame) else { return Came { accepted: true, refused: false } };
    assert!(packed.encoded_len() < frame.encoded_len() && packed.req == frame.req);
    let Some(Body::Packed(Packed { zstd })) = packed.body else { panic!("it is packed") };
    let back = tern_client::fuzzing::unpack(zstd);
    // Edges pack pages alone, and none above the limit.
    match frame.body {
        Some(Body::Packed(_)) => assert!(back.is_err()),
        _ if frame.encoded_len() > FRAME_BYTES => assert!(back.is_err()),
        _ => assert_eq!(back, Ok(frame)),
    }
    Came { accepted: true, refused: false }
}

fn page(bytes: usize) -> Frame {
    let entry =
        |seq| Entry { seq, body: format!("message {seq} of some").repeat(bytes / 20).into(), ..Entry::default() };
    Frame::new(3, Body::Page(Page { entries: (1..=20).map(entry).collect(), ..Page::default() }))
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

/// Frames of all kinds; bombs, of known and of unknown size; a frame within a frame; sizes that lie.
pub fn seeds() -> Vec<Vec<u8>> {
    let ping = Frame::new(1, Body::Ping(Ping { echo: 1, ..Ping::default() })).encode_to_vec();
    let nested = Frame::new(0, Body::Packed(Packed { zstd: zstd(&ping).into() })).encode_to_vec();
    let mut lies = zstd(&page(300).encode_to_vec());
    lies[5] ^= 0x80;
    let packed = [
        zstd(&ping),
        zstd(&page(20).encode_to_vec()),
        zstd(&page(2_000).encode_to_vec()),
        zstd(&nested),
        zstd(&vec![0; FRAME_BYTES]),
        zstd(&vec![0; FRAME_BYTES + 1]),
        zstd(&vec![0; 64 << 20]),
        zstd::stream::encode_all(&[1u8; 1000][..], 1).unwrap(),
        lies,
    ];
    let plain = [page(40).encode_to_vec(), page(200).encode_to_vec(), page(7_000).encode_to_vec(), nested];
    let plain = plain.into_iter().chain(client_frame_seeds().into_iter().take(20));
    let packed = packed.into_iter().map(|bytes| [&[0], &bytes[..]].concat());
    packed.chain(plain.map(|bytes| [&[1], &bytes[..]].concat())).collect()
}
