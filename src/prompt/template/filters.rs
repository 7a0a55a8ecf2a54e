//! Jinja's filters as Jinja has them; minijinja's take other arguments, and copy for free.
//! Not here: `random`, `pprint`, `urlize`, `wordwrap` and the HTML ones, which fail.

use std::cmp::Ordering;

use minijinja::{Environment, Error, State, Value};

use super::args::{Args, Native, int, native, text};
use super::budget::spend;
use super::format::printf_all;
use super::methods::{pad, replace};
use super::objects::{Kind, Method, items, kind, list, refuse};
use super::operators::attr;
use super::python::str_of;
use super::text::{capitalize, lines, strip};
use super::{jinja, lists, numbers};

/// The filters by name.
const FILTERS: &[(&str, Native)] = &[
    ("abs", numbers::abs),
    ("attr", attribute),
    ("batch", lists::batch),
    ("capitalize", |state, args| on_text(state, args, capitalize)),
    ("center", center),
    ("count", length),
    ("d", default),
    ("default", default),
    ("dictsort", lists::dictsort),
    ("e", escape),
    ("escape", escape),
    ("first", lists::first),
    ("float", numbers::float),
    ("format", format),
    ("groupby", lists::groupby),
    ("indent", indent),
    ("int", numbers::int),
    ("items", lists::pairs),
    ("join", lists::join),
    ("last", lists::last),
    ("length", length),
    ("list", |state, mut args| {
        let value = args.required("value")?;
        args.end()?;
        items(state, &value).map(list)
    }),
    ("lower", |state, args| {
        on_text(state, args, |s| Ok(s.to_lowercase()))
    }),
    ("map", lists::map),
    ("max", |state, args| {
        lists::extreme(state, args, Ordering::Greater)
    }),
    ("min", |state, args| {
        lists::extreme(state, args, Ordering::Less)
    }),
    ("reject", |state, args| {
        lists::select(state, args, false, false)
    }),
    ("rejectattr", |state, args| {
        lists::select(state, args, true, false)
    }),
    ("replace", replaced),
    ("reverse", lists::reverse),
    ("round", numbers::round),
    ("safe", safe),
    ("select", |state, args| {
        lists::select(state, args, false, true)
    }),
    ("selectattr", |state, args| {
        lists::select(state, args, true, true)
    }),
    ("slice", lists::slice),
    ("sort", lists::sort),
    ("string", string),
    ("sum", lists::sum),
    ("title", |state, args| {
        on_text(state, args, |s| Ok(title(s)))
    }),
    ("tojson", jinja::tojson),
    ("trim", trim),
    ("truncate", truncate),
    ("unique", lists::unique),
    ("upper", |state, args| {
        on_text(state, args, |s| Ok(s.to_uppercase()))
    }),
    ("wordcount", wordcount),
];

/// Adds the filters to an environment.
pub fn add_to(env: &mut Environment) {
    for (name, filter) in FILTERS {
        env.add_filter(*name, native(*filter));
    }
}

/// Whether Jinja has a filter of the name.
pub fn is_known(name: &str) -> bool {
    let others = [
        "filesizeformat",
        "forceescape",
        "pprint",
        "random",
        "striptags",
        "urlencode",
        "urlize",
        "wordwrap",
        "xmlattr",
    ];
    others.contains(&name) || FILTERS.iter().any(|(known, _)| *known == name)
}

/// The text of the only argument (`soft_str`), and what becomes of it.
fn on_text(
    state: &mut State,
    mut args: Args,
    change: impl Fn(&str) -> Result<String, Error>,
) -> Result<Value, Error> {
    let text = soft(state, &mut args)?;
    args.end()?;
    // A letter can become three.
    spend(state, text.len() * 3)?;
    change(&text).map(Value::from)
}

fn soft(state: &mut State, args: &mut Args) -> Result<String, Error> {
    let value = args.required("s")?;
    if value.is_safe() {
        return refuse("Markup is not computed with");
    }
    str_of(state, &value)
}

fn trim(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let text = soft(state, &mut args)?;
    let chars = args.text("chars")?;
    args.end()?;
    spend(state, text.len())?;
    Ok(Value::from(strip(&text, chars.as_deref())))
}

/// Words begin after spaces, hyphens and opening brackets.
fn title(s: &str) -> String {
    let begins = |c: char| super::text::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let mut out = String::with_capacity(s.len());
    for word in s.split_inclusive(begins) {
        let mut chars = word.chars();
        out.extend(chars.next().into_iter().flat_map(char::to_uppercase));
        out.push_str(&chars.as_str().to_lowercase());
    }
    out
}

fn center(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let text = soft(state, &mut args)?;
    let width = args.int("width")?.unwrap_or(80);
    args.end()?;
    pad(state, &text, width, " ", "center")
}

fn replaced(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let s = soft(state, &mut args)?;
    let (old, new) = (args.required("old")?, args.required("new")?);
    let count = args.some("count")?.map(|count| int(&count)).transpose()?;
    args.end()?;
    let (old, new) = (str_of(state, &old)?, str_of(state, &new)?);
    replace(state, &s, &old, &new, count)
}

