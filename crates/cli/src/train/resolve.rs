//! From settings to the config of a run: the one place that knows the defaults of the command line.

use anyhow::{Result, bail};
use metal_candle::{
    data::{CompletionForm, Supervise},
    lora::{Initialisation, LoraConfig, Method, Scaling},
    train::{
        AdapterFormat, DataConfig, EvaluationConfig, Optimizer, OptimizerConfig, RecomputeChoice, RunLength,
        SampleConfig, TrainConfig, Training, data::Batching,
    },
};

use super::{
    schedule,
    settings::{
        BatchingName, CompletionName, FineTuneType, FormatName, Init, LoraParameters, OptimizerName,
        Settings, SuperviseName,
    },
};

/// The config that the settings stand for.
pub(crate) fn config(settings: &Settings) -> Result<TrainConfig> {
    refuse(settings)?;
    let accumulation = settings.grad_accumulation_steps.unwrap_or(1);
    if accumulation == 0 {
        bail!("grad_accumulation_steps is 0; it must be at least 1");
    }
    // Counts of batches, as mlx-lm has them, in steps.
    let steps = |batches: u64| if batches == 0 { 0 } else { (batches / accumulation as u64).max(1) };
    let full = settings.fine_tune_type == Some(FineTuneType::Full) || settings.from_config.is_some();
    let length = match settings.epochs {
        Some(_) if settings.iters.is_some() => bail!("iters and epochs are both given; leave one out"),
        Some(epochs) => RunLength::Epochs(epochs),
        None => RunLength::Steps(steps(settings.iters.unwrap_or(1000))),
    };
    let model = match (&settings.model, &settings.from_config) {
        (Some(_), Some(_)) => bail!("--model and --from-config are both given; leave one out"),
        (None, None) => {
            bail!("no model is given; use --model, or --from-config to train from random weights")
        }
        (Some(model), None) => model.clone(),
        (None, Some(folder)) => folder.display().to_string(),
    };
    Ok(TrainConfig {
        model,
        method: if full { Training::Full } else { Training::Adapter },
        from_scratch: settings.from_config.is_some(),
        lora: lora(settings)?,
        initial_adapter: settings.resume_adapter_file.clone(),
        data: data(settings)?,
        optimizer: optimizer(settings)?,
        schedule: schedule::resolve(settings)?,
        length,
        accumulation,
        label_smoothing: settings.label_smoothing.unwrap_or(0.0),
        z_loss: settings.z_loss.unwrap_or(0.0),
        seed: settings.seed.unwrap_or(0),
        recompute: recompute(settings)?,
        evaluation: EvaluationConfig {
            every: Some(steps(settings.steps_per_eval.unwrap_or(200))),
            batches: all_or(settings.val_batches, 25, "val_batches")?,
            patience: settings.patience,
            test: settings.test.unwrap_or(false),
            test_batches: all_or(settings.test_batches, 500, "test_batches")?,
        },
        samples: SampleConfig {
            prompts: settings.sample.clone().unwrap_or_default(),
            raw: settings.sample_raw.unwrap_or(false),
            every: settings.sample_every.map(steps),
            max_tokens: settings.sample_tokens.unwrap_or(64),
        },
        save_every: Some(steps(settings.save_every.unwrap_or(100))),
        keep_last: Some(settings.keep_last.unwrap_or(3)),
        output: settings.adapter_path.clone().unwrap_or_else(|| "adapters".into()),
        format: match settings.format {
            None | Some(FormatName::Peft) => AdapterFormat::Peft,
            Some(FormatName::Mlx) => AdapterFormat::Mlx,
        },
    })
}

