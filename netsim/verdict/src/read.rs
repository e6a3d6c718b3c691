//! Reading and writing histories.
//!
//! A reader must not guess: half a history passes every check of what must never happen, and fails every check of what
//! must have happened by the end. So a file is taken whole or refused, with the number of the line at which it stops
//! making sense. What can only be judged with knowledge of the run (names that it does not know) is left to
//! [`crate::judge()`].

use std::io::{BufRead, Read, Write};

use crate::history::{Event, FORMAT, Line};
use crate::limits::LINE_BYTES_MAX;

/// Why a history was not read. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read on.
    #[error("line {line}: {source}")]
    Io {
        /// Where.
        line: u64,
        /// Why.
        source: std::io::Error,
    },
    /// There is no line at all.
    #[error("the history is empty")]
    Empty,
    /// A line is longer than [`LINE_BYTES_MAX`].
    #[error("line {line}: longer than {LINE_BYTES_MAX} bytes; this is no history")]
    TooLong {
        /// Where.
        line: u64,
    },
    /// A line is not what a history consists of.
    #[error("line {line}: {source}")]
    Line {
        /// Where.
        line: u64,
        /// What was expected.
        source: serde_json::Error,
    },
    /// The file ends inside a run: it was cut off, or is still being written.
    #[error("line {line}: the history ends without an \"end\" line: it was cut off, or the run is not over")]
    CutOff {
        /// The last line.
        line: u64,
    },
    /// The first line does not say what was run, or another one does too.
    #[error("line {line}: {}", if *line == 1 { "a history begins with a \"run\" line" } else { "a second \"run\" line" })]
    Run {
        /// Where.
        line: u64,
    },
    /// The history has another form than this version reads.
    #[error("line 1: format {found}, but this version reads format {FORMAT}")]
    Format {
        /// Its form.
        found: u32,
    },
    /// Time goes back.
    #[error("line {line}: time descends from {before_ns} to {at_ns} ns")]
    Descends {
        /// Where.
        line: u64,
        /// Of the line before.
        before_ns: u64,
        /// Of this line.
        at_ns: u64,
    },
    /// Something follows the end.
    #[error("line {line}: something follows the \"end\" line")]
    AfterEnd {
        /// Where.
        line: u64,
    },
}

/// Reads a history. Empty lines are not allowed, except that the last line may or may not end with a line feed.
pub fn read(mut from: impl BufRead) -> Result<Vec<Line>, ReadError> {
    let mut lines: Vec<Line> = Vec::new();
    let mut text = Vec::new();
    let mut number = 0;
    let mut over = false;
    loop {
        text.clear();
        number += 1;
        let read = (&mut from).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut text);
        let length = read.map_err(|source| ReadError::Io { line: number, source })?;
        if length == 0 {
            break;
        }
        if text.last() == Some(&b'\n') {
            text.pop();
        } else if length as u64 > LINE_BYTES_MAX {
            return Err(ReadError::TooLong { line: number });
        }
        if over {
            return Err(ReadError::AfterEnd { line: number });
        }
        let line: Line = match serde_json::from_slice(&text) {
            Ok(line) => line,
            // A writer that was killed leaves half a line: that is no bad line, but a cut.
            Err(source) if source.is_eof() && number > 1 && is_last(&mut from, number)? => {
                return Err(ReadError::CutOff { line: number });
            }
            Err(source) => return Err(ReadError::Line { line: number, source }),
        };
        check(&lines, &line, number)?;
        over = matches!(line.event, Event::End { .. });
        lines.push(line);
    }
    match (number, over) {
        (1, _) => Err(ReadError::Empty),
        (_, false) => Err(ReadError::CutOff { line: number - 1 }),
        (_, true) => Ok(lines),
    }
}

fn is_last(from: &mut impl BufRead, line: u64) -> Result<bool, ReadError> {
    Ok(from.fill_buf().map_err(|source| ReadError::Io { line, source })?.is_empty())
}

/// Whether a line may follow those before.
fn check(before: &[Line], line: &Line, number: u64) -> Result<(), ReadError> {
    match (&line.event, before.last()) {
        (Event::Run(run), None) if run.format != FORMAT => Err(ReadError::Format { found: run.format }),
        (Event::Run(_), None) => Ok(()),
        (_, None) | (Event::Run(_), Some(_)) => Err(ReadError::Run { line: number }),
        (_, Some(last)) if last.at_ns > line.at_ns => {
            Err(ReadError::Descends { line: number, before_ns: last.at_ns, at_ns: line.at_ns })
        }
        _ => Ok(()),
    }
}

/// Writes one line of a history, and no more: a writer that is killed leaves a history that is refused, not one that
/// is believed.
pub fn write(mut to: impl Write, line: &Line) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    to.write_all(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = r#"{"at_ns":0,"event":"run","format":1,"scenario":"s","about":"","seed":1,"point":{},"driver":"sim","replay":"","version":"","cast":{"regions":[],"edges":{},"devices":{},"conversations":{},"faults":[]},"expect":{},"sometimes":{}}"#;
    const PHASE: &str = r#"{"at_ns":5,"event":"phase","name":"load"}"#;
    const END: &str = r#"{"at_ns":9,"event":"end","quiet":true,"packets":3}"#;

    fn of(lines: &[&str]) -> Result<Vec<Line>, ReadError> {
        read(lines.join("\n").as_bytes())
    }

    fn error(lines: &[&str]) -> String {
        of(lines).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let lines = of(&[RUN, PHASE, END]).unwrap();
        let mut text = Vec::new();
        for line in &lines {
            write(&mut text, line).unwrap();
        }
        assert_eq!(read(text.as_slice()).unwrap(), lines);
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn a_history_that_is_cut_off_anywhere_is_refused() {
        let whole = [RUN, PHASE, END].join("\n");
        for length in 0..whole.len() {
            assert!(read(&whole.as_bytes()[..length]).is_err(), "{length} bytes");
        }
        assert!(matches!(of(&[RUN, PHASE]), Err(ReadError::CutOff { line: 2 })));
        assert!(matches!(of(&[RUN, &PHASE[..20]]), Err(ReadError::CutOff { line: 2 })));
        assert!(matches!(read(&b""[..]), Err(ReadError::Empty)));
    }

    #[test]
    fn each_error_names_its_line() {
        assert_eq!(error(&[PHASE, END]), "line 1: a history begins with a \"run\" line");
        assert_eq!(error(&[RUN, RUN, END]), "line 2: a second \"run\" line");
        assert_eq!(
            error(&[&RUN.replace("\"format\":1", "\"format\":9")]),
            "line 1: format 9, but this version reads format 1"
        );
        assert_eq!(error(&[RUN, PHASE, &PHASE.replace('5', "4"), END]), "line 3: time descends from 5 to 4 ns");
        assert_eq!(error(&[RUN, END, PHASE]), "line 3: something follows the \"end\" line");
        assert!(error(&[RUN, r#"{"at_ns":5,"event":"dance"}"#, END]).starts_with("line 2: unknown variant `dance`"));
        assert!(error(&[RUN, "", END]).starts_with("line 2: "));
    }
}
