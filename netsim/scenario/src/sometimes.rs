//! What can be counted in a run, so that a scenario can say that it must have happened.
//!
//! A run in which nothing happened proves nothing. `[sometimes]` names events with the least number of them; a run
//! with fewer is UNKNOWN, not PASS. The names are closed: a slip of the pen would ask for what never happens. Whoever
//! writes a run's history counts them.

/// All names, and what each counts.
pub const NAMES: [(&str, &str); 17] = [
    ("ack_lost_after_commit", "a message was committed, and its device lost its connection before the ack"),
    ("acked_unreplicated", "a region went down with acks for messages that no other region had"),
    ("caught_up", "a device was shown a message that was sent while it was not live"),
    ("edge_changed", "a device became live at another edge than before"),
    ("erased", "a user erased a message of his for everyone"),
    ("friend_came", "a device was told that somebody it had seen gone, or not at all, is there"),
    ("friend_gone", "a device was told that somebody who had been there is gone"),
    ("moved", "a message changed its place in a timeline after it had been shown"),
    ("polled", "a device became live over polls"),
    ("quic_again", "a device that had been live over something else became live over QUIC"),
    ("reconnected", "a device that had been live before became live"),
    ("region_changed", "a device became live in another region than before"),
    ("reoffered", "a message that a silent region may have was offered to another region"),
    ("sent_offline", "a message was sent by a device that was not live"),
    ("stale_connection", "a device found out that its connection was dead, during a fault that had not closed it"),
    ("tcp_fallback", "a device became live over TCP"),
    ("websocket_fallback", "a device became live over a WebSocket"),
];
