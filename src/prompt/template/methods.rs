//! Methods of Python's strings, lists, tuples and dicts that the sandbox lets a template call.

use minijinja::{Error, ErrorKind, State, Value};

use super::args::{Args, text};
use super::budget::{spend, spend_items};
use super::compare::equal;
use super::format::str_format;
use super::objects::{Generator, Kind, View, items, kind, list, refuse, tuple};
use super::text::{self as words, is_space, strip, strip_end, strip_start};

const OF_DICTS: &[&str] = &["copy", "fromkeys", "get", "items", "keys", "values"];
const OF_LISTS: &[&str] = &["copy", "count", "index"];
const OF_TUPLES: &[&str] = &["count", "index"];
const OF_TEXTS: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
/// Methods that change their value (`jinja2.sandbox._mutable_spec`).
const UNSAFE_OF_DICTS: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
const UNSAFE_OF_LISTS: &[&str] = &[
    "append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort",
];

/// Whether any of the kinds has a method of this name.
pub fn is_method(name: &str) -> bool {
    [Kind::Dict, Kind::List, Kind::Str]
        .iter()
        .any(|kind| has_method(*kind, name))
}

/// Whether values of a kind have the method.
pub fn has_method(kind: Kind, name: &str) -> bool {
    is_unsafe(kind, name)
        || match kind {
            Kind::Dict => OF_DICTS.contains(&name),
            Kind::List => OF_LISTS.contains(&name),
            Kind::Tuple | Kind::Range => OF_TUPLES.contains(&name),
            Kind::Str => OF_TEXTS.contains(&name),
            _ => false,
        }
}

/// Whether the sandbox hides the method.
pub fn is_unsafe(kind: Kind, name: &str) -> bool {
    match kind {
        Kind::Dict => UNSAFE_OF_DICTS.contains(&name),
        Kind::List => UNSAFE_OF_LISTS.contains(&name),
        _ => false,
    }
}

/// Calls a method.
pub fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let of = kind(value);
    if !has_method(of, name) {
        if let Some(next) = value
            .downcast_object_ref::<Generator>()
            .filter(|_| name == "next")
        {
            return Ok(next.next().unwrap_or_default());
        }
        return Err(Error::from(ErrorKind::UnknownMethod));
    }
    if is_unsafe(of, name) {
        return refuse("a method that changes its value");
    }
    let mut args = Args::of(args)?;
    match of {
        Kind::Dict => of_dict(state, value, name, args),
        Kind::Str => of_text(state, text(value)?, name, args),
        _ => {
            let found = of_list(state, value, name, &mut args)?;
            args.end()?;
            Ok(found)
        }
    }
}

fn of_dict(state: &mut State, value: &Value, name: &str, mut args: Args) -> Result<Value, Error> {
    let dict = value
        .as_object()
        .ok_or_else(|| Error::from(ErrorKind::UnknownMethod))?;
    if name == "get" {
        let key = args.required("key")?;
        let default = args.optional("default")?;
        args.end()?;
        if matches!(kind(&key), Kind::List | Kind::Dict) {
            return refuse("a key that cannot be one");
        }
        let found = dict.get_value(&key).or(default);
        return Ok(found.unwrap_or_else(|| Value::from(())));
    }
    args.end()?;
    spend_items(state, value.len().unwrap_or(0))?;
    let pairs = || dict.try_iter_pairs().into_iter().flatten();
    let view = |of, items| Ok(Value::from_object(View { of, items }));
    match name {
        "keys" => view("keys", pairs().map(|(key, _)| key).collect()),
        "values" => view("values", pairs().map(|(_, value)| value).collect()),
        "items" => view(
            "items",
            pairs().map(|(key, value)| tuple([key, value])).collect(),
        ),
        "copy" => Ok(value.clone()),
        _ => refuse("a method of dicts that is not known"),
    }
}

