//! A port in memory as a network device.

use std::io;

use super::{MemIo, MemPort};
use crate::io::device::{
    ChannelCounts, Channels, Coalescing, DeviceError, DriverInfo, ETH_HLEN, EthtoolOps, Feature,
    NetDevice, NetDeviceOps, Params, Rings, RxMode, Stats, Timestamping, check_length, check_mtu,
    is_up_flag, xmit_one,
};
use crate::skb::{FramePool, JUMBO_MTU};
use crate::stats::WorkerStats;

/// The default of Ethernet interfaces.
pub(super) const MTU_DEFAULT: u32 = 1500;

/// A port of [`MemIo`], with the state that it borrows from its worker.
#[derive(Debug)]
pub struct MemDevice<'a> {
    pub(super) io: &'a mut MemIo,
    pub(super) port: u16,
    pub(super) pool: &'a mut FramePool,
    pub(super) stats: &'a WorkerStats,
}

impl MemDevice<'_> {
    fn name(&self) -> String {
        format!("mem{}", self.port)
    }

    fn this(&mut self) -> Result<&mut MemPort, DeviceError> {
        let name = self.name();
        self.io.port_mut(self.port).map_err(|_| DeviceError::Gone(name))
    }

    fn peek(&self) -> Result<&MemPort, DeviceError> {
        let port = self.io.ports.get(usize::from(self.port));
        port.ok_or_else(|| DeviceError::Gone(self.name()))
    }
}

impl NetDeviceOps for MemDevice<'_> {
    fn open(&mut self) -> Result<(), DeviceError> {
        self.this()?.up = true;
        Ok(())
    }

    /// Queued received packets can still be taken; nothing more is received or sent.
    fn stop(&mut self) -> Result<(), DeviceError> {
        self.this()?.up = false;
        Ok(())
    }

    fn start_xmit(&mut self, frame: &[u8]) -> Result<(), DeviceError> {
        let (up, mtu) = (self.peek()?.up, self.peek()?.mtu);
        if !up {
            return Err(DeviceError::Down(self.name()));
        }
        check_length(&self.name(), frame.len(), mtu as usize + ETH_HLEN)?;
        let sent = xmit_one(self.io, self.port, self.pool, self.stats, frame);
        if sent { Ok(()) } else { Err(DeviceError::Busy(self.name())) }
    }

    fn set_rx_mode(&mut self, mode: RxMode) -> Result<(), DeviceError> {
        self.this()?.rx_mode = mode;
        Ok(())
    }

    fn change_mtu(&mut self, mtu: u32) -> Result<(), DeviceError> {
        check_mtu(&self.name(), mtu, JUMBO_MTU)?;
        self.this()?.mtu = mtu;
        Ok(())
    }

    fn get_stats(&self) -> Result<Stats, DeviceError> {
        let port = self.stats.ports.get(usize::from(self.port));
        port.map(Stats::from).ok_or_else(|| DeviceError::Gone(self.name()))
    }
}

impl EthtoolOps for MemDevice<'_> {
    fn driver_info(&self) -> io::Result<Option<DriverInfo>> {
        Ok(Some(DriverInfo { driver: "mem".to_owned(), ..DriverInfo::default() }))
    }

    fn channels(&self) -> io::Result<Option<Channels>> {
        let one = ChannelCounts { combined: 1, ..ChannelCounts::default() };
        Ok(Some(Channels { now: one, max: one }))
    }

    fn ring_sizes(&self) -> io::Result<Option<Rings>> {
        let ring = self.io.ring as u32;
        Ok(Some(Rings { rx: ring, rx_max: ring, tx: ring, tx_max: ring }))
    }

    fn features(&self) -> io::Result<Vec<Feature>> {
        Ok(Vec::new())
    }

    fn timestamping(&self) -> io::Result<Option<Timestamping>> {
        Ok(None)
    }

    fn coalescing(&self) -> io::Result<Option<Coalescing>> {
        Ok(None)
    }
}

impl NetDevice for MemDevice<'_> {
    fn params(&self) -> Result<Params, DeviceError> {
        let this = self.peek()?;
        Ok(Params {
            ifindex: this.iif,
            name: self.name(),
            flags: is_up_flag(this.up),
            mtu: this.mtu,
            max_mtu: JUMBO_MTU,
            mac: this.mac,
            promiscuity: u32::from(this.rx_mode.promisc),
            allmulti: Some(u32::from(this.rx_mode.allmulti)),
            multicast: Vec::new(),
            rx_queues: 1,
            tx_queues: 1,
        })
    }
}
