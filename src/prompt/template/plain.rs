//! The Jinja environment of vLLM's Rust frontend: minijinja 2.24 as it is, but for `tojson`
//! (`rust/src/chat/src/renderer/hf/{template,tojson}.rs`, vLLM 0.33).

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::jinja::{self, BigInt};
use super::{Clock, Dialect, dates};
use crate::prompt::json::{Json, Style};

/// Spaces a level that are printed; templates ask for 4.
const INDENT_MAX: usize = 100;
/// Nesting of lists and objects that is printed.
const DEPTH_MAX: usize = 300;

/// An environment that stops a template after so many instructions.
pub fn environment(clock: Clock, fuel: u64) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_syntax(jinja::syntax());
    env.set_fuel(Some(fuel));
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(unknown_method_callback);
    env.set_formatter(|out, _, value| {
        match value.kind() {
            ValueKind::Invalid => return Err(refusal()),
            ValueKind::Seq | ValueKind::Map => {
                let mut text = String::new();
                debug(value, &mut text, 0);
                out.write_str(&text)
            }
            _ => write!(out, "{value}"),
        }
        .map_err(Error::from)
    });
    env.add_filter("tojson", tojson);
    env.add_function("raise_exception", |_: &Value| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, jinja::RAISED))
    });
    env.add_function("strftime_now", move |format: &str| {
        dates::strftime(clock(), format).ok_or_else(refusal)
    });
    env
}

/// A value in a list or an object, as minijinja 2 prints it: texts and numbers as Rust's `{:?}`.
fn debug(value: &Value, out: &mut String, depth: usize) {
    let number = f64::try_from(value.clone());
    match (value.kind(), value.as_str(), number) {
        (ValueKind::Number, _, Ok(number)) if !value.is_integer() => write!(out, "{number:?}"),
        (_, Some(text), _) => write!(out, "{text:?}"),
        (ValueKind::Undefined, ..) => write!(out, "undefined"),
        (kind @ (ValueKind::Seq | ValueKind::Map), ..) if depth < DEPTH_MAX => {
            let map = kind == ValueKind::Map;
            out.push(if map { '{' } else { '[' });
            for (position, item) in value.try_iter().into_iter().flatten().enumerate() {
                if position > 0 {
                    out.push_str(", ");
                }
                debug(&item, out, depth + 1);
                if map {
                    out.push_str(": ");
                    debug(&value.get_item(&item).unwrap_or_default(), out, depth + 1);
                }
            }
            out.push(if map { '}' } else { ']' });
            Ok(())
        }
        _ => write!(out, "{value}"),
    }
    .expect("a String takes everything");
}

/// Python's arguments, `serde_json`'s spelling.
fn tojson(value: &Value, args: Kwargs) -> Result<Value, Error> {
    let mut style = Style {
        ensure_ascii: args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: indent(args.get("indent")?)?,
        sort_keys: args.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        dialect: Dialect::Rust,
        ..Style::default()
    };
    if style.indent.is_some() {
        ",".clone_into(&mut style.item_separator);
    }
    if let Some(separators) = args.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = <[String; 2]>::try_from(separators).map_err(|_| refusal())?;
        (style.item_separator, style.key_separator) = (item, key);
    }
    args.assert_all_used()?;
    let text = json_of(value, 0)?.dumps_in(&style).ok_or_else(refusal)?;
    Ok(Value::from(text))
}

/// Spaces a level, as a template gives them.
fn indent(spaces: Option<usize>) -> Result<Option<String>, Error> {
    match spaces {
        Some(too_many) if too_many > INDENT_MAX => Err(refusal()),
        spaces => Ok(spaces.map(|spaces| " ".repeat(spaces))),
    }
}

/// A template's value as JSON; what is undefined is null.
fn json_of(value: &Value, depth: usize) -> Result<Json, Error> {
    if depth > DEPTH_MAX {
        return Err(refusal());
    }
    if let Some(big) = value.downcast_object_ref::<BigInt>() {
        return Ok(Json::BigInt(big.0.clone()));
    }
    Ok(match value.kind() {
        ValueKind::None | ValueKind::Undefined => Json::Null,
        ValueKind::Bool => Json::Bool(value.is_true()),
        ValueKind::Number => match value.as_i64().filter(|_| value.is_integer()) {
            Some(number) => Json::Int(number),
            None => Json::Float(f64::try_from(value.clone())?),
        },
        ValueKind::String => Json::Str(value.to_str().ok_or_else(refusal)?),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| json_of(&item, depth + 1));
            Json::List(items.collect::<Result<_, _>>()?)
        }
        ValueKind::Map => {
            let members = value.try_iter()?.map(|key| {
                let member = json_of(&value.get_item(&key)?, depth + 1)?;
                Ok::<_, Error>((key.to_str().ok_or_else(refusal)?, member))
            });
            Json::Object(members.collect::<Result<_, _>>()?)
        }
        _ => return Err(refusal()),
    })
}

fn refusal() -> Error {
    Error::new(ErrorKind::BadSerialization, "not a JSON value")
}