fn of_list(state: &mut State, value: &Value, name: &str, args: &mut Args) -> Result<Value, Error> {
    if name == "copy" {
        return Ok(value.clone());
    }
    let wanted = args.required("value")?;
    let mut count = 0;
    for (at, item) in items(state, value)?.iter().enumerate() {
        if equal(state, item, &wanted)? {
            if name == "index" {
                return Ok(Value::from(at));
            }
            count += 1;
        }
    }
    match name {
        "count" => Ok(Value::from(count)),
        _ => refuse("a value that is not in the list"),
    }
}

fn of_text(state: &mut State, s: &str, name: &str, mut args: Args) -> Result<Value, Error> {
    spend(state, s.len())?;
    let found = match name {
        "strip" | "lstrip" | "rstrip" => {
            let chars = args.text("chars")?;
            let chars = chars.as_deref();
            Value::from(match name {
                "strip" => strip(s, chars),
                "lstrip" => strip_start(s, chars),
                _ => strip_end(s, chars),
            })
        }
        "split" | "rsplit" => {
            let separator = args.text("sep")?;
            let most = args
                .int("maxsplit")?
                .and_then(|most| usize::try_from(most).ok());
            let parts = words::split(s, separator.as_deref(), most, name == "rsplit")?;
            texts(state, &parts)?
        }
        "splitlines" => texts(state, &words::lines(s, args.flag("keepends")?))?,
        "partition" | "rpartition" => {
            let separator = needle(&mut args, "sep")?;
            let at = match name {
                "partition" => s.find(&separator),
                _ => s.rfind(&separator),
            };
            let parts = match at {
                Some(at) => [&s[..at], &separator, &s[at + separator.len()..]],
                None if name == "partition" => [s, "", ""],
                None => ["", "", s],
            };
            tuple(parts.map(Value::from))
        }
        "join" => {
            let parts = items(state, &args.required("iterable")?)?;
            let parts = parts.iter().map(text).collect::<Result<Vec<_>, _>>()?;
            spend(
                state,
                s.len() * parts.len() + parts.iter().map(|part| part.len()).sum::<usize>(),
            )?;
            Value::from(parts.join(s))
        }
        "replace" => {
            let (old, new) = (args.required("old")?, args.required("new")?);
            let count = args.int("count")?;
            replace(state, s, text(&old)?, text(&new)?, count)?
        }
        "startswith" | "endswith" => {
            let wanted = args.required("prefix")?;
            let s = bounded(s, &mut args)?.map_or("", |(_, s)| s);
            let all = match kind(&wanted) {
                Kind::Tuple => items(state, &wanted)?,
                _ => vec![wanted],
            };
            let mut holds = false;
            for one in &all {
                let one = text(one)?;
                holds |= if name == "endswith" {
                    s.ends_with(one)
                } else {
                    s.starts_with(one)
                };
            }
            Value::from(holds)
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let wanted = args.required("sub")?;
            let wanted = text(&wanted)?;
            let part = bounded(s, &mut args)?;
            if name == "count" {
                Value::from(part.map_or(0, |(_, part)| part.matches(wanted).count()))
            } else {
                let found = part.and_then(|(from, part)| {
                    let at = if name.starts_with('r') {
                        part.rfind(wanted)
                    } else {
                        part.find(wanted)
                    };
                    at.map(|at| from + part[..at].chars().count())
                });
                match found {
                    Some(at) => Value::from(at),
                    None if name.ends_with("find") => Value::from(-1),
                    None => return refuse("a text that is not in the text"),
                }
            }
        }
        "removeprefix" | "removesuffix" => {
            let part = needle_or_empty(&mut args)?;
            Value::from(match name {
                "removeprefix" => s.strip_prefix(part.as_str()).unwrap_or(s),
                _ => s.strip_suffix(part.as_str()).unwrap_or(s),
            })
        }
        "center" | "ljust" | "rjust" => {
            let width = args
                .int("width")?
                .ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let fill = args.text("fillchar")?.unwrap_or_else(|| " ".to_owned());
            pad(state, s, width, &fill, name)?
        }
        "zfill" => {
            let width = args
                .int("width")?
                .ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let (sign, digits) = s.split_at(usize::from(s.starts_with(['+', '-'])));
            let width = width.saturating_sub(sign.len() as i64);
            let padded = pad(state, digits, width, "0", "rjust")?;
            Value::from(format!("{sign}{padded}"))
        }
        "expandtabs" => {
            let size = args.int("tabsize")?.unwrap_or(8);
            words::expand_tabs(state, s, usize::try_from(size).unwrap_or(0))?
        }
        "format" => {
            let (positional, named) = (args.rest(), args.named()?);
            str_format(state, s, positional, named)?
        }
        _ => words::cased(s, name)?,
    };
    args.end()?;
    Ok(found)
}

