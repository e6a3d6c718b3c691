//! A newer GeoIP file takes the place of the one in use, while the process runs.
//!
//! Operators replace such files monthly, by a rename at best, by a download straight into the file at worst.
//! The obvious rule, "read it when its time of writing changes", reads half a file in the second case: and
//! half of an MMDB may well open, since its tree comes first and lookups follow it to wherever it leads.
//!
//! The rule: a file that differs from the one in use is looked at only after it has looked the same at two
//! polls in a row; it is read whole, and must still look the same after that; every branch and record of it is
//! followed; it must not be older than what is in use, nor place less than half as much, nor call itself the
//! same build with other contents (a file overwritten in place, so far in part, whose end is still the old
//! one). What fails is reported once and not looked at again until it changes; the data in use stays. An
//! operator who wants it all the same reloads the configuration or restarts: then the file named is the one
//! used, if it can be used at all.

use std::path::Path;

use super::stamp::Stamp;
use super::{Geo, GeoError};

/// Why a file in place of the one in use is not used. Addresses are placed as before.
#[derive(Debug, thiserror::Error)]
pub enum GeoReloadError {
    /// It could not be opened at all.
    #[error(transparent)]
    Unusable(#[from] GeoError),
    /// It opens, but something in it is broken.
    #[error("it is damaged: {0}. Copy it again, under another name, and rename it when it is whole")]
    Damaged(String),
    /// It was built before the data in use.
    #[error(
        "it was built at {built_s} (Unix time), before the data in use ({in_use_s}). If that is what you want, \
         reload the configuration or restart"
    )]
    Older {
        /// When it was built.
        built_s: u64,
        /// When the data in use was.
        in_use_s: u64,
    },
    /// It says that it is the build in use, and is not.
    #[error(
        "it says that it was built when the data in use was ({built_s}, Unix time), but has other contents: it may \
         be overwritten only in part. If it is whole, reload the configuration or restart"
    )]
    SameBuild {
        /// When both were built.
        built_s: u64,
    },
    /// It knows far fewer addresses.
    #[error(
        "it places {placed} of {of} addresses that were tried, where the data in use places {in_use}. If that is \
         what you want, reload the configuration or restart"
    )]
    Fewer {
        /// By this file.
        placed: u32,
        /// By the data in use.
        in_use: u32,
        /// Of so many.
        of: u32,
    },
}

impl GeoReloadError {
    /// For metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unusable(_) => "unusable",
            Self::Damaged(_) => "damaged",
            Self::Older { .. } => "older",
            Self::SameBuild { .. } => "same_build",
            Self::Fewer { .. } => "fewer",
        }
    }
}

/// What to do after a look at the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Wait,
    /// It is gone; told once.
    Gone,
    /// It is another one and has come to rest: see whether it can be used.
    Check(Stamp),
}

/// What was seen of the file. A pure machine: it is told what a look showed.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// At the last look, if it is not the one in use.
    seen: Option<Stamp>,
    /// Found to be of no use.
    refused: Option<Stamp>,
    gone: bool,
}

impl Watch {
    /// A look showed `found` where the data in use was read from `in_use`.
    pub(crate) fn look(&mut self, in_use: Stamp, found: Option<Stamp>) -> Step {
        let Some(found) = found else {
            self.seen = None;
            return if std::mem::replace(&mut self.gone, true) { Step::Wait } else { Step::Gone };
        };
        self.gone = false;
        let rested = self.seen.replace(found) == Some(found);
        if found == in_use || self.refused == Some(found) || !rested {
            return Step::Wait;
        }
        Step::Check(found)
    }

    /// The one that was checked is of no use.
    pub(crate) fn refuse(&mut self, stamp: Stamp) {
        self.refused = Some(stamp);
    }
}

/// Reads and checks a file in place of the data in use. None: it is not what was looked at any more, look
/// again. Blocks for seconds.
pub(crate) fn check(path: &Path, looked_at: Stamp, in_use: &Geo) -> Result<Option<Geo>, GeoReloadError> {
    let geo = match Geo::open(path) {
        Err(GeoError::Changing { .. }) => return Ok(None),
        other => other?,
    };
    let Some(file) = geo.file.as_ref().filter(|f| f.stamp == looked_at) else { return Ok(None) };
    geo.verify().map_err(GeoReloadError::Damaged)?;
    let (built_s, in_use_s) = (geo.built_s(), in_use.built_s());
    if built_s < in_use_s {
        return Err(GeoReloadError::Older { built_s, in_use_s });
    }
    let of_type = |geo: &Geo| geo.reader.metadata().database_type.clone();
    let same = in_use.file.as_ref().is_none_or(|f| f.digest == file.digest);
    if built_s == in_use_s && of_type(&geo) == of_type(in_use) && !same {
        return Err(GeoReloadError::SameBuild { built_s });
    }
    if geo.placed < in_use.placed / 2 {
        return Err(GeoReloadError::Fewer { placed: geo.placed, in_use: in_use.placed, of: super::PROBES });
    }
    Ok(Some(geo))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inode and size of what each look shows, 0 = nothing; and what is done.
    fn history(looks: &[(u64, u64, &str)]) {
        let in_use = Stamp::numbered(1, 10);
        let mut watch = Watch::default();
        for (at, (inode, bytes, expected)) in looks.iter().enumerate() {
            let found = (*inode > 0).then(|| Stamp::numbered(*inode, *bytes));
            let step = watch.look(in_use, found);
            let done = match step {
                Step::Wait => "wait",
                Step::Gone => "gone",
                Step::Check(stamp) => {
                    assert_eq!(Some(stamp), found);
                    // Whatever is checked here is of no use.
                    watch.refuse(stamp);
                    "check"
                }
            };
            assert_eq!(done, *expected, "look {at} of {looks:?}");
        }
    }

    #[test]
    fn a_file_is_checked_once_it_has_come_to_rest() {
        history(&[(1, 10, "wait"), (1, 10, "wait"), (1, 10, "wait")]);
        // Renamed into place.
        history(&[(1, 10, "wait"), (2, 20, "wait"), (2, 20, "check"), (2, 20, "wait"), (2, 20, "wait")]);
        // Written in place: it grows.
        history(&[(1, 3, "wait"), (1, 6, "wait"), (1, 9, "wait"), (1, 12, "wait"), (1, 12, "check")]);
        // Replaced and put back.
        history(&[(2, 20, "wait"), (1, 10, "wait"), (2, 20, "wait"), (1, 10, "wait"), (1, 10, "wait")]);
    }

    #[test]
    fn what_was_refused_is_checked_again_only_when_it_changed() {
        history(&[
            (2, 20, "wait"),
            (2, 20, "check"),
            (2, 20, "wait"),
            (2, 21, "wait"),
            (2, 21, "check"),
            (2, 21, "wait"),
        ]);
    }

    #[test]
    fn a_missing_file_is_told_once_each_time() {
        history(&[(0, 0, "gone"), (0, 0, "wait"), (1, 10, "wait"), (0, 0, "gone"), (2, 20, "wait"), (0, 0, "gone")]);
        history(&[(2, 20, "wait"), (0, 0, "gone"), (2, 20, "wait"), (2, 20, "check")]);
    }
}
