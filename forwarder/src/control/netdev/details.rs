//! The part of `link show -d` that is read for each device, and its output: as text in the format
//! of `ip -d -s link` and `ethtool`, as JSON with the keys of `ip -j` where they exist. What a
//! device does not have is omitted.

use std::fmt;
use std::io;

use serde::Serialize;

use super::KernelDevice;
use super::napi::{self, Napi, Queue};
use super::sysfs::{self, Irq};
use crate::control::netdev::nic::{self, XDP_BASIC, XDP_MULTI_BUFFER, XDP_ZEROCOPY};
use crate::io::device::{
    Channels, Coalescing, DriverInfo, EthtoolOps, Feature, Multicast, Rings, Stats, Timestamping,
};

/// Details of a kernel device.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Details {
    /// Promiscuous mode: number of users, as the kernel counts them.
    pub promiscuity: u32,
    /// All-multicast mode: number of users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allmulti: Option<u32>,
    /// The largest supported MTU, in octets.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_mtu: u32,
    /// RX queues that it was created with.
    pub num_rx_queues: u32,
    /// TX queues that it was created with.
    pub num_tx_queues: u32,
    /// Multicast addresses it receives.
    pub multicast: Vec<Multicast>,
    /// Its driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<DriverInfo>,
    /// XDP capabilities of its driver; `None`: the kernel does not report them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xdp_features: Option<XdpFeatures>,
    /// Queues in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<Channels>,
    /// Ring sizes, in descriptors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rings: Option<Rings>,
    /// Interrupt coalescing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coalescing: Option<Coalescing>,
    /// Time stamping capabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamping: Option<Timestamping>,
    /// Its offloads.
    pub features: Vec<Feature>,
    /// The NAPI instances that poll its queues.
    pub napi: Vec<Napi>,
    /// Its queues.
    pub queues: Vec<Queue>,
    /// Its interrupts, if they are not reported with the NAPI instances.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub irqs: Vec<Irq>,
    /// The kernel's counters. Packets of AF_XDP are in some drivers' counters only.
    pub stats64: Stats64,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// The NETDEV_XDP_ACT_* flags that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct XdpFeatures {
    /// XDP in the driver.
    pub native: bool,
    /// AF_XDP zero-copy.
    pub zerocopy: bool,
    /// Packets of several buffers.
    pub multi_buffer: bool,
}

/// Counters with the keys of `ip -s -j link`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats64 {
    /// Received.
    pub rx: RxStats,
    /// Sent.
    pub tx: TxStats,
}

/// Received packets; see [`Stats`].
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "documented in Stats")]
pub struct RxStats {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
    pub missed: u64,
    pub multicast: u64,
}

/// Sent packets; see [`Stats`].
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "documented in Stats")]
pub struct TxStats {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
    pub collisions: u64,
}

impl From<Stats> for Stats64 {
    fn from(stats: Stats) -> Stats64 {
        Stats64 {
            rx: RxStats {
                bytes: stats.rx_bytes,
                packets: stats.rx_packets,
                errors: stats.rx_errors,
                dropped: stats.rx_dropped,
                missed: stats.rx_missed_errors,
                multicast: stats.multicast,
            },
            tx: TxStats {
                bytes: stats.tx_bytes,
                packets: stats.tx_packets,
                errors: stats.tx_errors,
                dropped: stats.tx_dropped,
                collisions: stats.collisions,
            },
        }
    }
}

