//! Two regions with edges of their own go from an older program to this one, process by process, and one goes back. The
//! older program is named by `TERN_PREVIOUS`; `tests/rolling/check` builds it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tern::fleet::Fleet;
use tern_client::UserId;

use crate::program;
use crate::scene::{Device, Scene};

/// A client of the older program: a chat that goes on, and what it has printed.
struct Talker {
    child: Child,
    said: Arc<Mutex<String>>,
    typed: usize,
}

impl Talker {
    fn new(program: &Path, data: &Path, user: &str, to: &str) -> Self {
        let mut child = program::clean(program)
            .args(["chat", "--user", user, "--to", to, "--near", "eu", "--data"])
            .arg(data)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, mut output) = (Arc::new(Mutex::new(String::new())), child.stdout.take().unwrap());
        let all = said.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                all.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { child, said, typed: 0 }
    }

    fn types_line(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn types(&mut self, who: &str) {
        self.typed += 1;
        self.types_line(&format!("{who} {}", self.typed));
    }

    /// Lines that it has shown of somebody, as they came. One that came late, and so belongs higher up, says so.
    fn shown_of(&self, who: &str) -> Vec<String> {
        let said = self.said.lock().unwrap();
        let mark = format!("{who}: ");
        let lines = said.lines().filter_map(|line| line.split_once(&mark));
        lines.map(|(_, text)| text.trim_end_matches(" (late)").to_owned()).collect()
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        self.child.wait().unwrap();
    }
}

fn numbered(who: &str, n: usize) -> Vec<String> {
    (1..=n).map(|n| format!("{who} {n}")).collect()
}

/// What the two of them have said since, by both programs, was shown once, and by this one in order.
async fn talked(scene: &Scene, old: &Talker, sent: usize, what: &str) {
    let ada = &scene.devices["ada"].client;
    let id = ada.direct(&UserId::new("hal").unwrap()).unwrap().id();
    scene
        .until(what, || {
            let all = ada.conversation(id).timeline(usize::MAX >> 1).unwrap().messages;
            let texts = all.iter().map(|m| String::from_utf8_lossy(&m.body).into_owned());
            let of_hal: Vec<String> = texts.filter(|text| text.starts_with("hal ")).collect();
            let of_ada = old.shown_of("ada");
            assert!(numbered("hal", old.typed).starts_with(&of_hal), "{of_hal:?}");
            assert_eq!(of_ada.iter().collect::<BTreeSet<_>>().len(), of_ada.len(), "{of_ada:?}");
            of_hal.len() == old.typed && of_ada.len() == sent
        })
        .await;
}

#[tokio::test]
async fn two_regions_are_upgraded_process_by_process_and_one_goes_back() {
    let Ok(previous) = std::env::var("TERN_PREVIOUS") else {
        eprintln!("skipped: no older program; tests/rolling/check builds one");
        return;
    };
    let previous = PathBuf::from(previous);
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::plan(dir.path(), 29_200, previous.clone(), &[("eu", 1), ("us", 1)]);
    for process in &mut scene.processes {
        process.arguments.extend(["--set".to_owned(), "edge.drain_window=1s".to_owned()]);
    }
    let mut newer = Fleet::new(PathBuf::from(env!("CARGO_BIN_EXE_tern")), &scene.data).unwrap();
    scene.start_all().await;
    for (user, near) in [("ada", "eu"), ("ben", "eu"), ("cleo", "us"), ("dora", "us")] {
        scene.join(user, near);
    }
    let mut old = Talker::new(&previous, &scene.data, "hal", "ada");
    let mut sent = 0;
    let mut talk = |scene: &Scene, old: &mut Talker| {
        sent += 1;
        old.types("hal");
        let to_hal = scene.devices["ada"].client.direct(&UserId::new("hal").unwrap()).unwrap();
        to_hal.send(tern_client::Draft::text(format!("ada-to-hal {sent}"))).unwrap();
        sent
    };
    scene.say_for(Duration::from_secs(2)).await;
    let n = talk(&scene, &mut old);
    scene.settle("the first messages are shown").await;
    talked(&scene, &old, n, "the older client is there").await;

    // Edges first, then regions, one at a time.
    for name in ["eu-e2", "us-e2", "eu-e1", "us-e1"] {
        talk(&scene, &mut old);
        scene.stop(name).await;
        talk(&scene, &mut old);
        let arguments = scene.arguments(name).to_vec();
        scene.say_during(newer.start(name, &arguments)).await.unwrap();
        scene.say_for(Duration::from_secs(1)).await;
        let n = talk(&scene, &mut old);
        scene.settle(&format!("what was said around the upgrade of {name} is shown")).await;
        talked(&scene, &old, n, "so does the older client").await;
        scene.all_run();
        assert!(newer.ended().is_none(), "{:?}", newer.ended());
    }
    // One edge and one region go back.
    for name in ["us-e2", "eu-e1"] {
        std::mem::swap(&mut scene.fleet, &mut newer);
        scene.stop(name).await;
        std::mem::swap(&mut scene.fleet, &mut newer);
        let arguments = scene.arguments(name).to_vec();
        scene.fleet.start(name, &arguments).await.unwrap();
        scene.say_for(Duration::from_secs(1)).await;
        let n = talk(&scene, &mut old);
        scene.settle(&format!("what was said around the way back of {name} is shown")).await;
        talked(&scene, &old, n, "so does the older client").await;
        scene.all_run();
        assert!(newer.ended().is_none(), "{:?}", newer.ended());
    }
    // The older client's own order is that of its history, which is shown anew for a screen.
    let before = old.shown_of("ada").len();
    old.types_line("/history");
    let is_in_order = || {
        let shown = old.shown_of("ada");
        shown.len() >= before + 5 && numbered("ada-to-hal", sent).ends_with(&shown[shown.len() - 5..])
    };
    scene.until("the history of the older client is in order", is_in_order).await;
    scene.until("all are live", || scene.devices.values().all(Device::is_live)).await;
    for name in ["eu-e1", "eu-e2", "us-e1", "us-e2"] {
        let log = scene.log(name);
        assert!(!log.contains("was refused") && !log.contains("refuses this edge"), "{name}: {log}");
    }
    scene.fleet.stop(Duration::from_secs(30)).await;
    newer.stop(Duration::from_secs(30)).await;
}
