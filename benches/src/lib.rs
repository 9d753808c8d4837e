//! What this project measures. A [`Row`] is data: its name, the least that it has to move and compute, and how to make
//! what is timed. Three programs read the same tables: criterion (`benches/micro.rs`, `benches/model.rs`), the counters
//! ([`counters`]) and `instructions`, which runs one row under an instruction counter.
//!
//! | variable | effect |
//! |---|---|
//! | `METAL_CANDLE_BENCH_DEVICE` | where rows run: `cpu` (unless set), `cuda:N`, `metal` |
//! | `METAL_CANDLE_BENCH_COUNTERS` | a file that gets one JSON line for each row that ran |
//! | `METAL_CANDLE_BENCH_SLOWER` | `ROW=1.05[,ROW=..]`: plants a slowdown, to show that it is found |
//! | `CRITERION_HOME` | where criterion writes |
//!
//! `benches/published.tsv` holds figures that others published for rows of the same name, `benches/claims.tsv` what the
//! ratio of two rows is to be.

mod bench;
mod call;
pub mod counters;
mod counting;
pub mod measure;
pub mod published;
mod qwen;
mod row;
pub mod rows;
mod slower;
mod tiny;

pub use bench::Bench;
pub use call::Call;
pub use row::{Make, Pace, Place, Row, Work};

#[global_allocator]
static ALLOCATOR: counting::CountingAllocator = counting::CountingAllocator;
