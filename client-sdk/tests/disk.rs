//! SQLite on disks that are bad: locked, damaged, read-only, full. What `send` has returned for is there afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fake_edge;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fake_edge::{FakeEdge, chat, eventually, user};
use tern_client::store::sqlite::SqliteStore;
use tern_client::store::{OpenError, StoreError};
use tern_client::{
    BuildError, CallError, Client, ClientConfig, ConnectionState, Draft, FallbackEdge, SendError, StaticToken, Trouble,
};
use tern_net::system::system_env;

const ROLE: &str = "TERN_CLIENT_DISK_TEST_ROLE";
const DIR: &str = "TERN_CLIENT_DISK_TEST_DIR";

fn open(config: ClientConfig, dir: &Path) -> Result<Client, BuildError> {
    Client::builder(config).store(dir).token_provider(Arc::new(StaticToken("t".into()))).build()
}

fn offline(dir: &Path) -> Result<Client, BuildError> {
    open(ClientConfig::new(user("alice")), dir)
}

fn send(client: &Client, text: &str) -> Result<(), SendError> {
    client.direct(&user("bob")).map_err(SendError::from)?.send(Draft::text(text)).map(drop)
}

fn texts(client: &Client) -> Vec<String> {
    let conversation = client.direct(&user("bob")).unwrap();
    let shown = conversation.timeline(10_000).unwrap().messages;
    shown.iter().map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect()
}

fn store_error(error: &SendError) -> &StoreError {
    match error {
        SendError::Call(CallError::Store(e)) => e,
        other => panic!("{other}"),
    }
}

fn open_error(built: Result<Client, BuildError>) -> StoreError {
    match built.unwrap_err() {
        BuildError::Open(OpenError::Store(e)) | BuildError::Store(e) => e,
        other => panic!("{other}"),
    }
}

/// This test again, as another process with a role.
fn again(test: &str, role: &str, dir: &Path, through: &[&str]) -> Child {
    let own = std::env::current_exe().unwrap();
    let mut command = match through {
        [] => Command::new(&own),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(&own);
            command
        }
    };
    let child = command.args([test, "--exact", "--nocapture"]).env(ROLE, role).env(DIR, dir);
    child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn role() -> Option<(String, PathBuf)> {
    Some((std::env::var(ROLE).ok()?, PathBuf::from(std::env::var_os(DIR)?)))
}

/// Waits for a line of a child that begins so.
fn hear(child: &mut Child, line: &str) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|said| said.unwrap().ends_with(line)), "it ended before it said {line}");
}

/// A live client of an edge on loopback.
async fn live(dir: &Path) -> (FakeEdge, ClientConfig, Client) {
    let env = system_env().unwrap();
    let edge = FakeEdge::new(&env);
    let at = edge.listen_tcp().await;
    let mut config = ClientConfig::new(user("alice"));
    config.roots_pem = edge.ca_pem.clone().into_bytes();
    config.fallback_edges.push(FallbackEdge::new(at.to_string(), "localhost"));
    let client = open(config.clone(), dir).unwrap();
    eventually("live", || matches!(client.connection(), ConnectionState::Live { .. })).await;
    (edge, config, client)
}

fn in_trouble(client: &Client) -> Option<String> {
    match client.connection() {
        ConnectionState::Connecting { trouble: Some(Trouble::Store { message }), .. } => Some(message),
        _ => None,
    }
}

