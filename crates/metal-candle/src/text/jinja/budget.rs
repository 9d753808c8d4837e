//! What a template may build. Instructions are counted by minijinja, but thirty of them can double a text to a
//! gigabyte; so the bytes of everything that grows are counted too.

use std::{
    cell::Cell,
    io::{ErrorKind, Write},
};

use minijinja::{Error, Value, value::ValueKind};

use super::invalid;

/// Bytes that one rendering may build and print, all together: far above what a conversation needs, also in a template
/// that collects it piece by piece.
const BUDGET_BYTES: usize = 128 << 20;
/// Why a template is stopped.
pub(in crate::text) const TOO_MUCH: &str =
    "the template builds more than 128 MiB of text; it may grow without end";
/// An element of a list, without what it holds.
const ELEMENT_BYTES: usize = size_of::<Value>();

thread_local! {
    // A rendering stays on its thread, and minijinja gives operators no other place.
    static SPENT: Cell<usize> = const { Cell::new(0) };
}

/// Forgets what was spent: a rendering begins.
pub(in crate::text) fn begin() {
    SPENT.set(0);
}

/// Counts bytes that are about to be built, or that were.
pub(in crate::text) fn spend(bytes: usize) -> Result<(), Error> {
    let spent = SPENT.get().saturating_add(bytes);
    SPENT.set(spent);
    if spent > BUDGET_BYTES { Err(invalid(TOO_MUCH)) } else { Ok(()) }
}

/// Whether a text that is being printed has outgrown the budget: then there is no use in going on, and counting it will
/// fail.
pub(super) fn is_beyond(text: &str) -> bool {
    text.len() > BUDGET_BYTES
}

/// What a template prints, up to the budget.
#[derive(Default)]
pub(in crate::text) struct Page(Vec<u8>);

impl Page {
    /// The text.
    pub(in crate::text) fn into_text(self) -> String {
        String::from_utf8(self.0).expect("minijinja writes whole strings")
    }
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > BUDGET_BYTES {
            return Err(ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Counts the result of an operator, a filter or a method and hands it on.
pub(super) fn spend_value(value: Value) -> Result<Value, Error> {
    let bytes = match value.kind() {
        ValueKind::String => value.as_str().map_or(0, str::len),
        ValueKind::Seq | ValueKind::Iterable => value.len().unwrap_or(0).saturating_mul(ELEMENT_BYTES),
        _ => 0,
    };
    spend(bytes)?;
    Ok(value)
}
