//! Swim lanes: regions above, devices below, time from left to right. What was down or dark, which faults held, and the
//! lines of messages: from the device that sent one to the region that decided on it, and from there to the devices that
//! showed it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::limits::{FAULT_BARS_MAX, LANES_MAX, LIFE_LINES_MAX};
use crate::picture::{Band, Life, Picture};
use crate::svg::{self, Strokes, WIDTH, Window};
use crate::words;

/// Pixels of a lane, and of the track in it; the label stands above the track on small screens.
const LANE: u64 = 34;
const TRACK_TOP: u64 = 18;
const TRACK: u64 = 10;

struct Lane<'a> {
    name: &'a str,
    about: &'a str,
    region: bool,
    y: u64,
}

impl Lane<'_> {
    fn middle(&self) -> u64 {
        self.y + TRACK_TOP + TRACK / 2
    }
}

/// What is drawn more strongly: messages that findings name, and a moment.
pub(crate) struct Marks<'a> {
    pub(crate) suspects: &'a BTreeSet<&'a str>,
    /// The moment, and what it is.
    pub(crate) violation: Option<(u64, String)>,
}

/// The picture of a part of the run, and in words what was left out of it.
pub(crate) fn draw(picture: &Picture<'_>, window: Window, marks: &Marks<'_>) -> String {
    let (lanes, left_out) = lanes(picture, marks);
    let by_name: BTreeMap<&str, &Lane<'_>> = lanes.iter().map(|lane| (lane.name, lane)).collect();
    let height = lanes.len() as u64 * LANE;
    let mut html = String::from("<div class=\"lanes\">");
    let mut notes = Vec::new();
    bars(&mut html, picture, window, &mut notes);
    html.push_str("<div class=\"field\">");
    html.push_str(&svg::open("swim", height, "What happened when, by region and device"));
    for lane in &lanes {
        tracks(&mut html, picture, lane, window);
    }
    for band in picture.bands.iter().filter(|b| window.meets(b.from_ns, b.until_ns.unwrap_or(u64::MAX))) {
        let x = (window.x(band.from_ns), window.x(band.until_ns.unwrap_or(u64::MAX)));
        for lane in lanes.iter().filter(|lane| band.hits(lane.name)) {
            html.push_str(&svg::rect("band", x, lane.y, LANE));
        }
    }
    let drawn = lives(&mut html, picture, window, marks, &by_name);
    let mut rules = Strokes::default();
    for (at_ns, _) in picture.phases.iter().filter(|(at_ns, _)| *at_ns > window.from_ns && window.has(*at_ns)) {
        rules.line((window.x(*at_ns), 0), (window.x(*at_ns), height));
    }
    html.push_str(&rules.draw("phase"));
    if let Some((at_ns, _)) = &marks.violation
        && window.has(*at_ns)
    {
        let mut rule = Strokes::default();
        rule.line((window.x(*at_ns), 0), (window.x(*at_ns), height));
        html.push_str(&rule.draw("violation"));
    }
    html.push_str("</svg>");
    for lane in &lanes {
        let kind = if lane.region { "lane region" } else { "lane" };
        let (name, about) = (words::name(lane.name), words::name(lane.about));
        let _ = write!(html, "<span class=\"{kind}\" style=\"top:{}px\">{name} <small>{about}</small></span>", lane.y);
    }
    flags(&mut html, picture, window, marks);
    html.push_str("</div>");
    html.push_str(&svg::axis(window));
    html.push_str("</div>");
    if drawn.0 < drawn.1 {
        let (some, all) = (words::count(drawn.0), words::count(drawn.1));
        notes.push(format!(
            "Lines of {some} of {all} messages are drawn, evenly chosen; those that findings name are all there."
        ));
    }
    if left_out > 0 {
        notes.push(format!("{left_out} more devices have no lane; those that findings and faults name come first."));
    }
    for note in notes {
        let _ = write!(html, "<p class=\"note\">{note}</p>");
    }
    html
}

