use half::{bf16, f16};

use super::*;

dispatch! {
    /// Applies `function` to each number.
    fn apply(function: Function, from: &[f32], to: &mut [f32]) = apply_with;
    unsafe fn round_trip<T: Element>(from: *const f32, narrow: *mut T, to: *mut f32, count: usize) = round_trip_with;
    fn reduce(values: &[f32]) -> (f32, f32) = reduce_with;
    fn transposes() -> bool = transposes_with;
    fn transposes_pairs() -> bool = transposes_pairs_with;
    fn compare(values: &[f32; 16], bar: f32) -> (u32, usize) = compare_with;
}

#[derive(Clone, Copy)]
enum Function {
    Exp,
    Weight,
    Tanh,
    Silu,
    GeluTanh,
    Gelu,
    Round,
    Abs,
    Sqrt,
    Arithmetic,
}

#[inline(always)]
fn apply_with<S: Simd>(simd: S, function: Function, from: &[f32], to: &mut [f32]) {
    assert_eq!(from.len(), to.len());
    let mut start = 0;
    while start < from.len() {
        let count = S::LANES.min(from.len() - start);
        // SAFETY: `count` numbers remain in both slices.
        let x = unsafe { simd.load_first(from.as_ptr().add(start), count) };
        let y = match function {
            Function::Exp => math::exp(simd, x),
            Function::Weight => math::weight(simd, x),
            Function::Tanh => math::tanh(simd, x),
            Function::Silu => math::silu(simd, x),
            Function::GeluTanh => math::gelu_tanh(simd, x),
            Function::Gelu => math::gelu(simd, x),
            Function::Round => simd.round(x),
            Function::Abs => simd.abs(x),
            Function::Sqrt => simd.sqrt(x),
            Function::Arithmetic => {
                let two = simd.splat(2.0);
                let sum = simd.div(simd.sub(simd.add(x, two), simd.mul(x, simd.splat(0.25))), two);
                simd.min(simd.splat(3.0), simd.max(simd.splat(-3.0), simd.fma(sum, two, simd.splat(0.5))))
            }
        };
        // SAFETY: as above.
        unsafe { simd.store_first(to.as_mut_ptr().add(start), y, count) };
        start += count;
    }
}

/// # Safety
/// `count` numbers must be readable and writable at all places.
#[inline(always)]
unsafe fn round_trip_with<S: Simd, T: Element>(
    simd: S,
    from: *const f32,
    narrow: *mut T,
    to: *mut f32,
    count: usize,
) {
    let mut start = 0;
    while start < count {
        let rest = count - start;
        // SAFETY: `rest` numbers remain.
        unsafe {
            if rest >= S::LANES {
                T::store(simd, narrow.add(start), simd.load(from.add(start)));
                simd.store(to.add(start), T::load(simd, narrow.add(start)));
            } else {
                T::store_first(simd, narrow.add(start), simd.load_first(from.add(start), rest), rest);
                simd.store_first(to.add(start), T::load_first(simd, narrow.add(start), rest), rest);
            }
        }
        start += S::LANES;
    }
}

#[inline(always)]
fn reduce_with<S: Simd>(simd: S, values: &[f32]) -> (f32, f32) {
    assert!(values.len() >= S::LANES);
    // SAFETY: checked above.
    let vector = unsafe { simd.load(values.as_ptr()) };
    (simd.reduce_add(vector), simd.reduce_max(vector))
}

#[inline(always)]
fn transposes_with<S: Simd>(simd: S) -> bool {
    let mut tile = [simd.splat(0.0); 16];
    for (row, vector) in tile.iter_mut().enumerate().take(S::LANES) {
        let numbers: [f32; 16] = std::array::from_fn(|column| (row * 16 + column) as f32);
        // SAFETY: at most 16 lanes.
        *vector = unsafe { simd.load(numbers.as_ptr()) };
    }
    simd.transpose(&mut tile);
    let mut all = true;
    for (column, &vector) in tile.iter().enumerate().take(S::LANES) {
        let mut numbers = [0f32; 16];
        // SAFETY: at most 16 lanes.
        unsafe { simd.store(numbers.as_mut_ptr(), vector) };
        all &= (0..S::LANES).all(|row| numbers[row] == (row * 16 + column) as f32);
    }
    all
}

