//! Writes pages into a directory, for people and browsers to look at: of made-up runs, or of the histories that are
//! named: `cargo run -p tern-netsim-report --example pages -- DIRECTORY [HISTORY]...`.

use std::path::{Path, PathBuf};

use tern_netsim_report::{batch_page, run_page};
use tern_netsim_verdict::{BatchRun, Event};

#[path = "../tests/support/mod.rs"]
mod support;

fn main() -> std::io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: pages DIRECTORY");
        std::process::exit(2);
    };
    std::fs::create_dir_all(&directory)?;
    let mut histories = std::env::args_os().skip(2).map(PathBuf::from).peekable();
    if histories.peek().is_some() {
        return real(&directory, histories);
    }
    let runs = [
        ("calm", support::calm()),
        ("wrong", support::wrong()),
        ("hostile", support::hostile()),
        ("huge", support::huge()),
        ("empty", Vec::new()),
    ];
    for (name, lines) in runs {
        let page = run_page(&lines, &support::judged(&lines));
        std::fs::write(directory.join(format!("run-{name}.html")), page)?;
    }
    std::fs::write(directory.join("batch-small.html"), batch_page(&support::batch(6, 40)))?;
    std::fs::write(directory.join("batch-huge.html"), batch_page(&support::batch(500, 40)))?;
    std::fs::write(directory.join("batch-empty.html"), batch_page(&[]))
}

/// A page of each, and one of all.
fn real(directory: &Path, histories: impl Iterator<Item = PathBuf>) -> std::io::Result<()> {
    let mut runs = Vec::new();
    for history in histories {
        let file = std::io::BufReader::new(std::fs::File::open(&history)?);
        let lines = tern_netsim_verdict::read(file).map_err(std::io::Error::other)?;
        let judged = support::judged(&lines);
        let Some(Event::Run(run)) = lines.first().map(|line| &line.event) else { continue };
        let mut one = BatchRun::of(run, &judged);
        let page = format!("{}-{}-{}.html", one.scenario, one.seed, runs.len());
        std::fs::write(directory.join(&page), run_page(&lines, &judged))?;
        one.page = Some(page);
        print!("{}", tern_netsim_verdict::summary(&one));
        runs.push(one);
    }
    print!("{}", tern_netsim_verdict::totals(&runs));
    std::fs::write(directory.join("index.html"), batch_page(&runs))
}
