//! `conntrack show` and `conntrack count`: the kernel's connection tracking table, and which connections
//! workers carry.
//!
//! The table is read here and not by the daemon, some entries at a time: the kernel continues a dump when it
//! is read, so that neither process has more of a large table in memory. For those entries the daemon is asked
//! which are carried.

pub(in crate::cli) mod filter;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use netlink_sys::protocols::NETLINK_NETFILTER;
use serde_json::json;

use self::filter::{Family, FilterArgs};
use super::output::{self, ListOutput};
use super::{Global, unexpected};
use crate::control::api::client::{Client, ClientError};
use crate::control::api::flows::{FIND_MAX, FlowFindRequest, FlowFound, FlowTuple};
use crate::control::api::{self, Request, Response};
use crate::control::conntrack::{
    self, Carried, Fields, IPS_SEEN_REPLY, Line, Listed, Style, Sysctls,
};
use crate::control::netlink::query::{DumpEnd, NlSock};

/// `conntrack` and its subcommand; without one all entries are shown.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct ConntrackArgs {
    /// Print JSON with line breaks and indentation.
    // In place of the option of all commands, whose short form is the protocol's here, as in conntrack-tools.
    #[arg(id = "pretty", long = "pretty", global = true)]
    _pretty: bool,
    #[command(subcommand)]
    verb: Option<ConntrackVerb>,
}

#[derive(Debug, Subcommand)]
enum ConntrackVerb {
    /// Show entries as `conntrack -L` prints them, with [CARRIED] for those whose packets workers carry.
    ///
    /// Carried entries have `idle=`: the milliseconds since workers carried a packet last. The kernel does
    /// not see carried packets; to its counters (net.netfilter.nf_conntrack_acct), those of the workers are
    /// added. If no daemon runs, no entry is carried.
    #[command(alias = "list", alias = "lst", alias = "ls", alias = "s")]
    Show(ShowArgs),
    /// Show the number of entries, and how many are carried.
    Count(FilterArgs),
}

#[derive(Debug, Default, Args)]
struct ShowArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// What is shown in addition.
    #[arg(short, long, value_name = "WHAT,…", value_delimiter = ',')]
    output: Vec<OutputOption>,
}

/// What a line has in addition, as `conntrack -o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputOption {
    /// The family.
    Extended,
    /// The entry's id.
    Id,
}

/// Prints entries or their number.
pub fn conntrack(global: &Global, args: &ConntrackArgs) -> Result<()> {
    match &args.verb {
        None => show(global, &ShowArgs::default()),
        Some(ConntrackVerb::Show(args)) => show(global, args),
        Some(ConntrackVerb::Count(filter)) if filter.is_empty() && global.family().is_none() => {
            count_all(global)
        }
        Some(ConntrackVerb::Count(filter)) => count(global, filter),
    }
}

fn show(global: &Global, args: &ShowArgs) -> Result<()> {
    let has = |option| args.output.contains(&option);
    let style = Style { extended: has(OutputOption::Extended), id: has(OutputOption::Id) };
    let output = global.output();
    let mut list: Option<ListOutput> = None;
    each_match(global, &args.filter, |listed, carried| {
        let line = Line { listed, style, carried };
        // Nothing is printed before the first entry, so that an error is the only output.
        let list = list.get_or_insert_with(|| output.list());
        if output.json { list.element(&Fields::of(&line)) } else { list.line(&line) }
    })?;
    list.unwrap_or_else(|| output.list()).finish()
}

fn count(global: &Global, filter: &FilterArgs) -> Result<()> {
    let (mut entries, mut carried) = (0u64, 0u64);
    let is_asked = each_match(global, filter, |_, is_carried| {
        entries += 1;
        carried += u64::from(is_carried.is_some());
        Ok(())
    })?;
    let output = global.output();
    if output.json {
        return output.json(&number(entries, is_asked.then_some(carried)));
    }
    output.text(&format!("{entries}\n"))
}

/// The kernel's count, as `conntrack -C`, and the daemon's.
fn count_all(global: &Global) -> Result<()> {
    let entries = Sysctls::read().context("connection tracking: is nf_conntrack loaded?")?.count;
    let mut daemon = Daemon::connect(global, false)?;
    let carried = match &mut daemon.client {
        Some(client) => match client.ask(&Request::Status)? {
            Response::Status(report) => Some(report.carried_flows.unwrap_or(0)),
            other => return Err(unexpected(&other)),
        },
        None => None,
    };
    let output = global.output();
    match carried {
        _ if output.json => output.json(&number(entries.into(), carried)),
        Some(carried) => output.text(&format!("{entries} ({carried} carried)\n")),
        None => output.text(&format!("{entries}\n")),
    }
}

fn number(entries: u64, carried: Option<u64>) -> serde_json::Value {
    match carried {
        Some(carried) => json!({ "entries": entries, "carried": carried }),
        None => json!({ "entries": entries }),
    }
}