/// Regions, then devices: those that findings or faults name first, but in their own order.
fn lanes<'a>(picture: &Picture<'a>, marks: &Marks<'_>) -> (Vec<Lane<'a>>, usize) {
    let mut lanes: Vec<Lane<'a>> = Vec::new();
    if let Some(run) = picture.run {
        lanes.extend(run.cast.regions.iter().map(|name| Lane { name, about: "region", region: true, y: 0 }));
        // An edge that is no process of its own has no life of its own.
        let own = run.cast.edges.iter().filter(|(edge, _)| picture.states.contains_key(edge.as_str()));
        lanes.extend(own.map(|(name, about)| Lane { name, about, region: true, y: 0 }));
    }
    let nodes = lanes.len();
    let devices: Vec<(&str, &str)> = picture.devices().collect();
    let mut rank: Vec<(bool, usize)> = devices
        .iter()
        .enumerate()
        .map(|(i, (device, _))| {
            let suspect = marks.suspects.iter().filter_map(|id| picture.lives.get(id));
            let named = suspect.into_iter().any(|life| life.device == *device);
            (!(named || picture.bands.iter().any(|b| b.hits(device))), i)
        })
        .collect();
    rank.sort_unstable();
    let mut kept: Vec<usize> = rank.iter().take(LANES_MAX).map(|(_, i)| *i).collect();
    kept.sort_unstable();
    lanes.extend(kept.iter().map(|i| Lane { name: devices[*i].0, about: devices[*i].1, region: false, y: 0 }));
    lanes.truncate(LANES_MAX + nodes);
    for (i, lane) in lanes.iter_mut().enumerate() {
        lane.y = i as u64 * LANE;
    }
    (lanes, devices.len() - kept.len())
}

/// Bars of faults above the lanes, each with its name.
fn bars(html: &mut String, picture: &Picture<'_>, window: Window, notes: &mut Vec<String>) {
    let seen: Vec<&Band<'_>> =
        picture.bands.iter().filter(|b| window.meets(b.from_ns, b.until_ns.unwrap_or(u64::MAX))).collect();
    for band in seen.iter().take(FAULT_BARS_MAX) {
        let until_ns = band.until_ns.unwrap_or(u64::MAX);
        let (x, end) = (window.x(band.from_ns), window.x(until_ns));
        let about = format!(
            "{} of {}, {}, {}",
            words::name(band.kind),
            words::name(band.target),
            lasted(band),
            words::counted(band.hits, "hit")
        );
        // Beside the bar, where there is more room.
        let beside = if WIDTH - end >= x {
            format!("<span class=\"beside\" style=\"left:{}\">{about}</span>", words::percent(end, WIDTH))
        } else {
            format!("<span class=\"beside\" style=\"right:{}\">{about}</span>", words::percent(WIDTH - x, WIDTH))
        };
        let _ = write!(
            html,
            "<div class=\"fault\"><span class=\"lane\">{}</span><div class=\"bar\" title=\"{about}\"><i \
             style=\"left:{};width:{}\"></i>{beside}</div></div>",
            words::name(band.fault),
            window.left(band.from_ns),
            window.width(band.from_ns, until_ns),
        );
    }
    if seen.len() > FAULT_BARS_MAX {
        notes.push(format!(
            "{} more faults have no bar here; they are bands in the lanes.",
            seen.len() - FAULT_BARS_MAX
        ));
    }
}

fn lasted(band: &Band<'_>) -> String {
    let from = words::time(band.from_ns);
    match band.until_ns {
        Some(until_ns) if until_ns == band.from_ns => format!("at {from}"),
        Some(until_ns) => format!("from {from} for {}", words::time(until_ns - band.from_ns)),
        None => format!("from {from}, without an end"),
    }
}

/// What a node or device was like all the time.
fn tracks(html: &mut String, picture: &Picture<'_>, lane: &Lane<'_>, window: Window) {
    let y = lane.y + TRACK_TOP;
    let mut since = (0, if lane.region { "started" } else { "unborn" });
    let states = picture.states.get(lane.name).map_or(&[][..], Vec::as_slice);
    let end = (u64::MAX, "");
    for (at_ns, state) in states.iter().chain([&end]) {
        let class = match since.1 {
            "live" => "track up",
            "started" if lane.region => "track up",
            "recovering" => "track recovering",
            "connecting" | "started" => "track connecting",
            "unborn" => "track",
            _ => "track down",
        };
        // A device that was just stopped is told to be offline too, and stays stopped.
        let stays = since.1 == "stopped" && *state == "offline";
        if stays {
            continue;
        }
        if *at_ns > since.0 && window.meets(since.0, *at_ns) && class != "track" {
            html.push_str(&svg::rect(class, (window.x(since.0), window.x(*at_ns)), y, TRACK));
        }
        since = (*at_ns, state);
    }
}

