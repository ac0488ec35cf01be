//! IPsec with static keys: what one gateway protects, another one opens.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};

use super::replay::{ReplayReport, replay};
use crate::control::api::Counters;
use crate::control::config::Config;
use crate::wire::checksum::checksum;

/// 198.18.1.0/24 and 2001:db8:1::/64 are behind this gateway.
const A: &str = r#"
[[replay.interface]]
name = "lan"
mac = "02:00:00:00:00:01"
addresses = ["198.18.1.1/24", "2001:db8:1::1/64"]
[[replay.interface]]
name = "wan"
mac = "02:00:00:00:00:02"
addresses = ["198.18.2.1/24", "2001:db8:2::1/64"]
[[replay.route]]
dst = "198.18.3.0/24"
via = "198.18.2.2"
[[replay.route]]
dst = "2001:db8:3::/64"
via = "2001:db8:2::2"
[[replay.neighbour]]
dev = "wan"
address = "198.18.2.2"
lladdr = "02:00:00:00:00:03"
[[replay.neighbour]]
dev = "wan"
address = "2001:db8:2::2"
lladdr = "02:00:00:00:00:03"
"#;

/// 198.18.3.0/24 and 2001:db8:3::/64 are behind this one.
const B: &str = r#"
[[replay.interface]]
name = "wan"
mac = "02:00:00:00:00:03"
addresses = ["198.18.2.2/24", "2001:db8:2::2/64"]
[[replay.interface]]
name = "lan"
mac = "02:00:00:00:00:04"
addresses = ["198.18.3.1/24", "2001:db8:3::1/64"]
[[replay.route]]
dst = "198.18.1.0/24"
via = "198.18.2.1"
[[replay.route]]
dst = "2001:db8:1::/64"
via = "2001:db8:2::1"
[[replay.neighbour]]
dev = "lan"
address = "198.18.3.2"
lladdr = "02:00:00:00:00:05"
[[replay.neighbour]]
dev = "lan"
address = "2001:db8:3::2"
lladdr = "02:00:00:00:00:05"
"#;

/// The policies of both: of direction `dir`, for IPv4 and IPv6 from A to B.
fn policies(dir: &str, proto: &str, ends: [&str; 2]) -> String {
    let [src, dst] = ends;
    let nets = [("198.18.1.0/24", "198.18.3.0/24"), ("2001:db8:1::/64", "2001:db8:3::/64")];
    let policy = |(from, to)| {
        format!(
            "[[xfrm.policy]]\nsrc = \"{from}\"\ndst = \"{to}\"\ndir = \"{dir}\"\npriority = 10\n\
             tmpl = {{ src = \"{src}\", dst = \"{dst}\", proto = \"{proto}\", reqid = 5, \
             mode = \"tunnel\" }}\n"
        )
    };
    nets.map(policy).concat()
}

const ENDS4: [&str; 2] = ["198.18.2.1", "198.18.2.2"];
const ENDS6: [&str; 2] = ["2001:db8:2::1", "2001:db8:2::2"];

/// The SA from A to B, which both have.
fn state(proto: &str, [src, dst]: [&str; 2], keys: &str) -> String {
    format!(
        "[[xfrm.state]]\nsrc = \"{src}\"\ndst = \"{dst}\"\nproto = \"{proto}\"\nspi = 0x1001\n\
         mode = \"tunnel\"\nreqid = 5\n{keys}\n"
    )
}

/// A key of so many octets.
fn key(octets: u8) -> String {
    (1..=octets).fold("0x".to_owned(), |text, octet| format!("{text}{octet:02x}"))
}

fn aead(name: &str, octets: u8) -> String {
    format!("aead = {{ name = \"{name}\", key = \"{}\", icv = 128 }}", key(octets))
}

fn auth(name: &str, octets: u8, trunc: u32) -> String {
    format!("auth-trunc = {{ name = \"{name}\", key = \"{}\", trunc = {trunc} }}", key(octets))
}

