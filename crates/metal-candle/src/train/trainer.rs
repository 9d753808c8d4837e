//! Parameters that follow their gradients: the core of a run, without data, schedule or files.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{DType, Device, Tensor};
use metal_candle_kernels::{
    cross_entropy::LossParams,
    lora::LoraAdapter,
    optimizer::{self, Clip, Step},
    trace,
};

use super::{
    BatchLoss, Group, OptimizerConfig, Parameter, Parameters, Rows, TrainError, Update, Updated, sums,
};
use crate::{
    lora::{ActiveAdapter, Adapter, AdapterLayer, LoraConfig, Site, factors_to},
    model::{
        Model,
        spec::DecoderSpec,
        walk::{Dropout, Gradients, Recompute, RotaryTables, Walk},
        weights::Weights,
    },
};

/// How to train, as far as one step goes.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerOptions {
    /// The rule and its settings.
    pub optimizer: OptimizerConfig,
    /// Names the random numbers of dropout.
    pub seed: u64,
    /// What is computed again on the way back.
    pub recompute: Recompute,
    /// The share of the target distribution that is spread evenly over the vocabulary.
    pub label_smoothing: f32,
    /// The weight of the squared logarithm of the softmax's denominator.
    pub z_loss: f32,
    /// The most tokens whose logits a GPU holds at once; `None` chooses by memory.
    pub chunk_tokens: Option<usize>,
}

/// Parameters in training.
#[derive(Debug)]
pub struct Trainer {
    model: Arc<Model>,
    trained: Trained,
    parameters: Parameters,
    gradients: Gradients,
    options: TrainerOptions,
    tables: RotaryTables,
}

#[derive(Debug)]
enum Trained {
    Adapter {
        config: LoraConfig,
        /// Views of the parameters.
        layers: BTreeMap<Site, AdapterLayer>,
        active: ActiveAdapter,
    },
    Everything,
}

impl Default for TrainerOptions {
    fn default() -> Self {
        Self {
            optimizer: OptimizerConfig::default(),
            seed: 0,
            recompute: Recompute::NONE,
            label_smoothing: 0.0,
            z_loss: 0.0,
            chunk_tokens: None,
        }
    }
}

impl Trainer {
    /// Trains an adapter beside a frozen model.
    pub fn lora(model: Arc<Model>, adapter: &Adapter, options: TrainerOptions) -> Result<Self, TrainError> {
        options.optimizer.check()?;
        adapter.check(model.spec())?;
        let mut wanted = Vec::new();
        for (site, layer) in &adapter.layers {
            for (name, tensor, group) in matrices(*site, layer) {
                wanted.push(Parameter { name, shape: tensor.dims().to_vec(), group });
            }
        }
        if wanted.is_empty() {
            return Err(TrainError::Setting {
                name: "targets",
                value: "without any module".to_owned(),
                expected: "an adapter must change at least one module",
            });
        }
        let mut parameters = Parameters::new(wanted, model.compute_dtype(), model.device())?;
        let mut layers = BTreeMap::new();
        for (site, layer) in &adapter.layers {
            let mut views = Vec::new();
            for (name, tensor, _) in matrices(*site, layer) {
                parameters.set(&name, tensor)?;
                views.push(parameters.computed(parameters.index(&name)?)?);
            }
            let mut views = views.into_iter();
            let mut next = || views.next().expect("as many views as matrices");
            let lora = LoraAdapter { a: next(), b: next(), scale: layer.lora.scale };
            let magnitude = layer.magnitude.as_ref().map(|_| next());
            let to_model = |lora: &LoraAdapter| factors_to(lora, model.device(), model.compute_dtype());
            let minus = layer.minus.as_ref().map(to_model).transpose()?;
            layers.insert(*site, AdapterLayer { lora, magnitude, minus });
        }
        parameters.publish()?;
        let gradients = sums::of_adapter(&layers, &parameters, model.spec())?;
        let active = ActiveAdapter::over(&layers, &model)?;
        let trained = Trained::Adapter { config: adapter.config.clone(), layers, active };
        Ok(Self { model, trained, parameters, gradients, options, tables: RotaryTables::default() })
    }

