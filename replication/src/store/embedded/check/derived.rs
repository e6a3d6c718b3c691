//! Rows, todo rows and named values, each table by itself.

use std::collections::BTreeSet;

use fjall::Readable;
use tern_core::eras::ERA_BYTES;
use tern_core::ids::{Heads, Origin, Rev, UserId};
use tern_core::node::seal::ERAS_KEY;
use tern_core::store::{StoreError, Target};

use super::super::super::conditions::EPOCH_KEY;
use super::super::super::format::{
    decode_opaque, decode_row, decode_todo, encode_todo, meta_key, parse_row_key, parse_todo_key,
};
use super::super::tables::describe;
use super::{Check, Kind};

impl Check<'_> {
    /// Rows can be read, name no entry that is not there, and have revisions that were issued, each once.
    pub(super) fn rows(&mut self) -> Result<(), StoreError> {
        let snapshot = self.tables.db.snapshot();
        let mut owner: Option<UserId> = None;
        let mut revs = BTreeSet::new();
        for row in snapshot.iter(&self.tables.rows) {
            let (key, value) = match row.into_inner() {
                Ok(row) => row,
                Err(error) => {
                    self.not_repairable(Kind::Unreadable, "rows", describe(&error));
                    break;
                }
            };
            self.report.rows += 1;
            let user = key.get(1..key.len().saturating_sub(16)).and_then(|text| UserId::from_bytes(text).ok());
            let (Some(id), Some(user)) = (parse_row_key(&key), user) else {
                self.found(Kind::Row, "rows", "a key that is none");
                self.remove_row(&key)?;
                continue;
            };
            if owner.as_ref() != Some(&user) {
                owner = Some(user.clone());
                revs.clear();
            }
            let place = || format!("conversation {id}, row of {user}");
            let heads = if self.tables.is_refused(id) { None } else { Some(self.tables.heads(&snapshot, id)?) };
            let mut row = match decode_row(&value) {
                Ok(row) => row,
                Err(error) => {
                    self.found(Kind::Row, place(), format!("{error}; with it the user's read mark is lost"));
                    self.remove_row(&key)?;
                    self.fan_out_again(id, &heads.unwrap_or_default())?;
                    continue;
                }
            };
            let mut wrong = Vec::new();
            if let Some(heads) = heads {
                let there = |origin: Origin| match origin.through() {
                    Some(through) => self.eras.entries_through(&heads, origin.region, through),
                    None => heads.get(&origin).copied().unwrap_or(0),
                };
                let above: Heads = row
                    .heads
                    .iter()
                    .filter(|(origin, seq)| there(**origin) < **seq)
                    .map(|(origin, seq)| (*origin, *seq))
                    .collect();
                for (origin, seq) in above {
                    let head = there(origin);
                    wrong.push(format!("it names {seq} entries of {origin}, and {head} are there"));
                    if head == 0 {
                        row.heads.remove(&origin)
                    } else {
                        row.heads.insert(origin, head)
                    };
                }
            }
            if row.rev == Rev::default() || !revs.insert(row.rev) {
                wrong.push(format!("its revision {:?} is another row's", row.rev));
            } else if row.rev.epoch() > self.epoch {
                wrong.push(format!("its revision {:?} was never issued", row.rev));
            }
            if !wrong.is_empty() {
                self.found(Kind::Row, place(), wrong.join("; "));
                self.rewrite(&user, id, row)?;
            }
        }
        self.commit()
    }

    fn remove_row(&mut self, key: &[u8]) -> Result<(), StoreError> {
        if self.repair {
            let rows = self.tables.rows.clone();
            self.batch()?.remove(&rows, key);
        }
        Ok(())
    }

    /// Todo is of conversations that are there, and says nothing is done that is not there.
    pub(super) fn todo(&mut self) -> Result<(), StoreError> {
        let snapshot = self.tables.db.snapshot();
        for row in snapshot.iter(&self.tables.todo) {
            let (key, value) = match row.into_inner() {
                Ok(row) => row,
                Err(error) => {
                    self.not_repairable(Kind::Unreadable, "todo", describe(&error));
                    break;
                }
            };
            self.report.todo += 1;
            let Some((target, id)) = parse_todo_key(&key) else {
                self.found(Kind::Todo, "todo", "a key that is none");
                self.put_todo(&key, None, None)?;
                continue;
            };
            let place = match target {
                Target::Fanout => format!("conversation {id}, fan-out"),
                Target::Peer(region) => format!("conversation {id}, for region {region}"),
            };
            let refused = self.tables.is_refused(id);
            let heads = if refused { Heads::new() } else { self.tables.heads(&snapshot, id)? };
            let (mut prefix, user) = match decode_todo(&value) {
                Ok(todo) => todo,
                Err(error) => {
                    self.found(Kind::Todo, place, error);
                    let all: Heads = heads.keys().map(|origin| (*origin, 0)).collect();
                    self.put_todo(&key, Some(&all), None)?;
                    continue;
                }
            };
            if refused {
                continue;
            }
            // Read marks are told under an origin of era 0, which has no log.
            if heads.is_empty() && user.is_none() {
                self.found(Kind::Todo, place, "its conversation has no entries");
                self.put_todo(&key, None, None)?;
                continue;
            }
            let mut wrong = Vec::new();
            for (origin, seq) in prefix.iter_mut().filter(|(origin, _)| origin.era != 0) {
                let head = heads.get(origin).copied().unwrap_or(0);
                if head < *seq {
                    wrong.push(format!("it says that {seq} entries of {origin} are done, and {head} are there"));
                    *seq = head;
                }
            }
            if !wrong.is_empty() {
                self.found(Kind::Todo, place, wrong.join("; "));
                self.put_todo(&key, Some(&prefix), user.as_ref())?;
            }
        }
        self.commit()
    }

    fn put_todo(&mut self, key: &[u8], prefix: Option<&Heads>, user: Option<&UserId>) -> Result<(), StoreError> {
        if !self.repair {
            return Ok(());
        }
        let todo = self.tables.todo.clone();
        match prefix.filter(|prefix| !prefix.is_empty()) {
            Some(prefix) => {
                let mut value = Vec::new();
                encode_todo(&mut value, prefix, user);
                self.batch()?.insert(&todo, key, &value[..]);
            }
            None => self.batch()?.remove(&todo, key),
        }
        Ok(())
    }

    /// Named values that a start reads have the form it reads.
    pub(super) fn meta(&mut self) -> Result<(), StoreError> {
        let fits = |name: &str, length: usize| match name {
            "era" | "start" => length == 8,
            "region" => length == 1,
            "clean" => matches!(length, 1 | 9),
            EPOCH_KEY => length == 8,
            _ if name.starts_with("peer/") => matches!(length, 16 | 25),
            _ if name.starts_with(ERAS_KEY) => length.is_multiple_of(ERA_BYTES),
            _ => true,
        };
        for row in self.tables.db.snapshot().prefix(&self.tables.state, b"m") {
            let (key, value) = match row.into_inner() {
                Ok(row) => row,
                Err(error) => {
                    self.not_repairable(Kind::Unreadable, "named values", describe(&error));
                    break;
                }
            };
            let name = String::from_utf8_lossy(&key[1..]).into_owned();
            let place = format!("\"{name}\"");
            let value = match decode_opaque(&value) {
                Ok(value) => value,
                Err(error) => {
                    self.not_repairable(Kind::Meta, place, error);
                    continue;
                }
            };
            if !fits(&name, value.len()) {
                let what = format!("{} bytes, which is no form of it", value.len());
                self.not_repairable(Kind::Meta, place, what);
            } else if name == "region" && value[0] != self.store.region() {
                let what = format!("it says {}, and the file STORE says {}", value[0], self.store.region());
                self.not_repairable(Kind::Meta, place, what);
            }
        }
        if self.epoch == 0 && self.report.entries > 0 && self.tables.opaque(&meta_key(EPOCH_KEY))?.is_none() {
            self.not_repairable(Kind::Meta, "\"epoch\"", "it is missing: revisions may be issued again");
        }
        Ok(())
    }
}
