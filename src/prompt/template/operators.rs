//! Python's operators, as [`lower`](super::lower) calls them. What cannot be computed exactly, such
//! as integers beyond 127 bits, fails; what Python refuses, fails as well.

use minijinja::{Environment, Error, State, Value};

use super::args::{Args, int, native, text};
use super::budget::{spend, spend_items};
use super::compare::{chain, compare, equal};
use super::format::printf;
use super::jinja::BigInt;
use super::methods::{self, has_method};
use super::objects::{Generator, Kind, Method, Sum, View, items, kind, list, refuse, tuple};
use super::python::{DEPTH_MAX, str_of};

/// Integers that every double tells apart: 2^53.
const EXACT_INT_MAX: u128 = 1 << 53;

/// Adds the operators to an environment.
pub fn add_to(env: &mut Environment) {
    env.add_filter("__add", |state: &mut State, all: &[Value]| {
        add_all(state, all)
    });
    env.add_filter("__print_sum", |state: &mut State, all: &[Value]| match all
        .iter()
        .all(|value| plain(value).is_some())
    {
        true => Ok(Value::from_object(Sum(all.to_vec()))),
        false => add_all(state, all),
    });
    env.add_filter("__concat", |state: &mut State, all: &[Value]| {
        concat(state, all)
    });
    env.add_filter("__iter", iter);
    env.add_filter("__item", item);
    env.add_filter("__attr", |state: &mut State, value: &Value, name: &str| {
        attr(state, value, name)
    });
    env.add_filter("__neg", |value: &Value| neg(value));
    env.add_filter("__slice", native(slice));
    env.add_filter("__dict", dict);
    env.add_filter("__keep", |state: &mut State, value: &Value| {
        nested(state, value, 0).map(|()| value.clone())
    });
    env.add_filter("__chain", |state: &mut State, all: &[Value]| {
        chain(state, all)
    });
    for (name, op) in [
        ("__sub", "-"),
        ("__mul", "*"),
        ("__div", "/"),
        ("__floordiv", "//"),
        ("__mod", "%"),
        ("__pow", "**"),
    ] {
        env.add_filter(name, move |state: &mut State, a: &Value, b: &Value| {
            arithmetic(state, op, a, b)
        });
    }
    for (name, op) in [
        ("__eq", "=="),
        ("__ne", "!="),
        ("__lt", "<"),
        ("__le", "<="),
        ("__gt", ">"),
        ("__ge", ">="),
        ("__in", "in"),
    ] {
        env.add_filter(name, move |state: &mut State, a: &Value, b: &Value| {
            compare(state, op, a, b)
        });
    }
}

/// `a + b + …`.
fn add_all(state: &mut State, all: &[Value]) -> Result<Value, Error> {
    if let Some(texts) = all.iter().map(plain).collect::<Option<Vec<&str>>>() {
        spend(state, texts.iter().map(|text| text.len()).sum())?;
        return Ok(Value::from(texts.concat()));
    }
    let mut sum = all.first().cloned().unwrap_or_default();
    for other in &all[1..] {
        sum = add(state, &sum, other)?;
    }
    Ok(sum)
}

fn plain(value: &Value) -> Option<&str> {
    value.as_str().filter(|_| !value.is_safe())
}

/// `a + b`.
pub fn add(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    match (kind(a), kind(b)) {
        (Kind::Str, Kind::Str) if a.is_safe() || b.is_safe() => {
            let both = [a, b].map(escaped).concat();
            spend(state, both.len())?;
            Ok(Value::from_safe_string(both))
        }
        (Kind::Str, Kind::Str) => {
            let (a, b) = (text(a)?, text(b)?);
            spend(state, a.len() + b.len())?;
            Ok(Value::from([a, b].concat()))
        }
        (Kind::List, Kind::List) | (Kind::Tuple, Kind::Tuple) => {
            let mut both = items(state, a)?;
            both.extend(items(state, b)?);
            Ok(match kind(a) {
                Kind::Tuple => tuple(both),
                _ => list(both),
            })
        }
        _ => numeric("+", a, b),
    }
}

