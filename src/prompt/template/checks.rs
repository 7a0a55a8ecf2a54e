//! Jinja's tests: what stands after `is`.

use minijinja::{Environment, Error, State, Value};

use super::args::int;
use super::compare::{compare, equal};
use super::filters;
use super::jinja::BigInt;
use super::objects::{Generator, Kind, Method, kind, refuse};
use super::operators::arithmetic;
use super::python::str_of;
use super::text::cased;

type Plain = fn(&Value) -> bool;

/// The tests by name that take a value alone.
const PLAIN: &[(&str, Plain)] = &[
    ("defined", |value| kind(value) != Kind::Undefined),
    ("undefined", |value| kind(value) == Kind::Undefined),
    ("none", |value| kind(value) == Kind::None),
    ("boolean", |value| kind(value) == Kind::Bool),
    ("true", |value| kind(value) == Kind::Bool && value.is_true()),
    ("false", |value| {
        kind(value) == Kind::Bool && !value.is_true()
    }),
    ("integer", |value| kind(value) == Kind::Int),
    ("float", |value| kind(value) == Kind::Float),
    ("number", |value| {
        matches!(kind(value), Kind::Bool | Kind::Int | Kind::Float)
    }),
    ("string", |value| kind(value) == Kind::Str),
    ("mapping", |value| kind(value) == Kind::Dict),
    ("escaped", Value::is_safe),
    // Whatever has a length and items.
    ("sequence", |value| {
        matches!(
            kind(value),
            Kind::Str | Kind::List | Kind::Tuple | Kind::Dict | Kind::Range
        ) || kind(value) == Kind::Undefined
    }),
    ("iterable", |value| match kind(value) {
        Kind::None | Kind::Bool | Kind::Int | Kind::Float => false,
        Kind::Other => value.downcast_object_ref::<Generator>().is_some(),
        _ => true,
    }),
    ("callable", |value| {
        value.downcast_object_ref::<Method>().is_some()
            || value.as_object().is_some_and(|object| {
                ["::Macro", "::BoxedFunction"]
                    .iter()
                    .any(|name| object.type_name().ends_with(name))
            })
    }),
];

/// Tests that are operators.
const OPERATORS: &[(&str, &str)] = &[
    ("==", "=="),
    ("eq", "=="),
    ("equalto", "=="),
    ("!=", "!="),
    ("ne", "!="),
    (">", ">"),
    ("gt", ">"),
    ("greaterthan", ">"),
    ("ge", ">="),
    (">=", ">="),
    ("<", "<"),
    ("lt", "<"),
    ("lessthan", "<"),
    ("<=", "<="),
    ("le", "<="),
    ("in", "in"),
];

/// Adds the tests to an environment.
pub fn add_to(env: &mut Environment) {
    for (name, test) in PLAIN {
        env.add_test(*name, |value: &Value| test(value));
    }
    for (name, op) in OPERATORS {
        env.add_test(*name, |state: &mut State, a: &Value, b: &Value| {
            compare(state, op, a, b)
        });
    }
    env.add_test("divisibleby", |state: &mut State, a: &Value, b: &Value| {
        is_remainder(state, a, b, 0)
    });
    env.add_test("even", |state: &mut State, value: &Value| {
        is_remainder(state, value, &Value::from(2), 0)
    });
    env.add_test("odd", |state: &mut State, value: &Value| {
        is_remainder(state, value, &Value::from(2), 1)
    });
    for (name, method) in [("lower", "islower"), ("upper", "isupper")] {
        env.add_test(name, move |state: &mut State, value: &Value| {
            cased(&str_of(state, value)?, method)
        });
    }
    env.add_test("sameas", |a: &Value, b: &Value| same(a, b));
    env.add_test("filter", |name: &str| filters::is_known(name));
    env.add_test("test", |name: &str| is_known(name));
}

/// Whether a test of the name exists.
fn is_known(name: &str) -> bool {
    let others = [
        "divisibleby",
        "even",
        "odd",
        "lower",
        "upper",
        "sameas",
        "filter",
        "test",
    ];
    others.contains(&name)
        || PLAIN.iter().any(|(known, _)| *known == name)
        || OPERATORS.iter().any(|(known, _)| *known == name)
}

fn is_remainder(state: &mut State, a: &Value, b: &Value, wanted: i64) -> Result<bool, Error> {
    let remainder = arithmetic(state, "%", a, b)?;
    equal(state, &remainder, &Value::from(wanted))
}

/// `a is b`, where Python's answer is sure.
fn same(a: &Value, b: &Value) -> Result<bool, Error> {
    match (kind(a), kind(b)) {
        (one, other) if one != other => Ok(false),
        (Kind::None | Kind::Undefined, _) => Ok(true),
        (Kind::Bool, _) => Ok(a.is_true() == b.is_true()),
        // CPython keeps one of each small integer.
        (Kind::Int, _) if a.downcast_object_ref::<BigInt>().is_none() => match (int(a)?, int(b)?) {
            (a, b) if a != b => Ok(false),
            (-5..=256, _) => Ok(true),
            _ => refuse("the identity of large integers"),
        },
        (Kind::Str, _) if a.as_str() != b.as_str() => Ok(false),
        _ => refuse("the identity of values"),
    }
}
