//! Random histories with crashes, compared with a model.
//!
//! The model knows what was decided, what is durable, and for each put what may be found after a crash: the
//! durable value or any later one. After a crash every decided entry must be there, a batch whose answer never
//! came may be there whole or not at all, its todo must be there if it is, and nothing else may be.

use super::*;

const LOGS: u8 = 6;

#[derive(Clone, Debug)]
enum Op {
    Append { logs: Vec<(u8, u64, Option<u8>)>, epoch: u64 },
    Put { puts: Vec<(u8, u8, u64)>, synced: bool },
    DieAfter(u64),
    LazySync,
    Crash(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let append = proptest::collection::vec((0..LOGS, 1u64..5, proptest::option::of(0u8..3)), 1..4);
    let puts = proptest::collection::vec((0u8..5, 0u8..3, 0u64..30), 1..4);
    prop_oneof![
        6 => (append, prop_oneof![9 => Just(1u64), 1 => 0u64..4]).prop_map(|(logs, epoch)| Op::Append { logs, epoch }),
        5 => (puts, any::<bool>()).prop_map(|(puts, synced)| Op::Put { puts, synced }),
        2 => (0u64..8).prop_map(Op::DieAfter),
        1 => Just(Op::LazySync),
        2 => (0usize..4).prop_map(Op::Crash),
    ]
}

/// Where a put goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Row(UserId, ConvId),
    Todo(Target, ConvId),
    Checkpoint(ConvId),
    Meta(String),
    Erased(ConvId, Origin, u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Row(RowRecord),
    Todo(Heads, Option<UserId>),
    Bytes(Bytes),
    Erased,
}

#[derive(Debug, Default)]
struct Slot {
    durable: Option<Value>,
    later: Vec<Option<Value>>,
}

impl Slot {
    fn now(&self) -> Option<&Value> {
        self.later.last().unwrap_or(&self.durable).as_ref()
    }
}

/// A batch whose answer never came.
#[derive(Debug)]
struct Open {
    log: (ConvId, Origin),
    entries: Vec<Arc<Entry>>,
    todo: Vec<Todo>,
}

#[derive(Debug, Default)]
struct Model {
    logs: BTreeMap<(ConvId, Origin), Vec<Arc<Entry>>>,
    slots: BTreeMap<Key, Slot>,
    open: Vec<Open>,
    /// The highest of this life.
    epoch: u64,
    /// The highest of all lives, where that outlives a crash; else that of this life.
    highest: u64,
    outlives: bool,
    dead: bool,
    salt: u64,
}

fn log(n: u8) -> (ConvId, Origin) {
    (conv(n / 2), origin(1 + n % 2))
}

fn target(n: u8) -> Target {
    if n == 0 { Target::Fanout } else { Target::Peer(n) }
}

impl Model {
    fn write(&mut self, put: &Put) {
        let (key, value) = match put {
            Put::Row { user, conversation, row } => {
                (Key::Row(user.clone(), *conversation), Some(Value::Row(row.clone())))
            }
            Put::Erase { conversation, origin, seq, .. } => {
                if self.logs.get(&(*conversation, *origin)).is_none_or(|held| (held.len() as u64) < *seq) {
                    return;
                }
                (Key::Erased(*conversation, *origin, *seq), Some(Value::Erased))
            }
            Put::Todo(todo) => {
                let value = (!todo.prefix.is_empty()).then(|| Value::Todo(todo.prefix.clone(), todo.user.clone()));
                (Key::Todo(todo.target, todo.conversation), value)
            }
            Put::Checkpoint { conversation, value } => {
                (Key::Checkpoint(*conversation), Some(Value::Bytes(value.clone())))
            }
            Put::Meta { key, value } => (Key::Meta(key.clone()), Some(Value::Bytes(value.clone()))),
        };
        let slot = self.slots.entry(key).or_default();
        if let (Some(Value::Row(old)), Some(Value::Row(new))) = (slot.now(), &value)
            && old.rev >= new.rev
        {
            return;
        }
        slot.later.push(value);
    }

    fn sync(&mut self) {
        for slot in self.slots.values_mut() {
            if let Some(newest) = slot.later.pop() {
                slot.durable = newest;
                slot.later.clear();
            }
        }
    }