/// A text as it becomes part of Markup (markupsafe's `escape`).
fn escaped(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    if value.is_safe() {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// `a ~ b ~ …`.
fn concat(state: &mut State, all: &[Value]) -> Result<Value, Error> {
    let mut out = String::new();
    for value in all {
        match value.as_str() {
            Some(text) => out.push_str(text),
            None => out.push_str(&str_of(state, value)?),
        }
    }
    spend(state, out.len())?;
    Ok(Value::from(out))
}

/// A dict of keys and values in turn; of equal keys the first stays, and the last value.
fn dict(state: &mut State, parts: &Value) -> Result<Value, Error> {
    let parts = items(state, parts)?;
    let mut pairs: Vec<(Value, Value)> = Vec::with_capacity(parts.len() / 2);
    for pair in parts.chunks_exact(2) {
        let (key, value) = (&pair[0], &pair[1]);
        if matches!(kind(key), Kind::List | Kind::Dict) {
            return refuse("a key that cannot be one");
        }
        let mut place = None;
        for (at, (known, _)) in pairs.iter().enumerate() {
            if equal(state, known, key)? {
                place = Some(at);
            }
        }
        match place {
            Some(at) => pairs[at].1 = value.clone(),
            None => pairs.push((key.clone(), value.clone())),
        }
    }
    Ok(Value::from_pairs(pairs))
}

/// Checks what a namespace is to keep: `{% set ns.x = [ns.x] %}` in a loop would make a value so
/// deep that dropping it uses up the stack.
fn nested(state: &mut State, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return refuse("a value that is nested too deep");
    }
    if value.downcast_object_ref::<Method>().is_some() {
        return refuse("a method in a namespace");
    }
    let inner = match kind(value) {
        Kind::List | Kind::Tuple => items(state, value)?,
        Kind::Dict => {
            let keys = items(state, value)?;
            keys.iter()
                .map(|key| value.get_item(key))
                .collect::<Result<_, _>>()?
        }
        _ => match value.downcast_object_ref::<Generator>() {
            Some(generator) => generator.left(),
            None => value
                .downcast_object_ref::<View>()
                .map_or(Vec::new(), |view| view.items.clone()),
        },
    };
    inner
        .iter()
        .try_for_each(|one| nested(state, one, depth + 1))
}

/// What a loop iterates.
fn iter(state: &mut State, value: &Value) -> Result<Value, Error> {
    match kind(value) {
        Kind::None => return refuse("none cannot be iterated"),
        Kind::Str => spend(state, value.as_str().map_or(0, str::len))?,
        Kind::Dict => spend_items(state, value.len().unwrap_or(0))?,
        _ => {}
    }
    Ok(value.clone())
}

/// `value[key]`: the item, else the method of that name, else nothing (`Environment.getitem`).
pub fn item(state: &mut State, value: &Value, key: &Value) -> Result<Value, Error> {
    let found = match (kind(value), kind(key)) {
        (Kind::Undefined, _) => return refuse("an item of an undefined value"),
        (Kind::Dict, Kind::List | Kind::Dict) => Value::UNDEFINED,
        (Kind::Str, Kind::Int | Kind::Bool) => {
            let text = value.as_str().unwrap_or_default();
            spend(state, text.len())?;
            value.get_item(&Value::from(int(key)?))?
        }
        (Kind::List | Kind::Tuple | Kind::Range, Kind::Int | Kind::Bool) => {
            value.get_item(&Value::from(int(key)?))?
        }
        (Kind::Dict | Kind::Other, _) | (Kind::Tuple, Kind::Str) => value.get_item(key)?,
        _ => Value::UNDEFINED,
    };
    match key.as_str() {
        Some(name) if found.is_undefined() => Ok(bound(value, name).unwrap_or_default()),
        _ => valid(found),
    }
}

/// `value.name`: the method, else the item, else nothing (`Environment.getattr`). Methods that
/// change a value are nothing to the sandbox.
pub fn attr(state: &mut State, value: &Value, name: &str) -> Result<Value, Error> {
    match bound(value, name) {
        Some(method) => Ok(method),
        None if kind(value) == Kind::Undefined => refuse("an attribute of an undefined value"),
        None => item(state, value, &Value::from(name)),
    }
}

fn bound(value: &Value, name: &str) -> Option<Value> {
    has_method(kind(value), name).then(|| match methods::is_unsafe(kind(value), name) {
        true => Value::UNDEFINED,
        false => {
            let (of, name) = (value.clone(), name.to_owned());
            Value::from_object(Method { of, name })
        }
    })
}

fn valid(value: Value) -> Result<Value, Error> {
    match value.kind() {
        minijinja::value::ValueKind::Invalid => refuse("a string with a lone surrogate"),
        _ => Ok(value),
    }
}

/// `value[start:stop:step]`.
fn slice(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    let bounds = [args.some("start")?, args.some("stop")?, args.some("step")?];
    let bound = |at: usize| bounds[at].as_ref().map(int).transpose();
    let (start, stop, step) = (bound(0)?, bound(1)?, bound(2)?.unwrap_or(1));
    if step == 0 {
        return refuse("a slice with a step of 0");
    }
    match kind(&value) {
        Kind::Str => {
            let text = text(&value)?;
            spend(state, text.len())?;
            let chars: Vec<char> = text.chars().collect();
            let picked = indices(chars.len(), start, stop, step);
            Ok(Value::from(picked.map(|at| chars[at]).collect::<String>()))
        }
        Kind::List | Kind::Tuple => {
            let all = items(state, &value)?;
            let picked = indices(all.len(), start, stop, step).map(|at| all[at].clone());
            let picked: Vec<Value> = picked.collect();
            Ok(match kind(&value) {
                Kind::Tuple => tuple(picked),
                _ => list(picked),
            })
        }
        _ => refuse("a slice of something that has none"),
    }
}

/// The positions that a slice picks (`PySlice_AdjustIndices`).
fn indices(
    len: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
) -> impl Iterator<Item = usize> {
    let len = len as i64;
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: Option<i64>, default: i64| match bound {
        None => default,
        Some(bound) if bound < 0 => bound.saturating_add(len).max(low),
        Some(bound) => bound.min(high),
    };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    let (start, stop) = (clamp(start, first), clamp(stop, last));
    let count = match step {
        1.. => (stop - start + step.min(len + 1) - 1) / step.min(len + 1),
        _ => {
            (start - stop + step.saturating_neg().min(len + 1) - 1)
                / step.saturating_neg().min(len + 1)
        }
    };
    (0..count.max(0)).map(move |at| (start + at * step) as usize)
}

/// A number of Python's.
#[derive(Clone, Copy)]
pub enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    /// A value's number.
    pub fn of(value: &Value) -> Result<Self, Error> {
        match kind(value) {
            Kind::Bool => Ok(Self::Int(i128::from(value.is_true()))),
            Kind::Int => match value.as_i64() {
                Some(number) => Ok(Self::Int(i128::from(number))),
                None if value.downcast_object_ref::<BigInt>().is_some() => {
                    refuse("an integer of more than 64 bits")
                }
                None => i128::try_from(value.clone()).map(Self::Int),
            },
            Kind::Float => f64::try_from(value.clone()).map(Self::Float),
            _ => refuse("an operator's operands do not fit"),
        }
    }

    fn float(self) -> f64 {
        match self {
            Self::Int(number) => number as f64,
            Self::Float(number) => number,
        }
    }
}

