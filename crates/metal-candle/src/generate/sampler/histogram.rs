//! Where the running mass of a vocabulary reaches a target, in one pass and without sorting.

use super::scan::{self, BLOCK, BUCKETS, passes};

/// One row has a column per neighbour, so that equal places do not wait for each other's additions.
const COLUMNS: usize = 4;

type Rows = [[f64; COLUMNS]; BUCKETS];

/// The mass at each place of [`scan::places`]: nearest to the center first.
#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    rows: Vec<[f64; COLUMNS]>,
    counts: Vec<[u32; COLUMNS]>,
}

impl Histogram {
    /// Takes the weights of levels at their places; blocks without mass are passed over.
    pub(super) fn weigh(&mut self, levels: &[f32], center: f32, weights: &[f32], masses: &[f32]) {
        add_weights(self.cleared(), levels, center, weights, masses);
    }

    /// Counts the levels at their places.
    pub(super) fn count(&mut self, levels: &[f32], center: f32) {
        self.counts.clear();
        self.counts.resize(BUCKETS, [0; COLUMNS]);
        let counts = self.counts.as_mut_slice().try_into().expect("it has BUCKETS rows now");
        count_places(counts, levels, center);
        self.rows.clear();
        self.rows.extend(self.counts.iter().map(|row| row.map(f64::from)));
    }

    fn cleared(&mut self) -> &mut Rows {
        self.rows.clear();
        self.rows.resize(BUCKETS, [0.0; COLUMNS]);
        self.rows.as_mut_slice().try_into().expect("it has BUCKETS rows now")
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

passes! {
    fn add_weights<'a>(rows: &'a mut Rows, levels: &'a [f32], center: f32, weights: &'a [f32], masses: &'a [f32]) {
        let mut places = [0i32; BLOCK];
        let blocks = levels.chunks(BLOCK).zip(weights.chunks(BLOCK)).zip(masses);
        for ((levels, weights), _) in blocks.filter(|(_, mass)| **mass > 0.0) {
            let mut block = [0.0f64; BLOCK];
            scan::places(levels, center, &mut places);
            for (mass, &weight) in block.iter_mut().zip(weights) {
                *mass = f64::from(weight);
            }
            add(rows, &places, &block);
        }
    }

    fn count_places<'a>(counts: &'a mut [[u32; COLUMNS]; BUCKETS], levels: &'a [f32], center: f32) {
        let mut places = [0i32; BLOCK];
        for levels in levels.chunks(BLOCK) {
            scan::places(levels, center, &mut places);
            for (index, &place) in places[..levels.len()].iter().enumerate() {
                counts[place as usize % BUCKETS][index % COLUMNS] += 1;
            }
        }
    }
}

#[inline(always)]
fn add(rows: &mut Rows, places: &[i32; BLOCK], masses: &[f64; BLOCK]) {
    for (places, masses) in places.as_chunks::<COLUMNS>().0.iter().zip(masses.as_chunks::<COLUMNS>().0) {
        for column in 0..COLUMNS {
            rows[places[column] as usize % BUCKETS][column] += masses[column];
        }
    }
}
