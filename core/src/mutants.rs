//! Seeded bugs: what a checker is worth.
//!
//! *Problem.* A test that passes says nothing until it has been seen to fail. Each rule of the protocol stands because
//! a simpler one loses, doubles, reorders or hides a message in some history; a simulator that does not notice when
//! the rule is dropped would not notice when it is broken by mistake.
//!
//! *Rule.* Each [`Mutant`] is a bug of that kind, at one place of the product or a few, behind one feature that no
//! production build has (`mutants`) and off unless a run selects it: so one build serves them all, and a run without
//! one is the product itself. A place reads [`mutant!`](crate::mutant), [`mutated!`](crate::mutated) or `on(..)`;
//! without the feature the macros expand to what stood there before, and [`on`] is a constant.
//!
//! Who selects: the runner of a scenario calls `select` before anything starts. Where nobody does, the variable
//! `TERN_MUTANT` counts, so that any test can be seen to bite: `TERN_MUTANT=stable-too-early cargo test --features
//! mutants`. It is one for the whole process, since a bug belongs to a program and not to one of its parts.
//!
//! *Why the simpler ways fail.* A patch per bug rots unseen, and needs a build for each; a flag in the configuration
//! would be in production too.

#[cfg(feature = "mutants")]
use std::sync::atomic::{AtomicUsize, Ordering};

