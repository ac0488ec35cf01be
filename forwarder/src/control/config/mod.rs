//! The options of `run`: from flags, a TOML file, or both; a flag overrides the file.
//!
//! ```toml
//! [run]
//! interfaces = ["eth0", "lan*"]
//! max_ports = 12             # with a pattern; default: 8 more than exist at the start
//! mode = "auto"              # zerocopy, copy, generic
//! driver = "af_xdp"          # xsk-rs
//! poll = "adaptive"          # busy, interrupt
//! busy_budget = 64           # packets per poll; with poll = "busy"
//! cpus = "0-3,5"
//! queues = 2
//! pin_irqs = true            # interrupts of queues to their workers' CPUs
//! rx_ring = 2048             # descriptors, a power of two
//! tx_ring = 2048
//! latency_sample = 64        # one frame in this many is measured; 0: none
//! offload = "auto"           # on, off: whether the XDP program forwards flows by itself
//! offload_threshold = 64     # those with this many packets within 8 seconds
//! offload_flows = 262144     # as many at most
//! worker_timeout_ms = 250    # after which a silent worker's queues are left to the kernel
//! control_timeout_ms = 1000  # after which everything is left to the kernel
//! ignore_firewall = false
//! no_sandbox = false
//! metrics = "127.0.0.1:9112" # or "unix:PATH"; without it there is no metrics server
//! log_level = "info"         # error, warn, debug
//! log_format = "auto"        # text, json
//! runtime_dir = "/run/ferroute"
//! state_dir = "/var/lib/ferroute"
//! control = "/run/ferroute/control.sock"
//! ```
//!
//! The `[replay]` section is described in [`static_network`], the `[xfrm]` section in [`xfrm`]. An error names file, line and
//! column, what was found, and what was expected.

mod cpus;
mod driver;
pub mod effective;
mod error;
mod file;
pub mod interfaces;
pub mod ipnet;
pub mod keys;
pub mod metrics;
pub mod offload;
pub mod reload;
pub mod source;
pub mod static_network;
mod suggest;
pub mod timeouts;
pub mod xfrm;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use toml::Spanned;

pub use self::cpus::CpuList;
pub use self::error::{ConfigError, Located};
pub use self::file::Config;
use self::interfaces::{Interfaces, check_word};
use self::metrics::MetricsAddr;
use self::offload::{OffloadFlags, OffloadMode, OffloadOptions};
use self::source::Source;
use self::timeouts::Timeouts;
use self::xfrm::StaticXfrm;
use crate::control::process::log::{LogFormat, LogLevel};
use crate::control::process::runtime_dir;
use crate::control::xfrm::store;
use crate::io::DriverKind;
use crate::worker::poll::PollMode;

/// Default number of descriptors of a ring: that of the common drivers' rings.
pub const RING_DEFAULT: u32 = 2048;
/// Default sampling: one frame in this many is measured. The cost is not measurable, and a second of light
/// traffic still gives a median.
pub const LATENCY_SAMPLE_DEFAULT: u32 = 64;
/// With rarer samples hardly anything would be measured.
const LATENCY_SAMPLE_MAX: u32 = 1_000_000;
/// Default packets per busy poll: NAPI_POLL_WEIGHT, and as many as a worker takes at once.
pub const BUSY_BUDGET_DEFAULT: u16 = 64;
/// Allowed descriptors of a ring. Each receive descriptor holds a frame of 4096 octets.
const RING_RANGE: std::ops::RangeInclusive<u32> = 64..=32_768;
/// Maximum queues of a port; the size of the XDP program's socket map.
pub const QUEUES_MAX: u32 = xdp_prog::QUEUES_MAX as u32;
/// Maximum number of ports; each pair takes 216 KiB of a worker's address space for latency counters.
pub const PORTS_MAX: u16 = 256;
/// IFNAMSIZ without the final NUL.
const IFNAME_MAX: usize = 15;

/// How to bind, and where the XDP program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Zero-copy if the driver supports it, else copy; native XDP if the driver supports it, else generic.
    #[default]
    Auto,
    /// Zero-copy only.
    Zerocopy,
    /// Copy mode, even if the driver supports zero-copy.
    Copy,
    /// Generic (skb) XDP and copy mode: works on every interface.
    Generic,
}

