//! Ways to compute the same that must agree.

use std::sync::Arc;

use candle_core::Tensor;
use metal_candle::{
    LanguageModel,
    generate::{Engine, EngineOptions, Generation, Prompt, Request, sampler::SamplingParams},
    lora::{ActiveAdapter, Adapter, Initialisation, LoraConfig, MergeOptions, Method, Scaling, merge},
    model::{LoadOptions, LogitsFor, SequenceInput},
};
use metal_candle_testkit::tolerance::Gate;

use crate::support::{
    close, config, differs, floats, load, logits, model, model_folder, prompt, random_adapter, with,
};

#[test]
fn without_b_an_adapter_is_the_base_model_bit_by_bit() {
    for name in ["llama3", "phi3", "gemma2", "qwen2"] {
        let model = model(name);
        let tokens = prompt(&model, 19);
        let base = logits(&model, &tokens, None);
        for initialisation in [Initialisation::Kaiming, Initialisation::Gaussian] {
            let config = LoraConfig { initialisation, ..config(&["all-linear"]) };
            let adapter = Adapter::initial(&config, &model, 1).unwrap();
            assert_eq!(logits(&model, &tokens, Some(&with(&model, &adapter))), base, "{name}");
        }
    }
}

#[test]
fn the_first_values_of_dora_and_pissa_leave_the_model_as_it_is() {
    for name in ["llama3", "phi3", "qwen2"] {
        let model = model(name);
        let tokens = prompt(&model, 19);
        let base = logits(&model, &tokens, None);
        let dora = LoraConfig { method: Method::Dora, ..config(&["all-linear"]) };
        let pissa = LoraConfig { initialisation: Initialisation::Pissa, ..config(&["all-linear"]) };
        for config in [dora, pissa] {
            let adapter = Adapter::initial(&config, &model, 1).unwrap();
            close(&logits(&model, &tokens, Some(&with(&model, &adapter))), &base, Gate::SameModel, name);
            let plain = adapter.plain().unwrap();
            close(&logits(&model, &tokens, Some(&with(&model, &plain))), &base, Gate::SameModel, name);
        }
    }
}

#[test]
fn a_subtracted_part_is_half_of_twice_the_rank() {
    let model = model("llama3");
    let tokens = prompt(&model, 19);
    for scaling in [Scaling::Alpha(6.0), Scaling::RankStabilised(3.0), Scaling::Factor(1.5)] {
        let config =
            LoraConfig { initialisation: Initialisation::Pissa, scaling, ..config(&["q_proj", "down_proj"]) };
        let adapter = random_adapter(&config, &model, 3);
        let plain = adapter.plain().unwrap();
        assert!(plain.layers.values().all(|layer| layer.minus.is_none() && layer.lora.rank() == 8));
        assert_eq!(plain.config.rank, 8);
        for (&site, layer) in &plain.layers {
            let (found, expected) = (plain.config.scale_at(site), layer.lora.scale);
            assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
        }
        let found = logits(&model, &tokens, Some(&with(&model, &plain)));
        let expected = logits(&model, &tokens, Some(&with(&model, &adapter)));
        close(&found, &expected, Gate::SameModel, "plain");
        let combined = ActiveAdapter::combine(&[(&adapter, 0.5), (&adapter, 0.5)], &model).unwrap();
        close(&logits(&model, &tokens, Some(&combined)), &expected, Gate::SameModel, "in halves");
        differs(&expected, &logits(&model, &tokens, None), "the change");
    }
}

