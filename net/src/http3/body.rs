//! What a request or an answer carries beside its header.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::StreamError;
use h3::server::RequestStream;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_LENGTH, HeaderMap};

use super::stack::{Fate, Recv};

/// A body did not come whole.
#[derive(Debug, thiserror::Error)]
pub enum CutShort {
    /// Its stream or connection ended.
    #[error("{0}")]
    Ended(String),
    /// It is not as long as it was said to be.
    #[error("{came} bytes came of the {said} that content-length says")]
    Length {
        /// What came, as far as it was read.
        came: u64,
        /// What was said.
        said: u64,
    },
}

/// Frames of a body that are empty, one after the other, after the end of the stream: it has none any more.
const EMPTY_FRAMES: usize = 64;

/// The next bytes of a body, `None` at its end. The h3 crate tells an empty frame as it tells the end.
pub(super) fn poll_piece<B: Buf>(
    fate: &Fate,
    cx: &mut Context<'_>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<Result<Option<B>, StreamError>>,
) -> Poll<Result<Option<Bytes>, CutShort>> {
    let mut empty = 0;
    loop {
        match ready!(poll(cx)) {
            Ok(Some(mut data)) => {
                let bytes = data.copy_to_bytes(data.remaining());
                fate.used(bytes.len());
                if !bytes.is_empty() {
                    return Poll::Ready(Ok(Some(bytes)));
                }
            }
            Ok(None) if fate.has_ended() && empty >= EMPTY_FRAMES => return Poll::Ready(Ok(None)),
            Ok(None) => empty += usize::from(fate.has_ended()),
            Err(e) => return Poll::Ready(Err(CutShort::Ended(e.to_string()))),
        }
    }
}

/// What content-length says, if it says a number.
pub(super) fn said_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The body of a request over HTTP/3, which ends where content-length says, or was cut short.
pub struct QuicBody {
    stream: RequestStream<Recv, Bytes>,
    fate: Arc<Fate>,
    said: Option<u64>,
    came: u64,
    over: bool,
}

impl QuicBody {
    pub(super) fn new(stream: RequestStream<Recv, Bytes>, fate: Arc<Fate>, headers: &HeaderMap) -> Self {
        Self { stream, fate, said: said_length(headers), came: 0, over: false }
    }
}

impl std::fmt::Debug for QuicBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicBody").field("said", &self.said).field("came", &self.came).finish_non_exhaustive()
    }
}

impl Body for QuicBody {
    type Data = Bytes;
    type Error = CutShort;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        let piece = ready!(poll_piece(&this.fate, cx, |cx| this.stream.poll_recv_data(cx)));
        let wrong = |came: u64| this.said.filter(|said| *said != came).map(|said| CutShort::Length { came, said });
        let frame = match piece {
            Ok(Some(bytes)) => {
                this.came += bytes.len() as u64;
                match wrong(this.came).filter(|_| this.said.is_some_and(|said| this.came > said)) {
                    Some(e) => Err(e),
                    None => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                }
            }
            Ok(None) => match wrong(this.came) {
                Some(e) => Err(e),
                None => {
                    this.over = true;
                    return Poll::Ready(None);
                }
            },
            Err(e) => Err(e),
        };
        this.over = true;
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        self.said.map_or_else(SizeHint::default, |said| SizeHint::with_exact(said.saturating_sub(self.came)))
    }
}
