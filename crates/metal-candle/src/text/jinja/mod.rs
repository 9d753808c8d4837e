//! The Jinja dialect of chat templates: minijinja, brought to what transformers' Jinja2 environment prints.
//!
//! - [`source`] rewrites template text before it is compiled: `generation` blocks, string escapes, method names that
//!   are read without being called.
//! - [`values`] prints values as Python does.
//! - [`methods`] are the methods of Python's strings, lists and dictionaries.
//! - [`filters`] replaces the filters and tests that differ.
//! - [`clock`] is `strftime_now`.
//! - [`budget`] bounds what a template builds, with the help of [`operators`].

pub(super) mod budget;
pub(super) mod clock;
mod filters;
mod methods;
mod operators;
mod source;
mod string_methods;
mod values;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, syntax::SyntaxConfig};

pub(super) use source::{GENERATION_END, GENERATION_START, rewrite};
pub(super) use values::from_json;

/// Names that a rendering passes for the marks around `generation` blocks; undefined, they print nothing.
pub(super) const START_VARIABLE: &str = source::START_VARIABLE;
/// The counterpart of [`START_VARIABLE`].
pub(super) const END_VARIABLE: &str = source::END_VARIABLE;

/// What a template may do before it is stopped: instructions of minijinja's machine, a few hundred for each message of
/// conversations of many thousand. Templates come from outside and could loop forever.
const FUEL: u64 = 20_000_000;

/// The message of `raise_exception`, found again as the source of minijinja's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// An environment with transformers' settings and names, without templates.
pub(super) fn environment() -> Environment<'static> {
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .expect("the delimiters are Jinja's own");
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(values::format);
    environment.set_unknown_method_callback(methods::call);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter(operators::SPEND_FILTER, budget::spend_value);
    filters::add(&mut environment);
    environment
}

/// The function `strftime_now` at a given time.
pub(super) fn strftime_now(now: clock::LocalTime) -> Value {
    Value::from_function(move |format: &Value| {
        let format = values::to_text(format);
        now.format(&format).ok_or_else(|| invalid(format!("strftime_now: unknown format {format:?}")))
    })
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = values::to_text(message);
    Err(invalid(message.clone()).with_source(Raised(message)))
}

/// An error that names what the template did wrong.
fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}
