//! JSON as Rust's `serde_json` reads it, which vLLM's Rust frontend uses.
//!
//! Stricter than Python: no byte order mark, no `NaN`, no number beyond a double, no lone
//! surrogate, 127 levels. Integers beyond 64 bits become doubles, and a decimal of many digits may
//! be read one unit in the last place off, since `serde_json` multiplies before it rounds; so the
//! reader here is that crate itself, without its `float_roundtrip` feature.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::read::VALUES_MAX;
use super::{Fault, Json, JsonError, Object};

impl Json {
    /// What `serde_json` reads.
    ///
    /// # Errors
    /// A [`JsonError`] where it refuses, or where our limit of values is passed.
    pub fn loads_strict(bytes: &[u8]) -> Result<Self, JsonError> {
        let left = Cell::new(VALUES_MAX);
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let value = Values { left: &left }
            .deserialize(&mut reader)
            .and_then(|value| reader.end().map(|()| value));
        value.map_err(|error| {
            let lines = bytes.split_inclusive(|byte| *byte == b'\n');
            let before: usize = lines
                .take(error.line().saturating_sub(1))
                .map(<[u8]>::len)
                .sum();
            match error.is_data() {
                true => Fault::TooManyValues,
                false => Fault::Syntax,
            }
            .at(before + error.column())
        })
    }
}

/// Reads one value, and counts it.
#[derive(Clone, Copy)]
struct Values<'a> {
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Json, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left
            .set(left.ok_or_else(|| D::Error::custom("too many values"))?);
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, yes: bool) -> Result<Json, E> {
        Ok(Json::Bool(yes))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Int(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(i64::try_from(number)
            .map_or_else(|_| Json::BigInt(number.to_string().into()), Json::Int))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = from.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(key) = from.next_key::<String>()? {
            members.push((Arc::from(key), from.next_value_seed(self)?));
        }
        Ok(Json::Object(Object::of_members(members)))
    }
}