#[test]
fn a_store_that_another_process_has_locked_is_busy_and_not_lost() {
    const TEST: &str = "a_store_that_another_process_has_locked_is_busy_and_not_lost";
    if let Some((_, dir)) = role() {
        // A program of somebody else's, which holds the file for writing until its input ends.
        let db = rusqlite::Connection::open(SqliteStore::path(&dir, &user("alice"))).unwrap();
        db.execute_batch("BEGIN EXCLUSIVE").unwrap();
        println!("locked");
        std::io::stdout().flush().unwrap();
        std::io::stdin().lines().for_each(drop);
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (edge, config, client) = live(dir.path()).await;
        send(&client, "before").unwrap();
        eventually("it works", || texts(&client).len() == 2).await;
        let mut other = again(TEST, "lock", dir.path(), &[]);
        hear(&mut other, "locked");
        let refused = send(&client, "refused").unwrap_err();
        assert!(matches!(store_error(&refused), StoreError::Busy), "{refused}");
        assert!(in_trouble(&client).is_some_and(|words| words.contains("busy")), "{:?}", client.connection());
        assert_eq!(texts(&client), ["before", "re: before"], "reading goes on");
        drop(other.stdin.take());
        other.wait().unwrap();
        eventually("live again by itself", || matches!(client.connection(), ConnectionState::Live { .. })).await;
        send(&client, "after").unwrap();
        eventually("the rest", || texts(&client) == ["before", "re: before", "after", "re: after"]).await;
        assert_eq!(edge.core.lock().unwrap().log.len(), 4);
        client.close().await;
        // At the start.
        let mut other = again(TEST, "lock", dir.path(), &[]);
        hear(&mut other, "locked");
        let error = open_error(open(config.clone(), dir.path()));
        assert!(matches!(error, StoreError::Busy), "{error}");
        drop(other.stdin.take());
        other.wait().unwrap();
        let client = open(config, dir.path()).unwrap();
        assert_eq!(texts(&client).len(), 4);
        client.close().await;
    });
}

/// Damages a store that holds many messages, and says what became of it.
fn damaged(damage: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = offline(dir.path()).unwrap();
        for i in 0..200 {
            send(&client, &format!("{i} {}", "x".repeat(500))).unwrap();
        }
        client.suspend(Duration::from_secs(1)).await.unwrap();
        client.close().await;
    });
    let path = SqliteStore::path(dir.path(), &user("alice"));
    let mut bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() > 100_000, "{}", bytes.len());
    damage(&mut bytes);
    std::fs::write(&path, &bytes).unwrap();
    (dir, path, bytes)
}

#[test]
fn a_damaged_store_is_reported_left_as_it_is_and_can_be_set_aside() {
    type Damage = fn(&mut Vec<u8>);
    let header: Damage = |bytes| bytes[..64].fill(0xa5);
    let all_pages: Damage = |bytes| bytes[4096..].fill(0xa5);
    let cut: Damage = |bytes| bytes.truncate(8192);
    let nothing: Damage = Vec::clear;
    for (what, damage) in [("header", header), ("pages", all_pages), ("cut", cut), ("empty", nothing)] {
        let (dir, path, bytes) = damaged(damage);
        for _ in 0..2 {
            let error = open_error(offline(dir.path()));
            assert!(matches!(error, StoreError::Corrupt(_)), "{what}: {error}");
            assert!(error.to_string().contains("set_aside"), "a way out: {error}");
        }
        assert!(std::fs::read(&path).unwrap() == bytes, "{what}: it is left as it is");
        let aside = SqliteStore::set_aside(dir.path(), &user("alice")).unwrap();
        assert!(!path.exists() && std::fs::read(&aside).unwrap() == bytes, "{what}: nothing is deleted");
        let client = offline(dir.path()).unwrap();
        assert_eq!(texts(&client), Vec::<String>::new());
        send(&client, "anew").unwrap();
        let in_use = SqliteStore::set_aside(dir.path(), &user("alice")).unwrap_err();
        assert!(matches!(in_use, OpenError::InUse { .. }), "not under a running client: {in_use}");
        drop(client);
    }
}

