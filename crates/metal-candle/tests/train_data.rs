//! Training data from files to batches, with the tokenizer and the templates of the golden files.
#![allow(clippy::unwrap_used)]

mod train_data {
    pub(crate) mod encoding;
    pub(crate) mod loading;
    pub(crate) mod support;
}
