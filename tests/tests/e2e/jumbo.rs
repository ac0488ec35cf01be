//! Jumbo frames are forwarded, fragmented, refused and captured completely, as by the kernel; packets that
//! are too long even for them are refused with a message.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::{LEFT4, LEFT6, RIGHT4, RIGHT6};
use ferroute_tests::lab::mac;
use ferroute_tests::packet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ipv4, Ipv6, UDP, be16, describe, ethernet, udp,
};
use ferroute_tests::ping::{ping, ping_all, ping_each};
use ferroute_tests::tap::Tap;
use ferroute_tests::{EVENT_TIMEOUT, Ferroute, Lab, eventually};

use crate::capture::{Capture, file, read};
use crate::tcp::iperf;

const PORT: u16 = 4242;

/// Lengths of IP packets around every limit of frames: what one frame of a port holds (3378), and two
/// frames as filled by the kernel and by Ferroute.
fn lengths() -> impl Iterator<Item = usize> {
    let around = |border: usize| border - 1..=border + 1;
    [1500, 3378, 4082, 6770, 7922, 8999].into_iter().flat_map(around)
}

/// Sets the MTU of the left and the right link.
fn set_mtu(lab: &Lab, left: u32, right: u32) -> Result<()> {
    lab.left.run(&format!("ip link set left mtu {left}"))?;
    lab.router.run(&format!("ip link set rt-left mtu {left}"))?;
    lab.router.run(&format!("ip link set rt-right mtu {right}"))?;
    lab.right.run(&format!("ip link set right mtu {right}")).map(drop)
}

fn lab(left: u32, right: u32) -> Result<Lab> {
    let lab = Lab::up()?;
    set_mtu(&lab, left, right)?;
    Ok(lab)
}

/// A frame from left to right with an IP packet of `len` octets.
fn frame(number: u16, v6: bool, df: bool, len: usize) -> Result<Vec<u8>> {
    let header = if v6 { 48 } else { 28 };
    let data: Vec<u8> = (0..len - header).map(|n| (n % 251) as u8 ^ number as u8).collect();
    let (ethertype, packet) = if v6 {
        let (src, dst): (Ipv6Addr, Ipv6Addr) = (LEFT6.parse()?, RIGHT6.parse()?);
        let datagram = udp(&src.octets(), &dst.octets(), (PORT, number), &data);
        (ETHERTYPE_IPV6, Ipv6::new(src, dst, UDP).packet(&datagram))
    } else {
        let (src, dst): (Ipv4Addr, Ipv4Addr) = (LEFT4.parse()?, RIGHT4.parse()?);
        let datagram = udp(&src.octets(), &dst.octets(), (PORT, number), &data);
        (ETHERTYPE_IPV4, Ipv4 { id: number, df, ..Ipv4::new(src, dst, UDP) }.packet(&datagram))
    };
    Ok(ethernet(mac::RT_LEFT, mac::LEFT, ethertype, &packet))
}

/// The effect of a frame sent from the left: the frames on the right until the packet was complete, or the
/// ICMP message that came back, without the headers before it.
fn consequence(taps: &(Tap, Tap), sent: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (left, right) = taps;
    left.send(sent)?;
    let v6 = be16(sent, 12) == Some(ETHERTYPE_IPV6);
    let (mut came, mut octets) = (Vec::new(), 0);
    let end = std::time::Instant::now() + EVENT_TIMEOUT;
    while std::time::Instant::now() < end {
        while let Some(frame) = right.receive() {
            let ours = frame.starts_with(&mac::RIGHT)
                && match v6 {
                    false => frame.get(18..20) == sent.get(18..20) && frame[23] == UDP,
                    true => frame.get(54..58) == sent.get(54..58),
                };
            if ours {
                octets += frame.len() - if v6 { 54 } else { 34 };
                came.push(frame);
            }
        }
        while let Some(frame) = left.receive() {
            // Packet Too Big, or Fragmentation Needed; not ICMP messages of the right host.
            let (at, protocol, error) = if v6 { (54, 20, [58, 2, 0]) } else { (34, 23, [1, 3, 4]) };
            let ours = frame.starts_with(&mac::LEFT) && frame[12..14] == sent[12..14];
            if ours && [frame[protocol], frame[at], frame[at + 1]] == error {
                return Ok(vec![frame[at..].to_vec()]);
            }
        }
        if octets == sent.len() - if v6 { 54 } else { 34 } {
            return Ok(came);
        }
        ferroute_tests::tap::wait(&[left, right], Duration::from_millis(100));
    }
    Err(anyhow::anyhow!("{} frames came of {}", came.len(), describe(sent)))
}

