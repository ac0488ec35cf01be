//! Packets longer than the MTU of the output link: an ICMP error is sent, or they are fragmented.

use anyhow::{Result, ensure};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::ping::{ping, ping_all};
use ferroute_tests::{Ferroute, Lab};

/// A lab with an MTU of 1280 octets on the right; Ferroute is started before or after the change.
fn narrow(change_under_way: bool) -> Result<(Lab, Ferroute)> {
    let lab = Lab::up()?;
    let set = |lab: &Lab| -> Result<()> {
        lab.router.run("ip link set rt-right mtu 1280")?;
        lab.right.run("ip link set right mtu 1280").map(drop)
    };
    if change_under_way {
        let ferroute = Ferroute::start(&lab)?;
        set(&lab)?;
        Ok((lab, ferroute))
    } else {
        set(&lab)?;
        let ferroute = Ferroute::start(&lab)?;
        Ok((lab, ferroute))
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn too_long_and_df_gets_fragmentation_needed_with_1280() -> Result<()> {
    for change_under_way in [false, true] {
        let (lab, ferroute) = narrow(change_under_way)?;
        let result = ping(&lab.left, &format!("-M do -s 1400 -c 1 -W 5 {RIGHT4}"))?;
        ensure!(result.received == 0, "it came through:\n{}", result.text);
        ensure!(result.text.contains("mtu = 1280"), "no Frag needed:\n{}", result.text);
        ferroute.forwarded_all_itself()?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn too_long_without_df_arrives_in_fragments() -> Result<()> {
    let (lab, ferroute) = narrow(false)?;
    // 1400 is fragmented by the router; 8000 already by the host, and its fragments once more.
    for size in [1400, 8000] {
        ping_all(&lab.left, &format!("-M dont -s {size} -c 3 -i 0.1 -W 5 {RIGHT4}"))?;
    }
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn just_the_mtu_passes_and_one_octet_more_does_not() -> Result<()> {
    let (lab, ferroute) = narrow(false)?;
    ping_all(&lab.left, &format!("-M do -s 1252 -c 2 -i 0.1 -W 5 {RIGHT4}"))?;
    let result = ping(&lab.left, &format!("-M do -s 1253 -c 1 -W 5 {RIGHT4}"))?;
    ensure!(result.text.contains("mtu = 1280"), "{}", result.text);
    ping_all(&lab.left, &format!("-M do -s 1232 -c 2 -i 0.1 -W 5 {RIGHT6}"))?;
    let result = ping(&lab.left, &format!("-M do -s 1233 -c 1 -W 5 {RIGHT6}"))?;
    ensure!(
        result.text.contains("mtu: 1280") || result.text.contains("mtu=1280"),
        "{}",
        result.text
    );
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn too_long_v6_gets_packet_too_big_and_then_arrives() -> Result<()> {
    let (lab, ferroute) = narrow(true)?;
    let result = ping(&lab.left, &format!("-M want -s 1400 -c 1 -W 5 {RIGHT6}"))?;
    ensure!(result.text.contains("Packet too big: mtu=1280"), "{}", result.text);
    // Now the host knows the MTU and fragments itself; the router forwards fragments like other packets.
    ping_all(&lab.left, &format!("-M want -s 1400 -c 2 -i 0.1 -W 5 {RIGHT6}"))?;
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_mtu_of_a_route_counts_as_the_link_s() -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    lab.right.run("ip addr add 203.0.113.1/32 dev lo")?;
    lab.router.run("ip route add 203.0.113.1 via 198.18.2.2 mtu 1300")?;
    let result = ping(&lab.left, "-M do -s 1400 -c 1 -W 5 203.0.113.1")?;
    ensure!(result.text.contains("mtu = 1300"), "{}", result.text);
    ping_all(&lab.left, "-M dont -s 1400 -c 1 -W 5 203.0.113.1")?;
    ferroute.forwarded_all_itself()
}
