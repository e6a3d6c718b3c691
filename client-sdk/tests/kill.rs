//! The process dies at any moment: what `send` has returned for is there when it starts again, once.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use tern_client::{Client, ClientConfig, Draft, MessageState, UserId};

const CHILD: &str = "TERN_CLIENT_KILL_TEST_DIR";

fn client(dir: &Path) -> Client {
    Client::builder(ClientConfig::new(UserId::new("alice").unwrap())).store(dir).build().unwrap()
}

/// In the child: sends for ever, and prints what was taken.
fn child(dir: &Path) {
    let client = client(dir);
    let conversation = client.direct(&UserId::new("bob").unwrap()).unwrap();
    let start = conversation.timeline(usize::MAX).unwrap().messages.len();
    for i in start.. {
        conversation.send(Draft::text(format!("m{i}"))).unwrap();
        println!("taken m{i}");
        std::io::stdout().flush().unwrap();
    }
}

#[test]
fn kill_dash_nine_loses_nothing_that_send_returned_for() {
    if let Some(dir) = std::env::var_os(CHILD) {
        child(Path::new(&dir));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut taken = BTreeSet::new();
    for round in 0..8u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["kill_dash_nine_loses_nothing_that_send_returned_for", "--exact", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let some = 3 + round * 7;
        let mut seen = 0;
        while seen < some {
            let line = lines.next().expect("the child sends").unwrap();
            if let Some(at) = line.find("taken ") {
                taken.insert(line[at + 6..].to_owned());
                seen += 1;
            }
        }
        // It goes on while these lines are read: the kill hits it anywhere.
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            if let Some(text) = line.strip_prefix("taken ") {
                taken.insert(text.to_owned());
            }
        }
        let client = client(dir.path());
        let shown = client.direct(&UserId::new("bob").unwrap()).unwrap().timeline(usize::MAX).unwrap().messages;
        let texts: Vec<_> = shown.iter().map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect();
        let once: BTreeSet<_> = texts.iter().cloned().collect();
        assert_eq!(once.len(), texts.len(), "nothing twice");
        assert!(taken.is_subset(&once), "lost: {:?}", taken.difference(&once).collect::<Vec<_>>());
        assert!(shown.windows(2).all(|w| w[0].id < w[1].id), "in order");
        assert!(shown.iter().all(|m| m.state == MessageState::Queued));
    }
}
