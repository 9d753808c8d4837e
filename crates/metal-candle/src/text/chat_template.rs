//! Chat templates: a conversation as the text that a model was trained on.

use std::{collections::BTreeMap, ops::Range, path::Path};

use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use super::{
    LocalTime, TextError,
    config::TokenizerConfig,
    jinja::{self, GENERATION_END, GENERATION_START, budget, from_json},
    read_optional_object, read_optional_text, without_panic,
};

/// Added to the last message when it is to be continued, and cut off again with all that follows.
const CONTINUE_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// The names under which a message's reasoning is known.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The chat templates of a model, ready to render what transformers' `apply_chat_template` renders.
///
/// A template is a program that comes with the model. One that runs without end is stopped, and so is one that prints
/// more than 128 MiB or builds more than that with operators, methods and the filters that let text grow. (What a block
/// captures is counted when it is printed.)
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Several templates by name; a single one is called `default`.
    single: bool,
    sources: BTreeMap<String, String>,
    special_tokens: Vec<(String, String)>,
}

/// What a chat template gets to see.
#[derive(Debug, Clone)]
pub struct ChatInput<'a> {
    /// The conversation: objects with `role`, `content` and whatever else the template reads.
    pub messages: &'a [Json],
    /// Functions that the model may call, as JSON schemas. `Some` of an empty list is not the same as `None`.
    pub tools: Option<&'a [Json]>,
    /// Documents for retrieval, as objects.
    pub documents: Option<&'a [Json]>,
    /// End with the header of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Leave the last message open, for the model to continue.
    pub continue_final_message: bool,
    /// More variables for the template, such as `enable_thinking`. They win over special tokens.
    pub extra: Map<String, Json>,
    /// The time that `strftime_now` prints; `None` for the time of rendering.
    pub now: Option<LocalTime>,
}

impl<'a> ChatInput<'a> {
    /// A conversation that ends with the header of the assistant's answer, without tools.
    pub fn new(messages: &'a [Json]) -> Self {
        Self {
            messages,
            tools: None,
            documents: None,
            add_generation_prompt: true,
            continue_final_message: false,
            extra: Map::new(),
            now: None,
        }
    }
}

impl ChatTemplate {
    /// Finds the templates of a model folder: `chat_template.jinja` and `additional_chat_templates/*.jinja`, else
    /// `chat_template` in `tokenizer_config.json`, else `chat_template.json`.
    pub fn load(folder: &Path) -> Result<Self, TextError> {
        let config = TokenizerConfig::load(folder)?;
        let mut sources = template_files(folder)?;
        if sources.is_empty() {
            let entry = match config.chat_template {
                Some(entry) => Some((folder.join("tokenizer_config.json"), entry)),
                None => {
                    let path = folder.join("chat_template.json");
                    read_optional_object(&path)?
                        .and_then(|mut object| object.remove("chat_template"))
                        .map(|entry| (path, entry))
                }
            };
            let (path, entry) =
                entry.ok_or_else(|| TextError::NoChatTemplate { folder: folder.to_owned() })?;
            sources = named_templates(&entry).map_err(|reason| TextError::Invalid { path, reason })?;
        }
        Self::compile(sources, config.named)
    }

    /// A template from its source, with the special tokens that it may name (`bos_token`, `eos_token`, …).
    pub fn from_source(
        source: impl Into<String>,
        special_tokens: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, TextError> {
        let sources = BTreeMap::from([("default".to_owned(), source.into())]);
        Self::compile(sources, special_tokens.into_iter().collect())
    }

    /// The names of the templates; a model with one template has `default`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().map(String::as_str)
    }

    /// The source of the template that [`render`](Self::render) uses with or without tools.
    pub fn source(&self, with_tools: bool) -> Option<&str> {
        self.sources.get(self.choose(with_tools)?).map(String::as_str)
    }

