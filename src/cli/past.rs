//! Where the records of tasks come from. Everybody asks flockd; root reads the database itself when
//! flockd is not running.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::bus::message::TaskId;
use crate::cli::{Failure, out};
use crate::control::request::ShowTask;
use crate::control::{Client, ClientError, Request, Response};
use crate::history::{Error, Filter, Reader, Record, Summary, database};

/// Where to read; for tests and for databases that were set aside.
#[derive(Args)]
pub struct Place {
    /// Read this database and do not ask flockd.
    #[arg(long, hide = true, value_name = "FILE")]
    pub database: Option<PathBuf>,
}

/// The records that a filter asks for, one by one.
///
/// # Errors
/// When they cannot be read, or `show` fails.
pub fn list(
    place: &Place,
    filter: Filter,
    mut show: impl FnMut(Summary) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let request = match filter.ended {
        true => Request::History(filter.clone()),
        false => Request::TaskList(filter.clone()),
    };
    out::wait(async {
        let mut client = match source(place, &request).await? {
            Source::Flockd(client) => client,
            Source::Database(reader) => return each(&reader, &filter, show),
        };
        while let Some(answer) = client.next().await.map_err(|e| out::by_flockd(&e))? {
            let Response::Task(summary) = answer else { return Err(out::garbled()) };
            show(*summary)?;
        }
        Ok(())
    })
}

/// Everything about one task, which may be named by the beginning of its id.
///
/// # Errors
/// When there is no such task or there are several, or they cannot be read.
pub fn show(place: &Place, task: &TaskId) -> Result<Vec<Record>, Failure> {
    let request = Request::TaskShow(ShowTask { task: task.clone() });
    out::wait(async {
        let mut client = match source(place, &request).await? {
            Source::Flockd(client) => client,
            Source::Database(reader) => {
                let id = reader.resolve(task).map_err(failed)?;
                return reader.show(&id).map_err(failed);
            }
        };
        let mut records = Vec::new();
        while let Some(answer) = client.next().await.map_err(|e| out::by_flockd(&e))? {
            let Response::Record(record) = answer else { return Err(out::garbled()) };
            records.push(*record);
        }
        Ok(records)
    })
}

enum Source {
    Flockd(Client),
    Database(Reader),
}

async fn source(place: &Place, request: &Request) -> Result<Source, Failure> {
    if let Some(path) = &place.database {
        return direct(path);
    }
    match Client::ask(request).await {
        Ok(client) => Ok(Source::Flockd(client)),
        Err(ClientError::NotRunning) if out::is_root() => {
            let path = database();
            eprintln!(
                "flockctl: flockd is not running: this is what {} says; what happened since \
                 flockd was stopped is not in it yet",
                path.display()
            );
            direct(&path)
        }
        Err(ClientError::NotRunning) => Err(Failure::permission(
            "without root the history comes from flockd, which is not running: run it with sudo",
        )),
        Err(error) => Err(out::by_flockd(&error)),
    }
}

fn direct(path: &Path) -> Result<Source, Failure> {
    Reader::open(path).map(Source::Database).map_err(failed)
}

fn each(
    reader: &Reader,
    filter: &Filter,
    mut show: impl FnMut(Summary) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut outcome = Ok(());
    let read = reader.each(filter, |summary| {
        outcome = show(summary);
        outcome.is_ok()
    });
    read.map_err(failed).and(outcome)
}

fn failed(error: Error) -> Failure {
    match error {
        Error::Unknown(_) | Error::Several { .. } => Failure::usage(error),
        _ => Failure::failed(error),
    }
}
