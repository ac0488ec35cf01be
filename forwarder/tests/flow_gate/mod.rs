//! Tests of the XDP program while connections are tracked: only packets of known flows are steered.

use std::net::IpAddr;

use ferroute::control::steering::{FlowGate, FlowWords};
use xdp_prog::FlowKey;

use super::*;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const GRE: u8 = 47;
const ESP: u8 = 50;
const AH: u8 = 51;
const ICMPV6: u8 = 58;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const URG_ECE_CWR: u8 = 0xe0;

/// The source of all packets, by family; see `frames`.
const SOURCE4: &str = "192.0.2.2";
const SOURCE6: &str = "2001:db8::2";
const SOURCE_PORT: u16 = 0x1234;
const DESTINATION_PORT: u16 = 443;

/// Octets before the transport header.
const BEFORE4: usize = 14 + 20;
const BEFORE6: usize = 14 + 40;

fn address(text: &str) -> IpAddr {
    text.parse().expect("literal")
}

fn key(destination: &str, protocol: u8) -> FlowWords {
    let destination = address(destination);
    let source = address(if destination.is_ipv4() { SOURCE4 } else { SOURCE6 });
    let key = FlowKey::new(source, destination, SOURCE_PORT, DESTINATION_PORT, protocol);
    key.expect("one family").words()
}

/// A frame of the flow [`key`], with these TCP flags.
fn frame(destination: &str, protocol: u8, flags: u8) -> Vec<u8> {
    let mut transport = [0; 20];
    transport[..2].copy_from_slice(&SOURCE_PORT.to_be_bytes());
    transport[2..4].copy_from_slice(&DESTINATION_PORT.to_be_bytes());
    transport[12..14].copy_from_slice(&[5 << 4, flags]);
    match address(destination) {
        IpAddr::V4(destination) => {
            let mut packet = ipv4(destination, protocol);
            packet[20..40].copy_from_slice(&transport);
            ethernet(PORT_MAC, 0x0800, &packet)
        }
        IpAddr::V6(destination) => {
            let mut packet = ipv6(destination, protocol);
            packet.splice(40.., transport);
            packet[4..6].copy_from_slice(&20u16.to_be_bytes());
            ethernet(PORT_MAC, 0x86dd, &packet)
        }
    }
}

/// The same frame with addresses and ports exchanged.
fn reverse(frame: &[u8]) -> Vec<u8> {
    let mut reverse = frame.to_vec();
    let (addresses, ports) = if frame[12] == 8 { (26..34, BEFORE4) } else { (22..54, BEFORE6) };
    for fields in [addresses, ports..ports + 4] {
        let half = fields.len() / 2;
        reverse[fields].rotate_left(half);
    }
    reverse
}

/// The same frame with another octet.
fn with(frame: &[u8], at: usize, octet: u8) -> Vec<u8> {
    let mut changed = frame.to_vec();
    changed[at] = octet;
    changed
}

/// A port with an AF_XDP socket on its queue, both families steered.
pub struct Fixture {
    wire: Wire,
    io: AfXdp,
    pool: FramePool,
    pub steering: Steering,
    pub port: PortProgram,
    gate: FlowGate,
}

impl Fixture {
    pub fn new(mode: AttachMode) -> Fixture {
        veth("port", "peer");
        let (io, pool) = open_socket();
        let mut steering = Steering::new().expect("load");
        let mut port = attach(&mut steering, "port", mode);
        port.set_steer(true, true).expect("set");
        port.set_socket(0, io.socket_fd(0).expect("open").as_raw_fd()).expect("into the map");
        let gate = steering.flow_gate().expect("a descriptor");
        Fixture { wire: Wire::on("peer"), io, pool, steering, port, gate }
    }

    pub fn assert_reason(&self, frame: &[u8], reason: Reason) {
        assert_reason(&self.port, &self.wire, frame, reason);
    }

    fn insert(&mut self, key: FlowWords) {
        assert!(self.gate.insert(&[key]));
    }

