//! Pages hold what they promise: complete, small, and harmless whatever a run says.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::{batch, calm, hostile, huge, judged, wrong};
use tern_netsim_report::limits::PAGE_BYTES_MAX;
use tern_netsim_report::{batch_page, run_page};
use tern_netsim_verdict::{Judgement, Line, Verdict};

const RUN_SECTIONS: [&str; 10] =
    ["verdict", "findings", "figures", "lanes", "latency", "recovery", "links", "coverage", "devices", "fidelity"];
const BATCH_SECTIONS: [&str; 6] = ["verdict", "heat", "failed", "rows", "checks", "coverage"];

fn page(lines: &[Line]) -> String {
    run_page(lines, &judged(lines))
}

/// Nothing is loaded, nothing is left open, every section is there once.
fn complete(html: &str, sections: &[&str]) {
    for id in sections {
        assert_eq!(html.matches(&format!(" id=\"{id}\"")).count(), 1, "section {id}");
    }
    for foreign in ["http:", "https:", "//cdn", "@import", "url(", "<img", "<link", "<iframe"] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    for tag in ["div", "section", "table", "svg", "p", "span", "details", "ol", "ul", "li", "tr", "td", "a", "b", "dl"]
    {
        let open = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        assert_eq!(open, html.matches(&format!("</{tag}>")).count(), "<{tag}>");
    }
    assert!(html.len() <= PAGE_BYTES_MAX, "{} bytes", html.len());
}

#[test]
fn a_run_that_passes_is_shown_whole() {
    let lines = calm();
    assert_eq!(judged(&lines).verdict, Verdict::Pass, "{:?}", judged(&lines).findings);
    let html = page(&lines);
    complete(&html, &RUN_SECTIONS);
    assert!(html.contains("✓</span> PASS") && html.contains("metro-commute.toml --seed 11"));
    assert!(!html.contains("class=\"note\""), "nothing was left out");
    assert!(!html.contains("first violation"));
}

#[test]
fn a_run_that_fails_marks_the_first_violation_and_what_findings_name() {
    let html = page(&wrong());
    complete(&html, &RUN_SECTIONS);
    assert!(html.contains("✕</span> FAIL") && html.contains("flag violation"));
    assert!(html.contains("Enlarged: duplicates") && html.contains("<path class=\"suspect\""));
    assert!(html.contains("class=\"recovery missed\""));
    assert!(html.contains("? missing"));
}

#[test]
fn what_a_run_says_is_only_text() {
    let html = page(&hostile());
    complete(&html, &RUN_SECTIONS);
    // The page's own, and no other.
    assert_eq!(html.matches("<script").count(), 1);
    assert!(!html.contains("<img") && !html.contains("<b onmouseover") && !html.contains('\u{202e}'));
    assert!(html.contains("&lt;script&gt;alert("));
    let mut runs = batch(1, 30);
    for run in &mut runs {
        run.scenario = "<script>alert(1)</script>".into();
        run.replay = "\"><script>alert(2)</script>".into();
        run.page = Some("javascript:alert(3)".into());
        run.point = [("\"><b".to_owned(), "'onclick=".to_owned())].into();
        run.findings.iter_mut().for_each(|f| f.text.insert_str(0, "<script>"));
    }
    let html = batch_page(&runs);
    complete(&html, &BATCH_SECTIONS);
    assert_eq!(html.matches("<script").count(), 1);
    assert!(!html.contains("javascript:") && !html.contains("\"><b="));
}

#[test]
fn a_huge_run_still_fits_and_says_what_is_left_out() {
    let lines = huge();
    let html = page(&lines);
    complete(&html, &RUN_SECTIONS);
    for left_out in
        ["more devices have no lane", "evenly chosen", "more links have no picture", "more faults have no bar"]
    {
        assert!(html.contains(left_out), "{left_out}");
    }
}

#[test]
fn a_history_that_makes_no_sense_is_drawn_as_well() {
    let lines = calm();
    for some in [&lines[..0], &lines[..1], &lines[1..], &lines[..lines.len() / 2]] {
        let html = page(some);
        complete(&html, &RUN_SECTIONS);
        assert!(html.contains("INVALID"));
    }
    complete(&run_page(&lines, &Judgement::default()), &RUN_SECTIONS);
}

#[test]
fn a_batch_shows_each_run_and_replays_what_did_not_pass() {
    let runs = batch(6, 40);
    let html = batch_page(&runs);
    complete(&html, &BATCH_SECTIONS);
    assert_eq!(html.matches("title=\"seed ").count(), runs.len());
    let bad = runs.iter().filter(|r| r.verdict != Verdict::Pass).count();
    assert!(bad > 3 && html.matches("data-copy=\"replay-").count() == bad);
    complete(&batch_page(&[]), &BATCH_SECTIONS);
}

#[test]
fn a_huge_batch_still_fits_and_says_what_is_left_out() {
    let html = batch_page(&batch(500, 40));
    complete(&html, &BATCH_SECTIONS);
    for left_out in ["A cell stands for 7 runs", "more rows are left out", "the worst come first"] {
        assert!(html.contains(left_out), "{left_out}");
    }
}
