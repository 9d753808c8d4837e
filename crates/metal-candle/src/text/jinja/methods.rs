//! Methods of Python's dictionaries and lists, and the dispatch to those of strings.

use std::sync::Arc;

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Object, ObjectRepr, Tuple, ValueKind, from_args},
};

use super::{
    budget::spend_value,
    invalid,
    source::{ATTRIBUTE_PREFIX, DICT_METHODS, ITEM_PREFIX, SLICE_METHOD},
    string_methods,
    values::{Dict, pairs},
};

/// Calls `value.method(args)` for values that have no such method of their own.
pub(super) fn call(_state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    spend_value(dispatch(value, method, args)?)
}

fn dispatch(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if method == SLICE_METHOD {
        let (start, stop, step) = from_args(args)?;
        return slice(value, start, stop, step);
    }
    if let Some(name) = method.strip_prefix(ATTRIBUTE_PREFIX) {
        return attribute(value, name);
    }
    if let Some(name) = method.strip_prefix(ITEM_PREFIX) {
        return item(value, name);
    }
    match value.kind() {
        ValueKind::String => {
            string_methods::call(value.as_str().unwrap_or_default(), method, &Arguments::split(args)?)
        }
        ValueKind::Map => dict_method(value, method, args),
        ValueKind::Seq | ValueKind::Iterable => list_method(value, method, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// The arguments of a method call, by position and by name.
pub(super) struct Arguments<'a> {
    positional: &'a [Value],
    named: Kwargs,
}

impl<'a> Arguments<'a> {
    /// The arguments of a filter or function.
    pub(super) fn new(positional: &'a [Value], named: Kwargs) -> Self {
        Self { positional, named }
    }

    /// Takes the arguments of a method call apart: names come last, as one value.
    fn split(args: &'a [Value]) -> Result<Self, Error> {
        match args.split_last() {
            Some((last, positional)) if last.is_kwargs() => {
                Ok(Self { positional, named: Kwargs::try_from(last.clone())? })
            }
            _ => Ok(Self { positional: args, named: Kwargs::from_iter([] as [(&str, Value); 0]) }),
        }
    }

    /// The argument at a position or of a name, if it was given.
    pub(super) fn optional(&self, position: usize, name: &str) -> Result<Option<Value>, Error> {
        match self.positional.get(position) {
            Some(value) => Ok(Some(value.clone())),
            None if self.named.has(name) => self.named.get(name).map(Some),
            None => Ok(None),
        }
    }

    /// The argument at a position or of a name.
    pub(super) fn required(&self, position: usize, name: &str) -> Result<Value, Error> {
        self.optional(position, name)?.ok_or_else(|| invalid(format!("missing argument {name:?}")))
    }

    /// Fails if there are more arguments than `count`, or unknown names.
    pub(super) fn at_most(&self, count: usize) -> Result<(), Error> {
        if self.positional.len() > count {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        self.named.assert_all_used()
    }

    /// All arguments as they were given.
    pub(super) fn all(&self) -> Vec<Value> {
        let mut all = self.positional.to_vec();
        if self.named.args().next().is_some() {
            all.push(self.named.clone().into());
        }
        all
    }
}

/// A method of a dictionary that is read but not called: true, callable, and equal to nothing a template compares.
#[derive(Debug)]
struct BoundMethod {
    value: Value,
    method: String,
}

impl Object for BoundMethod {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        dict_method(&self.value, &self.method, args)
    }
}

/// `value.name`: Python finds a dictionary's method before its key.
fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    if value.downcast_object_ref::<Dict>().is_some() && DICT_METHODS.contains(&name) {
        return Ok(bound(value, name));
    }
    value.get_attr(name)
}

/// `value['name']`: Python finds a dictionary's key before its method.
fn item(value: &Value, name: &str) -> Result<Value, Error> {
    match value.downcast_object_ref::<Dict>() {
        Some(dict) => Ok(dict.get(name).unwrap_or_else(|| bound(value, name))),
        None => value.get_item(&Value::from(name)),
    }
}

/// `value[start:stop:step]`; undefined for what has no order, as in Jinja2.
fn slice(value: &Value, start: Option<i64>, stop: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(invalid("slice step cannot be zero"));
    }
    match value.kind() {
        ValueKind::String => {
            let characters: Vec<char> = value.as_str().unwrap_or_default().chars().collect();
            let chosen = slice_positions(characters.len(), start, stop, step);
            Ok(Value::from(chosen.map(|at| characters[at]).collect::<String>()))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            let chosen =
                slice_positions(items.len(), start, stop, step).map(|at| items[at].clone()).collect();
            Ok(if value.is_tuple() { Value::from(Tuple::new(chosen)) } else { Value::from(chosen) })
        }
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        _ => Ok(Value::UNDEFINED),
    }
}

