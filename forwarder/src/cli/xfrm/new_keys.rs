//! `xfrm new-keys`: says of keys in a file that they were never used.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use super::Global;
use super::of_file::load;
use crate::cli::Usage;
use crate::control::config::source::DEFAULT_FILE;
use crate::control::config::xfrm::StaticState;
use crate::control::xfrm::store;

#[derive(Debug, Args)]
pub struct NewKeysArgs {
    /// The file that `run` gets.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    /// Only of the SAs with this SPI, like 0x1001; repeat for each.
    #[arg(long, value_name = "SPI", value_parser = spi)]
    spi: Vec<u32>,
}

fn spi(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0x");
    let number = digits.map_or_else(|| text.parse(), |digits| u32::from_str_radix(digits, 16));
    number.map_err(|_| format!("`{text}`: expected a number like 0x1001"))
}

/// Makes a file in the state directory for each key that has none.
pub fn new_keys(global: &Global, args: &NewKeysArgs) -> Result<()> {
    let (config, options) = load(&args.config)?;
    let file = args.config.display();
    let chosen: Vec<&StaticState> = config
        .xfrm
        .states()
        .iter()
        .filter(|state| args.spi.is_empty() || args.spi.contains(&state.spi()))
        .collect();
    if chosen.is_empty() {
        let which = if args.spi.is_empty() { "" } else { " with such an SPI" };
        return Err(Usage(format!("config {file}: there is no SA{which} in [[xfrm.state]]")).into());
    }
    let directory = &options.state_dir;
    store::prepare(directory)?;
    let mut made = Vec::new();
    for state in chosen {
        let is_new = store::create(directory, &state.key_id(), &state.name())
            .with_context(|| format!("{}: {}", directory.display(), state.name()))?;
        made.push((state.name(), is_new));
    }
    let output = global.output();
    if output.json {
        let entries = made
            .iter()
            .map(|(sa, is_new)| json!({ "sa": sa, "new": is_new, "state_dir": directory.to_string_lossy() }));
        return output.json(&entries.collect::<Vec<_>>());
    }
    let line = |(sa, is_new): &(String, bool)| match is_new {
        true => format!("{sa}: new in {}\n", directory.display()),
        false => format!(
            "{sa}: has sequence numbers in {} already, and keeps them\n",
            directory.display()
        ),
    };
    output.text(&made.iter().map(line).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_spi_is_a_number_in_either_form() {
        assert_eq!([spi("0x1001"), spi("4097")], [Ok(4097), Ok(4097)]);
        for wrong in ["", "0x", "x", "-1", "0x100000000"] {
            assert!(spi(wrong).is_err(), "{wrong}");
        }
    }
}