#[test]
fn merged_equals_unmerged() {
    let methods = [
        config(&["all-linear"]),
        LoraConfig { method: Method::Dora, ..config(&["all-linear"]) },
        LoraConfig { initialisation: Initialisation::Pissa, ..config(&["all-linear"]) },
    ];
    // Fused modules, biases, norms around, tied heads.
    for name in ["phi3", "llama3-bias", "gemma3", "qwen3", "mistral"] {
        let model = model(name);
        let tokens = prompt(&model, 19);
        for config in &methods {
            let adapter = random_adapter(config, &model, 5);
            let expected = logits(&model, &tokens, Some(&with(&model, &adapter)));
            differs(&expected, &logits(&model, &tokens, None), name);
            let output = tempfile::tempdir().unwrap();
            merge(&model_folder(name), &adapter, output.path(), &MergeOptions::default(), &mut |_, _| ())
                .unwrap();
            close(&logits(&load(output.path()), &tokens, None), &expected, Gate::SameModel, name);
        }
    }
}

#[test]
fn a_fused_module_is_its_parts() {
    // Rows of one B are the Bs of the parts: an adapter whose B is zero but for the values changes the values only.
    let model = model("phi3");
    let tokens = prompt(&model, 19);
    let whole = random_adapter(&config(&["qkv_proj", "gate_up_proj"]), &model, 5);
    let (attention, mlp) = (model.spec().layers[0].attention, model.spec().layers[0].mlp);
    let (queries, keys) = (attention.query_size(), attention.key_size());
    let sizes = [vec![queries, keys, keys], vec![mlp.intermediate_size; 2]];
    let mut parts = Vec::new();
    for kept in 0..3 {
        let mut part = whole.clone();
        for (site, layer) in &mut part.layers {
            let sizes = &sizes[usize::from(site.module.name() == "gate_up_proj")];
            let blocks: Vec<Tensor> = (0..sizes.len())
                .map(|index| {
                    let rows = layer.lora.b.narrow(0, sizes[..index].iter().sum(), sizes[index]).unwrap();
                    if index == kept { rows } else { rows.zeros_like().unwrap() }
                })
                .collect();
            layer.lora.b = Tensor::cat(&blocks, 0).unwrap();
        }
        parts.push((part, 1.0f32));
    }
    let parts: Vec<(&Adapter, f32)> = parts.iter().map(|(part, factor)| (part, *factor)).collect();
    let sum = ActiveAdapter::combine(&parts, &model).unwrap();
    let expected = logits(&model, &tokens, Some(&with(&model, &whole)));
    close(&logits(&model, &tokens, Some(&sum)), &expected, Gate::SameModel, "parts");
    differs(&logits(&model, &tokens, Some(&with(&model, parts[0].0))), &expected, "one part");
}

#[test]
fn combined_adapters_are_merged_one_after_the_other() {
    let name = "qwen2";
    let model = model(name);
    let tokens = prompt(&model, 19);
    let first = random_adapter(&config(&["q_proj", "v_proj", "up_proj"]), &model, 1);
    let second =
        random_adapter(&LoraConfig { rank: 3, ..config(&["v_proj", "o_proj", "down_proj"]) }, &model, 2);
    let combined = ActiveAdapter::combine(&[(&first, 1.0), (&second, -0.5)], &model).unwrap();
    let mut halved = second.clone();
    halved.layers.values_mut().for_each(|layer| layer.lora.scale *= -0.5);
    let (once, twice) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = MergeOptions::default();
    merge(&model_folder(name), &first, once.path(), &options, &mut |_, _| ()).unwrap();
    merge(once.path(), &halved, twice.path(), &options, &mut |_, _| ()).unwrap();
    let expected = logits(&load(twice.path()), &tokens, None);
    close(&logits(&model, &tokens, Some(&combined)), &expected, Gate::SameModel, "combined");
    // A factor of zero is the base model.
    let nothing = ActiveAdapter::combine(&[(&first, 0.0)], &model).unwrap();
    assert_eq!(logits(&model, &tokens, Some(&nothing)), logits(&model, &tokens, None));
    let dora = random_adapter(&LoraConfig { method: Method::Dora, ..config(&["q_proj"]) }, &model, 3);
    let error = ActiveAdapter::combine(&[(&first, 1.0), (&dora, 1.0)], &model).unwrap_err().to_string();
    assert!(error.contains("a DoRA adapter can only be used alone"), "{error}");
}

