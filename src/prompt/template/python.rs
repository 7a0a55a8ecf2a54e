//! What Python prints: `str` and `repr`.

use minijinja::{Error, State, Value};

use super::budget::{ITEM_BYTES, spend};
use super::jinja::BigInt;
use super::objects::{Kind, Range, View, kind, refuse};
use super::text::repr_str;
use crate::prompt::json::{Json, float_repr};

/// Levels of a value that is printed or kept; a request's body has 256.
pub const DEPTH_MAX: usize = 300;

/// `str(value)`.
pub fn str_of(state: &mut State, value: &Value) -> Result<String, Error> {
    match kind(value) {
        Kind::Undefined => Ok(String::new()),
        Kind::Str => Ok(value.as_str().unwrap_or_default().to_owned()),
        _ => repr_of(state, value),
    }
}

/// `repr(value)`.
pub fn repr_of(state: &mut State, value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    repr(state, value, &mut out, 0)?;
    spend(state, out.len())?;
    Ok(out)
}

/// Generators, functions and the like print an address, which nobody can know: they fail.
fn repr(state: &mut State, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return refuse("a value that is nested too deep");
    }
    spend(state, ITEM_BYTES)?;
    match kind(value) {
        Kind::None => out.push_str("None"),
        Kind::Undefined => out.push_str("Undefined"),
        Kind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        Kind::Int | Kind::Float => match number_of(value) {
            Json::Float(number) => out.push_str(&float_repr(number)),
            _ => out.push_str(&value.to_string()),
        },
        Kind::Str if value.is_safe() => return refuse("Markup in another value"),
        Kind::Str => {
            let text = value.as_str().unwrap_or_default();
            spend(state, text.len())?;
            repr_str(text, out);
        }
        Kind::List => sequence(state, ("[", "]"), value.try_iter()?, out, depth)?,
        Kind::Tuple => {
            let close = if value.len() == Some(1) { ",)" } else { ")" };
            sequence(state, ("(", close), value.try_iter()?, out, depth)?;
        }
        Kind::Dict => {
            out.push('{');
            for (position, key) in value.try_iter()?.enumerate() {
                out.push_str(if position > 0 { ", " } else { "" });
                repr(state, &key, out, depth + 1)?;
                out.push_str(": ");
                repr(state, &value.get_item(&key)?, out, depth + 1)?;
            }
            out.push('}');
        }
        Kind::View | Kind::Range | Kind::Other => {
            if let Some(view) = value.downcast_object_ref::<View>() {
                out.push_str(&format!("dict_{}(", view.of));
                sequence(state, ("[", "])"), view.items.iter().cloned(), out, depth)?;
            } else if let Some(range) = value.downcast_object_ref::<Range>() {
                out.push_str(&range.text());
            } else {
                return refuse("an object that prints its address");
            }
        }
    }
    Ok(())
}

fn sequence(
    state: &mut State,
    brackets: (&str, &str),
    items: impl Iterator<Item = Value>,
    out: &mut String,
    depth: usize,
) -> Result<(), Error> {
    out.push_str(brackets.0);
    for (position, item) in items.enumerate() {
        out.push_str(if position > 0 { ", " } else { "" });
        repr(state, &item, out, depth + 1)?;
    }
    out.push_str(brackets.1);
    Ok(())
}

/// A template's number as JSON keeps it.
pub fn number_of(value: &Value) -> Json {
    if let Some(big) = value.downcast_object_ref::<BigInt>() {
        return Json::BigInt(big.0.clone());
    }
    if !value.is_integer() {
        return f64::try_from(value.clone()).map_or(Json::Null, Json::Float);
    }
    value
        .as_i64()
        .map_or_else(|| Json::BigInt(value.to_string().into()), Json::Int)
}
