//! The little of SVG that the pictures need.
//!
//! All pictures are stretched to the width that there is: x runs from 0 to [`WIDTH`] whatever the screen, y is in
//! pixels, strokes keep their width, and all text is HTML laid over the picture. So a page needs no script to fit a
//! phone, and no text is ever too small to read.

use std::fmt::Write;

use crate::words;

/// Units from left to right.
pub(crate) const WIDTH: u64 = 10_000;

/// A part of the run's time, on the x axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) from_ns: u64,
    pub(crate) until_ns: u64,
}

impl Window {
    pub(crate) fn new(from_ns: u64, until_ns: u64) -> Self {
        Self { from_ns, until_ns: until_ns.max(from_ns + 1) }
    }

    pub(crate) fn length_ns(self) -> u64 {
        self.until_ns - self.from_ns
    }

    /// Where a time is, kept within the picture.
    pub(crate) fn x(self, at_ns: u64) -> u64 {
        let into = u128::from(at_ns.clamp(self.from_ns, self.until_ns) - self.from_ns);
        u64::try_from(into * u128::from(WIDTH) / u128::from(self.length_ns())).unwrap_or(WIDTH)
    }

    pub(crate) fn has(self, at_ns: u64) -> bool {
        (self.from_ns..=self.until_ns).contains(&at_ns)
    }

    /// Whether something that lasts is seen in it.
    pub(crate) fn meets(self, from_ns: u64, until_ns: u64) -> bool {
        from_ns <= self.until_ns && until_ns >= self.from_ns
    }

    /// For CSS: from the left.
    pub(crate) fn left(self, at_ns: u64) -> String {
        words::percent(self.x(at_ns), WIDTH)
    }

    /// For CSS: how wide.
    pub(crate) fn width(self, from_ns: u64, until_ns: u64) -> String {
        words::percent(self.x(until_ns).saturating_sub(self.x(from_ns)), WIDTH)
    }
}

/// Opens a picture of so many pixels' height.
pub(crate) fn open(class: &str, height: u64, title: &str) -> String {
    format!(
        "<svg class=\"{class}\" viewBox=\"0 0 {WIDTH} {height}\" preserveAspectRatio=\"none\" \
         style=\"height:{height}px\" role=\"img\" aria-label=\"{}\">",
        words::text(title)
    )
}

/// A rectangle, at least so wide that it is seen.
pub(crate) fn rect(class: &str, x: (u64, u64), y: u64, height: u64) -> String {
    let width = x.1.saturating_sub(x.0).max(8);
    format!("<rect class=\"{class}\" x=\"{}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"/>", x.0)
}

/// Many lines that look the same, as one path.
#[derive(Debug, Default)]
pub(crate) struct Strokes(String);

impl Strokes {
    pub(crate) fn line(&mut self, from: (u64, u64), to: (u64, u64)) {
        let _ = write!(self.0, "M{} {}L{} {}", from.0, from.1, to.0, to.1);
    }

    /// A tick of so many pixels around a point.
    pub(crate) fn tick(&mut self, at: (u64, u64), half: u64) {
        let _ = write!(self.0, "M{} {}v{}", at.0, at.1.saturating_sub(half), half * 2);
    }

    /// A line through all points.
    pub(crate) fn through(&mut self, points: impl IntoIterator<Item = (u64, u64)>) {
        for (i, (x, y)) in points.into_iter().enumerate() {
            let _ = write!(self.0, "{}{x} {y}", if i == 0 { 'M' } else { 'L' });
        }
    }

    /// An area down to a line.
    pub(crate) fn area(&mut self, points: &[(u64, u64)], floor: u64) {
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        let _ = write!(self.0, "M{} {floor}", first.0);
        for (x, y) in points {
            let _ = write!(self.0, "L{x} {y}");
        }
        let _ = write!(self.0, "L{} {floor}Z", last.0);
    }

    /// Nothing if there are none.
    pub(crate) fn draw(&self, class: &str) -> String {
        if self.0.is_empty() { String::new() } else { format!("<path class=\"{class}\" d=\"{}\"/>", self.0) }
    }
}

/// Times for an axis: about six, at round numbers.
pub(crate) fn ticks(window: Window) -> Vec<u64> {
    const MS: u64 = 1_000_000;
    const STEPS_MS: [u64; 19] = [
        10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000, 600_000,
        1_200_000, 1_800_000, 3_600_000,
    ];
    let step = STEPS_MS.into_iter().find(|step| window.length_ns() / (step * MS) <= 6);
    let step_ns = step.unwrap_or_else(|| (window.length_ns() / 6 / (3_600_000 * MS) + 1) * 3_600_000) * MS;
    let first = window.from_ns.div_ceil(step_ns);
    (first..).map(|n| n * step_ns).take_while(|at_ns| *at_ns <= window.until_ns).take(8).collect()
}

/// Labels of the time axis, below a picture.
pub(crate) fn axis(window: Window) -> String {
    let mut html = String::from("<div class=\"axis\" aria-hidden=\"true\">");
    for at_ns in ticks(window) {
        // Nearly at the right end a label would leave the page.
        let class = if window.x(at_ns) > WIDTH * 9 / 10 { " class=\"last\"" } else { "" };
        let label = short(at_ns, window);
        let _ = write!(html, "<span{class} style=\"left:{}\">{label}</span>", window.left(at_ns));
    }
    html.push_str("</div>");
    html
}

/// A time on the axis: short, and in one form over all of it.
fn short(at_ns: u64, window: Window) -> String {
    let seconds = at_ns / 1_000_000_000;
    match window.until_ns / 1_000_000_000 {
        _ if at_ns == 0 => "0".into(),
        0..120 => words::time(at_ns).replace(".00 s", " s"),
        120..3600 => format!("{}:{:02}", seconds / 60, seconds % 60),
        _ => format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_within_the_picture() {
        let window = Window::new(100, 200);
        assert_eq!((window.x(0), window.x(150), window.x(900)), (0, 5000, WIDTH));
        assert_eq!(Window::new(5, 5).x(5), 0);
        assert!(window.meets(0, 100) && !window.meets(0, 99));
    }

    #[test]
    fn an_axis_has_a_handful_of_round_numbers() {
        for length in [1, 1_000_000, 950_000_000, 61_000_000_000, 3_000_000_000_000, 500_000_000_000_000] {
            let ticks = ticks(Window::new(0, length));
            assert!((1..=8).contains(&ticks.len()), "{length}: {ticks:?}");
        }
        assert!(axis(Window::new(0, 60_000_000_000)).contains(">20 s<"));
        // Enlarged parts of a long run are shorter than a minute.
        assert!(axis(Window::new(90_000_000_000, 92_500_000_000)).contains(">90.50 s<"));
        assert!(axis(Window::new(0, 150_000_000_000)).contains(">1:30<"));
    }
}
