//! Jinja's filters as Jinja has them; minijinja's take other arguments, and copy for free.
//! Not here: `random`, `pprint`, `urlize`, `wordwrap` and the HTML ones, which fail.

use std::cmp::Ordering;

use minijinja::{Environment, Error, State, Value};

use super::args::{Args, Native, int, native, text};
use super::budget::{spend, spend_items};
use super::format::printf_all;
use super::jinja;
use super::methods::{pad, replace};
use super::numbers;
use super::objects::{Generator, Group, Kind, items, kind, list, refuse, tuple};
use super::operators::{add, arithmetic, attr, equal, item, order};
use super::python::str_of;
use super::text::{capitalize, lines, strip};

/// The filters by name.
const FILTERS: &[(&str, Native)] = &[
    ("abs", numbers::abs),
    ("attr", attribute),
    ("batch", batch),
    ("capitalize", |state, args| on_text(state, args, capitalize)),
    ("center", center),
    ("count", length),
    ("d", default),
    ("default", default),
    ("dictsort", dictsort),
    ("e", escape),
    ("escape", escape),
    ("first", first),
    ("float", numbers::float),
    ("format", format),
    ("groupby", groupby),
    ("indent", indent),
    ("int", numbers::int),
    ("items", pairs),
    ("join", join),
    ("last", last),
    ("length", length),
    ("list", |state, mut args| {
        let value = args.required("value")?;
        args.end()?;
        items(state, &value).map(list)
    }),
    ("lower", |state, args| {
        on_text(state, args, |s| Ok(s.to_lowercase()))
    }),
    ("map", map),
    ("max", |state, args| extreme(state, args, Ordering::Greater)),
    ("min", |state, args| extreme(state, args, Ordering::Less)),
    ("reject", |state, args| select(state, args, false, false)),
    ("rejectattr", |state, args| select(state, args, true, false)),
    ("replace", replaced),
    ("reverse", reverse),
    ("round", numbers::round),
    ("safe", safe),
    ("select", |state, args| select(state, args, false, true)),
    ("selectattr", |state, args| select(state, args, true, true)),
    ("slice", slice),
    ("sort", sort),
    ("string", string),
    ("sum", sum),
    ("title", |state, args| {
        on_text(state, args, |s| Ok(title(s)))
    }),
    ("tojson", jinja::tojson),
    ("trim", trim),
    ("truncate", truncate),
    ("unique", unique),
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

/// Markup; whatever computes with it but prints it, fails.
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
            found
                if found
                    .downcast_object_ref::<super::objects::Method>()
                    .is_some() =>
            {
                found
            }
            _ => Value::UNDEFINED,
        }),
    }
}

/// A dict's pairs.
fn pairs(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    args.end()?;
    match kind(&value) {
        Kind::Undefined => Ok(Generator::of(Vec::new())),
        Kind::Dict => members(state, &value).map(Generator::of),
        _ => refuse("the items of something that is no dict"),
    }
}

fn members(state: &mut State, dict: &Value) -> Result<Vec<Value>, Error> {
    let keys = items(state, dict)?;
    keys.into_iter()
        .map(|key| Ok(tuple([key.clone(), dict.get_item(&key)?])))
        .collect()
}

fn first(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("seq")?;
    args.end()?;
    match kind(&value) {
        Kind::None => refuse("the first of none"),
        Kind::Str => {
            let first = value.as_str().unwrap_or_default().chars().next();
            Ok(first.map(Value::from).unwrap_or_default())
        }
        Kind::Dict => {
            spend_items(state, value.len().unwrap_or(0))?;
            Ok(value.try_iter()?.next().unwrap_or_default())
        }
        _ => Ok(value.try_iter()?.next().unwrap_or_default()),
    }
}

fn last(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("seq")?;
    args.end()?;
    match kind(&value) {
        Kind::List | Kind::Tuple | Kind::Range => match value.len() {
            Some(0) | None => Ok(Value::UNDEFINED),
            Some(count) => value.get_item(&Value::from(count - 1)),
        },
        Kind::Str | Kind::Dict | Kind::View => Ok(items(state, &value)?.pop().unwrap_or_default()),
        _ => refuse("the last of something without an end"),
    }
}

