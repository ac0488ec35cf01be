//! The command line: one file per command. Commands and output follow iproute2.
//!
//! Exit codes: 0 success, 1 failure (and `status` when nothing is forwarded), 2 wrong usage or input.

mod api;
mod bench;
mod capture;
mod completions;
mod config;
mod conntrack;
mod daemon_stream;
mod doctor;
mod drops;
mod flows;
mod latency;
mod man;
mod monitor;
mod output;
mod pktgen;
mod reload;
mod replay;
mod route;
mod rules;
mod run;
mod show;
mod sink;
mod stat;
mod status;
mod top;
mod trace;
mod units;
mod xfrm;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::control::api::client::Client;
use crate::control::api::{Family, Request, Response};
use crate::control::config::ConfigError;
use crate::control::config::source::SourceError;
use crate::control::process::runtime_dir;
use output::Output;

pub use run::RunArgs;

/// An AF_XDP router that follows the Linux kernel's control plane.
///
/// Start it on the interfaces of a working Linux router: it forwards packets between them in userspace,
/// using the kernel's own routes, neighbours and rules. When it stops, the kernel forwards them.
#[derive(Debug, Parser)]
#[command(name = "ferroute", version, infer_subcommands = true, subcommand_required = true)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Print JSON.
    #[arg(short, long, global = true)]
    json: bool,
    /// Print JSON with line breaks and indentation.
    #[arg(short, long, global = true)]
    pretty: bool,
    /// Control socket of the daemon [default: control.sock in the runtime directory].
    #[arg(long, global = true, value_name = "PATH", env = "FERROUTE_CONTROL")]
    #[arg(hide_env_values = true)]
    control: Option<PathBuf>,
    /// Runtime directory of the daemon, accessible only to its user [default: RUNTIME_DIRECTORY, as systemd
    /// sets it, or /run/ferroute].
    #[arg(long, global = true, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Show IPv4 only.
    #[arg(short = '4', global = true, conflicts_with = "inet6")]
    inet: bool,
    /// Show IPv6 only.
    #[arg(short = '6', global = true)]
    inet6: bool,
}

impl Global {
    /// The path of the daemon's control socket.
    fn control(&self) -> PathBuf {
        self.control.clone().unwrap_or_else(|| {
            let directory = self.runtime_dir.clone().unwrap_or_else(runtime_dir::default_path);
            runtime_dir::socket_in(&directory)
        })
    }

    /// Sends the daemon one request.
    fn ask(&self, request: &Request) -> Result<Response> {
        Ok(Client::connect(&self.control())?.ask(request)?)
    }

    fn family(&self) -> Option<Family> {
        match (self.inet, self.inet6) {
            (true, _) => Some(Family::Inet),
            (_, true) => Some(Family::Inet6),
            _ => None,
        }
    }

