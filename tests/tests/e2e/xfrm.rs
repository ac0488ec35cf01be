//! IPsec policies: packets that one concerns are the kernel's, all others go on as without.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ferroute_tests::conversation::{Conversation, are_carried, nft};
use ferroute_tests::lab::addr::{LEFT4, LEFT6, RIGHT4, RIGHT6, RT_RIGHT4};
use ferroute_tests::ping::ping_all;
use ferroute_tests::stream::Stream;
use ferroute_tests::{Ferroute, Lab, eventually, ferroute};

use crate::filters::{FOLLOW_TIME_MAX, forwards_itself, last_arrival};
use crate::offload::{OFFLOAD, lab_with_gro, offloaded};

/// Has all packets from the left to the right protected; there is no key.
const PROTECT: &str = "ip xfrm policy add dir out src 198.18.1.0/24 dst 198.18.2.0/24 \
                       tmpl src 198.18.2.1 dst 198.18.2.2 proto esp mode tunnel";

fn followed(running: &Ferroute) -> Option<u64> {
    running.json(&["status"]).ok()?["ipsec_policies"].as_u64()
}

fn left_by_policies(running: &Ferroute) -> Result<u64> {
    Ok(running.json(&["stat"])?["punts"]["XFRM"].as_u64().unwrap_or(0))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn packets_that_a_policy_concerns_are_the_kernels() -> Result<()> {
    let block = |family: &str, from: &str, to: &str| {
        format!("ip {family} xfrm policy add dir fwd src {from} dst {to} action block")
    };
    for (policy, concerned, other) in [
        (PROTECT.to_owned(), RIGHT4, RIGHT6),
        (block("-4", LEFT4, RIGHT4), RIGHT4, RIGHT6),
        (block("-6", LEFT6, RIGHT6), RIGHT6, RIGHT4),
    ] {
        let lab = Lab::up()?;
        let running = Ferroute::start(&lab)?;
        let stream = |to| Stream::start(&lab.left, &lab.right, to, Duration::from_millis(1));
        let (concerned, other) = (stream(concerned)?, stream(other)?);
        ensure!(concerned.flows(50) && other.flows(50), "nothing arrives at the start");
        running.forwarded_all_itself()?;

        lab.router.run(&policy)?;
        let set = Instant::now();
        let last = last_arrival(&concerned)?.saturating_duration_since(set);
        ensure!(last < FOLLOW_TIME_MAX, "{policy} takes effect after {last:?}");
        let kernels = running.forwarded_by_kernel()?;
        ensure!(other.flows(200), "other packets do not arrive");
        if !ferroute::by_kernel() {
            ensure!(running.forwarded_by_kernel()? == kernels, "the kernel forwards others");
            ensure!(followed(&running) == Some(1), "{}", running.account());
            ensure!(left_by_policies(&running)? > 0, "{}", running.account());
            let status = running.ask(&["status"])?;
            ensure!(status.contains("ipsec 1 policies, SAs:"), "{status}");
        }
        lab.router.run("ip xfrm policy flush")?;
        ensure!(concerned.flows(50), "nothing arrives without a policy");
        ensure!(forwards_itself(&running, &concerned), "{}", running.account());
        ensure!(ferroute::by_kernel() || followed(&running).is_none());
        concerned.stop();
        other.stop();
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn policies_from_before_the_start_do_not_prevent_it() -> Result<()> {
    let lab = Lab::up()?;
    lab.router.run(PROTECT)?;
    if !ferroute::by_kernel() {
        let doctor = lab.router.command(ferroute::binary());
        let ports = ["doctor", "-i", "rt-left", "-i", "rt-right"];
        let output = { doctor }.args(ports).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(text.contains("1 IPsec policies"), "doctor says nothing of it:\n{text}");
    }
    let running = Ferroute::start(&lab)?;
    ensure!(ping_all(&lab.left, &format!("-c 3 -i 0.1 -W 1 {RIGHT4}")).is_err(), "in clear");
    ping_all(&lab.left, &format!("-c 3 -i 0.1 -W 5 {RIGHT6}"))?;
    if !ferroute::by_kernel() {
        let left = left_by_policies(&running)?;
        ensure!((1..=3).contains(&left), "{left} of 3 were left\n{}", running.account());
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn offloaded_flows_that_a_policy_concerns_stop_at_once() -> Result<()> {
    let lab = lab_with_gro()?;
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(1))?;
    let goes_on = || {
        let before = offloaded(&running).ok();
        stream.flows(50) && offloaded(&running).ok() > before
    };
    ensure!(ferroute::by_kernel() || eventually(goes_on), "it is not offloaded");
    lab.router.run(PROTECT)?;
    let set = Instant::now();
    let last = last_arrival(&stream)?.saturating_duration_since(set);
    ensure!(last < FOLLOW_TIME_MAX, "the policy takes effect after {last:?}");
    lab.router.run("ip xfrm policy flush")?;
    ensure!(stream.flows(50), "nothing arrives without a policy");
    ensure!(ferroute::by_kernel() || eventually(goes_on), "it is not offloaded again");
    stream.stop();
    Ok(())
}

/// Connections whose source is translated: the policy is about the source that they have then.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn translated_connections_are_concerned_by_both_sources() -> Result<()> {
    const RULESET: &str = "table inet fw { chain forward { type filter hook forward priority 0; \
                           ct state established counter accept; }; \
                           chain post { type nat hook postrouting priority srcnat; \
                           oifname rt-right masquerade; }; }";
    for more in [&[][..], &OFFLOAD[..]] {
        let lab = lab_with_gro()?;
        nft(&lab.router, RULESET)?;
        let running = Ferroute::start_with(&lab, more)?;
        let udp = Conversation::start(&lab, RIGHT4, false)?;
        ensure!(udp.goes_on() && are_carried(&running, &[&udp]), "{}", running.account());
        // One that is about other packets changes nothing.
        lab.router
            .run("ip xfrm policy add dir out src 198.18.9.0/24 dst 0.0.0.0/0 action block")?;
        ensure!(ferroute::by_kernel() || eventually(|| followed(&running) == Some(1)));
        let kernels = running.forwarded_by_kernel()?;
        ensure!(udp.goes_on(), "another policy ends it");
        if !ferroute::by_kernel() {
            ensure!(running.forwarded_by_kernel()? == kernels, "the kernel forwards it");
            if !more.is_empty() {
                let before = offloaded(&running)?;
                let grows = || udp.goes_on() && offloaded(&running).is_ok_and(|it| it > before);
                ensure!(eventually(grows), "it is not offloaded: {}", running.account());
            }
        }
        lab.router.run(&format!(
            "ip xfrm policy add dir out src {RT_RIGHT4} dst {RIGHT4} proto udp action block"
        ))?;
        ensure!(eventually(|| !udp.goes_on()), "the translated source does not count");
        lab.router.run("ip xfrm policy flush")?;
        ensure!(eventually(|| udp.goes_on()), "it does not go on without a policy");
    }
    Ok(())
}
