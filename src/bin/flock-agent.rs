//! The runtime that makes any command an agent.
fn main() -> std::process::ExitCode {
    flock::agent::main()
}
