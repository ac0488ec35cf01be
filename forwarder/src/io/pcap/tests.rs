//! Tests of ports that are capture files.

use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::skb::Umem;

fn ports() -> Vec<PcapPort> {
    let port =
        |(n, ifname): (usize, &str)| PcapPort { ifname: ifname.to_owned(), ifindex: 10 + n as u32 };
    ["left", "right"].into_iter().enumerate().map(port).collect()
}

/// Writes a file with packets `(port, time stamp, octets)`.
fn written(dir: &TempDir, name: &str, packets: &[(u16, u64, Vec<u8>)]) -> PathBuf {
    let path = dir.path().join(name);
    let mut writer = Writer::create(&path, &ports()).expect("create");
    for (port, stamp, octets) in packets {
        writer.write(*port, *stamp, octets).expect("write");
    }
    assert_eq!(writer.finish().expect("flush"), packets.len() as u64);
    path
}

/// Reads all packets of a file as received on ports.
fn received(path: &Path, default_port: u16) -> Result<Vec<(u16, u64, Vec<u8>)>, PcapError> {
    let mut pool = Umem::anonymous(100).into_pool();
    let (stats, mut burst) = (WorkerStats::new(2), Burst::default());
    let mut io = PcapIo::open(path, None, &ports(), default_port)?;
    let mut packets = Vec::new();
    while !io.is_done() {
        for port in 0..2 {
            io.rx_burst(port, &mut pool, &mut burst, &stats);
            assert_eq!(pool.available() + burst.frames() + io.accounting().total(), 100);
            for skb in burst.drain(usize::MAX) {
                assert_eq!((skb.port, skb.iif), (port, 10 + u32::from(port)));
                packets.push((port, skb.tstamp_ns, skb.whole(&mut Vec::new()).to_vec()));
                pool.kfree_skb(skb);
            }
        }
    }
    let replayed = io.finish(&mut pool)?;
    assert_eq!(pool.available(), 100);
    assert_eq!(replayed.read, packets.len() as u64 + stats.drops_total());
    Ok(packets)
}

fn some_packets(count: u64) -> Vec<(u16, u64, Vec<u8>)> {
    (0..count)
        .map(|n| {
            let len = if n % 7 == 6 { 9014 } else { 14 + n as usize };
            (u16::from(n % 5 < 2), 1_700_000_000_123_456_789 + n, vec![n as u8; len])
        })
        .collect()
}

#[test]
fn pcapng_preserves_ports_time_stamps_and_order() {
    let dir = TempDir::new().expect("directory");
    let packets = some_packets(300);
    let path = written(&dir, "a.pcapng", &packets);
    assert_eq!(received(&path, 0).expect("readable"), packets);
}

#[test]
fn pcap_preserves_nanoseconds_and_all_packets_are_received_on_one_port() {
    let dir = TempDir::new().expect("directory");
    let mut packets = some_packets(300);
    let path = written(&dir, "a.pcap", &packets);
    packets.iter_mut().for_each(|packet| packet.0 = 1);
    assert_eq!(received(&path, 1).expect("readable"), packets);
}

#[test]
fn sent_packets_are_written_with_their_received_time_stamp() {
    let dir = TempDir::new().expect("directory");
    let packets = some_packets(200);
    let input = written(&dir, "in.pcapng", &packets);
    let output = dir.path().join("out.pcapng");
    let mut pool = Umem::anonymous(100).into_pool();
    let (stats, mut burst) = (WorkerStats::new(2), Burst::default());
    let mut io = PcapIo::open(&input, Some(&output), &ports(), 0).expect("open");
    while !io.is_done() {
        for port in 0..2 {
            io.rx_burst(port, &mut pool, &mut burst, &stats);
            io.tx_burst(1 - port, &mut pool, &mut burst, &stats);
        }
        io.kick(&mut pool, &stats);
    }
    let replayed = io.finish(&mut pool).expect("no error");
    assert_eq!(replayed, Replayed { read: 200, skipped: 0, written: 200 });
    let crossed: Vec<_> = packets.into_iter().map(|(port, t, o)| (1 - port, t, o)).collect();
    assert_eq!(received(&output, 0).expect("readable"), crossed);
}