fn number(value: i128) -> Value {
    i64::try_from(value).map_or_else(|_| Value::from(value), Value::from)
}

/// `a - b` and the like.
pub fn arithmetic(state: &mut State, op: &str, a: &Value, b: &Value) -> Result<Value, Error> {
    match (op, kind(a), kind(b)) {
        ("%", Kind::Str, _) => printf(state, text(a)?, b),
        ("*", Kind::Str | Kind::List | Kind::Tuple, Kind::Int | Kind::Bool) => repeat(state, a, b),
        ("*", Kind::Int | Kind::Bool, Kind::Str | Kind::List | Kind::Tuple) => repeat(state, b, a),
        _ => numeric(op, a, b),
    }
}

fn repeat(state: &mut State, value: &Value, times: &Value) -> Result<Value, Error> {
    let times = usize::try_from(int(times)?).unwrap_or(0);
    match value.as_str() {
        Some(_) => {
            let text = text(value)?;
            spend(state, text.len().saturating_mul(times))?;
            Ok(Value::from(text.repeat(times)))
        }
        None => {
            let all = items(state, value)?;
            spend_items(state, all.len().saturating_mul(times))?;
            let repeated: Vec<Value> = std::iter::repeat_n(&all, times)
                .flatten()
                .cloned()
                .collect();
            Ok(match kind(value) {
                Kind::Tuple => tuple(repeated),
                _ => list(repeated),
            })
        }
    }
}

