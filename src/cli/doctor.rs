//! `flockctl doctor`: what flock needs of this host, and what to do about what is not well.

use std::path::Path;

use clap::Args;

use crate::bus;
use crate::cli::{Failure, out, status};
use crate::config::{self, Config};
use crate::host::doctor::{self, Finding, Verdict};
use crate::names::UidBlock;
use crate::steps::drift::drift;
use crate::steps::fence;
use crate::text::printable;

/// Look at this host: what flock needs of it, and what to do about what is not well.
#[derive(Args)]
pub struct Doctor {
    /// One JSON array for programs.
    #[arg(long)]
    json: bool,
}

/// Looks at the host and prints what was found. Changes nothing.
///
/// # Errors
/// When something was found that keeps agents from starting, or from starting safely.
pub fn run(arguments: &Doctor, file: &Path) -> Result<(), Failure> {
    let config = config::load(file);
    let findings = out::wait(async { Ok(examine(&config, file).await) })?;
    let text = if arguments.json {
        serde_json::to_string_pretty(&findings).map_err(Failure::failed)? + "\n"
    } else {
        table(&findings)
    };
    out::bytes(text.as_bytes())?;
    match findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count() {
        0 => Ok(()),
        1 => Err(Failure::failed("doctor: 1 thing keeps agents from running safely on this host")),
        n => Err(Failure::failed(format!(
            "doctor: {n} things keep agents from running safely on this host"
        ))),
    }
}

/// The host as the configuration needs it; with a configuration that is not valid, as a default
/// one does.
async fn examine(config: &Result<Config, config::Faults>, file: &Path) -> Vec<Finding> {
    let mut all = vec![configuration(config, file)];
    let (block, allow) = match config {
        Ok(config) => (config.host.uid_block, config.host.allow_unenforced_limits),
        Err(_) => (UidBlock::DEFAULT, false),
    };
    all.extend(doctor::examine(block, allow));
    if let Ok(config) = config {
        all.push(doctor::quotas(config));
        all.push(fence(config).await);
        all.push(bus_server(config));
        all.push(programs(file).await);
        all.push(as_planned(config).await);
        all.push(measured(config));
    }
    all
}

fn configuration(config: &Result<Config, config::Faults>, file: &Path) -> Finding {
    const SUBJECT: &str = "configuration";
    match config {
        Ok(config) => {
            Finding::ok(SUBJECT, format!("{}, {} agents", file.display(), config.agents.len()))
        }
        Err(_) => Finding::fail(
            SUBJECT,
            format!("{} is not valid; what follows goes by defaults", file.display()),
            "flockctl check",
        ),
    }
}

async fn fence(config: &Config) -> Finding {
    const SUBJECT: &str = "egress table";
    if !out::is_root() {
        return Finding::needs_root(SUBJECT);
    }
    match fence::check(config).await {
        Ok(()) => Finding::ok(SUBJECT, "inet flock is loaded as planned"),
        Err(error) => Finding::fail(
            SUBJECT,
            error.to_string(),
            "journalctl -u flock-net.service says why it is not",
        ),
    }
}

fn bus_server(config: &Config) -> Finding {
    const SUBJECT: &str = "nats-server";
    let path = &config.bus.server;
    match bus::version::check(path) {
        Ok(version) => Finding::ok(SUBJECT, format!("{} {version}", path.display())),
        Err(error) => Finding::fail(
            SUBJECT,
            error.to_string(),
            "name another one as server under [bus] in the configuration",
        ),
    }
}

/// Whether the boundary is measured without anybody asking.
fn measured(config: &Config) -> Finding {
    const SUBJECT: &str = "measured boundary";
    let (before, every) = (config.verify.before_ready, config.verify.every);
    let off: Vec<&str> = [
        (!before).then_some("agents start without a measurement (before-ready = \"skip\")"),
        every.is_none().then_some("flockd never measures (every = \"never\")"),
    ]
    .into_iter()
    .flatten()
    .collect();
    match off.is_empty() {
        true => Finding::ok(SUBJECT, "before each start, after each apply, and on a timer"),
        false => Finding::warn(
            SUBJECT,
            off.join("; "),
            "take the keys out of [verify], or run flockctl verify",
        ),
    }
}

/// After an upgrade agents run on with the program that they were started with.
async fn programs(file: &Path) -> Finding {
    const SUBJECT: &str = "agents' program";
    match status::collect(&[], file).await {
        Ok(report) => {
            let old: Vec<_> = report.agents.iter().filter(|agent| agent.outdated).collect();
            let names: Vec<_> = old.iter().map(|agent| agent.agent.as_str()).collect();
            match names.is_empty() {
                true => Finding::ok(SUBJECT, "no agent runs one that was replaced"),
                false => Finding::warn(
                    SUBJECT,
                    format!("{} run the flock-agent of before an upgrade", names.join(", ")),
                    format!("when they are idle: flockctl restart {}", names.join(" ")),
                ),
            }
        }
        Err(error) => Finding::warn(SUBJECT, error.message, "systemctl status flockd"),
    }
}

/// What somebody changed by hand, apart from the egress table, which has a line of its own.
async fn as_planned(config: &Config) -> Finding {
    const SUBJECT: &str = "plans";
    const REMEDY: &str =
        "flockctl plan --diff names all of it, flockctl apply mends what is flock's";
    if !out::is_root() {
        return Finding::needs_root(SUBJECT);
    }
    let found = match drift(config).await {
        Ok(found) => found,
        Err(error) => return Finding::warn(SUBJECT, format!("not compared: {error}"), REMEDY),
    };
    let found: Vec<_> = found.iter().filter(|difference| difference.part != "egress").collect();
    match found.first() {
        None => Finding::ok(SUBJECT, "users, files, bus and units are as planned"),
        Some(first) => {
            let (more, what) = (found.len() - 1, printable(&first.what));
            let more =
                if more > 0 { format!(", and {more} more differences") } else { String::new() };
            Finding::warn(SUBJECT, format!("{}: {what}{more}", first.part), REMEDY)
        }
    }
}

/// One line for each finding, and one more with the remedy of what is not well.
fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.subject.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { verdict, subject, found, remedy } in findings {
        let word = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        text += &format!("{word:4}  {subject:width$}  {found}\n");
        if let Some(remedy) = remedy {
            text += &format!("      {:width$}  -> {remedy}\n", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_well_has_its_remedy_below() {
        let findings = [
            Finding::ok("systemd", "version 257"),
            Finding::warn("clock", "not synchronized", "timedatectl set-ntp true"),
            Finding::fail("seccomp", "none", "another kernel"),
        ];
        assert_eq!(
            table(&findings),
            "ok    systemd  version 257\n\
             warn  clock    not synchronized\n               -> timedatectl set-ntp true\n\
             FAIL  seccomp  none\n               -> another kernel\n"
        );
    }
}
