//! The KV cache of one sequence.
