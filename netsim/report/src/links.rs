//! Access links over time: what they carried, what waited, and what was lost for which cause.

use std::collections::BTreeMap;
use std::fmt::Write;

use tern_netsim_verdict::LinkSample;

use crate::limits::{BUCKETS, LINK_ROWS_MAX, LINKS_MAX};
use crate::picture::Picture;
use crate::svg::{self, Strokes, Window};
use crate::words;

/// Pixels of the upper strip (rate and queue), and of the lower one (losses).
const RATE: u64 = 46;
const LOSS: u64 = 18;

/// What one direction did in the whole run.
#[derive(Debug, Default)]
struct Sum<'a> {
    sent: u64,
    delivered: u64,
    delivered_bytes: u64,
    queue_most: u64,
    dropped: BTreeMap<&'a str, u64>,
}

impl<'a> Sum<'a> {
    fn of(samples: &[(u64, &'a LinkSample)]) -> Self {
        let mut sum = Self::default();
        for (_, sample) in samples {
            sum.sent += sample.sent;
            sum.delivered += sample.delivered;
            sum.delivered_bytes += sample.delivered_bytes;
            sum.queue_most = sum.queue_most.max(sample.queue_bytes);
            for (cause, n) in &sample.dropped {
                *sum.dropped.entry(cause).or_default() += n;
            }
        }
        sum
    }

    fn lost(&self) -> u64 {
        self.dropped.values().sum()
    }

    fn causes(&self) -> String {
        if self.dropped.is_empty() {
            return "none".into();
        }
        let each = self.dropped.iter().map(|(cause, n)| {
            format!("<span class=\"cause {}\">{} {}</span>", colour(cause), words::name(cause), words::count(*n))
        });
        each.collect::<Vec<_>>().join(" ")
    }
}

/// Colours of causes are the same in all pictures. What is not known has one too.
fn colour(cause: &str) -> &'static str {
    match cause {
        "outage" => "c-outage",
        "loss" | "chance" | "burst" => "c-loss",
        "queue" | "queue-full" | "queue_full" | "tail" => "c-queue",
        "codel" => "c-codel",
        "too-long" | "too_long" | "black-hole" | "black_hole" | "mtu" => "c-mtu",
        "corrupt" => "c-corrupt",
        _ => "c-other",
    }
}

/// Cards of the links that lost most, and a table of all.
pub(crate) fn draw(picture: &Picture<'_>) -> String {
    if picture.links.is_empty() {
        return "<p class=\"none\">Nothing is told of links.</p>".into();
    }
    let mut links: BTreeMap<&str, u64> = BTreeMap::new();
    let sums: BTreeMap<_, Sum<'_>> = picture.links.iter().map(|(key, samples)| (*key, Sum::of(samples))).collect();
    for ((link, _), sum) in &sums {
        *links.entry(link).or_default() += sum.lost();
    }
    let mut ranked: Vec<(&str, u64)> = links.into_iter().collect();
    ranked.sort_by_key(|(link, lost)| (std::cmp::Reverse(*lost), *link));
    let mut shown: Vec<&str> = ranked.iter().take(LINKS_MAX).map(|(link, _)| *link).collect();
    shown.sort_unstable();
    let mut html = String::from(LEGEND);
    html.push_str("<div class=\"cards\">");
    let window = Window::new(0, picture.end_ns);
    for link in shown {
        let _ = write!(html, "<article class=\"card\"><h3>{}</h3>", words::name(link));
        for way in ["up", "down"] {
            if let (Some(samples), Some(sum)) = (picture.links.get(&(link, way)), sums.get(&(link, way))) {
                card(&mut html, way, samples, sum, window);
            }
        }
        html.push_str("</article>");
    }
    html.push_str("</div>");
    if ranked.len() > LINKS_MAX {
        let _ = write!(
            html,
            "<p class=\"note\">{} more links have no picture; those that lost most come first.</p>",
            ranked.len() - LINKS_MAX
        );
    }
    table(&mut html, &sums);
    html
}

fn table(html: &mut String, sums: &BTreeMap<(&str, &str), Sum<'_>>) {
    html.push_str(
        "<details><summary>All links in figures</summary><div class=\"scroll\"><table><thead><tr><th>Link</th><th>Way</th>\
         <th class=\"n\">Packets in</th><th class=\"n\">out</th><th class=\"n\">Bytes out</th><th class=\"n\">Queue at most</th>\
         <th>Lost</th></tr></thead><tbody>",
    );
    for ((link, way), sum) in sums.iter().take(LINK_ROWS_MAX) {
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td>{}</td></tr>",
            words::name(link),
            words::name(way),
            words::count(sum.sent),
            words::count(sum.delivered),
            words::bytes(sum.delivered_bytes),
            words::bytes(sum.queue_most),
            sum.causes()
        );
    }
    html.push_str("</tbody></table></div>");
    if sums.len() > LINK_ROWS_MAX {
        let _ = write!(html, "<p class=\"note\">{} more are left out.</p>", sums.len() - LINK_ROWS_MAX);
    }
    html.push_str("</details>");
}

