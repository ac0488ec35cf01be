//! Frames through the whole pipeline, over the memory driver.
#![no_main]

use ferroute_fuzz::bench::{Bench, Layout};
use ferroute_fuzz::input::{Step, parse};
use ferroute_fuzz::judge::Judge;
use ferroute_fuzz::lab::{Lab, Settings};
use libfuzzer_sys::fuzz_target;

/// Maximum length of a frame: somewhat more than one frame of the router's memory holds.
const LONGEST: usize = 4200;
/// Maximum packets of one input.
const PACKETS: usize = 24;

fuzz_target!(|octets: &[u8]| {
    let (settings, steps) = parse(octets, PACKETS, LONGEST);
    let settings = Settings(settings);
    let tables = Lab::of(settings).tables(settings);
    let mut bench = Bench::new(tables[0].clone(), settings.frames(), Layout::Driver);
    let mut known = 0;
    for step in steps {
        match step {
            Step::Frame(port, frame) => bench.receive(port, frame),
            Step::Wait(ms) => bench.wait(ms),
            Step::Neighbours => {
                known ^= 1;
                bench.publish(&tables[known]);
            }
            Step::Forward => bench.forward(),
        }
    }
    bench.finish();
    Judge::new(settings, &tables[1], &bench.received).all(&bench);
});
