//! TCP in both directions with default offloads: checksums are completed, no segment is lost.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::{LEFT4, LEFT6, RIGHT4, RIGHT6};
use ferroute_tests::rng::Rng;
use ferroute_tests::{Ferroute, Lab, Netns, eventually};

/// Octets carried by one iperf3 run.
const OCTETS: u64 = 20_000_000;
/// Time-out of reads and writes in the byte-by-byte test.
const IO_TIMEOUT: Duration = Duration::from_secs(30);

/// An `iperf3 -s` that is killed when this is dropped.
struct Server(Child);

impl Server {
    fn start(host: &Netns, address: &str) -> Result<Self> {
        let mut command = host.command("iperf3");
        command.args(["-s", "-B", address]).stdout(Stdio::null());
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn iperf(lab: &Lab, address: &str) -> Result<()> {
    for direction in ["", "-R"] {
        let client = format!(
            "timeout 60 iperf3 -c {address} -n {OCTETS} {direction} --connect-timeout 5000 -J"
        );
        // A new server for every attempt: it may not listen yet, and must not remember half a test.
        let mut text = String::new();
        let mut attempt = || -> Result<bool> {
            let _server = Server::start(&lab.right, address)?;
            thread::sleep(Duration::from_millis(200));
            let output = lab.left.output(&client)?;
            text = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(output.status.success())
        };
        let done = eventually(|| attempt().unwrap_or(false));
        ensure!(done, "iperf3 {direction}:\n{text}");
        let report: serde_json::Value = serde_json::from_str(&text)?;
        let received = report["end"]["sum_received"]["bytes"].as_u64();
        // Octets in flight when the sender has finished are not counted.
        ensure!(received.is_some_and(|octets| octets > OCTETS / 2), "iperf3 {direction}:\n{text}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn iperf3_v4_both_ways() -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    iperf(&lab, RIGHT4)?;
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn iperf3_v6_both_ways() -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    iperf(&lab, RIGHT6)?;
    ferroute.forwarded_all_itself()
}

/// Sends `octets` from a seed in one direction and reads them at the other end.
fn carry(from: &Netns, to: &Netns, address: &str, octets: usize) -> Result<()> {
    let address: IpAddr = address.parse()?;
    let listener = to.enter(|| Ok(TcpListener::bind(SocketAddr::new(address, 0))?))?;
    let target = listener.local_addr()?;
    let mut sender = from
        .enter(|| TcpStream::connect_timeout(&target, IO_TIMEOUT).context("connecting through"))?;
    let (mut receiver, _) = listener.accept()?;
    sender.set_write_timeout(Some(IO_TIMEOUT))?;
    receiver.set_read_timeout(Some(IO_TIMEOUT))?;

    let mut rng = Rng::new(octets as u64);
    let sent: Vec<u8> = (0..octets).map(|_| rng.bits() as u8).collect();
    let mut received = Vec::new();
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            sender.write_all(&sent)?;
            sender.shutdown(std::net::Shutdown::Write)
        });
        receiver.read_to_end(&mut received)?;
        sending.join().expect("the sender does not panic")
    })?;
    ensure!(sent == received, "{} octets of {octets} arrived, or not the same", received.len());
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn tcp_carries_every_octet() -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    for octets in [1, 1461, 3_000_000] {
        carry(&lab.left, &lab.right, RIGHT4, octets)?;
        carry(&lab.right, &lab.left, LEFT4, octets)?;
        carry(&lab.left, &lab.right, RIGHT6, octets)?;
        carry(&lab.right, &lab.left, LEFT6, octets)?;
    }
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn tcp_finds_a_smaller_mtu_on_the_path() -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    lab.router.run("ip link set rt-right mtu 1280")?;
    // The host keeps its own MTU and announces a segment size of 1460: only ICMP can report the smaller
    // one.
    for address in [RIGHT4, RIGHT6] {
        carry(&lab.left, &lab.right, address, 500_000)?;
    }
    ferroute.forwarded_all_itself()
}

/// The hosts' ends of a tunnel through the router, with addresses of both families inside.
fn vxlan(lab: &Lab, left: &str, right: &str, options: &str) -> Result<()> {
    for (host, local, remote, last) in [(&lab.left, left, right, 1), (&lab.right, right, left, 2)] {
        let ends = format!("local {local} remote {remote} dstport 4789");
        host.run(&format!("ip link add vx0 mtu 1400 type vxlan id 42 {ends} {options}"))?;
        host.run("ip link set vx0 up")?;
        host.run(&format!("ip addr add 192.0.2.{last}/24 dev vx0"))?;
        host.run(&format!("ip addr add 2001:db8:f::{last}/64 dev vx0 nodad"))?;
    }
    Ok(())
}

/// Segments inside have partial checksums, with and without a checksum of the tunnel.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn tcp_between_veth_hosts_passes_tunnels() -> Result<()> {
    for offload in ["off", "on"] {
        for (left, right, options) in [
            (LEFT4, RIGHT4, "noudpcsum"),
            (LEFT4, RIGHT4, "udpcsum"),
            (LEFT6, RIGHT6, "noudp6zerocsumtx"),
        ] {
            let lab = Lab::up()?;
            let args = ["--offload", offload];
            let more = ["--offload-threshold", "1"];
            let args = if offload == "on" { [args, more].concat() } else { args.to_vec() };
            let ferroute = Ferroute::start_with(&lab, &args)?;
            vxlan(&lab, left, right, options)?;
            for (from, to, address) in [
                (&lab.left, &lab.right, "192.0.2.2"),
                (&lab.right, &lab.left, "192.0.2.1"),
                (&lab.left, &lab.right, "2001:db8:f::2"),
            ] {
                carry(from, to, address, 300_000).with_context(|| {
                    format!("{address} in {left}, {options}, offload {offload}")
                })?;
            }
            ferroute.forwarded_all_itself()?;
        }
    }
    Ok(())
}
