//! The arguments of a call, by position or by name, as Python binds them.

use minijinja::value::{Kwargs, Rest, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::objects::{Kind, kind, refuse};

/// A filter, method or function of Python's: a state and its arguments.
pub type Native = fn(&mut State, Args) -> Result<Value, Error>;

/// Arguments that are taken one by one, in the order of the parameters.
pub struct Args {
    positional: std::vec::IntoIter<Value>,
    named: Kwargs,
}

impl Args {
    /// From a call's values, of which the last may be the named ones.
    pub fn of(values: &[Value]) -> Result<Self, Error> {
        let (positional, named): (&[Value], Kwargs) = from_args(values)?;
        let positional = Vec::from(positional).into_iter();
        Ok(Self { positional, named })
    }

    /// The next parameter's argument, if it is given.
    pub fn optional(&mut self, name: &str) -> Result<Option<Value>, Error> {
        match (self.positional.next(), self.named.has(name)) {
            (Some(_), true) => Err(Error::from(ErrorKind::TooManyArguments)),
            (Some(value), false) => Ok(Some(value)),
            (None, true) => self.named.get(name).map(Some),
            (None, false) => Ok(None),
        }
    }

    /// The next parameter's argument.
    pub fn required(&mut self, name: &str) -> Result<Value, Error> {
        self.optional(name)?
            .ok_or_else(|| Error::from(ErrorKind::MissingArgument))
    }

    /// The next parameter's argument; `None` counts as not given.
    pub fn some(&mut self, name: &str) -> Result<Option<Value>, Error> {
        Ok(self.optional(name)?.filter(|value| !value.is_none()))
    }

    /// Whether the next parameter's argument is true; false where it is not given.
    pub fn flag(&mut self, name: &str) -> Result<bool, Error> {
        Ok(self.optional(name)?.is_some_and(|value| value.is_true()))
    }

    /// The next parameter's argument as an integer.
    pub fn int(&mut self, name: &str) -> Result<Option<i64>, Error> {
        self.optional(name)?.map(|value| int(&value)).transpose()
    }

    /// The next parameter's argument as text; `None` counts as not given.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self.some(name)? {
            None => Ok(None),
            Some(value) => text(&value).map(|text| Some(text.to_owned())),
        }
    }

    /// All positional arguments that are left.
    pub fn rest(&mut self) -> Vec<Value> {
        std::mem::replace(&mut self.positional, Vec::new().into_iter()).collect()
    }

    /// All named arguments that are left.
    pub fn named(&mut self) -> Result<Vec<(String, Value)>, Error> {
        let names: Vec<String> = self.named.args().map(str::to_owned).collect();
        names
            .into_iter()
            .map(|name| self.named.get(&name).map(|value| (name.clone(), value)))
            .collect()
    }

    /// No argument may be left.
    pub fn end(mut self) -> Result<(), Error> {
        match self.positional.next() {
            Some(_) => Err(Error::from(ErrorKind::TooManyArguments)),
            None => self.named.assert_all_used(),
        }
    }
}

/// A whole number; Python takes booleans, too.
pub fn int(value: &Value) -> Result<i64, Error> {
    match (kind(value), value.as_i64()) {
        (Kind::Bool, _) => Ok(i64::from(value.is_true())),
        (Kind::Int, Some(number)) => Ok(number),
        _ => refuse("an argument is not an integer"),
    }
}

/// A string that Markup does not make special.
pub fn text(value: &Value) -> Result<&str, Error> {
    match value.as_str() {
        Some(_) if value.is_safe() => refuse("Markup is not computed with"),
        Some(text) => Ok(text),
        None => refuse("an argument is not a string"),
    }
}

/// A filter or function for minijinja.
pub fn native(
    function: Native,
) -> impl Fn(&mut State, Rest<ValueOrKwargs>) -> Result<Value, Error> + Send + Sync + 'static {
    move |state, args| {
        let args: Vec<Value> = args.into_values();
        function(state, Args::of(&args)?)
    }
}
