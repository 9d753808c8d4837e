//! The dense layers of a decoder that adapters can change, by Hugging Face's names.

use std::{collections::BTreeMap, fmt, ops::Range};

use crate::model::spec::DecoderSpec;

/// A weight of a block that adapters can change. Fused weights are one module, as in the files of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Module {
    /// `self_attn.q_proj`
    Queries,
    /// `self_attn.k_proj`
    Keys,
    /// `self_attn.v_proj`
    Values,
    /// `self_attn.qkv_proj`
    QueriesKeysValues,
    /// `self_attn.o_proj`
    Output,
    /// `mlp.gate_proj`
    Gate,
    /// `mlp.up_proj`
    Up,
    /// `mlp.gate_up_proj`
    GateUp,
    /// `mlp.down_proj`
    Down,
}

/// A product that a block computes: a module, or some rows of a fused one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // the names of `Module`
pub enum Part {
    Queries,
    Keys,
    Values,
    Output,
    Gate,
    Up,
    Down,
}

impl Part {
    /// Whether it belongs to the MLP, and not to the attention.
    pub(crate) fn is_of_mlp(self) -> bool {
        matches!(self, Self::Gate | Self::Up | Self::Down)
    }
}

/// A module of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// The block, from 0.
    pub layer: usize,
    /// Its module.
    pub module: Module,
}

/// A site with the shape of its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiteShape {
    /// Where.
    pub site: Site,
    /// N
    pub outputs: usize,
    /// K
    pub inputs: usize,
}

impl Module {
    /// All, in the order of a block's weights.
    pub const ALL: [Self; 9] = [
        Self::Queries,
        Self::Keys,
        Self::Values,
        Self::QueriesKeysValues,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::GateUp,
        Self::Down,
    ];

    /// The path within a block, such as `self_attn.q_proj`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Queries => "self_attn.q_proj",
            Self::Keys => "self_attn.k_proj",
            Self::Values => "self_attn.v_proj",
            Self::QueriesKeysValues => "self_attn.qkv_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::GateUp => "mlp.gate_up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The last part of the path, such as `q_proj`.
    pub fn name(self) -> &'static str {
        self.path().rsplit('.').next().unwrap_or_default()
    }

    /// What of it a block computes, with each part's share of `outputs` rows.
    pub(crate) fn parts(self, spec: &DecoderSpec, layer: usize) -> Vec<(Part, Range<usize>)> {
        let attention = &spec.layers[layer].attention;
        let (queries, keys) = (attention.query_size(), attention.key_size());
        let middle = spec.layers[layer].mlp.intermediate_size;
        match self {
            Self::Queries => vec![(Part::Queries, 0..queries)],
            Self::Keys => vec![(Part::Keys, 0..keys)],
            Self::Values => vec![(Part::Values, 0..keys)],
            Self::QueriesKeysValues => vec![
                (Part::Queries, 0..queries),
                (Part::Keys, queries..queries + keys),
                (Part::Values, queries + keys..queries + 2 * keys),
            ],
            Self::Output => vec![(Part::Output, 0..spec.hidden_size)],
            Self::Gate => vec![(Part::Gate, 0..middle)],
            Self::Up => vec![(Part::Up, 0..middle)],
            Self::GateUp => vec![(Part::Gate, 0..middle), (Part::Up, middle..2 * middle)],
            Self::Down => vec![(Part::Down, 0..spec.hidden_size)],
        }
    }
}

impl Part {
    /// All, in the order of a block.
    pub(crate) const ALL: [Self; 7] =
        [Self::Queries, Self::Keys, Self::Values, Self::Output, Self::Gate, Self::Up, Self::Down];
}

impl Site {
    /// The weight's path without `.weight`, such as `model.layers.3.self_attn.q_proj`.
    pub fn path(self) -> String {
        format!("model.layers.{}.{}", self.layer, self.module.path())
    }

    /// The site of such a path.
    pub fn parse(path: &str) -> Option<Self> {
        let (layer, module) = path.strip_prefix("model.layers.")?.split_once('.')?;
        let module = Module::ALL.into_iter().find(|candidate| candidate.path() == module)?;
        Some(Self { layer: layer.parse().ok()?, module })
    }
}

impl fmt::Display for Site {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.path())
    }
}

impl DecoderSpec {
    /// The shape of every place for an adapter.
    pub(crate) fn shapes(&self) -> BTreeMap<Site, SiteShape> {
        self.sites().into_iter().map(|shape| (shape.site, shape)).collect()
    }

    /// Every place for an adapter, in the order of the forward pass.
    pub fn sites(&self) -> Vec<SiteShape> {
        let mut sites = Vec::new();
        for (layer, block) in self.layers.iter().enumerate() {
            let (attention, mlp) = (&block.attention, &block.mlp);
            let (queries, keys, middle) =
                (attention.query_size(), attention.key_size(), mlp.intermediate_size);
            let hidden = self.hidden_size;
            let mut add = |module, outputs, inputs| {
                sites.push(SiteShape { site: Site { layer, module }, outputs, inputs });
            };
            if attention.fused {
                add(Module::QueriesKeysValues, queries + 2 * keys, hidden);
            } else {
                add(Module::Queries, queries, hidden);
                add(Module::Keys, keys, hidden);
                add(Module::Values, keys, hidden);
            }
            add(Module::Output, hidden, queries);
            if mlp.fused {
                add(Module::GateUp, 2 * middle, hidden);
            } else {
                add(Module::Gate, middle, hidden);
                add(Module::Up, middle, hidden);
            }
            add(Module::Down, hidden, middle);
        }
        sites
    }
}
