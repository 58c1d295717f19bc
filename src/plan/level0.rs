//! Level 0.
use crate::config::{AgentConfig, Config};
use crate::names::AgentId;
use crate::plan::{Property, RootPlan, UserPlan};

pub(super) fn properties(
    _: &Config,
    _: &AgentId,
    _: &AgentConfig,
    _: &UserPlan,
    _: &RootPlan,
) -> Vec<Property> {
    Vec::new()
}
