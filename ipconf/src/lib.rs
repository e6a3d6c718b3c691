//! tern-ipconf
