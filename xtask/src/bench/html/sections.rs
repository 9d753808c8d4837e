//! The parts of the page with plots.

use std::fmt::Write as _;

use super::{
    escape, groups,
    plot::{Point, Roof, Scale, Strip, axis, scatter},
};
use crate::bench::{
    detector::Verdict,
    random::Random,
    result::{Method, Row, RunResult},
    roofline::Bound,
    statistics::Interval,
    units,
};

/// A list of strips under one scale. `note` stands below the heading.
struct List {
    text: String,
}

impl List {
    fn new(heading: &str, note: &str, axis: &str) -> Self {
        let note = if note.is_empty() { String::new() } else { format!("<p class=\"soft\">{note}</p>\n") };
        Self {
            text: format!(
                "<section>\n<h2>{heading}</h2>\n{note}<div class=\"list\">\n<div class=\"row head\"><span></span>{axis}<span></span></div>\n"
            ),
        }
    }

    fn row(&mut self, class: &str, name: &str, strip: Strip, value: &str) {
        let _ = writeln!(
            self.text,
            "<div class=\"row {class}\"><span class=\"name\">{name}</span>{}<span class=\"value\">{value}</span></div>",
            strip.svg()
        );
    }

    fn end(self) -> String {
        self.text + "</div>\n</section>\n"
    }
}

/// `group/` soft, the rest plain.
fn name(row: &str) -> String {
    match row.split_once('/') {
        Some((group, rest)) => format!("<small>{}/</small> {}", breakable(group), breakable(rest)),
        None => breakable(row),
    }
}

/// May be broken after what separates its words.
fn breakable(name: &str) -> String {
    escape(name).replace('_', "_<wbr>").replace('/', "/<wbr>")
}

fn ratio(interval: Interval) -> String {
    format!("{:.3} <small>{:.3} – {:.3}</small>", interval.estimate, interval.low, interval.high)
}

pub(super) fn comparison(result: &RunResult) -> String {
    let Some(comparison) = &result.comparison else { return String::new() };
    let how = match comparison.method {
        Method::Interleaved => "Old and new program ran in turns.",
        Method::Recorded => {
            "The old program could not run: its recorded times are compared, so the machine's mood is part of the ratio."
        }
    };
    let note = format!(
        "New ÷ old with 95 % intervals over processes; left is faster. {how} The band is the tolerance of {}. Baseline: commit {}, {}.",
        units::percent(comparison.tolerance),
        escape(comparison.baseline_commit.as_deref().unwrap_or("unknown")),
        escape(&comparison.baseline_started),
    );
    let band = [1.0 / (1.0 + comparison.tolerance), 1.0 + comparison.tolerance];
    let ends = comparison
        .rows
        .iter()
        .flat_map(|row| [row.ratio.low, row.ratio.high])
        .chain(band)
        .chain([0.95, 1.05]);
    let scale = Scale::log(ends);
    let heading = format!("Against {}", escape(&comparison.baseline));
    let mut list = List::new(&heading, &note, &axis(scale, |tick| format!("{}", (tick * 1e3).round() / 1e3)));
    for row in &comparison.rows {
        let (class, word) = match row.verdict {
            Verdict::Regression if row.pairs == 0 => ("bad", "slower than recorded".to_owned()),
            Verdict::Regression => ("bad", format!("slower · {} pairs", row.pairs)),
            Verdict::Undecided => ("open", format!("undecided · {} pairs", row.pairs)),
            Verdict::Clear if row.suspect => ("", format!("cleared · {} pairs", row.pairs)),
            Verdict::Clear if row.ratio.high < 1.0 - comparison.tolerance => ("good", "faster".to_owned()),
            Verdict::Clear => ("", String::new()),
        };
        let strip = Strip::new(scale)
            .span(band[0], band[1], "band")
            .line(1.0, "one", "")
            .interval(row.ratio, class, &row.row);
        list.row(class, &name(&row.row), strip, &format!("{} <b>{word}</b>", ratio(row.ratio)));
    }
    list.end()
}