/// Lines of messages. Of how many messages of all in the window.
fn lives(
    html: &mut String,
    picture: &Picture<'_>,
    window: Window,
    marks: &Marks<'_>,
    lanes: &BTreeMap<&str, &Lane<'_>>,
) -> (u64, u64) {
    let seen: Vec<(&str, &Life<'_>)> = picture
        .lives
        .iter()
        .filter(|(_, life)| lanes.contains_key(life.device) && window.meets(life.invoked_ns, life.last_ns()))
        .map(|(id, life)| (*id, life))
        .collect();
    let seen_of = |life: &Life<'_>| life.shown.iter().filter(|(_, device)| lanes.contains_key(device)).count();
    let wanted: usize = seen.iter().map(|(_, life)| seen_of(life) + 2).sum();
    let every = wanted.div_ceil(LIFE_LINES_MAX).max(1);
    let [mut send, mut back, mut shown, mut invoked, mut appeared] = [(); 5].map(|()| Strokes::default());
    let mut drawn = 0;
    let mut strong = String::new();
    for (i, (id, life)) in seen.iter().enumerate() {
        let suspect = marks.suspects.contains(id);
        if !suspect && i % every != 0 {
            continue;
        }
        drawn += 1;
        let Some(from) = lanes.get(life.device) else { continue };
        let start = (window.x(life.invoked_ns), from.middle());
        let decided = life
            .commits
            .first()
            .and_then(|(at_ns, region)| lanes.get(region).map(|lane| (window.x(*at_ns), lane.middle())));
        let hub = decided.unwrap_or(start);
        if suspect {
            let mut all = Strokes::default();
            all.tick(start, 7);
            all.line(start, hub);
            for (at_ns, device) in &life.shown {
                if let Some(lane) = lanes.get(device) {
                    all.line(hub, (window.x(*at_ns), lane.middle()));
                }
            }
            let about = format!("{} in {}", words::name(id), words::name(life.conversation));
            let path = all.draw("suspect");
            let _ = write!(strong, "<g><title>{about}</title>{path}</g>");
            continue;
        }
        invoked.tick(start, 4);
        send.line(start, hub);
        if let Some(acked_ns) = life.acked_ns {
            back.line(hub, (window.x(acked_ns), from.middle()));
        }
        for (at_ns, device) in &life.shown {
            if let Some(lane) = lanes.get(device) {
                let there = (window.x(*at_ns), lane.middle());
                shown.line(hub, there);
                appeared.tick(there, 3);
            }
        }
    }
    for (strokes, class) in
        [(&back, "ack"), (&shown, "shown"), (&send, "send"), (&appeared, "appeared"), (&invoked, "invoked")]
    {
        html.push_str(&strokes.draw(class));
    }
    html.push_str(&strong);
    (drawn, seen.len() as u64)
}

/// Names of phases, and of the first violation, at their places.
fn flags(html: &mut String, picture: &Picture<'_>, window: Window, marks: &Marks<'_>) {
    let mut flag = |class: &str, at_ns: u64, text: &str| {
        if window.has(at_ns) {
            let class = if window.x(at_ns) > WIDTH * 4 / 5 { format!("{class} last") } else { class.to_owned() };
            let _ = write!(html, "<span class=\"flag {class}\" style=\"left:{}\">{text}</span>", window.left(at_ns));
        }
    };
    for (at_ns, name) in &picture.phases {
        flag("phase", *at_ns, &words::name(name));
    }
    if let Some((at_ns, what)) = &marks.violation {
        flag("violation", *at_ns, &format!("{}, {}", words::name(what), words::time(*at_ns)));
    }
}

/// What the colours mean.
pub(crate) const LEGEND: &str = "<ul class=\"legend\">\
<li><i class=\"k up\"></i>live, or running</li><li><i class=\"k recovering\"></i>recovering</li>\
<li><i class=\"k connecting\"></i>connecting</li><li><i class=\"k down\"></i>offline, or stopped</li>\
<li><i class=\"k band\"></i>a fault holds</li><li><i class=\"k l send\"></i>sent, until a region decided on it</li>\
<li><i class=\"k l shown\"></i>until shown</li><li><i class=\"k l ack\"></i>until acked</li>\
<li><i class=\"k l suspect\"></i>named by a finding</li></ul>";
