//! The suite that every op passes on every device.
//!
//! A case names an op, its inputs and its definition in f64. It is run for each float type on each rig:
//! on the CPU at every instruction set, as emulated Metal kernels in several lane orders, or, where
//! `METAL_CANDLE_TEST_DEVICE` names one (`cuda:0`, `metal:0`), on a GPU. Results and gradients are compared
//! with the definition's, at the inputs as that type rounds them; the definition's own gradients are compared
//! with finite differences.
//!
//! Where `METAL_CANDLE_SUITE_LOG` names a file, each thing that was shown is written there as a line.

use std::{fmt, fs, io::Write};

use candle_core::{DType, Device, Result, Tensor, Var};
use metal_candle_testkit::tolerance::{Gate, Precision, assert_close, tolerance};

use super::random;
use crate::{
    gpu::emulator::{self, Mode},
    simd::{Level, available, with_level},
};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// An op with its inputs and its definition.
pub(crate) struct Case<'a> {
    /// The op's name in the table of what was shown.
    pub(crate) op: &'static str,
    /// What is special about these inputs.
    pub(crate) name: String,
    /// Tolerances of results and of gradients.
    pub(crate) gates: [Gate; 2],
    /// In f64 on the CPU.
    pub(crate) inputs: Vec<Tensor>,
    /// The op, on inputs of one float type on one device.
    pub(crate) run: Run<'a>,
    pub(crate) gradients: Gradients<'a>,
    /// The same in differentiable f64 ops.
    pub(crate) definition: Run<'a>,
}

/// From inputs and the gradients of results to the gradients of inputs.
pub(crate) type Backward<'a> = &'a dyn Fn(&[Tensor], &[Tensor]) -> Result<Vec<Tensor>>;

/// From inputs to results.
pub(crate) type Run<'a> = &'a dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>;

/// Where an op's gradients come from.
#[derive(Clone, Copy)]
pub(crate) enum Gradients<'a> {
    /// The op puts itself into candle's graph.
    Recorded,
    /// A function of their own: from the inputs and the gradients of the results to those of the inputs.
    Explicit(Backward<'a>),
    /// It has none.
    None,
}

/// A way of running an op.
#[derive(Debug, Clone)]
pub(crate) enum Rig {
    Cpu(Level),
    Emulated(Mode),
    Gpu(Device),
}

/// All rigs of this run.
pub(crate) fn rigs() -> Vec<Rig> {
    match std::env::var("METAL_CANDLE_TEST_DEVICE") {
        Err(_) => {
            let modes = if emulator::is_there() { Mode::ALL.to_vec() } else { Vec::new() };
            available().map(Rig::Cpu).chain(modes.into_iter().map(Rig::Emulated)).collect()
        }
        Ok(name) => vec![Rig::Gpu(device(&name))],
    }
}

impl Rig {
    pub(crate) fn device(&self) -> &Device {
        match self {
            Self::Cpu(_) | Self::Emulated(_) => &Device::Cpu,
            Self::Gpu(device) => device,
        }
    }

    /// Runs ops on this rig.
    pub(crate) fn with<T>(&self, run: impl FnOnce() -> T) -> T {
        match self {
            Self::Cpu(level) => with_level(*level, run),
            Self::Emulated(mode) => emulator::with(*mode, run),
            Self::Gpu(_) => run(),
        }
    }

    /// Its column in the table of what was shown.
    fn column(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
            Self::Emulated(_) => "metal (emulated)",
            Self::Gpu(Device::Metal(_)) => "metal",
            Self::Gpu(_) => "cuda",
        }
    }
}

impl fmt::Display for Rig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(level) => write!(formatter, "cpu, {level}"),
            Self::Emulated(mode) => write!(formatter, "emulated metal, {mode:?}"),
            Self::Gpu(device) => write!(formatter, "{:?}", device.location()),
        }
    }
}

/// Results and gradients of a case, on all rigs and for all float types.
#[track_caller]
pub(crate) fn check(case: &Case<'_>) {
    check_where(case, |_, _| true);
}

/// The same on some rigs for some float types.
#[track_caller]
pub(crate) fn check_where(case: &Case<'_>, is_wanted: impl Fn(&Rig, DType) -> bool) {
    for dtype in DTYPES {
        let rigs: Vec<Rig> = rigs().into_iter().filter(|rig| is_wanted(rig, dtype)).collect();
        if rigs.is_empty() {
            continue;
        }
        let inputs: Vec<Tensor> = case.inputs.iter().map(|input| rounded(input, dtype)).collect();
        let has_gradients = !matches!(case.gradients, Gradients::None);
        let expected = if has_gradients {
            Outcome::recorded(case.definition, &inputs, dtype)
        } else {
            Outcome { results: (case.definition)(&inputs).unwrap(), gradients: Vec::new() }
        };
        if dtype == DType::F32 && has_gradients {
            finite_differences(case, &inputs, &expected);
        }
        for rig in &rigs {
            let on_rig = |input: &Tensor| input.to_dtype(dtype).unwrap().to_device(rig.device()).unwrap();
            let inputs: Vec<Tensor> = inputs.iter().map(on_rig).collect();
            let found = rig.with(|| Outcome::of(case, &inputs, dtype));
            let context = format!("{}, {}, {dtype:?} on {rig}", case.op, case.name);
            compare(&found.results, &expected.results, case.gates[0], dtype, &format!("{context}: result"));
            log(case.op, "forward", dtype, rig);
            if has_gradients {
                let context = format!("{context}: gradient");
                compare(&found.gradients, &expected.gradients, case.gates[1], dtype, &context);
                log(case.op, "backward", dtype, rig);
            }
        }
    }
}