/// All options of `run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    /// The ports, at least one.
    pub interfaces: Interfaces,
    /// Maximum number of ports; with patterns or a file only. `None`: the daemon chooses.
    pub max_ports: Option<u16>,
    /// How to bind.
    pub mode: Mode,
    /// By what code.
    pub driver: DriverKind,
    /// How workers learn of frames.
    pub poll: PollMode,
    /// Packets that the kernel takes from a queue per busy poll.
    pub busy_budget: u16,
    /// CPUs for the workers, in order; `None`: the daemon chooses.
    pub cpus: Option<CpuList>,
    /// RX queues that every port must have, or to which its RSS table must restrict packets; `None`: any
    /// number.
    pub queues: Option<u32>,
    /// Move the queues' interrupts to their workers' CPUs.
    pub pin_irqs: bool,
    /// Descriptors of RX and fill rings, a power of two.
    pub rx_ring: u32,
    /// Descriptors of TX and completion rings, a power of two.
    pub tx_ring: u32,
    /// One frame in this many is measured; 0: none.
    pub latency_sample: u32,
    /// Flow offload.
    pub offload: OffloadOptions,
    /// Workers time their turns.
    pub account: bool,
    /// How long heartbeats are valid.
    pub timeouts: Timeouts,
    /// Start even if a firewall would be bypassed.
    pub ignore_firewall: bool,
    /// Do without seccomp and Landlock.
    pub no_sandbox: bool,
    /// Where metrics are served; `None`: nowhere.
    pub metrics: Option<MetricsAddr>,
    /// Which messages are written.
    pub log_level: LogLevel,
    /// How messages are written.
    pub log_format: LogFormat,
    /// The directory of the daemon's own files; `None`: no usable one.
    pub runtime_dir: Option<RuntimeDir>,
    /// The directory of sequence numbers of SAs with static keys.
    pub state_dir: PathBuf,
    /// The control socket.
    pub control: PathBuf,
    /// IPsec with static keys; empty: that of the kernel.
    pub xfrm: Arc<StaticXfrm>,
    /// The file that they come from, if any, and the flags.
    pub source: Option<Source>,
}

/// The directory of the daemon's own files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir {
    /// Its path.
    pub path: PathBuf,
    /// Whether the user named it, or the control socket is in it: then it must be usable for the daemon to
    /// start.
    pub required: bool,
}

/// Options from the command line; the file comes next, then the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFlags {
    /// `-i`, repeated. When given, the file's interfaces are not used.
    pub interfaces: Vec<String>,
    /// `--max-ports`.
    pub max_ports: Option<u16>,
    /// `--mode`.
    pub mode: Option<Mode>,
    /// `--driver`.
    pub driver: Option<DriverKind>,
    /// `--poll`.
    pub poll: Option<PollMode>,
    /// `--busy-budget`.
    pub busy_budget: Option<u16>,
    /// `--cpus`.
    pub cpus: Option<CpuList>,
    /// `--queues`.
    pub queues: Option<u32>,
    /// `--pin-irqs`; a flag cannot disable it.
    pub pin_irqs: bool,
    /// `--latency-sample`.
    pub latency_sample: Option<u32>,
    /// `--offload` and what belongs to it.
    pub offload: OffloadFlags,
    /// `--worker-timeout`, in milliseconds.
    pub worker_timeout_ms: Option<u32>,
    /// `--control-timeout`, in milliseconds.
    pub control_timeout_ms: Option<u32>,
    /// `--account`; a flag cannot disable it.
    pub account: bool,
    /// `--ignore-firewall`; a flag cannot disable it.
    pub ignore_firewall: bool,
    /// `--no-sandbox`; a flag cannot disable it.
    pub no_sandbox: bool,
    /// `--metrics`.
    pub metrics: Option<MetricsAddr>,
    /// `--log-level`.
    pub log_level: Option<LogLevel>,
    /// `--log-format`.
    pub log_format: Option<LogFormat>,
    /// `--runtime-dir`.
    pub runtime_dir: Option<PathBuf>,
    /// `--control` or FERROUTE_CONTROL.
    pub control: Option<PathBuf>,
}

