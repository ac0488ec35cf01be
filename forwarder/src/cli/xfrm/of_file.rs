//! `xfrm state --config`: the SAs of a file, and which of their sequence numbers are used up. Keys are in the file, and not
//! shown.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::Global;
use crate::cli::Usage;
use crate::control::config::{Config, RunFlags, RunOptions};
use crate::control::xfrm::store::{self, NEVER_SENT};

/// A file with its options of `run`, as far as they do not need interfaces.
pub(super) fn load(path: &Path) -> Result<(Config, RunOptions)> {
    let config = Config::load(path)?;
    let any = RunFlags { interfaces: vec!["*".to_owned()], ..RunFlags::default() };
    let options = RunOptions::resolve(any, config.run.clone())
        .map_err(|error| Usage(format!("config {}: {error}", path.display())))?;
    Ok((config, options))
}

/// Prints them.
pub(super) fn states(global: &Global, path: &Path) -> Result<()> {
    let (config, options) = load(path)?;
    let stored =
        config.xfrm.states().iter().map(|sa| {
            (sa, store::read(&options.state_dir, &sa.key_id()).map_err(|it| it.to_string()))
        });
    let output = global.output();
    if output.json {
        let entries = stored.map(|(sa, record)| {
            let (record, error) = match record {
                Ok(record) => (record, None),
                Err(error) => (None, Some(error)),
            };
            json!({
                "sa": sa.name(),
                "oseq": record.as_ref().map(|it| it.sent).filter(|sent| *sent != NEVER_SENT),
                "seq": record.as_ref().map(|it| it.received),
                "error": error,
            })
        });
        return output.json(&entries.collect::<Vec<_>>());
    }
    let text = stored.map(|(sa, record)| {
        sa.text()
            + &match record {
                Ok(Some(record)) if record.sent == NEVER_SENT => {
                    format!("\tstored: seq {:#x}, the other end sends\n", record.received)
                }
                Ok(Some(record)) => {
                    format!("\tstored: seq {:#x}, oseq {:#x}\n", record.received, record.sent)
                }
                Ok(None) => "\tstored: nothing\n".to_owned(),
                Err(error) => format!("\tstored: {error}\n"),
            }
    });
    output.text(&text.collect::<String>())
}
