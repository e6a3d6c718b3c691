//! Certificates, keys and secrets: whether they are there, belong together, are still good, and are nobody
//! else's.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tern_edge::TokenKeys;
use tern_net::tls::{Credential, Identity, Trust};
use tern_net::x509::{Facts, date, pem_facts};

use super::{Finding, Scene};
use crate::certs::{CertFiles, WARN_SECONDS};
use crate::config::scope::Role;
use crate::gossip::{KEY_FILE, in_words, set_keys};
use crate::pki::{read_hex_file, receipt_secrets, region_server_name};

pub(super) fn check(scene: &Scene) -> Vec<Finding> {
    let settings = &scene.settings;
    let (Ok(name), Ok(region)) = (settings.node_name(), settings.region_name()) else { return Vec::new() };
    let files = CertFiles::of(settings, &name);
    let internal = format!("{name}.{region}.tern.internal");
    let mut findings = vec![public(scene, &files, &internal)];
    let mut secrets = vec![files.public_key.clone()];
    if scene.role != Role::Ipconf {
        findings.extend(between_nodes(scene, &files, region));
        secrets.push(files.node_key.clone());
        let keys = settings.path(&settings.tokens_file, "tokens.jwk");
        findings.push(match TokenKeys::from_file(&keys) {
            Ok(_) => Finding::ok("token keys", format!("{} can be read", keys.display())),
            Err(error) => Finding::failed("token keys", error.to_string(), "set tokens.file, or run `tern pki`"),
        });
        secrets.push(keys);
    }
    if scene.role == Role::Region {
        findings.extend(shared_secrets(scene, &mut secrets));
    }
    findings.push(gossip_key(scene, &mut secrets));
    findings.extend(secrets.iter().filter_map(|path| permissions(path)));
    findings
}

fn now_s(scene: &Scene) -> i64 {
    i64::try_from(scene.env.clock.wall_ms() / 1000).unwrap_or(i64::MAX)
}

fn public(scene: &Scene, files: &CertFiles, internal: &str) -> Finding {
    let check = "certificates";
    let identity = match files.public() {
        Ok(identity) => identity,
        Err(error) => {
            return Finding::failed(check, format!("for clients: {}", error.root_cause()), error.to_string());
        }
    };
    if let Some(finding) = unusable(scene, "for clients", &files.public_cert, &identity) {
        return finding;
    }
    let facts = identity.facts();
    let names = facts.first().map(|own| own.names.clone()).unwrap_or_default();
    let (what, ends) = summary(scene, "for clients", &facts);
    // Clients look for the name that dispatch tells, or for one that the application is built with.
    let known = names.iter().any(|name| name == internal || name.parse::<IpAddr>().is_err());
    if !known {
        let todo = format!("have one signed for {internal}, or for the name that your clients are built with");
        return Finding::failed(check, format!("{what}; it names no host"), todo);
    }
    let own_ca = scene.settings.data.join("pki/public-ca.pem");
    if let Ok(ca) = fs::read(&own_ca) {
        // `tern pki` made an authority that clients may pin; a certificate of another may be meant as well.
        let by_it =
            facts.last().zip(pem_facts(&ca).first()).is_some_and(|(last, ca)| last.issuer_der == ca.subject_der);
        if !by_it {
            let todo = format!("make sure that clients trust that authority: {} did not sign it", own_ca.display());
            return Finding::warning(check, format!("{what}; signed by {:?}", issuer(&facts)), todo);
        }
    }
    ends.unwrap_or_else(|| Finding::ok(check, format!("{what}; for {}", names.join(", "))))
}

fn between_nodes(scene: &Scene, files: &CertFiles, region: &str) -> Vec<Finding> {
    let check = "certificates";
    let identity = match files.node() {
        Ok(identity) => identity,
        Err(error) => {
            return vec![Finding::failed(check, format!("for nodes: {}", error.root_cause()), error.to_string())];
        }
    };
    if let Some(finding) = unusable(scene, "for nodes", &files.node_cert, &identity) {
        return vec![finding];
    }
    let todo = "set tls.node_ca to the PEM of the authority of all nodes, the same on every node";
    let ca = match files.ca().and_then(|ca| Ok(Trust::new(&ca).map(|_| ca)?)) {
        Ok(ca) => ca,
        Err(error) => return vec![Finding::failed(check, format!("authority of nodes: {error:#}"), todo)],
    };
    let dialled_as = (scene.role == Role::Region).then(|| region_server_name(region));
    if let Err(error) = identity.check_trusted(&ca, dialled_as.as_deref(), scene.env.clock.wall_ms()) {
        return vec![Finding::failed(check, error.to_string(), "`tern pki` makes one, where that authority's key is")];
    }
    let (what, ends) = summary(scene, "for nodes", &identity.facts());
    let (what_ca, ca_ends) = summary(scene, "authority of nodes", &pem_facts(&ca));
    let chained = format!("{what}; signed by {:?}, which nodes trust", issuer(&identity.facts()));
    vec![ends.unwrap_or_else(|| Finding::ok(check, chained)), ca_ends.unwrap_or_else(|| Finding::ok(check, what_ca))]
}

