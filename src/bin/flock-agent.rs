fn main() -> std::process::ExitCode {
    flock::agent::main()
}
