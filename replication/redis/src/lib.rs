//! Routes of a region in Redis.
