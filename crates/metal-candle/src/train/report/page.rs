//! The page: one HTML file that needs nothing else, runs nothing, and follows the reader's light or dark setting.

use std::fmt::Write as _;

use chrono::DateTime;
use serde_json::Value;

use super::{
    History, NextCommand, chart,
    history::Comparison,
    plot::Plot,
    series::{bucket_means, quantiles},
};
use crate::train::events::{Sample, Started, Step, Stopped};

const STYLE: &str = include_str!("page.css");
/// Writing to a string cannot fail.
const IN_MEMORY: &str = "a string grows as needed";

pub(super) fn render(history: &History, next: &[NextCommand]) -> String {
    let started = history.started.clone().unwrap_or_default();
    let title = if started.model.is_empty() { "Training run" } else { &started.model };
    let parts = [
        header(history, &started, title),
        figures(history),
        charts(history),
        samples(history),
        format!("<div class=\"columns\">\n{}{}</div>\n", data(&started), run(history, &started)),
        settings(&started),
        notices(history),
        commands(next),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title} · training</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}\
         <footer>Made by metal-candle {version} from metrics.jsonl.</footer>\n</body>\n</html>\n",
        title = escape(title),
        body = parts.concat(),
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// Text as HTML shows it, within an attribute too.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

fn header(history: &History, started: &Started, title: &str) -> String {
    let made = history.steps.last().map_or(0, |step| step.step);
    let (class, state) = match history.finished.as_ref().map(|finished| finished.stopped) {
        Some(Stopped::Complete) => ("", "Complete".to_owned()),
        Some(Stopped::EarlyStopping) => {
            ("", format!("Stopped early, after {} steps: the validation loss no longer fell", grouped(made)))
        }
        Some(Stopped::Interrupted) => (" partial", format!("Interrupted after {} steps", grouped(made))),
        Some(Stopped::NotFinite) => {
            (" bad", format!("Stopped after {} steps: loss or gradients were not finite", grouped(made)))
        }
        None if made == 0 => (" partial", "No step made yet".to_owned()),
        None => {
            (" partial", format!("Not finished: {} of {} steps", grouped(made), grouped(started.total_steps)))
        }
    };
    let mut about: Vec<String> = Vec::new();
    for part in [&started.method, &started.device, &started.dtype] {
        if !part.is_empty() {
            about.push(escape(part));
        }
    }
    format!(
        "<header>\n<h1>{}</h1>\n<p><span class=\"state{class}\">{state}</span>{}{}</p>\n</header>\n",
        escape(title),
        if about.is_empty() { "" } else { " <span class=\"soft\">· " },
        if about.is_empty() { String::new() } else { format!("{}</span>", about.join(" · ")) },
    )
}

/// The numbers that a reader looks for first.
fn figures(history: &History) -> String {
    if history.steps.is_empty() {
        return String::new();
    }
    let mut list = String::from("<dl class=\"figures\">\n");
    let mut add = |name: &str, value: &str, detail: &str| {
        write!(
            list,
            "<div><dt>{}</dt><dd>{}<small>{}</small></dd></div>\n",
            escape(name),
            escape(value),
            escape(detail)
        )
        .expect(IN_MEMORY);
    };
    if let Some(best) = history.best() {
        let detail = format!("perplexity {}, step {}", significant(best.perplexity), grouped(best.step));
        add("Best validation loss", &number(best.loss, 3), &detail);
    }
    if let Some(test) = &history.test {
        add(
            "Test loss",
            &format!("{:.3}", test.loss),
            &format!("perplexity {}", significant(test.perplexity)),
        );
    }
    // A twentieth of the run says more than its last step.
    let means = bucket_means(&history.losses(), 20);
    let (first, last) = (means[0], means[means.len() - 1]);
    let from = if means.len() > 1 { format!("from {first:.3}") } else { String::new() };
    add("Training loss", &number(last, 3), &from);
    let step = &history.steps[history.steps.len() - 1];
    add("Steps", &grouped(step.step), &format!("{:.1} epochs", step.epoch));
    let sum = |value: fn(&Step) -> u64| history.steps.iter().map(value).sum::<u64>();
    let targets = format!("{} count in the loss", shortened(sum(|step| step.targets)));
    add("Tokens", &shortened(sum(|step| step.tokens)), &targets);
    let rates: Vec<f64> = history.steps.iter().map(|step| step.tokens_per_second).collect();
    if let Some([median]) = quantiles(&rates, [0.5]) {
        add("Throughput", &grouped(median.round() as u64), "tokens/s, median");
    }
    let memory = history.steps.iter().map(|step| step.memory_bytes).max().filter(|&bytes| bytes > 0);
    if let Some(bytes) = memory {
        add("Peak memory", &human_bytes(bytes), "");
    }
    let seconds: f64 = history.steps.iter().map(|step| step.seconds).filter(|time| time.is_finite()).sum();
    add("Training time", &duration(seconds), "without evaluations");
    list += "</dl>\n";
    list
}

