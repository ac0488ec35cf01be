//! Capture files, pcap and pcapng, read and replayed through the network of `frames`.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use ferroute::control::config::Config;
use ferroute::control::config::static_network::StaticNetwork;
use ferroute::control::offline::replay::replay;
use ferroute::io::pcap::packets;
use libfuzzer_sys::fuzz_target;

const LAB: &str = include_str!("../src/lab.toml");

static NETWORK: LazyLock<StaticNetwork> = LazyLock::new(|| {
    let config = Config::parse(LAB, Path::new("lab.toml")).expect("the lab is sound");
    StaticNetwork::new(&config.replay.expect("the section")).expect("the lab is sound")
});

/// Files of this process; scripts/fuzz makes the directory and removes it.
fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{}-{name}", std::process::id()))
}

static INPUT: LazyLock<PathBuf> = LazyLock::new(|| file("in"));
static OUTPUTS: LazyLock<[PathBuf; 2]> = LazyLock::new(|| ["out.pcap", "out.pcapng"].map(file));

fuzz_target!(|octets: &[u8]| {
    fs::write(&*INPUT, octets).expect("there is a directory for it");
    let mut all = 0;
    let read = packets(&INPUT, |_| all += 1);
    // The same bits of an input choose the same output.
    let output = &OUTPUTS[octets.len() & 1];
    let Ok(report) = replay(&NETWORK, &INPUT, output, None) else { return };
    if read.is_ok() {
        assert_eq!(all, report.read + report.skipped, "each packet is a port's, or skipped");
    }
    let mut written = 0;
    packets(output, |_| written += 1).expect("what is written can be read");
    assert_eq!(written, report.written);
});