/// What mlx-lm has and this program has not, and what contradicts itself.
fn refuse(settings: &Settings) -> Result<()> {
    if settings.hf_dataset.is_some() {
        bail!(
            "hf_dataset is not supported: download the data set, write it as JSONL and name it with --data"
        );
    }
    if settings.wandb.is_some() || settings.project_name.is_some() {
        bail!(
            "wandb and project_name are not supported; metrics.jsonl and report.html are always written, and \
               TensorBoard's files with --report-to tensorboard"
        );
    }
    if let Some(other) = settings.report_to.as_deref().filter(|to| *to != "tensorboard") {
        bail!(
            "report_to is {other}; only tensorboard is supported (metrics.jsonl and report.html are always written)"
        );
    }
    if settings.train == Some(false) {
        bail!("train is false; to measure a model without training it, use `metal-candle eval`");
    }
    let full = settings.fine_tune_type == Some(FineTuneType::Full);
    if let Some(kind) = settings.fine_tune_type.filter(|kind| *kind != FineTuneType::Full)
        && settings.from_config.is_some()
    {
        bail!("fine_tune_type is {kind:?}; random weights (--from-config) are trained as a whole");
    }
    if full && settings.num_layers.is_some_and(|count| count >= 0) {
        bail!("num_layers is given; fine_tune_type full trains all weights (num_layers -1)");
    }
    if (full || settings.from_config.is_some()) && settings.resume_adapter_file.is_some() {
        bail!("resume_adapter_file is given; there is no adapter where all weights are trained");
    }
    Ok(())
}

fn lora(settings: &Settings) -> Result<LoraConfig> {
    let nothing = LoraParameters::default();
    let inner = settings.lora_parameters.as_ref().unwrap_or(&nothing);
    let (alpha, scale) = match (settings.alpha, settings.scale) {
        (None, None) => (inner.alpha, inner.scale),
        given => given,
    };
    let rslora = settings.rslora.unwrap_or(false);
    let scaling = match (alpha, scale) {
        (Some(_), Some(_)) => bail!("alpha and scale are both given; leave one out (scale = alpha / rank)"),
        (Some(alpha), None) if rslora => Scaling::RankStabilised(alpha),
        (Some(alpha), None) => Scaling::Alpha(alpha),
        (None, _) if rslora => bail!("rslora needs alpha"),
        (None, scale) => Scaling::Factor(scale.unwrap_or(20.0)),
    };
    let targets = settings.targets.clone().or_else(|| inner.keys.clone());
    let last_layers = match settings.num_layers.unwrap_or(16) {
        -1 => None,
        count => match usize::try_from(count) {
            Ok(count) if count > 0 => Some(count),
            _ => bail!("num_layers is {count}; use a number of blocks, or -1 for all"),
        },
    };
    Ok(LoraConfig {
        method: match settings.fine_tune_type {
            Some(FineTuneType::Dora) => Method::Dora,
            _ => Method::Lora,
        },
        targets: targets.unwrap_or_else(|| vec!["all-linear".to_owned()]),
        rank: settings.rank.or(inner.rank).unwrap_or(8),
        scaling,
        dropout: settings.dropout.or(inner.dropout).unwrap_or(0.0),
        last_layers,
        rank_pattern: settings.rank_pattern.clone().unwrap_or_default(),
        alpha_pattern: settings.alpha_pattern.clone().unwrap_or_default(),
        initialisation: match settings.init {
            None | Some(Init::Kaiming) => Initialisation::Kaiming,
            Some(Init::Gaussian) => Initialisation::Gaussian,
            Some(Init::Pissa) => Initialisation::Pissa,
        },
    })
}

fn data(settings: &Settings) -> Result<DataConfig> {
    let supervise = match (settings.supervise, settings.mask_prompt) {
        (Some(_), Some(_)) => bail!("supervise and mask_prompt are both given; leave one out"),
        (None, None) | (Some(SuperviseName::Assistant), None) => Supervise::Assistant,
        (Some(SuperviseName::LastTurn), None) | (None, Some(true)) => Supervise::LastTurn,
        (Some(SuperviseName::Completion), None) => Supervise::Completion,
        (Some(SuperviseName::All), None) | (None, Some(false)) => Supervise::All,
    };
    let default = DataConfig::default();
    Ok(DataConfig {
        path: settings.data.clone().unwrap_or(default.path),
        skip_bad: settings.skip_bad.unwrap_or(false),
        supervise,
        completion: match settings.completion {
            None | Some(CompletionName::Plain) => CompletionForm::Plain,
            Some(CompletionName::Chat) => CompletionForm::Chat,
        },
        append_end: settings.append_eos.unwrap_or(true),
        batching: match settings.batching {
            None | Some(BatchingName::Concatenated) => Batching::Concatenated,
            Some(BatchingName::Packed) => Batching::Packed,
            Some(BatchingName::Padded) => Batching::Padded,
        },
        batch_size: settings.batch_size.unwrap_or(4),
        max_seq_length: settings.max_seq_length.unwrap_or(2048),
        shuffle: settings.shuffle.unwrap_or(true),
        window: settings.window.unwrap_or(default.window),
    })
}

