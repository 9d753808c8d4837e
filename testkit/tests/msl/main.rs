//! The Metal emulation itself: right kernels give right results, planted mistakes are found.
#![allow(clippy::unwrap_used)]

mod kernels;
mod language;
mod launches;
mod mistakes;
