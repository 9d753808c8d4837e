//! Where the running mass of a vocabulary reaches a target, in one pass and without sorting.

use super::scan::{self, BLOCK, BUCKETS};

/// One row has a column per neighbour, so that equal places do not wait for each other's additions.
const COLUMNS: usize = 4;

/// The mass at each place of [`scan::places`]: nearest to the center first.
#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    rows: Vec<[f64; COLUMNS]>,
}

impl Histogram {
    /// Empties it.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.rows.resize(BUCKETS, [0.0; COLUMNS]);
    }

    /// Adds the weight of each level of a block at its place.
    pub(super) fn add(&mut self, levels: &[f32], center: f32, weights: &[f32]) {
        let rows: &mut [[f64; COLUMNS]; BUCKETS] =
            self.rows.as_mut_slice().try_into().expect("`clear` gives it BUCKETS rows");
        let mut places = [0i32; BLOCK];
        let mut masses = [0.0f64; BLOCK];
        scan::places(levels, center, &mut places);
        for (mass, &weight) in masses.iter_mut().zip(weights) {
            *mass = f64::from(weight);
        }
        for (places, masses) in places.as_chunks::<COLUMNS>().0.iter().zip(masses.as_chunks::<COLUMNS>().0) {
            for column in 0..COLUMNS {
                rows[places[column] as usize % BUCKETS][column] += masses[column];
            }
        }
    }

    /// The place in which the running mass first reaches `target`, and what is missing before it.
    pub(super) fn border(&self, target: f64) -> Option<(i32, f64)> {
        let mut running = 0.0;
        for (place, row) in self.rows.iter().enumerate() {
            let mass = row.iter().sum::<f64>();
            if mass > 0.0 && running + mass >= target {
                return Some((place as i32, target - running));
            }
            running += mass;
        }
        None
    }
}
