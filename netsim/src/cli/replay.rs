//! Runs and histories that were kept: run again, judged again.

use std::path::Path;

use tern_netsim_report::run_page;
use tern_netsim_verdict::batch::{BatchRun, summary};
use tern_netsim_verdict::{Event, Line, Verdict, judge};

use super::batch::{self, Job, Manner};
use super::{Failure, Outcome};

/// `netsim replay`.
pub fn replay(run: &Path) -> Outcome {
    let (plan, history) = (run.join("plan.toml"), run.join("history.jsonl"));
    let lines = batch::load(&history).map_err(Failure::Usage)?;
    let Some(Line { event: Event::Run(head), .. }) = lines.first() else {
        return Err(Failure::Usage(format!("{} does not begin with a run", history.display())));
    };
    let scratch = tempfile::tempdir().map_err(|error| Failure::Outside(format!("no temporary directory: {error}")))?;
    let job = Job {
        file: plan,
        scenario: head.scenario.clone(),
        seed: head.seed,
        point: Default::default(),
        mutant: head.mutant.clone(),
    };
    let manner = Manner { directory: scratch.path().to_owned(), twice: false, watchdog: std::time::Duration::MAX };
    let ran = batch::run_one(&job, &manner)?;
    println!("{} {} seed {}", ran.judgement.verdict.name(), job.scenario, job.seed);
    // The first line names what was run and how, and may differ; what happened must not.
    let what_happened = |lines: &[Line]| lines.iter().skip(1).cloned().collect::<Vec<_>>();
    let (before, now) = (what_happened(&lines), what_happened(&ran.lines));
    match before.iter().zip(&now).position(|(before, now)| before != now) {
        None if before.len() == now.len() => println!("the same history, {} lines", lines.len()),
        None => println!("one history goes on: {} lines then, {} now", before.len() + 1, now.len() + 1),
        Some(index) => {
            println!(
                "the histories differ in line {}:\n  then {:?}\n  now  {:?}",
                index + 2,
                before[index],
                now[index]
            );
        }
    }
    for finding in &ran.judgement.findings {
        println!("  {} {}: {}", finding.verdict.name(), finding.check, finding.text);
    }
    Ok(before == now && ran.judgement.verdict == Verdict::Pass)
}

/// `netsim judge`.
pub fn judge_again(history: &Path, html: Option<&Path>) -> Outcome {
    let lines = batch::load(history).map_err(Failure::Usage)?;
    let judgement = judge(&lines);
    let Some(Line { event: Event::Run(head), .. }) = lines.first() else {
        return Err(Failure::Usage(format!("{} does not begin with a run", history.display())));
    };
    print!("{}", summary(&BatchRun::of(head, &judgement)));
    if let Some(path) = html {
        std::fs::write(path, run_page(&lines, &judgement)).map_err(|error| Failure::io("can't write", path, &error))?;
    }
    Ok(judgement.verdict == Verdict::Pass)
}