#[inline(always)]
fn transposes_pairs_with<S: Simd>(simd: S) -> bool {
    let half = S::LANES / 2;
    let numbers: [f32; 16 * 8] = std::array::from_fn(|index| index as f32);
    let mut tile = [simd.splat(0.0); 16];
    for (index, vector) in tile.iter_mut().enumerate().take(half) {
        let (low, high) = paired_rows(index);
        // SAFETY: both rows are there.
        *vector = unsafe { simd.load_two(numbers[low * half..].as_ptr(), numbers[high * half..].as_ptr()) };
    }
    simd.transpose_pairs(&mut tile);
    let mut all = true;
    for (column, &vector) in tile.iter().enumerate().take(half) {
        let mut numbers = [0f32; 16];
        // SAFETY: at most 16 lanes.
        unsafe { simd.store(numbers.as_mut_ptr(), vector) };
        all &= (0..S::LANES).all(|row| numbers[row] == (row * half + column) as f32);
    }
    all
}

#[inline(always)]
fn compare_with<S: Simd>(simd: S, values: &[f32; 16], bar: f32) -> (u32, usize) {
    // Any address is fine.
    simd.prefetch_to_write(std::ptr::null_mut::<f32>());
    simd.prefetch_outer(std::ptr::null::<f32>());
    // SAFETY: at most 16 lanes.
    (simd.not_less(unsafe { simd.load(values.as_ptr()) }, simd.splat(bar)), S::LANES)
}

#[test]
fn lanes_that_are_not_less_are_marked() {
    let mut values: [f32; 16] = std::array::from_fn(|lane| (lane * 5 % 16) as f32);
    (values[0], values[1], values[15]) = (f32::NAN, f32::NEG_INFINITY, f32::INFINITY);
    at_each_level(|level| {
        for bar in [-1., 0., 7., f32::INFINITY, f32::NAN] {
            let (found, lanes) = compare(&values, bar);
            let is_marked = |lane: usize| values[lane].partial_cmp(&bar) != Some(std::cmp::Ordering::Less);
            let expected = (0..lanes).fold(0, |bits, lane| bits | u32::from(is_marked(lane)) << lane);
            assert_eq!(found, expected, "{level} {bar}");
        }
    });
}

fn at_each_level(check: impl Fn(Level)) {
    assert!(available().any(|level| level == Level::Portable));
    for level in available() {
        with_level(level, || check(level));
    }
}

fn sweep(from: f64, to: f64, steps: usize) -> Vec<f32> {
    (0..=steps).map(|step| (from + (to - from) * step as f64 / steps as f64) as f32).collect()
}

/// The largest `|y - f(x)| / (|f(x)| + floor)`.
fn worst(function: Function, exact: impl Fn(f64) -> f64, points: &[f32], floor: f64) -> f64 {
    let mut result = vec![0f32; points.len()];
    apply(function, points, &mut result);
    points
        .iter()
        .zip(&result)
        .map(|(&x, &y)| {
            let exact = exact(f64::from(x));
            (f64::from(y) - exact).abs() / (exact.abs() + floor)
        })
        .fold(0.0, |worst, error| if error <= worst { worst } else { error })
}

fn evaluate(function: Function, points: &[f32]) -> Vec<f32> {
    let mut result = vec![0f32; points.len()];
    apply(function, points, &mut result);
    result
}

