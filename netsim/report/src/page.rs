//! The frame of every page: style, banner, sections, findings.

use std::fmt::Write;

use tern_netsim_verdict::{Finding, Verdict};

use crate::limits::FINDINGS_MAX;
use crate::words;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Nothing may be loaded from anywhere, whatever a page is made to contain.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// A page with its sections (id, heading, content), in order.
pub(crate) fn page(title: &str, banner: &str, sections: &[(&str, &str, String)]) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title}</title><style>{STYLE}</style></head><body>\
         {banner}<nav aria-label=\"Sections\">"
    );
    for (id, heading, _) in sections {
        let _ = write!(html, "<a href=\"#{id}\">{heading}</a>");
    }
    html.push_str("</nav><main>");
    for (id, heading, content) in sections {
        let _ = write!(html, "<section id=\"{id}\"><h2>{heading}</h2>{content}</section>");
    }
    let _ = writeln!(html, "</main><script>{SCRIPT}</script></body></html>");
    html
}

/// A verdict has a colour, a sign and a word, so that it is told by any of them.
pub(crate) fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Unknown => "unknown",
        Verdict::Invalid => "invalid",
        Verdict::Fail => "fail",
    }
}

/// See [`class`].
pub(crate) fn sign(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "✓",
        Verdict::Unknown => "?",
        Verdict::Invalid => "⊘",
        Verdict::Fail => "✕",
    }
}

/// As a small label.
pub(crate) fn badge(verdict: Verdict) -> String {
    format!("<span class=\"badge {}\">{} {verdict}</span>", class(verdict), sign(verdict))
}

/// A command that can be copied; the id must be unique in the page.
pub(crate) fn command(id: &str, line: &str) -> String {
    format!(
        "<div class=\"command\"><code id=\"{id}\">{}</code><button type=\"button\" data-copy=\"{id}\">Copy</button></div>",
        words::whole(line)
    )
}

/// What was found, or that nothing was.
pub(crate) fn findings(all: &[Finding]) -> String {
    if all.is_empty() {
        return "<p class=\"none\">Nothing. All checks hold, and the run shows it.</p>".into();
    }
    let mut html = String::from("<ol class=\"findings\">");
    for finding in all.iter().take(FINDINGS_MAX) {
        let _ = write!(
            html,
            "<li class=\"{}\">{}<span class=\"check\">{}</span><span class=\"at\">{}</span><p>{}</p></li>",
            class(finding.verdict),
            badge(finding.verdict),
            words::name(&finding.check),
            words::time(finding.at_ns),
            words::text(&finding.text)
        );
    }
    html.push_str("</ol>");
    if all.len() > FINDINGS_MAX {
        let _ = write!(html, "<p class=\"note\">{} more are left out.</p>", all.len() - FINDINGS_MAX);
    }
    html
}

/// Numbers with what they count.
pub(crate) fn tiles(all: &[(&str, String, &str)]) -> String {
    let mut html = String::from("<dl class=\"tiles\">");
    for (what, value, class) in all {
        let _ = write!(html, "<div class=\"{class}\"><dt>{what}</dt><dd>{value}</dd></div>");
    }
    html.push_str("</dl>");
    html
}

/// What should happen sometimes: how often it must, and did.
pub(crate) fn coverage<'a>(all: impl Iterator<Item = (&'a String, &'a (u64, u64))>) -> String {
    let mut rows = String::new();
    for (name, (wanted, reached)) in all {
        let (class, sign) = match (wanted, reached >= wanted) {
            (0, _) => ("", "–"),
            (_, true) => ("pass", "✓"),
            (_, false) => ("unknown", "? missing"),
        };
        let _ = write!(
            rows,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"{class}\">{sign}</td></tr>",
            words::name(name),
            words::count(*reached),
            if *wanted == 0 { "–".to_owned() } else { words::count(*wanted) },
        );
    }
    if rows.is_empty() {
        return "<p class=\"none\">The scenario asks for nothing that must happen sometimes.</p>".into();
    }
    format!(
        "<div class=\"scroll\"><table><thead><tr><th>What</th><th class=\"n\">Happened</th><th class=\"n\">Must</th>\
         <th>Reached</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
}

/// Pairs of a name and what it is.
pub(crate) fn facts(all: &[(&str, String)]) -> String {
    let mut html = String::from("<dl class=\"facts\">");
    for (name, value) in all {
        let _ = write!(html, "<dt>{name}</dt><dd>{value}</dd>");
    }
    html.push_str("</dl>");
    html
}
