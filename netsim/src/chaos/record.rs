//! What happened when, written while it happens, and the report that is made of it.
//!
//! In the directory of a run: `record.jsonl` (a line for each thing that happened), `report.txt`, `report.json`,
//! `history.json` (for the judge of logs), `messages.csv` (when each message was sent, acked and shown), `logs/` (of processes
//! and commands).

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::ChaosError;
use super::figures::{Figure, Judged, Verdict};
use super::observed::{Observed, Sent};

/// Findings that are shown; all are in `report.json`.
const FINDINGS_SHOWN: usize = 10;

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub struct Happened {
    /// Since the clients were opened.
    pub at_s: f64,
    /// What: a word.
    pub what: &'static str,
    /// To whom or by which fault.
    pub who: String,
    /// In words.
    pub text: String,
}

/// See the module.
#[derive(Debug)]
pub struct Record {
    directory: PathBuf,
    file: File,
    loud: bool,
    happened: Vec<Happened>,
    /// What went wrong in playing the script.
    troubles: Vec<String>,
}

/// What came of a script.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of the script.
    pub name: String,
    /// Likewise.
    pub about: String,
    /// The worst of its figures.
    pub verdict: Verdict,
    /// All of them.
    pub figures: Vec<Figure>,
    /// What is wrong with conversations, in words.
    pub findings: Vec<String>,
    /// What went wrong in playing the script: with one of these, nothing passes.
    pub troubles: Vec<String>,
    /// What happened when.
    pub happened: Vec<Happened>,
    /// Where all of it is written.
    pub directory: PathBuf,
}

impl Record {
    /// Begins anew in a directory. `loud`: what happens is also said on standard error.
    pub fn begin(directory: &Path, loud: bool) -> Result<Self, ChaosError> {
        let io = |what: &str| ChaosError::io(format!("{what} {}", directory.display()));
        let logs = directory.join("logs");
        if logs.exists() {
            fs::remove_dir_all(&logs).map_err(io("emptying"))?;
        }
        fs::create_dir_all(&logs).map_err(io("making"))?;
        for old in ["report.txt", "report.json", "history.json", "messages.csv"] {
            match fs::remove_file(directory.join(old)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io("emptying")(error)),
                _ => {}
            }
        }
        let file = File::create(directory.join("record.jsonl")).map_err(io("writing into"))?;
        Ok(Self { directory: directory.to_owned(), file, loud, happened: Vec::new(), troubles: Vec::new() })
    }

    /// Where logs go.
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// Something happened.
    pub fn say(&mut self, at_ns: u64, what: &'static str, who: &str, text: &str) -> Result<(), ChaosError> {
        let happened = Happened { at_s: at_ns as f64 / 1e9, what, who: who.to_owned(), text: text.to_owned() };
        let line = serde_json::to_string(&happened).unwrap_or_default();
        writeln!(self.file, "{line}").map_err(ChaosError::io("writing the record"))?;
        if self.loud {
            // Whoever read it may be gone: that is no reason to leave faults as they are.
            let _closed = writeln!(std::io::stderr(), "{:9.3} s  {what} {who}: {text}", happened.at_s);
        }
        self.happened.push(happened);
        Ok(())
    }

    /// Something that is only written down.
    pub fn say_quietly(&mut self, at_ns: u64, what: &'static str, who: &str, text: &str) -> Result<(), ChaosError> {
        let loud = std::mem::take(&mut self.loud);
        let said = self.say(at_ns, what, who, text);
        self.loud = loud;
        said
    }

    /// Something went wrong that is not the system's fault, or not known to be: the run can't pass.
    pub fn trouble(&mut self, at_ns: u64, who: &str, text: &str) -> Result<(), ChaosError> {
        self.troubles.push(format!("{who}: {text}"));
        self.say(at_ns, "trouble", who, text)
    }

    /// How many of those there were.
    pub fn troubles(&self) -> usize {
        self.troubles.len()
    }

    /// Writes the report, the history and the messages' times.
    pub fn end(self, name: &str, about: &str, judged: Judged, observed: &Observed) -> Result<Report, ChaosError> {
        let report = Report {
            name: name.to_owned(),
            about: about.to_owned(),
            verdict: judged.verdict,
            figures: judged.figures,
            findings: judged.logs.findings.iter().map(ToString::to_string).collect(),
            troubles: self.troubles,
            happened: self.happened,
            directory: self.directory,
        };
        let write = |file: &str, text: String| {
            let path = report.directory.join(file);
            fs::write(&path, text).map_err(ChaosError::io(format!("writing {}", path.display())))
        };
        write("report.txt", report.text())?;
        write("report.json", serde_json::to_string_pretty(&report).unwrap_or_default())?;
        write("history.json", serde_json::to_string(&observed.history()).unwrap_or_default())?;
        write("messages.csv", table(&observed.messages))?;
        Ok(report)
    }
}

/// A line for each message: times in seconds since the run began, empty if it never came to that.
fn table(messages: &[Sent]) -> String {
    let mut lines = vec!["message,conversation,from,to,sent_s,acked_s,shown_s,told".to_owned()];
    lines.extend(messages.iter().map(|message| {
        let Sent { name, conversation, from, to, sent_ns, told, .. } = message;
        let seconds = |ns: u64| format!("{:.6}", ns as f64 / 1e9);
        let acked = message.acked.as_ref().map(|(ns, _)| seconds(*ns)).unwrap_or_default();
        let shown = message.shown_ns.map(seconds).unwrap_or_default();
        format!("{name},{conversation},{from},{to},{},{acked},{shown},{told}", seconds(*sent_ns))
    }));
    lines.join("\n") + "\n"
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let mut lines = vec![format!("{}: {}", self.name, self.about)];
        let told = self.happened.iter().filter(|happened| happened.what != "memory");
        lines.extend(told.map(|h| format!("{:9.3} s  {} {}: {}", h.at_s, h.what, h.who, h.text)));
        lines.join("\n") + "\n" + &self.figures_text()
    }

    /// What has not been said while it happened.
    pub fn figures_text(&self) -> String {
        let mut lines: Vec<String> = self.figures.iter().map(Figure::line).collect();
        lines.extend(self.troubles.iter().map(|trouble| format!("trouble {trouble}")));
        lines.extend(self.findings.iter().take(FINDINGS_SHOWN).map(|finding| format!("        {finding}")));
        if self.findings.len() > FINDINGS_SHOWN {
            lines.push(format!("        and {} more in report.json", self.findings.len() - FINDINGS_SHOWN));
        }
        lines.push(format!("{} {}; {}", self.verdict, self.name, self.directory.display()));
        lines.join("\n") + "\n"
    }
}
