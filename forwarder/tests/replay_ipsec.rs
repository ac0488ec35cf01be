//! `ferroute replay` as an IPsec gateway with static keys: tshark, which has the keys, reads what it sends, and another
//! gateway opens it. No root.

#![forbid(unsafe_code)]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use ferroute::wire::checksum::checksum;
use pcap_file::pcap::{PcapPacket, PcapWriter};

/// Keys of 20, 16 and 32 octets.
const GCM: &str = "0x000102030405060708090a0b0c0d0e0f10111213";
const CBC: &str = "0x303132333435363738393a3b3c3d3e3f";
const HMAC: &str = "0x404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f";

/// The gateway of 10.1.0.0/24, or of 10.2.0.0/24. The first gateway protects what it sends to the second one: UDP with
/// AES-GCM, ICMP with AES-CBC and HMAC.
fn gateway(number: u8, other: u8, dir: &str) -> String {
    format!(
        r#"
[[replay.interface]]
name = "lan"
mac = "02:00:00:00:0{number}:01"
addresses = ["10.{number}.0.1/24"]
[[replay.interface]]
name = "wan"
mac = "02:00:00:00:0{number}:02"
addresses = ["198.18.2.{number}/24"]
[[replay.route]]
dst = "default"
via = "198.18.2.{other}"
[[replay.neighbour]]
dev = "wan"
address = "198.18.2.{other}"
lladdr = "02:00:00:00:0{other}:02"
[[replay.neighbour]]
dev = "lan"
address = "10.{number}.0.9"
lladdr = "02:00:00:00:0{number}:09"

[[xfrm.state]]
src = "198.18.2.1"
dst = "198.18.2.2"
proto = "esp"
spi = 0x1001
mode = "tunnel"
reqid = 1
aead = {{ name = "rfc4106(gcm(aes))", key = "{GCM}", icv = 128 }}
[[xfrm.state]]
src = "198.18.2.1"
dst = "198.18.2.2"
proto = "esp"
spi = 0x1002
mode = "tunnel"
reqid = 2
enc = {{ name = "cbc(aes)", key = "{CBC}" }}
auth-trunc = {{ name = "hmac(sha256)", key = "{HMAC}", trunc = 128 }}

[[xfrm.policy]]
src = "10.1.0.0/24"
dst = "10.2.0.0/24"
proto = "udp"
dir = "{dir}"
priority = 1
tmpl = {{ src = "198.18.2.1", dst = "198.18.2.2", proto = "esp", reqid = 1, mode = "tunnel" }}
[[xfrm.policy]]
src = "10.1.0.0/24"
dst = "10.2.0.0/24"
dir = "{dir}"
priority = 2
tmpl = {{ src = "198.18.2.1", dst = "198.18.2.2", proto = "esp", reqid = 2, mode = "tunnel" }}
"#
    )
}

/// A packet from 10.1.0.9 to 10.2.0.9, in a frame to the first gateway.
fn frame(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = 20 + payload.len() as u8;
    let mut ip = [0x45, 0, 0, len, 0, 7, 0, 0, 64, protocol, 0, 0, 10, 1, 0, 9, 10, 2, 0, 9];
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&[2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 9, 8, 0], &ip[..], payload].concat()
}

fn write_config(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("writes");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("sets the mode");
}

fn replay(config: &Path, input: &Path, output: &Path, iif: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferroute"));
    command.args(["replay", "--iif", iif, "-c"]).arg(config).arg("-o").arg(output).arg(input);
    command.output().expect("runs")
}