pub(super) fn peers(result: &RunResult) -> String {
    let Some(peers) = &result.peers else { return String::new() };
    let measured = || peers.rounds.iter().filter_map(|rounds| Some((rounds, rounds.ratio?)));
    let ends = measured()
        .flat_map(|(rounds, ratio)| [ratio.low, ratio.high, rounds.bar.unwrap_or(1.0)])
        .chain([1.0]);
    let scale = Scale::log(ends);
    let note = "How many times better ours is, with 95 % intervals over rounds in which both ran in turns; right is better. \
                The short line is the bar.";
    let mut list =
        List::new("Beside other programs", note, &axis(scale, |tick| format!("{}×", units::digits(tick))));
    for (rounds, interval) in measured() {
        let class = if rounds.is_below() { "bad" } else { "good" };
        let mut strip = Strip::new(scale).line(1.0, "one", "").interval(interval, class, &rounds.shape);
        if let Some(bar) = rounds.bar {
            strip = strip.stroke(bar, "bar", &format!("bar {bar}"));
        }
        let label = format!(
            "{} <small>{} · {} vs {}</small>",
            escape(&rounds.comparison),
            escape(&rounds.shape),
            escape(&rounds.ours),
            escape(&rounds.peer)
        );
        let bar = rounds.bar.map_or_else(|| "no bar".to_owned(), |bar| format!("bar {bar}×"));
        list.row(
            class,
            &label,
            strip,
            &format!("{}× <small>{bar}</small>", units::digits(interval.estimate)),
        );
    }
    let mut text = list.end();
    let missing: Vec<String> = peers
        .peers
        .iter()
        .filter(|peer| peer.status != "measured")
        .map(|peer| format!("{}: {}", escape(&peer.name), escape(&peer.status)))
        .collect();
    if !missing.is_empty() {
        let _ = writeln!(text, "<p class=\"soft\">Not measured: {}</p>", missing.join("; "));
    }
    text
}

pub(super) fn published(result: &RunResult) -> String {
    let rows: Vec<(&Row, f64)> =
        result.rows.iter().filter_map(|row| Some((row, row.times_published()?))).collect();
    if rows.is_empty() {
        return String::new();
    }
    let scale = Scale::log(rows.iter().map(|(_, times)| *times).chain([1.0]));
    let note = "How many times faster than the best published figure of the row; right is better. Those figures come from \
                another machine, so a factor says something about both.";
    let mut list =
        List::new("Published figures", note, &axis(scale, |tick| format!("{}×", units::digits(tick))));
    for (row, times) in rows {
        let class = if times < 1.0 { "bad" } else { "good" };
        let source = row.published.as_ref().map_or("", |published| published.source.as_str());
        let strip = Strip::new(scale).line(1.0, "one", "").span(1.0, times, &format!("span {class}")).dot(
            times,
            &format!("dot {class}"),
            source,
        );
        let published = row.published.as_ref().map_or(0.0, |published| published.nanoseconds);
        let value = format!(
            "{}× <small>{} vs {}</small>",
            units::digits(times),
            units::time(row.median_ns),
            units::time(published)
        );
        list.row(class, &name(&row.row), strip, &value);
    }
    list.end()
}

pub(super) fn roofline(result: &RunResult) -> String {
    let Some(limits) = &result.limits else { return String::new() };
    let mut points = Vec::new();
    for row in &result.rows {
        let Some(counters) = &row.counters else { continue };
        let (Some(bytes), Some(flops)) = (counters.bytes, counters.flops) else { continue };
        if bytes <= 0.0 || flops <= 0.0 {
            continue;
        }
        let rate = flops / row.median_ns * 1e9;
        let share = row.share_of_limit.map(units::percent).unwrap_or_default();
        points.push(Point {
            x: flops / bytes,
            y: rate,
            class: if row.bound == Some(Bound::Compute) { "compute" } else { "memory" },
            title: format!("{}: {}, {share} of its limit", row.row, units::rate(rate, "FLOP")),
        });
    }
    let shares = shares(result);
    if points.is_empty() {
        return shares;
    }
    let fastest = limits.memory.iter().map(|step| step.bytes_per_second).fold(0.0, f64::max);
    let peak = limits.flops_per_second.max(limits.model_flops_per_second);
    let (cache, memory) = (fastest, limits.main_memory());
    let x = Scale::log(points.iter().map(|point| point.x).chain([peak / memory * 2.0, 0.1]));
    let least = points.iter().map(|point| point.y).fold(f64::INFINITY, f64::min);
    let y = Scale::log([least, peak * 1.3]);
    let (left, right) = (1e-3, 1e6);
    let roof = |bandwidth: f64, class| {
        // Not below the plot, where the line would bend.
        let start = (least / 1.15 / bandwidth).max(left);
        Roof { points: vec![(start, start * bandwidth), (peak / bandwidth, peak), (right, peak)], class }
    };
    let plot = scatter(
        x,
        y,
        &[roof(cache, "cache"), roof(memory, "main")],
        &points,
        (
            |tick| units::digits(tick).trim_end_matches('0').trim_end_matches('.').to_owned(),
            |tick| units::rate(tick, "").trim_end_matches("/s").trim().to_owned(),
        ),
    );
    format!(
        "<section>\n<h2>Roofline</h2>\n<p class=\"soft\">FLOP per second over FLOP per byte moved. The lines are what this machine \
         reached: {} from memory, {} from the nearest cache, {}.</p>\n<div class=\"card\">{plot}\
         <p class=\"legend\"><i class=\"memory\"></i>limited by memory <i class=\"compute\"></i>limited by arithmetic \
         <u class=\"main\"></u>memory <u class=\"cache\"></u>cache</p></div>\n</section>\n{shares}",
        units::rate(memory, "B"),
        units::rate(cache, "B"),
        limits.arithmetic(),
    )
}

