//! Python's kinds of values, and those that minijinja has none for: views of a dict, generators,
//! ranges, groups, and methods that are not called.

use std::sync::{Arc, Mutex, PoisonError};
use std::vec::IntoIter;

use minijinja::value::{Enumerator, Object, ObjectRepr, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::budget::spend_items;
use super::jinja::BigInt;
use super::methods;

/// What Python would call a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Undefined,
    None,
    Bool,
    Int,
    Float,
    Str,
    List,
    Tuple,
    Dict,
    Range,
    View,
    /// Everything else: generators, functions, macros, namespaces, loops.
    Other,
}

/// A value's kind.
pub fn kind(value: &Value) -> Kind {
    match value.kind() {
        ValueKind::Undefined => Kind::Undefined,
        ValueKind::None => Kind::None,
        ValueKind::Bool => Kind::Bool,
        ValueKind::Number if value.is_integer() => Kind::Int,
        ValueKind::Number => Kind::Float,
        ValueKind::String => Kind::Str,
        ValueKind::Seq if value.is_tuple() || value.downcast_object_ref::<Group>().is_some() => {
            Kind::Tuple
        }
        ValueKind::Seq if value.downcast_object_ref::<Range>().is_some() => Kind::Range,
        ValueKind::Seq | ValueKind::Iterable => Kind::List,
        ValueKind::Map => match value.as_object() {
            Some(object) if is_dict(object.type_name()) => Kind::Dict,
            _ => Kind::Other,
        },
        _ if value.downcast_object_ref::<View>().is_some() => Kind::View,
        _ if value.downcast_object_ref::<BigInt>().is_some() => Kind::Int,
        _ => Kind::Other,
    }
}

/// Namespaces, loops and macros are maps to minijinja, and no dicts.
fn is_dict(type_name: &str) -> bool {
    !["::Namespace", "::Loop", "::Macro"]
        .iter()
        .any(|other| type_name.ends_with(other))
}

/// An error without details, which could quote a prompt.
pub fn refuse<T>(what: &'static str) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, what))
}

/// A list.
pub fn list(items: Vec<Value>) -> Value {
    Value::from(items)
}

/// A tuple.
pub fn tuple(items: impl Into<Vec<Value>>) -> Value {
    Value::from(Tuple::from(items.into()))
}

/// The items that Python's `iter` gives; a generator's are gone then.
pub fn items(state: &mut State, value: &Value) -> Result<Vec<Value>, Error> {
    if matches!(kind(value), Kind::None) {
        return refuse("none cannot be iterated");
    }
    let items = value.try_iter()?;
    spend_items(state, items.size_hint().0)?;
    items
        .map(|item| match item.kind() {
            ValueKind::Invalid => refuse("a string with a lone surrogate"),
            _ => Ok(item),
        })
        .collect()
}

/// A sum of strings that is only printed: nobody needs it as one string.
#[derive(Debug)]
pub struct Sum(pub Vec<Value>);

impl Sum {
    /// The strings.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(Value::as_str)
    }
}

impl Object for Sum {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

/// A generator: its items are there once, whatever takes them.
#[derive(Debug)]
pub struct Generator(Arc<Mutex<IntoIter<Value>>>);

impl Generator {
    /// A generator of computed items.
    pub fn of(items: Vec<Value>) -> Value {
        Value::from_object(Self(Arc::new(Mutex::new(items.into_iter()))))
    }

    /// The items that are left.
    pub fn left(&self) -> Vec<Value> {
        let items = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        items.as_slice().to_vec()
    }

    /// The next item.
    pub fn next(&self) -> Option<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}

struct Taken(Arc<Mutex<IntoIter<Value>>>);

impl Iterator for Taken {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner).len();
        (left, Some(left))
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Iter(Box::new(Taken(Arc::clone(&self.0))))
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// `dict.keys()` and its like.
#[derive(Debug)]
pub struct View {
    /// "keys", "values" or "items".
    pub of: &'static str,
    /// What it shows.
    pub items: Vec<Value>,
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let view = Arc::clone(self);
        let count = self.items.len();
        let items = (0..count).map(move |at| view.items[at].clone());
        Enumerator::Iter(Box::new(items))
    }

    fn is_true(self: &Arc<Self>) -> bool {
        !self.items.is_empty()
    }
}

/// `range`; Jinja's sandbox ends them at 100,000.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    pub start: i64,
    pub stop: i64,
    pub step: i64,
    pub len: usize,
}

impl Range {
    /// Items at most (`jinja2.sandbox.MAX_RANGE`).
    const ITEMS_MAX: i128 = 100_000;

    /// The range, unless it is endless.
    pub fn value(start: i64, stop: i64, step: i64) -> Result<Value, Error> {
        let (from, to) = (i128::from(start), i128::from(stop));
        let (span, step_size) = match step {
            0 => return refuse("a range with a step of 0"),
            1.. => (to - from, i128::from(step)),
            _ => (from - to, -i128::from(step)),
        };
        let len = (span + step_size - 1).div_euclid(step_size).max(0);
        if len > Self::ITEMS_MAX {
            return refuse("a range of more than 100000 items");
        }
        let len = len as usize;
        Ok(Value::from_object(Self {
            start,
            stop,
            step,
            len,
        }))
    }

    /// As Python prints it.
    pub fn text(&self) -> String {
        match self.step {
            1 => format!("range({}, {})", self.start, self.stop),
            step => format!("range({}, {}, {step})", self.start, self.stop),
        }
    }

    fn at(&self, index: usize) -> Value {
        Value::from(
            self.start
                .wrapping_add(self.step.wrapping_mul(index as i64)),
        )
    }
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        key.as_usize()
            .filter(|index| *index < self.len)
            .map(|index| self.at(index))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let range = **self;
        Enumerator::Iter(Box::new((0..self.len).map(move |index| range.at(index))))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.len)
    }
}

/// One of `groupby`'s pairs.
#[derive(Debug)]
pub struct Group {
    pub grouper: Value,
    pub list: Value,
}

impl Object for Group {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match (key.as_str(), key.as_usize()) {
            (Some("grouper"), _) | (_, Some(0)) => Some(self.grouper.clone()),
            (Some("list"), _) | (_, Some(1)) => Some(self.list.clone()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(2)
    }
}

/// A method that a template names and does not call: true, defined, and perhaps called later.
#[derive(Debug)]
pub struct Method {
    pub of: Value,
    pub name: String,
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        methods::method(state, &self.of, &self.name, args)
    }
}

/// `joiner`: nothing first, then the separator.
#[derive(Debug)]
pub struct Joiner {
    pub separator: String,
    pub used: Mutex<bool>,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, _: &[Value]) -> Result<Value, Error> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let separator = if *used { self.separator.as_str() } else { "" };
        *used = true;
        Ok(Value::from(separator))
    }
}
