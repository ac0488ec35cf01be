//! Interfaces whose packets another interface takes before they are routed, even one in another
//! namespace.
//!
//! A macvlan, an ipvlan, a bridge or a bond registers a function with its lower interface
//! (`netdev_rx_handler_register`), which receives every packet before the protocols do. Netlink
//! reports the upper interface only in its own network namespace: if it was moved to, or created
//! in, the namespace of a container, the namespace of the lower interface gets no event. Therefore
//! a BPF iterator (see [`super::net_iter`]) walks the namespace's interfaces (`net.dev_base_head`)
//! and prints the ifindex of those whose `net_device.rx_handler` is set.

use std::collections::BTreeSet;
use std::io;
use std::thread::JoinHandle;

use libbpf_rs::btf::Btf;
use libbpf_rs::libbpf_sys::bpf_insn;

use super::net_iter::{Assembler, DATA, FORMAT_HEAD, NetIter, SocketLayout, offset};

/// Maximum number of interfaces to check. The verifier simulates each iteration of the loop, which
/// takes it most of a second, and gives up after a million instructions.
const INTERFACES_MAX: u32 = 20_000;
/// Enough for most machines; a program with this limit loads within 20 ms.
const INTERFACES_FEW: u32 = 1_000;

/// The result of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handled {
    /// ifindices of the interfaces that have an rx_handler.
    pub interfaces: BTreeSet<u32>,
    /// Whether all interfaces were checked; nothing is known of the others.
    pub is_all: bool,
}

/// The iterator.
#[derive(Debug)]
pub struct RxHandlerIter {
    iter: NetIter,
    larger: Larger,
}

/// The program that checks [`INTERFACES_MAX`] interfaces.
#[derive(Debug)]
enum Larger {
    /// Not needed: there were few interfaces so far.
    NotWanted,
    Loading(JoinHandle<io::Result<NetIter>>),
    Loaded,
    /// The kernel rejects it.
    Refused,
}

impl RxHandlerIter {
    /// Loads the program.
    ///
    /// # Errors
    /// The same as for [`NetIter::load`].
    pub fn open() -> io::Result<RxHandlerIter> {
        Ok(RxHandlerIter { iter: load(INTERFACES_FEW)?, larger: Larger::NotWanted })
    }

