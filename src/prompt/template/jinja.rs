//! The Jinja environment of transformers (`_cached_compile_jinja_template`), in minijinja.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{
    Enumerator, Kwargs, Object as JinjaObject, ObjectExt as _, ObjectRepr, ValueKind,
};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Template, Value};

use super::Clock;
use super::python;
use crate::prompt::PromptError;
use crate::prompt::json::{Json, Object, Style};

/// Levels of a value that a template may print as JSON.
const DEPTH_MAX: usize = 300;

/// An environment that stops a template after so many instructions.
pub fn environment(clock: Clock, fuel: u64) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_syntax(syntax());
    env.set_fuel(Some(fuel));
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(python::method);
    env.set_formatter(|out, _, value| {
        check(value)?;
        match value.as_str() {
            Some(text) => out.write_str(text),
            None => out.write_str(&python::str_of(value)),
        }
        .map_err(Error::from)
    });
    env.add_filter("tojson", tojson);
    env.add_filter("trim", |text: &Value, chars: Option<&str>| {
        let text = python::str_of(text);
        python::strip(&text, chars).to_owned()
    });
    env.add_function(
        "raise_exception",
        |_message: &Value| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, RAISED))
        },
    );
    env.add_function("strftime_now", move |format: &str| {
        python::strftime(clock(), format)
    });
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

/// Makes `{% generation %}` blocks, which only mark what an assistant said, blocks that minijinja
/// knows, with their whitespace control.
pub fn prepare(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let inner = &tag[2..];
        let lead = inner.trim_start_matches(['-', '+']).trim_start();
        let word_at = inner.len() - lead.len();
        let word_len = lead
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(lead.len());
        let closes = lead[word_len..]
            .trim_start()
            .trim_start_matches(['-', '+'])
            .starts_with("%}");
        let known = match &lead[..word_len] {
            "generation" if closes => "if true",
            "endgeneration" if closes => "endif",
            word => word,
        };
        out.push_str("{%");
        out.push_str(&inner[..word_at]);
        out.push_str(known);
        rest = &inner[word_at + word_len..];
    }
    out.push_str(rest);
    out
}

/// Renders into at most `bytes_max`; `bytes` are expected.
pub fn render(
    template: &Template<'_, '_>,
    context: &Object,
    bytes: usize,
    bytes_max: usize,
) -> Result<String, PromptError> {
    let mut out = Bounded {
        bytes: Vec::with_capacity(bytes.min(bytes_max)),
        bytes_max,
    };
    template
        .render_captured_to(object_value(context), &mut out)
        .map_err(explain)?;
    Ok(String::from_utf8(out.bytes).expect("minijinja writes strings"))
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

struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
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
fn json_of(value: &Value, depth: usize) -> Result<Json, Error> {
    check(value)?;
    let refuse = || Error::new(ErrorKind::BadSerialization, "not a JSON value");
    if depth > DEPTH_MAX {
        return Err(refuse());
    }
    if let Some(big) = value.downcast_object_ref::<BigInt>() {
        return Ok(Json::BigInt(big.0.clone()));
    }
    Ok(match value.kind() {
        ValueKind::None => Json::Null,
        ValueKind::Bool => Json::Bool(value.is_true()),
        ValueKind::Number => python::number_of(value),
        ValueKind::String => Json::Str(value.to_str().ok_or_else(refuse)?),
        ValueKind::Seq => {
            let items = value.try_iter()?.map(|item| json_of(&item, depth + 1));
            Json::List(items.collect::<Result<_, _>>()?)
        }
        ValueKind::Map => {
            let members = value.try_iter()?.map(|key| {
                let member = json_of(&value.get_item(&key)?, depth + 1)?;
                let name = match key.to_str() {
                    Some(name) => name,
                    None => json_of(&key, depth + 1)?.dumps().ok_or_else(refuse)?.into(),
                };
                Ok::<_, Error>((name, member))
            });
            Json::Object(members.collect::<Result<_, _>>()?)
        }
        _ => return Err(refuse()),
    })
}

/// transformers' `tojson`: `json.dumps(x, ensure_ascii=False, …)`.
fn tojson(_state: &State, value: &Value, args: Kwargs) -> Result<Value, Error> {
    let mut style = Style {
        ensure_ascii: args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: args.get("indent")?,
        sort_keys: args.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ..Style::default()
    };
    // json.dumps drops the space at a line's end.
    if style.indent.is_some() {
        ",".clone_into(&mut style.item_separator);
    }
    if let Some(separators) = args.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = <[String; 2]>::try_from(separators)
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, "separators are two"))?;
        (style.item_separator, style.key_separator) = (item, key);
    }
    args.assert_all_used()?;
    let text = json_of(value, 0)?.dumps_in(&style).ok_or_else(surrogate)?;
    Ok(Value::from(text))
}
