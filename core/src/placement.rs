//! Which core node is to own which shares of a region.
//!
//! Problem: nodes come, go, differ in size and are drained, and each move of a share costs a moment of its conversations;
//! no node is in command.
//!
//! Rule: from the same words on owners and nodes every node draws the same plan. A node's quota is its part of all shares
//! by weight, rounded so that they add up; a node that is drained has none. Whoever has more than his quota gives the
//! excess, the shares of highest number first, to those who have less; what nobody owns, or a node that is gone, goes to
//! those who have least of their quota. Nothing else moves. Each node carries out what it is to take and to give; if
//! words differ, the conditional writes in the store decide.
//!
//! Why simpler ways fail: a hash over the nodes moves shares between nodes that stay; a leader is one more thing that
//! dies.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::owners::Owners;
use crate::slots::{SHARES, Share};

/// A core node that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: Arc<str>,
    /// Its part beside the others', at least 1.
    pub weight: u32,
    /// It is to give up all it has.
    pub drained: bool,
}

/// What is to change hands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Shares without a living owner, and who is to take them.
    pub take: BTreeMap<Share, Arc<str>>,
    /// Shares of living owners, and whom they are to be given.
    pub give: BTreeMap<Share, Arc<str>>,
}

/// Draws the plan. Without a node that may own anything nothing changes hands.
pub fn plan(owners: &Owners, nodes: &[Candidate]) -> Plan {
    let mut plan = Plan::default();
    let quotas = quotas(nodes);
    if quotas.is_empty() {
        return plan;
    }
    let mut held = BTreeMap::<Arc<str>, Vec<Share>>::new();
    let mut orphans = Vec::new();
    for share in Share::all() {
        match owners.of(share).0.filter(|owner| nodes.iter().any(|n| n.name == **owner)) {
            Some(owner) => held.entry(owner.clone()).or_default().push(share),
            None => orphans.push(share),
        }
    }
    // What each lacks; orphans first, for they cost nobody a move.
    let mut lacks: BTreeMap<Arc<str>, usize> = quotas
        .iter()
        .map(|(name, quota)| (name.clone(), quota.saturating_sub(held.get(name).map_or(0, Vec::len))))
        .collect();
    for share in orphans {
        let Some(name) = neediest(&mut lacks, &quotas) else { break };
        plan.take.insert(share, name);
    }
    for (name, shares) in &held {
        let quota = quotas.get(name).copied().unwrap_or(0);
        for share in shares.iter().skip(quota).rev() {
            let Some(to) = neediest(&mut lacks, &quotas) else { return plan };
            plan.give.insert(*share, to);
        }
    }
    plan
}

/// Who has least of his quota, of whose lack one is taken.
fn neediest(lacks: &mut BTreeMap<Arc<str>, usize>, quotas: &BTreeMap<Arc<str>, usize>) -> Option<Arc<str>> {
    let part = |name: &Arc<str>, lack: usize| lack * 1_000_000 / quotas.get(name).copied().unwrap_or(1).max(1);
    let (name, _) = lacks
        .iter()
        .filter(|(_, lack)| **lack > 0)
        .max_by(|(a, x), (b, y)| part(a, **x).cmp(&part(b, **y)).then_with(|| b.cmp(a)))?;
    let name = name.clone();
    if let Some(lack) = lacks.get_mut(&name) {
        *lack -= 1;
    }
    Some(name)
}

