//! Frames of one node connection: a task that reads, a task that writes, and a queue between.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use bytes::BytesMut;
use tern_core::limits::NODE_FRAME_BYTES;
use tern_core::wire::codec;
use tern_core::wire::node_v1::{NodeFrame, node_frame::Body};
use tern_net::frames::{FrameError, QuicFrames};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

/// Bytes that may wait for one node before its link is given up: the other side does not read. Above the
/// window of shipments and the answers of an edge's connections.
const WAITING_BYTES: usize = 32 * 1024 * 1024;
/// Frames taken from a stream in one go.
const FRAMES_AT_ONCE: usize = 256;

/// The way to a node.
pub(crate) struct LinkSender {
    connection: quinn::Connection,
    waiting: Mutex<BytesMut>,
    notify: Notify,
}

impl fmt::Debug for LinkSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkSender").field("to", &self.connection.remote_address()).finish_non_exhaustive()
    }
}

impl LinkSender {
    pub fn new(connection: quinn::Connection) -> Self {
        Self { connection, waiting: Mutex::new(BytesMut::new()), notify: Notify::new() }
    }

    /// Queues frames, in order. A queue that grows too long ends the link: both sides then start over from
    /// what is durable.
    pub fn send(&self, frames: impl IntoIterator<Item = Body>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for body in frames {
            codec::put(&NodeFrame { body: Some(body) }, &mut waiting);
        }
        let too_long = waiting.len() > WAITING_BYTES;
        if too_long {
            *waiting = BytesMut::new();
        }
        drop(waiting);
        if too_long {
            self.close("the other side does not read");
        }
        self.notify.notify_one();
    }

    /// Ends the link.
    pub fn close(&self, why: &str) {
        self.connection.close(0u8.into(), why.as_bytes());
    }

    /// Writes what is queued until the connection ends.
    pub async fn write(&self, mut stream: quinn::SendStream) {
        loop {
            let bytes = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if bytes.is_empty() {
                tokio::select! {
                    biased;
                    () = self.notify.notified() => {}
                    _reason = self.connection.closed() => return,
                }
            } else if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    }
}

/// Why a node can't be reached, for a line of log when that is another reason than before.
#[derive(Debug, Default)]
pub(crate) struct Why(String);

impl Why {
    /// Whether it was not the last one. Numbers do not count: times and ports differ with each attempt.
    pub fn is_news(&mut self, why: &str) -> bool {
        let words: String = why.chars().filter(|c| !c.is_ascii_digit()).collect();
        std::mem::replace(&mut self.0, words.clone()) != words
    }

    /// It was reached.
    pub fn is_over(&mut self) {
        self.0.clear();
    }
}

/// Frames from a node, all that are there at once.
pub(crate) async fn next_frames(frames: &mut QuicFrames) -> Result<Vec<Body>, FrameError> {
    let mut all = VecDeque::new();
    let mut next = frames.next::<NodeFrame>().await?;
    while let Some(frame) = next {
        all.extend(frame.body);
        if all.len() >= FRAMES_AT_ONCE {
            break;
        }
        next = frames.buffered::<NodeFrame>()?;
    }
    Ok(all.into())
}

/// Frames from the receiving half of a stream.
pub(crate) fn reader(stream: quinn::RecvStream) -> QuicFrames {
    QuicFrames::new(stream, NODE_FRAME_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_and_again_when_it_was_another_meanwhile() {
        let mut why = Why::default();
        let told: Vec<bool> = ["no answer within 3 s", "no answer within 4 s", "refused", "no answer within 3 s"]
            .iter()
            .map(|reason| why.is_news(reason))
            .collect();
        assert_eq!(told, [true, false, true, true]);
        why.is_over();
        assert!(why.is_news("no answer within 3 s"));
    }
}
