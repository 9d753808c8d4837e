//! What a request may ask of the sampler.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::SamplingError;

/// How to choose a token. The default is greedy, without penalties.
///
/// The steps, in this order:
/// 1. log-probabilities for the answer, if asked for, are taken from the model's own logits at temperature 1, before
///    anything below: they say what the model thinks, are comparable between requests, and sum up to its perplexity.
/// 2. `logit_bias`, then `repetition_penalty`, then `presence_penalty` and `frequency_penalty`.
/// 3. With `temperature` 0 the largest logit wins (the lowest id of equal ones) and nothing below matters.
/// 4. `temperature`, `top_k`, `top_p`, `min_p`, `typical_p`: the order of transformers, for which the values in a
///    model's `generation_config.json` were chosen. Each filter sees the probabilities left by the one before, summing to 1.
/// 5. XTC.
/// 6. One token is drawn from what is left.
///
/// A filter that must choose between equally likely tokens keeps the lower id. At least one token is always left. A
/// token 2^40 times less likely than the best one is never drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most likely tokens until their probabilities reach `top_p`; 1 keeps all, 0 the best one.
    pub top_p: f32,
    /// Keep the tokens at least `min_p` times as likely as the best one; 0 keeps all.
    pub min_p: f32,
    /// Keep the tokens whose surprise is nearest to the expected one, until their probabilities reach `typical_p`; 1
    /// keeps all. <https://arxiv.org/abs/2202.00666>
    pub typical_p: f32,
    /// How often XTC acts: the chance, per token, that of the tokens above `xtc_threshold` only the least likely is
    /// kept; 0 is never.
    pub xtc_probability: f32,
    /// The probability from which XTC counts a token among the top choices.
    pub xtc_threshold: f32,
    /// Divides the positive and multiplies the negative logits of the tokens among the last `repetition_context`; 1 is
    /// none.
    pub repetition_penalty: f32,
    /// How many of the last tokens, prompt included, `repetition_penalty` looks at; `None` (in JSON `null`) is all, as
    /// in transformers. The default of 20 is that of mlx-lm.
    pub repetition_context: Option<usize>,
    /// Subtracted from the logits of tokens that have been generated (the prompt does not count).
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time it has been generated (the prompt does not count).
    pub frequency_penalty: f32,
    /// Added to the logits of these token ids; negative infinity bans a token.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Where the random numbers start; the same seed draws the same tokens on every platform. `None` takes one from the
    /// operating system.
    pub seed: Option<u64>,
    /// Report log-probabilities: of the chosen token and of this many most likely ones.
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repetition_penalty: 1.0,
            repetition_context: Some(20),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Checks every field against its range and the vocabulary.
    pub fn validate(&self, vocab_size: usize) -> Result<(), SamplingError> {
        self.validate_ranges()?;
        if let Some(&id) = self.logit_bias.keys().find(|&&id| id as usize >= vocab_size) {
            return Err(SamplingError::BiasToken { id, vocab_size });
        }
        match self.logprobs {
            Some(count) if count > vocab_size => Err(SamplingError::OutOfRange {
                field: "logprobs",
                value: count.to_string(),
                allowed: "at most the size of the vocabulary",
            }),
            _ => Ok(()),
        }
    }

    /// Whether the largest logit is simply taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    pub(super) fn validate_ranges(&self) -> Result<(), SamplingError> {
        let share = |field, value: f32| check(field, value, (0.0..=1.0).contains(&value), "from 0 to 1");
        check(
            "temperature",
            self.temperature,
            self.temperature.is_finite() && self.temperature >= 0.0,
            "0 (greedy) or a positive number",
        )?;
        share("top_p", self.top_p)?;
        share("min_p", self.min_p)?;
        check(
            "typical_p",
            self.typical_p,
            self.typical_p > 0.0 && self.typical_p <= 1.0,
            "above 0, up to 1",
        )?;
        share("xtc_probability", self.xtc_probability)?;
        share("xtc_threshold", self.xtc_threshold)?;
        check(
            "repetition_penalty",
            self.repetition_penalty,
            self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0,
            "a positive number (1 is no penalty)",
        )?;
        let finite = |field, value: f32| check(field, value, value.is_finite(), "a finite number");
        finite("presence_penalty", self.presence_penalty)?;
        finite("frequency_penalty", self.frequency_penalty)?;
        for &bias in self.logit_bias.values() {
            check(
                "logit_bias",
                bias,
                bias < f32::INFINITY,
                "a finite number, or negative infinity to ban a token",
            )?;
        }
        Ok(())
    }
}

