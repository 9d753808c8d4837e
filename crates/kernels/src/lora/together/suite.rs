//! On every device, against the definition.

use candle_core::DType;
use metal_candle_testkit::tolerance::Gate;

use super::{super::reference, *};
use crate::testing::{
    bits, random,
    suite::{Case, Gradients, check_where, one_mode_per_type, rigs},
};

const GATES: [Gate; 2] = [Gate::Lora, Gate::LoraBackward];

/// M, K, and N and r of each adapter.
type Shape = (usize, usize, &'static [(usize, usize)]);

/// Sizes that fill tiles and do not, more and higher ranks than the kernels are for; then rows enough for tensor cores.
const SHAPES: [Shape; 11] = [
    (1, 5, &[(3, 1)]),
    (9, 40, &[(64, 8), (16, 8)]),
    (37, 300, &[(24, 16), (8, 3), (40, 8)]),
    (130, 33, &[(70, 5), (300, 16)]),
    (21, 64, &[(48, 8), (48, 20)]),
    (6, 16, &[(8, 8), (8, 8), (8, 8), (8, 8)]),
    (150, 896, &[(896, 8), (128, 8)]),
    (137, 136, &[(128, 16), (72, 4), (40, 5)]),
    (130, 1096, &[(24, 16), (2056, 12)]),
    (128, 64, &[(128, 4)]),
    (1100, 64, &[(64, 16), (16, 16), (8, 8)]),
];

/// Rows enough for tensor cores, and much work for the emulator.
const MANY_ROWS: usize = 128;

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
        let case = Case {
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
        };
        check_where(&case, |rig, dtype| shape.0 < MANY_ROWS || one_mode_per_type(rig, dtype));
    }
}

#[test]
fn gradients_of_the_matrices_do_not_depend_on_whether_that_of_the_input_is_asked_for() {
    const SHAPE: Shape = (150, 72, &[(64, 8), (16, 4)]);
    for (rig, dtype) in rigs().into_iter().flat_map(|rig| [(rig.clone(), DType::F32), (rig, DType::BF16)]) {
        let on_rig = |input: &Tensor| input.to_dtype(dtype).unwrap().to_device(rig.device()).unwrap();
        let inputs: Vec<_> = inputs(SHAPE).iter().map(on_rig).collect();
        let sums = |dx: Option<&Tensor>| -> Result<Vec<_>> {
            let (x, adapters) = (&inputs[0], adapters(&inputs));
            let projections = lora_down_together(x, &adapters.iter().collect::<Vec<_>>())?;
            let zeros = |like: &Tensor| Tensor::zeros(like.shape(), DType::F32, like.device());
            let sums = adapters.iter().map(|adapter| Ok((zeros(&adapter.a)?, zeros(&adapter.b)?)));
            let sums = sums.collect::<Result<Vec<_>>>()?;
            let triples = adapters.iter().zip(&sums).zip(inputs[1..].chunks_exact(3));
            let members: Vec<_> =
                triples.map(|((adapter, (da, db)), of)| LoraMember { adapter, dy: &of[2], da, db }).collect();
            lora_backward_together(x, &projections, &members, dx)?;
            Ok(sums.iter().flat_map(|(da, db)| [bits(da), bits(db)]).collect())
        };
        let both = rig.with(|| Result::Ok((sums(Some(&inputs[0].zeros_like()?))?, sums(None)?)));
        let (with, without) = both.unwrap();
        assert!(with == without, "{dtype:?} on {rig}");
        assert!(with.iter().all(|sum| sum.iter().any(|&bits| bits != 0)), "{dtype:?} on {rig}");
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