/// A list of texts.
fn texts(state: &mut State, parts: &[&str]) -> Result<Value, Error> {
    spend_items(state, parts.len())?;
    Ok(list(parts.iter().map(|part| Value::from(*part)).collect()))
}

fn needle(args: &mut Args, name: &str) -> Result<String, Error> {
    match args.text(name)? {
        Some(needle) if !needle.is_empty() => Ok(needle),
        _ => refuse("an empty separator"),
    }
}

fn needle_or_empty(args: &mut Args) -> Result<String, Error> {
    args.text("prefix")?
        .map_or_else(|| refuse("no text to remove"), Ok)
}

/// The part of a text between two positions, and where it begins; none where there is none.
fn bounded<'a>(s: &'a str, args: &mut Args) -> Result<Option<(usize, &'a str)>, Error> {
    let (start, end) = (args.some("start")?, args.some("end")?);
    if start.is_none() && end.is_none() {
        return Ok(Some((0, s)));
    }
    let count = s.chars().count() as i64;
    let position = |bound: Option<Value>, default: i64| -> Result<i64, Error> {
        let Some(bound) = bound else {
            return Ok(default);
        };
        let bound = super::args::int(&bound)?;
        Ok(if bound < 0 {
            bound.saturating_add(count).max(0)
        } else {
            bound
        })
    };
    let (start, end) = (position(start, 0)?, position(end, count)?.min(count));
    if start > end {
        return Ok(None);
    }
    let byte = |at: i64| {
        s.char_indices()
            .nth(at as usize)
            .map_or(s.len(), |(byte, _)| byte)
    };
    Ok(Some((start as usize, &s[byte(start)..byte(end)])))
}

/// `str.replace`.
pub fn replace(
    state: &mut State,
    s: &str,
    old: &str,
    new: &str,
    count: Option<i64>,
) -> Result<Value, Error> {
    let most = count
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(usize::MAX);
    let found = s.matches(old).take(most).count();
    spend(
        state,
        s.len().saturating_add(found.saturating_mul(new.len())),
    )?;
    Ok(Value::from(s.replacen(old, new, most)))
}

/// `str.center` and its like.
pub fn pad(state: &mut State, s: &str, width: i64, fill: &str, how: &str) -> Result<Value, Error> {
    let mut one = fill.chars();
    let (Some(fill), None) = (one.next(), one.next()) else {
        return refuse("a fill that is not one character");
    };
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(s.chars().count());
    spend(state, missing.saturating_mul(fill.len_utf8()) + s.len())?;
    let left = match how {
        "ljust" => 0,
        "rjust" => missing,
        // The odd one goes to the left where the width is odd, too.
        _ => missing / 2 + (missing & width & 1),
    };
    let side = |count| std::iter::repeat_n(fill, count);
    let padded: String = side(left)
        .chain(s.chars())
        .chain(side(missing - left))
        .collect();
    Ok(Value::from(padded))
}

/// Whether a text is nothing but white space, and some.
pub fn is_blank(s: &str) -> bool {
    !s.is_empty() && s.chars().all(is_space)
}