impl Details {
    /// Reads a device of the calling thread's namespace; `None`: it is gone.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn read(device: &KernelDevice) -> io::Result<Option<Details>> {
        let Some((params, stats)) = device.read()? else { return Ok(None) };
        let xdp = |acts| XdpFeatures {
            native: acts & XDP_BASIC != 0,
            zerocopy: acts & XDP_ZEROCOPY != 0,
            multi_buffer: acts & XDP_MULTI_BUFFER != 0,
        };
        let napi = napi::instances(device.ifindex)?;
        let irqs = if napi.iter().any(|napi| napi.irq.is_some()) {
            Vec::new()
        } else {
            // Unknown without permission to mount a sysfs.
            sysfs::irqs(&device.name, device.ifindex).unwrap_or_default()
        };
        Ok(Some(Details {
            promiscuity: params.promiscuity,
            allmulti: params.allmulti,
            max_mtu: params.max_mtu,
            num_rx_queues: params.rx_queues,
            num_tx_queues: params.tx_queues,
            multicast: params.multicast,
            driver: device.driver_info()?,
            xdp_features: nic::xdp_features(device.ifindex)?.map(xdp),
            channels: device.channels()?,
            rings: device.ring_sizes()?,
            coalescing: device.coalescing()?,
            timestamping: device.timestamping()?,
            features: device.features()?,
            napi,
            queues: napi::queues(device.ifindex)?,
            irqs,
            stats64: stats.into(),
        }))
    }

    fn fmt_hardware(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(driver) = &self.driver {
            write!(f, "\n    driver {}", driver.driver)?;
            let more = [
                ("version", &driver.version),
                ("firmware", &driver.firmware),
                ("bus", &driver.bus),
            ];
            for (name, value) in more.into_iter().filter(|(_, value)| !value.is_empty()) {
                write!(f, " {name} {value}")?;
            }
        }
        if let Some(channels) = &self.channels {
            write!(f, "\n    channels {} (max {})", channels.now, channels.max)?;
        }
        if let Some(rings) = &self.rings {
            write!(
                f,
                "\n    ring rx {} tx {} (max {} {})",
                rings.rx, rings.tx, rings.rx_max, rings.tx_max
            )?;
        }
        if let Some(coalescing) = &self.coalescing {
            write!(f, "\n    coalesce{coalescing}")?;
        }
        if let Some(stamps) = &self.timestamping {
            let clock = stamps.clock.map(|n| format!(" clock ptp{n}")).unwrap_or_default();
            write!(f, "\n    timestamping {}{clock}", stamps.capabilities.join(" "))?;
        }
        Ok(())
    }

    fn fmt_queues(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for queue in &self.queues {
            write!(f, "\n    queue {} {}", queue.kind, queue.id)?;
            let Some(id) = queue.napi_id else { continue };
            write!(f, " napi {id}")?;
            let napi = self.napi.iter().find(|napi| napi.id == id);
            if let Some(irq) = napi.and_then(|napi| napi.irq) {
                write!(f, " irq {irq}")?;
            }
        }
        for irq in &self.irqs {
            write!(f, "\n    irq {} {}", irq.irq, irq.name)?;
        }
        for napi in &self.napi {
            write!(f, "\n    napi {}", napi.id)?;
            if let Some(irq) = napi.irq {
                write!(f, " irq {irq}")?;
            }
            if let Some(set) = &napi.settings {
                write!(
                    f,
                    " defer-hard-irqs {} gro-flush-timeout {} irq-suspend-timeout {}",
                    set.defer_hard_irqs, set.gro_flush_timeout, set.irq_suspend_timeout
                )?;
            }
        }
        Ok(())
    }

    /// Features that are on, and those that are off but can be turned on.
    fn fmt_features(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |on: bool| -> Vec<&str> {
            let shown =
                self.features.iter().filter(|feature| feature.on == on && (on || !feature.fixed));
            shown.map(|feature| feature.name.as_str()).collect()
        };
        for (title, names) in [("on", names(true)), ("off", names(false))] {
            if !names.is_empty() {
                write!(f, "\n    features {title}: {}", names.join(" "))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Coalescing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = [
            ("rx-usecs", self.rx_usecs),
            ("rx-frames", self.rx_frames),
            ("tx-usecs", self.tx_usecs),
            ("tx-frames", self.tx_frames),
        ];
        for (name, value) in numbers {
            value.map_or(Ok(()), |value| write!(f, " {name} {value}"))?;
        }
        for (name, on) in [("adaptive-rx", self.adaptive_rx), ("adaptive-tx", self.adaptive_tx)] {
            let word = |on| if on { "on" } else { "off" };
            on.map_or(Ok(()), |on| write!(f, " {name} {}", word(on)))?;
        }
        Ok(())
    }
}

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n    promiscuity {}", self.promiscuity)?;
        self.allmulti.map_or(Ok(()), |count| write!(f, " allmulti {count}"))?;
        if self.max_mtu != 0 {
            write!(f, " maxmtu {}", self.max_mtu)?;
        }
        write!(f, " numtxqueues {} numrxqueues {}", self.num_tx_queues, self.num_rx_queues)?;
        self.fmt_hardware(f)?;
        self.fmt_queues(f)?;
        for entry in &self.multicast {
            write!(f, "\n    multicast {} users {}", entry.address, entry.users)?;
        }
        self.fmt_features(f)?;
        let (rx, tx) = (&self.stats64.rx, &self.stats64.tx);
        write!(
            f,
            "\n    RX: bytes {} packets {} errors {} dropped {} missed {} mcast {}\n    TX: bytes {} \
             packets {} errors {} dropped {} collisions {}",
            rx.bytes,
            rx.packets,
            rx.errors,
            rx.dropped,
            rx.missed,
            rx.multicast,
            tx.bytes,
            tx.packets,
            tx.errors,
            tx.dropped,
            tx.collisions
        )
    }
}
