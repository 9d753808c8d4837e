use candle_core::{DType, Device};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;
use crate::{
    pool,
    simd::{Level, available, with_level},
};

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

fn random(rows: usize, columns: usize, seed: u64) -> Tensor {
    let mut rng = SmallRng::seed_from_u64(seed);
    let numbers: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap()
}

fn projection(outputs: usize, inputs: usize, dtype: DType, bias: Option<DType>) -> Projection {
    let weight = random(outputs, inputs, (outputs * 31 + inputs) as u64).to_dtype(dtype).unwrap();
    let bias = bias
        .map(|dtype| random(1, outputs, 17 + outputs as u64).flatten_all().unwrap().to_dtype(dtype).unwrap());
    Projection { weight, bias }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    numbers(tensor).into_iter().map(f32::to_bits).collect()
}

/// The exact result, and how far `f32` arithmetic may be from it.
struct Exact {
    values: Vec<f64>,
    tolerances: Vec<f64>,
}

/// A sum of K rounded products is off by some `√K` roundings of the sum of magnitudes.
fn exact(x: &Tensor, projection: &Projection) -> Exact {
    let (rows, inputs) = x.dims2().unwrap();
    let outputs = projection.weight.dims()[0];
    let (x, weight) = (numbers(x), numbers(&projection.weight));
    let bias = projection.bias.as_ref().map_or(vec![0.0; outputs], numbers);
    let mut exact = Exact { values: vec![], tolerances: vec![] };
    for row in 0..rows {
        for output in 0..outputs {
            let (mut sum, mut magnitude) = (f64::from(bias[output]), f64::from(bias[output].abs()));
            for input in 0..inputs {
                let product = f64::from(x[row * inputs + input]) * f64::from(weight[output * inputs + input]);
                sum += product;
                magnitude += product.abs();
            }
            exact.values.push(sum);
            exact.tolerances.push(magnitude * f64::from(f32::EPSILON) / 2.0 * (4.0 + (inputs as f64).sqrt()));
        }
    }
    exact
}

#[track_caller]
fn check(what: &str, result: &Tensor, exact: &Exact) {
    let result = numbers(result);
    assert_eq!(result.len(), exact.values.len(), "{what}");
    for (index, &y) in result.iter().enumerate() {
        let error = (f64::from(y) - exact.values[index]).abs();
        assert!(
            error <= exact.tolerances[index],
            "{what}: element {index} is {y}, not {} (± {})",
            exact.values[index],
            exact.tolerances[index]
        );
    }
}

#[test]
fn linear_is_right_at_all_sizes_dtypes_and_levels() {
    for (index, inputs) in [1, 5, 16, 31, 64, 100, 896].into_iter().enumerate() {
        for outputs in [1, 3, 31, 32, 33, 100] {
            for rows in [1, 2, 3, 7, 8, 9, 15, 33, 70] {
                let dtype = DTYPES[(index + outputs + rows) % 3];
                let bias =
                    [None, Some(DType::F32), Some(DType::BF16), Some(DType::F16)][(outputs + rows) % 4];
                let (x, projection) = (random(rows, inputs, 5), projection(outputs, inputs, dtype, bias));
                let exact = exact(&x, &projection);
                for level in available() {
                    let y = with_level(level, || linear(&x, &projection)).unwrap();
                    assert_eq!(y.dims(), [rows, outputs]);
                    check(&format!("{level} {dtype:?} M {rows} K {inputs} N {outputs}"), &y, &exact);
                }
            }
        }
    }
}

#[test]
fn every_number_of_rows_and_dtype_is_right() {
    for dtype in DTYPES {
        let projection = projection(37, 70, dtype, Some(dtype));
        for rows in 0..64 {
            let x = random(rows, 70, 3);
            let exact = exact(&x, &projection);
            for level in available() {
                let y = with_level(level, || linear(&x, &projection)).unwrap();
                check(&format!("{level} {dtype:?} M {rows}"), &y, &exact);
            }
        }
    }
}

#[test]
fn every_plan_of_many_rows_is_right() {
    // More rows than outputs and fewer: either operand may be the one that is packed once.
    for (rows, inputs, outputs, bias) in [
        (30, 2100, 33, Some(DType::F32)),
        (70, 2100, 33, Some(DType::F32)),
        (150, 4200, 160, None),
        (170, 4200, 160, None),
        (1100, 20, 40, Some(DType::F32)),
        // Rows of `x` that are read where they lie, also where their lines collide, and too many panels for that.
        (60, 300, 16, None),
        (60, 1024, 48, None),
        (60, 1024, 300, Some(DType::F32)),
        (60, 1023, 530, Some(DType::F32)),
        (60, 1023, 1030, None),
        (2, 2100, 700, Some(DType::F32)),
        (26, 0, 5, Some(DType::F32)),
        (3, 0, 5, Some(DType::F32)),
        (40, 7, 0, Some(DType::F32)),
    ] {
        for dtype in [DType::BF16, DType::F32] {
            let (x, projection) = (random(rows, inputs, 1), projection(outputs, inputs, dtype, bias));
            let exact = exact(&x, &projection);
            for level in available() {
                let y = with_level(level, || linear(&x, &projection)).unwrap();
                check(&format!("{level} {dtype:?} M {rows} K {inputs} N {outputs}"), &y, &exact);
            }
        }
    }
}

