//! The page of one run.

use std::fmt::Write;

use tern_netsim_verdict::{Figures, Finding, Judgement, Line, Run, Verdict};

use crate::lanes::{self, Marks};
use crate::limits::{DEVICE_ROWS_MAX, ROWS_MAX, ZOOM_MARGIN_NS, ZOOM_NS_MAX};
use crate::picture::Picture;
use crate::svg::Window;
use crate::{latency, links, page, words};

/// A page of one run, complete in itself. At most [`crate::limits::PAGE_BYTES_MAX`] bytes; what was left out for that is
/// said in it. Takes any history, also one that makes no sense.
pub fn run_page(lines: &[Line], judged: &Judgement) -> String {
    let picture = Picture::of(lines);
    let nobody = Run::default();
    let run = picture.run.unwrap_or(&nobody);
    let title = format!("{} {}, seed {}", judged.verdict, words::name(&run.scenario), run.seed);
    let sections = [
        ("findings", "Findings", page::findings(&judged.findings)),
        ("figures", "Figures", figures(&judged.figures)),
        ("lanes", "What happened", happened(&picture, judged)),
        ("latency", "Latency", latency::draw(&judged.figures)),
        ("recovery", "Recovery", latency::recoveries(&judged.figures.recoveries)),
        ("links", "Links", links::draw(&picture)),
        ("coverage", "Coverage", coverage(&picture, &judged.figures)),
        ("devices", "Devices", devices(run, &judged.figures)),
        ("fidelity", "Fidelity", fidelity(&picture, run)),
    ];
    page::page(&title, &banner(&picture, run, judged), &sections)
}

fn banner(picture: &Picture<'_>, run: &Run, judged: &Judgement) -> String {
    let verdict = judged.verdict;
    let mut facts = format!("seed {}", run.seed);
    for (key, value) in &run.point {
        let _ = write!(facts, " · {} = {}", words::name(key), words::name(value));
    }
    let _ = write!(facts, " · {} · {}", words::name(&run.driver), words::time(picture.end_ns));
    if let Some(mutant) = &run.mutant {
        let _ = write!(facts, " · with the bug <b>{}</b> switched on", words::name(mutant));
    }
    let means = match verdict {
        Verdict::Pass => "Everything that is checked holds, and the run shows it.",
        Verdict::Unknown => "Nothing is wrong, but the run does not show what it should.",
        Verdict::Invalid => "The run itself is worth nothing.",
        Verdict::Fail => "Something that must hold does not.",
    };
    let first = match judged.findings.first() {
        Some(finding) => format!("<p class=\"first\">{}</p>", words::text(&finding.text)),
        None => String::new(),
    };
    format!(
        "<header class=\"banner {}\" id=\"verdict\"><div><p class=\"verdict\"><span aria-hidden=\"true\">{}</span> {verdict}\
         </p><p class=\"means\">{means}</p></div><div><h1>{}</h1><p class=\"about\">{}</p><p class=\"point\">{facts}</p>\
         {first}{}</div></header>",
        page::class(verdict),
        page::sign(verdict),
        words::name(&run.scenario),
        words::text(&run.about),
        page::command("replay", &run.replay),
    )
}

fn figures(f: &Figures) -> String {
    let bad = |n: u64| if n > 0 { "bad" } else { "" };
    let mut tiles = vec![
        ("messages sent", words::count(f.invoked), ""),
        ("acked", words::count(f.acked), ""),
        ("stable", words::count(f.stable), ""),
        ("shown on devices", words::count(f.shown), ""),
        ("lost", words::count(f.lost), bad(f.lost)),
        ("duplicated", words::count(f.duplicated), bad(f.duplicated)),
        ("out of order", words::count(f.out_of_order), bad(f.out_of_order)),
        ("phantoms", words::count(f.phantoms), bad(f.phantoms)),
        ("never acked", words::count(f.unacked), bad(f.unacked)),
        ("delivery, median", words::time(f.delivery.median_ns()), ""),
        ("delivery, 99 %", words::time(f.delivery.percentile_ns(99)), ""),
        ("all agreed after", f.converged_ns.map_or_else(|| "never".into(), words::time), ""),
        ("connects a second, most", words::count(f.connects_per_second_most), ""),
    ];
    for (what, n) in [
        ("refused by devices", f.refused),
        ("failed", f.failed),
        ("lost, as allowed", f.lost_allowed),
        ("came late", f.late),
        ("changed their place", f.moved),
    ] {
        if n > 0 {
            tiles.push((what, words::count(n), ""));
        }
    }
    page::tiles(&tiles)
}