    /// The text of a conversation.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, TextError> {
        let prepared = self.prepare(input)?;
        let text = self.run(&prepared, input, false)?;
        match &prepared.continued {
            Some(last) => cut_at_mark(text, last),
            None => Ok(text),
        }
    }

    /// The text of a conversation, and which bytes of it stand in `generation` blocks: what the assistant says.
    pub fn render_with_spans(&self, input: &ChatInput<'_>) -> Result<(String, Vec<Range<usize>>), TextError> {
        if input.continue_final_message {
            return Err(bad_input(
                "spans of generation blocks cannot be had together with continue_final_message",
            ));
        }
        let prepared = self.prepare(input)?;
        let plain = self.run(&prepared, input, false)?;
        let marked = self.run(&prepared, input, true)?;
        let (text, spans) = take_marks(&marked);
        if text != plain {
            return Err(TextError::TemplateRender {
                name: prepared.name.to_owned(),
                line: 0,
                reason:
                    "the template changes the text of a generation block afterwards, or the conversation \
                         contains the noncharacters U+FDD0 or U+FDD1, so the assistant's part cannot be told"
                        .to_owned(),
            });
        }
        Ok((plain, spans))
    }

    fn compile(
        sources: BTreeMap<String, String>,
        special_tokens: Vec<(String, String)>,
    ) -> Result<Self, TextError> {
        let mut environment = jinja::environment();
        for (name, source) in &sources {
            let syntax = |line, reason| TextError::TemplateSyntax { name: name.clone(), line, reason };
            let rewritten =
                jinja::rewrite(source).map_err(|error| syntax(error.line, error.reason.to_owned()))?;
            let compiled = without_panic(|| environment.add_template_owned(name.clone(), rewritten));
            compiled
                .ok_or_else(|| internal(name))?
                .map_err(|error| syntax(error.line().unwrap_or(0), reason_of(&error)))?;
        }
        let single = sources.len() == 1 && sources.contains_key("default");
        Ok(Self { environment, single, sources, special_tokens })
    }

    fn choose(&self, with_tools: bool) -> Option<&str> {
        let name = if !self.single && with_tools && self.sources.contains_key("tool_use") {
            "tool_use"
        } else {
            "default"
        };
        self.sources.get_key_value(name).map(|(name, _)| name.as_str())
    }

    /// Chooses the template and brings the messages into the form that transformers gives to templates.
    fn prepare(&self, input: &ChatInput<'_>) -> Result<Prepared<'_>, TextError> {
        let name = self.choose(input.tools.is_some()).ok_or_else(|| {
            let names: Vec<&str> = self.names().collect();
            bad_input(format!(
                "the model has only the named templates {names:?}, and no \"default\" among them"
            ))
        })?;
        if input.messages.is_empty() {
            return Err(bad_input("the conversation is empty; give at least one message"));
        }
        let documents = input.documents.unwrap_or_default();
        if let Some(position) = documents.iter().position(|document| !document.is_object()) {
            return Err(bad_input(format!("document {position} is not an object with title and text")));
        }
        if let Some(position) = input.tools.unwrap_or_default().iter().position(|tool| !tool.is_object()) {
            return Err(bad_input(format!("tool {position} is not an object with a JSON schema")));
        }
        let mut messages = Vec::with_capacity(input.messages.len());
        for (position, message) in input.messages.iter().enumerate() {
            let Json::Object(message) = message else {
                return Err(bad_input(format!("message {position} is not an object with role and content")));
            };
            messages.push(normalized(message));
        }
        let continued = match (input.continue_final_message, messages.last_mut()) {
            (true, Some(last)) => {
                if input.add_generation_prompt {
                    return Err(bad_input(
                        "continue_final_message and add_generation_prompt exclude each other: either the last message \
                         goes on or a new one starts",
                    ));
                }
                Some(mark_end(last)?)
            }
            _ => None,
        };
        Ok(Prepared { name, messages: messages.into_iter().map(Json::Object).collect(), continued })
    }

    fn run(&self, prepared: &Prepared<'_>, input: &ChatInput<'_>, marks: bool) -> Result<String, TextError> {
        let mut context: BTreeMap<String, Value> = BTreeMap::new();
        for (name, token) in &self.special_tokens {
            context.insert(name.clone(), Value::from(token.as_str()));
        }
        for (name, value) in &input.extra {
            if ["messages", "tools", "documents", "add_generation_prompt"].contains(&name.as_str()) {
                return Err(bad_input(format!("{name:?} has its own field and cannot be an extra variable")));
            }
            context.insert(name.clone(), from_json(value));
        }
        let list = |items: Option<&[Json]>| items.map_or(Json::Null, |items| Json::Array(items.to_vec()));
        context.insert("messages".to_owned(), from_json(&Json::Array(prepared.messages.clone())));
        context.insert("tools".to_owned(), from_json(&list(input.tools)));
        context.insert("documents".to_owned(), from_json(&list(input.documents)));
        context.insert("add_generation_prompt".to_owned(), Value::from(input.add_generation_prompt));
        if marks {
            context.insert(jinja::START_VARIABLE.to_owned(), Value::from(GENERATION_START.to_string()));
            context.insert(jinja::END_VARIABLE.to_owned(), Value::from(GENERATION_END.to_string()));
        }
        let now = input.now.unwrap_or_else(LocalTime::now);
        context.insert("strftime_now".to_owned(), jinja::strftime_now(now));
        let template = self
            .environment
            .get_template(prepared.name)
            .map_err(|error| render_error(prepared.name, &error))?;
        budget::begin();
        let mut page = budget::Page::default();
        let rendered =
            without_panic(|| template.render_captured_to(Value::from(context), &mut page).map(|_| ()));
        rendered
            .ok_or_else(|| internal(prepared.name))?
            .map_err(|error| render_error(prepared.name, &error))?;
        Ok(page.into_text())
    }
}

struct Prepared<'a> {
    name: &'a str,
    messages: Vec<Json>,
    /// The end of the last message, if it is to be continued.
    continued: Option<String>,
}

