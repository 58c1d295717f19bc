//! The daemon.
fn main() -> std::process::ExitCode {
    flock::daemon::main()
}
