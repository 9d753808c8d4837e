//! Conversations: reading them from files, and turning them into a prompt.

use std::{fs, io::Read as _};

use anyhow::{Context as _, Result, bail};
use metal_candle::{
    generate::Prompt,
    text::{ChatInput, ChatTemplate},
};
use serde_json::{Value, json};

/// Messages, and the tools that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Value>,
    pub(crate) tools: Option<Vec<Value>>,
}

impl Conversation {
    /// Reads an array of messages, or an object with `messages` and perhaps `tools`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).context("this is not JSON")?;
        match value {
            Value::Array(messages) => Ok(Self { messages, tools: None }),
            Value::Object(mut object) => {
                let tools = object.remove("tools").filter(|tools| !tools.is_null());
                let tools = match tools {
                    None => None,
                    Some(Value::Array(tools)) => Some(tools),
                    Some(_) => bail!("`tools` is not an array of functions"),
                };
                let Some(Value::Array(messages)) = object.remove("messages") else {
                    bail!("the object has no array `messages`");
                };
                if let Some(key) = object.keys().next() {
                    bail!("the key `{key}` is unknown; only `messages` and `tools` are used");
                }
                Ok(Self { messages, tools })
            }
            _ => bail!("expected an array of messages, or an object with `messages`"),
        }
    }
}

/// One message.
pub(crate) fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// What the model is to answer.
pub(crate) fn to_prompt(template: &ChatTemplate, messages: &[Value]) -> Result<Prompt> {
    Ok(Prompt::Rendered(template.render(&ChatInput::new(messages))?))
}

/// The text of a file, or of stdin for `-`.
pub(crate) fn read_text(path: &str) -> Result<String> {
    let bytes = if path == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read stdin")?;
        bytes
    } else {
        fs::read(path).with_context(|| format!("cannot read {path}"))?
    };
    let name = if path == "-" { "stdin" } else { path };
    String::from_utf8(bytes).with_context(|| format!("{name} is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let hello = vec![message("user", "Hello")];
        let list = Conversation::parse(r#"[{"role": "user", "content": "Hello"}]"#).unwrap();
        assert_eq!(list, Conversation { messages: hello.clone(), tools: None });
        let object = r#"{"messages": [{"role": "user", "content": "Hello"}], "tools": [{"name": "f"}]}"#;
        let tools = Some(vec![json!({"name": "f"})]);
        assert_eq!(Conversation::parse(object).unwrap(), Conversation { messages: hello, tools });
    }

    #[test]
    fn other_json_is_refused_by_name() {
        for (text, word) in [
            ("Hello", "JSON"),
            ("1", "array of messages"),
            ("{}", "messages"),
            (r#"{"messages": "Hello"}"#, "messages"),
            (r#"{"messages": [], "tools": 1}"#, "tools"),
            (r#"{"messages": [], "toolz": []}"#, "toolz"),
        ] {
            let message = format!("{:#}", Conversation::parse(text).unwrap_err());
            assert!(message.contains(word), "{text}: {message}");
        }
    }
}
