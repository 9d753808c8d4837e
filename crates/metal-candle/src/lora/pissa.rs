//! The largest singular vectors of a weight, by subspace iteration from a random start
//! (<https://arxiv.org/abs/0909.4061>), as first values of an adapter (<https://arxiv.org/abs/2404.02948>).
//!
//! N: outputs, K: inputs, r: rank, l: vectors that are iterated. Vectors are rows, in f64.

use candle_core::{DType, Device, Tensor};
use metal_candle_kernels::linear::{Projection, linear, linear_backward};

use super::initial::normal;
use crate::generate::sampler::random::SequenceRandom;

/// Each brings the subspace nearer by the square of the ratio of neighbouring singular values.
const ITERATIONS: usize = 8;
/// Vectors beyond the rank, at least.
const SPARE: usize = 10;
/// Sweeps of rotations; a few suffice.
const SWEEPS: usize = 60;

type Rows = Vec<Vec<f64>>;

/// A `[r, K]` and B `[N, r]` in f32 with `scale · B · A` the best approximation of a weight `[N, K]` on the CPU.
pub(super) fn principal_factors(
    weight: &Tensor,
    rank: usize,
    scale: f32,
    random: &mut SequenceRandom,
) -> candle_core::Result<(Tensor, Tensor)> {
    let (outputs, inputs) = weight.dims2()?;
    let count = (rank + rank.max(SPARE)).min(outputs).min(inputs); // l
    let projection = Projection { weight: weight.contiguous()?, bias: None };
    let mut right: Rows = (0..count).map(|_| (0..inputs).map(|_| normal(random)).collect()).collect();
    let (mut left, mut small) = (Rows::new(), Rows::new());
    for _ in 0..ITERATIONS {
        left = to_rows(&linear(&to_tensor(&right)?, &projection)?)?; // X · Wᵀ: [l, N]
        orthonormalise(&mut left);
        right = to_rows(&linear_backward(&to_tensor(&left)?, &projection)?)?; // Y · W: [l, K]
        small = orthonormalise(&mut right); // left · W = small · right
    }
    let mut rotation = rotate_rows_apart(&mut small); // rotation · small has orthogonal rows
    let mut order: Vec<(f64, usize)> = small.iter().map(|row| norm(row)).zip(0..).collect();
    order.sort_by(|one, other| other.0.total_cmp(&one.0));

    let (mut a, mut b) = (vec![0f32; rank * inputs], vec![0f32; outputs * rank]);
    for (index, &(value, place)) in order.iter().take(rank).enumerate() {
        let root = (value / f64::from(scale)).sqrt();
        if value > 0.0 {
            small[place].iter_mut().for_each(|element| *element *= root / value);
        }
        rotation[place].iter_mut().for_each(|element| *element *= root);
        for (to, value) in a[index * inputs..].iter_mut().zip(combine(&small[place], &right)) {
            *to = value as f32;
        }
        for (output, value) in combine(&rotation[place], &left).into_iter().enumerate() {
            b[output * rank + index] = value as f32;
        }
    }
    let a = Tensor::from_vec(a, (rank, inputs), &Device::Cpu)?;
    let b = Tensor::from_vec(b, (outputs, rank), &Device::Cpu)?;
    Ok((a, b))
}

/// Gram-Schmidt, twice for precision. Returns the lower triangle that makes the old rows from the new ones; what depends
/// on the rows before it becomes zero.
fn orthonormalise(rows: &mut Rows) -> Rows {
    let count = rows.len();
    let mut triangle = vec![vec![0.0; count]; count];
    for (index, weights) in triangle.iter_mut().enumerate() {
        let (before, rest) = rows.split_at_mut(index);
        let row = &mut rest[0];
        let length = norm(row);
        for _ in 0..2 {
            for (earlier, weight) in before.iter().zip(weights.iter_mut()) {
                let along = dot(earlier, row);
                *weight += along;
                row.iter_mut().zip(earlier).for_each(|(element, other)| *element -= along * other);
            }
        }
        let remaining = norm(row);
        if remaining <= 1e-12 * length {
            row.fill(0.0);
            continue;
        }
        weights[index] = remaining;
        row.iter_mut().for_each(|element| *element /= remaining);
    }
    triangle
}

