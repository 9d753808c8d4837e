//! The rules as they are published, in f64 on plain vectors.

use super::Rule;

/// A parameter's value and moments.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Parameter {
    pub(super) value: f64,
    pub(super) first: f64,
    pub(super) second: f64,
}

pub(super) fn step(
    parameter: &mut Parameter,
    gradient: f64,
    rule: Rule,
    number: u32,
    learning_rate: f64,
    weight_decay: f64,
) {
    let Parameter { value, first, second } = parameter;
    let adam = |[a, b]: [f32; 2], epsilon: f32, gradient: f64, first: &mut f64, second: &mut f64| {
        let (a, b) = (f64::from(a), f64::from(b));
        *first = a * *first + (1. - a) * gradient;
        *second = b * *second + (1. - b) * gradient * gradient;
        let (mean, variance) =
            (*first / (1. - a.powf(number.into())), *second / (1. - b.powf(number.into())));
        mean / (variance.sqrt() + f64::from(epsilon))
    };
    match rule {
        Rule::AdamW { betas, epsilon } => {
            *value -= learning_rate * weight_decay * *value;
            *value -= learning_rate * adam(betas, epsilon, gradient, first, second);
        }
        Rule::Adam { betas, epsilon } => {
            let gradient = gradient + weight_decay * *value;
            *value -= learning_rate * adam(betas, epsilon, gradient, first, second);
        }
        Rule::Sgd { momentum } => {
            *first = f64::from(momentum) * *first + gradient + weight_decay * *value;
            *value -= learning_rate * *first;
        }
        Rule::Lion { betas: [a, b] } => {
            let (a, b) = (f64::from(a), f64::from(b));
            *value -= learning_rate * weight_decay * *value;
            *value -= learning_rate * (a * *first + (1. - a) * gradient).signum();
            *first = b * *first + (1. - b) * gradient;
        }
    }
}
