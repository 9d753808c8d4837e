//! LoRA on the queries and values of Qwen2 through candle's tape. The model of candle-transformers cannot be used: its norms
//! and rotations have no gradient.
//!
//! B: sequences, S: tokens of each, H: heads, K: key/value heads, D: width of a head.

use anyhow::Result;
use candle_core::{D, DType, Device, Module, Tensor, Var};
use candle_nn::{
    AdamW, Linear, Optimizer, ParamsAdamW, RmsNorm, VarBuilder, linear_b, loss, ops, rms_norm, rotary_emb,
};
use candle_transformers::{models::qwen2::Config, utils::repeat_kv};

pub(crate) struct Training {
    model: Model,
    optimizer: AdamW,
    /// [B, S]
    ids: Tensor,
    /// [B × S]
    targets: Tensor,
}

impl Training {
    pub(crate) fn new(
        config: &Config,
        weights: VarBuilder,
        batch: usize,
        seq: usize,
        rank: usize,
    ) -> Result<Self> {
        let model = Model::new(config, weights.clone(), seq, rank)?;
        let optimizer = AdamW::new(model.trained(), ParamsAdamW { lr: 1e-4, ..ParamsAdamW::default() })?;
        let ids = crate::tokens(config, batch, seq, weights.device())?;
        let targets = ids.flatten_all()?;
        Ok(Self { model, optimizer, ids, targets })
    }

    pub(crate) fn step(&mut self) -> Result<()> {
        let loss = loss::cross_entropy(&self.model.forward(&self.ids)?, &self.targets)?;
        self.optimizer.backward_step(&loss)?;
        anyhow::ensure!(loss.to_scalar::<f32>()?.is_finite(), "the loss is not finite");
        Ok(())
    }
}

struct Model {
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: RmsNorm,
    turns: Turns,
}

/// [S, D / 2] each, and [S, S].
struct Turns {
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
}

impl Model {
    fn new(config: &Config, weights: VarBuilder, seq: usize, rank: usize) -> Result<Self> {
        let weights = weights.pp("model");
        let (vocabulary, width) = (config.vocab_size, config.hidden_size);
        let embedding = weights.pp("embed_tokens").get((vocabulary, width), "weight")?;
        let blocks = (0..config.num_hidden_layers)
            .map(|index| Block::new(config, weights.pp("layers").pp(index), rank))
            .collect::<Result<_>>()?;
        let norm = rms_norm(width, config.rms_norm_eps, weights.pp("norm"))?;
        let turns = Turns::new(config, seq, weights.device(), weights.dtype())?;
        Ok(Self { embedding, blocks, norm, turns })
    }

    fn trained(&self) -> Vec<Var> {
        self.blocks.iter().flat_map(|block| [&block.q, &block.v]).flat_map(Adapted::trained).collect()
    }

    /// Logits [B × S, vocabulary] in f32.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, seq) = ids.dims2()?;
        let width = self.embedding.dim(1)?;
        let mut x = self.embedding.index_select(&ids.flatten_all()?, 0)?.reshape((batch, seq, width))?;
        for block in &self.blocks {
            x = block.forward(&x, &self.turns)?;
        }
        let x = self.norm.forward_diff(&x)?.reshape((batch * seq, width))?;
        Ok(x.matmul(&self.embedding.t()?)?.to_dtype(DType::F32)?)
    }
}

impl Turns {
    fn new(config: &Config, seq: usize, device: &Device, dtype: DType) -> Result<Self> {
        let width = config.hidden_size / config.num_attention_heads;
        let turns =
            (0..width / 2).map(|index| config.rope_theta.powf(-2.0 * index as f64 / width as f64) as f32);
        let turns = Tensor::from_iter(turns, device)?.reshape((1, width / 2))?;
        let positions = Tensor::arange(0f32, seq as f32, device)?.reshape((seq, 1))?;
        let angles = positions.matmul(&turns)?;
        let later = (0..seq * seq).map(|at| if at % seq > at / seq { f32::NEG_INFINITY } else { 0.0 });
        let mask = Tensor::from_iter(later, device)?.reshape((seq, seq))?.to_dtype(dtype)?;
        Ok(Self { cos: angles.cos()?.to_dtype(dtype)?, sin: angles.sin()?.to_dtype(dtype)?, mask })
    }
}

