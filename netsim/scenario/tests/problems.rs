//! What is said of a scenario that can't be run: where, what is wrong, and what to write instead.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;

use tern_netsim_scenario::{Scenario, check};

/// A scenario that is right; lines are replaced in it.
const RIGHT: &str = r#"[scenario]
name = "right"
about = "Nothing is wrong."
drivers = ["sim"]
seeds = "0..3"
duration = "60s"
[matrix]
access = ["lte-good", "3g"]
[[region]]
name = "eu"
aws = "euc1"
[[region]]
name = "us"
aws = "use1"
edges = 1
[[place]]
name = "germany"
near = "eu"
rtt = "10ms"
[[device]]
id = "alice-phone"
user = "alice"
place = "germany"
iface.cell = "${access}"
[[device]]
id = "bob-laptop"
user = "bob"
place = "us"
[[load]]
id = "writes"
from = "alice-phone"
to = "bob"
rate = "2/s"
[[fault]]
id = "tunnel"
kind = "outage"
target = "alice-phone.cell"
at = "20s..30s"
for = "5s"
[expect]
converge_within = "20s"
"#;

fn problems(text: &str) -> String {
    match Scenario::from_toml(text, Path::new("dir/s.toml")) {
        Ok(_) => String::new(),
        Err(problems) => problems.to_string(),
    }
}

/// The problems of [`RIGHT`] with one line being another.
fn with(line: &str, instead: &str) -> String {
    let changed = RIGHT.replacen(line, instead, 1);
    assert_ne!(changed, RIGHT, "{line}");
    problems(&changed)
}

#[test]
fn a_right_scenario_has_no_problems() {
    assert_eq!(problems(RIGHT), "");
}

#[test]
fn unknown_names_are_told_with_the_nearest_ones() {
    let all = [
        (with("\"lte-good\"", "\"lte-god\""), "dir/s.toml:8:11: no profile \"lte-god\": did you mean \"lte-good\"?"),
        (
            with("kind = \"outage\"", "kind = \"outtage\""),
            "dir/s.toml:36:8: no fault of kind \"outtage\": did you mean \"outage\"?",
        ),
        (
            with("rate = \"2/s\"", "rat = \"2/s\""),
            "dir/s.toml:29:1: load \"writes\" has no \"rate\": write rate = \"2/s\", or every = \"500ms\"\n\
             dir/s.toml:33:1: load \"writes\" has no key \"rat\": did you mean \"rate\"?",
        ),
        (with("[expect]", "[expct]"), "dir/s.toml:40:2: a scenario has no table \"expct\": did you mean \"expect\"?"),
        (
            with("converge_within", "converge_witin"),
            "dir/s.toml:41:1: [expect] has no key \"converge_witin\": did you mean \"converge_within\"?",
        ),
        (with("aws = \"use1\"", "aws = \"us1\""), "dir/s.toml:14:7: no data centre \"us1\": did you mean \"use1\"?"),
        (with("near = \"eu\"", "near = \"ue\""), "dir/s.toml:18:8: no region \"ue\": did you mean \"eu\"?"),
        (
            with("place = \"germany\"", "place = \"jermany\""),
            "dir/s.toml:23:9: no place or region \"jermany\": did you mean \"germany\"?",
        ),
        (with("to = \"bob\"", "to = \"bobb\""), "dir/s.toml:32:6: no user or group \"bobb\": did you mean \"bob\"?"),
        (
            with("to = \"bob\"", "to = \"bob-laptop\""),
            "dir/s.toml:32:6: \"bob-laptop\" is a device, and one writes to users: write \"bob\"",
        ),
        (with("[\"sim\"]", "[\"simm\"]"), "dir/s.toml:4:12: no driver \"simm\": did you mean \"sim\"?"),
        (
            with("[expect]", "[sometimes]\nreconected = 1\n[expect]"),
            "dir/s.toml:41:1: nothing is counted as \"reconected\": did you mean \"reconnected\"?",
        ),
    ];
    for (found, wanted) in all {
        assert!(found.contains(wanted), "wanted {wanted}\nfound {found}");
    }
}

