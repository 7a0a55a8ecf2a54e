//! Jinja's filters of lists and dicts. Those that Python makes generators of, give their items once.

use std::cmp::Ordering;

use minijinja::{Error, State, Value};

use super::args::{Args, text};
use super::budget::{spend, spend_items};
use super::compare::{equal, order};
use super::objects::{Generator, Group, Kind, items, kind, list, refuse, tuple};
use super::operators::{add, arithmetic, item};
use super::python::str_of;

/// A dict's pairs.
pub fn pairs(state: &mut State, mut args: Args) -> Result<Value, Error> {
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

pub fn first(state: &mut State, mut args: Args) -> Result<Value, Error> {
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

pub fn last(state: &mut State, mut args: Args) -> Result<Value, Error> {
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

pub fn reverse(state: &mut State, mut args: Args) -> Result<Value, Error> {
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

pub fn join(state: &mut State, mut args: Args) -> Result<Value, Error> {
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

pub fn map(state: &mut State, mut args: Args) -> Result<Value, Error> {
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

pub fn select(
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

pub fn sort(state: &mut State, mut args: Args) -> Result<Value, Error> {
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

pub fn dictsort(state: &mut State, mut args: Args) -> Result<Value, Error> {
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

pub fn groupby(state: &mut State, mut args: Args) -> Result<Value, Error> {
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

pub fn unique(state: &mut State, mut args: Args) -> Result<Value, Error> {
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

pub fn extreme(state: &mut State, mut args: Args, wanted: Ordering) -> Result<Value, Error> {
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

pub fn sum(state: &mut State, mut args: Args) -> Result<Value, Error> {
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

pub fn batch(state: &mut State, mut args: Args) -> Result<Value, Error> {
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

pub fn slice(state: &mut State, mut args: Args) -> Result<Value, Error> {
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