/// Samples of some neighbouring seconds as one.
#[derive(Clone, Debug, Default)]
struct Bucket<'a> {
    bits: u64,
    over_ns: u64,
    queue: u64,
    dropped: BTreeMap<&'a str, u64>,
}

fn card<'a>(html: &mut String, way: &str, samples: &[(u64, &'a LinkSample)], sum: &Sum<'a>, window: Window) {
    let mut buckets: BTreeMap<u64, Bucket<'a>> = BTreeMap::new();
    let each = window.length_ns().div_ceil(BUCKETS as u64).max(1);
    for (at_ns, sample) in samples {
        let bucket = buckets.entry(at_ns / each).or_default();
        bucket.bits += sample.delivered_bytes * 8;
        bucket.over_ns += sample.over_ns;
        bucket.queue = bucket.queue.max(sample.queue_bytes);
        for (cause, n) in &sample.dropped {
            *bucket.dropped.entry(cause).or_default() += n;
        }
    }
    let rate = |b: &Bucket<'_>| {
        let bits = u128::from(b.bits) * 1_000_000_000 / u128::from(b.over_ns.max(1));
        u64::try_from(bits).unwrap_or(u64::MAX)
    };
    let rate_most = buckets.values().map(rate).max().unwrap_or(0);
    let lost_most = buckets.values().map(|b| b.dropped.values().sum::<u64>()).max().unwrap_or(0);
    let _ = write!(
        html,
        "<p class=\"way\"><b>{way}</b> up to {}, queue up to {}, lost {} of {}: {}</p>",
        words::rate(rate_most),
        words::bytes(sum.queue_most),
        words::count(sum.lost()),
        words::count(sum.sent),
        sum.causes()
    );
    html.push_str(&svg::open("link", RATE + LOSS, &format!("{way}: rate, queue and losses over time")));
    let height = |value: u64, most: u64, pixels: u64| value * pixels / most.max(1);
    let x = |index: u64| window.x(index * each + each / 2);
    let point = |(i, b): (&u64, &Bucket<'_>), value: u64, most: u64| {
        (x(*i), RATE - height(value, most, RATE - 2).min(RATE), b.queue)
    };
    let rates: Vec<(u64, u64)> =
        buckets.iter().map(|e| point(e, rate(e.1), rate_most)).map(|(x, y, _)| (x, y)).collect();
    let queues: Vec<(u64, u64)> =
        buckets.iter().map(|e| point(e, e.1.queue, sum.queue_most)).map(|(x, y, _)| (x, y)).collect();
    let mut area = Strokes::default();
    area.area(&rates, RATE);
    html.push_str(&area.draw("rate"));
    if sum.queue_most > 0 {
        let mut line = Strokes::default();
        line.through(queues);
        html.push_str(&line.draw("queue"));
    }
    for (index, bucket) in &buckets {
        // From the middle line down, one cause below the other.
        let mut y = RATE + 1;
        for (cause, n) in &bucket.dropped {
            let pixels = height(*n, lost_most, LOSS - 1).max(2).min(RATE + LOSS - y);
            let from = window.x(index * each);
            html.push_str(&svg::rect(colour(cause), (from, window.x((index + 1) * each)), y, pixels));
            y = (y + pixels).min(RATE + LOSS);
        }
    }
    html.push_str("</svg>");
    html.push_str(&svg::axis(window));
}

const LEGEND: &str = "<ul class=\"legend\"><li><i class=\"k rate\"></i>rate delivered</li>\
<li><i class=\"k l queue\"></i>queue</li><li>lost: <span class=\"cause c-outage\">outage</span> \
<span class=\"cause c-loss\">chance</span> <span class=\"cause c-queue\">queue full</span> \
<span class=\"cause c-codel\">CoDel</span> <span class=\"cause c-mtu\">too long</span> \
<span class=\"cause c-corrupt\">corrupted</span> <span class=\"cause c-other\">other</span></li></ul>";
