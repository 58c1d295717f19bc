//! Starts the probes and reads their reports.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::matrix::Reported;
use crate::host::units::{Systemd, UnitFacts};
use crate::names::LIB_DIR;
use crate::plan::{self, Plan, Property};
use crate::probe::wire::{Finding, Order};

/// A probe that takes longer is stopped.
const TIME: Duration = Duration::from_secs(60);
/// The largest report.
const REPORT_MAX: u64 = 64 << 20;

/// As whom a probe runs without a sandbox.
pub(super) async fn bare(order: &Order, uid: u32, environment: &[(&str, String)]) -> Reported {
    let order = serde_json::to_vec(order).map_err(|e| e.to_string())?;
    let run = async {
        let mut child = Command::new(format!("{LIB_DIR}/flock-probe"))
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .uid(uid)
            .gid(uid)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (mut input, mut out) = (child.stdin.take(), child.stdout.take());
        let write = async {
            if let Some(mut input) = input.take() {
                // One that ended early says why on standard error.
                let _ = input.write_all(&order).await;
            }
        };
        let mut report = Vec::new();
        let read = async {
            match &mut out {
                Some(out) => out.take(REPORT_MAX).read_to_end(&mut report).await.map(drop),
                None => Ok(()),
            }
        };
        let (_, read) = tokio::join!(write, read);
        read?;
        let done = child.wait_with_output().await?;
        Ok::<_, std::io::Error>((report, done))
    };
    match tokio::time::timeout(TIME, run).await {
        Err(_) => Err(format!("the probe did not end within {} s", TIME.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok((report, done))) if done.status.success() => findings(&report[..]),
        Ok(Ok((_, done))) => {
            Err(format!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim()))
        }
    }
}

/// What a probe in an agent's sandbox found, and its unit as PID 1 held it.
pub(super) async fn sandboxed(
    systemd: &Systemd,
    order: &Order,
    folder: &Path,
    unit: &str,
    plan: &Plan,
    properties: &[Property],
) -> (Reported, Option<UnitFacts>) {
    let id = &plan.agent;
    let (order_file, report) =
        (folder.join(format!("{id}.order")), folder.join(format!("{id}.report")));
    let text = serde_json::to_vec(order).map_err(|e| e.to_string());
    if let Err(error) =
        text.and_then(|text| files(&order_file, &text, &report).map_err(|e| e.to_string()))
    {
        return (Err(format!("write its order: {error}")), None);
    }
    let properties = plan::probe(id, properties, &order_file, &report, TIME);
    let started = systemd.start_transient_anew(unit, &properties).await;
    let facts = systemd.facts(unit).await.ok();
    let reported = match started {
        Ok(()) => File::open(&report).map_err(|e| e.to_string()).and_then(findings),
        Err(error) => Err(match &facts {
            Some(facts) => format!(
                "{error} (result {}, status {})",
                facts.text("Result"),
                facts.number("ExecMainStatus").unwrap_or(0)
            ),
            None => error.to_string(),
        }),
    };
    let _ = systemd.stop(unit).await;
    let _ = systemd.reset_failed(unit).await;
    let _ = fs::remove_file(&order_file);
    let _ = fs::remove_file(&report);
    (reported, facts)
}

/// The order holds this probe's mark, which is nobody else's business. PID 1 opens both as root.
fn files(order: &Path, text: &[u8], report: &Path) -> std::io::Result<()> {
    let new = |path| File::options().write(true).create_new(true).mode(0o600).open(path);
    new(order)?.write_all(text)?;
    new(report).map(drop)
}

/// A report that is cut off or garbled counts as none at all.
fn findings(report: impl std::io::Read) -> Reported {
    let mut findings: Vec<Finding> = Vec::new();
    for line in BufReader::new(report.take(REPORT_MAX)).lines() {
        let line = line.map_err(|error| format!("read its report: {error}"))?;
        findings.push(
            serde_json::from_str(&line).map_err(|error| format!("read its report: {error}"))?,
        );
    }
    match findings.is_empty() {
        true => Err("its report is empty".to_owned()),
        false => Ok(findings),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_report_is_no_report() {
        let line =
            r#"{"check":"a","target":"b","outcome":"refused","errno":1,"evidence":"","micros":1}"#;
        assert_eq!(findings(format!("{line}\n{line}\n").as_bytes()).unwrap().len(), 2);
        for bad in [String::new(), line[..40].to_owned(), format!("{line}\n{{}}\n"), "\u{0}".into()]
        {
            findings(bad.as_bytes()).unwrap_err();
        }
    }
}
