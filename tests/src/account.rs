//! Accounts of packets: what a running `ferroute` reports of each, checked for consistency and against the
//! kernel's counters of the same interfaces.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Netns;

/// One report of `ferroute -j stat`.
#[derive(Debug, Clone)]
pub struct Account {
    stat: Value,
}

impl Account {
    /// Wraps a report.
    pub fn new(stat: Value) -> Self {
        Self { stat }
    }

    /// The whole report.
    pub fn stat(&self) -> &Value {
        &self.stat
    }

    /// Packets of all workers together: `received`, `made`, `sent`, ….
    ///
    /// # Errors
    /// When there is no such figure.
    pub fn packets(&self, name: &str) -> Result<u64> {
        figure(&self.stat["packets"], name)
    }

    /// Packets dropped for one reason.
    ///
    /// # Errors
    /// When there is no such reason.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        figure(&self.stat["drops"], reason)
    }

    /// Packets handed to the kernel for one reason.
    ///
    /// # Errors
    /// When there is no such reason.
    pub fn punts(&self, reason: &str) -> Result<u64> {
        figure(&self.stat["punts"], reason)
    }

    /// A MIB counter.
    ///
    /// # Errors
    /// When there is no such counter.
    pub fn mib(&self, name: &str) -> Result<u64> {
        figure(&self.stat["mib"], name)
    }

    /// One figure of a port: `group` is `counters`, `driver` or `xdp`.
    ///
    /// # Errors
    /// When there is no such port or figure.
    pub fn port(&self, ifname: &str, group: &str, name: &str) -> Result<u64> {
        let ports = self.stat["ports"].as_array().context("no ports")?;
        let port = ports.iter().find(|port| port["ifname"] == ifname);
        figure(&port.with_context(|| format!("no port {ifname}"))?[group], name)
    }

    /// Fails unless every packet of each worker is accounted for. Holds at any moment.
    ///
    /// # Errors
    /// With the account that does not balance.
    pub fn balanced(&self) -> Result<()> {
        let workers = self.stat["workers"].as_array().context("no workers")?;
        ensure!(!workers.is_empty(), "no workers: {}", self.stat);
        for worker in workers {
            let packets = &worker["packets"];
            let sum = |names: &[&str]| -> Result<u64> {
                names.iter().map(|name| figure(packets, name)).sum()
            };
            let came = sum(&["received", "made", "handed_over_in"])?;
            let went = sum(&["sent", "dropped", "handed_to_kernel", "fragmented", "reassembled"])?;
            let inside = sum(&["handed_over_out", "held", "sending"])?;
            ensure!(
                came == went + inside,
                "{came} came, {went} + {inside} are accounted for: {packets}"
            );
        }
        Ok(())
    }

    /// Whether no packet is in flight.
    ///
    /// # Errors
    /// When a figure is missing.
    pub fn is_settled(&self) -> Result<bool> {
        let crossed = self.packets("handed_over_out")? == self.packets("handed_over_in")?;
        Ok(crossed && self.packets("held")? == 0 && self.packets("sending")? == 0)
    }

    /// Fails unless all figures of a settled account agree: drops and punts by reason, packets made by MIB
    /// counter, packets by port, frames of the memory.
    ///
    /// # Errors
    /// With the figures that do not agree.
    pub fn agrees(&self) -> Result<()> {
        self.balanced()?;
        let same = |what: &str, one: u64, other: u64| {
            ensure!(one == other, "{what}: {one} and {other}: {:#}", self.stat);
            Ok(())
        };
        same("drops", self.packets("dropped")?, total(&self.stat["drops"]))?;
        same("punts", self.packets("handed_to_kernel")?, total(&self.stat["punts"]))?;
        let reassembled = self.mib("IpReasmOKs")? + self.mib("Ip6ReasmOKs")?;
        let made = self.mib("IcmpOutMsgs")?
            + self.mib("Icmp6OutMsgs")?
            + self.mib("IpFragCreates")?
            + reassembled;
        same("made", self.packets("made")?, made)?;
        same("fragmented", self.packets("fragmented")?, self.mib("IpFragOKs")?)?;
        let ports = self.stat["ports"].as_array().context("no ports")?;
        let of_ports = |name: &str| -> Result<u64> {
            ports.iter().map(|port| figure(&port["counters"], name)).sum()
        };
        same("received", self.packets("received")?, of_ports("rx_packets")?)?;
        same("sent", self.packets("sent")?, of_ports("tx_packets")?)?;
        same("punted", self.packets("handed_to_kernel")?, of_ports("punted")?)?;
        let frames = &self.stat["frames"];
        let places = ["free", "fill_and_rx", "tx_and_completion", "draining", "held"];
        let places: u64 = places.iter().map(|name| figure(frames, name)).sum::<Result<u64>>()?;
        same("frames", figure(frames, "total")?, places)
    }

    /// Fails unless the port has received all frames that the XDP program redirected to its sockets.
    ///
    /// # Errors
    /// With the figures that do not agree.
    pub fn received_what_was_steered(&self, ifname: &str) -> Result<()> {
        let steered = [
            "steer_ipv4",
            "steer_ipv6",
            "steer_too_short",
            "steer_ipsec",
            "offload_ipv4",
            "offload_ipv6",
        ];
        let steered = steered.iter().map(|name| self.port(ifname, "xdp", name));
        let steered: u64 = steered.sum::<Result<u64>>()?;
        let received = self.port(ifname, "counters", "rx_packets")?;
        let lost = self.port(ifname, "driver", "rx_dropped")?
            + self.port(ifname, "driver", "rx_ring_full")?;
        ensure!(
            steered == received + lost,
            "{ifname}: {steered} steered, {received} received, {lost} found no room: {:#}",
            self.stat
        );
        Ok(())
    }
}

fn figure(of: &Value, name: &str) -> Result<u64> {
    of[name].as_u64().with_context(|| format!("no {name} in {of}"))
}

/// The sum of an object's numbers.
pub fn total(object: &Value) -> u64 {
    object.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
}

/// The kernel's packet counters of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// Received.
    pub rx: u64,
    /// Sent.
    pub tx: u64,
    /// Dropped on transmit.
    pub tx_dropped: u64,
}

/// Reads the counters.
///
/// # Errors
/// When `ip` fails or its output is unexpected.
pub fn interface(namespace: &Netns, name: &str) -> Result<Interface> {
    let text = namespace.run(&format!("ip -j -s link show dev {name}"))?;
    let answer: Value = serde_json::from_str(&text)?;
    let stats = &answer[0]["stats64"];
    Ok(Interface {
        rx: figure(&stats["rx"], "packets")?,
        tx: figure(&stats["tx"], "packets")?,
        tx_dropped: figure(&stats["tx"], "dropped")?,
    })
}

/// Adds a qdisc to an interface, which counts the packets that the kernel's stack sends there. AF_XDP
/// sockets in copy mode bypass it (`__dev_direct_xmit`).
///
/// # Errors
/// When `tc` fails.
pub fn count_the_stacks_packets(namespace: &Netns, name: &str) -> Result<()> {
    namespace.run(&format!("tc qdisc replace dev {name} root pfifo limit 10000")).map(drop)
}

/// Packets that the stack has sent on the interface since then.
///
/// # Errors
/// When `tc` fails, its output is unexpected, or the qdisc has dropped a packet.
pub fn sent_by_the_stack(namespace: &Netns, name: &str) -> Result<u64> {
    let text = namespace.run(&format!("tc -j -s qdisc show dev {name}"))?;
    let answer: Value = serde_json::from_str(&text)?;
    figure(&answer[0], "packets")
}
