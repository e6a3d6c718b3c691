use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use tern_core::wire::{codec as wire, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

fn ping(echo: u32) -> v1::Frame {
    v1::Frame::new(echo, v1::frame::Body::Ping(v1::Ping { echo, foreground: false, ..v1::Ping::default() }))
}

fn frames(bytes: &[usize]) -> BytesMut {
    let mut out = BytesMut::new();
    for n in bytes {
        let body = Bytes::from(vec![b'x'; *n]);
        wire::put(&v1::Frame::new(0, v1::frame::Body::Send(v1::Send { body, ..v1::Send::default() })), &mut out);
    }
    out
}

fn decode(side: Side, input: &[u8]) -> (Result<(), WebSocketError>, BytesMut, Decoder) {
    let (mut decoder, mut out) = (Decoder::new(side), BytesMut::new());
    (decoder.decode(input, &mut out), out, decoder)
}

#[test]
fn the_examples_of_the_rfc() {
    assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    // 5.7: a masked ping of "Hello" and a masked Close would be; the pong to it is unmasked.
    let (result, _, decoder) = decode(Side::Server, b"\x89\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
    assert_eq!((result, decoder.ping.as_deref()), (Ok(()), Some(&b"Hello"[..])));
    let mut pong = BytesMut::new();
    codec::put(PONG, b"Hello", Some([0x37, 0xfa, 0x21, 0x3d]), &mut pong);
    assert_eq!(&pong[..], b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
    let (result, ..) = decode(Side::Client, b"\x81\x05Hello");
    assert_eq!(result, Err(WebSocketError::Text));
    assert!(is_key("dGhlIHNhbXBsZSBub25jZQ==") && !is_key("dGhlIHNhbXBsZSBub25j") && !is_key("?"));
    assert!(is_key(&new_key(&Entropy::seeded(1))));
}

#[test]
fn what_breaks_the_rules_is_told_apart() {
    use WebSocketError::{Cut, Protocol, Text, TooLarge};
    // All with a mask of zeros, as clients may.
    let cases: &[(&[u8], WebSocketError)] = &[
        (b"\x82\x01\x00", Protocol("clients mask their frames, and servers do not")),
        (b"\xc2\x80\0\0\0\0", Protocol("a bit is set that belongs to an extension, and none was agreed on")),
        (b"\x83\x80\0\0\0\0", Protocol("a frame of a kind that there is not")),
        (b"\x8b\x80\0\0\0\0", Protocol("a frame of a kind that there is not")),
        (b"\x09\x80\0\0\0\0", Protocol("a control frame that is cut in parts, or above 125 bytes")),
        (b"\x89\xfe\0\x7e\0\0\0\0", Protocol("a control frame that is cut in parts, or above 125 bytes")),
        (b"\x82\xfe\0\x7d\0\0\0\0", Protocol("a length that takes more bytes than it needs")),
        (b"\x82\xff\0\0\0\0\0\0\xff\xff\0\0\0\0", Protocol("a length that takes more bytes than it needs")),
        (b"\x80\x80\0\0\0\0", Protocol("a continuation of nothing")),
        (b"\x02\x80\0\0\0\0\x82\x80\0\0\0\0", Protocol("a message began before the last one ended")),
        (b"\x88\x81\0\0\0\0\x03", Protocol("a Close with half a code")),
        (b"\x01\x80\0\0\0\0", Text),
        (b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", TooLarge),
        (b"\x82\xff\0\0\0\0\0\x02\0\x06\0\0\0\0", TooLarge),
        (b"\x82\x82\0\0\0\0\x02\x08", Cut),
        (b"\x82\x81\0\0\0\0\xff", Cut),
    ];
    for (bytes, error) in cases {
        assert_eq!(decode(Side::Server, bytes).0, Err(*error), "{bytes:?}");
    }
    assert_eq!(decode(Side::Client, b"\x82\x81\0\0\0\0\0").0, Err(cases[0].1));
    let (result, _, decoder) = decode(Side::Server, b"\x88\x82\0\0\0\0\x03\xe9garbage after a Close");
    assert_eq!((result, decoder.closed), (Ok(()), Some(1001)));
    assert_eq!(decode(Side::Server, b"\x88\x80\0\0\0\0").2.closed, Some(1005));
}

/// A message in many parts is one message, however large its parts pretend to be.
#[test]
fn the_parts_of_a_message_count_together() {
    let part = |head: u8, n: usize| {
        let mut out = BytesMut::new();
        codec::put(2, &vec![1; n], Some([0; 4]), &mut out);
        out[0] = head;
        out
    };
    let mut decoder = Decoder::new(Side::Server);
    let mut out = BytesMut::new();
    decoder.decode(&part(0x02, 60_000), &mut out).unwrap();
    decoder.decode(&part(0x00, 60_000), &mut out).unwrap();
    assert_eq!(decoder.decode(&part(0x80, 20_000), &mut out), Err(WebSocketError::TooLarge));
    assert_eq!(out.len(), 120_000, "nothing of what was too much");
}

proptest! {
    #[test]
    fn what_goes_in_comes_out_however_it_is_cut(
        sizes in proptest::collection::vec(prop_oneof![0usize..300, 60_000usize..70_000], 1..8),
        mask in any::<Option<[u8; 4]>>(),
        cuts in proptest::collection::vec(1usize..5_000, 1..20),
    ) {
        let whole = frames(&sizes);
        let (mut from, mut wire) = (whole.clone(), BytesMut::new());
        let mut messages = 0;
        while !from.is_empty() {
            codec::put_message(&mut from, mask, &mut wire);
            codec::put(9, b"in between", mask, &mut wire);
            messages += 1;
        }
        prop_assert!(messages <= sizes.len());
        let side = if mask.is_some() { Side::Server } else { Side::Client };
        let (mut decoder, mut out) = (Decoder::new(side), BytesMut::new());
        let mut rest = &wire[..];
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            decoder.decode(now, &mut out).unwrap();
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(out, whole);
        prop_assert_eq!(decoder.ping.as_deref(), Some(&b"in between"[..]));
    }

    #[test]
    fn no_bytes_make_it_panic_or_give_more_than_came(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        server in any::<bool>(),
    ) {
        let side = if server { Side::Server } else { Side::Client };
        let (_, out, decoder) = decode(side, &bytes);
        prop_assert!(out.len() + decoder.ping.map_or(0, |p| p.len()) <= bytes.len());
        are_whole_frames(&bytes);
    }
}

async fn fill(socket: &mut WebSocket<DuplexStream>, reader: &mut FrameReader) -> io::Result<usize> {
    poll_fn(|cx| socket.poll_fill(reader, cx)).await
}

#[tokio::test]
async fn an_opening_handshake_takes_nothing_but_its_answer() {
    let good = |request: &str| {
        let key = request.lines().find_map(|l| l.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
        format!(
            "HTTP/1.1 101 Go\r\nsec-websocket-accept: {}\r\nsec-websocket-protocol:  tern.1\r\n\r\n",
            accept_key(key)
        )
    };
    type Answer<'a> = &'a dyn Fn(&str) -> String;
    let answers: [(Answer<'_>, bool); 5] = [
        (&good, true),
        (&|r| good(r).replace("101 Go", "200 OK"), false),
        (&|r| good(r).replace("accept: ", "accept: x"), false),
        (&|r| good(r).replace("tern.1", "chat"), false),
        (&|_| "x".repeat(10_000), false),
    ];
    for (answer, is_good) in answers {
        let (near, mut far) = duplex(20_000);
        let asked = async {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(far.read_u8().await.unwrap());
            }
            let request = String::from_utf8(request).unwrap();
            assert!(request.starts_with("GET /v1/ws HTTP/1.1\r\nHost: [2001:db8::1]\r\n"), "{request}");
            // A frame that comes with the answer is not lost.
            far.write_all(format!("{}\u{89}", answer(&request)).as_bytes()).await.unwrap();
            far
        };
        let rng = Arc::new(Entropy::seeded(1));
        let (opened, _far) = tokio::join!(open(near, "2001:db8::1", "/v1/ws", rng), asked);
        assert_eq!(opened.is_ok(), is_good);
        if let Ok(socket) = opened {
            let mut stream = socket.into_inner();
            assert_eq!(stream.read_u8().await.unwrap(), 0xc2);
        }
    }
}

#[tokio::test]
async fn both_sides_over_a_narrow_stream_and_a_ping_is_answered() {
    let (near, far) = duplex(7);
    let mut client = WebSocket::client(near, Arc::new(Entropy::seeded(1)));
    let mut server = WebSocket::server(far);
    let talk = async {
        let mut writer = FrameWriter::new();
        (0..50).for_each(|i| writer.put(&ping(i)));
        poll_fn(|cx| client.poll_write(&mut writer, cx)).await.unwrap();
        client.close(1000, &"é".repeat(100)).await.unwrap();
    };
    let listen = async {
        let mut reader = FrameReader::new(1000);
        let mut next = 0;
        while fill(&mut server, &mut reader).await.unwrap() > 0 {
            while let Some(frame) = reader.next::<v1::Frame>().unwrap() {
                assert_eq!(frame, ping(next));
                next += 1;
            }
        }
        assert!(next == 50 && server.is_closed());
    };
    tokio::join!(talk, listen);

    let (mut near, far) = duplex(1000);
    let mut server = WebSocket::server(far);
    near.write_all(b"\x89\x82\0\0\0\0hi\x89\x83\0\0\0\0hey").await.unwrap();
    fill(&mut server, &mut FrameReader::new(1000)).await.unwrap();
    assert_eq!(server.waiting(), 0);
    drop(server);
    let mut pongs = Vec::new();
    near.read_to_end(&mut pongs).await.unwrap();
    assert_eq!(pongs, b"\x8a\x03hey", "of several pings that came together the newest");
}
