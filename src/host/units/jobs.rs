//! Waiting for the end of a job of PID 1.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use zbus::fdo::PropertiesProxy;
use zbus::names::InterfaceName;
use zbus::proxy::CacheProperties;
use zbus::wire::OwnedObjectPath;

use super::systemd::{PATIENCE, Systemd, UnitError, refused};

/// How long a job may be silent until PID 1 is asked whether it is still there.
const LOOK: Duration = Duration::from_secs(2);
/// The interface of a job.
const JOB: &str = "org.freedesktop.systemd1.Job";

impl Systemd {
    /// The signal can come before the reply to the call, so the stream is opened first. And it is
    /// read while the call is under way: a stream that is not read stops the connection after 64
    /// signals (other people's jobs), and with it the reply.
    pub(super) async fn job(
        &self,
        verb: &'static str,
        unit: &str,
        call: impl Future<Output = zbus::Result<OwnedObjectPath>>,
    ) -> Result<(), UnitError> {
        let mut ended = self.manager.receive_job_removed().await.map_err(UnitError::Bus)?;
        let mut call = pin!(call);
        let mut early = Vec::new();
        let result = tokio::time::timeout(PATIENCE, async {
            let mut job = None;
            loop {
                tokio::select! {
                    reply = &mut call, if job.is_none() => {
                        let path = reply.map_err(|error| refused(verb, unit, &error))?;
                        if let Some((_, result)) = early.iter().find(|(early, _)| *early == path) {
                            return Ok(Some(String::clone(result)));
                        }
                        job = Some(path);
                    }
                    signal = ended.next() => {
                        let Some(signal) = signal else { return Ok(None) };
                        let Ok(args) = signal.args() else { continue };
                        match &job {
                            Some(job) if *job == args.job => return Ok(Some(args.result)),
                            Some(_) => {}
                            None => early.push((args.job, args.result)),
                        }
                    }
                    // A daemon-reload at the wrong moment loses the signal for good.
                    () = tokio::time::sleep(LOOK), if job.is_some() => {
                        if let Some(result) = self.ended_unheard(verb, unit, job.as_ref()).await {
                            return Ok(Some(result));
                        }
                    }
                }
            }
        });
        match result.await {
            Ok(Ok(Some(result))) if result == "done" || result == "skipped" => Ok(()),
            Ok(Ok(Some(result))) => Err(UnitError::Job { verb, unit: unit.to_owned(), result }),
            Ok(Err(error)) => Err(error),
            Ok(Ok(None)) | Err(_) => Err(UnitError::Unknown { verb, unit: unit.to_owned() }),
        }
    }

    /// How a job ended whose signal did not come; `None` while it is still there.
    async fn ended_unheard(
        &self,
        verb: &str,
        unit: &str,
        job: Option<&OwnedObjectPath>,
    ) -> Option<String> {
        let job = job?.clone();
        let there = PropertiesProxy::builder(&self.connection)
            .destination("org.freedesktop.systemd1")
            .path(job)
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .ok()?
            .get(InterfaceName::from_static_str_unchecked(JOB), "State")
            .await;
        match there {
            Ok(_) => None,
            Err(zbus::fdo::Error::UnknownObject(_)) => {
                let active = self.facts(unit).await.ok()?.text("ActiveState");
                let up = matches!(active.as_str(), "active" | "activating" | "reloading");
                let done = up == (verb != "stop");
                Some(if done { "done" } else { "failed" }.to_owned())
            }
            // PID 1 is busy: ask again.
            Err(_) => None,
        }
    }
}
