//! The products of the loss by AMX.

use std::ops::Range;

use super::{COLUMNS, Chunk, Job, padded};
use crate::{
    linear::{
        cpu::Order,
        split::{BLOCK, PART, Source, pack_rows, parts},
    },
    scratch::with_scratch,
    simd::{
        Level,
        amx::{self, Product, REGISTER, Registers, SIDE, STEPS, TILE},
        level,
    },
};

/// The fewest tokens: fewer leave too much of a tile empty.
const FEWEST: usize = 24;

/// The most steps along D that are packed at once: so much of the weight stays in the second-level cache.
const DEPTH: usize = 1024;

/// Whether the products of so many tokens are AMX's.
pub(super) fn are_used(tokens: usize) -> bool {
    level() == Level::Amx && tokens >= FEWEST
}

/// Blocks of tokens, all but the last with a whole tile's.
pub(super) fn blocks(tokens: usize) -> usize {
    tokens.div_ceil(TILE)
}

/// The tokens, or other rows, of a block.
pub(super) fn rows(block: usize, all: usize) -> Range<usize> {
    block * TILE..((block + 1) * TILE).min(all)
}

/// Floats of a packed block.
pub(super) fn block_length(width: usize) -> usize {
    width.next_multiple_of(STEPS) * BLOCK
}

/// Floats of the scratch memory for packed weights.
pub(super) fn weights_length(width: usize) -> usize {
    let depth = width.next_multiple_of(STEPS).min(DEPTH);
    (depth * COLUMNS / TILE).max(COLUMNS) * BLOCK
}

amx::enter! {
    /// Packs rows of the hidden states.
    pub(super) fn pack_block(hidden: &[f32], width: usize, rows: Range<usize>, to: &mut [f32]) = pack_block_with;

    /// `tile[token · COLUMNS + i] = hidden[token] · weight[column + i]` for `columns` columns, rounded up to whole tiles; those
    /// too many are zero.
    pub(super) fn products(
        job: &Job<'_>, chunk: &Chunk<'_>, place: (usize, usize), weights: &mut [f32], tile: &mut [f32],
    ) = products_with;

    fn add_packed(
        job: &Job<'_>, place: (usize, usize), weights: &mut [f32], kinds: [Kind<'_>; 2], packed: &mut [f32],
    ) = add_products_with;
}

/// Factors `[rows, COLUMNS]`, and the sums that their products are added to.
pub(super) struct Kind<'a> {
    pub(super) factors: &'a [f32],
    pub(super) sums: &'a mut [f32],
    pub(super) rows: usize,
}

/// Adds, for factors of both kinds, the products with the weight's rows `column..column + columns`.
pub(super) fn add_products(job: &Job<'_>, place: (usize, usize), weights: &mut [f32], kinds: [Kind<'_>; 2]) {
    let count: usize = kinds.iter().map(|kind| blocks(kind.rows)).sum();
    with_scratch(count * block_length(COLUMNS), |packed| add_packed(job, place, weights, kinds, packed));
}

#[inline(always)]
fn pack_block_with(registers: &Registers, hidden: &[f32], width: usize, rows: Range<usize>, to: &mut [f32]) {
    assert!(to.len() >= block_length(width));
    // SAFETY: the room was checked.
    unsafe {
        let x = (hidden, Order::InputsLast, width);
        pack_rows(registers.vectors(), x, rows, 0..width, to.as_mut_ptr());
    }
}

#[inline(always)]
fn products_with(
    registers: &Registers,
    job: &Job<'_>,
    chunk: &Chunk<'_>,
    (column, columns): (usize, usize),
    weights: &mut [f32],
    tile: &mut [f32],
) {
    let (width, parts) = (job.width, parts(&job.weight));
    let panels = columns.div_ceil(TILE);
    assert!(
        weights.len() >= weights_length(width) && tile.len() >= chunk.tokens * COLUMNS && columns <= COLUMNS
    );
    assert!(chunk.packed.len() >= chunk.packed_length(width));
    for start in (0..width.max(1)).step_by(DEPTH) {
        let steps = start..(start + DEPTH).min(width);
        let groups = steps.len().div_ceil(STEPS);
        let panel_length = groups * STEPS * parts * PART;
        for half in 0..2 * panels {
            let first = column + (half * SIDE).min(columns);
            let lines = first..(column + columns).min(first + SIDE);
            let source = Source { order: Order::InputsLast, stride: width, lines, steps: steps.clone() };
            let to = weights[half / 2 * panel_length + half % 2 * REGISTER..].as_mut_ptr();
            // SAFETY: all panels have room, as was checked above.
            unsafe { source.pack_weights(registers.vectors(), &job.weight, to, parts) };
        }
        for block in 0..chunk.blocks {
            let rows = rows(block, chunk.tokens);
            for panel in 0..panels {
                let sums = tile[rows.start * COLUMNS + panel * TILE..].as_mut_ptr();
                let product = Product {
                    rows: rows.len(),
                    x: chunk.packed[block * block_length(width) + start * BLOCK..].as_ptr(),
                    panel: weights[panel * panel_length..].as_ptr(),
                    parts,
                    groups,
                    sums: (sums, COLUMNS),
                    adds: start > 0,
                    ahead: (std::ptr::null(), 0),
                };
                // SAFETY: the lengths that were checked above.
                unsafe { registers.multiply(&product) };
            }
        }
    }
}

#[inline(always)]
fn add_products_with(
    registers: &Registers,
    job: &Job<'_>,
    (column, columns): (usize, usize),
    weights: &mut [f32],
    mut kinds: [Kind<'_>; 2],
    packed: &mut [f32],
) {
    let (width, parts) = (job.width, parts(&job.weight));
    assert!(weights.len() >= weights_length(width) && columns <= COLUMNS);
    let mut rooms = packed.chunks_exact_mut(block_length(COLUMNS));
    for Kind { factors, sums, rows: all } in &kinds {
        assert!(factors.len() >= all * COLUMNS && sums.len() >= all * padded(width));
        for block in 0..blocks(*all) {
            let to = rooms.next().expect("room for the blocks of both kinds").as_mut_ptr();
            let x = (*factors, Order::InputsLast, COLUMNS);
            // SAFETY: a block has room for all columns.
            unsafe { pack_rows(registers.vectors(), x, rows(block, *all), 0..columns, to) };
        }
    }
    for (tile, start) in (0..width).step_by(TILE).enumerate() {
        for half in 0..2 {
            let first = (start + half * SIDE).min(width);
            let source = Source {
                order: Order::InputsFirst,
                stride: width,
                lines: first..(first + SIDE).min(width),
                steps: column..column + columns,
            };
            let to = weights[half * REGISTER..].as_mut_ptr();
            // SAFETY: there is room for all columns' parts.
            unsafe { source.pack_weights(registers.vectors(), &job.weight, to, parts) };
        }
        let mut packed_blocks = packed.chunks_exact(block_length(COLUMNS));
        for Kind { sums, rows: all, .. } in &mut kinds {
            for (block, x) in packed_blocks.by_ref().take(blocks(*all)).enumerate() {
                let rows = rows(block, *all);
                let sums = sums[(tile * *all + rows.start) * TILE..].as_mut_ptr();
                let product = Product {
                    rows: rows.len(),
                    x: x.as_ptr(),
                    panel: weights.as_ptr(),
                    parts,
                    groups: columns.div_ceil(STEPS),
                    sums: (sums, TILE),
                    adds: true,
                    ahead: (std::ptr::null(), 0),
                };
                // SAFETY: the lengths that were checked above.
                unsafe { registers.multiply(&product) };
            }
        }
    }
}
