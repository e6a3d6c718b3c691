//! How long messages took: curves and figures, over the run, by phase, and while each fault held; and how long after
//! faults the first one came again.

use std::fmt::Write;

use tern_netsim_verdict::{Distribution, Figures, Recovery};

use crate::limits::{ROWS_MAX, ROWS_OPEN};
use crate::svg::{self, Strokes, WIDTH};
use crate::words;

const HEIGHT: u64 = 220;
/// Curves differ by colour and by dashes.
const CURVES: [&str; 4] = ["curve k0", "curve k1", "curve k2", "curve k3"];

/// Cumulative curves by phase, and all figures.
pub(crate) fn draw(figures: &Figures) -> String {
    if figures.delivery.count == 0 {
        return "<p class=\"none\">Nothing was delivered.</p>".into();
    }
    let mut html = String::new();
    let phases: Vec<(&str, &Distribution)> =
        figures.delivery_by_phase.iter().map(|(name, d)| (name.as_str(), d)).filter(|(_, d)| d.count > 0).collect();
    curves(&mut html, &figures.delivery, &phases);
    html.push_str(HEAD);
    row(&mut html, "in the whole run", &figures.delivery);
    for (phase, distribution) in &phases {
        row(&mut html, &format!("in phase {}", words::name(phase)), distribution);
    }
    row(&mut html, "<em>until acked</em>", &figures.acks);
    row(&mut html, "<em>until live again</em>", &figures.reconnects);
    html.push_str("</tbody></table></div>");
    let faults = &figures.delivery_by_fault;
    if !faults.is_empty() {
        let open = if faults.len() > ROWS_OPEN { "" } else { " open" };
        let _ = write!(html, "<details{open}><summary>While a fault held</summary>{HEAD}");
        for (fault, distribution) in faults.iter().take(ROWS_MAX) {
            row(&mut html, &words::name(fault), distribution);
        }
        html.push_str("</tbody></table></div></details>");
        if faults.len() > ROWS_MAX {
            let _ = write!(html, "<p class=\"note\">{} more faults are left out.</p>", faults.len() - ROWS_MAX);
        }
    }
    html
}

const HEAD: &str = "<div class=\"scroll\"><table><thead><tr><th>Sent</th><th class=\"n\">Deliveries</th>\
<th class=\"n\">p50</th><th class=\"n\">p90</th><th class=\"n\">p99</th><th class=\"n\">Longest</th></tr></thead><tbody>";

fn row(html: &mut String, what: &str, d: &Distribution) {
    let _ = write!(html, "<tr><td>{what}</td><td class=\"n\">{}</td>", words::count(d.count));
    for percent in [50, 90, 99, 100] {
        let _ = match d.count {
            0 => write!(html, "<td class=\"n\">–</td>"),
            _ => write!(html, "<td class=\"n\">{}</td>", words::time(d.percentile_ns(percent))),
        };
    }
    html.push_str("</tr>");
}

/// The x axis is logarithmic: halves and doubles are equally far apart.
struct Log {
    from: f64,
    until: f64,
}

