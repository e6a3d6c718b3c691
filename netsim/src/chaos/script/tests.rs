//! Good scripts are read, and each mistake is told with its place.

use super::*;

const GOOD: &str = r#"[chaos]
name = "one"
about = "An edge dies."

[values]
down = "5s"
rate = "20"

[target]
kind = "local"
regions = ["eu", "us"]
edges = 1

[load]
clients = 2
conversations = 4
rate = "${rate}"
for = "20s"

[[fault]]
id = "edge"
at = "4s"
kind = "kill"
target = "eu-e1"
for = "${down}"

[bounds]
next_ack = { median = "500ms", p99 = "3s" }
lost = 0
"#;

fn parse(text: &str) -> Result<Script, String> {
    Script::parse(text, &BTreeMap::new(), Path::new("here"))
}

/// What is said of the script with one thing changed.
fn refused(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    parse(&GOOD.replacen(from, to, 1)).unwrap_err()
}

#[test]
fn a_script_is_read_with_its_values() {
    let script = parse(GOOD).unwrap();
    assert_eq!(script.faults[0].lasts, Some(Duration::from_secs(5)));
    assert_eq!(script.faults[0].kind, FaultKind::Kill(vec!["eu-e1".into()]));
    assert_eq!(script.faults[0].meets, ["eu-e1"]);
    assert_eq!(script.bounds.next_ack, Limits { median: Some(0.5), p99: Some(3.0), max: None });
    assert_eq!((script.bounds.lost, script.bounds.doubled), (Some(0), None));
    assert!((script.load.rate - 20.0).abs() < 1e-9);
    let with = BTreeMap::from([("down".to_owned(), "9s".to_owned())]);
    let script = Script::parse(GOOD, &with, Path::new("")).unwrap();
    assert_eq!(script.faults[0].lasts, Some(Duration::from_secs(9)));
    let names: Vec<String> = script.processes().into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["eu-n1", "eu-e1", "us-n1", "us-e1"]);
}

#[test]
fn whom_a_fault_meets_follows_from_what_it_strikes() {
    let struck = |target: &str, nodes: &str| {
        let database = "\n[target.database]\nnodes = \"127.0.0.1:9042\"\nreplication = \"dc1:3\"\n";
        let text = GOOD.replace("edges = 1\n", &format!("edges = 1\nnodes = {nodes}\n{database}"));
        let script = parse(&text.replace("\"eu-e1\"", &format!("\"{target}\""))).unwrap();
        script.faults[0].meets.clone()
    };
    // A region: those who are connected there.
    assert_eq!(struck("eu", "2"), ["eu-n1", "eu-n2", "eu-e1"]);
    // One core node of several: whoever writes what it orders, wherever he is.
    assert_eq!(struck("eu-n2", "3"), [""; 0]);
    assert_eq!(struck("eu-n1", "1"), ["eu-n1"]);
}

