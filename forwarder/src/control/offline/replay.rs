//! Sends the packets of a capture file through the whole data path, in a network described in a file:
//! without root, interfaces or a clock. Time is that of the capture.
//!
//! The kernel's part is left out: packets handed back to it are counted and discarded, and neighbours that
//! the description does not have do not answer.

use std::path::Path;

use serde::Serialize;

use crate::control::api::Counters;
use crate::control::config::static_network::StaticNetwork;
use crate::fib::FibError;
use crate::io::PacketIo;
use crate::io::pcap::{PcapError, PcapIo, PcapPort};
use crate::netfilter::Hooks;
use crate::pipeline::{Ctx, Effects, PipelineState, forward_burst, poll_held};
use crate::skb::{Burst, FramePool, Umem};
use crate::stats::{Counter, DropReason, Mib, PuntReason, WorkerStats};
use crate::tables::Tables;

/// Frames of the replay: enough for all that one packet can become, and for packets that wait.
const FRAMES: u32 = 4096;
/// The same for every replay, so that the same input gives the same output.
const SEED: u64 = 0x6665_7272_6f75_7465;
/// Time step for packets that still wait for a neighbour when the capture has ended.
const HELD_STEP_NS: u64 = 100_000_000;
/// Maximum number of steps; packets wait for a few seconds at most, so all are dropped by then.
const HELD_STEPS: u32 = 100;

/// Why a replay failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The capture cannot be read or written.
    #[error(transparent)]
    Pcap(#[from] PcapError),
    /// The tables cannot be built.
    #[error("routes: {0}")]
    Fib(#[from] FibError),
    /// The description has no port.
    #[error("the [replay] section has no interface that is a port; add [[replay.interface]]")]
    NoPort,
    /// `--iif` does not name a port.
    #[error("--iif {name} is not a port of the [replay] section, which has {}", ports.join(", "))]
    NoSuchPort {
        /// The name given.
        name: String,
        /// The ports.
        ports: Vec<String>,
    },
}

/// Results of a replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplayReport {
    /// Packets received on a port.
    pub read: u64,
    /// Packets of interfaces that are not ports.
    pub skipped: u64,
    /// Packets written to the output.
    pub written: u64,
    /// Packets handed to the kernel, by reason; without reasons at zero.
    pub punts: Counters,
    /// Packets dropped, by reason; without reasons at zero.
    pub drops: Counters,
    /// MIB counters, without those at zero.
    pub mib: Counters,
}

/// Sends the packets of `input` through the data path and writes the transmitted ones to `output`.
/// Packets of a capture without interfaces are received on `iif`, or on the first port.
///
/// # Errors
/// When a file cannot be read or written, or `iif` is not a port.
pub fn replay(
    network: &StaticNetwork,
    input: &Path,
    output: &Path,
    iif: Option<&str>,
) -> Result<ReplayReport, ReplayError> {
    let ports: Vec<PcapPort> = network
        .links
        .iter()
        .filter(|link| link.port.is_some() && link.vlan.is_none())
        .map(|link| PcapPort { ifname: link.name.clone(), ifindex: link.ifindex })
        .collect();
    let default_port = match iif {
        None if ports.is_empty() => return Err(ReplayError::NoPort),
        None => 0,
        Some(name) => ports.iter().position(|port| port.ifname == name).ok_or_else(|| {
            let ports = ports.iter().map(|port| port.ifname.clone()).collect();
            ReplayError::NoSuchPort { name: name.to_owned(), ports }
        })? as u16,
    };
    let mut worker = OfflineWorker {
        tables: network.tables()?,
        pool: Umem::anonymous(FRAMES).into_pool(),
        stats: WorkerStats::new(ports.len()),
        state: PipelineState::new(SEED, 1),
        out: Effects::new(ports.len()),
        now_ns: 0,
        io: PcapIo::open(input, Some(output), &ports, default_port)?,
    };
    worker.walk();
    worker.finish()
}

/// A worker without a thread.
struct OfflineWorker {
    io: PcapIo,
    tables: Tables,
    pool: FramePool,
    stats: WorkerStats,
    state: PipelineState,
    out: Effects,
    now_ns: u64,
}