/// What tshark shows of packets: some fields of each.
fn tshark(capture: &Path, options: &[String], fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.arg("-nr").arg(capture).args(["-T", "fields", "-E", "separator=/s"]);
    command.args(fields.iter().flat_map(|field| ["-e", *field]));
    let output = command.args(options.iter().flat_map(|it| ["-o", it])).output().expect("tshark");
    let (shown, error) =
        [output.stdout, output.stderr].map(|it| String::from_utf8(it).expect("UTF-8")).into();
    assert!(output.status.success(), "{error}");
    shown.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn tshark_decrypts_what_a_gateway_sends_and_another_gateway_opens_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    write_config(&path("a.toml"), &gateway(1, 2, "out"), 0o600);
    write_config(&path("b.toml"), &gateway(2, 1, "fwd"), 0o600);
    let udp = |text: &[u8]| [&[0x30, 0x39, 0, 9, 0, 8 + text.len() as u8, 0, 0], text].concat();
    let frames = [
        frame(17, &udp(b"the first")),
        frame(1, &[8, 0, 0xf7, 0xfd, 0, 1, 0, 1]),
        frame(17, &udp(b"the second one")),
    ];
    let file = File::create(path("in.pcap")).expect("creates");
    let mut writer = PcapWriter::new(file).expect("writes");
    for (n, frame) in (1..).zip(&frames) {
        let packet = PcapPacket::new(Duration::from_secs(n), frame.len() as u32, frame);
        writer.write_packet(&packet).expect("writes");
    }
    drop(writer);

    for (config, input, output, iif) in
        [("a", "in.pcap", "between.pcap", "lan"), ("b", "between.pcap", "out.pcap", "wan")]
    {
        let config = path(&format!("{config}.toml"));
        let output = replay(&config, &path(input), &path(output), iif);
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.starts_with("read 3, written 3, skipped 0\n"), "{output:?}");
    }

    // Without keys only the outer header is to be seen.
    let between = path("between.pcap");
    let outer = ["ip.src", "ip.dst", "esp.spi", "esp.sequence"];
    let ends = "198.18.2.1 198.18.2.2";
    assert_eq!(
        tshark(&between, &[], &outer),
        [
            format!("{ends} 0x00001001 1"),
            format!("{ends} 0x00001002 1"),
            format!("{ends} 0x00001001 2")
        ]
    );
    let sa = |spi: &str, enc: &str, enc_key: &str, auth: &str, auth_key: &str| {
        format!(
            "uat:esp_sa:\"IPv4\",\"*\",\"*\",\"{spi}\",\"{enc}\",\"{enc_key}\",\"{auth}\",\"{auth_key}\""
        )
    };
    let options = [
        "esp.enable_encryption_decode:TRUE".to_owned(),
        "esp.enable_authentication_check:TRUE".to_owned(),
        sa("0x00001001", "AES-GCM with 16 octet ICV [RFC4106]", GCM, "NULL", ""),
        sa("0x00001002", "AES-CBC [RFC3602]", CBC, "HMAC-SHA-256-128 [RFC4868]", HMAC),
    ];
    let inner = ["ip.src", "ip.dst", "udp.dstport", "icmp.type", "data.data"];
    let of = |more: &str| format!("198.18.2.1,10.1.0.9 198.18.2.2,10.2.0.9 {more}");
    assert_eq!(
        tshark(&between, &options, &inner),
        [of("9  746865206669727374"), of(" 8"), of("9  746865207365636f6e64206f6e65")]
    );
    assert_eq!(tshark(&between, &options, &["esp.icv_good"]), ["1", "1", "1"]);

    let opened = tshark(&path("out.pcap"), &[], &["ip.src", "ip.dst", "ip.ttl", "ip.proto"]);
    let of = |protocol: &str| format!("10.1.0.9 10.2.0.9 62 {protocol}");
    assert_eq!(opened, [of("17"), of("1"), of("17")]);
}

#[test]
fn keys_that_others_can_read_are_refused_and_run_takes_no_key_twice() {
    let dir = tempfile::tempdir().expect("a directory");
    let (config, none) = (dir.path().join("a.toml"), dir.path().join("none.pcap"));
    write_config(&config, &gateway(1, 2, "out"), 0o644);
    let output = replay(&config, &none, &dir.path().join("out.pcap"), "lan");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    let expected = "it has keys in [[xfrm.state]], and its mode 0644 lets others read them; run `chmod 600` on it";
    assert!(error.contains(expected), "{error}");

    write_config(&config, &gateway(1, 2, "out"), 0o600);
    let mut run = Command::new(env!("CARGO_BIN_EXE_ferroute"));
    let same = gateway(1, 2, "out");
    let (_, state) = same.split_once("[[xfrm.state]]").expect("an SA");
    let (state, _) = state.split_once("[[").expect("a policy behind it");
    let twice = format!("{same}\n[[xfrm.state]]{}", state.replace("spi = 0x", "spi = 0x9"));
    write_config(&config, &twice, 0o600);
    let output = run.args(["run", "-i", "lo", "-c"]).arg(&config).output().expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("its key is that of the SA with spi"), "{error}");
}
