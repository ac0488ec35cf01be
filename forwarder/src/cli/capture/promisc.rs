//! Frames for other stations. The XDP program passes frames that are not for the port's own address, and
//! the kernel drops them as PACKET_OTHERHOST. A packet socket of libpcap sees them.
//!
//! Its promiscuous membership (PACKET_MR_PROMISC) raises the interface's counter by one and ends with the
//! socket, even if this process is killed.

use std::fs;

use anyhow::{Context, Result, bail};
use pcap::{Active, Direction, Precision};

use super::super::output;
use crate::control::api::CapturePort;
use crate::wire::MacAddr;

/// Maximum number of packets read from one socket before the next one is read.
const TURN: usize = 1024;

/// The sockets of the captured ports.
pub struct Promiscuous {
    /// Names of ports; empty: all.
    wanted: Vec<String>,
    filter: String,
    snaplen: i32,
    sockets: Vec<Socket>,
}

struct Socket {
    port: u16,
    ifindex: u32,
    ifname: String,
    /// `None`: its interface is gone or was removed, or did not become promiscuous.
    capture: Option<pcap::Capture<Active>>,
}

impl Promiscuous {
    /// For these ports of the daemon with process ID `pid`. [`Self::follow`] opens the sockets.
    ///
    /// # Errors
    /// When the daemon is in another network namespace, which has other interfaces.
    pub fn new(wanted: &[String], filter: &str, snaplen: u32, pid: u32) -> Result<Promiscuous> {
        let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/net"));
        let theirs = namespace(&pid.to_string());
        let theirs = theirs.with_context(|| format!("the daemon's process {pid}"))?;
        if theirs != namespace("self")? {
            bail!(
                "--promisc: the daemon is in another network namespace; run this there: \
                 nsenter --net=/proc/{pid}/ns/net ferroute capture …"
            );
        }
        Ok(Promiscuous {
            wanted: wanted.to_vec(),
            filter: filter.trim().to_owned(),
            snaplen: i32::try_from(snaplen).unwrap_or(i32::MAX),
            sockets: Vec::new(),
        })
    }

    /// Opens sockets on ports that exist, and closes those of ports that do not. `must`: a failure is an
    /// error. Otherwise it is only logged, because the port may already be gone.
    ///
    /// # Errors
    /// With `must`, when a port does not become promiscuous.
    pub fn follow(&mut self, ports: &[CapturePort], must: bool) -> Result<()> {
        for (index, port) in (0u16..).zip(ports) {
            self.sockets.retain(|socket| socket.port != index || socket.ifindex == port.ifindex);
            if !self.wanted.is_empty() && !self.wanted.contains(&port.ifname) {
                continue;
            }
            let known = self.sockets.iter().any(|socket| socket.port == index);
            if known || port.ifindex == 0 {
                continue;
            }
            let capture = self
                .open(port)
                .with_context(|| format!("interface {} cannot be made promiscuous", port.ifname));
            let capture = match capture {
                Err(error) if !must => {
                    output::note(format_args!(
                        "ferroute: {error:#}; frames for other stations are not captured there"
                    ));
                    None
                }
                capture => Some(capture?),
            };
            self.sockets.push(Socket {
                port: index,
                ifindex: port.ifindex,
                ifname: port.ifname.clone(),
                capture,
            });
        }
        Ok(())
    }

    fn open(&self, port: &CapturePort) -> Result<pcap::Capture<Active>> {
        let mut capture = pcap::Capture::from_device(port.ifname.as_str())?
            .promisc(true)
            .immediate_mode(true)
            .precision(Precision::Nano)
            .snaplen(self.snaplen)
            .open()?
            .setnonblock()?;
        capture.direction(Direction::In)?;
        // The other frames come through userspace, or are for the kernel.
        let mut others = format!("not ether dst {} and not ether multicast", MacAddr(port.mac));
        if !self.filter.is_empty() {
            others = format!("{others} and ({})", self.filter);
        }
        capture.filter(&others, true)?;
        Ok(capture)
    }

    /// Reads what has come and calls `each` with port, nanoseconds since 1970, length, and the captured
    /// octets.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn look(&mut self, mut each: impl FnMut(u16, u64, u32, &[u8]) -> Result<()>) -> Result<()> {
        for Socket { port, ifname, capture, .. } in &mut self.sockets {
            for _ in 0..TURN {
                let Some(open) = capture else { break };
                match open.next_packet() {
                    Ok(packet) => {
                        let header = packet.header;
                        // With this precision the second part is nanoseconds.
                        let (s, ns) = (header.ts.tv_sec as u64, header.ts.tv_usec as u64);
                        each(*port, s * 1_000_000_000 + ns, header.len, packet.data)?;
                    }
                    Err(pcap::Error::TimeoutExpired) => break,
                    // The interface is down or gone; the daemon reports when there is another.
                    Err(error) => {
                        output::note(format_args!(
                            "ferroute: {ifname} is no longer promiscuous: {error}"
                        ));
                        *capture = None;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_ports_have_to_be_there() {
        let port =
            |ifname: &str, ifindex| CapturePort { ifname: ifname.into(), ifindex, mac: [0; 6] };
        let ports = [port("no-such-0", 7), port("no-such-1", 0)];
        let new = || Promiscuous::new(&[], "", 64, std::process::id()).expect("its own namespace");
        let error = new().follow(&ports, true).expect_err("there is none").to_string();
        assert!(error.contains("no-such-0 cannot be made promiscuous"), "{error}");
        let mut later = new();
        later.follow(&ports, false).expect("it may be gone");
        // It is not tried or reported repeatedly.
        assert_eq!(later.sockets.len(), 1);
        later.look(|_, _, _, _| bail!("nothing can come")).expect("nothing came");
    }
}
