//! `semilayer-runner`: executes queries next to the databases; dials out and listens to nothing.

use std::process::ExitCode;

fn main() -> ExitCode {
    semilayer::runner::main()
}
