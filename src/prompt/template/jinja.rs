//! The Jinja environment of transformers (`_cached_compile_jinja_template`), in minijinja.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object as JinjaObject, ObjectExt as _, ObjectRepr, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Template, Value};

use super::args::{Args, int, text};
use super::budget::{ITEM_BYTES, spend};
use super::objects::{Kind, Sum, items, kind, refuse};
use super::python::{self, str_of};
use super::source::normalize;
use super::{Clock, checks, filters, functions, lower, methods, operators};
use crate::prompt::PromptError;
use crate::prompt::json::{Json, Object, Style};

/// Levels of a value that a template may print as JSON.
const DEPTH_MAX: usize = 300;
/// Spaces that a level of JSON may be indented by.
const INDENT_MAX: i64 = 1 << 16;

/// An environment that stops a template after so many instructions.
pub fn environment(clock: Clock, fuel: u64) -> Environment<'static> {
    let mut env = Environment::empty();
    env.set_syntax(syntax());
    env.set_fuel(Some(fuel));
    env.set_unknown_method_callback(methods::method);
    env.set_formatter(|out, state, value| {
        let mut print = |state: &mut State, text: &str| {
            spend(state, text.len())?;
            out.write_str(text).map_err(Error::from)
        };
        match (value.as_str(), value.downcast_object_ref::<Sum>()) {
            (Some(text), _) => print(state, text),
            (_, Some(sum)) => sum.texts().try_for_each(|text| print(state, text)),
            _ => {
                let text = str_of(state, value)?;
                out.write_str(&text).map_err(Error::from)
            }
        }
    });
    operators::add_to(&mut env);
    filters::add_to(&mut env);
    checks::add_to(&mut env);
    functions::add_to(&mut env, clock);
    env
}

/// The detail of an exception that a template raised on purpose; its message may quote a prompt.
pub const RAISED: &str = "the template raised an exception";

/// Jinja's options of transformers.
pub fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .expect("the default delimiters are valid")
}

/// A template's text as minijinja is to compile it.
pub fn prepare(source: &str) -> String {
    lower::lower(&normalize(source))
}

/// Renders into at most `bytes_max`; `bytes` are expected.
pub fn render(
    template: &Template<'_, '_>,
    context: &Object,
    bytes: usize,
    bytes_max: usize,
) -> Result<String, PromptError> {
    let mut out = Bounded {
        text: String::with_capacity(bytes.min(bytes_max)),
        bytes_max,
    };
    template
        .render_captured_to(object_value(context), &mut out)
        .map_err(explain)?;
    Ok(out.text)
}

/// Jinja's error without what it quotes: details and values may be a prompt's.
pub fn explain(error: Error) -> PromptError {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "ran out of its budget of instructions".to_owned(),
        ErrorKind::WriteFailure => "printed more than its budget".to_owned(),
        _ if error.detail() == Some(RAISED) => RAISED.to_owned(),
        kind => kind.to_string(),
    };
    PromptError::Template(match error.line() {
        Some(line) => format!("{what} in line {line}"),
        None => what,
    })
}

/// minijinja writes strings, each as a whole.
struct Bounded {
    text: String,
    bytes_max: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let text = simdutf8::basic::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        self.text.push_str(text);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An integer beyond 64 bits: templates only print it.
#[derive(Debug)]
pub struct BigInt(pub Box<str>);

impl JinjaObject for BigInt {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object of few members, such as a message: they are scanned, and no table is built of them.
#[derive(Debug)]
struct Members(Vec<(Arc<str>, Value)>);

/// Members that are scanned at most; with more, a look-up goes through a table.
const SCANNED_MEMBERS_MAX: usize = 16;

impl JinjaObject for Members {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let member = self.0.iter().find(|(name, _)| **name == *key);
        member.map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_key_value_enumerator(|this| {
            let members = this.0.iter();
            Box::new(members.map(|(name, value)| (Value::from(name), value.clone())))
        })
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.0.len())
    }
}