/// The lanes of the whole run; before them, if something is wrong, the time around it enlarged.
fn happened(picture: &Picture<'_>, judged: &Judgement) -> String {
    if picture.end_ns == 0 {
        return "<p class=\"none\">Nothing happened.</p>".into();
    }
    let wrong: Vec<Finding> = judged.findings.iter().filter(|f| f.verdict == Verdict::Fail).cloned().collect();
    let suspects = picture.suspects(&wrong);
    let mut html = String::from(lanes::LEGEND);
    if let Some((finding, window)) = zoom(picture, &wrong) {
        let (from, until) = (words::time(window.from_ns), words::time(window.until_ns));
        let check = words::name(&finding.check);
        let _ = write!(html, "<h3>Enlarged: {check}, {from} to {until}</h3><p>{}</p>", words::text(&finding.text));
        let marks = Marks { suspects: &suspects, violation: Some((finding.at_ns, finding.check.clone())) };
        html.push_str(&lanes::draw(picture, window, &marks));
        html.push_str("<h3>The whole run</h3>");
    }
    let first = wrong.iter().map(|f| f.at_ns).min();
    let marks = Marks { suspects: &suspects, violation: first.map(|at_ns| (at_ns, "first violation".to_owned())) };
    html.push_str(&lanes::draw(picture, Window::new(0, picture.end_ns), &marks));
    html
}

/// The first finding that names a message, from shortly before its invocation to shortly after the last that is told of
/// it; if none does, the first finding's moment. Only if that is so much shorter than the run that it shows more.
fn zoom<'f>(picture: &Picture<'_>, wrong: &'f [Finding]) -> Option<(&'f Finding, Window)> {
    let named = |f: &&Finding| !picture.suspects(std::slice::from_ref(*f)).is_empty();
    let first = |all: &mut dyn Iterator<Item = &'f Finding>| all.min_by_key(|f| f.at_ns);
    let finding = first(&mut wrong.iter().filter(named)).or_else(|| first(&mut wrong.iter()))?;
    let suspects = picture.suspects(std::slice::from_ref(finding));
    if suspects.is_empty() && finding.at_ns == picture.end_ns {
        // It is about the run as a whole.
        return None;
    }
    let lives = || suspects.iter().filter_map(|id| picture.lives.get(id));
    let from_ns = lives().map(|life| life.invoked_ns).min().unwrap_or(finding.at_ns).saturating_sub(ZOOM_MARGIN_NS);
    let until_ns = lives().map(crate::picture::Life::last_ns).max().unwrap_or(finding.at_ns) + ZOOM_MARGIN_NS;
    let until_ns = until_ns.min(from_ns + ZOOM_NS_MAX).min(picture.end_ns);
    let shorter = until_ns > from_ns && (until_ns - from_ns) * 2 < picture.end_ns;
    shorter.then(|| (finding, Window::new(from_ns, until_ns)))
}

fn coverage(picture: &Picture<'_>, figures: &Figures) -> String {
    let mut html = page::coverage(figures.sometimes.iter());
    let Some(run) = picture.run.filter(|run| !run.cast.faults.is_empty()) else { return html };
    html.push_str(
        "<h3>Faults</h3><div class=\"scroll\"><table><thead><tr><th>Fault</th><th>Kind</th><th>Hits whom</th>\
         <th class=\"n\">Times</th><th class=\"n\">Hits</th><th>Counts</th></tr></thead><tbody>",
    );
    for (id, kind, target) in run.cast.faults.iter().take(ROWS_MAX) {
        let bands = || picture.bands.iter().filter(|b| b.fault == id);
        let hits: u64 = bands().map(|b| b.hits).sum();
        let (class, sign) = match (hits > 0, run.expect.unhit.contains(id)) {
            (true, _) => ("pass", "✓"),
            (false, true) => ("", "may hit nothing"),
            (false, false) => ("unknown", "? hit nothing"),
        };
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td \
             class=\"{class}\">{sign}</td></tr>",
            words::name(id),
            words::name(kind),
            words::name(target),
            bands().count(),
            words::count(hits)
        );
    }
    html.push_str("</tbody></table></div>");
    if run.cast.faults.len() > ROWS_MAX {
        let _ = write!(html, "<p class=\"note\">{} more are left out.</p>", run.cast.faults.len() - ROWS_MAX);
    }
    html
}