impl RunOptions {
    /// Whether settings of interfaces are changed while they are served, and restored later.
    pub fn changes_interrupts(&self) -> bool {
        self.poll == PollMode::Busy || self.pin_irqs
    }

    /// Combines flags, file and defaults, in this order.
    ///
    /// # Errors
    /// When no interface is given, one is given twice, or a value is out of its range.
    pub fn resolve(flags: RunFlags, file: Option<RunSection>) -> Result<RunOptions, String> {
        let has_file = file.is_some();
        let file = file.unwrap_or_default();
        let from_file = file.interfaces.into_iter().map(Spanned::into_inner);
        let interfaces: Vec<String> = match flags.interfaces {
            named if !named.is_empty() => named,
            _ => from_file.collect(),
        };
        if interfaces.is_empty() {
            return Err("no interface is named; give each port with -i IFACE, or as \
                        `interfaces` in the [run] section of a file given with -c"
                .into());
        }
        let interfaces = Interfaces::parse(&interfaces)?;
        let max_ports = flags.max_ports.or(file.max_ports.map(Spanned::into_inner));
        max_ports.map_or(Ok(()), |max| check_max_ports(max, &interfaces, has_file))?;
        let queues = flags.queues.or(file.queues.map(Spanned::into_inner));
        queues.map_or(Ok(()), check_queues)?;
        let latency_sample = flags.latency_sample.or(file.latency_sample.map(Spanned::into_inner));
        latency_sample.map_or(Ok(()), check_latency_sample)?;
        let poll = flags.poll.or(file.poll).unwrap_or_default();
        let busy_budget = flags.busy_budget.or(file.busy_budget.map(Spanned::into_inner));
        busy_budget.map_or(Ok(()), check_busy_budget)?;
        if busy_budget.is_some() && poll != PollMode::Busy {
            return Err("a busy budget is for --poll busy only; add that, or leave it out".into());
        }
        let mode = flags.mode.or(file.mode).unwrap_or_default();
        let driver = flags.driver.or(file.driver).unwrap_or_default();
        driver::check(driver, mode, poll)?;
        let in_file = OffloadFlags {
            mode: file.offload,
            threshold: file.offload_threshold.map(Spanned::into_inner),
            flows: file.offload_flows.map(Spanned::into_inner),
        };
        let offload = OffloadOptions::resolve(flags.offload, in_file, mode)?;
        let timeouts = Timeouts::from_ms(
            flags.worker_timeout_ms.or(file.worker_timeout_ms.map(Spanned::into_inner)),
            flags.control_timeout_ms.or(file.control_timeout_ms.map(Spanned::into_inner)),
        )?;
        let control = flags.control.or(file.control);
        let named = flags.runtime_dir.or(file.runtime_dir);
        let runtime_dir = RuntimeDir {
            required: named.is_some() || control.is_none(),
            path: named.unwrap_or_else(runtime_dir::default_path),
        };
        Ok(RunOptions {
            interfaces,
            max_ports,
            mode,
            driver,
            poll,
            busy_budget: busy_budget.unwrap_or(BUSY_BUDGET_DEFAULT),
            cpus: flags.cpus.or(file.cpus),
            queues,
            pin_irqs: flags.pin_irqs || file.pin_irqs.unwrap_or(false),
            rx_ring: file.rx_ring.map_or(RING_DEFAULT, Spanned::into_inner),
            tx_ring: file.tx_ring.map_or(RING_DEFAULT, Spanned::into_inner),
            latency_sample: latency_sample.unwrap_or(LATENCY_SAMPLE_DEFAULT),
            offload,
            account: flags.account || file.account.unwrap_or(false),
            timeouts,
            ignore_firewall: flags.ignore_firewall || file.ignore_firewall.unwrap_or(false),
            no_sandbox: flags.no_sandbox || file.no_sandbox.unwrap_or(false),
            metrics: flags.metrics.or(file.metrics),
            log_level: flags.log_level.or(file.log_level).unwrap_or_default(),
            log_format: flags.log_format.or(file.log_format).unwrap_or_default(),
            state_dir: file.state_dir.unwrap_or_else(store::default_path),
            xfrm: Arc::default(),
            control: control.unwrap_or_else(|| runtime_dir::socket_in(&runtime_dir.path)),
            runtime_dir: Some(runtime_dir),
            source: None,
        })
    }
}

