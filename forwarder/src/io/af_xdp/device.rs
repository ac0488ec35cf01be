//! A port as a network device: opening and closing it, and properties of its interface. Ethtool
//! properties are read by netlink on the control side.

use std::io;

use super::membership::Membership;
use super::{AfXdp, PortConfig, PortState, netdev};
use crate::io::PacketIo;
use crate::io::device::{
    DeviceError, ETH_HLEN, NetDeviceOps, RxMode, Stats, check_length, check_mtu, xmit_one,
};
use crate::skb::{FramePool, JUMBO_MTU, MTU_FRAME};
use crate::stats::WorkerStats;

/// A port of [`AfXdp`], with the state that it borrows from its worker.
#[derive(Debug)]
pub struct AfXdpDevice<'a> {
    io: &'a mut AfXdp,
    port: u16,
    config: PortConfig,
    pool: &'a mut FramePool,
    stats: &'a WorkerStats,
}

impl AfXdp {
    /// A port as a network device, open or not; `config` is used to open it. Its callbacks make
    /// system calls: do not call them for every burst.
    pub fn device<'a>(
        &'a mut self,
        port: u16,
        config: PortConfig,
        pool: &'a mut FramePool,
        stats: &'a WorkerStats,
    ) -> AfXdpDevice<'a> {
        AfXdpDevice { io: self, port, config, pool, stats }
    }
}

impl AfXdpDevice<'_> {
    /// The configuration used to open it.
    pub fn config(&self) -> &PortConfig {
        &self.config
    }

    fn failed(&self, what: &'static str) -> impl Fn(io::Error) -> DeviceError {
        let name = self.config.ifname.clone();
        move |source| match source.raw_os_error() {
            Some(libc::ENODEV) => DeviceError::Gone(name.clone()),
            _ => DeviceError::System { name: name.clone(), what, source },
        }
    }

    /// The largest IP MTU in the mode in which it is open, or would be opened.
    fn mtu_max(&mut self) -> u32 {
        let info = self.io.port_info(self.port);
        match info.map_or(self.config.multi_buffer, |info| info.multi_buffer) {
            true => JUMBO_MTU,
            false => MTU_FRAME,
        }
    }

    fn membership(&mut self) -> Result<&mut Option<Membership>, DeviceError> {
        let gone = || DeviceError::Gone(self.config.ifname.clone());
        self.io.memberships.get_mut(usize::from(self.port)).ok_or_else(gone)
    }
}

impl NetDeviceOps for AfXdpDevice<'_> {
    fn open(&mut self) -> Result<(), DeviceError> {
        if self.io.port_info(self.port).is_some() {
            return Ok(());
        }
        Ok(self.io.add_port(self.port, &self.config, self.pool)?)
    }

    fn stop(&mut self) -> Result<(), DeviceError> {
        *self.membership()? = None;
        self.io.remove_port(self.port, self.pool, self.stats);
        Ok(())
    }

    fn start_xmit(&mut self, frame: &[u8]) -> Result<(), DeviceError> {
        let max = self.mtu_max() as usize + ETH_HLEN;
        let name = || self.config.ifname.clone();
        match self.io.port_info(self.port).map(|info| info.state) {
            Some(PortState::Up) => {}
            Some(PortState::Gone) => return Err(DeviceError::Gone(name())),
            Some(PortState::Down) | None => return Err(DeviceError::Down(name())),
        }
        check_length(&self.config.ifname, frame.len(), max)?;
        if !xmit_one(self.io, self.port, self.pool, self.stats, frame) {
            return Err(DeviceError::Busy(name()));
        }
        self.io.kick(self.pool, self.stats);
        Ok(())
    }

    fn set_rx_mode(&mut self, mode: RxMode) -> Result<(), DeviceError> {
        let wanted = (mode != RxMode::default())
            .then(|| Membership::join(self.config.ifindex, mode))
            .transpose()
            .map_err(self.failed("change what it receives"))?;
        *self.membership()? = wanted;
        Ok(())
    }

    fn change_mtu(&mut self, mtu: u32) -> Result<(), DeviceError> {
        let max = self.mtu_max();
        check_mtu(&self.config.ifname, mtu, max)?;
        netdev::set_mtu(&self.config.ifname, mtu).map_err(self.failed("set its MTU"))
    }

    /// Packets moved by userspace, and those that the kernel could not deliver to its socket.
    fn get_stats(&self) -> Result<Stats, DeviceError> {
        let port = self.stats.ports.get(usize::from(self.port));
        let mut stats = port.map(Stats::from).unwrap_or_default();
        if let Ok(socket) = self.io.statistics(self.port) {
            stats.rx_missed_errors = socket.rx_ring_full;
            stats.rx_dropped += socket.rx_dropped;
            stats.tx_errors = socket.tx_invalid_descs;
        }
        Ok(stats)
    }
}
