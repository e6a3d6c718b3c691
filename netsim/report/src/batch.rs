//! The page of many runs: a heat map of scenarios and points against seeds, figures by row, and each run that did not
//! pass with what replays it.

use std::collections::BTreeMap;
use std::fmt::Write;

use tern_netsim_verdict::{BatchRun, Verdict, worst};

use crate::limits::{CELLS_MAX, FAILED_RUNS_MAX, HEAT_ROWS_MAX};
use crate::{page, words};

/// Findings of one run that are listed with it.
const FINDINGS_PER_RUN: usize = 5;

/// A page of a batch, complete in itself. At most [`crate::limits::PAGE_BYTES_MAX`] bytes; what was left out for that is
/// said in it. Links to pages of runs are relative, and only those that are plain file names are followed.
pub fn batch_page(runs: &[BatchRun]) -> String {
    let verdict = worst(runs);
    let mut rows: BTreeMap<(String, String), Vec<&BatchRun>> = BTreeMap::new();
    for run in runs {
        rows.entry((run.scenario.clone(), point(run))).or_default().push(run);
    }
    for row in rows.values_mut() {
        row.sort_by_key(|run| run.seed);
    }
    let sections = [
        ("heat", "Runs", heat(&rows, runs.len())),
        ("failed", "What did not pass", failed(runs)),
        ("rows", "By scenario", table(&rows)),
        ("checks", "By check", checks(runs)),
        ("coverage", "Coverage", coverage(runs)),
    ];
    let title = format!("{verdict}, {} runs", runs.len());
    page::page(&title, &banner(runs, verdict), &sections)
}

/// What else than the seed tells a run from others of its scenario.
fn point(run: &BatchRun) -> String {
    let mut all: Vec<String> = run.point.iter().map(|(key, value)| format!("{key}={value}")).collect();
    all.push(run.driver.clone());
    all.extend(run.mutant.iter().map(|mutant| format!("mutant={mutant}")));
    all.join(" ")
}

fn banner(runs: &[BatchRun], verdict: Verdict) -> String {
    let counts = [Verdict::Pass, Verdict::Fail, Verdict::Invalid, Verdict::Unknown].map(|verdict| {
        let count = runs.iter().filter(|r| r.verdict == verdict).count();
        if count == 0 { String::new() } else { format!("{} {} ", words::count(count as u64), page::badge(verdict)) }
    });
    let scenarios: std::collections::BTreeSet<&String> = runs.iter().map(|r| &r.scenario).collect();
    let about = match verdict {
        Verdict::Pass => "All runs passed.",
        _ => "Not all runs passed. The worst verdict stands for all.",
    };
    format!(
        "<header class=\"banner {}\" id=\"verdict\"><div><p class=\"verdict\"><span aria-hidden=\"true\">{}</span> {verdict}\
         </p><p class=\"means\">{about}</p></div><div><h1>{} runs of {} scenarios</h1><p class=\"point\">{}</p></div></header>",
        page::class(verdict),
        page::sign(verdict),
        words::count(runs.len() as u64),
        scenarios.len(),
        counts.concat()
    )
}

/// A link that stays beside the page.
fn link(run: &BatchRun) -> Option<String> {
    let page = run.page.as_ref()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '=' | '+' | ',');
    (page.chars().all(plain) && !page.starts_with('/')).then(|| words::whole(page))
}

