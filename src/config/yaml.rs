//! YAML read strictly: every complaint is collected, with its line and field, before anyone
//! gives up.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use marked_yaml::types::{MarkedMappingNode, MarkedScalarNode};
use marked_yaml::{LoaderOptions, Node, parse_yaml_with_options};

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// Counted from 1; 0 where no line is to blame.
    pub line: usize,
    /// Dotted, with list positions: `models[0].folder`. Empty for the file as a whole.
    pub field: String,
    /// What is wrong, and what to do.
    pub problem: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.field.as_str()) {
            (0, "") => write!(to, "{}", self.problem),
            (0, field) => write!(to, "{field}: {}", self.problem),
            (line, "") => write!(to, "line {line}: {}", self.problem),
            (line, field) => write!(to, "line {line}: {field}: {}", self.problem),
        }
    }
}

/// Everything that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Complaints {
    /// What was read: a path.
    pub file: String,
    /// At least one.
    pub complaints: Vec<Complaint>,
}

impl Complaints {
    /// Of a file with which these things are wrong.
    ///
    /// # Errors
    /// Unless there are none.
    pub fn unless_none(file: &Path, complaints: Vec<Complaint>) -> Result<(), Self> {
        if complaints.is_empty() {
            return Ok(());
        }
        Err(Self {
            file: file.display().to_string(),
            complaints,
        })
    }
}

impl fmt::Display for Complaints {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self
            .complaints
            .iter()
            .map(|one| format!("{}: {one}", self.file))
            .collect();
        to.write_str(&lines.join("\n"))
    }
}

/// Reads a file's text with `read`, which takes the top-level mapping.
pub fn read<T>(
    file: &Path,
    text: &str,
    read: impl FnOnce(&mut Section<'_>) -> T,
) -> Result<T, Complaints> {
    let notes = Notes::default();
    // Editors of Windows put a mark before UTF-8.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // `lowercase_keys` stays off. What is quoted is text: "" is not null, and "7" no number.
    let options = LoaderOptions::default()
        .error_on_duplicate_keys(true)
        .prevent_coercion(true);
    let empty = Node::from(MarkedMappingNode::new_empty(marked_yaml::Span::new_blank()));
    let root = if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim().starts_with('#'))
    {
        Ok(empty)
    } else {
        parse_yaml_with_options(0, text, options)
    };
    let value = match &root {
        Ok(node) => notes.section(node, String::new()).map(|mut section| {
            let value = read(&mut section);
            section.finish();
            value
        }),
        Err(error) => {
            notes.0.borrow_mut().push(Complaint {
                line: 0,
                field: String::new(),
                problem: error.to_string(),
            });
            None
        }
    };
    let mut complaints = notes.0.into_inner();
    complaints.sort_by_key(|complaint| complaint.line);
    match value {
        Some(value) if complaints.is_empty() => Ok(value),
        _ => Err(Complaints {
            file: file.display().to_string(),
            complaints,
        }),
    }
}

#[derive(Default)]
struct Notes(RefCell<Vec<Complaint>>);

impl Notes {
    fn add(&self, node: &Node, field: &str, problem: impl Into<String>) {
        let line = node.span().start().map_or(0, marked_yaml::Marker::line);
        self.0.borrow_mut().push(Complaint {
            line,
            field: field.to_owned(),
            problem: problem.into(),
        });
    }

    fn section<'a>(&'a self, node: &'a Node, path: String) -> Option<Section<'a>> {
        let Some(mapping) = node.as_mapping() else {
            self.add(node, &path, "must be a mapping of keys to values");
            return None;
        };
        Some(Section {
            notes: self,
            node,
            mapping,
            path,
            known: BTreeSet::new(),
        })
    }
}

/// A mapping being read: each key is asked for once, and those left over are complaints.
pub struct Section<'a> {
    notes: &'a Notes,
    node: &'a Node,
    mapping: &'a MarkedMappingNode,
    path: String,
    known: BTreeSet<&'static str>,
}