/// The `[run]` section: keys are named as the flags.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// Names of the ports, and patterns.
    #[serde(default)]
    pub interfaces: Vec<Spanned<String>>,
    /// Maximum number of ports.
    pub max_ports: Option<Spanned<u16>>,
    /// How to bind.
    pub mode: Option<Mode>,
    /// The driver.
    pub driver: Option<DriverKind>,
    /// How workers learn of frames.
    pub poll: Option<PollMode>,
    /// Packets per busy poll.
    pub busy_budget: Option<Spanned<u16>>,
    /// `"0-3,5"`, or an array of numbers.
    pub cpus: Option<CpuList>,
    /// RX queues to serve on every port.
    pub queues: Option<Spanned<u32>>,
    /// Move the queues' interrupts to their workers' CPUs.
    pub pin_irqs: Option<bool>,
    /// Descriptors of RX and fill rings.
    pub rx_ring: Option<Spanned<u32>>,
    /// Descriptors of TX and completion rings.
    pub tx_ring: Option<Spanned<u32>>,
    /// One frame in this many is measured; 0: none.
    pub latency_sample: Option<Spanned<u32>>,
    /// Flow offload.
    pub offload: Option<OffloadMode>,
    /// Packets of a flow within 8 seconds from which on it is offloaded.
    pub offload_threshold: Option<Spanned<u16>>,
    /// Room for offloaded flows.
    pub offload_flows: Option<Spanned<u32>>,
    /// How long a worker's heartbeat is valid.
    pub worker_timeout_ms: Option<Spanned<u32>>,
    /// How long the control thread's heartbeat is valid.
    pub control_timeout_ms: Option<Spanned<u32>>,
    /// Workers time their turns.
    pub account: Option<bool>,
    /// Start even if a firewall would be bypassed.
    pub ignore_firewall: Option<bool>,
    /// Do without seccomp and Landlock.
    pub no_sandbox: Option<bool>,
    /// Where metrics are served.
    pub metrics: Option<MetricsAddr>,
    /// Which messages are written.
    pub log_level: Option<LogLevel>,
    /// How messages are written.
    pub log_format: Option<LogFormat>,
    /// The directory of the daemon's own files.
    pub runtime_dir: Option<PathBuf>,
    /// The directory of sequence numbers.
    pub state_dir: Option<PathBuf>,
    /// The control socket.
    pub control: Option<PathBuf>,
}

impl RunSection {
    fn check(&self) -> Result<(), Located> {
        let mut seen = BTreeSet::new();
        for name in &self.interfaces {
            let at = |message| Located::new(name.span(), message);
            check_word(name.get_ref()).map_err(at)?;
            if !seen.insert(name.get_ref()) {
                let message = format!("interface `{}` is named twice", name.get_ref());
                return Err(Located::new(name.span(), message));
            }
        }
        if let Some(max) = &self.max_ports {
            check_ports(*max.get_ref()).map_err(|m| Located::new(max.span(), m))?;
        }
        if let Some(queues) = &self.queues {
            check_queues(*queues.get_ref()).map_err(|m| Located::new(queues.span(), m))?;
        }
        if let Some(budget) = &self.busy_budget {
            check_busy_budget(*budget.get_ref()).map_err(|m| Located::new(budget.span(), m))?;
        }
        if let Some(sample) = &self.latency_sample {
            let at = |message| Located::new(sample.span(), message);
            check_latency_sample(*sample.get_ref()).map_err(at)?;
        }
        offload::check(self.offload_threshold.as_ref(), self.offload_flows.as_ref())?;
        if let Some(ms) = &self.worker_timeout_ms {
            timeouts::check_worker(*ms.get_ref()).map_err(|m| Located::new(ms.span(), m))?;
        }
        if let Some(ms) = &self.control_timeout_ms {
            timeouts::check_control(*ms.get_ref()).map_err(|m| Located::new(ms.span(), m))?;
        }
        for ring in [&self.rx_ring, &self.tx_ring].into_iter().flatten() {
            check_ring(*ring.get_ref()).map_err(|m| Located::new(ring.span(), m))?;
        }
        Ok(())
    }
}

