//! Fine-tunes a model: `cargo run --release --example train -- MODEL_FOLDER DATA OUTPUT`.
#![allow(clippy::print_stderr, missing_docs)]

use std::{ops::ControlFlow, path::PathBuf, sync::Arc};

use metal_candle::{
    LanguageModel,
    model::LoadOptions,
    train::{DataConfig, Run, RunLength, Schedule, TrainConfig, events::TrainEvent},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let paths: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    let [model, data, output] = paths.as_slice() else { return Err("give MODEL_FOLDER DATA OUTPUT".into()) };
    let config = TrainConfig {
        model: model.display().to_string(),
        data: DataConfig { path: data.clone(), ..DataConfig::default() },
        schedule: Schedule::constant(2e-4),
        length: RunLength::Steps(100),
        output: output.clone(),
        ..TrainConfig::default()
    };
    let model = LanguageModel::load(model, &LoadOptions::default(), &mut |_, _| ())?;
    let mut run = Run::new(Arc::new(model), config, &mut |_, _| ())?;
    run.run(&mut |event: &TrainEvent| {
        if let TrainEvent::Step(step) = event {
            eprintln!("step {}: loss {:.3}", step.step, step.loss);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(())
}