#[test]
fn targets_that_do_not_exist_are_told_with_what_there_is() {
    let target = |target: &str| with("target = \"alice-phone.cell\"", &format!("target = \"{target}\""));
    let of_kind = |kind: &str, target: &str| {
        let text = RIGHT.replace("target = \"alice-phone.cell\"", &format!("target = \"{target}\""));
        problems(&text.replace("kind = \"outage\"", &format!("kind = \"{kind}\"")))
    };
    let at = "dir/s.toml:37:10: ";
    for (found, wanted) in [
        (target("alice-fone.cell"), "no device \"alice-fone\": did you mean \"alice-phone\"?"),
        (target("alice-phone.wifi"), "\"alice-phone\" has no interface \"wifi\": there are: cell"),
        (
            target("alice-phone.cell.down.up"),
            "\"alice-phone.cell.down.up\" names too much: write \"alice-phone.cell.down\" at most",
        ),
        (target("eu"), "\"eu\" is no device, and outage hits devices: write kind = \"region-kill\", \"edge-kill\""),
        (
            target("eu<->us"),
            "\"eu<->us\" is a path, which outage does not hit: for a path write kind = \"cut\" or \"degrade\"",
        ),
        (of_kind("cut", "eu<->uss"), "no region or place \"uss\": did you mean \"us\"?"),
        (of_kind("cut", "eu"), "\"eu\" is no path: write \"eu<->us\", or \"eu->us\" for one direction"),
        (of_kind("region-kill", "ue"), "no region \"ue\": did you mean \"eu\"?"),
        (
            of_kind("edge-kill", "eu-e1"),
            "\"eu-e1\" is part of the process of region \"eu\": hit the region, or \"eu-e2\"",
        ),
        (of_kind("edge-kill", "us-e3"), "no edge \"us-e3\": did you mean \"us-e2\"?"),
        (of_kind("suspend", "alice-phone.cell"), "suspend hits a device as a whole: write \"alice-phone\""),
        (of_kind("block", "alice-phone.down"), "block has no direction: leave \".up\" or \".down\" out"),
    ] {
        assert!(found.contains(&format!("{at}{wanted}")), "wanted {wanted}\nfound {found}");
    }
    let rebind = RIGHT.replace("kind = \"outage\"", "kind = \"nat-rebind\"").replace("for = \"5s\"", "");
    assert_eq!(problems(&rebind), "dir/s.toml:37:10: \"alice-phone.cell\" is behind no NAT: give it nat = \"carrier\"");
}