macro_rules! mutants {
    ($($mutant:ident, $name:literal, $rule:literal, $breaks:literal;)*) => {
        /// A bug that can be switched on; see the module. Each says what then is so.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[cfg_attr(feature = "mutants", derive(Debug))]
        pub enum Mutant {
            $(#[doc = $breaks] $mutant,)*
        }

        /// Each with its name, the rule that it breaks, and what it does.
        #[cfg(feature = "mutants")]
        const ALL: &[(Mutant, &str, &str, &str)] = &[$((Mutant::$mutant, $name, $rule, $breaks),)*];
    };
}

mutants! {
    AckBeforeCommit, "ack-before-commit", "R1",
        "A message is acked when its batch is handed to the store, not when it is decided.";
    TimeoutTakenForDone, "timeout-taken-for-done", "R1",
        "A batch that the store did not decide counts as decided; the tail is not read.";
    NumberReused, "number-reused-after-takeover", "R1",
        "After a start a log goes on at the number of its last entry, and the store takes it.";
    FencedOwnerWrites, "fenced-owner-writes", "R2",
        "A store takes appends of an owner of an older epoch.";
    ResendWithNewIdentity, "resend-with-new-identity", "R3",
        "What was un-acked when a connection ended is sent again under new numbers.";
    SentBeforeStored, "sent-before-stored", "R3",
        "A message is on its way before the device has stored it.";
    BodyHashNotCompared, "body-hash-not-compared", "R3",
        "A number that is held is acked whatever its body.";
    FloorNotChecked, "floor-not-checked", "R3",
        "A message is sequenced though earlier ones of its install are missing.";
    IdentitiesForgotten, "identities-forgotten", "R3",
        "A checkpoint does not bring back which messages are held.";
    InstallKept, "install-kept-after-restore", "R3",
        "A device that was brought back from a backup, or cloned, goes on counting under its old install id.";
    CopyShownTwice, "copy-shown-twice", "R4",
        "A device does not fold a copy of a message that it shows already: it shows another one.";
    ReceiptNotVerified, "receipt-not-verified", "R4",
        "Whatever place a client offers is believed.";
    FreshPlaceForOffer, "fresh-place-for-offer", "R4",
        "A message that is offered again gets a new place in spite of its receipt.";
    LowerOfferDropped, "lower-offer-dropped", "R4",
        "An offer whose receipt is lower than every copy held is answered with what is held.";
    AckForgetsLostOnes, "ack-forgets-lost-ones", "R4",
        "An ack does not tell of earlier messages that are held and whose acks were lost.";
    FirstCopyWins, "first-copy-wins", "R4",
        "A message stays where a device showed it first, whatever copies with lower keys come.";
    VoidCopiesCount, "void-copies-count", "R4",
        "A copy above the end of a sealed log still gives its message its place.";
    NeverOffered, "never-offered", "R4",
        "Acked messages are not offered to other regions.";
    SeenStampIgnored, "seen-stamp-ignored", "R5",
        "A message's place is not above what its sender had seen.";
    FutureStampTaken, "future-stamp-taken", "R5",
        "A stamp of any height that a client says to have seen is believed.";
    FastClockServes, "fast-clock-serves", "R5",
        "A region whose clock is far off the others' goes on giving places.";
    FanoutMarkEarly, "fanout-mark-early", "R6",
        "The mark of a fan-out is gone before the rows are durable.";
    LinkAckFromMemory, "link-ack-from-memory", "R6",
        "A shipment is acked when it is judged, not when it is durable.";
    CopiesNotRelayed, "copies-not-relayed", "R6",
        "A region offers nobody the entries of another, though their author may be gone.";
    RowHeldFromMemory, "row-held-from-memory", "R6",
        "The owner of a member says that his row is durable when it is in memory.";
    RevReused, "rev-reused-after-crash", "R7",
        "After a crash revisions continue from the disk, in the old era, and are given a second time.";
    CursorBeforeHeads, "cursor-before-heads", "R7",
        "A device stores a cursor in a transaction before that of the heads that it stands for.";
    PushWithoutPrevious, "push-without-previous", "R7",
        "A push moves the cursor whatever revision it starts at.";
    PongFromEdgeCache, "pong-from-edge-cache", "R7",
        "An edge without its core answers a Ping by itself, as if nothing were new, and keeps its clients.";
    PreviewMovesCursor, "preview-moves-cursor", "R7",
        "A preview of some rows moves the cursor over all of them.";
    BucketsNotCompared, "buckets-not-compared", "R8",
        "A region answers row hashes as if they all agreed.";
    MarkGoesBack, "mark-goes-back", "R9",
        "The last read mark told counts, not the highest.";
    RemovedStillPushed, "removed-still-pushed", "R10",
        "Whoever was removed from a group is still pushed what is written there.";
    CutNotCheckedAtPull, "cut-not-checked-at-pull", "R10",
        "Whoever was removed from a group may pull what was written since.";
    GenerationNotRaised, "generation-not-raised", "R10",
        "Whoever is added again is added under his old generation.";
    RemovalNotFinal, "removal-not-final", "R10",
        "A change of the role of someone who was removed brings him back.";
    LastCutWins, "last-cut-wins", "R10",
        "Of two removals the one that arrives last says how far may be read.";
    AuthorityCheckedAgain, "authority-checked-again", "R10",
        "Whoever applies a change of members checks again whether its author might make it.";
    NewestMembershipNotNamed, "newest-membership-not-named", "R10",
        "A region judges a message though it lacks the change of members that its sender has seen.";
    FinalRefusalTooEarly, "final-refusal-too-early", "R10",
        "A refusal is final though another region may have taken the message.";
    CellUpdateDropped, "cell-update-dropped", "R11",
        "A second value of a cell is dropped.";
    MarkUpdateDropped, "mark-update-dropped", "R11",
        "A read mark that another region tells is acked and dropped.";
    MarkAckedFromMemory, "mark-acked-from-memory", "R11",
        "A read mark is acked before it is durable.";
    BlockNotChecked, "block-not-checked", "R11",
        "What a blocked sender writes is delivered.";
    EraKept, "era-kept-after-tail-loss", "R13",
        "A store goes on in its era whatever it has lost, and is compared with nobody.";
    PeersNotAsked, "peers-not-asked", "R13",
        "A clean stop is enough to go on in an era: peers are not asked whether they know more.";
    NotCompared, "not-compared", "R13",
        "A store that may have lost something is compared with nobody.";
    SealTooEarly, "seal-too-early", "R13",
        "A region seals its former eras before all regions hold what any holds of them.";
    StableTooEarly, "stable-too-early", "R14",
        "A message is called stable when one region has it.";
    DeadAuthorCounts, "dead-author-counts", "R14",
        "A region counts as a holder of what it wrote in an era that is over.";
    DoubtfulPeerCounts, "doubtful-peer-counts", "R14",
        "A region that may have lost what it acked counts as a holder of it.";
    AnyPlaceReleases, "any-place-releases", "R14",
        "A device lets a message go once any of its copies is stable, not the lowest.";
    GapToldTooEarly, "gap-told-too-early", "R15",
        "A region calls lost what it does not hold yet.";
    ErasedCopyWritten, "erased-copy-written", "R16",
        "A copy is written with its body though its erasure is known.";
    ErasureNotCarriedOut, "erasure-not-carried-out", "R16",
        "An erasure is noted, and the body stays in the store.";
    RestoredServesAtOnce, "restored-serves-at-once", "R16",
        "A restored region lets clients in before it has heard what was erased.";
}

/// Whether a mutant is switched on.
#[cfg(not(feature = "mutants"))]
pub const fn on(_mutant: Mutant) -> bool {
    false
}

/// What a bug does at this place, besides what stands there: `mutant!(Name => statement)`.
#[cfg(not(feature = "mutants"))]
#[macro_export]
macro_rules! mutant {
    ($($any:tt)*) => {};
}

/// What a bug has at this place, and what stands there: `mutated!(Name => wrong; right)`.
#[cfg(not(feature = "mutants"))]
#[macro_export]
macro_rules! mutated {
    ($mutant:ident => $wrong:expr; $right:expr) => {
        $right
    };
}

/// What a bug does at this place, besides what stands there: `mutant!(Name => statement)`.
#[cfg(feature = "mutants")]
#[macro_export]
macro_rules! mutant {
    ($mutant:ident => $($wrong:tt)*) => {
        if $crate::mutants::on($crate::mutants::Mutant::$mutant) {
            $($wrong)*
        }
    };
}

/// What a bug has at this place, and what stands there: `mutated!(Name => wrong; right)`.
#[cfg(feature = "mutants")]
#[macro_export]
macro_rules! mutated {
    ($mutant:ident => $wrong:expr; $right:expr) => {
        if $crate::mutants::on($crate::mutants::Mutant::$mutant) { $wrong } else { $right }
    };
}

/// Nobody has said which one is on.
#[cfg(feature = "mutants")]
const UNSAID: usize = usize::MAX;
/// None is.
#[cfg(feature = "mutants")]
const NONE: usize = usize::MAX - 1;

#[cfg(feature = "mutants")]
static SELECTED: AtomicUsize = AtomicUsize::new(UNSAID);

/// Whether a mutant is switched on.
///
/// # Panics
/// Where nobody has selected one and `TERN_MUTANT` names none: a run that was to show something must not pass for
/// a slip of the pen.
#[cfg(feature = "mutants")]
pub fn on(mutant: Mutant) -> bool {
    let mut selected = SELECTED.load(Ordering::Relaxed);
    if selected == UNSAID {
        let wanted = std::env::var("TERN_MUTANT").ok().filter(|name| !name.is_empty());
        select(
            wanted.map(|name| Mutant::parse(&name).unwrap_or_else(|| panic!("TERN_MUTANT names no mutant: {name}"))),
        );
        selected = SELECTED.load(Ordering::Relaxed);
    }
    selected == mutant as usize
}

/// Switches one on for this process, or none; before anything runs.
#[cfg(feature = "mutants")]
pub fn select(mutant: Option<Mutant>) {
    SELECTED.store(mutant.map_or(NONE, |mutant| mutant as usize), Ordering::Relaxed);
}

#[cfg(feature = "mutants")]
impl Mutant {
    /// All of them, in the order of the rules.
    pub fn all() -> impl ExactSizeIterator<Item = Self> {
        ALL.iter().map(|(mutant, ..)| *mutant)
    }

    /// The one of this name.
    pub fn parse(name: &str) -> Option<Self> {
        ALL.iter().find(|(_, known, ..)| *known == name).map(|(mutant, ..)| *mutant)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        ALL[self as usize].1
    }

    /// The rule that it breaks, such as `R7`.
    pub fn rule(self) -> &'static str {
        ALL[self as usize].2
    }

    /// What it does, in a sentence.
    pub fn breaks(self) -> &'static str {
        ALL[self as usize].3
    }
}

