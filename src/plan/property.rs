//! A systemd unit property as data, and the systemd that knows it.

use serde::Serialize;

/// One property of a transient unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Property {
    /// The name over D-Bus, which is not always the name in a unit file.
    pub name: &'static str,
    /// What it is set to.
    pub value: Value,
    /// The first systemd whose StartTransientUnit takes it.
    pub since: u16,
    /// The first systemd that is given another property instead, if any.
    pub until: Option<u16>,
}

/// A value and its D-Bus signature.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `t`
    U64(u64),
    /// `s`
    Str(String),
    /// `as`
    Strs(Vec<String>),
    /// `(bas)`: whether the list allows, and the list.
    List(bool, Vec<String>),
    /// `(aiai)`: exit statuses and signals.
    Statuses(Vec<i32>, Vec<i32>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
    /// `a(sb)`: environment files and whether each may be missing.
    Files(Vec<(String, bool)>),
    /// `a(ssbt)`: source, target, may be missing, flags.
    Binds(Vec<(String, String, bool, u64)>),
    /// `a(iayu)`: family, address, prefix length.
    Addresses(Vec<(i32, Vec<u8>, u32)>),
    /// `a(sasas)`: path, argv, flags.
    Exec(Vec<(String, Vec<String>, Vec<String>)>),
    /// `a(sasb)`: path, argv, whether a failure counts as none.
    Command(Vec<(String, Vec<String>, bool)>),
    /// `aay`: journal fields.
    Fields(Vec<String>),
}

impl Property {
    /// A property that every supported systemd (252 and later) takes.
    pub fn new(name: &'static str, value: impl Into<Value>) -> Self {
        Self { name, value: value.into(), since: 252, until: None }
    }

    /// A property that came with a later systemd.
    pub fn since(since: u16, name: &'static str, value: impl Into<Value>) -> Self {
        Self { name, value: value.into(), since, until: None }
    }

    /// The same property, for systemd older than `until` only.
    #[must_use]
    pub fn until(self, until: u16) -> Self {
        Self { until: Some(until), ..self }
    }

    /// Whether every supported systemd is given the property.
    #[must_use]
    pub fn is_for_all(&self) -> bool {
        self.since <= 252 && self.until.is_none()
    }

    /// Whether this systemd is given the property.
    #[must_use]
    pub fn is_for(&self, systemd: u16) -> bool {
        systemd >= self.since && self.until.is_none_or(|until| systemd < until)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self::I32(value)
    }
}
impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}
impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::U64(value)
    }
}
impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Str(value.to_owned())
    }
}
impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Str(value)
    }
}
impl<const N: usize> From<[&str; N]> for Value {
    fn from(value: [&str; N]) -> Self {
        Self::Strs(value.iter().map(|&s| s.to_owned()).collect())
    }
}
impl From<Vec<String>> for Value {
    fn from(value: Vec<String>) -> Self {
        Self::Strs(value)
    }
}
