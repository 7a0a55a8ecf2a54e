//! Python's comparisons and `in`.

use std::cmp::Ordering;

use memchr::memmem;
use minijinja::{Error, State, Value};

use super::budget::{ITEM_BYTES, spend};
use super::objects::{Kind, kind, refuse};
use super::operators::Number;

/// `a < b <= c …`; the comparisons stand between the operands.
pub fn chain(state: &mut State, all: &[Value]) -> Result<Value, Error> {
    let mut left = all.first().cloned().unwrap_or_default();
    for step in all[1..].chunks(2) {
        let [op, right] = step else {
            return refuse("a comparison without an operand");
        };
        let holds = compare(state, op.as_str().unwrap_or_default(), &left, right)?;
        if !holds.is_true() {
            return Ok(holds);
        }
        left = right.clone();
    }
    Ok(Value::from(true))
}

/// `a == b` and the like.
pub fn compare(state: &mut State, op: &str, a: &Value, b: &Value) -> Result<Value, Error> {
    let holds = match op {
        "==" => equal(state, a, b)?,
        "!=" => !equal(state, a, b)?,
        "in" => contains(state, b, a)?,
        "not in" => !contains(state, b, a)?,
        _ => {
            let nan = [a, b].iter().any(|side| {
                kind(side) == Kind::Float && f64::try_from((*side).clone()).is_ok_and(f64::is_nan)
            });
            let order = order(state, a, b)?;
            !nan && match op {
                "<" => order == Ordering::Less,
                "<=" => order != Ordering::Greater,
                ">" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            }
        }
    };
    Ok(Value::from(holds))
}

/// `a == b`.
pub fn equal(state: &mut State, a: &Value, b: &Value) -> Result<bool, Error> {
    let both = (kind(a), kind(b));
    match both {
        (Kind::Str, Kind::Str) => {
            let (a, b) = (
                a.as_str().unwrap_or_default(),
                b.as_str().unwrap_or_default(),
            );
            if a.len() == b.len() {
                spend(state, a.len())?;
            }
            Ok(a == b)
        }
        (Kind::Int, Kind::Int) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Ok(a == b),
            _ => Ok(a.to_string() == b.to_string()),
        },
        (Kind::Bool | Kind::Int | Kind::Float, Kind::Bool | Kind::Int | Kind::Float) => Ok(a == b),
        (Kind::List, Kind::List) | (Kind::Tuple, Kind::Tuple) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (a, b) in a.try_iter()?.zip(b.try_iter()?) {
                spend(state, ITEM_BYTES)?;
                if !equal(state, &a, &b)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (Kind::Dict, Kind::Dict) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for key in a.try_iter()? {
                spend(state, ITEM_BYTES)?;
                if !equal(state, &a.get_item(&key)?, &b.get_item(&key)?)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (Kind::Other | Kind::View | Kind::Range, _)
        | (_, Kind::Other | Kind::View | Kind::Range)
            if both.0 == both.1 =>
        {
            refuse("a comparison of objects")
        }
        (a, b) => Ok(a == b),
    }
}

/// How two values compare; Python refuses those of different types.
pub fn order(state: &mut State, a: &Value, b: &Value) -> Result<Ordering, Error> {
    match (kind(a), kind(b)) {
        (Kind::Str, Kind::Str) => {
            let (a, b) = (
                a.as_str().unwrap_or_default(),
                b.as_str().unwrap_or_default(),
            );
            spend(state, a.len().min(b.len()))?;
            Ok(a.cmp(b))
        }
        (Kind::Bool | Kind::Int | Kind::Float, Kind::Bool | Kind::Int | Kind::Float) => {
            match (Number::of(a)?, Number::of(b)?) {
                (Number::Int(a), Number::Int(b)) => Ok(a.cmp(&b)),
                (Number::Float(a), Number::Float(b)) => {
                    Ok(a.partial_cmp(&b).unwrap_or(Ordering::Equal))
                }
                _ => Ok(a.cmp(b)),
            }
        }
        (Kind::List, Kind::List) | (Kind::Tuple, Kind::Tuple) => {
            for (a, b) in a.try_iter()?.zip(b.try_iter()?) {
                spend(state, ITEM_BYTES)?;
                if !equal(state, &a, &b)? {
                    return order(state, &a, &b);
                }
            }
            Ok(a.len().cmp(&b.len()))
        }
        _ => refuse("an order of values that have none"),
    }
}

/// `item in container`.
pub fn contains(state: &mut State, container: &Value, wanted: &Value) -> Result<bool, Error> {
    match (kind(container), kind(wanted)) {
        (Kind::Undefined, _) => Ok(false),
        (Kind::Str, Kind::Str) => {
            let text = container.as_str().unwrap_or_default();
            spend(state, text.len())?;
            let wanted = wanted.as_str().unwrap_or_default();
            Ok(memmem::find(text.as_bytes(), wanted.as_bytes()).is_some())
        }
        (Kind::Dict, Kind::List | Kind::Dict) => refuse("a key that cannot be one"),
        (Kind::Dict, _) => Ok(container
            .as_object()
            .is_some_and(|dict| dict.get_value(wanted).is_some())),
        (Kind::Str | Kind::None | Kind::Bool | Kind::Int | Kind::Float, _) => {
            refuse("a containment in something that contains nothing")
        }
        _ => {
            for one in container.try_iter()? {
                spend(state, ITEM_BYTES)?;
                if equal(state, &one, wanted)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}