    fn output(&self) -> Output {
        Output::new(self.json, self.pretty)
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Forward between interfaces in userspace until stopped.
    Run(RunArgs),
    /// Have the daemon read its configuration file again, and show what has changed.
    Reload(reload::ReloadArgs),
    /// Check or show the configuration of `run`.
    Config(config::ConfigArgs),
    /// Show whether packets are forwarded, on which ports and how.
    Status(status::StatusArgs),
    /// Show interfaces as the daemon knows them.
    #[command(visible_alias = "l")]
    Link(show::LinkArgs),
    /// Show addresses as the daemon knows them.
    #[command(visible_alias = "a", alias = "address")]
    Addr(show::NounArgs),
    /// Show routes, or look up the route to an address.
    #[command(visible_alias = "r")]
    Route(route::RouteArgs),
    /// Show rules as the daemon knows them.
    Rule(show::NounArgs),
    /// Show nexthop objects as the daemon knows them.
    #[command(visible_alias = "nh")]
    Nexthop(show::NounArgs),
    /// Show neighbours as the daemon knows them.
    #[command(visible_alias = "n", alias = "neighbour", alias = "neighbor")]
    Neigh(show::NounArgs),
    /// Show counters, as nstat does.
    Stat(stat::StatArgs),
    /// Show what was dropped or handed back to the kernel, and why.
    Drops(drops::DropsArgs),
    /// Show the nftables ruleset that is applied in userspace, with its counters.
    Rules(rules::RulesArgs),
    /// Show the kernel's connections, as conntrack does, and which of them are carried in userspace.
    Conntrack(Box<conntrack::ConntrackArgs>),
    /// Show the flows that are carried in userspace or by the XDP program, with packets, rates, and why not.
    Flows(Box<flows::FlowsArgs>),
    /// Watch the router: ports, workers, drops, latency and flows with their rates, as htop does.
    Top(top::TopArgs),
    /// Show how long frames stay in userspace, as percentiles for each pair of ports.
    Latency(latency::LatencyArgs),
    /// Show or save packets that pass through userspace or are dropped there, as tcpdump does.
    Capture(capture::CaptureArgs),
    /// Show the way of single packets through the stages and rules in userspace, and how they end.
    Trace(trace::TraceArgs),
    /// Watch ports, tables, rules, offload, drops and counters change, as `ip monitor` does.
    Monitor(monitor::MonitorArgs),
    /// Show the kernel's IPsec policies, security associations and counters, as `ip xfrm` does.
    Xfrm(xfrm::XfrmArgs),
    /// Process a capture's packets with the whole data path, in a network described in a file.
    Replay(replay::ReplayArgs),
    /// Send packets as fast as a port accepts them, or at a rate; they carry kernel pktgen's header.
    Pktgen(Box<pktgen::PktgenArgs>),
    /// Receive such packets: count lost, duplicated and reordered ones, and measure latency.
    Sink(sink::SinkArgs),
    /// Measure a device between two ports: throughput, latency, loss, bursts (RFC 2544, RFC 9004).
    Bench(Box<bench::BenchArgs>),
    /// Look for what prevents forwarding, and say what to do.
    Doctor(doctor::DoctorArgs),
    /// Print the JSON schema of the control socket's protocol.
    Api(api::ApiArgs),
    /// Print completions for a shell.
    Completions(completions::CompletionsArgs),
    /// Write man pages into a directory.
    Man(man::ManArgs),
}

/// Wrong usage or input, found before anything is tried: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(&cli.global, &cli.verb) {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::last_words(format_args!("ferroute: {}", output::with_causes(&error)));
            let usage =
                error.is::<Usage>() || error.is::<ConfigError>() || error.is::<SourceError>();
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn dispatch(global: &Global, verb: &Verb) -> Result<ExitCode> {
    use crate::control::api::Object;
    match verb {
        Verb::Run(args) => crate::control::daemon::run(args.options(global)?),
        Verb::Reload(args) => reload::reload(global, args),
        Verb::Config(args) => config::config(global, args),
        Verb::Status(args) => return status::status(global, args),
        Verb::Link(args) => args.show(global),
        Verb::Addr(args) => show::show(global, Object::Addr, args.words()),
        Verb::Route(args) => return route::route(global, args),
        Verb::Rule(args) => show::show(global, Object::Rule, args.words()),
        Verb::Nexthop(args) => show::show(global, Object::Nexthop, args.words()),
        Verb::Neigh(args) => show::show(global, Object::Neigh, args.words()),
        Verb::Stat(args) => stat::stat(global, args),
        Verb::Drops(args) => drops::drops(global, args),
        Verb::Rules(args) => rules::rules(global, args),
        Verb::Conntrack(args) => conntrack::conntrack(global, args),
        Verb::Flows(args) => flows::flows(global, args),
        Verb::Top(args) => top::top(global, args),
        Verb::Latency(args) => latency::latency(global, args),
        Verb::Capture(args) => capture::capture(global, args),
        Verb::Trace(args) => trace::trace(global, args),
        Verb::Monitor(args) => return monitor::monitor(global, args),
        Verb::Xfrm(args) => xfrm::xfrm(global, args),
        Verb::Replay(args) => replay::replay(global, args),
        Verb::Pktgen(args) => pktgen::pktgen(global, args),
        Verb::Sink(args) => sink::sink(global, args),
        Verb::Bench(args) => return bench::bench(global, args),
        Verb::Doctor(args) => return doctor::doctor(global, args),
        Verb::Api(args) => api::api(global, args),
        Verb::Completions(args) => completions::completions(args),
        Verb::Man(args) => man::man(args),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// The daemon sent a response that does not fit the request.
fn unexpected(response: &Response) -> anyhow::Error {
    let kind = serde_json::to_value(response).ok();
    let kind = kind.as_ref().and_then(|v| v.as_object()?.keys().next());
    anyhow::anyhow!(
        "the daemon answered with {}",
        kind.map_or("an invalid response", |kind| kind.as_str())
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_names_every_command_of_the_manual() {
        let help = Cli::command().render_long_help().to_string();
        for verb in [
            "status",
            "link",
            "addr",
            "route",
            "rule",
            "nexthop",
            "neigh",
            "stat",
            "drops",
            "rules",
            "conntrack",
            "flows",
            "top",
            "latency",
            "capture",
            "trace",
            "monitor",
            "api",
            "xfrm",
            "doctor",
            "config",
            "reload",
        ] {
            assert!(help.contains(&format!("\n  {verb}")), "{verb} is not in\n{help}");
        }
        for option in ["--json", "--control", "FERROUTE_CONTROL", "--runtime-dir", "--version"] {
            assert!(help.contains(option), "{option} is not in\n{help}");
        }
    }

    #[test]
    fn commands_are_parsed_as_in_iproute2() {
        for line in [
            "link",
            "l show",
            "link -d show up",
            "-j link show -d dev eth0",
            "-j a",
            "addr show dev eth0",
            "-6 route",
            "ro show table all",
            "r get 192.0.2.1 from 192.0.2.2 iif eth0 mark 0x10",
            "route get -",
            "rule",
            "n",
            "route list",
            "nexthop show id 3",
            "nh",
            "stat -z",
            "drops -j",
            "rules",
            "rules show -j",
            "rules list",
            "conntrack",
            "conntrack show --pretty -p tcp -s 10.0.0.0/8 -n -j",
            "conntrack count -f ipv6 --dport 443 -u ASSURED",
            "-p conntrack list -o extended,id --carried",
            "flows",
            "top",
            "top -d 0.5 -n 3",
            "top -b -j --flows 0",
            "top --batch 5 -i 30 -p",
            "flows show -j",
            "flows top -n 5 -i 0.5 -c 3",
            "flows top --batch 1 --sort packets -p udp -d 10.0.0.0/8 --offloaded -j",
            "flows show -v -s 10.0.0.1 -d 10.0.0.2 --iif eth0 -j",
            "-p flows show --details --pretty -p tcp",
            "flows count -p udp --dport 53 --not-offloaded",
            "flows offloaded --oif eth1",
            "status --wait 3",
            "latency --watch --reset --port-pair eth0:eth1 --port-pair :eth0 -j",
            "latency --hgrm a.hgrm --log - --svg a.svg",
            "neigh show dev eth0 -j",
            "--control /tmp/x status",
            "status --runtime-dir /run/x",
            "capture -i eth0 -i eth1 -w - --direction in,drop -c 5 -s 96 udp port 53 and not host 10.1.1.1",
            "capture -i any --promisc",
            "xfrm state",
            "x sa",
            "xfrm state show -s --show-keys -d",
            "-4 xfrm state -s list -j",
            "-6 xfrm policy show -s",
            "xfrm policy -j",
            "xfrm stat -z -j",
            "xfrm state -c a.toml -j",
            "xfrm new-keys -c a.toml --spi 0x1001 --spi 7",
            "doctor -c a.toml",
            "trace",
            "trace -n 3 -j udp port 53 and not host 10.1.1.1",
            "replay in.pcap -o out.pcap -c net.toml --iif left",
            "doctor -i eth0 -i eth1 -j",
            "monitor",
            "monitor all -t",
            "mon ports tables label --tshort -j",
            "monitor counters drops -i 0.1 --reconnect",
            "api schema",
            "run -i eth0 --poll busy --busy-budget 8",
            "run -i eth0 --poll interrupt",
            "reload -j",
            "config check",
            "config check a.toml",
            "config show -c a.toml -i eth0 --mode copy -j",
            "config default",
            "config schema -p",
            "run -i eth0 --driver af_xdp",
            "run -i eth0 --driver xsk-rs",
            "run --metrics -i eth0",
            "run -i eth0 --metrics [::1]:9112",
            "run -i eth0 --metrics unix:/run/ferroute/metrics.sock",
        ] {
            let words = std::iter::once("ferroute").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "",
            "route frobnicate",
            "status --wait never",
            "-4 -6 route",
            "stat extra",
            "rules show extra",
            "conntrack show extra",
            "conntrack show -p",
            "conntrack show -p frobnicate",
            "top -b 0",
            "top -n 0",
            "top -i 0",
            "top --flows 1001",
            "top extra",
            "flows top -n 0",
            "flows top -i 0",
            "flows top -c 0",
            "flows top --sort octets",
            "flows show -p frobnicate",
            "latency --port-pair eth0",
            "run -i eth0 --poll often",
            "config",
            "config check a b",
            "config show --mode fast",
            "run -i eth0 --driver dpdk",
            "run -i eth0 --metrics 9112",
            "run -i eth0 --poll busy --busy-budget 0",
            "run -i eth0 --poll busy --busy-budget 65536",
            "xfrm",
            "xfrm policy --show-keys",
            "xfrm state flush",
            "xfrm state -c a.toml --show-keys",
            "xfrm new-keys --spi x",
            "capture -c 0",
            "trace -n 0",
            "monitor frobnicate",
            "monitor -i 0.05",
            "monitor -i 61",
            "api",
            "capture --direction up",
        ] {
            let words = std::iter::once("ferroute").chain(line.split_terminator(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line:?}");
        }
    }
}
