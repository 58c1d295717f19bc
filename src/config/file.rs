//! The TOML as written: tables, values and their places, and what is wrong with their types.
//!
//! The tree is walked by hand, not by serde, so that one run finds every fault of a file: serde
//! stops at the first.

use std::collections::BTreeSet;

use toml::de::{DeTable, DeValue};

use super::cite::{At, Placed, Report, shown};

/// So many faults of syntax are kept for each file; a hostile one has one per byte.
const SYNTAX_MAX: usize = 1000;

/// The keys of the main file, and of one in `agents.d`.
pub(super) const MAIN_KEYS: &[&str] =
    &["host", "bus", "history", "verify", "channels", "defaults", "agents"];
pub(super) const MORE_KEYS: &[&str] = &["agents"];

/// Parses one file and reports every fault of its syntax. What could be saved is returned.
pub(super) fn parse<'a>(file: usize, text: &'a str, report: &mut Report<'_>) -> DeTable<'a> {
    let (tree, errors) = DeTable::parse_recoverable(text);
    report.omit(errors.len().saturating_sub(SYNTAX_MAX));
    for error in errors.into_iter().take(SYNTAX_MAX) {
        let span = error.span().unwrap_or(0..0);
        let (message, may) = syntax(error.message(), text.get(span.clone()).unwrap_or(""));
        report.fault(&At::new(file, span), message, may);
    }
    tree.into_inner()
}

/// The parser's words, or better ones for what people really do.
fn syntax(message: &str, stood: &str) -> (String, String) {
    let word = stood.starts_with(|c: char| c.is_alphabetic());
    let bare = message.starts_with("string values must be quoted")
        || (word && message.starts_with("invalid "));
    if bare {
        return (
            format!("{} without quotes is no value", shown(stood)),
            "write \"...\"".to_owned(),
        );
    }
    if message == "duplicate key" {
        return (
            format!("{} stands here for the second time", shown(stood)),
            "only once".to_owned(),
        );
    }
    let (wrong, may) = message.split_once(", expected ").unwrap_or((message, ""));
    let may = if may.is_empty() { String::new() } else { format!("expected {may}") };
    (format!("not TOML: {wrong}"), may)
}

/// A value, its place, and the path of keys that leads to it.
pub(super) struct Value<'a> {
    /// Where it stands.
    pub at: At,
    /// Its key path for messages: `agents.a.limits.memory`.
    pub path: String,
    node: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    /// Reports that this value cannot be used: why, and what may stand there.
    pub(super) fn refuse(&self, report: &mut Report<'_>, why: impl AsRef<str>, may: &str) {
        report.fault(&self.at, format!("{}: {}", self.path, why.as_ref()), may);
    }

    fn expected(&self, report: &mut Report<'_>, what: &str, may: &str) {
        self.refuse(report, format!("expected {what}, found {}", kind(self.node)), may);
    }

    /// The value as text.
    pub(super) fn text(&self, report: &mut Report<'_>, may: &str) -> Option<&'a str> {
        let text = self.node.as_str();
        if text.is_none() {
            self.expected(report, "a string", may);
        }
        text
    }

    /// The value as a number within `range`.
    pub(super) fn integer(
        &self,
        report: &mut Report<'_>,
        range: std::ops::RangeInclusive<i64>,
        may: &str,
    ) -> Option<i64> {
        let DeValue::Integer(number) = self.node else {
            self.expected(report, "an integer", may);
            return None;
        };
        match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(value) if range.contains(&value) => Some(value),
            _ => {
                self.refuse(report, format!("{number} is out of range"), may);
                None
            }
        }
    }

    /// Whether the value is an integer, where text may stand as well.
    pub(super) fn is_integer(&self) -> bool {
        self.node.is_integer()
    }

    /// Whether the value is an array, where text may stand as well.
    pub(super) fn is_array(&self) -> bool {
        self.node.is_array()
    }

    /// The members of an array.
    pub(super) fn array(&self, report: &mut Report<'_>, may: &str) -> Option<Vec<Value<'a>>> {
        let Some(array) = self.node.as_array() else {
            self.expected(report, "an array", may);
            return None;
        };
        let member = |(index, item): (usize, &'a toml::Spanned<DeValue<'a>>)| Value {
            at: At::new(self.at.file, item.span()),
            path: format!("{}[{index}]", self.path),
            node: item.get_ref(),
        };
        Some(array.iter().enumerate().map(member).collect())
    }

    /// The value as a table whose keys are names that the operator chooses.
    pub(super) fn table(&self, report: &mut Report<'_>, may: &str) -> Option<Table<'a>> {
        let Some(entries) = self.node.as_table() else {
            self.expected(report, "a table", may);
            return None;
        };
        Some(Table::new(self.at.clone(), self.path.clone(), entries))
    }

    /// The value as a table with these keys and no others.
    pub(super) fn keys(
        &self,
        report: &mut Report<'_>,
        keys: &'static [&'static str],
    ) -> Option<Table<'a>> {
        let table = self.table(report, &format!("a table with {}", either(keys)))?;
        table.only(report, keys);
        Some(table)
    }
}

