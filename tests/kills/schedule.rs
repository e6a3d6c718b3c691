//! What happens to whom, and when: drawn from a seed ahead of the run, so that a seed is a schedule.
//!
//! The times are real and so is what processes do in them: two runs of one seed meet the same faults in the same
//! order, at nearly the same moments.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Who can be hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Region,
    Edge,
    Dispatch,
    Client,
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// kill -9, and a start after the pause.
    Kill { down: Duration },
    /// SIGSTOP, and SIGCONT after the pause.
    Suspend { for_: Duration },
    /// SIGSTOP, and kill -9 of the suspended process; a start after the pause.
    SuspendAndKill { for_: Duration, down: Duration },
    /// SIGTERM, and a start after its end and the pause. Clients have no orderly stop: for them it is a kill.
    Stop { down: Duration },
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { down } => write!(f, "kill -9, down {:.1} s", down.as_secs_f64()),
            Self::Suspend { for_ } => write!(f, "suspended {:.1} s", for_.as_secs_f64()),
            Self::SuspendAndKill { for_, down } => {
                write!(f, "suspended {:.1} s, then kill -9, down {:.1} s", for_.as_secs_f64(), down.as_secs_f64())
            }
            Self::Stop { down } => write!(f, "SIGTERM, down {:.1} s", down.as_secs_f64()),
        }
    }
}

/// One moment of the run: what falls together, and what must happen before the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Index of the process, and what happens to it.
    pub blows: Vec<(usize, Blow)>,
    /// Then at least so many further messages are acked,
    pub acks: usize,
    /// and so much time passes.
    pub pause: Duration,
}

/// Who lives through the whole run, suspended at most: one region and one edge. A process that dies every twenty
/// seconds shows no leak; one that sees a hundred others come and go does.
pub fn spare(seed: u64, kinds: &[Kind]) -> Vec<usize> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5a5a);
    let mut one_of = |kind| {
        let all: Vec<usize> = (0..kinds.len()).filter(|i| kinds[*i] == kind).collect();
        all[rng.random_range(0..all.len())]
    };
    vec![one_of(Kind::Region), one_of(Kind::Edge)]
}

/// Draws a schedule of exactly `count` blows over processes of these kinds.
pub fn draw(seed: u64, count: usize, kinds: &[Kind], spared: &[usize], pause_max: Duration) -> Vec<Step> {
    let mut rng = StdRng::seed_from_u64(seed);
    let blow = |rng: &mut StdRng, victim: usize| {
        let drawn = blow(rng, kinds[victim]);
        match drawn {
            Blow::Kill { .. } | Blow::SuspendAndKill { .. } | Blow::Stop { .. } if spared.contains(&victim) => {
                Blow::Suspend { for_: between(rng, 0.1, 20.0) }
            }
            drawn => drawn,
        }
    };
    let mut left = count;
    let mut steps = Vec::new();
    while left > 0 {
        let first = rng.random_range(0..kinds.len());
        let mut blows = vec![(first, blow(&mut rng, first))];
        if left > 1
            && rng.random_bool(0.15)
            && let Some(second) = partner(&mut rng, kinds, first)
        {
            blows.push((second, blow(&mut rng, second)));
        }
        left -= blows.len();
        let pause = pause_max.mul_f64(rng.random());
        steps.push(Step { blows, acks: rng.random_range(1..20), pause });
    }
    steps
}

/// Who falls in the same moment: mostly a region or an edge with a region, which are the hardest.
fn partner(rng: &mut StdRng, kinds: &[Kind], first: usize) -> Option<usize> {
    let hard = [Kind::Region, Kind::Edge];
    let others: Vec<usize> =
        (0..kinds.len()).filter(|i| *i != first && (hard.contains(&kinds[*i]) || rng.random_bool(0.3))).collect();
    (!others.is_empty()).then(|| others[rng.random_range(0..others.len())])
}

fn blow(rng: &mut StdRng, kind: Kind) -> Blow {
    // Short ones often, and some far longer than any time-out of a connection or a link.
    let down = |rng: &mut StdRng| {
        if rng.random_bool(0.15) { between(rng, 5.0, 15.0) } else { between(rng, 0.01, 3.0) }
    };
    match rng.random_range(0..10) {
        0..=4 => Blow::Kill { down: down(rng) },
        5..=7 => Blow::Suspend { for_: between(rng, 0.1, 20.0) },
        8 => Blow::SuspendAndKill { for_: between(rng, 0.1, 5.0), down: down(rng) },
        _ if kind == Kind::Client => Blow::Kill { down: down(rng) },
        _ => Blow::Stop { down: down(rng) },
    }
}

/// Seconds, each power of two of them as likely as the next.
fn between(rng: &mut StdRng, least: f64, most: f64) -> Duration {
    Duration::from_secs_f64(least * (most / least).powf(rng.random()))
}

#[test]
fn a_seed_is_a_schedule_and_schedules_have_everything_in_them() {
    let kinds = [Kind::Region, Kind::Region, Kind::Region, Kind::Edge, Kind::Edge, Kind::Dispatch, Kind::Client];
    let draw_sparing = |seed, spared: &[usize]| draw(seed, 100, &kinds, spared, Duration::from_secs(2));
    let draw = |seed| draw_sparing(seed, &[]);
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let steps: Vec<Step> = (0..20).flat_map(draw).collect();
    let blows: Vec<(usize, Blow)> = steps.iter().flat_map(|s| s.blows.clone()).collect();
    assert_eq!(blows.len(), 2000);
    let has = |what: &dyn Fn(usize, &Blow) -> bool| blows.iter().filter(|(i, blow)| what(*i, blow)).count();
    for (victim, kind) in kinds.iter().enumerate() {
        assert!(has(&|i, blow| i == victim && matches!(blow, Blow::Kill { .. })) > 20, "{victim}");
        assert!(has(&|i, blow| i == victim && matches!(blow, Blow::Suspend { .. })) > 20, "{victim}");
        assert!(has(&|i, blow| i == victim && matches!(blow, Blow::SuspendAndKill { .. })) > 5, "{victim}");
        let stops = has(&|i, blow| i == victim && matches!(blow, Blow::Stop { .. }));
        assert_eq!(stops > 0, *kind != Kind::Client, "{victim}");
    }
    let longest = has(&|_, blow| matches!(blow, Blow::Suspend { for_ } if *for_ > Duration::from_secs(10)));
    assert!(longest > 20, "{longest}");
    let both_regions = |s: &&Step| s.blows.len() == 2 && s.blows.iter().all(|(i, _)| kinds[*i] == Kind::Region);
    assert!(steps.iter().filter(both_regions).count() > 5);
    assert!(steps.iter().all(|s| s.blows.len() == 1 || s.blows[0].0 != s.blows[1].0));

    for seed in 0..20 {
        let spared = spare(seed, &kinds);
        assert_eq!(spared.iter().map(|i| kinds[*i]).collect::<Vec<_>>(), [Kind::Region, Kind::Edge]);
        let blows = draw_sparing(seed, &spared).into_iter().flat_map(|s| s.blows);
        let mut on_spared = blows.filter(|(i, _)| spared.contains(i));
        assert!(on_spared.all(|(_, blow)| matches!(blow, Blow::Suspend { .. })));
    }
    let spared: std::collections::BTreeSet<Vec<usize>> = (0..50).map(|seed| spare(seed, &kinds)).collect();
    assert_eq!(spared.len(), 6, "each region and each edge is spared in some runs");
}
