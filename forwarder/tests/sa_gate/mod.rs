//! Tests of the XDP program with SAs: their packets to the router itself are steered.

use std::net::IpAddr;

use ferroute::control::steering::SaGateKey;
use xdp_prog::{
    IPSEC_SAS_MAX, MAP_IPSEC_SAS, MAP_LOCAL4, MAP_LOCAL6, PortSettings, SharedSettings,
};

use super::flow_gate::Fixture;
use super::offload::program::Program;
use super::*;

const ESP: u8 = 50;
const AH: u8 = 51;
const TCP: u8 = 6;
const UDP: u8 = 17;

const SPI: u32 = 0xc0de_0081;
/// The UDP ports of IKE, without and with NAT.
const IKE: u16 = 500;
const NATT: u16 = 4500;

/// Addresses of the router, and another one of it in the same prefix.
const OWN: [[&str; 2]; 4] = [
    ["192.0.2.1", "192.0.2.7"],
    ["10.1.2.3", "10.1.2.4"],
    ["2001:db8::1", "2001:db8::7"],
    ["fd00::9", "fd00::a"],
];

/// Sets these addresses: of each family an address and a prefix.
fn set_locals(steering: &mut Steering) {
    let list = [("192.0.2.1", 32), ("192.0.2.7", 32), ("10.0.0.0", 8)];
    steering.set_local4(&locals(&list)).expect("set");
    let list = [("2001:db8::1", 128), ("2001:db8::7", 128), ("fd00::", 64)];
    steering.set_local6(&locals6(&list)).expect("set");
}

fn key(destination: &str, spi: u32, protocol: u8) -> SaGateKey {
    SaGateKey::new(destination.parse().expect("literal"), spi, protocol)
}

/// A frame to the port with a packet that has this payload.
fn frame(destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match destination.parse().expect("literal") {
        IpAddr::V4(destination) => {
            let mut packet = [&ipv4(destination, protocol)[..20], payload].concat();
            let length = packet.len() as u16;
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            ethernet(PORT_MAC, 0x0800, &packet)
        }
        IpAddr::V6(destination) => {
            let mut packet = [&ipv6(destination, protocol)[..40], payload].concat();
            packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            ethernet(PORT_MAC, 0x86dd, &packet)
        }
    }
}

fn esp(spi: u32) -> Vec<u8> {
    [&spi.to_be_bytes()[..], &[0, 0, 0, 1], &[0x5a; 24]].concat()
}

fn ah(spi: u32) -> Vec<u8> {
    [&[4, 4, 0, 0][..], &spi.to_be_bytes(), &[0, 0, 0, 1], &[0x5a; 24]].concat()
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let words = [40_000, port, length, 0].map(u16::to_be_bytes);
    [&words.concat()[..], payload].concat()
}

/// The packets of an SA: their protocol, that of the key, and their payload.
fn kinds(spi: u32) -> [(u8, u8, Vec<u8>); 3] {
    [(ESP, ESP, esp(spi)), (AH, AH, ah(spi)), (UDP, ESP, udp(NATT, &esp(spi)))]
}