fn reverse(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    args.end()?;
    if let Some(text) = value.as_str() {
        spend(state, text.len())?;
        return Ok(Value::from(text.chars().rev().collect::<String>()));
    }
    let reversed = items(state, &value)?.into_iter().rev().collect();
    Ok(match kind(&value) {
        Kind::Other | Kind::Undefined => list(reversed),
        _ => Generator::of(reversed),
    })
}

fn join(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    let separator = args.optional("d")?.unwrap_or_else(|| Value::from(""));
    let path = Path::of(args.some("attribute")?)?;
    args.end()?;
    let separator = str_of(state, &separator)?;
    let mut out = String::new();
    for (at, one) in items(state, &value)?.iter().enumerate() {
        let part = path.get(state, one)?;
        let before = if at > 0 { separator.as_str() } else { "" };
        let part = str_of(state, &part)?;
        spend(state, before.len() + part.len())?;
        out.push_str(before);
        out.push_str(&part);
    }
    Ok(Value::from(out))
}

/// An attribute's path, such as "function.name" (`make_attrgetter`).
struct Path(Vec<Value>);

impl Path {
    fn of(attribute: Option<Value>) -> Result<Self, Error> {
        let Some(attribute) = attribute else {
            return Ok(Self(Vec::new()));
        };
        Ok(match attribute.as_str() {
            None => Self(vec![attribute]),
            Some(path) => Self(path.split('.').map(Self::part).collect()),
        })
    }

    fn part(part: &str) -> Value {
        match part.parse::<u32>() {
            Ok(index) if part.bytes().all(|byte| byte.is_ascii_digit()) => Value::from(index),
            _ => Value::from(part),
        }
    }

    fn get(&self, state: &mut State, value: &Value) -> Result<Value, Error> {
        let mut value = value.clone();
        for part in &self.0 {
            value = item(state, &value, part)?;
        }
        Ok(value)
    }

    fn get_or(
        &self,
        state: &mut State,
        value: &Value,
        default: &Option<Value>,
    ) -> Result<Value, Error> {
        let mut value = value.clone();
        for part in &self.0 {
            value = item(state, &value, part)?;
            if let (true, Some(default)) = (value.is_undefined(), default) {
                value = default.clone();
            }
        }
        Ok(value)
    }
}

fn map(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    let positional = args.rest();
    let Some((filter, others)) = positional.split_first() else {
        let path = Path::of(args.some("attribute")?)?;
        let default = args.some("default")?;
        args.end()?;
        let mapped = items(state, &value)?
            .iter()
            .map(|one| path.get_or(state, one, &default))
            .collect::<Result<_, _>>()?;
        return Ok(Generator::of(mapped));
    };
    let named = args.named()?;
    let mut call: Vec<Value> = [Value::UNDEFINED]
        .into_iter()
        .chain(others.iter().cloned())
        .collect();
    if !named.is_empty() {
        call.push(
            named
                .into_iter()
                .collect::<minijinja::value::Kwargs>()
                .into(),
        );
    }
    let mut mapped = Vec::new();
    for one in items(state, &value)? {
        call[0] = one;
        spend_items(state, 1)?;
        mapped.push(state.apply_filter(text(filter)?, &call)?);
    }
    Ok(Generator::of(mapped))
}

fn select(
    state: &mut State,
    mut args: Args,
    by_attribute: bool,
    wanted: bool,
) -> Result<Value, Error> {
    let value = args.required("value")?;
    if !value.is_true() {
        return Ok(Generator::of(Vec::new()));
    }
    let path = match by_attribute {
        true => Path::of(Some(args.required("attribute")?))?,
        false => Path(Vec::new()),
    };
    let test = args.rest();
    args.end()?;
    let mut selected = Vec::new();
    for one in items(state, &value)? {
        spend_items(state, 1)?;
        let subject = path.get(state, &one)?;
        let holds = match test.split_first() {
            None => subject.is_true(),
            Some((name, others)) => {
                let call: Vec<Value> = [subject]
                    .into_iter()
                    .chain(others.iter().cloned())
                    .collect();
                state.perform_test(text(name)?, &call)?
            }
        };
        if holds == wanted {
            selected.push(one);
        }
    }
    Ok(Generator::of(selected))
}

