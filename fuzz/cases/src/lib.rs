//! What is fuzzed: one function per decoder and per machine, from bytes to what came of them.
//!
//! Each [`Case`] takes any bytes and must not panic, nor break an invariant that it asserts. Decoders are handed
//! the bytes as they are. Machines read them as a script ([`script::Script`]): a byte says what happens next, the
//! following ones with what, so that a mutated input is still a history, and most histories get past the first
//! check. Time is virtual, nothing is drawn at random, and an input always does the same.
//!
//! The same functions run in two ways:
//!
//! - `cargo test -p tern-fuzz-cases`: every case over its seeds, the files in `fuzz/corpus`, and so many mutations
//!   of both from a fixed seed (`TERN_FUZZ_RUNS`, 2,000 unless told). It counts what came of them, and fails for a
//!   case of which nothing was accepted, or nothing refused: such a case tests nothing.
//! - `cargo +nightly fuzz run TARGET`, below `fuzz/`: libFuzzer, guided by coverage, for as long as one likes.
//!
//! An input that broke something becomes a file in `fuzz/corpus/CASE/`, and stays.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a case that can't go on has found something")]

pub mod client;
pub mod disk;
pub mod dispatch;
pub mod documents;
pub mod gossip;
pub mod http3;
pub mod mutate;
pub mod node;
pub mod packed;
pub mod script;
pub mod session;
pub mod tables;
pub mod websocket;
pub mod wire;

/// What came of an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Came {
    /// Something got past the first check.
    pub accepted: bool,
    /// Something was refused.
    pub refused: bool,
}

impl Came {
    /// Of a decoder.
    pub fn of<T, E>(result: &Result<T, E>) -> Self {
        Self { accepted: result.is_ok(), refused: result.is_err() }
    }

    /// Either's.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { accepted: self.accepted || other.accepted, refused: self.refused || other.refused }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Of the fuzz target and of the corpus' folder.
    pub name: &'static str,
    /// The body of the target.
    pub run: fn(&[u8]) -> Came,
    /// Inputs to begin with, of the formats as they are now.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// One in so many of the runs asked for: more where one costs milliseconds.
    pub one_in: usize,
}

impl Case {
    const fn new(name: &'static str, run: fn(&[u8]) -> Came, seeds: fn() -> Vec<Vec<u8>>) -> Self {
        Self { name, run, seeds, one_in: 1 }
    }

    const fn rarely(self, one_in: usize) -> Self {
        Self { one_in, ..self }
    }
}

/// All of them.
pub const CASES: &[Case] = &[
    Case::new("client_frames", wire::client_frames, wire::client_frame_seeds),
    Case::new("compact", wire::compact, wire::client_frame_seeds),
    Case::new("http3", http3::run, http3::seeds).rarely(10),
    Case::new("packed", packed::run, packed::seeds),
    Case::new("websocket", websocket::run, websocket::seeds),
    Case::new("node_frames", wire::node_frames, wire::node_frame_seeds),
    Case::new("values", wire::values, wire::value_seeds),
    Case::new("entry", disk::entry, disk::entry_seeds),
    Case::new("checkpoint", disk::checkpoint, disk::checkpoint_seeds),
    Case::new("records", disk::records, disk::record_seeds),
    Case::new("receipts", disk::receipts, disk::receipt_seeds),
    Case::new("journal", disk::journal, disk::journal_seeds).rarely(50),
    Case::new("manifest", disk::manifest, disk::manifest_seeds).rarely(20),
    Case::new("archive", disk::archive, disk::archive_seeds),
    Case::new("backups", disk::backups, disk::backup_seeds).rarely(20),
    Case::new("bodies", disk::bodies, disk::body_seeds),
    Case::new("tokens", documents::tokens, documents::token_seeds),
    Case::new("token_keys", documents::token_keys, documents::token_key_seeds),
    Case::new("pem", documents::pem, documents::pem_seeds),
    Case::new("toml", documents::toml, documents::toml_seeds),
    Case::new("dispatch", documents::dispatch, documents::dispatch_seeds),
    Case::new("dispatch_http", dispatch::http, dispatch::http_seeds).rarely(4),
    Case::new("forwarded", documents::forwarded, documents::forwarded_seeds),
    Case::new("prefixes", documents::prefixes, documents::prefix_seeds),
    Case::new("mmdb", documents::mmdb, documents::mmdb_seeds).rarely(10),
    Case::new("session", session::run, session::seeds),
    Case::new("node", node::run, node::seeds).rarely(4),
    Case::new("client", client::run, client::seeds).rarely(2),
    Case::new("gossip", gossip::run, gossip::seeds).rarely(2),
    Case::new("gossip_wire", gossip::wire, gossip::wire_seeds),
    Case::new("gossip_seal", gossip::seal, gossip::seal_seeds),
    Case::new("loads", tables::loads, tables::load_seeds),
    Case::new("identities", tables::identities, tables::identity_seeds),
];

/// The case of this name.
///
/// # Panics
/// If there is none: a target without a case.
pub fn case(name: &str) -> &'static Case {
    CASES.iter().find(|case| case.name == name).expect("a case of this name")
}