fn devices(run: &Run, figures: &Figures) -> String {
    if figures.devices.is_empty() {
        return "<p class=\"none\">Nothing is told of what devices spent.</p>".into();
    }
    let mut all: Vec<_> = figures.devices.iter().collect();
    all.sort_by_key(|(name, spent)| (std::cmp::Reverse(spent.bytes_per_hour), *name));
    let over = |value: u64, limit: Option<u64>| if limit.is_some_and(|limit| value > limit) { "n fail" } else { "n" };
    let mut html = String::from(
        "<div class=\"scroll\"><table><thead><tr><th>Device</th><th class=\"n\">Sent</th><th class=\"n\">Received</th>\
         <th class=\"n\">Bytes an hour</th><th class=\"n\">Wake-ups</th><th class=\"n\">Wake-ups an hour</th></tr></thead><tbody>",
    );
    for (name, spent) in all.iter().take(DEVICE_ROWS_MAX) {
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"{}\">{}</td><td class=\"n\">{}</td>\
             <td class=\"{}\">{}</td></tr>",
            words::name(name),
            words::bytes(spent.up_bytes),
            words::bytes(spent.down_bytes),
            over(spent.bytes_per_hour, run.expect.bytes_per_hour),
            words::bytes(spent.bytes_per_hour),
            words::count(spent.wakeups),
            over(spent.wakeups_per_hour, run.expect.wakeups_per_hour),
            words::count(spent.wakeups_per_hour)
        );
    }
    html.push_str("</tbody></table></div>");
    if all.len() > DEVICE_ROWS_MAX {
        let left = all.len() - DEVICE_ROWS_MAX;
        let _ = write!(html, "<p class=\"note\">{left} more, which spent less, are left out.</p>");
    }
    html
}

fn fidelity(picture: &Picture<'_>, run: &Run) -> String {
    let unknown = || "not told".to_owned();
    let driver = match run.driver.as_str() {
        "sim" => "sim: virtual time, replayable from the seed".to_owned(),
        "tun" => "tun: real time, real packets; can't be replayed exactly".to_owned(),
        other => words::name(other),
    };
    let mut all = vec![
        ("Driver", driver),
        ("Seed", run.seed.to_string()),
        ("Version", words::name(&run.version)),
        ("Shape of all packets", picture.shape.map_or_else(unknown, |s| format!("<code>{}</code>", words::name(s)))),
        ("Packets", picture.packets.map_or_else(unknown, words::count)),
        ("Lines of history", words::count(picture.lines as u64)),
    ];
    let ended = match picture.quiet {
        Some(true) => "calm: nothing waited any more".to_owned(),
        Some(false) => format!("not calm; waiting: {}", words::text(&picture.waiting.join(", "))),
        None => "cut off".to_owned(),
    };
    all.push(("It ended", ended));
    if let Some(late) = &picture.late {
        let text = format!(
            "{} packets; 50 % late by at most {}, 99 % by {}, all by {}; the shortest delay of a link is {}",
            words::count(late.packets),
            words::time(late.p50_ns),
            words::time(late.p99_ns),
            words::time(late.max_ns),
            words::time(late.delay_ns)
        );
        all.push(("Lateness", text));
    } else if run.driver == "sim" {
        all.push(("Lateness", "none: time waits for the machine".into()));
    }
    if let Some(mutant) = &run.mutant {
        all.push(("Bug switched on", words::name(mutant)));
    }
    page::facts(&all)
}
