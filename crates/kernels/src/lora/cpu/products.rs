//! The two products with a short side, the rank: [`down`] sums over a long dimension into few columns, [`up`] over
//! the rank into many.

use std::ops::Range;

use crate::{
    linear::{
        few_rows::{Dots, dots},
        microkernel::{CACHE_LINE, Left, multiply, pack, tile, tile_columns, tile_rows},
        product_in_tiles,
    },
    output::Output,
    parts::Parts,
    pool,
    scratch::with_scratch,
    simd::{Element, Simd, dispatch, for_vectors, load, store},
    view::Floats,
};

/// Products of a task: enough to outweigh handing it to another thread.
const TASK: usize = 256 * 1024;
/// Rows and ranks from which on packing both factors for tiles costs less than reading them again and again.
const TILED_ROWS: usize = 48;
const TILED_RANK: usize = 16;
/// Rows of `x` that [`dots`] multiplies at once.
const DOT_ROWS: usize = 8;
/// Rows of a task that expands: they share the packed factor.
const UP_ROWS: usize = 112;
/// Columns of such a task, unless the call is large or has few rows: rows are written in longer pieces then.
const UP_COLUMNS: usize = 128;
const LARGE_COLUMNS: usize = 256;
const HUGE_COLUMNS: usize = 1024;
const FEW_ROWS_COLUMNS: usize = 512;
/// Fewer rows than this are few.
const FEW_ROWS: usize = 16;
/// Numbers that are transposed one by one sooner than in vectors.
const ONE_BY_ONE: usize = 64;
/// Elements of a result that is large enough for long pieces.
const LARGE: usize = 256 * 1024;
/// The same, of each thread, for pieces so long that the hardware fetches ahead in them.
const HUGE: usize = 1024 * 1024;

/// Some rows of `x [rows, width]` with the factor that they are projected by.
#[derive(Clone, Copy)]
pub(super) struct Down<'a> {
    pub(super) x: &'a [f32],
    pub(super) rows: usize,
    /// `[rank, width]`
    pub(super) factor: Floats<'a>,
    pub(super) rank: usize,
    /// `[rows, rank]`
    pub(super) to: Output<f32>,
}

/// `to = x · factorᵀ` for all parts, in one parallel region.
pub(super) fn down(parts: &[Down<'_>], width: usize) {
    let mut tasks = Vec::new();
    for part in parts {
        if part.rows >= TILED_ROWS && part.rank >= TILED_RANK {
            // SAFETY: the part's result has these rows.
            unsafe { product_in_tiles(part.x, (part.rows, width), part.factor, part.rank, part.to) };
            continue;
        }
        let rows = (TASK / (width * part.rank).max(1)).clamp(DOT_ROWS, 512).next_multiple_of(DOT_ROWS);
        // Only where there are few rows is there reason to split the rank too.
        let ranks = (TASK / (width * rows.min(part.rows)).max(1)).max(4).next_multiple_of(4);
        for row in (0..part.rows).step_by(rows) {
            for rank in (0..part.rank).step_by(ranks) {
                tasks.push((part, row, rows.min(part.rows - row), rank, ranks.min(part.rank - rank)));
            }
        }
    }
    pool::for_each(tasks.len(), &|index| {
        let (part, row, rows, rank, ranks) = tasks[index];
        let x = &part.x[row * width..(row + rows) * width];
        let factor = part.factor.slice(rank * width..(rank + ranks) * width);
        // SAFETY: the slices hold the rows; each task has places of its own in the result.
        unsafe {
            let to = part.to.at(row * part.rank + rank);
            let (x, inputs, outputs, stride) = (x.as_ptr(), width, ranks, part.rank);
            match factor {
                Floats::F32(w) => {
                    dots(Dots { x, rows, inputs, weights: w.as_ptr(), outputs, to, stride });
                }
                Floats::Bf16(w) => {
                    dots(Dots { x, rows, inputs, weights: w.as_ptr(), outputs, to, stride });
                }
                Floats::F16(w) => {
                    dots(Dots { x, rows, inputs, weights: w.as_ptr(), outputs, to, stride });
                }
            }
        }
    });
}

/// Some rows of a result `[rows, width]` with what is added to them.
#[derive(Clone, Copy)]
pub(super) struct Up<'a> {
    /// `[rows, rank]`
    pub(super) x: &'a [f32],
    pub(super) rows: usize,
    pub(super) factor: Floats<'a>,
    pub(super) order: Order,
    /// 0: nothing is added.
    pub(super) rank: usize,
    pub(super) scale: f32,
    pub(super) base: Base<'a>,
    /// `[rows, width]`
    pub(super) to: Output<f32>,
}

