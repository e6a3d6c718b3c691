//! The tables, and how they came to be: one step per format, never changed once released.

/// Migrations in order; `PRAGMA user_version` counts those applied.
///
/// 64-bit numbers are stored as SQLite's signed ones, bit by bit; whatever is ordered as unsigned is a blob.
/// `message.key` is the display key as 25 bytes whose order is the order of display; null = not placed yet.
/// `fact.entry` is an entry's stored form (`tern_core::entry`), `folded.cells` a `Cells` message of the wire;
/// `conversation.lowest` is the row's `from`. `copy.key` is a copy's display key; null where a message had several
/// before format 3. `copy.void`: it lies above the end of its log.
pub(super) const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE cursor (region INTEGER PRIMARY KEY, era INTEGER NOT NULL, rev INTEGER NOT NULL);
CREATE TABLE conversation (
    id BLOB PRIMARY KEY,
    peer TEXT,
    next_n INTEGER NOT NULL,
    seen_hlc INTEGER NOT NULL,
    mark BLOB NOT NULL,
    state INTEGER NOT NULL,
    sighted INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE vector (
    conversation BLOB NOT NULL,
    origin BLOB NOT NULL,
    head INTEGER NOT NULL,
    floor INTEGER NOT NULL,
    floor_hlc INTEGER NOT NULL,
    held BLOB NOT NULL,
    lost BLOB NOT NULL,
    PRIMARY KEY (conversation, origin)
) WITHOUT ROWID;
CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    conversation BLOB NOT NULL,
    user TEXT NOT NULL,
    install TEXT NOT NULL,
    n INTEGER NOT NULL,
    hash BLOB NOT NULL,
    kind INTEGER NOT NULL,
    wall_ms INTEGER NOT NULL,
    body BLOB NOT NULL,
    key BLOB,
    state INTEGER NOT NULL,
    unread INTEGER NOT NULL
);
CREATE UNIQUE INDEX message_identity ON message (conversation, user, install, n, hash) WHERE n <> 0;
CREATE INDEX message_order ON message (conversation, key) WHERE key IS NOT NULL;
CREATE INDEX message_unread ON message (conversation) WHERE unread = 1;
CREATE TABLE copy (
    conversation BLOB NOT NULL,
    origin BLOB NOT NULL,
    seq INTEGER NOT NULL,
    message INTEGER NOT NULL,
    PRIMARY KEY (conversation, origin, seq)
) WITHOUT ROWID;
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY,
    conversation BLOB NOT NULL,
    install TEXT NOT NULL,
    n INTEGER NOT NULL,
    state INTEGER NOT NULL,
    key BLOB,
    receipt BLOB,
    places BLOB NOT NULL
);
",
    "
ALTER TABLE message ADD COLUMN erased INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversation ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversation ADD COLUMN heads BLOB NOT NULL DEFAULT x'';
ALTER TABLE conversation ADD COLUMN read BLOB NOT NULL DEFAULT x'';
ALTER TABLE conversation ADD COLUMN peer_read BLOB NOT NULL DEFAULT x'';
ALTER TABLE conversation ADD COLUMN lowest BLOB NOT NULL DEFAULT x'';
ALTER TABLE conversation ADD COLUMN unread_hint INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN tried BLOB NOT NULL DEFAULT x'';
CREATE INDEX copy_message ON copy (message);
CREATE TABLE fact (
    conversation BLOB NOT NULL,
    origin BLOB NOT NULL,
    seq INTEGER NOT NULL,
    entry BLOB NOT NULL,
    PRIMARY KEY (conversation, origin, seq)
) WITHOUT ROWID;
CREATE TABLE folded (conversation BLOB PRIMARY KEY, cells BLOB NOT NULL) WITHOUT ROWID;
",
    "
ALTER TABLE copy ADD COLUMN key BLOB;
ALTER TABLE copy ADD COLUMN void INTEGER NOT NULL DEFAULT 0;
UPDATE copy SET key = (SELECT key FROM message WHERE message.id = copy.message)
    WHERE (SELECT count(*) FROM copy AS other WHERE other.message = copy.message) = 1;
ALTER TABLE conversation ADD COLUMN starts BLOB NOT NULL DEFAULT x'';
ALTER TABLE conversation ADD COLUMN unfolded BLOB NOT NULL DEFAULT x'';
ALTER TABLE conversation ADD COLUMN ended BLOB NOT NULL DEFAULT x'';
",
];