    async fn append(&mut self, store: &Arc<dyn Store>, logs: &[(u8, u64, Option<u8>)], epoch: u64) {
        let mut batches: Vec<Append> = Vec::new();
        for (n, count, noted) in logs {
            let (conversation, origin) = log(*n);
            if batches.iter().any(|b| b.conversation == conversation && b.origin == origin) {
                continue;
            }
            self.salt += 1;
            let head = self.logs.get(&log(*n)).map_or(0, Vec::len) as u64;
            let entries = (head + 1..=head + count)
                .map(|seq| entry_with(conversation, origin, seq, self.salt, Bytes::from(format!("{}", self.salt))))
                .collect();
            let todo = noted.iter().map(|t| todo(target(*t), conversation, self.salt)).collect();
            batches.push(Append { conversation, origin, epoch, entries, todo });
        }
        let answers = store.append(batches.clone()).await;
        let fenced = epoch < self.epoch;
        let may_be_fenced = epoch < self.highest;
        self.epoch = self.epoch.max(epoch);
        self.highest = self.highest.max(epoch);
        let mut decided = false;
        for (batch, answer) in batches.into_iter().zip(answers) {
            let log = (batch.conversation, batch.origin);
            match answer {
                Appended::Fenced => assert!(may_be_fenced, "fenced at epoch {epoch} of {}", self.epoch),
                Appended::Decided => {
                    assert!(!fenced && !self.dead);
                    batch.todo.iter().for_each(|todo| self.write(&Put::Todo(todo.clone())));
                    self.logs.entry(log).or_default().extend(batch.entries);
                    decided = true;
                }
                Appended::Unknown(_) => {
                    self.dead = true;
                    batch.todo.iter().for_each(|todo| self.write(&Put::Todo(todo.clone())));
                    self.open.push(Open { log, entries: batch.entries, todo: batch.todo });
                }
                other => panic!("{other:?}"),
            }
        }
        if decided {
            self.sync();
        }
    }

    async fn put(&mut self, store: &Arc<dyn Store>, puts: &[(u8, u8, u64)], synced: bool) {
        let puts: Vec<Put> = puts
            .iter()
            .map(|(kind, place, n)| match kind {
                0 => row_put(["ann", "bob", "cid"][usize::from(*place)], conv(*place), *n),
                1 => Put::Todo(Todo {
                    prefix: if n % 3 == 0 { Heads::new() } else { [(origin(1), *n)].into_iter().collect() },
                    user: (n % 5 == 0).then(|| user("bob")),
                    ..todo(target(*place), conv(*place), *n)
                }),
                2 => Put::Checkpoint { conversation: conv(*place), value: Bytes::from(n.to_string()) },
                3 => {
                    let (conversation, origin) = log(*place);
                    erase(conversation, origin, 1 + n % 6)
                }
                _ => Put::Meta { key: format!("key {place}"), value: Bytes::from(n.to_string()) },
            })
            .collect();
        puts.iter().for_each(|put| self.write(put));
        let durability = if synced { Durability::Synced } else { Durability::Lazy };
        match store.put(puts, durability).await {
            Ok(()) if synced => self.sync(),
            Ok(()) => {}
            Err(_) => self.dead = true,
        }
    }

    /// What is stored now.
    async fn stored(&self, store: &Arc<dyn Store>) -> BTreeMap<Key, Value> {
        let mut found = BTreeMap::new();
        for name in ["ann", "bob", "cid"] {
            for (conversation, row) in store.rows(user(name)).await.unwrap() {
                found.insert(Key::Row(user(name), conversation), Value::Row(row));
            }
        }
        for todo in store.todo().await.unwrap() {
            found.insert(Key::Todo(todo.target, todo.conversation), Value::Todo(todo.prefix, todo.user));
        }
        for n in 0..LOGS {
            if let Some(value) = store.conversation(conv(n)).await.unwrap().checkpoint {
                found.insert(Key::Checkpoint(conv(n)), Value::Bytes(value));
            }
            for entry in read(store, log(n).0, log(n).1).await.iter().filter(|entry| entry.erased) {
                found.insert(Key::Erased(log(n).0, log(n).1, entry.place.seq), Value::Erased);
            }
            let key = format!("key {n}");
            if let Some(value) = store.meta(&key).await.unwrap() {
                found.insert(Key::Meta(key), Value::Bytes(value));
            }
        }
        found
    }

