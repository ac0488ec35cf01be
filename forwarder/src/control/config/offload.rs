//! Options of flow offload.

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{Located, Mode};

/// Default number of packets of a flow within 8 seconds from which on it is offloaded.
pub const THRESHOLD_DEFAULT: u16 = 64;
/// Default room for offloaded flows: 35 MB.
pub const FLOWS_DEFAULT: u32 = 262_144;
/// Allowed room.
pub(super) const FLOWS_RANGE: std::ops::RangeInclusive<u32> =
    1024..=xdp_prog::offload::OFFLOADED_MAX as u32;

/// Which flows the XDP program forwards by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OffloadMode {
    /// Those that arrive on a port without zero-copy.
    #[default]
    Auto,
    /// Those of all ports.
    On,
    /// None.
    Off,
}

impl OffloadMode {
    /// Whether flows are included that arrive on a port, in zero-copy mode or not.
    pub fn includes(self, is_zerocopy: bool) -> bool {
        match self {
            OffloadMode::Auto => !is_zerocopy,
            OffloadMode::On => true,
            OffloadMode::Off => false,
        }
    }
}

/// `--offload` and what belongs to it, from flags or a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OffloadFlags {
    /// `--offload`.
    pub mode: Option<OffloadMode>,
    /// `--offload-threshold`.
    pub threshold: Option<u16>,
    /// `--offload-flows`.
    pub flows: Option<u32>,
}

/// Options of flow offload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OffloadOptions {
    /// Which flows.
    pub mode: OffloadMode,
    /// Packets of a flow within about 8 seconds.
    pub threshold: u16,
    /// Room for flows, each of which is one direction.
    pub flows: u32,
}

impl OffloadOptions {
    /// Combines flags, file and defaults, in this order.
    ///
    /// # Errors
    /// When a value is out of its range, or cannot be used with the mode of the ports.
    pub fn resolve(
        flags: OffloadFlags,
        file: OffloadFlags,
        ports: Mode,
    ) -> Result<OffloadOptions, String> {
        let (threshold, flows) = (flags.threshold.or(file.threshold), flags.flows.or(file.flows));
        threshold.map_or(Ok(()), check_threshold)?;
        flows.map_or(Ok(()), check_flows)?;
        let mode = flags.mode.or(file.mode).unwrap_or_default();
        if mode == OffloadMode::On && ports == Mode::Generic {
            return Err("flows cannot be offloaded with --mode generic: the program would copy \
                        each frame; leave out --offload on, or --mode generic"
                .into());
        }
        Ok(OffloadOptions {
            mode,
            threshold: threshold.unwrap_or(THRESHOLD_DEFAULT),
            flows: flows.unwrap_or(FLOWS_DEFAULT),
        })
    }

    /// Whether any flow may be offloaded.
    pub fn is_on(&self) -> bool {
        self.mode != OffloadMode::Off
    }
}

/// Checks the values of a file.
///
/// # Errors
/// For the first one that is out of its range.
pub fn check(
    threshold: Option<&Spanned<u16>>,
    flows: Option<&Spanned<u32>>,
) -> Result<(), Located> {
    if let Some(threshold) = threshold {
        let at = |message| Located::new(threshold.span(), message);
        check_threshold(*threshold.get_ref()).map_err(at)?;
    }
    match flows {
        Some(flows) => check_flows(*flows.get_ref()).map_err(|m| Located::new(flows.span(), m)),
        None => Ok(()),
    }
}

fn check_threshold(threshold: u16) -> Result<(), String> {
    match threshold {
        0 => Err("an offload threshold of 0 packets; must be 1 or more".into()),
        _ => Ok(()),
    }
}

fn check_flows(flows: u32) -> Result<(), String> {
    match FLOWS_RANGE.contains(&flows) {
        true => Ok(()),
        false => Err(format!(
            "room for {flows} offloaded flows; must be {} to {}",
            FLOWS_RANGE.start(),
            FLOWS_RANGE.end()
        )),
    }
}