/// How the factor lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// `[width, rank]`: B.
    RankLast,
    /// `[rank, width]`: A, backward.
    RankFirst,
}

/// What a product is added to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Base<'a> {
    Nothing,
    /// What the result holds.
    InPlace,
    /// `[rows, width]`
    Other(&'a [f32]),
}

/// `to = base + scale · x · factor` for all parts, in one parallel region.
pub(super) fn up(parts: &[Up<'_>], width: usize) {
    let mut tasks = Vec::new();
    for part in parts {
        if part.rows == 0 || part.rank == 0 && matches!(part.base, Base::InPlace) {
            continue;
        }
        let columns = match part.rows {
            0..FEW_ROWS => FEW_ROWS_COLUMNS,
            rows if rows * width >= HUGE * pool::threads() => HUGE_COLUMNS,
            rows if rows * width >= LARGE => LARGE_COLUMNS,
            _ => UP_COLUMNS,
        };
        for rows in Parts::at_most(UP_ROWS, part.rows).ranges() {
            for column in (0..width).step_by(columns) {
                tasks.push((part, rows.clone(), column..width.min(column + columns)));
            }
        }
    }
    pool::for_each(tasks.len(), &|index| {
        let (part, rows, columns) = tasks[index].clone();
        let (most_rows, panel) = tile();
        let packed = part.rank * columns.len().next_multiple_of(panel);
        with_scratch(packed + rows.len() * part.rank + most_rows * panel, |scratch| {
            // SAFETY: each task has rows and columns of its own.
            unsafe { up_task(part, width, rows, columns, scratch) };
        });
    });
}

dispatch! {
    unsafe fn up_task(
        part: &Up<'_>, width: usize, rows: Range<usize>, columns: Range<usize>, scratch: &mut [f32],
    ) = up_task_with;
}

/// Rows of a left factor `[rows, rank]`, in blocks that are no higher than a tile.
#[derive(Clone, Copy)]
pub(super) struct Blocks(Parts);

impl Blocks {
    #[inline(always)]
    pub(super) fn new<S: Simd>(_: S, rows: usize) -> Self {
        Self(Parts::at_most(tile_rows::<S>(), rows))
    }

    pub(super) fn ranges(self) -> impl Iterator<Item = Range<usize>> {
        self.0.ranges()
    }

    /// Packs the blocks, `[rank, rows of the block]` each: rows that lie apart would keep more addresses than a machine
    /// has registers for.
    #[inline(always)]
    pub(super) fn pack<S: Simd>(self, simd: S, from: &[f32], rank: usize, scale: f32, to: &mut [f32]) {
        let Parts { whole, count } = self.0;
        assert!(from.len() == whole * rank && to.len() == from.len());
        if to.len() <= ONE_BY_ONE && count == 1 {
            for (row, from) in from.chunks_exact(rank.max(1)).enumerate() {
                for (step, &value) in from.iter().enumerate() {
                    to[step * whole + row] = value * scale;
                }
            }
            return;
        }
        for rows in self.ranges() {
            // SAFETY: both have the block's rows, which are no more than a vector's lanes.
            unsafe {
                let (from, to) =
                    (from.as_ptr().add(rows.start * rank), to.as_mut_ptr().add(rows.start * rank));
                pack(simd, from, rank, rows.len(), rank, to, rows.len());
            }
        }
        let factor = simd.splat(scale);
        for_vectors!(S, to.len(), |start, count| {
            store(simd, to, start, count, simd.mul(load(simd, to, start, count), factor));
        });
    }

    /// A block as it was packed.
    #[inline(always)]
    pub(super) fn left(rows: &Range<usize>, packed: &[f32], rank: usize) -> Left {
        Left { start: packed[rows.start * rank..].as_ptr(), row_stride: 1, step_stride: rows.len() }
    }
}

/// # Safety
/// The part's result is writable in these rows and columns, and nobody else uses them.
#[inline(always)]
unsafe fn up_task_with<S: Simd>(
    simd: S,
    part: &Up<'_>,
    width: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    scratch: &mut [f32],
) {
    let (rank, panel) = (part.rank, tile_columns::<S>());
    let (packed, scratch) = scratch.split_at_mut(rank * columns.len().next_multiple_of(panel));
    let (x, tile) = scratch.split_at_mut(rows.len() * rank);
    let blocks = Blocks::new(simd, rows.len());
    blocks.pack(simd, &part.x[rows.start * rank..rows.end * rank], rank, part.scale, x);
    for (index, column) in columns.clone().step_by(panel).enumerate() {
        let count = panel.min(columns.end - column);
        let to = &mut packed[index * rank * panel..][..rank * panel];
        match part.factor {
            Floats::F32(factor) => pack_panel(simd, part, factor, width, column, count, to),
            Floats::Bf16(factor) => pack_panel(simd, part, factor, width, column, count, to),
            Floats::F16(factor) => pack_panel(simd, part, factor, width, column, count, to),
        }
    }
    for index in 0..blocks.0.count {
        let block = blocks.0.range(index);
        let next = if index + 1 < blocks.0.count { blocks.0.range(index + 1) } else { 0..0 };
        let left = Blocks::left(&block, x, rank);
        for (index, column) in columns.clone().step_by(panel).enumerate() {
            let count = panel.min(columns.end - column);
            let right = &packed[index * rank * panel..][..rank * panel];
            for row in next.clone() {
                // SAFETY: the place lies in the result.
                let place = unsafe { part.to.at((rows.start + row) * width + column) };
                for line in (0..count).step_by(CACHE_LINE) {
                    simd.prefetch_to_write(place.wrapping_add(line));
                }
            }
            // SAFETY: as above.
            unsafe {
                multiply_tile(
                    simd,
                    part,
                    width,
                    (rows.start + block.start, block.len()),
                    (column, count),
                    left,
                    right,
                    tile,
                );
            }
        }
    }
}

/// One tile of the result, of `count` columns.
///
/// # Safety
/// As for [`up_task_with`]; `left` has these rows, `right` is a panel.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn multiply_tile<S: Simd>(
    simd: S,
    part: &Up<'_>,
    width: usize,
    (first, rows): (usize, usize),
    (column, count): (usize, usize),
    left: Left,
    right: &[f32],
    tile: &mut [f32],
) {
    let (panel, adds) = (tile_columns::<S>(), !matches!(part.base, Base::Nothing));
    // SAFETY: the caller's promise; a tile has room for a block's sums.
    unsafe {
        let to = part.to.at(first * width + column);
        if let Base::Other(base) = part.base {
            for row in 0..rows {
                let base = &base[(first + row) * width + column..][..count];
                std::ptr::copy_nonoverlapping(base.as_ptr(), to.add(row * width), count);
            }
        }
        let right = (right.as_ptr(), panel);
        if count == panel {
            multiply(simd, rows, part.rank, left, right, (to, width), adds);
            return;
        }
        multiply(simd, rows, part.rank, left, right, (tile.as_mut_ptr(), panel), false);
        for row in 0..rows {
            let to = std::slice::from_raw_parts_mut(to.add(row * width), count);
            finish_row(simd, &tile[row * panel..][..count], adds, to);
        }
    }
}