#[test]
fn input_gradients_are_right_at_all_sizes_dtypes_and_levels() {
    // More than is packed at once, also along what is summed over; tiles that are full and not.
    for (rows, outputs, inputs) in [(1, 5, 3), (33, 40, 100), (64, 1100, 256), (70, 2100, 130), (150, 31, 70)]
    {
        for dtype in DTYPES {
            let (dy, projection) = (random(rows, outputs, 7), projection(outputs, inputs, dtype, None));
            let transposed = projection.weight.t().unwrap().contiguous().unwrap();
            let exact = exact(&dy, &Projection { weight: transposed, bias: None });
            for level in available() {
                let dx = with_level(level, || linear_backward(&dy, &projection)).unwrap();
                assert_eq!(dx.dims(), [rows, inputs]);
                check(&format!("{level} {dtype:?} M {rows} N {outputs} K {inputs}"), &dx, &exact);
            }
        }
    }
}

#[test]
fn weight_gradients_are_right_at_all_sizes_and_levels() {
    for (rows, outputs, inputs) in [(1, 5, 3), (33, 40, 100), (70, 600, 430), (1100, 160, 128)] {
        let (x, dy) = (random(rows, inputs, 3), random(rows, outputs, 7));
        let [left, weight] = [&dy, &x].map(|numbers| numbers.t().unwrap().contiguous().unwrap());
        let exact = exact(&left, &Projection { weight, bias: None });
        for level in available() {
            let dw = with_level(level, || linear_weight_backward(&x, &dy)).unwrap();
            assert_eq!(dw.dims(), [outputs, inputs]);
            check(&format!("{level} M {rows} N {outputs} K {inputs}"), &dw, &exact);
        }
    }
}

#[test]
fn gated_is_right() {
    let activate = |activation: Activation, x: f64| match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
        // Candle's own, in double precision.
        Activation::Gelu => {
            let x = Tensor::new(x, &Device::Cpu).unwrap();
            x.gelu_erf().unwrap().to_scalar::<f64>().unwrap()
        }
    };
    for (rows, inputs, outputs) in
        [(1, 64, 100), (5, 33, 31), (9, 100, 15), (33, 100, 17), (90, 1100, 100), (70, 1100, 230)]
    {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            for (gate_dtype, up_dtype) in DTYPES.into_iter().zip([DType::F32, DType::BF16, DType::F32]) {
                let x = (random(rows, inputs, 4) * 0.3).unwrap();
                let gate = projection(outputs, inputs, gate_dtype, Some(DType::BF16));
                let mut up = projection(outputs, inputs, up_dtype, None);
                up.weight = (&up.weight * -0.5).unwrap();
                let (exact_gate, exact_up) = (exact(&x, &gate), exact(&x, &up));
                let mut product = Exact { values: vec![], tolerances: vec![] };
                for index in 0..exact_gate.values.len() {
                    let (g, u) = (activate(activation, exact_gate.values[index]), exact_up.values[index]);
                    // No activation is steeper than 1.13; its own error is below 3e-6.
                    let tolerance = 1.13 * exact_gate.tolerances[index] * u.abs()
                        + g.abs() * exact_up.tolerances[index]
                        + 3e-6 * (g * u).abs()
                        + 1e-9;
                    product.values.push(g * u);
                    product.tolerances.push(tolerance);
                }
                for level in available() {
                    let y = with_level(level, || gated_linear(&x, &gate, &up, activation)).unwrap();
                    assert_eq!(y.dims(), [rows, outputs]);
                    let what =
                        format!("{level} {activation:?} {gate_dtype:?} {up_dtype:?} M {rows} N {outputs}");
                    check(&what, &y, &product);
                }
            }
        }
    }
}

#[test]
fn many_projections_give_what_each_gives_alone() {
    let projections = [
        projection(100, 64, DType::BF16, Some(DType::BF16)),
        projection(7, 64, DType::F32, None),
        projection(33, 64, DType::F16, Some(DType::F32)),
    ];
    for rows in [1, 6, 40, 150] {
        let x = random(rows, 64, 8);
        let together = linear_many(&x, projections.each_ref()).unwrap();
        for (projection, y) in projections.iter().zip(&together) {
            assert_eq!(bits(&linear(&x, projection).unwrap()), bits(y), "{rows} rows");
        }
    }
}