#[test]
fn times_outside_of_the_run_and_bad_units_are_told() {
    let at = |at: &str| with("at = \"20s..30s\"", &format!("at = {at}"));
    for (found, wanted) in [
        (at("\"-5s\""), "dir/s.toml:38:6: \"-5s\" is before the beginning of the run: write a time from 0s on"),
        (
            at("\"20s..60s\""),
            "dir/s.toml:38:6: this can begin at 60s, after the end of the run at 60s: begin earlier, or let the run last longer",
        ),
        (at("20"), "dir/s.toml:38:6: \"20\" is not a time: write a number and"),
        (at("\"30s..20s\""), "dir/s.toml:38:6: \"30s..20s\" goes backwards: write the smaller end first"),
        (
            with("for = \"5s\"", "for = 5"),
            "dir/s.toml:39:7: \"5\" is not a time: write a number and ns, us, ms, s, min or h, as \"1.5s\"",
        ),
        (with("for = \"5s\"", "for = \"0s\""), "dir/s.toml:39:7: a fault that lasts 0s hits nothing"),
        (
            with("rate = \"2/s\"", "rate = \"0/s\""),
            "dir/s.toml:33:8: \"0/s\" is never: write a higher rate, or leave the load out",
        ),
        (with("rate = \"2/s\"", "rate = \"2\""), "dir/s.toml:33:8: \"2\" is not how often: write \"2/s\""),
        (
            with("rate = \"2/s\"", "rate = \"2/s\"\nsize = \"zipf(8000)\"\nduring = \"50s..70s\""),
            "dir/s.toml:35:10: a load runs for some time within the duration of the run: write a span as \"0s..60s\"",
        ),
        (
            with("rate = \"2/s\"", "rate = \"2/s\"\nsize = 10"),
            "dir/s.toml:34:8: \"10\" is no length of a body: bodies have 64 to 65536 bytes",
        ),
        (
            with("iface.cell = \"${access}\"", "iface.cell = { profile = \"${access}\", rate = \"0bit/s\" }"),
            "dir/s.toml:24:46: a rate of 0 bit/s never gets a packet through: use 100 bit/s or more, or an outage",
        ),
        (
            with("iface.cell = \"${access}\"", "iface.cell = { profile = \"${access}\", loss = \"3\" }"),
            "dir/s.toml:24:46: \"3\" is not a share: write 0% to 100%",
        ),
        (with("duration = \"60s\"", "duration = \"60\""), "dir/s.toml:6:12: \"60\" is not a time"),
        (
            with("seeds = \"0..3\"", "seeds = \"3\""),
            "dir/s.toml:5:9: \"3\" is no range of seeds: write \"0..100\", the last one not included",
        ),
    ] {
        assert!(found.contains(wanted), "wanted {wanted}\nfound {found}");
    }
}

#[test]
fn anchors_must_lead_to_a_time() {
    let two = |first: &str, second: &str| {
        let text = RIGHT.replace("at = \"20s..30s\"", &format!("at = \"{first}\""));
        let other = format!(
            "[[fault]]\nid = \"walk\"\nkind = \"handover\"\ntarget = \"alice-phone\"\nat = \"{second}\"\n[expect]"
        );
        problems(&text.replace("[expect]", &other))
    };
    assert_eq!(two("20s", "tunnel.end+2s"), "");
    assert_eq!(
        two("walk.end", "tunnel.begin"),
        "dir/s.toml:38:6: these wait for each other for ever: tunnel -> walk -> tunnel; give one of them a time"
    );
    assert_eq!(two("20s", "tunel.end"), "dir/s.toml:44:6: no fault \"tunel\" to wait for: did you mean \"tunnel\"?");
    assert!(two("50s", "tunnel.end + 5s").contains("dir/s.toml:44:6: this can begin at 60s"));
    assert!(two("20s", "tunnel.begin-2s").contains("lies before something that may come at any time"));
    let endless =
        with("for = \"5s\"", "\n[[fault]]\nkind = \"handover\"\ntarget = \"alice-phone\"\nat = \"tunnel.end\"");
    let wanted = "\"tunnel\" has no end before all is healed: give it \"for\", or wait for tunnel.begin";
    assert!(endless.contains(wanted), "{endless}");
}

#[test]
fn triggers_need_a_driver_that_sees_them() {
    let trigger = RIGHT.replace("at = \"20s..30s\"", "when = \"first(send.committed && !send.acked)\"");
    assert_eq!(problems(&trigger), "");
    let found = problems(&trigger.replace("[\"sim\"]", "[\"sim\", \"tun\"]"));
    let wanted = "dir/s.toml:38:1: only virtual time sees what the system does, so \"when\" can't be used with tun: write \
                  \"at\", or take \"tun\" out of drivers";
    assert_eq!(found, wanted);
    let found = problems(&trigger.replace("send.acked", "send.akced"));
    assert!(found.contains("\"send.akced\" is no moment: did you mean \"send.acked\"?"), "{found}");
    let found = problems(&trigger.replace("for = \"5s\"", "of = \"alice\"\nfor = \"5s\""));
    assert!(found.contains("dir/s.toml:39:6: no device \"alice\""), "{found}");
}

