//! `metal-candle prompt`: what the chat template makes of a conversation.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use metal_candle::{
    hub::FilesWanted,
    text::{ChatInput, ChatTemplate, Tokenizer},
};
use serde_json::Value;

use crate::{
    args::SourceArgs,
    console::Console,
    conversation::{Conversation, read_text},
    model,
};

pub(crate) const EXAMPLES: &str = "\
The text is printed byte for byte, without a newline at the end. Weights are not needed and
not downloaded.

Examples:
  echo '[{\"role\": \"user\", \"content\": \"Hi\"}]' | metal-candle prompt -m ./model --messages -
  metal-candle prompt -m Qwen/Qwen2.5-0.5B-Instruct --messages chat.json --tools tools.json
  metal-candle prompt -m ./model --messages chat.json --ids      the token ids, as a JSON list";

#[derive(Debug, Args)]
pub(crate) struct PromptArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// JSON file with an array of messages, or with {"messages": […], "tools": […]}; - reads stdin
    #[arg(long, value_name = "FILE")]
    messages: String,

    /// JSON file with an array of functions that the model may call
    #[arg(long, value_name = "FILE")]
    tools: Option<String>,

    /// End after the last message, without the header of the assistant's answer
    #[arg(long)]
    no_generation_prompt: bool,

    /// Print the token ids as a JSON list instead of the text
    #[arg(long)]
    ids: bool,
}

pub(crate) fn run(args: &PromptArgs, console: &Console) -> Result<()> {
    if args.messages == "-" && args.tools.as_deref() == Some("-") {
        bail!("--messages and --tools cannot both read stdin; give one of them as a file");
    }
    let folder = model::folder(&args.source, FilesWanted::TextOnly, console)?;
    let template = ChatTemplate::load(&folder)?;
    let mut conversation = Conversation::parse(&read_text(&args.messages)?)
        .with_context(|| format!("cannot use the messages in {}", args.messages))?;
    if let Some(path) = &args.tools {
        if conversation.tools.is_some() {
            bail!("{} already holds `tools`; leave out --tools or the key", args.messages);
        }
        conversation.tools = Some(read_tools(path)?);
    }
    let input = ChatInput {
        tools: conversation.tools.as_deref(),
        add_generation_prompt: !args.no_generation_prompt,
        ..ChatInput::new(&conversation.messages)
    };
    let text = template.render(&input)?;
    if args.ids {
        let ids = Tokenizer::load(&folder)?.encode(&text, false)?;
        let list = serde_json::to_string(&ids).context("cannot write the ids as JSON")?;
        return console.print(&format!("{list}\n"));
    }
    console.print(&text)
}

fn read_tools(path: &str) -> Result<Vec<Value>> {
    let value: Value =
        serde_json::from_str(&read_text(path)?).with_context(|| format!("{path} is not JSON"))?;
    match value {
        Value::Array(tools) => Ok(tools),
        _ => bail!("{path} does not hold an array of functions"),
    }
}