/// Offset of the IP payload in an untagged frame, octets.
fn before(destination: &str) -> usize {
    if destination.contains(':') { 14 + 40 } else { 14 + 20 }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_packets_of_a_known_sa_arrive_at_the_socket() {
    for (wanted, _) in MODES {
        in_namespace(move || {
            let mut test = Fixture::new(wanted);
            set_locals(&mut test.steering);
            let mac = mac_words(PORT_MAC);
            let vlan = VlanSettings { mac, between: mac, number: 0 };
            let tags: [&[(u16, u16)]; 2] = [&[(0x8100, 10)], &[(0x88a8, 20), (0x8100, 30)]];
            let vlans = tags.map(|tags| (vlan_key(tags.iter().copied()), vlan));
            test.port.set_vlans(&BTreeMap::from(vlans)).expect("set");
            for [own, other] in OWN {
                for (protocol, of_key, payload) in kinds(SPI) {
                    let packet = frame(own, protocol, &payload);
                    test.assert_reason(&packet, Reason::PassLocal);
                    let keys = [key(own, SPI, of_key), key(own, SPI + 1, of_key)];
                    assert_eq!(test.steering.set_ipsec_sas(keys).expect("set"), 0);
                    for packet in [&packet, &tagged(tags[0], &packet), &tagged(tags[1], &packet)] {
                        test.assert_reason(packet, Reason::SteerIpsec);
                        test.assert_received(packet);
                    }
                    // Every field of the key counts.
                    test.assert_reason(&frame(other, protocol, &payload), Reason::PassLocal);
                    for bit in 0..32 {
                        let spi = SPI ^ 1 << bit;
                        let same = kinds(spi).into_iter().find(|kind| kind.0 == protocol);
                        let (_, _, payload) = same.expect("this kind");
                        test.assert_reason(&frame(own, protocol, &payload), Reason::PassLocal);
                    }
                    let (protocol, payload) =
                        if of_key == ESP { (AH, ah(SPI)) } else { (ESP, esp(SPI)) };
                    test.assert_reason(&frame(own, protocol, &payload), Reason::PassLocal);
                    let of_others = frame(own, TCP, &esp(SPI));
                    test.assert_reason(&of_others, Reason::PassLocal);
                    let none: [SaGateKey; 0] = [];
                    assert_eq!(test.steering.set_ipsec_sas(none).expect("set"), 0);
                    test.assert_reason(&packet, Reason::PassLocal);
                }
            }
        });
    }
}

/// Packets of a known SA, and others to its address, which the kernel gets.
fn packets_for_the_kernel(own: &str) -> Vec<Vec<u8>> {
    let mut packets = vec![
        // IKE, with and without the marker; keepalives; nothing.
        frame(own, UDP, &udp(NATT, &[&[0; 4][..], &[0x5a; 28]].concat())),
        frame(own, UDP, &udp(IKE, &esp(SPI))),
        frame(own, UDP, &udp(NATT, &[0xff])),
        frame(own, UDP, &udp(NATT, &[])),
        frame(own, ESP, &esp(0)),
        frame(own, AH, &ah(0)),
        frame(own, TCP, &udp(NATT, &esp(SPI))),
    ];
    // Only the destination port counts.
    let mut from_natt = udp(IKE, &esp(SPI));
    from_natt[..2].copy_from_slice(&NATT.to_be_bytes());
    packets.push(frame(own, UDP, &from_natt));
    // The UDP length does not agree with that of the packet.
    for length in [0, 8, 39, 41, 0xffff] {
        let mut payload = udp(NATT, &esp(SPI));
        payload[4..6].copy_from_slice(&u16::to_be_bytes(length));
        packets.push(frame(own, UDP, &payload));
    }
    // Too short: the packet, with padding in the frame, and the frame.
    for (protocol, _, payload) in kinds(SPI) {
        let longest = match protocol {
            ESP => 8,
            AH => 11,
            _ => 8 + 8,
        };
        for length in 0..=longest {
            let mut padded = frame(own, protocol, &payload[..length]);
            padded.extend([0; 46]);
            packets.push(padded);
            let mut payload = payload.clone();
            if protocol == UDP && length >= 8 {
                payload[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                let mut padded = frame(own, protocol, &payload[..length]);
                padded.extend(&payload[length..]);
                packets.push(padded);
            }
        }
        let headers = if protocol == AH { 12 } else { longest };
        let whole = frame(own, protocol, &payload);
        for length in 0..headers {
            packets.push(whole[..before(own) + length].to_vec());
        }
    }
    packets
}

/// Fragments, and packets with options or extension headers.
fn packets_with_more_in_the_header(own: &str) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (protocol, _, payload) in kinds(SPI) {
        let packet = frame(own, protocol, &payload);
        if own.contains(':') {
            for extension in [0, 43, 44, 60] {
                let header = [&[protocol, 0, 0, 0, 0, 0, 0, 0][..], &payload].concat();
                packets.push(frame(own, extension, &header));
            }
            continue;
        }
        for fragment in [[0x20, 0], [0x20, 1], [0, 1], [0x1f, 0]] {
            let mut packet = packet.clone();
            packet[20..22].copy_from_slice(&fragment);
            packets.push(packet);
        }
        for version_ihl in [0x46, 0x4f, 0x44, 0x65] {
            let mut packet = packet.clone();
            packet[14] = version_ihl;
            packets.push(packet);
        }
    }
    packets
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_other_packets_to_the_address_of_an_sa_are_passed() {
    in_namespace(|| {
        let mut test = Fixture::new(AttachMode::Native);
        set_locals(&mut test.steering);
        let keys = |own| [key(own, SPI, ESP), key(own, SPI, AH)];
        let of_fragments = |own| [key(own, 0, ESP), key(own, 0, AH)];
        for [own, _] in OWN {
            let others = ["198.51.100.1", "2001:db8:9::1"];
            let other = others[usize::from(own.contains(':'))];
            let all = keys(own).into_iter().chain(keys(other));
            let with_fragments = all.clone().chain(of_fragments(own));
            assert_eq!(test.steering.set_ipsec_sas(with_fragments).expect("set"), 0);
            for packet in packets_for_the_kernel(own) {
                test.assert_reason(&packet, Reason::PassLocal);
            }
            assert_eq!(test.steering.set_ipsec_sas(all).expect("set"), 0);
            for packet in packets_with_more_in_the_header(own) {
                test.assert_reason(&packet, Reason::PassLocal);
            }
            // The shortest packets, with padding in the frame; Don't Fragment is no fragment.
            for (protocol, length) in [(ESP, 9), (AH, 12), (UDP, 8 + 9)] {
                let payload = match protocol {
                    ESP => esp(SPI)[..length].to_vec(),
                    AH => ah(SPI)[..length].to_vec(),
                    _ => udp(NATT, &esp(SPI)[..length - 8]),
                };
                let mut packet = frame(own, protocol, &payload);
                packet.extend([0; 20]);
                if !own.contains(':') {
                    packet[20] = 0x40;
                }
                test.assert_reason(&packet, Reason::SteerIpsec);
                test.assert_received(&packet);
            }
            // Packets to be forwarded are not concerned.
            let steered = [Reason::SteerIpv4, Reason::SteerIpv6][usize::from(own.contains(':'))];
            let packet = frame(other, ESP, &esp(SPI));
            test.assert_reason(&packet, steered);
            test.assert_received(&packet);
        }
    });
}

/// A fragment with this payload; `fragment`: flags and offset as in the header of its family.
fn fragment(destination: &str, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    if destination.contains(':') {
        let header = [&[protocol, 0][..], &fragment.to_be_bytes(), &[0, 0, 0, 7]].concat();
        return frame(destination, 44, &[&header, payload].concat());
    }
    let mut packet = frame(destination, protocol, payload);
    packet[20..22].copy_from_slice(&fragment.to_be_bytes());
    packet
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_fragments_with_a_key_for_them_arrive_at_the_socket() {
    in_namespace(|| {
        let mut test = Fixture::new(AttachMode::Native);
        set_locals(&mut test.steering);
        for [own, other] in OWN {
            // First, middle, last, and the greatest offset.
            let parts: [u16; 4] = match own.contains(':') {
                true => [1, 0x0599, 0x0598, 0xfff8],
                false => [0x2000, 0x20b3, 0x00b3, 0x1fff],
            };
            let address = own.parse().expect("literal");
            for protocol in [ESP, AH] {
                let keys = [SaGateKey::of_fragments(address, protocol), key(own, SPI, protocol)];
                assert_eq!(test.steering.set_ipsec_sas(keys).expect("set"), 0);
                for part in parts {
                    // Also one octet, and of another SPI: only the first has one.
                    for payload in [&[0x5a; 32][..], &[0x5a]] {
                        let packet = fragment(own, protocol, part, payload);
                        test.assert_reason(&packet, Reason::SteerIpsec);
                        test.assert_received(&packet);
                        let packet = fragment(other, protocol, part, payload);
                        test.assert_reason(&packet, Reason::PassLocal);
                        for protocol in [ESP ^ AH ^ protocol, UDP, TCP] {
                            let packet = fragment(own, protocol, part, payload);
                            test.assert_reason(&packet, Reason::PassLocal);
                        }
                    }
                }
                // Nothing is missing.
                if own.contains(':') {
                    for whole in [0, 6] {
                        let packet = fragment(own, protocol, whole, &[0x5a; 32]);
                        test.assert_reason(&packet, Reason::PassLocal);
                    }
                }
            }
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_packets_of_sas_are_steered_also_while_connections_are_tracked() {
    in_namespace(|| {
        let mut test = Fixture::new(AttachMode::Native);
        set_locals(&mut test.steering);
        for [own, _] in OWN {
            let keys = [key(own, SPI, ESP), key(own, SPI, AH)];
            assert_eq!(test.steering.set_ipsec_sas(keys).expect("set"), 0);
            for (protocol, _, payload) in kinds(SPI) {
                let packet = frame(own, protocol, &payload);
                let of_another = kinds(SPI + 1).into_iter().find(|kind| kind.0 == protocol);
                let (_, _, payload) = of_another.expect("this kind");
                let of_another = frame(own, protocol, &payload);
                for families in [[true; 2], [true, false], [false, true]] {
                    test.steering.set_tracking(families).expect("set");
                    test.assert_reason(&packet, Reason::SteerIpsec);
                    test.assert_received(&packet);
                    test.assert_reason(&of_another, Reason::PassLocal);
                }
                test.steering.set_tracking([false; 2]).expect("set");
            }
        }
    });
}

/// By BPF_PROG_TEST_RUN: steered frames find no socket.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_sas_are_looked_up_only_if_the_settings_say_that_there_are_some() {
    in_namespace(|| {
        for frags in [false, true] {
            let mut program = Program::load(frags);
            let port = PortSettings::STEER_IPV4 | PortSettings::STEER_IPV6;
            program.insert(MAP_LOCAL4, &[192, 0, 2, 1], &[1]);
            let own: Ipv6Addr = "2001:db8::1".parse().expect("literal");
            program.insert(MAP_LOCAL6, &own.octets(), &[1]);
            for (own, tracked) in
                [("192.0.2.1", SharedSettings::TRACK4), ("2001:db8::1", SharedSettings::TRACK6)]
            {
                for (protocol, of_key, payload) in kinds(SPI) {
                    let key = key(own, SPI, of_key).to_bytes();
                    program.insert(MAP_IPSEC_SAS, &key, &1u32.to_ne_bytes());
                    let packet = frame(own, protocol, &payload);
                    for (flags, reason) in [
                        (0, Reason::PassLocal),
                        (SharedSettings::IPSEC_SAS, Reason::PassNoSocket),
                        (tracked, Reason::PassLocal),
                        (SharedSettings::IPSEC_SAS | tracked, Reason::PassNoSocket),
                    ] {
                        program.set_flags(port, flags);
                        let ran = program.run(&packet);
                        assert_eq!((ran.reason, &ran.frame), (reason, &packet));
                    }
                    program.set_flags(0, SharedSettings::IPSEC_SAS);
                    assert_eq!(program.run(&packet).reason, Reason::PassFamilyOff);
                }
            }
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_sas_without_room_stay_with_the_kernel_until_there_is_some() {
    const MORE: u32 = 5;
    in_namespace(|| {
        let mut test = Fixture::new(AttachMode::Native);
        set_locals(&mut test.steering);
        let own = OWN[0][0];
        let packet = |spi| frame(own, ESP, &esp(spi));
        let first = 256;
        let last = first + IPSEC_SAS_MAX as u32 + MORE - 1;
        let keys = |spis: std::ops::RangeInclusive<u32>| spis.map(|spi| key(own, spi, ESP));
        let set = |test: &mut Fixture, spis| test.steering.set_ipsec_sas(keys(spis)).expect("set");
        assert_eq!(set(&mut test, first..=last), MORE as usize);
        test.assert_reason(&packet(first), Reason::SteerIpsec);
        test.assert_reason(&packet(last - MORE), Reason::SteerIpsec);
        test.assert_reason(&packet(last), Reason::PassLocal);
        // Room for some of them, which had been tried before, and then for all.
        assert_eq!(set(&mut test, first + 2..=last), MORE as usize - 2);
        test.assert_reason(&packet(first + 1), Reason::PassLocal);
        test.assert_reason(&packet(last - MORE + 2), Reason::SteerIpsec);
        test.assert_reason(&packet(last), Reason::PassLocal);
        assert_eq!(set(&mut test, last..=last), 0);
        test.assert_reason(&packet(last), Reason::SteerIpsec);
        test.assert_reason(&packet(first + 2), Reason::PassLocal);

        // A port that is attached later uses the same map.
        veth("port2", "peer2");
        let mut port2 = attach(&mut test.steering, "port2", AttachMode::Native);
        port2.set_steer(true, true).expect("set");
        let wire2 = Wire::on("peer2");
        assert_reason(&port2, &wire2, &packet(last), Reason::PassNoSocket);
        let none: [SaGateKey; 0] = [];
        assert_eq!(test.steering.set_ipsec_sas(none).expect("set"), 0);
        assert_reason(&port2, &wire2, &packet(last), Reason::PassLocal);
        test.assert_reason(&packet(last), Reason::PassLocal);
    });
}