impl Log {
    fn of(all: &Distribution) -> Self {
        let from = log(all.percentile_ns(0).max(1_000_000)).floor();
        Self { from, until: log(all.max_ns().max(1_000_000)).ceil().max(from + 1.0) }
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and WIDTH")]
    #[expect(clippy::cast_precision_loss, reason = "WIDTH is small")]
    fn x(&self, ns: u64) -> u64 {
        let share = (log(ns.max(1)) - self.from) / (self.until - self.from);
        (share.clamp(0.0, 1.0) * WIDTH as f64) as u64
    }
}

#[expect(clippy::cast_precision_loss, reason = "it only decides where something is drawn")]
fn log(ns: u64) -> f64 {
    (ns as f64).log10()
}

fn curves(html: &mut String, all: &Distribution, phases: &[(&str, &Distribution)]) {
    let axis = Log::of(all);
    html.push_str("<div class=\"plot\">");
    html.push_str(&svg::open("cdf", HEIGHT, "Share of deliveries that took at most so long"));
    let mut grid = Strokes::default();
    let mut labels = String::new();
    for exponent in 6..=14 {
        for factor in [1, 2, 5] {
            let ns = factor * 10_u64.pow(exponent);
            if log(ns) < axis.from || log(ns) > axis.until {
                continue;
            }
            let x = axis.x(ns);
            grid.line((x, 0), (x, HEIGHT));
            if factor == 1 || axis.until - axis.from <= 2.0 {
                let class = if x > WIDTH * 9 / 10 { " class=\"last\"" } else { "" };
                let label = words::time(ns).replace(".00 s", " s");
                let _ = write!(labels, "<span{class} style=\"left:{}\">{label}</span>", words::percent(x, WIDTH));
            }
        }
    }
    let y = |percent: u64| HEIGHT - percent * HEIGHT / 100;
    for percent in [50, 90, 99] {
        grid.line((0, y(percent)), (WIDTH, y(percent)));
    }
    html.push_str(&grid.draw("grid"));
    let mut legend = String::from("<ul class=\"legend\"><li><i class=\"k l all\"></i>whole run</li>");
    let curve = |class: &str, d: &Distribution| {
        let mut strokes = Strokes::default();
        strokes.through(d.quantiles_ns.iter().enumerate().map(|(percent, ns)| (axis.x(*ns), y(percent as u64))));
        strokes.draw(class)
    };
    html.push_str(&curve("curve all", all));
    for ((phase, distribution), class) in phases.iter().zip(CURVES) {
        html.push_str(&curve(class, distribution));
        let _ = write!(legend, "<li><i class=\"k l {class}\"></i>{}</li>", words::name(phase));
    }
    html.push_str("</svg>");
    for percent in [50, 90, 99] {
        // 99 stands just above 90, else they would touch.
        let _ = write!(html, "<span class=\"y\" style=\"top:{}px\">{percent} %</span>", y(percent));
    }
    let _ = write!(html, "<div class=\"axis\" aria-hidden=\"true\">{labels}</div></div>{legend}</ul>");
}

/// Bars against limits, those that missed theirs first, then the longest.
pub(crate) fn recoveries(all: &[Recovery]) -> String {
    if all.is_empty() {
        return "<p class=\"none\">The run had no faults.</p>".into();
    }
    let missed = |r: &Recovery| r.limit_ns.is_some_and(|limit| r.took_ns.is_none_or(|took| took > limit));
    let mut order: Vec<&Recovery> = all.iter().collect();
    order.sort_by_key(|r| (!missed(r), std::cmp::Reverse(r.took_ns), r.begin_ns));
    let most = all.iter().flat_map(|r| [r.took_ns, r.limit_ns]).flatten().max().unwrap_or(1);
    let mut html = String::from("<div class=\"recoveries\">");
    for (i, recovery) in order.iter().take(ROWS_MAX).enumerate() {
        if i == ROWS_OPEN {
            html.push_str("</div><details><summary>Shorter ones</summary><div class=\"recoveries\">");
        }
        let class = if missed(recovery) { "recovery missed" } else { "recovery" };
        let took = recovery.took_ns.map_or_else(|| "nothing came".to_owned(), words::time);
        let limit = recovery.limit_ns.map_or_else(String::new, |limit| format!(" of {} allowed", words::time(limit)));
        let sign = if missed(recovery) { "✕ " } else { "" };
        let until = match recovery.end_ns {
            Some(end_ns) => format!("until {}", words::time(end_ns)),
            None => "without an end".into(),
        };
        let _ = write!(
            html,
            "<div class=\"{class}\"><p><b>{}</b> <small>{} of {}, from {} {until}, {}</small></p><div \
             class=\"scale\"><i style=\"width:{}\"></i>",
            words::name(&recovery.fault),
            words::name(&recovery.kind),
            words::name(&recovery.target),
            words::time(recovery.begin_ns),
            words::counted(recovery.concerned as u64, "device"),
            words::percent(recovery.took_ns.unwrap_or(0), most),
        );
        if let Some(limit_ns) = recovery.limit_ns {
            let _ = write!(html, "<u style=\"left:{}\"></u>", words::percent(limit_ns, most));
        }
        let _ = write!(html, "</div><p class=\"value\">{sign}{took}{limit}</p></div>");
    }
    html.push_str(if order.len() > ROWS_OPEN { "</div></details>" } else { "</div>" });
    if order.len() > ROWS_MAX {
        let _ = write!(html, "<p class=\"note\">{} more, all shorter, are left out.</p>", order.len() - ROWS_MAX);
    }
    html
}
