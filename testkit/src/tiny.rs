//! Checkpoint folders with random weights, for tests of the loader and the program.

use std::{fs, path::Path};

use half::{bf16, f16};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{random::Random, tolerance::Precision};

/// Which architecture, as `config.json` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// No biases.
    Llama,
    /// Biases on query, key and value.
    Qwen2,
}

/// The shape and the file format of a random checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct TinyModel {
    /// Decides `model_type` and which tensors there are.
    pub architecture: Architecture,
    /// Number of token ids.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads; `hidden` is a multiple of it.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Longest sequence.
    pub context: usize,
    /// Whether the embedding is also the head.
    pub tied: bool,
    /// What the file holds.
    pub precision: Precision,
    /// Number of files; more than one also gives an index.
    pub shards: usize,
    /// Of the weights.
    pub seed: u64,
}

/// One tensor of a checkpoint before it is written.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self {
            architecture: Architecture::Llama,
            vocabulary: 67,
            hidden: 24,
            intermediate: 36,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            context: 64,
            tied: false,
            precision: Precision::F32,
            shards: 1,
            seed: 0,
        }
    }
}

/// Writes the checkpoint into a new folder that is removed when the value is dropped.
pub fn tiny_model(model: &TinyModel) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    write_model(model, folder.path());
    folder
}

/// Writes `config.json`, `generation_config.json` and the weights into a folder that exists.
pub fn write_model(model: &TinyModel, folder: &Path) {
    assert!(model.shards >= 1, "a checkpoint has at least one file");
    assert_eq!(model.hidden % model.heads, 0, "hidden is a multiple of heads");
    write_json(&folder.join("config.json"), &config(model));
    write_json(&folder.join("generation_config.json"), &json!({ "bos_token_id": 1, "eos_token_id": [2] }));
    let tensors = tensors(model);
    if model.shards == 1 {
        write_tensors(&folder.join("model.safetensors"), &tensors, model.precision);
        return;
    }
    assert!(model.shards <= tensors.len(), "every file holds a tensor");
    let mut weight_map = serde_json::Map::new();
    for shard in 0..model.shards {
        let name = format!("model-{:05}-of-{:05}.safetensors", shard + 1, model.shards);
        let range = shard * tensors.len() / model.shards..(shard + 1) * tensors.len() / model.shards;
        write_tensors(&folder.join(&name), &tensors[range.clone()], model.precision);
        weight_map
            .extend(tensors[range].iter().map(|tensor| (tensor.name.clone(), Value::from(name.as_str()))));
    }
    let total: usize = tensors.iter().map(|tensor| tensor.bytes.len()).sum();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    write_json(&folder.join("model.safetensors.index.json"), &index);
}

fn config(model: &TinyModel) -> Value {
    let (model_type, class) = match model.architecture {
        Architecture::Llama => ("llama", "LlamaForCausalLM"),
        Architecture::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
    };
    json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": model.vocabulary,
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "max_position_embeddings": model.context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": model.tied,
        "torch_dtype": match model.precision {
            Precision::F32 => "float32",
            Precision::F16 => "float16",
            Precision::Bf16 => "bfloat16",
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
    })
}

fn tensors(model: &TinyModel) -> Vec<Tensor> {
    let mut random = Random::new(model.seed);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize], mean: f32| {
        let values = random.normal(shape.iter().product(), mean, 0.2);
        tensors.push(Tensor { name, shape: shape.to_vec(), bytes: to_bytes(&values, model.precision) });
    };
    let (hidden, head_dim) = (model.hidden, model.hidden / model.heads);
    add("model.embed_tokens.weight".into(), &[model.vocabulary, hidden], 0.0);
    for layer in 0..model.layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        for (projection, width) in [("q", model.heads), ("k", model.kv_heads), ("v", model.kv_heads)] {
            add(name(&format!("self_attn.{projection}_proj.weight")), &[width * head_dim, hidden], 0.0);
            if model.architecture == Architecture::Qwen2 {
                add(name(&format!("self_attn.{projection}_proj.bias")), &[width * head_dim], 0.0);
            }
        }
        add(name("self_attn.o_proj.weight"), &[hidden, model.heads * head_dim], 0.0);
        add(name("mlp.gate_proj.weight"), &[model.intermediate, hidden], 0.0);
        add(name("mlp.up_proj.weight"), &[model.intermediate, hidden], 0.0);
        add(name("mlp.down_proj.weight"), &[hidden, model.intermediate], 0.0);
        add(name("input_layernorm.weight"), &[hidden], 1.0);
        add(name("post_attention_layernorm.weight"), &[hidden], 1.0);
    }
    add("model.norm.weight".into(), &[hidden], 1.0);
    if !model.tied {
        add("lm_head.weight".into(), &[model.vocabulary, hidden], 0.0);
    }
    tensors
}