fn shares(result: &RunResult) -> String {
    let mut rows: Vec<(&Row, f64)> =
        result.rows.iter().filter_map(|row| Some((row, row.share_of_limit?))).collect();
    if rows.is_empty() {
        return String::new();
    }
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    let scale = Scale::log(rows.iter().map(|(_, share)| *share).chain([1.0, 0.1]));
    let note = "The least time that this machine allows for the row's bytes and operations ÷ the time taken. A row that fits into \
                a cache is held against that cache's speed.";
    let mut list = List::new("Share of the limit", note, &axis(scale, units::percent));
    for (row, share) in rows {
        let bound = row.bound.unwrap_or(Bound::Memory);
        let class = if bound == Bound::Compute { "dot compute" } else { "dot memory" };
        let strip = Strip::new(scale).line(1.0, "one", "").dot(share, class, &row.row);
        let text = format!("{} <small>{}</small>", units::percent(share), bound.name());
        list.row("", &name(&row.row), strip, &text);
    }
    list.end()
}

/// Every row on a scale of its own: its processes, and the batches within them.
pub(super) fn rows(result: &RunResult) -> String {
    let mut text = "<section>\n<h2>Rows</h2>\n<p class=\"soft\">Each row on its own scale, left is faster: the strokes are the \
                    medians of the processes, the dots their batches, the large dot is the median with its 95 % interval. The slowest twentieth of the \
                    batches is left out of the picture.</p>\n"
        .to_owned();
    for group in groups(result) {
        let _ = writeln!(text, "<h3>{}</h3>\n<div class=\"list\">", escape(group));
        for row in result.rows.iter().filter(|row| row.group() == group) {
            text.push_str(&row_strip(row));
        }
        text.push_str("</div>\n");
    }
    text + "</section>\n"
}

fn row_strip(row: &Row) -> String {
    let mut batches: Vec<f64> = row.samples_ns.iter().flatten().copied().collect();
    batches.sort_by(f64::total_cmp);
    batches.truncate(batches.len() * 19 / 20 + 1);
    let scale = Scale::linear(batches.iter().copied().chain(row.processes_ns.iter().copied()));
    let mut random = Random::named(&row.row);
    let cloud = batches.iter().map(|batch| (*batch, random.below(1000) as f64 / 1000.0));
    let mut strip = Strip::new(scale).cloud(cloud, "batch");
    for process in &row.processes_ns {
        strip = strip.stroke(*process, "process", &units::time(*process));
    }
    let interval = Interval { estimate: row.median_ns, low: row.interval_ns[0], high: row.interval_ns[1] };
    strip = strip.interval(interval, "", &units::time(row.median_ns));
    let short = row.row.split_once('/').map_or(row.row.as_str(), |(_, rest)| rest);
    format!(
        "<div class=\"row\"><span class=\"name\">{}</span>{}<span class=\"value\">{} <small>{} – {} · ± {}</small></span></div>\n",
        breakable(short),
        strip.svg(),
        units::time(row.median_ns),
        units::time(row.interval_ns[0]),
        units::time(row.interval_ns[1]),
        units::percent(row.spread),
    )
}

pub(super) fn counters(result: &RunResult) -> String {
    let mut lines = String::new();
    for row in &result.rows {
        let Some(counters) = &row.counters else { continue };
        let bytes = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), units::bytes);
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.0}"));
        let per_second: Vec<String> = counters
            .units
            .iter()
            .map(|(unit, count)| format!("{} {}/s", units::digits(count / row.median_ns * 1e9), escape(unit)))
            .collect();
        let _ = writeln!(
            lines,
            "<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            name(&row.row),
            bytes(counters.bytes),
            counters
                .flops
                .map_or_else(|| "–".to_owned(), |flops| units::rate(flops, "FLOP").replace("/s", "")),
            number(counters.allocations),
            bytes(counters.peak_bytes),
            number(counters.launches),
            per_second.join(", "),
        );
    }
    if lines.is_empty() {
        return String::new();
    }
    format!(
        "<section>\n<h2>What one iteration costs besides time</h2>\n<div class=\"scroll\"><table class=\"numbers\">\n<tr><th>row</th>\
         <td>moves</td><td>computes</td><td>allocations</td><td>heap, most</td><td>launches</td><td>yields</td></tr>\n{lines}</table></div>\n</section>\n"
    )
}
