//! The worked session of docs/PROTOCOL.md is what the code writes, byte for byte.
//!
//! `TERN_PRINT=1 cargo test -p tern-core --test worked_session -- --nocapture` prints the blocks.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use tern_core::edge_api::{Ack, Push, SendRequest};
use tern_core::entry::Entry;
use tern_core::hlc;
use tern_core::ids::{ConvId, Cursor, Identity, InstallId, Origin, Place, Rev, UserId};
use tern_core::wire::compact::{Table, Writer};
use tern_core::wire::v1::{self, frame::Body};
use tern_core::wire::{VERSION, codec};

const SALT: &[u8] = b"example";
const EU: Origin = Origin { region: 1, era: 0x0102_0304_0506_0708 };
const RECEIPT: [u8; 16] = [0xab; 16];

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn plain(req: u32, body: Body) -> BytesMut {
    let mut out = BytesMut::new();
    codec::put(&v1::Frame::new(req, body), &mut out);
    out
}

fn entry(sender: &str, install: &str, seq: u64, ms: u64, body: &'static [u8]) -> Entry {
    Entry {
        peer: Some(user(if sender == "alice" { "bob" } else { "alice" })),
        wall_ms: ms - 20,
        ..Entry::text(
            Place { hlc: hlc::from_ms(ms), origin: EU, seq },
            Identity { user: user(sender), install: InstallId::new(install).unwrap(), n: 1 },
            Bytes::from_static(body),
        )
    }
}

/// (title, bytes) in the order of the session.
fn session() -> Vec<(&'static str, BytesMut)> {
    let conversation = ConvId::direct(SALT, &user("alice"), &user("bob"));
    let start = 1_767_225_600_000; // 2026-01-01T00:00:00Z
    let hello = v1::Hello {
        versions: vec![VERSION],
        token: "TOKEN".into(),
        install: "phone-1".into(),
        foreground: true,
        agent: "example/1".into(),
        ..v1::Hello::default()
    };
    let welcome = v1::Welcome {
        version: VERSION,
        cursor: Some(Cursor { store: EU, rev: Rev(0) }.into()),
        session: 7,
        heartbeat: Some(v1::Heartbeat { foreground_ms: 25_000, background_ms_min: 25_000, background_ms_max: 300_000 }),
        limits: Some(v1::Limits { body_bytes: 65_536, frame_bytes: 131_072, pull_entries: 200, in_flight: 256 }),
        seen_address: "192.0.2.7:40000".into(),
        wall_ms: start,
        direct_salt: Bytes::from_static(SALT),
        rows: Some(v1::Rows {
            preview: true,
            upto: Some(Cursor { store: EU, rev: Rev(0) }.into()),
            ..v1::Rows::default()
        }),
        region: "eu".into(),
        edge: "eu-e1".into(),
        token_expires_ms: start + 3_600_000,
        spread_ms: 0,
    };
    let send = SendRequest {
        conversation,
        peer: Some(user("bob")),
        n: 1,
        floor: 1,
        seen_hlc: 0,
        kind: 0,
        body: Bytes::from_static(b"hello"),
        wall_ms: start + 980,
        offer: None,
        membership: None,
        named: None,
    };
    let mine = entry("alice", "phone-1", 1, start + 1_000, b"hello");
    let theirs = entry("bob", "pc", 2, start + 5_000, b"hi alice");
    let ack = Ack {
        place: mine.place,
        first: None,
        receipt: RECEIPT,
        also: Vec::new(),
        receipt_refused: false,
        cut: BTreeMap::new(),
    };
    let own_row = Push {
        conversation,
        peer: Some(user("bob")),
        entries: Vec::new(),
        heads: [(EU, 1)].into(),
        prev_rev: Rev(0),
        rev: Rev(Rev::start_of(1).0 + 1),
        row: None,
    };
    let their_push = Push {
        entries: vec![theirs.clone().into()],
        heads: [(EU, 2)].into(),
        prev_rev: own_row.rev,
        rev: own_row.rev.next(),
        ..own_row.clone()
    };
    let stable = v1::Stable {
        conversation: Bytes::copy_from_slice(&conversation.0),
        origin: Some(EU.into()),
        upto: 1,
        regions: 2,
        offer: false,
    };
    let (mut up, mut down) = (Writer::default(), Writer::default());
    let (mut sent, mut acked, mut row, mut pushed) = Default::default();
    up.send(2, &send, &mut sent);
    down.ack(2, &ack, &mut acked);
    down.push(&own_row, &mut row);
    down.push(&their_push, &mut pushed);
    let pull = v1::PullEntries {
        conversation: Bytes::copy_from_slice(&conversation.0),
        origin: Some(EU.into()),
        from: 1,
        to: 2,
        limit: 0,
        backwards: false,
    };
    let mut table = Table::default();
    let entries = vec![table.entry(&mine), table.entry(&theirs)];
    let page = v1::Page {
        conversation: Bytes::copy_from_slice(&conversation.0),
        origin: Some(EU.into()),
        origins: table.wire_origins,
        senders: table.wire_senders,
        entries,
        gaps: Vec::new(),
        last: true,
    };
    vec![
        ("client, control: Hello", plain(1, Body::Hello(hello))),
        ("server, control: Welcome", plain(1, Body::Welcome(welcome))),
        ("client, control: Commit", plain(0, Body::Commit(v1::Commit { race: 9, attempt: 1, order: 1 }))),
        ("client, message: Define, Send", sent),
        ("server, message: Define, Ack", acked),
        ("server, message: Define, Push of the row alone", row),
        ("server, message: Stable", plain(0, Body::Stable(stable))),
        ("server, message: Define, Push of bob's answer", pushed),
        ("client, control: PushAck", plain(0, Body::PushAck(v1::PushAck { rev: own_row.rev.next().0 }))),
        ("client, control: Ping", plain(3, Body::Ping(v1::Ping { echo: 5, foreground: true, ..v1::Ping::default() }))),
        (
            "server, control: Pong",
            plain(3, Body::Pong(v1::Pong { echo: 5, rev: own_row.rev.next().0, ..v1::Pong::default() })),
        ),
        ("client, bulk: PullEntries", plain(4, Body::Pull(pull))),
        ("server, bulk: Page", plain(4, Body::Page(page))),
    ]
}

fn block(title: &str, bytes: &[u8]) -> String {
    let mut out = format!("{title}\n");
    for line in bytes.chunks(24) {
        let hex: Vec<String> = line.iter().map(|b| format!("{b:02x}")).collect();
        out.push_str(&format!("  {}\n", hex.join(" ")));
    }
    out
}

#[test]
fn the_worked_session_in_the_documents_is_what_the_code_writes() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/PROTOCOL.md");
    let text = std::fs::read_to_string(path).unwrap();
    for (title, bytes) in session() {
        let block = block(title, &bytes);
        if std::env::var_os("TERN_PRINT").is_some() {
            print!("{block}");
        } else {
            assert!(text.contains(&block), "docs/PROTOCOL.md lacks this block:\n{block}");
        }
    }
}

#[test]
fn every_error_code_is_in_the_documents() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/PROTOCOL.md");
    let text = std::fs::read_to_string(path).unwrap();
    for code in tern_core::codes::Code::ALL {
        let row = format!("| {} | `{}` | {} |", *code as u32, code.name(), code.retry().as_str_name());
        assert!(text.contains(&row), "docs/PROTOCOL.md lacks this row: {row}");
    }
}
