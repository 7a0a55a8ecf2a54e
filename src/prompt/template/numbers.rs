//! `int`, `float`, `round` and `abs` as Python converts and rounds.

use minijinja::{Error, State, Value};

use super::args::{Args, int as integer};
use super::compare::compare;
use super::jinja::BigInt;
use super::objects::{Kind, kind, refuse};
use super::operators::arithmetic;
use super::text::strip;

/// `|abs`.
pub fn abs(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("x")?;
    args.end()?;
    let zero = Value::from(0);
    match kind(&value) {
        Kind::Float => Ok(Value::from(f64::try_from(value)?.abs())),
        _ if compare(state, "<", &value, &zero)?.is_true() => arithmetic(state, "-", &zero, &value),
        _ => arithmetic(state, "+", &value, &zero),
    }
}

/// `|int`: of a number or a text, else the default.
pub fn int(_: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    let default = args.optional("default")?.unwrap_or_else(|| Value::from(0));
    let base = args.int("base")?.unwrap_or(10);
    args.end()?;
    match kind(&value) {
        Kind::Bool => integer(&value).map(Value::from),
        Kind::Int => Ok(value),
        Kind::Float => match f64::try_from(value)? {
            number if number.is_nan() => Ok(default),
            number => truncated(number, default),
        },
        Kind::Str => {
            let text = value.as_str().unwrap_or_default();
            match (parse_int(text, base)?, parse_float(text)?) {
                (Some(number), _) => Ok(number),
                (None, Some(number)) => truncated(number, default),
                (None, None) => Ok(default),
            }
        }
        Kind::Undefined => refuse("the number of an undefined value"),
        _ => Ok(default),
    }
}

/// A float without its fraction, as far as integers reach.
fn truncated(number: f64, default: Value) -> Result<Value, Error> {
    match number {
        number if !number.is_finite() => Ok(default),
        number if number.abs() < 9e18 => Ok(Value::from(number as i64)),
        number if number.abs() < 1e38 => Ok(Value::from(number as i128)),
        _ => refuse("an integer of more than 127 bits"),
    }
}

/// Python's `int(text, base)`; none where it raises.
fn parse_int(text: &str, base: i64) -> Result<Option<Value>, Error> {
    let text = strip(text, None);
    if text.chars().any(|c| c.is_numeric() && !c.is_ascii()) {
        return refuse("a number with digits beyond ASCII");
    }
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (&text[..1], digits),
        None => ("", text),
    };
    let Some((base, digits)) = radix(base, digits)? else {
        return Ok(None);
    };
    let grouped = digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    let digits = digits.replace('_', "");
    if grouped || digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return Ok(None);
    }
    match i128::from_str_radix(&format!("{sign}{digits}"), base) {
        Ok(number) => Ok(Some(
            i64::try_from(number).map_or_else(|_| Value::from(number), Value::from),
        )),
        Err(_) if base == 10 && digits.len() < 4300 => {
            let sign = sign.trim_start_matches('+');
            let digits = digits.trim_start_matches('0');
            Ok(Some(Value::from_object(BigInt(
                format!("{sign}{digits}").into(),
            ))))
        }
        Err(_) => refuse("an integer of more than 127 bits"),
    }
}

/// The base, and the digits after its prefix.
fn radix(base: i64, digits: &str) -> Result<Option<(u32, &str)>, Error> {
    let prefix = digits.get(..2).map(str::to_ascii_lowercase);
    let of_prefix = match prefix.as_deref() {
        Some("0x") => Some(16),
        Some("0o") => Some(8),
        Some("0b") => Some(2),
        _ => None,
    };
    match (base, of_prefix) {
        (0, Some(base)) => Ok(Some((base, digits[2..].trim_start_matches('_')))),
        (0, None) if digits.len() > 1 && digits.starts_with('0') => Ok(None),
        (0, None) => Ok(Some((10, digits))),
        (2 | 8 | 16, Some(found)) if i64::from(found) == base => {
            Ok(Some((found, digits[2..].trim_start_matches('_'))))
        }
        (2..=36, _) => Ok(Some((base as u32, digits))),
        _ => refuse("a base that is none"),
    }
}