    /// Trains every weight of a model, in f32.
    pub fn full(
        spec: DecoderSpec,
        mut weights: Weights,
        device: &Device,
        options: TrainerOptions,
    ) -> Result<Self, TrainError> {
        options.optimizer.check()?;
        let wanted = spec.tensors().into_iter().map(|(name, shape)| {
            let group = if shape.len() > 1 { Group::Decayed } else { Group::Plain };
            Parameter { name, shape, group }
        });
        let mut parameters = Parameters::new(wanted.collect(), DType::F32, device)?;
        let names: Vec<String> = parameters.entries().map(|parameter| parameter.name.clone()).collect();
        let mut views = Vec::with_capacity(names.len());
        for (index, name) in names.into_iter().enumerate() {
            parameters.set(&name, &weights.take(&name).map_err(crate::model::ModelError::from)?)?;
            views.push((name, parameters.value(index)?));
        }
        let model = Model::new(spec.clone(), views.into_iter().collect(), device)?;
        let gradients = sums::of_weights(&parameters, &spec)?;
        let trained = Trained::Everything;
        let tables = RotaryTables::default();
        Ok(Self { model: Arc::new(model), trained, parameters, gradients, options, tables })
    }

    /// The model: frozen beside an adapter, else as it has become.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What is trained.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Goes on from saved parameters and moments.
    pub fn restore(&mut self, saved: &[super::ParameterState]) -> Result<(), TrainError> {
        self.parameters.restore(saved)?;
        self.refresh()
    }

    /// The adapter as it is now, ready for generation; none where everything is trained.
    pub fn active_adapter(&self) -> Result<Option<Arc<ActiveAdapter>>, TrainError> {
        let adapter = self.adapter()?;
        Ok(adapter.map(|adapter| ActiveAdapter::new(&adapter, &self.model)).transpose()?.map(Arc::new))
    }

    /// The adapter as it is now: f32 on the CPU; none where everything is trained.
    pub fn adapter(&self) -> Result<Option<Adapter>, TrainError> {
        let Trained::Adapter { config, layers, .. } = &self.trained else { return Ok(None) };
        let mut copied = BTreeMap::new();
        for (&site, layer) in layers {
            let copy = |name: String| {
                let value = self.parameters.value(self.parameters.index(&name)?)?;
                Ok::<_, TrainError>(value.force_contiguous()?.to_device(&Device::Cpu)?)
            };
            let [a, b, magnitude] = names(site);
            let lora = LoraAdapter { a: copy(a)?, b: copy(b)?, scale: layer.lora.scale };
            let magnitude = layer.magnitude.as_ref().map(|_| copy(magnitude)).transpose()?;
            // As it was subtracted: in the type that the model computes in.
            let to_host = |lora: &LoraAdapter| factors_to(lora, &Device::Cpu, DType::F32);
            let minus = layer.minus.as_ref().map(to_host).transpose()?;
            copied.insert(site, AdapterLayer { lora, magnitude, minus });
        }
        Ok(Some(Adapter { config: config.clone(), layers: copied }))
    }

    /// Adds the gradients of a batch's summed loss. `draw` names the random numbers of dropout: the same draw gives the
    /// same gradients.
    pub fn accumulate(&mut self, rows: &Rows<'_>, draw: u64) -> Result<BatchLoss, TrainError> {
        let _accumulate = trace::span("accumulate", self.model.device());
        let mut tables = std::mem::take(&mut self.tables);
        let found = self.walk(Some(draw)).accumulate(rows, &mut tables, &self.gradients);
        self.tables = tables;
        Ok(found?)
    }

