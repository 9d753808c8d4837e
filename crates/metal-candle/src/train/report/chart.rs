//! A diagram for the page.
//!
//! The SVG holds lines only and is stretched to whatever width there is, with strokes that keep theirs; the words around it are
//! text of the page and so have the same size on a phone and on a wide screen.

use std::fmt::Write as _;

use super::{
    page::escape,
    plot::{Line, Plot, Role},
};

/// The SVG's own width and height.
const SIZE: f64 = 1000.0;
/// Evaluations that are shown as points too.
const MOST_POINTS: usize = 60;

/// The diagram as HTML. `large` is the one that matters most.
pub(super) fn render(plot: &Plot, large: bool) -> String {
    let mut html = format!("<figure class=\"chart{}\">\n", if large { " large" } else { "" });
    html += &caption(plot);
    html += "<div class=\"plot\">\n";
    for (value, label) in &plot.y.ticks {
        let top = 100.0 * (1.0 - plot.y.place(*value));
        write!(html, "<span class=\"y\" style=\"top:{top:.2}%\">{}</span>", escape(label)).expect(IN_MEMORY);
    }
    let name = format!("{} by step", plot.title);
    write!(
        html,
        "\n<svg viewBox=\"0 0 {SIZE} {SIZE}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">\n",
        escape(&name)
    )
    .expect(IN_MEMORY);
    html += &grid(plot);
    for line in &plot.lines {
        html += &path(plot, line);
    }
    html += &marks(plot);
    html += "</svg>\n";
    let last = plot.x.ticks.len().saturating_sub(1);
    for (index, (value, label)) in plot.x.ticks.iter().enumerate() {
        let left = 100.0 * plot.x.place(*value);
        // At the right end a centred label would stick out.
        let end = if index == last && left > 97.0 { " end" } else { "" };
        // On a narrow screen every other one is enough.
        let odd = if last >= 4 && index % 2 == 1 { " odd" } else { "" };
        write!(html, "<span class=\"x{end}{odd}\" style=\"left:{left:.2}%\">{}</span>", escape(label))
            .expect(IN_MEMORY);
    }
    html += "\n</div>\n</figure>\n";
    html
}

/// Writing to a string cannot fail.
const IN_MEMORY: &str = "a string grows as needed";

fn caption(plot: &Plot) -> String {
    let mut html = format!("<figcaption><b>{}</b>", escape(plot.title));
    if !plot.unit.is_empty() {
        write!(html, " <small>{}</small>", escape(plot.unit)).expect(IN_MEMORY);
    }
    let has = |role| plot.lines.iter().any(|line| line.role == role && !line.points.is_empty());
    if has(Role::Evaluation) {
        html += "<span class=\"legend\">";
        if has(Role::Raw) {
            html += "<span><i class=\"raw\"></i>each step</span><span><i class=\"main\"></i>smoothed</span>";
        } else {
            html += "<span><i class=\"main\"></i>training</span>";
        }
        html += "<span><i class=\"evaluation\"></i>validation</span>";
        if plot.best.is_some() {
            html += "<span><i class=\"best\"></i>best</span>";
        }
        if !plot.resumed.is_empty() {
            html += "<span><i class=\"stop\"></i>went on after a stop</span>";
        }
        html += "</span>";
    }
    if !plot.broken.is_empty() {
        write!(html, "<span class=\"alarm\">{} not finite</span>", plot.broken.len()).expect(IN_MEMORY);
    }
    html += "</figcaption>\n";
    html
}

fn grid(plot: &Plot) -> String {
    let mut path = String::new();
    for (value, _) in &plot.y.ticks {
        write!(path, "M0 {:.1}H{SIZE}", y(plot, *value)).expect(IN_MEMORY);
    }
    let mut html = format!("<path class=\"grid\" d=\"{path}\"/>\n");
    for &step in &plot.resumed {
        let x = x(plot, step);
        writeln!(
            html,
            "<path class=\"resumed\" d=\"M{x:.1} 0V{SIZE}\"><title>went on after step {step}</title></path>"
        )
        .expect(IN_MEMORY);
    }
    html
}

fn path(plot: &Plot, line: &Line) -> String {
    let class = match line.role {
        Role::Raw => "raw",
        Role::Main => "main",
        Role::Evaluation => "evaluation",
    };
    let mut path = String::new();
    for part in line.points.split(|point| !point.1.is_finite()) {
        for (index, point) in part.iter().enumerate() {
            let letter = if index == 0 { 'M' } else { 'L' };
            write!(path, "{letter}{:.1} {:.1}", x(plot, point.0), y(plot, point.1)).expect(IN_MEMORY);
        }
    }
    let mut html = format!("<path class=\"{class}\" d=\"{path}\"/>\n");
    if let &[(step, value)] = &line.points[..]
        && value.is_finite()
    {
        html += &point(plot, &format!("{class} single"), step, value, &format!("step {step}"));
    }
    if line.role == Role::Evaluation && line.points.len() <= MOST_POINTS {
        for &(step, loss) in line.points.iter().filter(|point| point.1.is_finite()) {
            html += &point(plot, "point", step, loss, &format!("step {step}: {loss:.4}"));
        }
    }
    html
}

fn marks(plot: &Plot) -> String {
    let mut html = String::new();
    if let Some((step, loss)) = plot.best {
        let words = format!("best, step {step}: {loss:.4}");
        html += &point(plot, "best", step, loss, &words);
        html += &point(plot, "best centre", step, loss, &words);
    }
    // Many neighbours are one mark.
    let mut drawn = f64::NEG_INFINITY;
    for &step in &plot.broken {
        let x = x(plot, step);
        if x - drawn >= 2.0 {
            writeln!(html, "<path class=\"broken\" d=\"M{x:.1} {SIZE}V{:.1}\"/>", 0.94 * SIZE)
                .expect(IN_MEMORY);
            drawn = x;
        }
    }
    html
}

/// A line of no length with round ends, which stays round when the SVG is stretched.
fn point(plot: &Plot, class: &str, step: f64, value: f64, words: &str) -> String {
    format!(
        "<path class=\"{class}\" d=\"M{:.1} {:.1}h0\"><title>{}</title></path>\n",
        x(plot, step),
        y(plot, value),
        escape(words)
    )
}

fn x(plot: &Plot, step: f64) -> f64 {
    SIZE * plot.x.place(step)
}

fn y(plot: &Plot, value: f64) -> f64 {
    SIZE * (1.0 - plot.y.place(value))
}