/// Checks whether a name is valid for an interface (kernel: `dev_valid_name`).
///
/// # Errors
/// What is wrong with the name.
pub fn check_ifname(name: &str) -> Result<(), String> {
    let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
    if name.is_empty()
        || name.len() > IFNAME_MAX
        || name == "."
        || name == ".."
        || name.contains(bad)
    {
        return Err(format!(
            "`{name}` is not an interface name, expected 1 to {IFNAME_MAX} octets without `/`, \
             `:` or spaces"
        ));
    }
    Ok(())
}

/// `has_file`: interfaces may be added by a reload.
fn check_max_ports(max: u16, interfaces: &Interfaces, has_file: bool) -> Result<(), String> {
    let named = interfaces.named().len();
    if !interfaces.has_patterns() && !has_file {
        return Err(
            "a maximum number of ports is for patterns, such as -i 'eth*', and for files, which a \
                    reload reads again; leave it out"
                .into(),
        );
    }
    if usize::from(max) < named {
        return Err(format!("at most {max} ports, but {named} are named; raise the limit"));
    }
    check_ports(max)
}

fn check_ports(max: u16) -> Result<(), String> {
    if !(1..=PORTS_MAX).contains(&max) {
        return Err(format!("max ports is {max}, expected 1 to {PORTS_MAX}"));
    }
    Ok(())
}

fn check_queues(queues: u32) -> Result<(), String> {
    if !(1..=QUEUES_MAX).contains(&queues) {
        return Err(format!("queues is {queues}, expected 1 to {QUEUES_MAX}"));
    }
    Ok(())
}

fn check_busy_budget(budget: u16) -> Result<(), String> {
    if budget == 0 {
        return Err(format!("busy budget is 0, expected 1 to {}", u16::MAX));
    }
    Ok(())
}

fn check_latency_sample(sample: u32) -> Result<(), String> {
    if sample > LATENCY_SAMPLE_MAX {
        return Err(format!("latency sample is {sample}, expected 0 to {LATENCY_SAMPLE_MAX}"));
    }
    Ok(())
}

