//! Adapters against PEFT, gradients included.
#![allow(clippy::unwrap_used, missing_docs)]

use candle_core::{DType, Device, Tensor, Var};
use metal_candle_kernels::{
    linear::{Projection, linear, linear_backward},
    lora::{
        Dora, DoraGradients, LoraAdapter, LoraGradients, LoraSegment, dora, dora_backward, dora_norm, lora,
        lora_backward, lora_delta, lora_down, lora_in_place,
    },
};
use metal_candle_testkit::{
    golden::Tensors,
    tolerance::{Gate, Precision, assert_close, tolerance},
};

/// `lora_alpha` 7 by rank 5.
const SCALE: f32 = 1.4;

struct Golden(Tensors);

impl Golden {
    fn tensor(&self, name: &str) -> Tensor {
        let floats = self.0.floats(name);
        Tensor::from_vec(floats.values.clone(), floats.shape.as_slice(), &Device::Cpu).unwrap()
    }

    fn adapter(&self) -> LoraAdapter {
        LoraAdapter { a: self.tensor("a"), b: self.tensor("b"), scale: SCALE }
    }

    fn projection(&self) -> Projection {
        Projection { weight: self.tensor("weight"), bias: Some(self.tensor("bias")) }
    }

    #[track_caller]
    fn check(&self, name: &str, found: &Tensor) {
        let expected = self.0.floats(name);
        assert_eq!(found.dims(), expected.shape, "{name}");
        let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
        let gate = if name == "y" { Gate::Lora } else { Gate::LoraBackward };
        assert_close(&found, &expected.values, tolerance(gate, Precision::F32), name);
    }
}

fn variable(tensor: &Tensor) -> Var {
    Var::from_tensor(tensor).unwrap()
}

fn zeros(like: &Tensor) -> Tensor {
    Tensor::zeros(like.shape(), DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn lora_in_a_graph_is_what_peft_computes() {
    let golden = Golden(Tensors::open("ops/lora.safetensors"));
    let [x, a, b] = ["x", "a", "b"].map(|name| variable(&golden.tensor(name)));
    let adapter = LoraAdapter { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: SCALE };
    let base = linear(&x, &golden.projection()).unwrap();
    let y = lora(&x, &base, &[LoraSegment { rows: 0..21, adapter: &adapter }]).unwrap();
    golden.check("y", &y);
    let gradients = (y * golden.tensor("dy")).unwrap().sum_all().unwrap().backward().unwrap();
    for (name, variable) in [("d_x", x), ("d_a", a), ("d_b", b)] {
        golden.check(name, gradients.get(&variable).unwrap());
    }
}

#[test]
fn lora_layer_by_layer_is_what_peft_computes() {
    let golden = Golden(Tensors::open("ops/lora.safetensors"));
    let (x, dy, adapter, projection) =
        (golden.tensor("x"), golden.tensor("dy"), golden.adapter(), golden.projection());
    let y = linear(&x, &projection).unwrap();
    lora_in_place(&x, &y, &[LoraSegment { rows: 0..21, adapter: &adapter }]).unwrap();
    golden.check("y", &y);
    let dx = linear_backward(&dy, &projection).unwrap();
    let (da, db) = (zeros(&adapter.a), zeros(&adapter.b));
    let projected = lora_down(&x, &adapter).unwrap();
    let into = LoraGradients { dx: Some(&dx), da: &da, db: &db };
    lora_backward(&x, &dy, &adapter, &projected, &into).unwrap();
    for (name, found) in [("d_x", dx), ("d_a", da), ("d_b", db)] {
        golden.check(name, &found);
    }
}

#[test]
fn dora_in_a_graph_is_what_peft_computes() {
    let golden = Golden(Tensors::open("ops/dora.safetensors"));
    let [x, a, b, magnitude] = ["x", "a", "b", "magnitude"].map(|name| variable(&golden.tensor(name)));
    let adapter = LoraAdapter { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: SCALE };
    let layer = Dora { adapter, magnitude: magnitude.as_tensor().clone() };
    let norm = dora_norm(&golden.tensor("weight"), &layer.adapter).unwrap();
    let y = dora(&x, &golden.projection(), &layer, &norm).unwrap();
    golden.check("y", &y);
    let gradients = (y * golden.tensor("dy")).unwrap().sum_all().unwrap().backward().unwrap();
    for (name, variable) in [("d_x", x), ("d_a", a), ("d_b", b), ("d_magnitude", magnitude)] {
        golden.check(name, gradients.get(&variable).unwrap());
    }
}

#[test]
fn dora_layer_by_layer_is_what_peft_computes() {
    let golden = Golden(Tensors::open("ops/dora.safetensors"));
    let (x, dy, projection) = (golden.tensor("x"), golden.tensor("dy"), golden.projection());
    let layer = Dora { adapter: golden.adapter(), magnitude: golden.tensor("magnitude") };
    let norm = dora_norm(&projection.weight, &layer.adapter).unwrap();
    let frozen = Projection { weight: projection.weight.clone(), bias: None };
    let sum = (linear(&x, &frozen).unwrap() + lora_delta(&x, &layer.adapter).unwrap()).unwrap();
    let (dx, da, db) = (zeros(&x), zeros(&layer.adapter.a), zeros(&layer.adapter.b));
    let (dm, projected) = (zeros(&layer.magnitude), lora_down(&x, &layer.adapter).unwrap());
    let lora = LoraGradients { dx: Some(&dx), da: &da, db: &db };
    let into = DoraGradients { lora, magnitude: &dm };
    dora_backward(&x, &dy, &projection, &layer, &norm, &sum, &projected, &into).unwrap();
    for (name, found) in [("d_x", dx), ("d_a", da), ("d_b", db), ("d_magnitude", dm)] {
        golden.check(name, &found);
    }
}
