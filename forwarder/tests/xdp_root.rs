//! The XDP program, its loader and the punt device against the running kernel.
//!
//! Needs root: scripts/test runs them. Each test has a network namespace of its own, which ends with its
//! thread.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ferroute::control::steering::punt::PuntDevice;
use ferroute::control::steering::{AttachMode, PortProgram, Steering, XdpError, XdpMode};
use ferroute::io::PacketIo;
use ferroute::io::af_xdp::{AfXdp, BindMode, Options, PortConfig, RingSizes};
use ferroute::skb::{Burst, FramePool};
use ferroute::stats::WorkerStats;
use xdp_prog::{Reason, VlanSettings, mac_words, vlan_key};

use frames::{PEER_MAC, PORT_MAC, ethernet, frame4, frame6, ipv4, ipv4_with_id, ipv6, tagged};
use netns::run;
use wire::Wire;

mod flow_gate;
mod frames;
mod netns;
mod offload;
mod sa_gate;
mod wire;

const MODES: [(AttachMode, XdpMode); 2] =
    [(AttachMode::Native, XdpMode::Native), (AttachMode::Generic, XdpMode::Generic)];

/// Timeout of expected events.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `test` in a thread with a network namespace of its own: without IPv6 traffic, forwarding enabled.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    netns::in_namespace(|| {
        run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        run("sysctl -qw net.ipv4.ip_forward=1");
        run("ip link set lo up");
        test();
    });
}

fn output(command: &str) -> String {
    let out = Command::new("sh").args(["-ec", command]).output().expect("sh");
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// A veth pair `port`–`peer`, both up, the port with [`PORT_MAC`].
fn veth(port: &str, peer: &str) {
    run(&format!("ip link add {port} type veth peer name {peer}"));
    run(&format!("ip link set {port} address 02:00:00:00:00:0a"));
    run(&format!("ip link set {peer} address 02:00:00:00:00:0b"));
    run(&format!("ip link set {port} up; ip link set {peer} up"));
}

fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("an interface")
}

fn count(port: &PortProgram, reason: Reason) -> u64 {
    port.counters(1).expect("counters")[0][reason as usize]
}

