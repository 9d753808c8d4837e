//! The tables, by theme.

mod adapters;
mod cache;
mod components;
mod generation;
mod layers;
mod lora;
mod memory;
mod sampling;
mod streaming;
mod training;
mod training_step;

use crate::Row;

/// Single operations: minutes for all of them.
pub fn micro() -> Vec<Row> {
    let tables = [
        lora::rows(),
        training_step::rows(),
        layers::rows(),
        cache::rows(),
        sampling::rows(),
        adapters::load_rows(),
        streaming::rows(),
    ];
    tables.into_iter().flatten().collect()
}

/// Whole models and their parts.
pub fn model() -> Vec<Row> {
    let tables = [
        components::rows(),
        generation::rows(),
        cache::model_rows(),
        adapters::switch_rows(),
        memory::rows(),
        training::rows(),
    ];
    tables.into_iter().flatten().collect()
}

/// All rows of all programs.
pub fn all() -> Vec<Row> {
    micro().into_iter().chain(model()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let mut names = BTreeSet::new();
        for row in super::all() {
            let (group, name, parameter) = row.parts();
            assert!(![group, name, parameter.unwrap_or("none")].contains(&""), "{}", row.id);
            assert!(names.insert(row.id.clone()), "two rows are called {}", row.id);
        }
    }
}
