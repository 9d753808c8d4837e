//! Methods of Python's dictionaries and lists, and the dispatch to those of strings.

use std::sync::Arc;

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Object, ObjectRepr, Tuple, ValueKind, from_args},
};

use super::{
    invalid,
    source::{ATTRIBUTE_PREFIX, DICT_METHODS, ITEM_PREFIX},
    string_methods,
    values::{Dict, pairs},
};

/// Calls `value.method(args)` for values that have no such method of their own.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(name) = method.strip_prefix(ATTRIBUTE_PREFIX) {
        return attribute(value, name);
    }
    if let Some(name) = method.strip_prefix(ITEM_PREFIX) {
        return item(value, name);
    }
    match value.kind() {
        ValueKind::String => {
            string_methods::call(state, value.as_str().unwrap_or_default(), method, Arguments::new(args)?)
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
    /// Takes a call's arguments apart.
    pub(super) fn new(args: &'a [Value]) -> Result<Self, Error> {
        let (positional, named) = from_args::<(&'a [Value], Kwargs)>(args)?;
        Ok(Self { positional, named })
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