fn enc(name: &str, octets: u8) -> String {
    let key = if octets == 0 { String::new() } else { key(octets) };
    let auth = auth("hmac(sha256)", 32, 128);
    format!("enc = {{ name = \"{name}\", key = \"{key}\" }}\n{auth}")
}

/// A UDP datagram from a host behind A to one behind B, number `n`, in an Ethernet frame to A.
fn frame(is_ipv6: bool, n: u8) -> Vec<u8> {
    let udp = [vec![0, 1, 0, 2, 0, 8 + 40, n, n], vec![n; 40]].concat();
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0x11];
    if is_ipv6 {
        let address = |net: u8| [0x20, 1, 0xd, 0xb8, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 48, 17, 64]);
        frame.extend([address(1), address(3)].concat());
    } else {
        let mut ip = [0x45, 0, 0, 68, 0, n, 0, 0, 64, 17, 0, 0, 198, 18, 1, 2, 198, 18, 3, 2];
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend([8, 0]);
        frame.extend(ip);
    }
    frame.extend(udp);
    frame
}

/// The same after two gateways, behind the Ethernet header.
fn after_two_hops(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame[14..].to_vec();
    if packet[0] >> 4 == 6 {
        packet[7] -= 2;
    } else {
        packet[8] -= 2;
        packet[10..12].fill(0);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn run(config: &str, frames: &[Vec<u8>]) -> (ReplayReport, Vec<Vec<u8>>) {
    let config = Config::parse(config, Path::new("gateway.toml")).expect("is right");
    let network = config.network().expect("a network").expect("is right");
    let dir = tempfile::tempdir().expect("a directory");
    let (input, output) = (dir.path().join("in.pcap"), dir.path().join("out.pcap"));
    let mut writer = PcapWriter::new(File::create(&input).expect("creates")).expect("writes");
    for (n, frame) in frames.iter().enumerate() {
        let packet = PcapPacket::new(Duration::from_millis(n as u64), frame.len() as u32, frame);
        writer.write_packet(&packet).expect("writes");
    }
    drop(writer);
    let report = replay(&network, &input, &output, None).expect("runs");
    let mut reader = PcapReader::new(File::open(&output).expect("is there")).expect("reads");
    let mut out = Vec::new();
    while let Some(packet) = reader.next_packet() {
        out.push(packet.expect("a packet").data.into_owned());
    }
    (report, out)
}

/// Configurations of A and B with an SA.
fn gateways(proto: &str, ends: [&str; 2], keys: &str) -> [String; 2] {
    let state = state(proto, ends, keys);
    [(A, "out"), (B, "fwd")]
        .map(|(network, dir)| format!("{network}{state}{}", policies(dir, proto, ends)))
}

/// Protects at A and opens at B; returns what was between.
fn round_trip(proto: &str, ends: [&str; 2], keys: &str) -> Vec<Vec<u8>> {
    let keys = format!("{keys}\nflag = [\"af-unspec\", \"esn\"]");
    let [a, b] = gateways(proto, ends, &keys);
    let frames: Vec<_> = (1..=20).map(|n| frame(n % 2 == 0, n)).collect();
    let (report, between) = run(&a, &frames);
    assert_eq!((report.written, report.punts.len()), (20, 0), "{keys}: {report:?}");
    let (report, opened) = run(&b, &between);
    assert_eq!((report.written, report.drops.len()), (20, 0), "{keys}: {report:?}");
    for (sent, received) in frames.iter().zip(&opened) {
        assert_eq!(received[..12], [2, 0, 0, 0, 0, 5, 2, 0, 0, 0, 0, 4]);
        assert_eq!(received[14..], after_two_hops(sent), "{keys}");
    }
    between
}

#[test]
fn what_a_gateway_protects_another_one_opens() {
    for ends in [ENDS4, ENDS6] {
        for keys in [
            aead("rfc4106(gcm(aes))", 20),
            aead("rfc4106(gcm(aes))", 36),
            aead("rfc4543(gcm(aes))", 20),
            aead("rfc7539esp(chacha20,poly1305)", 36),
            enc("cbc(aes)", 16),
            enc("rfc3686(ctr(aes))", 20),
            enc("ecb(cipher_null)", 0),
        ] {
            let is_null = keys.contains("null") || keys.contains("4543");
            let between = round_trip("esp", ends, &keys);
            let shows =
                |packet: &Vec<u8>| packet.windows(40).any(|it| it.iter().all(|x| *x == it[0]));
            assert_eq!(between.iter().any(shows), is_null, "{keys}");
        }
        for (name, octets, trunc) in [
            ("hmac(sha1)", 20, 96),
            ("hmac(sha256)", 32, 128),
            ("hmac(sha384)", 48, 192),
            ("hmac(sha512)", 64, 256),
        ] {
            round_trip("ah", ends, &auth(name, octets, trunc));
        }
    }
}

#[test]
fn esp_in_udp_is_opened() {
    let encap = "encap = { type = \"espinudp\", sport = 4500, dport = 4500 }";
    let keys = format!("{}\n{encap}", aead("rfc4106(gcm(aes))", 20));
    let between = round_trip("esp", ENDS4, &keys);
    // UDP, port 4500, then the SPI.
    assert_eq!(between[0][23], 17);
    assert_eq!(between[0][34..38], [0x11, 0x94, 0x11, 0x94]);
    assert_eq!(between[0][42..46], [0, 0, 0x10, 1]);
}

#[test]
fn sequence_numbers_count_from_1_and_ivs_differ_between_replays() {
    let keys = aead("rfc4106(gcm(aes))", 20);
    let [a, _] = gateways("esp", ENDS4, &keys);
    let frames: Vec<_> = (1..=3).map(|n| frame(false, n)).collect();
    let replays = [run(&a, &frames).1, run(&a, &frames).1];
    for (n, packet) in (1..).zip(&replays[0]) {
        assert_eq!(packet[34..42], [0, 0, 0x10, 1, 0, 0, 0, n]);
    }
    // The key may be in use: no two packets have one IV, whatever they are made of.
    let ivs = replays.iter().flatten().map(|packet| packet[42..50].to_vec());
    let ivs: std::collections::HashSet<_> = ivs.collect();
    assert_eq!(ivs.len(), 6);
}

#[test]
fn packets_that_are_wrong_or_in_clear_do_not_pass() {
    let keys = aead("rfc4106(gcm(aes))", 20);
    let [a, b] = gateways("esp", ENDS4, &keys);
    let (_, mut between) = run(&a, &[frame(false, 1), frame(false, 2)]);
    let mut changed = between[1].clone();
    *changed.last_mut().expect("has octets") ^= 1;
    between[1] = between[0].clone();
    between.push(changed);
    // To the port of B, but not protected.
    let mut clear = frame(false, 3);
    clear[5] = 3;
    between.push(clear);
    let (report, out) = run(&b, &between);
    let drops = [("XFRM_IN_STATE_PROTO_ERROR".into(), 1), ("XFRM_IN_STATE_SEQ_ERROR".into(), 1)];
    assert_eq!((out.len(), report.drops), (1, Counters::from(drops)));
    assert_eq!(report.punts, Counters::from([("XFRM".into(), 1)]));
}

#[test]
fn a_packet_whose_sa_is_missing_or_is_another_one_is_not_sent_in_clear() {
    let policies = policies("out", "esp", ENDS4);
    let other =
        state("esp", ENDS4, &aead("rfc4106(gcm(aes))", 20)).replace("reqid = 5", "reqid = 6");
    let block = "[[xfrm.policy]]\ndst = \"198.18.3.0/24\"\ndir = \"out\"\naction = \"block\"\n";
    for text in [&policies, &format!("{other}{policies}"), block] {
        let (report, out) = run(&format!("{A}{text}"), &[frame(false, 1)]);
        assert_eq!(out.len(), 0, "{text}");
        assert_eq!(report.punts, Counters::from([("XFRM".into(), 1)]), "{text}");
    }
}
