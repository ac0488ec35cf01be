//! Frames that the XDP program redirected to a port and that were not sent: the maps of the object that counts them.

/// ARRAY of one [`WatchSettings`].
pub const MAP_SETTINGS: &str = "FR_RD_SETTINGS";
/// HASH, key: ifindex, value: number of the port.
pub const MAP_PORTS: &str = "FR_RD_PORTS";
/// ARRAY of [`Failures`], BPF_F_MMAPABLE, by number of the port.
pub const MAP_FAILED: &str = "FR_RD_FAILED";

/// The program at the tracepoint `xdp_redirect_err`.
pub const PROGRAM_REDIRECT_ERR: &str = "ferroute_redir";
/// The program at the tracepoint `xdp_devmap_xmit`.
pub const PROGRAM_DEVMAP_XMIT: &str = "ferroute_xmit";

/// Whose frames are counted. Offsets are those of the running kernel, in octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WatchSettings {
    /// The router's network namespace (SO_NETNS_COOKIE).
    pub cookie: u64,
    /// Ids of the DEVMAPs.
    pub tx_ports: [u32; 2],
    /// Of `nd_net` in `struct net_device`.
    pub dev_net: u32,
    /// Of `ifindex` in `struct net_device`.
    pub dev_ifindex: u32,
    /// Of `net_cookie` in `struct net`.
    pub net_cookie: u32,
    /// 0.
    pub reserved: u32,
}

impl WatchSettings {
    /// Converts it to a map value.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 32] {
        let mut out = [0; 32];
        out[..8].copy_from_slice(&self.cookie.to_ne_bytes());
        let [first, second] = self.tx_ports;
        let words = [first, second, self.dev_net, self.dev_ifindex, self.net_cookie, self.reserved];
        for (to, word) in out[8..].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }
}

/// Frames to one port that were not sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Failures {
    /// The kernel or the driver takes none: the port is down, the frame too long for it, the peer of a veth without
    /// NAPI.
    pub refused: u64,
    /// The driver took some frames only: it had no room for others, or, a veth, they are too long for its peer.
    pub dropped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_values_have_the_size_the_programs_expect() {
        let settings = WatchSettings { cookie: 1, net_cookie: 2, ..WatchSettings::default() };
        assert_eq!(settings.to_bytes().len(), size_of::<WatchSettings>());
        assert_eq!(settings.to_bytes()[24..28], 2u32.to_ne_bytes());
        assert_eq!(size_of::<Failures>(), 16);
    }
}
