//! Waiting for the end of a job of PID 1.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use zbus::fdo::PropertiesProxy;
use zbus::names::InterfaceName;
use zbus::proxy::CacheProperties;
use zbus::wire::OwnedObjectPath;

use super::again::again;
use super::systemd::{PATIENCE, Systemd, UnitError, refused};
use crate::fail::{self, Point};
use crate::plan::Property;

/// How long a job may be silent until PID 1 is asked whether it is still there.
const LOOK: Duration = Duration::from_secs(2);
/// The interface of a job.
const JOB: &str = "org.freedesktop.systemd1.Job";

impl Systemd {
    /// The signal can come before the reply to the call, so the stream is opened first. And it is
    /// read while the call is under way: a stream that is not read stops the connection after 64
    /// signals (other people's jobs), and with it the reply.
    pub(super) async fn job<F>(
        &self,
        verb: &'static str,
        unit: &str,
        call: impl FnMut() -> F,
    ) -> Result<(), UnitError>
    where
        F: Future<Output = zbus::Result<OwnedObjectPath>>,
    {
        let mut ended = self.manager.receive_job_removed().await.map_err(UnitError::Bus)?;
        // A unit may be asked for twice: what is started is started.
        let mut call = pin!(again(call));
        let mut early = Vec::new();
        let result = tokio::time::timeout(PATIENCE, async {
            let mut job = None;
            loop {
                tokio::select! {
                    reply = &mut call, if job.is_none() => {
                        fail::at(Point::JobSent);
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
        let result = result.await;
        fail::at(Point::JobDone);
        match result {
            Ok(Ok(Some(result))) if result == "done" || result == "skipped" => Ok(()),
            Ok(Ok(Some(result))) => Err(UnitError::Job { verb, unit: unit.to_owned(), result }),
            Ok(Err(error)) => Err(error),
            Ok(Ok(None)) | Err(_) => Err(UnitError::Unknown { verb, unit: unit.to_owned() }),
        }
    }

    /// Makes a transient unit in the place of one that was left by somebody who was killed.
    ///
    /// # Errors
    /// As [`Systemd::start_transient`], [`Systemd::stop`] and [`Systemd::reset_failed`].
    pub async fn start_transient_anew(
        &self,
        unit: &str,
        properties: &[Property],
    ) -> Result<(), UnitError> {
        match self.start_transient(unit, properties).await {
            Err(UnitError::Exists(_)) => {
                self.stop(unit).await?;
                self.reset_failed(unit).await?;
                self.start_transient(unit, properties).await
            }
            other => other,
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
