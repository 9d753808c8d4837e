//! What a mask says about each row, ready for kernels.

use candle_core::{D, DType, Result, Tensor, bail};

use super::Mask;

/// Which columns each row sees.
pub(super) enum Seen {
    /// Row `r` sees columns up to `r % queries + offset`.
    UpTo { queries: usize, offset: usize },
    /// What a mask says.
    Masked(MaskRows),
}

/// A contiguous mask `[rows of the mask, C]` and which of its rows belongs to a row of `x`.
pub(super) struct MaskRows {
    pub(super) mask: Tensor,
    /// Values of the last two of three digits that a row's number is split into.
    pub(super) middle: usize,
    pub(super) inner: usize,
    /// What each digit counts in rows of the mask, outermost first.
    pub(super) strides: [usize; 3],
}

impl Seen {
    pub(super) fn of(x: &Tensor, mask: Mask<'_>) -> Result<Self> {
        let Ok(width) = x.dim(D::Minus1) else { bail!("softmax: `x` is a scalar, expected [.., C]") };
        Ok(match mask {
            Mask::None => Self::UpTo { queries: 1, offset: width },
            Mask::Causal { offset } => {
                let Ok(queries) = x.dim(D::Minus2) else {
                    bail!("softmax: `x` is {:?}, expected [.., Q, C] with a causal mask", x.dims());
                };
                Self::UpTo { queries: queries.max(1), offset: offset.min(width) }
            }
            Mask::Tensor(mask) => Self::Masked(MaskRows::of(x, mask)?),
        })
    }
}

impl MaskRows {
    fn of(x: &Tensor, mask: &Tensor) -> Result<Self> {
        check(x, mask)?;
        let leading = &x.dims()[..x.rank() - 1];
        if let Some(rows) = Self::broadcast(leading, mask)? {
            return Ok(rows);
        }
        // A pattern of more than three alternations: no mask of attention looks like this.
        let mask = mask.broadcast_as(x.shape())?;
        Ok(Self::broadcast(leading, &mask)?.expect("equal shapes have one digit"))
    }

    /// None where the row of the mask is not a matter of three digits.
    fn broadcast(leading: &[usize], mask: &Tensor) -> Result<Option<Self>> {
        let dims = &mask.dims()[..mask.rank() - 1];
        let absent = leading.len() - dims.len();
        // Innermost first: neighbouring dimensions that are both repeated, or both are not, count as one.
        let mut digits: Vec<(usize, usize)> = Vec::new(); // values, stride
        let mut rows = 1;
        for (index, &size) in leading.iter().enumerate().rev() {
            let own = if index < absent { 1 } else { dims[index - absent] };
            let stride = if own == 1 { 0 } else { rows };
            rows *= own;
            match digits.last_mut() {
                _ if size == 1 => {}
                Some((values, inner)) if (stride == 0) == (*inner == 0) => *values *= size,
                _ => digits.push((size, stride)),
            }
        }
        if digits.len() > 3 {
            return Ok(None);
        }
        digits.resize(3, (1, 0));
        let [(inner, inner_stride), (middle, middle_stride), (_, outer_stride)] =
            [digits[0], digits[1], digits[2]];
        Ok(Some(Self {
            mask: mask.contiguous()?,
            // Without any row there is nothing to divide.
            middle: middle.max(1),
            inner: inner.max(1),
            strides: [outer_stride, middle_stride, inner_stride],
        }))
    }

    /// The row of the mask for a row of `x`.
    pub(super) fn row(&self, row: usize) -> usize {
        let (rest, digit) = (row / self.inner, row % self.inner);
        let [outer_stride, middle_stride, inner_stride] = self.strides;
        rest / self.middle * outer_stride + rest % self.middle * middle_stride + digit * inner_stride
    }
}

fn check(x: &Tensor, mask: &Tensor) -> Result<()> {
    if mask.dtype() != DType::U8 {
        bail!("softmax: `mask` has dtype {:?}, expected U8 (0 hides a column)", mask.dtype());
    }
    let fits = mask.rank() >= 1
        && mask.rank() <= x.rank()
        && mask.dims().last() == x.dims().last()
        && mask.dims().iter().rev().zip(x.dims().iter().rev()).all(|(mask, x)| mask == x || *mask == 1);
    if !fits {
        let (found, x) = (mask.dims(), x.dims());
        bail!(
            "softmax: `mask` is {found:?}; expected C columns and other dimensions like `x` {x:?}, 1 or absent"
        );
    }
    Ok(())
}
