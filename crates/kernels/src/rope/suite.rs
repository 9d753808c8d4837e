//! On every device, against the definition.

use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::testing::{
    random,
    suite::{Case, Gradients, check as check_case},
};

fn rotation(rows: usize, half: usize, pairs: Pairs) -> Rotation {
    let angles = (random(3, (rows, half), DType::F32) * 3.).unwrap();
    Rotation { cos: angles.cos().unwrap(), sin: angles.sin().unwrap(), pairs }
}

/// On the device of `x`.
fn like(rotation: &Rotation, x: &Tensor) -> Result<Rotation> {
    let [cos, sin] = [&rotation.cos, &rotation.sin].map(|table| table.to_device(x.device()));
    Ok(Rotation { cos: cos?, sin: sin?, pairs: rotation.pairs })
}

#[test]
fn both_layouts_match_the_definition() {
    for pairs in [Pairs::Halves, Pairs::Neighbours] {
        // rows, heads, D, half: whole heads and parts of them, in vectors and in single elements.
        for (rows, heads, head_dim, half) in [
            (1, 1, 2, 1),
            (5, 3, 6, 3),
            (3, 2, 20, 4),
            (4, 5, 64, 32),
            (7, 14, 32, 8),
            (2, 9, 80, 10),
            (70, 2, 128, 64),
        ] {
            let rotation = rotation(rows, half, pairs);
            check_case(&Case {
                op: "rope",
                name: format!("{rows} x {heads} x {head_dim}, half {half}, {pairs:?}"),
                gates: [Gate::Rope; 2],
                inputs: vec![random(1, (rows, heads, head_dim), DType::F64)],
                run: &|inputs| Ok(vec![rope(&inputs[0], &like(&rotation, &inputs[0])?)?]),
                gradients: Gradients::Recorded,
                definition: &|inputs| Ok(vec![reference::rope(&inputs[0], &rotation)?]),
            });
        }
    }
}

#[test]
fn turning_back_undoes_the_rotation() {
    let x = random(1, (6, 3, 40), DType::F32);
    for pairs in [Pairs::Halves, Pairs::Neighbours] {
        let rotation = rotation(6, 16, pairs);
        let back = rope_backward(&rope(&x, &rotation).unwrap(), &rotation).unwrap();
        crate::testing::assert_close(&back, &crate::testing::wide(&x), 1e-6, &format!("{pairs:?}"));
    }
}
