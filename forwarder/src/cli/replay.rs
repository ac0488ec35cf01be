//! `replay`: sends a capture through the whole data path, without root.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::{Global, Usage};
use crate::control::api::Counters;
use crate::control::config::Config;
use crate::control::offline::replay::{ReplayReport, replay as run_replay};

/// Example of a file, printed after the help.
const EXAMPLE: &str = r#"Example of a FILE:
  [[replay.interface]]
  name = "left"
  mac = "02:00:00:00:00:01"
  addresses = ["198.18.1.1/24", "2001:db8:1::1/64"]
  [[replay.interface]]
  name = "right"
  mac = "02:00:00:00:00:02"
  addresses = ["198.18.2.1/24", "2001:db8:2::1/64"]
  mtu = 1280                 # also forwarding, rp_filter, up, noarp, port, ...
  [[replay.interface]]
  name = "left.100"
  vlan = { link = "left", id = 100 } # protocol = "802.1ad", egress_qos_map = ["0:1"]
  [[replay.route]]
  dst = "default"
  via = "198.18.2.2"         # or dev; mtu, metric, table, src
  [[replay.route]]
  dst = "10.0.0.0/8"
  nexthop = [{ via = "198.18.2.2", weight = 3 }, { dev = "left" }]
  [[replay.route]]
  dst = "192.0.2.0/24"
  type = "blackhole"         # unreachable, prohibit, throw, local, ...
  [[replay.rule]]
  priority = 100
  from = "198.18.1.0/24"     # to, iif, fwmark, not
  table = 100                # or goto, or action
  [[replay.neighbour]]
  dev = "right"
  address = "198.18.2.2"
  lladdr = "02:00:00:00:00:12"
  [replay.sysctl]
  icmp_ratelimit = 0
  [[xfrm.state]]             # words of `ip xfrm state`; only the owner may read FILE then
  src = "198.18.2.1"
  dst = "198.18.2.2"
  proto = "esp"
  spi = 0x1001
  mode = "tunnel"
  reqid = 1
  aead = { name = "rfc4106(gcm(aes))", key = "0x000102030405060708090a0b0c0d0e0f10111213", icv = 128 }
  [[xfrm.policy]]            # words of `ip xfrm policy`
  dst = "10.0.0.0/8"
  dir = "out"
  tmpl = { src = "198.18.2.1", dst = "198.18.2.2", proto = "esp", reqid = 1, mode = "tunnel" }

Connected, local and broadcast routes come with the addresses, as in the kernel."#;

/// Arguments of `replay`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLE)]
pub struct ReplayArgs {
    /// The capture to read: pcap or pcapng; interface names in a pcapng file select the port.
    #[arg(value_name = "IN.pcap")]
    input: PathBuf,
    /// The capture to write: .pcapng keeps the ports, .pcap does not.
    #[arg(short, long, value_name = "OUT.pcap")]
    output: PathBuf,
    /// The file whose [replay] section describes the network, and whose [xfrm] section its IPsec.
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// The input port of packets for which the capture names none [default: the first].
    #[arg(long, value_name = "NAME")]
    iif: Option<String>,
}

/// Replays and reports what happened to the packets.
pub fn replay(global: &Global, args: &ReplayArgs) -> Result<()> {
    let shown = args.config.display();
    let network = Config::load(&args.config)?.network().ok_or_else(|| {
        Usage(format!("config {shown}: there is no [replay] section; describe the network there"))
    })?;
    // The file has been checked, and its errors were reported with line and column.
    let network = network.map_err(|wrong| Usage(wrong.message))?;
    refuse_same_file(&args.input, &args.output)?;
    let report = run_replay(&network, &args.input, &args.output, args.iif.as_deref())?;
    let output = global.output();
    if output.json { output.json(&report) } else { output.text(&text(&report)) }
}

/// Creating the output empties it before the input is read.
fn refuse_same_file(input: &Path, output: &Path) -> Result<()> {
    let identity = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    if identity(input).is_some_and(|input| identity(output) == Some(input)) {
        let (input, output) = (input.display(), output.display());
        return Err(Usage(format!("{output} is {input}; write to another file")).into());
    }
    Ok(())
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
    fn the_example_in_the_help_is_right() {
        let lines = EXAMPLE.lines().skip(1).take_while(|line| !line.is_empty());
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        let config = Config::parse(&text, "example".as_ref()).expect("is right");
        let network = config.network().expect("a network").expect("is right");
        assert_eq!((network.ports().len(), network.rules.len()), (2, 1));
        assert_eq!((network.xfrm.len(), network.xfrm.states().outbound.len()), (1, 1));
    }

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
