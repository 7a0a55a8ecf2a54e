//! `'%s' % x` and `'{}'.format(x)`, by minijinja's formatting, for what it formats as Python does.

use minijinja::formatting::{FormatStyle, format};
use minijinja::{Error, State, Value};

use super::budget::spend;
use super::objects::{Kind, items, kind, refuse};
use super::python::{repr_of, str_of};

/// Digits of a width or a precision.
const DIGITS_MAX: usize = 4;

/// `template % values`.
pub fn printf(state: &mut State, template: &str, values: &Value) -> Result<Value, Error> {
    let args = match kind(values) {
        Kind::Tuple => items(state, values)?,
        _ => vec![values.clone()],
    };
    printf_all(state, template, &args)
}

/// `template % args`; one dict is looked up by names.
pub fn printf_all(state: &mut State, template: &str, args: &[Value]) -> Result<Value, Error> {
    check(state, template)?;
    let named = template.contains("%(");
    let conversions: Vec<char> = conversions(template);
    if named || conversions.contains(&'*') {
        if conversions.iter().all(|c| *c == 's') && named {
            let dict = args.first().cloned().unwrap_or_default();
            return by_name(state, template, &dict);
        }
        return refuse("a format with names or stars");
    }
    if conversions.len() != args.len() {
        let unused = matches!(args, [one] if conversions.is_empty() && kind(one) == Kind::Dict);
        if !unused {
            return refuse("a format with another number of values");
        }
    }
    let mut shown = Vec::with_capacity(args.len());
    for (conversion, value) in conversions.iter().zip(args) {
        shown.push(match conversion {
            's' => Value::from(str_of(state, value)?),
            'r' => Value::from(repr_of(state, value)?),
            'd' | 'i' | 'u' if kind(value) == Kind::Float => {
                let number = f64::try_from(value.clone())?;
                if number.abs() >= 1e15 {
                    return refuse("a float too large for a format");
                }
                Value::from(number.trunc() as i64)
            }
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' => integer(value)?,
            'f' | 'F' | 'e' | 'E' | 'g' | 'G' => float(value)?,
            'c' if kind(value) == Kind::Str => value.clone(),
            _ => return refuse("a format of an unknown kind"),
        });
    }
    let template = plain_conversions(template);
    let out = format(FormatStyle::Printf, &template, &shown)?;
    spend(state, out.len())?;
    Ok(Value::from(out))
}

/// A dict's values by their names, without widths.
fn by_name(state: &mut State, template: &str, dict: &Value) -> Result<Value, Error> {
    if kind(dict) != Kind::Dict {
        return refuse("a format with names and no dict");
    }
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let named = rest
            .strip_prefix('(')
            .and_then(|rest| rest.split_once(")s"));
        let Some((name, after)) = named else {
            return refuse("a format with names and widths");
        };
        let value = dict.get_item(&Value::from(name))?;
        if value.is_undefined() {
            return refuse("a format with a name that the dict has not");
        }
        out.push_str(&str_of(state, &value)?);
        rest = after;
    }
    out.push_str(rest);
    spend(state, out.len())?;
    Ok(Value::from(out))
}

/// The letters of a printf template's conversions, stars first where a width is one.
fn conversions(template: &str) -> Vec<char> {
    let mut found = Vec::new();
    let mut chars = template.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            continue;
        }
        let mut name = false;
        for c in chars.by_ref() {
            match c {
                '(' => name = true,
                ')' => name = false,
                _ if name => {}
                '*' => found.push('*'),
                '%' => break,
                c if c.is_alphabetic() => {
                    found.push(c);
                    break;
                }
                _ => {}
            }
        }
    }
    found
}

/// The template with strings for what is made one beforehand, and `d` for its old spellings.
fn plain_conversions(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut inside = false;
    for c in template.chars() {
        let letter = inside && c.is_alphabetic();
        out.push(match c {
            'r' if letter => 's',
            'i' | 'u' if letter => 'd',
            c => c,
        });
        inside = match c {
            '%' => !inside,
            _ => inside && !letter,
        };
    }
    out
}

/// `template.format(…)`.
pub fn str_format(
    state: &mut State,
    template: &str,
    args: Vec<Value>,
    named: Vec<(String, Value)>,
) -> Result<Value, Error> {
    check(state, template)?;
    if template.contains('!') || template.contains('[') || !named.is_empty() && !args.is_empty() {
        return refuse("a format with conversions, items or two kinds of arguments");
    }
    let mut shown = Vec::with_capacity(args.len() + 1);
    for value in &args {
        shown.push(formatted(state, value, template)?);
    }
    let mut pairs = Vec::with_capacity(named.len());
    for (name, value) in &named {
        pairs.push((name.clone(), formatted(state, value, template)?));
    }
    if !pairs.is_empty() {
        shown.push(
            pairs
                .into_iter()
                .collect::<minijinja::value::Kwargs>()
                .into(),
        );
    }
    let out = format(FormatStyle::StrFormat, template, &shown)?;
    spend(state, out.len())?;
    Ok(Value::from(out))
}

/// A value that minijinja formats as Python would: numbers in formats that say how, else text.
fn formatted(state: &mut State, value: &Value, template: &str) -> Result<Value, Error> {
    let specified = template.contains(':');
    match kind(value) {
        Kind::Str => Ok(value.clone()),
        Kind::Int if specified => integer(value),
        Kind::Float if specified => {
            let text = str_of(state, value)?;
            match text.contains(['e', 'n']) {
                true => refuse("a float that formats write in another way"),
                false => Ok(value.clone()),
            }
        }
        _ if specified => refuse("a format of something that has none"),
        _ => str_of(state, value).map(Value::from),
    }
}

fn integer(value: &Value) -> Result<Value, Error> {
    match (kind(value), value.as_i64()) {
        (Kind::Int, Some(_)) => Ok(value.clone()),
        (Kind::Bool, _) => Ok(Value::from(i64::from(value.is_true()))),
        _ => refuse("a format wants an integer"),
    }
}

fn float(value: &Value) -> Result<Value, Error> {
    match kind(value) {
        Kind::Int | Kind::Float | Kind::Bool => f64::try_from(value.clone())
            .ok()
            .filter(|number| number.is_finite())
            .map_or_else(
                || refuse("a format wants a number"),
                |number| Ok(Value::from(number)),
            ),
        _ => refuse("a format wants a number"),
    }
}

/// Refuses widths that would fill memory.
fn check(state: &mut State, template: &str) -> Result<(), Error> {
    spend(state, template.len())?;
    let mut digits = template.split(|c: char| !c.is_ascii_digit());
    match digits.any(|digits| digits.len() > DIGITS_MAX) {
        true => refuse("a format with a width of more than four digits"),
        false => Ok(()),
    }
}
