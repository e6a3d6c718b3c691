//! WebSocket frames of either side, as they come from a network in pieces.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tern_core::clock::Entropy;
use tern_core::limits::FRAME_BYTES;
use tern_core::wire::codec::FrameReader;
use tern_net::frames::FrameWriter;
use tern_net::websocket::{WebSocket, WebSocketError, are_whole_frames};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Came;
use crate::wire::client_frame_seeds;

/// Hands out bytes in pieces whose sizes the input itself decides, and keeps what is written.
#[derive(Debug, Default)]
struct Wire {
    rest: Vec<u8>,
    written: Vec<u8>,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = self.rest.first().map_or(0, |first| usize::from(first % 61 + 1).min(self.rest.len()));
        let rest = self.rest.split_off(count);
        buf.put_slice(&self.rest);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.written.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn side(server: bool, wire: Wire) -> WebSocket<Wire> {
    if server { WebSocket::server(wire) } else { WebSocket::client(wire, Arc::new(Entropy::seeded(1))) }
}

/// The first byte says which side reads the rest. What came out of messages goes back into some, and is the same.
pub fn run(bytes: &[u8]) -> Came {
    let Some((first, rest)) = bytes.split_first() else { return Came::default() };
    let server = first % 2 == 0;
    let (mut cx, mut reader) = (Context::from_waker(Waker::noop()), FrameReader::new(FRAME_BYTES));
    let mut socket = side(server, Wire { rest: rest.to_vec(), written: Vec::new() });
    let refused = loop {
        match socket.poll_fill(&mut reader, &mut cx) {
            Poll::Ready(Ok(0)) => break false,
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(e)) => break WebSocketError::of(&e).is_some(),
            Poll::Pending => panic!("this network never waits"),
        }
        assert!(socket.waiting() == 0, "this network takes all");
    };
    let came = reader.buffer().split();
    let answered = socket.into_inner().written;
    assert!(came.len() + answered.len() <= 3 * rest.len(), "a pong is longer than its ping by a mask at most");
    if are_whole_frames(&came) {
        let mut writer = FrameWriter::new();
        writer.buffer().extend_from_slice(&came);
        let mut back = side(!server, Wire::default());
        assert!(matches!(back.poll_write(&mut writer, &mut cx), Poll::Ready(Ok(()))));
        let mut there = side(server, Wire { rest: back.into_inner().written, written: Vec::new() });
        let mut again = FrameReader::new(FRAME_BYTES);
        while matches!(there.poll_fill(&mut again, &mut cx), Poll::Ready(Ok(1..))) {}
        // A frame above the limit fits into no message.
        assert!(came == *again.buffer() || came.len() > FRAME_BYTES);
    }
    Came { accepted: !came.is_empty() || !answered.is_empty(), refused }
}

/// Messages of both sides, whole, in parts, with control frames between, and some that break a rule.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for frames in client_frame_seeds() {
        for from_client in [true, false] {
            let mut writer = FrameWriter::new();
            writer.buffer().extend_from_slice(&frames);
            let mut socket = side(!from_client, Wire::default());
            let mut cx = Context::from_waker(Waker::noop());
            assert!(matches!(socket.poll_write(&mut writer, &mut cx), Poll::Ready(Ok(()))));
            seeds.push([&[u8::from(!from_client)][..], &socket.into_inner().written].concat());
        }
    }
    for bytes in [
        &b"\0\x89\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"[..],
        b"\0\x02\x81\0\0\0\0\x02\x89\x80\0\0\0\0\x80\x82\0\0\0\0\x08\x01",
        b"\0\x88\x82\0\0\0\0\x03\xe8",
        b"\x01\x81\x05Hello",
        b"\x01\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        seeds.push(bytes.to_vec());
    }
    seeds
}
