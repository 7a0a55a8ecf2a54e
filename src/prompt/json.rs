//! JSON as Python's `json` module reads and writes it: the text that vLLM's templates print.
//!
//! Differs from RFC 8259 where Python does: a byte order mark is skipped, `NaN` and `Infinity`
//! are numbers, integers are exact, `1e400` is infinite, a repeated key keeps its first position
//! and its last value, and `\ud800` alone is a string that nothing can encode.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

pub mod outline;
mod read;
mod strict;
mod strings;
mod write;
pub use write::{Style, float_repr};

/// Objects of more members than this find repeated keys through a table.
const SCANNED_MEMBERS_MAX: usize = 16;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer that 64 bits hold.
    Int(i64),
    /// Any other integer: its sign and digits.
    BigInt(Box<str>),
    /// A number with a point or an exponent, `NaN` and the infinities.
    Float(f64),
    /// Text.
    Str(Arc<str>),
    /// A string with half of a surrogate pair. Python holds it, no tokenizer takes it, so what
    /// else it says is not kept.
    LoneSurrogate,
    /// An array.
    List(Vec<Json>),
    /// An object.
    Object(Object),
}

/// Members in the order of their first mention; keys are unique.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Object(Vec<(Arc<str>, Json)>);

impl Object {
    /// The value of a key. Linear: for the few names that we look up.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.0.iter().find(|(k, _)| &**k == key).map(|(_, v)| v)
    }

    /// The value of a key, unless it is absent or `null`.
    #[must_use]
    pub fn get_some(&self, key: &str) -> Option<&Json> {
        self.get(key).filter(|value| **value != Json::Null)
    }

    /// Sets a key, in place where it exists. Linear.
    pub fn set(&mut self, key: &str, value: Json) {
        match self.0.iter_mut().find(|(k, _)| &**k == key) {
            Some(member) => member.1 = value,
            None => self.0.push((key.into(), value)),
        }
    }

    /// With more members, which win over those that are there. Linear in all of them.
    #[must_use]
    pub fn merged(self, others: impl IntoIterator<Item = (Arc<str>, Json)>) -> Self {
        Self::of_members(self.0.into_iter().chain(others).collect())
    }

    /// Takes a key out. Linear.
    pub fn remove(&mut self, key: &str) -> Option<Json> {
        let at = self.0.iter().position(|(k, _)| &**k == key)?;
        Some(self.0.remove(at).1)
    }

    /// The members in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Json)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// The members but for some, shared.
    pub fn without<'a>(&'a self, keys: &'a [&str]) -> impl Iterator<Item = (Arc<str>, Json)> + 'a {
        let others = self.iter().filter(|(key, _)| !keys.contains(&&***key));
        others.map(|(key, value)| (Arc::clone(key), value.clone()))
    }

    /// Whether these are its keys, in this order.
    #[must_use]
    pub fn names_are<const N: usize>(&self, names: [&str; N]) -> bool {
        self.0.iter().map(|(key, _)| &**key).eq(names)
    }

    /// How many members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it is `{}`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From members whose keys may repeat, in linear time.
    fn of_members(mut members: Vec<(Arc<str>, Json)>) -> Self {
        if members.len() <= SCANNED_MEMBERS_MAX {
            // Keys seldom repeat: the list stays where it is until one does.
            let mut at = 1;
            while at < members.len() {
                match members[..at]
                    .iter()
                    .position(|(key, _)| *key == members[at].0)
                {
                    None => at += 1,
                    Some(first) => members[first].1 = members.remove(at).1,
                }
            }
            return Self(members);
        }
        let mut positions: HashMap<Arc<str>, usize> = HashMap::with_capacity(members.len());
        let mut kept: Vec<(Arc<str>, Json)> = Vec::with_capacity(members.len());
        for (key, value) in members.drain(..) {
            let position = *positions.entry(Arc::clone(&key)).or_insert(kept.len());
            match kept.get_mut(position) {
                Some(member) => member.1 = value,
                None => kept.push((key, value)),
            }
        }
        Self(kept)
    }
}

impl<const N: usize> From<[(&str, Json); N]> for Object {
    fn from(members: [(&str, Json); N]) -> Self {
        Self::of_members(members.into_iter().map(|(k, v)| (k.into(), v)).collect())
    }
}

impl IntoIterator for Object {
    type Item = (Arc<str>, Json);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl FromIterator<(Arc<str>, Json)> for Object {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Json)>>(members: I) -> Self {
        Self::of_members(members.into_iter().collect())
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl Json {
    /// The text of a string that can be encoded.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The members of an object.
    #[must_use]
    pub fn as_object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The items of an array.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Json]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    /// What Python's `bool()` says.
    #[must_use]
    pub fn is_truthy(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(yes) => *yes,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Object(object) => !object.is_empty(),
            Self::BigInt(_) | Self::LoneSurrogate => true,
        }
    }

    /// Levels of lists and objects.
    #[must_use]
    pub fn depth(&self) -> usize {
        match self {
            Self::List(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Self::Object(object) => {
                1 + object
                    .iter()
                    .map(|(_, value)| value.depth())
                    .max()
                    .unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// How many values it is, itself and those inside.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::List(items) => 1 + items.iter().map(Self::count).sum::<usize>(),
            Self::Object(object) => {
                1 + object.iter().map(|(_, value)| value.count()).sum::<usize>()
            }
            _ => 1,
        }
    }

    /// The kind of value, for messages that must not quote it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::BigInt(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Str(_) => "a string",
            Self::LoneSurrogate => "a string with a lone surrogate",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// Why a text is not JSON, and where; never what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonError {
    /// What is wrong.
    pub fault: Fault,
    /// Bytes before it.
    pub at: usize,
}

/// What can be wrong with a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Not JSON: Python's `JSONDecodeError`.
    Syntax,
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// An object's key has half of a surrogate pair.
    LoneSurrogate,
    /// An integer of more than 4300 digits, which Python refuses.
    HugeInteger,
    /// Nested deeper than 256.
    TooDeep,
    /// More than two million values.
    TooManyValues,
}

impl Fault {
    fn at(self, at: usize) -> JsonError {
        JsonError { fault: self, at }
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.fault {
            Fault::Syntax => "a syntax error",
            Fault::NotUtf8 => "bytes that are not UTF-8",
            Fault::LoneSurrogate => "a key with a lone surrogate",
            Fault::HugeInteger => "an integer of more than 4300 digits",
            Fault::TooDeep => "nesting deeper than 256",
            Fault::TooManyValues => "more than two million values",
        };
        write!(f, "{what} at byte {}", self.at)
    }
}

impl std::error::Error for JsonError {}

#[cfg(test)]
mod tests;