fn check(field: &'static str, value: f32, valid: bool, allowed: &'static str) -> Result<(), SamplingError> {
    if valid { Ok(()) } else { Err(SamplingError::OutOfRange { field, value: value.to_string(), allowed }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_field_is_checked_and_named() {
        let valid = SamplingParams::default();
        assert!(valid.validate(10).is_ok());
        let cases: [(SamplingParams, &str, &str); 19] = [
            (SamplingParams { temperature: -1.0, ..valid.clone() }, "temperature", "-1"),
            (SamplingParams { temperature: f32::INFINITY, ..valid.clone() }, "temperature", "inf"),
            (SamplingParams { temperature: f32::NAN, ..valid.clone() }, "temperature", "NaN"),
            (SamplingParams { top_p: 1.5, ..valid.clone() }, "top_p", "1.5"),
            (SamplingParams { top_p: f32::NAN, ..valid.clone() }, "top_p", "NaN"),
            (SamplingParams { min_p: -0.5, ..valid.clone() }, "min_p", "-0.5"),
            (SamplingParams { typical_p: 0.0, ..valid.clone() }, "typical_p", "0"),
            (SamplingParams { typical_p: 2.0, ..valid.clone() }, "typical_p", "2"),
            (SamplingParams { xtc_probability: 3.0, ..valid.clone() }, "xtc_probability", "3"),
            (SamplingParams { xtc_threshold: -2.0, ..valid.clone() }, "xtc_threshold", "-2"),
            (SamplingParams { repetition_penalty: 0.0, ..valid.clone() }, "repetition_penalty", "0"),
            (SamplingParams { repetition_penalty: f32::NAN, ..valid.clone() }, "repetition_penalty", "NaN"),
            (SamplingParams { presence_penalty: f32::NAN, ..valid.clone() }, "presence_penalty", "NaN"),
            (
                SamplingParams { frequency_penalty: f32::INFINITY, ..valid.clone() },
                "frequency_penalty",
                "inf",
            ),
            (
                SamplingParams { logit_bias: [(1, f32::INFINITY)].into(), ..valid.clone() },
                "logit_bias",
                "inf",
            ),
            (SamplingParams { logit_bias: [(1, f32::NAN)].into(), ..valid.clone() }, "logit_bias", "NaN"),
            (SamplingParams { logit_bias: [(10, 1.0)].into(), ..valid.clone() }, "logit_bias", "10"),
            (SamplingParams { logprobs: Some(11), ..valid.clone() }, "logprobs", "11"),
            (SamplingParams { temperature: f32::NEG_INFINITY, ..valid.clone() }, "temperature", "-inf"),
        ];
        for (params, field, value) in cases {
            let message = params.validate(10).unwrap_err().to_string();
            assert!(message.contains(field) && message.contains(value), "{field} {value}: {message}");
        }
        let bans = SamplingParams { logit_bias: [(9, f32::NEG_INFINITY)].into(), ..valid };
        assert!(bans.validate(10).is_ok());
    }

    #[test]
    fn json_fills_in_defaults_and_refuses_unknown_names() {
        let params: SamplingParams = serde_json::from_str(
            r#"{"temperature": 0.7, "logit_bias": {"5": -2.5}, "repetition_context": null}"#,
        )
        .unwrap();
        let expected = SamplingParams {
            temperature: 0.7,
            logit_bias: [(5, -2.5)].into(),
            repetition_context: None,
            ..SamplingParams::default()
        };
        assert_eq!(params, expected);
        let written = serde_json::to_string(&params).unwrap();
        assert_eq!(serde_json::from_str::<SamplingParams>(&written).unwrap(), params);
        let message = serde_json::from_str::<SamplingParams>(r#"{"topp": 0.9}"#).unwrap_err().to_string();
        assert!(message.contains("topp") && message.contains("top_p"), "{message}");
    }
}
