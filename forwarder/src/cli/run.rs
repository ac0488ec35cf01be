//! `run`: starts forwarding.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{Global, Usage};
use crate::control::config::{Config, CpuList, Mode, RunFlags, RunOptions};

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Forward on this interface; repeat for each port.
    #[arg(short, long = "interface", value_name = "IFACE")]
    interfaces: Vec<String>,
    /// Read the [run] section of a TOML file; flags override it.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to bind to the interfaces' queues [default: auto].
    #[arg(long)]
    mode: Option<Mode>,
    /// CPUs for the workers, one each, like 0-3,5.
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,
    /// RX queues to serve on every port [default: all of them].
    #[arg(long, value_name = "N")]
    queues: Option<u32>,
    /// Start even if a firewall or IPsec policies would be bypassed.
    #[arg(long)]
    ignore_firewall: bool,
}

impl RunArgs {
    /// Flags and file together.
    ///
    /// # Errors
    /// When either is wrong.
    pub fn options(&self, global: &Global) -> Result<RunOptions> {
        let file = self.config.as_deref().map(Config::load).transpose()?;
        let flags = RunFlags {
            interfaces: self.interfaces.clone(),
            mode: self.mode,
            cpus: self.cpus.clone(),
            queues: self.queues,
            ignore_firewall: self.ignore_firewall,
            control: global.control.clone(),
        };
        let options = RunOptions::resolve(flags, file.and_then(|config| config.run));
        Ok(options.map_err(Usage)?)
    }
}
