//! The unit of a probe: the agent's own, less the command and what belongs to its life. Everything
//! that confines is taken over, never written down a second time.

use std::path::Path;
use std::time::Duration;

use super::{Property, Value};
use crate::names::{AgentId, LIB_DIR};

/// What a probe's unit does not take over: what runs, how it is started and ends, and where its
/// input comes from and its output goes. Nothing in it confines.
pub const REPLACED: [&str; 15] = [
    "Description",
    "StopPropagatedFrom",
    "After",
    "CollectMode",
    "Type",
    "RemainAfterExit",
    "Restart",
    "RestartUSec",
    "RestartMode",
    "RestartSteps",
    "RestartMaxDelayUSec",
    "ExecStart",
    "ExecStartEx",
    "StandardInput",
    "StandardOutput",
];

/// The properties of a probe's unit, from those with which the agent is started.
#[must_use]
pub fn probe(
    id: &AgentId,
    agent: &[Property],
    order: &Path,
    report: &Path,
    time: Duration,
) -> Vec<Property> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let program = format!("{LIB_DIR}/flock-probe");
    let command = Value::Command(vec![(program.clone(), vec![program], false)]);
    let mut all = vec![
        Property::new("Description", format!("flock measures the boundary of {id}")),
        // The start is over when the probe has ended; the unit stays until it was looked at.
        Property::new("Type", "oneshot"),
        Property::new("RemainAfterExit", true),
        Property::new("CollectMode", "inactive-or-failed"),
        Property::new("TimeoutStartUSec", u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        // Not ExecStartEx: written down under that name it is lost in a reload of systemd before 255.
        Property::new("ExecStart", command),
        Property::new("StandardInputFile", text(order)),
        Property::new("StandardOutputFile", text(report)),
    ];
    all.extend(agent.iter().filter(|p| !REPLACED.contains(&p.name)).cloned());
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::names::Level;
    use crate::plan::{Uids, plan};

    #[test]
    fn everything_that_confines_is_taken_over() {
        let text =
            "[defaults]\ncommand = [\"/bin/sh\"]\n[agents.a]\nlevel = 1\n[agents.b]\nlevel = 0\n";
        let config = config::parse(&[("x.toml".into(), text.to_owned())]).unwrap();
        for (name, level) in [("a", Level::Process), ("b", Level::Workspace)] {
            let id = AgentId::parse(name).unwrap();
            let uids = Uids::from([(id.clone(), 65_537)]);
            let plan = plan(&config, &uids, &id).unwrap();
            assert_eq!(plan.level, level);
            let agent = &plan.unit.properties;
            let probe = probe(&id, agent, Path::new("/o"), Path::new("/r"), Duration::from_secs(1));
            for property in agent.iter().filter(|p| !REPLACED.contains(&p.name)) {
                let found: Vec<_> = probe.iter().filter(|p| p.name == property.name).collect();
                assert!(found.contains(&property), "{}", property.name);
            }
            // Order counts where a property stands twice.
            let taken = |p: &&Property| agent.contains(p) && !REPLACED.contains(&p.name);
            let rest: Vec<_> = probe.iter().filter(taken).collect();
            let same: Vec<_> = agent.iter().filter(|p| !REPLACED.contains(&p.name)).collect();
            assert_eq!(rest, same);
            let forgotten = |p: &&Property| p.name.ends_with("Ex") && p.is_for(254);
            assert_eq!(probe.iter().chain(agent).find(forgotten), None);
        }
    }
}