fn heat(rows: &BTreeMap<(String, String), Vec<&BatchRun>>, runs: usize) -> String {
    if rows.is_empty() {
        return "<p class=\"none\">There are no runs.</p>".into();
    }
    // With too many runs a cell stands for neighbouring seeds.
    let each = runs.div_ceil(CELLS_MAX).max(1);
    let mut html = String::from("<ul class=\"legend\">");
    for verdict in [Verdict::Pass, Verdict::Fail, Verdict::Invalid, Verdict::Unknown] {
        let (class, sign) = (page::class(verdict), page::sign(verdict));
        let _ = write!(
            html,
            "<li><b class=\"cell {class}\">{}</b>{verdict}</li>",
            if verdict == Verdict::Pass { "" } else { sign }
        );
    }
    html.push_str("</ul><div class=\"heat\">");
    // A scenario with one point needs no heading of its own.
    let mut points: BTreeMap<&str, usize> = BTreeMap::new();
    for (scenario, _) in rows.keys() {
        *points.entry(scenario).or_default() += 1;
    }
    let mut before = "";
    for ((scenario, point), row) in rows.iter().take(HEAT_ROWS_MAX) {
        let alone = points.get(scenario.as_str()) == Some(&1);
        if before != scenario && !alone {
            let _ = write!(html, "<h3>{}</h3>", words::name(scenario));
        }
        before = scenario;
        let (first, last) = (row.first().map_or(0, |r| r.seed), row.last().map_or(0, |r| r.seed));
        let seeds = if first == last { format!("seed {first}") } else { format!("seeds {first}–{last}") };
        let (name, about) = match alone {
            true => (format!("<b>{}</b>", words::name(scenario)), format!("{} · {seeds}", words::name(point))),
            false => (words::name(point), seeds),
        };
        let _ = write!(html, "<div class=\"row\"><p>{name} <small>{about}</small></p><div class=\"cells\">");
        for cell in row.chunks(each) {
            let Some(run) = cell.iter().max_by_key(|r| r.verdict) else { continue };
            let class = page::class(run.verdict);
            let sign = if run.verdict == Verdict::Pass { "" } else { page::sign(run.verdict) };
            let title = format!("seed {}: {}", run.seed, run.verdict);
            let _ = match link(run) {
                Some(href) => write!(html, "<a class=\"cell {class}\" href=\"{href}\" title=\"{title}\">{sign}</a>"),
                None => write!(html, "<b class=\"cell {class}\" title=\"{title}\">{sign}</b>"),
            };
        }
        html.push_str("</div></div>");
    }
    html.push_str("</div>");
    if each > 1 {
        let _ = write!(html, "<p class=\"note\">A cell stands for {each} runs and shows the worst of them.</p>");
    }
    if rows.len() > HEAT_ROWS_MAX {
        let _ = write!(html, "<p class=\"note\">{} more rows are left out.</p>", rows.len() - HEAT_ROWS_MAX);
    }
    html
}

fn failed(runs: &[BatchRun]) -> String {
    let mut bad: Vec<&BatchRun> = runs.iter().filter(|r| r.verdict != Verdict::Pass).collect();
    bad.sort_by_key(|r| std::cmp::Reverse(r.verdict));
    if bad.is_empty() {
        return "<p class=\"none\">Nothing.</p>".into();
    }
    let mut html = String::new();
    for (i, run) in bad.iter().take(FAILED_RUNS_MAX).enumerate() {
        let name = format!("{} · {}", words::name(&run.scenario), words::text(&run.name()));
        let name = link(run).map_or_else(|| name.clone(), |href| format!("<a href=\"{href}\">{name}</a>"));
        let first = run.findings.first().map_or("", |f| f.text.as_str());
        let _ = write!(
            html,
            "<details class=\"run {}\"{}><summary>{} <b>{name}</b> <span>{}</span></summary>",
            page::class(run.verdict),
            if i < 3 { " open" } else { "" },
            page::badge(run.verdict),
            words::text(first)
        );
        let some = &run.findings[..run.findings.len().min(FINDINGS_PER_RUN)];
        html.push_str(&page::findings(some));
        if run.findings.len() > some.len() {
            let _ = write!(html, "<p class=\"note\">and {} more</p>", run.findings.len() - some.len());
        }
        let _ = write!(html, "<p class=\"line\">{}</p>", words::text(&run.figures.line));
        html.push_str(&page::command(&format!("replay-{i}"), &run.replay));
        html.push_str("</details>");
    }
    if bad.len() > FAILED_RUNS_MAX {
        let left = bad.len() - FAILED_RUNS_MAX;
        let _ = write!(html, "<p class=\"note\">{left} more are left out; the worst come first.</p>");
    }
    html
}

