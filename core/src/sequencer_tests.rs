use super::*;
use crate::ids::body_hash;

const EU: Origin = Origin { region: 1, era: 10 };
const US: Origin = Origin { region: 2, era: 20 };
const NOW: u64 = 1_000_000;

struct Region {
    state: LogState,
    origin: Origin,
    skew: i64,
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

impl Region {
    fn new(origin: Origin) -> Self {
        let id = ConvId::direct(b"s", &user("alice"), &user("bob"));
        Self { state: LogState::new(id), origin, skew: 0 }
    }

    fn judge(&self, install: &str, send: &SendRequest) -> Verdict {
        let court = Court {
            now_ms: NOW.saturating_add_signed(self.skew),
            origin: self.origin,
            direct_salt: b"s",
            receipt_valid: send.offer.as_ref().is_some_and(|(_, r)| &r[..] == b"valid"),
            blocked: false,
        };
        let install = InstallId::new(install).unwrap();
        let from = Sender { user: &user("alice"), install: &install };
        self.state.judge(court, from, send, &body_hash(&send.body), &(send.floor..send.n))
    }

    /// Sequences what must be new; returns its entry.
    fn take(&mut self, send: &SendRequest) -> Entry {
        match self.judge("phone", send) {
            Verdict::Append(entry) => {
                self.state.apply(Arc::new(entry.clone()));
                entry
            }
            other => panic!("{other:?}"),
        }
    }

    fn copy(&mut self, entry: &Entry) -> bool {
        self.state.apply(Arc::new(entry.clone()))
    }

