//! What has to hold before an agent runs: a part of the checks, tried in its own sandbox before its
//! first instruction. Only what needs no other agent, no bus and no object that would stay.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::matrix::{Cell, Controls, Evidence, Trace, cells};
use super::probes;
use super::run::NOBODY;
use super::scene::{Actor, Host, Scene, order};
use super::sinks::Sinks;
use super::stage::{nonce_of, services};
use super::verdict::Verdict;
use crate::config::Config;
use crate::host::units::Systemd;
use crate::names::RUN_DIR;
use crate::plan::{Plan, Property};
use crate::probe::wire::Order;
use crate::text::printable;

/// What is tried. Everything in it works on any host where it should, or may be without its target:
/// a control that fails for a reason of the host must not keep agents from starting.
const FAST: [&str; 17] = [
    "file.agents",
    "file.shadow",
    "file.config",
    "file.state",
    "file.setuid",
    "proc.see",
    "proc.signal",
    "ipc.unix",
    "ipc.host",
    "net.port",
    "net.dns",
    "net.raw",
    "net.packet",
    "net.netlink",
    "net.vsock",
    "call.",
    "own.",
];

/// What did not hold, or could not be measured; nothing when all is well, or when the configuration
/// wants no measurement.
pub async fn before_ready(
    config: &Config,
    systemd: &Systemd,
    plan: &Plan,
    properties: &[Property],
) -> Vec<String> {
    if !config.verify.before_ready {
        return Vec::new();
    }
    // The lock of the agent is held: nobody else uses this folder.
    let folder = Path::new(RUN_DIR).join("gate").join(plan.agent.as_str());
    let mut found = measure(systemd, plan, properties, &folder).await;
    // On a machine under load a control may come too late: once more. A violation stays one.
    if matches!(&found, Ok(cells) if is_only_unknown(cells.iter().map(|cell| cell.verdict))) {
        found = measure(systemd, plan, properties, &folder).await;
    }
    let _ = fs::remove_dir_all(&folder);
    match found {
        Ok(cells) => cells.iter().filter(|cell| !cell.verdict.is_good()).map(words).collect(),
        Err(cause) => vec![cause],
    }
}

fn is_only_unknown(verdicts: impl Iterator<Item = Verdict>) -> bool {
    let bad: Vec<Verdict> = verdicts.filter(|verdict| !verdict.is_good()).collect();
    !bad.is_empty() && !bad.contains(&Verdict::Violation)
}

fn words(cell: &Cell) -> String {
    let (what, verdict, against) = (cell.check.words, cell.verdict.word(), cell.targets.join(", "));
    let of = match against.as_str() {
        "itself" | "kernel" | "host" => String::new(),
        against => format!(" ({against})"),
    };
    format!("{what}{of}: {verdict} ({}; control {})", cell.evidence, cell.control)
}

async fn measure(
    systemd: &Systemd,
    plan: &Plan,
    properties: &[Property],
    folder: &Path,
) -> Result<Vec<Cell>, String> {
    let _ = fs::remove_dir_all(folder);
    let text = |e: std::io::Error| format!("prepare the measurement: {e}");
    fs::create_dir_all(folder).map_err(text)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).map_err(text)?;
    let mut sinks = Sinks::new();
    let scene = scene(folder, &mut sinks).await?;
    let own = Actor::Sandbox(&plan.agent);
    let (mine, bare) = (fast(order(&scene, own)), fast(order(&scene, Actor::Control)));
    let unit = plan.agent.gate_unit();
    let (root, plain, (sandbox, _)) = tokio::join!(
        probes::bare(&bare, 0, &[]),
        probes::bare(&bare, NOBODY, &[]),
        probes::sandboxed(systemd, &mine, folder, &unit, plan, properties),
    );
    let control = |who| move |cause| format!("run the control as {who}: {cause}");
    let controls = Controls::new(root.map_err(control("root"))?, plain.map_err(control("nobody"))?);
    let sandbox = match sandbox {
        Ok(found) => Ok(found),
        Err(cause) => {
            let said = journal(&unit).await;
            return Err(format!("run the probe in its sandbox: {cause}{said}"));
        }
    };
    let mark = own.mark(&scene);
    let heard = sinks.marks().into_iter().filter(|(.., heard)| *heard == mark);
    let traces: Vec<Trace> = heard
        .map(|(check, target, _)| Trace {
            agent: plan.agent.to_string(),
            vantage: "sandbox",
            check,
            target,
        })
        .collect();
    Ok(cells(&Evidence {
        plan,
        tried: [&mine.attempts, &[]],
        found: [&sandbox, &Ok(Vec::new())],
        users: &BTreeMap::new(),
        controls: &controls,
        traces: &traces,
        spoiled: &BTreeSet::new(),
        enforced: true,
    }))
}

