//! `man DIR`: writes the manual, one page per command.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};

use super::Cli;

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Directory for the pages; created if it does not exist.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Writes `ferroute.1`, `ferroute-run.1`, ….
pub fn man(args: &ManArgs) -> Result<()> {
    let shown = args.directory.display();
    std::fs::create_dir_all(&args.directory).with_context(|| format!("man: {shown}"))?;
    clap_mangen::generate_to(Cli::command(), &args.directory)
        .with_context(|| format!("man: writing into {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_page() {
        let directory = tempfile::tempdir().expect("a directory");
        man(&ManArgs { directory: directory.path().join("man1") }).expect("writes");
        for page in ["ferroute.1", "ferroute-status.1", "ferroute-route-get.1"] {
            let text = std::fs::read_to_string(directory.path().join("man1").join(page));
            assert!(text.is_ok_and(|text| text.contains(".TH")), "{page}");
        }
    }
}
