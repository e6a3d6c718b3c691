//! The store itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tern_core::clock::{Clock, Entropy};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Origin, Region, UserId};
use tern_core::store::{
    Append, Appended, BoxFut, ConversationHeads, ConversationImage, Durability, Put, Range, RowRecord, Store,
    StoreError, Todo, UserMarks,
};
use tern_replication::store::Archive;
use tern_replication::store::archive::seam;
use tern_replication::store::format::{LogId, decode_opaque};
use tern_replication::store::{EPOCH_KEY, acceptable, epoch_value};
use tokio::sync::{OnceCell, Semaphore};

use crate::append::storable;
use crate::archived::{Archived, Limit};
use crate::cluster::Cluster;
use crate::error::ScyllaError;
use crate::halves::Halves;
use crate::limits::{APPENDS_AT_ONCE, DAMAGED_LOGS, REV_CACHE, STAMP_RENEWAL, TURNS};
use crate::metrics::ScyllaMetrics;
use crate::puts::meta_name;
use crate::requests::{Fates, Requests};
use crate::shared::Sharing;
use crate::stamps::{StampError, Stamps};
use crate::tails::{Tail, Tails};
use crate::timeline::{Timeline, damaged};

/// Under which a region notes whose a store is.
pub const REGION_KEY: &str = "region";

/// A region's store on ScyllaDB or Cassandra. Share it in an [`Arc`]; one that writes fences all that wrote before.
pub struct ScyllaStore {
    pub(crate) requests: Arc<Requests>,
    /// Other processes share the region: each conversation has the epoch of its share.
    pub(crate) sharing: Option<Arc<Sharing>>,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) tails: Tails,
    pub(crate) stamps: Stamps,
    pub(crate) appends: Semaphore,
    turns: Vec<tokio::sync::Mutex<()>>,
    /// The highest epoch seen; appends below it are fenced.
    floor: AtomicU64,
    stored_floor: OnceCell<()>,
    /// The highest epoch that this store appended or claimed with: what it reads it takes over. 0 = none yet.
    pub(crate) owned: AtomicU64,
    pub(crate) buckets: Mutex<BTreeSet<i32>>,
    pub(crate) archived: Archived,
    pub(crate) archive: Option<Arc<Archive>>,
    /// What the store is called in the archive, if nobody has said before.
    pub(crate) archive_draw: [u8; 16],
    /// One pass of tiering at a time.
    pub(crate) tiering: tokio::sync::Mutex<()>,
    revs: Mutex<Halves<[u8; 16], u64>>,
    damaged: Mutex<BTreeMap<LogId, String>>,
}

impl fmt::Debug for ScyllaStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScyllaStore").field("cluster", self.requests.cluster()).finish_non_exhaustive()
    }
}

impl ScyllaStore {
    /// A store over a cluster. Asks nothing of it yet. `rng` gives it the name by which it is told from others.
    pub fn new(cluster: Arc<Cluster>, clock: Arc<dyn Clock>, rng: &Entropy) -> Self {
        let (mut holder, mut archive_draw) = ([0; 16], [0; 16]);
        rng.fill(&mut holder);
        rng.fill(&mut archive_draw);
        let requests = Arc::new(Requests::new(cluster));
        let timeline = Arc::new(Timeline::new(requests.clone()));
        Self {
            tails: Tails::new(requests.clone(), timeline.clone()),
            stamps: Stamps::new(requests.clone(), clock, holder),
            archived: Archived::new(requests.clone()),
            archive: None,
            archive_draw,
            tiering: tokio::sync::Mutex::default(),
            requests,
            sharing: None,
            timeline,
            appends: Semaphore::new(APPENDS_AT_ONCE),
            turns: (0..TURNS).map(|_| tokio::sync::Mutex::new(())).collect(),
            floor: AtomicU64::new(0),
            stored_floor: OnceCell::new(),
            owned: AtomicU64::new(0),
            buckets: Mutex::default(),
            revs: Mutex::new(Halves::new(REV_CACHE)),
            damaged: Mutex::default(),
        }
    }

    /// The store of one of several processes that share the region.
    pub(crate) fn sharing(cluster: Arc<Cluster>, clock: Arc<dyn Clock>, rng: &Entropy, sharing: Arc<Sharing>) -> Self {
        Self { sharing: Some(sharing), ..Self::new(cluster, clock, rng) }
    }

    /// With an archive, [`Archive::of_all_regions`].
    #[must_use]
    pub fn with_archive(mut self, archive: Arc<Archive>) -> Self {
        self.archive = Some(archive);
        self
    }

    /// Whose store it is; `None` where no region has begun yet.
    pub(crate) async fn region(&self) -> Result<Option<Region>, StoreError> {
        match &self.archive {
            Some(archive) => Ok(Some(archive.region())),
            None => Ok(self.named(REGION_KEY).await?.and_then(|value| value.first().copied())),
        }
    }

