//! Filters and tests whose results differ from Jinja2's, in Jinja2's way; and `tojson` in transformers' way.

#![expect(clippy::needless_pass_by_value, reason = "minijinja hands arguments to filters by value")]

use std::fmt::Write;

use minijinja::{
    Environment, Error, Value,
    value::{Kwargs, Rest, ValueKind},
};

use super::{
    budget::{TOO_MUCH, is_beyond, spend},
    invalid,
    methods::Arguments,
    string_methods::{capitalize, lines, trimmed},
    values::{float_text, is_float, pairs, to_text},
};

/// How deep lists and dictionaries may be nested in JSON.
const MAX_DEPTH: usize = 200;

/// Puts them in place of minijinja's.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| to_text(value));
    environment.add_filter("trim", trim);
    environment.add_filter("capitalize", |value: &Value| capitalize(&to_text(value)));
    environment.add_filter("join", join);
    environment.add_filter("replace", replace);
    environment.add_filter("indent", indent);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("wordcount", |value: &Value| to_text(value).split_whitespace().count());
    environment.add_test("sequence", |value: &Value| sized(value));
    environment.add_test("iterable", |value: &Value| sized(value) || value.kind() == ValueKind::Iterable);
    environment.add_test("callable", callable);
}

/// The arguments of `tojson`, which are those of Python's `json.dumps`.
struct JsonStyle {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

fn to_json(value: &Value, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Arguments::new(&args, named);
    let given = |position: usize, name: &str| {
        args.optional(position, name).map(|value| value.filter(|value| !value.is_none()))
    };
    let ensure_ascii = given(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = given(1, "indent")?.map(|value| indentation(&value)).transpose()?;
    let (item_separator, key_separator) = match given(2, "separators")? {
        Some(pair) => (to_text(&pair.get_item_by_index(0)?), to_text(&pair.get_item_by_index(1)?)),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let sort_keys = given(3, "sort_keys")?.is_some_and(|value| value.is_true());
    args.at_most(4)?;
    let style = JsonStyle { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    let mut out = String::new();
    write_json(value, &style, 0, &mut out)?;
    spend(out.len())?;
    Ok(out)
}

/// An indent as a number of spaces or as the text itself.
fn indentation(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let spaces = value.as_i64().or(value.is_true().then_some(1)).unwrap_or(0);
    if spaces > 1000 {
        return Err(invalid("an indent above 1000 spaces"));
    }
    Ok(" ".repeat(usize::try_from(spaces).unwrap_or(0)))
}

fn write_json(value: &Value, style: &JsonStyle, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("tojson: lists and dictionaries are nested too deep"));
    }
    if is_beyond(out) {
        return Err(invalid(TOO_MUCH));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&json_number(value)),
        ValueKind::String => write_json_string(value.as_str().unwrap_or_default(), style.ensure_ascii, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_container(('[', ']'), &items, style, depth, out, |item, out| {
                write_json(item, style, depth + 1, out)
            })?;
        }
        ValueKind::Map => {
            let mut entries = Vec::new();
            for (key, item) in pairs(value) {
                entries.push((json_key(&key)?, item));
            }
            if style.sort_keys {
                entries.sort_by(|left, right| left.0.cmp(&right.0));
            }
            write_container(('{', '}'), &entries, style, depth, out, |(key, item), out| {
                write_json_string(key, style.ensure_ascii, out);
                out.push_str(&style.key_separator);
                write_json(item, style, depth + 1, out)
            })?;
        }
        kind => return Err(invalid(format!("tojson: a value of kind {kind} cannot be written as JSON"))),
    }
    Ok(())
}

fn write_container<T>(
    (open, close): (char, char),
    items: &[T],
    style: &JsonStyle,
    depth: usize,
    out: &mut String,
    mut write: impl FnMut(&T, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    out.push(open);
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(&style.item_separator);
        }
        line(depth + 1, out);
        write(item, out)?;
    }
    if !items.is_empty() {
        line(depth, out);
    }
    out.push(close);
    Ok(())
}

fn json_number(value: &Value) -> String {
    if !is_float(value) {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(number) if number.is_finite() => float_text(number),
        Ok(number) if number > 0.0 => "Infinity".to_owned(),
        Ok(number) if number < 0.0 => "-Infinity".to_owned(),
        _ => "NaN".to_owned(),
    }
}

fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(json_number(key)),
        kind => Err(invalid(format!("tojson: a key of kind {kind} cannot be written as JSON"))),
    }
}

fn write_json_string(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\0'..='\x1f' => write_unicode_escapes(character, out),
            _ if ensure_ascii && !(' '..='~').contains(&character) => write_unicode_escapes(character, out),
            _ => out.push(character),
        }
    }
    out.push('"');
}

