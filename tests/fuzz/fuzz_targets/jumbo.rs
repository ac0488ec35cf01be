//! Multi-buffer packets through the whole pipeline.
//!
//! The same packets are forwarded twice, with their octets split among frames in different ways. Sent,
//! handed back and dropped packets must be the same.
#![no_main]

use ferroute::skb::MAX_JUMBO;
use ferroute_fuzz::bench::{Bench, Layout};
use ferroute_fuzz::input::{Step, parse};
use ferroute_fuzz::judge::Judge;
use ferroute_fuzz::lab::{Lab, Settings};
use libfuzzer_sys::fuzz_target;

/// Frames of the router's memory: enough that no packet is dropped for lack of frames. The number of frames
/// of a packet must make no difference.
const FRAMES: u32 = 512;
/// Maximum packets of one input. With 18 frames each, they are fewer than may wait for neighbours.
const PACKETS: usize = 6;

fuzz_target!(|octets: &[u8]| {
    let Some((&[head, most], octets)) = octets.split_first_chunk() else { return };
    let (settings, steps) = parse(octets, PACKETS, MAX_JUMBO);
    let settings = Settings(settings);
    let tables = Lab::of(settings).tables(settings);
    let scattered =
        Layout::Scattered { head: usize::from(head) * 16, most: usize::from(most) * 16 + 1 };
    let [flat, scattered] = [Layout::Driver, scattered].map(|layout| {
        let mut bench = Bench::new(tables[0].clone(), FRAMES, layout);
        let mut known = 0;
        for step in &steps {
            match step {
                Step::Frame(port, frame) => bench.receive(*port, frame.clone()),
                Step::Wait(ms) => bench.wait(*ms),
                Step::Neighbours => {
                    known ^= 1;
                    bench.publish(&tables[known]);
                }
                Step::Forward => bench.forward(),
            }
        }
        bench.finish();
        bench
    });
    Judge::new(settings, &tables[1], &flat.received).all(&flat);
    assert!(flat.sent == scattered.sent, "{:02x?}\n{:02x?}", flat.sent, scattered.sent);
    assert!(flat.punted == scattered.punted, "{:02x?}\n{:02x?}", flat.punted, scattered.punted);
    assert_eq!(flat.drops(), scattered.drops());
});
