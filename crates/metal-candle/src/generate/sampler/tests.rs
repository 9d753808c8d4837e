//! The filters against slow ones that sort everything in f64, and the draws against the exact distribution.
#![allow(clippy::unwrap_used)]

use proptest::{collection::vec, prelude::*};

use super::{scan::BLOCK, *};

/// The slow sampler: every step as its definition says. Returns the probability of each token, 0 for a dropped one.
/// `nudge` is added to the borders of the cumulative filters, in probability.
fn slow_distribution(logits: &[f32], params: &SamplingParams, nudge: f64) -> Vec<f64> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let level = |logit: f32| (f64::from(logit) - f64::from(best)) / f64::from(params.temperature);
    let mut probabilities: Vec<f64> = logits.iter().map(|&logit| level(logit).exp()).collect();
    let by_logit =
        |kept: &mut Vec<usize>| kept.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    normalize(&mut probabilities);
    if params.top_k > 0 {
        let mut order = live(&probabilities);
        by_logit(&mut order);
        drop_all(&mut probabilities, order.get(params.top_k..).unwrap_or_default());
    }
    if params.top_p < 1.0 {
        let mut order = live(&probabilities);
        by_logit(&mut order);
        keep_until(&mut probabilities, &order, f64::from(params.top_p) + nudge);
    }
    if params.min_p > 0.0 {
        let most = probabilities.iter().copied().fold(0.0, f64::max);
        let rare: Vec<usize> = live(&probabilities)
            .into_iter()
            .filter(|&id| probabilities[id] < most * f64::from(params.min_p) * (1.0 - nudge))
            .collect();
        drop_all(&mut probabilities, &rare);
    }
    if params.typical_p < 1.0 {
        let mut order = live(&probabilities);
        let entropy: f64 = -order.iter().map(|&id| probabilities[id] * probabilities[id].ln()).sum::<f64>();
        let surprise = |id: usize| (-probabilities[id].ln() - entropy).abs();
        order.sort_by(|&a, &b| surprise(a).total_cmp(&surprise(b)).then(a.cmp(&b)));
        keep_until(&mut probabilities, &order, f64::from(params.typical_p) + nudge);
    }
    probabilities
}

fn slow_exclude_top(probabilities: &mut [f64], threshold: f64) {
    let mut top: Vec<usize> =
        live(probabilities).into_iter().filter(|&id| probabilities[id] >= threshold).collect();
    top.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
    let least = top.last().map_or(f64::INFINITY, |&id| probabilities[id]);
    // Equal ones are equal up to rounding here.
    top.retain(|&id| probabilities[id] > least * (1.0 + 1e-9));
    drop_all(probabilities, &top);
}

fn live(probabilities: &[f64]) -> Vec<usize> {
    (0..probabilities.len()).filter(|&id| probabilities[id] > 0.0).collect()
}

fn keep_until(probabilities: &mut [f64], order: &[usize], mass: f64) {
    let mut running = 0.0;
    let reached = order.iter().position(|&id| {
        running += probabilities[id];
        running >= mass
    });
    let kept = reached.map_or(order.len(), |index| index + 1);
    drop_all(probabilities, &order[kept..]);
}

fn drop_all(probabilities: &mut [f64], ids: &[usize]) {
    for &id in ids {
        probabilities[id] = 0.0;
    }
    normalize(probabilities);
}

fn normalize(probabilities: &mut [f64]) {
    let total: f64 = probabilities.iter().sum();
    for probability in probabilities {
        *probability /= total;
    }
}

