//! Level 1.
use crate::config::AgentConfig;
use crate::plan::Property;

pub(super) fn properties(_: &AgentConfig) -> Vec<Property> {
    Vec::new()
}
