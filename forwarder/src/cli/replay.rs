//! `replay`: a capture through the whole road, without root.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{Global, Usage};
use crate::control::api::Counters;
use crate::control::config::Config;
use crate::control::replay::{ReplayReport, replay as run_replay};
use crate::control::static_network::StaticNetwork;

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The capture to read: pcap or pcapng; an interface's name in a pcapng file is the port.
    #[arg(value_name = "IN.pcap")]
    input: PathBuf,
    /// Where what leaves is written: .pcapng keeps the ports, .pcap does not.
    #[arg(short, long, value_name = "OUT.pcap")]
    output: PathBuf,
    /// The file whose [replay] section describes the network.
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// The port that packets come in by when the capture does not say [default: the first].
    #[arg(long, value_name = "NAME")]
    iif: Option<String>,
}

/// Replays and says what became of the packets.
pub fn replay(global: &Global, args: &ReplayArgs) -> Result<()> {
    let shown = args.config.display();
    let section = Config::load(&args.config)?.replay.ok_or_else(|| {
        Usage(format!("config {shown}: there is no [replay] section; describe the network there"))
    })?;
    // The file has been checked: what is wrong with it was said with its place.
    let network = StaticNetwork::new(&section).map_err(|wrong| Usage(wrong.message))?;
    let report = run_replay(&network, &args.input, &args.output, args.iif.as_deref())?;
    let output = global.output();
    if output.json { output.json(&report) } else { output.text(&text(&report)) }
}

fn text(report: &ReplayReport) -> String {
    let ReplayReport { read, skipped, written, punts, drops, mib } = report;
    let mut text = format!("read {read}, written {written}, skipped {skipped}\n");
    for (title, counters) in
        [("dropped", drops), ("for the kernel", punts), ("ferroute", mib)] as [(&str, &Counters); 3]
    {
        if !counters.is_empty() {
            text += &format!("#{title}\n");
        }
        for (name, count) in counters {
            text += &format!("{name:<31} {count}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_what_was_counted() {
        let report = ReplayReport {
            read: 3,
            skipped: 0,
            written: 1,
            punts: Counters::from([("LOCAL".into(), 1)]),
            drops: Counters::from([("IP_CSUM".into(), 1)]),
            mib: Counters::new(),
        };
        assert_eq!(
            text(&report),
            "read 3, written 1, skipped 0\n#dropped\nIP_CSUM                         1\n\
             #for the kernel\nLOCAL                           1\n"
        );
    }
}
