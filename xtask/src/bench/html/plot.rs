//! Marks on scales, as SVG that stretches to the width it gets: what must not be stretched (dots, widths of lines) is a stroke
//! that does not scale.

use std::fmt::Write as _;

use super::escape;
use crate::bench::statistics::Interval;

/// Of every plot, in its own units.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 20.0;
/// Free at both ends, so that dots are whole.
const MARGIN: f64 = 14.0;

/// Where values stand between left and right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    is_log: bool,
}

impl Scale {
    pub(super) fn linear(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values);
        let room = ((high - low) * 0.06).max(high.abs() * 1e-3);
        Self { low: low - room, high: high + room, is_log: false }
    }

    pub(super) fn log(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values);
        Self { low: low / 1.15, high: high * 1.15, is_log: true }
    }

    /// 0 to 1.
    fn share(self, value: f64) -> f64 {
        let share = if self.is_log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        share.clamp(0.0, 1.0)
    }

    fn x(self, value: f64) -> f64 {
        MARGIN + self.share(value) * (WIDTH - 2.0 * MARGIN)
    }

    /// In percent of the plot's width.
    fn percent(self, value: f64) -> f64 {
        self.x(value) / WIDTH * 100.0
    }

    /// A few round values within.
    pub(super) fn ticks(self) -> Vec<f64> {
        if self.is_log {
            let decades = (self.high / self.low).log10();
            let steps: &[f64] = if decades > 3.0 {
                &[1.0]
            } else if decades > 2.0 {
                &[1.0, 3.0]
            } else if decades > 1.2 {
                &[1.0, 2.0, 5.0]
            } else if decades > 0.5 {
                &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0]
            } else {
                &[1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 9.5]
            };
            let first = self.low.log10().floor() as i32;
            let all = (first..=first + decades as i32 + 2)
                .flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
            return thinned(all.filter(|tick| self.holds(*tick)).collect());
        }
        let rough = (self.high - self.low) / 5.0;
        let magnitude = 10f64.powf(rough.log10().floor());
        let factor =
            [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * magnitude >= rough).unwrap_or(10.0);
        let step = factor * magnitude;
        let first = (self.low / step).ceil();
        (0..8).map(|index| (first + f64::from(index)) * step).filter(|tick| self.holds(*tick)).collect()
    }

    fn holds(self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let finite = values.into_iter().filter(|value| value.is_finite());
    let (low, high) = finite
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low <= high { (low, high) } else { (1.0, 2.0) }
}

/// At most some seven, so that labels do not touch.
fn thinned(ticks: Vec<f64>) -> Vec<f64> {
    let every = ticks.len().div_ceil(7).max(1);
    ticks.into_iter().step_by(every).collect()
}

/// One row's plot.
pub(super) struct Strip {
    scale: Scale,
    marks: String,
}

impl Strip {
    pub(super) fn new(scale: Scale) -> Self {
        Self { scale, marks: String::new() }
    }

    /// A line through all of the height.
    pub(super) fn line(mut self, value: f64, class: &str, title: &str) -> Self {
        let x = self.scale.x(value);
        self.mark(class, title, &format!("M{x:.1} 0V{HEIGHT}"));
        self
    }

    /// A short line: one of several values.
    pub(super) fn stroke(mut self, value: f64, class: &str, title: &str) -> Self {
        let x = self.scale.x(value);
        self.mark(class, title, &format!("M{x:.1} 4V16"));
        self
    }

    pub(super) fn dot(mut self, value: f64, class: &str, title: &str) -> Self {
        let x = self.scale.x(value);
        self.mark(class, title, &format!("M{x:.1} 10h0"));
        self
    }

    /// Many small dots, each at its height between 0 and 1.
    pub(super) fn cloud(mut self, values: impl IntoIterator<Item = (f64, f64)>, class: &str) -> Self {
        let mut path = String::new();
        for (value, height) in values {
            let _ = write!(path, "M{:.1} {:.1}h0", self.scale.x(value), 4.0 + height * 12.0);
        }
        self.mark(class, "", &path);
        self
    }

    pub(super) fn span(mut self, low: f64, high: f64, class: &str) -> Self {
        let (left, right) = (self.scale.x(low), self.scale.x(high));
        self.mark(class, "", &format!("M{left:.1} 10H{right:.1}"));
        self
    }