/// What `ignore_case` makes of a key.
fn folded(state: &mut State, key: Value, case_sensitive: bool) -> Result<Value, Error> {
    match key.as_str() {
        Some(text) if !case_sensitive => {
            spend(state, text.len())?;
            Ok(Value::from(text.to_lowercase()))
        }
        _ => Ok(key),
    }
}

/// Sorts by keys as Python's stable sort does; an order that is none fails.
fn sorted(
    state: &mut State,
    mut keyed: Vec<(Vec<Value>, Value)>,
    reverse: bool,
) -> Result<Vec<Value>, Error> {
    let mut failed = None;
    keyed.sort_by(|(a, _), (b, _)| {
        for (a, b) in a.iter().zip(b) {
            if failed.is_some() {
                return Ordering::Equal;
            }
            let ordering = spend_items(state, 1).and_then(|()| match equal(state, a, b)? {
                true => Ok(Ordering::Equal),
                false => order(state, a, b),
            });
            match ordering {
                Ok(Ordering::Equal) => {}
                Ok(ordering) if reverse => return ordering.reverse(),
                Ok(ordering) => return ordering,
                Err(error) => failed = Some(error),
            }
        }
        Ordering::Equal
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(keyed.into_iter().map(|(_, value)| value).collect()),
    }
}

fn sort(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    let (reverse, case_sensitive) = (args.flag("reverse")?, args.flag("case_sensitive")?);
    let attribute = args.some("attribute")?;
    args.end()?;
    let paths = match attribute.as_ref().and_then(Value::as_str) {
        Some(all) => all
            .split(',')
            .map(|one| Path::of(Some(Value::from(one))))
            .collect::<Result<_, _>>()?,
        None => vec![Path::of(attribute)?],
    };
    let mut keyed = Vec::new();
    for one in items(state, &value)? {
        let mut keys = Vec::with_capacity(paths.len());
        for path in &paths {
            let key = path.get(state, &one)?;
            keys.push(folded(state, key, case_sensitive)?);
        }
        keyed.push((keys, one));
    }
    sorted(state, keyed, reverse).map(list)
}

fn dictsort(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    let case_sensitive = args.flag("case_sensitive")?;
    let by = args.text("by")?.unwrap_or_else(|| "key".to_owned());
    let reverse = args.flag("reverse")?;
    args.end()?;
    let position = match by.as_str() {
        "key" => 0,
        "value" => 1,
        _ => return refuse("a dict is sorted by key or by value"),
    };
    if kind(&value) != Kind::Dict {
        return refuse("dictsort of something that is no dict");
    }
    let mut keyed = Vec::new();
    for pair in members(state, &value)? {
        let key = pair.get_item_by_index(position)?;
        keyed.push((vec![folded(state, key, case_sensitive)?], pair));
    }
    sorted(state, keyed, reverse).map(list)
}

fn groupby(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    let path = Path::of(Some(args.required("attribute")?))?;
    let default = args.some("default")?;
    let case_sensitive = args.flag("case_sensitive")?;
    args.end()?;
    let mut keyed = Vec::new();
    for one in items(state, &value)? {
        let key = path.get_or(state, &one, &default)?;
        keyed.push((vec![folded(state, key, case_sensitive)?], one));
    }
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for one in sorted(state, keyed, false)? {
        let grouper = path.get_or(state, &one, &default)?;
        let key = folded(state, grouper.clone(), case_sensitive)?;
        let joins = match groups.last() {
            Some((last, _)) => {
                let last = folded(state, last.clone(), case_sensitive)?;
                equal(state, &last, &key)?
            }
            None => false,
        };
        match groups.last_mut().filter(|_| joins) {
            Some((_, group)) => group.push(one),
            None => groups.push((grouper, vec![one])),
        }
    }
    let group = |(grouper, members)| {
        Value::from_object(Group {
            grouper,
            list: list(members),
        })
    };
    Ok(list(groups.into_iter().map(group).collect()))
}

fn unique(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    let case_sensitive = args.flag("case_sensitive")?;
    let path = Path::of(args.some("attribute")?)?;
    args.end()?;
    let mut seen = std::collections::HashSet::new();
    let mut kept = Vec::new();
    for one in items(state, &value)? {
        let key = path.get(state, &one)?;
        let key = folded(state, key, case_sensitive)?;
        let key = match kind(&key) {
            Kind::Str => format!("s{}", key.as_str().unwrap_or_default()),
            Kind::None => "n".to_owned(),
            Kind::Int | Kind::Bool => {
                format!("i{}", arithmetic(state, "+", &key, &Value::from(0))?)
            }
            _ => return refuse("unique of values that are neither texts nor integers"),
        };
        if seen.insert(key) {
            kept.push(one);
        }
    }
    Ok(Generator::of(kept))
}

fn extreme(state: &mut State, mut args: Args, wanted: Ordering) -> Result<Value, Error> {
    let value = args.required("value")?;
    let case_sensitive = args.flag("case_sensitive")?;
    let path = Path::of(args.some("attribute")?)?;
    args.end()?;
    let mut best: Option<(Value, Value)> = None;
    for one in items(state, &value)? {
        let key = path.get(state, &one)?;
        let key = folded(state, key, case_sensitive)?;
        let wins = match &best {
            Some((held, _)) => order(state, &key, held)? == wanted,
            None => true,
        };
        if wins {
            best = Some((key, one));
        }
    }
    Ok(best.map(|(_, one)| one).unwrap_or_default())
}

fn sum(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("iterable")?;
    let path = Path::of(args.some("attribute")?)?;
    let mut sum = args.optional("start")?.unwrap_or_else(|| Value::from(0));
    args.end()?;
    // Since Python 3.12 floats are summed with compensation (Neumaier's): where that makes a
    // difference, versions differ.
    let (mut high, mut low) = (0.0_f64, 0.0_f64);
    for one in items(state, &value)? {
        let one = path.get(state, &one)?;
        if sum.as_str().is_some() {
            return refuse("a sum of strings");
        }
        sum = add(state, &sum, &one)?;
        let part = f64::try_from(one).unwrap_or(0.0);
        let total = high + part;
        low += match high.abs() >= part.abs() {
            true => (high - total) + part,
            false => (part - total) + high,
        };
        high = total;
    }
    match kind(&sum) {
        Kind::Float if f64::try_from(sum.clone())? != high + low => {
            refuse("a sum of floats that depends on Python's version")
        }
        _ => Ok(sum),
    }
}

fn batch(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    let count = args
        .int("linecount")?
        .and_then(|count| usize::try_from(count).ok());
    let fill = args.some("fill_with")?;
    args.end()?;
    let Some(count) = count.filter(|count| *count > 0) else {
        return refuse("batches of none");
    };
    let all = items(state, &value)?;
    let mut batches = Vec::new();
    for chunk in all.chunks(count) {
        let mut chunk = chunk.to_vec();
        if let Some(fill) = &fill {
            spend_items(state, count)?;
            chunk.resize(count, fill.clone());
        }
        batches.push(list(chunk));
    }
    Ok(Generator::of(batches))
}

fn slice(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let value = args.required("value")?;
    let count = args
        .int("slices")?
        .and_then(|count| usize::try_from(count).ok());
    let fill = args.some("fill_with")?;
    args.end()?;
    let Some(count) = count.filter(|count| *count > 0) else {
        return refuse("no slices");
    };
    spend_items(state, count)?;
    let all = items(state, &value)?;
    let (each, extra) = (all.len() / count, all.len() % count);
    let mut rest = all.as_slice();
    let mut slices = Vec::with_capacity(count);
    for at in 0..count {
        let (part, after) = rest.split_at(each + usize::from(at < extra));
        rest = after;
        let mut part = part.to_vec();
        part.extend(fill.clone().filter(|_| at >= extra));
        slices.push(list(part));
    }
    Ok(Generator::of(slices))
}
