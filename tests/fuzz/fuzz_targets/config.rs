//! Configuration files: the sections `[run]`, `[replay]` and `[xfrm]`, and packets through that network.
#![no_main]

use std::path::Path;

use ferroute::control::config::{Config, ConfigError, RunFlags, RunOptions};
use ferroute_fuzz::bench::{Bench, Layout};
use libfuzzer_sys::fuzz_target;

/// A UDP datagram to each of two addresses, in a frame to a port of the lab.
const FRAMES: [&[u8]; 2] =
    [include_bytes!("../src/udp4.frame"), include_bytes!("../src/udp6.frame")];

fuzz_target!(|text: &str| {
    let config = match Config::parse(text, Path::new("f.toml")) {
        Ok(config) => config,
        Err(ConfigError::Invalid { line, column, message, .. }) => {
            assert!(line <= text.matches('\n').count() + 1, "line {line}");
            assert!(column <= text.chars().count() + 1, "column {column}");
            assert!(!message.is_empty());
            return;
        }
        Err(error) => panic!("no file is read: {error}"),
    };
    if let Some(run) = config.run.clone()
        && let Ok(options) = RunOptions::resolve(RunFlags::default(), Some(run))
    {
        assert!(options.rx_ring.is_power_of_two() && options.tx_ring.is_power_of_two());
    }
    let Some(network) = config.network() else { return };
    let network = network.expect("parse has looked");
    let tables = network.tables().expect("a table of a few routes fits");
    let mut bench = Bench::new(tables, 64, Layout::Driver);
    for port in 0..2 {
        FRAMES.iter().for_each(|frame| bench.receive(port, frame.to_vec()));
    }
    bench.forward();
    bench.wait(5000);
    bench.finish();
});
