//! What `events`, `broadcast` and `channel` share: the conversation with flockd, words from the
//! command line or standard input, and lines of agents that are safe on a terminal.

use std::io::{self, IsTerminal as _, Read as _};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::bus::speak::TEXT_MAX;
use crate::cli::{Failure, out};
use crate::control::{Client, ClientError, Heard, Request, Response, Talk, WRITE_TIME};
use crate::text::printable;

/// So many characters of a message are shown to people.
const SHOWN: usize = 8 * 1024;

/// Asks flockd, and hands each line of the answer to `show`, until its end or Ctrl-C. What went
/// missing is said on standard error.
pub fn converse(
    talk: Talk,
    mut show: impl FnMut(Heard) -> Result<(), Failure>,
) -> Result<(), Failure> {
    out::wait(async {
        let conversation = async {
            let mut client =
                Client::ask(&Request::Talk(talk)).await.map_err(|e| out::by_flockd(&e))?;
            while let Some(response) = client.next().await.map_err(|e| ended(&e))? {
                let Response::Heard(heard) = response else { return Err(out::garbled()) };
                match remark(&heard) {
                    Some(text) => eprintln!("flockctl: {text}"),
                    None => show(heard)?,
                }
            }
            Ok(())
        };
        tokio::select! {
            result = conversation => result,
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    })
}

/// Why the conversation broke off.
fn ended(error: &ClientError) -> Failure {
    match error {
        ClientError::Broken(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
            Failure::failed(format!(
                "flockd closed the connection: it was stopped, or nothing was read here for {} s: \
                 see journalctl -u flockd",
                WRITE_TIME.as_secs()
            ))
        }
        other => out::by_flockd(other),
    }
}

/// What is not heard.
fn remark(heard: &Heard) -> Option<String> {
    match heard {
        Heard::LeftOut { count: 1 } => Some("1 message is left out here: it came faster than it was read".to_owned()),
        Heard::LeftOut { count } => {
            Some(format!("{count} messages are left out here: they came faster than they were read"))
        }
        Heard::Bus { up: false } => {
            Some("the bus is not there: nothing is heard until it is back; see `systemctl status flock-bus`".to_owned())
        }
        Heard::Bus { up: true } => Some("the bus is back".to_owned()),
        _ => None,
    }
}

/// The words that are to be said: as given, or with `-` or nothing from standard input.
pub fn words(given: Option<&str>) -> Result<String, Failure> {
    let text = match given {
        Some(text) if text != "-" => text.to_owned(),
        None if io::stdin().is_terminal() => String::new(),
        _ => from_stdin()?,
    };
    match (text.trim().is_empty(), text.len() > TEXT_MAX) {
        (true, _) => {
            Err(Failure::usage("what is to be said? give a text, or - for standard input"))
        }
        (_, true) => Err(Failure::usage(format!(
            "at most {TEXT_MAX} bytes are said: put the text into a file below /shared/common and name that"
        ))),
        (false, false) => Ok(text),
    }
}

/// One byte more than fits is read, no more.
fn from_stdin() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = io::stdin().take(TEXT_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::failed(format!("read standard input: {e}")))?;
    // The cut may stand inside a character of a text that is too long anyway.
    match bytes.len() > TEXT_MAX {
        true => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        false => String::from_utf8(bytes)
            .map_err(|_| Failure::usage("read standard input: it is no UTF-8 text")),
    }
}

/// `2026-11-21 10:00:00 agent-1 `: what stands before each message.
pub fn head(at: Timestamp, from: &str, zone: &TimeZone) -> String {
    format!("{} {} ", at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S"), printable(from))
}

/// A message of an agent behind `head`. Further lines of it cannot pass for another message.
pub fn lines(head: &str, text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    let cut = shown.len() < text.len();
    shown.truncate(shown.trim_end_matches(['\n', '\r']).len());
    let between = format!("\n{:>width$}", "| ", width = head.chars().count());
    let lines: Vec<_> = shown.split('\n').map(printable).collect();
    let end = if cut { " … (cut here; --json shows the whole)" } else { "" };
    format!("{head}{}{end}", lines.join(&between))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_pass_for_two_nor_steer_the_terminal() {
        let head = head(Timestamp::UNIX_EPOCH, "agent-1", &TimeZone::UTC);
        assert_eq!(head, "1970-01-01 00:00:00 agent-1 ");
        let text = "x\r\n1970-01-01 00:00:01 operator stop\u{1b}[2J\u{202e}\n";
        assert_eq!(
            lines(&head, text),
            "1970-01-01 00:00:00 agent-1 x\\u{d}\n                          | \
             1970-01-01 00:00:01 operator stop\\u{1b}[2J\\u{202e}"
        );
    }

    #[test]
    fn a_long_message_is_cut() {
        let shown = lines("h ", &"é".repeat(SHOWN + 1));
        assert_eq!(shown.chars().filter(|c| *c == 'é').count(), SHOWN);
        assert!(shown.ends_with("--json shows the whole)"));
    }

    #[test]
    fn words_are_bounded() {
        assert_eq!(words(Some("hi")).unwrap(), "hi");
        for bad in ["", " \n", &"x".repeat(TEXT_MAX + 1)] {
            assert_eq!(words(Some(bad)).unwrap_err().code, 2);
        }
    }
}
