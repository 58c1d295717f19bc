//! `flock-probe`: runs where an agent runs and tries what the agent must not be able to do.
//!
//! The order comes from root on standard input, the findings go to standard output. The probe
//! decides nothing: whether a finding is good or bad is judged outside, where an agent cannot reach.
//! Its file can be executed by agents and not read, so that the kernel lets no process of the same
//! user look into it or take its descriptors, from its first instruction on.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::Instant;

/// The message bus.
mod bus;
/// Which system calls get past the filter.
mod calls;
/// Files and devices.
mod files;
/// What is there.
pub mod inventory;
/// Objects by which processes talk.
mod ipc;
/// System calls, and what the kernel says of the probe itself.
mod kernel;
/// What may be used up.
mod limits;
/// Sockets of every kind.
mod network;
/// System calls by name and number.
mod numbers;
/// Other processes.
mod processes;
/// A process to be attacked.
pub mod tripwire;
/// What is asked and what is reported.
pub mod wire;

use wire::{Act, Attempt, EVIDENCE_MAX, Ended, Finding, Order};

/// The largest order.
const ORDER_MAX: u64 = 16 << 20;

/// Tries what standard input says; with the argument `tripwire`, waits to be attacked.
#[must_use]
pub fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        None => probe(),
        Some("tripwire") => tripwire::wait(),
        Some(calls::ARGUMENT) => calls::make(),
        Some(other) => Err(format!("{other}: unknown: flock-probe is started by flockctl verify")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("flock-probe: {message}");
            ExitCode::FAILURE
        }
    }
}

fn probe() -> Result<(), String> {
    let mut text = Vec::new();
    let read = std::io::stdin().lock().take(ORDER_MAX).read_to_end(&mut text);
    read.map_err(|error| format!("read the order: {error}"))?;
    let order: Order =
        serde_json::from_slice(&text).map_err(|error| format!("read the order: {error}"))?;
    // Before anything else is opened.
    let mut findings = inventories(&order);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("start: {error}"))?;
    findings.extend(runtime.block_on(run(&order)));
    let mut out = Vec::new();
    for finding in &findings {
        serde_json::to_writer(&mut out, finding).map_err(|e| format!("write a finding: {e}"))?;
        out.push(b'\n');
    }
    std::io::stdout().write_all(&out).map_err(|error| format!("write the findings: {error}"))
}

/// What waits for the network runs at the same time, the rest one after the other in its order.
async fn run(order: &Order) -> Vec<Finding> {
    let (mut findings, heard) =
        tokio::join!(network::all(&order.attempts), bus::all(&order.attempts));
    findings.extend(heard);
    let rest = |a: &&Attempt| {
        !network::is(&a.act) && !bus::is(&a.act) && !matches!(a.act, Act::Inventory(_))
    };
    findings.extend(order.attempts.iter().filter(rest).map(one));
    findings
}

/// The lists, whose texts are made safe here as all others are.
fn inventories(order: &Order) -> Vec<Finding> {
    let mut findings = Vec::new();
    for attempt in &order.attempts {
        let Act::Inventory(kind) = attempt.act else { continue };
        let began = Instant::now();
        let list = inventory::list(kind);
        let ended = Ended::done(format!("{} entries", list.len()));
        let safe = |text: String| -> String {
            crate::text::printable(&text.chars().take(EVIDENCE_MAX).collect::<String>())
        };
        let list = list.into_iter().map(safe).collect();
        findings.push(Finding { list, ..finding(attempt, ended, began) });
    }
    findings
}

fn one(attempt: &Attempt) -> Finding {
    let began = Instant::now();
    let ended = carry_out(&attempt.act);
    finding(attempt, ended, began)
}

fn carry_out(act: &Act) -> Ended {
    match act {
        Act::Read(path) => files::read(path),
        Act::Append { path, mark } => files::append(path, mark),
        Act::List(path) => files::list(path),
        Act::Create(dir) => files::create(dir),
        Act::SetUid(dir) => files::set_uid(dir),
        Act::Device(dir) => files::device(dir),
        Act::Open(path) => files::open(path),
        Act::See(pid) => processes::see(*pid),
        Act::Signal { pid, signal } => processes::signal(*pid, *signal),
        Act::Trace(pid) => processes::trace(*pid),
        Act::Memory(pid) => processes::memory(*pid),
        Act::Descriptor(pid) => processes::descriptor(*pid),
        Act::Proc { pid, part } => processes::proc(*pid, part),
        Act::Tcp { .. } | Act::Udp { .. } | Act::Ping(_) => Ended::error("waits for the network"),
        Act::Socket { family, kind, protocol } => network::socket(*family, *kind, *protocol),
        Act::Unix(path) => network::unix(path),
        Act::Listens(path) => network::listens(path),
        Act::Abstract(name) => network::abstract_unix(name),
        Act::SysV { kind, key } => ipc::sysv(*kind, *key),
        Act::Queue(name) => ipc::queue(name),
        Act::Call(call) => kernel::call(*call),
        Act::Status(field) => kernel::status(field),
        Act::Tasks(most) => limits::tasks(*most),
        Act::Files(most) => limits::files(*most),
        Act::Space { dir, bytes } => limits::space(dir, *bytes),
        Act::Publish { .. } | Act::Subscribe(_) | Act::Hear { .. } | Act::Inventory(_) => {
            Ended::error("made elsewhere")
        }
    }
}

/// Writes down how an attempt ended. No text in it is long or steers a terminal.
fn finding(attempt: &Attempt, ended: Ended, began: Instant) -> Finding {
    let evidence: String = ended.evidence.chars().take(EVIDENCE_MAX).collect();
    Finding {
        check: attempt.check.clone(),
        target: attempt.target.clone(),
        outcome: ended.outcome,
        errno: ended.errno,
        evidence: crate::text::printable(&evidence),
        micros: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        list: Vec::new(),
    }
}