#[test]
fn a_batch_with_different_adapters_equals_each_alone() {
    let model = model("phi3");
    let first = with(&model, &random_adapter(&config(&["all-linear"]), &model, 1));
    let second = with(&model, &random_adapter(&LoraConfig { rank: 2, ..config(&["qkv_proj"]) }, &model, 2));
    let dora = LoraConfig { method: Method::Dora, ..config(&["o_proj", "gate_up_proj"]) };
    let third = with(&model, &random_adapter(&dora, &model, 3));
    let tokens = prompt(&model, 30);
    let rows: [(&[u32], Option<&ActiveAdapter>); 6] = [
        (&tokens[..7], Some(&first)),
        (&tokens[..12], None),
        (&tokens[3..4], Some(&second)),
        (&tokens[5..21], Some(&third)),
        (&tokens[5..21], Some(&third)),
        (&tokens[..7], Some(&first)),
    ];
    let mut caches: Vec<_> = rows.iter().map(|_| model.new_cache()).collect();
    for step in 0..2 {
        // Prompts, then one token each.
        let length = |tokens: &[u32]| if step == 0 { tokens.len() } else { 1 };
        let inputs = caches.iter_mut().zip(&rows);
        let mut batch: Vec<_> = inputs
            .map(|(cache, &(tokens, adapter))| SequenceInput {
                tokens: &tokens[..length(tokens)],
                cache,
                logits: LogitsFor::Last,
                adapter,
            })
            .collect();
        let found = model.forward(&mut batch).unwrap();
        for (index, &(tokens, adapter)) in rows.iter().enumerate() {
            let mut cache = model.new_cache();
            let mut expected = Vec::new();
            for step in 0..=step {
                let tokens = if step == 0 { tokens } else { &tokens[..1] };
                let input = SequenceInput { tokens, cache: &mut cache, logits: LogitsFor::Last, adapter };
                expected = floats(&model.forward(&mut [input]).unwrap());
            }
            close(
                &floats(&found.get(index).unwrap()),
                &expected,
                Gate::SameModel,
                format!("sequence {index}"),
            );
        }
    }
}

#[test]
fn kept_prefixes_never_cross_adapters() {
    let model =
        LanguageModel::load(&model_folder("tiny-chat"), &LoadOptions::default(), &mut |_, _| ()).unwrap();
    let model = Arc::new(model);
    let adapter = |seed| {
        let adapter = random_adapter(&config(&["all-linear"]), model.model(), seed);
        Some(Arc::new(with(model.model(), &adapter)))
    };
    let adapters = [None, adapter(1), adapter(2)];
    let tokens: Vec<u32> = (10..60).collect();
    let answer = |engine: &mut Engine, adapter: &Option<Arc<ActiveAdapter>>| {
        let request = Request {
            prompt: Prompt::Tokens(tokens.clone()),
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            max_tokens: Some(8),
            ignore_eos: true,
            adapter: adapter.clone(),
            ..Request::default()
        };
        let generation = Generation::start_on(engine, &request).unwrap();
        generation.run(|_| std::ops::ControlFlow::Continue(())).unwrap().tokens
    };
    let options = EngineOptions { kept_prefixes: 4, ..EngineOptions::default() };
    let fresh: Vec<Vec<u32>> = adapters
        .iter()
        .map(|adapter| answer(&mut Engine::new(Arc::clone(&model), options.clone()), adapter))
        .collect();
    assert!(fresh[0] != fresh[1] && fresh[1] != fresh[2] && fresh[0] != fresh[2], "{fresh:?}");
    let mut engine = Engine::new(Arc::clone(&model), options);
    for index in [0, 1, 0, 2, 1, 2, 0] {
        assert_eq!(answer(&mut engine, &adapters[index]), fresh[index], "adapter {index}");
    }
}
