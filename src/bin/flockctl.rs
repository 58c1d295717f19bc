//! The command line.
fn main() -> std::process::ExitCode {
    flock::cli::main()
}
