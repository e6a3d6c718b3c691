//! The same over HTTP/3.

use std::sync::Arc;

use tern_net::http3::{QuicHandler, serve_quic};

use super::{Front, limits};
use crate::metrics::HTTP3;

/// A stream that came before the handshake was over.
pub(crate) type First = (quinn::SendStream, quinn::RecvStream);

impl Front {
    /// Serves a connection whose handshake is over, until it ends; says as what it ended.
    pub(crate) async fn serve_quic(
        self: Arc<Self>,
        connection: quinn::Connection,
        first: Option<First>,
    ) -> &'static str {
        let front = self.clone();
        let handler: QuicHandler = Arc::new(move |from, request| {
            let front = front.clone();
            Box::pin(async move { front.respond(from, request).await })
        });
        let (tasks, over) = (self.edge.env.tasks.clone(), self.is_over());
        let serving = Box::pin(serve_quic(tasks, connection, first, limits(), handler, over));
        let late = tokio::select! {
            biased;
            () = serving => false,
            () = self.is_late() => true,
        };
        self.ended(late);
        HTTP3
    }
}

#[cfg(test)]
#[path = "quic_tests.rs"]
mod tests;
