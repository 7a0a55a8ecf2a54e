//! Lines in a frame, as SVG.

use std::fmt::Write as _;

/// A plot's size, and where its frame is within it.
const SIZE: (f64, f64) = (420.0, 250.0);
const FRAME: (f64, f64, f64, f64) = (48.0, 34.0, 360.0, 170.0);

/// What a plot is of.
pub struct Plot<'a> {
    /// Above it.
    pub title: &'a str,
    /// Below it.
    pub x: &'a str,
    /// Whether x counts in powers of ten.
    pub log_x: bool,
    /// The same of y.
    pub log_y: bool,
    /// Y begins here at the latest, and reaches at least there.
    pub y_range: (f64, f64),
    /// Each with the number of its colour.
    pub lines: Vec<(usize, &'a [(f64, f64)])>,
    /// Whether points are marked.
    pub dots: bool,
}

/// Values along an axis, placed within a stretch of the picture.
struct Axis {
    from: f64,
    to: f64,
    log: bool,
    start: f64,
    length: f64,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>, log: bool, (start, length): (f64, f64)) -> Self {
        let sane = values.filter(|value| value.is_finite() && (!log || *value > 0.0));
        let range = (f64::INFINITY, f64::NEG_INFINITY);
        let (mut from, mut to) =
            sane.fold(range, |(from, to), value| (from.min(value), to.max(value)));
        if from > to {
            (from, to) = (if log { 0.1 } else { 0.0 }, 1.0);
        }
        if log {
            (from, to) = (
                10f64.powf(from.log10().floor()),
                10f64.powf(to.log10().ceil()),
            );
        }
        if to - from < 1e-9 {
            to = if log { from * 10.0 } else { from + 1.0 };
        }
        Self {
            from,
            to,
            log,
            start,
            length,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let share = match self.log {
            true => (value.max(self.from) / self.from).log10() / (self.to / self.from).log10(),
            false => (value - self.from) / (self.to - self.from),
        };
        self.start + share.clamp(0.0, 1.0) * self.length
    }

    /// Values to mark.
    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let (from, to) = (
                self.from.log10().round() as i32,
                self.to.log10().round() as i32,
            );
            return (from..=to).map(|power| 10f64.powi(power)).collect();
        }
        let rough = (self.to - self.from) / 4.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
        let step = step
            .into_iter()
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let first = (self.from / step).ceil() as i64;
        let last = (self.to / step + 1e-9).floor() as i64;
        (first..=last).map(|nth| nth as f64 * step).collect()
    }
}

