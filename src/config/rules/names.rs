//! Names and values of environment variables, and names of secrets.

use crate::names::{DANGEROUS_VARIABLES, variable_matches};

/// Variables that are refused, with the reason. A `*` at the end stands for any rest.
const REFUSED: [(&str, &str); 25] = [
    ("AGENT_ID", "flock sets it"),
    ("NATS_*", "flock sets it"),
    ("SHARED_DIR", "flock sets it"),
    ("HOME", "flock sets it"),
    ("XDG_RUNTIME_DIR", "flock sets it"),
    ("FLOCK_*", "flock keeps it for itself"),
    ("USER", "systemd sets it from the agent's user"),
    ("LOGNAME", "systemd sets it from the agent's user"),
    ("SHELL", "systemd sets it from the agent's user"),
    ("NOTIFY_SOCKET", "systemd sets it"),
    ("LISTEN_*", "systemd sets it"),
    ("MAINPID", "systemd sets it"),
    ("MANAGERPID", "systemd sets it"),
    ("INVOCATION_ID", "systemd sets it"),
    ("JOURNAL_STREAM", "systemd sets it"),
    ("WATCHDOG_*", "systemd sets it"),
    ("CREDENTIALS_DIRECTORY", "systemd sets it"),
    ("RUNTIME_DIRECTORY", "systemd sets it"),
    ("STATE_DIRECTORY", "systemd sets it"),
    ("CACHE_DIRECTORY", "systemd sets it"),
    ("LOGS_DIRECTORY", "systemd sets it"),
    ("CONFIGURATION_DIRECTORY", "systemd sets it"),
    ("SYSTEMD_*", "systemd sets it"),
    ("MONITOR_*", "systemd sets it"),
    ("MEMORY_PRESSURE_*", "systemd sets it"),
];

/// The longest name of a variable, and the longest value.
const NAME_MAX: usize = 128;
const VALUE_MAX: usize = 32 * 1024;

/// `[A-Za-z_][A-Za-z0-9_]*`, and not one that flock or systemd sets or that is dangerous.
pub(in crate::config) fn variable(name: &str) -> Result<(), String> {
    let rest = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(rest) {
        return Err("it is no name of a variable".to_owned());
    }
    if name.len() > NAME_MAX {
        return Err(format!("it is longer than {NAME_MAX} characters"));
    }
    let mut refused = REFUSED.iter().chain(&DANGEROUS_VARIABLES);
    match refused.find(|(pattern, _)| variable_matches(name, pattern)) {
        Some((_, why)) => Err((*why).to_owned()),
        None => Ok(()),
    }
}

/// A text that reaches systemd or a process: a line break would add a setting to the unit.
pub(in crate::config) fn plain_text(text: &str) -> Result<(), String> {
    if text.contains('\n') {
        return Err("a line break stands in it".to_owned());
    }
    if let Some(c) = text.chars().find(|c| c.is_control()) {
        return Err(format!("the control character U+{:04X} stands in it", u32::from(c)));
    }
    if text.len() > VALUE_MAX {
        return Err(format!("it is longer than {VALUE_MAX} bytes"));
    }
    Ok(())
}

/// The file name of a secret: `[A-Za-z0-9._-]{1,64}`, no dot in front.
pub(in crate::config) fn secret(name: &str) -> Result<(), String> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err("it is no name of a secret".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables() {
        for name in ["A", "_x", "OPENAI_API_KEY", "PATH", "NODE_OPTIONS", "LDAP_URL", "NATSX"] {
            assert_eq!(variable(name), Ok(()), "{name}");
        }
        let bad = [
            "",
            "1A",
            "A B",
            "A=B",
            "A-B",
            "é",
            "A\n",
            "AGENT_ID",
            "NATS_URL",
            "NATS_",
            "HOME",
            "LD_PRELOAD",
            "SHARED_DIR",
            "FLOCK_X",
            "BASH_ENV",
            "GLIBC_TUNABLES",
            "BASH_FUNC_ls",
        ];
        for name in bad {
            assert!(variable(name).is_err(), "{name:?}");
        }
        assert!(variable(&"A".repeat(129)).is_err());
    }

    #[test]
    fn texts() {
        assert_eq!(plain_text("50% of $HOME \"x\" é"), Ok(()));
        for text in ["a\nb", "a\0", "\t", "\x1b[0m", "\u{9b}", "\u{7f}"] {
            assert!(plain_text(text).is_err(), "{text:?}");
        }
        assert!(plain_text(&"x".repeat(VALUE_MAX + 1)).is_err());
    }

    #[test]
    fn secrets() {
        assert_eq!(secret("openai.key"), Ok(()));
        for name in ["", ".", "..", ".x", "a/b", "a b", "a\n", "é", "%n"] {
            assert!(secret(name).is_err(), "{name:?}");
        }
        assert!(secret(&"x".repeat(65)).is_err());
    }
}