/// For ops with many cases: the emulator runs each float type in one of its modes.
pub(crate) fn one_mode_per_type(rig: &Rig, dtype: DType) -> bool {
    let Rig::Emulated(mode) = rig else { return true };
    DTYPES.iter().zip(Mode::ALL).any(|(known, own)| *known == dtype && own == *mode)
}

/// Something that is not a case: run on each rig, and logged as shown.
pub(crate) fn each_rig(op: &str, pass: &str, dtype: DType, run: impl Fn(&Device)) {
    for rig in rigs() {
        rig.with(|| run(rig.device()));
        log(op, pass, dtype, &rig);
    }
}

/// What an op gives for its inputs: results, and the gradients of `Σ result · weight` for fixed weights.
struct Outcome {
    results: Vec<Tensor>,
    gradients: Vec<Tensor>,
}

impl Outcome {
    fn of(case: &Case<'_>, inputs: &[Tensor], dtype: DType) -> Self {
        let explicit = match case.gradients {
            Gradients::Recorded => return Self::recorded(case.run, inputs, dtype),
            Gradients::Explicit(explicit) => Some(explicit),
            Gradients::None => None,
        };
        let results = (case.run)(inputs).unwrap();
        let weights: Vec<Tensor> =
            results.iter().enumerate().map(|(index, result)| weight(index, result, dtype)).collect();
        let gradients = explicit.map_or_else(Vec::new, |explicit| explicit(inputs, &weights).unwrap());
        Self { results, gradients }
    }

    fn recorded(run: Run<'_>, inputs: &[Tensor], dtype: DType) -> Self {
        let variables: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
        let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
        let results = run(&tensors).unwrap();
        let store = weighted_sum(&results, dtype).backward().unwrap();
        let gradient = |variable: &Var| store.get(variable).expect("every input has a gradient").clone();
        Self { gradients: variables.iter().map(gradient).collect(), results }
    }
}

/// `Σ result · weight`, in the results' type.
fn weighted_sum(results: &[Tensor], dtype: DType) -> Tensor {
    let weighted = results
        .iter()
        .enumerate()
        .map(|(index, result)| (result * weight(index, result, dtype)).unwrap().sum_all().unwrap());
    weighted.reduce(|sum, part| (sum + part).unwrap()).expect("an op has results")
}

/// The gradient of a result: random numbers of `dtype`, in the result's own type.
fn weight(index: usize, result: &Tensor, dtype: DType) -> Tensor {
    let weight = random(1000 + index as u64, result.shape(), dtype);
    weight.to_dtype(result.dtype()).unwrap().to_device(result.device()).unwrap()
}

/// Compares the definition's gradients along one random direction with a difference quotient.
fn finite_differences(case: &Case<'_>, inputs: &[Tensor], expected: &Outcome) {
    const STEP: f64 = 1e-5;
    let directions: Vec<Tensor> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| random(2000 + index as u64, input.shape(), DType::F64))
        .collect();
    let at = |step: f64| {
        let moved: Vec<Tensor> = inputs
            .iter()
            .zip(&directions)
            .map(|(input, direction)| (input + (direction * step).unwrap()).unwrap())
            .collect();
        let results = (case.definition)(&moved).unwrap();
        weighted_sum(&results, DType::F32).to_scalar::<f64>().unwrap()
    };
    let slope = (at(STEP) - at(-STEP)) / (2. * STEP);
    let along = |(gradient, direction): (&Tensor, &Tensor)| {
        (gradient * direction).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    let expected: f64 = expected.gradients.iter().zip(&directions).map(along).sum();
    let error = (slope - expected).abs() / expected.abs().max(1.);
    assert!(error < 1e-5, "{}, {}: slope {slope}, gradient {expected}", case.op, case.name);
}

#[track_caller]
fn compare(found: &[Tensor], expected: &[Tensor], gate: Gate, dtype: DType, context: &str) {
    assert_eq!(found.len(), expected.len(), "{context}: number of tensors");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.dims(), expected.dims(), "{context} {index}: shape");
        if expected.elem_count() == 0 {
            continue;
        }
        let numbers = |tensor: &Tensor| -> Vec<f32> {
            let flat = tensor.to_device(&Device::Cpu).unwrap().flatten_all().unwrap();
            flat.to_dtype(DType::F32).unwrap().to_vec1().unwrap()
        };
        let precision = match dtype {
            DType::F16 => Precision::F16,
            DType::BF16 => Precision::Bf16,
            _ => Precision::F32,
        };
        assert_close(
            &numbers(found),
            &numbers(expected),
            tolerance(gate, precision),
            format!("{context} {index}"),
        );
    }
}

/// The nearest numbers of a type, in f64.
fn rounded(input: &Tensor, dtype: DType) -> Tensor {
    input.to_dtype(dtype).unwrap().to_dtype(DType::F64).unwrap()
}

fn log(op: &str, pass: &str, dtype: DType, rig: &Rig) {
    let Ok(path) = std::env::var("METAL_CANDLE_SUITE_LOG") else { return };
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    // One write: lines of tests that run side by side do not mix.
    let line = format!("{op}\t{pass}\t{}\t{}\n", dtype.as_str(), rig.column());
    file.write_all(line.as_bytes()).unwrap();
}

fn device(name: &str) -> Device {
    let (family, index) = name.split_once(':').unwrap_or((name, "0"));
    let index = index.parse().expect("METAL_CANDLE_TEST_DEVICE is cuda:N or metal:N");
    match family {
        "cuda" => Device::new_cuda(index).unwrap(),
        "metal" => Device::new_metal(index).unwrap(),
        other => panic!("METAL_CANDLE_TEST_DEVICE: `{other}` is neither cuda:N nor metal:N"),
    }
}
