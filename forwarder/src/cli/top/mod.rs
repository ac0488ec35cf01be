//! `top`: what the router does now, on a terminal, or as text or JSON with `--batch`.
//!
//! - [`sample`]: asks the daemon, on threads of its own;
//! - [`rates`]: what happened between two samples;
//! - [`text`]: that as text and JSON;
//! - [`screen`]: the same on a terminal, and its keys.

mod rates;
mod sample;
mod screen;
mod text;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use self::rates::Rates;
use self::sample::{FlowWish, Sampler};
use super::output::{self, Output};
use super::units::parse_interval;
use super::{Global, Usage};
use crate::control::api::client::{Client, ClientError};
use crate::control::api::flows::{FlowTopReport, RateKey, TOP_MAX};

const ABOUT: &str = "\
Keys: q quit, ? help with all keys, Tab selects a list, Enter shows it alone, arrows and PgUp/PgDn scroll, < and > choose \
the column to sort by, / filters, f shows or hides flows, l changes between latency of the interval and since the start, \
b between bits and octets, p pauses, + and - change the interval.

Rates are those between two answers of the daemon, and include what the XDP program forwards by itself. \"busy\" is the \
share of time in which a worker had packets. \"to kernel\" is what workers hand to the kernel (punt) and what the XDP \
program leaves to it (pass). Latency is the time in userspace of the frames that were measured in the interval (`run \
--latency-sample`); offloaded packets have none. Bits of flows are counted from the IP header on, those of ports with \
the Ethernet header.

A worker that had no turn in the interval is \"silent\": its busy share is unknown.

The counters are in shared memory: workers do no work for them. Flows are counted by a pass over all flows; they are asked \
for only while they are shown, and less often if that takes long.

NO_COLOR is respected. Without a UTF-8 locale bars and other signs are ASCII.";

/// Flags of `top`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct TopArgs {
    /// Seconds between two measurements, 0.1 to 30.
    #[arg(short, long, visible_short_alias = 'd', visible_alias = "delay")]
    #[arg(value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    interval: u32,
    /// Print measurements one after the other, as text or with -j as JSON, one object in a line; COUNT of them, or
    /// until interrupted.
    #[arg(short, long, value_name = "COUNT", num_args = 0..=1)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    batch: Option<Option<u64>>,
    /// End after this many measurements.
    #[arg(short = 'n', long, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// With --batch: number of flows, 0 to 1000; 0: none are asked for.
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=i64::from(TOP_MAX)))]
    flows: u32,
}

/// Shows rates until `q`, or prints some.
pub fn top(global: &Global, args: &TopArgs) -> Result<()> {
    let output = global.output();
    let Some(batch) = args.batch else {
        if output.json {
            return Err(Usage("JSON is printed with --batch [COUNT]".into()).into());
        }
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            let why = "standard input and output must be a terminal; elsewhere add --batch [COUNT]";
            return Err(Usage(why.into()).into());
        }
        return screen::run(&global.control(), args.interval, args.count);
    };
    let count = [batch, args.count].into_iter().flatten().min();
    print_batch(global, args, &output, count)
}

/// Prints measurements. The first is of an interval, too.
fn print_batch(global: &Global, args: &TopArgs, output: &Output, count: Option<u64>) -> Result<()> {
    let control = global.control();
    let mut sampler = Sampler::connect(&control)?;
    // Flows are counted meanwhile, on a connection of their own.
    let mut counter = if args.flows > 0 { Some(Client::connect(&control)?) } else { None };
    let interval = Duration::from_millis(args.interval.into());
    let wish = FlowWish { interval_ms: args.interval, flows: args.flows, sort: RateKey::Bits };
    let mut before = sampler.sample()?;
    let mut printed = 0;
    let mut no_flows = String::new();
    while count.is_none_or(|count| printed < count) {
        let due = Instant::now() + interval;
        let flows: Option<FlowTopReport> = match &mut counter {
            Some(counter) => match sample::flows(counter, wish) {
                Ok(report) => Some(report),
                // Other clients have them counted, or the daemon is older: not a reason to print nothing.
                Err(error) => {
                    let why = refusal(error)?;
                    if why != no_flows {
                        output::note(format_args!(
                            "ferroute: no flows: {why}; --flows 0 does not ask for them"
                        ));
                        no_flows = why;
                    }
                    None
                }
            },
            None => None,
        };
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let now = sampler.sample()?;
        let rates = Rates::between(Some(&before), &now);
        before = now;
        if output.json {
            output.json(&text::to_json(&rates, flows.as_ref()))?;
        } else {
            let separator = if printed > 0 { "\n" } else { "" };
            output.text(&format!("{separator}{}", text::to_text(&rates, flows.as_ref())))?;
        }
        printed += 1;
    }
    Ok(())
}

/// Why the daemon refuses.
///
/// # Errors
/// Those that are no refusal.
fn refusal(error: anyhow::Error) -> Result<String> {
    match error.downcast_ref() {
        Some(ClientError::Refused(why)) => Ok(why.clone()),
        _ => Err(error),
    }
}
