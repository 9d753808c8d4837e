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
        None if started.total_steps == 0 && made > 0 => {
            (" partial", format!("Not finished: {} steps so far", grouped(made)))
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
        writeln!(
            list,
            "<div><dt>{}</dt><dd>{}<small>{}</small></dd></div>",
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
    let from = if means.len() > 1 { format!("from {}", number(first, 3)) } else { String::new() };
    add("Training loss", &number(last, 3), &from);
    let step = &history.steps[history.steps.len() - 1];
    add("Steps", &grouped(step.step), &format!("{} epochs", number(step.epoch, 1)));
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
            writeln!(
                html,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{mark}</td></tr>",
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
        writeln!(html, "<details><summary>On the way ({})</summary>", earlier.len()).expect(IN_MEMORY);
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
        writeln!(html, "<li>{} <small>step {step}</small></li>", escape(&notice.text)).expect(IN_MEMORY);
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
        writeln!(html, "<dt>{}</dt><dd><pre>{}</pre></dd>", escape(purpose), escape(command))
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
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::train::events::{Checkpoint, Evaluation, Finished, Notice, Speaker, TrainEvent};

    const EVIL: &str = "</style><script>'\"&";

    /// A run in which every text that comes from outside is one that would break the page.
    fn evil() -> History {
        let mut history = History::default();
        let text = || EVIL.to_owned();
        history.add(TrainEvent::Started(Started {
            model: text(),
            method: text(),
            device: text(),
            dtype: text(),
            data: json!({ EVIL: EVIL }),
            config: json!({ "list": [EVIL], EVIL: { "inner": EVIL } }),
            ..Started::default()
        }));
        history.add(TrainEvent::Step(Step { step: 1, loss: 1.0, ..Step::default() }));
        for speaker in [Speaker::Base, Speaker::Trained, Speaker::Trained] {
            history.add(TrainEvent::Sample(Sample { step: 1, speaker, prompt: text(), text: text() }));
        }
        history.add(TrainEvent::Notice(Notice { step: 1, text: text() }));
        history.add(TrainEvent::Checkpoint(Checkpoint { step: 1, path: text() }));
        history
    }

    #[test]
    fn nothing_from_outside_becomes_markup() {
        let next = [NextCommand { purpose: EVIL.to_owned(), command: EVIL.to_owned() }];
        let page = render(&evil(), &next);
        assert!(!page.contains("<script"));
        assert_eq!(page.matches("</style>").count(), 1);
        // Title 1, header 4, data 2, table of the run 5, settings 3, samples 4, notice 1, next 2.
        assert_eq!(page.matches("&lt;/style&gt;&lt;script&gt;&#39;&quot;&amp;").count(), 22);
    }

    #[test]
    fn every_end_of_a_run_is_named() {
        let mut history = History::default();
        assert!(render(&history, &[]).contains("No step made yet"));
        history.add(TrainEvent::Started(Started { total_steps: 20_000, ..Started::default() }));
        history.add(TrainEvent::Step(Step { step: 12_345, loss: f64::NAN, ..Step::default() }));
        assert!(render(&history, &[]).contains("Not finished: 12\u{202f}345 of 20\u{202f}000 steps"));
        for (stopped, words) in [
            (Stopped::Complete, "Complete"),
            (Stopped::EarlyStopping, "the validation loss no longer fell"),
            (Stopped::Interrupted, "Interrupted after 12\u{202f}345 steps"),
            (Stopped::NotFinite, "loss or gradients were not finite"),
        ] {
            history.add(TrainEvent::Finished(Finished { stopped, ..Finished::default() }));
            assert!(render(&history, &[]).contains(words), "{words}");
        }
    }

    #[test]
    fn no_number_that_is_not_finite_reaches_the_page() {
        let mut history = History::default();
        let nan = f64::NAN;
        for step in 1..40 {
            let (loss, learning_rate, gradient_norm) = (nan, nan, f64::INFINITY);
            let (seconds, tokens_per_second, epoch) = (nan, nan, nan);
            history.add(TrainEvent::Step(Step {
                step,
                loss,
                learning_rate,
                gradient_norm,
                seconds,
                tokens_per_second,
                epoch,
                ..Step::default()
            }));
        }
        let evaluation = Evaluation { loss: nan, perplexity: f64::INFINITY, ..Evaluation::default() };
        history.add(TrainEvent::Evaluation(evaluation));
        let page = render(&history, &[]);
        let body = page.split_once("<body>").unwrap().1;
        assert!(!body.contains("NaN") && !body.contains("inf"), "{body}");
        assert!(body.contains("39 not finite"));
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            [4812, 59_113, 1_193_204].map(grouped),
            ["4812", "59\u{202f}113", "1\u{202f}193\u{202f}204"]
        );
        let short = [9999, 10_000, 540_672, 494_032_768, 7_600_000_000].map(shortened);
        assert_eq!(short, ["9999", "10.0\u{202f}k", "541\u{202f}k", "494\u{202f}M", "7.60\u{202f}B"]);
        assert_eq!([9.04, 75.0, 3720.0].map(duration), ["9.0 s", "1 min 15 s", "1 h 02 min"]);
        assert_eq!(
            flatten(&json!({ "a_b": { "c": 12345, "d": null }, "e": [true, "x"], "f": [] })),
            [("a b · c", "12\u{202f}345"), ("e", "yes, x"), ("f", "none")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }
}
