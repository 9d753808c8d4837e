//! Results that several threads write.

/// Where a kernel writes: threads may share it as long as they write to different places.
#[derive(Clone, Copy)]
pub(crate) struct Output<T>(*mut T);

// SAFETY: it is only an address; every write through it is `unsafe` and promises to race with no other.
unsafe impl<T: Send> Send for Output<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Output<T> {}

impl<T> Output<T> {
    pub(crate) fn new(start: *mut T) -> Self {
        Self(start)
    }

    /// The address of an element.
    ///
    /// # Safety
    /// `index` lies within the memory that this output was made for, or one past its end.
    #[inline(always)]
    pub(crate) unsafe fn at(self, index: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(index) }
    }
}

/// A vector of `length` elements, all written by `fill`.
///
/// # Safety
/// `fill` must write every element.
pub(crate) unsafe fn filled<T: Copy>(length: usize, fill: impl FnOnce(Output<T>)) -> Vec<T> {
    let mut vector = Vec::with_capacity(length);
    fill(Output::new(vector.as_mut_ptr()));
    // SAFETY: the capacity is `length`, and the caller promises that `fill` wrote all of it.
    unsafe { vector.set_len(length) };
    vector
}

/// Adds up rows of `width`, at least one, that tasks have summed apart, in their order.
pub(crate) fn sum_of_parts(mut parts: Vec<f32>, width: usize) -> Vec<f32> {
    let (sum, others) = parts.split_at_mut(width);
    for part in others.chunks_exact(width.max(1)) {
        sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
    }
    parts.truncate(width);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool;

    #[test]
    fn threads_fill_a_vector_together() {
        // SAFETY: each index is written once.
        let fill =
            |output: Output<usize>| pool::for_each(1000, &|index| unsafe { *output.at(index) = index });
        // SAFETY: all indices are written.
        let vector = unsafe { filled(1000, fill) };
        assert!(vector.into_iter().eq(0..1000));
    }
}
