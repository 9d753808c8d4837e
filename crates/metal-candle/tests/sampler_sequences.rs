//! Sequences through the public interface: each one's tokens depend on its own seed and history alone.
#![allow(clippy::unwrap_used)]

use metal_candle::generate::sampler::{Sampler, SamplingParams, TokenHistory};

const VOCAB_SIZE: usize = 700;

/// Stands in for a model: logits that depend on the tokens so far.
fn logits(history: &TokenHistory) -> Vec<f32> {
    let seen = history.tokens().iter().fold(17u32, |hash, &id| hash.wrapping_mul(31).wrapping_add(id));
    (0..VOCAB_SIZE as u32).map(|id| (id.wrapping_mul(2_654_435_761) ^ seen) as f32 / 2f32.powi(30)).collect()
}

fn step(sampler: &mut Sampler, history: &mut TokenHistory) {
    let id = sampler.sample(&mut logits(history), history).unwrap().id;
    history.push(id);
}

fn params(seed: u64) -> SamplingParams {
    SamplingParams {
        temperature: 0.9,
        top_k: 300,
        top_p: 0.9,
        repetition_penalty: 1.2,
        frequency_penalty: 0.3,
        seed: Some(seed),
        ..SamplingParams::default()
    }
}

fn alone(seed: u64) -> Vec<u32> {
    let mut sampler = Sampler::new(params(seed), VOCAB_SIZE).unwrap();
    let mut history = sampler.history(&[1, 2, 3]);
    for _ in 0..50 {
        step(&mut sampler, &mut history);
    }
    history.generated().to_vec()
}

#[test]
fn batch_mates_change_nothing() {
    let sequence = |seed| {
        let sampler = Sampler::new(params(seed), VOCAB_SIZE).unwrap();
        let history = sampler.history(&[1, 2, 3]);
        (sampler, history)
    };
    let mut batch: Vec<_> = (0..4).map(sequence).collect();
    for round in 0..50 {
        for (seed, (sampler, history)) in batch.iter_mut().enumerate() {
            // The first leaves early and the last joins late.
            let absent = (seed == 0 && round >= 30) || (seed == 3 && round < 20);
            if !absent {
                step(sampler, history);
            }
        }
    }
    for (seed, (_, history)) in batch.iter().enumerate() {
        let generated = history.generated();
        assert_eq!(generated.len(), if seed == 0 || seed == 3 { 30 } else { 50 });
        assert_eq!(generated, &alone(seed as u64)[..generated.len()]);
    }
}

#[test]
fn a_fork_and_a_rewound_sequence_go_on_like_the_original() {
    let expected = alone(5);
    let mut sampler = Sampler::new(params(5), VOCAB_SIZE).unwrap();
    let mut history = sampler.history(&[1, 2, 3]);
    for _ in 0..20 {
        step(&mut sampler, &mut history);
    }
    let (mut forked_sampler, mut forked_history) = (sampler.clone(), history.clone());
    let (state, len) = (sampler.random_state(), history.tokens().len());
    for _ in 0..15 {
        step(&mut sampler, &mut history);
    }
    history.truncate(len);
    sampler.restore_random(state);
    for _ in 0..30 {
        step(&mut sampler, &mut history);
        step(&mut forked_sampler, &mut forked_history);
    }
    assert_eq!(history.generated(), expected);
    assert_eq!(forked_history, history);
}
