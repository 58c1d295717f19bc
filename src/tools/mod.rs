//! Tool rules: which programs an agent's command may use, with which arguments, and who is asked.
//!
//! Pure: rules in, a decision out. The configuration makes [`Rules`], the plan puts them as a file
//! of root's into the agent's root directory, `flock-agent` decides by them.
//!
//! - [`Rules::decide`]: allow, ask or deny, and why
//! - [`shape`]: patterns of arguments

pub mod shape;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::text::printable;
use shape::{Options, Shape};

/// The file with an agent's rules, relative to its root directory.
pub const RULES_FILE: &str = "etc/flock/tools.json";
/// The variable that tells `flock-agent` where the rules are; without it there are none.
pub const RULES_VARIABLE: &str = "FLOCK_TOOL_RULES";
/// The variable that tells a tool's stand-in where the broker listens.
pub const SOCKET_VARIABLE: &str = "FLOCK_TOOLS";
/// Most arguments of one call.
pub const ARGUMENTS_MAX: usize = 256;
/// Most bytes of all arguments of one call.
pub const ARGUMENT_BYTES_MAX: usize = 64 * 1024;
/// Words that are no names of tools: flock gives them a meaning of its own.
pub const RESERVED: [&str; 3] = ["direct", "confine", "flock-agent"];

/// Everything that is said about an agent's tools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rules {
    /// Programs that the command may start itself, besides its own.
    pub direct: Vec<PathBuf>,
    /// The tools by name.
    pub tools: BTreeMap<String, Tool>,
}

/// One tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Tool {
    /// The program, absolute, and the arguments that always come first.
    pub command: Vec<String>,
    /// Shapes that are denied; they win.
    pub deny: Vec<Shape>,
    /// Shapes for which an operator is asked.
    pub ask: Vec<Shape>,
    /// Shapes that run at once.
    pub allow: Vec<Shape>,
    /// What holds for arguments that no shape matches.
    pub rest: Action,
    /// The longest it may run, in seconds.
    pub timeout: u64,
    /// The most bytes that it may write, standard output and standard error together.
    pub output_limit: u64,
    /// How long it waits for an operator, in seconds.
    pub ask_timeout: u64,
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It runs.
    Allow,
    /// An operator decides.
    Ask,
    /// It does not run.
    Deny,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Deny => "deny",
        })
    }
}

/// What becomes of one call, and by which rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What.
    pub action: Action,
    /// The rule, for people.
    pub why: String,
}

impl Rules {
    /// Decides about one call. What nothing allows is denied.
    #[must_use]
    pub fn decide(&self, name: &str, arguments: &[String]) -> Decision {
        let deny = |why: String| Decision { action: Action::Deny, why };
        let Some(tool) = self.tools.get(name) else {
            return deny("it is no tool of this agent".to_owned());
        };
        if arguments.len() > ARGUMENTS_MAX {
            return deny(format!("it has more than {ARGUMENTS_MAX} arguments"));
        }
        if arguments.iter().map(String::len).sum::<usize>() > ARGUMENT_BYTES_MAX {
            return deny(format!("its arguments have more than {ARGUMENT_BYTES_MAX} bytes"));
        }
        if arguments.iter().any(|argument| argument.contains('\0')) {
            return deny("a zero byte stands in an argument".to_owned());
        }
        tool.decide(arguments)
    }

    /// Whether anything can ever ask an operator.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.tools.values().any(|tool| tool.rest == Action::Ask || !tool.ask.is_empty())
    }
}

impl Tool {
    fn decide(&self, arguments: &[String]) -> Decision {
        let lists = [
            (Action::Deny, &self.deny, Options::Any),
            (Action::Ask, &self.ask, Options::Named),
            (Action::Allow, &self.allow, Options::Named),
        ];
        for (action, shapes, options) in lists {
            if let Some(shape) = shapes.iter().find(|shape| shape.matches(arguments, options)) {
                return Decision { action, why: format!("{action} = {shape}") };
            }
        }
        let why = match (self.has_shapes(), self.rest) {
            (true, Action::Deny) => "no rule allows these arguments".to_owned(),
            (_, rest) => format!("decision = {rest}"),
        };
        Decision { action: self.rest, why }
    }

    /// Whether something depends on the arguments.
    #[must_use]
    pub fn has_shapes(&self) -> bool {
        !(self.deny.is_empty() && self.ask.is_empty() && self.allow.is_empty())
    }
}