    async fn check_logs(&self, store: &Arc<dyn Store>) {
        for n in 0..LOGS {
            let (conversation, origin) = log(n);
            let decided = self.logs.get(&log(n)).map_or(&[][..], Vec::as_slice);
            let found = read(store, conversation, origin).await;
            // What is erased is compared with what was put, see `stored`.
            let same = |(found, decided): (&Arc<Entry>, &Arc<Entry>)| {
                if found.erased { **found == decided.to_erased() } else { found == decided }
            };
            assert_eq!(found.len(), decided.len());
            assert!(found.iter().zip(decided).all(same), "{found:?} {decided:?}");
            let image = store.conversation(conversation).await.unwrap();
            assert_eq!(image.heads.get(&origin).copied().unwrap_or(0), decided.len() as u64);
            assert!(image.damaged.is_empty());
        }
    }

    /// While the node lives.
    async fn check(&self, store: &Arc<dyn Store>) {
        self.check_logs(store).await;
        let found = self.stored(store).await;
        for (key, slot) in &self.slots {
            assert_eq!(found.get(key), slot.now(), "{key:?}");
        }
    }

    /// After a crash: takes over what was found, if it may be.
    async fn recover(&mut self, store: &Arc<dyn Store>) {
        let found = self.stored(store).await;
        for open in std::mem::take(&mut self.open) {
            let stored = read(store, open.log.0, open.log.1).await;
            let decided = self.logs.entry(open.log).or_default();
            if stored.len() > decided.len() {
                decided.extend(open.entries);
                for todo in open.todo {
                    let key = Key::Todo(todo.target, todo.conversation);
                    assert!(found.contains_key(&key), "an entry of the log is durable, and its todo is not: {key:?}");
                }
            }
        }
        for key in found.keys() {
            assert!(self.slots.contains_key(key), "{key:?} was never put");
        }
        for (key, slot) in &mut self.slots {
            let value = found.get(key).cloned();
            assert!(value == slot.durable || slot.later.contains(&value), "{key:?} is {value:?}, not one of {slot:?}");
            slot.durable = value;
            slot.later.clear();
        }
        self.epoch = 0;
        if !self.outlives {
            self.highest = 0;
        }
        self.dead = false;
        self.check_logs(store).await;
    }
}

async fn run(world: &mut dyn World, ops: &[Op]) {
    let mut model = Model { outlives: world.epochs_outlive_a_crash(), ..Model::default() };
    for op in ops.iter().chain([&Op::Crash(0)]) {
        let store = world.store();
        match op {
            Op::Append { .. } | Op::Put { .. } | Op::DieAfter(_) | Op::LazySync if model.dead => continue,
            Op::Append { logs, epoch } => model.append(&store, logs, *epoch).await,
            Op::Put { puts, synced } => model.put(&store, puts, *synced).await,
            Op::DieAfter(steps) => {
                let _not_every_backend_can = world.die_after(*steps);
            }
            Op::LazySync => {
                world.lazy_sync().await;
                model.sync();
            }
            Op::Crash(keep) => {
                drop(store);
                world.crash(*keep);
                model.recover(&world.store()).await;
                continue;
            }
        }
        if !model.dead {
            model.check(&store).await;
        }
    }
}

/// Runs `cases` random histories of up to 40 operations, each on a world of its own, by the clock that the backend needs.
pub fn random_histories<W: World>(time: Time, cases: u32, make: impl Fn() -> W) {
    // By the machine's clock making a failing history shorter takes as long as it runs.
    let shrinks = if time == Time::Paused { 2_000 } else { 40 };
    let config = Config { cases, max_shrink_iters: shrinks, failure_persistence: None, ..Config::default() };
    let histories = proptest::collection::vec(op(), 1..40);
    let outcome = TestRunner::new(config).run(&histories, |ops| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(time == Time::Paused).build();
        let mut world = make();
        // Paused, for those that wait by tokio's clock; without a limit in time, which would pass at once whenever
        // a backend's own thread is waited for.
        runtime.map_err(|e| TestCaseError::fail(e.to_string()))?.block_on(run(&mut world, &ops));
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}