    /// Reads the network namespace of the calling thread. Once it has more interfaces than the
    /// program checks, a thread loads a program with a higher limit.
    ///
    /// # Errors
    /// The kernel's error, or unexpected output; EAGAIN while the larger program is being loaded.
    pub fn read(&mut self) -> io::Result<Handled> {
        let handled = self.read_some()?;
        if handled.is_all {
            return Ok(handled);
        }
        match std::mem::replace(&mut self.larger, Larger::Refused) {
            Larger::NotWanted => {
                let thread = std::thread::Builder::new().name("fr-bpf".into());
                self.larger = Larger::Loading(thread.spawn(|| load(INTERFACES_MAX))?);
            }
            Larger::Loading(thread) if thread.is_finished() => {
                if let Ok(Ok(iter)) = thread.join() {
                    (self.iter, self.larger) = (iter, Larger::Loaded);
                }
                return self.read_some();
            }
            loading @ Larger::Loading(_) => self.larger = loading,
            known => {
                self.larger = known;
                return Ok(handled);
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Maximum number of interfaces to check.
    pub fn interfaces_max(&self) -> u32 {
        if matches!(self.larger, Larger::Loaded) { INTERFACES_MAX } else { INTERFACES_FEW }
    }

    fn read_some(&self) -> io::Result<Handled> {
        let octets = self.iter.read()?;
        parse(&octets)
            .ok_or_else(|| io::Error::other("the iterator of rx_handlers wrote too little"))
    }
}

fn load(interfaces_max: u32) -> io::Result<NetIter> {
    NetIter::load(c"ferroute_rxh", |btf| Ok(program(&Layout::of(btf)?, interfaces_max)))
}

/// Offsets in the kernel's structures, in octets.
#[derive(Debug)]
struct Layout {
    socket: SocketLayout,
    /// Offset of the list of interfaces in `struct net`.
    list: i32,
    /// Distance from an interface's node in that list to its other members.
    rx_handler: i32,
    ifindex: i32,
}

impl Layout {
    fn of(btf: &Btf<'_>) -> io::Result<Layout> {
        let of_device = |member| offset(btf, "net_device", &[member]).map(i32::from);
        let node = of_device("dev_list")?;
        Ok(Layout {
            socket: SocketLayout::of(btf)?,
            list: offset(btf, "net", &["dev_base_head"])?.into(),
            rx_handler: of_device("rx_handler")? - node,
            ifindex: of_device("ifindex")? - node,
        })
    }
}

/// Offset of `next` in `struct list_head`.
const NEXT: i32 = 0;
const PREV: i32 = 8;
/// Offset on the stack, from its end: the last value read.
const WORD: i16 = FORMAT_HEAD;

/// The output: 32-bit ifindices, followed by 0 if the end of the list was reached, otherwise 1,
/// which is the loopback's.
fn program(layout: &Layout, interfaces_max: u32) -> Vec<bpf_insn> {
    let sixty_four = 0x79;
    let mut code = Assembler::default();
    code.begin(&layout.socket);
    // r8: the node of an interface, initially the loopback's; r7: the list head; r6: interfaces
    // seen.
    code.read_kernel(WORD, 8, 7, layout.list + NEXT);
    code.load(sixty_four, 8, 10, WORD);
    code.read_kernel(WORD, 8, 8, PREV);
    code.load(sixty_four, 7, 10, WORD);
    code.set(6, 0);
    let head = code.here();
    let more = code.skip_unless_equal(8, 7);
    end(&mut code, 0);
    code.land(more);
    code.read_kernel(DATA, 4, 8, layout.ifindex);
    code.read_kernel(WORD, 8, 8, layout.rx_handler);
    // Writes four octets or none, without a branch, because the verifier would track each branch.
    code.load(sixty_four, 3, 10, WORD);
    code.make_flag(3, 4);
    code.shift_left(3, 2);
    code.write(DATA);
    code.read_kernel(WORD, 8, 8, NEXT);
    code.load(sixty_four, 8, 10, WORD);
    code.add(6, 1);
    code.back_while_below(6, interfaces_max as i32, head);
    end(&mut code, 1);
    code.finish()
}

/// Writes the last number and exits.
fn end(code: &mut Assembler, number: i32) {
    code.store_number(DATA, number);
    code.set(3, 4);
    code.write(DATA);
    code.leave();
}

/// Parses the program's output; `None` if it is incomplete.
fn parse(octets: &[u8]) -> Option<Handled> {
    let (numbers, rest) = octets.as_chunks::<4>();
    let (last, interfaces) = numbers.split_last()?;
    let is_all = match u32::from_ne_bytes(*last) {
        0 => true,
        1 => false,
        _ => return None,
    };
    let interfaces = interfaces.iter().map(|octets| u32::from_ne_bytes(*octets)).collect();
    rest.is_empty().then_some(Handled { interfaces, is_all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_output_is_parsed() {
        let octets = |numbers: &[u32]| -> Vec<u8> {
            numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
        };
        let handled = |interfaces: &[u32], is_all| {
            Some(Handled { interfaces: interfaces.iter().copied().collect(), is_all })
        };
        assert_eq!(parse(&octets(&[0])), handled(&[], true));
        assert_eq!(parse(&octets(&[4, 7, 0])), handled(&[4, 7], true));
        assert_eq!(parse(&octets(&[4, 7, 1])), handled(&[4, 7], false));
        for wrong in [&octets(&[4, 7])[..], &[], &octets(&[4, 0])[..7]] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    #[ignore = "needs root: run by scripts/test"]
    fn root_more_interfaces_than_the_limit_cause_a_larger_program_to_be_loaded() {
        let inside = std::thread::spawn(|| {
            // The namespace has only the loopback interface.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace");
            let mut handlers =
                RxHandlerIter { iter: load(1).expect("loads"), larger: Larger::NotWanted };
            let begun = std::time::Instant::now();
            while let Err(error) = handlers.read() {
                assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}");
                assert!(begun.elapsed().as_secs() < 60, "it is not loaded");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            assert_eq!(handlers.interfaces_max(), INTERFACES_MAX);
            let none = Handled { interfaces: BTreeSet::new(), is_all: true };
            assert_eq!(handlers.read().expect("answers"), none);
        });
        inside.join().expect("does not panic");
    }
}
