//! The tables, by theme.

mod lora;

use crate::Row;

/// Single operations: seconds for all of them.
pub fn micro() -> Vec<Row> {
    [lora::rows()].into_iter().flatten().collect()
}

/// Whole models: minutes.
pub fn model() -> Vec<Row> {
    Vec::new()
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
