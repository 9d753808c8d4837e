//! What a decoder is, as plain data: an architecture file turns `config.json` into a [`DecoderSpec`], and
//! everything else (weight names and shapes, the forward loop, memory forecasts) reads only the spec.

use metal_candle_kernels::linear::Activation;

use super::rope::RopeSpec;

/// A decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// `model_type` of the config.
    pub architecture: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// The longest sequence the model was made for.
    pub max_positions: usize,
    /// Multiplies the embedded tokens.
    pub embedding_scale: f32,
    /// Multiplies what a block adds to the residual stream.
    pub residual_scale: f32,
    /// ε and weight offset of every norm.
    pub norm: NormSpec,
    /// The distinct rotary embeddings; layers refer to them by index.
    pub ropes: Vec<RopeSpec>,
    /// The blocks, first to last.
    pub layers: Vec<LayerSpec>,
    /// From the last hidden state to logits.
    pub head: HeadSpec,
}

/// Constants of an RMS norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Added to the mean square.
    pub epsilon: f32,
    /// Added to the weight: 1 for gemma, else 0.
    pub weight_offset: f32,
}

/// One block: attention and a gated MLP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// The attention half.
    pub attention: AttentionSpec,
    /// The MLP half.
    pub mlp: MlpSpec,
    /// Where the block's norms stand.
    pub norms: NormPlacement,
}

/// Where the norms of a block stand, by Hugging Face's weight names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before each half: `input_layernorm`, `post_attention_layernorm`.
    Before,
    /// On what each half adds: `post_attention_layernorm`, `post_feedforward_layernorm`.
    After,
    /// Both: `input_layernorm`, `post_attention_layernorm`, `pre_feedforward_layernorm`,
    /// `post_feedforward_layernorm`.
    Around,
}

/// The attention half of a block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// `cap · tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// A query sees only this many last positions.
    pub window: Option<usize>,
    /// Which of the spec's rotary embeddings; none for a layer without positions.
    pub rope: Option<usize>,
    /// Biases of q, k and v.
    pub input_bias: bool,
    /// Bias of the output projection.
    pub output_bias: bool,
    /// q, k and v stacked in one weight `qkv_proj`.
    pub fused: bool,
    /// Norms on queries and keys.
    pub qk_norm: QkNorm,
}

/// Norms on queries and keys, before the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Over each head: `q_norm`, `k_norm` of `head_dim`.
    PerHead,
    /// Over all heads together.
    Whole,
}

/// The MLP half of a block: `down(activation(gate(x)) · up(x))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlpSpec {
    /// Width between the projections.
    pub intermediate_size: usize,
    /// The nonlinearity of the gate.
    pub activation: Activation,
    /// Biases of all three projections.
    pub bias: bool,
    /// gate and up stacked in one weight `gate_up_proj`.
    pub fused: bool,
}

/// From the last hidden state to logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadSpec {
    /// The head is the embedding, transposed.
    pub tied: bool,
    /// Multiplies the logits.
    pub scale: f32,
    /// `cap · tanh(logit / cap)`.
    pub soft_cap: Option<f32>,
}

impl DecoderSpec {
    /// Name and shape of every weight, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors =
            vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, self.hidden_size])];
        for (index, layer) in self.layers.iter().enumerate() {
            let prefix = format!("model.layers.{index}.");
            let named = layer.tensors(self.hidden_size).into_iter();
            tensors.extend(named.map(|(name, shape)| (format!("{prefix}{name}"), shape)));
        }
        tensors.push(("model.norm.weight".to_owned(), vec![self.hidden_size]));
        if !self.head.tied {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab_size, self.hidden_size]));
        }
        tensors
    }

    /// How many numbers the weights hold.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().map(|&size| size as u64).product::<u64>()).sum()
    }

    /// Bytes of KV cache per position once every window is full or absent, for elements of this size.
    pub fn kv_bytes_per_position(&self, element_bytes: usize) -> usize {
        let per_layer =
            |layer: &LayerSpec| 2 * layer.attention.kv_heads * layer.attention.head_dim * element_bytes;
        self.layers.iter().map(per_layer).sum()
    }
}

impl LayerSpec {
    fn tensors(&self, hidden: usize) -> Vec<(String, Vec<usize>)> {
        let mut tensors = Vec::new();
        for name in self.norms.names() {
            tensors.push((format!("{name}.weight"), vec![hidden]));
        }
        let mut projection = |name: &str, outputs: usize, inputs: usize, bias: bool| {
            tensors.push((format!("{name}.weight"), vec![outputs, inputs]));
            if bias {
                tensors.push((format!("{name}.bias"), vec![outputs]));
            }
        };
        let attention = &self.attention;
        let (queries, keys) = (attention.query_size(), attention.key_size());
        if attention.fused {
            projection("self_attn.qkv_proj", queries + 2 * keys, hidden, attention.input_bias);
        } else {
            projection("self_attn.q_proj", queries, hidden, attention.input_bias);
            projection("self_attn.k_proj", keys, hidden, attention.input_bias);
            projection("self_attn.v_proj", keys, hidden, attention.input_bias);
        }
        projection("self_attn.o_proj", hidden, queries, attention.output_bias);
        let mlp = &self.mlp;
        if mlp.fused {
            projection("mlp.gate_up_proj", 2 * mlp.intermediate_size, hidden, mlp.bias);
        } else {
            projection("mlp.gate_proj", mlp.intermediate_size, hidden, mlp.bias);
            projection("mlp.up_proj", mlp.intermediate_size, hidden, mlp.bias);
        }
        projection("mlp.down_proj", hidden, mlp.intermediate_size, mlp.bias);
        if let Some((queries, keys)) = attention.qk_norm_sizes() {
            tensors.push(("self_attn.q_norm.weight".to_owned(), vec![queries]));
            tensors.push(("self_attn.k_norm.weight".to_owned(), vec![keys]));
        }
        tensors
    }
}

impl AttentionSpec {
    /// Outputs of the query projection.
    pub fn query_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Outputs of the key projection, and of the value projection.
    pub fn key_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn qk_norm_sizes(&self) -> Option<(usize, usize)> {
        match self.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some((self.head_dim, self.head_dim)),
            QkNorm::Whole => Some((self.query_size(), self.key_size())),
        }
    }
}

impl NormPlacement {
    /// Puts what belongs to each of [`names`](Self::names) where the norm stands: before and after attention, before and
    /// after the MLP.
    pub(crate) fn place<T>(self, norms: impl IntoIterator<Item = T>) -> [Option<T>; 4] {
        let mut norms = norms.into_iter();
        let mut next = || norms.next();
        match self {
            Self::Before => [next(), None, next(), None],
            Self::After => [None, next(), None, next()],
            Self::Around => [next(), next(), next(), next()],
        }
    }

    /// Weight names without their `.weight`.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Before => &["input_layernorm", "post_attention_layernorm"],
            Self::After => &["post_attention_layernorm", "post_feedforward_layernorm"],
            Self::Around => &[
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            ],
        }
    }
}