/// A table and the keys in it that could not be used.
pub(super) struct Table<'a> {
    /// Where it, or its header, stands.
    pub at: At,
    /// Its key path for messages; empty for a whole file.
    pub path: String,
    entries: &'a DeTable<'a>,
    /// Keys that are there, with a value that was refused.
    pub bad: BTreeSet<&'static str>,
}

impl<'a> Table<'a> {
    /// A table of a parsed file.
    pub(super) fn new(at: At, path: String, entries: &'a DeTable<'a>) -> Self {
        Self { at, path, entries, bad: BTreeSet::new() }
    }

    /// Reads the value of a key by a rule, which reports what it refuses.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        report: &mut Report<'_>,
        rule: impl FnOnce(&Value<'a>, &mut Report<'_>) -> Option<T>,
    ) -> Option<Placed<T>> {
        let node = self.entries.get(key)?;
        let at = At::new(self.at.file, node.span());
        let value = Value { at: at.clone(), path: join(&self.path, key), node: node.get_ref() };
        let read = rule(&value, report);
        if read.is_none() {
            self.bad.insert(key);
        }
        read.map(|value| Placed { value, at })
    }

    /// Every key with its place, and its value.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Placed<&'a str>, Value<'a>)> {
        let file = self.at.file;
        self.entries.iter().map(move |(key, node)| {
            let name: &'a str = key.get_ref();
            let value = Value {
                at: At::new(file, node.span()),
                path: join(&self.path, name),
                node: node.get_ref(),
            };
            (Placed { value: name, at: At::new(file, key.span()) }, value)
        })
    }

    /// Reports every key that is not one of `keys`.
    pub(super) fn only(&self, report: &mut Report<'_>, keys: &[&str]) {
        for (key, _) in self.entries() {
            if !keys.contains(&key.value) {
                let place =
                    if self.path.is_empty() { "here" } else { &format!("in {}", self.path) };
                let message = format!("unknown key {} {place}", shown(key.value));
                report.fault(&key.at, message, suggestion(key.value, keys));
            }
        }
    }
}

/// A key path for messages. What the operator chose is shown safely.
fn join(path: &str, key: &str) -> String {
    let plain = key.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_');
    let key = if plain && key.len() <= 40 { key.to_owned() } else { shown(key) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// The kind of a value with its article.
fn kind(node: &DeValue<'_>) -> &'static str {
    match node {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// Tables whose keys people write one table too high.
const NESTED: [(&str, &[&str]); 3] = [
    ("limits", super::part::LIMIT_KEYS),
    ("restart", super::part::RESTART_KEYS),
    ("task", super::part::TASK_KEYS),
];

/// What may stand instead of an unknown key: the near one first.
fn suggestion(key: &str, keys: &[&str]) -> String {
    if keys == MORE_KEYS && MAIN_KEYS.contains(&key) {
        return "it belongs in the main file; here stand only [agents.<id>]".to_owned();
    }
    if let Some(near) = nearest(key, keys) {
        return format!("did you mean {near}?");
    }
    let home = NESTED.iter().find(|(table, inner)| {
        keys.contains(table) && (inner.contains(&key) || nearest(key, inner).is_some())
    });
    match home {
        Some((table, _)) => format!("it belongs in the table {table}"),
        None => format!("may be {}", either(keys)),
    }
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn either(words: &[&str]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// The word that was probably meant: at most a third of its letters differ.
pub(super) fn nearest<'k>(word: &str, words: &[&'k str]) -> Option<&'k str> {
    if word.len() > 40 {
        return None;
    }
    let near = |&known: &&'k str| (strsim::damerau_levenshtein(word, known), known);
    let best = words.iter().map(near).min()?;
    (best.0 <= best.1.len().div_ceil(3)).then_some(best.1)
}