#[test]
fn doubles_and_what_is_used_nowhere_are_told() {
    for (found, wanted) in [
        (
            with("id = \"bob-laptop\"", "id = \"alice-phone\""),
            "dir/s.toml:26:6: a second device \"alice-phone\": give it another id, or leave one out",
        ),
        (
            with(
                "[expect]",
                "[[fault]]\nid = \"tunnel\"\nkind = \"suspend\"\ntarget = \"alice-phone\"\nat = \"1s\"\n[expect]",
            ),
            "dir/s.toml:41:6: a second fault \"tunnel\": give it another id, or leave one out",
        ),
        (
            with("iface.cell = \"${access}\"", "iface.cell = \"3g\""),
            "dir/s.toml:8:1: \"access\" is used nowhere: write ${access} where it belongs, or leave it out",
        ),
        (
            with("iface.cell = \"${access}\"", "iface.cell = \"${acces}\""),
            "dir/s.toml:24:14: no value \"acces\" in the matrix: did you mean \"access\"?",
        ),
        (
            with("[\"lte-good\", \"3g\"]", "[\"3g\", \"3g\"]"),
            "dir/s.toml:8:17: \"3g\" a second time: every run would be made twice",
        ),
        (
            with("duration = \"60s\"", "duration = \"60s\"\nduration = \"60s\""),
            "dir/s.toml:7:1: this is not TOML: duplicate key",
        ),
        (with("duration = \"60s\"", "duration = 60s"), "dir/s.toml:6:"),
    ] {
        assert!(found.contains(wanted), "wanted {wanted}\nfound {found}");
    }
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_lines() {
    let text = RIGHT
        .replace("\"lte-good\"", "\"lte-god\"")
        .replace("kind = \"outage\"", "kind = \"outtage\"")
        .replace("to = \"bob\"", "to = \"bobb\"")
        .replace("rtt = \"10ms\"", "rtt = \"10\"");
    let lines: Vec<String> = problems(&text).lines().map(|line| line.split(':').nth(1).unwrap().to_owned()).collect();
    assert_eq!(lines, ["8", "19", "32", "36"]);
}

#[test]
fn missing_files_are_told_where_they_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
    let extending = |what: &str| RIGHT.replace("drivers = [\"sim\"]", &format!("extends = [\"{what}\"]"));
    write("a.toml", &extending("topo.toml"));
    let found = check(&[path("a.toml"), path("b.toml")]);
    assert_eq!(found.len(), 2, "{found:?}");
    let (a, topo) = (path("a.toml"), path("topo.toml"));
    let hint = "paths are relative to the file that names them";
    assert_eq!(found[0], format!("{}:4:12: no file {}: {hint}", a.display(), topo.display()));
    assert!(found[1].starts_with(&format!("{}: can't be read: ", path("b.toml").display())), "{}", found[1]);

    write("topo.toml", "[[place]]\nname = \"france\"\nnear = \"uk\"\nrtt = \"4ms\"\n");
    assert_eq!(
        check(std::slice::from_ref(&a)),
        [format!("{}:3:8: no region \"uk\": did you mean \"us\"?", topo.display())]
    );
    write("topo.toml", "[scenario]\nextends = [\"a.toml\"]\n");
    assert!(check(std::slice::from_ref(&a))[0].contains("extends itself by way of this file"));

    let traced = RIGHT
        .replace("\"${access}\"", "{ profile = \"${access}\" }")
        .replace("place = \"us\"", "place = \"us\"\niface.net = { trace = \"no.trace\" }");
    write("c.toml", &traced);
    let found = check(&[path("c.toml")]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("no.trace: can't be read") && found[0].contains("c.toml:29:23: "), "{}", found[0]);
    write("no.trace", "1\n5\nx\n");
    assert!(check(&[path("c.toml")])[0].contains("no.trace:3: \"x\" is not a whole number"));
    write("no.trace", "1\n5\n");
    assert_eq!(check(&[path("c.toml")]), [""; 0]);
}
