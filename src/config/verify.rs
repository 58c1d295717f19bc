//! When the boundary is measured without anybody asking, and what follows from a violation.

use std::time::Duration;

use serde::Serialize;

use super::cite::Report;
use super::fields::{by_rule, choice, in_range, plain};
use super::file::Value;
use super::rules::quantities;

const KEYS: &[&str] = &["before-ready", "every", "on-violation"];
const BEFORE_READY: [(&str, bool); 2] = [("measure", true), ("skip", false)];
const ON_VIOLATION: [(&str, OnViolation); 3] =
    [("alert", OnViolation::Alert), ("freeze", OnViolation::Freeze), ("stop", OnViolation::Stop)];

/// When the boundary is measured, and what follows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VerifyConfig {
    /// Whether an agent's sandbox is measured before each start of the agent.
    pub before_ready: bool,
    /// How often all running agents are measured, besides after each apply by flockd; none means
    /// that flockd does neither.
    pub every: Option<Duration>,
    /// What is done to an agent whose boundary does not hold.
    pub on_violation: OnViolation,
}

impl Default for VerifyConfig {
    fn default() -> Self {
        Self {
            before_ready: true,
            every: Some(Duration::from_secs(3600)),
            on_violation: OnViolation::Alert,
        }
    }
}

/// What is done to an agent whose boundary does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnViolation {
    /// People are told.
    Alert,
    /// Its processes are held still, too.
    Freeze,
    /// It is stopped, too.
    Stop,
}

/// The table `[verify]`.
pub(super) fn read(value: &Value<'_>, report: &mut Report<'_>) -> Option<VerifyConfig> {
    let mut table = value.keys(report, KEYS)?;
    let mut verify = VerifyConfig::default();
    if let Some(before) =
        plain(table.read("before-ready", report, |v, r| choice(v, r, &BEFORE_READY)))
    {
        verify.before_ready = before;
    }
    if let Some(every) = plain(table.read("every", report, every)) {
        verify.every = every;
    }
    if let Some(what) =
        plain(table.read("on-violation", report, |v, r| choice(v, r, &ON_VIOLATION)))
    {
        verify.on_violation = what;
    }
    Some(verify)
}

/// The inner none is never.
fn every(value: &Value<'_>, report: &mut Report<'_>) -> Option<Option<Duration>> {
    let range = Duration::from_secs(10)..=Duration::from_secs(30 * 86_400);
    by_rule(value, report, "a duration from 10s to 30d, or \"never\"", |text| match text {
        "never" => Ok(None),
        text => in_range(quantities::duration(text)?, &range).map(Some),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn of(text: &str) -> Result<VerifyConfig, String> {
        let config = parse(&[("flock.toml".into(), text.to_owned())]);
        config.map(|config| config.verify).map_err(|faults| faults.to_string())
    }

    #[test]
    fn what_is_not_said_is_measured() {
        assert_eq!(of("").unwrap(), VerifyConfig::default());
        assert!(VerifyConfig::default().before_ready && VerifyConfig::default().every.is_some());
        let all =
            "[verify]\nbefore-ready = \"skip\"\nevery = \"never\"\non-violation = \"freeze\"\n";
        let wanted =
            VerifyConfig { before_ready: false, every: None, on_violation: OnViolation::Freeze };
        assert_eq!(of(all).unwrap(), wanted);
        assert_eq!(of("[verify]\nevery = \"10min\"").unwrap().every.unwrap().as_secs(), 600);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in [
            "every = \"1s\"",
            "every = \"off\"",
            "on-violation = \"kill\"",
            "on_violation = \"stop\"",
            "before-ready = true",
        ] {
            of(&format!("[verify]\n{bad}\n")).unwrap_err();
        }
    }
}