/// Calls `each` with the entries that match, as the kernel lists them. Returns whether a daemon knew which
/// are carried.
fn each_match(
    global: &Global,
    filter: &FilterArgs,
    mut each: impl FnMut(&Listed, Option<Carried>) -> Result<()>,
) -> Result<bool> {
    let family = filter.family.or(match global.family() {
        Some(api::Family::Inet) => Some(Family::Ipv4),
        Some(api::Family::Inet6) => Some(Family::Ipv6),
        None => None,
    });
    let family = match family {
        None => libc::AF_UNSPEC,
        Some(Family::Ipv4) => libc::AF_INET,
        Some(Family::Ipv6) => libc::AF_INET6,
    };
    let mut socket = open()?;
    let mut daemon = Daemon::connect(global, filter.carried)?;
    let mut batch: Vec<Listed> = Vec::new();
    let mut result = Ok(());
    let mut pass_on = |batch: &mut Vec<Listed>| -> Result<()> {
        let carried = daemon.find(batch)?;
        for (listed, carried) in batch.iter().zip(carried) {
            if carried.is_some() || !filter.carried {
                each(listed, carried)?;
            }
        }
        batch.clear();
        Ok(())
    };
    let dumped = conntrack::list(&mut socket, family as u8, |listed| {
        if result.is_ok() && filter.passes(&listed) {
            batch.push(listed);
            if batch.len() == FIND_MAX {
                result = pass_on(&mut batch);
            }
        }
    });
    result?;
    let dumped = dumped.map_err(|error| explain(&error))?;
    pass_on(&mut batch)?;
    if dumped.skipped > 0 || dumped.end != DumpEnd::Complete {
        let skipped = dumped.skipped;
        output::note(format_args!(
            "ferroute: the list is incomplete: {skipped} entries of the kernel could not be read"
        ));
    }
    Ok(daemon.client.is_some())
}

/// A socket for the kernel's table, which this user may read.
fn open() -> Result<NlSock> {
    let mut socket = NlSock::open(NETLINK_NETFILTER).map_err(|error| explain(&error))?;
    match conntrack::is_available(&mut socket) {
        Ok(true) => Ok(socket),
        Ok(false) => bail!(
            "the kernel has no nf_conntrack_netlink (CONFIG_NF_CT_NETLINK), by which connections are \
             listed; load it: modprobe nf_conntrack_netlink"
        ),
        Err(error) => Err(explain(&error)),
    }
}

fn explain(error: &io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => anyhow!(
            "the connection tracking table can only be read with CAP_NET_ADMIN: run this as root"
        ),
        Some(libc::EPROTONOSUPPORT) => anyhow!(
            "the kernel has no nfnetlink, by which connections are listed; load it: modprobe \
             nf_conntrack_netlink"
        ),
        _ => anyhow!("the connection tracking table cannot be read: {error}"),
    }
}

/// The daemon that knows which entries are carried.
struct Daemon {
    /// `None`: no daemon runs.
    client: Option<Client>,
}

impl Daemon {
    /// Connects; without a daemon, and if it is not needed, with a note.
    fn connect(global: &Global, is_needed: bool) -> Result<Daemon> {
        let mut client = match Client::connect(&global.control()) {
            Ok(client) => client,
            Err(error @ (ClientError::NotRunning { .. } | ClientError::NotPermitted { .. }))
                if !is_needed =>
            {
                output::note(format_args!(
                    "ferroute: connections that are carried are not marked: {error}"
                ));
                return Ok(Daemon { client: None });
            }
            Err(error) => return Err(error.into()),
        };
        let report = find(&mut client, FlowFindRequest::default())?;
        let own = fs::metadata("/proc/self/ns/net").map(|netns| netns.ino()).ok();
        if report.netns.zip(own).is_some_and(|(daemon, own)| daemon != own) {
            bail!(
                "the daemon runs in another network namespace; run this in the same, or name the socket \
                 of another daemon with --control"
            );
        }
        Ok(Daemon { client: Some(client) })
    }

    /// Which entries are carried, in their order; at most [`FIND_MAX`].
    fn find(&mut self, entries: &[Listed]) -> Result<Vec<Option<Carried>>> {
        // Only these are ever carried.
        let is_asked = |Listed { entry, .. }: &Listed| {
            entry.zone == 0
                && entry.status & IPS_SEEN_REPLY != 0
                && FlowTuple::of(&entry.original).key().kind().is_some()
        };
        let asked: Vec<FlowTuple> = entries
            .iter()
            .filter(|listed| is_asked(listed))
            .map(|listed| FlowTuple::of(&listed.entry.original))
            .collect();
        let count = asked.len();
        let found = match &mut self.client {
            Some(client) if count > 0 => find(client, FlowFindRequest { tuples: asked })?.flows,
            _ => vec![None; count],
        };
        if found.len() != count {
            bail!("the daemon answered for {} connections instead of {count}", found.len());
        }
        let mut found = found.into_iter();
        let carried = |listed: &Listed| {
            let found = if is_asked(listed) { found.next().flatten() } else { None };
            found.map(|FlowFound { idle_ms, packets, octets }| Carried { idle_ms, packets, octets })
        };
        Ok(entries.iter().map(carried).collect())
    }
}

fn find(client: &mut Client, request: FlowFindRequest) -> Result<api::flows::FlowFindReport> {
    match client.ask(&Request::FlowFind(request))? {
        Response::FlowFind(report) => Ok(report),
        other => Err(unexpected(&other)),
    }
}
