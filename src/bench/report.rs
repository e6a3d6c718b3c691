//! What is printed: a table for people, one JSON object for programs.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::{Map, Value, json};

/// What a figure is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Less is better.
    AtMost(f64),
    /// More is better.
    AtLeast(f64),
}

impl Goal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Goal::AtMost(most) => value <= most,
            Goal::AtLeast(least) => value >= least,
        }
    }

    fn text(self) -> String {
        match self {
            Goal::AtMost(most) => format!("<= {}", number(most)),
            Goal::AtLeast(least) => format!(">= {}", number(least)),
        }
    }
}

/// One measured value.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Dotted name, stable from release to release.
    pub key: String,
    /// What was measured.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it means, for people.
    pub meaning: String,
    /// What it should be.
    pub goal: Option<Goal>,
}

/// All of a run.
#[derive(Debug)]
pub struct Report {
    json: bool,
    figures: Vec<Figure>,
    notes: Vec<String>,
}

impl Report {
    /// Nothing measured yet.
    pub fn new(json: bool) -> Self {
        Self { json, figures: Vec::new(), notes: Vec::new() }
    }

    /// Adds a figure.
    pub fn add(&mut self, key: impl Into<String>, value: f64, unit: &'static str, meaning: impl Into<String>) {
        self.figures.push(Figure { key: key.into(), value, unit, meaning: meaning.into(), goal: None });
    }

    /// Adds a figure that has a goal.
    pub fn held(
        &mut self,
        key: impl Into<String>,
        value: f64,
        unit: &'static str,
        goal: Goal,
        meaning: impl Into<String>,
    ) {
        self.figures.push(Figure { key: key.into(), value, unit, meaning: meaning.into(), goal: Some(goal) });
    }

    /// Adds a sentence that the reader of the figures needs.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Says on standard error what is being done, so that a minute of silence is not taken for a hang.
    pub fn progress(&self, what: &str) {
        if !self.json {
            eprintln!("bench     {what}");
        }
    }

    /// Prints all of it to standard output.
    pub fn print(&self, json: bool) {
        let text = if json { self.object().to_string() } else { self.table() };
        // Whoever reads may have had enough.
        let _closed = writeln!(std::io::stdout(), "{}", text.trim_end());
    }

    fn object(&self) -> Value {
        let mut figures = Map::new();
        for figure in &self.figures {
            let goal = figure.goal.map(|goal| {
                let (at_most, at_least) = match goal {
                    Goal::AtMost(most) => (Some(most), None),
                    Goal::AtLeast(least) => (None, Some(least)),
                };
                json!({ "at_most": at_most, "at_least": at_least, "met": goal.is_met(figure.value) })
            });
            let object = json!({
                "value": rounded(figure.value), "unit": figure.unit, "goal": goal, "meaning": figure.meaning,
            });
            figures.insert(figure.key.clone(), object);
        }
        let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        json!({ "version": env!("CARGO_PKG_VERSION"), "processors": processors, "figures": figures, "notes": self.notes })
    }

    fn table(&self) -> String {
        let rows: Vec<[String; 5]> = self
            .figures
            .iter()
            .map(|f| {
                let goal = f.goal.map_or_else(String::new, Goal::text);
                let met = f.goal.map_or("", |goal| if goal.is_met(f.value) { "met" } else { "missed" });
                [f.key.clone(), format!("{} {}", number(f.value), f.unit), goal, met.to_owned(), f.meaning.clone()]
            })
            .collect();
        let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
        let (key, value, goal, met) = (width(0), width(1), width(2), width(3));
        let mut out = String::new();
        let mut part = "";
        for row in &rows {
            let own = row[0].split('.').next().unwrap_or_default();
            if !part.is_empty() && own != part {
                out.push('\n');
            }
            part = own;
            let [name, measured, held, kept, meaning] = row;
            // Writing to a String does not fail.
            let _infallible = writeln!(out, "{name:<key$}  {measured:>value$}  {held:<goal$}  {kept:<met$}  {meaning}");
        }
        for note in &self.notes {
            let _infallible = write!(out, "\nnote: {note}");
        }
        out
    }
}

/// Three digits that count, and no exponent.
fn number(value: f64) -> String {
    let digits = if value.abs() >= 100.0 || value == value.trunc() {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let mut out = String::new();
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(c);
    }
    if let Some(rest) = rest {
        out.push('.');
        out.push_str(rest);
    }
    out
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_grouped() {
        let shown: Vec<String> = [0.034, 3.456, 34.0, 45.67, 1234.5, 1_234_567.0].into_iter().map(number).collect();
        assert_eq!(shown, ["0.03", "3.46", "34", "45.7", "1,234", "1,234,567"]);
    }

    #[test]
    fn the_table_lines_up_and_says_which_goals_are_met() {
        let mut report = Report::new(false);
        report.held("idle.quic", 30.5, "KB", Goal::AtMost(34.0), "memory");
        report.held("dispatch.rankings", 100.0, "/s", Goal::AtLeast(300_000.0), "speed");
        report.note("a note");
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("idle.quic ") && lines[0].contains("<= 34 ") && lines[0].contains("  met "));
        assert!(lines[1].is_empty(), "parts are apart");
        assert!(lines[2].contains(">= 300,000") && lines[2].contains("missed"));
        assert_eq!(lines[0].find("memory"), lines[2].find("speed"));
        assert!(table.ends_with("note: a note"));
    }

    #[test]
    fn programs_get_one_object_with_every_figure_under_its_name() {
        let mut report = Report::new(true);
        report.held("a.b", 1.23456, "us", Goal::AtMost(1.0), "text");
        report.add("c", 2.0, "/s", "more");
        let object = report.object();
        assert_eq!(object["figures"]["a.b"]["value"], 1.235);
        assert_eq!(object["figures"]["a.b"]["goal"]["met"], false);
        assert!(object["figures"]["c"]["goal"].is_null());
    }
}
