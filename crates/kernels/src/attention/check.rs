//! Whether the arguments of a call fit together.

use candle_core::{Result, Tensor, bail};

use super::{AttentionParams, Segment};

pub(super) fn check(queries: &Tensor, segments: &[Segment<'_>], params: AttentionParams) -> Result<()> {
    let &[rows, heads, head_dim] = queries.dims() else {
        bail!("attention: `queries` is {:?}, expected [rows, H, D]", queries.dims());
    };
    if heads == 0 || head_dim == 0 {
        bail!("attention: `queries` is {:?}, expected at least one head and one element", queries.dims());
    }
    check_params("attention", params)?;
    let mut next_row = 0;
    let mut first_groups = None;
    for (index, segment) in segments.iter().enumerate() {
        let found = &segment.rows;
        if found.start != next_row || found.end <= found.start {
            bail!(
                "attention: segment {index} has the rows {found:?}, expected {next_row}.. and at least one"
            );
        }
        next_row = found.end;
        let groups = check_segment(queries, index, segment)?;
        let expected = *first_groups.get_or_insert(groups);
        if groups != expected {
            bail!(
                "attention: segment {index} has {groups} key/value heads, expected {expected} like segment 0"
            );
        }
    }
    if next_row != rows {
        bail!("attention: the segments have {next_row} rows, expected {rows} like `queries`");
    }
    Ok(())
}

pub(super) fn check_params(operation: &str, params: AttentionParams) -> Result<()> {
    if params.window == Some(0) {
        bail!("{operation}: `window` is 0, expected at least 1: a query sees itself");
    }
    if let Some(cap) = params.soft_cap.filter(|cap| !(cap.is_finite() && *cap > 0.)) {
        bail!("{operation}: `soft_cap` is {cap}, expected a positive number");
    }
    Ok(())
}

/// Returns the number of key/value heads.
fn check_segment(queries: &Tensor, index: usize, segment: &Segment<'_>) -> Result<usize> {
    let (_rows, heads, head_dim) = queries.dims3()?;
    let (start, end, count) = (segment.start, segment.end, segment.rows.len());
    if end < start || end - start < count {
        bail!(
            "attention: segment {index} has {count} rows, but its cache holds only positions {start}..{end}"
        );
    }
    let first = segment.chunks.first().map_or(&[][..], |chunk| chunk.keys.dims());
    let &[length, groups, key_dim] = first else {
        bail!("attention: segment {index} has chunks of keys {first:?}, expected [chunk, G, D]");
    };
    if groups == 0 || heads % groups != 0 {
        bail!("attention: segment {index} has {groups} key/value heads, expected a divisor of {heads}");
    }
    if key_dim != head_dim {
        let shape = queries.dims();
        bail!("attention: segment {index} has keys {first:?}, expected head size {head_dim} as in {shape:?}");
    }
    for (number, chunk) in segment.chunks.iter().enumerate() {
        for (name, tensor) in [("keys", &chunk.keys), ("values", &chunk.values)] {
            if tensor.dims() != first {
                let found = tensor.dims();
                bail!(
                    "attention: chunk {number} of segment {index} has {name} {found:?}, expected {first:?}"
                );
            }
        }
    }
    let held = segment.chunks.len() * length;
    if held < end - start {
        bail!("attention: segment {index} has chunks for {held} positions, expected {start}..{end}");
    }
    Ok(groups)
}