impl OfflineWorker {
    fn walk(&mut self) {
        // Bursts of one packet: each is forwarded at its own timestamp.
        let mut burst = Burst::with_capacity(1);
        while !self.io.is_done() {
            let mut taken = 0;
            for port in 0..self.io.ports() as u16 {
                taken += self.io.rx_burst(port, &mut self.pool, &mut burst, &self.stats);
                let Some(skb) = burst.as_slice().first() else { continue };
                // Captures of several queues are not always in order; the replay's time is.
                self.now_ns = self.now_ns.max(skb.tstamp_ns);
                self.step(poll_held);
                while !burst.is_empty() {
                    self.step(|ctx| forward_burst(&mut burst, ctx));
                }
            }
            if taken == 0 {
                // All frames wait for a neighbour; the passing of time frees them.
                self.now_ns += HELD_STEP_NS;
                self.step(poll_held);
            }
        }
        for _ in 0..HELD_STEPS {
            if self.state.held() == 0 {
                break;
            }
            self.now_ns += HELD_STEP_NS;
            self.step(poll_held);
        }
    }

    /// Runs one stage, and does what it requests.
    fn step(&mut self, stage: impl FnOnce(&mut Ctx<'_>)) {
        stage(&mut Ctx {
            tables: &self.tables,
            hooks: Hooks::none(),
            pool: &mut self.pool,
            stats: &self.stats,
            state: &mut self.state,
            out: &mut self.out,
            now_ns: self.now_ns,
        });
        for (port, egress) in self.out.egress.iter_mut().enumerate() {
            self.io.tx_burst(port as u16, &mut self.pool, egress.to_send(), &self.stats);
        }
        let reasons = self.out.punt_reasons.drain(..);
        for (skb, reason) in self.out.punts.drain(usize::MAX).zip(reasons) {
            self.stats.punt(reason, skb.port);
            self.pool.kfree_skb(skb);
        }
        // There is no kernel to resolve neighbours.
        self.out.neigh_requests.clear();
        self.out.offers.clear();
    }

    fn finish(mut self) -> Result<ReplayReport, ReplayError> {
        let replayed = self.io.finish(&mut self.pool)?;
        let WorkerStats { drops, punts, mib, .. } = &self.stats;
        Ok(ReplayReport {
            read: replayed.read,
            skipped: replayed.skipped,
            written: replayed.written,
            punts: counted(PuntReason::ALL.iter().map(|reason| reason.name()), punts),
            drops: counted(DropReason::ALL.iter().map(|reason| reason.name()), drops),
            mib: counted(Mib::ALL.iter().map(|mib| mib.name()), mib),
        })
    }
}

fn counted<'a>(names: impl Iterator<Item = &'a str>, counters: &[Counter]) -> Counters {
    let all = names.zip(counters).map(|(name, counter)| (name.to_owned(), counter.get()));
    all.filter(|(_, count)| *count != 0).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};

    use super::*;
    use crate::control::config::Config;
    use crate::wire::checksum::checksum;

    const NETWORK: &str = r#"
[[replay.interface]]
name = "left"
mac = "02:00:00:00:00:01"
addresses = ["198.18.1.1/24"]
[[replay.interface]]
name = "right"
mac = "02:00:00:00:00:02"
addresses = ["198.18.2.1/24"]
[[replay.neighbour]]
dev = "left"
address = "198.18.1.2"
lladdr = "02:00:00:00:00:11"
[[replay.neighbour]]
dev = "right"
address = "198.18.2.2"
lladdr = "02:00:00:00:00:12"
"#;

    const VLANS: &str = r#"
