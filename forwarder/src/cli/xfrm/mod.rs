//! `xfrm state|policy|stat`: the kernel's IPsec databases and counters, read from the kernel itself.
//!
//! - [`text`]: the format of `ip xfrm`;
//! - [`json`]: the same in JSON;
//! - [`names`]: names of the kernel's numbers;
//! - [`of_file`]: SAs of a file;
//! - [`new_keys`]: keys of a file that were never used.
//!
//! Left out: what the daemon does with them, which `status`, `stat` and `drops` show.

mod json;
mod names;
mod new_keys;
mod of_file;
mod text;

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::{Args, Subcommand};
use netlink_sys::protocols::NETLINK_XFRM;

use super::Global;
use crate::control::api::Family;
use crate::control::netlink::query::NlSock;
use crate::control::xfrm::{listing, stat};

/// `xfrm` and its objects.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct XfrmArgs {
    #[command(subcommand)]
    object: Object,
}

#[derive(Debug, Subcommand)]
enum Object {
    /// Show the kernel's security associations, as `ip xfrm state` does, without their keys.
    #[command(visible_alias = "sa", disable_help_subcommand = true)]
    State(StateArgs),
    /// Show the kernel's IPsec policies, as `ip xfrm policy` does.
    #[command(disable_help_subcommand = true)]
    Policy(PolicyArgs),
    /// Show the kernel's IPsec counters (/proc/net/xfrm_stat).
    Stat(StatArgs),
    /// Say that keys in the [xfrm] section of a file have never been used to send: `run` then counts from 1.
    ///
    /// A sequence number that is used twice with one key reveals what was sent. Only say it of keys that are new, at each
    /// host that has them. Keys that have numbers in the state directory keep these.
    NewKeys(new_keys::NewKeysArgs),
}

#[derive(Debug, Args)]
struct StateArgs {
    /// Show more: limits, usage, dropped packets, flags.
    #[arg(short, long, global = true)]
    statistics: bool,
    /// Show the keys, too.
    #[arg(long, global = true)]
    show_keys: bool,
    /// Show also why an SA is one that Ferroute leaves to the kernel.
    #[arg(short, long, global = true)]
    details: bool,
    /// Show instead the SAs in the [xfrm] section of this file, with the sequence numbers that are stored for them.
    #[arg(short, long, value_name = "FILE", global = true, conflicts_with = "show_keys")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<ShowVerb>,
}

#[derive(Debug, Args)]
struct PolicyArgs {
    /// Show more: limits, usage, flags, algorithms.
    #[arg(short, long, global = true)]
    statistics: bool,
    #[command(subcommand)]
    verb: Option<ShowVerb>,
}

#[derive(Debug, Subcommand)]
enum ShowVerb {
    /// Show all of them.
    #[command(alias = "list", alias = "lst", alias = "ls", alias = "s")]
    Show,
}

#[derive(Debug, Args)]
struct StatArgs {
    /// Also show counters that are zero.
    #[arg(short, long)]
    zeros: bool,
}

/// Reads what was asked for and prints it.
pub fn xfrm(global: &Global, args: &XfrmArgs) -> Result<()> {
    match &args.object {
        Object::State(args) => {
            let (None | Some(ShowVerb::Show)) = args.verb;
            states(global, args)
        }
        Object::Policy(args) => {
            let (None | Some(ShowVerb::Show)) = args.verb;
            policies(global, args)
        }
        Object::Stat(args) => stat(global, args),
        Object::NewKeys(args) => new_keys::new_keys(global, args),
    }
}

fn states(global: &Global, args: &StateArgs) -> Result<()> {
    if let Some(file) = &args.config {
        return of_file::states(global, file);
    }
    let mut states = listing::states(&mut socket()?, args.show_keys).map_err(explained)?;
    states.retain(|state| is_of(global.family(), state.info.family));
    let output = global.output();
    if output.json {
        return output.json(&states.iter().map(json::state).collect::<Vec<_>>());
    }
    let options = text::Options { statistics: args.statistics, details: args.details };
    output.text(&states.iter().map(|state| text::state(state, options)).collect::<String>())
}

fn policies(global: &Global, args: &PolicyArgs) -> Result<()> {
    let mut policies = listing::policies(&mut socket()?).map_err(explained)?;
    policies.retain(|policy| is_of(global.family(), policy.info.selector.family));
    let output = global.output();
    if output.json {
        return output.json(&policies.iter().map(json::policy).collect::<Vec<_>>());
    }
    let options = text::Options { statistics: args.statistics, details: false };
    output.text(&policies.iter().map(|policy| text::policy(policy, options)).collect::<String>())
}

/// Prints the counters as the kernel writes them. JSON has everything, including zeros.
fn stat(global: &Global, args: &StatArgs) -> Result<()> {
    let file = match fs::read_to_string(stat::PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(anyhow!(
            "the kernel has no IPsec counters: it was built without CONFIG_XFRM_STATISTICS"
        )),
        file => file.context(stat::PATH),
    }?;
    let output = global.output();
    if output.json {
        let counters: serde_json::Map<_, _> =
            stat::counters(&file).map(|(_, name, count)| (name.to_owned(), count.into())).collect();
        return output.json(&counters);
    }
    let shown = stat::counters(&file).filter(|(_, _, count)| args.zeros || *count != 0);
    output.text(&shown.map(|(line, ..)| format!("{line}\n")).collect::<String>())
}

fn socket() -> Result<NlSock> {
    NlSock::open(NETLINK_XFRM).map_err(|error| match error.raw_os_error() {
        Some(libc::EPROTONOSUPPORT) => anyhow!("the kernel has no IPsec (CONFIG_XFRM_USER)"),
        _ => anyhow!(error).context("a netlink socket of XFRM"),
    })
}

fn explained(error: io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::EPERM) => anyhow!("reading the kernel's IPsec databases needs CAP_NET_ADMIN"),
        _ => anyhow!(error).context("the kernel's IPsec databases"),
    }
}

/// Whether an AF_* number is of the family that is shown.
fn is_of(shown: Option<Family>, family: u16) -> bool {
    let number = match shown {
        None => return true,
        Some(Family::Inet) => libc::AF_INET,
        Some(Family::Inet6) => libc::AF_INET6,
    };
    i32::from(family) == number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_is_asked_for_is_shown_alone() {
        let of = |family| [libc::AF_INET as u16, libc::AF_INET6 as u16].map(|it| is_of(family, it));
        assert_eq!(of(None), [true, true]);
        assert_eq!(of(Some(Family::Inet)), [true, false]);
        assert_eq!(of(Some(Family::Inet6)), [false, true]);
    }
}