fn write_unicode_escapes(character: char, out: &mut String) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        let _ = write!(out, "\\u{unit:04x}");
    }
}

fn trim(value: &Value, chars: Option<Value>, named: Kwargs) -> Result<String, Error> {
    let chars = chars.or(named.get::<Option<Value>>("chars")?).filter(|chars| !chars.is_none());
    named.assert_all_used()?;
    Ok(trimmed(&to_text(value), chars.as_ref().and_then(Value::as_str), true, true).to_owned())
}

fn join(
    value: &Value,
    separator: Option<Value>,
    attribute: Option<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let separator =
        separator.or(named.get::<Option<Value>>("d")?).map_or_else(String::new, |text| to_text(&text));
    let attribute = attribute.or(named.get::<Option<Value>>("attribute")?).filter(|name| !name.is_none());
    named.assert_all_used()?;
    let mut pieces = Vec::new();
    for item in value.try_iter()? {
        let mut item = item;
        if let Some(path) = &attribute {
            for name in to_text(path).split('.') {
                item = item.get_attr(name)?;
            }
        }
        let piece = to_text(&item);
        spend(piece.len() + separator.len())?;
        pieces.push(piece);
    }
    Ok(pieces.join(&separator))
}

fn replace(
    value: &Value,
    old: &Value,
    new: &Value,
    count: Option<i64>,
    named: Kwargs,
) -> Result<String, Error> {
    let count = count.or(named.get::<Option<i64>>("count")?).unwrap_or(-1);
    named.assert_all_used()?;
    let (text, old, new) = (to_text(value), to_text(old), to_text(new));
    spend(text.len() + text.matches(&*old).count().saturating_mul(new.len()))?;
    Ok(match usize::try_from(count) {
        Ok(count) => text.replacen(&old, &new, count),
        Err(_) => text.replace(&old, &new),
    })
}

fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let width = width.or(named.get::<Option<Value>>("width")?);
    let indent = width.map_or_else(|| Ok("    ".to_owned()), |width| indentation(&width))?;
    let first = first.or(named.get::<Option<bool>>("first")?).unwrap_or(false);
    let blank = blank.or(named.get::<Option<bool>>("blank")?).unwrap_or(false);
    named.assert_all_used()?;
    // Jinja2 adds a line end before splitting, which keeps the text's own last one.
    let text = to_text(value) + "\n";
    let mut out = String::new();
    for (index, (line, _)) in lines(&text).into_iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        if if index == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&indent);
        }
        out.push_str(line);
        spend(indent.len() + line.len())?;
    }
    Ok(out)
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| invalid(format!("a value of kind {} has no length", value.kind())))
}

fn default(
    value: &Value,
    other: Option<Value>,
    boolean: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let other = other.or(named.get::<Option<Value>>("default_value")?).unwrap_or_else(|| Value::from(""));
    let boolean = boolean.or(named.get::<Option<Value>>("boolean")?).is_some_and(|flag| flag.is_true());
    named.assert_all_used()?;
    Ok(if value.is_undefined() || (boolean && !value.is_true()) { other } else { value.clone() })
}

fn int(value: &Value, default: Option<Value>, base: Option<u32>, named: Kwargs) -> Result<Value, Error> {
    let default = default.or(named.get::<Option<Value>>("default")?).unwrap_or_else(|| Value::from(0));
    let base = base.or(named.get::<Option<u32>>("base")?).unwrap_or(10);
    named.assert_all_used()?;
    if !(2..=36).contains(&base) {
        return Err(invalid("int: the base must be from 2 to 36"));
    }
    if value.is_integer() {
        return Ok(value.clone());
    }
    let number = match value.as_str() {
        Some(text) => {
            let text = text.trim().replace('_', "");
            match i128::from_str_radix(&text, base) {
                Ok(number) => return Ok(Value::from(number)),
                Err(_) => text.parse::<f64>().ok(),
            }
        }
        None if value.kind() == ValueKind::Bool => return Ok(Value::from(i64::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    // Whole numbers beyond i128 are of no use in a template.
    Ok(number.filter(|number| number.abs() < 1e30).map_or(default, |number| Value::from(number as i128)))
}

fn float(value: &Value, default: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let default = default.or(named.get::<Option<Value>>("default")?).unwrap_or_else(|| Value::from(0.0));
    named.assert_all_used()?;
    let number = match value.as_str() {
        Some(text) => text.trim().parse::<f64>().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(number.map_or(default, Value::from))
}

/// Has a length and can be iterated: for Jinja2 that makes a sequence, and strings and dictionaries are some.
fn sized(value: &Value) -> bool {
    match value.kind() {
        ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined => true,
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    }
}

/// Minijinja does not say whether an object can be called; functions and macros are its plain objects.
fn callable(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Plain)
}
