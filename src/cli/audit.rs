//! `flockctl audit show` and `verify`: who did what, and whether the record of it is whole.

use clap::{Args, Subcommand};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::audit::{self, Entry, Filter, How, Log, Record, Report, What};
use crate::cli::{Failure, out};
use crate::control::{Client, Request, Response};
use crate::names::AgentId;
use crate::text::{printable, printable_json};

/// What is shown when neither a number nor a time is given.
const LINES: u32 = 100;

/// Reads and checks the audit log.
#[derive(Subcommand)]
pub enum Audit {
    /// Show who did what.
    Show(Show),
    /// Check the chain of all records, and what the journal knows of them.
    #[command(
        after_help = "Exit status: 0 when the log is whole, 1 when it is not or cannot be read."
    )]
    Verify {
        /// One JSON object for programs.
        #[arg(long)]
        json: bool,
    },
}

/// The command line of `audit show`.
#[derive(Args)]
pub struct Show {
    /// At most this many records, the newest [default: 100; all with --since].
    #[arg(short = 'n', long, value_name = "N")]
    pub lines: Option<u32>,
    /// Not older than this: -1h, -30min, 2026-11-21T10:00:00Z.
    #[arg(long, value_name = "T", allow_hyphen_values = true, value_parser = since)]
    pub since: Option<Timestamp>,
    /// Only this: task-send, start, approve, level-changed and so on.
    #[arg(long, value_name = "WHAT")]
    pub what: Option<String>,
    /// Only what was done to this agent, or by it.
    #[arg(long, value_name = "AGENT")]
    pub agent: Option<AgentId>,
    /// The records as they stand in the file.
    #[arg(long)]
    pub json: bool,
}

fn since(text: &str) -> Result<Timestamp, String> {
    let ago = |text: &str| {
        let span: SignedDuration = text.parse().ok()?;
        Timestamp::now().checked_sub(span.abs()).ok()
    };
    let relative = text.strip_prefix('-').and_then(ago);
    let civil = || {
        let civil: jiff::civil::DateTime = text.parse().ok()?;
        civil.to_zoned(TimeZone::system()).ok().map(|zoned| zoned.timestamp())
    };
    let time = relative.or_else(|| text.parse().ok()).or_else(civil);
    time.ok_or_else(|| "use for example -1h or \"2026-11-21 10:00\"".to_owned())
}

/// Shows or checks the audit log; root reads the files, operators ask flockd.
///
/// # Errors
/// When the log cannot be read, or is not whole.
pub fn run(verb: &Audit) -> Result<(), Failure> {
    match verb {
        Audit::Show(args) => show(args),
        Audit::Verify { json } => verify(*json),
    }
}

fn show(args: &Show) -> Result<(), Failure> {
    let filter = Filter {
        since: args.since,
        what: args.what.clone(),
        object: args.agent.as_ref().map(|id| id.as_str().to_owned()),
        lines: args.lines.or(args.since.is_none().then_some(LINES)),
    };
    let zone = TimeZone::system();
    let print = |record: &Record| match args.json {
        true => {
            let json = serde_json::to_string(record).map_err(Failure::failed)?;
            out::line(&printable_json(&json))
        }
        false => out::line(&for_people(record, &zone)),
    };
    if out::is_root() {
        let records = audit::read(&Log::of_this_host(), &filter).map_err(Failure::failed)?;
        return records.iter().try_for_each(print);
    }
    out::wait(async {
        let mut client = ask(&Request::AuditShow(filter)).await?;
        while let Some(response) = client.next().await.map_err(|e| out::by_flockd(&e))? {
            match response {
                Response::Audit(record) => print(&record)?,
                _ => return Err(out::garbled()),
            }
        }
        Ok(())
    })
}

async fn ask(request: &Request) -> Result<Client, Failure> {
    Client::ask(request).await.map_err(|error| out::by_flockd(&error))
}

