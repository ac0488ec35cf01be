//! Where the metrics server listens: `--metrics`, and `metrics` in the `[run]` section.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

/// Where the server listens if no address is named: loopback, at a port that no other exporter is known to have.
pub const METRICS_DEFAULT: &str = "127.0.0.1:9112";
/// Precedes the path of a unix socket.
const UNIX: &str = "unix:";
/// Longest path of a unix socket, octets (`sockaddr_un`), with room for `.lock`.
const PATH_MAX: usize = 102;

/// An address to listen at.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum MetricsAddr {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl MetricsAddr {
    /// Whether only this machine can connect.
    pub fn is_local(&self) -> bool {
        match self {
            MetricsAddr::Tcp(addr) => addr.ip().to_canonical().is_loopback(),
            MetricsAddr::Unix(_) => true,
        }
    }

    /// The path of a unix socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            MetricsAddr::Tcp(_) => None,
            MetricsAddr::Unix(path) => Some(path),
        }
    }
}

impl Default for MetricsAddr {
    fn default() -> MetricsAddr {
        MetricsAddr::Tcp((Ipv4Addr::LOCALHOST, 9112).into())
    }
}

impl fmt::Display for MetricsAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricsAddr::Tcp(addr) => addr.fmt(f),
            MetricsAddr::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl FromStr for MetricsAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<MetricsAddr, String> {
        if let Some(path) = text.strip_prefix(UNIX) {
            return match path.len() {
                1..=PATH_MAX if !path.contains('\0') => Ok(MetricsAddr::Unix(path.into())),
                length => Err(format!(
                    "`{text}`: the path of a unix socket has 1 to {PATH_MAX} octets, this one {length}"
                )),
            };
        }
        let addr: SocketAddr = text.parse().map_err(|_| {
            format!(
                "`{text}` is not an address to listen at, expected ADDR:PORT as {METRICS_DEFAULT} or \
                 [::1]:9112, or unix:PATH"
            )
        })?;
        if addr.port() == 0 {
            return Err(format!(
                "`{text}`: port 0 is none that a client could know, expected 1 to 65535"
            ));
        }
        Ok(MetricsAddr::Tcp(addr))
    }
}

impl TryFrom<String> for MetricsAddr {
    type Error = String;

    fn try_from(text: String) -> Result<MetricsAddr, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in
            ["127.0.0.1:9112", "[::1]:80", "0.0.0.0:65535", "unix:/run/ferroute/metrics.sock"]
        {
            let addr: MetricsAddr = text.parse().expect("is right");
            assert_eq!(addr.to_string(), text);
        }
        assert_eq!(METRICS_DEFAULT.parse(), Ok(MetricsAddr::default()));
    }

    #[test]
    fn wrong_addresses_are_refused_with_what_is_expected() {
        for text in ["", "9112", "localhost:9112", "127.0.0.1", "::1:9112", "127.0.0.1:65536"] {
            let error = text.parse::<MetricsAddr>().expect_err("is wrong");
            assert!(error.contains("expected ADDR:PORT as 127.0.0.1:9112"), "{error}");
        }
        for text in ["127.0.0.1:0", "unix:", &format!("unix:/{}", "x".repeat(PATH_MAX))] {
            text.parse::<MetricsAddr>().expect_err("is wrong");
        }
    }

    #[test]
    fn loopback_and_unix_sockets_are_local() {
        let is_local = |text: &str| text.parse::<MetricsAddr>().expect("is right").is_local();
        assert!(
            ["127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:x"].into_iter().all(is_local)
        );
        assert!(!["0.0.0.0:1", "[::]:1", "192.0.2.1:1"].into_iter().any(is_local));
    }
}
