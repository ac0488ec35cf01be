//! `config`: checks a configuration file, shows what is in effect, prints a file with the defaults and its schema.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{Global, RunArgs, Usage};
use crate::control::config::source::DEFAULT_FILE;
use crate::control::config::{Config, RunFlags, RunOptions, keys};

/// Arguments of `config`.
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Check a file; an error names line and column.
    Check {
        /// The file [default: /etc/ferroute/ferroute.toml].
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Show the options that `run` would have with the same file and flags, defaults included, as a file; with neither
    /// -c nor -i, of /etc/ferroute/ferroute.toml.
    Show(Box<RunArgs>),
    /// Print a file with all keys and their defaults, each with a comment.
    Default,
    /// Print the JSON schema of the file, for editors.
    Schema,
}

/// Runs the verb.
pub fn config(global: &Global, args: &ConfigArgs) -> Result<()> {
    let output = global.output();
    match &args.verb {
        ConfigVerb::Check { file } => {
            let path = file.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
            let refused = check(path)?;
            match output.json {
                true => output.json(&serde_json::json!({
                    "file": path, "valid": true, "run_refuses": refused,
                })),
                false => {
                    let note = refused.map_or(String::new(), |why| format!("; {why}"));
                    output.text(&format!("{}: valid{note}\n", path.display()))
                }
            }
        }
        ConfigVerb::Show(run) => {
            let options = run.options_of_service(global)?;
            match output.json {
                true => output.json(&options.to_json()),
                false => output.text(&options.to_toml()),
            }
        }
        ConfigVerb::Default => output.text(&keys::default_file()),
        ConfigVerb::Schema => match output.json {
            true => output.json(&keys::schema()),
            // A schema is JSON in any case.
            false => output.text(&format!("{:#}\n", keys::schema())),
        },
    }
}

/// Checks each section, and the options of `run` together. Interfaces may be missing, because they may be given by flag, and
/// the file may be one for `replay`. Returns why `run` would refuse such a file.
fn check(path: &Path) -> Result<Option<&'static str>> {
    let config = Config::load(path)?;
    let no_interface = "it names no interfaces, so `run` needs -i";
    let Some(run) = config.run else { return Ok(Some(no_interface)) };
    let refused = run.interfaces.is_empty().then_some(no_interface);
    // Valid with any other key.
    let any = if run.interfaces.is_empty() { vec!["*".to_owned()] } else { Vec::new() };
    let flags = RunFlags { interfaces: any, ..RunFlags::default() };
    let checked = RunOptions::resolve(flags, Some(run));
    checked.map_err(|error| Usage(format!("config {}: {error}", path.display())))?;
    Ok(refused)
}
