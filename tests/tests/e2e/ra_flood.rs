//! A flood of router advertisements to a port that accepts them, while Ferroute forwards.

use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::packet::{Ipv6, ethernet, icmpv6};
use ferroute_tests::rng::Rng;
use ferroute_tests::stream::Stream;
use ferroute_tests::tap::Tap;
use ferroute_tests::{Ferroute, Lab, eventually, ferroute};
use serde_json::Value;

use crate::full_table::tables_agree;

const ADVERTISEMENTS: usize = 4000;
const ROUTERS: usize = 200;
const PREFIXES: usize = 100;
/// In seconds; the short ones end while the test runs, without an event.
const LIFETIMES: [u16; 4] = [0, 2, 3, 1800];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// An advertisement (RFC 4861 §4.2) of one of the routers, with a prefix and a route (RFC 4191 §2.3).
fn advertisement(rng: &mut Rng) -> Vec<u8> {
    let router = 1 + rng.below(ROUTERS) as u8;
    let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xfa, router.into());
    let preference = [0, 1, 3][rng.below(3)] << 3;
    let mut lifetime = || LIFETIMES[rng.below(LIFETIMES.len())];
    let [default, prefix, route] = [lifetime(), lifetime(), lifetime()];
    let number = rng.below(PREFIXES) as u8;
    let [high, low] = default.to_be_bytes();
    // Reachable time and retransmission timer: unspecified.
    let mut data = vec![0; 8];
    data.extend([1, 1, 2, 0xf0, 0, 0, 9, router]);
    // On-link; not for addresses of its own.
    data.extend([3, 4, 64, 0x80]);
    data.extend(u32::from(prefix).to_be_bytes());
    data.extend(u32::from(prefix).to_be_bytes());
    data.extend([0; 4]);
    data.extend(Ipv6Addr::new(0x2001, 0xdb8, 0x7a, number.into(), 0, 0, 0, 0).octets());
    data.extend([24, 2, 48, preference]);
    data.extend(u32::from(route).to_be_bytes());
    data.extend([0x20, 1, 0xd, 0xb8, 1, number, 0, 0]);
    if rng.below(5) == 0 {
        // An option without a length, an unknown one, or one that is longer than the rest.
        data.extend([[3, 0, 64, 0x80], [99, 1, 0, 0], [24, 9, 48, 0]][rng.below(3)]);
        data.extend([0; 4]);
    }
    let message = icmpv6(source, ALL_NODES, (134, 0, [64, preference, high, low]), &data);
    let mut header = Ipv6::new(source, ALL_NODES, 58);
    // Another one shows that a router has forwarded it.
    header.hop_limit = if rng.below(10) == 0 { 254 } else { 255 };
    ethernet([0x33, 0x33, 0, 0, 0, 1], [2, 0xf0, 0, 0, 9, router], 0x86dd, &header.packet(&message))
}

fn advertised(lab: &Lab) -> Result<usize> {
    let routes = lab.router.run("ip -j -6 route show table main")?;
    let routes: Vec<Value> = serde_json::from_str(&routes)?;
    Ok(routes.iter().filter(|route| route["protocol"] == "ra").count())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_flood_of_router_advertisements_stops_nothing_and_ends_in_the_kernels_routes() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    for (key, value) in [("accept_ra", "2"), ("accept_ra_rt_info_max_plen", "64")] {
        lab.router.sysctl(&format!("net/ipv6/conf/rt-left/{key}"), value)?;
    }
    lab.router.sysctl("net/ipv6/route/gc_interval", "1")?;
    let mut ferroute = Ferroute::start(&lab)?;
    let streams = [RIGHT4, RIGHT6]
        .map(|address| Stream::start(&lab.left, &lab.right, address, Duration::from_millis(5)));
    let tap = Tap::open(&lab.left, "left")?;
    let mut rng = Rng::new(12);
    for _ in 0..ADVERTISEMENTS {
        tap.send(&advertisement(&mut rng))?;
    }
    let during = advertised(&lab)?;
    ensure!(during > PREFIXES / 2, "{during} routes from advertisements");
    for stream in streams {
        let stream = stream?;
        ensure!(stream.flows(50), "nothing is forwarded\n{}", ferroute.account());
        let report = stream.stop();
        ensure!(report.lost() == 0, "{report:?}\n{}", ferroute.account());
    }
    // Had the control thread stalled for a second, the kernel would have forwarded some.
    ferroute.forwarded_all_itself()?;
    tables_agree(&lab, &ferroute)?;
    let fewer = || advertised(&lab).is_ok_and(|after| after > 0 && after < during);
    ensure!(eventually(fewer), "no lifetime has ended: {during} routes");
    // Neither does the end of a lifetime cause an event.
    tables_agree(&lab, &ferroute)?;
    let status = ferroute.json(&["status"])?;
    let corrections = status["mirror"]["corrections"].as_u64();
    corrections.with_context(|| format!("corrections are not counted: {status}"))?;
    ferroute.terminate()
}