#[test]
fn exp_is_accurate() {
    at_each_level(|level| {
        let error = worst(Function::Exp, f64::exp, &sweep(-87.0, 88.7, 400_003), 0.0);
        assert!(error < 3e-7, "{level}: {error:e}");
        // Below the normal range only the absolute error can be small.
        let error = worst(Function::Exp, f64::exp, &sweep(-110.0, -87.0, 10_001), 1e-38);
        assert!(error < 3e-7, "{level}: {error:e}");
        let special = evaluate(
            Function::Exp,
            &[f32::NEG_INFINITY, -1e30, -104.5, 0.0, -0.0, 89.0, f32::INFINITY, f32::NAN],
        );
        assert_eq!(special[..7], [0.0, 0.0, 0.0, 1.0, 1.0, f32::INFINITY, f32::INFINITY], "{level}");
        assert!(special[7].is_nan(), "{level}");
    });
}

#[test]
fn a_weight_is_normal_or_zero() {
    at_each_level(|level| {
        let points = sweep(-120.0, 20.0, 100_001);
        let (weights, exponentials) = (evaluate(Function::Weight, &points), evaluate(Function::Exp, &points));
        for ((x, weight), exponential) in points.iter().zip(weights).zip(exponentials) {
            let expected = if *x < -69.314_72 { 0.0 } else { exponential };
            assert_eq!(weight, expected, "{level}: {x}");
        }
        let special = evaluate(Function::Weight, &[f32::NEG_INFINITY, f32::INFINITY, f32::NAN]);
        assert_eq!(special[..2], [0.0, f32::INFINITY], "{level}");
        assert!(special[2].is_nan(), "{level}");
    });
}

#[test]
fn tanh_is_accurate() {
    at_each_level(|level| {
        for range in [1e-6, 0.7, 12.0] {
            let error = worst(Function::Tanh, f64::tanh, &sweep(-range, range, 100_002), 1e-30);
            assert!(error < 1e-6, "{level}: {error:e}");
        }
        let special = evaluate(Function::Tanh, &[f32::NEG_INFINITY, 0.0, 100.0, f32::INFINITY, f32::NAN]);
        assert_eq!(special[..4], [-1.0, 0.0, 1.0, 1.0], "{level}");
        assert!(special[4].is_nan(), "{level}");
    });
}

#[test]
fn activations_are_accurate() {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gelu_tanh = |x: f64| {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        x / (1.0 + (-2.0 * u).exp())
    };
    let gelu = |x: f64| 0.5 * x * erfc(-x / std::f64::consts::SQRT_2);
    at_each_level(|level| {
        for range in [1e-3, 1.0, 9.0] {
            let points = sweep(-range, range, 100_001);
            // Beside the relative error there is that of the rounded argument of exp in the far tail.
            for (name, error) in [
                ("silu", worst(Function::Silu, silu, &points, 1e-6)),
                ("gelu tanh", worst(Function::GeluTanh, gelu_tanh, &points, 1e-6)),
                ("gelu", worst(Function::Gelu, gelu, &points, 1e-6)),
            ] {
                assert!(error < 2e-6, "{level}: {name} to {range}: {error:e}");
            }
        }
        for function in [Function::Silu, Function::GeluTanh, Function::Gelu] {
            let special = evaluate(function, &[-1e20, -0.0, 0.0, 1e20, f32::INFINITY, f32::NAN]);
            assert_eq!(special[..5], [0.0, 0.0, 0.0, 1e20, f32::INFINITY], "{level}");
            assert!(special[5].is_nan(), "{level}");
        }
    });
}

/// The complementary error function by its continued fraction, or by its series near zero.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    let square = x * x;
    if x < 2.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= -square / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let fraction = (1..200).rev().fold(x, |tail, n| x + f64::from(n) / 2.0 / tail);
    (-square).exp() / fraction / std::f64::consts::PI.sqrt()
}

#[test]
fn the_test_s_own_erfc_is_right() {
    for (x, exact) in
        [(0.5, 0.479_500_122_186_953_5), (2.5, 4.069_520_174_449_589e-4), (-1.0, 1.842_700_792_949_715)]
    {
        assert!((erfc(x) / exact - 1.0).abs() < 1e-12, "{x}");
    }
}