fn string(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("object")?;
    args.end()?;
    match value.as_str() {
        Some(_) => Ok(value),
        None => str_of(state, &value).map(Value::from),
    }
}

fn format(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let template = soft(state, &mut args)?;
    let (positional, named) = (args.rest(), args.named()?);
    match (positional.is_empty(), named.is_empty()) {
        (_, true) => printf_all(state, &template, &positional),
        (true, false) => {
            let names = named
                .into_iter()
                .map(|(name, value)| (Value::from(name), value));
            printf_all(state, &template, &[Value::from_pairs(names)])
        }
        _ => refuse("a format with two kinds of arguments"),
    }
}

/// Markup; whatever computes with it but adds it to texts, or prints it, fails.
fn safe(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    args.end()?;
    let text = str_of(state, &value)?;
    spend(state, text.len())?;
    Ok(Value::from_safe_string(text))
}

fn escape(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("s")?;
    args.end()?;
    if value.is_safe() {
        return Ok(value);
    }
    let text = str_of(state, &value)?;
    spend(state, text.len() * 5)?;
    let text = text
        .replace('&', "&amp;")
        .replace('>', "&gt;")
        .replace('<', "&lt;");
    let text = text.replace('\'', "&#39;").replace('"', "&#34;");
    Ok(Value::from_safe_string(text))
}

/// `str.splitlines`, joined with spaces before each line but the first.
fn indent(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("s")?;
    let s = format!("{}\n", text(&value)?);
    let by = match args.optional("width")? {
        None => "    ".to_owned(),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => {
                let width = usize::try_from(int(&width)?).unwrap_or(0);
                spend(state, width)?;
                " ".repeat(width)
            }
        },
    };
    let (first, blank) = (args.flag("first")?, args.flag("blank")?);
    args.end()?;
    let lines = lines(&s, false);
    spend(
        state,
        s.len().saturating_add(lines.len().saturating_mul(by.len())),
    )?;
    let mut out = String::new();
    for (at, line) in lines.iter().enumerate() {
        out.push_str(if at > 0 { "\n" } else { "" });
        if if at == 0 {
            first
        } else {
            blank || !line.is_empty()
        } {
            out.push_str(&by);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn truncate(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("s")?;
    let s = text(&value)?;
    let length = usize::try_from(args.int("length")?.unwrap_or(255)).unwrap_or(0);
    let kill = args.flag("killwords")?;
    let end = args.text("end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = args
        .some("leeway")?
        .map(|leeway| int(&leeway))
        .transpose()?
        .unwrap_or(5);
    args.end()?;
    spend(state, s.len() + end.len())?;
    let (Some(keep), Ok(leeway)) = (
        length.checked_sub(end.chars().count()),
        usize::try_from(leeway),
    ) else {
        return refuse("a length below that of the end");
    };
    if s.chars().count() <= length.saturating_add(leeway) {
        return Ok(Value::from(s));
    }
    let cut: String = s.chars().take(keep).collect();
    let cut = match cut.rfind(' ') {
        Some(at) if !kill => &cut[..at],
        _ => cut.as_str(),
    };
    Ok(Value::from(format!("{cut}{end}")))
}

fn wordcount(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let text = soft(state, &mut args)?;
    args.end()?;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    if !text.chars().all(|c| c.is_ascii() || c.is_alphabetic()) {
        return refuse("words with characters beyond letters and ASCII");
    }
    let words = text.split(|c| !is_word(c)).filter(|word| !word.is_empty());
    Ok(Value::from(words.count()))
}

fn length(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("obj")?;
    args.end()?;
    match kind(&value) {
        Kind::Undefined => Ok(Value::from(0)),
        Kind::Str => {
            let text = value.as_str().unwrap_or_default();
            spend(state, text.len())?;
            Ok(Value::from(text.chars().count()))
        }
        Kind::View => items(state, &value).map(|items| Value::from(items.len())),
        Kind::List | Kind::Tuple | Kind::Dict | Kind::Range => value.len().map_or_else(
            || refuse("the length of a stream"),
            |len| Ok(Value::from(len)),
        ),
        _ => refuse("the length of something that has none"),
    }
}

fn default(_: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    let other = args
        .optional("default_value")?
        .unwrap_or_else(|| Value::from(""));
    let boolean = args.flag("boolean")?;
    args.end()?;
    Ok(match value.is_undefined() || boolean && !value.is_true() {
        true => other,
        false => value,
    })
}

fn attribute(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let (value, name) = (args.required("obj")?, args.required("name")?);
    args.end()?;
    match kind(&value) {
        Kind::Other => attr(state, &value, text(&name)?),
        // A dict's items are no attributes.
        _ => Ok(match attr(state, &value, text(&name)?)? {
            found if found.downcast_object_ref::<Method>().is_some() => found,
            _ => Value::UNDEFINED,
        }),
    }
}