#[test]
fn one_damaged_page_in_the_middle_hurts_what_needs_it_and_says_so() {
    // The pages of bodies: what is needed to send is elsewhere, or it is not, and then it is said at the start.
    let (mut opened, mut said) = (0, 0);
    for page in [3, 9, 15, 21, 27, 33] {
        let (dir, _, _) = damaged(|bytes| {
            let at = page * 4096;
            bytes[at..at + 4096].fill(0xa5);
        });
        let Ok(client) = offline(dir.path()) else {
            said += 1;
            continue;
        };
        opened += 1;
        let conversation = client.direct(&user("bob")).unwrap();
        match conversation.timeline(10_000) {
            // All of it, or an error: never a part as if it were all.
            Ok(snapshot) => assert_eq!(snapshot.messages.len(), 200, "page {page}"),
            Err(CallError::Store(StoreError::Corrupt(_))) => said += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(said > 0, "{opened} opened, {said} said so");
}

/// Runs the test in a namespace of mounts of its own, where `DIR` is a small file system. False: there is none to be had.
fn in_small_filesystem(test: &str) -> bool {
    let possible = Command::new("unshare").args(["--mount", "--map-root-user", "true"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must be able to make a namespace of mounts");
        eprintln!("skipped: no namespace of mounts can be made here");
        return false;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=2m tmpfs "$TERN_CLIENT_DISK_TEST_DIR" && exec "$0" "$@""#;
    let mut child = again(test, "small", dir.path(), &["unshare", "--mount", "--map-root-user", "sh", "-c", script]);
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    true
}

#[test]
fn a_full_disk_refuses_what_it_can_not_keep_and_what_was_taken_goes_out() {
    let Some((_, dir)) = role() else {
        in_small_filesystem("a_full_disk_refuses_what_it_can_not_keep_and_what_was_taken_goes_out");
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (edge, config, client) = live(&dir).await;
        let mut taken = Vec::new();
        let error = loop {
            let text = format!("{} {}", taken.len(), "x".repeat(20_000));
            match send(&client, &text) {
                Ok(()) => taken.push(text),
                Err(e) => break e,
            }
            assert!(taken.len() < 1000, "it is never full");
        };
        assert!(matches!(store_error(&error), StoreError::Full), "{error}");
        assert!(in_trouble(&client).is_some_and(|words| words.contains("disk is full")), "{:?}", client.connection());
        // The process dies in the middle of it, and can't even start again.
        client.close().await;
        std::fs::write(dir.join("filler"), vec![0; 4 << 20]).unwrap_err();
        let error = open_error(open(config.clone(), &dir));
        assert!(matches!(error, StoreError::Full), "{error}");
        std::fs::remove_file(dir.join("filler")).unwrap();
        let status = Command::new("mount").args(["-o", "remount,size=64m"]).arg(&dir).status().unwrap();
        assert!(status.success());
        let client = open(config, &dir).unwrap();
        let mine = |client: &Client| texts(client).into_iter().filter(|t| !t.starts_with("re: ")).collect::<Vec<_>>();
        eventually("all that was taken is sent", || client.waiting().0 == 0).await;
        assert_eq!(mine(&client), taken, "once, in order");
        let log = edge.core.lock().unwrap().log.clone();
        let sent: Vec<_> = log.iter().map(|e| String::from_utf8_lossy(&e.body).into_owned()).collect();
        assert_eq!(sent.iter().filter(|t| !t.starts_with("re: ")).cloned().collect::<Vec<_>>(), taken);
        assert!(log.iter().all(|e| e.by.user == user("bob") || client.conversation(chat()).id() == chat()));
        client.close().await;
    });
}

#[test]
fn a_read_only_disk_is_named_at_the_start_and_in_the_middle() {
    let Some((_, dir)) = role() else {
        in_small_filesystem("a_read_only_disk_is_named_at_the_start_and_in_the_middle");
        return;
    };
    let remount = |how: &str| {
        let status = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&dir).status().unwrap();
        assert!(status.success(), "{how}");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        remount("ro");
        let error = offline(&dir).unwrap_err();
        assert!(matches!(error, BuildError::Open(OpenError::Io { .. })), "{error}");
        remount("rw");
        let client = offline(&dir).unwrap();
        send(&client, "kept").unwrap();
        client.close().await;
        // The file alone, of a whole store.
        let path = SqliteStore::path(&dir, &user("alice"));
        let bind = |what: &[&str]| assert!(Command::new("mount").args(what).arg(&path).status().unwrap().success());
        bind(&["--bind", path.to_str().unwrap()]);
        bind(&["-o", "remount,bind,ro"]);
        let error = open_error(offline(&dir));
        assert!(matches!(error, StoreError::ReadOnly(_)), "{error}");
        assert!(Command::new("umount").arg(&path).status().unwrap().success());
        let client = offline(&dir).unwrap();
        assert_eq!(texts(&client), ["kept"]);
        client.close().await;
    });
}
