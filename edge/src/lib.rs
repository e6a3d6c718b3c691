//! tern-edge
