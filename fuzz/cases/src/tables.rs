//! Tables that others fill: loads of edges with the ranking over them, and identities held of a conversation.

use std::time::Duration;

use tern_core::identity::HeldIdentities;
use tern_core::ids::{Identity, InstallId, Origin, UserId};
use tern_core::ranking::EDGES_MAX;
use tern_core::wire::node_v1::EdgeLoad;
use tern_ipconf::LoadTable;

use crate::Came;
use crate::script::Script;

/// Reports in any order and of any content: the table is bounded, and lists nobody who is not there.
pub fn loads(bytes: &[u8]) -> Came {
    let table = LoadTable::new();
    let mut script = Script::new(bytes);
    let (mut now, mut came) = (Duration::from_secs(100), Came::default());
    while let Some(op) = script.more() {
        let edge = format!("e{}", script.pick(5));
        let (region, generation) = (script.pick(4), u64::from(script.pick(3)));
        match op % 8 {
            0 => now += Duration::from_millis(script.number() % 10_000),
            1 => {
                table.remove(region, &edge, generation);
            }
            2 => {
                table.set_cordoned(region, &edge, script.pick(2) == 0);
            }
            3 => {
                table.set_region_cordoned(region, script.pick(2) == 0);
            }
            _ => {
                let load = EdgeLoad {
                    edge: if script.pick(16) == 0 { String::from_utf8_lossy(script.blob()).into_owned() } else { edge },
                    region: if script.pick(16) == 0 { script.number32() } else { u32::from(region) },
                    region_name: "r".into(),
                    addresses: match script.pick(4) {
                        0 => vec![String::from_utf8_lossy(script.blob()).into_owned()],
                        _ => vec!["192.0.2.1:7400".into()],
                    },
                    connections: script.number32(),
                    capacity: script.number32(),
                    cpu_permille: script.number32(),
                    draining: script.pick(8) == 0,
                    age_ms: script.number32(),
                    latitude: f64::from_bits(script.number() << 48),
                    longitude: f64::from(script.u8()),
                    generation,
                    failure_domain: String::new(),
                };
                let told = table.report(&load, now);
                came = came.and(Came::of(&told));
            }
        }
        for region in 0..5 {
            let listed = table.own_loads(region, now);
            assert!(listed.len() <= EDGES_MAX, "{} edges of one region", listed.len());
            assert!(listed.iter().all(|l| l.region == u32::from(region) && !l.edge.is_empty()));
        }
    }
    came
}

/// Reports, time, removals.
pub fn load_seeds() -> Vec<Vec<u8>> {
    let report = [4, 1, 1, 1, 1, 1, 1, 10, 20, 30, 1, 5, 9, 9];
    vec![report.to_vec(), [&report[..], &[0, 0, 0, 0, 210, 20, 1], &report, &[1, 1, 1, 1]].concat(), report.repeat(20)]
}

/// Identity sets against a plain list.
pub fn identities(bytes: &[u8]) -> Came {
    let (mut held, mut plain) = (HeldIdentities::default(), std::collections::BTreeSet::new());
    let mut script = Script::new(bytes);
    let (mut came, mut seq) = (Came::default(), 0);
    let user = |n: u8| UserId::new(["alice", "bob", "carol"][usize::from(n % 3)]).unwrap();
    let install = InstallId::new("phone").unwrap();
    while let Some(op) = script.more() {
        let (who, n) = (user(op), u64::from(script.u8() % 40) + 1);
        if op % 5 > 0 {
            seq += 1;
            let by = Identity { user: who.clone(), install: install.clone(), n };
            held.insert(&by, Origin { region: op % 2 + 1, era: 1 }, seq);
            came.refused |= !plain.insert((who, n));
            came.accepted = true;
        } else {
            assert_eq!(held.contains(&who, &install, n), plain.contains(&(who.clone(), n)));
            let missing = (1..=n).find(|n| !plain.contains(&(who.clone(), *n)));
            assert_eq!(
                held.first_missing(&who, &install, 1, n + 1),
                missing.or_else(|| { (!plain.contains(&(who.clone(), n + 1))).then_some(n + 1) }),
                "of 1..={}",
                n + 1
            );
        }
    }
    for (who, n) in &plain {
        assert!(held.contains(who, &install, *n));
        assert!(held.locate(who, &install, *n).next().is_some());
    }
    came
}

/// In order, backwards, with holes, twice.
pub fn identity_seeds() -> Vec<Vec<u8>> {
    let forwards: Vec<u8> = (0..40).flat_map(|n| [1, n, 5, n]).collect();
    let backwards: Vec<u8> = (0..40).rev().flat_map(|n| [1, n]).collect();
    let holes: Vec<u8> = (0..40).step_by(3).flat_map(|n| [2, n, 10, n]).collect();
    vec![forwards.clone(), backwards, holes, forwards.repeat(2)]
}