impl Plot<'_> {
    /// As an SVG element whose upper left corner is at (x, y) of the one around it.
    pub fn svg(&self, (left, top): (f64, f64)) -> String {
        let (x0, y0, width, height) = FRAME;
        let points = || self.lines.iter().flat_map(|(_, line)| line.iter());
        let x = Axis::of(points().map(|point| point.0), self.log_x, (x0, width));
        let (low, high) = self.y_range;
        let ys = points().map(|point| point.1).chain([low, high]);
        let y = Axis::of(ys, self.log_y, (y0 + height, -height));
        let ((w, h), title) = (SIZE, self.title);
        let mut svg = format!(
            "<svg x=\"{left}\" y=\"{top}\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
             role=\"img\" aria-label=\"{title}\">\n<text class=\"t\" x=\"{x0}\" y=\"20\">{title}</text>\n"
        );
        // Writing into a string cannot fail, here and below.
        for tick in y.ticks() {
            let at = y.at(tick);
            let _ = writeln!(
                svg,
                "<path class=\"g\" d=\"M{x0} {at:.1}h{width}\"/>\
                 <text class=\"q e\" x=\"{}\" y=\"{:.1}\">{}</text>",
                x0 - 6.0,
                at + 4.0,
                round(tick)
            );
        }
        for tick in x.ticks() {
            let at = x.at(tick);
            let _ = writeln!(
                svg,
                "<text class=\"q m\" x=\"{at:.1}\" y=\"{}\">{}</text>",
                y0 + height + 16.0,
                round(tick)
            );
        }
        let _ = writeln!(
            svg,
            "<path class=\"l\" d=\"M{x0} {}h{width}\"/><text class=\"q m\" x=\"{}\" y=\"{}\">{}</text>",
            y0 + height,
            x0 + width / 2.0,
            y0 + height + 34.0,
            self.x
        );
        for (colour, line) in &self.lines {
            let mut path = String::new();
            for (nth, point) in line.iter().enumerate() {
                let verb = if nth == 0 { 'M' } else { 'L' };
                let (x, y) = (x.at(point.0), y.at(point.1));
                let _ = write!(path, "{verb}{x:.1} {y:.1}");
                if self.dots {
                    let _ = writeln!(
                        svg,
                        "<circle class=\"f{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"/>"
                    );
                }
            }
            let _ = writeln!(svg, "<path class=\"c s{colour}\" d=\"{path}\"/>");
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// Colours and fonts, for light and dark.
pub fn style() -> String {
    const LIGHT: [&str; 8] = [
        "#8c959f", "#57606a", "#9a6700", "#bf3989", "#8250df", "#bc4c00", "#0969da", "#1a7f37",
    ];
    const DARK: [&str; 8] = [
        "#6e7681", "#9198a1", "#d29922", "#db61a2", "#a371f7", "#f0883e", "#4493f8", "#3fb950",
    ];
    let colours = |of: [&str; 8]| {
        let rule = |(nth, colour): (usize, &str)| {
            format!(".s{nth}{{stroke:{colour}}}.f{nth}{{fill:{colour}}}")
        };
        of.into_iter().enumerate().map(rule).collect::<String>()
    };
    // The oracle is what could be, not a rival: dashed.
    format!(
        "text{{font:11px system-ui,sans-serif;fill:#1f2328}}.t{{font-size:13px;font-weight:600}}\
         .m{{text-anchor:middle}}.e{{text-anchor:end}}.q{{fill:#57606a}}.p{{fill:#fff}}\
         .g{{stroke:#d1d9e0;stroke-width:.5;fill:none}}.l{{stroke:#8c959f;fill:none}}\
         .c{{fill:none;stroke-width:1.6;stroke-linejoin:round}}.s6{{stroke-width:2.6}}\
         .s7{{stroke-dasharray:5 3}}{}\
         @media(prefers-color-scheme:dark){{text{{fill:#e6edf3}}.q{{fill:#9198a1}}.p{{fill:#0d1117}}\
         .g{{stroke:#30363d}}.l{{stroke:#6e7681}}{}}}",
        colours(LIGHT),
        colours(DARK)
    )
}

/// A number with as many digits as it needs, three at most.
#[must_use]
pub fn round(number: f64) -> String {
    let text = match number.abs() {
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        1.0.. => format!("{number:.2}"),
        _ => format!("{number:.3}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_tell_them_apart() {
        let numbers = [0.0, 0.0123, 1.5, 2.345, 12.34, 100.4, -0.5];
        let texts = numbers.map(round);
        assert_eq!(texts, ["0", "0.012", "1.5", "2.35", "12.3", "100", "-0.5"]);
    }

    #[test]
    fn axes_mark_round_values() {
        let axis = |from, to, log| Axis::of([from, to].into_iter(), log, (0.0, 100.0));
        assert_eq!(axis(0.0, 1.0, false).ticks(), [0.0, 0.5, 1.0]);
        assert_eq!(axis(0.03, 2.0, true).ticks(), [0.01, 0.1, 1.0, 10.0]);
        assert_eq!(axis(0.1, 10.0, true).at(1.0), 50.0);
        let nothing = Axis::of(std::iter::empty(), true, (0.0, 100.0));
        assert!(nothing.at(0.5).is_finite());
    }

    #[test]
    fn a_plot_of_nothing_is_a_frame() {
        let plot = Plot {
            title: "nothing",
            x: "x",
            log_x: true,
            log_y: false,
            y_range: (0.0, 1.0),
            lines: vec![(0, &[])],
            dots: false,
        };
        let svg = plot.svg((0.0, 0.0));
        assert!(svg.contains("nothing") && !svg.contains("NaN"), "{svg}");
    }
}