fn charts(history: &History) -> String {
    if history.steps.is_empty() {
        return "<p class=\"soft\">There is nothing to draw yet.</p>\n".to_owned();
    }
    let mut html = chart::render(&Plot::loss(history), true);
    html += "<div class=\"charts\">\n";
    let small = [Plot::learning_rate(history), Plot::gradient_norm(history), Plot::throughput(history)];
    for plot in small.iter().chain(&Plot::memory(history)) {
        html += &chart::render(plot, false);
    }
    html += "</div>\n";
    if !history.evaluations.is_empty() {
        html += "<details class=\"block\"><summary>Evaluations as numbers</summary>\n<div class=\"scroll\"><table class=\"numbers\">\n\
                 <tr><th>step</th><th>loss</th><th>perplexity</th><th></th></tr>\n";
        let best = history.best().map(|best| best.step);
        for evaluation in &history.evaluations {
            let mark = if Some(evaluation.step) == best { "best" } else { "" };
            write!(
                html,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{mark}</td></tr>\n",
                grouped(evaluation.step),
                number(evaluation.loss, 4),
                significant(evaluation.perplexity)
            )
            .expect(IN_MEMORY);
        }
        html += "</table></div></details>\n";
    }
    html
}

fn samples(history: &History) -> String {
    let comparisons = history.comparisons();
    if comparisons.is_empty() {
        return String::new();
    }
    let mut html = String::from("<h2>Before and after</h2>\n");
    for comparison in &comparisons {
        html += &sample(comparison);
    }
    html
}

fn sample(comparison: &Comparison<'_>) -> String {
    let said = |class: &str, heading: &str, sample: Option<&&Sample>| {
        let text = match sample {
            None => "<div class=\"soft\">no sample yet</div>".to_owned(),
            Some(sample) if sample.text.is_empty() => "<div class=\"soft\">said nothing</div>".to_owned(),
            Some(sample) => format!("<div class=\"text\">{}</div>", escape(&sample.text)),
        };
        format!("<div class=\"{class}\"><h3>{}</h3>{text}</div>\n", escape(heading))
    };
    let after = comparison.trained.last();
    let heading = after.map_or("After".to_owned(), |sample| format!("After {} steps", grouped(sample.step)));
    let mut html = format!(
        "<div class=\"sample\">\n<div class=\"prompt text\">{}</div>\n<div class=\"pair\">\n{}{}</div>\n",
        escape(comparison.prompt),
        said("before", "Before", comparison.before.as_ref()),
        said("after", &heading, after)
    );
    let earlier = &comparison.trained[..comparison.trained.len().saturating_sub(1)];
    if !earlier.is_empty() {
        write!(html, "<details><summary>On the way ({})</summary>\n", earlier.len()).expect(IN_MEMORY);
        for sample in earlier {
            html += &said("way", &format!("After {} steps", grouped(sample.step)), Some(sample));
        }
        html += "</details>\n";
    }
    html += "</div>\n";
    html
}

fn data(started: &Started) -> String {
    let rows = flatten(&started.data);
    if rows.is_empty() {
        String::new()
    } else {
        format!("<section><h2>Data</h2>\n{}</section>\n", table(&rows))
    }
}

