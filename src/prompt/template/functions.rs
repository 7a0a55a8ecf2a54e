//! The functions that a template finds: Jinja's, and transformers'.

use std::sync::Mutex;

use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::args::{Args, native, text};
use super::budget::spend_items;
use super::jinja::RAISED;
use super::objects::{Joiner, Kind, Range, items, kind, refuse};
use super::python::str_of;
use super::{Clock, dates};

/// Adds the functions to an environment.
pub fn add_to(env: &mut Environment, clock: Clock) {
    env.add_function(
        "raise_exception",
        native(|_, _| Err(Error::new(ErrorKind::InvalidOperation, RAISED))),
    );
    env.add_function("strftime_now", move |format: &str| {
        dates::strftime(clock(), format)
            .map_or_else(|| refuse("a date format that is not known"), Ok)
    });
    env.add_function("range", native(range));
    env.add_function("dict", native(dict));
    env.add_function("namespace", native(namespace));
    env.add_function("joiner", native(joiner));
}

fn range(_: &mut State, mut args: Args) -> Result<Value, Error> {
    let mut bounds = args.rest().into_iter();
    args.end()?;
    let mut next = || {
        bounds
            .next()
            .map(|bound| super::args::int(&bound))
            .transpose()
    };
    match (next()?, next()?, next()?) {
        (Some(stop), None, _) => Range::value(0, stop, 1),
        (Some(start), Some(stop), step) => Range::value(start, stop, step.unwrap_or(1)),
        (None, ..) => refuse("a range without an end"),
    }
}

/// The pairs of a dict, or of a list of pairs, and the named arguments.
fn members(state: &mut State, mut args: Args) -> Result<Vec<(Value, Value)>, Error> {
    let given = args.rest();
    let named = args.named()?;
    args.end()?;
    let mut pairs = Vec::new();
    match given.as_slice() {
        [] => {}
        [value] if kind(value) == Kind::Dict => {
            for key in items(state, value)? {
                pairs.push((key.clone(), value.get_item(&key)?));
            }
        }
        [value] => {
            for pair in items(state, value)? {
                match items(state, &pair)?.as_slice() {
                    [key, value] => pairs.push((key.clone(), value.clone())),
                    _ => return refuse("a dict of items that are no pairs"),
                }
            }
        }
        _ => return Err(Error::from(ErrorKind::TooManyArguments)),
    }
    spend_items(state, pairs.len() + named.len())?;
    pairs.extend(
        named
            .into_iter()
            .map(|(name, value)| (Value::from(name), value)),
    );
    Ok(pairs)
}

fn dict(state: &mut State, args: Args) -> Result<Value, Error> {
    Ok(Value::from_pairs(members(state, args)?))
}

fn namespace(state: &mut State, args: Args) -> Result<Value, Error> {
    let pairs = members(state, args)?;
    let pairs = Value::from_pairs(pairs);
    minijinja::functions::namespace(Some(minijinja::value::ValueOrKwargs::from(pairs)))
}

fn joiner(state: &mut State, mut args: Args) -> Result<Value, Error> {
    let separator = args.optional("sep")?.unwrap_or_else(|| Value::from(", "));
    args.end()?;
    text(&separator)?;
    let separator = str_of(state, &separator)?;
    let used = Mutex::new(false);
    Ok(Value::from_object(Joiner { separator, used }))
}
