//! `api`: the JSON schema of the control socket's protocol.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::Global;
use crate::control::api::schema::schema;

/// Arguments of `api`.
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct ApiArgs {
    #[command(subcommand)]
    verb: ApiVerb,
}

#[derive(Debug, Subcommand)]
enum ApiVerb {
    /// Print the JSON schema (draft 2020-12) of the lines on the control socket; docs/API.md describes them.
    Schema,
}

/// Runs the verb.
pub fn api(global: &Global, args: &ApiArgs) -> Result<()> {
    let output = global.output();
    match &args.verb {
        ApiVerb::Schema => match output.json {
            true => output.json(&schema()),
            // A schema is JSON in any case.
            false => output.text(&format!("{:#}\n", schema())),
        },
    }
}
