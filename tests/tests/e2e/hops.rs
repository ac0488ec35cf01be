//! The router appears as one hop in every tool and both families, and bypasses the kernel's stack.

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::{LEFT4, LEFT6, RIGHT4, RIGHT6, RT_LEFT4, RT_LEFT6, RT_RIGHT4};
use ferroute_tests::ping::ping_all;
use ferroute_tests::{Ferroute, Lab, Netns};

/// Builds a lab with Ferroute in it, and checks at the end that the kernel forwarded nothing.
fn past_the_kernel(test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    test(&lab).with_context(|| ferroute.account())?;
    ferroute.forwarded_all_itself()
}

/// Fails unless the addresses in `text`, in the order of the lines, are `expected`.
fn expect_hops(text: &str, expected: &[&str]) -> Result<()> {
    let is_address = |word: &&str| word.parse::<std::net::IpAddr>().is_ok();
    let hop = |line: &str| line.split_whitespace().find(is_address).map(str::to_owned);
    let mut hops: Vec<String> = text.lines().skip(1).filter_map(hop).collect();
    // tracepath prints a line for each answer of a hop.
    hops.dedup();
    ensure!(hops == expected, "hops {hops:?} in\n{text}");
    Ok(())
}

fn ping_through(from: &Netns, to: &str) -> Result<()> {
    let result = ping_all(from, &format!("-c 5 -i 0.1 -W 5 {to}"))?;
    ensure!(result.text.matches("ttl=63").count() == 5, "not one hop:\n{}", result.text);
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn ping_v4_sees_one_hop() -> Result<()> {
    past_the_kernel(|lab| {
        ping_through(&lab.left, RIGHT4)?;
        ping_through(&lab.right, LEFT4)
    })
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn ping_v6_sees_one_hop() -> Result<()> {
    past_the_kernel(|lab| {
        ping_through(&lab.left, RIGHT6)?;
        ping_through(&lab.right, LEFT6)
    })
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn traceroute_v4_sees_one_hop() -> Result<()> {
    past_the_kernel(|lab| {
        let text = lab.left.run(&format!("traceroute -n -q 1 -w 5 {RIGHT4}"))?;
        expect_hops(&text, &[RT_LEFT4, RIGHT4])
    })
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn traceroute_v6_sees_one_hop() -> Result<()> {
    past_the_kernel(|lab| {
        let text = lab.left.run(&format!("traceroute -6 -n -q 1 -w 5 {RIGHT6}"))?;
        expect_hops(&text, &[RT_LEFT6, RIGHT6])
    })
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn traceroute_of_icmp_and_tcp_sees_one_hop() -> Result<()> {
    past_the_kernel(|lab| {
        for method in ["-I", "-T"] {
            traceroute_raw(&lab.left, &format!("{method} {RIGHT4}"), &[RT_LEFT4, RIGHT4])?;
            traceroute_raw(&lab.left, &format!("-6 {method} {RIGHT6}"), &[RT_LEFT6, RIGHT6])?;
        }
        Ok(())
    })
}

/// traceroute(8) with one raw socket, which stops receiving in one of a hundred runs: the kernel queues the
/// ICMP error before it sets the socket's error (`raw_err`). A reader on another CPU may take the first
/// before the second is set; traceroute then sees POLLERR with an empty error queue, and never reads
/// anything else. A run that received nothing after the router is therefore repeated.
fn traceroute_raw(from: &Netns, to: &str, expected: &[&str]) -> Result<()> {
    let mut heard = Ok(());
    for _ in 0..4 {
        let text = from.run(&format!("traceroute -n -q 1 -w 5 -m 4 {to}"))?;
        heard = expect_hops(&text, expected);
        if heard.is_ok() || expect_hops(&text, &expected[..1]).is_err() {
            break;
        }
    }
    heard
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn mtr_sees_one_hop() -> Result<()> {
    past_the_kernel(|lab| {
        let text = lab.left.run(&format!("mtr --report --no-dns -c 2 {RIGHT4}"))?;
        expect_hops(&text, &[RT_LEFT4, RIGHT4])?;
        let text = lab.left.run(&format!("mtr -6 --report --no-dns -c 2 {RIGHT6}"))?;
        expect_hops(&text, &[RT_LEFT6, RIGHT6])
    })
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn tracepath_sees_one_hop() -> Result<()> {
    past_the_kernel(|lab| {
        for (option, to) in [("-4", RIGHT4), ("-6", RIGHT6)] {
            let text = lab.left.run(&format!("tracepath {option} -n {to}"))?;
            ensure!(text.contains("pmtu 1500 hops 2 back 2"), "tracepath {to}:\n{text}");
        }
        Ok(())
    })
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_router_itself_is_reached_on_both_addresses() -> Result<()> {
    past_the_kernel(|lab| {
        for address in [RT_LEFT4, RT_RIGHT4, RT_LEFT6] {
            let result = ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 {address}"))?;
            ensure!(result.text.matches("ttl=64").count() == 2, "{}", result.text);
        }
        Ok(())
    })
}
