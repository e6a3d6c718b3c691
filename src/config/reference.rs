//! What `tern config doc` prints: a reference of all keys in Markdown, from their definitions.

use std::fmt::Write;

use super::keys::{KEYS, Key};
use super::scope::ALL;
use super::source::env_name;

/// The reference; `docs/CONFIG.md` is this text.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         <!-- Printed by `tern config doc` from the definitions in src/config/keys.rs; do not edit it by hand. -->\n\n\
         A value is taken from the first of: a flag (`--set KEY=VALUE`), the environment (`TERN_KEY`, dots as\n\
         underscores), the TOML file given by `--config`, the default. An unknown key is an error wherever it\n\
         stands. `tern config default` prints a file with every key, `tern config check` every value and where it\n\
         came from.\n\n\
         **Changes.** A running process reads its configuration again, from the same sources, on SIGHUP and on\n\
         `POST /reload` at its admin address. *reload*: a change counts from then on. *restart*: it is reported as\n\
         `restart-required` and counts from the next start on. What is not valid changes nothing. Files that keys\n\
         marked *reload* name (certificates, token keys, GeoIP data) are read again as well.\n\n\
         **Roles.** *tools* are the commands that end by themselves, such as `tern token`.\n",
    );
    let section = |key: &Key| key.name.split_once('.').map_or("", |(section, _)| section).to_owned();
    let mut sections: Vec<String> = Vec::new();
    for key in KEYS {
        if !sections.contains(&section(key)) {
            sections.push(section(key));
        }
    }
    for name in sections {
        let title = if name.is_empty() { "Without a section".to_owned() } else { format!("[{name}]") };
        let _infallible = write!(out, "\n## {title}\n");
        for key in KEYS.iter().filter(|key| section(key) == name) {
            entry(&mut out, key);
        }
    }
    out
}

fn entry(out: &mut String, key: &Key) {
    let text = key.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    let default = match key.default {
        "" => "unset".to_owned(),
        default => format!("`{default}`"),
    };
    let range = key.range.map_or_else(String::new, |(least, most)| format!("; from {least} to {most}"));
    let roles = if key.roles == ALL {
        "all".to_owned()
    } else {
        key.roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ")
    };
    // Lists have no default but the empty one.
    let list = if key.default.starts_with('[') { "a list; each: " } else { "" };
    // Angle brackets are HTML to Markdown, unless they stand in code.
    let _infallible = write!(
        out,
        "\n### `{}`\n\n{}\n\n- Type: {list}{}{range}\n- Default: {default}\n- Environment: `{}`\n- Roles: {roles}\n\
         - Change: {}\n",
        key.name,
        escaped(&text),
        escaped(key.shape),
        env_name(key.name),
        key.reload.words(),
    );
}

/// Text with angle brackets outside of code made harmless.
fn escaped(text: &str) -> String {
    let mut in_code = false;
    text.chars().fold(String::new(), |mut out, c| {
        in_code ^= c == '`';
        match c {
            '<' if !in_code => out.push_str("&lt;"),
            '>' if !in_code => out.push_str("&gt;"),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_reference_is_the_printed_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CONFIG.md");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == markdown(), "docs/CONFIG.md is old: write `tern config doc` to it");
    }

    #[test]
    fn every_key_is_there_with_all_that_is_known_of_it() {
        let text = markdown();
        for key in KEYS {
            let at = text.find(&format!("### `{}`\n", key.name)).expect(key.name);
            let entry = text[at + 4..].split("\n### ").next().unwrap();
            for part in ["- Type: ", "- Default: ", "- Roles: ", "- Change: ", env_name(key.name).as_str()] {
                assert!(entry.contains(part), "{}: {part}", key.name);
            }
            assert_eq!(entry.contains("; from "), key.range.is_some(), "{}", key.name);
        }
        assert_eq!(escaped("a <b> `<c>` <d>"), "a &lt;b&gt; `<c>` &lt;d&gt;");
    }
}
