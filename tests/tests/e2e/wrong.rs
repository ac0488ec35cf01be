//! Invalid packets are dropped and counted by reason, and `drops` reports the same reasons.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::mac;
use ferroute_tests::packet::{self, ETHERTYPE_IPV4, Ipv4, ethernet, udp};
use ferroute_tests::ping::ping_all;
use ferroute_tests::tap::Tap;
use ferroute_tests::{Ferroute, Lab, eventually, ferroute};

const SRC: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
const DST: Ipv4Addr = Ipv4Addr::new(198, 18, 2, 2);

fn frame(change: impl FnOnce(&mut Ipv4)) -> Vec<u8> {
    let mut header = Ipv4::new(SRC, DST, packet::UDP);
    change(&mut header);
    let datagram = udp(&SRC.octets(), &DST.octets(), (1, 2), b"wrong");
    ethernet(mac::RT_LEFT, mac::LEFT, ETHERTYPE_IPV4, &header.packet(&datagram))
}

fn count(ferroute: &Ferroute, reason: &str) -> Result<u64> {
    let report = ferroute.json(&["drops"])?;
    let drops = report["drops"].as_array().context("no drops")?;
    let row = drops.iter().find(|row| row["reason"] == reason);
    Ok(row.and_then(|row| row["count"].as_u64()).unwrap_or(0))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn each_kind_is_counted_by_its_reason() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    ping_all(&lab.left, "-c 1 -W 5 198.18.2.2")?;
    lab.router.run("ip route add blackhole 203.0.113.0/26")?;
    lab.router.run("ip route add unreachable 203.0.113.64/26")?;
    lab.router.run("ip route add prohibit 203.0.113.128/26")?;
    let left = Tap::open(&lab.left, "left")?;
    let mut cut_off = frame(|_| {});
    cut_off.truncate(14 + 12);
    for (reason, frame) in [
        ("IP_CSUM", frame(|header| header.checksum_error = 1)),
        ("IP_VERSION", frame(|header| header.version = 5)),
        ("IP_INHDR", frame(|header| header.ihl = Some(4))),
        ("IP_TOTAL_LENGTH", frame(|header| header.total_len = Some(400))),
        ("IP_TOTAL_LENGTH", frame(|header| header.total_len = Some(19))),
        ("IP_INVALID_SOURCE", frame(|header| header.src = Ipv4Addr::new(127, 0, 0, 1))),
        ("IP_INVALID_SOURCE", frame(|header| header.src = Ipv4Addr::new(224, 0, 0, 1))),
        ("IP_LOCAL_SOURCE", frame(|header| header.src = Ipv4Addr::new(198, 18, 2, 1))),
        ("IP_INVALID_DEST", frame(|header| header.dst = Ipv4Addr::new(0, 0, 0, 0))),
        ("IP_SOURCE_ROUTE", frame(|header| header.options = vec![131, 7, 4, 1, 2, 3, 4, 0])),
        ("IP_OPTIONS", frame(|header| header.options = vec![7, 39, 4, 0])),
        ("TTL_EXCEEDED", frame(|header| header.ttl = 1)),
        ("IP_OUTNOROUTES", frame(|header| header.dst = Ipv4Addr::new(192, 0, 2, 1))),
        ("BLACKHOLE", frame(|header| header.dst = Ipv4Addr::new(203, 0, 113, 1))),
        ("UNREACHABLE", frame(|header| header.dst = Ipv4Addr::new(203, 0, 113, 65))),
        ("PROHIBIT", frame(|header| header.dst = Ipv4Addr::new(203, 0, 113, 129))),
        ("PKT_TOO_SMALL", cut_off),
    ] {
        // The routes above may not be mirrored yet: then the first packet has another reason.
        let named = eventually(|| {
            let before = count(&ferroute, reason).unwrap_or(0);
            left.send(&frame).is_ok()
                && (0..20).any(|_| {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    count(&ferroute, reason).is_ok_and(|now| now > before)
                })
        });
        ensure!(named, "{reason} was not counted: {:#}", ferroute.json(&["drops"])?);
    }
    ferroute.forwarded_all_itself()
}
