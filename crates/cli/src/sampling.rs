//! The sampling flags of `generate` and `chat`.

use std::{collections::BTreeMap, hash::BuildHasher as _};

use clap::Args;
use metal_candle::generate::sampler::SamplingParams;

/// A flag wins over the model's `generation_config.json`, which wins over the defaults (greedy, no penalties).
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling (flag, else the model's generation_config.json, else the default)")]
pub(crate) struct SamplingArgs {
    /// Randomness: 0 always takes the most likely token, 1 samples as the model was trained
    #[arg(long, visible_alias = "temperature", value_name = "T", allow_negative_numbers = true)]
    temp: Option<f32>,

    /// Sample from the most likely tokens that together reach this probability (1: off)
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,

    /// Sample from this many most likely tokens (0: off)
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,

    /// Leave out tokens less than this times as likely as the best (0: off)
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,

    /// Sample from the tokens nearest to the expected surprise that together reach this probability (1: off)
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    typical_p: Option<f32>,

    /// How often XTC leaves out the top choices (0: off)
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    xtc_probability: Option<f32>,

    /// The probability from which XTC counts a token among the top choices
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    xtc_threshold: Option<f32>,

    /// Make tokens that appeared before less likely (1: off)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,

    /// How many of the last tokens the repetition penalty looks at (0: all)
    #[arg(long, value_name = "N")]
    repetition_context_size: Option<usize>,

    /// Subtracted from the logits of tokens that were generated before
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,

    /// Subtracted from a token's logit for each time it was generated
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,

    /// Add V to the logit of a token, -inf bans it (repeatable)
    #[arg(long, value_name = "ID=V", value_parser = parse_bias, allow_hyphen_values = true)]
    logit_bias: Vec<(u32, f32)>,

    /// Where the random numbers start; the same seed gives the same text [default: a new one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The flags on top of the model's own advice. A seed is always set, so that it can be told.
    pub(crate) fn resolve(&self, model: &SamplingParams) -> SamplingParams {
        let mut logit_bias: BTreeMap<u32, f32> = model.logit_bias.clone();
        logit_bias.extend(self.logit_bias.iter().copied());
        SamplingParams {
            temperature: self.temp.unwrap_or(model.temperature),
            top_k: self.top_k.unwrap_or(model.top_k),
            top_p: self.top_p.unwrap_or(model.top_p),
            min_p: self.min_p.unwrap_or(model.min_p),
            typical_p: self.typical_p.unwrap_or(model.typical_p),
            xtc_probability: self.xtc_probability.unwrap_or(model.xtc_probability),
            xtc_threshold: self.xtc_threshold.unwrap_or(model.xtc_threshold),
            repetition_penalty: self.repetition_penalty.unwrap_or(model.repetition_penalty),
            repetition_context: match self.repetition_context_size {
                Some(0) => None,
                Some(size) => Some(size),
                None => model.repetition_context,
            },
            presence_penalty: self.presence_penalty.unwrap_or(model.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(model.frequency_penalty),
            logit_bias,
            seed: Some(self.seed.or(model.seed).unwrap_or_else(new_seed)),
            logprobs: model.logprobs,
        }
    }
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let wrong = || format!("`{text}` is not ID=V, a token id and a number, such as 42=-1.5 or 42=-inf");
    let (id, value) = text.split_once('=').ok_or_else(wrong)?;
    Ok((id.parse().map_err(|_| wrong())?, value.parse().map_err(|_| wrong())?))
}

/// A number that is different each time. 53 bits, so that every JSON reader keeps it whole.
fn new_seed() -> u64 {
    // The standard library keys its hash maps with randomness of the operating system.
    std::hash::RandomState::new().hash_one(std::process::id()) >> 11
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn parse(flags: &[&str]) -> SamplingArgs {
        Line::try_parse_from([&["test"], flags].concat()).unwrap().sampling
    }

    #[test]
    fn every_flag_acts() {
        let flags = [
            "--temp=0.5",
            "--top-p=0.9",
            "--top-k=7",
            "--min-p=0.1",
            "--typical-p=0.8",
            "--xtc-probability=0.3",
            "--xtc-threshold=0.2",
            "--repetition-penalty=1.3",
            "--repetition-context-size=9",
            "--presence-penalty",
            "-0.4",
            "--frequency-penalty=0.6",
            "--logit-bias=5=-inf",
            "--logit-bias",
            "6=2",
            "--seed=11",
        ];
        let expected = SamplingParams {
            temperature: 0.5,
            top_p: 0.9,
            top_k: 7,
            min_p: 0.1,
            typical_p: 0.8,
            xtc_probability: 0.3,
            xtc_threshold: 0.2,
            repetition_penalty: 1.3,
            repetition_context: Some(9),
            presence_penalty: -0.4,
            frequency_penalty: 0.6,
            logit_bias: [(5, f32::NEG_INFINITY), (6, 2.0)].into(),
            seed: Some(11),
            logprobs: None,
        };
        assert_eq!(parse(&flags).resolve(&SamplingParams::default()), expected);
        assert_eq!(parse(&["--repetition-context-size=0"]).resolve(&expected).repetition_context, None);
    }

    #[test]
    fn without_a_flag_the_model_decides() {
        let model =
            SamplingParams { temperature: 0.7, top_k: 20, repetition_context: None, ..Default::default() };
        let resolved = parse(&["--top-k=0", "--seed=1"]).resolve(&model);
        assert_eq!(resolved, SamplingParams { top_k: 0, seed: Some(1), ..model });
    }

    #[test]
    fn a_seed_is_drawn_when_none_is_given() {
        let draw = || parse(&[]).resolve(&SamplingParams::default()).seed.unwrap();
        let (first, second) = (draw(), draw());
        assert!(first != second && first < 1 << 53);
    }

    #[test]
    fn a_bias_that_is_none_is_refused() {
        for text in ["", "5", "5=", "=1", "x=1", "5=y", "-1=2"] {
            assert!(parse_bias(text).unwrap_err().contains("ID=V"), "{text}");
        }
    }
}
