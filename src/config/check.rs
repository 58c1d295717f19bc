//! From the files as written to a `Config`: the merge of `[defaults]`, and the rules that need
//! more than one value.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use super::across;
use super::channels::{self, Channels};
use super::cite::{At, Placed, Report};
use super::fields::{by_rule, choice, count, in_range, plain, size};
use super::file::{self, Table, Value};
use super::part::{self, Part};
use super::rules::quantities;
use super::verify::{self, VerifyConfig};
use super::{BusConfig, Config, HistoryConfig, HostConfig, Sync};
use crate::names::AgentId;

const HOST_KEYS: &[&str] = &["uid-block", "unenforced-limits"];
const BUS_KEYS: &[&str] = &["port", "server", "sync", "rate"];
const HISTORY_KEYS: &[&str] = &["keep", "max-size"];
const UNENFORCED: [(&str, bool); 2] = [("refuse", false), ("allow", true)];

/// An agent as written, and the place of its name.
struct Written {
    at: At,
    part: Part,
}

/// What was read from all files.
#[derive(Default)]
struct Draft {
    host: HostConfig,
    bus: BusConfig,
    history: HistoryConfig,
    verify: VerifyConfig,
    /// Where the program of the bus is named, if it is.
    server_at: Option<At>,
    channels: Channels,
    defaults: Part,
    agents: BTreeMap<AgentId, Written>,
}

/// Reads the files, the first of which is the main one. There is a `Config` unless a fault was
/// reported. If `whole` is false a file is missing, and nothing is concluded from what is absent.
pub(super) fn config(
    files: &[(PathBuf, String)],
    whole: bool,
    report: &mut Report<'_>,
) -> Option<Config> {
    let texts = files.iter().enumerate();
    let trees: Vec<_> = texts.map(|(n, (_, text))| file::parse(n, text, report)).collect();
    let syntax = report.count();
    let mut draft = Draft::default();
    for (n, tree) in trees.iter().enumerate() {
        let table = Table::new(At::new(n, 0..0), String::new(), tree);
        draft.read(table, n == 0, report);
    }
    report.forgive_since(syntax);
    let config = draft.finish(whole && syntax == 0, report);
    Some(config).filter(|_| report.count() == 0)
}

/// Where each agent is defined: file number and line. Faults elsewhere do not matter.
pub(super) fn places(files: &[(PathBuf, String)]) -> BTreeMap<AgentId, (usize, usize)> {
    let mut report = Report::new(files, |_| None);
    let mut places = BTreeMap::new();
    for (n, (_, text)) in files.iter().enumerate() {
        let tree = file::parse(n, text, &mut report);
        let mut table = Table::new(At::new(n, 0..0), String::new(), &tree);
        table.read("agents", &mut report, |agents, report| {
            for (name, _) in agents.table(report, "")?.entries() {
                if let Ok(id) = AgentId::parse(name.value) {
                    places.entry(id).or_insert((n, report.line(&name.at)));
                }
            }
            Some(())
        });
    }
    places
}

impl Draft {
    /// Reads one file.
    fn read(&mut self, mut table: Table<'_>, main: bool, report: &mut Report<'_>) {
        if main {
            table.only(report, file::MAIN_KEYS);
            table.read("host", report, |value, report| self.read_host(value, report));
            table.read("bus", report, |value, report| self.read_bus(value, report));
            let channels = table.read("channels", report, channels::read);
            self.channels = plain(channels).unwrap_or_default();
            table.read("history", report, |value, report| self.read_history(value, report));
            if let Some(verify) = plain(table.read("verify", report, verify::read)) {
                self.verify = verify;
            }
            if let Some(defaults) = table.read("defaults", report, part::read) {
                self.defaults = defaults.value;
            }
        } else {
            table.only(report, file::MORE_KEYS);
        }
        table.read("agents", report, |value, report| self.read_agents(value, report));
    }

    fn read_host(&mut self, value: &Value<'_>, report: &mut Report<'_>) -> Option<()> {
        let mut table = value.keys(report, HOST_KEYS)?;
        let block = |value: &Value<'_>, report: &mut Report<'_>| {
            let may = "first and last id, such as \"65536-99999\"";
            by_rule(value, report, may, quantities::uid_block)
        };
        if let Some(block) = plain(table.read("uid-block", report, block)) {
            self.host.uid_block = block;
        }
        let allow = table.read("unenforced-limits", report, |v, r| choice(v, r, &UNENFORCED));
        self.host.allow_unenforced_limits = plain(allow).unwrap_or(false);
        Some(())
    }