impl<'a> Section<'a> {
    fn field(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn node(&mut self, key: &'static str) -> Option<&'a Node> {
        self.known.insert(key);
        self.mapping
            .get_node(key)
            .filter(|node| !node.as_scalar().is_some_and(is_null))
    }

    /// Whether a key is there at all, even if it is null.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.mapping.get_node(key).is_some()
    }

    /// Complains of a field by name, or of the section where it is not given.
    pub fn complain(&self, key: &'static str, problem: impl Into<String>) {
        let node = self.mapping.get_node(key).unwrap_or(self.node);
        self.notes.add(node, &self.field(key), problem);
    }

    /// A value that parses from text, or the default.
    pub fn get<T: FromStr>(&mut self, key: &'static str, default: T) -> T
    where
        T::Err: fmt::Display,
    {
        self.optional(key).unwrap_or(default)
    }

    /// A value that parses from text, if given.
    pub fn optional<T: FromStr>(&mut self, key: &'static str) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        self.parsed(key, None)
    }

    /// A value that parses from text, if given; where it does not, `what` it should be is said.
    fn parsed<T: FromStr>(&mut self, key: &'static str, what: Option<&str>) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        let node = self.node(key)?;
        let field = self.field(key);
        let Some(scalar) = node.as_scalar() else {
            self.notes.add(node, &field, "must be a single value");
            return None;
        };
        match scalar.as_str().parse() {
            Ok(value) => Some(value),
            Err(error) => {
                let what = what.map_or_else(String::new, |what| format!("; it is {what}"));
                let problem = format!("{:?}: {error}{what}", scalar.as_str());
                self.notes.add(node, &field, problem);
                None
            }
        }
    }

    /// A text as it stands, if given.
    pub fn text(&mut self, key: &'static str) -> Option<&'a str> {
        let node = self.node(key)?;
        let text = node.as_scalar().map(|scalar| scalar.as_str());
        if text.is_none() {
            self.notes
                .add(node, &self.field(key), "must be a single value");
        }
        text
    }

    /// A value that must be given.
    pub fn required<T: FromStr>(&mut self, key: &'static str, what: &str) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        if self.node(key).is_none() {
            self.notes
                .add(self.node, &self.field(key), format!("is missing: {what}"));
            return None;
        }
        self.parsed(key, Some(what))
    }

    /// One of a few words.
    pub fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)], default: T) -> T {
        let Some(word) = self.optional::<String>(key) else {
            return default;
        };
        match words.iter().find(|(known, _)| *known == word) {
            Some((_, value)) => *value,
            None => {
                let known: Vec<_> = words.iter().map(|(known, _)| *known).collect();
                self.complain(key, format!("{word:?} is not one of {}", known.join(", ")));
                default
            }
        }
    }

    /// A number within bounds.
    pub fn within<T: FromStr + PartialOrd + fmt::Display + Copy>(
        &mut self,
        key: &'static str,
        (min, max): (T, T),
        default: T,
    ) -> T
    where
        T::Err: fmt::Display,
    {
        let value = self.get(key, default);
        if (min..=max).contains(&value) {
            return value;
        }
        self.complain(key, format!("{value} is not within {min} and {max}"));
        default
    }

    /// A nested mapping; an empty one where it is not given.
    pub fn section<T: Default>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'a>) -> T,
    ) -> T {
        let Some(node) = self.node(key) else {
            return T::default();
        };
        let Some(mut section) = self.notes.section(node, self.field(key)) else {
            return T::default();
        };
        let value = read(&mut section);
        section.finish();
        value
    }

    /// A list of mappings.
    pub fn sections<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'a>) -> Option<T>,
    ) -> Vec<T> {
        let field = self.field(key);
        let mut values = Vec::new();
        for (position, node) in self.list(key).into_iter().enumerate() {
            if let Some(mut section) = self.notes.section(node, format!("{field}[{position}]")) {
                values.extend(read(&mut section));
                section.finish();
            }
        }
        values
    }

    /// A list of texts.
    pub fn texts(&mut self, key: &'static str) -> Vec<String> {
        let field = self.field(key);
        let mut texts = Vec::new();
        for (position, node) in self.list(key).into_iter().enumerate() {
            match node.as_scalar() {
                Some(scalar) => texts.push(scalar.as_str().to_owned()),
                None => self
                    .notes
                    .add(node, &format!("{field}[{position}]"), "must be a text"),
            }
        }
        texts
    }

    /// Anything, as JSON would say it.
    pub fn json(&mut self, key: &'static str) -> Option<serde_json::Value> {
        self.node(key).map(to_json)
    }

    fn list(&mut self, key: &'static str) -> Vec<&'a Node> {
        let Some(node) = self.node(key) else {
            return Vec::new();
        };
        match node.as_sequence() {
            Some(list) => list.iter().collect(),
            None => {
                self.notes.add(node, &self.field(key), "must be a list");
                Vec::new()
            }
        }
    }

    fn finish(&self) {
        for (key, _) in self.mapping.iter() {
            if !self.known.contains(key.as_str()) {
                let known: Vec<_> = self.known.iter().copied().collect();
                let line = key.span().start().map_or(0, marked_yaml::Marker::line);
                let problem = format!("is not a known key; here belong {}", known.join(", "));
                let field = self.field(key.as_str());
                self.notes.0.borrow_mut().push(Complaint {
                    line,
                    field,
                    problem,
                });
            }
        }
    }
}

fn is_null(scalar: &MarkedScalarNode) -> bool {
    scalar.may_coerce() && matches!(scalar.as_str(), "" | "~" | "null")
}

fn to_json(node: &Node) -> serde_json::Value {
    match node {
        Node::Mapping(mapping) => mapping
            .iter()
            .map(|(key, value)| (key.as_str().to_owned(), to_json(value)))
            .collect(),
        Node::Sequence(list) => list.iter().map(to_json).collect(),
        Node::Scalar(scalar) if is_null(scalar) => serde_json::Value::Null,
        // Plain scalars mean what JSON would read there; all else, and all quoted ones, is text.
        Node::Scalar(scalar) => match serde_json::from_str(scalar.as_str()) {
            Ok(value) if scalar.may_coerce() => value,
            _ => scalar.as_str().into(),
        },
    }
}