    fn remove(&mut self, key: FlowWords) {
        assert!(self.gate.contains(&key));
        self.gate.remove(&[key]);
    }

    /// Asserts that this frame is the next that the socket receives.
    pub fn assert_received(&mut self, frame: &[u8]) {
        let stats = WorkerStats::new(1);
        let mut burst = Burst::default();
        let start = Instant::now();
        while burst.is_empty() && start.elapsed() < PATIENCE {
            self.io.rx_burst(0, &mut self.pool, &mut burst, &stats);
        }
        let got: Vec<&[u8]> = burst.as_slice().iter().map(|skb| skb.data()).collect();
        assert_eq!(got, [frame]);
        for skb in burst.drain(usize::MAX) {
            self.pool.kfree_skb(skb);
        }
    }
}

/// A destination of each family with what its packets count as when they are steered.
const FAMILIES: [(&str, Reason); 2] =
    [("198.51.100.1", Reason::SteerIpv4), ("2001:db8:9::1", Reason::SteerIpv6)];

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_only_known_flows_are_steered_while_connections_are_tracked() {
    for (wanted, _) in MODES {
        in_namespace(move || {
            let mut test = Fixture::new(wanted);
            let vlan =
                VlanSettings { mac: mac_words(PORT_MAC), between: mac_words(PORT_MAC), number: 0 };
            let tags: [&[(u16, u16)]; 2] = [&[(0x8100, 10)], &[(0x88a8, 20), (0x8100, 30)]];
            let vlans = tags.map(|tags| (vlan_key(tags.iter().copied()), vlan));
            test.port.set_vlans(&BTreeMap::from(vlans)).expect("set");
            test.steering.set_tracking([true; 2]).expect("set");
            for (destination, steered) in FAMILIES {
                for (protocol, other) in [(TCP, UDP), (UDP, TCP)] {
                    let packet = frame(destination, protocol, ACK);
                    test.assert_reason(&packet, Reason::PassNoFlow);
                    test.insert(key(destination, protocol));
                    test.assert_reason(&packet, steered);
                    test.assert_received(&packet);
                    for tags in tags {
                        let tagged = tagged(tags, &packet);
                        test.assert_reason(&tagged, steered);
                        test.assert_received(&tagged);
                    }
                    // Every field of the key counts.
                    let ports = if steered == Reason::SteerIpv4 { BEFORE4 } else { BEFORE6 };
                    for at in [ports - 1, ports - 5, ports, ports + 1, ports + 2, ports + 3] {
                        let changed = with(&packet, at, packet[at] ^ 0x80);
                        test.assert_reason(&changed, Reason::PassNoFlow);
                    }
                    let changed = frame(destination, other, ACK);
                    test.assert_reason(&changed, Reason::PassNoFlow);
                    // The reverse direction is a flow of its own.
                    let reverse = reverse(&packet);
                    test.assert_reason(&reverse, Reason::PassNoFlow);
                    let source = address(if destination.contains(':') { SOURCE6 } else { SOURCE4 });
                    let (from, to) = (DESTINATION_PORT, SOURCE_PORT);
                    let back = FlowKey::new(address(destination), source, from, to, protocol);
                    let back = back.expect("one family").words();
                    test.insert(back);
                    test.assert_reason(&reverse, steered);
                    test.assert_received(&reverse);
                    test.remove(key(destination, protocol));
                    test.assert_reason(&packet, Reason::PassNoFlow);
                    test.assert_reason(&tagged(tags[0], &packet), Reason::PassNoFlow);
                    test.assert_reason(&reverse, steered);
                    test.assert_received(&reverse);
                    test.remove(back);
                }
            }
        });
    }
}

