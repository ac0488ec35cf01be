//! Frames for other stations: the kernel has them, for the XDP program passes what is not for the
//! port's own address, and drops them as PACKET_OTHERHOST. A packet socket of libpcap sees them.
//!
//! Its promiscuous membership (PACKET_MR_PROMISC) raises the interface's counter by one and ends
//! with the socket, however this process ends.

use std::fs;

use anyhow::{Context, Result, bail};
use pcap::{Active, Direction, Precision};

use super::super::output;
use crate::control::api::CapturePort;
use crate::wire::MacAddr;

/// Packets taken from one socket at a time: others have their turn, too.
const TURN: usize = 1024;

/// The sockets of the ports that are captured on.
pub struct Promiscuous {
    /// Names of ports; none: all.
    wanted: Vec<String>,
    filter: String,
    snaplen: i32,
    sockets: Vec<Socket>,
}

struct Socket {
    port: u16,
    ifindex: u32,
    ifname: String,
    /// `None`: its interface is gone, or went away, or did not become promiscuous.
    capture: Option<pcap::Capture<Active>>,
}

impl Promiscuous {
    /// For these ports, of the daemon that is the process `pid`. Sockets are opened by
    /// [`Self::follow`].
    ///
    /// # Errors
    /// When the daemon is in another network namespace, where interfaces are other ones.
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

    /// Opens sockets on ports that are there, closes those of ports that are not. `must`: all of them
    /// are to open. Else it is said which does not, for it may be gone already.
    ///
    /// # Errors
    /// When a port does not become promiscuous and must.
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
        // The others come by userspace, or are the kernel's own.
        let mut others = format!("not ether dst {} and not ether multicast", MacAddr(port.mac));
        if !self.filter.is_empty() {
            others = format!("{others} and ({})", self.filter);
        }
        capture.filter(&others, true)?;
        Ok(capture)
    }

    /// Shows what has come: port, nanoseconds since 1970, length, the octets kept.
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
                    // Down or gone; the daemon tells when there is another.
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
        // It is not tried, nor told, again and again.
        assert_eq!(later.sockets.len(), 1);
        later.look(|_, _, _, _| bail!("nothing can come")).expect("nothing came");
    }
}