    /// The epoch under which this process reads a conversation and takes it over by that; 0: it does not own it.
    pub(crate) fn owned_epoch(&self, conversation: ConvId) -> u64 {
        match &self.sharing {
            Some(sharing) => sharing.epoch_of(conversation),
            None => self.owned.load(Ordering::Acquire),
        }
    }

    /// Makes sure that the keyspace is not one that several processes share: see [`crate::SharedScylla::prepare`].
    pub async fn check_alone(&self) -> Result<(), StoreError> {
        match self.settled(crate::shared::MODE).await? {
            Some(how) if how == *crate::shared::SHARED => Err(StoreError::Backend(
                "this keyspace belongs to a region that several processes share: set region.shared, or give this region \
                 a keyspace of its own (store.keyspace)"
                    .to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// Gives the region back, so that the next process need not wait. Nothing can be written afterwards.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.stamps.release().await
    }

    /// What the store counts.
    pub fn metrics(&self) -> &ScyllaMetrics {
        &self.requests.metrics
    }

    /// The cluster it is on.
    pub fn cluster(&self) -> &Arc<Cluster> {
        self.requests.cluster()
    }

    /// Waits until no process can have the region any more; some seconds if the last one was killed.
    ///
    /// # Errors
    /// [`ScyllaError::InUse`] if one runs; a failed request.
    pub async fn wait_until_free(&self) -> Result<(), ScyllaError> {
        match self.stamps.wait_until_free().await {
            Ok(true) => Ok(()),
            Ok(false) => Err(ScyllaError::InUse(self.cluster().options().keyspace.clone())),
            Err(error) => Err(ScyllaError::Request(error.to_string())),
        }
    }

    /// Keeps the region, once this store has claimed it, and returns when another process has taken it over. From then
    /// on nothing can be written here. A database that does not answer is asked again for ever.
    pub async fn hold(&self) {
        loop {
            tokio::time::sleep(STAMP_RENEWAL).await;
            match self.stamps.renew().await {
                Ok(()) => {}
                Err(StampError::Fenced) => return,
                Err(StampError::Backend(what)) => {
                    tracing::warn!(what, "whether this process still has its region is not known; asking again");
                }
            }
        }
    }

    /// From now on requests have the fates that `fates` decides, for tests. Once; whether it was the first time.
    pub fn set_fates(&self, fates: Fates) -> bool {
        self.requests.set_fates(fates)
    }

    /// The highest epoch seen, the stored one included.
    pub(crate) async fn floor(&self) -> Result<u64, StoreError> {
        if self.sharing.is_some() {
            return Ok(0);
        }
        let read = || async { self.stamps.epoch().await.map(|epoch| self.raise_floor(epoch)) };
        self.stored_floor.get_or_try_init(read).await?;
        Ok(self.floor.load(Ordering::Acquire))
    }

    pub(crate) fn raise_floor(&self, epoch: u64) {
        self.floor.fetch_max(epoch, Ordering::AcqRel);
    }

    /// Writes of a conversation take turns.
    pub(crate) fn turn(&self, conversation: ConvId) -> &tokio::sync::Mutex<()> {
        let at = u16::from_be_bytes([conversation.0[0], conversation.0[1]]);
        &self.turns[usize::from(at) % TURNS]
    }

    pub(crate) fn remembered_rev(&self, key: &[u8; 16]) -> Option<u64> {
        self.revs.lock().unwrap_or_else(PoisonError::into_inner).get(key)
    }

    pub(crate) fn remember_rev(&self, key: [u8; 16], rev: u64) {
        self.revs.lock().unwrap_or_else(PoisonError::into_inner).put(key, rev);
    }

    pub(crate) fn forget_rev(&self, key: &[u8; 16]) {
        self.revs.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Why a log is refused, if it is.
    pub(crate) fn damage(&self, log: LogId) -> Option<String> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).get(&log).cloned()
    }

    pub(crate) fn damage_of(&self, conversation: ConvId) -> BTreeMap<Origin, String> {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        let first = LogId { conversation, origin: Origin { region: 0, era: 0 } };
        let of = damaged.range(first..).take_while(|(log, _)| log.conversation == conversation);
        of.map(|(log, what)| (log.origin, what.clone())).collect()
    }

    /// A log that was found damaged is refused until the process starts again.
    pub(crate) fn note_damage(&self, error: &StoreError) {
        let StoreError::Damaged { conversation, origin, what } = error else { return };
        tracing::error!(%conversation, %origin, what, "a log is damaged and refused");
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if damaged.len() < DAMAGED_LOGS {
            damaged.insert(LogId { conversation: *conversation, origin: *origin }, what.clone());
        }
        self.requests.metrics.damaged_logs.set(damaged.len() as u64);
    }

    /// What is decided of a conversation, which is taken over for it by a store that owns something.
    async fn had(&self, conversation: ConvId) -> Result<Tail, StoreError> {
        let owned = self.owned_epoch(conversation);
        if owned == 0 {
            return self.tails.read(conversation).await;
        }
        let _turn = self.turn(conversation).lock().await;
        match self.tails.take(conversation, owned).await {
            Ok(tail) => Ok(tail),
            // What is decided may still be read; the next append says so.
            Err(crate::tails::TakeError::Fenced) => self.tails.read(conversation).await,
            Err(crate::tails::TakeError::Backend(what)) => Err(StoreError::Backend(what)),
        }
    }

    async fn image(&self, conversation: ConvId) -> Result<ConversationImage, StoreError> {
        let (tail, checkpoint) =
            futures_util::future::try_join(self.had(conversation), self.checkpoint(conversation)).await?;
        let damaged = self.damage_of(conversation);
        let heads = tail.logs.iter().filter(|(origin, _)| !damaged.contains_key(origin));
        Ok(ConversationImage {
            heads: heads.map(|(origin, log)| (*origin, log.head)).collect(),
            highest_hlc: tail.logs.values().map(|log| log.hlc).max().unwrap_or(0),
            checkpoint,
            damaged,
        })
    }

    pub(crate) async fn checkpoint(&self, conversation: ConvId) -> Result<Option<Bytes>, StoreError> {
        let statement = &self.requests.statements().checkpoint;
        opaque(self.requests.row(statement, (&conversation.0[..],)).await?)
    }

    async fn read_range(&self, range: &Range) -> Result<Vec<Arc<Entry>>, StoreError> {
        let log = LogId { conversation: range.conversation, origin: range.origin };
        if let Some(what) = self.damage(log) {
            return Err(damaged(log, what));
        }
        let tail = match self.tails.remembered(range.conversation, self.owned_epoch(range.conversation)) {
            Some(tail) => tail,
            None => self.tails.glance(range.conversation).await?,
        };
        let Some(known) = tail.logs.get(&range.origin) else { return Ok(Vec::new()) };
        let batch = if known.inserted {
            BTreeMap::new()
        } else {
            self.tails
                .batch(log)
                .await?
                .map_err(|what| damaged(log, what.to_owned()))
                .inspect_err(|error| self.note_damage(error))?
        };
        let (head, range) = (known.head, Range { to: range.to.min(known.head), ..*range });
        let limit = Limit { store: self, log, head, batch };
        seam::range(&limit, self.archive.as_deref(), None, &range).await
    }

    async fn named(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        if key == EPOCH_KEY {
            let epoch = self.stamps.epoch().await?;
            return Ok((epoch > 0).then(|| epoch_value(epoch)));
        }
        let statement = &self.requests.statements().meta;
        opaque(self.requests.row(statement, (meta_name(key),)).await?)
    }
}

fn opaque(row: Option<(Option<Vec<u8>>,)>) -> Result<Option<Bytes>, StoreError> {
    let value = row.and_then(|(value,)| value);
    value.map(|value| decode_opaque(&value)).transpose().map_err(|error| StoreError::Backend(error.to_string()))
}

impl Store for ScyllaStore {
    fn append(&self, batches: Vec<Append>) -> BoxFut<'_, Vec<Appended>> {
        Box::pin(async move {
            let begun = tokio::time::Instant::now();
            let answers = self.append_all(&batches).await;
            self.requests.metrics.append_seconds.observe(begun.elapsed().as_secs_f64());
            answers
        })
    }

    fn appends_at_once(&self) -> usize {
        APPENDS_AT_ONCE
    }

    fn put(&self, puts: Vec<Put>, _durability: Durability) -> BoxFut<'_, Result<(), StoreError>> {
        if let Err(refused) = acceptable(&puts).and_then(|()| storable(&puts)) {
            return Box::pin(std::future::ready(Err(refused)));
        }
        Box::pin(async move {
            self.floor().await?;
            self.put_all(puts).await
        })
    }

