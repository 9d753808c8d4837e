//! Joins the partial results of the ranges of keys of one panel.

use super::{
    call::Call,
    plan::{ITEMS_PER_SEGMENT, Merge},
};
use crate::simd::{Simd, dispatch};

dispatch! {
    /// Writes the panel's rows of the output. The order of the ranges is fixed, so is the result.
    ///
    /// # Safety
    /// The merge is of the call's plan, its items have run, and nobody else uses these rows.
    pub(super) unsafe fn merge_panel(call: &Call<'_>, merge: &Merge, panel: usize) = merge_panel_with;
}

#[inline(always)]
unsafe fn merge_panel_with<S: Simd>(simd: S, call: &Call<'_>, merge: &Merge, panel: usize) {
    let segment = &call.segments[merge.segment];
    let layout = segment.extent.partial_layout(call.head_dim);
    let skipped = (panel - merge.panels.start) * layout.length();
    let panel = segment.extent.panel(panel);
    for row in 0..panel.rows {
        // SAFETY: the items wrote all partial results of this panel, in this layout.
        unsafe {
            let result = |partial: usize, offset: usize| call.partials.at(partial + skipped + offset);
            let maximum = |partial: usize| *result(partial, layout.maxima() + row);
            let largest = merge.partials.iter().map(|partial| maximum(*partial)).fold(f32::MIN, f32::max);
            let mut weights = [0.; ITEMS_PER_SEGMENT];
            let mut total = 0.;
            for (weight, partial) in weights.iter_mut().zip(&merge.partials) {
                *weight = (maximum(*partial) - largest).exp();
                total += *weight * *result(*partial, layout.sums() + row);
            }
            call.write_lse(segment, &panel, row, largest, total);
            let inverse = simd.splat(1. / total);
            let output = call.output.at(call.output_offset(segment, &panel, row));
            for column in (0..call.head_dim).step_by(S::LANES) {
                let count = S::LANES.min(call.head_dim - column);
                let mut sum = simd.splat(0.);
                for (weight, partial) in weights.iter().zip(&merge.partials) {
                    let mixed = simd.load_first(result(*partial, row * call.head_dim + column), count);
                    sum = simd.fma(mixed, simd.splat(*weight), sum);
                }
                simd.store_first(output.add(column), simd.mul(sum, inverse), count);
            }
        }
    }
}
