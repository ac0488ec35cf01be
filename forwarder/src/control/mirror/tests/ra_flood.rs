//! Thousands of router advertisements, valid and malformed, while the mirror follows.

use std::time::{Duration, Instant};

use super::answers::random_answers;
use super::oracle::{equals_kernel, routes_theirs};
use super::ra::{Wire, advertisement_of, fill_checksum, pick};
use super::random::{ACCEPT, Rng};
use super::{eventually, in_netns, ports, run, tick_for};
use crate::control::mirror::{Mirror, MirrorOptions};

const ADVERTISEMENTS: u32 = 5000;
const ROUTERS: u64 = 60;
const PREFIXES: u64 = 100;
/// Longer than the lifetimes that end (3 s), and the kernel's interval of looking for those (`gc_interval`, set below).
const LIFETIMES_END: Duration = Duration::from_secs(6);

/// Offsets in a frame: hop limit, source address, ICMPv6 code and checksum, and the length of the first option.
const HOP_LIMIT: usize = 21;
const SOURCE: usize = 22;
const CODE: usize = 55;
const CHECKSUM: usize = 56;
const OPTION_LEN: usize = 71;
/// With the 16 octets of an advertisement without options.
const LEN_MIN: usize = 70;

/// What the kernel refuses, or takes a part of (RFC 4861 §6.1.2), with the right checksum but in one case.
fn malform(rng: &mut Rng, frame: &mut Vec<u8>) {
    let kind = rng.below(7);
    match kind {
        0 => frame[HOP_LIMIT] = 254,
        1 => frame[SOURCE] = 0x20,
        2 => frame[CODE] = 1,
        3 => frame[OPTION_LEN] = pick(rng, &[0, 200]),
        4 => frame.truncate(58 + rng.below(12) as usize),
        5 => frame.truncate(LEN_MIN + rng.below(30) as usize),
        _ => {}
    }
    let len = (frame.len() as u16 - 54).to_be_bytes();
    frame[18..20].copy_from_slice(&len);
    fill_checksum(frame);
    if kind == 6 {
        frame[CHECKSUM] ^= 1;
    }
}

/// Routes of the kernel that come from advertisements.
fn advertised() -> usize {
    routes_theirs().iter().filter(|route| route["protocol"] == "ra").count()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_flood_of_router_advertisements_ends_in_the_kernels_tables() {
    in_netns(|| {
        ports();
        ACCEPT.iter().for_each(|line| run(line));
        run("sysctl -w net.ipv6.route.gc_interval=1");
        let wire = Wire::open("vb");
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        let mut rng = Rng::new(11);
        let mut sent = 0;
        for n in 0..ADVERTISEMENTS {
            let router = 1 + rng.below(ROUTERS) as u8;
            let [prefix, route] = [0, 1].map(|_| rng.below(PREFIXES) as u8);
            let mut frame = advertisement_of(&mut rng, router, prefix, route);
            if rng.below(5) == 0 {
                malform(&mut rng, &mut frame);
            }
            sent += u32::from(wire.send(&frame));
            if n % 50 == 0 {
                mirror.process().expect("process");
                mirror.tick(Instant::now()).expect("tick");
            }
        }
        assert!(sent > ADVERTISEMENTS / 2, "{sent} were sent");
        let equals = |mirror: &Mirror| {
            equals_kernel(mirror)?;
            random_answers(mirror, &mut Rng::new(5))
        };
        eventually(&mut mirror, equals).unwrap_or_else(|difference| panic!("{difference}"));
        let during = advertised();
        assert!(during > 50, "{during} routes");
        // The kernel sends no event when it stops using a route whose lifetime has ended.
        tick_for(&mut mirror, LIFETIMES_END);
        eventually(&mut mirror, equals).unwrap_or_else(|difference| panic!("{difference}"));
        let after = advertised();
        assert!(after > 0 && after < during, "{after} of {during} routes");
        assert_eq!(mirror.counters().unparsable, 0);
    });
}