#[test]
fn each_mistake_is_told_with_line_and_column() {
    for (from, to, place, words) in [
        ("name = \"one\"", "name = \"one two\"", "2:8", "letters, digits and hyphens"),
        ("kind = \"local\"", "kind = \"cloud\"", "10:8", "no target \"cloud\""),
        ("regions = [\"eu\", \"us\"]", "regions = []", "11:11", "give 1 to 8 regions"),
        ("regions = [\"eu\", \"us\"]", "regions = [\"eu\", \"eu\"]", "11:11", "twice"),
        ("edges = 1", "edges = 10", "12:9", "from 0 to 9"),
        ("edges = 1", "ca = \"x.pem\"", "12:6", "target.kind = \"staging\""),
        ("edges = 1", "nodes = 3", "12:9", "[target.database]"),
        ("edges = 1", "settings = [\"store.cache\"]", "12:13", "KEY=VALUE"),
        ("clients = 2", "clients = 0", "15:11", "from 1 to"),
        ("conversations = 4", "conversations = 7", "16:17", "from 1 to 6"),
        ("rate = \"${rate}\"", "rate = 0", "17:8", "messages a second"),
        ("for = \"20s\"", "for = \"20\"", "18:7", "is no time"),
        ("at = \"4s\"", "at = \"16s\"", "22:6", "after the load"),
        ("kind = \"kill\"", "kind = \"explode\"", "23:8", "there are kill, terminate"),
        ("kind = \"kill\"", "kind = \"link-down\"", "24:10", "<->"),
        ("kind = \"kill\"", "kind = \"command\"", "24:10", "a command has no target"),
        ("target = \"eu-e1\"", "target = \"eu-e9\"", "24:10", "there are eu-n1, eu-e1, us-n1"),
        ("target = \"eu-e1\"", "", "23:8", "target is missing"),
        ("target = \"eu-e1\"", "target = \"eu-e1\"\nrun = \"true\"", "25:7", "belong to kind"),
        ("median = \"500ms\"", "median = \"fast\"", "28:23", "is no time"),
        ("lost = 0", "lost = -1", "29:8", "whole number"),
        ("lost = 0", "lots = 0", "29:1", "unknown field"),
        ("lost = 0", "lost = ", "29:8", ""),
        ("rate = \"20\"", "rate = 20", "1:1", "in quotes"),
    ] {
        let said = refused(from, to);
        assert!(said.starts_with(&format!("{place}: ")) && said.contains(words), "{to}: {said}");
    }
    let twice =
        format!("{GOOD}\n[[fault]]\nid = \"edge\"\nat = \"12s\"\nkind = \"stop\"\ntarget = \"us\"\nfor = \"1s\"\n");
    assert!(parse(&twice).unwrap_err().contains("two faults \"edge\""));
    let at_once =
        twice.replace("\"edge\"\nat = \"12s\"", "\"both\"\nat = \"6s\"").replace("\"us\"\nfor", "\"eu\"\nfor");
    let said = parse(&at_once).unwrap_err();
    assert!(said.starts_with("33:6: eu-e1 is struck by edge then"), "{said}");
    let later = twice.replace("\"edge\"\nat = \"12s\"", "\"later\"\nat = \"12s\"\nafter = \"edge\"");
    assert_eq!(parse(&later).unwrap().faults[1].after.as_deref(), Some("edge"));
    let said = parse(&later.replace("after = \"edge\"", "after = \"later\"")).unwrap_err();
    assert!(said.starts_with("34:9: no fault \"later\" begins before"), "{said}");
    let with = BTreeMap::from([("up".to_owned(), "9s".to_owned())]);
    let said = Script::parse(GOOD, &with, Path::new("")).unwrap_err();
    assert!(said.contains("has no up; there are: down, rate"), "{said}");
    let with = BTreeMap::from([("down".to_owned(), "9s\"".to_owned())]);
    assert!(Script::parse(GOOD, &with, Path::new("")).unwrap_err().contains("quotes"));
}

#[test]
fn staging_is_struck_by_commands_alone() {
    let text = r#"[chaos]
name = "staging"
about = "A command."

[target]
kind = "staging"
dispatch = [{ region = "eu", address = "example:7401", server_name = "example" }]
ca = "ca.pem"
token_file = "tokens"

[load]
clients = 2
conversations = 1
rate = 1
for = "9s"

[[fault]]
id = "edge"
at = "1s"
kind = "command"
run = "true"
undo = "true"
for = "2s"
meets = ["eu-e2"]
"#;
    let script = parse(text).unwrap();
    let Target::Staging(staging) = &script.target else { panic!("{:?}", script.target) };
    assert_eq!(staging.ca, Path::new("here").join("ca.pem"));
    assert!(matches!(&staging.tokens, Tokens::File(path) if *path == Path::new("here").join("tokens")));
    let said = |from: &str, to: &str| parse(&text.replacen(from, to, 1)).unwrap_err();
    assert!(said("kind = \"command\"", "kind = \"kill\"").contains("every fault is a command"));
    assert!(said("token_file = \"tokens\"\n", "").contains("token_command or target.token_file"));
    assert!(said("ca = \"ca.pem\"", "nodes = 2").contains("target.kind = \"local\""));
    assert!(said("example:7401", "example").contains("no host:port"));
    assert!(said("undo = \"true\"\n", "").contains("`undo`, which is missing"));
    assert!(said("for = \"2s\"\n", "").contains("`for` is missing"));
    let bounds = "meets = [\"eu-e2\"]\n\n[bounds]\nroutes_complete = { max = \"5s\" }\n";
    assert!(said("meets = [\"eu-e2\"]\n", bounds).contains("only a local target has it"));
}
