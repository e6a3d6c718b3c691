//! Requests of one store: bounded in number, counted, and in tests made to fail at a chosen point.

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use scylla::response::PagingState;
use scylla::response::query_result::QueryRowsResult;
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;
use tern_core::store::StoreError;
use tokio::sync::Semaphore;

use crate::cluster::{Cluster, Statements};
use crate::error::describe;
use crate::limits::REQUESTS_AT_ONCE;
use crate::metrics::ScyllaMetrics;

/// What a request is, for [`Fates`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A read, of either kind.
    Read,
    /// A plain write.
    Write,
    /// A conditional write.
    Conditional,
}

/// What becomes of a request, for tests: see [`crate::ScyllaStore::set_fates`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// What the database makes of it.
    Normal,
    /// It is not sent, and an error is answered.
    NotSent,
    /// It is sent and carried out, and an error is answered.
    AnswerLost,
}

/// Decides the fates of requests, one after the other.
pub type Fates = Arc<dyn Fn(Step) -> Fate + Send + Sync>;

/// What became of a conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cas {
    /// It is done.
    Applied,
    /// Its condition did not hold.
    Refused,
    /// It may be done now, or later, or never.
    Unclear(String),
}

/// Bounded access to a cluster.
pub(crate) struct Requests {
    cluster: Arc<Cluster>,
    room: Semaphore,
    fates: OnceLock<Fates>,
    pub(crate) metrics: ScyllaMetrics,
}

impl Requests {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        let room = Semaphore::new(REQUESTS_AT_ONCE);
        Self { cluster, room, fates: OnceLock::new(), metrics: ScyllaMetrics::default() }
    }

    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    pub(crate) fn statements(&self) -> &Statements {
        &self.cluster.statements
    }

    pub(crate) fn set_fates(&self, fates: Fates) -> bool {
        self.fates.set(fates).is_ok()
    }

    fn fate(&self, step: Step) -> Fate {
        self.fates.get().map_or(Fate::Normal, |fates| fates(step))
    }

    /// One page of a read, or the write's empty answer.
    async fn send(
        &self,
        step: Step,
        statement: &PreparedStatement,
        values: impl SerializeRow + Send,
        page: PagingState,
    ) -> Result<(scylla::response::query_result::QueryResult, Option<PagingState>), String> {
        let fate = self.fate(step);
        if fate == Fate::NotSent {
            return Err("not sent, by a test".to_owned());
        }
        let room = self.room.acquire().await.map_err(|_| "the store is closed".to_owned())?;
        let answer = self.cluster.session.execute_single_page(statement, values, page).await;
        drop(room);
        self.metrics.requests.inc();
        let (result, page) = answer.map_err(|error| {
            self.metrics.failures.inc();
            describe(&error)
        })?;
        if fate == Fate::AnswerLost {
            return Err("the answer was lost, by a test".to_owned());
        }
        let next = match page.into_paging_control_flow() {
            ControlFlow::Break(()) => None,
            ControlFlow::Continue(next) => Some(next),
        };
        Ok((result, next))
    }

    /// A plain write: durable on a quorum of the datacenter when it returns.
    pub(crate) async fn write(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow + Send,
    ) -> Result<(), StoreError> {
        let sent = self.send(Step::Write, statement, values, PagingState::start()).await;
        sent.map(|_| ()).map_err(StoreError::Backend)
    }

    /// One page of a read, from `page` on, and where the next begins.
    pub(crate) async fn page(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow + Send,
        page: PagingState,
    ) -> Result<(QueryRowsResult, Option<PagingState>), StoreError> {
        let (result, next) = self.send(Step::Read, statement, values, page).await.map_err(StoreError::Backend)?;
        Ok((result.into_rows_result().map_err(odd)?, next))
    }

    /// All rows of a read.
    pub(crate) async fn rows<R>(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow + Send + Clone,
    ) -> Result<Vec<R>, StoreError>
    where
        R: for<'r> scylla::deserialize::row::DeserializeRow<'r, 'r>,
    {
        let (mut found, mut page) = (Vec::new(), Some(PagingState::start()));
        while let Some(from) = page {
            let (rows, next) = self.page(statement, values.clone(), from).await?;
            for row in rows.rows::<R>().map_err(odd)? {
                found.push(row.map_err(odd)?);
            }
            page = next;
        }
        Ok(found)
    }

    /// The first row of a read.
    pub(crate) async fn row<R>(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow + Send,
    ) -> Result<Option<R>, StoreError>
    where
        R: for<'r> scylla::deserialize::row::DeserializeRow<'r, 'r>,
    {
        let (rows, _) = self.page(statement, values, PagingState::start()).await?;
        rows.maybe_first_row::<R>().map_err(odd)
    }

    /// A conditional write.
    pub(crate) async fn conditional(&self, statement: &PreparedStatement, values: impl SerializeRow + Send) -> Cas {
        self.metrics.conditional.inc();
        let result = match self.send(Step::Conditional, statement, values, PagingState::start()).await {
            Ok((result, _)) => result,
            Err(what) => {
                self.metrics.unclear.inc();
                return Cas::Unclear(what);
            }
        };
        match applied(result) {
            Ok(true) => Cas::Applied,
            Ok(false) => {
                self.metrics.refused.inc();
                Cas::Refused
            }
            Err(what) => Cas::Unclear(what),
        }
    }
}

/// Whether a conditional write was applied: the answer's column `[applied]`, wherever it stands. The others differ
/// between databases and kinds of condition.
fn applied(result: scylla::response::query_result::QueryResult) -> Result<bool, String> {
    let rows = result.into_rows_result().map_err(|error| error.to_string())?;
    let no_answer = || "the answer to a conditional write has no column [applied]".to_owned();
    let (at, _) = rows.column_specs().get_by_name("[applied]").ok_or_else(no_answer)?;
    let row = rows.first_row::<scylla::value::Row>().map_err(|error| error.to_string())?;
    row.columns.get(at).and_then(|value| value.as_ref()?.as_boolean()).ok_or_else(no_answer)
}

/// An answer that is not what the schema says.
pub(crate) fn odd(error: impl std::fmt::Display) -> StoreError {
    StoreError::Backend(format!("the database answered what this version does not expect: {error}"))
}
