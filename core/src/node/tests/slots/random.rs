//! Random histories of nodes that share a region.

use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const NAMES: [&str; 4] = ["alice", "bob", "carol", "dan"];

fn name_of(conn: u64) -> &'static str {
    NAMES[usize::try_from(conn).unwrap() - 1]
}

/// One sender per conversation, who says each message until it is acked, one to three at a time; nodes die, are paused
/// and start anew, slots move, links break.
fn random(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fleet = Fleet::new(3);
    fleet.leases = true;
    let names = NAMES;
    for (i, name) in names.iter().enumerate() {
        fleet.connect(i as u64 + 1, name, "phone");
    }
    let mut sent = BTreeMap::<(u64, ConvId), (u64, u64)>::new(); // acked below, sent up to
    let mut paused: Option<CoreId> = None;
    for _ in 0..300 {
        match rng.random_range(0..100) {
            0..55 => {
                let (a, b) = (rng.random_range(0..4), rng.random_range(0..4));
                if a == b {
                    continue;
                }
                let id = ConvId::direct(SALT, &user(names[a]), &user(names[b]));
                let conn = a as u64 + 1;
                let (floor, upto) = sent.get(&(conn, id)).copied().unwrap_or((1, 0));
                let floor = (floor..=upto).find(|n| fleet.acked_in(conn, id, *n).is_none()).unwrap_or(upto + 1);
                let upto = if upto + 1 - floor < 3 { upto + 1 } else { upto };
                sent.insert((conn, id), (floor, upto));
                for n in floor..=upto {
                    let send = SendRequest { conversation: id, peer: Some(user(names[b])), floor, ..message(n) };
                    let send = SendRequest { body: Bytes::from(format!("{conn} {n}")), ..send };
                    fleet.say(conn, id, send);
                }
                if rng.random_bool(0.5) {
                    fleet.settle();
                }
            }
            55..75 => fleet.pass(Duration::from_millis(rng.random_range(20..600))),
            75..85 => {
                let cores: Vec<CoreId> = fleet.members.iter().filter(|(_, m)| !m.paused).map(|(c, _)| *c).collect();
                let (from, to) = (cores[rng.random_range(0..cores.len())], cores[rng.random_range(0..cores.len())]);
                let mine: Vec<Slot> = fleet.owners.iter().filter(|(_, o)| **o == from).map(|(s, _)| *s).collect();
                if from != to && !mine.is_empty() {
                    let slots = mine.into_iter().filter(|_| rng.random_bool(0.4)).collect();
                    fleet.hand_over(from, to, slots);
                }
            }
            85..90 if paused.is_none() && fleet.members.len() > 2 => {
                let core = *fleet.members.keys().nth(rng.random_range(0..fleet.members.len())).unwrap();
                fleet.kill(core);
                fleet.pass(Duration::from_millis(rng.random_range(20..3_000)));
                fleet.inherit(core);
                fleet.join();
            }
            90..94 if paused.is_none() => {
                let core = *fleet.members.keys().nth(rng.random_range(0..fleet.members.len())).unwrap();
                fleet.member(core).paused = true;
                paused = Some(core);
                // Its lease runs out before it is taken for dead.
                fleet.pass(Duration::from_millis(1_500));
                fleet.inherit(core);
            }
            94..97 => {
                if let Some(core) = paused.take() {
                    fleet.resume(core);
                }
            }
            97 => fleet.look_at_todo(),
            _ => {
                let cores: Vec<CoreId> = fleet.members.keys().copied().collect();
                let pair = pair_of(cores[0], cores[cores.len() - 1]);
                if !fleet.cut.remove(&pair) {
                    fleet.cut.insert(pair);
                }
            }
        }
    }
    fleet.cut.clear();
    if let Some(core) = paused {
        fleet.resume(core);
    }
    for _ in 0..40 {
        for ((conn, id), (floor, upto)) in sent.clone() {
            let b = names.iter().find(|b| ConvId::direct(SALT, &user(name_of(conn)), &user(b)) == id).unwrap();
            let floor = (floor..=upto).find(|n| fleet.acked_in(conn, id, *n).is_none()).unwrap_or(upto + 1);
            sent.insert((conn, id), (floor, upto));
            for n in floor..=upto {
                let send = SendRequest { conversation: id, peer: Some(user(b)), floor, ..message(n) };
                let send = SendRequest { body: Bytes::from(format!("{conn} {n}")), ..send };
                fleet.say(conn, id, send);
            }
        }
        fleet.pass(Duration::from_millis(500));
    }
    fleet.pass(Duration::from_secs(10));
    fleet.look_at_todo();
    fleet.pass(Duration::from_secs(5));
    for ((conn, id), (_, upto)) in &sent {
        let log = &fleet.shared.disk.logs[&(*id, own())];
        let mine: Vec<&Arc<Entry>> = log.iter().filter(|e| e.by.user == user(name_of(*conn))).collect();
        assert_eq!(mine.iter().map(|e| e.by.n).collect::<Vec<_>>(), (1..=*upto).collect::<Vec<_>>(), "once, in order");
        for n in 1..=*upto {
            let ack = fleet.acked_in(*conn, *id, n).unwrap_or_else(|| panic!("{n} of {conn} was never acked"));
            let entry = &log[usize::try_from(ack.place.seq).unwrap() - 1];
            assert_eq!((entry.by.n, entry.place), (n, ack.place), "what was acked is there");
        }
        for name in names.iter().filter(|n| log[0].peer == Some(user(n)) || log[0].by.user == user(n)) {
            assert_eq!(fleet.row(name, *id), [(own(), log.len() as u64)].into(), "{name} has heard of all");
        }
    }
    assert!(fleet.shared.disk.todo.is_empty(), "{:?}", fleet.shared.disk.todo);
    for (conn, told) in &fleet.told {
        assert_eq!(told.last, None, "connection {conn} ended");
        // Revisions ascend, and none is told for two states of a row.
        let mut seen = BTreeMap::new();
        for push in &told.pushes {
            let other = seen.insert(push.rev, (push.conversation, push.heads.clone()));
            assert!(other.is_none_or(|o| o == (push.conversation, push.heads.clone())), "{:?} twice", push.rev);
        }
    }
}

impl Fleet {
    /// A request of its own per conversation and number.
    fn say(&mut self, conn: u64, id: ConvId, send: SendRequest) {
        let req = Self::req(id, send.n);
        self.ups(vec![Up::Send { conn, req, send }]);
    }

    fn req(id: ConvId, n: u64) -> u32 {
        1_000 + u32::from(Slot::of(id).number()) * 1_000 + u32::try_from(n).unwrap()
    }

    fn acked_in(&self, conn: u64, id: ConvId, n: u64) -> Option<Ack> {
        let req = Self::req(id, n);
        self.told.get(&conn)?.acks.iter().rev().find(|(r, _)| *r == req).map(|(_, ack)| ack.clone())
    }
}

#[test]
fn random_histories_of_nodes_that_share_a_region_lose_double_and_reorder_nothing() {
    each_seed(40, random);
}

/// Runs a history with each of the first seeds, or those of TERN_SEEDS, and names the one that fails.
pub(super) fn each_seed(usual: u64, history: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let seeds = std::env::var("TERN_SEEDS").ok().and_then(|s| {
        let (a, b) = s.split_once("..")?;
        Some(a.parse().ok()?..b.parse().ok()?)
    });
    for seed in seeds.unwrap_or(0..usual) {
        if let Err(panic) = std::panic::catch_unwind(|| history(seed)) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
