//! Elementary functions, by polynomials fitted for the least largest relative error.

use super::Simd;

/// `eˣ`, relative error below 3·10⁻⁷; 0 at −∞ and below −104, ∞ above 88.8, NaN at NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    // x = n·ln 2 + r, |r| <= ln 2 / 2. ln 2 is split so that n times its first part is exact.
    let x = simd.max(simd.splat(-104.0), simd.min(simd.splat(89.0), x));
    let n = simd.round(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    let r = simd.fma(n, simd.splat(-0.693_359_4), x);
    let r = simd.fma(n, simd.splat(2.121_944_4e-4), r);
    let p = polynomial(simd, r, [0.499_992_28, 0.166_671_16, 0.041_890_558, 0.008_312_482]);
    let r_squared = simd.mul(r, r);
    let e = simd.add(simd.fma(p, r_squared, r), simd.splat(1.0));
    simd.scale_by_power(e, n)
}

/// [`exp`] of a weight among others that sum up to about 1: zero below 2⁻¹⁰⁰. Nobody would see those, but products with
/// numbers too small to be normal take a hundred times as long.
#[inline(always)]
pub(crate) fn weight<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    simd.select_less(x, simd.splat(-100. * std::f32::consts::LN_2), simd.splat(0.), exp(simd, x))
}

/// `tanh x`, relative error below 10⁻⁶.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    let square = simd.mul(x, x);
    let p =
        polynomial(simd, square, [-0.333_332_6, 0.133_308_3, -0.053_688_04, 0.020_469_455, -0.005_515_196]);
    let near = simd.fma(simd.mul(p, square), x, x);
    // 1 - 2 / (e^2x + 1) loses digits near zero, where the polynomial is used.
    let one = simd.splat(1.0);
    let e = exp(simd, simd.add(x, x));
    let far = simd.sub(one, simd.div(simd.splat(2.0), simd.add(e, one)));
    simd.select_less(simd.abs(x), simd.splat(0.625), near, far)
}

/// `x · sigmoid(x)`
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    let e = exp(simd, simd.sub(simd.splat(0.0), x));
    simd.div(x, simd.add(simd.splat(1.0), e))
}

/// GELU's tanh approximation: `x/2 · (1 + tanh u) = x · sigmoid(2u)` with `u = √(2/π) · (x + 0.044715 x³)`.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    const MINUS_TWO_ROOT: f32 = -1.595_769; // -2·√(2/π)
    let square = simd.mul(x, x);
    let factor = simd.fma(square, simd.splat(0.044_715 * MINUS_TWO_ROOT), simd.splat(MINUS_TWO_ROOT));
    let e = exp(simd, simd.mul(factor, x));
    simd.div(x, simd.add(simd.splat(1.0), e))
}

/// GELU: `x · Φ(x)`.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    let (phi, _) = normal_distribution(simd, x);
    simd.mul(x, phi)
}

/// [`silu`] and its derivative `σ · (1 + x · (1 − σ))`.
#[inline(always)]
pub(crate) fn silu_with_slope<S: Simd>(simd: S, x: S::Vector) -> (S::Vector, S::Vector) {
    let one = simd.splat(1.0);
    let e = exp(simd, simd.sub(simd.splat(0.0), x));
    let sigmoid = simd.div(one, simd.add(one, e));
    let value = simd.mul(x, sigmoid);
    (value, simd.mul(sigmoid, simd.fma(x, simd.sub(one, sigmoid), one)))
}

/// [`gelu_tanh`] and its derivative.
#[inline(always)]
pub(crate) fn gelu_tanh_with_slope<S: Simd>(simd: S, x: S::Vector) -> (S::Vector, S::Vector) {
    const TWO_ROOT: f32 = 1.595_769; // 2·√(2/π)
    let one = simd.splat(1.0);
    let square = simd.mul(x, x);
    let factor = simd.fma(square, simd.splat(0.044_715 * TWO_ROOT), simd.splat(TWO_ROOT));
    let e = exp(simd, simd.sub(simd.splat(0.0), simd.mul(factor, x)));
    let sigmoid = simd.div(one, simd.add(one, e));
    let value = simd.mul(x, sigmoid);
    let rate = simd.fma(square, simd.splat(3.0 * 0.044_715 * TWO_ROOT), simd.splat(TWO_ROOT));
    (value, simd.fma(simd.mul(value, simd.sub(one, sigmoid)), rate, sigmoid))
}

/// [`gelu`] and its derivative `Φ(x) + x · φ(x)`.
#[inline(always)]
pub(crate) fn gelu_with_slope<S: Simd>(simd: S, x: S::Vector) -> (S::Vector, S::Vector) {
    let (phi, bell) = normal_distribution(simd, x);
    let density = simd.mul(bell, simd.splat(0.398_942_3)); // 1/√(2π)
    (simd.mul(x, phi), simd.fma(x, density, phi))
}

/// `Φ(x)` and `exp(-x²/2)`, with the tail `Φ(-|x|) = erfcx(|x|/√2) · exp(-x²/2) / 2`.
#[inline(always)]
fn normal_distribution<S: Simd>(simd: S, x: S::Vector) -> (S::Vector, S::Vector) {
    const COEFFICIENTS: [f32; 8] = [
        0.253_881_04,
        0.254_060_98,
        0.225_507_04,
        0.196_718_44,
        0.026_013_463,
        0.223_159_92,
        -0.247_843,
        0.068_501_95,
    ];
    let one = simd.splat(1.0);
    // The scaled complementary error function is t times a polynomial in t = 1 / (1 + 0.45·|x|/√2).
    let scaled = simd.fma(simd.abs(x), simd.splat(0.45 * std::f32::consts::FRAC_1_SQRT_2), one);
    let t = simd.div(one, scaled);
    let erfcx = simd.mul(t, polynomial(simd, t, COEFFICIENTS));
    let bell = exp(simd, simd.mul(simd.mul(x, x), simd.splat(-0.5)));
    let tail = simd.mul(simd.mul(erfcx, simd.splat(0.5)), bell);
    (simd.select_less(x, simd.splat(0.0), tail, simd.sub(one, tail)), bell)
}

/// `c₀ + c₁x + c₂x² + …` by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd, const TERMS: usize>(simd: S, x: S::Vector, coefficients: [f32; TERMS]) -> S::Vector {
    let mut sum = simd.splat(coefficients[TERMS - 1]);
    for term in (0..TERMS - 1).rev() {
        sum = simd.fma(sum, x, simd.splat(coefficients[term]));
    }
    sum
}
