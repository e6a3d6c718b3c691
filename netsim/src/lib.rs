//! tern-netsim
