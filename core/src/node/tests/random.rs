//! Random histories of whole regions and whole clients: the machines of both sides over lanes that keep
//! their order and nothing else. In the end everything is healed, and then:
//!
//! - nothing that was acked is missing while its device or a region that held it lives;
//! - no device shows a message twice, and all devices show the same order;
//! - no sender's messages descend; nothing waits for ever; all regions hold the same logs;
//! - members, roles, titles, marks, blocks, mutes and counts of unread messages are everywhere what a plain recount
//!   of the logs says; what was erased has a body nowhere; nobody was told what he might not read.
//!
//! Five mixes of what happens: regions that crash, or are destroyed and stay away, while three devices write; regions
//! that stop in order, restart together, lose the end of their journal or all of it, and are restored from backups
//! (R13); and users with groups, marks, blocks, erasures and new devices; and both of these at once, or with all regions up.
//!
//! `TERN_SEEDS=A..B` runs others than the usual ones.

mod cast;
mod faults;
mod people;
pub(super) mod recount;
mod verdict;

use super::*;
use crate::client::{Book, Candidate, ConnNo, ConnectionState, Event, Machine, MessageState, Setup};
use crate::ids::{Identity, Seq};
use crate::membership::Role;
use crate::wire::compact::{Reader, Writer};
use crate::wire::v1::frame::Body;
use cast::Device;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const REGIONS: [(Region, &str); 3] = [(EU, "eu"), (US, "us"), (AP, "ap")];

/// After so many failing seeds it is enough.
const FAILURES: usize = 12;

/// What happens besides messages, crashes and cuts.
#[derive(Clone, Copy, Debug, Default)]
struct Mix {
    /// Groups, marks, settings, erasures, devices.
    people: bool,
    /// Stops, losses, restores; no region stays away.
    eras: bool,
    /// Regions and their links stay up.
    calm: bool,
}

struct Run {
    mix: Mix,
    world: World,
    devices: Vec<Device>,
    rng: StdRng,
    next_conn: u64,
    /// What the clients have stored as acked.
    acked: BTreeSet<(usize, ConvId, Identity)>,
    /// What was refused for good, and dropped.
    refused: BTreeSet<(ConvId, Identity, u32)>,
    /// Regions that stay away.
    gone: BTreeSet<Region>,
    /// Something that was synced has been lost.
    lost: bool,
    /// The one that loses it.
    frail: Region,
    tail: Option<Disk>,
    saved: Option<Disk>,
    written: u64,
    log: Vec<String>,
}

impl Run {
    fn new(seed: u64, mix: Mix) -> Self {
        let pair = vec![("alice", "phone"), ("alice", "tablet"), ("bob", "phone")];
        let cast = if mix.people { Self::cast() } else { pair };
        let mut rng = StdRng::seed_from_u64(seed);
        let frail = rng.random_range(EU..=AP);
        let mut run = Self {
            mix,
            // Few origins in a row, so that short runs fold.
            world: if mix.people { World::new() } else { World::folding(EraTable::folding(2, 6)) },
            devices: Vec::new(),
            rng,
            next_conn: 1,
            acked: BTreeSet::new(),
            refused: BTreeSet::new(),
            gone: BTreeSet::new(),
            lost: false,
            frail,
            tail: None,
            saved: None,
            written: 0,
            log: Vec::new(),
        };
        for (name, device) in cast {
            run.join(name, device);
        }
        run
    }

    fn act(&mut self) {
        match self.rng.random_range(0..1000) {
            0..600 => {
                self.deliver(true);
            }
            600..700 if self.mix.people => self.live(),
            600..700 => {
                let i = self.someone();
                self.write(i);
            }
            700..880 => {
                let ms = [10, 50, 200, 1_000][self.rng.random_range(0..4)];
                self.let_pass(Duration::from_millis(ms));
            }
            880..884 => self.let_pass(Duration::from_secs(40)),
            884..950 if self.mix.calm => {
                self.deliver(true);
            }
            884..930 if self.mix.eras => self.fault(),
            884..900 => {
                let up = self.up();
                if up.len() > 1 {
                    let region = self.pick(&up).unwrap();
                    // One disk is lost in a run at most: two would be more than is promised.
                    let destroy = !self.mix.people && self.gone.is_empty() && self.rng.random_bool(0.3);
                    self.kill(region, destroy);
                }
            }
            900..930 => {
                if let Some(region) = self.down().first() {
                    self.start(*region);
                }
            }
            930..950 => self.cut_or_heal(),
            950..985 => {
                let i = self.rng.random_range(0..self.devices.len());
                let conns: Vec<ConnNo> = self.devices[i].wires.keys().copied().collect();
                if let Some(conn) = conns.first() {
                    let now = self.world.now;
                    self.note(format!("{i} loses its connection"));
                    self.hang_up(i, *conn);
                    self.devices[i].machine.ended(now, *conn, &crate::client::Failure::Network("reset".into()));
                    self.steps(i, false);
                }
            }
            _ => {
                let i = self.rng.random_range(0..self.devices.len());
                if let Some(wire) = self.devices[i].wires.values_mut().next() {
                    wire.broken = true; // nothing passes any more, and nobody is told
                }
            }
        }
    }

