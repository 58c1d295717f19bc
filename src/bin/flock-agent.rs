//! The runtime of one agent.
fn main() {}