struct Block {
    q: Adapted,
    k: Linear,
    v: Adapted,
    o: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
    before_attention: RmsNorm,
    before_mlp: RmsNorm,
    heads: usize,
    groups: usize,
}

impl Block {
    fn new(config: &Config, weights: VarBuilder, rank: usize) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let (heads, groups) = (config.num_attention_heads, config.num_key_value_heads);
        let narrow = width / heads * groups;
        let (attention, mlp) = (weights.pp("self_attn"), weights.pp("mlp"));
        let norm = |name| rms_norm(width, config.rms_norm_eps, weights.pp(name));
        Ok(Self {
            q: Adapted::new(width, width, rank, attention.pp("q_proj"))?,
            k: linear_b(width, narrow, true, attention.pp("k_proj"))?,
            v: Adapted::new(width, narrow, rank, attention.pp("v_proj"))?,
            o: linear_b(width, width, false, attention.pp("o_proj"))?,
            gate: linear_b(width, inner, false, mlp.pp("gate_proj"))?,
            up: linear_b(width, inner, false, mlp.pp("up_proj"))?,
            down: linear_b(inner, width, false, mlp.pp("down_proj"))?,
            before_attention: norm("input_layernorm")?,
            before_mlp: norm("post_attention_layernorm")?,
            heads,
            groups,
        })
    }

    fn forward(&self, x: &Tensor, turns: &Turns) -> Result<Tensor> {
        let (batch, seq, width) = x.dims3()?;
        let normed = self.before_attention.forward_diff(x)?;
        // [B, S, heads × D] -> [B, heads, S, D]
        let split = |y: Tensor, heads| y.reshape((batch, seq, heads, ()))?.transpose(1, 2)?.contiguous();
        let q = split(self.q.forward(&normed)?, self.heads)?;
        let k = split(self.k.forward(&normed)?, self.groups)?;
        let v = split(self.v.forward(&normed)?, self.groups)?;
        let q = rotary_emb::rope_slow(&q, &turns.cos, &turns.sin)?.contiguous()?;
        let k = rotary_emb::rope_slow(&k, &turns.cos, &turns.sin)?;
        let repeat = self.heads / self.groups;
        let (k, v) = (repeat_kv(k, repeat)?.contiguous()?, repeat_kv(v, repeat)?.contiguous()?);
        let scale = ((width / self.heads) as f64).powf(-0.5);
        let scores = (q.matmul(&k.transpose(2, 3)?)? * scale)?.broadcast_add(&turns.mask)?;
        let mixed = ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
        let mixed = mixed.transpose(1, 2)?.reshape((batch, seq, width))?;
        let x = (x + self.o.forward(&mixed)?)?;
        let normed = self.before_mlp.forward_diff(&x)?;
        let gated = (self.gate.forward(&normed)?.silu()? * self.up.forward(&normed)?)?;
        Ok((&x + self.down.forward(&gated)?)?)
    }
}

/// A frozen layer with a trained A and B, in f32, beside it.
struct Adapted {
    base: Linear,
    a: Var,
    b: Var,
}

impl Adapted {
    fn new(inputs: usize, outputs: usize, rank: usize, weights: VarBuilder) -> Result<Self> {
        let device = weights.device();
        let a = Var::randn(0f32, 0.02f32, (rank, inputs), device)?;
        let b = Var::zeros((outputs, rank), DType::F32, device)?;
        Ok(Self { base: linear_b(inputs, outputs, true, weights)?, a, b })
    }

    fn trained(&self) -> [Var; 2] {
        [self.a.clone(), self.b.clone()]
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, seq, width) = x.dims3()?;
        let (a, b) = (self.a.to_dtype(x.dtype())?, self.b.to_dtype(x.dtype())?);
        let delta = x.reshape((batch * seq, width))?.matmul(&a.t()?)?.matmul(&b.t()?)?;
        Ok((self.base.forward(x)? + (delta.reshape((batch, seq, ()))? * 2.0)?)?)
    }
}