fn object_value(object: &Object) -> Value {
    let members = object
        .iter()
        .map(|(name, value)| (Arc::clone(name), value_of(value)));
    match object.len() {
        0..=SCANNED_MEMBERS_MAX => Value::from_object(Members(members.collect())),
        _ => Value::from_pairs(members),
    }
}

/// A value for a template. Text is shared, not copied.
fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(yes) => Value::from(*yes),
        Json::Int(number) => Value::from(*number),
        Json::BigInt(digits) => Value::from_object(BigInt(digits.clone())),
        Json::Float(number) => Value::from(*number),
        Json::Str(text) => Value::from(text.clone()),
        // An invalid value: whatever uses it, fails, as encoding it would in Python.
        Json::LoneSurrogate => Value::from(surrogate()),
        Json::List(items) => items.iter().map(value_of).collect(),
        Json::Object(object) => object_value(object),
    }
}

fn surrogate() -> Error {
    Error::new(
        ErrorKind::BadSerialization,
        "a string with a lone surrogate",
    )
}

fn check(value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Invalid => Err(surrogate()),
        _ => Ok(()),
    }
}

/// A template's value as JSON; Python's `json.dumps` refuses the same kinds.
fn json_of(state: &mut State, value: &Value, depth: usize) -> Result<Json, Error> {
    check(value)?;
    spend(state, ITEM_BYTES)?;
    let unfit = || Error::new(ErrorKind::BadSerialization, "not a JSON value");
    if depth > DEPTH_MAX {
        return Err(unfit());
    }
    Ok(match kind(value) {
        Kind::None => Json::Null,
        Kind::Bool => Json::Bool(value.is_true()),
        Kind::Int | Kind::Float => python::number_of(value),
        Kind::Str => {
            spend(state, value.as_str().map_or(0, str::len))?;
            Json::Str(value.to_str().ok_or_else(unfit)?)
        }
        Kind::List | Kind::Tuple => {
            let items = value.try_iter()?;
            let items = items.map(|item| json_of(state, &item, depth + 1));
            Json::List(items.collect::<Result<_, _>>()?)
        }
        Kind::Dict => {
            let members = value.try_iter()?.map(|key| {
                let member = json_of(state, &value.get_item(&key)?, depth + 1)?;
                let name = match key.to_str() {
                    Some(name) => name,
                    None => json_of(state, &key, depth + 1)?
                        .dumps()
                        .ok_or_else(unfit)?
                        .into(),
                };
                Ok::<_, Error>((name, member))
            });
            Json::Object(members.collect::<Result<_, _>>()?)
        }
        _ => return Err(unfit()),
    })
}

/// transformers' `tojson`: `json.dumps(x, ensure_ascii=False, …)`.
pub fn tojson(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("x")?;
    let mut style = Style {
        ensure_ascii: args.flag("ensure_ascii")?,
        ..Style::default()
    };
    if let Some(indent) = args.some("indent")? {
        style.indent = Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(int(&indent)?.min(INDENT_MAX)).unwrap_or(0)),
        });
        // json.dumps drops the space at a line's end.
        ",".clone_into(&mut style.item_separator);
    }
    if let Some(separators) = args.some("separators")? {
        let separators = items(state, &separators)?;
        let [item, key] = separators.as_slice() else {
            return refuse("separators are two");
        };
        (style.item_separator, style.key_separator) =
            (text(item)?.to_owned(), text(key)?.to_owned());
    }
    style.sort_keys = args.flag("sort_keys")?;
    args.end()?;
    let json = json_of(state, &value, 0)?;
    // Before it is made: every value may stand in a line of its own, as deep as it goes.
    let line = style.indent.as_ref().map_or(0, String::len) * json.depth();
    let line = line + style.item_separator.len() + style.key_separator.len();
    spend(state, json.count().saturating_mul(line))?;
    let text = json.dumps_in(&style).ok_or_else(surrogate)?;
    spend(state, text.len())?;
    Ok(Value::from(text))
}
