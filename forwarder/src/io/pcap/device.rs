//! A port over capture files as a network device.

use std::io;

use super::PcapIo;
use crate::io::device::{
    Channels, Coalescing, DeviceError, DriverInfo, ETH_HLEN, EthtoolOps, Feature, NetDevice,
    NetDeviceOps, Params, Rings, RxMode, Stats, Timestamping, check_length, check_mtu, is_up_flag,
    xmit_one,
};
use crate::skb::{FramePool, JUMBO_MTU};
use crate::stats::WorkerStats;

/// Maximum IP packet length of a port, in octets: captures may contain any.
const MTU_MAX: u32 = JUMBO_MTU;

/// Settings of a port.
#[derive(Debug, Clone, Copy)]
pub(super) struct PortSettings {
    pub(super) up: bool,
    mtu: u32,
    rx_mode: RxMode,
}

impl Default for PortSettings {
    fn default() -> PortSettings {
        PortSettings { up: true, mtu: MTU_MAX, rx_mode: RxMode::default() }
    }
}

/// A port of [`PcapIo`], with the state that it borrows from its worker.
#[derive(Debug)]
pub struct PcapDevice<'a> {
    io: &'a mut PcapIo,
    port: u16,
    pool: &'a mut FramePool,
    stats: &'a WorkerStats,
}

impl PcapIo {
    /// A port as a network device, with the state that it borrows from its worker. Ports are
    /// initially open. A closed port drops and counts its packets of the capture.
    pub fn device<'a>(
        &'a mut self,
        port: u16,
        pool: &'a mut FramePool,
        stats: &'a WorkerStats,
    ) -> PcapDevice<'a> {
        PcapDevice { io: self, port, pool, stats }
    }
}

impl PcapDevice<'_> {
    fn name(&self) -> String {
        let port = self.io.ports.get(usize::from(self.port));
        port.map_or_else(|| format!("pcap{}", self.port), |port| port.ifname.clone())
    }

    fn this(&mut self) -> Result<&mut PortSettings, DeviceError> {
        let name = self.name();
        self.io.settings.get_mut(usize::from(self.port)).ok_or(DeviceError::Gone(name))
    }

    fn peek(&self) -> Result<PortSettings, DeviceError> {
        let settings = self.io.settings.get(usize::from(self.port)).copied();
        settings.ok_or_else(|| DeviceError::Gone(self.name()))
    }
}

impl NetDeviceOps for PcapDevice<'_> {
    fn open(&mut self) -> Result<(), DeviceError> {
        self.this()?.up = true;
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DeviceError> {
        self.this()?.up = false;
        Ok(())
    }

    /// Writes the frame with the time stamp of the packet read last.
    fn start_xmit(&mut self, frame: &[u8]) -> Result<(), DeviceError> {
        let this = self.peek()?;
        if !this.up {
            return Err(DeviceError::Down(self.name()));
        }
        check_length(&self.name(), frame.len(), this.mtu as usize + ETH_HLEN)?;
        let sent = xmit_one(self.io, self.port, self.pool, self.stats, frame);
        if sent { Ok(()) } else { Err(DeviceError::Busy(self.name())) }
    }

    /// The mode has no effect: all captured frames are received.
    fn set_rx_mode(&mut self, mode: RxMode) -> Result<(), DeviceError> {
        self.this()?.rx_mode = mode;
        Ok(())
    }

    fn change_mtu(&mut self, mtu: u32) -> Result<(), DeviceError> {
        check_mtu(&self.name(), mtu, MTU_MAX)?;
        self.this()?.mtu = mtu;
        Ok(())
    }

    fn get_stats(&self) -> Result<Stats, DeviceError> {
        let port = self.stats.ports.get(usize::from(self.port));
        port.map(Stats::from).ok_or_else(|| DeviceError::Gone(self.name()))
    }
}

impl EthtoolOps for PcapDevice<'_> {
    fn driver_info(&self) -> io::Result<Option<DriverInfo>> {
        Ok(Some(DriverInfo { driver: "pcap".to_owned(), ..DriverInfo::default() }))
    }

    fn channels(&self) -> io::Result<Option<Channels>> {
        Ok(None)
    }

    fn ring_sizes(&self) -> io::Result<Option<Rings>> {
        Ok(None)
    }

    fn features(&self) -> io::Result<Vec<Feature>> {
        Ok(Vec::new())
    }

    /// Every packet has the time stamp of the capture.
    fn timestamping(&self) -> io::Result<Option<Timestamping>> {
        Ok(Some(Timestamping {
            capabilities: vec!["software-receive".to_owned()],
            rx_filters: vec!["all".to_owned()],
            ..Timestamping::default()
        }))
    }

    fn coalescing(&self) -> io::Result<Option<Coalescing>> {
        Ok(None)
    }
}

impl NetDevice for PcapDevice<'_> {
    fn params(&self) -> Result<Params, DeviceError> {
        let this = self.peek()?;
        Ok(Params {
            ifindex: self.io.ports.get(usize::from(self.port)).map_or(0, |port| port.ifindex),
            name: self.name(),
            flags: is_up_flag(this.up),
            mtu: this.mtu,
            max_mtu: MTU_MAX,
            mac: None,
            promiscuity: u32::from(this.rx_mode.promisc),
            allmulti: Some(u32::from(this.rx_mode.allmulti)),
            multicast: Vec::new(),
            rx_queues: 1,
            tx_queues: 1,
        })
    }
}
