//! `metal-candle generate`: continue a prompt, or answer it.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::{ArgGroup, Args};
use metal_candle::{
    LanguageModel,
    device::{self, DType},
    generate::{Completion, Generation, Prompt, Request, StreamToken},
    text::Tokenizer,
};
use serde_json::{Value, json};

use crate::{
    adapters::AdapterArgs,
    args::{ComputeArgs, SourceArgs},
    console::{Console, human_bytes},
    conversation::{message, read_text, to_prompt},
    model,
    sampling::SamplingArgs,
};

pub(crate) const EXAMPLES: &str = "\
A model with a chat template gets the prompt as the user's message and answers it; --raw
continues the text instead. The text goes to stdout as it is made, statistics go to stderr.

Examples:
  metal-candle generate -m Qwen/Qwen2.5-0.5B-Instruct --prompt 'Why is the sky blue?'
  metal-candle generate -m ./model --raw --prompt 'Once upon a time' -n 100 --temp 0.8 --seed 1
  metal-candle generate -m ./model --system 'Answer in French.' --prompt-file question.txt
  git diff | metal-candle generate -m ./model --system 'Write a commit message.' --prompt - --quiet
  metal-candle generate -m ./model --adapter ./adapter --prompt Hello
  metal-candle generate -m ./model --prompt Hello --json --logprobs 3";

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    source: SourceArgs,

    #[command(flatten)]
    input: InputArgs,

    /// Generate at most this many tokens
    #[arg(long, short = 'n', value_name = "N", default_value_t = 256)]
    max_tokens: usize,

    /// End before this text (repeatable)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    /// Go on after the model's end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,

    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long)]
    json: bool,

    /// Add the log-probabilities of each token and of the N most likely ones to the JSON
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<usize>,

    #[command(flatten)]
    adapters: AdapterArgs,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("text").required(true).args(["prompt", "prompt_file"])))]
struct InputArgs {
    /// The prompt; - reads it from stdin
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,

    /// Read the prompt from a file (one newline at its end is left out, as it is of stdin)
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<String>,

    /// Instructions that stand before the prompt, for a model with a chat template
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,

    /// Continue the prompt as plain text, without the model's chat template
    #[arg(long, visible_alias = "ignore-chat-template")]
    raw: bool,
}

/// When things happened.
#[derive(Debug)]
struct Clock {
    load: Duration,
    start: Instant,
    first_token: Option<Duration>,
    end: Duration,
}