fn run(history: &History, started: &Started) -> String {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push((name.to_owned(), value));
        }
    };
    add("model", started.model.clone());
    add("method", started.method.clone());
    if started.parameters > 0 {
        let percent = 100.0 * started.trainable as f64 / started.parameters as f64;
        let trained = shortened(started.trainable);
        add("trained parameters", format!("{trained} of {} ({percent:.2} %)", shortened(started.parameters)));
    }
    add("device", started.device.clone());
    add("weights", started.dtype.clone());
    let time =
        DateTime::from_timestamp(started.unix_seconds as i64, 0).filter(|_| started.unix_seconds > 0.0);
    let began = if history.resumed.is_empty() { "began" } else { "last went on" };
    add(began, time.map_or(String::new(), |time| time.format("%-d %B %Y, %H:%M UTC").to_string()));
    let resumed: Vec<String> = history.resumed.iter().map(|&step| grouped(step)).collect();
    add("went on after step", resumed.join(", "));
    let clipped = history.steps.iter().filter(|step| step.clipped).count();
    if clipped > 0 {
        add("steps with clipped gradients", grouped(clipped as u64));
    }
    add("last checkpoint", history.checkpoints.last().map_or(String::new(), |last| last.path.clone()));
    if rows.is_empty() {
        String::new()
    } else {
        format!("<section><h2>Run</h2>\n{}</section>\n", table(&rows))
    }
}

fn settings(started: &Started) -> String {
    let rows = flatten(&started.config);
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<details class=\"block\"><summary>All settings ({})</summary>\n{}</details>\n",
        rows.len(),
        table(&rows)
    )
}

fn notices(history: &History) -> String {
    if history.notices.is_empty() {
        return String::new();
    }
    let mut html = String::from("<h2>Notices</h2>\n<ul class=\"notices\">\n");
    for notice in &history.notices {
        let step = grouped(notice.step);
        write!(html, "<li>{} <small>step {step}</small></li>\n", escape(&notice.text)).expect(IN_MEMORY);
    }
    html += "</ul>\n";
    html
}

fn commands(next: &[NextCommand]) -> String {
    if next.is_empty() {
        return String::new();
    }
    let mut html = String::from("<h2>Next</h2>\n<dl class=\"next\">\n");
    for NextCommand { purpose, command } in next {
        write!(html, "<dt>{}</dt><dd><pre>{}</pre></dd>\n", escape(purpose), escape(command))
            .expect(IN_MEMORY);
    }
    html += "</dl>\n";
    html
}

fn table(rows: &[(String, String)]) -> String {
    let row = |(name, value): &(String, String)| {
        format!("<tr><th>{}</th><td>{}</td></tr>\n", escape(name), escape(value))
    };
    format!("<div class=\"scroll\"><table>\n{}</table></div>\n", rows.iter().map(row).collect::<String>())
}

/// The leaves of a JSON value, named by their way: `optimizer · weight decay`.
fn flatten(value: &Value) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    flatten_into("", value, &mut rows);
    rows
}

fn flatten_into(name: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), grouped),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Null | Value::Array(_) | Value::Object(_) => value.to_string(),
    };
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let key = key.replace('_', " ");
                let name = if name.is_empty() { key } else { format!("{name} · {key}") };
                flatten_into(&name, value, rows);
            }
        }
        // What is not set says nothing.
        Value::Null => {}
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            rows.push((name.to_owned(), if items.is_empty() { "none".to_owned() } else { items.join(", ") }));
        }
        leaf => rows.push((name.to_owned(), plain(leaf))),
    }
}

/// `12 345`, with narrow spaces; years and the like stay as they are.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    if digits.len() < 5 {
        return digits;
    }
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// `1.23 M`
fn shortened(number: u64) -> String {
    let units = [(1e9, "B"), (1e6, "M"), (1e3, "k")];
    match units
        .into_iter()
        .find(|unit| number as f64 >= 10.0 * unit.0 || (unit.0 > 1e3 && number as f64 >= unit.0))
    {
        Some((size, unit)) => format!("{}\u{202f}{unit}", significant(number as f64 / size)),
        None => grouped(number),
    }
}

/// Three digits that say something.
fn significant(number: f64) -> String {
    match number.abs() {
        value if !value.is_finite() => "not finite".to_owned(),
        1000.0.. => grouped(number.round() as u64),
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

fn number(number: f64, decimals: usize) -> String {
    if number.is_finite() { format!("{number:.decimals$}") } else { "not finite".to_owned() }
}

fn human_bytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    if bytes >= 1e9 { format!("{:.2} GB", bytes / 1e9) } else { format!("{:.0} MB", bytes / 1e6) }
}

/// `1 h 02 min`
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}
