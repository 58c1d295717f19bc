//! Faults of the configuration, each with its place: `file:line:column`, the line, what may stand there.

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write as _;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use crate::text::printable;

/// So many faults are shown; the rest is counted. A hostile file has one per byte.
const SHOWN: usize = 100;
/// So many characters of a long line are shown on each side of the place.
const CONTEXT: usize = 60;

/// A place in one of the files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    /// Index of the file.
    pub file: usize,
    /// Bytes in its text.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl At {
    /// The bytes `span` of file number `file`.
    pub(super) fn new(file: usize, span: Range<usize>) -> Self {
        Self { file, start: span.start, end: span.end }
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    /// What was read there.
    pub value: T,
    /// Where.
    pub at: At,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub path: PathBuf,
    /// Line and column, both from 1; none when the file as a whole is wrong.
    pub place: Option<(usize, usize)>,
    /// What is wrong.
    pub message: String,
    /// The line with a caret and what may stand there; empty when there is no place.
    picture: String,
}

impl Fault {
    /// A fault of a whole file: it cannot be read, or must not be trusted.
    pub(super) fn of_file(path: &Path, message: impl Into<String>) -> Self {
        let (path, message) = (path.to_owned(), message.into());
        Self { path, place: None, message, picture: String::new() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", printable(&self.path.to_string_lossy()))?;
        if let Some((line, column)) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.message)?;
        if self.picture.is_empty() { Ok(()) } else { write!(f, "\n{}", self.picture) }
    }
}

/// Every fault of every file. Its text cites each one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    /// The first hundred, in the order of the files.
    pub list: Vec<Fault>,
    /// How many there are.
    pub count: usize,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.count == 1 { "" } else { "s" };
        write!(f, "the configuration has {} fault{plural}:", self.count)?;
        for fault in &self.list {
            write!(f, "\n{fault}")?;
        }
        match self.count - self.list.len() {
            0 => Ok(()),
            more => write!(f, "\n... and {more} more"),
        }
    }
}

impl std::error::Error for Faults {}

/// A file that is being checked.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
}

/// A fault before it is rendered.
struct Raw {
    at: At,
    message: String,
    may: String,
}

/// Collects the faults of all files while they are read.
pub(super) struct Report<'a> {
    sources: Vec<Source<'a>>,
    faults: Vec<Raw>,
    /// Faults that are counted and not kept.
    omitted: usize,
    /// Values that are never shown: what people put into an environment is often a secret.
    hidden: Vec<At>,
    resolve: Resolve,
}

/// Where a path leads after symbolic links, if that can be told.
pub(super) type Resolve = fn(&Path) -> Option<PathBuf>;

