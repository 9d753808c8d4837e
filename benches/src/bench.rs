//! What all rows of a program share: the device, and what is too large to be made for each.

use std::{cell::OnceCell, env, sync::Arc};

use anyhow::{Context as _, Result};
use candle_core::{DType, Device, Shape, Tensor};
use metal_candle::{
    device::DeviceChoice,
    model::{Model, weights::Weights},
};

use crate::qwen;

const DEVICE: &str = "METAL_CANDLE_BENCH_DEVICE";

/// Where rows run.
pub struct Bench {
    device: Device,
    qwen: OnceCell<Arc<Model>>,
}

impl Bench {
    /// On the device that `METAL_CANDLE_BENCH_DEVICE` names.
    pub fn from_environment() -> Result<Self> {
        let name = env::var(DEVICE).unwrap_or_else(|_| "cpu".to_owned());
        let device = name.parse::<DeviceChoice>().and_then(DeviceChoice::open);
        let device = device.with_context(|| format!("{DEVICE}={name}"))?;
        Ok(Self { device, qwen: OnceCell::new() })
    }

    /// Where tensors go.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Numbers of mean 0 and variance 1, the same in every process.
    pub fn random(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        // The sum of four uniform numbers has variance 1/3.
        let mut number = || ((0..4).map(|_| uniform()).sum::<f32>() - 2.) * 3f32.sqrt();
        let values: Vec<f32> = (0..shape.elem_count()).map(|_| number()).collect();
        Ok(Tensor::from_vec(values, shape, &self.device)?)
    }

    /// Zeros in f32.
    pub fn zeros(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(Tensor::zeros(shape, DType::F32, &self.device)?)
    }

    /// Random weights in bf16 in the shape of Qwen2.5-0.5B; made once.
    pub fn qwen(&self) -> Result<Arc<Model>> {
        if let Some(model) = self.qwen.get() {
            return Ok(Arc::clone(model));
        }
        let spec = qwen::spec()?;
        let weights = Weights::random(&spec.tensors(), DType::BF16, &self.device, 1)?;
        let model = Arc::new(Model::new(spec, weights, &self.device)?);
        Ok(Arc::clone(self.qwen.get_or_init(|| model)))
    }

    /// Waits until the device has done what it was asked for.
    pub fn synchronize(&self) -> Result<()> {
        if self.device.is_cpu() { Ok(()) } else { Ok(self.device.synchronize()?) }
    }
}
