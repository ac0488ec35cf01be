//! A BPF iterator that reads state of a network namespace that the kernel does not report
//! otherwise.
//!
//! The kernel runs an iterator's program for each object of a type, here for netlink sockets, of
//! which this network namespace has at least one: ours. From the first socket the program reads the
//! namespace (`struct net`) and data that it points to. The offsets of members are taken from the
//! running kernel's type information (BTF), and the verifier checks them. Therefore programs are
//! not compiled but assembled here. (Documentation/bpf/bpf_iterators.rst; Linux 5.9 with
//! CONFIG_DEBUG_INFO_BTF.)
//!
//! Needs CAP_BPF and CAP_PERFMON. [`super::hook_iter`] and [`super::rx_handlers`] contain the
//! programs.

#![expect(
    unsafe_code,
    reason = "programs of single instructions and iterators have no safe wrapper"
)]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use libbpf_rs::btf::types::{Composite, Func, MemberAttr};
use libbpf_rs::btf::{Btf, BtfType};
use libbpf_rs::libbpf_sys::{self, bpf_insn};

/// BPF_FUNC_probe_read_kernel, BPF_FUNC_seq_printf, BPF_FUNC_seq_write.
const PROBE_READ_KERNEL: i32 = 113;
const SEQ_PRINTF: i32 = 126;
const SEQ_WRITE: i32 = 127;

/// Offsets on the stack, from its end: the first format, and the arguments of formats.
pub(super) const FORMAT_HEAD: i16 = -8;
pub(super) const DATA: i16 = -32;

/// The iterator.
#[derive(Debug)]
pub(super) struct NetIter {
    link: OwnedFd,
}

impl NetIter {
    /// Loads the program that `program` assembles for the kernel's types. Reading the types takes
    /// some ten milliseconds.
    ///
    /// # Errors
    /// EPERM without the capabilities; an error if the kernel has no BTF or lacks expected types;
    /// the verifier's error.
    pub(super) fn load(
        name: &CStr,
        program: impl FnOnce(&Btf<'_>) -> io::Result<Vec<bpf_insn>>,
    ) -> io::Result<NetIter> {
        let btf = Btf::from_vmlinux().map_err(other)?;
        let program = program(&btf)?;
        let target = btf.type_by_name::<Func<'_>>("bpf_iter_netlink");
        let target = u32::from(target.ok_or_else(|| missing("bpf_iter_netlink"))?.type_id());
        let mut opts = libbpf_sys::bpf_prog_load_opts {
            sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
            expected_attach_type: libbpf_sys::BPF_TRACE_ITER,
            attach_btf_id: target,
            ..Default::default()
        };
        // SAFETY: the number of instructions is correct, the strings are NUL-terminated, and all
        // are valid during the call; the verifier checks the instructions.
        let program = owned(unsafe {
            libbpf_sys::bpf_prog_load(
                libbpf_sys::BPF_PROG_TYPE_TRACING,
                name.as_ptr(),
                // Helpers that print and that read kernel memory require a GPL-compatible licence.
                c"Dual MIT/GPL".as_ptr(),
                program.as_ptr(),
                program.len() as libbpf_sys::size_t,
                &raw mut opts,
            )
        })?;
        // SAFETY: numbers and no options.
        let link = owned(unsafe {
            libbpf_sys::bpf_link_create(
                program.as_raw_fd(),
                0,
                libbpf_sys::BPF_TRACE_ITER,
                ptr::null(),
            )
        })?;
        Ok(NetIter { link })
    }

    /// Runs the program for the network namespace of the calling thread and returns its output.
    ///
    /// # Errors
    /// The kernel's error; E2BIG if the output exceeds 32 KiB.
    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        // SAFETY: a number.
        let iter = owned(unsafe { libbpf_sys::bpf_iter_create(self.link.as_raw_fd()) })?;
        let mut octets = Vec::new();
        File::from(iter).read_to_end(&mut octets)?;
        Ok(octets)
    }
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: a new descriptor that nothing else uses.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn missing(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("the kernel's types have no {what}"))
}

/// Offsets that every program needs, in octets.
#[derive(Debug)]
pub(super) struct SocketLayout {
    /// Of `seq` and `seq_num` in `struct bpf_iter_meta`.
    seq: i16,
    seq_num: i16,
    /// Of the namespace in `struct netlink_sock`.
    net: i16,
}

impl SocketLayout {
    pub(super) fn of(btf: &Btf<'_>) -> io::Result<SocketLayout> {
        Ok(SocketLayout {
            seq: offset(btf, "bpf_iter_meta", &["seq"])?,
            seq_num: offset(btf, "bpf_iter_meta", &["seq_num"])?,
            net: offset(btf, "netlink_sock", &["sk", "__sk_common", "skc_net", "net"])?,
        })
    }
}

