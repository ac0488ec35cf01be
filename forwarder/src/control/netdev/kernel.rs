//! A kernel device and its ethtool settings, by netlink.

use std::io;

use super::{ethtool, rtnl};
use crate::io::af_xdp::{AfXdpDevice, driver_info};
use crate::io::device::{
    Channels, Coalescing, DeviceError, DriverInfo, EthtoolOps, Feature, NetDevice, Params, Rings,
    Stats, Timestamping,
};

/// A device of the calling thread's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelDevice {
    /// Its name.
    pub name: String,
    /// Its ifindex.
    pub ifindex: u32,
}

impl KernelDevice {
    /// Current parameters and statistics; `None`: it is gone.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn read(&self) -> io::Result<Option<(Params, Stats)>> {
        rtnl::read(self.ifindex)
    }
}

impl EthtoolOps for KernelDevice {
    fn driver_info(&self) -> io::Result<Option<DriverInfo>> {
        Ok(driver_info(&self.name))
    }

    fn channels(&self) -> io::Result<Option<Channels>> {
        ethtool::channels(self.ifindex)
    }

    fn ring_sizes(&self) -> io::Result<Option<Rings>> {
        ethtool::rings(self.ifindex)
    }

    fn features(&self) -> io::Result<Vec<Feature>> {
        ethtool::features(self.ifindex)
    }

    fn timestamping(&self) -> io::Result<Option<Timestamping>> {
        ethtool::timestamping(self.ifindex)
    }

    fn coalescing(&self) -> io::Result<Option<Coalescing>> {
        ethtool::coalescing(self.ifindex)
    }
}

/// The kernel device of an AF_XDP port.
fn below(port: &AfXdpDevice<'_>) -> KernelDevice {
    let config = port.config();
    KernelDevice { name: config.ifname.clone(), ifindex: config.ifindex }
}

/// An AF_XDP port has the hardware settings of its interface.
impl EthtoolOps for AfXdpDevice<'_> {
    fn driver_info(&self) -> io::Result<Option<DriverInfo>> {
        below(self).driver_info()
    }

    fn channels(&self) -> io::Result<Option<Channels>> {
        below(self).channels()
    }

    fn ring_sizes(&self) -> io::Result<Option<Rings>> {
        below(self).ring_sizes()
    }

    fn features(&self) -> io::Result<Vec<Feature>> {
        below(self).features()
    }

    fn timestamping(&self) -> io::Result<Option<Timestamping>> {
        below(self).timestamping()
    }

    fn coalescing(&self) -> io::Result<Option<Coalescing>> {
        below(self).coalescing()
    }
}

impl NetDevice for AfXdpDevice<'_> {
    fn params(&self) -> Result<Params, DeviceError> {
        let below = below(self);
        match below.read() {
            Ok(Some((params, _))) => Ok(params),
            Ok(None) => Err(DeviceError::Gone(below.name)),
            Err(source) => {
                Err(DeviceError::System { name: below.name, what: "read its link", source })
            }
        }
    }
}