    /// The loss of a batch with the parameters as they are.
    pub fn loss(&mut self, rows: &Rows<'_>) -> Result<BatchLoss, TrainError> {
        let mut tables = std::mem::take(&mut self.tables);
        let found = self.walk(None).loss(rows, &mut tables);
        self.tables = tables;
        Ok(found?)
    }

    /// Moves the parameters along the gradients since the last update, which are then forgotten. A gradient that is not
    /// finite changes nothing: the caller sees its norm.
    pub fn update(&mut self, update: &Update) -> Result<Updated, TrainError> {
        let _optimizer = trace::span("optimizer", self.model.device());
        trace::sample(self.model.device());
        let summed = self.parameters.gradient();
        trace::launched(1);
        let gradient = (summed * (1.0 / update.targets.max(1) as f64))?;
        let norm = optimizer::norm(&gradient)?;
        let gradient_norm = norm.to_vec1::<f32>()?[0];
        if gradient_norm.is_finite() {
            let config = &self.options.optimizer;
            let longest = config.max_gradient_norm;
            for (group, range) in self.parameters.groups() {
                let (learning_rate, weight_decay) = config.of(*group, update.learning_rate);
                let clip = longest.map(|longest| Clip { norm: &norm, longest });
                let (rule, number) = (config.rule(), update.number);
                let step = Step { rule, number, learning_rate, weight_decay, clip };
                optimizer::update(self.parameters.all_state(), &gradient, range.clone(), &step)?;
            }
            self.parameters.publish()?;
        }
        summed.zero_set()?;
        self.refresh()?;
        Ok(Updated { gradient_norm })
    }

    /// The gradient of a parameter as it has been summed since the last update.
    pub fn gradient(&self, name: &str) -> Result<Tensor, TrainError> {
        Ok(self.parameters.gradient_of(self.parameters.index(name)?)?.force_contiguous()?)
    }

    fn walk(&self, draw: Option<u64>) -> Walk<'_> {
        let (adapter, probability) = match &self.trained {
            Trained::Adapter { config, active, .. } => (Some(active), config.dropout),
            Trained::Everything => (None, 0.0),
        };
        let seed = self.options.seed;
        let head = &self.model.spec().head;
        Walk {
            model: &self.model,
            adapter,
            dropout: draw.filter(|_| probability > 0.0).map(|draw| Dropout { probability, seed, draw }),
            first_block: adapter.and_then(ActiveAdapter::first_block).unwrap_or(0),
            recompute: self.options.recompute,
            loss: LossParams {
                label_smoothing: if draw.is_some() { self.options.label_smoothing } else { 0.0 },
                z_loss: if draw.is_some() { self.options.z_loss } else { 0.0 },
                soft_cap: head.soft_cap,
                logit_scale: head.scale,
                chunk_tokens: self.options.chunk_tokens,
            },
        }
    }

    /// What depends on the values of the parameters and is kept: DoRA's norms.
    fn refresh(&mut self) -> Result<(), TrainError> {
        if let Trained::Adapter { layers, active, .. } = &mut self.trained
            && layers.values().any(|layer| layer.magnitude.is_some())
        {
            *active = ActiveAdapter::over(layers, &self.model)?;
        }
        Ok(())
    }
}

/// The matrices of a layer with their names and groups.
fn matrices(site: Site, layer: &AdapterLayer) -> Vec<(String, &Tensor, Group)> {
    let [a, b, magnitude] = names(site);
    let mut matrices = vec![(a, &layer.lora.a, Group::Decayed), (b, &layer.lora.b, Group::LoraB)];
    matrices.extend(layer.magnitude.as_ref().map(|tensor| (magnitude, tensor, Group::Decayed)));
    matrices
}

/// The names of a layer's A, B and magnitudes among the parameters: those of PEFT's files.
pub(super) fn names(site: Site) -> [String; 3] {
    ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"]
        .map(|matrix| format!("base_model.model.{site}.{matrix}"))
}
