//! The variables that a task may bring for its command (pure): whoever sends a task checks them, and
//! whoever runs it checks them again.

use std::collections::BTreeMap;

use crate::names::{DANGEROUS_VARIABLES, variable_matches};

/// Most variables of one task.
pub const MOST: usize = 32;
/// The longest name.
pub const NAME_MAX: usize = 128;
/// The longest value, in bytes.
pub const VALUE_MAX: usize = 4 * 1024;

/// Names that are refused, with the reason. A `*` at the end stands for any rest.
const REFUSED: [(&str, &str); 8] = [
    ("AGENT_ID", FLOCK),
    ("SHARED_DIR", FLOCK),
    ("HOME", FLOCK),
    ("PATH", "it decides which programs the agent runs"),
    ("NATS_*", FLOCK),
    ("TASK_*", FLOCK),
    ("FLOCK_*", FLOCK),
    ("XDG_*", FLOCK),
];
const FLOCK: &str = "flock sets it";

/// Why a task's variables are refused. The values are never shown: people put secrets there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEnvironment {
    /// There are too many.
    #[error("a task brings {0} variables: at most {MOST} are allowed")]
    TooMany(usize),
    /// One is called what no variable of a task can be called.
    #[error(
        "a task brings the variable {0:?}: a name is A-Z, 0-9 and _, with no digit in front, at most {NAME_MAX} characters"
    )]
    Name(String),
    /// One has a name that is not the sender's to set.
    #[error("a task brings the variable {0}: {1}; use another name")]
    Refused(String, &'static str),
    /// One has a value that no variable can have, or that is too long.
    #[error("a task brings the variable {0}: its value {1}")]
    Value(String, String),
}

/// Checks the variables of a task.
///
/// # Errors
/// With the first variable that may not be there.
pub fn check(environment: &BTreeMap<String, String>) -> Result<(), BadEnvironment> {
    if environment.len() > MOST {
        return Err(BadEnvironment::TooMany(environment.len()));
    }
    environment.iter().try_for_each(|(name, value)| variable(name, value))
}

/// Checks one variable.
///
/// # Errors
/// When it may not be there.
pub fn variable(name: &str, value: &str) -> Result<(), BadEnvironment> {
    let rest = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_';
    let digit = name.bytes().next().is_none_or(|c| c.is_ascii_digit());
    if digit || name.len() > NAME_MAX || !name.bytes().all(rest) {
        return Err(BadEnvironment::Name(name.chars().take(NAME_MAX).collect()));
    }
    let mut refused = REFUSED.iter().chain(&DANGEROUS_VARIABLES);
    if let Some((_, why)) = refused.find(|(pattern, _)| variable_matches(name, pattern)) {
        return Err(BadEnvironment::Refused(name.to_owned(), why));
    }
    let bad = |why: String| Err(BadEnvironment::Value(name.to_owned(), why));
    match value {
        value if value.contains('\0') => bad("has a NUL in it".to_owned()),
        value if value.len() > VALUE_MAX => {
            bad(format!("has {} bytes, at most {VALUE_MAX} are allowed", value.len()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_variables_are_allowed() {
        for (name, value) in [
            ("A", ""),
            ("_X9", "a\nb = $HOME %n \"é\""),
            ("OPENAI_API_KEY", &"x".repeat(VALUE_MAX)),
        ] {
            assert_eq!(variable(name, value), Ok(()), "{name}");
        }
        let full = (0..MOST).map(|n| (format!("V{n}"), String::new())).collect();
        assert_eq!(check(&full), Ok(()));
    }

    #[test]
    fn what_is_not_the_senders_is_refused_by_name() {
        for name in [
            "AGENT_ID",
            "SHARED_DIR",
            "HOME",
            "PATH",
            "NATS_",
            "NATS_PASSWORD",
            "TASK_ID",
            "FLOCK_X",
            "LD_PRELOAD",
            "XDG_RUNTIME_DIR",
            "BASH_ENV",
            "BASH_FUNC_LS",
            "GLIBC_TUNABLES",
            "IFS",
        ] {
            let error = variable(name, "secret").unwrap_err();
            assert!(matches!(error, BadEnvironment::Refused(..)), "{name}: {error}");
            assert!(error.to_string().contains(name) && !error.to_string().contains("secret"));
        }
        for name in
            ["", "1A", "a", "PATHx", "A B", "A=B", "A-B", "É", "A\n", "A\0", &"A".repeat(129)]
        {
            let error = variable(name, "").unwrap_err();
            assert!(matches!(error, BadEnvironment::Name(_)), "{name:?}: {error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn values_and_numbers_are_bounded() {
        assert!(matches!(variable("A", "x\0y"), Err(BadEnvironment::Value(..))));
        assert!(matches!(
            variable("A", &"x".repeat(VALUE_MAX + 1)),
            Err(BadEnvironment::Value(..))
        ));
        let many = (0..=MOST).map(|n| (format!("V{n}"), String::new())).collect();
        assert_eq!(check(&many), Err(BadEnvironment::TooMany(MOST + 1)));
        let one = BTreeMap::from([("HOME".to_owned(), "/tmp".to_owned())]);
        assert!(check(&one).is_err());
    }
}