fn table(rows: &BTreeMap<(String, String), Vec<&BatchRun>>) -> String {
    let mut html = String::from(
        "<div class=\"scroll\"><table><thead><tr><th>Scenario</th><th>Point</th><th class=\"n\">Passed</th>\
         <th class=\"n\">Sent</th><th class=\"n\">Delivery p50</th><th class=\"n\">p99, worst</th>\
         <th class=\"n\">Agreed after, worst</th><th>Recovery, worst</th></tr></thead><tbody>",
    );
    for ((scenario, point), row) in rows.iter().take(HEAT_ROWS_MAX) {
        let passed = row.iter().filter(|r| r.verdict == Verdict::Pass).count();
        let mut medians: Vec<u64> = row.iter().map(|r| r.figures.deliver_p50_ns).collect();
        medians.sort_unstable();
        let worst = row.iter().map(|r| r.figures.deliver_p99_ns).max().unwrap_or(0);
        let agreed = row.iter().filter_map(|r| r.figures.converged_ns).max();
        let slowest = row.iter().flat_map(|r| &r.figures.recovered_ns).max_by_key(|(_, (took, _))| *took);
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td class=\"n{}\">{passed} of {}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            words::name(scenario),
            words::name(point),
            if passed < row.len() { " fail" } else { "" },
            row.len(),
            words::count(row.iter().map(|r| r.figures.invoked).sum()),
            words::time(medians[medians.len() / 2]),
            words::time(worst),
            agreed.map_or_else(|| "never".into(), words::time),
            slowest.map_or_else(
                || "–".into(),
                |(fault, (took, _))| format!("{} ({})", words::time(*took), words::name(fault))
            ),
        );
    }
    html.push_str("</tbody></table></div>");
    html
}

/// Which checks found something, and in how many runs.
fn checks(runs: &[BatchRun]) -> String {
    let mut found: BTreeMap<(std::cmp::Reverse<Verdict>, &str), (u64, &BatchRun)> = BTreeMap::new();
    for run in runs {
        let mut here: Vec<(Verdict, &str)> = run.findings.iter().map(|f| (f.verdict, f.check.as_str())).collect();
        here.sort_unstable();
        here.dedup();
        for (verdict, check) in here {
            found.entry((std::cmp::Reverse(verdict), check)).or_insert((0, run)).0 += 1;
        }
    }
    if found.is_empty() {
        return "<p class=\"none\">No check found anything.</p>".into();
    }
    let mut html = String::from(
        "<div class=\"scroll\"><table><thead><tr><th>Check</th><th>Verdict</th><th class=\"n\">Runs</th><th>For example</th>\
         </tr></thead><tbody>",
    );
    for ((verdict, check), (count, run)) in found {
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td>{} {}</td></tr>",
            words::name(check),
            page::badge(verdict.0),
            words::count(count),
            words::name(&run.scenario),
            words::text(&run.name())
        );
    }
    html.push_str("</tbody></table></div>");
    html
}

/// What should happen sometimes, over all runs: a scenario may reach it in some runs and not in others.
fn coverage(runs: &[BatchRun]) -> String {
    let mut all: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for run in runs {
        for (name, (wanted, reached)) in &run.figures.sometimes {
            let sum = all.entry(format!("{}: {name}", run.scenario)).or_default();
            sum.0 += wanted;
            sum.1 += reached;
        }
    }
    let shown = all.iter().take(HEAT_ROWS_MAX);
    let mut html = page::coverage(shown);
    if all.len() > HEAT_ROWS_MAX {
        let _ = write!(html, "<p class=\"note\">{} more are left out.</p>", all.len() - HEAT_ROWS_MAX);
    }
    html
}
