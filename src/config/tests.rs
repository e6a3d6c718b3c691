use std::io::Write;

use super::source::{ENV_PREFIX, Source, env_name};
use super::*;

fn load(toml: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Settings, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(toml.as_bytes()).unwrap();
    let own =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>();
    Sources {
        file: Some(file.path().to_owned()),
        environment: own(environment),
        flags: own(flags).into_iter().map(|(key, value)| (format!("--set {key}"), key, value)).collect(),
    }
    .load()
    .map_err(|e| e.to_string().replace(&file.path().display().to_string(), "FILE"))
}

#[test]
fn every_default_is_valid_and_the_printed_file_says_the_same_as_no_file() {
    let printed = show::default_toml();
    let from_print = load(&printed, &[], &[]).unwrap();
    let from_nothing = Sources::default().load().unwrap();
    let values = |s: &Settings| s.show().into_iter().map(|(k, v, _)| (k, v)).collect::<Vec<_>>();
    assert_eq!(values(&from_print), values(&from_nothing));
    for key in KEYS {
        assert!(printed.contains(&env_name(key.name)), "{} is not described", key.name);
    }
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let file = "deployment = \"file\"\nreoffer_after = \"1s\"\n\n[region]\nname = \"eu\"\n";
    let settings = load(
        file,
        &[("TERN_DEPLOYMENT", "environment"), ("TERN_REOFFER_AFTER", "2s"), ("HOME", "/")],
        &[("deployment", "flag")],
    )
    .unwrap();
    assert_eq!(settings.deployment, "flag");
    assert_eq!(settings.reoffer_after.as_secs(), 2);
    assert_eq!(settings.region_name().unwrap(), "eu");
    assert!(matches!(settings.source("deployment"), Source::Flag(_)));
    assert_eq!(settings.source("reoffer_after").to_string(), "environment TERN_REOFFER_AFTER");
    assert!(matches!(settings.source("region.name"), Source::File { line: 5, .. }));
    assert_eq!(settings.source("data"), &Source::Default);
}

#[test]
fn an_unknown_key_names_its_line_and_the_nearest_valid_key() {
    let error = load("\n[region]\nnmae = \"eu\"\n", &[], &[]).unwrap_err();
    assert!(error.contains("FILE:3: unknown key \"region.nmae\"; did you mean \"region.name\"?"), "{error}");
    let error = load("id = 3\n", &[], &[]).unwrap_err();
    assert!(error.contains("did you mean \"region.id\"?"), "{error}");
    let error = load("", &[("TERN_REGION_NAMES", "eu")], &[]).unwrap_err();
    assert!(error.contains("did you mean \"TERN_REGION_NAME\"?"), "{error}");
    let error = load("", &[], &[("log.levle", "debug")]).unwrap_err();
    assert!(error.contains("flag --set log.levle") && error.contains("\"log.level\""), "{error}");
}

#[test]
fn all_problems_are_told_at_once_each_with_its_place() {
    let error = load("deploiment = \"x\"\nreoffer_after = 3\n[limits]\nsends_burst = -1\n", &[], &[]).unwrap_err();
    assert!(error.contains("FILE:1: unknown key"), "{error}");
    assert!(error.contains("FILE:2: reoffer_after has no unit"), "{error}");
    assert!(error.contains("FILE:4: limits.sends_burst is -1"), "{error}");
}

#[test]
fn bad_toml_names_the_line() {
    let error = load("deployment = \"x\"\nlog = [\n", &[], &[]).unwrap_err();
    assert!(error.contains("not TOML"), "{error}");
    let error = load("region = 3\n", &[], &[]).unwrap_err();
    assert!(error.contains("region is a section"), "{error}");
}

#[test]
fn a_missing_file_says_how_to_make_one() {
    let sources = Sources { file: Some("/nonexistent/tern.toml".into()), ..Sources::default() };
    assert!(sources.load().unwrap_err().to_string().contains("tern config default"));
}

#[test]
fn peers_can_be_a_list_of_tables_or_text() {
    let file = "[[peers]]\nregion = 2\nname = \"us\"\naddr = \"us.example.org:7422\"\n";
    assert_eq!(load(file, &[], &[]).unwrap().peers[0].name, "us");
    let text = load("", &[("TERN_PEERS", "2:us@us.example.org:7422,3:ap@192.0.2.3:7432")], &[]).unwrap();
    assert_eq!(text.peers.len(), 2);
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    for (toml, expected) in [
        ("[region]\nid = 0\n", "region.id is 0; it must be from 1 to 255"),
        ("[region]\nname = \"EU West\"\n", "host name"),
        ("peers = [\"1:eu@a:1\"]\n[region]\nid = 1\n", "which is this one"),
        ("peers = [\"2:eu@a:1\", \"2:us@b:1\"]\n", "twice"),
        ("[heartbeat]\nbackground_min = \"5m\"\nbackground_max = \"4m\"\n", "above heartbeat.background_max"),
        ("[limits]\nsends_per_second = 0\n", "it must be from 1 to 1000000"),
    ] {
        let error = load(toml, &[], &[]).unwrap_err();
        assert!(error.contains(expected), "{toml}: {error}");
    }
}

