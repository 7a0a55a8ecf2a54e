//! Any MessagePack value, with lists of integers kept flat: token ids are most of every event.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A value of unknown shape, borrowed from the payload where it can be.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) enum Value<'a> {
    /// Nil, and kinds that no event uses (extension types).
    #[default]
    Nil,
    Bool,
    /// The low 64 bits, so that u64 and i64 hashes fit alike.
    Int(i64),
    Float(f64),
    Str(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    /// A list of integers only, and not empty.
    Ints(Vec<i64>),
    List(Vec<Value<'a>>),
    Map(Vec<(Value<'a>, Value<'a>)>),
}

impl<'a> Value<'a> {
    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Self::Int(int) => Some(*int),
            _ => None,
        }
    }

    pub(super) fn float(&self) -> Option<f64> {
        match self {
            Self::Float(float) => Some(*float),
            Self::Int(int) => Some(*int as f64),
            _ => None,
        }
    }

    pub(super) fn str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn list(self) -> Option<Vec<Value<'a>>> {
        match self {
            Self::List(list) => Some(list),
            Self::Ints(ints) => Some(ints.into_iter().map(Self::Int).collect()),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any MessagePack value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Value::Nil)
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(Value::Nil)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Value::Bool)
    }

    fn visit_i64<E>(self, int: i64) -> Result<Self::Value, E> {
        Ok(Value::Int(int))
    }

    fn visit_u64<E>(self, int: u64) -> Result<Self::Value, E> {
        Ok(Value::Int(int as i64))
    }

    fn visit_f64<E>(self, float: f64) -> Result<Self::Value, E> {
        Ok(Value::Float(float))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Value::Str(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Value::Str(Cow::Owned(text.to_owned())))
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        Ok(Value::Bytes(Cow::Borrowed(bytes)))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Value::Bytes(Cow::Owned(bytes.to_owned())))
    }

    /// Extension types: read past, so that the rest of the batch survives.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
        serde::de::IgnoredAny::deserialize(inner).map(|_| Value::Nil)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        // A length prefix is a claim: what it makes us reserve is bounded.
        let mut ints = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(RESERVE_MAX));
        let odd = loop {
            match seq.next_element()? {
                Some(Value::Int(int)) => ints.push(int),
                Some(other) => break other,
                None if ints.is_empty() => return Ok(Value::List(Vec::new())),
                None => return Ok(Value::Ints(ints)),
            }
        };
        let mut list: Vec<_> = ints.into_iter().map(Value::Int).collect();
        list.push(odd);
        while let Some(value) = seq.next_element()? {
            if list.len() == LIST_MAX {
                return Err(serde::de::Error::custom("a list of too many values"));
            }
            list.push(value);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::with_capacity(map.size_hint().unwrap_or(0).min(RESERVE_MAX));
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}

/// Values of mixed kinds in one list. A step of an engine with 10,000 requests has some 20,000
/// events; each value takes 32 bytes here, whatever it took on the wire.
const LIST_MAX: usize = 1 << 20;

/// Elements reserved ahead of reading them: a long prompt's worth, 64 KiB.
const RESERVE_MAX: usize = 8 * 1024;
