//! What the demo prints: aligned lines for people, one JSON object a line for programs.

use std::io::{self, Write};

use serde_json::{Value, json};

/// Prints lines as things happen.
#[derive(Clone, Copy, Debug)]
pub struct Narrator {
    json: bool,
}

impl Narrator {
    /// As JSON, or for people.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Says that `what` happened: `text` for people, the fields of `data` (an object) for programs.
    pub fn say(&self, what: &str, text: &str, mut data: Value) {
        let line = if self.json {
            if let Value::Object(fields) = &mut data {
                fields.insert("event".to_owned(), json!(what));
            }
            data.to_string()
        } else {
            format!("{what:<9} {text}")
        };
        // Whoever reads may have had enough; the demo's verdict is its exit code.
        let _closed = writeln!(io::stdout(), "{}", line.trim_end()).and_then(|()| io::stdout().flush());
    }
}
