//! One line of a data file, in any of its forms.

use std::io::BufRead;

use serde_json::{Map, Value};

use super::DataError;

/// One line of a data file.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// Plain text.
    Text(String),
    /// A text in two parts.
    Completion {
        /// What is given.
        prompt: String,
        /// What is to be said.
        completion: String,
    },
    /// A conversation.
    Messages {
        /// Objects with `role` and `content`.
        messages: Vec<Value>,
        /// Functions that the assistant may call.
        tools: Option<Vec<Value>>,
        /// How many messages from the first on are the prompt, where the line says so. Nothing of them is to be learned.
        prompt: usize,
    },
}

impl Record {
    /// Parses one line; the error says what it should look like.
    pub fn parse(line: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
        let Value::Object(mut object) = value else { return Err("not a JSON object".to_owned()) };
        let has = |key: &str| object.contains_key(key);
        // Half a pair is another column, as the `prompt` beside `messages` of some data sets.
        match (has("text"), has("prompt") && has("completion"), has("messages")) {
            (true, false, false) => Ok(Self::Text(string("text", take(&mut object, "text"))?)),
            (false, true, false) => Self::completion(object),
            (false, false, true) => {
                let messages = messages("messages", take(&mut object, "messages"))?;
                Ok(Self::Messages { messages, tools: tools(&mut object)?, prompt: 0 })
            }
            (false, false, false) => {
                Err("needs either `text`, or `prompt` and `completion`, or `messages`".to_owned())
            }
            _ => Err("has more than one of `text`, `prompt` and `completion`, and `messages`; leave one"
                .to_owned()),
        }
    }

    fn completion(mut object: Map<String, Value>) -> Result<Self, String> {
        match (take(&mut object, "prompt"), take(&mut object, "completion")) {
            (given @ Value::Array(_), said @ Value::Array(_)) => {
                let mut all = messages("prompt", given)?;
                let prompt = all.len();
                all.extend(messages("completion", said)?);
                Ok(Self::Messages { messages: all, tools: tools(&mut object)?, prompt })
            }
            (Value::Array(_), _) | (_, Value::Array(_)) => {
                Err("`prompt` and `completion` must both be text or both lists of messages".to_owned())
            }
            (prompt, completion) => Ok(Self::Completion {
                prompt: string("prompt", prompt)?,
                completion: string("completion", completion)?,
            }),
        }
    }
}

/// The records of a file with their line numbers, one by one; blank lines are passed over.
pub fn records(path: &str, reader: impl BufRead) -> impl Iterator<Item = Result<(u64, Record), DataError>> {
    let path = path.to_owned();
    let lines = (1..).zip(reader.lines()).filter(|(_, line)| !line.as_ref().is_ok_and(|text| is_blank(text)));
    lines.map(move |(line, text)| {
        let text = text.map_err(|source| DataError::Read { path: path.clone(), source })?;
        let record = Record::parse(without_mark(&text));
        Ok((line, record.map_err(|reason| DataError::Line { path: path.clone(), line, reason })?))
    })
}

/// Files that Windows wrote may begin with a byte order mark.
pub(crate) fn without_mark(line: &str) -> &str {
    line.strip_prefix('\u{feff}').unwrap_or(line)
}

/// Nothing but white space, and perhaps a byte order mark.
pub(crate) fn is_blank(line: &str) -> bool {
    without_mark(line).trim().is_empty()
}

fn take(object: &mut Map<String, Value>, key: &str) -> Value {
    object.remove(key).unwrap_or_default()
}

fn tools(object: &mut Map<String, Value>) -> Result<Option<Vec<Value>>, String> {
    match take(object, "tools") {
        Value::Null => Ok(None),
        found => objects("tools", found).map(Some),
    }
}

fn string(key: &str, value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!("`{key}` must be text, found {}", shown(&other))),
    }
}

fn messages(key: &str, value: Value) -> Result<Vec<Value>, String> {
    let items = objects(key, value)?;
    if items.is_empty() {
        return Err(format!("`{key}` is an empty list; give at least one message"));
    }
    match items.iter().position(|message| !message["role"].is_string()) {
        Some(position) => Err(format!("message {} of `{key}` has no `role`", position + 1)),
        None => Ok(items),
    }
}

fn objects(key: &str, value: Value) -> Result<Vec<Value>, String> {
    let Value::Array(items) = value else {
        return Err(format!("`{key}` must be a list, found {}", shown(&value)));
    };
    match items.iter().position(|item| !item.is_object()) {
        Some(at) => Err(format!("item {} of `{key}` must be an object, found {}", at + 1, shown(&items[at]))),
        None => Ok(items),
    }
}

/// The beginning of a value: lines may be long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_forms_and_names_bad_lines() {
        let file = "\u{feff}{\"text\": \"a\", \"id\": 7}\n\n{\"prompt\": \"b\", \"completion\": \"c\"}\r\n\
                    {\"messages\": [{\"role\": \"user\"}], \"tools\": null, \"prompt\": \"column\"}\n\
                    {\"prompt\": \"b\"}\n{\"text\": 3}\n[1]\n{";
        let found: Vec<_> = records("file", file.as_bytes()).collect();
        assert!(matches!(&found[0], Ok((1, Record::Text(text))) if text == "a"));
        assert!(matches!(&found[1], Ok((3, Record::Completion { .. }))));
        assert!(matches!(&found[2], Ok((4, Record::Messages { tools: None, prompt: 0, .. }))));
        for (index, line) in [(3, 5), (4, 6), (5, 7), (6, 8)] {
            assert!(matches!(&found[index], Err(DataError::Line { line: found, .. }) if *found == line));
        }
    }

    #[test]
    fn prompt_and_completion_may_be_messages() {
        let line =
            r#"{"prompt": [{"role": "system"}, {"role": "user"}], "completion": [{"role": "assistant"}]}"#;
        let record = Record::parse(line).unwrap();
        assert!(matches!(record, Record::Messages { messages, prompt: 2, .. } if messages.len() == 3));
    }

    #[test]
    fn says_what_is_wrong_with_a_line() {
        for (line, part) in [
            ("{\"text\": \"a\", \"messages\": [{\"role\": \"user\"}]}", "more than one of"),
            ("{\"text\": [1, 2]}", "`text` must be text, found [1,2]"),
            ("{\"messages\": []}", "`messages` is an empty list"),
            (
                "{\"messages\": [{\"role\": \"user\"}, {\"content\": \"x\"}]}",
                "message 2 of `messages` has no `role`",
            ),
            ("{\"messages\": \"hello\"}", "`messages` must be a list, found \"hello\""),
            ("{\"messages\": [3]}", "item 1 of `messages` must be an object"),
            ("{\"messages\": [{\"role\": \"user\"}], \"tools\": [\"x\"]}", "item 1 of `tools`"),
            (
                "{\"prompt\": \"a\", \"completion\": [{\"role\": \"assistant\"}]}",
                "both be text or both lists",
            ),
            ("{\"prompt\": \"a\", \"completion\": null}", "`completion` must be text, found null"),
        ] {
            let reason = Record::parse(line).unwrap_err();
            assert!(reason.contains(part), "{line}: {reason}");
        }
    }
}
