//! The file of `train -c`: YAML, read so that a mistake is named with its line.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, anyhow, bail};
use saphyr::{LoadableYamlNode as _, MarkedYaml, Scalar, YamlData};
use serde_json::{Map, Value};

use super::settings::Settings;

/// Reads a file of settings.
pub(crate) fn read(path: &Path) -> Result<Settings> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("cannot use {}", path.display()))
}

fn parse(text: &str) -> Result<Settings> {
    let documents = MarkedYaml::load_from_str(text).map_err(|error| anyhow!("it is no YAML: {error}"))?;
    let root = match documents.as_slice() {
        [] => return Ok(Settings::default()),
        [root] => root,
        _ => bail!("it holds several documents; leave one, without `---` between"),
    };
    if let YamlData::Value(Scalar::Null) = root.data {
        return Ok(Settings::default());
    }
    let YamlData::Mapping(entries) = &root.data else {
        bail!("line {}: expected `key: value`", line(root));
    };
    let known = Settings::known();
    let mut settings = Map::new();
    let mut problems = Vec::new();
    for (key, node) in entries {
        let name = text_of(key);
        match known.get(name.as_str()) {
            None => problems.push(unknown(line(key), "", &name, known.keys())),
            Some(inner) => {
                check_inner(&name, node, inner, &mut problems);
                match value(node).and_then(|value| checked(&name, value).map_err(|error| (line(node), error)))
                {
                    Ok(value) => drop(settings.insert(name, value)),
                    Err((line, error)) => problems.push(format!("line {line}: {name}: {error}")),
                }
            }
        }
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    serde_json::from_value(Value::Object(settings)).context("it is not valid")
}

/// Unknown keys of an object.
fn check_inner(name: &str, node: &MarkedYaml<'_>, known: &[String], problems: &mut Vec<String>) {
    let YamlData::Mapping(entries) = &node.data else { return };
    if known.is_empty() {
        return;
    }
    for (key, _) in entries {
        let inner = text_of(key);
        if !known.contains(&inner) {
            problems.push(unknown(line(key), &format!("{name}."), &inner, known.iter()));
        }
    }
}

/// The value, if it is one for this setting.
fn checked(name: &str, value: Value) -> Result<Value, String> {
    let alone: Map<String, Value> = [(name.to_owned(), value.clone())].into_iter().collect();
    serde_json::from_value::<Settings>(Value::Object(alone)).map_err(|error| error.to_string())?;
    Ok(value)
}

fn unknown<'a>(line: usize, prefix: &str, name: &str, known: impl Iterator<Item = &'a String>) -> String {
    let nearest = known.min_by_key(|candidate| distance(name, candidate));
    let hint = match nearest.filter(|nearest| distance(name, nearest) <= 1 + name.len() / 3) {
        Some(nearest) => format!("did you mean `{prefix}{nearest}`?"),
        None => "`metal-candle train --help` lists the settings".to_owned(),
    };
    format!("line {line}: there is no setting `{prefix}{name}`; {hint}")
}

/// Changes of one character each that make one text of the other (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, one) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (at, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(one != *other);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

fn line(node: &MarkedYaml<'_>) -> usize {
    node.span.start.line()
}

fn text_of(node: &MarkedYaml<'_>) -> String {
    match &node.data {
        YamlData::Value(Scalar::String(text)) => text.to_string(),
        YamlData::Value(Scalar::Integer(number)) => number.to_string(),
        YamlData::Value(Scalar::Boolean(flag)) => flag.to_string(),
        YamlData::Value(Scalar::FloatingPoint(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// The same as JSON, or the line that has no counterpart there.
fn value(node: &MarkedYaml<'_>) -> Result<Value, (usize, String)> {
    Ok(match &node.data {
        YamlData::Value(Scalar::Null) => Value::Null,
        YamlData::Value(Scalar::Boolean(flag)) => Value::from(*flag),
        YamlData::Value(Scalar::Integer(number)) => Value::from(*number),
        YamlData::Value(Scalar::FloatingPoint(number)) => match number.into_inner() {
            finite if finite.is_finite() => Value::from(finite),
            other => return Err((line(node), format!("{other} is no finite number"))),
        },
        YamlData::Value(Scalar::String(text)) => Value::from(text.as_ref()),
        YamlData::Sequence(items) => items.iter().map(value).collect::<Result<_, _>>()?,
        YamlData::Mapping(entries) => {
            let entry = |(key, node): (&MarkedYaml<'_>, &MarkedYaml<'_>)| Ok((text_of(key), value(node)?));
            let entries: BTreeMap<String, Value> = entries.iter().map(entry).collect::<Result<_, _>>()?;
            Value::Object(entries.into_iter().collect())
        }
        _ => return Err((line(node), "tags and the like are not understood".to_owned())),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", parse(text).unwrap_err())
    }

    #[test]
    fn files_of_mlx_lm_are_read() {
        let settings = parse(
            "model: \"org/name\"\ntrain: true\nfine_tune_type: lora\noptimizer: adamw\ndata: /data # here\n\
             seed: 7\nlearning_rate: 1e-5\nresume_adapter_file: null\nlora_parameters:\n  keys: [\"self_attn.q_proj\"]\n\
             \n  rank: 16\n  scale: 2\nlr_schedule:\n  name: cosine_decay\n  warmup: 100\n  arguments: [1e-5, 1000, 1e-7]\n\
             optimizer_config:\n  adamw:\n    betas: [0.9, 0.98]\n    eps: 1e-6\n",
        )
        .unwrap();
        assert_eq!(settings.model.as_deref(), Some("org/name"));
        assert_eq!((settings.learning_rate, settings.seed), (Some(1e-5), Some(7)));
        let lora = settings.lora_parameters.unwrap();
        assert_eq!((lora.rank, lora.scale), (Some(16), Some(2.0)));
        assert_eq!(lora.keys.unwrap(), ["self_attn.q_proj"]);
        let schedule = settings.lr_schedule.unwrap();
        assert_eq!((schedule.warmup, schedule.arguments), (Some(100), vec![1e-5, 1000.0, 1e-7]));
        assert_eq!(settings.optimizer_config.unwrap()["adamw"].eps, Some(1e-6));
        for empty in ["", "# nothing\n", "---\n"] {
            assert_eq!(parse(empty).unwrap(), Settings::default());
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line_and_all_at_once() {
        let text = "model: a\nlearning_rat: 1e-5\niters: many\nlora_parameters:\n  rank: 8\n  scales: 1\nfrobnicate: 1\n";
        let said = error(text);
        for part in [
            "line 2: there is no setting `learning_rat`; did you mean `learning_rate`?",
            "line 3: iters: invalid type: string \"many\"",
            "line 6: there is no setting `lora_parameters.scales`; did you mean `lora_parameters.scale`?",
            "line 7: there is no setting `frobnicate`; `metal-candle train --help` lists",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(error("- a\n- b\n").contains("line 1: expected `key: value`"));
        assert!(error("a: [1\n").contains("it is no YAML"));
        assert!(error("seed: 1\n---\nseed: 2\n").contains("several documents"));
        assert!(error("learning_rate: .nan\n").contains("line 1: learning_rate: NaN is no finite number"));
    }

    #[test]
    fn the_distance_counts_changes() {
        for (left, right, expected) in
            [("", "abc", 3), ("abc", "abc", 0), ("iters", "itres", 2), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(left, right), expected);
        }
    }
}