/// Python's `float(text)`; none where it raises.
fn parse_float(text: &str) -> Result<Option<f64>, Error> {
    let text = strip(text, None);
    if text.chars().any(|c| c.is_numeric() && !c.is_ascii()) {
        return refuse("a number with digits beyond ASCII");
    }
    let bytes = text.as_bytes();
    let between_digits = |at: usize| {
        at > 0
            && bytes[at - 1].is_ascii_digit()
            && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)
    };
    let grouped = text.match_indices('_').all(|(at, _)| between_digits(at));
    Ok(text.replace('_', "").parse().ok().filter(|_| grouped))
}

/// `|float`.
pub fn float(_: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    let default = args
        .optional("default")?
        .unwrap_or_else(|| Value::from(0.0));
    args.end()?;
    match kind(&value) {
        Kind::Bool => Ok(Value::from(if value.is_true() { 1.0 } else { 0.0 })),
        Kind::Int => match f64::try_from(value.clone()) {
            Ok(number) => Ok(Value::from(number)),
            Err(_) => Ok(parse_float(&value.to_string())?.map_or(default, Value::from)),
        },
        Kind::Float => Ok(value),
        Kind::Str => {
            let number = parse_float(value.as_str().unwrap_or_default())?;
            Ok(number.map_or(default, Value::from))
        }
        Kind::Undefined => refuse("the number of an undefined value"),
        _ => Ok(default),
    }
}

/// `|round`: to even where two are as near, in the digits that Python prints.
pub fn round(_: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    let precision = args.int("precision")?.unwrap_or(0);
    let method = args.text("method")?.unwrap_or_else(|| "common".to_owned());
    args.end()?;
    let is_int = matches!(kind(&value), Kind::Int | Kind::Bool);
    let number = match kind(&value) {
        Kind::Bool => f64::from(u8::from(value.is_true())),
        Kind::Int | Kind::Float => {
            f64::try_from(value.clone()).or_else(|_| refuse("an integer too large to round"))?
        }
        _ => return refuse("rounding of something that is no number"),
    };
    let Ok(precision) = i32::try_from(precision) else {
        return refuse("a precision out of reach");
    };
    match method.as_str() {
        "common" if is_int && precision >= 0 => integer(&value).map(Value::from),
        "common" if is_int => round_int(integer(&value)?, precision.unsigned_abs()),
        "common" => Ok(Value::from(round_float(number, precision)?)),
        "ceil" | "floor" if (0..=22).contains(&precision) => {
            let factor = 10_f64.powi(precision);
            let scaled = number * factor;
            let whole = if method == "ceil" {
                scaled.ceil()
            } else {
                scaled.floor()
            };
            Ok(Value::from(whole / factor))
        }
        _ => refuse("a way of rounding that is not known"),
    }
}

fn round_int(number: i64, digits: u32) -> Result<Value, Error> {
    let Some(unit) = 10_i64.checked_pow(digits) else {
        return Ok(Value::from(0));
    };
    let (half, rest) = (unit / 2, number.rem_euclid(unit));
    let down = number - rest;
    let up = rest > half || rest == half && (down / unit) % 2 != 0;
    Ok(Value::from(if up {
        down.saturating_add(unit)
    } else {
        down
    }))
}

/// `round(float, digits)`, exactly: Rust writes the nearest decimal, and the even one of two.
fn round_float(number: f64, digits: i32) -> Result<f64, Error> {
    if !number.is_finite() {
        return Ok(number);
    }
    match digits {
        0..=300 => {
            let text = format!("{number:.*}", digits.unsigned_abs() as usize);
            Ok(text.parse().unwrap_or(number))
        }
        -300..0 if number.abs() < 9e15 && number.fract() == 0.0 => {
            let rounded = round_int(number as i64, digits.unsigned_abs())?;
            f64::try_from(rounded)
        }
        _ => refuse("a precision out of reach"),
    }
}
