//! Tries, inside an agent's sandbox, what the sandbox should refuse.
fn main() -> std::process::ExitCode {
    flock::probe::main()
}