    fn refused(&self, send: &SendRequest) -> Code {
        match self.judge("phone", send) {
            Verdict::Refuse(refusal) => refusal.code,
            other => panic!("{other:?}"),
        }
    }
}

fn send(n: u64) -> SendRequest {
    SendRequest {
        conversation: ConvId::direct(b"s", &user("alice"), &user("bob")),
        peer: Some(user("bob")),
        n,
        floor: n,
        seen_hlc: 0,
        kind: 0,
        body: Bytes::from(format!("message {n}")),
        wall_ms: 0,
        offer: None,
        membership: None,
        named: None,
    }
}

fn offer(n: u64, of: &Entry, receipt: &'static [u8]) -> SendRequest {
    SendRequest { offer: Some((of.display_key(), Bytes::from_static(receipt))), ..send(n) }
}

#[test]
fn a_resend_is_acked_at_its_old_place() {
    let mut eu = Region::new(EU);
    let first = eu.take(&send(1));
    eu.take(&send(2));
    assert_eq!(eu.judge("phone", &send(1)), Verdict::Held(Arc::new(first)));
}

#[test]
fn a_reinstall_that_counts_from_1_again_is_not_taken_for_a_resend() {
    let mut eu = Region::new(EU);
    eu.take(&send(1));
    let other = SendRequest { body: Bytes::from_static(b"hello again"), ..send(1) };
    assert!(matches!(eu.judge("reinstalled", &other), Verdict::Append(_)));
}

#[test]
fn a_clone_of_a_phones_backup_gets_a_conflict_and_overwrites_nothing() {
    let mut eu = Region::new(EU);
    eu.take(&send(1));
    let clone = SendRequest { body: Bytes::from_static(b"from the clone"), ..send(1) };
    assert_eq!(eu.refused(&clone), Code::IdentityConflict);
}

#[test]
fn n_11_does_not_hide_that_n_10_is_missing() {
    // m10 was acked by a region that died with it; m11 goes elsewhere first, then m10 is offered.
    let (mut eu, mut us) = (Region::new(EU), Region::new(US));
    for n in 1..=9 {
        us.copy(&eu.take(&send(n)));
    }
    let m10 = eu.take(&send(10));
    let m11 = us.take(&SendRequest { floor: 11, seen_hlc: m10.place.hlc, ..send(11) });
    let again = us.take(&offer(10, &m10, b"valid"));
    assert_eq!(again.first, Some(m10.place));
    assert!(again.display_key() < m11.display_key(), "m10 stays before m11");
}

#[test]
fn the_dead_region_returns_with_m10_and_the_lowest_copy_is_acked() {
    let (mut eu, mut us) = (Region::new(EU), Region::new(US));
    let m1 = eu.take(&send(1));
    let again = us.take(&offer(1, &m1, b"valid"));
    assert!(us.copy(&m1), "a copy of what is held: no push, no unread");
    assert!(eu.copy(&again));
    for region in [&us, &eu] {
        let Verdict::Held(lowest) = region.judge("phone", &send(1)) else { panic!() };
        assert_eq!(lowest.display_key(), m1.place);
    }
}

#[test]
fn a_re_offer_lower_than_every_copy_is_written_as_a_further_copy() {
    let (mut eu, mut us) = (Region::new(EU), Region::new(US));
    us.skew = 500;
    let in_eu = eu.take(&send(1));
    let in_us = us.take(&send(1)); // a race: both regions sequenced it, the client knows eu's ack
    assert!(in_eu.place < in_us.place);
    let further = us.take(&offer(1, &in_eu, b"valid"));
    assert_eq!((further.place.seq, further.first), (2, Some(in_eu.place)));
    assert!(
        matches!(us.judge("phone", &offer(1, &in_eu, b"valid")), Verdict::Held(e) if e.display_key() == in_eu.place)
    );
}

#[test]
fn a_forged_receipt_gets_a_fresh_place() {
    let mut eu = Region::new(EU);
    let m1 = eu.take(&send(1));
    let forged = Entry { place: Place { hlc: 1, ..m1.place }, ..m1.clone() };
    let m2 = eu.take(&offer(2, &forged, b"forged"));
    assert_eq!(m2.first, None);
    assert!(m2.place > m1.place);
}

#[test]
fn a_gap_below_n_is_refused_and_a_floor_above_it_is_not() {
    let mut eu = Region::new(EU);
    eu.take(&send(1));
    assert_eq!(eu.refused(&SendRequest { floor: 1, ..send(3) }), Code::OutOfOrder);
    // 2 was acked elsewhere: the floor says so.
    eu.take(&send(3));
    // 2 may still come, offered.
    let elsewhere = Region::new(US).take(&send(2));
    assert_eq!(eu.take(&offer(2, &elsewhere, b"valid")).first, Some(elsewhere.place));
}

#[test]
fn a_roaming_sender_stays_behind_what_he_saw_and_far_stamps_are_refused() {
    let mut eu = Region::new(EU);
    eu.skew = -50;
    let seen = hlc::from_ms(NOW) + 7;
    assert_eq!(eu.take(&SendRequest { seen_hlc: seen, ..send(1) }).place.hlc, seen + 1);
    let far = hlc::from_ms(NOW + 120_000);
    assert_eq!(eu.refused(&SendRequest { seen_hlc: far, ..send(2) }), Code::Behind);
    // A copy of a region whose clock is ten minutes ahead is followed, not refused.
    let mut fast = Region::new(US);
    fast.skew = 600_000;
    let ahead = fast.take(&SendRequest { body: Bytes::from_static(b"x"), ..send(9) });
    eu.copy(&ahead);
    assert!(eu.take(&send(2)).place.hlc > ahead.place.hlc);
}

#[test]
fn strangers_and_wrong_ids_are_refused() {
    let mut eu = Region::new(EU);
    assert_eq!(eu.refused(&SendRequest { peer: None, ..send(1) }), Code::UnknownConversation);
    assert_eq!(eu.refused(&SendRequest { peer: Some(user("carol")), ..send(1) }), Code::NotMember);
    eu.take(&send(1));
    eu.take(&SendRequest { peer: None, ..send(2) });
    let install = InstallId::new("m").unwrap();
    let court = Court { now_ms: NOW, origin: EU, direct_salt: b"s", receipt_valid: false, blocked: false };
    let mallory = Sender { user: &user("mallory"), install: &install };
    let verdict = eu.state.judge(court, mallory, &send(1), &body_hash(b"message 1"), &(1..1));
    assert!(matches!(verdict, Verdict::Refuse(r) if r.code == Code::NotMember));
}

#[test]
fn acks_tell_of_what_is_held_below_n() {
    let mut eu = Region::new(EU);
    for n in 1..=3 {
        eu.take(&send(n));
    }
    let install = InstallId::new("phone").unwrap();
    let from = Sender { user: &user("alice"), install: &install };
    let also: Vec<u64> = eu.state.also_held(from, &(1..3)).iter().map(|e| e.by.n).collect();
    assert_eq!(also, [1, 2]);
}

#[test]
fn old_messages_are_recalled_from_the_store_and_then_judged() {
    let mut eu = Region::new(EU);
    let first = eu.take(&send(1));
    for n in 2..=RECENT_ENTRIES as u64 + 10 {
        eu.take(&send(n));
    }
    let Verdict::Recall(wanted) = eu.judge("phone", &send(1)) else { panic!() };
    let (run, n) = wanted[0];
    assert!(run.range_of(n).0 <= 1 && 1 <= run.range_of(n).1);
    eu.state.recall([Arc::new(first.clone())]);
    assert_eq!(eu.judge("phone", &send(1)), Verdict::Held(Arc::new(first)));
}

#[test]
fn a_checkpoint_says_all_but_the_bodies() {
    let mut eu = Region::new(EU);
    for n in 1..=5 {
        eu.take(&send(n));
    }
    let bytes = eu.state.checkpoint();
    let back = LogState::from_checkpoint(eu.state.conversation, bytes.clone()).unwrap();
    assert_eq!(
        (&back.heads, back.highest_hlc, &back.fold, back.counted),
        (&eu.state.heads, eu.state.highest_hlc, &eu.state.fold, 5)
    );
    assert_eq!(back.held, eu.state.held);
    for cut in 0..bytes.len() {
        assert!(LogState::from_checkpoint(eu.state.conversation, bytes.slice(..cut)).is_none());
    }
    assert_eq!(bytes[..18], [3, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0], "the format is pinned");
}

#[test]
fn a_window_with_many_copies_is_read_again_once_and_then_judged() {
    let mut eu = Region::new(EU);
    let mut all = Vec::new();
    for n in 1..=64 {
        all.push(eu.take(&send(n)));
    }
    // Five eras of another region hold copies of each.
    for era in 0..5 {
        for n in 1..=64u64 {
            let origin = Origin { region: 2, era: 100 + era };
            let first = &all[usize::try_from(n).unwrap() - 1];
            let place = Place { origin, seq: n, hlc: first.place.hlc + 1 };
            let copy = Entry { place, first: Some(first.place), ..first.clone() };
            eu.copy(&copy);
            all.push(copy);
        }
    }
    eu.state.shrink();
    let next = SendRequest { floor: 1, ..send(65) };
    let Verdict::Recall(runs) = eu.judge("phone", &next) else { panic!("what was written long ago is not in memory") };
    let asked = |e: &Entry| {
        runs.iter().any(|(run, n)| {
            let (low, high) = run.range_of(*n);
            run.origin == e.place.origin && (low..=high).contains(&e.place.seq)
        })
    };
    eu.state.recall(all.iter().filter(|e| asked(e)).cloned().map(Arc::new));
    assert!(matches!(eu.judge("phone", &next), Verdict::Append(_)), "read once, all of it is in memory");
}