/// Sends a frame to the port and asserts that it is counted under `reason` and no other.
fn assert_reason(port: &PortProgram, wire: &Wire, frame: &[u8], reason: Reason) {
    let before = port.counters(1).expect("counters")[0];
    wire.send(frame);
    let start = Instant::now();
    loop {
        let now = port.counters(1).expect("counters")[0];
        if now != before {
            for other in Reason::ALL {
                let moved = now[other as usize] - before[other as usize];
                let wanted = u64::from(other == reason);
                assert_eq!(moved, wanted, "{} for {frame:02x?}", other.name());
            }
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{}: not counted: {frame:02x?}", reason.name());
        sleep(Duration::from_millis(1));
    }
}

/// A socket on the queue of `port`.
fn open_socket() -> (AfXdp, FramePool) {
    let config = PortConfig {
        ifname: "port".to_owned(),
        ifindex: ifindex("port"),
        queue: 0,
        mode: BindMode::Copy,
        ..PortConfig::default()
    };
    let rings = RingSizes { fill: 64, tx: 64 };
    let options = Options { rings, reserve: 64, ..Options::default() };
    AfXdp::open(&[config], &options).expect("a socket")
}

fn attach(steering: &mut Steering, name: &str, mode: AttachMode) -> PortProgram {
    steering.attach(ifindex(name), name, PORT_MAC, mode, false).expect("attach")
}

/// The error of attaching where it must fail.
fn refusal(steering: &mut Steering, name: &str, mode: AttachMode) -> XdpError {
    match steering.attach(ifindex(name), name, PORT_MAC, mode, false) {
        Ok(_) => panic!("attached to {name}"),
        Err(e) => e,
    }
}

fn locals(list: &[(&str, u8)]) -> BTreeSet<(Ipv4Addr, u8)> {
    list.iter().map(|(a, len)| (a.parse().expect("literal"), *len)).collect()
}

fn locals6(list: &[(&str, u8)]) -> BTreeSet<(Ipv6Addr, u8)> {
    list.iter().map(|(a, len)| (a.parse().expect("literal"), *len)).collect()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_each_decision_counts_its_own_reason() {
    for (wanted, mode) in MODES {
        in_namespace(move || {
            veth("port", "peer");
            let wire = Wire::on("peer");
            let mut steering = Steering::new().expect("load");
            let mut port = attach(&mut steering, "port", wanted);
            assert_eq!(port.mode(), mode);
            steering.set_local4(&locals(&[("192.0.2.1", 32), ("192.0.2.255", 32)])).expect("set");
            steering.set_local6(&locals6(&[("2001:db8::1", 128)])).expect("set");

            // Nothing is steered before it is configured.
            assert_reason(&port, &wire, &frame4("198.51.100.1"), Reason::PassFamilyOff);
            assert_reason(&port, &wire, &frame6("2001:db8:1::1"), Reason::PassFamilyOff);
            port.set_steer(true, false).expect("set");
            assert_reason(&port, &wire, &frame4("198.51.100.1"), Reason::PassNoSocket);
            assert_reason(&port, &wire, &frame6("2001:db8:1::1"), Reason::PassFamilyOff);
            port.set_steer(true, true).expect("set");

            let arp = ethernet([0xff; 6], 0x0806, &[0; 46]);
            let lldp = ethernet([0x01, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc, &[0; 46]);
            for frame in [arp, lldp] {
                assert_reason(&port, &wire, &frame, Reason::PassNotIp);
            }
            let to_broadcast = ethernet([0xff; 6], 0x0800, &frame4("198.51.100.1")[14..]);
            let mut to_other = frame4("198.51.100.1");
            to_other[5] ^= 1;
            for frame in [to_broadcast, to_other] {
                assert_reason(&port, &wire, &frame, Reason::PassOtherMac);
            }
            for (destination, reason) in [
                ("192.0.2.1", Reason::PassLocal),
                ("192.0.2.255", Reason::PassLocal),
                ("224.0.0.5", Reason::PassMulticast),
                ("239.255.255.255", Reason::PassMulticast),
                ("255.255.255.255", Reason::PassBroadcast),
                ("169.254.1.1", Reason::PassLinkLocal),
                // Unusual ones are left to userspace, which names the drop.
                ("0.0.0.1", Reason::PassNoSocket),
                ("127.0.0.1", Reason::PassNoSocket),
                ("240.0.0.1", Reason::PassNoSocket),
                ("255.255.255.254", Reason::PassNoSocket),
                ("192.0.2.254", Reason::PassNoSocket),
            ] {
                assert_reason(&port, &wire, &frame4(destination), reason);
            }
            for (destination, reason) in [
                ("2001:db8::1", Reason::PassLocal),
                ("ff02::5", Reason::PassMulticast),
                ("ff0e::1", Reason::PassMulticast),
                ("fe80::1", Reason::PassLinkLocal),
                ("febf::1", Reason::PassLinkLocal),
                ("fec0::1", Reason::PassNoSocket),
                ("fd00::1", Reason::PassNoSocket),
                ("::", Reason::PassNoSocket),
                ("2001:db8::3", Reason::PassNoSocket),
            ] {
                assert_reason(&port, &wire, &frame6(destination), reason);
            }
            // ESP to the router stays with the kernel while its SA is not known; so does AH.
            let own = "192.0.2.1".parse().expect("literal");
            let esp = ethernet(PORT_MAC, 0x0800, &ipv4(own, 50));
            let own = "2001:db8::1".parse().expect("literal");
            let ah = ethernet(PORT_MAC, 0x86dd, &ipv6(own, 51));
            assert_reason(&port, &wire, &esp, Reason::PassLocal);
            assert_reason(&port, &wire, &ah, Reason::PassLocal);

            // After the port's address has changed, frames to the old one are not its own.
            port.set_mac([0x02, 0, 0, 0, 0, 0x0c]).expect("set");
            assert_reason(&port, &wire, &frame4("198.51.100.1"), Reason::PassOtherMac);
        });
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_tagged_frames_are_steered_for_vlans_that_are_known() {
    const SUB_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x1a];
    const BETWEEN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x1b];
    for (wanted, _) in MODES {
        in_namespace(move || {
            veth("port", "peer");
            let wire = Wire::on("peer");
            let mut steering = Steering::new().expect("load");
            let mut port = attach(&mut steering, "port", wanted);
            steering.set_local4(&locals(&[("192.0.2.1", 32)])).expect("set");
            steering.set_local6(&locals6(&[("2001:db8::1", 128)])).expect("set");
            let settings = |mac, between| VlanSettings {
                mac: mac_words(mac),
                between: mac_words(between),
                number: 0,
            };
            let one = settings(PORT_MAC, PORT_MAC);
            let two = settings(SUB_MAC, BETWEEN_MAC);
            let mut vlans = BTreeMap::from([
                (vlan_key([(0x8100, 10)]), one),
                (vlan_key([(0x88a8, 20), (0x8100, 4094)]), two),
            ]);
            port.set_vlans(&vlans).expect("set");
            // With PCP and DEI.
            let known: [&[(u16, u16)]; 2] =
                [&[(0x8100, 0xf00a)], &[(0x88a8, 0x6014), (0x8100, 0xeffe)]];
            let (v4, v6) = (frame4("198.51.100.1"), frame6("2001:db8:1::1"));
            assert_reason(&port, &wire, &tagged(known[0], &v4), Reason::PassFamilyOff);
            port.set_steer(true, true).expect("set");
            for tags in known {
                // Frames to be steered, for which there is no socket.
                assert_reason(&port, &wire, &tagged(tags, &v4), Reason::PassNoSocket);
                assert_reason(&port, &wire, &tagged(tags, &v6), Reason::PassNoSocket);
                for (frame, reason) in [
                    (frame4("192.0.2.1"), Reason::PassLocal),
                    (frame6("2001:db8::1"), Reason::PassLocal),
                    (frame4("224.0.0.5"), Reason::PassMulticast),
                    (frame6("fe80::1"), Reason::PassLinkLocal),
                    (ethernet(PORT_MAC, 0x0806, &[0; 46]), Reason::PassNotIp),
                    (ethernet([0xff; 6], 0x0800, &v4[14..]), Reason::PassOtherMac),
                ] {
                    assert_reason(&port, &wire, &tagged(tags, &frame), reason);
                }
            }
            for (mac, reason) in [
                (SUB_MAC, Reason::PassNoSocket),
                (BETWEEN_MAC, Reason::PassNoSocket),
                (PEER_MAC, Reason::PassOtherMac),
            ] {
                let frame = ethernet(mac, 0x0800, &v4[14..]);
                assert_reason(&port, &wire, &tagged(known[1], &frame), reason);
                let of_one =
                    if reason == Reason::PassNoSocket { Reason::PassOtherMac } else { reason };
                assert_reason(&port, &wire, &tagged(known[0], &frame), of_one);
            }
            let unknown: [&[(u16, u16)]; 6] = [
                &[(0x8100, 11)],
                &[(0x88a8, 10)],
                &[(0x88a8, 20)],
                &[(0x8100, 20), (0x8100, 4094)],
                &[(0x8100, 10), (0x8100, 10)],
                &[(0x8100, 0)],
            ];
            for tags in unknown {
                assert_reason(&port, &wire, &tagged(tags, &v4), Reason::PassVlan);
            }
            // A packet behind a third tag is not parsed.
            let three = tagged(&[known[1], &[(0x8100, 10)]].concat(), &v4);
            assert_reason(&port, &wire, &three, Reason::PassNotIp);
            // Truncated in the inner tag, and in the IP header.
            let whole = tagged(known[1], &v4);
            assert_reason(&port, &wire, &whole[..21], Reason::PassNotIp);
            assert_reason(&port, &wire, &whole[..22 + 19], Reason::PassNoSocket);
            // After a new list of VLANs.
            vlans.remove(&vlan_key([(0x8100, 10)]));
            vlans.insert(vlan_key([(0x8100, 0)]), one);
            port.set_vlans(&vlans).expect("set");
            assert_reason(&port, &wire, &tagged(known[0], &v4), Reason::PassVlan);
            assert_reason(&port, &wire, &tagged(&[(0x8100, 0xe000)], &v4), Reason::PassNoSocket);
        });
    }
}

/// Frames to be forwarded arrive at the socket complete, and without a socket at the kernel.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_steered_frames_arrive_at_the_queues_socket() {
    for (wanted, _) in MODES {
        in_namespace(move || {
            veth("port", "peer");
            let wire = Wire::on("peer");
            let (mut io, mut pool) = open_socket();
            let mut steering = Steering::new().expect("load");
            let mut port = attach(&mut steering, "port", wanted);
            steering.set_local4(&locals(&[("192.0.2.1", 32)])).expect("set");
            port.set_steer(true, true).expect("set");
            assert_reason(&port, &wire, &frame4("198.51.100.1"), Reason::PassNoSocket);
            let socket = io.socket_fd(0).expect("open").as_raw_fd();
            port.set_socket(0, socket).expect("into the map");

            let steered = [
                (frame4("198.51.100.1"), Reason::SteerIpv4),
                (frame4("127.0.0.1"), Reason::SteerIpv4),
                (frame6("2001:db8:9::1"), Reason::SteerIpv6),
                // One octet short of a destination address.
                (frame4("192.0.2.1")[..14 + 19].to_vec(), Reason::SteerTooShort),
                (frame6("2001:db8:9::1")[..14 + 39].to_vec(), Reason::SteerTooShort),
            ];
            for (frame, reason) in &steered {
                assert_reason(&port, &wire, frame, *reason);
            }
            let stats = WorkerStats::new(1);
            let mut burst = Burst::default();
            let start = Instant::now();
            while burst.len() < steered.len() && start.elapsed() < PATIENCE {
                io.rx_burst(0, &mut pool, &mut burst, &stats);
            }
            let got: Vec<&[u8]> = burst.as_slice().iter().map(|skb| skb.data()).collect();
            let sent: Vec<&[u8]> = steered.iter().map(|(frame, _)| &frame[..]).collect();
            assert_eq!(got, sent);

            port.clear_socket(0).expect("out of the map");
            assert_reason(&port, &wire, &frame4("198.51.100.1"), Reason::PassNoSocket);
            port.set_socket(0, socket).expect("into the map again");
            assert_reason(&port, &wire, &frame4("198.51.100.1"), Reason::SteerIpv4);
            // A socket that is closed, as at the end of the process, is removed from the map by the
            // kernel.
            drop(io);
            // A process that another test starts has a copy of the descriptor until it executes its program.
            let start = Instant::now();
            while count(&port, Reason::PassNoSocket) < 3 {
                assert!(start.elapsed() < PATIENCE, "frames are steered to a closed socket");
                wire.send(&frame4("198.51.100.1"));
                sleep(Duration::from_millis(1));
            }
        });
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_without_heartbeats_frames_pass_to_the_kernel() {
    for (wanted, _) in MODES {
        in_namespace(move || {
            veth("port", "peer");
            let wire = Wire::on("peer");
            let mut steering = Steering::new().expect("load");
            let mut port = attach(&mut steering, "port", wanted);
            port.set_steer(true, true).expect("set");
            let frame = frame4("198.51.100.1");
            // As long as no limit is set, the missing socket is the only reason.
            assert_reason(&port, &wire, &frame, Reason::PassNoSocket);

            let minute = Duration::from_secs(60);
            steering.set_timeouts(minute, minute).expect("set");
            let now =
                nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
            let now_ns = Duration::from(now).as_nanos() as u64;
            let page = std::sync::Arc::clone(steering.heartbeats());
            let worker = |ns| {
                let word = page.queue(0).expect("a queue");
                word.store(ns, std::sync::atomic::Ordering::Relaxed);
            };
            // The program checks them once per jiffy, of which the longest is 10 ms.
            let jiffy = || sleep(Duration::from_millis(20));
            jiffy();
            assert_reason(&port, &wire, &frame, Reason::PassWorkerStalled);
            worker(now_ns);
            assert_reason(&port, &wire, &frame, Reason::PassControlStalled);
            page.beat_control(now_ns);
            assert_reason(&port, &wire, &frame, Reason::PassNoSocket);
            jiffy();
            // Heartbeats of other queues are not checked, and time passes.
            worker(now_ns - minute.as_nanos() as u64);
            assert_reason(&port, &wire, &frame, Reason::PassWorkerStalled);
            worker(now_ns);
            assert_reason(&port, &wire, &frame, Reason::PassNoSocket);
            jiffy();
            page.beat_control(now_ns - minute.as_nanos() as u64);
            assert_reason(&port, &wire, &frame, Reason::PassControlStalled);
            page.beat_control(now_ns);
            assert_reason(&port, &wire, &frame, Reason::PassNoSocket);
            jiffy();
            // By the clock of a time namespace; and withdrawn.
            worker(now_ns + 2 * minute.as_nanos() as u64);
            assert_reason(&port, &wire, &frame, Reason::PassWorkerStalled);
            worker(0);
            assert_reason(&port, &wire, &frame, Reason::PassWorkerStalled);
            worker(now_ns);
            page.beat_control(u64::MAX);
            assert_reason(&port, &wire, &frame, Reason::PassControlStalled);
        });
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_the_latest_local_addresses_apply() {
    in_namespace(|| {
        veth("port", "peer");
        let wire = Wire::on("peer");
        let mut steering = Steering::new().expect("load");
        let mut port = attach(&mut steering, "port", AttachMode::Native);
        port.set_steer(true, true).expect("set");
        let check = |port: &PortProgram, expected: &[(&str, bool)]| {
            for (destination, local) in expected {
                let reason = if *local { Reason::PassLocal } else { Reason::PassNoSocket };
                let frame = match destination.contains(':') {
                    true => frame6(destination),
                    false => frame4(destination),
                };
                assert_reason(port, &wire, &frame, reason);
            }
        };
        check(&port, &[("10.0.0.1", false), ("10.1.2.3", false)]);
        steering.set_local4(&locals(&[("10.0.0.1", 32), ("10.1.0.0", 16)])).expect("set");
        steering.set_local6(&locals6(&[("fd00::1", 128), ("fd01::", 64)])).expect("set");
        check(&port, &[("10.0.0.1", true), ("10.1.2.3", true), ("10.2.0.1", false)]);
        check(&port, &[("fd00::1", true), ("fd01::9", true), ("fd01:0:0:1::", false)]);
        // An address may move between its prefix and itself.
        steering.set_local4(&locals(&[("10.1.2.3", 32)])).expect("set");
        steering.set_local6(&locals6(&[("fd01::", 65)])).expect("set");
        check(&port, &[("10.0.0.1", false), ("10.1.2.3", true), ("10.1.2.4", false)]);
        check(&port, &[("fd00::1", false), ("fd01::9", true), ("fd01::8000:0:0:0", false)]);
        // A port attached later sees the same.
        drop(port);
        let mut port = attach(&mut steering, "port", AttachMode::Native);
        port.set_steer(true, true).expect("set");
        check(&port, &[("10.1.2.3", true), ("10.1.2.4", false)]);
        steering.set_local4(&BTreeSet::new()).expect("set");
        steering.set_local6(&BTreeSet::new()).expect("set");
        check(&port, &[("10.1.2.3", false), ("fd01::9", false)]);
    });
}

/// The kernel forwards punted frames, and treats them as received on the port: only a rule for that
/// port's iif has the route.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_punted_frame_is_forwarded_as_received_on_its_port() {
    for (wanted, mode) in MODES {
        in_namespace(move || {
            veth("port", "peer");
            veth("out", "sink");
            run("ip address add 192.0.2.1/24 dev port; ip address add 198.51.100.1/24 dev out");
            run("ip route add 203.0.113.0/24 via 198.51.100.2 table 100");
            run("ip rule add iif port lookup 100 priority 100");
            run("ip neighbour add 198.51.100.2 lladdr 02:00:00:00:00:0b dev out");
            run("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.port.rp_filter=1");
            let sink = Wire::on("sink");
            let mut steering = Steering::new().expect("load");
            let mut port = attach(&mut steering, "port", wanted);
            let mut out = steering
                .attach(ifindex("out"), "out", [0x02, 0, 0, 0, 0, 0x0a], wanted, false)
                .expect("attach");
            port.set_steer(true, true).expect("set");
            out.set_steer(true, true).expect("set");
            let punt = PuntDevice::open(&steering).expect("punt device");
            let generic = mode == XdpMode::Generic;
            let frame = |id| {
                let destination = "203.0.113.9".parse().expect("literal");
                ethernet(PORT_MAC, 0x0800, &ipv4_with_id(destination, 17, id))
            };
            let next =
                || sink.receive(PATIENCE, |f| f.len() >= 34 && f[30..34] == [203, 0, 113, 9]);

            // One before the port was added, which is rejected, and one after.
            let refused = punt.inject(ifindex("port"), &mut frame(1)).expect_err("no such port");
            assert_eq!(refused.kind(), ErrorKind::NotFound);
            punt.add_port(ifindex("port"), PORT_MAC, generic).expect("add");
            punt.inject(ifindex("port"), &mut frame(2)).expect("inject");
            let forwarded = next().expect("the frame, forwarded");
            let sent = frame(2);
            assert_eq!(forwarded[..6], PEER_MAC, "to the nexthop");
            assert_eq!(forwarded[18..20], sent[18..20], "the identification");
            assert_eq!(forwarded[22], sent[22] - 1, "the TTL");
            assert_eq!(forwarded[34..], sent[34..], "the data");
            // Generic XDP has seen it again and passed it; native XDP has not.
            assert_eq!(count(&port, Reason::PassPunted), u64::from(generic));
            assert_eq!(count(&port, Reason::PassNoSocket), 0);

            // As received on another port it has no route, and after a port is removed it is rejected;
            // the next one that gets through is the last.
            punt.add_port(ifindex("out"), PORT_MAC, generic).expect("add");
            punt.inject(ifindex("out"), &mut frame(3)).expect("inject");
            punt.remove_port(ifindex("port")).expect("remove");
            punt.remove_port(ifindex("port")).expect("remove again");
            let refused = punt.inject(ifindex("port"), &mut frame(4)).expect_err("removed");
            assert_eq!(refused.kind(), ErrorKind::NotFound);
            punt.add_port(ifindex("port"), PORT_MAC, generic).expect("add");
            punt.inject(ifindex("port"), &mut frame(5)).expect("inject");
            assert_eq!(next().expect("the last frame")[18..20], [0, 5]);
        });
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_the_punt_device_is_up_and_silent_and_removed_on_drop() {
    in_namespace(|| {
        run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0");
        let steering = Steering::new().expect("load");
        let first = PuntDevice::open(&steering).expect("punt device");
        let second = PuntDevice::open(&steering).expect("another");
        assert_eq!((first.name(), second.name()), ("ferroute0", "ferroute1"));
        assert!(output("ip link show ferroute0").contains(",UP"));
        assert_eq!(output("ip -6 address show dev ferroute0"), "", "an IPv6 address");
        let mut short = [0; 13];
        let error = first.inject(1, &mut short).expect_err("too short");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        drop(first);
        assert!(!output("ip link show").contains("ferroute0"));
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_foreign_program_is_named_and_left_alone() {
    for (wanted, _) in MODES {
        in_namespace(move || {
            veth("port", "peer");
            let dir = tempfile::tempdir().expect("a directory");
            let object = dir.path().join("foreign.o");
            let source = r#"__attribute__((section("xdp"))) int somebodys(void *c) { return 2; }"#;
            run(&format!(
                "echo '{source}' | clang -target bpf -O2 -g -x c -c - -o {}",
                object.display()
            ));
            let mode = if wanted == AttachMode::Native { "xdpdrv" } else { "xdpgeneric" };
            // iproute2 mounts a bpffs for itself: not in this mount namespace.
            run(&format!(
                "unshare --mount ip link set dev port {mode} obj {} sec xdp",
                object.display()
            ));
            let mut steering = Steering::new().expect("load");
            for mine in [AttachMode::Auto, AttachMode::Native, AttachMode::Generic] {
                let error = refusal(&mut steering, "port", mine);
                let XdpError::ForeignProgram { ref name, id, .. } = error else {
                    panic!("{error}");
                };
                assert_eq!(name.as_deref(), Some("somebodys"));
                assert_ne!(id, 0);
                let text = error.to_string();
                assert!(text.contains(&format!("ip link set dev port {mode} off")), "{text}");
            }
            assert!(output("ip link show port").contains("prog/xdp"));
            run(&format!("ip link set dev port {mode} off"));
            drop(attach(&mut steering, "port", AttachMode::Auto));
        });
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_second_ferroute_is_rejected_until_the_first_ends() {
    for (wanted, mode) in MODES {
        in_namespace(move || {
            veth("port", "peer");
            let mut first = Steering::new().expect("load");
            let mut second = Steering::new().expect("load");
            let port = attach(&mut first, "port", wanted);
            for mine in [AttachMode::Auto, AttachMode::Native, AttachMode::Generic] {
                let error = refusal(&mut second, "port", mine);
                assert!(
                    matches!(error, XdpError::AlreadyRunning { mode: m, .. } if m == mode),
                    "{error}"
                );
            }
            drop(port);
            drop(attach(&mut second, "port", AttachMode::Auto));
        });
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_dropping_a_port_detaches_its_program() {
    in_namespace(|| {
        veth("port", "peer");
        let mut steering = Steering::new().expect("load");
        for (wanted, _) in MODES {
            let port = attach(&mut steering, "port", wanted);
            assert!(output("ip link show port").contains("prog/xdp"));
            drop(port);
            assert!(!output("ip link show port").contains("prog/xdp"));
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_port_may_be_deleted_and_created_again() {
    in_namespace(|| {
        veth("port", "peer");
        let mut steering = Steering::new().expect("load");
        let mut gone = attach(&mut steering, "port", AttachMode::Auto);
        run("ip link del port");
        gone.set_steer(true, true).expect("its maps are still there");
        drop(gone);
        veth("port", "peer");
        drop(attach(&mut steering, "port", AttachMode::Auto));
        let error = steering.attach(0x7fff_fff0, "ghost", PORT_MAC, AttachMode::Auto, false);
        let text = error.expect_err("no such interface").to_string();
        assert!(text.contains("ghost"), "{text}");
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_driver_without_xdp_gets_the_generic_mode_unless_native_is_asked() {
    in_namespace(|| {
        run("ip link add bridge0 type bridge; ip link set bridge0 up");
        let mut steering = Steering::new().expect("load");
        assert_eq!(attach(&mut steering, "bridge0", AttachMode::Auto).mode(), XdpMode::Generic);
        let error = refusal(&mut steering, "bridge0", AttachMode::Native);
        assert!(matches!(error, XdpError::NativeRefused { .. }), "{error}");
        veth("port", "peer");
        assert_eq!(attach(&mut steering, "port", AttachMode::Auto).mode(), XdpMode::Native);
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_an_error_of_the_driver_names_a_remedy() {
    in_namespace(|| {
        run("ip link add port type veth peer name peer numrxqueues 2 numtxqueues 2");
        run("ip link set port up; ip link set peer up; ethtool -L peer tx 2");
        let mut steering = Steering::new().expect("load");
        let text = refusal(&mut steering, "port", AttachMode::Auto).to_string();
        assert!(text.contains("ethtool -L"), "{text}");
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_multi_buffer_packets_depend_on_the_mtus_of_port_and_peer() {
    in_namespace(|| {
        veth("port", "peer");
        let mut steering = Steering::new().expect("load");
        for mtus in [(1500, 9000), (9000, 9000)] {
            run(&format!("ip link set port mtu {}; ip link set peer mtu {}", mtus.0, mtus.1));
            assert_eq!(attach(&mut steering, "port", AttachMode::Auto).mode(), XdpMode::Native);
            let (port, mac, mode) = (ifindex("port"), PORT_MAC, AttachMode::Auto);
            let attached = steering.attach(port, "port", mac, mode, true).expect("attach");
            assert_eq!(attached.mode(), XdpMode::Native);
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_only_sockets_of_valid_queues_are_accepted() {
    in_namespace(|| {
        veth("port", "peer");
        let mut steering = Steering::new().expect("load");
        let port = attach(&mut steering, "port", AttachMode::Auto);
        let wire = Wire::on("peer");
        let error = port.set_socket(0, wire.socket.as_raw_fd()).expect_err("a packet socket");
        assert!(matches!(error, XdpError::Map { .. }), "{error}");
        let error = port.set_socket(256, wire.socket.as_raw_fd()).expect_err("queue 256");
        assert!(matches!(error, XdpError::Queue { queue: 256 }), "{error}");
        port.clear_socket(0).expect("nothing to clear");
        assert_eq!(port.counters(10_000).expect("counters").len(), 256);
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_the_error_names_missing_capabilities() {
    in_namespace(|| {
        caps::clear(None, caps::CapSet::Effective).expect("drop capabilities");
        let text = Steering::new().expect_err("no capability").to_string();
        assert!(text.contains("CAP_BPF"), "{text}");
    });
}