fn optimizer(settings: &Settings) -> Result<OptimizerConfig> {
    let (name, key, decay) = match settings.optimizer.unwrap_or(OptimizerName::Adam) {
        OptimizerName::Adam => (Optimizer::Adam, "adam", 0.0),
        OptimizerName::Adamw => (Optimizer::AdamW, "adamw", 0.01),
        OptimizerName::Sgd => (Optimizer::Sgd, "sgd", 0.0),
        OptimizerName::Lion => (Optimizer::Lion, "lion", 0.0),
        OptimizerName::Muon => bail!("the optimizer muon is not supported; use adamw, adam, sgd or lion"),
        OptimizerName::Adafactor => {
            bail!("the optimizer adafactor is not supported; use adamw, adam, sgd or lion")
        }
    };
    let all = settings.optimizer_config.clone().unwrap_or_default();
    if let Some(other) =
        all.keys().find(|key| !["adam", "adamw", "sgd", "lion", "muon", "adafactor"].contains(&key.as_str()))
    {
        bail!("optimizer_config.{other}: there is no such optimizer; it holds adam, adamw, sgd or lion");
    }
    let own = all.get(key).cloned().unwrap_or_default();
    if own.bias_correction == Some(false) {
        bail!(
            "optimizer_config.{key}.bias_correction is false; the averages are always corrected here, leave it out"
        );
    }
    if own.dampening.is_some_and(|number| number != 0.0) || own.nesterov == Some(true) {
        bail!("optimizer_config.{key}: dampening and nesterov are not supported");
    }
    let betas = match (own.betas, own.momentum) {
        (_, Some(_)) if name != Optimizer::Sgd => {
            bail!("optimizer_config.{key}.momentum: only sgd has a momentum")
        }
        (Some(_), _) if name == Optimizer::Sgd => bail!("optimizer_config.sgd.betas: sgd has a momentum"),
        (None, Some(momentum)) => Some([momentum, 0.0]),
        (betas, _) => betas,
    };
    let default = OptimizerConfig::default();
    Ok(OptimizerConfig {
        name,
        betas,
        epsilon: own.eps.unwrap_or(default.epsilon),
        weight_decay: settings.weight_decay.or(own.weight_decay).unwrap_or(decay),
        b_rate: settings.lora_plus_ratio.unwrap_or(default.b_rate),
        max_gradient_norm: settings.max_grad_norm,
    })
}

fn recompute(settings: &Settings) -> Result<RecomputeChoice> {
    let named = settings.recompute.map(RecomputeChoice::from);
    let budget = settings.memory_budget.map(|bytes| RecomputeChoice::Within(bytes.0));
    match (named, budget, settings.grad_checkpoint) {
        (None | Some(RecomputeChoice::Auto), Some(budget), _) => Ok(budget),
        (Some(_), Some(_), _) => bail!("recompute and memory_budget are both given; leave one out"),
        (Some(named), None, _) => Ok(named),
        (None, None, Some(true)) => Ok(RecomputeChoice::All),
        (None, None, Some(false)) => Ok(RecomputeChoice::None),
        (None, None, None) => Ok(RecomputeChoice::Auto),
    }
}

/// −1 stands for all.
fn all_or(given: Option<i64>, default: i64, name: &str) -> Result<Option<u64>> {
    match given.unwrap_or(default) {
        -1 => Ok(None),
        count => match u64::try_from(count) {
            Ok(count) if count > 0 => Ok(Some(count)),
            _ => bail!("{name} is {count}; use a number of batches, or -1 for all"),
        },
    }
}
