//! Everything that is trained, in one block of memory: values, both moments and the gradient.
//!
//! N: numbers in all, padding between the parameters included.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use metal_candle_kernels::trace;

use super::TrainError;

/// Parameters begin at multiples of this, so that every one can be read in whole vectors.
const ALIGNMENT: usize = 64;

/// One trained tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the file that it will be saved in.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How it is updated.
    pub group: Group,
}

/// Parameters with the same learning rate and weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// With weight decay.
    Decayed,
    /// The second matrices of adapters, with a learning rate of their own.
    LoraB,
    /// Without weight decay: biases and norms.
    Plain,
}

/// The parameters with their optimizer's state.
#[derive(Debug)]
pub struct Parameters {
    entries: Vec<(Parameter, usize)>,
    groups: Vec<(Group, Range<usize>)>,
    /// `[3, N]` in f32: values, first and second moments.
    state: Tensor,
    /// `[N]` in f32.
    gradient: Tensor,
    /// `[N]`: the values in the type that the model computes in, where that is not f32.
    narrow: Option<Tensor>,
}

/// The numbers of one parameter, on the CPU: what a checkpoint holds.
#[derive(Debug, Clone)]
pub struct ParameterState {
    /// Its name.
    pub name: String,
    /// `[3, ..shape]` in f32: values, first and second moments.
    pub state: Tensor,
}

impl Parameters {
    /// Room for parameters; all numbers are zero.
    pub(crate) fn new(
        mut wanted: Vec<Parameter>,
        compute: DType,
        device: &Device,
    ) -> Result<Self, TrainError> {
        wanted.sort_by_key(|parameter| parameter.group);
        let mut entries = Vec::with_capacity(wanted.len());
        let mut groups: Vec<(Group, Range<usize>)> = Vec::new();
        let mut next = 0;
        for parameter in wanted {
            let start = next;
            let count: usize = parameter.shape.iter().product();
            next = (start + count).next_multiple_of(ALIGNMENT);
            match groups.last_mut() {
                Some((group, range)) if *group == parameter.group => range.end = next,
                _ => groups.push((parameter.group, start..next)),
            }
            entries.push((parameter, start));
        }
        let narrow = match compute {
            DType::F32 => None,
            compute => Some(Tensor::zeros(next, compute, device)?),
        };
        let state = Tensor::zeros((3, next), DType::F32, device)?;
        Ok(Self { entries, groups, state, gradient: Tensor::zeros(next, DType::F32, device)?, narrow })
    }

    /// What is trained, in the order of memory.
    pub fn entries(&self) -> impl Iterator<Item = &Parameter> {
        self.entries.iter().map(|(parameter, _)| parameter)
    }

    /// How many numbers are trained.
    pub fn count(&self) -> u64 {
        self.entries().map(|parameter| parameter.shape.iter().map(|&size| size as u64).product::<u64>()).sum()
    }

    /// The values, moments and names of all parameters, copied to the CPU.
    pub fn state(&self) -> Result<Vec<ParameterState>, TrainError> {
        let state = self.state.to_device(&Device::Cpu)?;
        let of = |(parameter, start): &(Parameter, usize)| {
            let count: usize = parameter.shape.iter().product();
            let shape = [&[3], parameter.shape.as_slice()].concat();
            // A copy: what is trained on goes on changing.
            let state = state.narrow(1, *start, count)?.force_contiguous()?.reshape(shape)?;
            Ok(ParameterState { name: parameter.name.clone(), state })
        };
        self.entries.iter().map(of).collect()
    }

    /// Takes over what [`state`](Self::state) gave; every name and shape must be there.
    pub fn restore(&mut self, saved: &[ParameterState]) -> Result<(), TrainError> {
        let mut differences = Vec::new();
        for parameter in saved {
            if !self.entries().any(|own| own.name == parameter.name) {
                differences.push(format!("{}: not trained in this run", parameter.name));
            }
        }
        for (parameter, start) in &self.entries {
            let shape = [&[3], parameter.shape.as_slice()].concat();
            match saved.iter().find(|candidate| candidate.name == parameter.name) {
                None => differences.push(format!("{}: not saved", parameter.name)),
                Some(found) if found.state.dims() != shape => differences.push(format!(
                    "{}: {:?}, expected {shape:?}",
                    parameter.name,
                    found.state.dims()
                )),
                Some(found) => {
                    let state = found.state.to_device(self.state.device())?.to_dtype(DType::F32)?;
                    let count: usize = parameter.shape.iter().product();
                    self.state.slice_set(&state.reshape((3, count))?.contiguous()?, 1, *start)?;
                }
            }
        }
        if !differences.is_empty() {
            return Err(TrainError::Parameters(differences));
        }
        self.publish()
    }

    /// Sets the values of a parameter.
    pub(crate) fn set(&mut self, name: &str, values: &Tensor) -> Result<(), TrainError> {
        let index = self.index(name)?;
        let values = values.to_device(self.state.device())?.to_dtype(DType::F32)?;
        let to = self.value(index)?;
        if values.dims() != to.dims() {
            let difference = format!("{name}: {:?}, expected {:?}", values.dims(), to.dims());
            return Err(TrainError::Parameters(vec![difference]));
        }
        Ok(to.slice_set(&values.contiguous()?, 0, 0)?)
    }

    pub(crate) fn index(&self, name: &str) -> Result<usize, TrainError> {
        let found = self.entries().position(|parameter| parameter.name == name);
        found.ok_or_else(|| TrainError::Parameters(vec![format!("{name}: not trained in this run")]))
    }

    /// The values of a parameter in f32: a view.
    pub(crate) fn value(&self, index: usize) -> Result<Tensor, TrainError> {
        self.view(&self.state.get(0)?, index)
    }

    /// The values of a parameter as the model computes with them: a view that every update changes.
    pub(crate) fn computed(&self, index: usize) -> Result<Tensor, TrainError> {
        match &self.narrow {
            Some(narrow) => self.view(narrow, index),
            None => self.value(index),
        }
    }

    /// The gradient of a parameter: a view.
    pub(crate) fn gradient_of(&self, index: usize) -> Result<Tensor, TrainError> {
        self.view(&self.gradient, index)
    }

    pub(crate) fn groups(&self) -> &[(Group, Range<usize>)] {
        &self.groups
    }

    pub(crate) fn all_state(&self) -> &Tensor {
        &self.state
    }

    pub(crate) fn gradient(&self) -> &Tensor {
        &self.gradient
    }

    /// Brings the values to where the model reads them.
    pub(crate) fn publish(&self) -> Result<(), TrainError> {
        if let Some(narrow) = &self.narrow {
            trace::launched(2);
            narrow.slice_set(&self.state.get(0)?.to_dtype(narrow.dtype())?, 0, 0)?;
        }
        Ok(())
    }

    fn view(&self, of: &Tensor, index: usize) -> Result<Tensor, TrainError> {
        let (parameter, start) = &self.entries[index];
        let count = parameter.shape.iter().product();
        Ok(of.narrow(0, *start, count)?.reshape(parameter.shape.as_slice())?)
    }
}
