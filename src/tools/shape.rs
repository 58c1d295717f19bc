//! The shape of a command line: one pattern for each argument.
//!
//! - a word stands for itself; `*` in it stands for any characters, none included
//! - `**` as the last word stands for any number of further arguments, `-**` also for options
//! - a pattern that does not begin with `-` never matches an argument that does. So `["push", "*"]`
//!   lets neither `--force` nor `--upload-pack=…` through. What is denied is matched without this
//!   rule: a shape that denies should deny more rather than less.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most words of one shape.
pub const WORDS_MAX: usize = 32;
/// Most bytes of one word of a shape.
pub const WORD_MAX: usize = 256;

/// The patterns of all arguments, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shape(Vec<String>);

/// How options are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Options {
    /// Only a pattern that begins with `-` matches an option: for what is let through.
    Named,
    /// A wildcard matches options too: for what is denied.
    Any,
}

impl Shape {
    /// Checks the patterns once.
    ///
    /// # Errors
    /// With the index of the word that cannot be, and why.
    pub fn new(words: Vec<String>) -> Result<Self, (usize, String)> {
        if words.len() > WORDS_MAX {
            return Err((WORDS_MAX, format!("a shape has at most {WORDS_MAX} words")));
        }
        for (at, word) in words.iter().enumerate() {
            if word.len() > WORD_MAX {
                return Err((at, format!("it is longer than {WORD_MAX} bytes")));
            }
            if word.chars().any(char::is_control) {
                return Err((at, "a control character stands in it".to_owned()));
            }
            if word.contains("**") && !is_rest(word) {
                return Err((at, "** stands alone, as the last word".to_owned()));
            }
            if is_rest(word) && at + 1 < words.len() {
                return Err((at, format!("{word} is not the last word")));
            }
        }
        Ok(Self(words))
    }

    /// Whether these arguments have this shape.
    #[must_use]
    pub fn matches(&self, arguments: &[String], options: Options) -> bool {
        let (fixed, rest) = match self.0.split_last() {
            Some((last, fixed)) if is_rest(last) => (fixed, Some(last)),
            _ => (&self.0[..], None),
        };
        let fits = |(pattern, argument): (&String, &String)| one(pattern, argument, options);
        if arguments.len() < fixed.len() || !fixed.iter().zip(arguments).all(fits) {
            return false;
        }
        let further = &arguments[fixed.len()..];
        match rest {
            None => further.is_empty(),
            Some(rest) => {
                options == Options::Any
                    || rest == "-**"
                    || !further.iter().any(|argument| argument.starts_with('-'))
            }
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("(no arguments)");
        }
        f.write_str(&super::words(&self.0))
    }
}

fn is_rest(word: &str) -> bool {
    word == "**" || word == "-**"
}

/// One pattern against one argument.
fn one(pattern: &str, argument: &str, options: Options) -> bool {
    let option = argument.starts_with('-') && !pattern.starts_with('-');
    (options == Options::Any || !option) && glob(pattern.as_bytes(), argument.as_bytes())
}

/// `*` is any bytes; everything else is itself. Goes back to the last `*` only, so the time is at
/// most the product of both lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            p = at + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(words: &[&str]) -> Shape {
        Shape::new(words.iter().map(|&w| w.to_owned()).collect()).unwrap()
    }

    fn fits(words: &[&str], arguments: &[&str], options: Options) -> bool {
        let arguments: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
        shape(words).matches(&arguments, options)
    }

    #[test]
    fn words_stars_and_the_rest() {
        let yes: [(&[&str], &[&str]); 14] = [
            (&[], &[]),
            (&["status"], &["status"]),
            (&["push", "origin", "*"], &["push", "origin", "main"]),
            (&["*"], &[""]),
            (&["*"], &["a/b c\n'\"$(id)"]),
            (&["a*c"], &["ac"]),
            (&["a*b*c"], &["aXbbYc"]),
            (&["**"], &[]),
            (&["log", "**"], &["log", "a", "b"]),
            (&["log", "-**"], &["log", "--all", "x", "-n"]),
            (&["--depth=*"], &["--depth=1"]),
            (&["-*"], &["--"]),
            (&["漢*"], &["漢字"]),
            (&[""], &[""]),
        ];
        for (words, arguments) in yes {
            assert!(fits(words, arguments, Options::Named), "{words:?} {arguments:?}");
            assert!(fits(words, arguments, Options::Any), "{words:?} {arguments:?}");
        }
        let no: [(&[&str], &[&str]); 9] = [
            (&[], &["x"]),
            (&["status"], &[]),
            (&["status"], &["status", "x"]),
            (&["status"], &["Status"]),
            (&["*"], &[]),
            (&["*"], &["a", "b"]),
            (&["a*c"], &["acd"]),
            (&["a.c"], &["abc"]),
            (&["log", "**"], &["log2"]),
        ];
        for (words, arguments) in no {
            assert!(!fits(words, arguments, Options::Any), "{words:?} {arguments:?}");
        }
    }

    #[test]
    fn an_option_slips_through_no_wildcard_that_allows_and_through_every_one_that_denies() {
        let shapes: [&[&str]; 3] = [&["push", "*"], &["push", "**"], &["push", "*force"]];
        for words in shapes {
            assert!(!fits(words, &["push", "--force"], Options::Named), "{words:?}");
            assert!(fits(words, &["push", "--force"], Options::Any), "{words:?}");
        }
        assert!(!fits(&["push", "**"], &["push", "origin", "-f"], Options::Named));
        assert!(!fits(&["*"], &["-"], Options::Named));
    }

    #[test]
    fn shapes_that_mean_nothing_are_refused() {
        let bad = |words: &[&str]| Shape::new(words.iter().map(|&w| w.to_owned()).collect());
        assert_eq!(bad(&["**", "x"]).unwrap_err().0, 0);
        assert_eq!(bad(&["a", "b**"]).unwrap_err().0, 1);
        assert_eq!(bad(&["***"]).unwrap_err().0, 0);
        assert_eq!(bad(&["a", "b\0"]).unwrap_err().0, 1);
        assert!(bad(&["x"; 33]).is_err() && bad(&[&"x".repeat(257)]).is_err());
    }

    #[test]
    fn a_hostile_argument_costs_no_time() {
        let begun = std::time::Instant::now();
        let pattern = "a*".repeat(100) + "b";
        assert!(!glob(pattern.as_bytes(), "a".repeat(200_000).as_bytes()));
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    }

    /// The plain meaning, by recursion.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some(b'*'), _) => {
                slow(&pattern[1..], text) || (!text.is_empty() && slow(pattern, &text[1..]))
            }
            (Some(p), Some(t)) if p == t => slow(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn the_quick_way_means_the_same(pattern in "[ab*]{0,7}", text in "[ab]{0,9}") {
            prop_assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                slow(pattern.as_bytes(), text.as_bytes())
            );
        }

        #[test]
        fn a_word_without_a_star_matches_itself_alone(word in "[^*]{0,12}", other in ".{0,12}") {
            prop_assert!(one(&word, &word, Options::Named));
            prop_assert_eq!(one(&word, &other, Options::Any), word == other);
        }

        #[test]
        fn no_option_passes_a_pattern_that_names_none(
            pattern in "[^-].{0,8}|", option in "-.{0,12}",
        ) {
            prop_assert!(!one(&pattern, &option, Options::Named));
        }
    }
}