/// What PID 1 said of a unit that could not be set up: a path that is missing, for example.
async fn journal(unit: &str) -> String {
    let ask = Command::new("/usr/bin/journalctl")
        .args([
            "--quiet",
            "--output=cat",
            "--no-pager",
            "--priority=err",
            "--lines=4",
            "--since=-1min",
            "--unit",
            unit,
        ])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let said = match tokio::time::timeout(Duration::from_secs(5), ask).await {
        Ok(Ok(done)) => String::from_utf8_lossy(&done.stdout).into_owned(),
        _ => String::new(),
    };
    let lines: Vec<String> = said.lines().take(2).map(printable).collect();
    if lines.is_empty() { String::new() } else { format!("; systemd says: {}", lines.join("; ")) }
}

fn fast(order: Order) -> Order {
    let wanted = |check: &str| {
        FAST.iter().any(|name| check == *name || name.ends_with('.') && check.starts_with(name))
    };
    Order { attempts: order.attempts.into_iter().filter(|a| wanted(&a.check)).collect() }
}

async fn scene(folder: &Path, sinks: &mut Sinks) -> Result<Scene, String> {
    let text = |error: std::io::Error| format!("prepare the measurement: {error}");
    let nonce = || nonce_of(8).map_err(|error| error.to_string());
    let (nonce, key) = (nonce()?, nonce()?);
    let mut host = Host::new(&nonce, folder);
    host.processes.push(("pid 1".to_owned(), 1));
    host.sockets = services();
    host.tcp = Some(sinks.port("host").await.map_err(text)?);
    host.resolver = sinks.beside_resolver("resolver").await.map_err(text)?;
    sinks.unix(&host.unix).map_err(text)?;
    Ok(Scene { nonce, key, targets: Vec::new(), host })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::AgentId;
    use crate::verify::checks::CHECKS;

    #[test]
    fn only_what_nobody_knows_is_tried_again() {
        let again = |verdicts: &[Verdict]| is_only_unknown(verdicts.iter().copied());
        assert!(again(&[Verdict::Blocked, Verdict::Unknown]));
        assert!(!again(&[Verdict::Blocked, Verdict::NotPromised]));
        assert!(!again(&[Verdict::Unknown, Verdict::Violation]));
    }

    #[test]
    fn every_name_means_a_check_and_nothing_is_left_behind() {
        for name in FAST {
            assert!(
                CHECKS
                    .iter()
                    .any(|c| c.id == name || name.ends_with('.') && c.id.starts_with(name))
            );
        }
        let host = Host {
            tcp: Some(([127, 0, 0, 1], 1).into()),
            ..Host::new("00112233", Path::new("/x"))
        };
        let scene = Scene { nonce: String::new(), key: String::new(), targets: Vec::new(), host };
        let id = AgentId::parse("a").unwrap();
        let tried = fast(order(&scene, Actor::Sandbox(&id)));
        let control = fast(order(&scene, Actor::Control));
        assert!(tried.attempts.len() > 30, "{}", tried.attempts.len());
        for attempt in &tried.attempts {
            let same = |c: &&crate::probe::wire::Attempt| {
                (&c.check, &c.target) == (&attempt.check, &attempt.target)
            };
            assert!(control.attempts.iter().any(|c| same(&c)), "{attempt:?} has no control");
        }
    }
}