    fn read_bus(&mut self, value: &Value<'_>, report: &mut Report<'_>) -> Option<()> {
        let mut table = value.keys(report, BUS_KEYS)?;
        if let Some(port) = count(&mut table, "port", report, 1024..=65_535) {
            self.bus.port = port;
        }
        let server = table.read("server", report, |value, report| {
            part::path(value, report, "the absolute path of nats-server", |_| Ok(()))
        });
        if let Some(server) = server {
            self.bus.server = server.value;
            self.server_at = Some(server.at);
        }
        if let Some(sync) = plain(table.read("sync", report, sync)) {
            self.bus.sync = sync;
        }
        if let Some(rate) = plain(table.read("rate", report, rate)) {
            self.bus.rate = rate;
        }
        Some(())
    }

    fn read_history(&mut self, value: &Value<'_>, report: &mut Report<'_>) -> Option<()> {
        let mut table = value.keys(report, HISTORY_KEYS)?;
        if let Some(keep) = plain(table.read("keep", report, keep)) {
            self.history.keep = keep;
        }
        if let Some(most) = size(&mut table, "max-size", report, (16 << 20)..=(1 << 40)) {
            self.history.max_size = most;
        }
        Some(())
    }

    fn read_agents(&mut self, value: &Value<'_>, report: &mut Report<'_>) -> Option<()> {
        for (name, value) in value.table(report, "tables [agents.<id>]")?.entries() {
            let part = part::read(&value, report).unwrap_or_default();
            let id = match AgentId::parse(name.value) {
                Ok(id) => id,
                Err(bad) => {
                    let may = "1 to 25 of a-z, 0-9 and -, such as agent-1";
                    report.fault(&name.at, bad.to_string(), may);
                    continue;
                }
            };
            if let Some(first) = self.agents.get(&id) {
                let first = report.cite(&first.at);
                let message = format!("agent {id} is defined twice: the first time at {first}");
                report.fault(&name.at, message, "another id");
                continue;
            }
            self.agents.insert(id, Written { at: name.at, part });
        }
        Some(())
    }

    /// Merges the defaults into each agent and applies the rules over several values.
    fn finish(self, whole: bool, report: &mut Report<'_>) -> Config {
        let Self { host, bus, history, verify, server_at, channels, defaults, agents } = self;
        let (mut checked, mut merged, mut places) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut own_requests = BTreeSet::new();
        for (id, Written { at, part }) in agents {
            if part.may_request.is_some() {
                own_requests.insert(id.clone());
            }
            let part = part.over(&defaults);
            across::agent(&id, &at, &part, whole, report);
            checked.insert(id.clone(), part.config());
            merged.push((id, part));
            places.push(at);
        }
        let server = server_at.map(|at| Placed { value: bus.server.clone(), at });
        across::sources(&merged, server.as_ref(), report);
        across::users(host.uid_block, &places, &checked, report);
        channels::requests(&merged, &own_requests, &mut checked, whole, report);
        let channels = channels::resolve(channels, &checked, whole, report);
        Config { file: None, host, bus, history, verify, channels, agents: checked }
    }
}

fn sync(value: &Value<'_>, report: &mut Report<'_>) -> Option<Sync> {
    let range = Duration::from_secs(1)..=Duration::from_secs(3600);
    by_rule(value, report, "\"always\" or a duration from 1s to 1h", |text| match text {
        "always" => Ok(Sync::Always),
        text => in_range(quantities::duration(text)?, &range).map(Sync::Every),
    })
}

/// The inner none is without a limit.
fn rate(value: &Value<'_>, report: &mut Report<'_>) -> Option<Option<u64>> {
    let range = 1 << 20..=10 << 30;
    by_rule(value, report, "a size from 1MiB to 10GiB, or \"unlimited\"", |text| match text {
        "unlimited" => Ok(None),
        text => in_range(quantities::size(text)?, &range).map(Some),
    })
}

fn keep(value: &Value<'_>, report: &mut Report<'_>) -> Option<Duration> {
    let range = Duration::from_secs(3600)..=Duration::from_secs(3650 * 86_400);
    by_rule(value, report, "a duration from 1h to 3650d, such as \"30d\"", |text| {
        in_range(quantities::duration(text)?, &range)
    })
}