/// Whether a tool may have this name: it becomes a file in a directory of programs.
///
/// # Errors
/// Why not.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"._+-".contains(&c);
    if name.is_empty() || name.len() > 32 || !name.bytes().all(plain) {
        return Err("it is no name of a tool".to_owned());
    }
    if !name.as_bytes()[0].is_ascii_alphanumeric() {
        return Err("it does not begin with a letter or a digit".to_owned());
    }
    if RESERVED.contains(&name) {
        return Err("flock keeps this name for itself".to_owned());
    }
    Ok(())
}

/// Words as people write them: what has blanks or quotes in it, or could steer a terminal, is quoted.
#[must_use]
pub fn words(words: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%*~".contains(c);
    let word = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        // Debug leaves some characters that reorder the text around them.
        false => printable(&format!("{word:?}")),
    };
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(list: &[&[&str]]) -> Vec<Shape> {
        let of = |words: &&[&str]| words.iter().map(|&w| w.to_owned()).collect();
        list.iter().map(|words| Shape::new(of(words)).unwrap()).collect()
    }

    fn git() -> Rules {
        let git = Tool {
            command: vec!["/usr/bin/git".into()],
            deny: shapes(&[&["push", "*", "main"]]),
            ask: shapes(&[&["push", "origin", "*"]]),
            allow: shapes(&[&["status"], &["log", "**"], &["push", "origin", "main"]]),
            rest: Action::Deny,
            timeout: 60,
            output_limit: 1024,
            ask_timeout: 600,
        };
        Rules { direct: Vec::new(), tools: [("git".to_owned(), git)].into() }
    }

    fn decide(rules: &Rules, words: &[&str]) -> Action {
        let arguments: Vec<String> = words[1..].iter().map(|&w| w.to_owned()).collect();
        rules.decide(words[0], &arguments).action
    }

    #[test]
    fn deny_wins_then_ask_then_allow_then_the_rest() {
        let mut rules = git();
        assert_eq!(decide(&rules, &["git", "status"]), Action::Allow);
        assert_eq!(decide(&rules, &["git", "log", "a", "b"]), Action::Allow);
        assert_eq!(decide(&rules, &["git", "push", "origin", "topic"]), Action::Ask);
        assert_eq!(decide(&rules, &["git", "push", "origin", "main"]), Action::Deny);
        assert_eq!(decide(&rules, &["git", "push", "--force", "topic"]), Action::Deny);
        assert_eq!(decide(&rules, &["git", "-c", "core.pager=id", "status"]), Action::Deny);
        assert_eq!(decide(&rules, &["git"]), Action::Deny);
        assert_eq!(decide(&rules, &["rm", "-rf"]), Action::Deny);
        assert!(rules.asks());
        for rest in [Action::Ask, Action::Allow] {
            rules.tools.get_mut("git").unwrap().rest = rest;
            assert_eq!(decide(&rules, &["git", "fetch"]), rest);
            assert_eq!(decide(&rules, &["git", "push", "x", "main"]), Action::Deny);
        }
    }

    #[test]
    fn what_is_too_much_is_denied_whatever_the_rule() {
        let mut rules = git();
        let tool = rules.tools.get_mut("git").unwrap();
        *tool =
            Tool { deny: vec![], ask: vec![], allow: vec![], rest: Action::Allow, ..tool.clone() };
        assert_eq!(decide(&rules, &["git", "anything", "--at", "all"]), Action::Allow);
        assert_eq!(rules.decide("git", &vec![String::new(); 257]).action, Action::Deny);
        assert_eq!(rules.decide("git", &["x".repeat(64 * 1024 + 1)]).action, Action::Deny);
        assert_eq!(rules.decide("git", &["a\0b".to_owned()]).action, Action::Deny);
    }

    #[test]
    fn names_are_file_names_and_not_flocks_own() {
        for name in ["git", "g++", "python3.13", "apt-get", "7z", "a_b"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        let long = "a".repeat(33);
        for name in
            ["", ".", "..", "a/b", "-x", "a b", "é", "direct", "confine", "flock-agent", &long]
        {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn rules_survive_the_file() {
        let json = serde_json::to_string(&git()).unwrap();
        assert_eq!(serde_json::from_str::<Rules>(&json).unwrap(), git());
        assert!(serde_json::from_str::<Rules>(r#"{"direct":[],"tools":{},"more":1}"#).is_err());
    }

    #[test]
    fn words_for_people_cannot_steer_a_terminal() {
        let list = ["a b", "", "\u{202e}x", "\x1b[0m", "ok"].map(str::to_owned);
        let text = words(&list);
        assert!(!text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{text}");
        assert!(text.starts_with("\"a b\" \"\" ") && text.ends_with(" ok"), "{text}");
    }
}
