//! From JSONL files to batches.
//!
//! [`Source`] finds the files, [`DataFile`] knows where the lines of one of them begin, [`Loader`] reads, tokenises and
//! batches them in an order that its seed decides, and [`Prefetch`] lets a loader run ahead in a thread of its own.
//! [`survey`](survey()) reads an epoch and says what is in it. What a line may look like and what counts of it stands in
//! [`crate::data`].
//!
//! A file is not held in memory: of each line its offset (8 bytes) and its place in the epoch's order (4 bytes), of the
//! examples those of one window.

mod batch;
mod file;
mod loader;
mod packing;
mod prefetch;
mod source;
mod survey;
mod tally;

pub use batch::{Batch, Batching};
pub use file::{BadLinePolicy, DataFile};
pub use loader::{Cursor, Loader, LoaderOptions};
pub use packing::best_fit;
pub use prefetch::Prefetch;
pub use source::Source;
pub use survey::{Survey, survey};
pub use tally::{Lengths, Tally};