/// The fast sampler's distribution after all filters, by token id. The last share is respected in both of the ways
/// that there are, which must agree.
fn fast_distribution(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let mut sampler = Sampler::new(params.clone(), logits.len()).unwrap();
    let mut scratch = logits.to_vec();
    sampler.scan(&scratch).unwrap();
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    let mut levels = logits.to_vec();
    if params.top_k > 0 && params.top_k < logits.len() {
        // The public way, for its selection only.
        sampler.draw(&mut scratch);
        ids = sampler.selected.iter().map(|&member| select::position_of(member)).collect();
        levels = ids.iter().map(|&id| logits[id]).collect();
        scan::block_maxima(&levels, &mut sampler.maxima).unwrap();
    }
    let share = sampler.filter(&mut levels);
    let mut probabilities = vec![0.0; logits.len()];
    if let Some(share) = share {
        let uncut = sampler.candidates.clone();
        sampler.candidates.keep_share(&levels, share);
        let cut = sampler.candidates.weights();
        // Every position of a small vocabulary, a few of a large one.
        for position in
            (0..ids.len()).step_by(1 + ids.len() / 600).filter(|&place| uncut.weights()[place] > 0.0)
        {
            let reached = uncut.clone().reaches(&levels, share, position);
            let near_border = (mass_before(uncut.weights(), &levels, share.center, position) - share.mass)
                .abs()
                < 1e-5 * uncut.total();
            assert!(
                near_border || reached == (cut[position] > 0.0),
                "the two ways disagree about {position}"
            );
        }
    }
    for (&id, &weight) in ids.iter().zip(sampler.candidates.weights()) {
        probabilities[id] = f64::from(weight);
    }
    normalize(&mut probabilities);
    probabilities
}

fn mass_before(weights: &[f32], levels: &[f32], center: f32, position: usize) -> f64 {
    let distance = |place: usize| ((center - levels[place]).abs(), place);
    let nearer =
        (0..levels.len()).filter(|&place| weights[place] > 0.0 && distance(place) < distance(position));
    nearer.map(|place| f64::from(weights[place])).sum()
}

/// The fast distribution must be the slow one, its borders moved by no more than f32 rounding.
fn check(logits: &[f32], params: &SamplingParams) -> Result<(), TestCaseError> {
    let fast = fast_distribution(logits, params);
    let matches = |slow: &[f64]| {
        (0..slow.len())
            .all(|id| (slow[id] > 1e-12) == (fast[id] > 1e-12) && (slow[id] - fast[id]).abs() < 1e-5)
    };
    let agrees = [0.0, 2e-6, -2e-6].iter().any(|&nudge| matches(&slow_distribution(logits, params, nudge)));
    let slow = slow_distribution(logits, params, 0.0);
    let differing = (0..slow.len()).find(|&id| (slow[id] > 1e-12) != (fast[id] > 1e-12));
    prop_assert!(
        agrees,
        "{params:?}: fast keeps {}, slow keeps {}; first difference {differing:?}",
        live(&fast).len(),
        live(&slow).len()
    );
    Ok(())
}

/// Logits on a coarse grid (many ties) or of any value, sometimes with banned tokens.
fn any_logits() -> impl Strategy<Value = Vec<f32>> {
    let grid = (-24i32..=24).prop_map(|step| step as f32 / 4.0);
    let any = -8.0f32..8.0;
    let banned = prop_oneof![9 => -6.0f32..6.0, 1 => Just(f32::NEG_INFINITY)];
    let some_finite = |mut logits: Vec<f32>| {
        logits[0] = logits[0].max(-1.0);
        logits
    };
    prop_oneof![vec(grid, 1..500), vec(any, 1..500), vec(banned, 1..500).prop_map(some_finite)]
}

