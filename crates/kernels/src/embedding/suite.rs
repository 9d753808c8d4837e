//! On every device, against the definition.

use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::testing::{
    bits, random,
    suite::{Case, Gradients, check as check_case},
};

#[test]
fn embedding_matches_the_definition() {
    // Rows used once, often and never; whole vectors and single elements.
    for (vocabulary, width, count) in [(1, 1, 1), (50, 20, 3), (50, 64, 200), (7, 99, 40), (300, 1024, 70)] {
        let ids: Vec<u32> = (0..count).map(|index| (index * index + 3) % vocabulary as u32).collect();
        for scale in [1., 1.5] {
            check_case(&Case {
                op: "embedding",
                name: format!("{vocabulary} x {width}, {count} ids, scale {scale}"),
                gates: [Gate::Embedding, Gate::Embedding],
                inputs: vec![random(1, (vocabulary, width), DType::F64)],
                run: &|inputs| Ok(vec![embedding(&inputs[0], &ids, scale, inputs[0].dtype())?]),
                gradients: Gradients::Recorded,
                definition: &|inputs| Ok(vec![reference::embedding(&inputs[0], &ids, scale, DType::F64)?]),
            });
        }
    }
}

#[test]
fn a_trained_table_of_another_type_gets_its_gradient() {
    let table = candle_core::Var::from_tensor(&random(1, (4, 3), DType::BF16)).unwrap();
    let rows = embedding(&table, &[2, 2, 0], 2., DType::F32).unwrap();
    let gradients = rows.sum_all().unwrap().backward().unwrap();
    let gradient = gradients.get(&table).unwrap().to_dtype(DType::F32).unwrap();
    let expected = [[2f32; 3], [0.; 3], [4.; 3], [0.; 3]];
    assert_eq!(gradient.to_vec2::<f32>().unwrap(), expected.map(|row| row.to_vec()));
}

#[test]
fn no_ids_give_no_rows_and_no_gradient() {
    let table = random(1, (4, 3), DType::F32);
    assert_eq!(embedding(&table, &[], 1., DType::F32).unwrap().dims(), [0, 3]);
    let gradient = embedding_backward(&[], &table.narrow(0, 0, 0).unwrap(), 4, 1.).unwrap();
    assert_eq!(bits(&gradient), vec![0; 12]);
}
