//! Settings of connection tracking, which only /proc/sys/net/netfilter has. The files show the network
//! namespace of the thread that opens them, which must be the one of the sockets.

use std::fs;
use std::io;
use std::str::FromStr;

/// Settings of the network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sysctls {
    /// nf_conntrack_tcp_timeout_established, in seconds.
    pub tcp_timeout_established_s: u32,
    /// nf_conntrack_udp_timeout_stream, in seconds.
    pub udp_timeout_stream_s: u32,
    /// nf_conntrack_generic_timeout, in seconds: of connections without ports, such as ESP.
    pub generic_timeout_s: u32,
    /// nf_conntrack_gre_timeout_stream, in seconds; 0: the kernel does not know GRE, whose connections have the generic
    /// time-out.
    pub gre_timeout_stream_s: u32,
    /// nf_conntrack_icmp_timeout and nf_conntrack_icmpv6_timeout, in seconds.
    pub icmp_timeouts_s: [u32; 2],
    /// nf_conntrack_tcp_ignore_invalid_rst: a RST from before what its receiver has acknowledged is not invalid.
    pub tcp_ignores_invalid_rst: bool,
    /// nf_conntrack_acct: entries count their packets and octets.
    pub is_acct: bool,
    /// nf_conntrack_events: 0 for no events, 1 for events of all entries, 2 for events of those that were
    /// added while a socket for events was open; 0 also if the kernel has no events.
    pub events: u8,
    /// nf_conntrack_max: how many entries the table may have; 0 is unlimited.
    pub max: u32,
    /// nf_conntrack_count: how many entries the table has.
    pub count: u32,
}

impl Sysctls {
    /// Reads them.
    ///
    /// # Errors
    /// The error with the file's name; `NotFound` if the kernel has no connection tracking, `InvalidData`
    /// if the file does not contain such a number.
    pub fn read() -> io::Result<Sysctls> {
        Ok(Sysctls {
            tcp_timeout_established_s: read("nf_conntrack_tcp_timeout_established")?,
            udp_timeout_stream_s: read("nf_conntrack_udp_timeout_stream")?,
            generic_timeout_s: read("nf_conntrack_generic_timeout")?,
            gre_timeout_stream_s: read_if_any("nf_conntrack_gre_timeout_stream")?,
            icmp_timeouts_s: [
                read("nf_conntrack_icmp_timeout")?,
                // Without IPv6.
                read_if_any("nf_conntrack_icmpv6_timeout")?,
            ],
            // Linux before 5.14.
            tcp_ignores_invalid_rst: read_if_any::<u8>("nf_conntrack_tcp_ignore_invalid_rst")? != 0,
            is_acct: read::<u8>("nf_conntrack_acct")? != 0,
            events: read_if_any("nf_conntrack_events")?,
            max: read("nf_conntrack_max")?,
            count: read("nf_conntrack_count")?,
        })
    }
}

/// 0 if the kernel does not have the setting.
fn read_if_any<T: FromStr + Default>(name: &str) -> io::Result<T> {
    match read(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        value => value,
    }
}

fn read<T: FromStr>(name: &str) -> io::Result<T> {
    let path = format!("/proc/sys/net/netfilter/{name}");
    let text = fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    text.trim().parse().map_err(|_| {
        let text = text.trim().escape_debug();
        io::Error::new(io::ErrorKind::InvalidData, format!("{path}: unexpected value {text}"))
    })
}
