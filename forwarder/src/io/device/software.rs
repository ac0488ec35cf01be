//! Devices without hardware: ports in memory and ports that are capture files. Their parameters are
//! kept in a [`SoftwarePort`] each, which the driver reads when it moves frames.

use std::io;

use super::{
    Channels, Coalescing, DeviceError, DriverInfo, ETH_HLEN, EthtoolOps, Feature, MacAddr,
    NetDevice, NetDeviceOps, Params, Rings, RxMode, Stats, Timestamping, check_length, check_mtu,
    xmit_one,
};
use crate::io::PacketIo;
use crate::skb::{FramePool, JUMBO_MTU};
use crate::stats::WorkerStats;

/// Parameters of a port.
#[derive(Debug, Clone)]
pub struct SoftwarePort {
    /// Its name.
    pub name: String,
    /// Its index, the iif of packets received on it.
    pub ifindex: u32,
    /// Whether it is open. A closed port neither receives nor sends.
    pub up: bool,
    /// IP MTU in octets.
    pub mtu: u32,
    /// Its address; `None`: it receives frames for any.
    pub mac: Option<MacAddr>,
    /// Which frames it receives besides those for its own address.
    pub rx_mode: RxMode,
}

impl SoftwarePort {
    /// The maximum of [`Self::mtu`].
    pub const MTU_MAX: u32 = JUMBO_MTU;

    /// An open port without an address.
    pub fn new(name: String, ifindex: u32, mtu: u32) -> SoftwarePort {
        SoftwarePort { name, ifindex, up: true, mtu, mac: None, rx_mode: RxMode::default() }
    }
}

/// A driver of such ports.
pub trait SoftwareDriver: PacketIo + Sized {
    /// Name of the driver.
    const NAME: &'static str;

    /// The parameters of a port. `None`: no such port.
    fn software_port(&self, port: u16) -> Option<&SoftwarePort>;

    /// The parameters of a port, to be changed.
    fn software_port_mut(&mut self, port: u16) -> Option<&mut SoftwarePort>;

    /// See [`EthtoolOps::channels`].
    fn channels(&self) -> Option<Channels> {
        None
    }

    /// See [`EthtoolOps::ring_sizes`].
    fn ring_sizes(&self) -> Option<Rings> {
        None
    }

    /// See [`EthtoolOps::timestamping`].
    fn timestamping(&self) -> Option<Timestamping> {
        None
    }

    /// A port as a network device, with the state that it borrows from its worker.
    fn device<'a>(
        &'a mut self,
        port: u16,
        pool: &'a mut FramePool,
        stats: &'a WorkerStats,
    ) -> SoftwareDevice<'a, Self> {
        SoftwareDevice { io: self, port, pool, stats }
    }
}

/// A port of a driver as a network device.
#[derive(Debug)]
pub struct SoftwareDevice<'a, Io> {
    io: &'a mut Io,
    port: u16,
    pool: &'a mut FramePool,
    stats: &'a WorkerStats,
}

impl<Io: SoftwareDriver> SoftwareDevice<'_, Io> {
    fn name(&self) -> String {
        let port = self.io.software_port(self.port);
        port.map_or_else(|| format!("{}{}", Io::NAME, self.port), |port| port.name.clone())
    }

    fn gone(&self) -> DeviceError {
        DeviceError::Gone(self.name())
    }

    fn this(&self) -> Result<&SoftwarePort, DeviceError> {
        self.io.software_port(self.port).ok_or_else(|| self.gone())
    }

    fn this_mut(&mut self) -> Result<&mut SoftwarePort, DeviceError> {
        let gone = self.gone();
        self.io.software_port_mut(self.port).ok_or(gone)
    }
}

impl<Io: SoftwareDriver> NetDeviceOps for SoftwareDevice<'_, Io> {
    fn open(&mut self) -> Result<(), DeviceError> {
        self.this_mut()?.up = true;
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DeviceError> {
        self.this_mut()?.up = false;
        Ok(())
    }

    fn start_xmit(&mut self, frame: &[u8]) -> Result<(), DeviceError> {
        let this = self.this()?;
        if !this.up {
            return Err(DeviceError::Down(this.name.clone()));
        }
        check_length(&this.name, frame.len(), this.mtu as usize + ETH_HLEN)?;
        if xmit_one(self.io, self.port, self.pool, self.stats, frame) {
            return Ok(());
        }
        Err(DeviceError::Busy(self.name()))
    }

    fn set_rx_mode(&mut self, mode: RxMode) -> Result<(), DeviceError> {
        self.this_mut()?.rx_mode = mode;
        Ok(())
    }

    fn change_mtu(&mut self, mtu: u32) -> Result<(), DeviceError> {
        check_mtu(&self.name(), mtu, SoftwarePort::MTU_MAX)?;
        self.this_mut()?.mtu = mtu;
        Ok(())
    }

    fn get_stats(&self) -> Result<Stats, DeviceError> {
        let port = self.stats.ports.get(usize::from(self.port));
        port.map(Stats::from).ok_or_else(|| self.gone())
    }
}

impl<Io: SoftwareDriver> EthtoolOps for SoftwareDevice<'_, Io> {
    fn driver_info(&self) -> io::Result<Option<DriverInfo>> {
        Ok(Some(DriverInfo { driver: Io::NAME.to_owned(), ..DriverInfo::default() }))
    }

    fn channels(&self) -> io::Result<Option<Channels>> {
        Ok(self.io.channels())
    }

    fn ring_sizes(&self) -> io::Result<Option<Rings>> {
        Ok(self.io.ring_sizes())
    }

    fn features(&self) -> io::Result<Vec<Feature>> {
        Ok(Vec::new())
    }

    fn timestamping(&self) -> io::Result<Option<Timestamping>> {
        Ok(self.io.timestamping())
    }

    fn coalescing(&self) -> io::Result<Option<Coalescing>> {
        Ok(None)
    }
}

impl<Io: SoftwareDriver> NetDevice for SoftwareDevice<'_, Io> {
    fn params(&self) -> Result<Params, DeviceError> {
        let this = self.this()?;
        Ok(Params {
            ifindex: this.ifindex,
            name: this.name.clone(),
            flags: if this.up { libc::IFF_UP as u32 } else { 0 },
            mtu: this.mtu,
            max_mtu: SoftwarePort::MTU_MAX,
            mac: this.mac,
            promiscuity: u32::from(this.rx_mode.promisc),
            allmulti: Some(u32::from(this.rx_mode.allmulti)),
            multicast: Vec::new(),
            rx_queues: 1,
            tx_queues: 1,
        })
    }
}
