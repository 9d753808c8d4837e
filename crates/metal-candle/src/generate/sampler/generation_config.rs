//! Sampling parameters from a model's `generation_config.json`, with the meaning that transformers gives them.

use serde_json::Value;

use super::{SamplingError, SamplingParams};

/// Keys that change which tokens are chosen and that we do not act on, each with the number that means "off".
const UNSUPPORTED: [(&str, f64); 21] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("diversity_penalty", 0.0),
    ("penalty_alpha", 0.0),
    ("guidance_scale", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("top_h", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("exponential_decay_length_penalty", 0.0),
    ("sequence_bias", 0.0),
    ("bad_words_ids", 0.0),
    ("force_words_ids", 0.0),
    ("suppress_tokens", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("watermarking_config", 0.0),
    ("dola_layers", 0.0),
];

impl SamplingParams {
    /// Reads the sampling keys of a `generation_config.json`.
    ///
    /// As in transformers: without `"do_sample": true` decoding is greedy (a repetition penalty still acts); with it,
    /// `top_k` is 50 unless given; the repetition penalty looks at the whole sequence. Keys that have nothing to do
    /// with sampling are left alone; a sampling key that we cannot act on is an error unless it is switched off.
    pub fn from_generation_config(config: &Value) -> Result<Self, SamplingError> {
        let wrong_type = |key: &str, value: &Value, expected| SamplingError::ConfigType {
            key: key.to_owned(),
            value: value.to_string(),
            expected,
        };
        if !config.is_object() {
            return Err(wrong_type("(the file)", config, "an object"));
        }
        for (key, off) in UNSUPPORTED {
            match config.get(key) {
                Some(value) if !is_off(value, off) => {
                    return Err(SamplingError::ConfigUnsupported { key, value: value.to_string() });
                }
                _ => {}
            }
        }
        let given = |key: &str| config.get(key).filter(|value| !value.is_null());
        let number = |key: &str, default: f32| match given(key) {
            None => Ok(default),
            Some(value) => {
                value.as_f64().map(|number| number as f32).ok_or_else(|| wrong_type(key, value, "a number"))
            }
        };
        let do_sample = given("do_sample").map_or(Ok(false), |value| {
            value.as_bool().ok_or_else(|| wrong_type("do_sample", value, "true or false"))
        })?;
        let mut params = Self {
            repetition_penalty: number("repetition_penalty", 1.0)?,
            repetition_context: None,
            ..Self::default()
        };
        if do_sample {
            params.temperature = number("temperature", 1.0)?;
            params.top_k = given("top_k").map_or(Ok(50), |value| {
                let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
                count.ok_or_else(|| wrong_type("top_k", value, "a whole number, 0 or more"))
            })?;
            params.top_p = number("top_p", 1.0)?;
            params.min_p = number("min_p", 0.0)?;
            params.typical_p = number("typical_p", 1.0)?;
        }
        params.validate_ranges()?;
        Ok(params)
    }
}

fn is_off(value: &Value, off: f64) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(off),
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::Bool(true) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn do_sample_decides_what_counts() {
        let qwen = json!({
            "bos_token_id": 151643, "do_sample": true, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
            "repetition_penalty": 1.1, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "transformers_version": "4.37.0"
        });
        let sampled = SamplingParams {
            temperature: 0.7,
            top_k: 20,
            top_p: 0.8,
            repetition_penalty: 1.1,
            repetition_context: None,
            ..SamplingParams::default()
        };
        assert_eq!(SamplingParams::from_generation_config(&qwen).unwrap(), sampled);

        let mut greedy = qwen;
        greedy["do_sample"] = json!(false);
        let expected =
            SamplingParams { repetition_penalty: 1.1, repetition_context: None, ..SamplingParams::default() };
        assert_eq!(SamplingParams::from_generation_config(&greedy).unwrap(), expected);
    }

    #[test]
    fn absent_and_null_keys_have_the_defaults_of_transformers() {
        for config in
            [json!({"do_sample": true}), json!({"do_sample": true, "top_k": null, "temperature": null})]
        {
            let params = SamplingParams::from_generation_config(&config).unwrap();
            assert_eq!((params.temperature, params.top_k, params.top_p), (1.0, 50, 1.0));
        }
        assert!(SamplingParams::from_generation_config(&json!({})).unwrap().is_greedy());
        let all = json!({"do_sample": true, "top_k": 0, "min_p": 0.1, "typical_p": 0.9});
        let params = SamplingParams::from_generation_config(&all).unwrap();
        assert_eq!((params.top_k, params.min_p, params.typical_p), (0, 0.1, 0.9));
    }

    #[test]
    fn unsupported_keys_are_refused_unless_off() {
        let off = json!({"num_beams": 1, "suppress_tokens": [], "epsilon_cutoff": 0.0, "sequence_bias": null,
            "no_repeat_ngram_size": 0, "max_new_tokens": 2048, "cache_implementation": "hybrid"});
        assert!(SamplingParams::from_generation_config(&off).is_ok());
        for (key, value) in [
            ("num_beams", json!(4)),
            ("suppress_tokens", json!([5])),
            ("dola_layers", json!("high")),
            ("epsilon_cutoff", json!(0.1)),
        ] {
            let message =
                SamplingParams::from_generation_config(&json!({ key: value })).unwrap_err().to_string();
            assert!(message.contains(key) && message.contains(&value.to_string()), "{message}");
        }
    }

    #[test]
    fn wrong_types_and_ranges_are_named() {
        for (config, key) in [
            (json!({"do_sample": "yes"}), "do_sample"),
            (json!({"do_sample": true, "temperature": "hot"}), "temperature"),
            (json!({"do_sample": true, "top_k": -1}), "top_k"),
            (json!({"do_sample": true, "top_k": 1.5}), "top_k"),
            (json!({"do_sample": true, "top_p": 7}), "top_p"),
            (json!([]), "object"),
        ] {
            let message = SamplingParams::from_generation_config(&config).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
    }
}
