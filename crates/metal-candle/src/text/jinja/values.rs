//! Values as Python sees and prints them.

use std::{collections::HashMap, fmt, fmt::Write, sync::Arc};

use minijinja::{
    Error, Output, State, Value,
    value::{Enumerator, Object, ObjectRepr, ValueKind},
};

use super::budget::{is_beyond, spend};

/// How deep lists and dictionaries may be nested when they are printed.
const MAX_DEPTH: usize = 200;

/// A dictionary from outside: keeps its order and prints itself as Python does.
pub(super) struct Dict {
    pairs: Vec<(Value, Value)>,
    index: HashMap<String, usize>,
}

/// A list from outside.
pub(super) struct List(Vec<Value>);

/// A JSON value as a template sees it.
pub(in crate::text) fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(value), _, _) => Value::from(value),
            (_, Some(value), _) => Value::from(value),
            (_, _, value) => Value::from(value.unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(value) => Value::from(value.as_str()),
        serde_json::Value::Array(items) => Value::from_object(List(items.iter().map(from_json).collect())),
        serde_json::Value::Object(map) => {
            Value::from_object(Dict::new(map.iter().map(|(key, value)| (key.clone(), from_json(value)))))
        }
    }
}

impl Dict {
    fn new(entries: impl Iterator<Item = (String, Value)>) -> Self {
        let mut pairs = Vec::new();
        let mut index = HashMap::new();
        for (key, value) in entries {
            index.insert(key.clone(), pairs.len());
            pairs.push((Value::from(key), value));
        }
        Self { pairs, index }
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<Value> {
        self.index.get(key).map(|at| self.pairs[*at].1.clone())
    }
}

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.get(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::RevKeyValueIter(Box::new(self.pairs.clone().into_iter()))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.pairs.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_repr(&Value::from_dyn_object(self.clone())))
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_repr(&Value::from_dyn_object(self.clone())))
    }
}

impl fmt::Debug for Dict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.pairs.iter().map(|(key, value)| (key, value))).finish()
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

/// Prints the value of `{{ }}`.
pub(super) fn format(output: &mut Output, _state: &mut State, value: &Value) -> Result<(), Error> {
    let mut print = |text: &str| {
        spend(text.len())?;
        Ok(output.write_str(text)?)
    };
    match value.as_str() {
        Some(text) => print(text),
        None => print(&to_text(value)),
    }
}

/// Python's `str(value)`; nothing for an undefined value.
pub(super) fn to_text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => to_repr(value),
    }
}

/// Python's `repr(value)`.
pub(super) fn to_repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(value, &mut out, 0);
    out
}

fn write_repr(value: &Value, out: &mut String, depth: usize) {
    if depth > MAX_DEPTH {
        out.push_str("...");
        return;
    }
    // A list that holds itself twice, forty times over, is small only until it is printed.
    if is_beyond(out) {
        return;
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number if is_float(value) => {
            out.push_str(&float_text(f64::try_from(value.clone()).unwrap_or(f64::NAN)));
        }
        ValueKind::String => write_quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                if count > 0 {
                    out.push_str(", ");
                }
                write_repr(&item, out, depth + 1);
                count += 1;
            }
            if tuple && count == 1 {
                out.push(',');
            }
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            for (index, (key, item)) in pairs(value).into_iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_repr(&key, out, depth + 1);
                out.push_str(": ");
                write_repr(&item, out, depth + 1);
            }
            out.push('}');
        }
        // None, True, False and whole numbers print as Python's already.
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

/// The entries of a dictionary, in order.
pub(super) fn pairs(value: &Value) -> Vec<(Value, Value)> {
    value.as_object().and_then(|object| object.try_iter_pairs().map(Iterator::collect)).unwrap_or_default()
}

pub(super) fn is_float(value: &Value) -> bool {
    value.kind() == ValueKind::Number && !value.is_integer()
}

/// Quotes a string as `repr` does: with `'`, unless only `"` avoids an escape.
fn write_quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => out.extend(['\\', quote]),
            _ if is_printable(character) => out.push(character),
            _ => {
                let code = u32::from(character);
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable` for what texts contain: no controls, no spaces but the plain one, no format characters,
/// no private use. Unassigned code points, which depend on Python's version, count as printable.
fn is_printable(character: char) -> bool {
    let code = u32::from(character);
    let format_character = matches!(
        code,
        0xad | 0x600..=0x605
            | 0x61c
            | 0x6dd
            | 0x70f
            | 0x890..=0x891
            | 0x8e2
            | 0x180e
            | 0x200b..=0x200f
            | 0x2028..=0x202e
            | 0x2060..=0x206f
            | 0xfeff
            | 0xfff9..=0xfffb
            | 0x110bd
            | 0x110cd
            | 0x13430..=0x1343f
            | 0x1bca0..=0x1bca3
            | 0x1d173..=0x1d17a
            | 0xe0001
            | 0xe0020..=0xe007f
    );
    let private = matches!(code, 0xe000..=0xf8ff | 0xf0000..=0x10ffff);
    let noncharacter = (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe;
    character == ' '
        || !(character.is_control()
            || character.is_whitespace()
            || format_character
            || private
            || noncharacter)
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent outside 1e-4..1e16.
pub(super) fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if value == 0.0 || (1e-4..1e16).contains(&value.abs()) {
        return format!("{value:?}");
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the `e` format writes an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a small number");
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_python_prints_them() {
        for (value, expected) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (0.0001, "0.0001"),
            (123456789.125, "123456789.125"),
            (1e300, "1e+300"),
        ] {
            assert_eq!(float_text(value), expected);
        }
    }

    #[test]
    fn containers_print_as_python_prints_them() {
        let value = from_json(&serde_json::json!({
            "a": [1, 2.0, null, true, "it's", "\"", "'\"", "\u{1}é\u{200b}\n"], "b": {}
        }));
        assert_eq!(
            value.to_string(),
            r#"{'a': [1, 2.0, None, True, "it's", '"', '\'"', '\x01é\u200b\n'], 'b': {}}"#
        );
    }
}
