//! Slots and nodes.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cluster::Place;
use tern_scylla::leases::{LeaseError, Leases, NodeLease};
use tern_scylla::{Fate, Step};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_again_or_is_fenced_can_not_renew_its_last_generation() {
    let Some(place) = Place::new().await else { return };
    let leases = Leases::new(place.cluster.clone());
    assert_eq!(leases.node("a").await.unwrap(), None);
    assert!(matches!(leases.renew("a", 1, 5).await, Err(LeaseError::Lost)), "nobody has heard of it");
    assert_eq!(leases.claim_node("a", 10).await.unwrap(), 1);
    leases.renew("a", 1, 20).await.unwrap();
    assert_eq!(leases.claim_node("a", 30).await.unwrap(), 2);
    assert!(matches!(leases.renew("a", 1, 40).await, Err(LeaseError::Lost)));
    leases.renew("a", 2, 50).await.unwrap();
    let held = NodeLease { id: "a".to_owned(), generation: 2, renewed_ms: 50 };
    assert_eq!(leases.node("a").await.unwrap(), Some(held.clone()));
    leases.fence(&held).await.unwrap();
    assert!(matches!(leases.renew("a", 2, 60).await, Err(LeaseError::Lost)));
    assert!(matches!(leases.fence(&held).await, Err(LeaseError::Lost)), "by another");
    assert_eq!(leases.claim_node("a", 70).await.unwrap(), 4);
    assert_eq!(leases.claim_node("b", 80).await.unwrap(), 1);
    let all: Vec<_> = leases.nodes().await.unwrap().into_iter().map(|n| (n.id, n.generation, n.renewed_ms)).collect();
    assert_eq!(all, [("a".to_owned(), 4, 70), ("b".to_owned(), 1, 80)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_take_a_slot_one_gets_it_and_its_epoch_never_repeats() {
    let Some(place) = Place::new().await else { return };
    let leases = Arc::new(Leases::new(place.cluster.clone()));
    let mut epochs = Vec::new();
    for round in 0..5u64 {
        let tries = (0..6u64).map(|n| {
            let leases = leases.clone();
            async move { leases.take(77, round, &format!("node-{n}"), 1).await }
        });
        let got: Vec<u64> = futures_util::future::join_all(tries)
            .await
            .into_iter()
            .filter_map(|taken| match taken {
                Ok(epoch) => Some(epoch),
                Err(LeaseError::Lost) => None,
                Err(error) => panic!("{error}"),
            })
            .collect();
        assert_eq!(got.len(), 1);
        epochs.extend(got);
    }
    assert_eq!(epochs, [1, 2, 3, 4, 5]);
    let held = leases.slot(77).await.unwrap().unwrap();
    assert!(held.owner.is_some() && held.epoch == 5);
    assert_eq!(leases.slots().await.unwrap(), std::slice::from_ref(&held));
    leases.release(&held).await.unwrap();
    assert_eq!(leases.slot(77).await.unwrap().unwrap().owner, None);
    assert_eq!(leases.take(77, 5, "other", 9).await.unwrap(), 6);
    assert!(matches!(leases.release(&held).await, Err(LeaseError::Lost)), "it is another's now");
    assert_eq!(leases.slot(4_095).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_answered_is_found_out() {
    let Some(place) = Place::new().await else { return };
    for fate in [Fate::NotSent, Fate::AnswerLost] {
        let leases = Leases::new(place.cluster.clone());
        let count = AtomicU64::new(0);
        // Every second conditional write.
        leases.set_fates(Arc::new(move |step| match step {
            Step::Conditional if count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) => fate,
            _ => Fate::Normal,
        }));
        let slot = if fate == Fate::NotSent { 1 } else { 2 };
        let generation = leases.claim_node("a", 1).await.unwrap();
        leases.renew("a", generation, 2).await.unwrap();
        assert_eq!(leases.take(slot, 0, "a", generation).await.unwrap(), 1);
        assert_eq!(leases.take(slot, 1, "a", generation).await.unwrap(), 2);
        let held = leases.slot(slot).await.unwrap().unwrap();
        leases.release(&held).await.unwrap();
        assert!(matches!(leases.take(slot, 1, "b", 1).await, Err(LeaseError::Lost)), "{fate:?}");
    }
}