#[test]
fn a_row_of_a_small_batch_gives_what_it_gives_alone() {
    for dtype in DTYPES {
        let (gate, up) = (projection(50, 100, dtype, None), projection(50, 100, dtype, Some(dtype)));
        let x = random(16, 100, 2);
        for level in available() {
            with_level(level, || {
                let alone: Vec<Vec<u32>> = (0..16)
                    .map(|row| {
                        let x = x.narrow(0, row, 1).unwrap();
                        bits(&gated_linear(&x, &gate, &up, Activation::Silu).unwrap())
                    })
                    .collect();
                for rows in 2..=16 {
                    let x = x.narrow(0, 0, rows).unwrap();
                    let together = bits(&gated_linear(&x, &gate, &up, Activation::Silu).unwrap());
                    assert_eq!(together, alone[..rows].concat(), "{level} {dtype:?} {rows} rows");
                }
            });
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let projection = projection(333, 100, DType::BF16, None);
    for rows in [1, 8, 70, 300] {
        let x = random(rows, 100, 2);
        let expected = bits(&linear(&x, &projection).unwrap());
        for threads in [1, 2, 5] {
            pool::tests::with_threads(threads, || {
                for _ in 0..20 {
                    assert_eq!(
                        bits(&linear(&x, &projection).unwrap()),
                        expected,
                        "{threads} threads, {rows} rows"
                    );
                }
            });
        }
    }
}

#[test]
fn views_into_a_larger_buffer_are_read_in_place() {
    for dtype in DTYPES {
        let buffer = random(1, 5000, 9).flatten_all().unwrap().to_dtype(dtype).unwrap();
        let view = |start, dims: &[usize]| {
            buffer.narrow(0, start, dims.iter().product()).unwrap().reshape(dims).unwrap()
        };
        let viewed = Projection { weight: view(13, &[40, 70]), bias: Some(view(3001, &[40])) };
        let copied = Projection {
            weight: viewed.weight.force_contiguous().unwrap(),
            bias: viewed.bias.as_ref().map(|bias| bias.force_contiguous().unwrap()),
        };
        for rows in [1, 4, 50] {
            let x = random(rows + 2, 70, 6).narrow(0, 2, rows).unwrap();
            let y = linear(&x, &viewed).unwrap();
            check(&format!("{dtype:?} M {rows}"), &y, &exact(&x, &copied));
            assert_eq!(bits(&y), bits(&linear(&x.force_contiguous().unwrap(), &copied).unwrap()));
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_row_and_column() {
    let (inputs, outputs) = (37, 35);
    for rows in [1, 3, 40] {
        for special in [f32::NAN, f32::INFINITY] {
            for level in available() {
                // In x: the whole row, and no other.
                let mut numbers_of_x = numbers(&random(rows, inputs, 1));
                numbers_of_x[(rows - 1) * inputs + inputs - 1] = special;
                let x = Tensor::from_vec(numbers_of_x, (rows, inputs), &Device::Cpu).unwrap();
                let plain = projection(outputs, inputs, DType::F32, None);
                let y = numbers(&with_level(level, || linear(&x, &plain)).unwrap());
                let (finite, last) = y.split_at((rows - 1) * outputs);
                assert!(finite.iter().all(|y| y.is_finite()), "{level}");
                // Of an infinity, AMX may make a NaN: it is multiplied with the parts of a weight, and one may be zero.
                let expected = |y: f32| match level {
                    Level::Amx => !y.is_finite(),
                    _ if special.is_nan() => y.is_nan(),
                    _ => y.is_infinite(),
                };
                assert!(last.iter().all(|&y| expected(y)), "{level}");
                // In a weight: its column, and no other.
                let mut weight = numbers(&plain.weight);
                weight[(outputs - 1) * inputs] = special;
                let weight = Tensor::from_vec(weight, (outputs, inputs), &Device::Cpu).unwrap();
                let broken = Projection { weight: weight.to_dtype(DType::BF16).unwrap(), bias: None };
                let y = numbers(&with_level(level, || linear(&random(rows, inputs, 1), &broken)).unwrap());
                for (index, y) in y.into_iter().enumerate() {
                    assert_eq!(y.is_finite(), index % outputs != outputs - 1, "{level}");
                }
            }
        }
    }
}

#[test]
fn bad_input_is_named() {
    let x = random(2, 8, 1);
    let good = projection(4, 8, DType::F32, None);
    let message = |x: &Tensor, weight: &Tensor, bias: Option<Tensor>| {
        linear(x, &Projection { weight: weight.clone(), bias }).unwrap_err().to_string()
    };
    let weight = &good.weight;
    for (message, parts) in [
        (message(&x.to_dtype(DType::F64).unwrap(), weight, None), ["input", "F64"]),
        (message(&x, &weight.to_dtype(DType::F64).unwrap(), None), ["weight", "F64"]),
        (message(&x, &random(8, 4, 1).t().unwrap(), None), ["weight", "contiguous"]),
        (message(&x, &random(4, 7, 1), None), ["weight", "[4, 7]"]),
        (message(&x, weight, Some(random(1, 5, 1).flatten_all().unwrap())), ["bias", "[5]"]),
    ] {
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    let other = projection(5, 8, DType::F32, None);
    let message = gated_linear(&x, &good, &other, Activation::Silu).unwrap_err().to_string();
    assert!(message.contains("[4, 8]") && message.contains("[5, 8]"), "{message}");
}
