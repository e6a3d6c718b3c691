use std::sync::atomic::{AtomicU32, Ordering};

use tern_net::system::SystemClock;

use super::*;

struct Scene {
    dir: tempfile::TempDir,
    reloader: Arc<Reloader>,
    capacity: Arc<AtomicU32>,
}

impl Scene {
    /// One part takes the capacity, and refuses odd ones; another the token keys' file, and wants it to say "good".
    fn new(role: Role) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tern.toml");
        fs::write(&file, "[edge]\ncapacity = 4\n").unwrap();
        fs::write(dir.path().join("tokens"), "good").unwrap();
        let tokens = ("--set".into(), "tokens.file".into(), dir.path().join("tokens").display().to_string());
        let sources = Sources { file: Some(file), flags: vec![tokens], ..Sources::default() };
        let settings = sources.load().unwrap();
        let reloader = Reloader::new(role, sources, settings, Arc::new(SystemClock));
        let capacity = Arc::new(AtomicU32::new(4));
        let seen = capacity.clone();
        reloader.add(Part::new("edge", &["edge.capacity", "limits.sends_burst"], move |settings| {
            if settings.edge_capacity % 2 == 1 {
                return Err("it is odd".into());
            }
            seen.store(settings.edge_capacity, Ordering::Relaxed);
            Ok(())
        }));
        let path = |settings: &Settings| settings.tokens_file.clone().unwrap();
        let apply = move |settings: &Settings| match fs::read_to_string(path(settings)) {
            Ok(text) if text.starts_with("good") => Ok(()),
            Ok(text) => Err(format!("{text} is not good")),
            Err(error) => Err(error.to_string()),
        };
        let part = Part::new("token keys", &["tokens.file"], apply).with_files(move |settings| vec![path(settings)]);
        reloader.add(part);
        Self { dir, reloader, capacity }
    }

    fn write(&self, name: &str, text: &str) {
        // As careful tools do: a new file, then a rename.
        fs::write(self.dir.path().join("new"), text).unwrap();
        fs::rename(self.dir.path().join("new"), self.dir.path().join(name)).unwrap();
    }

    fn reload(&self) -> Vec<String> {
        said(&self.reloader.reload())
    }

    /// What looking at the files finds.
    fn look(&self) -> Vec<String> {
        let mut changes = Vec::new();
        self.reloader.state().take_files(false, &mut changes);
        said(&Report { changes, ..Report::default() })
    }
}

fn said(report: &Report) -> Vec<String> {
    let problems = report.problems.iter().map(|problem| format!("wrong: {problem}"));
    let changes = report.changes.iter().map(|Change { what, outcome }| {
        let what = what.split('/').next_back().unwrap();
        match outcome {
            Outcome::Rejected(why) => format!("{what} rejected: {why}"),
            outcome => format!("{what} {}", outcome.name()),
        }
    });
    problems.chain(changes).collect()
}

#[test]
fn each_change_is_applied_or_waits_for_a_restart_or_is_rejected() {
    let scene = Scene::new(Role::Edge);
    assert!(scene.reload().is_empty());
    scene.write("tern.toml", "deployment = \"x\"\n[edge]\ncapacity = 6\n[store]\ncache = \"8MiB\"\n");
    assert_eq!(scene.reload(), ["deployment restart-required", "edge.capacity applied", "store.cache applied"]);
    assert_eq!(scene.capacity.load(Ordering::Relaxed), 6);
    let settings = scene.reloader.settings();
    assert_eq!((settings.edge_capacity, settings.deployment.as_str()), (6, "tern"));
    assert!(settings.source("edge.capacity").to_string().ends_with("tern.toml:3"));
    assert_eq!(scene.reload(), ["deployment restart-required"], "until the restart");
    assert_eq!(scene.reloader.state().pending, ["deployment"]);

    scene.write("tern.toml", "[edge]\ncapacity = 7\n[limits]\nsends_burst = 9\n");
    assert_eq!(
        scene.reload(),
        ["edge.capacity rejected: it is odd", "limits.sends_burst rejected: it is odd", "store.cache applied"]
    );
    assert_eq!(scene.reloader.settings().edge_capacity, 6, "what is rejected does not come into force");
    scene.write("tern.toml", "[edge]\ncapacity = 6\n");
    assert!(scene.reload().is_empty());
}

#[test]
fn a_configuration_that_is_wrong_as_a_whole_changes_nothing() {
    let scene = Scene::new(Role::Edge);
    for wrong in ["[edge]\ncapacity = 8\ncapaticy = 9\n", "[edge\n", "[edge]\ncapacity = 0\n"] {
        scene.write("tern.toml", wrong);
        let report = scene.reloader.reload();
        assert!(!report.is_ok() && report.changes.is_empty() && !report.problems.is_empty(), "{wrong}");
        assert_eq!(scene.capacity.load(Ordering::Relaxed), 4);
    }
    fs::remove_file(scene.dir.path().join("tern.toml")).unwrap();
    assert!(scene.reloader.reload().problems[0].contains("can't be read"));
    assert_eq!(scene.reloader.settings().edge_capacity, 4);
    let json = scene.reloader.json();
    assert_eq!(json["last_reload"]["ok"], false);
    scene.write("tern.toml", "[edge]\ncapacity = 8\n");
    assert_eq!(scene.reload(), ["edge.capacity applied"]);
}

#[test]
fn a_changed_file_is_taken_when_it_is_whole_and_one_that_stays_wrong_is_told_of_once() {
    let scene = Scene::new(Role::Region);
    assert!(scene.look().is_empty());
    scene.write("tokens", "half");
    assert!(scene.look().is_empty(), "it may be half done");
    assert_eq!(scene.look(), ["files of the token keys rejected: half is not good"]);
    assert!(scene.look().is_empty(), "told once");
    assert_eq!(scene.reload(), ["files of the token keys rejected: half is not good"], "but to all who ask");
    scene.write("tokens", "good again");
    assert_eq!(scene.look(), ["tokens applied"]);
    assert!(scene.look().is_empty());
    scene.write("tokens", "half");
    assert!(scene.look().is_empty());
    scene.write("tokens", "good at last");
    assert_eq!(scene.look(), ["tokens applied"]);
    fs::remove_file(scene.dir.path().join("tokens")).unwrap();
    assert_eq!(scene.reload().len(), 1);
    scene.write("tokens", "good");
    assert_eq!(scene.reload(), ["tokens applied"]);
}

#[test]
fn what_should_be_reloadable_and_is_not_is_found() {
    let scene = Scene::new(Role::Edge);
    let forgotten = scene.reloader.forgotten();
    assert!(forgotten.contains(&"log.level") && !forgotten.contains(&"edge.capacity"), "{forgotten:?}");
    assert!(!forgotten.contains(&"dispatch.geoip"), "it is no edge's");
}
