//! `metal-candle chat`: a conversation, on a terminal or through pipes.

use std::{
    fs,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    ops::ControlFlow,
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use metal_candle::{
    LanguageModel,
    generate::{
        Engine, EngineOptions, FinishReason, GenerateError, Generation, Request, sampler::SamplingParams,
    },
    lora::ActiveAdapter,
};
use serde_json::{Value, json};

use crate::{
    adapters::AdapterArgs,
    args::{ComputeArgs, SourceArgs},
    console::{Console, Look},
    conversation::{message, to_prompt},
    interrupt, model,
    sampling::SamplingArgs,
};

pub(crate) const EXAMPLES: &str = "\
Answers go to stdout, everything else to stderr, so a conversation can be scripted through
pipes: one line of input is one message. Ctrl-C stops an answer; pressed again, or at the
prompt, it ends the program.

Examples:
  metal-candle chat -m Qwen/Qwen2.5-0.5B-Instruct
  metal-candle chat -m ./model --adapter ./adapter
  metal-candle chat -m ./model --system 'You are a patient teacher.' --temp 0.7
  printf 'Hello\\n/save talk.jsonl\\n' | metal-candle chat -m ./model --quiet";

const HELP: &str = "\
/help         this list
/reset        forget the conversation (the instructions stay)
/system TEXT  set the instructions and forget the conversation; without TEXT, drop them
/save FILE    write the conversation as one line of JSON: {\"messages\": [...]}
/quit         end (so does Ctrl-D)
A line that ends with \\ goes on in the next one. A message that starts with / is written //.
";

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// Instructions for the whole conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// At most this many tokens per answer [default: as many as the context holds]
    #[arg(long, short = 'n', value_name = "N")]
    max_tokens: Option<usize>,

    /// End an answer before this text (repeatable)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    #[command(flatten)]
    adapters: AdapterArgs,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    compute: ComputeArgs,
}

pub(crate) fn run(args: &ChatArgs, console: &Console) -> Result<()> {
    args.adapters.check()?;
    let (model, _) = model::load(&args.source, &args.compute, console)?;
    if model.chat_template().is_none() {
        return Err(anyhow!(
            "the model {} has no chat template, so it cannot chat; continue a text with `metal-candle generate --raw`, \
             or use an instruction-tuned model",
            args.source.model
        ));
    }
    let adapter = args.adapters.load(model.model(), console)?;
    let mut chat = Chat::new(args, model, adapter, console);
    console.note("ready; /help lists the commands");
    let terminal = io::stdin().is_terminal();
    let mut lines = io::stdin().lock().lines();
    loop {
        if terminal {
            console.say(console.styled(Look::Bold, &"> "));
        }
        let Some(input) = read_message(&mut lines)? else { break };
        let outcome = match parse(&input) {
            Input::Nothing => continue,
            Input::Quit => break,
            Input::Message(text) => chat.answer(&text),
            Input::Command(name, rest) => chat.command(name, rest),
        };
        match outcome {
            // A closed stdout ends the chat; anything else is said, and the conversation goes on.
            Err(error) if error.is::<crate::console::OutputClosed>() => return Err(error),
            // In a script nobody can react to an error, so it ends the program.
            Err(error) if !terminal => return Err(error),
            Err(error) => console.error(&error),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// What a line means.
#[derive(Debug, PartialEq, Eq)]
enum Input<'a> {
    Nothing,
    Quit,
    Message(String),
    Command(&'a str, &'a str),
}

fn parse(line: &str) -> Input<'_> {
    let text = line.trim();
    if text.is_empty() {
        return Input::Nothing;
    }
    match text.strip_prefix('/') {
        None => Input::Message(text.to_owned()),
        Some(escaped) if escaped.starts_with('/') => Input::Message(escaped.to_owned()),
        Some(command) => {
            let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
            if matches!(name, "quit" | "exit") { Input::Quit } else { Input::Command(name, rest.trim()) }
        }
    }
}

/// One message: a line and those that it says follow. `None` at the end of the input.
fn read_message(lines: &mut impl Iterator<Item = io::Result<String>>) -> Result<Option<String>> {
    let mut message = String::new();
    for line in lines {
        let line = line.context("cannot read the next message")?;
        let Some(open) = line.strip_suffix('\\') else {
            message += &line;
            return Ok(Some(message));
        };
        message += open;
        message.push('\n');
    }
    Ok((!message.is_empty()).then_some(message))
}

struct Chat<'a> {
    console: &'a Console,
    model: Arc<LanguageModel>,
    engine: Engine,
    sampling: SamplingParams,
    max_tokens: Option<usize>,
    stop: &'a [String],
    adapter: Option<Arc<ActiveAdapter>>,
    system: Option<String>,
    /// Without the instructions.
    messages: Vec<Value>,
}

impl<'a> Chat<'a> {
    fn new(
        args: &'a ChatArgs,
        model: Arc<LanguageModel>,
        adapter: Option<Arc<ActiveAdapter>>,
        console: &'a Console,
    ) -> Self {
        // The cache of the conversation so far is kept: each turn runs only what is new.
        let options = EngineOptions { max_sequences: 1, kept_prefixes: 1, ..EngineOptions::default() };
        Self {
            console,
            engine: Engine::new(Arc::clone(&model), options),
            sampling: args.sampling.resolve(model.sampling()),
            model,
            max_tokens: args.max_tokens,
            stop: &args.stop,
            adapter,
            system: args.system.clone(),
            messages: Vec::new(),
        }
    }

    fn answer(&mut self, text: &str) -> Result<()> {
        self.messages.push(message("user", text));
        let answered = self.generate();
        if answered.is_err() {
            // As if it had not been said: the next message must not answer for this one.
            self.messages.pop();
        }
        self.messages.push(message("assistant", &answered?));
        // Each answer draws on; the same seed again would repeat itself.
        self.sampling.seed = self.sampling.seed.map(|seed| seed.wrapping_add(1));
        Ok(())
    }

    fn generate(&mut self) -> Result<String> {
        let template = self.model.chat_template().context("the model lost its chat template")?;
        let request = Request {
            prompt: to_prompt(template, &self.conversation())?,
            sampling: self.sampling.clone(),
            max_tokens: self.max_tokens,
            stop: self.stop.to_vec(),
            ignore_eos: false,
            adapter: self.adapter.clone(),
        };
        let interrupted = interrupt::Answer::begin();
        let mut closed = None;
        let console = self.console;
        let generation = Generation::start_on(&mut self.engine, &request).map_err(advise)?;
        let completion = generation.run(|token| {
            if let Err(error) = console.print(&token.text) {
                closed = Some(error);
                return ControlFlow::Break(());
            }
            if interrupted.stop_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(error) = closed {
            return Err(error);
        }
        console.print("\n")?;
        let why = match completion.finish {
            FinishReason::Length => "(cut off: the limit of tokens, or of the context, is reached)",
            FinishReason::Cancelled => "(stopped)",
            _ => "",
        };
        if !why.is_empty() {
            console.note(why);
        }
        Ok(completion.text)
    }

    fn command(&mut self, name: &str, rest: &str) -> Result<()> {
        match name {
            "help" => self.console.say(HELP),
            "reset" => {
                self.messages.clear();
                self.console.note("the conversation is forgotten");
            }
            "system" => {
                self.messages.clear();
                self.system = (!rest.is_empty()).then(|| rest.to_owned());
                let what = if rest.is_empty() { "dropped" } else { "set" };
                self.console.note(format_args!("instructions {what}; the conversation starts anew"));
            }
            "save" if rest.is_empty() => return Err(anyhow!("/save needs a file: /save talk.jsonl")),
            "save" => {
                save(Path::new(rest), &self.conversation())?;
                self.console.note(format_args!("saved to {rest}"));
            }
            unknown => return Err(anyhow!("there is no command /{unknown}; /help lists them")),
        }
        Ok(())
    }

    /// The messages with the instructions before them.
    fn conversation(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| message("system", text));
        system.chain(self.messages.iter().cloned()).collect()
    }
}

/// Says what to do about a conversation that has grown too long.
fn advise(error: metal_candle::Error) -> anyhow::Error {
    let too_long = matches!(error, metal_candle::Error::Generate(GenerateError::PromptTooLong { .. }));
    let error = anyhow::Error::from(error);
    if too_long {
        error.context("the conversation no longer fits the model; /reset starts a new one")
    } else {
        error
    }
}

/// Writes the file whole or not at all: under another name first, then renamed.
fn save(path: &Path, messages: &[Value]) -> Result<()> {
    let mut text = serde_json::to_string(&json!({ "messages": messages }))?;
    text.push('\n');
    let name = path.file_name().with_context(|| format!("{} is not a file name", path.display()))?;
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = path.with_file_name(partial);
    let written = fs::File::create(&partial)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // It may not even exist; the first error is the one that counts.
        fs::remove_file(&partial).ok();
    }
    written.with_context(|| format!("cannot save to {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        assert_eq!(parse("  "), Input::Nothing);
        assert_eq!(parse(" Hello "), Input::Message("Hello".into()));
        assert_eq!(parse("//etc is a folder"), Input::Message("/etc is a folder".into()));
        assert_eq!(parse("/save  a b.jsonl "), Input::Command("save", "a b.jsonl"));
        assert_eq!(parse("/reset"), Input::Command("reset", ""));
        assert_eq!((parse("/quit"), parse("/exit now")), (Input::Quit, Input::Quit));
    }

    #[test]
    fn a_backslash_joins_lines() {
        let mut lines = ["one\\", "two", "three", "four\\"].into_iter().map(|line| Ok(line.to_owned()));
        let mut next = || read_message(&mut lines).unwrap();
        assert_eq!(next().unwrap(), "one\ntwo");
        assert_eq!(next().unwrap(), "three");
        assert_eq!(next().unwrap(), "four\n");
        assert_eq!(next(), None);
    }

    #[test]
    fn a_failed_save_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("talk.jsonl");
        save(&path, &[message("user", "Hi")]).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}\n"
        );
        // A folder cannot be replaced by a file.
        let taken = folder.path().join("taken");
        fs::create_dir(&taken).unwrap();
        let message = format!("{:#}", save(&taken, &[]).unwrap_err());
        assert!(message.contains("cannot save to"), "{message}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