    fn run_on(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.let_pass(Duration::from_millis(500));
            let mut left = 20_000;
            while self.deliver(false) {
                left -= 1;
                assert!(left > 0, "frames without end\n{}", self.log.join("\n"));
            }
        }
    }

    fn heal_and_check(&mut self) -> Result<(), String> {
        self.note("--- heal".into());
        let down = self.down();
        if self.rng.random_bool(0.5) {
            self.start_together(&down);
        } else {
            down.into_iter().for_each(|region| self.start(region));
        }
        for (a, b) in [(EU, US), (EU, AP), (US, AP)] {
            let alive = !self.gone.contains(&a) && !self.gone.contains(&b);
            if alive && !self.world.up.contains(&pair(a, b)) {
                self.world.link(a, b);
            }
        }
        for i in 0..self.devices.len() {
            self.devices[i].avoids = None;
            self.drop_failed(i);
            self.steps(i, false);
        }
        self.run_on(400);
        if self.mix.people {
            // Who comes only now shows what each user may read, and nothing else.
            for name in ["alice", "bob", "carol", "dan"] {
                self.join(name, "witness");
            }
            self.run_on(80);
        }
        self.check().map_err(|what| format!("{}\n=> {what}", self.log.join("\n")))
    }
}

fn run(seed: u64, actions: usize, mix: Mix) -> Result<(), String> {
    let mut run = Run::new(seed, mix);
    for _ in 0..actions {
        run.act();
    }
    run.heal_and_check()
}

fn seeds(usual: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let wanted = std::env::var("TERN_SEEDS").ok().and_then(|s| {
        let (a, b) = s.split_once("..")?;
        Some(a.parse().ok()?..b.parse().ok()?)
    });
    wanted.unwrap_or(usual)
}

fn runs(usual: std::ops::Range<u64>, actions: usize, mix: Mix) {
    let mut failed = Vec::new();
    for seed in seeds(usual) {
        let result = std::panic::catch_unwind(|| run(seed, actions, mix));
        let what = match result {
            Ok(Ok(())) => continue,
            Ok(Err(what)) => what,
            Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_owned()),
        };
        // Of each at once what was wrong in the end; the history of the first when all have run.
        let verdict = what.lines().find(|line| line.starts_with("=> ")).or(what.lines().last());
        eprintln!("seed {seed} {}", verdict.unwrap_or_default());
        failed.push((seed, what));
        if failed.len() == FAILURES {
            break;
        }
    }
    if let Some((first, history)) = failed.first() {
        panic!("{} seeds failed\nseed {first}: {history}", failed.len());
    }
}

#[test]
fn random_histories_of_regions_and_clients_lose_double_and_reorder_nothing() {
    runs(1..33, 600, Mix::default());
}

#[test]
fn random_histories_of_stops_losses_and_restores_lose_double_and_reorder_nothing() {
    runs(1..17, 800, Mix { eras: true, ..Mix::default() });
}

#[test]
fn random_histories_of_groups_end_in_the_same_members_and_messages_everywhere() {
    runs(1..25, 800, Mix { people: true, ..Mix::default() });
}

#[test]
fn random_histories_of_groups_survive_losses_and_restores_too() {
    runs(1..9, 800, Mix { people: true, eras: true, calm: false });
}

#[test]
fn random_histories_of_marks_end_in_the_same_marks_on_all_devices_and_in_all_regions() {
    runs(1..13, 800, Mix { people: true, calm: true, eras: false });
}

#[test]
fn histories_that_once_ended_in_different_marks_end_in_the_same() {
    for seed in [21, 464] {
        run(seed, 800, Mix { people: true, calm: true, eras: false }).unwrap_or_else(|what| panic!("{seed}: {what}"));
    }
}

#[test]
fn a_quiet_history_shows_all_to_all() {
    let mut run = Run::new(7, Mix::default());
    for i in [0, 2, 1, 0, 2] {
        run.write(i);
    }
    run.heal_and_check().unwrap();
    let id = run.devices[0].machine.direct_id(&user("bob"));
    assert_eq!(run.devices[0].book.timeline(id, 0, usize::MAX).len(), 5);
}