/// Offsets by which a program at a tracepoint identifies a `struct net_device`, in octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLayout {
    /// Of its namespace in the device.
    pub dev_net: u32,
    /// Of `ifindex` in the device.
    pub dev_ifindex: u32,
    /// Of `net_cookie` in the namespace (SO_NETNS_COOKIE).
    pub net_cookie: u32,
}

impl DeviceLayout {
    /// Those of the running kernel. Reading its types takes some ten milliseconds.
    ///
    /// # Errors
    /// The kernel has no BTF, or lacks expected types.
    pub fn of_kernel() -> io::Result<DeviceLayout> {
        let btf = Btf::from_vmlinux().map_err(other)?;
        let offset = |structure, path: &[&str]| {
            offset(&btf, structure, path).map(|octets| octets.unsigned_abs().into())
        };
        Ok(DeviceLayout {
            dev_net: offset("net_device", &["nd_net", "net"])?,
            dev_ifindex: offset("net_device", &["ifindex"])?,
            net_cookie: offset("net", &["net_cookie"])?,
        })
    }
}

fn other(error: libbpf_rs::Error) -> io::Error {
    io::Error::other(format!("{error:#}"))
}

/// The offset of a nested member of a structure.
pub(super) fn offset(btf: &Btf<'_>, structure: &str, path: &[&str]) -> io::Result<i16> {
    let wanted = || missing(&format!("{structure}.{}", path.join(".")));
    let mut at = btf.type_by_name::<BtfType<'_>>(structure).ok_or_else(wanted)?;
    let mut bits = 0;
    for name in path {
        let (offset, kind) = member(btf, at, name).ok_or_else(wanted)?;
        bits += offset;
        at = kind;
    }
    i16::try_from(bits / 8).map_err(|_| wanted())
}

/// A member's offset in bits, and its type. It may be in an anonymous union.
fn member<'b>(btf: &'b Btf<'b>, of: BtfType<'b>, name: &str) -> Option<(u32, BtfType<'b>)> {
    let composite = Composite::try_from(of.skip_mods_and_typedefs()).ok()?;
    composite.iter().find_map(|member| {
        let MemberAttr::Normal { offset } = member.attr else { return None };
        let kind = btf.type_by_id::<BtfType<'_>>(member.ty)?;
        match member.name {
            Some(own) => (own == name).then_some((offset, kind)),
            None => self::member(btf, kind, name).map(|(inner, kind)| (offset + inner, kind)),
        }
    })
}

/// Assembles instructions. Registers are r0 to r10, of which r10 is the end of the stack.
#[derive(Default)]
pub(super) struct Assembler {
    code: Vec<bpf_insn>,
    /// Jumps to the end.
    leaving: Vec<usize>,
}

impl Assembler {
    fn push(&mut self, code: u8, to: u8, from: u8, off: i16, imm: i32) {
        let _bitfield_1 = bpf_insn::new_bitfield_1(to, from);
        self.code.push(bpf_insn { code, _bitfield_1, off, imm, ..Default::default() });
    }

    /// BPF_ALU64 | BPF_MOV | BPF_X.
    pub(super) fn copy(&mut self, to: u8, from: u8) {
        self.push(0xbf, to, from, 0, 0);
    }

    /// The first instructions of every program: exits unless it runs for the first socket. r7: the
    /// namespace; r9: the seq_file to write to.
    pub(super) fn begin(&mut self, layout: &SocketLayout) {
        let sixty_four = 0x79;
        self.copy(6, 1);
        self.load(sixty_four, 9, 6, 0);
        self.load(sixty_four, 2, 9, layout.seq_num);
        self.leave_unless_zero(2);
        self.load(sixty_four, 7, 6, 8);
        self.leave_if_zero(7);
        self.load(sixty_four, 7, 7, layout.net);
        self.load(sixty_four, 9, 9, layout.seq);
    }

    /// BPF_LDX | BPF_MEM of a size.
    pub(super) fn load(&mut self, size: u8, to: u8, from: u8, off: i16) {
        self.push(size, to, from, off, 0);
    }

    /// BPF_STX | BPF_MEM | BPF_DW.
    pub(super) fn store(&mut self, off: i16, from: u8) {
        self.push(0x7b, 10, from, off, 0);
    }

    /// BPF_ST | BPF_MEM | BPF_DW.
    pub(super) fn store_number(&mut self, off: i16, number: i32) {
        self.push(0x7a, 10, 0, off, number);
    }

    /// BPF_LD | BPF_IMM | BPF_DW, which takes two instructions, and a store.
    pub(super) fn store_octets(&mut self, off: i16, octets: [u8; 8]) {
        let number = u64::from_ne_bytes(octets);
        self.push(0x18, 1, 0, 0, number as i32);
        self.push(0, 0, 0, 0, (number >> 32) as i32);
        self.store(off, 1);
    }