pub(crate) fn run(args: &GenerateArgs, console: &Console) -> Result<()> {
    // Before the model: a mistake here should not cost a minute of loading.
    let text = args.input.read()?;
    args.adapters.check()?;
    let (model, load) = model::load(&args.source, &args.compute, console)?;
    let mut sampling = args.sampling.resolve(model.sampling());
    sampling.logprobs = args.logprobs;
    let request = Request {
        prompt: args.input.prompt(&text, &model)?,
        sampling,
        max_tokens: Some(args.max_tokens),
        stop: args.stop.clone(),
        ignore_eos: args.ignore_eos,
        adapter: args.adapters.load(model.model(), console)?,
    };
    let mut clock = Clock { load, start: Instant::now(), first_token: None, end: Duration::ZERO };
    let mut logprobs = Vec::new();
    let mut closed = None;
    let generation = Generation::start(&model, &request)?;
    let completion = generation.run(|token| {
        clock.first_token.get_or_insert_with(|| clock.start.elapsed());
        if args.logprobs.is_some() {
            logprobs.push(logprob_json(token, model.tokenizer()));
        }
        if !args.json
            && let Err(error) = console.print(&token.text)
        {
            closed = Some(error);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    clock.end = clock.start.elapsed();
    if let Some(error) = closed {
        return Err(error);
    }
    if args.json {
        let mut result = result_json(args, &model, &request, &completion, &clock);
        if args.logprobs.is_some() {
            result["logprobs"] = Value::Array(logprobs);
        }
        return console.print_json(&result);
    }
    console.print("\n")?;
    console.note(statistics(&completion, &clock));
    Ok(())
}

impl InputArgs {
    /// The text of the prompt.
    fn read(&self) -> Result<String> {
        let text = match (&self.prompt, &self.prompt_file) {
            (Some(text), _) if text != "-" => text.clone(),
            (_, path) => {
                let mut text = read_text(path.as_deref().unwrap_or("-"))?;
                let line = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line).len());
                text.truncate(line.unwrap_or(text.len()));
                text
            }
        };
        if text.is_empty() {
            bail!("the prompt is empty; give some text with --prompt, --prompt-file or on stdin");
        }
        Ok(text)
    }

    /// The prompt as this model wants it.
    fn prompt(&self, text: &str, model: &LanguageModel) -> Result<Prompt> {
        let Some(template) = model.chat_template().filter(|_| !self.raw) else {
            if self.system.is_some() {
                bail!(
                    "--system needs a chat template, and this model has none; put the instructions into the prompt"
                );
            }
            return Ok(Prompt::Text(text.to_owned()));
        };
        let system = self.system.iter().map(|text| message("system", text));
        let messages: Vec<Value> = system.chain([message("user", text)]).collect();
        to_prompt(template, &messages)
    }
}

impl Clock {
    fn prefill(&self) -> Duration {
        self.first_token.unwrap_or(self.end)
    }

    fn decode(&self) -> Duration {
        self.end.saturating_sub(self.prefill())
    }

    /// Tokens per second of the prompt and of what followed the first token, if anything did.
    fn rates(&self, completion: &Completion) -> (f64, Option<f64>) {
        let later = completion.tokens.len().saturating_sub(1);
        let decode = (later > 0).then(|| later as f64 / self.decode().as_secs_f64());
        (completion.prompt_tokens as f64 / self.prefill().as_secs_f64(), decode)
    }
}

fn statistics(completion: &Completion, clock: &Clock) -> String {
    let (prefill, decode) = clock.rates(completion);
    let decode = decode.map_or(String::new(), |rate| format!(" ({rate:.1} tok/s)"));
    let peak = device::peak_resident_bytes()
        .map_or(String::new(), |bytes| format!(", peak memory {}", human_bytes(bytes)));
    format!(
        "prompt: {} tokens ({prefill:.1} tok/s), generated: {} tokens{decode}{peak}",
        completion.prompt_tokens,
        completion.tokens.len()
    )
}

fn result_json(
    args: &GenerateArgs,
    model: &LanguageModel,
    request: &Request,
    completion: &Completion,
    clock: &Clock,
) -> Value {
    let (prefill, decode) = clock.rates(completion);
    json!({
        "text": completion.text,
        "tokens": completion.tokens,
        "finish_reason": completion.finish.as_str(),
        "usage": {
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.tokens.len(),
        },
        "timings": {
            "load_s": clock.load.as_secs_f64(),
            "prefill_s": clock.prefill().as_secs_f64(),
            "prefill_tok_s": prefill,
            "decode_s": clock.decode().as_secs_f64(),
            "decode_tok_s": decode,
        },
        "peak_rss_mb": peak_megabytes(),
        "model": args.source.model,
        "adapters": args.adapters.json(),
        "device": device::kind(model.model().device()),
        "dtype": dtype_name(model.model().dtype()),
        "seed": request.sampling.seed,
    })
}

/// Peak memory in units of 10⁶ bytes.
pub(crate) fn peak_megabytes() -> Option<f64> {
    device::peak_resident_bytes().map(|bytes| bytes as f64 / 1e6)
}

/// The dtype as `--dtype` spells it.
pub(crate) fn dtype_name(dtype: DType) -> &'static str {
    dtype.as_str()
}

fn logprob_json(token: &StreamToken, tokenizer: &Tokenizer) -> Value {
    let entry = |id: u32, logprob: Option<f32>| json!({ "id": id, "token": tokenizer.token_of(id), "logprob": logprob });
    let mut entry_of_choice = entry(token.id, token.logprob);
    let top = token.top_logprobs.iter().map(|other| entry(other.id, Some(other.logprob)));
    entry_of_choice["top"] = top.collect();
    entry_of_choice
}