fn sampling() -> SamplingParams {
    SamplingParams { temperature: 1.0, seed: Some(1), ..SamplingParams::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn temperature_equals_the_definition(logits in any_logits(), temperature in 0.3f32..3.0) {
        check(&logits, &SamplingParams { temperature, ..sampling() })?;
    }

    #[test]
    fn top_k_equals_the_definition(logits in any_logits(), top_k in 1usize..600) {
        check(&logits, &SamplingParams { top_k, ..sampling() })?;
    }

    #[test]
    fn top_p_equals_the_definition(logits in any_logits(), top_p in 0.0f32..1.0, temperature in 0.3f32..3.0) {
        check(&logits, &SamplingParams { top_p, temperature, ..sampling() })?;
    }

    #[test]
    fn min_p_equals_the_definition(logits in any_logits(), min_p in 0.0f32..1.0) {
        check(&logits, &SamplingParams { min_p, ..sampling() })?;
    }

    #[test]
    fn typical_p_equals_the_definition(logits in vec(-8.0f32..8.0, 1..500), typical_p in 0.01f32..1.0) {
        check(&logits, &SamplingParams { typical_p, ..sampling() })?;
    }

    #[test]
    fn all_filters_together_equal_the_definition(
        logits in vec(-8.0f32..8.0, 1..500),
        temperature in 0.5f32..2.0,
        top_k in 1usize..600,
        top_p in 0.2f32..1.0,
        min_p in 0.0f32..0.3,
        typical_p in 0.2f32..1.0,
    ) {
        check(&logits, &SamplingParams { temperature, top_k, top_p, min_p, typical_p, ..sampling() })?;
    }

    #[test]
    fn xtc_keeps_only_the_least_likely_top_choice(logits in vec(-3.0f32..3.0, 1..60), xtc_threshold in 0.0f32..0.6) {
        let params = SamplingParams { xtc_probability: 1.0, xtc_threshold, ..sampling() };
        let mut slow = slow_distribution(&logits, &params, 0.0);
        // A token on the threshold itself may fall to either side.
        prop_assume!(slow.iter().all(|p| (p - f64::from(xtc_threshold)).abs() > 1e-6));
        slow_exclude_top(&mut slow, f64::from(xtc_threshold));
        let fast = fast_distribution(&logits, &params);
        for id in 0..logits.len() {
            prop_assert!((slow[id] - fast[id]).abs() < 1e-5, "token {id}: {} instead of {}", fast[id], slow[id]);
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest(logits in any_logits()) {
        let mut sampler = Sampler::new(SamplingParams::default(), logits.len()).unwrap();
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let expected = logits.iter().position(|&logit| logit == best).unwrap();
        let history = sampler.history(&[]);
        let sampled = sampler.sample(&mut logits.clone(), &history).unwrap();
        prop_assert_eq!(sampled, Sampled { id: expected as u32, logprob: None, top_logprobs: Vec::new() });
    }

    #[test]
    fn log_probabilities_are_those_of_the_raw_logits(logits in any_logits(), count in 0usize..20, temperature in 0.0f32..2.0) {
        let count = count.min(logits.len());
        let params = SamplingParams {
            temperature,
            logprobs: Some(count),
            repetition_penalty: 1.5,
            presence_penalty: 0.5,
            logit_bias: [(0, 3.0)].into(),
            ..sampling()
        };
        let mut sampler = Sampler::new(params, logits.len()).unwrap();
        let mut history = sampler.history(&[0]);
        history.push(logits.len() as u32 - 1);
        let sampled = sampler.sample(&mut logits.clone(), &history).unwrap();
        let exact = slow_distribution(&logits, &SamplingParams { temperature: 1.0, ..sampling() }, 0.0);
        let close = |logprob: f32, id: u32| {
            let expected = exact[id as usize].ln();
            f64::from(logprob) == expected || (f64::from(logprob) - expected).abs() < 2e-5
        };
        prop_assert!(close(sampled.logprob.unwrap(), sampled.id));
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let ids: Vec<usize> = sampled.top_logprobs.iter().map(|token| token.id as usize).collect();
        prop_assert_eq!(&ids[..], &order[..count]);
        prop_assert!(sampled.top_logprobs.iter().all(|token| close(token.logprob, token.id)));
    }

    #[test]
    fn histories_count_like_a_recount(
        prompt in vec(0u32..6, 0..12),
        steps in vec(prop_oneof![(0u32..6).prop_map(Step::Push), (0usize..30).prop_map(Step::Truncate), Just(Step::Fork)], 0..40),
        context in prop_oneof![Just(None), (0usize..8).prop_map(Some)],
    ) {
        let mut history = TokenHistory::new(&prompt, context);
        let (mut tokens, mut prompt_len) = (prompt.clone(), prompt.len());
        for step in steps {
            match step {
                Step::Push(id) => {
                    history.push(id);
                    tokens.push(id);
                }
                Step::Truncate(len) => {
                    history.truncate(len);
                    tokens.truncate(len);
                    prompt_len = prompt_len.min(len);
                }
                Step::Fork => {
                    let fork = history.clone();
                    history.push(0);
                    history.truncate(0);
                    history = fork;
                }
            }
            prop_assert_eq!(history.tokens(), &tokens[..]);
            prop_assert_eq!(history.generated(), &tokens[prompt_len..]);
            let window = &tokens[tokens.len() - context.unwrap_or(tokens.len()).min(tokens.len())..];
            let count = |tokens: &[u32], id| tokens.iter().filter(|&&token| token == id).count() as u32;
            for id in 0..6 {
                let expected = Occurrences { recent: count(window, id), generated: count(&tokens[prompt_len..], id) };
                prop_assert_eq!(history.occurrences(id), expected);
            }
            prop_assert!(history.iter().all(|(_, occurrences)| occurrences != Occurrences::default()));
        }
    }

    #[test]
    fn penalties_equal_the_definition(
        logits in vec(-4.0f32..4.0, 8),
        prompt in vec(0u32..8, 0..10),
        generated in vec(0u32..8, 0..10),
        repetition_penalty in 0.5f32..2.0,
        repetition_context in prop_oneof![Just(None), (0usize..12).prop_map(Some)],
        presence_penalty in -2.0f32..2.0,
        frequency_penalty in -2.0f32..2.0,
        bias in -3.0f32..3.0,
    ) {
        let params = SamplingParams {
            repetition_penalty, repetition_context, presence_penalty, frequency_penalty,
            logit_bias: [(2, bias)].into(),
            ..SamplingParams::default()
        };
        let sampler = Sampler::new(params, 8).unwrap();
        let mut history = sampler.history(&prompt);
        generated.iter().for_each(|&id| history.push(id));
        let mut fast = logits.clone();
        sampler.penalize(&mut fast, &history).unwrap();

        let all: Vec<u32> = prompt.iter().chain(&generated).copied().collect();
        let recent = &all[all.len() - repetition_context.unwrap_or(all.len()).min(all.len())..];
        for id in 0..8u32 {
            let mut expected = logits[id as usize] + if id == 2 { bias } else { 0.0 };
            if recent.contains(&id) {
                expected = if expected > 0.0 { expected / repetition_penalty } else { expected * repetition_penalty };
            }
            let times = generated.iter().filter(|&&token| token == id).count();
            if times > 0 {
                expected -= presence_penalty + frequency_penalty * times as f32;
            }
            prop_assert_eq!(fast[id as usize], expected);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push(u32),
    Truncate(usize),
    Fork,
}

/// Logits that any platform computes alike: a fixed integer sequence, roughly bell-shaped, times `spread`.
fn fixed_logits(count: usize, spread: f32) -> Vec<f32> {
    let mut state = 12_345u32;
    let mut step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 20) as i32 - 2048
    };
    (0..count).map(|_| (step() + step() + step()) as f32 / 4096.0 * spread).collect()
}

#[test]
fn a_large_vocabulary_is_filtered_exactly() {
    // Not a multiple of the block, bell-shaped at several widths, all equal, and two values only.
    let size = 50 * BLOCK + 77;
    let mut shapes: Vec<Vec<f32>> = [0.001, 0.3, 3.0, 30.0].map(|spread| fixed_logits(size, spread)).into();
    shapes.push(vec![1.5; size]);
    shapes.push((0..size).map(|id| if id % 3 == 0 { 1.0 } else { -1.0 }).collect());
    for logits in &shapes {
        // One in a large number of candidates weighs less than the usual rounding allowance, so that the borders may
        // differ by a few of them; everything else must agree.
        for (top_p, typical_p, top_k) in [
            (0.9, 1.0, 0),
            (0.5, 1.0, 0),
            (1e-6, 1.0, 0),
            (0.95, 1.0, 3000),
            (0.9, 1.0, 40),
            (0.9, 0.5, 2000),
        ] {
            let params = SamplingParams { top_p, typical_p, top_k, temperature: 0.7, ..sampling() };
            let (fast, slow) = (fast_distribution(logits, &params), slow_distribution(logits, &params, 0.0));
            let differing: Vec<usize> =
                (0..size).filter(|&id| (fast[id] > 1e-12) != (slow[id] > 1e-12)).collect();
            let mass: f64 = differing.iter().map(|&id| fast[id] + slow[id]).sum();
            assert!(
                mass < 2e-3 && differing.len() <= 3,
                "{params:?}: {} differ, mass {mass}",
                differing.len()
            );
        }
    }
}

#[test]
fn the_border_of_a_filter_concerns_few_tokens_at_any_width() {
    // What is selected among is what costs: the histogram must tell narrow distributions apart as well as wide ones.
    let size = 50_000;
    for spread in [1e-4, 0.01, 1.0, 10.0] {
        let logits = fixed_logits(size, spread);
        let mut sampler = Sampler::new(SamplingParams { top_p: 0.9, ..sampling() }, size).unwrap();
        sampler.scan(&logits).unwrap();
        let mut levels = logits.clone();
        let share = sampler.filter(&mut levels).unwrap();
        sampler.candidates.keep_share(&levels, share);
        let center = sampler.candidates.expected_level(&levels);
        let first = sampler.candidates.border_size();
        sampler.candidates.keep_share(&levels, Share { center, mass: sampler.candidates.total() * 0.9 });
        let second = sampler.candidates.border_size();
        assert!(first.max(second) < size / 12, "{first} and {second} of {size} tokens at width {spread}");
    }
}

#[test]
fn ties_keep_the_lower_ids() {
    let logits = vec![0.0; 1000];
    let kept = |params: &SamplingParams| -> Vec<usize> { live(&fast_distribution(&logits, params)) };
    let first = |count: usize| (0..count).collect::<Vec<_>>();
    assert_eq!(kept(&SamplingParams { top_k: 7, ..sampling() }), first(7));
    assert_eq!(kept(&SamplingParams { top_p: 0.25, ..sampling() }), first(250));
    assert_eq!(kept(&SamplingParams { typical_p: 0.5, ..sampling() }), first(500));
    assert_eq!(kept(&SamplingParams { top_p: 0.0, ..sampling() }), first(1));
    assert_eq!(kept(&SamplingParams { min_p: 1.0, ..sampling() }), first(1000));
    // XTC with several least likely top choices keeps all of them.
    let xtc = SamplingParams { xtc_probability: 1.0, xtc_threshold: 0.0005, ..sampling() };
    assert_eq!(kept(&xtc), first(1000));
    // Both zeros are the same number.
    let zeros = [-1.0, -0.0, 0.0, -0.0];
    assert_eq!(live(&fast_distribution(&zeros, &SamplingParams { top_k: 2, ..sampling() })), [1, 2]);
}

/// χ² of `draws` drawn tokens against the exact distribution: a right sampler exceeds the limit with probability 1e-4,
/// and the seed is fixed, so this is either always so or never.
fn assert_draws_follow(logits: &[f32], params: &SamplingParams, exact: &[f64]) {
    const DRAWS: usize = 40_000;
    let mut sampler = Sampler::new(params.clone(), logits.len()).unwrap();
    let history = sampler.history(&[]);
    let mut counts = vec![0usize; logits.len()];
    let mut scratch = vec![0.0; logits.len()];
    for _ in 0..DRAWS {
        scratch.copy_from_slice(logits);
        counts[sampler.sample(&mut scratch, &history).unwrap().id as usize] += 1;
    }
    // Tokens expected fewer than ten times share one class.
    let (mut statistic, mut classes) = (0.0, 0);
    let (mut rare_expected, mut rare_seen) = (0.0, 0.0);
    for (&probability, &count) in exact.iter().zip(&counts) {
        let (expected, seen) = (probability * DRAWS as f64, count as f64);
        assert!(expected > 0.0 || count == 0, "drew a token of probability 0");
        if expected >= 10.0 {
            statistic += (seen - expected).powi(2) / expected;
            classes += 1;
        } else {
            rare_expected += expected;
            rare_seen += seen;
        }
    }
    if rare_expected >= 10.0 {
        statistic += (rare_seen - rare_expected).powi(2) / rare_expected;
        classes += 1;
    }
    assert!(classes >= 3, "too few classes for a test");
    // Wilson and Hilferty's approximation of the quantile; 3.719 is that of the normal distribution.
    let freedom = f64::from(classes - 1);
    let limit = freedom * (1.0 - 2.0 / (9.0 * freedom) + 3.719 * (2.0 / (9.0 * freedom)).sqrt()).powi(3);
    assert!(
        statistic < limit,
        "χ² {statistic:.1} > {limit:.1} with {freedom} degrees of freedom: {params:?}"
    );
}

#[test]
fn draws_follow_the_filtered_distribution() {
    let logits = fixed_logits(300, 4.0);
    for (seed, params) in [
        SamplingParams { ..sampling() },
        SamplingParams { temperature: 0.5, ..sampling() },
        SamplingParams { temperature: 2.0, ..sampling() },
        SamplingParams { top_k: 40, ..sampling() },
        SamplingParams { temperature: 0.7, top_p: 0.9, ..sampling() },
        SamplingParams { min_p: 0.05, ..sampling() },
        SamplingParams { typical_p: 0.8, ..sampling() },
        SamplingParams {
            temperature: 1.3,
            top_k: 100,
            top_p: 0.95,
            min_p: 0.01,
            typical_p: 0.9,
            ..sampling()
        },
    ]
    .into_iter()
    .enumerate()
    {
        let params = SamplingParams { seed: Some(seed as u64), ..params };
        assert_draws_follow(&logits, &params, &slow_distribution(&logits, &params, 0.0));
    }
}

#[test]
fn draws_follow_the_mixture_that_xtc_makes() {
    let logits = fixed_logits(40, 4.0);
    let params = SamplingParams {
        top_p: 0.95,
        xtc_probability: 0.4,
        xtc_threshold: 0.05,
        seed: Some(9),
        ..sampling()
    };
    let untouched = slow_distribution(&logits, &params, 0.0);
    let mut excluded = untouched.clone();
    slow_exclude_top(&mut excluded, 0.05);
    assert_ne!(live(&excluded), live(&untouched));
    let mixture: Vec<f64> = untouched.iter().zip(&excluded).map(|(a, b)| 0.6 * a + 0.4 * b).collect();
    assert_draws_follow(&logits, &params, &mixture);
}

fn draw_tokens(sampler: &mut Sampler, logits: &[f32], count: usize) -> Vec<u32> {
    let mut history = sampler.history(&[]);
    let mut tokens = Vec::new();
    for _ in 0..count {
        let id = sampler.sample(&mut logits.to_vec(), &history).unwrap().id;
        history.push(id);
        tokens.push(id);
    }
    tokens
}

#[test]
fn a_seed_draws_the_same_tokens_everywhere() {
    let logits = fixed_logits(1000, 6.0);
    let params = SamplingParams {
        temperature: 0.8,
        top_p: 0.95,
        repetition_penalty: 1.1,
        seed: Some(42),
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(params.clone(), 1000).unwrap();
    let tokens = draw_tokens(&mut sampler, &logits, 16);
    assert_eq!(tokens, GOLDEN_TOKENS);
    // The state goes through JSON and continues where it stood.
    let state: RandomState =
        serde_json::from_str(&serde_json::to_string(&sampler.random_state()).unwrap()).unwrap();
    assert_eq!(state, RandomState { seed: 42, draws: 16 });
    let mut restored = Sampler::new(SamplingParams { seed: None, ..params.clone() }, 1000).unwrap();
    restored.restore_random(state);
    assert_eq!(draw_tokens(&mut restored, &logits, 16), draw_tokens(&mut sampler, &logits, 16));
    // Another seed draws others; no seed draws a seed that repeats the run.
    let mut other = Sampler::new(SamplingParams { seed: Some(43), ..params.clone() }, 1000).unwrap();
    assert_ne!(draw_tokens(&mut other, &logits, 16), tokens);
    let mut unseeded = Sampler::new(SamplingParams { seed: None, ..params.clone() }, 1000).unwrap();
    let seed = Some(unseeded.random_state().seed);
    let mut repeated = Sampler::new(SamplingParams { seed, ..params }, 1000).unwrap();
    assert_eq!(draw_tokens(&mut unseeded, &logits, 16), draw_tokens(&mut repeated, &logits, 16));
}

#[test]
fn every_instruction_set_draws_the_same_tokens() {
    use metal_candle_kernels::simd::{available, with_level};
    let logits = fixed_logits(3000, 6.0);
    let filters = SamplingParams { top_k: 2000, top_p: 0.95, min_p: 0.001, typical_p: 0.9, ..sampling() };
    for params in [sampling(), filters] {
        let draw = || draw_tokens(&mut Sampler::new(params.clone(), 3000).unwrap(), &logits, 16);
        let drawn: Vec<Vec<u32>> = available().map(|level| with_level(level, draw)).collect();
        assert!(drawn.iter().all(|tokens| *tokens == drawn[0]), "{drawn:?}");
    }
}

/// Confirmed by a second implementation, in Python with f64.
const GOLDEN_TOKENS: [u32; 16] =
    [533, 38, 537, 670, 398, 635, 987, 904, 721, 191, 248, 695, 191, 537, 537, 180];

#[test]
fn broken_logits_and_mismatches_are_errors() {
    for temperature in [0.0, 1.0] {
        for logprobs in [None, Some(2)] {
            let params = SamplingParams { temperature, logprobs, ..sampling() };
            let mut sampler = Sampler::new(params, 300).unwrap();
            let history = sampler.history(&[]);
            let mut fail = |logits: &mut [f32]| sampler.sample(logits, &history).unwrap_err();
            let mut logits = vec![0.5; 300];
            logits[200] = f32::NAN;
            let error = fail(&mut logits);
            assert!(
                matches!(error, SamplingError::BrokenLogit { id: 200, value } if value.is_nan()),
                "{error}"
            );
            logits[200] = f32::INFINITY;
            assert_eq!(fail(&mut logits), SamplingError::BrokenLogit { id: 200, value: f32::INFINITY });
            assert_eq!(fail(&mut vec![f32::NEG_INFINITY; 300]), SamplingError::NothingLeft);
            assert_eq!(fail(&mut [0.0; 10]), SamplingError::LogitCount { found: 10, expected: 300 });
        }
    }
    let params = SamplingParams { repetition_penalty: 1.2, ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, 10).unwrap();
    let beyond = sampler.history(&[10]);
    assert_eq!(
        sampler.sample(&mut [0.0; 10], &beyond),
        Err(SamplingError::HistoryToken { id: 10, vocab_size: 10 })
    );
    let other_window = TokenHistory::new(&[], None);
    assert_eq!(
        sampler.sample(&mut [0.0; 10], &other_window),
        Err(SamplingError::HistoryContext { history: None, params: Some(20) })
    );
}

#[test]
fn extreme_temperatures_and_bans_stay_sane() {
    let history = TokenHistory::new(&[], Some(20));
    for temperature in [f32::MIN_POSITIVE, 1e-45, 1e-6] {
        let mut sampler = Sampler::new(SamplingParams { temperature, top_p: 0.9, ..sampling() }, 3).unwrap();
        assert_eq!(sampler.sample(&mut [1.0, 2.0, 1.999], &history).unwrap().id, 1);
    }
    let mut sampler = Sampler::new(SamplingParams { temperature: f32::MAX, ..sampling() }, 3).unwrap();
    assert!(sampler.sample(&mut [1.0, f32::NEG_INFINITY, 1.0], &history).unwrap().id != 1);
    let params = SamplingParams { logit_bias: [(1, f32::NEG_INFINITY)].into(), ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, 3).unwrap();
    assert_eq!(sampler.sample(&mut [1.0, 2.0, 0.0], &history).unwrap().id, 0);
}

#[test]
fn scratch_is_kept_between_tokens() {
    let logits = fixed_logits(5000, 3.0);
    let params = SamplingParams { top_k: 100, top_p: 0.9, typical_p: 0.9, ..sampling() };
    let mut sampler = Sampler::new(params, logits.len()).unwrap();
    draw_tokens(&mut sampler, &logits, 3);
    let pointers = |sampler: &Sampler| {
        (sampler.maxima.as_ptr(), sampler.selected.as_ptr(), sampler.selected_logits.as_ptr())
    };
    let (first, weights) = (pointers(&sampler), sampler.candidates.weights().as_ptr());
    draw_tokens(&mut sampler, &logits, 20);
    assert_eq!((first, weights), (pointers(&sampler), sampler.candidates.weights().as_ptr()));
}