fn to_bytes(values: &[f32], precision: Precision) -> Vec<u8> {
    match precision {
        Precision::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Precision::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        Precision::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
    }
}

fn write_tensors(path: &Path, tensors: &[Tensor], precision: Precision) {
    let dtype = match precision {
        Precision::F32 => Dtype::F32,
        Precision::F16 => Dtype::F16,
        Precision::Bf16 => Dtype::BF16,
    };
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes);
        (tensor.name.as_str(), view.expect("the bytes fit the shape"))
    });
    safetensors::serialize_to_file(views, None, path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn write_json(path: &Path, value: &Value) {
    fs::write(path, format!("{value:#}\n")).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use safetensors::SafeTensors;

    use super::*;

    fn names_and_types(path: &Path) -> Vec<(String, Dtype)> {
        let bytes = fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        file.iter().map(|(name, view)| (name.to_owned(), view.dtype())).collect()
    }

    #[test]
    fn architectures_differ_in_their_biases_and_heads() {
        let count =
            |model: &TinyModel| names_and_types(&tiny_model(model).path().join("model.safetensors")).len();
        let llama = TinyModel::default();
        assert_eq!(count(&llama), 3 + 2 * 9);
        assert_eq!(count(&TinyModel { tied: true, ..llama.clone() }), 2 + 2 * 9);
        assert_eq!(count(&TinyModel { architecture: Architecture::Qwen2, ..llama }), 3 + 2 * 12);
    }

    #[test]
    fn every_precision_is_written_as_itself() {
        for (precision, dtype) in
            [(Precision::F32, Dtype::F32), (Precision::F16, Dtype::F16), (Precision::Bf16, Dtype::BF16)]
        {
            let folder = tiny_model(&TinyModel { precision, ..TinyModel::default() });
            let tensors = names_and_types(&folder.path().join("model.safetensors"));
            assert!(tensors.iter().all(|(_, found)| *found == dtype), "{precision:?}");
        }
    }

    #[test]
    fn shards_and_their_index_hold_every_tensor_once() {
        let whole = tiny_model(&TinyModel::default());
        let sharded = tiny_model(&TinyModel { shards: 3, ..TinyModel::default() });
        let index = fs::read(sharded.path().join("model.safetensors.index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let map = index["weight_map"].as_object().unwrap();
        let files: BTreeSet<&str> = map.values().map(|file| file.as_str().unwrap()).collect();
        assert_eq!(files.len(), 3);
        let mut found = Vec::new();
        for file in files {
            for (name, dtype) in names_and_types(&sharded.path().join(file)) {
                assert_eq!(map[&name], file);
                found.push((name, dtype));
            }
        }
        let mut expected = names_and_types(&whole.path().join("model.safetensors"));
        found.sort_by(|left, right| left.0.cmp(&right.0));
        expected.sort_by(|left, right| left.0.cmp(&right.0));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_seed_gives_one_file() {
        let file = |seed| {
            fs::read(tiny_model(&TinyModel { seed, ..TinyModel::default() }).path().join("model.safetensors"))
                .unwrap()
        };
        assert_eq!(file(5), file(5));
        assert_ne!(file(5), file(6));
    }
}