    fn conversation(&self, conversation: ConvId) -> BoxFut<'_, Result<ConversationImage, StoreError>> {
        Box::pin(self.image(conversation))
    }

    fn range(&self, range: Range) -> BoxFut<'_, Result<Vec<Arc<Entry>>, StoreError>> {
        Box::pin(async move { self.read_range(&range).await })
    }

    fn rows(&self, user: UserId) -> BoxFut<'_, Result<Vec<(ConvId, RowRecord)>, StoreError>> {
        Box::pin(async move { self.list_rows(&user).await })
    }

    fn marks(&self, after: Option<UserId>, limit: usize) -> BoxFut<'_, Result<Vec<UserMarks>, StoreError>> {
        Box::pin(self.list_marks(after, limit))
    }

    fn todo(&self) -> BoxFut<'_, Result<Vec<Todo>, StoreError>> {
        Box::pin(self.list_todo())
    }

    fn conversations(
        &self,
        after: Option<ConvId>,
        limit: usize,
    ) -> BoxFut<'_, Result<Vec<ConversationHeads>, StoreError>> {
        Box::pin(self.list_conversations(after, limit))
    }

    fn meta(&self, key: &str) -> BoxFut<'_, Result<Option<Bytes>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move { self.named(&key).await })
    }

    fn outlives_its_machine(&self) -> bool {
        true
    }
}
