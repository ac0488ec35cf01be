//! An address with a prefix length, as users write it: `10.0.0.0/8`, `2001:db8::1/64`, `default`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An address and a prefix length in bits. Host bits may be set, as in an interface's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct IpNet {
    /// The address as written.
    pub addr: IpAddr,
    /// At most 32 or 128.
    pub len: u8,
}

impl IpNet {
    /// The default route of a family.
    pub fn default_route(v6: bool) -> IpNet {
        let addr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        IpNet { addr, len: 0 }
    }

    /// One address.
    pub fn host(addr: IpAddr) -> IpNet {
        IpNet { addr, len: if addr.is_ipv6() { 128 } else { 32 } }
    }

    /// The prefix without host bits.
    pub fn network(self) -> IpNet {
        let addr = match self.addr {
            IpAddr::V4(addr) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.len)).unwrap_or(0);
                IpAddr::V4((addr.to_bits() & mask).into())
            }
            IpAddr::V6(addr) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0);
                IpAddr::V6((addr.to_bits() & mask).into())
            }
        };
        IpNet { addr, len: self.len }
    }

    /// Whether every address of `other` is in this network. Always false for different families.
    pub fn covers(self, other: IpNet) -> bool {
        self.addr.is_ipv6() == other.addr.is_ipv6()
            && self.len <= other.len
            && IpNet { len: self.len, ..other }.network() == self.network()
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// The expected format, for messages.
pub const EXPECTED: &str = "a prefix like 10.0.0.0/8 or 2001:db8::/32, or an address";

impl FromStr for IpNet {
    type Err = String;

    /// An address alone is a host prefix. `default` is that of IPv4; see [`IpNet::default_route`].
    fn from_str(text: &str) -> Result<IpNet, String> {
        if text == "default" {
            return Ok(IpNet::default_route(false));
        }
        let wrong = || format!("`{text}` is not {EXPECTED}");
        let Some((addr, len)) = text.split_once('/') else {
            return text.parse().map(IpNet::host).map_err(|_| wrong());
        };
        let addr: IpAddr = addr.parse().map_err(|_| wrong())?;
        let len: u8 = len.parse().map_err(|_| wrong())?;
        if len > IpNet::host(addr).len {
            return Err(format!("`{text}`: the length is at most {}", IpNet::host(addr).len));
        }
        Ok(IpNet { addr, len })
    }
}

impl Serialize for IpNet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IpNet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| de::Error::invalid_value(de::Unexpected::Str(&text), &EXPECTED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn prefixes_are_read_as_iproute2_writes_them() {
        assert_eq!(net("10.1.2.3/8").to_string(), "10.1.2.3/8");
        assert_eq!(net("10.1.2.3/8").network(), net("10.0.0.0/8"));
        assert_eq!(net("10.1.2.3"), net("10.1.2.3/32"));
        assert_eq!(net("default"), net("0.0.0.0/0"));
        assert_eq!(net("2001:db8::1/0").network(), net("::/0"));
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/", "10.0.0.0/-1", "x"] {
            assert!(wrong.parse::<IpNet>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_network_covers_only_its_subnets() {
        assert!(net("10.0.0.0/8").covers(net("10.1.0.0/16")));
        assert!(net("10.0.0.0/8").covers(net("10.0.0.0/8")));
        assert!(!net("10.1.0.0/16").covers(net("10.0.0.0/8")));
        assert!(!net("0.0.0.0/0").covers(net("::/0")));
        assert!(net("::/0").covers(net("2001:db8::/32")));
    }
}