/// The positions that Python's slice chooses: negative bounds count from the end, and all are clamped.
fn slice_positions(
    length: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
) -> impl Iterator<Item = usize> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |given: Option<i64>, default: i64| match given {
        None => default,
        Some(at) if at < 0 => at.saturating_add(length).max(lowest),
        Some(at) => at.min(highest),
    };
    let (first, last) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let (first, last) = (bound(start, first), bound(stop, last));
    std::iter::successors(Some(first), move |at| at.checked_add(step))
        .take_while(move |at| if step > 0 { *at < last } else { *at > last })
        .filter_map(|at| usize::try_from(at).ok())
}

fn bound(value: &Value, name: &str) -> Value {
    Value::from_object(BoundMethod { value: value.clone(), method: name.to_owned() })
}

fn dict_method(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let list = |items: Vec<Value>| Ok(Value::from(items));
    match method {
        "keys" => {
            from_args::<()>(args).and_then(|()| list(pairs(value).into_iter().map(|(key, _)| key).collect()))
        }
        "values" => from_args::<()>(args)
            .and_then(|()| list(pairs(value).into_iter().map(|(_, item)| item).collect())),
        "items" => {
            let () = from_args(args)?;
            let tuples = pairs(value).into_iter().map(|(key, item)| Value::from(Tuple::from([key, item])));
            list(tuples.collect())
        }
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            let found = value.as_object().and_then(|object| object.get_value(key));
            Ok(found.or(default).unwrap_or_else(|| Value::from(())))
        }
        "copy" => from_args::<()>(args).map(|()| value.clone()),
        "pop" | "update" | "clear" | "setdefault" | "popitem"
            if value.downcast_object_ref::<Dict>().is_some() =>
        {
            Err(immutable("dict", method))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn list_method(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "count" => {
            let (what,): (&Value,) = from_args(args)?;
            Ok(Value::from(value.try_iter()?.filter(|item| item == what).count()))
        }
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            let position = value.try_iter()?.position(|item| item == *what);
            position.map(Value::from).ok_or_else(|| invalid("the value is not in the list"))
        }
        "copy" => from_args::<()>(args).map(|()| value.clone()),
        "append" | "extend" | "insert" | "pop" | "remove" | "clear" | "reverse" | "sort" => {
            Err(immutable("list", method))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn immutable(kind: &str, method: &str) -> Error {
    invalid(format!("chat templates may not change values: {kind}.{method}() is not allowed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_choose_what_python_chooses() {
        let positions = |length, start, stop, step| -> Vec<usize> {
            slice_positions(length, start, stop, step).collect()
        };
        assert_eq!(positions(4, None, None, 1), [0, 1, 2, 3]);
        assert_eq!(positions(4, None, None, -1), [3, 2, 1, 0]);
        assert_eq!(positions(0, None, None, -1), [0usize; 0]);
        assert_eq!(positions(4, Some(-2), None, 1), [2, 3]);
        assert_eq!(positions(4, None, Some(-1), 2), [0, 2]);
        assert_eq!(positions(4, Some(1), Some(3), -1), [0usize; 0]);
        assert_eq!(positions(4, Some(9), Some(-9), -2), [3, 1]);
        assert_eq!(positions(4, Some(-9), Some(9), i64::MAX), [0]);
        assert_eq!(positions(4, Some(2), Some(0), -1), [2, 1]);
    }
}