/// One-sided Jacobi: rotates pairs of rows until all are orthogonal. Returns the rotation.
fn rotate_rows_apart(rows: &mut Rows) -> Rows {
    let count = rows.len();
    let mut rotation: Rows =
        (0..count).map(|index| (0..count).map(|at| f64::from(u8::from(at == index))).collect()).collect();
    for _ in 0..SWEEPS {
        let mut largest = 0f64;
        for first in 0..count {
            for second in first + 1..count {
                let (one, other, product) = (
                    dot(&rows[first], &rows[first]),
                    dot(&rows[second], &rows[second]),
                    dot(&rows[first], &rows[second]),
                );
                if product == 0.0 || product.abs() <= 1e-15 * (one * other).sqrt() {
                    continue;
                }
                largest = largest.max(product.abs() / (one * other).sqrt());
                let tau = (other - one) / (2.0 * product);
                let tangent = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
                let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
                for matrix in [&mut *rows, &mut rotation] {
                    let (head, tail) = matrix.split_at_mut(second);
                    for (left, right) in head[first].iter_mut().zip(&mut tail[0]) {
                        let (x, y) = (*left, *right);
                        *left = cosine * (x - tangent * y);
                        *right = cosine * (tangent * x + y);
                    }
                }
            }
        }
        if largest < 1e-14 {
            break;
        }
    }
    rotation
}

/// The sum of rows with these weights.
fn combine(weights: &[f64], rows: &Rows) -> Vec<f64> {
    let mut sum = vec![0.0; rows.first().map_or(0, Vec::len)];
    for (weight, row) in weights.iter().zip(rows) {
        sum.iter_mut().zip(row).for_each(|(sum, element)| *sum += weight * element);
    }
    sum
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

fn norm(row: &[f64]) -> f64 {
    dot(row, row).sqrt()
}

fn to_tensor(rows: &Rows) -> candle_core::Result<Tensor> {
    let values: Vec<f32> = rows.iter().flatten().map(|&value| value as f32).collect();
    Tensor::from_vec(values, (rows.len(), rows.first().map_or(0, Vec::len)), &Device::Cpu)
}

fn to_rows(tensor: &Tensor) -> candle_core::Result<Rows> {
    let rows = tensor.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    Ok(rows.into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f64> {
        tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn the_factors_hold_the_largest_singular_values_and_the_rest_is_orthogonal_to_them() {
        // Two known directions on each side and a small rest.
        let (outputs, inputs) = (37, 23);
        let mut random = SequenceRandom::new(1);
        let mut draw = |count: usize, length| -> Rows {
            (0..count).map(|_| (0..length).map(|_| normal(&mut random)).collect()).collect()
        };
        let (mut left, mut right) = (draw(5, outputs), draw(5, inputs));
        orthonormalise(&mut left);
        orthonormalise(&mut right);
        let sizes = [8.0, 2.0, 0.5, 0.1, 0.01];
        let mut weight = vec![0f32; outputs * inputs];
        for (size, (left, right)) in sizes.iter().zip(left.iter().zip(&right)) {
            for (row, left) in weight.chunks_mut(inputs).zip(left) {
                row.iter_mut().zip(right).for_each(|(to, right)| *to += (size * left * right) as f32);
            }
        }
        let weight = Tensor::from_vec(weight, (outputs, inputs), &Device::Cpu).unwrap();
        let (a, b) = principal_factors(&weight, 2, 0.5, &mut SequenceRandom::new(2)).unwrap();
        let product = (b.matmul(&a).unwrap() * 0.5).unwrap();
        let size = |tensor: &Tensor| dot(&values(tensor), &values(tensor)).sqrt();
        assert!((size(&product) - 68f64.sqrt()).abs() < 1e-4, "{}", size(&product));
        // What is left are the three smaller values.
        let rest = (&weight - &product).unwrap();
        assert!((size(&rest) - 0.2601f64.sqrt()).abs() < 1e-4, "{}", size(&rest));
        // Both sides carry the same: squares of norms are singular values over the scale.
        for (row, expected) in values(&a).chunks(inputs).zip([16.0, 4.0]) {
            assert!((dot(row, row) - expected).abs() < 1e-4, "{}", dot(row, row));
        }
    }
}
