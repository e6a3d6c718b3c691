//! The line that is being typed in a terminal: bytes in, what to show and what was entered out.

/// Longest line that is taken: a message body's limit. More is not taken, as terminals do.
const LINE_BYTES: usize = tern_core::limits::BODY_BYTES;

/// What a byte did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// The line may look different.
    Changed,
    /// This was entered; the line is empty again.
    Entered(String),
    /// The input has ended.
    Ended,
}

/// See the module's text. Understands characters, Enter, Backspace, Ctrl-W, Ctrl-U and Ctrl-D; other keys do
/// nothing.
#[derive(Debug, Default)]
pub struct Line {
    text: String,
    /// The begin of a character whose other bytes are to come.
    partial: Vec<u8>,
    escape: Escape,
}

/// Where in the sequence of a key such as an arrow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    No,
    Begun,
    Inside,
}

impl Line {
    /// What was typed so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A byte of a key.
    pub fn key(&mut self, byte: u8) -> Edit {
        match (self.escape, byte) {
            (Escape::Begun, b'[' | b'O') => {
                self.escape = Escape::Inside;
                return Edit::Changed;
            }
            (Escape::Begun, _) => {
                self.escape = Escape::No;
                return Edit::Changed;
            }
            (Escape::Inside, _) => {
                // ECMA-48, 5.4: parameters, then one final byte.
                if (0x40..=0x7e).contains(&byte) {
                    self.escape = Escape::No;
                }
                return Edit::Changed;
            }
            (Escape::No, _) => {}
        }
        match byte {
            b'\n' | b'\r' => {
                self.partial.clear();
                return Edit::Entered(std::mem::take(&mut self.text));
            }
            0x04 if self.text.is_empty() => return Edit::Ended,
            0x1b => self.escape = Escape::Begun,
            0x08 | 0x7f => {
                self.text.pop();
            }
            0x15 => self.text.clear(),
            0x17 => {
                let kept = self.text.trim_end().rfind(char::is_whitespace).map_or(0, |at| at + 1);
                // The whitespace found may be longer than a byte.
                let kept = (kept..=self.text.len()).find(|at| self.text.is_char_boundary(*at)).unwrap_or(0);
                self.text.truncate(kept);
            }
            b'\t' => self.take('\t'),
            0..0x20 => {}
            _ => self.byte_of_a_character(byte),
        }
        Edit::Changed
    }

    fn byte_of_a_character(&mut self, byte: u8) {
        self.partial.push(byte);
        match std::str::from_utf8(&self.partial) {
            Ok(text) => {
                let taken = text.chars().next();
                self.partial.clear();
                taken.into_iter().for_each(|c| self.take(c));
            }
            Err(e) if e.error_len().is_some() => self.partial.clear(),
            Err(_) => {}
        }
    }

    fn take(&mut self, c: char) {
        if self.text.len() + c.len_utf8() <= LINE_BYTES {
            self.text.push(c);
        }
    }

    /// The end of the line that fits into so many columns.
    pub fn tail(&self, columns: usize) -> &str {
        let mut left = columns;
        let mut from = self.text.len();
        for (at, c) in self.text.char_indices().rev() {
            let width = width(c);
            if width > left {
                break;
            }
            left -= width;
            from = at;
        }
        &self.text[from..]
    }
}

/// Columns of a character, by the blocks that are wide: enough to keep a line on one row.
fn width(c: char) -> usize {
    match u32::from(c) {
        // Shown as one space.
        0x9 => 1,
        0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f | 0xff00..=0xff60 => 2,
        0x1f300..=0x1faff | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(line: &mut Line, bytes: &[u8]) -> Vec<Edit> {
        bytes.iter().map(|b| line.key(*b)).filter(|e| *e != Edit::Changed).collect()
    }

    #[test]
    fn characters_come_whole_and_a_line_is_entered_once() {
        let mut line = Line::default();
        assert_eq!(typed(&mut line, "grüße 你".as_bytes()), []);
        assert_eq!(line.text(), "grüße 你");
        assert_eq!(typed(&mut line, b"\r"), [Edit::Entered("grüße 你".into())]);
        assert_eq!(line.text(), "");
        assert_eq!(typed(&mut line, b"a\xff\xc3(b\n"), [Edit::Entered("ab".into())], "what is no character is nothing");
    }

    #[test]
    fn keys_that_take_back_do_so_by_character_word_and_line() {
        let mut line = Line::default();
        typed(&mut line, "one two\u{3000}größe\x7f\x08".as_bytes());
        assert_eq!(line.text(), "one two\u{3000}grö");
        typed(&mut line, b"\x17");
        assert_eq!(line.text(), "one two\u{3000}");
        typed(&mut line, b"\x17");
        assert_eq!(line.text(), "one ");
        typed(&mut line, b"\x15\x7f\x17");
        assert_eq!(line.text(), "");
    }

    #[test]
    fn the_input_ends_only_at_an_empty_line_and_arrows_type_nothing() {
        let mut line = Line::default();
        assert_eq!(typed(&mut line, b"x\x04\x1b[A\x1b[1;5C\x1bOP\x1bqy\x01"), []);
        assert_eq!(line.text(), "xy");
        typed(&mut line, b"\x15");
        assert_eq!(typed(&mut line, b"\x04"), [Edit::Ended]);
    }

    #[test]
    fn a_long_line_shows_its_end_and_takes_no_more_than_a_message_may_have() {
        let mut line = Line::default();
        typed(&mut line, "ab你好".as_bytes());
        assert_eq!((line.tail(80), line.tail(5), line.tail(3), line.tail(0)), ("ab你好", "b你好", "好", ""));
        typed(&mut line, &vec![b'x'; LINE_BYTES + 9]);
        assert_eq!(line.text().len(), LINE_BYTES);
    }
}