#[test]
fn an_archive_is_named_by_a_url_and_what_contradicts_it_is_told() {
    let tier = |more: &str| load(&format!("[store.tier]\nurl = \"s3://old/eu\"\n{more}"), &[], &[]);
    let settings = tier("endpoint = \"https://s3.example.com\"\nkey = \"name\"\nsecret = \"word\"").unwrap();
    let location = settings.store_tier_url.unwrap().location;
    assert_eq!(location, tern_archive::Location::S3 { bucket: "old".to_owned(), prefix: "eu".to_owned() });
    assert_eq!(settings.store_tier_after, std::time::Duration::from_secs(90 * 86_400));
    for (more, words) in [
        ("key = \"name\"", "store.tier.secret belong together"),
        ("endpoint = \"s3.example.com\"", "store.tier.endpoint is no URL"),
        ("after = \"1s\"", "store.tier.after"),
    ] {
        let error = tier(more).unwrap_err();
        assert!(error.contains(words), "{more}: {error}");
    }
    let scylla = load(
        "[store]\nkind = \"scylla\"\nnodes = [\"db:9042\"]\ndatacenter = \"dc1\"\ntier.url = \"file:///archive\"",
        &[],
        &[],
    );
    assert!(scylla.unwrap().store_tier_url.is_some());
    let error = load("[store.tier]\nurl = \"https://s3.example.com/old\"", &[], &[]).unwrap_err();
    assert!(error.contains("store.tier.url is") && error.contains("s3://BUCKET/PREFIX"), "{error}");
}

#[test]
fn ports_follow_the_region_and_can_be_set() {
    let settings = load("[region]\nid = 2\n[listen]\nip = \"127.0.0.1\"\n", &[], &[]).unwrap();
    assert_eq!(settings.client_listen().port(), 7420);
    assert_eq!(settings.dispatch_listen().port(), 7421);
    assert_eq!(settings.node_listen().port(), 7422);
    assert_eq!(settings.admin_listen().to_string(), "127.0.0.1:7423");
    assert_eq!(settings.advertised().unwrap()[0].to_string(), "127.0.0.1:7420");
    let settings = load("[listen]\nclient = 443\n", &[], &[]).unwrap();
    assert_eq!(settings.client_listen().to_string(), "0.0.0.0:443");
    assert!(settings.advertised().unwrap_err().to_string().contains("advertise is not set"));
    assert!(settings.region_id().unwrap_err().to_string().contains("TERN_REGION_ID"));
}

#[test]
fn a_secret_is_not_printed_whatever_prints_it() {
    let settings = load("", &[("TERN_RECEIPT_KEY", "00ff00ff")], &[]).unwrap();
    let everything = format!("{settings:?}{}{}", show::check_table(&settings), show::check_json(&settings));
    assert!(!everything.contains("00ff00ff"));
    assert!(everything.contains("environment TERN_RECEIPT_KEY"));
    assert_eq!(ENV_PREFIX, "TERN_");
}

#[test]
fn a_range_is_part_of_its_keys_definition_and_holds_in_every_source() {
    for key in KEYS {
        let Some((least, most)) = key.range else { continue };
        for bound in [least, most] {
            // Bounds of two keys that depend on each other are not meant to stand alone.
            if !key.name.starts_with("heartbeat.") {
                assert!(load("", &[], &[(key.name, bound)]).is_ok(), "{} = {bound}", key.name);
            }
        }
        let above = match most.find(|c: char| !c.is_ascii_digit()) {
            Some(unit) => format!("{}{}", most[..unit].parse::<u64>().unwrap() + 1, &most[unit..]),
            None => (most.parse::<u64>().unwrap() + 1).to_string(),
        };
        let error = load("", &[(&env_name(key.name), &above)], &[]).unwrap_err();
        assert!(error.contains(key.name) && error.contains(&env_name(key.name)), "{error}");
    }
}

#[test]
fn what_changed_is_found_by_value_and_taken_with_its_source() {
    let old = load("", &[("TERN_RECEIPT_KEY", "a")], &[]).unwrap();
    let new = load("[edge]\ncapacity = 7\n", &[("TERN_RECEIPT_KEY", "b")], &[("log.level", "info")]).unwrap();
    let names: Vec<&str> = new.changed(&old).iter().map(|k| k.name).collect();
    assert_eq!(names, ["receipt.key", "edge.capacity"], "a secret that changes is seen, an equal value is not");
    let mut mixed = old.clone();
    mixed.take("edge.capacity", &new);
    assert_eq!(
        (mixed.edge_capacity, mixed.source("edge.capacity").to_string()),
        (7, "FILE:2".to_owned().replace("FILE", &new.source("edge.capacity").to_string().replace(":2", "")))
    );
    assert_eq!(mixed.receipt_key, old.receipt_key);
    mixed.take("edge.capacity", &old);
    assert_eq!(mixed.source("edge.capacity"), &Source::Default);
}

#[test]
fn a_program_that_is_older_than_the_deployments_oldest_version_does_not_start() {
    use tern_core::wire::NODE_VERSION;
    let later = (NODE_VERSION + 1).to_string();
    let error = load("", &[], &[("nodes.oldest_version", &later)]).unwrap_err();
    assert!(
        error.contains(&format!("above what this program speaks, {NODE_VERSION}: start a newer program")),
        "{error}"
    );
    assert!(load("", &[], &[("nodes.oldest_version", "0")]).unwrap_err().contains("below"));
}
