//! The thread pool of the CPU kernels.

/// Runs `task(0..tasks)`, spread over the pool's threads; returns when all are done.
pub fn for_each(tasks: usize, task: &(dyn Fn(usize) + Sync)) {
    for index in 0..tasks {
        task(index);
    }
}

/// How many threads work on a region.
pub fn threads() -> usize {
    1
}