/// Shares that each is to have: by weight, the remainders to the largest, then the first by name.
fn quotas(nodes: &[Candidate]) -> BTreeMap<Arc<str>, usize> {
    let able: BTreeMap<&Arc<str>, u64> =
        nodes.iter().filter(|n| !n.drained).map(|n| (&n.name, u64::from(n.weight.max(1)))).collect();
    let total: u64 = able.values().sum();
    if total == 0 {
        return BTreeMap::new();
    }
    let all = u64::from(SHARES);
    let mut quotas: Vec<(u64, Arc<str>, usize)> = able
        .iter()
        .map(|(name, weight)| {
            let exact = all * weight;
            (exact % total, (*name).clone(), usize::try_from(exact / total).unwrap_or(0))
        })
        .collect();
    let given: usize = quotas.iter().map(|(_, _, quota)| quota).sum();
    quotas.sort_by(|(x, a, _), (y, b, _)| y.cmp(x).then_with(|| a.cmp(b)));
    for (_, _, quota) in quotas.iter_mut().take(usize::from(SHARES) - given) {
        *quota += 1;
    }
    quotas.into_iter().map(|(_, name, quota)| (name, quota)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(name: &str, weight: u32) -> Candidate {
        Candidate { name: name.into(), weight, drained: false }
    }

    /// Carries a plan out; returns how many shares moved from living owners.
    fn carry_out(owners: &mut Owners, plan: &Plan) -> usize {
        for (share, to) in plan.take.iter().chain(&plan.give) {
            let epoch = owners.of(*share).1 + 1;
            owners.set(*share, Some(to.clone()), epoch);
        }
        plan.give.len()
    }

    fn count(owners: &Owners, name: &str) -> usize {
        Share::all().filter(|share| owners.of(*share).0.is_some_and(|n| &**n == name)).count()
    }

    #[test]
    fn three_share_alike_and_a_fourth_takes_a_quarter_and_no_more_moves() {
        let mut owners = Owners::default();
        let mut nodes = vec![node("a", 1), node("b", 1), node("c", 1)];
        let first = plan(&owners, &nodes);
        carry_out(&mut owners, &first);
        assert_eq!(["a", "b", "c"].map(|n| count(&owners, n)), [86, 85, 85]);
        nodes.push(node("d", 1));
        let moved = plan(&owners, &nodes);
        assert_eq!(carry_out(&mut owners, &moved), 64);
        assert_eq!(["a", "b", "c", "d"].map(|n| count(&owners, n)), [64; 4]);
        // The death of one costs the others nothing of what they have.
        nodes.remove(1);
        let heirs = plan(&owners, &nodes);
        assert_eq!((heirs.take.len(), heirs.give.len()), (64, 0));
    }

    #[test]
    fn a_drained_node_gives_all_and_a_large_one_has_more() {
        let mut owners = Owners::default();
        let mut nodes = vec![node("a", 1), node("b", 3)];
        let first = plan(&owners, &nodes);
        carry_out(&mut owners, &first);
        assert_eq!(["a", "b"].map(|n| count(&owners, n)), [64, 192]);
        nodes[1].drained = true;
        let drained = plan(&owners, &nodes);
        assert_eq!(carry_out(&mut owners, &drained), 192);
        assert_eq!(count(&owners, "a"), 256);
        nodes[0].drained = true;
        assert_eq!(plan(&owners, &nodes), Plan::default(), "somebody must have them");
    }

    proptest! {
        #[test]
        fn plans_settle_at_once_and_move_no_more_than_they_must(
            changes in proptest::collection::vec((0usize..6, 1u32..5, any::<bool>(), any::<bool>()), 1..12)
        ) {
            let mut owners = Owners::default();
            let mut nodes: Vec<Candidate> = Vec::new();
            for (i, weight, drained, gone) in changes {
                let name = ["a", "b", "c", "d", "e", "f"][i];
                nodes.retain(|n| &*n.name != name);
                if !gone {
                    nodes.push(Candidate { drained, ..node(name, weight) });
                }
                let first = plan(&owners, &nodes);
                let able = nodes.iter().filter(|n| !n.drained).count();
                let before: Vec<usize> = nodes.iter().map(|n| count(&owners, &n.name)).collect();
                let moved = carry_out(&mut owners, &first);
                prop_assert_eq!(plan(&owners, &nodes), Plan::default());
                if able == 0 {
                    continue;
                }
                let quotas = quotas(&nodes);
                prop_assert_eq!(quotas.values().sum::<usize>(), usize::from(SHARES));
                let excess: usize = nodes
                    .iter()
                    .zip(before)
                    .map(|(n, had)| had.saturating_sub(quotas.get(&n.name).copied().unwrap_or(0)))
                    .sum();
                prop_assert_eq!(moved, excess);
                for (name, quota) in quotas {
                    prop_assert_eq!(count(&owners, &name), quota);
                }
            }
        }
    }
}