/// `to (+)= sums`
#[inline(always)]
fn finish_row<S: Simd>(simd: S, sums: &[f32], adds: bool, to: &mut [f32]) {
    for_vectors!(S, to.len(), |column, count| {
        let mut sum = load(simd, sums, column, count);
        if adds {
            sum = simd.add(sum, load(simd, to, column, count));
        }
        store(simd, to, column, count, sum);
    });
}

/// Widens `count` columns of the factor: `[rank, columns of a tile]`.
#[inline(always)]
fn pack_panel<S: Simd, W: Element>(
    simd: S,
    part: &Up<'_>,
    factor: &[W],
    width: usize,
    column: usize,
    count: usize,
    panel: &mut [f32],
) {
    let (rank, stride) = (part.rank, tile_columns::<S>());
    assert!(panel.len() == rank * stride && factor.len() == rank * width && column + count <= width);
    for half in 0..2 {
        let first = (half * S::LANES).min(count);
        let count = (count - first).min(S::LANES);
        let to = panel.as_mut_ptr().wrapping_add(half * S::LANES);
        match part.order {
            // SAFETY: the factor has `count` rows from there on; the panel has `rank` rows.
            Order::RankLast => unsafe {
                pack(simd, factor.as_ptr().add((column + first) * rank), rank, count, rank, to, stride);
            },
            Order::RankFirst => {
                for step in 0..rank {
                    let from = &factor[step * width + column + first..][..count];
                    // SAFETY: `count` numbers are there, and a vector fits into each half of a panel's row.
                    unsafe {
                        let values = W::load_first(simd, from.as_ptr(), count);
                        simd.store(to.add(step * stride), values);
                    }
                }
            }
        }
    }
}