/// Packets of known flows that the kernel has to see.
fn conntrack_packets() -> Vec<(Vec<u8>, Reason)> {
    let mut packets = Vec::new();
    for (destination, steered) in FAMILIES {
        for flags in [0, PSH, SYN, SYN | ACK, SYN | FIN, SYN | RST, URG_ECE_CWR] {
            packets.push((frame(destination, TCP, flags), Reason::PassConntrack));
        }
        // Userspace leaves those that close the connection to the kernel.
        for flags in [ACK, ACK | PSH, ACK | PSH | URG_ECE_CWR, FIN, FIN | ACK, RST, RST | ACK] {
            packets.push((frame(destination, TCP, flags), steered));
        }
        // Hop-by-hop options, ICMP that is not echo, routing and fragment headers, AH of IPv6, ICMPv6, destination
        // options, SCTP, UDP-Lite.
        for protocol in [0, ICMP, 43, 44, 51, 58, 60, 132, 136] {
            if protocol != AH || steered == Reason::SteerIpv6 {
                packets.push((frame(destination, protocol, ACK), Reason::PassConntrack));
            }
        }
        // The ports are no part of the keys of tunnels: GRE of version 1 has others.
        packets.push((frame(destination, GRE, ACK), Reason::PassConntrack));
        // Truncated in the transport header, and in the IP header.
        let before = if steered == Reason::SteerIpv4 { BEFORE4 } else { BEFORE6 };
        for (protocol, octets) in [(TCP, 20), (UDP, 8)] {
            let packet = frame(destination, protocol, ACK);
            packets.push((packet[..before + octets - 1].to_vec(), Reason::PassConntrack));
            packets.push((packet[..before + octets].to_vec(), steered));
            packets.push((packet[..before - 1].to_vec(), Reason::PassConntrack));
            // By the length in the IP header, with padding in the frame.
            let (at, of_header) = if steered == Reason::SteerIpv4 { (17, 20) } else { (19, 0) };
            let octets = of_header + octets as u8;
            packets.push((with(&packet, at, octets - 1), Reason::PassConntrack));
            packets.push((with(&packet, at, octets), steered));
            packets.push((with(&packet, at, 0), Reason::PassConntrack));
        }
    }
    for protocol in [TCP, UDP] {
        let packet = frame("198.51.100.1", protocol, ACK);
        // More Fragments, offset 1, the highest offset; Don't Fragment is no fragment.
        for (flags, offset, reason) in [
            (0x20, 0, Reason::PassConntrack),
            (0x20, 1, Reason::PassConntrack),
            (0, 1, Reason::PassConntrack),
            (0x1f, 0, Reason::PassConntrack),
            (0x40, 0, Reason::SteerIpv4),
        ] {
            packets.push((with(&with(&packet, 20, flags), 21, offset), reason));
        }
        for version_ihl in [0x46, 0x4f, 0x44, 0x40, 0x65] {
            packets.push((with(&packet, 14, version_ihl), Reason::PassConntrack));
        }
    }
    packets
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_packets_that_conntrack_has_to_see_are_passed_also_of_known_flows() {
    for (wanted, _) in MODES {
        in_namespace(move || {
            let mut test = Fixture::new(wanted);
            // Also those of protocols that have no flows: they are not looked up.
            for (destination, _) in FAMILIES {
                for protocol in 0..=255 {
                    test.insert(key(destination, protocol));
                }
            }
            test.steering.set_tracking([true; 2]).expect("set");
            for (packet, reason) in conntrack_packets() {
                test.assert_reason(&packet, reason);
                if reason.is_steered() {
                    test.assert_received(&packet);
                }
            }
            // Without tracking they are steered, as are packets of unknown flows.
            test.steering.set_tracking([false; 2]).expect("set");
            test.gate.clear();
            for (packet, _) in conntrack_packets() {
                let ipv4 = packet[12] == 8;
                let reason = match packet.len() {
                    0..BEFORE4 if ipv4 => Reason::SteerTooShort,
                    0..BEFORE6 if !ipv4 => Reason::SteerTooShort,
                    _ if ipv4 => Reason::SteerIpv4,
                    _ => Reason::SteerIpv6,
                };
                test.assert_reason(&packet, reason);
                test.assert_received(&packet);
            }
        });
    }
}

/// A frame of [`frame`] with other octets at the beginning of its transport header.
fn starting(destination: &str, protocol: u8, octets: &[u8]) -> Vec<u8> {
    let mut frame = frame(destination, protocol, 0);
    let before = if frame[12] == 8 { BEFORE4 } else { BEFORE6 };
    frame[before..before + octets.len()].copy_from_slice(octets);
    frame
}

/// The key of packets without ports, with what it has instead.
fn portless(destination: &str, protocol: u8, ports: [u16; 2]) -> FlowWords {
    let destination = address(destination);
    let source = address(if destination.is_ipv4() { SOURCE4 } else { SOURCE6 });
    let key = FlowKey::new(source, destination, ports[0], ports[1], protocol);
    key.expect("one family").words()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_echo_and_tunnels_are_steered_if_their_flow_is_known() {
    in_namespace(|| {
        let mut test = Fixture::new(AttachMode::Native);
        test.steering.set_tracking([true; 2]).expect("set");
        for (destination, steered) in FAMILIES {
            let is_ipv4 = steered == Reason::SteerIpv4;
            let (icmp, types) = if is_ipv4 { (ICMP, [8, 0]) } else { (ICMPV6, [128, 129]) };
            for kind in types {
                let octets = [kind, 0, 1, 2, 0x12, 0x34];
                let packet = starting(destination, icmp, &octets);
                test.assert_reason(&packet, Reason::PassNoFlow);
                let key = portless(destination, icmp, [0x1234, u16::from(kind) << 8]);
                test.insert(key);
                test.assert_reason(&packet, steered);
                test.assert_received(&packet);
                // Another identifier, code and type.
                let other = |at: usize, to: u8| {
                    let mut octets = octets;
                    octets[at] = to;
                    starting(destination, icmp, &octets)
                };
                test.assert_reason(&other(4, 0x13), Reason::PassNoFlow);
                test.assert_reason(&other(1, 1), Reason::PassConntrack);
                test.assert_reason(&other(0, 13), Reason::PassConntrack);
                test.remove(key);
            }
            for protocol in [4, 41, GRE, ESP, AH] {
                // GRE of version 0.
                let packet = starting(destination, protocol, &[0x30, 0, 8, 0]);
                if protocol == AH && !is_ipv4 {
                    test.assert_reason(&packet, Reason::PassConntrack);
                    continue;
                }
                test.assert_reason(&packet, Reason::PassNoFlow);
                let key = portless(destination, protocol, [0; 2]);
                test.insert(key);
                test.assert_reason(&packet, steered);
                test.assert_received(&packet);
                test.remove(key);
            }
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_packets_to_a_local_address_are_passed_unless_their_flow_is_known() {
    for (wanted, _) in MODES {
        in_namespace(move || {
            let mut test = Fixture::new(wanted);
            let prefixes = [("192.0.2.1", 32), ("10.0.0.0", 8)];
            test.steering.set_local4(&locals(&prefixes)).expect("set");
            let prefixes = [("2001:db8::1", 128), ("fd00::", 64)];
            test.steering.set_local6(&locals6(&prefixes)).expect("set");
            test.steering.set_tracking([true; 2]).expect("set");
            for destination in ["192.0.2.1", "10.1.2.3", "2001:db8::1", "fd00::9"] {
                let of_flow = frame(destination, TCP, ACK);
                test.assert_reason(&of_flow, Reason::PassLocal);
                test.insert(key(destination, TCP));
                for (protocol, flags) in [(TCP, SYN), (ICMP, 0), (UDP, 0)] {
                    let packet = frame(destination, protocol, flags);
                    test.assert_reason(&packet, Reason::PassLocal);
                }
                // Answers to a translated connection.
                let is_ipv4 = of_flow[12] == 8;
                let steered = if is_ipv4 { Reason::SteerIpv4 } else { Reason::SteerIpv6 };
                test.assert_reason(&of_flow, steered);
                test.assert_received(&of_flow);
                // Only while connections of the family are tracked.
                for families in [[false; 2], [!is_ipv4, is_ipv4]] {
                    test.steering.set_tracking(families).expect("set");
                    test.assert_reason(&of_flow, Reason::PassLocal);
                }
                test.steering.set_tracking([true; 2]).expect("set");
            }
            // Some destinations have no flows.
            for (destination, reason) in [
                ("224.0.0.5", Reason::PassMulticast),
                ("255.255.255.255", Reason::PassBroadcast),
                ("169.254.1.1", Reason::PassLinkLocal),
                ("ff0e::1", Reason::PassMulticast),
                ("fe80::1", Reason::PassLinkLocal),
            ] {
                test.insert(key(destination, UDP));
                test.assert_reason(&frame(destination, UDP, 0), reason);
            }
        });
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_another_thread_adds_and_removes_thousands_of_flows_of_all_ports() {
    const FLOWS: u32 = 10_000;
    in_namespace(|| {
        let mut test = Fixture::new(AttachMode::Native);
        veth("port2", "peer2");
        let mut port2 = attach(&mut test.steering, "port2", AttachMode::Native);
        let wire2 = Wire::on("peer2");
        port2.set_steer(true, true).expect("set");
        test.steering.set_tracking([true; 2]).expect("set");
        let keys: Vec<FlowWords> = (0..FLOWS)
            .map(|flow| {
                let destination = IpAddr::from(Ipv4Addr::from(0xc633_6400 + flow));
                let (from, to) = (SOURCE_PORT, DESTINATION_PORT);
                let key = FlowKey::new(address(SOURCE4), destination, from, to, UDP);
                key.expect("one family").words()
            })
            .collect();
        let frame = |flow: u32| frame(&Ipv4Addr::from(0xc633_6400 + flow).to_string(), UDP, 0);
        let buckets = test.gate.buckets();
        std::thread::scope(|scope| {
            let inserted = scope.spawn(|| test.gate.insert(&keys));
            assert!(inserted.join().expect("ends"));
        });
        assert!(test.gate.buckets() > buckets);
        for flow in [0, 255, 256, 257, FLOWS - 1] {
            test.assert_reason(&frame(flow), Reason::SteerIpv4);
            // To be steered, for which there is no socket.
            assert_reason(&port2, &wire2, &frame(flow), Reason::PassNoSocket);
            assert!(test.gate.contains(&keys[flow as usize]));
        }
        test.assert_reason(&frame(FLOWS), Reason::PassNoFlow);
        assert_reason(&port2, &wire2, &frame(FLOWS), Reason::PassNoFlow);

        // Every second one, then the others.
        let of = |rest| keys.iter().copied().skip(rest).step_by(2).collect::<Vec<FlowWords>>();
        test.gate.remove(&of(0));
        test.assert_reason(&frame(256), Reason::PassNoFlow);
        test.assert_reason(&frame(257), Reason::SteerIpv4);
        assert!(!test.gate.contains(&keys[256]));
        // All but one: there are fewer buckets then.
        let (last, rest) = (keys[257], of(1));
        let rest: Vec<FlowWords> = rest.into_iter().filter(|key| *key != last).collect();
        test.gate.remove(&rest);
        assert_eq!(test.gate.buckets(), buckets);
        test.assert_reason(&frame(257), Reason::SteerIpv4);
        assert_reason(&port2, &wire2, &frame(257), Reason::PassNoSocket);
        test.gate.remove(&[last]);
        test.assert_reason(&frame(257), Reason::PassNoFlow);
        assert!(test.gate.insert(&[]));

        // A port attached later uses the same map, which clear empties.
        assert!(test.gate.insert(&keys));
        drop(port2);
        let mut port2 = attach(&mut test.steering, "port2", AttachMode::Native);
        port2.set_steer(true, true).expect("set");
        assert_reason(&port2, &wire2, &frame(9_999), Reason::PassNoSocket);
        test.gate.clear();
        assert!(!keys.iter().any(|key| test.gate.contains(key)));
        assert_reason(&port2, &wire2, &frame(9_999), Reason::PassNoFlow);
        assert!(keys.len() < 2 * test.gate.flows_max());
    });
}