fn check_ring(size: u32) -> Result<(), String> {
    if !size.is_power_of_two() || !RING_RANGE.contains(&size) {
        let (least, most) = (RING_RANGE.start(), RING_RANGE.end());
        return Err(format!("ring size is {size}, expected a power of two from {least} to {most}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("r.toml")).expect_err("is wrong").to_string()
    }

    fn run(text: &str) -> RunSection {
        let config = Config::parse(text, Path::new("r.toml")).expect("is right");
        config.run.expect("has the section")
    }

    #[test]
    fn errors_name_file_line_column_found_and_expected() {
        assert_eq!(
            error("[run]\nmode = \"fast\"\n"),
            "r.toml:2:8: unknown variant `fast`, expected one of `auto`, `zerocopy`, `copy`, \
             `generic`"
        );
        assert_eq!(
            error("[run]\ninterfaces = [\"a\",\n  7]\n"),
            "r.toml:3:3: invalid type: integer `7`, expected a string"
        );
        assert_eq!(
            error("[run]\nqueue = 2\n"),
            "r.toml:2:1: unknown field `queue`, expected one of `interfaces`, `max_ports`, `mode`, `driver`, `poll`, \
             `busy_budget`, `cpus`, `queues`, `pin_irqs`, `rx_ring`, `tx_ring`, `latency_sample`, `offload`, \
             `offload_threshold`, `offload_flows`, `worker_timeout_ms`, `control_timeout_ms`, `account`, \
             `ignore_firewall`, `no_sandbox`, `metrics`, `log_level`, `log_format`, `runtime_dir`, `state_dir`, `control`; did you mean `queues`?"
        );
        assert_eq!(
            error("[walk]\n"),
            "r.toml:1:2: unknown field `walk`, expected one of `run`, `replay`, `xfrm`"
        );
        assert_eq!(error("[run]\n\nqueues = 0\n"), "r.toml:3:10: queues is 0, expected 1 to 256");
        assert_eq!(
            error("[run]\nlatency_sample = 1000001\n"),
            "r.toml:2:18: latency sample is 1000001, expected 0 to 1000000"
        );
        assert_eq!(
            error("[run]\nrx_ring = 1000\n"),
            "r.toml:2:11: ring size is 1000, expected a power of two from 64 to 32768"
        );
        assert_eq!(
            error("[run]\ninterfaces = [\"ä\", \"a b\"]\n"),
            "r.toml:2:20: `a b` is not an interface name, expected 1 to 15 octets without `/`, `:` \
             or spaces"
        );
        assert_eq!(
            error("[run]\ninterfaces = [\"a\", \"a\"]\n"),
            "r.toml:2:20: interface `a` is named twice"
        );
        assert_eq!(
            error("[run]\ncpus = \"0-3,x\"\n"),
            "r.toml:2:8: `x` in `0-3,x`: expected CPU numbers and ranges like 0-3,5"
        );
        assert_eq!(
            error("[run]\nmetrics = \"9112\"\n"),
            "r.toml:2:11: `9112` is not an address to listen at, expected ADDR:PORT as 127.0.0.1:9112 or [::1]:9112, or \
             unix:PATH"
        );
    }

    #[test]
    fn broken_toml_is_located_too() {
        let text = error("[run]\nmode = \n");
        assert!(text.starts_with("r.toml:2:"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Config::load(Path::new("/nonexistent/r.toml")).expect_err("is not there");
        assert_eq!(
            error.to_string(),
            "config /nonexistent/r.toml: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn flags_override_the_file() {
        let file = run("[run]\ninterfaces = [\"a\", \"b\"]\nmode = \"copy\"\ncpus = [2, 0]\n\
                        queues = 2\nlatency_sample = 0\nrx_ring = 512\ncontrol = \"/tmp/s\"\n\
                        metrics = \"unix:m\"\n");
        let options = RunOptions::resolve(RunFlags::default(), Some(file.clone())).expect("right");
        assert_eq!(options.interfaces.named(), ["a", "b"]);
        assert_eq!((options.mode, options.queues), (Mode::Copy, Some(2)));
        assert_eq!((options.rx_ring, options.tx_ring), (512, RING_DEFAULT));
        assert_eq!(options.latency_sample, 0);
        assert_eq!(options.cpus.as_ref().map(CpuList::cpus), Some(&[2, 0][..]));
        assert_eq!(options.control, Path::new("/tmp/s"));
        assert_eq!(options.metrics, Some(MetricsAddr::Unix("m".into())));

        let flags = RunFlags {
            interfaces: vec!["c".into()],
            mode: Some(Mode::Generic),
            queues: Some(1),
            latency_sample: Some(1),
            ignore_firewall: true,
            metrics: Some(MetricsAddr::default()),
            ..RunFlags::default()
        };
        let options = RunOptions::resolve(flags, Some(file)).expect("right");
        assert_eq!(options.metrics, Some(MetricsAddr::default()));
        assert_eq!(options.interfaces.named(), ["c"]);
        assert_eq!((options.mode, options.queues), (Mode::Generic, Some(1)));
        assert!(options.ignore_firewall);
        assert_eq!(options.latency_sample, 1);
        assert_eq!(options.rx_ring, 512);
    }

    #[test]
    fn a_busy_budget_is_for_busy_polling() {
        let file = run("[run]\ninterfaces = [\"a\"]\npoll = \"busy\"\nbusy_budget = 8\n");
        let options = RunOptions::resolve(RunFlags::default(), Some(file.clone())).expect("right");
        assert_eq!((options.poll, options.busy_budget), (PollMode::Busy, 8));
        let flags = RunFlags { poll: Some(PollMode::Interrupt), ..RunFlags::default() };
        let refused = RunOptions::resolve(flags, Some(file)).expect_err("is for busy");
        assert!(refused.contains("--poll busy only"), "{refused}");
        let flags = RunFlags { interfaces: vec!["a".into()], ..RunFlags::default() };
        let options = RunOptions::resolve(flags, None).expect("right");
        assert_eq!((options.poll, options.busy_budget), (PollMode::Adaptive, BUSY_BUDGET_DEFAULT));
        assert_eq!(
            error("[run]\nbusy_budget = 0\n"),
            "r.toml:2:15: busy budget is 0, expected 1 to 65535"
        );
        assert_eq!(
            error("[run]\npoll = \"often\"\n"),
            "r.toml:2:8: unknown variant `often`, expected one of `busy`, `adaptive`, `interrupt`"
        );
    }

    #[test]
    fn no_interface_and_one_twice_are_refused() {
        let flags = |names: &[&str]| RunFlags {
            interfaces: names.iter().map(|n| n.to_string()).collect(),
            ..RunFlags::default()
        };
        for (names, expected) in [
            (&[][..], "no interface is named"),
            (&["a", "a"][..], "named twice"),
            (&["an-interface-name"][..], "not an interface name"),
        ] {
            let error = RunOptions::resolve(flags(names), None).expect_err("is wrong");
            assert!(error.contains(expected), "{error}");
        }
        let options = RunOptions::resolve(flags(&["a"]), None).expect("right");
        assert_eq!(options.latency_sample, LATENCY_SAMPLE_DEFAULT);
        assert_eq!(options.metrics, None);
    }

    #[test]
    fn the_control_socket_is_in_the_runtime_directory_unless_it_is_named() {
        let resolve = |flags: RunFlags, file: &str| {
            let flags = RunFlags { interfaces: vec!["a".into()], ..flags };
            let options = RunOptions::resolve(flags, Some(run(file))).expect("right");
            let RuntimeDir { path, required } = options.runtime_dir.expect("there is one");
            let shown = |path: PathBuf| path.to_string_lossy().into_owned();
            (shown(path), required, shown(options.control))
        };
        let expected = |dir: &str, required, control: &str| (dir.into(), required, control.into());
        let (none, dir) = (RunFlags::default, |dir: &str| Some(PathBuf::from(dir)));
        let default = resolve(none(), "[run]\n");
        assert_eq!(default, expected("/run/ferroute", true, "/run/ferroute/control.sock"));
        let file = "[run]\nruntime_dir = \"/a\"\n";
        assert_eq!(resolve(none(), file), expected("/a", true, "/a/control.sock"));
        let flags = RunFlags { runtime_dir: dir("/b"), ..none() };
        assert_eq!(resolve(flags.clone(), file), expected("/b", true, "/b/control.sock"));
        let flags = RunFlags { control: dir("/tmp/s"), ..flags };
        assert_eq!(resolve(flags, file), expected("/b", true, "/tmp/s"));
        // The default directory is used for nothing that was requested.
        let flags = RunFlags { control: dir("/tmp/s"), ..none() };
        assert_eq!(resolve(flags, "[run]\n"), expected("/run/ferroute", false, "/tmp/s"));
    }

    #[test]
    fn a_maximum_number_of_ports_is_for_patterns_and_files() {
        let file = run("[run]\ninterfaces = [\"a\", \"b*\"]\nmax_ports = 7\n");
        let options = RunOptions::resolve(RunFlags::default(), Some(file.clone())).expect("right");
        assert_eq!(
            (options.interfaces.to_string().as_str(), options.max_ports),
            ("a, b*", Some(7))
        );
        let flags = |names: &[&str], max_ports| RunFlags {
            interfaces: names.iter().map(|n| n.to_string()).collect(),
            max_ports,
            ..RunFlags::default()
        };
        let options = RunOptions::resolve(flags(&["c*"], Some(3)), Some(file.clone()));
        assert_eq!(options.expect("right").max_ports, Some(3));
        for (names, max, expected) in [
            (&["a", "b", "c*"][..], Some(1), "2 are named"),
            (&["c*"], Some(0), "expected 1 to 256"),
            (&["c*"], Some(257), "expected 1 to 256"),
        ] {
            let error = RunOptions::resolve(flags(names, max), Some(file.clone()));
            let error = error.expect_err("is wrong");
            assert!(error.contains(expected), "{error}");
        }
        let options = RunOptions::resolve(flags(&["a"], None), Some(file)).expect("right");
        assert_eq!(options.max_ports, Some(7), "a reload may add some");
        let error = RunOptions::resolve(flags(&["a"], Some(3)), None).expect_err("is wrong");
        assert!(error.contains("is for patterns"), "{error}");
        assert_eq!(
            self::error("[run]\nmax_ports = 1000\n"),
            "r.toml:2:13: max ports is 1000, expected 1 to 256"
        );
        assert_eq!(
            self::error("[run]\ninterfaces = [\"a\", \"b[\"]\n").split(": ").next(),
            Some("r.toml:2:20")
        );
    }
}