/// Fails unless every frame of memory is accounted for, once no packet is in flight.
fn all_at_home(ferroute: &Ferroute) -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let frames = || Ok::<_, anyhow::Error>(ferroute.json(&["stat"])?["frames"].clone());
    let at_home = || {
        frames().is_ok_and(|frames| {
            let place = |name: &str| frames[name].as_u64();
            let home = place("free").zip(place("fill_and_rx")).map(|(free, fill)| free + fill);
            home.is_some() && home == place("total")
        })
    };
    ensure!(eventually(at_home), "{:#}\n{}", frames()?, ferroute.account());
    Ok(())
}

/// Sends the same packets through Ferroute and through the kernel: the same frames must come out.
fn same_as_the_kernel(left: u32, right: u32) -> Result<()> {
    let (one, other) = (lab(left, right)?, lab(left, right)?);
    let mut ferroute = Ferroute::start(&one)?;
    for lab in [&one, &other] {
        for to in [RIGHT4, RIGHT6] {
            ping_each(&lab.left, to, 1)?;
        }
    }
    let open = |lab: &Lab| -> Result<(Tap, Tap)> {
        Ok((Tap::open(&lab.left, "left")?, Tap::open(&lab.right, "right")?))
    };
    let (taps, reference) = (open(&one)?, open(&other)?);
    let mut number = 1000;
    for len in lengths().filter(|&len| len <= left as usize) {
        for (v6, df) in [(false, false), (false, true), (true, false)] {
            number += 1;
            let sent = frame(number, v6, df, len)?;
            let expected = consequence(&reference, &sent)?;
            let came = consequence(&taps, &sent)?;
            let show = |frames: &[Vec<u8>]| frames.iter().map(|f| describe(f)).collect::<Vec<_>>();
            ensure!(
                came == expected,
                "{len} octets, IPv6 {v6}, DF {df}:\nferroute {:#?}\nkernel {:#?}",
                show(&came),
                show(&expected)
            );
        }
    }
    ferroute.forwarded_all_itself()?;
    all_at_home(&ferroute)?;
    ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn jumbo_frames_are_forwarded_as_by_the_kernel() -> Result<()> {
    same_as_the_kernel(9000, 9000)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn jumbo_frames_are_cut_for_1500_or_refused_as_by_the_kernel() -> Result<()> {
    same_as_the_kernel(9000, 1500)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn jumbo_frames_are_cut_into_jumbo_fragments_as_by_the_kernel() -> Result<()> {
    same_as_the_kernel(9000, 4500)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn jumbo_frames_pass_in_generic_mode() -> Result<()> {
    let lab = lab(9000, 9000)?;
    let ferroute = Ferroute::start_with(&lab, &["--mode", "generic"])?;
    for to in [RIGHT4, RIGHT6] {
        ping_each(&lab.left, &format!("-M do -s 8900 {to}"), 3)?;
    }
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn iperf3_with_jumbo_frames_loses_no_frame_of_memory() -> Result<()> {
    let lab = lab(9000, 9000)?;
    let mut ferroute = Ferroute::start(&lab)?;
    iperf(&lab, RIGHT4)?;
    iperf(&lab, RIGHT6)?;
    ferroute.forwarded_all_itself()?;
    all_at_home(&ferroute)?;
    ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_mtu_that_rises_and_falls_is_followed() -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    for to in [RIGHT4, RIGHT6] {
        ping_each(&lab.left, to, 1)?;
    }
    let details = |port: &str| ferroute.json(&["link", "show", "-d", "dev", port]);
    let is_multi = |wanted: bool| {
        ["rt-left", "rt-right"].iter().all(|port| {
            details(port).is_ok_and(|links| {
                let port = &links[0]["port"];
                port["multi_buffer"] == wanted && port["state"] == "forwarding"
            })
        })
    };
    let by_kernel = ferroute_tests::ferroute::by_kernel();
    ensure!(by_kernel || is_multi(false), "{:#}", details("rt-left")?);
    // A veth accepts such an MTU only if the program on its peer supports it.
    lab.router.run("ip link set rt-left mtu 9000")?;
    lab.router.run("ip link set rt-right mtu 9000")?;
    ensure!(
        by_kernel || eventually(|| is_multi(true)),
        "{:#}\n{}",
        details("rt-left")?,
        ferroute.said()
    );
    set_mtu(&lab, 9000, 9000)?;
    ping_all(&lab.left, &format!("-M do -s 8972 -c 1 -W 10 {RIGHT4}"))?;
    let before = ferroute.forwarded_by_kernel()?;
    ping_each(&lab.left, &format!("-M do -s 8972 {RIGHT4}"), 3)?;
    ensure!(by_kernel || ferroute.forwarded_by_kernel()? == before, "the kernel forwards");
    set_mtu(&lab, 1500, 1500)?;
    ping_each(&lab.left, &format!("-s 1472 {RIGHT4}"), 1)?;
    let result = ping(&lab.left, &format!("-M do -s 1473 -c 1 -W 5 {RIGHT4}"))?;
    ensure!(result.received == 0, "{}", result.text);
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_mtu_beyond_jumbo_frames_is_refused_with_what_to_do() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let lab = lab(9001, 1500)?;
    let said = Ferroute::refusal(&lab.router, &["-i", "rt-left", "-i", "rt-right"])?;
    ensure!(said.contains("ip link set rt-left mtu 9000"), "{said}");
    lab.router.run("ip link set rt-left mtu 9000")?;
    let ferroute = Ferroute::start(&lab)?;
    lab.router.run("ip link set rt-left mtu 9001")?;
    let refused = || ferroute.said().contains("ip link set rt-left mtu 9000");
    ensure!(eventually(refused), "{}", ferroute.said());
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn tshark_reads_jumbo_frames_as_they_were_sent() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let lab = lab(9000, 9000)?;
    let ferroute = Ferroute::start(&lab)?;
    ping_each(&lab.left, RIGHT4, 1)?;
    let dir = tempfile::tempdir()?;
    let (path, name) = file(&dir);
    let filter = format!("udp src port {PORT} and greater 3000");
    let capture = Capture::start(&ferroute, &["-w", &name, &filter], Stdio::null())?;
    let (left, right) = (Tap::open(&lab.left, "left")?, Tap::open(&lab.right, "right")?);
    let lengths = || lengths().filter(|&len| len > 3000);
    let frames = (1000..).zip(lengths()).map(|(number, len)| frame(number, false, true, len));
    let frames = frames.collect::<Result<Vec<_>>>()?;
    let mut arrived = Vec::new();
    for sent in &frames {
        left.send(sent)?;
        let is_it = |frame: &[u8]| frame.starts_with(&mac::RIGHT) && frame[18..20] == sent[18..20];
        arrived.push(right.wait_for(EVENT_TIMEOUT, is_it).context("it does not arrive")?);
    }
    let said = capture.stop()?;
    ensure!(said.contains("0 packets lost"), "{said}");
    let shown = read(&path)?;
    let of = |port: &str| -> Vec<Vec<u8>> {
        shown.iter().filter(|s| s.port == port).map(|s| s.frame.clone()).collect()
    };
    ensure!(of("rt-left") == frames, "received: {} of {}", of("rt-left").len(), frames.len());
    ensure!(of("rt-right") == arrived, "sent: {} of {}", of("rt-right").len(), arrived.len());
    Ok(())
}
