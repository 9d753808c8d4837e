//! `report.html`: one file that needs nothing else, runs nothing, and follows the reader's light or dark setting.

use std::fmt::Write as _;

mod plot;
mod sections;

use super::{detector::Verdict, result::RunResult, statistics::median, units};

const STYLE: &str = include_str!("page.css");

pub(crate) fn page(result: &RunResult) -> String {
    let body = [
        header(result),
        figures(result),
        sections::comparison(result),
        sections::peers(result),
        sections::published(result),
        sections::roofline(result),
        sections::rows(result),
        sections::counters(result),
        environment(result),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>metal-candle · benches · {started}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}\
         <footer>Made by <code>cargo xtask bench</code> from result.json, schema {schema}.</footer>\n</body>\n</html>\n",
        started = escape(&result.started),
        body = body.concat(),
        schema = result.schema,
    )
}

/// Text as HTML shows it, within an attribute too.
fn escape(text: &str) -> String {
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

fn header(result: &RunResult) -> String {
    let environment = &result.environment;
    let place = environment.gpu.as_ref().filter(|_| result.device != "cpu").unwrap_or(&environment.cpu);
    let commit = environment.commit.as_deref().unwrap_or("unknown commit");
    let dirty = if environment.dirty { ", changed" } else { "" };
    format!(
        "<header>\n<h1>{place}</h1>\n<p class=\"soft\">{started} · commit {commit}{dirty} · {device} · {repeat} processes of \
         each group{quick}</p>\n<p class=\"state{class}\">{verdict}</p>\n</header>\n",
        place = escape(place),
        started = escape(&result.started.replace('T', " ").replace('Z', " UTC")),
        commit = escape(commit),
        device = escape(&result.device),
        repeat = result.repeat,
        quick = if result.quick { ", quick" } else { "" },
        class = if result.regressions().next().is_some() { " bad" } else { "" },
        verdict = verdict(result),
    )
}

fn verdict(result: &RunResult) -> String {
    let Some(comparison) = &result.comparison else {
        return "Measured, compared with no baseline".to_owned();
    };
    let slower: Vec<String> = result.regressions().map(|row| escape(&row.row)).collect();
    let name = escape(&comparison.baseline);
    let undecided = comparison.rows.iter().filter(|row| row.verdict == Verdict::Undecided).count();
    let undecided = if undecided > 0 { format!(", {undecided} undecided") } else { String::new() };
    match slower.len() {
        0 => format!("No regression against {name}{undecided}"),
        1 => format!("Slower than {name}: {}{undecided}", slower[0]),
        count => format!("{count} rows slower than {name}: {}{undecided}", slower.join(", ")),
    }
}

fn figures(result: &RunResult) -> String {
    let mut cards: Vec<(&str, String, String)> = Vec::new();
    let spreads: Vec<f64> = result.rows.iter().map(|row| row.spread).collect();
    cards.push(("rows", result.rows.len().to_string(), format!("{} groups", groups(result).len())));
    let beaten = result.rows.iter().filter_map(super::result::Row::times_published);
    let beaten: Vec<f64> = beaten.collect();
    if !beaten.is_empty() {
        let won = beaten.iter().filter(|times| **times > 1.0).count();
        cards.push((
            "published figures beaten",
            format!("{won} of {}", beaten.len()),
            "of another machine".to_owned(),
        ));
    }
    if let Some(peers) = &result.peers {
        let below = peers.rounds.iter().filter(|rounds| rounds.is_below()).count();
        let bars = peers.rounds.iter().filter(|rounds| rounds.bar.is_some()).count();
        cards.push(("bars against peers reached", format!("{} of {bars}", bars - below), String::new()));
    }
    cards.push((
        "spread between processes",
        units::percent(median(&spreads)),
        "the median row's standard deviation".to_owned(),
    ));
    if let Some(limits) = &result.limits {
        let memory = units::rate(limits.main_memory(), "B");
        cards.push(("this machine's limits", memory, format!("from memory; {}", limits.arithmetic())));
    }
    let load = |load: Option<f64>| load.map_or_else(|| "–".to_owned(), |load| format!("{load:.1}"));
    let loads = format!("{} → {}", load(result.load_before), load(result.load_after));
    cards.push(("load average", loads, format!("{} cores", result.environment.cores)));
    let mut text = "<dl class=\"figures\">\n".to_owned();
    for (name, value, note) in cards {
        let _ = writeln!(text, "<div><dt>{name}</dt><dd>{value}<small>{}</small></dd></div>", escape(&note));
    }
    text + "</dl>\n"
}

/// Names of groups in the order of their first rows.
fn groups(result: &RunResult) -> Vec<&str> {
    let mut groups: Vec<&str> = Vec::new();
    for row in &result.rows {
        if !groups.contains(&row.group()) {
            groups.push(row.group());
        }
    }
    groups
}

fn environment(result: &RunResult) -> String {
    let environment = &result.environment;
    let caches: Vec<String> =
        environment.caches.iter().map(|(name, size)| format!("{name} {size}")).collect();
    let variables: Vec<String> =
        environment.variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let optional = |text: &Option<String>| text.clone().unwrap_or_default();
    let lines = [
        (
            "processor",
            format!("{}, {} cores, {}", environment.cpu, environment.cores, environment.architecture),
        ),
        ("instruction sets", environment.simd.join(", ")),
        ("caches", caches.join(", ")),
        ("memory", environment.memory_bytes.map(|bytes| units::bytes(bytes as f64)).unwrap_or_default()),
        ("GPU", optional(&environment.gpu)),
        ("GPU driver", optional(&environment.gpu_driver)),
        ("system", environment.system.clone()),
        ("kernel", optional(&environment.kernel)),
        ("governor", optional(&environment.governor)),
        (
            "frequency",
            environment.frequency_mhz.map(|frequency| format!("{frequency:.0} MHz")).unwrap_or_default(),
        ),
        ("compiler", optional(&environment.rustc)),
        ("features", environment.features.join(", ")),
        ("variables", variables.join(", ")),
        ("priority", if result.realtime { "real time" } else { "normal" }.to_owned()),
        ("finished", result.finished.clone()),
    ];
    let mut text = "<section>\n<h2>Where this was measured</h2>\n<table class=\"plain\">\n".to_owned();
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(text, "<tr><th>{name}</th><td>{}</td></tr>", escape(value));
    }
    text + "</table>\n</section>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::result::Row;

    #[test]
    fn names_cannot_break_out_of_the_page_and_nothing_is_not_a_number() {
        let mut result =
            RunResult { rows: vec![Row::new("a/<b>&\"", "micro", vec![vec![1.0]])], ..RunResult::default() };
        result.environment.cpu = "<script>".to_owned();
        let page = page(&result);
        assert!(page.contains("&lt;b&gt;&amp;&quot;") && !page.contains("<script>") && !page.contains("<b>"));
        assert!(!page.contains("NaN") && !page.contains("inf%"), "{page}");
    }
}
