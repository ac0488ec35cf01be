//! The kernel's own fast path: an XDP program with `bpf_fib_lookup` and a redirect on every port.
//!
//! A reference in benchmarks: where the kernel copies frames, no userspace forwarder reaches its
//! throughput.
//!
//!     xdp_forward IFACE IFACE…
//!
//! Runs until it is killed; the programs are detached when the process ends. On veth pairs, the ports at
//! the other ends must accept frames from XDP.

use std::error::Error;

use libbpf_rs::ObjectBuilder;

/// libbpf reads the ELF headers in place, so they have to be aligned.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../../xdp-prog/peer.bpf.o"));

fn main() -> Result<(), Box<dyn Error>> {
    let ports: Vec<String> = std::env::args().skip(1).collect();
    if ports.len() < 2 {
        return Err("usage: xdp_forward IFACE IFACE…".into());
    }
    let object = ObjectBuilder::default().open_memory(&OBJECT.0)?.load()?;
    let program = object.progs_mut().next().ok_or("the object has no program")?;
    let mut links = Vec::new();
    for port in &ports {
        let ifindex = nix::net::if_::if_nametoindex(port.as_str())?;
        links.push(program.attach_xdp(ifindex as i32)?);
        println!("{port}: attached");
    }
    loop {
        std::thread::park();
    }
}
