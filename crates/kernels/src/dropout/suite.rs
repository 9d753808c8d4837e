//! On every device, against the definition.

use candle_core::Device;
use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::{
    pool,
    testing::{
        bits, message, random,
        suite::{Case, Gradients, check, each_rig},
        wide,
    },
};

const SEED: u64 = 0x0123_4567_89ab_cdef;

#[test]
fn dropout_and_its_gradient_match_the_definition() {
    // Every place within a counter, and counters that need more than 32 bits.
    for (shape, first, probability) in [
        (&[1][..], 0, 0.5),
        (&[7], 1, 0.1),
        (&[3, 5, 9], 2, 0.75),
        (&[20, 13], 3, 0.1),
        (&[2059], 0, 0.3),
        (&[130], (1 << 34) - 65, 0.1),
        (&[50], u64::MAX - 60, 0.9),
    ] {
        let dropped = Dropout { probability, seed: SEED, first };
        check(&Case {
            op: "dropout",
            name: format!("{shape:?}, {dropped:?}"),
            gates: [Gate::Dropout, Gate::Dropout],
            inputs: vec![random(1, shape, DType::F64)],
            run: &|inputs| Ok(vec![dropout(&inputs[0], &dropped)?]),
            gradients: Gradients::Recorded,
            definition: &|inputs| {
                let factors = reference::factors(inputs[0].elem_count(), &dropped)?;
                Ok(vec![(&inputs[0] * factors.reshape(inputs[0].shape())?)?])
            },
        });
    }
}

#[test]
fn random_words_are_those_of_the_published_generator() {
    // From the known answers of the authors' library.
    assert_eq!(reference::words(0, 0), [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]);
}

#[test]
fn parts_of_a_tensor_drop_what_the_whole_drops() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        each_rig("dropout", "forward", dtype, |device| {
            let x = random(1, 303, dtype).to_device(device).unwrap();
            let of = |x: &Tensor, first| {
                let y = dropout(x, &Dropout { probability: 0.4, seed: SEED, first }).unwrap();
                wide(&y.to_device(&Device::Cpu).unwrap())
            };
            let whole = of(&x, 9);
            for (start, count) in [(0, 11), (11, 64), (75, 228)] {
                let part = of(&x.narrow(0, start, count).unwrap(), 9 + start as u64);
                assert_eq!(part, whole[start..start + count], "{count} from {start}");
            }
        });
    }
}

#[test]
fn what_is_dropped_is_zero_whatever_it_was() {
    each_rig("dropout", "forward", DType::F32, |device| {
        let x = Tensor::full(f32::INFINITY, 64, device).unwrap();
        let dropped = Dropout { probability: 0.5, seed: 1, first: 0 };
        let found = wide(&dropout(&x, &dropped).unwrap().to_device(&Device::Cpu).unwrap());
        assert!(found.iter().all(|value| *value == 0. || *value == f64::INFINITY), "{found:?}");
        assert!(found.contains(&0.) && found.contains(&f64::INFINITY));
    });
}

#[test]
fn the_share_is_kept_and_seeds_are_unrelated() {
    const COUNT: usize = 100_000;
    let x = Tensor::ones(COUNT, DType::F32, &Device::Cpu).unwrap();
    let kept = |probability, seed| {
        let y = dropout(&x, &Dropout { probability, seed, first: 0 }).unwrap();
        wide(&y).into_iter().map(|value| value != 0.).collect::<Vec<_>>()
    };
    // Within five standard deviations of what is expected.
    let assert_share = |count: usize, share: f64| {
        let spread = (share * (1. - share) * COUNT as f64).sqrt();
        assert!((count as f64 - share * COUNT as f64).abs() < 5. * spread, "{count} of {COUNT}, {share}");
    };
    for probability in [0.1f32, 0.5, 0.9] {
        let one = kept(probability, 1);
        let share = 1. - f64::from(probability);
        assert_share(one.iter().filter(|kept| **kept).count(), share);
        for other in [2, 1 << 32] {
            let other = kept(probability, other);
            assert_share(
                one.iter().zip(&other).filter(|(one, other)| **one && **other).count(),
                share * share,
            );
        }
        let neighbours = one.windows(2).filter(|pair| pair[0] && pair[1]).count();
        assert_share(neighbours, share * share);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let x = random(1, 100_000, DType::F32);
    let dropped = Dropout { probability: 0.1, seed: SEED, first: 3 };
    let expected = bits(&dropout(&x, &dropped).unwrap());
    for threads in [1, 2, 5] {
        pool::tests::with_threads(threads, || assert_eq!(bits(&dropout(&x, &dropped).unwrap()), expected));
    }
}

#[test]
fn nothing_is_dropped_with_probability_zero_and_wrong_ones_are_named() {
    let x = random(1, (2, 3), DType::F32);
    let with = |probability| dropout(&x, &Dropout { probability, seed: 0, first: 0 });
    assert_eq!(bits(&with(0.).unwrap()), bits(&x));
    for probability in [-0.1, 1., f32::NAN] {
        assert!(message(with(probability)).ends_with("expected 0 ≤ probability < 1"));
    }
}