[[replay.interface]]
name = "left.10"
vlan = { link = "left", id = 10 }
addresses = ["198.18.10.1/24"]
[[replay.interface]]
name = "right.s20"
vlan = { link = "right", id = 20, protocol = "802.1ad" }
[[replay.interface]]
name = "right.20.7"
vlan = { link = "right.s20", id = 7, egress_qos_map = ["0:5"] }
addresses = ["198.18.20.1/24"]
[[replay.neighbour]]
dev = "right.20.7"
address = "198.18.20.2"
lladdr = "02:00:00:00:00:12"
"#;

    fn network() -> StaticNetwork {
        let text = format!("{NETWORK}{VLANS}");
        let config = Config::parse(&text, Path::new("n.toml")).expect("is right");
        StaticNetwork::new(&config.replay.expect("has the section")).expect("is right")
    }

    /// A UDP datagram of 8 octets from 198.18.1.2, to the router's left port.
    fn frame(daddr: [u8; 4], ttl: u8) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0x11, 8, 0];
        let mut ip = vec![0x45, 0, 0, 36, 0, 1, 0, 0, ttl, 17, 0, 0, 198, 18, 1, 2];
        ip.extend(daddr);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(ip);
        frame.extend([0, 1, 0, 2, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        frame
    }

    fn run(
        frames: &[Vec<u8>],
        iif: Option<&str>,
    ) -> Result<(ReplayReport, Vec<Vec<u8>>), ReplayError> {
        let dir = tempfile::tempdir().expect("a directory");
        let (input, output) = (dir.path().join("in.pcap"), dir.path().join("out.pcap"));
        let file = std::fs::File::create(&input).expect("creates");
        let mut writer = PcapWriter::new(file).expect("writes");
        for (n, frame) in frames.iter().enumerate() {
            let packet =
                PcapPacket::new(Duration::from_millis(n as u64), frame.len() as u32, frame);
            writer.write_packet(&packet).expect("writes");
        }
        drop(writer);
        let report = replay(&network(), &input, &output, iif)?;
        let mut reader =
            PcapReader::new(std::fs::File::open(&output).expect("is there")).expect("reads");
        let mut out = Vec::new();
        while let Some(packet) = reader.next_packet() {
            out.push(packet.expect("a packet").data.into_owned());
        }
        Ok((report, out))
    }

    #[test]
    fn packets_are_forwarded_answered_dropped_and_left_to_the_kernel() {
        let mut corrupt = frame([198, 18, 2, 2], 64);
        corrupt[24] ^= 1;
        let frames = [
            frame([198, 18, 2, 2], 64),
            frame([198, 18, 2, 2], 1),
            corrupt,
            frame([198, 18, 1, 1], 64),
            // No answer: dropped after the kernel's three seconds.
            frame([198, 18, 2, 3], 64),
        ];
        let (report, out) = run(&frames, None).expect("runs");
        assert_eq!((report.read, report.skipped), (5, 0));
        assert_eq!(report.drops["IP_CSUM"], 1, "{report:?}");
        assert_eq!(report.drops["TTL_EXCEEDED"], 1, "{report:?}");
        assert_eq!(report.drops["NEIGH_FAILED"], 1, "{report:?}");
        assert_eq!(report.punts, Counters::from([("LOCAL".into(), 1)]));
        assert_eq!(report.written, out.len() as u64);
        assert_eq!(
            out[0][..12],
            [2, 0, 0, 0, 0, 0x12, 2, 0, 0, 0, 0, 2],
            "to the host, from right"
        );
        assert_eq!((out[0][22], checksum(&out[0][14..34])), (63, 0));
        assert_eq!(out[0][34..], frames[0][34..], "what is above IP is untouched");
        let icmp = &out[1];
        assert_eq!(icmp[..6], [2, 0, 0, 0, 0, 0x11], "back to the sender");
        assert_eq!((icmp[23], icmp[34], icmp[35]), (1, 11, 0), "Time Exceeded in transit");
        assert_eq!(icmp[42..62], frames[1][14..34], "quotes the packet as received");
    }

    #[test]
    fn tagged_packets_go_between_vlans() {
        let mut tagged = frame([198, 18, 20, 2], 64);
        // PCP 6.
        tagged.splice(12..12, [0x81, 0, 0xc0, 10]);
        let mut unknown = tagged.clone();
        unknown[15] = 11;
        let (report, out) = run(&[tagged.clone(), unknown], None).expect("runs");
        assert_eq!(report.punts, Counters::from([("VLAN_UNKNOWN".into(), 1)]));
        assert_eq!(out.len(), 1);
        // The received PCP on one tag; on the other that of the egress map.
        assert_eq!(out[0][12..22], [0x88, 0xa8, 0xc0, 20, 0x81, 0, 0xa0, 7, 8, 0]);
        assert_eq!(out[0][42..], tagged[38..], "what is above IP is untouched");
    }

    #[test]
    fn the_same_input_gives_the_same_output() {
        let frames: Vec<_> = (0..200).map(|n| frame([198, 18, 2, 2], n as u8 % 4)).collect();
        assert_eq!(run(&frames, None).expect("runs"), run(&frames, None).expect("runs"));
    }

    #[test]
    fn iif_says_where_packets_come_in() {
        // Not the right port's MAC.
        let (report, out) = run(&[frame([198, 18, 2, 2], 64)], Some("right")).expect("runs");
        assert!(out.is_empty(), "{report:?}");
        assert_eq!(report.drops["OTHERHOST"], 1, "{report:?}");
        let error = run(&[], Some("middle")).expect_err("is none").to_string();
        assert_eq!(
            error,
            "--iif middle is not a port of the [replay] section, which has left, right"
        );
    }
}