#[test]
fn arithmetic_agrees_with_scalars() {
    at_each_level(|level| {
        let points = [-7.5, -2.5, -1.5, -0.5, -0.0, 0.5, 1.5, 2.4999, 1e6, f32::NAN];
        let rounded = evaluate(Function::Round, &points);
        assert_eq!(rounded[..9], [-8.0, -2.0, -2.0, 0.0, 0.0, 0.0, 2.0, 2.0, 1e6], "{level}");
        assert_eq!(evaluate(Function::Abs, &points)[..3], [7.5, 2.5, 1.5], "{level}");
        assert_eq!(evaluate(Function::Sqrt, &[0.0, 0.25, 2.0])[..3], [0.0, 0.5, 2f32.sqrt()], "{level}");
        let clamped = evaluate(Function::Arithmetic, &points);
        for (x, y) in points.into_iter().zip(clamped) {
            let exact = (0.75 * x + 2.5).clamp(-3.0, 3.0);
            assert!(y == exact || (y.is_nan() && exact.is_nan()), "{level}: {x} gives {y}, not {exact}");
        }
        let values: Vec<f32> = (0..16).map(|lane| ((lane * 5) % 16) as f32).collect();
        let (sum, largest) = reduce(&values);
        let used = if matches!(level, Level::Amx | Level::Avx512) { 16 } else { 8 };
        assert_eq!(sum, values[..used].iter().sum::<f32>(), "{level}");
        assert_eq!(largest, values[..used].iter().copied().fold(0.0, f32::max), "{level}");
        assert!(transposes(), "{level}");
        assert!(transposes_pairs(), "{level}");
    });
}

#[test]
fn narrowing_and_widening_agree_with_half() {
    let mut numbers =
        vec![0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-40];
    // Neighbourhoods of bf16 and f16 ties, subnormals of f16, and its overflow.
    for base in [1.0f32, 1.0039063, 3.3, 65504.0, 65519.9, 65520.0, 6e-8, 2.9e-8, 3e-5, 1.0005] {
        for step in -3i32..=3 {
            numbers.push(f32::from_bits(base.to_bits().wrapping_add_signed(step)));
            numbers.push(-f32::from_bits((base.to_bits() | 0x7fff).wrapping_add_signed(step)));
            numbers.push(f32::from_bits((base.to_bits() | 0x0fff).wrapping_add_signed(step)));
        }
    }
    at_each_level(|level| {
        for count in [1, 5, 8, 13, 16, 31, numbers.len()] {
            let from = &numbers[..count];
            let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
            let mut narrow = vec![bf16::ZERO; count];
            let mut wide = vec![7f32; count + 1];
            // SAFETY: all hold `count` numbers.
            unsafe { round_trip(from.as_ptr(), narrow.as_mut_ptr(), wide.as_mut_ptr(), count) };
            let exact: Vec<f32> = from.iter().map(|&number| bf16::from_f32(number).to_f32()).collect();
            assert_eq!(bits(&wide[..count]), bits(&exact), "bf16, {level}");
            assert_eq!(wide[count], 7.0, "bf16, {level}");
            let mut narrow = vec![f16::ZERO; count];
            let mut wide = vec![7f32; count + 1];
            // SAFETY: all hold `count` numbers.
            unsafe { round_trip(from.as_ptr(), narrow.as_mut_ptr(), wide.as_mut_ptr(), count) };
            let exact: Vec<f32> = from.iter().map(|&number| f16::from_f32(number).to_f32()).collect();
            assert_eq!(bits(&wide[..count]), bits(&exact), "f16, {level}");
            assert_eq!(wide[count], 7.0, "f16, {level}");
        }
        // A NaN stays one, even when only its low bits are set.
        let nan = [f32::from_bits(0x7f80_0001); 16];
        let (mut narrow, mut wide) = ([bf16::ZERO; 16], [0f32; 16]);
        // SAFETY: all hold 16 numbers.
        unsafe { round_trip(nan.as_ptr(), narrow.as_mut_ptr(), wide.as_mut_ptr(), 16) };
        assert!(wide.iter().all(|number| number.is_nan()), "{level}");
    });
}
