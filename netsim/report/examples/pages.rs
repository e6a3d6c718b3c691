//! Writes pages of made-up runs into a directory, for people and browsers to look at:
//! `cargo run -p tern-netsim-report --example pages -- DIRECTORY`.

use std::path::PathBuf;

use tern_netsim_report::{batch_page, run_page};

#[path = "../tests/support/mod.rs"]
mod support;

fn main() -> std::io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: pages DIRECTORY");
        std::process::exit(2);
    };
    std::fs::create_dir_all(&directory)?;
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
