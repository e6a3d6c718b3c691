//! What is wrong with a scenario: all of it at once, each with its place and what to write instead.
//!
//! A scenario is written by hand, by people who want to see a run. Whoever reports the first mistake only lets them
//! come back ten times. So readers note what they find in a `Bag` and go on with something harmless; what was noted
//! decides in the end. Places are kept as offsets, and become lines and columns only when somebody is told.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use tern_netsim_link::profile;

use crate::limits::SLIP_LETTERS;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// In which file.
    pub file: PathBuf,
    /// Its line, from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// Its column in characters, from 1.
    pub column: usize,
    /// What is wrong, and what to write instead.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file.display(), self.text),
            line => write!(f, "{}:{line}:{}: {}", self.file.display(), self.column, self.text),
        }
    }
}

/// All that is wrong, in the order of files and lines; never empty. One line each when displayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// One thing about a file as a whole.
    pub fn of_file(file: &Path, text: String) -> Self {
        Self(vec![Problem { file: file.to_owned(), line: 0, column: 0, text }])
    }

    /// All of them.
    pub fn all(&self) -> &[Problem] {
        &self.0
    }
}

/// A place in one of the files of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    /// Which file, by its number in [`Sources`].
    pub file: usize,
    /// Byte in its text.
    pub at: usize,
}

/// The files of a scenario; the first is the scenario itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources(pub Vec<(PathBuf, String)>);

impl Sources {
    /// Where a relative path that stands at this place leads to.
    pub fn beside(&self, spot: Spot, path: &str) -> PathBuf {
        let dir = self.0.get(spot.file).and_then(|(file, _)| file.parent());
        dir.map_or_else(|| PathBuf::from(path), |dir| dir.join(path))
    }

    fn problem(&self, spot: Spot, text: String) -> Problem {
        let Some((file, source)) = self.0.get(spot.file) else {
            return Problem { file: PathBuf::new(), line: 0, column: 0, text };
        };
        let before: &str = (0..=spot.at.min(source.len())).rev().find_map(|at| source.get(..at)).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Problem { file: file.clone(), line, column, text }
    }
}

/// What was found so far.
#[derive(Debug, Default)]
pub(crate) struct Bag(RefCell<BTreeSet<(Spot, String)>>);

impl Bag {
    /// Something is wrong there. The same again is nothing new.
    pub fn note(&self, spot: Spot, text: impl Into<String>) {
        self.0.borrow_mut().insert((spot, text.into()));
    }

    /// As many as were found.
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// The result, if nothing was found.
    pub fn settle<T>(&self, sources: &Sources, good: Option<T>) -> Result<T, Problems> {
        let found = self.0.borrow();
        let problems: Vec<Problem> = found.iter().map(|(spot, text)| sources.problem(*spot, text.clone())).collect();
        match good {
            Some(good) if problems.is_empty() => Ok(good),
            _ => Err(Problems(problems)),
        }
    }
}

/// The known name that is most like this one, if one is alike.
pub(crate) fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let within = SLIP_LETTERS + name.chars().count() / 3;
    let (away, found) = known.into_iter().map(|known| (profile::distance(name, known), known)).min()?;
    (away <= within).then_some(found)
}

/// `did you mean "x"?`, or what there is.
pub(crate) fn instead<'n>(name: &str, known: impl IntoIterator<Item = &'n str> + Clone) -> String {
    if let Some(found) = nearest(name, known.clone()) {
        return format!("did you mean \"{found}\"?");
    }
    let mut all: Vec<&str> = known.into_iter().collect();
    all.sort_unstable();
    all.dedup();
    let shown = all.iter().take(24).copied().collect::<Vec<_>>().join(", ");
    match all.len() {
        0 => "there are none here".to_owned(),
        1..=24 => format!("there are: {shown}"),
        more => format!("there are: {shown}, and {} more", more - 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_the_same_problem_is_told_once() {
        let sources = Sources(vec![(PathBuf::from("a.toml"), "x = 1\näö = 2\n".to_owned())]);
        let bag = Bag::default();
        for _ in 0..2 {
            bag.note(Spot { file: 0, at: "x = 1\näö ".len() }, "no");
        }
        bag.note(Spot { file: 0, at: 0 }, "first");
        let problems = bag.settle(&sources, Some(())).unwrap_err();
        assert_eq!(problems.to_string(), "a.toml:1:1: first\na.toml:2:4: no");
        assert!(Bag::default().settle(&sources, Some(())).is_ok());
    }

    #[test]
    fn a_slip_is_corrected_and_a_stranger_is_told_what_there_is() {
        let known = ["outage", "degrade", "cut"];
        assert_eq!(instead("otuage", known), "did you mean \"outage\"?");
        assert_eq!(instead("Outages", known), "did you mean \"outage\"?");
        assert_eq!(instead("earthquake-in-lisbon", known), "there are: cut, degrade, outage");
    }
}
