//! The pure machines of a client: see `machine`.
