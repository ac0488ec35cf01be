//! Netlink messages into the mirror, the tables compiled from it, and packets forwarded by these. Whole
//! datagrams are also decoded as messages of nf_tables, of ctnetlink and of XFRM.
#![no_main]

use std::net::IpAddr;

use ferroute::control::conntrack;
use ferroute::control::netlink::message::Messages;
use ferroute::control::nftables;
use ferroute::control::xfrm;
use ferroute_fuzz::bench::{Bench, Layout};
use ferroute_fuzz::input::mend;
use ferroute_fuzz::mirror::{Record, TestMirror, parse};
use libfuzzer_sys::fuzz_target;

/// Maximum number of destinations of packets.
const PACKETS: usize = 12;
const FRAMES: u32 = 128;

/// A UDP datagram to `daddr`, in a frame to `mac`.
fn frame(mac: [u8; 6], daddr: IpAddr) -> Vec<u8> {
    let mut frame = [mac, [2, 0, 0, 0, 0, 9]].concat();
    match daddr {
        IpAddr::V4(daddr) => {
            frame.extend([8, 0, 0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2]);
            frame.extend(daddr.octets());
        }
        IpAddr::V6(daddr) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 17, 64, 0x20, 1, 0x0d, 0xb8]);
            frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            frame.extend(daddr.octets());
        }
    }
    frame.extend([0, 9, 0, 9, 0, 0, 0, 0, 1, 2, 3, 4]);
    mend(&mut frame);
    frame
}

fuzz_target!(|octets: &[u8]| {
    let records = parse(octets);
    let (mut by_step, mut at_once) = (TestMirror::default(), TestMirror::default());
    for record in &records {
        if let Record::Datagram(datagram) = record {
            let _ruleset_or_error = nftables::decode(Messages::new(datagram));
            let _events =
                Messages::new(datagram).filter_map(|it| conntrack::Event::of(&it)).count();
            for message in Messages::new(datagram) {
                let _obstacle = xfrm::state::parse(&message).map(|sa| sa.obstacle());
                let _changed = xfrm::changes::changed(&message);
                let _numbers = xfrm::ae::aevent(&message);
            }
        }
        by_step.take(record);
        if !matches!(record, Record::Compile) {
            at_once.take(record);
        }
    }
    by_step.compile();
    at_once.compile();
    by_step.assert_same(&at_once);
    by_step.show();
    let tables = by_step.tables();
    let Some(port) = tables.links.port(0) else { return };
    let mac = port.mac;
    let mut bench = Bench::new(tables.clone(), FRAMES, Layout::Driver);
    let addresses = by_step.addresses();
    // Some addresses of each family.
    for addr in addresses.iter().step_by(addresses.len().div_ceil(PACKETS)).copied() {
        bench.receive(0, frame(mac, addr));
    }
    bench.forward();
    bench.wait(5000);
    bench.finish();
});
