//! Where a chat is typed and shown. At a terminal keys are read one by one, so that others can be told that
//! somebody types, and what is shown comes above the line that is being typed. Elsewhere lines are read and
//! written, plain enough to be piped.

use std::fmt::Write as _;
use std::io::{self, BufRead, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use super::line::{Edit, Line};
use super::printable;

/// Lines that may be typed ahead.
const TYPED_AHEAD: usize = 64;
/// Columns where the terminal does not say.
const COLUMNS: usize = 80;

/// What came from the keyboard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// A line.
    Line(String),
    /// A message is being written, or is not any more. Only a terminal tells.
    Typing(bool),
}

/// See the module's text. The terminal is as it was before once this is dropped.
#[derive(Debug)]
pub(super) struct Terminal {
    /// Of a terminal that is read key by key.
    edited: Option<Edited>,
}

#[derive(Debug)]
struct Edited {
    before: Termios,
    shown: Arc<Mutex<Shown>>,
}

/// What stands in the last row.
#[derive(Debug, Default)]
struct Shown {
    line: Line,
    /// What stands before it.
    who: String,
}

impl Terminal {
    /// `plain`: lines in and out, whatever it is.
    pub(super) fn open(plain: bool) -> Result<Self> {
        if plain || !isatty(io::stdin()) || !isatty(io::stdout()) {
            return Ok(Self { edited: None });
        }
        let before = tcgetattr(io::stdin()).context("the terminal's modes can't be read")?;
        let mut keys = before.clone();
        // Ctrl-C and the like stay signals.
        keys.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::IEXTEN;
        tcsetattr(io::stdin(), OptionalActions::Drain, &keys).context("the terminal's modes can't be set")?;
        let edited = Edited { before, shown: Arc::default() };
        lock(&edited.shown).draw();
        Ok(Self { edited: Some(edited) })
    }

    /// Whether it is told that somebody types, without being asked.
    pub(super) fn sees_keys(&self) -> bool {
        self.edited.is_some()
    }

    /// What is typed, read by a thread: a terminal can't be waited for in any other way.
    pub(super) fn typed(&self) -> Result<mpsc::Receiver<Typed>> {
        let (tell, typed) = mpsc::channel(TYPED_AHEAD);
        let shown = self.edited.as_ref().map(|e| Arc::clone(&e.shown));
        let read = move || match shown {
            Some(shown) => read_keys(&shown, &tell),
            None => read_lines(&tell),
        };
        std::thread::Builder::new().name("tern-typed".into()).spawn(read).context("can't start a thread")?;
        Ok(typed)
    }

    /// Shows a line.
    pub(super) fn show(&self, line: &str) {
        match &self.edited {
            Some(edited) => lock(&edited.shown).above(line),
            // Whoever reads along may stop to; messages are in the store all the same.
            None => put(&format!("{line}\n")),
        }
    }

    /// Shows who is typing, before the line that is typed here.
    pub(super) fn show_typing(&self, who: &str) {
        if let Some(edited) = &self.edited {
            let mut shown = lock(&edited.shown);
            who.clone_into(&mut shown.who);
            shown.draw();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(edited) = &self.edited {
            put("\r\x1b[K");
            // A terminal that is gone has no modes.
            let _gone = tcsetattr(io::stdin(), OptionalActions::Drain, &edited.before);
        }
    }
}

impl Shown {
    fn row(&self) -> String {
        let told = tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_col));
        let columns = if told == 0 { COLUMNS } else { told.max(20) };
        let mut row = String::new();
        if !self.who.is_empty() {
            // Writing to a string does not fail.
            let _written = write!(row, "{} ", printable(&self.who));
        }
        row.push_str("> ");
        let left = (columns - 1).saturating_sub(row.chars().count());
        row.push_str(&self.line.tail(left).replace('\t', " "));
        row
    }

    fn draw(&self) {
        put(&format!("\r\x1b[K{}", self.row()));
    }

    fn above(&self, line: &str) {
        put(&format!("\r\x1b[K{line}\n{}", self.row()));
    }
}

fn lock(shown: &Mutex<Shown>) -> std::sync::MutexGuard<'_, Shown> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

fn put(text: &str) {
    // See `show`.
    let _closed = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
}

fn read_lines(tell: &mpsc::Sender<Typed>) {
    for line in io::stdin().lock().lines() {
        // An error is an end, and so is a chat that is over.
        let Ok(line) = line else { return };
        if tell.blocking_send(Typed::Line(line)).is_err() {
            return;
        }
    }
}

fn read_keys(shown: &Mutex<Shown>, tell: &mpsc::Sender<Typed>) {
    let mut bytes = [0; 1024];
    loop {
        let count = match io::stdin().lock().read(&mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        let mut typed = Vec::new();
        {
            let mut shown = lock(shown);
            for byte in &bytes[..count] {
                match shown.line.key(*byte) {
                    Edit::Changed => {}
                    Edit::Entered(line) => {
                        shown.above(&format!("> {}", printable(&line)));
                        typed.push(Typed::Line(line));
                    }
                    Edit::Ended => return,
                }
            }
            shown.draw();
            typed.push(Typed::Typing(is_message(shown.line.text())));
        }
        for typed in typed {
            if tell.blocking_send(typed).is_err() {
                return;
            }
        }
    }
}

/// Whether what is typed so far will be a message.
fn is_message(line: &str) -> bool {
    !line.trim().is_empty() && (!line.starts_with('/') || line.starts_with("//"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_not_told_to_others_as_typing() {
        for (line, typing) in [("h", true), ("//etc", true), ("", false), ("  ", false), ("/", false), ("/quit", false)]
        {
            assert_eq!(is_message(line), typing, "{line:?}");
        }
    }

    #[test]
    fn who_types_stands_before_the_line() {
        let mut shown = Shown { who: "bob is typing".into(), ..Shown::default() };
        "hi".bytes().for_each(|b| drop(shown.line.key(b)));
        assert_eq!(shown.row(), "bob is typing > hi");
        shown.who.clear();
        assert_eq!(shown.row(), "> hi");
    }
}
