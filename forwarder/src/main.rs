//! The `ferroute` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ferroute::cli::main()
}