/// One line; no text in it can steer a terminal or begin another line.
fn for_people(record: &Record, zone: &TimeZone) -> String {
    let time = record.at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string();
    let how = match record.who.how {
        How::Socket => "operator",
        How::Root => "root",
        How::Flockd => "flockd",
        How::Agent => "agent",
        How::Unit => "systemd",
    };
    let (name, uid) = (printable(&record.who.name), record.who.uid);
    let mut text = format!(
        "{:>6}  {time}  {name} ({how}, uid {uid})  {} {}",
        record.n,
        printable(&record.what),
        printable(&record.object)
    );
    if !record.detail.is_empty() {
        text.push_str(": ");
        text.push_str(&printable(&record.detail));
    }
    text
}

fn verify(json: bool) -> Result<(), Failure> {
    let report = match out::is_root() {
        true => check().map_err(Failure::failed)?,
        false => out::wait(async {
            match ask(&Request::AuditVerify).await?.next().await {
                Ok(Some(Response::AuditReport(report))) => Ok(report),
                Ok(_) => Err(out::garbled()),
                Err(error) => Err(out::by_flockd(&error)),
            }
        })?,
    };
    match json {
        true => {
            let json = serde_json::to_string(&report).map_err(Failure::failed)?;
            out::line(&printable_json(&json))?;
        }
        false => tell(&report)?,
    }
    match &report.fault {
        None => Ok(()),
        Some(fault) => {
            let (file, line) = (fault.file.display(), fault.line);
            let (kind, text) = (fault.kind.word(), printable(&fault.text));
            Err(Failure::failed(format!(
                "the audit log is not whole: {file}:{line}: {kind}: {text}"
            )))
        }
    }
}

fn check() -> Result<Report, audit::AuditError> {
    // The journal first: a record is on disk before the journal is told.
    let known = audit::witnesses()?;
    audit::verify(&Log::of_this_host(), &known)
}

fn tell(report: &Report) -> Result<(), Failure> {
    let span = match (report.from, report.to) {
        (Some(from), Some(to)) => format!(", from {from:.0} to {to:.0}"),
        _ => String::new(),
    };
    report.notes.iter().try_for_each(|note| out::line(&format!("note: {}", printable(note))))?;
    let (records, known) = (report.records, report.witnessed);
    let until = if report.fault.is_some() { " before the first fault" } else { "" };
    out::line(&format!("{records} records{until}{span}; the journal knows {known} of them"))
}

/// Lets the log be removed together with the package.
///
/// # Errors
/// When not run by root, or when a file cannot be opened.
pub fn release() -> Result<(), Failure> {
    out::need_root("let the audit log be removed")?;
    note(What::Released, "ai-flock", "");
    Log::of_this_host().release().map_err(Failure::failed)
}

/// Records what root does with flockctl. A log that cannot be written to is a warning and no more:
/// whoever is root can do the same with systemctl, and a full disk must not keep agents from being
/// stopped.
pub fn note(what: What, object: &str, detail: &str) {
    warn_unless(audit::record(&Entry::new(audit::root_person(), what, object, detail)));
}

/// The same for what `flock@<id>.service` runs.
pub fn note_unit(what: What, agent: &AgentId, detail: &str) {
    warn_unless(audit::record(&Entry::new(audit::by_unit(), what, agent, detail)));
}

fn warn_unless(recorded: Result<u64, audit::AuditError>) {
    if let Err(error) = recorded {
        let level = out::level(std::io::stderr(), 4);
        eprintln!("{level}flockctl: warning: this is not recorded: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Who;

    #[test]
    fn a_record_cannot_steer_the_terminal() {
        let record = Record {
            n: 7,
            at: Timestamp::UNIX_EPOCH,
            who: Who { uid: 1000, name: "ann\u{1b}".into(), how: How::Socket },
            what: "task-send".into(),
            object: "a\nb".into(),
            detail: "\u{9b}2J".into(),
            prev: String::new(),
            hash: String::new(),
        };
        assert_eq!(
            for_people(&record, &TimeZone::UTC),
            "     7  1970-01-01 00:00:00  ann\\u{1b} (operator, uid 1000)  task-send a\\u{a}b: \\u{9b}2J"
        );
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        let now = Timestamp::now();
        let ago = since("-1h").unwrap();
        assert!((3590..3610).contains(&(now.as_second() - ago.as_second())));
        assert!(since("2026-11-21 10:00").is_ok() && since("2026-11-21T10:00:00Z").is_ok());
        assert!(since("soon").is_err() && since("--x").is_err());
    }
}