    /// `bpf_seq_printf(r9, format, len, DATA, data)`: format and data are on the stack.
    pub(super) fn print(&mut self, format: i16, len: i32, data: i32) {
        self.copy(1, 9);
        self.copy(2, 10);
        self.add(2, format.into());
        self.set(3, len);
        self.copy(4, 10);
        self.add(4, DATA.into());
        self.set(5, data);
        self.call(SEQ_PRINTF);
    }

    /// BPF_ALU64 | BPF_ADD | BPF_K.
    pub(super) fn add(&mut self, register: u8, number: i32) {
        self.push(0x07, register, 0, 0, number);
    }

    /// Replaces a number other than zero by 1: BPF_ALU64 with BPF_NEG, BPF_OR | BPF_X, BPF_RSH |
    /// BPF_K.
    pub(super) fn make_flag(&mut self, register: u8, scratch: u8) {
        self.copy(scratch, register);
        self.push(0x87, scratch, 0, 0, 0);
        self.push(0x4f, register, scratch, 0, 0);
        self.push(0x77, register, 0, 0, 63);
    }

    /// BPF_ALU64 | BPF_LSH | BPF_K.
    pub(super) fn shift_left(&mut self, register: u8, bits: i32) {
        self.push(0x67, register, 0, 0, bits);
    }

    /// `bpf_probe_read_kernel(stack at off, len, from + at)`. The result is zero if the memory
    /// cannot be read.
    pub(super) fn read_kernel(&mut self, off: i16, len: i32, from: u8, at: i32) {
        self.copy(1, 10);
        self.add(1, off.into());
        self.set(2, len);
        self.copy(3, from);
        self.add(3, at);
        self.call(PROBE_READ_KERNEL);
    }

    /// `bpf_seq_write(r9, stack at off, r3)`.
    pub(super) fn write(&mut self, off: i16) {
        self.copy(1, 9);
        self.copy(2, 10);
        self.add(2, off.into());
        self.call(SEQ_WRITE);
    }

    /// BPF_ALU64 | BPF_MOV | BPF_K.
    pub(super) fn set(&mut self, register: u8, number: i32) {
        self.push(0xb7, register, 0, 0, number);
    }

    /// BPF_JMP | BPF_CALL.
    fn call(&mut self, helper: i32) {
        self.push(0x85, 0, 0, 0, helper);
    }

    /// The number of the next instruction.
    pub(super) fn here(&self) -> usize {
        self.code.len()
    }

    /// BPF_JMP | BPF_JNE | BPF_X: a jump to the instruction set by [`land`](Self::land).
    pub(super) fn skip_unless_equal(&mut self, a: u8, b: u8) -> usize {
        self.push(0x5d, a, b, 0, 0);
        self.code.len() - 1
    }

    /// BPF_JMP | BPF_JLT | BPF_K: a jump back to an instruction.
    pub(super) fn back_while_below(&mut self, register: u8, number: i32, to: usize) {
        let off = to as i64 - self.code.len() as i64 - 1;
        self.push(0xa5, register, 0, off as i16, number);
    }

    /// BPF_JMP | BPF_JA.
    pub(super) fn leave(&mut self) {
        self.leaving.push(self.code.len());
        self.push(0x05, 0, 0, 0, 0);
    }

    /// BPF_JMP | BPF_JNE | BPF_K.
    fn leave_unless_zero(&mut self, register: u8) {
        self.leaving.push(self.code.len());
        self.push(0x55, register, 0, 0, 0);
    }

    /// BPF_JMP | BPF_JEQ | BPF_K.
    fn leave_if_zero(&mut self, register: u8) {
        self.leaving.push(self.code.len());
        self.push(0x15, register, 0, 0, 0);
    }

    /// BPF_JMP | BPF_JLE | BPF_K: a jump to the instruction set by [`land`](Self::land).
    pub(super) fn skip_unless_above(&mut self, register: u8, number: i32) -> usize {
        self.push(0xb5, register, 0, 0, number);
        self.code.len() - 1
    }

    /// Jump offsets count from the next instruction.
    pub(super) fn land(&mut self, jump: usize) {
        self.code[jump].off = (self.code.len() - jump - 1) as i16;
    }

    pub(super) fn finish(mut self) -> Vec<bpf_insn> {
        for jump in std::mem::take(&mut self.leaving) {
            self.land(jump);
        }
        // r0 = 0, BPF_JMP | BPF_EXIT.
        self.set(0, 0);
        self.push(0x95, 0, 0, 0, 0);
        self.code
    }
}
