//! On every device, against the definition.

use candle_core::DType;
use metal_candle_testkit::tolerance::Gate;

use super::{super::reference, *};
use crate::testing::{
    random,
    suite::{Case, Gradients, check},
};

const GATES: [Gate; 2] = [Gate::Lora, Gate::LoraBackward];

/// M, K, and N and r of each adapter.
type Shape = (usize, usize, &'static [(usize, usize)]);

/// Sizes that fill tiles and do not, more and higher ranks than the kernels are for.
const SHAPES: [Shape; 6] = [
    (1, 5, &[(3, 1)]),
    (9, 40, &[(64, 8), (16, 8)]),
    (37, 300, &[(24, 16), (8, 3), (40, 8)]),
    (130, 33, &[(70, 5), (300, 16)]),
    (21, 64, &[(48, 8), (48, 20)]),
    (6, 16, &[(8, 8), (8, 8), (8, 8), (8, 8)]),
];

/// x, then A, B and the product of each adapter.
fn inputs((rows, inputs, adapters): (usize, usize, &[(usize, usize)])) -> Vec<Tensor> {
    let mut tensors = vec![random(1, (rows, inputs), DType::F64)];
    for (number, &(outputs, rank)) in adapters.iter().enumerate() {
        let seed = 3 * number as u64;
        tensors.push(random(seed + 2, (rank, inputs), DType::F64));
        tensors.push(random(seed + 3, (outputs, rank), DType::F64));
        tensors.push(random(seed + 4, (rows, outputs), DType::F64));
    }
    tensors
}

fn scale(number: usize) -> f32 {
    0.5 + 0.25 * number as f32
}

fn adapters(inputs: &[Tensor]) -> Vec<LoraAdapter> {
    let triples = inputs[1..].chunks_exact(3).enumerate();
    triples
        .map(|(number, of)| LoraAdapter { a: of[0].clone(), b: of[1].clone(), scale: scale(number) })
        .collect()
}

#[test]
fn adapters_of_one_input_match_the_definition() {
    for shape in SHAPES {
        check(&Case {
            op: "lora_together",
            name: format!("{shape:?}"),
            gates: GATES,
            inputs: inputs(shape),
            run: &|inputs| {
                let adapters = adapters(inputs);
                let adapters: Vec<_> = adapters.iter().collect();
                let products =
                    inputs[1..].chunks_exact(3).map(|of| of[2].copy()).collect::<Result<Vec<_>>>()?;
                let projections = lora_down_together(&inputs[0], &adapters)?;
                lora_up_together(&projections, &products.iter().collect::<Vec<_>>(), &adapters)?;
                Ok(products)
            },
            gradients: Gradients::Explicit(&|inputs, d_products| {
                let (x, adapters) = (&inputs[0], adapters(inputs));
                let projections = lora_down_together(x, &adapters.iter().collect::<Vec<_>>())?;
                let zeros = |like: &Tensor| Tensor::zeros(like.shape(), DType::F32, like.device());
                let sums = adapters
                    .iter()
                    .map(|adapter| Ok((zeros(&adapter.a)?, zeros(&adapter.b)?)))
                    .collect::<Result<Vec<_>>>()?;
                let members: Vec<_> = adapters
                    .iter()
                    .zip(&sums)
                    .zip(d_products)
                    .map(|((adapter, (da, db)), dy)| LoraMember { adapter, dy, da, db })
                    .collect();
                // What is there already is kept: the gradient of `x` starts at one, and one is taken off again.
                let dx = x.ones_like()?;
                lora_backward_together(x, &projections, &members, Some(&dx))?;
                let mut found = vec![(dx - 1.)?];
                for ((da, db), dy) in sums.into_iter().zip(d_products) {
                    found.extend([da, db, dy.clone()]);
                }
                Ok(found)
            }),
            definition: &|inputs| {
                let triples = inputs[1..].chunks_exact(3).enumerate();
                triples
                    .map(|(number, of)| &of[2] + reference::delta(&inputs[0], &of[0], &of[1], scale(number))?)
                    .collect()
            },
        });
    }
}

#[test]
fn counts_that_differ_are_named() {
    let x = random(1, (2, 8), DType::F32);
    let adapter =
        LoraAdapter { a: random(2, (4, 8), DType::F32), b: random(3, (6, 4), DType::F32), scale: 1.0 };
    let projections = lora_down_together(&x, &[&adapter]).unwrap();
    let error = lora_up_together(&projections, &[], &[]).unwrap_err().to_string();
    assert!(error.contains("1 projections and 0 products for 0 adapters"), "{error}");
    let error = lora_backward_together(&x, &projections, &[], None).unwrap_err().to_string();
    assert!(error.contains("1 projections and 0 products"), "{error}");
}
