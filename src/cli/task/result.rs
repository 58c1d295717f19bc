//! A task's result for people and for programs.

use crate::bus::message::TaskResult;
use crate::cli::Failure;
use crate::text::{printable, printable_json};

/// One line for programs that cannot steer a terminal.
pub(in crate::cli) fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map(|json| printable_json(&json)).map_err(Failure::failed)
}

/// A heading that flock knows to be true, then what the agent says, indented.
pub(super) fn for_people(result: &TaskResult) -> String {
    let mut text = format!("{}  {}", printable(&result.agent), outcome(result));
    if let (Some(started), Some(finished)) = (result.started, result.finished) {
        let tenths = (finished.as_millisecond() - started.as_millisecond()).max(0) / 100;
        text.push_str(&format!("  {}.{}s", tenths / 10, tenths % 10));
    }
    text.push('\n');
    for line in result.output.lines() {
        text.push_str(&format!("    {}\n", printable(line)));
    }
    if result.truncated {
        let rest = result.result_path.as_deref().map(printable).unwrap_or_default();
        text.push_str(&format!("    (cut here; the whole result: {rest})\n"));
    }
    text
}

/// `done`, `failed: exit status 3`
pub(super) fn outcome(result: &TaskResult) -> String {
    let why = match (&result.reason, result.exit, result.signal) {
        (Some(reason), ..) => printable(reason),
        (None, Some(status), _) if status != 0 => format!("exit status {status}"),
        (None, _, Some(signal)) => format!("signal {signal}"),
        _ => return result.status.to_string(),
    };
    format!("{}: {why}", result.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(json: &str) -> TaskResult {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_result_cannot_pass_for_another_agents_nor_steer_the_terminal() {
        let hostile = result(
            r#"{"task":"t","agent":"a","status":"failed","exit":3,"truncated":true,
                "output":"x\u001b[2J\nb  done  1.0s\r","result_path":"/shared\u0007"}"#,
        );
        assert_eq!(
            for_people(&hostile),
            "a  failed: exit status 3\n    x\\u{1b}[2J\n    b  done  1.0s\\u{d}\n    \
             (cut here; the whole result: /shared\\u{7})\n"
        );
    }

    #[test]
    fn the_outcome_says_why() {
        let with = |rest: &str| outcome(&result(&format!(r#"{{"task":"t",{rest}}}"#)));
        assert_eq!(with(r#""exit":0"#), "done");
        assert_eq!(with(r#""status":"failed","signal":9"#), "failed: signal 9");
        assert_eq!(
            with(r#""status":"timeout","reason":"over 10min\n""#),
            "timeout: over 10min\\u{a}"
        );
        assert_eq!(with(r#""status":"glorious""#), "unknown");
    }
}