fn numeric(op: &str, a: &Value, b: &Value) -> Result<Value, Error> {
    match (Number::of(a)?, Number::of(b)?) {
        (Number::Int(a), Number::Int(b)) => integers(op, a, b),
        (a, b) => floats(op, a.float(), b.float()),
    }
}

fn integers(op: &str, a: i128, b: i128) -> Result<Value, Error> {
    let result =
        match op {
            "+" => a.checked_add(b),
            "-" => a.checked_sub(b),
            "*" => a.checked_mul(b),
            "/" if a.unsigned_abs().max(b.unsigned_abs()) <= EXACT_INT_MAX => {
                return floats(op, a as f64, b as f64);
            }
            "//" if b != 0 => a.checked_div(b).map(|quotient| {
                let inexact = a % b != 0 && (a < 0) != (b < 0);
                quotient - i128::from(inexact)
            }),
            "%" if b != 0 => a.checked_rem(b).map(|remainder| {
                match remainder != 0 && (remainder < 0) != (b < 0) {
                    true => remainder + b,
                    false => remainder,
                }
            }),
            "**" if b < 0 => return floats(op, a as f64, b as f64),
            "**" => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
            _ => None,
        };
    result.map_or_else(
        || refuse("an integer operation has no result"),
        |result| Ok(number(result)),
    )
}

fn floats(op: &str, a: f64, b: f64) -> Result<Value, Error> {
    if matches!(op, "/" | "//" | "%") && b == 0.0 || op == "**" && a == 0.0 && b < 0.0 {
        return refuse("a division by zero");
    }
    let result = match op {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" => a / b,
        "//" => floor_division(a, b).0,
        "%" => floor_division(a, b).1,
        _ => a.powf(b),
    };
    if op == "**" && (result.is_nan() && !a.is_nan() || result.is_infinite() && a.is_finite()) {
        return refuse("a power that is no float");
    }
    Ok(Value::from(result))
}

/// Quotient and remainder as CPython's `float_divmod` rounds them.
fn floor_division(a: f64, b: f64) -> (f64, f64) {
    let mut remainder = a % b;
    let mut quotient = (a - remainder) / b;
    if remainder == 0.0 {
        remainder = 0.0_f64.copysign(b);
    } else if (b < 0.0) != (remainder < 0.0) {
        remainder += b;
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return (0.0_f64.copysign(a / b), remainder);
    }
    let floor = quotient.floor();
    let floor = if quotient - floor > 0.5 {
        floor + 1.0
    } else {
        floor
    };
    (floor, remainder)
}

/// `-value`.
fn neg(value: &Value) -> Result<Value, Error> {
    match Number::of(value)? {
        Number::Int(number_) => integers("-", 0, number_),
        Number::Float(float) => Ok(Value::from(-float)),
    }
}