#[cfg(all(test, not(feature = "mutants")))]
mod tests {
    use super::*;

    /// Nothing of a mutant can be reached: this is decided when the product is built.
    const _: () = assert!(!on(Mutant::AckBeforeCommit) && !on(Mutant::RestoredServesAtOnce));

    #[test]
    fn without_the_feature_a_place_is_what_stood_there() {
        let mut touched = false;
        mutant!(AckBeforeCommit => touched = true);
        assert!(!std::mem::replace(&mut touched, true));
        assert_eq!(mutated!(AckBeforeCommit => 1; 2), 2);
    }
}

#[cfg(all(test, feature = "mutants"))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_has_a_name_of_its_own_a_rule_and_a_sentence() {
        let names: BTreeSet<&str> = Mutant::all().map(Mutant::name).collect();
        assert_eq!(names.len(), Mutant::all().len());
        for mutant in Mutant::all() {
            let (name, rule, breaks) = (mutant.name(), mutant.rule(), mutant.breaks());
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
            assert_eq!(Mutant::parse(name), Some(mutant));
            assert!(rule.strip_prefix('R').is_some_and(|n| (1..=17).contains(&n.parse().unwrap_or(0))), "{rule}");
            assert!(breaks.ends_with('.') && breaks.len() > 20, "{name}: {breaks}");
        }
        assert_eq!(Mutant::parse("no-such-bug"), None);
    }
}