#[test]
fn other_programs_can_read_the_output() {
    let dir = TempDir::new().expect("directory");
    for name in ["a.pcap", "a.pcapng"] {
        let path = written(&dir, name, &[(1, 1_700_000_000_000_000_007, vec![2; 60])]);
        let mut tcpdump = Command::new("tcpdump");
        match tcpdump.args(["-n", "-tt", "--nano", "-r"]).arg(&path).output() {
            Ok(out) => {
                let text = String::from_utf8_lossy(&out.stdout).into_owned();
                assert!(text.starts_with("1700000000.000000007 "), "{text}");
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
        }
    }
}

#[test]
fn microsecond_time_stamps_and_truncated_packets_are_parsed() {
    let dir = TempDir::new().expect("directory");
    let path = dir.path().join("a.pcap");
    let mut file = Vec::new();
    // Big-endian, microseconds, version 2.4, snap length 20, Ethernet.
    file.extend([
        0xa1, 0xb2, 0xc3, 0xd4, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 1,
    ]);
    file.extend([0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 20, 0, 0, 5, 220]);
    file.extend([7; 20]);
    std::fs::write(&path, &file).expect("write");
    assert_eq!(received(&path, 0).expect("readable"), [(0, 1_000_002_000, vec![7; 20])]);
}

#[test]
fn a_packet_beyond_the_largest_mtu_is_a_named_drop() {
    let dir = TempDir::new().expect("directory");
    let packets = [(0, 1, vec![1; 60]), (0, 2, vec![2; MAX_JUMBO + 1]), (0, 3, vec![3; MAX_JUMBO])];
    let path = written(&dir, "a.pcap", &packets);
    let got = received(&path, 0).expect("readable");
    assert_eq!(got, [packets[0].clone(), packets[2].clone()]);
}

#[test]
fn packets_of_an_interface_that_is_not_a_port_are_skipped() {
    let dir = TempDir::new().expect("directory");
    let path = written(&dir, "a.pcapng", &some_packets(5));
    let only_right = [PcapPort { ifname: "right".into(), ifindex: 4 }];
    let mut pool = Umem::anonymous(8).into_pool();
    let (stats, mut burst) = (WorkerStats::new(1), Burst::default());
    let mut io = PcapIo::open(&path, None, &only_right, 0).expect("open");
    assert_eq!(io.rx_burst(0, &mut pool, &mut burst, &stats), 2);
    assert!(io.is_done());
    burst.drain(9).for_each(|skb| pool.kfree_skb(skb));
    let replayed = io.finish(&mut pool).expect("no error");
    assert_eq!(replayed, Replayed { read: 2, skipped: 3, written: 0 });
}

#[test]
fn errors_name_the_file_and_the_offset() {
    let dir = TempDir::new().expect("directory");
    let path = written(&dir, "a.pcap", &[(0, 1, vec![1; 60]), (0, 2, vec![2; 60])]);
    let whole = std::fs::read(&path).expect("read");
    std::fs::write(&path, &whole[..whole.len() - 1]).expect("write");
    let error = received(&path, 0).expect_err("cut").to_string();
    assert!(error.ends_with("a.pcap, offset 100: the file ends in the middle of this"), "{error}");

    std::fs::write(&path, b"no capture at all, but long enough").expect("write");
    let error = received(&path, 0).expect_err("no capture").to_string();
    assert!(error.contains("a.pcap, offset 0: ") && error.contains("magic"), "{error}");

    std::fs::write(&path, b"").expect("write");
    let error = received(&path, 0).expect_err("empty").to_string();
    assert!(error.contains("empty"), "{error}");

    let error = received(&dir.path().join("none"), 0).expect_err("missing").to_string();
    assert!(error.contains("none: No such file"), "{error}");
    let error = Writer::create(&dir.path().join("a.cap"), &ports()).expect_err("extension");
    assert!(error.to_string().ends_with("a.cap: the name must end in .pcap or .pcapng"));

    let mut raw_ip = whole[..24].to_vec();
    raw_ip[20] = 101;
    std::fs::write(&path, raw_ip).expect("write");
    let error = received(&path, 0).expect_err("raw IP").to_string();
    assert!(error.contains("link type RAW, only ETHERNET"), "{error}");
}

proptest! {
    #[test]
    fn arbitrary_files_do_not_panic(
        ng in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let dir = TempDir::new().expect("directory");
        let name = if ng { "a.pcapng" } else { "a.pcap" };
        let path = written(&dir, name, &some_packets(6));
        let mut file = std::fs::read(&path).expect("read");
        for (at, octet) in changes {
            let at = at.index(file.len());
            file[at] = octet;
        }
        let keep = cut.index(2 * file.len()).max(1);
        file.truncate(keep);
        std::fs::write(&path, file).expect("write");
        if let Err(error) = received(&path, 0) {
            prop_assert!(error.to_string().contains(name));
        }
    }
}