fn issuer(facts: &[Facts]) -> String {
    facts.last().map(|facts| facts.issuer.clone()).unwrap_or_default()
}

/// Why nobody would accept it, if so.
fn unusable(scene: &Scene, whose: &str, file: &Path, identity: &Identity) -> Option<Finding> {
    let failed = |what: String, todo: &str| Some(Finding::failed("certificates", format!("{whose}: {what}"), todo));
    if let Err(error) = Credential::new(identity) {
        return failed(error.to_string(), "put the key that was made for this certificate beside it");
    }
    if let Err(error) = identity.check_time(scene.env.clock.wall_ms()) {
        return failed(error.to_string(), "replace certificate and key; a running node takes them by itself");
    }
    let facts = identity.facts();
    let broken = facts.windows(2).any(|two| two[0].issuer_der != two[1].subject_der);
    if broken {
        let what = format!("{} holds certificates that did not sign each other", file.display());
        return failed(what, "write the own certificate first, then the one that signed it, and so on");
    }
    None
}

/// What to say of it, and a finding of its own if it ends soon.
fn summary(scene: &Scene, whose: &str, facts: &[Facts]) -> (String, Option<Finding>) {
    let Some(until) = facts.iter().map(|facts| facts.not_after_s).min() else {
        return (format!("{whose}: it can't be read to the end"), None);
    };
    let left = until - now_s(scene);
    let what = format!("{whose}: good until {} ({} days)", date(until), left / 86_400);
    let ends = (left < WARN_SECONDS).then(|| {
        let todo = "replace certificate and key; a running node takes them by itself";
        Finding::warning("certificates", what.clone(), todo)
    });
    (what, ends)
}

fn shared_secrets(scene: &Scene, files: &mut Vec<PathBuf>) -> Vec<Finding> {
    let settings = &scene.settings;
    let todo = "copy it from another region, or, for the first one, run `tern pki`";
    let mut findings = Vec::new();
    let mut add = |found: anyhow::Result<usize>, what: &str, from: String| {
        findings.push(match found {
            Ok(1) => Finding::ok("secrets", format!("{what}: {from}")),
            Ok(count) => Finding::ok("secrets", format!("{what}: {from}; {count} keys, the first signs")),
            Err(error) => Finding::failed("secrets", format!("{error:#}"), todo),
        });
    };
    let receipts = receipt_secrets(settings).map(|keys| keys.len());
    if settings.receipt_key.is_some() {
        add(receipts, "receipt key", "set".to_owned());
    } else {
        let path = settings.path(&settings.receipt_key_file, "receipt.key");
        add(receipts, "receipt key", format!("{} can be read", path.display()));
        files.push(path);
    }
    let (path, what) = (settings.path(&settings.direct_salt_file, "direct.salt"), "salt of direct conversations");
    add(read_hex_file(&path, what).map(|_| 1), what, format!("{} can be read", path.display()));
    files.push(path);
    findings
}

/// The gossip keys: set, or in their file, or made from the receipt keys. Their fingerprints are what an operator
/// compares between nodes in the middle of a rotation.
fn gossip_key(scene: &Scene, files: &mut Vec<PathBuf>) -> Finding {
    let (check, settings) = ("secrets", &scene.settings);
    let todo = "copy gossip.key from the directory where `tern pki` made the deployment's keys, or set gossip.key_file";
    let path = settings.path(&settings.gossip_key_file, KEY_FILE);
    let receipt = settings.path(&settings.receipt_key_file, "receipt.key");
    let set = match set_keys(settings) {
        None if settings.receipt_key.is_some() || receipt.exists() => {
            return Finding::ok(check, "gossip key: made from the receipt key");
        }
        None => return Finding::failed(check, format!("can't read the gossip key {}", path.display()), todo),
        Some(set) => set,
    };
    let from = match settings.gossip_key {
        Some(_) => "set".to_owned(),
        None => {
            let from = format!("{} can be read", path.display());
            files.push(path);
            from
        }
    };
    match set {
        Ok(keys) => Finding::ok(check, format!("gossip key: {from}; {}", in_words(&keys))),
        Err(error) => Finding::failed(check, format!("{error:#}"), todo),
    }
}

