//! What `tern config default` and `tern config check` print.

use std::fmt::Write;

use super::keys::{KEYS, Key, Settings};
use super::source::env_name;
use crate::cli::{ConfigAction, Global};
use crate::exit::Failure;

/// Widest line of the commented file.
const WIDTH: usize = 100;

/// A TOML file with every key at its default, each with its description. It is itself valid.
pub fn default_toml() -> String {
    let mut out = String::from(
        "# Configuration of a tern process. Every key stands here with its default; a key that is commented\n\
         # out is unset. A value is taken from the first of: a flag (--set KEY=VALUE), the environment\n\
         # (TERN_KEY, dots as underscores), this file, the default.\n",
    );
    // TOML wants top-level keys before the first section.
    let (top, sections): (Vec<&Key>, Vec<&Key>) = KEYS.iter().partition(|k| !k.name.contains('.'));
    for key in top {
        entry(&mut out, key.name, key);
    }
    let mut names: Vec<&str> = Vec::new();
    for key in &sections {
        let (section, _) = key.name.split_once('.').unwrap_or_default();
        if !names.contains(&section) {
            names.push(section);
        }
    }
    for section in names {
        let _infallible = write!(out, "\n[{section}]\n");
        for key in &sections {
            if let Some((at, name)) = key.name.split_once('.').filter(|(at, _)| *at == section) {
                debug_assert_eq!(at, section);
                entry(&mut out, name, key);
            }
        }
    }
    out
}

fn entry(out: &mut String, name: &str, key: &Key) {
    out.push('\n');
    let text = key.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    for line in wrap(&format!("{text} ({})", key.shape)) {
        let _infallible = writeln!(out, "# {line}");
    }
    let _infallible = writeln!(out, "# Environment: {}", env_name(key.name));
    let _infallible = match key.default {
        "" => writeln!(out, "# {name} ="),
        default => writeln!(out, "{name} = {default}"),
    };
}

fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A table of key, value and where the value came from.
pub fn check_table(settings: &Settings) -> String {
    let rows: Vec<(&str, String, String)> = settings
        .show()
        .into_iter()
        .map(|(name, value, source)| (name, value.unwrap_or_else(|| "(unset)".to_owned()), source.to_string()))
        .collect();
    let width = |of: fn(&(&str, String, String)) -> usize| rows.iter().map(of).max().unwrap_or(0).min(60);
    let (names, values) = (width(|r| r.0.len()), width(|r| r.1.len()));
    rows.iter().fold(String::new(), |mut out, (name, value, source)| {
        let _infallible = writeln!(out, "{name:names$}  {value:values$}  {source}");
        out
    })
}

/// The same as one JSON object a line.
pub fn check_json(settings: &Settings) -> String {
    settings.show().into_iter().fold(String::new(), |mut out, (name, value, source)| {
        let line = serde_json::json!({ "key": name, "value": value, "source": source.to_string() });
        let _infallible = writeln!(out, "{line}");
        out
    })
}

/// `tern config`.
pub fn run(global: &Global, action: ConfigAction) -> Result<(), Failure> {
    match action {
        ConfigAction::Default => print!("{}", default_toml()),
        ConfigAction::Doc => print!("{}", super::reference::markdown()),
        ConfigAction::Check => {
            // The flag says how to print here, not how to log.
            let settings = crate::settings(&Global { json: false, ..global.clone() }, &[])?;
            let printed = if global.json { check_json(&settings) } else { check_table(&settings) };
            print!("{printed}");
        }
    }
    Ok(())
}