    /// An estimate and its interval.
    pub(super) fn interval(self, interval: Interval, class: &str, title: &str) -> Self {
        self.span(interval.low, interval.high, &format!("span {class}")).dot(
            interval.estimate,
            &format!("dot {class}"),
            title,
        )
    }

    fn mark(&mut self, class: &str, title: &str, path: &str) {
        let title =
            if title.is_empty() { String::new() } else { format!("<title>{}</title>", escape(title)) };
        let _ = write!(self.marks, "<path class=\"{class}\" d=\"{path}\">{title}</path>");
    }

    pub(super) fn svg(self) -> String {
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" aria-hidden=\"true\">{}</svg>",
            self.marks
        )
    }
}

/// Labels of a scale, for the head of a list of strips.
pub(super) fn axis(scale: Scale, label: impl Fn(f64) -> String) -> String {
    let mut text = String::new();
    for (index, tick) in scale.ticks().into_iter().enumerate() {
        let odd = if index % 2 == 1 { " odd" } else { "" };
        let _ = write!(
            text,
            "<span class=\"tick{odd}\" style=\"left:{:.2}%\">{}</span>",
            scale.percent(tick),
            label(tick)
        );
    }
    format!("<div class=\"axis\">{text}</div>")
}

/// A point of a scatter plot.
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) class: &'static str,
    pub(super) title: String,
}

/// A line of a scatter plot with its name at the end.
pub(super) struct Roof {
    pub(super) points: Vec<(f64, f64)>,
    pub(super) class: &'static str,
}

/// Points and lines between two logarithmic scales.
pub(super) fn scatter(
    x: Scale,
    y: Scale,
    roofs: &[Roof],
    points: &[Point],
    labels: (impl Fn(f64) -> String, impl Fn(f64) -> String),
) -> String {
    let place = |(at_x, at_y): (f64, f64)| (x.x(at_x), 1000.0 - y.x(at_y));
    let (mut marks, mut spans) = (String::new(), String::new());
    for (index, tick) in x.ticks().into_iter().enumerate() {
        let odd = if index % 2 == 1 { " odd" } else { "" };
        let _ = write!(marks, "<path class=\"grid\" d=\"M{:.1} 0V1000\"/>", x.x(tick));
        let _ = write!(
            spans,
            "<span class=\"x{odd}\" style=\"left:{:.2}%\">{}</span>",
            x.percent(tick),
            labels.0(tick)
        );
    }
    for tick in y.ticks() {
        let at = 1000.0 - y.x(tick);
        let _ = write!(marks, "<path class=\"grid\" d=\"M0 {at:.1}H1000\"/>");
        let _ = write!(spans, "<span class=\"y\" style=\"top:{:.2}%\">{}</span>", at / 10.0, labels.1(tick));
    }
    for roof in roofs {
        let path: Vec<String> = roof
            .points
            .iter()
            .enumerate()
            .map(|(index, point)| {
                let (left, top) = place(*point);
                format!("{}{left:.1} {top:.1}", if index == 0 { "M" } else { "L" })
            })
            .collect();
        let _ = write!(marks, "<path class=\"roof {}\" d=\"{}\"/>", roof.class, path.concat());
    }
    for point in points {
        let (left, top) = place((point.x, point.y));
        let _ = write!(
            marks,
            "<path class=\"dot {}\" d=\"M{left:.1} {top:.1}h0\"><title>{}</title></path>",
            point.class,
            escape(&point.title)
        );
    }
    format!(
        "<div class=\"scatter\"><svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"roofline\">{marks}</svg>{spans}</div>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_few_and_within() {
        for (low, high) in [(0.9, 1.1), (1.0, 30.0), (1e-3, 1e5), (12.0, 13.0), (0.2, 4.0)] {
            for scale in [Scale::linear([low, high]), Scale::log([low, high])] {
                let ticks = scale.ticks();
                assert!((2..=8).contains(&ticks.len()), "{low} to {high}: {ticks:?}");
                assert!(ticks.iter().all(|tick| scale.holds(*tick)), "{ticks:?}");
            }
        }
    }

    #[test]
    fn one_value_and_none_have_a_scale() {
        let scale = Scale::linear([5.0]);
        assert!((scale.share(5.0) - 0.5).abs() < 1e-9);
        assert!(Scale::log([]).share(1.5).is_finite());
    }
}