/// A secret that others on this machine can read.
fn permissions(path: &Path) -> Option<Finding> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    let open = mode & 0o077 != 0;
    open.then(|| {
        let what = format!("{} can be read by other users (mode {mode:o})", path.display());
        Finding::warning("secrets", what, format!("`chmod 600 {}`", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::config::Sources;
    use crate::pki::{Pki, shared_secrets as make_secrets};

    fn scene(data: &Path) -> Scene {
        let flags = [("data", data.to_str().unwrap()), ("region.name", "eu"), ("region.id", "1")];
        let flags = flags.map(|(key, value)| ("--set".into(), key.into(), value.into())).to_vec();
        let settings = Sources { flags, ..Sources::default() }.load().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let env = runtime.block_on(async { tern_net::system::system_env().unwrap() });
        Scene { settings, role: Role::Region, env, running: false }
    }

    fn worst(findings: &[Finding]) -> (State, String) {
        let worst = findings.iter().max_by_key(|finding| finding.state).unwrap();
        (worst.state, format!("{} -> {}", worst.what, worst.todo))
    }

    #[test]
    fn what_pki_made_is_fine_and_each_fault_is_named() {
        let data = tempfile::tempdir().unwrap();
        let scene = scene(data.path());
        let (state, said) = worst(&check(&scene));
        assert!(state == State::Failed && said.contains("tern pki"), "{said}");
        make_secrets(data.path()).unwrap();
        let leaf = Pki::open(data.path()).unwrap().leaf("eu-e1", "eu", &[]).unwrap();
        let fine = check(&scene);
        assert_eq!(worst(&fine).0, State::Ok, "{fine:?}");
        assert!(fine.iter().any(|f| f.what.contains("which nodes trust")), "{fine:?}");

        let fault = |fault: &dyn Fn(), expected: &str, expected_state| {
            let before: Vec<_> = [&leaf.public_cert, &leaf.public_key, &leaf.node_cert, &leaf.node_key]
                .map(|path| (path.clone(), fs::read(path).unwrap()))
                .to_vec();
            fault();
            let (state, said) = worst(&check(&scene));
            assert!(state == expected_state && said.contains(expected), "{expected}: {state:?} {said}");
            before.iter().for_each(|(path, content)| fs::write(path, content).unwrap());
        };
        let other = tempfile::tempdir().unwrap();
        let strange = Pki::open(other.path()).unwrap().leaf("eu-e1", "eu", &[]).unwrap();
        let us = Pki::open(data.path()).unwrap().leaf("us-e1", "us", &[]).unwrap();
        let copy = |from: &Path, to: &Path| {
            fs::copy(from, to).unwrap();
        };
        fault(&|| copy(&strange.public_key, &leaf.public_key), "belong together", State::Failed);
        fault(
            &|| {
                copy(&strange.node_cert, &leaf.node_cert);
                copy(&strange.node_key, &leaf.node_key);
            },
            "signed by that CA",
            State::Failed,
        );
        fault(
            &|| {
                copy(&us.node_cert, &leaf.node_cert);
                copy(&us.node_key, &leaf.node_key);
            },
            "for the name eu.tern.internal",
            State::Failed,
        );
        let two = [fs::read(&leaf.public_cert).unwrap(), fs::read(&us.public_cert).unwrap()].concat();
        fault(&|| fs::write(&leaf.public_cert, &two).unwrap(), "did not sign each other", State::Failed);
        fault(&|| fs::write(data.path().join("gossip.key"), b"short").unwrap(), "64 hex digits", State::Failed);
        let keys = |numbers: &[&str]| numbers.iter().map(|n| n.repeat(32) + "\n").collect::<String>();
        fs::write(data.path().join("gossip.key"), keys(&["ab", "cd"])).unwrap();
        let said: Vec<String> = check(&scene).into_iter().map(|f| f.what).filter(|w| w.contains("gossip")).collect();
        assert!(said[0].contains("2 keys: ") && said[0].contains(" seals, ") && !said[0].contains("abab"), "{said:?}");
        let twice = keys(&["ab", "ab"]);
        fault(&|| fs::write(data.path().join("gossip.key"), &twice).unwrap(), "there twice", State::Failed);
        fs::write(data.path().join("receipt.key"), keys(&["01", "02", "03"])).unwrap();
        assert!(check(&scene).iter().any(|f| f.what.contains("3 keys, the first signs")));
        fs::remove_file(data.path().join("gossip.key")).unwrap();
        assert!(check(&scene).iter().any(|f| f.what.contains("made from the receipt key")));
        fault(&|| fs::write(&leaf.node_cert, b"no PEM").unwrap(), "BEGIN CERTIFICATE", State::Failed);
        fs::set_permissions(&leaf.node_key, fs::Permissions::from_mode(0o644)).unwrap();
        let (state, said) = worst(&check(&scene));
        assert!(state == State::Warning && said.contains("chmod 600") && said.contains("mode 644"), "{said}");
    }
}