fn bad_input(reason: impl Into<String>) -> TextError {
    TextError::ChatInput { reason: reason.into() }
}

/// Templates in files of their own, by name.
fn template_files(folder: &Path) -> Result<BTreeMap<String, String>, TextError> {
    let mut sources = BTreeMap::new();
    let hint = "check its permissions";
    if let Some(source) = read_optional_text(&folder.join("chat_template.jinja"), hint)? {
        sources.insert("default".to_owned(), source);
    }
    let extras = folder.join("additional_chat_templates");
    let entries = match std::fs::read_dir(&extras) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(sources),
        Err(source) => return Err(TextError::Read { path: extras, source, hint }),
    };
    for entry in entries {
        let path = entry.map_err(|source| TextError::Read { path: extras.clone(), source, hint })?.path();
        let name =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jinja"));
        if let Some(name) = name
            && let Some(source) = read_optional_text(&path, hint)?
        {
            sources.insert(name.to_owned(), source);
        }
    }
    Ok(sources)
}

/// The `chat_template` entry of a config: a template, or a list of named ones.
fn named_templates(entry: &Json) -> Result<BTreeMap<String, String>, String> {
    match entry {
        Json::String(source) => Ok(BTreeMap::from([("default".to_owned(), source.clone())])),
        Json::Array(list) => list
            .iter()
            .map(|item| {
                let field = |name: &str| item.get(name).and_then(Json::as_str).map(str::to_owned);
                field("name").zip(field("template")).ok_or_else(|| {
                    "chat_template is a list, but an entry lacks the strings \"name\" and \"template\""
                        .to_owned()
                })
            })
            .collect(),
        _ => Err("chat_template must be a string or a list of named templates".to_owned()),
    }
}

/// A message without its null fields, and with its reasoning under all its usual names.
fn normalized(message: &Map<String, Json>) -> Map<String, Json> {
    let fields = message.iter().filter(|(_, value)| !value.is_null());
    let mut fields: Map<String, Json> = fields.map(|(key, value)| (key.clone(), value.clone())).collect();
    let Some(reasoning) = REASONING_FIELDS.iter().find_map(|field| fields.get(*field)).cloned() else {
        return fields;
    };
    let thinking = fields.get("thinking").unwrap_or(&reasoning).clone();
    fields.insert("reasoning_content".to_owned(), reasoning);
    let mut aliased = Map::from_iter([("thinking".to_owned(), thinking)]);
    aliased.extend(fields);
    aliased
}

/// Appends the mark to the content of a message; gives the text before it.
fn mark_end(message: &mut Map<String, Json>) -> Result<String, TextError> {
    let text = match message.get_mut("content") {
        Some(Json::String(text)) => text,
        Some(Json::Array(blocks)) => blocks
            .iter_mut()
            .rev()
            .find_map(|block| match block.get_mut("text") {
                Some(Json::String(text)) => Some(text),
                _ => None,
            })
            .ok_or_else(|| bad_input("continue_final_message: the last message has no text to continue"))?,
        _ => return Err(bad_input("continue_final_message: the last message has no content to continue")),
    };
    let before = text.clone();
    text.push_str(CONTINUE_MARK);
    Ok(before)
}

fn cut_at_mark(mut text: String, last: &str) -> Result<String, TextError> {
    let bare = CONTINUE_MARK.trim_end();
    let at = text.rfind(bare).filter(|_| text.contains(last.trim())).ok_or_else(|| {
        bad_input("continue_final_message: the template does not print the last message as it is")
    })?;
    let spaced = text[at..].starts_with(CONTINUE_MARK);
    text.truncate(at);
    if !spaced {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

/// Takes the marks out of a text; gives the ranges between them.
fn take_marks(marked: &str) -> (String, Vec<Range<usize>>) {
    let mut text = String::with_capacity(marked.len());
    let mut open = Vec::new();
    let mut spans = Vec::new();
    for character in marked.chars() {
        match character {
            GENERATION_START => open.push(text.len()),
            GENERATION_END => spans.extend(open.pop().map(|start| start..text.len())),
            _ => text.push(character),
        }
    }
    (text, spans)
}

fn internal(name: &str) -> TextError {
    let reason = "the template engine failed inside; simplify the template".to_owned();
    TextError::TemplateRender { name: name.to_owned(), line: 0, reason }
}

fn render_error(name: &str, error: &Error) -> TextError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = source {
        if let Some(raised) = current.downcast_ref::<jinja::Raised>() {
            return TextError::TemplateRaised { message: raised.0.clone() };
        }
        source = current.source();
    }
    let line = error.line().unwrap_or(0);
    TextError::TemplateRender { name: name.to_owned(), line, reason: reason_of(error) }
}

fn reason_of(error: &Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "the template runs too long; it may loop without end".to_owned(),
        (ErrorKind::WriteFailure, _) => budget::TOO_MUCH.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    }
}
