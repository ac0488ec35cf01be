//! Packets that the kernel would not forward are not forwarded: sysctls and routes that forbid it.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::lab::mac;
use ferroute_tests::packet::{self, ETHERTYPE_IPV4, Ipv4, be16, ethernet, udp};
use ferroute_tests::ping::ping;
use ferroute_tests::stream::Stream;
use ferroute_tests::tap::Tap;
use ferroute_tests::{Ferroute, Lab, eventually};

fn dries_up(stream: &Stream) -> bool {
    eventually(|| {
        let before = stream.received();
        std::thread::sleep(Duration::from_millis(300));
        stream.received() == before
    })
}

/// Switches a sysctl off and on under traffic.
fn switch(key: &str, address: &str) -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    let stream = Stream::start(&lab.left, &lab.right, address, Duration::from_millis(2))?;
    for _ in 0..2 {
        ensure!(stream.flows(50), "nothing arrives with {key}=1");
        lab.router.sysctl(key, "0")?;
        ensure!(dries_up(&stream), "{key}=0 does not stop forwarding");
        lab.router.sysctl(key, "1")?;
    }
    ensure!(stream.flows(50), "nothing arrives with {key}=1");
    stream.stop();
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn forwarding_is_off_when_ip_forward_is_0() -> Result<()> {
    switch("net/ipv4/ip_forward", RIGHT4)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn forwarding_is_off_when_it_is_off_for_the_port() -> Result<()> {
    switch("net/ipv4/conf/rt-left/forwarding", RIGHT4)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn forwarding_is_off_when_it_is_off_for_ipv6() -> Result<()> {
    switch("net/ipv6/conf/all/forwarding", RIGHT6)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_machine_that_does_not_forward_is_followed_too() -> Result<()> {
    let lab = Lab::up()?;
    lab.router.sysctl("net/ipv4/ip_forward", "0")?;
    let ferroute = Ferroute::start(&lab)?;
    let result = ping(&lab.left, &format!("-c 3 -i 0.1 -W 1 {RIGHT4}"))?;
    ensure!(result.received == 0, "it forwards:\n{}", result.text);
    lab.router.sysctl("net/ipv4/ip_forward", "1")?;
    let through = || ping(&lab.left, &format!("-c 1 -W 1 {RIGHT4}")).is_ok_and(|p| p.received == 1);
    ensure!(eventually(through), "it does not forward once it may");
    ferroute.forwarded_all_itself()
}

/// Whether a packet from a source arrives on the right; a plain one that must arrive is sent after it.
fn passes(left: &Tap, right: &Tap, src: [u8; 4]) -> Result<bool> {
    let dst = Ipv4Addr::new(198, 18, 2, 2);
    let send = |src: Ipv4Addr, port: u16| {
        let datagram = udp(&src.octets(), &dst.octets(), (port, 4242), b"source");
        let packet = Ipv4::new(src, dst, packet::UDP).packet(&datagram);
        left.send(&ethernet(mac::RT_LEFT, mac::LEFT, ETHERTYPE_IPV4, &packet))
    };
    right.drain();
    send(src.into(), 1)?;
    // Packets are not reordered: when the later one has arrived, the other one will not.
    send(Ipv4Addr::new(198, 18, 1, 2), 2)?;
    let mut seen = false;
    let last = right.wait_for(Duration::from_secs(10), |frame| {
        let ours = be16(frame, 12) == Some(ETHERTYPE_IPV4) && be16(frame, 36) == Some(4242);
        seen |= ours && be16(frame, 34) == Some(1);
        ours && be16(frame, 34) == Some(2)
    });
    ensure!(last.is_some(), "not even a plain packet arrives");
    Ok(seen)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn reverse_path_filter_as_set_for_the_port() -> Result<()> {
    /// A source that belongs to the right, and one without a route.
    const ELSEWHERE: [u8; 4] = [198, 18, 2, 77];
    const NOWHERE: [u8; 4] = [10, 9, 9, 9];
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    ferroute_tests::ping::ping_all(&lab.left, &format!("-c 1 -W 5 {RIGHT4}"))?;
    let (left, right) = (Tap::open(&lab.left, "left")?, Tap::open(&lab.right, "right")?);
    for (value, elsewhere, nowhere) in
        [("0", true, true), ("1", false, false), ("2", true, false), ("0", true, true)]
    {
        lab.router.sysctl("net/ipv4/conf/rt-left/rp_filter", value)?;
        let as_said = || {
            passes(&left, &right, ELSEWHERE).is_ok_and(|passes| passes == elsewhere)
                && passes(&left, &right, NOWHERE).is_ok_and(|passes| passes == nowhere)
        };
        ensure!(eventually(as_said), "rp_filter={value} is not applied");
        ensure!(as_said(), "rp_filter={value} is applied only sometimes");
    }
    // A strict filter passes packets that came in by the correct interface.
    lab.router.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    ferroute_tests::ping::ping_all(&lab.left, &format!("-c 3 -i 0.1 -W 5 {RIGHT4}"))?;
    ferroute.forwarded_all_itself()
}

/// Output of the left host's ping for a route in the router.
fn refused(route: &str, address: &str) -> Result<String> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    lab.router.run(&format!("ip route add {route}"))?;
    // The mirror receives the change a moment later.
    std::thread::sleep(Duration::from_millis(500));
    let result = ping(&lab.left, &format!("-c 2 -i 0.3 -W 2 {address}"))?;
    ensure!(result.received == 0, "{route}: {}", result.text);
    ferroute.forwarded_all_itself()?;
    Ok(result.text)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_blackhole_is_silent() -> Result<()> {
    for (route, address) in [
        ("blackhole 203.0.113.0/24", "203.0.113.1"),
        ("blackhole 2001:db8:3::/48", "2001:db8:3::1"),
    ] {
        let text = refused(route, address)?;
        ensure!(!text.contains("From "), "{route}: {text}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_unreachable_route_says_host_unreachable() -> Result<()> {
    let text = refused("unreachable 203.0.113.0/24", "203.0.113.1")?;
    ensure!(text.contains("From 198.18.1.1"), "{text}");
    ensure!(text.contains("Destination Host Unreachable"), "{text}");
    let text = refused("unreachable 2001:db8:3::/48", "2001:db8:3::1")?;
    ensure!(text.contains("From 2001:db8:1::1"), "{text}");
    ensure!(text.contains("Destination unreachable: No route"), "{text}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_prohibited_route_says_filtered() -> Result<()> {
    let text = refused("prohibit 203.0.113.0/24", "203.0.113.1")?;
    ensure!(text.contains("Packet filtered"), "{text}");
    let text = refused("prohibit 2001:db8:3::/48", "2001:db8:3::1")?;
    ensure!(text.contains("Administratively prohibited"), "{text}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn no_route_says_net_unreachable() -> Result<()> {
    let text = refused("203.0.113.0/24 via 198.18.2.2", "192.0.2.1")?;
    ensure!(text.contains("Destination Net Unreachable"), "{text}");
    let text = refused("2001:db8:3::/48 via 2001:db8:2::2", "2001:db8:7::1")?;
    ensure!(text.contains("No route"), "{text}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn icmp_errors_are_limited() -> Result<()> {
    let lab = Lab::up()?;
    let _ferroute = Ferroute::start(&lab)?;
    let left = Tap::open(&lab.left, "left")?;
    let (src, dst) = (Ipv4Addr::new(198, 18, 1, 2), Ipv4Addr::new(198, 18, 2, 2));
    let mut header = Ipv4::new(src, dst, packet::UDP);
    header.ttl = 1;
    let datagram = udp(&src.octets(), &dst.octets(), (1, 4242), b"limit");
    let frame = ethernet(mac::RT_LEFT, mac::LEFT, ETHERTYPE_IPV4, &header.packet(&datagram));
    for _ in 0..200 {
        left.send(&frame)?;
    }
    let mut errors = 0;
    let is_error =
        |frame: &[u8]| be16(frame, 12) == Some(ETHERTYPE_IPV4) && frame.get(34) == Some(&11);
    while left.wait_for(Duration::from_millis(500), is_error).is_some() {
        errors += 1;
    }
    ensure!((1..100).contains(&errors), "200 packets got {errors} errors");
    Ok(())
}