impl<'a> Report<'a> {
    /// A report on these files without a fault.
    pub(super) fn new(files: &'a [(PathBuf, String)], resolve: Resolve) -> Self {
        let source = |(path, text): &'a (PathBuf, String)| {
            let ends = text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n');
            let lines = std::iter::once(0).chain(ends.map(|(place, _)| place + 1)).collect();
            Source { path, text, lines }
        };
        let sources = files.iter().map(source).collect();
        Self { sources, faults: Vec::new(), omitted: 0, hidden: Vec::new(), resolve }
    }

    /// How symbolic links are followed.
    pub(super) fn resolve(&self) -> Resolve {
        self.resolve
    }

    /// Adds a fault: what is wrong at this place, and what may stand there.
    pub(super) fn fault(&mut self, at: &At, message: impl Into<String>, may: impl Into<String>) {
        self.faults.push(Raw { at: at.clone(), message: message.into(), may: may.into() });
    }

    /// Counts faults that nobody will read, after a thousand of the same file.
    pub(super) fn omit(&mut self, number: usize) {
        self.omitted += number;
    }

    /// Makes sure that the text at this place is not shown, whatever is wrong with it or beside it.
    pub(super) fn hide(&mut self, at: &At) {
        self.hidden.push(at.clone());
    }

    /// How many faults there are so far.
    pub(super) fn count(&self) -> usize {
        self.faults.len()
    }

    /// Drops the faults from number `first` on that stand on a line with one of the faults before
    /// it: they follow from the repair that the parser tried there.
    pub(super) fn forgive_since(&mut self, first: usize) {
        let lines = |raw: &Raw| self.sources[raw.at.file].lines_of(&raw.at);
        let bad: BTreeSet<(usize, usize)> =
            self.faults[..first].iter().map(|raw| (raw.at.file, *lines(raw).start())).collect();
        let follows = |raw: &Raw| {
            let (file, lines) = (raw.at.file, lines(raw));
            bad.range((file, *lines.start())..=(file, *lines.end())).next().is_some()
        };
        let kept: Vec<bool> =
            self.faults.iter().enumerate().map(|(n, raw)| n < first || !follows(raw)).collect();
        let mut kept = kept.into_iter();
        self.faults.retain(|_| kept.next() == Some(true));
    }

    /// `file:line:column` of a place, to be named in the message of another fault.
    pub(super) fn cite(&self, at: &At) -> String {
        let source = &self.sources[at.file];
        let (line, column) = source.position(at.start);
        format!("{}:{line}:{column}", printable(&source.path.to_string_lossy()))
    }

    /// The line of a place, from 1.
    pub(super) fn line(&self, at: &At) -> usize {
        self.sources[at.file].line_of(at.start)
    }

    /// All faults in the order of the files, after those of whole files.
    pub(super) fn finish(mut self, whole: Vec<Fault>) -> Option<Faults> {
        // A fault of [defaults] is found again with every agent.
        self.faults.sort_by(|a, b| (&a.at, &a.message).cmp(&(&b.at, &b.message)));
        self.faults.dedup_by(|a, b| (&a.at, &a.message) == (&b.at, &b.message));
        let count = whole.len() + self.faults.len() + self.omitted;
        let cited = self.faults.iter().take(SHOWN).map(|raw| self.render(raw));
        let list: Vec<Fault> = whole.into_iter().chain(cited).take(SHOWN).collect();
        (count > 0).then_some(Faults { list, count })
    }

    fn render(&self, raw: &Raw) -> Fault {
        let source = &self.sources[raw.at.file];
        Fault {
            path: source.path.to_owned(),
            place: Some(source.position(raw.at.start)),
            message: raw.message.clone(),
            picture: self.picture(raw),
        }
    }

    /// The line, and carets under the place.
    fn picture(&self, raw: &Raw) -> String {
        let source = &self.sources[raw.at.file];
        let number = source.line_of(raw.at.start);
        let line = source.line(number);
        let start = raw.at.start.clamp(line.start, line.end);
        let end = raw.at.end.clamp(start, line.end);
        let (before, cut_left) = last_chars(&source.text[line.start..start], CONTEXT);
        let (place, cut_place) = first_chars(&source.text[start..end], CONTEXT * 2);
        let (after, cut_right) = first_chars(&source.text[end..line.end], CONTEXT);
        let shown = |text: &str, from: usize| self.masked(raw.at.file, text, from);
        let dots = |cut: bool| if cut { "..." } else { "" };
        let before = format!("{}{}", dots(cut_left), shown(before, start - before.len()));
        let place = format!("{}{}", shown(place, start), dots(cut_place));
        let after = if cut_place { String::new() } else { shown(after, end) + dots(cut_right) };
        let gutter = " ".repeat(number.to_string().len());
        let carets = "^".repeat(width(&place).max(1));
        let mut out = format!("  {number} | {before}{place}{after}");
        out.truncate(out.trim_end().len());
        let _ = write!(out, "\n  {gutter} | {}{carets} {}", " ".repeat(width(&before)), raw.may);
        out.truncate(out.trim_end().len());
        out
    }

    /// `text`, which begins at byte `from` of the file, without what is hidden.
    fn masked(&self, file: usize, text: &str, from: usize) -> String {
        let to = from + text.len();
        let hidden: Vec<&At> = self
            .hidden
            .iter()
            .filter(|at| at.file == file && at.start < to && from < at.end)
            .collect();
        let mask = |(place, c): (usize, char)| {
            let place = from + place;
            if hidden.iter().any(|at| (at.start..at.end).contains(&place)) { '*' } else { c }
        };
        printable(&text.char_indices().map(mask).collect::<String>())
    }
}

impl Source<'_> {
    /// Line and column, in characters, both from 1.
    fn position(&self, byte: usize) -> (usize, usize) {
        let line = self.line_of(byte);
        let start = self.lines[line - 1];
        let column = self.text.get(start..byte).map_or(0, |text| text.chars().count());
        (line, column + 1)
    }

    fn line_of(&self, byte: usize) -> usize {
        self.lines.partition_point(|&start| start <= byte).max(1)
    }

    /// The bytes of a line without its end.
    fn line(&self, number: usize) -> Range<usize> {
        let start = self.lines[number - 1];
        let end = self.lines.get(number).map_or(self.text.len(), |next| next - 1);
        start..start + self.text[start..end].trim_end_matches('\r').len()
    }

    /// The numbers of the lines that a place covers.
    fn lines_of(&self, at: &At) -> RangeInclusive<usize> {
        self.line_of(at.start)..=self.line_of(at.end.saturating_sub(1).max(at.start))
    }
}

/// How many columns a text takes, near enough for a caret.
fn width(text: &str) -> usize {
    text.chars().count()
}

/// At most `number` characters from the front, and whether that cut something.
fn first_chars(text: &str, number: usize) -> (&str, bool) {
    match text.char_indices().nth(number) {
        Some((end, _)) => (&text[..end], true),
        None => (text, false),
    }
}

/// At most `number` characters from the back, and whether that cut something.
fn last_chars(text: &str, number: usize) -> (&str, bool) {
    match text.char_indices().rev().nth(number) {
        Some((place, c)) => (&text[place + c.len_utf8()..], true),
        None => (text, false),
    }
}

/// A text that stood in the file, short and quoted, safe on a terminal.
pub(super) fn shown(text: &str) -> String {
    match first_chars(text, 40) {
        (head, true) => format!("{head:?}..."),
        (all, false) => format!("{all:?}"),
    }
}
